//! A sink in memory, for tests of buses and consumers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tagfast_domain::{ContentKey, EpochId, UnixMillis, Version};

use crate::{
    ConsumerGroup, Partition, Positions, RebuildRequest, RecordVerdict, Sink, SinkError,
    SinkRecord, Start, VisibleThrough,
};

type VerdictFn = Box<dyn Fn(&SinkRecord) -> RecordVerdict + Send + Sync>;

/// Keeps the newest version of each content, and its positions; the first start of a partition
/// reads it from its beginning.
pub struct MemorySink {
    group: ConsumerGroup,
    verdict_of: VerdictFn,
    newest: Mutex<BTreeMap<ContentKey, Version>>,
    /// `None` if the bus keeps them.
    positions: Option<Mutex<Positions>>,
    applied: AtomicU64,
    rebuilds: AtomicU64,
    visible_through: AtomicI64,
}

impl std::fmt::Debug for MemorySink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemorySink").field("group", &self.group).finish_non_exhaustive()
    }
}

impl MemorySink {
    /// A sink that takes every record.
    pub fn new(group: ConsumerGroup) -> Arc<Self> {
        Self::with_verdicts(group, |_| RecordVerdict::Applied)
    }

    /// A sink that takes the records for which `verdict_of` returns [`RecordVerdict::Applied`], and
    /// returns its verdict for the others.
    pub fn with_verdicts(
        group: ConsumerGroup,
        verdict_of: impl Fn(&SinkRecord) -> RecordVerdict + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            group,
            verdict_of: Box::new(verdict_of),
            newest: Mutex::default(),
            positions: Some(Mutex::default()),
            applied: AtomicU64::new(0),
            rebuilds: AtomicU64::new(0),
            visible_through: AtomicI64::new(0),
        })
    }

    /// A sink that takes every record and leaves its positions to the bus, as an index does.
    pub fn without_positions(group: ConsumerGroup) -> Arc<Self> {
        Arc::new(Self {
            group,
            verdict_of: Box::new(|_| RecordVerdict::Applied),
            newest: Mutex::default(),
            positions: None,
            applied: AtomicU64::new(0),
            rebuilds: AtomicU64::new(0),
            visible_through: AtomicI64::new(0),
        })
    }

    /// Keeps positions, if it keeps any.
    fn keep(&self, positions: &Positions) {
        if let Some(known) = &self.positions {
            known.lock().extend(positions.iter().map(|(p, at)| (*p, at.clone())));
        }
    }

    /// The newest version of each content. A test may remove some.
    pub fn newest(&self) -> MutexGuard<'_, BTreeMap<ContentKey, Version>> {
        self.newest.lock()
    }

    /// Records applied so far.
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// Rebuilds so far.
    pub fn rebuilds(&self) -> u64 {
        self.rebuilds.load(Ordering::Relaxed)
    }

    /// The time (Unix ms) before which all partitions were last said to be complete; 0: never.
    pub fn visible_through(&self) -> UnixMillis {
        self.visible_through.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Sink for MemorySink {
    fn group(&self) -> ConsumerGroup {
        self.group
    }

    async fn start(&self, _: EpochId, partitions: &[Partition]) -> Result<Start, SinkError> {
        let Some(known) = &self.positions else { return Ok(Start::Committed) };
        let known = known.lock();
        let position = |p: &Partition| (*p, known.get(p).cloned().unwrap_or_default());
        Ok(Start::From(partitions.iter().map(position).collect()))
    }

    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError> {
        let mut newest = self.newest();
        let apply = |record: &SinkRecord| {
            let verdict = (self.verdict_of)(record);
            if verdict != RecordVerdict::Applied {
                return verdict;
            }
            let known = newest.entry(record.event.key.clone()).or_default();
            if *known >= record.event.version {
                return RecordVerdict::Superseded;
            }
            *known = record.event.version;
            self.applied.fetch_add(1, Ordering::Relaxed);
            RecordVerdict::Applied
        };
        Ok(records.iter().map(apply).collect())
    }

    async fn flush(&self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError> {
        let newest = self.newest();
        Ok(keys.iter().map(|key| newest.get(key).copied()).collect())
    }

    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError> {
        self.keep(positions);
        Ok(positions.clone())
    }

    fn rebuilds_in_parts(&self) -> bool {
        true
    }

    async fn rebuild(&self, request: RebuildRequest<'_>) -> Result<(), SinkError> {
        self.keep(request.from);
        self.rebuilds.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn visible(&self, visible: &VisibleThrough) {
        if let Some(at) = visible.oldest() {
            self.visible_through.store(at, Ordering::Relaxed);
        }
    }

    async fn close(&self) -> Result<(), SinkError> {
        Ok(())
    }
}
