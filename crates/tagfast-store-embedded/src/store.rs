//! The embedded store: implements the ports over its files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, params};
use tagfast_domain::{ContentKey, Document, DomainError, Epoch, EpochId, Refusal, Version, codec};
use tagfast_events::{Bus, DeadLetterStore};
use tagfast_resilience::{Clock, ErrorChain, jittered_retry_after, task};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::key_memory::KEY_MEMORY_MAX;
use tagfast_store::{
    CacheUse, ConsistencyToken, Degraded, Durability, History, KeyMemory, Position, ReadOptions,
    Receipt, ReceiptReader, ScanPage, ScanRequest, ShardScanner, Source, StoreError, TagReader,
    TagWriter, Verdict, View, WriteAnswer, WriteRequest, stored_key,
};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::bus::EmbeddedBus;
use crate::dead_letters::EmbeddedDeadLetters;
use crate::directory::{self, DirectoryLock, OpenError, OpenOptions};
use crate::error::read_error;
use crate::file::{FileState, StoreFile};
use crate::queue::{DeadlineRace, Queue, WriteJob};
use crate::reader::ReaderPool;
use crate::retention::{ExpireBytes, Retention};
use crate::rows;
use crate::schema;
use crate::writer::Writer;

/// Maximum connections per file for views: more would only split the cache.
const READERS_MAX: usize = 4;
/// Page cache, in bytes, of the connection that walks a file: it reads each page once.
const WALK_CACHE_BYTES: usize = 256 << 10;
/// Calls with at least this many views run on the blocking pool.
const BLOCKING_VIEWS_MIN: usize = 32;

/// The embedded store. Dropping the last reference closes it; a process that ends without closing
/// loses no acknowledged write.
pub struct EmbeddedStore {
    files: Arc<Vec<StoreFile>>,
    epoch: Epoch,
    epoch_ends: Vec<(EpochId, Vec<u64>)>,
    clock: Arc<dyn Clock>,
    committed: watch::Sender<u64>,
    keys: Arc<KeyMemory>,
    writers: Mutex<Vec<JoinHandle<()>>>,
    _lock: DirectoryLock,
}

impl EmbeddedStore {
    /// Opens or creates a data directory. Blocks; after an unclean stop it checks every file.
    ///
    /// # Errors
    ///
    /// An [`OpenError`] that tells the operator what to do.
    pub fn open(options: OpenOptions) -> Result<Arc<Self>, OpenError> {
        let opened = directory::open(&options)?;
        let (committed, _) = watch::channel(0);
        let keys = Arc::new(known_keys(&opened.writers, &options)?);
        let mut files = Vec::new();
        let mut writers = Vec::new();
        let readers =
            std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, READERS_MAX));
        let readers_cache = options.cache_bytes * 3 / 4 / (opened.writers.len() * readers);
        for (index, conn) in opened.writers.into_iter().enumerate() {
            let path = directory::file_path(&options.data_dir, index);
            let state = Arc::new(
                file_state(index, &conn, &keys).map_err(directory::sqlite("read", &path))?,
            );
            let views = (0..readers)
                .map(|_| schema::open_reader(&path, readers_cache))
                .collect::<Result<_, _>>()
                .map_err(directory::sqlite("open", &path))?;
            let walks = schema::open_reader(&path, WALK_CACHE_BYTES)
                .map_err(directory::sqlite("open", &path))?;
            let writer = Writer::new(
                Arc::clone(&state),
                conn,
                opened.epoch,
                options.limits,
                Arc::clone(&options.clock),
                committed.clone(),
                Retention::new(index, ExpireBytes(options.expire_bytes.cast_signed())),
            );
            let thread = std::thread::Builder::new()
                .name(format!("tagfast-store-{index}"))
                .spawn(move || writer.run())
                .map_err(directory::io("start the writer of", &path))?;
            writers.push(thread);
            files.push(StoreFile { state, readers: ReaderPool::new(views, walks) });
        }
        Ok(Arc::new(Self {
            files: Arc::new(files),
            epoch: opened.epoch,
            epoch_ends: opened.epoch_ends,
            clock: options.clock,
            committed,
            keys,
            writers: Mutex::new(writers),
            _lock: opened.lock,
        }))
    }

    /// The current epoch of the directory.
    pub fn current_epoch(&self) -> Epoch {
        self.epoch
    }

    /// The outbox of the store as a bus.
    pub fn bus(&self) -> Arc<dyn Bus> {
        Arc::new(EmbeddedBus::new(
            Arc::clone(&self.files),
            self.epoch,
            Arc::clone(&self.clock),
            self.committed.subscribe(),
        ))
    }

    /// The dead letters of the store.
    pub fn dead_letters(&self) -> Arc<dyn DeadLetterStore> {
        Arc::new(EmbeddedDeadLetters::new(Arc::clone(&self.files)))
    }

    /// Finishes queued work, refuses new work, checkpoints and marks the files clean. Blocks.
    pub fn close(&self) {
        self.files.iter().for_each(|f| f.state.queue.close());
        let writers = std::mem::take(&mut *self.writers.lock());
        for writer in writers {
            if writer.join().is_err() {
                tracing::error!("writer thread panicked");
            }
        }
    }

    fn file_of(&self, shard: LogicalShard) -> &StoreFile {
        &self.files[self.file_number(shard)]
    }

    fn position(&self, file: &StoreFile) -> Position {
        let newest = file.state.newest.load(Ordering::Acquire);
        Position { epoch: self.epoch.id, xid: newest, lsn: newest }
    }

    /// The end of `epoch` in a file; 0 for an unknown epoch.
    fn epoch_end_of(&self, epoch: EpochId, file: usize) -> u64 {
        if epoch == self.epoch.id {
            return u64::MAX;
        }
        self.epoch_ends
            .iter()
            .find(|(id, _)| *id == epoch)
            .and_then(|(_, ends)| ends.get(file))
            .copied()
            .unwrap_or(0)
    }

    fn file_number(&self, shard: LogicalShard) -> usize {
        usize::from(shard.number()) % self.files.len()
    }

    /// Whether the token's client may have seen writes that this history does not have: only after
    /// a restore.
    fn degraded(
        &self,
        hash: ContentHash,
        version: Version,
        file: &StoreFile,
        token: &ConsistencyToken,
    ) -> Vec<Degraded> {
        let shard = LogicalShard::of_hash(hash);
        let ahead = token.version_of(hash).is_some_and(|seen| seen > version);
        let past_epoch_end = token.floors.get(&shard).is_some_and(|floor| {
            floor.epoch != self.epoch.id
                && floor.lsn > self.epoch_end_of(floor.epoch, file.state.index)
        });
        if ahead || past_epoch_end {
            vec![Degraded { feature: "session", reason: "token_unknown" }]
        } else {
            Vec::new()
        }
    }

    /// A view without its document. Its position is taken before the document is read, so the
    /// document is at least as recent.
    fn view_of(&self, index: usize) -> View {
        let position = self.position(&self.files[index]);
        View {
            version: Version::NONE,
            tags: Vec::new(),
            position,
            source: Source::Primary,
            as_of: self.clock.now_ms(),
            degraded: Vec::new(),
            xmin: position.xid + 1,
            stale: false,
            cache: CacheUse::Bypass,
        }
    }

    fn filled(
        &self,
        mut view: View,
        lookup: &ContentLocation,
        found: rusqlite::Result<Option<Result<Document, DomainError>>>,
        token: Option<&ConsistencyToken>,
    ) -> Result<View, StoreError> {
        let document = match found.map_err(|e| read_error(lookup.file, &e))? {
            Some(Ok(document)) => document,
            Some(Err(source)) => {
                let what = match ContentKey::from_bytes(&lookup.key[1..]) {
                    Ok(key) => format!("content {key}"),
                    Err(_) => "a content".to_owned(),
                };
                let error = ErrorChain(&source);
                tracing::error!(file = lookup.file, what, %error, "stored document is damaged");
                return Err(StoreError::Damaged { what, source: Some(source) });
            }
            None => Document::default(),
        };
        view.version = document.version;
        view.tags = document.taggings;
        view.tags.retain(|t| t.present);
        if let Some(token) = token {
            view.degraded =
                self.degraded(lookup.hash, view.version, &self.files[lookup.file], token);
        }
        Ok(view)
    }

    fn locate(&self, key: &ContentKey) -> ContentLocation {
        let bytes = key.to_bytes();
        let hash = ContentHash::of_bytes(&bytes);
        let shard = LogicalShard::of_hash(hash);
        ContentLocation { hash, file: self.file_number(shard), key: stored_key(shard, &bytes) }
    }

    /// Runs a read on the blocking pool, at most until the deadline.
    async fn read_blocking<T: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        read: impl FnOnce(&[StoreFile]) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let files = Arc::clone(&self.files);
        let reading = task::blocking(move || read(&files));
        let read = match deadline {
            None => reading.await,
            Some(deadline) => tokio::time::timeout_at(deadline, reading).await.map_err(|_| {
                StoreError::Deadline { waiting_for: "the disk", outcome_unknown: false }
            })?,
        };
        read.map_err(|e| StoreError::Internal(Box::new(e)))
    }

    fn enqueue(&self, request: WriteRequest) -> Result<PendingWrite, StoreError> {
        if request.durability == Durability::Replicated {
            return Err(StoreError::NotInThisMode("durability replicated"));
        }
        // A file does not know the keys of the others.
        let now = self.clock.now_ms();
        if request.keyed.is_some_and(|key| !self.keys.bind(&key, now)) {
            return Err(StoreError::Refused(Refusal::KeyReused));
        }
        let file = self.file_of(LogicalShard::of(&request.write.key));
        let (reply, answer) = oneshot::channel();
        let race = request.deadline.map(|deadline| (deadline, DeadlineRace::new()));
        file.state.queue.push(WriteJob {
            request,
            race: race.as_ref().map(|(_, race)| race.clone()),
            reply,
        })?;
        Ok(PendingWrite { answer, race })
    }
}

/// The location of a content.
struct ContentLocation {
    hash: ContentHash,
    file: usize,
    key: Vec<u8>,
}

/// A write in the queue or in a batch.
struct PendingWrite {
    answer: oneshot::Receiver<Result<WriteAnswer, StoreError>>,
    race: Option<(Instant, DeadlineRace)>,
}

impl PendingWrite {
    async fn answered(self) -> Result<WriteAnswer, StoreError> {
        let answer = match self.race {
            None => self.answer.await,
            Some((deadline, race)) => match tokio::time::timeout_at(deadline, self.answer).await {
                Ok(answer) => answer,
                Err(_) if race.give_up() => {
                    return Err(StoreError::Deadline {
                        waiting_for: "the write queue",
                        outcome_unknown: false,
                    });
                }
                Err(_) => {
                    return Err(StoreError::Deadline {
                        waiting_for: "the commit",
                        outcome_unknown: true,
                    });
                }
            },
        };
        // The writer ended without an answer: it panicked, or the process is stopping.
        answer.unwrap_or_else(|_| {
            Err(StoreError::Unavailable {
                reason: "the writer has stopped",
                outcome_unknown: true,
                retry_after: jittered_retry_after(),
            })
        })
    }
}

/// The unexpired keys of all files, as many as the memory holds.
fn known_keys(files: &[Connection], options: &OpenOptions) -> Result<KeyMemory, OpenError> {
    let (keys, now) = (KeyMemory::default(), options.clock.now_ms());
    for (n, conn) in files.iter().enumerate() {
        let path = directory::file_path(&options.data_dir, n);
        let known = rows::bound_keys(conn, now, KEY_MEMORY_MAX / files.len())
            .map_err(directory::sqlite("read", &path))?;
        for (id, request) in known {
            keys.load(id, request, now);
        }
    }
    Ok(keys)
}

fn file_state(
    index: usize,
    conn: &Connection,
    keys: &Arc<KeyMemory>,
) -> rusqlite::Result<FileState> {
    let retained_from =
        schema::meta(conn, "retained_from")?.and_then(|v| v.parse().ok()).unwrap_or(0);
    Ok(FileState {
        index,
        queue: Queue::default(),
        newest: AtomicU64::new(schema::last_position(conn)?),
        retained_from: AtomicU64::new(retained_from),
        keys: Arc::clone(keys),
    })
}

impl History for EmbeddedStore {
    fn current(&self, _: LogicalShard) -> Option<EpochId> {
        Some(self.epoch.id)
    }

    fn epoch_end(&self, shard: LogicalShard, epoch: EpochId) -> Option<u64> {
        let is_known = epoch == self.epoch.id || self.epoch_ends.iter().any(|(id, _)| *id == epoch);
        is_known.then(|| self.epoch_end_of(epoch, self.file_number(shard)))
    }
}

#[async_trait]
impl TagReader for EmbeddedStore {
    async fn view(&self, key: &ContentKey, options: &ReadOptions<'_>) -> Result<View, StoreError> {
        let lookup = self.locate(key);
        let view = self.view_of(lookup.file);
        let readers = &self.files[lookup.file].readers;
        if readers.is_slow() {
            let (lookup, found) = self
                .read_blocking(options.deadline, move |files| {
                    let found =
                        files[lookup.file].readers.view(|conn| rows::document(conn, &lookup.key));
                    (lookup, found)
                })
                .await?;
            return self.filled(view, &lookup, found, options.token);
        }
        let found = readers.view(|conn| rows::document(conn, &lookup.key));
        self.filled(view, &lookup, found, options.token)
    }

    async fn view_many(
        &self,
        keys: &[ContentKey],
        options: &ReadOptions<'_>,
    ) -> Vec<Result<View, StoreError>> {
        if keys.len() < BLOCKING_VIEWS_MIN {
            let mut views = Vec::with_capacity(keys.len());
            for key in keys {
                views.push(self.view(key, options).await);
            }
            return views;
        }
        let lookups: Vec<_> = keys.iter().map(|key| self.locate(key)).collect();
        let views: Vec<_> = lookups.iter().map(|l| self.view_of(l.file)).collect();
        let read = self
            .read_blocking(options.deadline, move |files| {
                let find = |l: &ContentLocation| {
                    files[l.file].readers.view(|conn| rows::document(conn, &l.key))
                };
                let found: Vec<_> = lookups.iter().map(find).collect();
                lookups.into_iter().zip(found).collect::<Vec<_>>()
            })
            .await;
        match read {
            Ok(read) => views
                .into_iter()
                .zip(read)
                .map(|(view, (lookup, found))| self.filled(view, &lookup, found, options.token))
                .collect(),
            Err(error) => {
                let same_error = || match error.is_retryable() {
                    true => {
                        StoreError::Deadline { waiting_for: "the disk", outcome_unknown: false }
                    }
                    false => StoreError::Internal(ErrorChain(&error).to_string().into()),
                };
                keys.iter().map(|_| Err(same_error())).collect()
            }
        }
    }
}

#[async_trait]
impl TagWriter for EmbeddedStore {
    async fn write(&self, request: WriteRequest) -> Result<WriteAnswer, StoreError> {
        self.enqueue(request)?.answered().await
    }

    async fn write_many(
        &self,
        requests: Vec<WriteRequest>,
    ) -> Vec<Result<WriteAnswer, StoreError>> {
        // All are queued before the first is awaited: they share group commits.
        let waiting: Vec<_> = requests.into_iter().map(|r| self.enqueue(r)).collect();
        let mut answers = Vec::with_capacity(waiting.len());
        for pending in waiting {
            answers.push(match pending {
                Ok(pending) => pending.answered().await,
                Err(error) => Err(error),
            });
        }
        answers
    }
}

#[async_trait]
impl ShardScanner for EmbeddedStore {
    async fn scan(&self, request: ScanRequest<'_>) -> Result<ScanPage, StoreError> {
        let ScanRequest { shard, tenant, after, limit } = request;
        let prefix = tenant.map_or_else(Vec::new, |t| [t.as_str().as_bytes(), &[0]].concat());
        let start = match after {
            Some(key) => stored_key(shard, &key.to_bytes()),
            None => stored_key(shard, &prefix),
        };
        // The first key behind the range: the shard's (or tenant's) prefix with its last byte one
        // higher.
        let mut end = stored_key(shard, &prefix);
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let exclusive = after.is_some();
        let index = usize::from(shard.number()) % self.files.len();
        let limit = limit.max(1);
        // A page may be a thousand documents: never on a worker of the runtime.
        let rows = self
            .read_blocking(None, move |files| {
                files[index].readers.walk(|conn| scan_rows(conn, &start, exclusive, &end, limit))
            })
            .await?
            .map_err(|e| read_error(index, &e))?;
        let full = rows.len() == limit;
        let mut page = ScanPage::default();
        for (key, doc) in rows {
            let damaged = |source| StoreError::Damaged {
                what: "a scanned content".to_owned(),
                source: Some(source),
            };
            page.items
                .push((ContentKey::from_bytes(&key[1..]).map_err(damaged)?, doc.map_err(damaged)?));
        }
        page.next = if full { page.items.last().map(|(key, _)| key.clone()) } else { None };
        Ok(page)
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(self.epoch)
    }
}

type ScannedRow = (Vec<u8>, Result<Document, DomainError>);

fn scan_rows(
    conn: &Connection,
    start: &[u8],
    exclusive: bool,
    end: &[u8],
    limit: usize,
) -> rusqlite::Result<Vec<ScannedRow>> {
    // Version 0: never written, but a refused write is remembered.
    let sql = if exclusive {
        "SELECT k, doc FROM content WHERE k > ?1 AND k < ?2 AND ver > 0 ORDER BY k LIMIT ?3"
    } else {
        "SELECT k, doc FROM content WHERE k >= ?1 AND k < ?2 AND ver > 0 ORDER BY k LIMIT ?3"
    };
    let mut select = conn.prepare_cached(sql)?;
    select
        .query_map(params![start, end, limit as i64], |row| {
            Ok((row.get(0)?, codec::decode(row.get_ref(1)?.as_blob()?)))
        })?
        .collect()
}

#[async_trait]
impl ReceiptReader for EmbeddedStore {
    async fn verdict(&self, receipt: &Receipt) -> Result<Verdict, StoreError> {
        let file = self.file_of(receipt.shard);
        let kept =
            receipt.position.lsn <= self.epoch_end_of(receipt.position.epoch, file.state.index);
        Ok(if kept { Verdict::Kept } else { Verdict::Unknown("restored") })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // The writer threads end with their queues; the lock is released when they have.
        self.close();
    }
}
