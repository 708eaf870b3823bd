//! The writer of a generation: applies newer states, commits contents and positions together, and
//! sweeps expired tombstones.
//!
//! How it fails: tantivy's writer does not survive a failed write (a full disk, a lost volume).
//! States stay here until their commit, so that a new writer can take them over; nothing has to be
//! read from the bus again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tagfast_domain::{ContentKey, UnixMillis};
use tagfast_events::{BusPosition, Partition, Positions, PublisherEpochs};
use tagfast_resilience::{gauge, histogram};
use tagfast_search::indexed_state::{IndexedState, TOMBSTONE_RETENTION_MS};
use tagfast_search::metrics::COMMIT_SECONDS;
use tantivy::merge_policy::LogMergePolicy;
use tantivy::schema::Term;
use tantivy::{Index, IndexReader, IndexWriter, ReloadPolicy, TantivyDocument, TantivyError};

use crate::metrics::{DOCUMENTS, SEGMENTS};
use crate::options::TantivyOptions;
use crate::query_plan::indexed_version;
use crate::schema::{FORMAT_VERSION, Fields, document, key_text, schema, settings};
use crate::search_snapshot::SearchSnapshot;

/// Decompressed blocks of stored hits cached per segment.
const CACHED_BLOCKS_MAX: usize = 512;
/// Interval between sweeps of expired tombstones, in ms.
const SWEEP_INTERVAL_MS: i64 = 3_600_000;
/// Number of segments of one size that triggers their merge: more segments slow down every search.
const MERGE_SEGMENTS_MIN: usize = 6;
/// Share of superseded states above which a segment is rewritten: they cost memory and time in
/// every search.
const DELETED_SHARE_MAX: f32 = 0.4;

/// CommitPayload of a commit.
#[derive(Serialize, Deserialize)]
struct CommitPayload {
    format: u32,
    epoch: String,
    /// Partition, next offset, largest publisher epoch.
    positions: Vec<(u16, u64, u64)>,
}

impl CommitPayload {
    /// `None`: it is damaged, or of a different format.
    fn parse(text: &str) -> Option<Self> {
        tagfast_json::from_str(text).ok().filter(|payload: &Self| payload.format == FORMAT_VERSION)
    }
}

/// A state that is not committed yet.
struct PendingState {
    version: u64,
    document: TantivyDocument,
    /// Whether the index holds an older state of the content.
    replaces: bool,
}

/// The writer of a generation.
pub(crate) struct IndexWriterState {
    index: Index,
    memory_bytes: usize,
    /// `None` after a failure, until the next use opens a new writer.
    writer: Option<IndexWriter>,
    reader: IndexReader,
    fields: Fields,
    snapshot: Arc<SearchSnapshot>,
    epoch: String,
    pending: HashMap<String, PendingState>,
    /// Whether a failed commit may have succeeded: pending states may be in the index already.
    commit_uncertain: bool,
    /// When the oldest uncommitted change arrived; `None` if there is none.
    dirty_since: Option<Instant>,
    requested: Positions,
    committed: Positions,
    swept_at: UnixMillis,
}

fn internal(what: &str, error: impl std::fmt::Display) -> TantivyError {
    TantivyError::InternalError(format!("{what}: {error}"))
}

impl IndexWriterState {
    /// Opens a complete generation.
    pub(crate) fn open(dir: &Path, options: &TantivyOptions) -> tantivy::Result<Self> {
        let index = Index::open_in_dir(dir)?;
        let damaged = index.validate_checksum()?;
        if !damaged.is_empty() {
            return Err(internal("damaged files", format!("{damaged:?}")));
        }
        let (wanted, fields) = schema();
        if index.schema() != wanted {
            return Err(TantivyError::SchemaError("the index has a different schema".to_owned()));
        }
        let payload = index.load_metas()?.payload;
        let Some(payload) = payload.and_then(|text| CommitPayload::parse(&text)) else {
            return Err(TantivyError::SchemaError("the index has a different format".to_owned()));
        };
        let committed = payload.positions.iter().map(|(p, next, emit)| {
            (
                Partition(*p),
                BusPosition {
                    next: *next,
                    publisher_epochs: PublisherEpochs::embedded(*emit),
                    anchor: None,
                },
            )
        });
        Self::new(index, fields, options, payload.epoch, committed.collect())
    }

    /// Creates an empty generation.
    pub(crate) fn create(
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
            .doc_store_cache_num_blocks(CACHED_BLOCKS_MAX)
            .try_into()?;
        let snapshot = Arc::new(SearchSnapshot::new(reader.searcher(), fields, None)?);
        let mut state = Self {
            index,
            memory_bytes: options.writer_bytes,
            writer: None,
            reader,
            fields,
            snapshot,
            epoch,
            pending: HashMap::new(),
            commit_uncertain: false,
            dirty_since: None,
            requested: committed.clone(),
            committed,
            swept_at: 0,
        };
        state.writer()?;
        Ok(state)
    }

    /// What searches read.
    pub(crate) fn snapshot(&self) -> Arc<SearchSnapshot> {
        Arc::clone(&self.snapshot)
    }

    /// Epoch of the indexed records.
    pub(crate) fn epoch(&self) -> &str {
        &self.epoch
    }

    /// Positions from which a restart would continue.
    pub(crate) fn committed(&self) -> &Positions {
        &self.committed
    }

    /// Runs `work`; after a failure the next use opens a new writer.
    pub(crate) fn attempt<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> tantivy::Result<T>,
    ) -> tantivy::Result<T> {
        let result = work(self);
        if result.is_err() {
            self.writer = None;
            self.commit_uncertain = true;
        }
        result
    }

    fn writer(&mut self) -> tantivy::Result<&mut IndexWriter> {
        if self.writer.is_none() {
            let writer: IndexWriter = self.index.writer_with_num_threads(1, self.memory_bytes)?;
            let mut policy = LogMergePolicy::default();
            policy.set_min_num_segments(MERGE_SEGMENTS_MIN);
            policy.set_del_docs_ratio_before_merge(DELETED_SHARE_MAX);
            writer.set_merge_policy(Box::new(policy));
            self.writer = Some(writer);
        }
        self.writer.as_mut().ok_or_else(|| internal("the writer", "is gone"))
    }

    /// Stores a state if it is newer than the known one; returns whether it is.
    pub(crate) fn put(&mut self, state: &IndexedState<'_>) -> tantivy::Result<bool> {
        let key = key_text(state.key);
        let version = state.version.packed();
        let (known, replaces) = self.known(&key)?;
        if known.is_some_and(|k| k >= version) {
            return Ok(false);
        }
        // tantivy gets only the newest state of each content, with the commit: the states in
        // between cost nothing.
        self.pending.insert(
            key,
            PendingState { version, document: document(state, &self.fields), replaces },
        );
        self.dirty_since.get_or_insert_with(Instant::now);
        Ok(true)
    }

    /// Newest version of a key, and whether the index holds a state of it.
    fn known(&self, key: &str) -> tantivy::Result<(Option<u64>, bool)> {
        Ok(match self.pending.get(key) {
            Some(pending) => (Some(pending.version), pending.replaces),
            None => {
                let indexed = indexed_version(&self.snapshot, key)?;
                (indexed, indexed.is_some())
            }
        })
    }

    /// Newest version of a content; `None` if the content is unknown.
    pub(crate) fn version(&self, key: &ContentKey) -> tantivy::Result<Option<u64>> {
        Ok(self.known(&key_text(key))?.0)
    }

    /// Passes the pending states to tantivy. They are kept until they are visible.
    fn hand_over(&mut self) -> tantivy::Result<()> {
        self.writer()?;
        let Some(writer) = &self.writer else { return Err(internal("the writer", "is gone")) };
        for (key, pending) in &self.pending {
            if pending.replaces || self.commit_uncertain {
                writer.delete_term(self.fields.key_term(key));
            }
            writer.add_document(pending.document.clone())?;
        }
        Ok(())
    }

    /// Adds a state to a generation that a rebuild fills: every content comes once, so no check for
    /// a newer state is needed.
    pub(crate) fn copy(&mut self, state: &IndexedState<'_>) -> tantivy::Result<()> {
        let document = document(state, &self.fields);
        self.writer()?.add_document(document)?;
        Ok(())
    }

    /// Commits the pending states with these positions, and makes them visible to searches.
    pub(crate) fn commit(&mut self, positions: &Positions) -> tantivy::Result<()> {
        let started = Instant::now();
        let payload = CommitPayload {
            format: FORMAT_VERSION,
            epoch: self.epoch.clone(),
            positions: positions
                .iter()
                .map(|(p, pos)| (p.0, pos.next, pos.publisher_epochs.of("")))
                .collect(),
        };
        let payload = serde_json::to_string(&payload)
            .map_err(|e| internal("the payload cannot be written", e))?;
        self.hand_over()?;
        let mut prepared = self.writer()?.prepare_commit()?;
        prepared.set_payload(&payload);
        prepared.commit()?;
        self.reader.reload()?;
        let searcher = self.reader.searcher();
        let snapshot = SearchSnapshot::new(searcher, self.fields, Some(&self.snapshot))?;
        self.snapshot = Arc::new(snapshot);
        self.pending.clear();
        self.commit_uncertain = false;
        self.dirty_since = None;
        self.committed = positions.clone();
        histogram!(COMMIT_SECONDS).record(started.elapsed().as_secs_f64());
        gauge!(DOCUMENTS).set(self.snapshot.searcher.num_docs() as f64);
        gauge!(SEGMENTS).set(self.snapshot.segments.len() as f64);
        Ok(())
    }

    /// Commits if a commit is due; returns the positions that are durable and visible.
    pub(crate) fn advance(
        &mut self,
        positions: &Positions,
        options: &TantivyOptions,
        now: UnixMillis,
    ) -> tantivy::Result<Positions> {
        self.requested.clone_from(positions);
        if now.saturating_sub(self.swept_at) >= SWEEP_INTERVAL_MS {
            self.sweep_tombstones(now)?;
        }
        if self.pending.is_empty() && *positions == self.committed {
            return Ok(self.committed.clone());
        }
        let since = *self.dirty_since.get_or_insert_with(Instant::now);
        // Under load, fewer and larger commits cost less than many small segments, and repeated
        // changes of a content collapse.
        let busy = self.pending.len() >= options.busy_documents;
        let delay = if busy { options.commit_after_busy } else { options.commit_after };
        if since.elapsed() >= delay || self.pending.len() >= options.commit_documents {
            self.commit(positions)?;
        }
        Ok(self.committed.clone())
    }

    /// Removes expired tombstones with the next commit.
    fn sweep_tombstones(&mut self, now: UnixMillis) -> tantivy::Result<()> {
        use std::ops::Bound;
        let oldest = Term::from_field_i64(self.fields.gone_at, now - TOMBSTONE_RETENTION_MS);
        let old = tantivy::query::RangeQuery::new(Bound::Unbounded, Bound::Excluded(oldest));
        self.writer()?.delete_query(Box::new(old))?;
        self.swept_at = now;
        Ok(())
    }

    /// Waits for merges; uncommitted states are lost.
    pub(crate) fn abandon(self) -> tantivy::Result<()> {
        self.writer.map_or(Ok(()), IndexWriter::wait_merging_threads)
    }

    /// Commits the pending states and waits for merges.
    pub(crate) fn close(mut self) -> tantivy::Result<()> {
        if !self.pending.is_empty() || self.requested != self.committed {
            let requested = self.requested.clone();
            self.commit(&requested)?;
        }
        self.abandon()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A payload that could be read as a different one would resume at wrong positions: the index
    /// is rebuilt.
    #[test]
    fn a_damaged_commit_payload_is_refused() {
        let payload = CommitPayload {
            format: FORMAT_VERSION,
            epoch: "0123".to_owned(),
            positions: vec![(0, 7, 9), (1, 8, 9)],
        };
        let text = serde_json::to_string(&payload).expect("JSON");
        let read = CommitPayload::parse(&text).expect("readable");
        assert_eq!((read.epoch, read.positions), (payload.epoch, payload.positions));
        let cut = (0..text.len()).map(|part| text[..part].to_owned());
        let damaged = tagfast_json::testing::arrays_for_objects(&text)
            .into_iter()
            .chain(tagfast_json::testing::repeated_keys(&text))
            .chain(cut)
            .chain([
                text.replace("[0,7,9]", "[0,7]"),
                text.replace("[0,7,9]", "{}"),
                text.replace("[0,7,9]", "[0,7,-9]"),
                text.replace("[0,7,9]", "[65536,7,9]"),
                text.replacen(&FORMAT_VERSION.to_string(), "999", 1),
                format!("{text}{text}"),
            ]);
        for damaged in damaged {
            assert!(CommitPayload::parse(&damaged).is_none(), "{damaged}");
        }
    }
}
