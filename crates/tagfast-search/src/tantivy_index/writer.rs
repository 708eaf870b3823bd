//! The one writer of a generation: apply if newer, commit content and position together, sweep old
//! tombstones.
//!
//! How it fails. tantivy's writer does not survive a failed write (a full disk, a volume that went
//! away). Everything that was put and is not visible yet is kept here until its commit, so that a
//! new writer can be opened and given it again; nothing has to be read from the bus a second time.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tagfast_domain::{ContentKey, UnixMillis};
use tagfast_events::{BusPosition, Emits, Partition, Positions};
use tantivy::merge_policy::LogMergePolicy;
use tantivy::schema::Term;
use tantivy::{Index, IndexReader, IndexWriter, ReloadPolicy, TantivyDocument, TantivyError};

use super::TantivyOptions;
use super::live::Live;
use super::schema::{FORMAT, Fields, key_text, schema, settings};
use super::search::indexed_version;
use crate::entry::{Entry, GONE_AGE_MS};

/// Blocks of stored hits kept unpacked per segment.
const STORE_BLOCKS: usize = 512;
/// How often old tombstones are looked for.
const SWEEP_EVERY_MS: i64 = 3_600_000;
/// Segments of one size before they are merged: more segments make every search dearer.
const MERGE_SEGMENTS: usize = 6;
/// A segment with more than this part of superseded states is rewritten: they cost memory and time
/// in every search.
const DELETED_RATIO: f32 = 0.4;

/// What a commit says beside its documents.
#[derive(Serialize, Deserialize)]
struct Payload {
    format: u32,
    epoch: String,
    /// Partition, next offset, largest emit.
    positions: Vec<(u16, u64, u64)>,
}

/// A state that no search sees yet.
struct Pending {
    version: u64,
    document: TantivyDocument,
    /// An older state of the content is in the index.
    replaces: bool,
}

/// The one writer.
pub(super) struct WriterState {
    index: Index,
    memory: usize,
    /// `None` after a failure, until the next use opens a new one.
    writer: Option<IndexWriter>,
    reader: IndexReader,
    fields: Fields,
    live: Arc<Live>,
    epoch: String,
    pending: HashMap<String, Pending>,
    /// A commit failed and may have happened all the same: what waits may be in the index already.
    doubtful: bool,
    /// Since when there is something to commit.
    dirty_since: Option<Instant>,
    asked: Positions,
    committed: Positions,
    swept_at: UnixMillis,
}

fn internal(what: &str, error: impl std::fmt::Display) -> TantivyError {
    TantivyError::InternalError(format!("{what}: {error}"))
}

impl WriterState {
    /// Opens a generation that was completed before.
    pub(super) fn open(dir: &Path, options: &TantivyOptions) -> tantivy::Result<Self> {
        let index = Index::open_in_dir(dir)?;
        let damaged = index.validate_checksum()?;
        if !damaged.is_empty() {
            return Err(internal("damaged files", format!("{damaged:?}")));
        }
        let (wanted, fields) = schema();
        if index.schema() != wanted {
            return Err(TantivyError::SchemaError("the index has another schema".to_owned()));
        }
        let payload =
            index.load_metas()?.payload.and_then(|p| serde_json::from_str::<Payload>(&p).ok());
        let Some(payload) = payload.filter(|p| p.format == FORMAT) else {
            return Err(TantivyError::SchemaError("the index has another format".to_owned()));
        };
        let committed = payload.positions.iter().map(|(p, next, emit)| {
            (Partition(*p), BusPosition { next: *next, emits: Emits::embedded(*emit) })
        });
        Self::new(index, fields, options, payload.epoch, committed.collect())
    }

    /// Begins an empty generation.
    pub(super) fn create(
        dir: &Path,
        options: &TantivyOptions,
        epoch: String,
    ) -> tantivy::Result<Self> {
        let (schema, fields) = schema();
        let index = Index::builder().schema(schema).settings(settings()).create_in_dir(dir)?;
        Self::new(index, fields, options, epoch, Positions::new())
    }

    fn new(
        index: Index,
        fields: Fields,
        options: &TantivyOptions,
        epoch: String,
        committed: Positions,
    ) -> tantivy::Result<Self> {
        let reader = index
            .reader_builder()
            .reload_policy(ReloadPolicy::Manual)
            .doc_store_cache_num_blocks(STORE_BLOCKS)
            .try_into()?;
        let live = Arc::new(Live::new(reader.searcher(), fields, None)?);
        let mut state = Self {
            index,
            memory: options.writer_bytes,
            writer: None,
            reader,
            fields,
            live,
            epoch,
            pending: HashMap::new(),
            doubtful: false,
            dirty_since: None,
            asked: committed.clone(),
            committed,
            swept_at: 0,
        };
        state.writer()?;
        Ok(state)
    }

    /// What searches see.
    pub(super) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// The epoch whose records it holds.
    pub(super) fn epoch(&self) -> &str {
        &self.epoch
    }

    /// Where a restart would read on.
    pub(super) fn committed(&self) -> &Positions {
        &self.committed
    }

    /// Does some work; when it fails, the next use begins with a new writer.
    pub(super) fn attempt<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> tantivy::Result<T>,
    ) -> tantivy::Result<T> {
        let result = work(self);
        if result.is_err() {
            self.writer = None;
            self.doubtful = true;
        }
        result
    }

    fn writer(&mut self) -> tantivy::Result<&mut IndexWriter> {
        if self.writer.is_none() {
            let writer: IndexWriter = self.index.writer_with_num_threads(1, self.memory)?;
            let mut policy = LogMergePolicy::default();
            policy.set_min_num_segments(MERGE_SEGMENTS);
            policy.set_del_docs_ratio_before_merge(DELETED_RATIO);
            writer.set_merge_policy(Box::new(policy));
            self.writer = Some(writer);
        }
        self.writer.as_mut().ok_or_else(|| internal("the writer", "is gone"))
    }

    /// Takes a state in if it is newer than what is there; false if it is not.
    pub(super) fn put(&mut self, entry: &Entry<'_>) -> tantivy::Result<bool> {
        let key = key_text(entry.key);
        let version = entry.version.packed();
        let (known, replaces) = self.known(&key)?;
        if known.is_some_and(|k| k >= version) {
            return Ok(false);
        }
        // Only the newest state of each content is given to tantivy, with the commit: states in
        // between cost nothing.
        self.pending
            .insert(key, Pending { version, document: entry.document(&self.fields), replaces });
        self.dirty_since.get_or_insert_with(Instant::now);
        Ok(true)
    }

    /// The newest version of a key, and whether a state of it is in the index.
    fn known(&self, key: &str) -> tantivy::Result<(Option<u64>, bool)> {
        Ok(match self.pending.get(key) {
            Some(pending) => (Some(pending.version), pending.replaces),
            None => {
                let indexed = indexed_version(&self.live, key)?;
                (indexed, indexed.is_some())
            }
        })
    }

    /// The newest version of a content.
    pub(super) fn version(&self, key: &ContentKey) -> tantivy::Result<Option<u64>> {
        Ok(self.known(&key_text(key))?.0)
    }

    /// Gives everything that waits to the writer. What waits is kept until it is visible.
    fn hand_over(&mut self) -> tantivy::Result<()> {
        self.writer()?;
        let Some(writer) = &self.writer else { return Err(internal("the writer", "is gone")) };
        for (key, pending) in &self.pending {
            if pending.replaces || self.doubtful {
                writer.delete_term(self.fields.key_term(key));
            }
            writer.add_document(pending.document.clone())?;
        }
        Ok(())
    }

    /// Takes in a state of a generation that is being copied: every content comes once, so there is
    /// nothing newer.
    pub(super) fn copy(&mut self, entry: &Entry<'_>) -> tantivy::Result<()> {
        let document = entry.document(&self.fields);
        self.writer()?.add_document(document)?;
        Ok(())
    }

    /// Makes everything put so far and these positions one commit, and shows it to searches.
    pub(super) fn commit(&mut self, positions: &Positions) -> tantivy::Result<()> {
        let started = Instant::now();
        let payload = Payload {
            format: FORMAT,
            epoch: self.epoch.clone(),
            positions: positions.iter().map(|(p, pos)| (p.0, pos.next, pos.emits.of(""))).collect(),
        };
        let payload = serde_json::to_string(&payload)
            .map_err(|e| internal("the payload cannot be written", e))?;
        self.hand_over()?;
        let mut prepared = self.writer()?.prepare_commit()?;
        prepared.set_payload(&payload);
        prepared.commit()?;
        self.reader.reload()?;
        self.live = Arc::new(Live::new(self.reader.searcher(), self.fields, Some(&self.live))?);
        self.pending.clear();
        self.doubtful = false;
        self.dirty_since = None;
        self.committed = positions.clone();
        metrics::histogram!("tagfast_search_commit_seconds")
            .record(started.elapsed().as_secs_f64());
        metrics::gauge!("tagfast_search_documents").set(self.live.searcher.num_docs() as f64);
        metrics::gauge!("tagfast_search_segments").set(self.live.segments.len() as f64);
        Ok(())
    }

    /// Commits when it is time; returns the positions that are durable and visible.
    pub(super) fn advance(
        &mut self,
        positions: &Positions,
        options: &TantivyOptions,
        now: UnixMillis,
    ) -> tantivy::Result<Positions> {
        self.asked.clone_from(positions);
        if now.saturating_sub(self.swept_at) >= SWEEP_EVERY_MS {
            self.sweep(now)?;
        }
        if self.pending.is_empty() && *positions == self.committed {
            return Ok(self.committed.clone());
        }
        let since = *self.dirty_since.get_or_insert_with(Instant::now);
        // Many changes: fewer, larger commits cost less than many small segments, and repeated
        // changes collapse.
        let busy = self.pending.len() >= options.busy_documents;
        let patience = if busy { options.commit_after_busy } else { options.commit_after };
        if since.elapsed() >= patience || self.pending.len() >= options.commit_documents {
            self.commit(positions)?;
        }
        Ok(self.committed.clone())
    }

    /// Marks old tombstones for removal with the next commit.
    fn sweep(&mut self, now: UnixMillis) -> tantivy::Result<()> {
        use std::ops::Bound;
        let oldest = Term::from_field_i64(self.fields.gone_at, now - GONE_AGE_MS);
        let old = tantivy::query::RangeQuery::new(Bound::Unbounded, Bound::Excluded(oldest));
        self.writer()?.delete_query(Box::new(old))?;
        self.swept_at = now;
        Ok(())
    }

    /// Lets merges finish; what was not committed is lost.
    pub(super) fn abandon(self) -> tantivy::Result<()> {
        self.writer.map_or(Ok(()), IndexWriter::wait_merging_threads)
    }

    /// Commits what waits and lets merges finish.
    pub(super) fn close(mut self) -> tantivy::Result<()> {
        if !self.pending.is_empty() || self.asked != self.committed {
            let asked = self.asked.clone();
            self.commit(&asked)?;
        }
        self.abandon()
    }
}
