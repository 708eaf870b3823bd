//! The index as a sink of the bus: apply if newer, commit content and position together, rebuild aside.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tagfast_domain::{ContentKey, Document, EpochId, UnixMillis};
use tagfast_events::{BusPosition, Group, Partition, Positions, RecordVerdict, Sink, SinkError, SinkRecord, Start};
use tagfast_resilience::generation;
use tagfast_sharding::LogicalShard;
use tantivy::merge_policy::LogMergePolicy;
use tantivy::schema::Term;
use tantivy::{Index, IndexReader, IndexWriter, ReloadPolicy};

use super::live::Live;
use super::schema::{Entry, FORMAT, Fields, key_text, schema};
use super::search::indexed_version;
use super::{TantivyIndex, TantivyOptions};

/// The group that indexes.
pub(super) const GROUP: Group = Group("indexer");

/// Blocks of stored hits kept unpacked, 16 kB each.
const STORE_BLOCKS: usize = 512;
/// Contents per page of a rebuild.
const PAGE: usize = 1000;
/// A position without any change of content is committed this late: it only saves a restart some reading.
const POSITION_AFTER: Duration = Duration::from_secs(5);
/// Tombstones are kept this long, so that a late event cannot bring a content back.
const GONE_AGE_MS: i64 = 30 * 86_400_000;
/// How often old tombstones are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// Segments of one size before they are merged: more segments make every search dearer.
const MERGE_SEGMENTS: usize = 6;

/// What a commit says beside its documents.
#[derive(Serialize, Deserialize)]
struct Payload {
    format: u32,
    epoch: String,
    /// Partition, next offset, largest emit.
    positions: Vec<(u16, u64, u64)>,
}

/// The one writer.
pub(super) struct WriterState {
    writer: IndexWriter,
    reader: IndexReader,
    fields: Fields,
    live: Arc<Live>,
    epoch: String,
    /// Keys with changes that no search sees yet, and their versions.
    uncommitted: HashMap<String, u64>,
    first_uncommitted: Option<Instant>,
    committed: Positions,
    committed_at: Instant,
    swept_at: Instant,
}

impl WriterState {
    /// Opens a generation that was completed before.
    pub(super) fn open(dir: &Path, options: &TantivyOptions) -> tantivy::Result<Self> {
        let index = Index::open_in_dir(dir)?;
        let damaged = index.validate_checksum()?;
        if !damaged.is_empty() {
            return Err(tantivy::TantivyError::InternalError(format!("damaged files: {damaged:?}")));
        }
        let (wanted, fields) = schema();
        if index.schema() != wanted {
            return Err(tantivy::TantivyError::SchemaError("the index has another schema".to_owned()));
        }
        let payload = index.load_metas()?.payload.and_then(|p| serde_json::from_str::<Payload>(&p).ok());
        let Some(payload) = payload.filter(|p| p.format == FORMAT) else {
            return Err(tantivy::TantivyError::SchemaError("the index has another format".to_owned()));
        };
        let committed =
            payload.positions.iter().map(|(p, next, emit)| (Partition(*p), BusPosition { next: *next, emit: *emit }));
        Self::new(index, fields, options, payload.epoch, committed.collect())
    }

    fn create(dir: &Path, options: &TantivyOptions, epoch: String) -> tantivy::Result<Self> {
        let (schema, fields) = schema();
        let index = Index::create_in_dir(dir, schema)?;
        Self::new(index, fields, options, epoch, Positions::new())
    }

    fn new(
        index: Index,
        fields: Fields,
        options: &TantivyOptions,
        epoch: String,
        committed: Positions,
    ) -> tantivy::Result<Self> {
        let writer: IndexWriter = index.writer_with_num_threads(1, options.writer_bytes)?;
        let mut policy = LogMergePolicy::default();
        policy.set_min_num_segments(MERGE_SEGMENTS);
        writer.set_merge_policy(Box::new(policy));
        let reader = index
            .reader_builder()
            .reload_policy(ReloadPolicy::Manual)
            .doc_store_cache_num_blocks(STORE_BLOCKS)
            .try_into()?;
        let live = Arc::new(Live::new(reader.searcher(), fields, None)?);
        Ok(Self {
            writer,
            reader,
            fields,
            live,
            epoch,
            uncommitted: HashMap::new(),
            first_uncommitted: None,
            committed,
            committed_at: Instant::now(),
            swept_at: Instant::now(),
        })
    }

    pub(super) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// Takes an entry in if it is newer than what is there.
    fn put(&mut self, entry: &Entry<'_>) -> tantivy::Result<bool> {
        let key = key_text(entry.key);
        let version = entry.version.packed();
        let known = match self.uncommitted.get(&key) {
            Some(version) => Some(*version),
            None => indexed_version(&self.live, &key)?,
        };
        if known.is_some_and(|k| k >= version) {
            return Ok(false);
        }
        if known.is_some() {
            self.writer.delete_term(self.fields.key_term(&key));
        }
        self.writer.add_document(entry.document(&self.fields))?;
        self.uncommitted.insert(key, version);
        self.first_uncommitted.get_or_insert_with(Instant::now);
        Ok(true)
    }

    /// Makes everything put so far and these positions one commit, and shows it to searches.
    fn commit(&mut self, positions: &Positions) -> tantivy::Result<()> {
        let started = Instant::now();
        let payload = Payload {
            format: FORMAT,
            epoch: self.epoch.clone(),
            positions: positions.iter().map(|(p, pos)| (p.0, pos.next, pos.emit)).collect(),
        };
        let payload = serde_json::to_string(&payload)
            .map_err(|e| tantivy::TantivyError::InternalError(format!("the payload cannot be written: {e}")))?;
        let mut prepared = self.writer.prepare_commit()?;
        prepared.set_payload(&payload);
        prepared.commit()?;
        self.reader.reload()?;
        self.live = Arc::new(Live::new(self.reader.searcher(), self.fields, Some(&self.live))?);
        self.uncommitted.clear();
        self.first_uncommitted = None;
        self.committed = positions.clone();
        self.committed_at = Instant::now();
        metrics::histogram!("tagfast_search_commit_seconds").record(started.elapsed().as_secs_f64());
        Ok(())
    }

    fn is_due(&self, options: &TantivyOptions) -> bool {
        self.first_uncommitted.is_some_and(|first| first.elapsed() >= options.commit_after)
            || self.uncommitted.len() >= options.commit_documents
    }

    /// Commits when it is time; returns the positions that are durable and visible.
    fn advance(
        &mut self,
        positions: &Positions,
        options: &TantivyOptions,
        now: UnixMillis,
    ) -> tantivy::Result<Positions> {
        if self.is_due(options) {
            self.commit(positions)?;
        } else if self.uncommitted.is_empty() {
            if *positions != self.committed && self.committed_at.elapsed() >= POSITION_AFTER {
                self.commit(positions)?;
            }
            if self.swept_at.elapsed() >= SWEEP_EVERY {
                self.sweep(now)?;
            }
            // Nothing waits to become visible: the index is as new as the positions.
            return Ok(positions.clone());
        }
        Ok(self.committed.clone())
    }

    fn sweep(&mut self, now: UnixMillis) -> tantivy::Result<()> {
        use std::ops::Bound;
        let oldest = Term::from_field_i64(self.fields.gone_at, now - GONE_AGE_MS);
        let old = tantivy::query::RangeQuery::new(Bound::Unbounded, Bound::Excluded(oldest));
        self.writer.delete_query(Box::new(old))?;
        self.swept_at = Instant::now();
        Ok(())
    }
}

fn systemic(error: impl std::fmt::Display) -> SinkError {
    SinkError { code: "search_index", message: error.to_string() }
}

fn event_entry(record: &SinkRecord) -> Entry<'_> {
    let event = &record.event;
    Entry {
        key: &event.key,
        version: event.version,
        updated_at: event.at,
        tags: event.tags.iter().map(|t| t.name.as_str()).collect(),
    }
}

/// A scanned document as the event of its newest write would have it.
fn scanned_entry<'a>(key: &'a ContentKey, doc: &'a Document) -> Entry<'a> {
    let taggings = doc.taggings.iter().map(|t| t.at).max();
    Entry {
        key,
        version: doc.version,
        updated_at: doc.recent.last().map(|w| w.at).or(taggings).unwrap_or(0),
        tags: doc.live().map(|t| t.name.as_str()).collect(),
    }
}

impl TantivyIndex {
    /// Runs with the writer on the blocking pool.
    async fn with_writer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut WriterState) -> tantivy::Result<T> + Send + 'static,
    ) -> Result<T, SinkError> {
        let (writer, live) = (Arc::clone(&self.writer), Arc::clone(&self.live));
        let result = tokio::task::spawn_blocking(move || {
            let mut guard = writer.lock().unwrap_or_else(PoisonError::into_inner);
            let state = guard.as_mut().ok_or_else(|| systemic("there is no index yet"))?;
            let result = work(state).map_err(systemic)?;
            *live.write().unwrap_or_else(PoisonError::into_inner) = Some(state.live());
            Ok(result)
        });
        result.await.map_err(systemic)?
    }
}

#[async_trait]
impl Sink for TantivyIndex {
    fn group(&self) -> Group {
        GROUP
    }

    async fn start(&self, epoch: EpochId) -> Result<Start, SinkError> {
        let state = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match state.as_ref() {
            None => Start::Rebuild("there is no usable index"),
            Some(state) if state.epoch != epoch.to_string() => Start::Rebuild("the index is of another epoch"),
            Some(state) => Start::From(state.committed.clone()),
        })
    }

    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError> {
        let records = records.to_vec();
        self.with_writer(move |state| {
            records
                .iter()
                .map(|r| {
                    Ok(if state.put(&event_entry(r))? { RecordVerdict::Applied } else { RecordVerdict::Superseded })
                })
                .collect()
        })
        .await
    }

    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError> {
        let (positions, options, now) = (positions.clone(), self.options.clone(), self.clock.now_ms());
        self.with_writer(move |state| state.advance(&positions, &options, now)).await
    }

    fn visible_through(&self, at: UnixMillis) {
        self.visible.fetch_max(at, Ordering::AcqRel);
        metrics::gauge!("tagfast_search_lag_seconds").set((self.clock.now_ms() - at).max(0) as f64 / 1000.0);
    }

    async fn rebuild(
        &self,
        from: &Positions,
        epoch: EpochId,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        let (root, options, epoch) = (self.dir.clone(), self.options.clone(), epoch.to_string());
        let (path, mut state) = tokio::task::spawn_blocking(move || {
            let path = generation::create(&root)?;
            let state = WriterState::create(&path, &options, epoch)?;
            tantivy::Result::Ok((path, state))
        })
        .await
        .map_err(systemic)?
        .map_err(systemic)?;
        let mut copied = 0;
        for shard in LogicalShard::all() {
            let mut after = None;
            loop {
                let page = self.scanner.scan(shard, None, after.as_ref(), PAGE).await.map_err(systemic)?;
                copied += page.items.len() as u64;
                let items = page.items;
                state = tokio::task::spawn_blocking(move || {
                    // Every content comes once, so there is nothing newer to look for.
                    for (key, doc) in &items {
                        state.writer.add_document(scanned_entry(key, doc).document(&state.fields))?;
                    }
                    tantivy::Result::Ok(state)
                })
                .await
                .map_err(systemic)?
                .map_err(systemic)?;
                progress(copied);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        let (from, root) = (from.clone(), self.dir.clone());
        let state = tokio::task::spawn_blocking(move || {
            state.commit(&from).map_err(systemic)?;
            generation::switch(&root, &path).map_err(systemic)?;
            Ok(state)
        })
        .await
        .map_err(systemic)??;
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Some(state.live());
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        metrics::counter!("tagfast_search_rebuilds_total").increment(1);
        Ok(())
    }

    async fn close(&self) -> Result<(), SinkError> {
        let writer = Arc::clone(&self.writer);
        let closed = tokio::task::spawn_blocking(move || {
            let state = writer.lock().unwrap_or_else(PoisonError::into_inner).take();
            // What is uncommitted is applied again at the next start; merges under way are finished.
            state.map_or(Ok(()), |s| s.writer.wait_merging_threads())
        });
        closed.await.map_err(systemic)?.map_err(systemic)
    }
}
