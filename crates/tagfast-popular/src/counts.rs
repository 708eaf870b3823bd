//! The counts as a sink of the bus and as the popular port.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tagfast_domain::{
    ContentKey, Document, EpochId, TagName, Tagging, TenantId, UnixMillis, Version,
};
use tagfast_events::{
    BusPosition, Group, Partition, Positions, RecordVerdict, Sink, SinkError, SinkRecord, Start,
    Visible,
};
use tagfast_resilience::{Clock, generation};
use tagfast_sharding::LogicalShard;
use tagfast_store::ShardScanner;

use crate::assigned::Assigned;
use crate::boards::{BOARD_TAGS, Boards, Snapshot};
use crate::owner::{OwnerFile, Replace, State, Tags};
use crate::{Board, PopularError, PopularTags, RecountReport, Suggestions, TagCount, Window};

/// The group that counts.
pub const GROUP: Group = Group::ANALYTICS;

/// Records that are best handed over at once. Each transaction writes the pages that it touched,
/// and tags lie on pages of their own: few large ones write much less than many small ones.
pub const BATCH: usize = 8000;
/// Contents per page of a rebuild or recount.
pub(crate) const PAGE: usize = 1000;
/// How often positions become durable: more often only costs transactions.
const POSITION_EVERY: Duration = Duration::from_millis(200);
/// How often buckets expire.
const EXPIRE_EVERY_MS: i64 = 60_000;

/// The generation that counts now.
pub(crate) type CurrentFiles = Arc<RwLock<Arc<Files>>>;

/// The files of one generation, one per partition.
pub(crate) struct Files {
    files: Vec<OwnerFile>,
}

impl Files {
    fn open(dir: &Path, partitions: usize, now: UnixMillis) -> rusqlite::Result<Self> {
        let files =
            (0..partitions).map(|n| OwnerFile::open(&dir.join(format!("popular-{n}.sqlite")), now));
        Ok(Self { files: files.collect::<Result<_, _>>()? })
    }

    pub(crate) fn all(&self) -> &[OwnerFile] {
        &self.files
    }

    pub(crate) fn of_partition(&self, partition: Partition) -> Option<&OwnerFile> {
        self.files.get(usize::from(partition.0))
    }

    /// The partition of a shard, as the bus has it.
    pub(crate) fn partition_of(&self, shard: LogicalShard) -> Partition {
        Partition((usize::from(shard.number()) % self.files.len().max(1)) as u16)
    }

    /// The file of a shard's partition.
    pub(crate) fn of_shard(&self, shard: LogicalShard) -> Option<&OwnerFile> {
        self.of_partition(self.partition_of(shard))
    }

    /// Writes positions down, each with what was counted up to it; with an epoch if it is another
    /// one than before.
    fn set_positions<'a>(
        &self,
        epoch: Option<&str>,
        positions: impl IntoIterator<Item = (&'a Partition, &'a BusPosition)>,
    ) -> rusqlite::Result<()> {
        positions.into_iter().try_for_each(|(partition, position)| {
            match self.of_partition(*partition) {
                Some(file) => file.set_position(epoch, position),
                None => Ok(()),
            }
        })
    }
}

#[derive(Default)]
struct Cadence {
    written: Positions,
    written_at: Option<Instant>,
    expired_minute: i64,
}

/// Popular tags, counted from events and kept in files of their own.
pub struct PopularCounts {
    dir: PathBuf,
    files: CurrentFiles,
    pub(crate) boards: Arc<Boards>,
    pub(crate) scanner: Arc<dyn ShardScanner>,
    pub(crate) clock: Arc<dyn Clock>,
    cadence: Mutex<Cadence>,
    pub(crate) visible: std::sync::atomic::AtomicI64,
    pub(crate) recounting: tokio::sync::Mutex<()>,
    /// The partitions that are counted here; none: all of them, always.
    pub(crate) assigned: Option<Assigned>,
}

impl PopularCounts {
    /// Opens what is there; damaged or missing files are begun anew and rebuilt by the consumer.
    pub fn open(
        dir: PathBuf,
        scanner: Arc<dyn ShardScanner>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, PopularError> {
        let unavailable = |e: &dyn std::fmt::Display| PopularError::Unavailable(e.to_string());
        std::fs::create_dir_all(&dir).map_err(|e| unavailable(&e))?;
        let now = clock.now_ms();
        let files = usable(&dir, now).unwrap_or(Files { files: Vec::new() });
        Ok(Self::new(dir, files, None, scanner, clock))
    }

    /// Opens the files of a process that counts the partitions its group gives to it, for boards
    /// that others read, too ([`crate::BoardWriter`]). What is damaged is begun anew.
    pub fn open_shared(
        dir: PathBuf,
        partitions: u16,
        scanner: Arc<dyn ShardScanner>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, PopularError> {
        let unavailable = |e: &dyn std::fmt::Display| PopularError::Unavailable(e.to_string());
        std::fs::create_dir_all(&dir).map_err(|e| unavailable(&e))?;
        let (now, wanted) = (clock.now_ms(), usize::from(partitions));
        let files = match usable(&dir, now).filter(|files| files.all().len() == wanted) {
            Some(files) => files,
            None => {
                let path = generation::create(&dir).map_err(|e| unavailable(&e))?;
                let files = Files::open(&path, wanted, now).map_err(|e| unavailable(&e))?;
                generation::switch(&dir, &path).map_err(|e| unavailable(&e))?;
                files
            }
        };
        Ok(Self::new(dir, files, Some(Assigned::default()), scanner, clock))
    }

    fn new(
        dir: PathBuf,
        files: Files,
        assigned: Option<Assigned>,
        scanner: Arc<dyn ShardScanner>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        Arc::new(Self {
            dir,
            files: Arc::new(RwLock::new(Arc::new(files))),
            boards: Arc::new(Boards::new()),
            scanner,
            clock,
            cadence: Mutex::new(Cadence::default()),
            visible: std::sync::atomic::AtomicI64::new(0),
            recounting: tokio::sync::Mutex::new(()),
            assigned,
        })
    }

    pub(crate) fn files(&self) -> Arc<Files> {
        Arc::clone(&self.files.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn snapshot(
        &self,
        tenant: &TenantId,
    ) -> Result<(Arc<Snapshot>, UnixMillis), PopularError> {
        if self.files().all().is_empty() {
            return Err(PopularError::Unavailable("the counts are being built".to_owned()));
        }
        self.boards.get(&self.files, tenant).await.map_err(PopularError::Unavailable)
    }

    /// Copies the contents of shards into files.
    async fn copy(
        &self,
        files: &Arc<Files>,
        shards: impl Iterator<Item = LogicalShard> + Send,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        let mut copied = 0;
        for shard in shards {
            let mut after = None;
            loop {
                let page =
                    self.scanner.scan(shard, None, after.as_ref(), PAGE).await.map_err(systemic)?;
                copied += page.items.len() as u64;
                let target = Arc::clone(files);
                blocking(move || copy_page(&target, shard, &page.items).map(|()| page.next))
                    .await
                    .map(|next| after = next)?;
                progress(copied);
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Counts some partitions anew, in their files: what people see of them is on the boards
    /// meanwhile.
    async fn rebuild_in_place(
        &self,
        from: &Positions,
        epoch: EpochId,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        let (files, now) = (self.files(), self.clock.now_ms());
        let (target, partitions) = (Arc::clone(&files), from.keys().copied().collect::<Vec<_>>());
        blocking(move || {
            partitions
                .iter()
                .filter_map(|p| target.of_partition(*p))
                .try_for_each(|file| file.clear(now))
        })
        .await?;
        let wanted = |shard: &LogicalShard| from.contains_key(&files.partition_of(*shard));
        self.copy(&files, LogicalShard::all().filter(wanted), progress).await?;
        let (from, epoch, target) = (from.clone(), epoch.to_string(), Arc::clone(&files));
        let positions = from.clone();
        blocking(move || target.set_positions(Some(&epoch), &positions)).await?;
        self.cadence.lock().unwrap_or_else(PoisonError::into_inner).written.extend(from);
        Ok(())
    }

    /// Counts of these tags moved.
    fn moved(&self, partition: Partition, tags: Tags) {
        match &self.assigned {
            Some(assigned) => assigned.mark(partition, tags),
            None => self.boards.mark(&tags.into_iter().map(|(tenant, _)| tenant).collect()),
        }
    }

    /// Counts of any tag may have moved.
    pub(crate) fn anything_moved(&self) {
        match &self.assigned {
            Some(assigned) => assigned.mark_everything(),
            None => self.boards.mark_all(),
        }
    }

    /// The shards whose contents are counted here.
    pub(crate) fn shards(&self) -> Vec<LogicalShard> {
        let files = self.files();
        match &self.assigned {
            None => LogicalShard::all().collect(),
            Some(assigned) => {
                let owned = assigned.partitions();
                LogicalShard::all()
                    .filter(|shard| owned.contains(&files.partition_of(*shard)))
                    .collect()
            }
        }
    }

    /// Once a minute: subtracts what has left the windows.
    async fn expire_if_due(&self, files: Arc<Files>) -> Result<(), SinkError> {
        let now = self.clock.now_ms();
        let minute = now.div_euclid(EXPIRE_EVERY_MS);
        if self.cadence.lock().unwrap_or_else(PoisonError::into_inner).expired_minute >= minute {
            return Ok(());
        }
        let expire = move || {
            let moved =
                |(n, file): (usize, &OwnerFile)| Ok((Partition(n as u16), file.expire(now)?));
            files.all().iter().enumerate().map(moved).collect::<rusqlite::Result<Vec<_>>>()
        };
        for (partition, tags) in blocking(expire).await? {
            self.moved(partition, tags);
        }
        self.cadence.lock().unwrap_or_else(PoisonError::into_inner).expired_minute = minute;
        Ok(())
    }
}

/// The files that are there, if they can be read.
fn usable(dir: &Path, now: UnixMillis) -> Option<Files> {
    open_current(dir, now).unwrap_or_else(|error| {
        tracing::error!(%error, "the counts' files cannot be read; they are counted anew");
        None
    })
}

fn open_current(dir: &Path, now: UnixMillis) -> rusqlite::Result<Option<Files>> {
    let Some(dir) = generation::current(dir) else { return Ok(None) };
    let partitions =
        (0..).take_while(|n| dir.join(format!("popular-{n}.sqlite")).is_file()).count();
    if partitions == 0 {
        return Ok(None);
    }
    let files = Files::open(&dir, partitions, now)?;
    for file in files.all() {
        if !file.is_current()? {
            return Ok(None);
        }
        file.read(|conn| {
            let said: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            if said == "ok" { Ok(()) } else { Err(rusqlite::Error::InvalidParameterName(said)) }
        })?;
    }
    Ok(Some(files))
}

fn systemic(error: impl std::fmt::Display) -> SinkError {
    SinkError { code: "popular_store", message: error.to_string() }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, SinkError> {
    tokio::task::spawn_blocking(work).await.map_err(systemic)?.map_err(systemic)
}

/// Shard byte and key: how a content is named in the files.
pub(crate) fn stored_key(key: &ContentKey) -> Vec<u8> {
    let mut k = vec![LogicalShard::of(key).number()];
    k.extend_from_slice(&key.to_bytes());
    k
}

/// The commit time of a scanned document: its newest write, or its newest tagging where ids have
/// been forgotten.
pub(crate) fn written_at(document: &Document) -> UnixMillis {
    let taggings = document.taggings.iter().map(|t| t.at).max();
    document.recent.last().map(|w| w.at).or(taggings).unwrap_or(0)
}

#[async_trait]
impl Sink for PopularCounts {
    fn group(&self) -> Group {
        GROUP
    }

    async fn start(&self, epoch: EpochId, partitions: &[Partition]) -> Result<Start, SinkError> {
        let files = self.files();
        let epoch = epoch.to_string();
        if let Some(assigned) = &self.assigned {
            assigned.begin(partitions);
            let partitions = partitions.to_vec();
            let positions = blocking(move || {
                let mut positions = Positions::new();
                for partition in partitions {
                    let found = files
                        .of_partition(partition)
                        .map(OwnerFile::position)
                        .transpose()?
                        .flatten();
                    if let Some((of, position)) = found
                        && of == epoch
                    {
                        positions.insert(partition, position);
                    }
                }
                Ok(positions)
            })
            .await?;
            self.cadence
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .written
                .extend(positions.clone());
            return Ok(Start::From(positions));
        }
        let start = blocking(move || {
            if files.all().is_empty() {
                return Ok(Start::Rebuild("there are no counts"));
            }
            let mut positions = Positions::new();
            for (n, file) in files.all().iter().enumerate() {
                match file.position()? {
                    Some((of, position)) if of == epoch => {
                        positions.insert(Partition(n as u16), position)
                    }
                    Some(_) => return Ok(Start::Rebuild("the counts are of another epoch")),
                    None => return Ok(Start::Rebuild("the counts are incomplete")),
                };
            }
            Ok(Start::From(positions))
        })
        .await?;
        if let Start::From(positions) = &start {
            self.cadence.lock().unwrap_or_else(PoisonError::into_inner).written = positions.clone();
        }
        Ok(start)
    }

    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError> {
        let files = self.files();
        let records = records.to_vec();
        let (verdicts, all_moved) = blocking(move || {
            let mut verdicts = vec![RecordVerdict::Superseded; records.len()];
            let mut all_moved = Vec::new();
            let mut by_partition: std::collections::BTreeMap<Partition, Vec<usize>> =
                Default::default();
            for (n, record) in records.iter().enumerate() {
                by_partition.entry(record.partition).or_default().push(n);
            }
            for (partition, places) in by_partition {
                let Some(file) = files.of_partition(partition) else {
                    let message = format!("partition {} has no file", partition.0);
                    for n in places {
                        verdicts[n] = RecordVerdict::Poison {
                            code: "unknown_partition",
                            message: message.clone(),
                        };
                    }
                    continue;
                };
                let keys: Vec<Vec<u8>> =
                    places.iter().map(|n| stored_key(&records[*n].event.key)).collect();
                let states: Vec<State<'_>> = places
                    .iter()
                    .zip(&keys)
                    .map(|(n, k)| {
                        let event = &records[*n].event;
                        State {
                            k,
                            tenant: &event.key.tenant,
                            version: event.version,
                            at: event.at,
                            tags: &event.tags,
                        }
                    })
                    .collect();
                let (taken, moved) = file.apply(&states, Replace::IfNewer)?;
                all_moved.push((partition, moved));
                for (n, taken) in places.into_iter().zip(taken) {
                    if taken {
                        verdicts[n] = RecordVerdict::Applied;
                    }
                }
            }
            Ok((verdicts, all_moved))
        })
        .await
        // Some files may have taken their part; when it is tried again they will say that nothing
        // moved.
        .inspect_err(|_| self.anything_moved())?;
        for (partition, tags) in all_moved {
            self.moved(partition, tags);
        }
        Ok(verdicts)
    }

    /// Each batch is a transaction of its own.
    async fn flush(&self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError> {
        let (files, keys) = (self.files(), keys.to_vec());
        blocking(move || {
            let version = |key: &ContentKey| match files.of_shard(LogicalShard::of(key)) {
                Some(file) => file.version(&stored_key(key)),
                None => Ok(None),
            };
            keys.iter().map(version).collect()
        })
        .await
    }

    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError> {
        let files = self.files();
        self.expire_if_due(Arc::clone(&files)).await?;
        let changed: Positions = {
            let cadence = self.cadence.lock().unwrap_or_else(PoisonError::into_inner);
            let due = cadence.written_at.is_none_or(|at| at.elapsed() >= POSITION_EVERY);
            if !due {
                return Ok(cadence.written.clone());
            }
            positions
                .iter()
                .filter(|(p, pos)| cadence.written.get(p) != Some(pos))
                .map(|(p, pos)| (*p, pos.clone()))
                .collect()
        };
        if !changed.is_empty() {
            let moved = changed.clone();
            blocking(move || files.set_positions(None, &moved)).await?;
        }
        let mut cadence = self.cadence.lock().unwrap_or_else(PoisonError::into_inner);
        if !changed.is_empty() {
            cadence.written_at = Some(Instant::now());
            cadence.written.extend(changed);
        }
        Ok(cadence.written.clone())
    }

    fn visible(&self, visible: &Visible) {
        if let Some(assigned) = &self.assigned {
            assigned.see(visible);
        }
        if let Some(at) = visible.oldest() {
            self.visible.fetch_max(at, std::sync::atomic::Ordering::AcqRel);
            self.boards.visible_through(at);
        }
    }

    fn end(&self, partitions: &[Partition]) {
        if let Some(assigned) = &self.assigned {
            assigned.end(partitions);
            let mut cadence = self.cadence.lock().unwrap_or_else(PoisonError::into_inner);
            cadence.written.retain(|partition, _| !partitions.contains(partition));
        }
    }

    async fn rebuild(
        &self,
        from: &Positions,
        epoch: EpochId,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        if self.assigned.is_some() {
            return self.rebuild_in_place(from, epoch, progress).await;
        }
        let (root, now, partitions) = (self.dir.clone(), self.clock.now_ms(), from.len());
        let (path, files) = blocking(move || {
            let path = generation::create(&root)
                .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
            let files = Files::open(&path, partitions, now)?;
            Ok((path, files))
        })
        .await?;
        let files = Arc::new(files);
        self.copy(&files, LogicalShard::all(), progress).await?;
        let (from, epoch, target) = (from.clone(), epoch.to_string(), Arc::clone(&files));
        let (root, written) = (self.dir.clone(), from.clone());
        blocking(move || {
            target.set_positions(Some(&epoch), &from)?;
            target.all().iter().try_for_each(OwnerFile::checkpoint)?;
            generation::switch(&root, &path)
                .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
        })
        .await?;
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = files;
        let mut cadence = self.cadence.lock().unwrap_or_else(PoisonError::into_inner);
        cadence.written = written;
        cadence.written_at = None;
        // The new files' windows are those of the moment they were made.
        cadence.expired_minute = 0;
        drop(cadence);
        self.boards.mark_all();
        Ok(())
    }

    async fn close(&self) -> Result<(), SinkError> {
        let files = self.files();
        blocking(move || files.all().iter().try_for_each(OwnerFile::checkpoint)).await
    }
}

/// What typed text is the beginning of: it need not be a whole tag, it may end in a blank or be
/// empty.
pub(crate) fn prefixes(typed: &str) -> Vec<String> {
    let mut prefixes = vec![typed.trim_start().to_lowercase()];
    if let Ok(canonical) = TagName::parse(typed)
        && canonical.as_str() != prefixes[0]
    {
        prefixes.push(canonical.as_str().to_owned());
    }
    prefixes
}

fn copy_page(
    files: &Files,
    shard: LogicalShard,
    items: &[(ContentKey, Document)],
) -> rusqlite::Result<()> {
    let Some(file) = files.of_shard(shard) else { return Ok(()) };
    let live: Vec<(Vec<u8>, Vec<Tagging>)> =
        items.iter().map(|(key, doc)| (stored_key(key), doc.live().cloned().collect())).collect();
    let states: Vec<State<'_>> = items
        .iter()
        .zip(&live)
        .map(|((key, doc), (k, tags))| State {
            k,
            tenant: &key.tenant,
            version: doc.version,
            at: written_at(doc),
            tags,
        })
        .collect();
    file.apply(&states, Replace::IfNewer).map(|_| ())
}

#[async_trait]
impl PopularTags for PopularCounts {
    async fn popular(
        &self,
        tenant: &TenantId,
        window: Window,
        limit: usize,
    ) -> Result<Board, PopularError> {
        let (snapshot, as_of) = self.snapshot(tenant).await?;
        Ok(Board { tags: snapshot.board(window, limit.min(BOARD_TAGS)), as_of, stale: false })
    }

    async fn suggest(
        &self,
        tenant: &TenantId,
        prefix: &str,
        limit: usize,
    ) -> Result<Suggestions, PopularError> {
        let (snapshot, as_of) = self.snapshot(tenant).await?;
        let tags = snapshot.suggest(&prefixes(prefix), limit);
        Ok(Suggestions { tags, approximate: snapshot.approximate, as_of, stale: false })
    }

    async fn count(
        &self,
        tenant: &TenantId,
        tag: &TagName,
    ) -> Result<Option<TagCount>, PopularError> {
        let (snapshot, _) = self.snapshot(tenant).await?;
        Ok(snapshot.count(tag).cloned())
    }

    async fn displays(
        &self,
        tenant: &TenantId,
        tags: &[TagName],
    ) -> Result<Vec<Arc<str>>, PopularError> {
        let (snapshot, _) = self.snapshot(tenant).await?;
        Ok(tags
            .iter()
            .map(|t| snapshot.count(t).map_or_else(|| t.shared(), |c| Arc::clone(&c.display)))
            .collect())
    }

    async fn recount(
        &self,
        repair: bool,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<RecountReport, PopularError> {
        crate::recount::recount(self, repair, progress).await
    }
}
