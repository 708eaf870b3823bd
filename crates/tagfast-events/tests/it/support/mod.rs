//! An in-memory bus, a scripted sink, and a clock that follows tokio's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tagfast_domain::{
    ContentKey, EpochId, EpochOrdinal, TagName, Tagging, TaggingsEvent, UserId, Version,
};
use tagfast_events::{
    Anchor, Bus, BusConsumer, BusError, BusPosition, BusRecord, Consumer, ConsumerGroup,
    Continuity, DeadLetter, Partition, PartitionFacts, PollResult, Positions, RebuildRequest,
    RecordKind, RecordVerdict, RuntimeOptions, Sink, SinkError, SinkRecord, Start, VisibleThrough,
    Watermark, encode,
};
use tagfast_resilience::Clock;
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) const EPOCH: EpochId = EpochId([1; 16]);
pub(crate) const GROUP: ConsumerGroup = ConsumerGroup("test");
pub(crate) const BASE: i64 = 1_800_000_000_000;

/// Wall time that follows tokio's (paused) time.
pub(crate) struct VirtualClock(Instant);

impl VirtualClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Instant::now()))
    }
}

impl Clock for VirtualClock {
    fn now_ms(&self) -> i64 {
        BASE + self.0.elapsed().as_millis() as i64
    }
}

/// An in-memory bus; clones share it.
#[derive(Clone)]
pub(crate) struct MemoryBus {
    partitions: u16,
    clock: Arc<VirtualClock>,
    state: Arc<Mutex<BusState>>,
    wake: watch::Sender<u64>,
}

#[derive(Default)]
pub(crate) struct BusState {
    pub(crate) records: BTreeMap<Partition, Vec<BusRecord>>,
    pub(crate) retained: BTreeMap<Partition, u64>,
    pub(crate) dead_letters: BTreeMap<String, DeadLetter>,
    pub(crate) committed: Positions,
    /// Changes of the assignment that the next polls return.
    pub(crate) changes: VecDeque<PollResult>,
    pub(crate) released: Vec<Partition>,
    pub(crate) refuse_park: bool,
    pub(crate) down: bool,
    /// How often the topic was made again.
    incarnation: u32,
    /// Whether the next poll finds out that it was.
    replaced: bool,
    /// What the feed says is missing.
    pub(crate) problem: Option<String>,
}

impl BusState {
    /// The anchor at an offset; `None` if no record is there.
    fn anchor(&self, partition: Partition, offset: u64) -> Option<Anchor> {
        let record = self.records.get(&partition)?.iter().find(|r| r.offset == offset)?;
        let fingerprint = record.version.packed() ^ u64::from(self.incarnation) << 32;
        Some(Anchor { offset, fingerprint })
    }

    fn continuity(&self, partition: Partition, position: Option<&BusPosition>) -> Continuity {
        match position.or_else(|| self.committed.get(&partition)).and_then(|p| p.anchor) {
            None if self.incarnation == 0 => Continuity::Proven,
            None => Continuity::Unknown,
            Some(anchor) if self.anchor(partition, anchor.offset) == Some(anchor) => {
                Continuity::Proven
            }
            Some(_) => Continuity::Broken,
        }
    }

    /// The topic is deleted and made again; `seen`: a member finds out by its next poll.
    pub(crate) fn recreate(&mut self, seen: bool) {
        self.records.clear();
        self.committed.clear();
        self.incarnation += 1;
        self.replaced = seen;
    }
}

impl MemoryBus {
    pub(crate) fn new(partitions: u16, clock: &Arc<VirtualClock>) -> Self {
        let wake = watch::channel(0).0;
        Self { partitions, clock: Arc::clone(clock), state: Arc::default(), wake }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, BusState> {
        self.state.lock()
    }

    pub(crate) fn publish_raw(&self, mut record: BusRecord) -> u64 {
        let mut state = self.state();
        let records = state.records.entry(record.partition).or_default();
        record.offset = records.len() as u64 + 1;
        record.at = self.clock.now_ms();
        let offset = record.offset;
        records.push(record);
        drop(state);
        self.wake.send_modify(|n| *n += 1);
        offset
    }

    pub(crate) fn record(&self, event: &TaggingsEvent) -> BusRecord {
        let key = event.key.to_bytes();
        let sum: u16 = key.iter().map(|b| u16::from(*b)).sum();
        BusRecord {
            kind: RecordKind::Event,
            cluster: "".into(),
            headers: Vec::new(),
            partition: Partition(sum % self.partitions),
            offset: 0,
            key,
            version: event.version,
            at: event.at,
            publisher_epoch: event.publisher_epoch,
            payload: encode(event),
        }
    }

    pub(crate) fn publish(&self, event: &TaggingsEvent) -> u64 {
        self.publish_raw(self.record(event))
    }

    fn next(state: &BusState, partition: Partition) -> u64 {
        state.records.get(&partition).map_or(1, |r| r.len() as u64 + 1)
    }
}

#[async_trait]
impl Bus for MemoryBus {
    fn partitions(&self) -> Vec<Partition> {
        (0..self.partitions).map(Partition).collect()
    }

    fn epoch(&self) -> EpochId {
        EPOCH
    }

    async fn consumer(&self, group: ConsumerGroup) -> Result<Box<dyn BusConsumer>, BusError> {
        Ok(Box::new(MemoryConsumer {
            group,
            changes: vec![PollResult::Assigned(self.partitions())],
            next: BTreeMap::new(),
            bus: self.clone(),
            paused: BTreeSet::new(),
            wake: self.wake.subscribe(),
        }))
    }

    async fn ends(&self) -> Result<Positions, BusError> {
        let state = self.state();
        let end = |p| {
            let next = Self::next(&state, p);
            let anchor = state.anchor(p, next - 1);
            (
                p,
                BusPosition {
                    next,
                    publisher_epochs: tagfast_events::PublisherEpochs::embedded(0),
                    anchor,
                },
            )
        };
        Ok(self.partitions().into_iter().map(end).collect())
    }

    async fn park(&self, dead_letter: &DeadLetter) -> Result<(), BusError> {
        let mut state = self.state();
        if state.refuse_park {
            return Err(BusError::unavailable("parking is refused".to_owned()));
        }
        state.dead_letters.insert(dead_letter.id(), dead_letter.clone());
        Ok(())
    }
}

struct MemoryConsumer {
    group: ConsumerGroup,
    /// Returned before anything else, the last one first.
    changes: Vec<PollResult>,
    bus: MemoryBus,
    next: BTreeMap<Partition, u64>,
    paused: BTreeSet<Partition>,
    wake: watch::Receiver<u64>,
}

#[async_trait]
impl BusConsumer for MemoryConsumer {
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<PollResult, BusError> {
        let end = Instant::now() + wait;
        loop {
            if let Some(change) =
                self.changes.pop().or_else(|| self.bus.state().changes.pop_front())
            {
                return Ok(change);
            }
            self.wake.borrow_and_update();
            {
                let mut state = self.bus.state();
                if state.down {
                    return Err(BusError::unavailable("the bus is down".to_owned()));
                }
                if std::mem::take(&mut state.replaced) {
                    let partition = Partition(0);
                    return Err(BusError::Replaced { group: self.group, partition });
                }
                let mut polled = Vec::new();
                for (partition, next) in &mut self.next {
                    if self.paused.contains(partition) {
                        continue;
                    }
                    let records = state.records.get(partition).map_or(&[][..], Vec::as_slice);
                    let from = records.iter().filter(|r| r.offset >= *next);
                    polled.extend(from.take(max - polled.len()).cloned());
                    *next = polled
                        .iter()
                        .rfind(|r| r.partition == *partition)
                        .map_or(*next, |r| r.offset + 1);
                }
                if !polled.is_empty() {
                    return Ok(PollResult::Records(polled));
                }
            }
            if tokio::time::timeout_at(end, self.wake.changed()).await.is_err() {
                return Ok(PollResult::Records(Vec::new()));
            }
        }
    }

    async fn inspect(
        &mut self,
        partitions: &[Partition],
        positions: &Positions,
    ) -> Result<BTreeMap<Partition, PartitionFacts>, BusError> {
        let state = self.bus.state();
        if state.down {
            return Err(BusError::unavailable("the bus is down".to_owned()));
        }
        let facts = |partition: &Partition| {
            let first = state.retained.get(partition).copied().unwrap_or(0);
            let committed = state.committed.get(partition).cloned();
            let end = MemoryBus::next(&state, *partition);
            let continuity = state.continuity(*partition, positions.get(partition));
            (*partition, PartitionFacts { first, end, committed, continuity })
        };
        Ok(partitions.iter().map(facts).collect())
    }

    fn anchors(&self) -> BTreeMap<Partition, Anchor> {
        let state = self.bus.state();
        let anchor = |(partition, next): (&Partition, &u64)| {
            Some((*partition, state.anchor(*partition, next.checked_sub(1)?)?))
        };
        self.next.iter().filter_map(anchor).collect()
    }

    fn feed_problem(&self) -> Option<String> {
        self.bus.state().problem.clone()
    }

    async fn start(
        &mut self,
        partitions: &[Partition],
        positions: &Positions,
    ) -> Result<Positions, BusError> {
        let state = self.bus.state();
        let mut begun = Positions::new();
        for partition in partitions {
            let position = positions.get(partition).or_else(|| state.committed.get(partition));
            let position =
                position.cloned().unwrap_or(BusPosition { next: 1, ..BusPosition::default() });
            if position.next.max(1) < state.retained.get(partition).copied().unwrap_or(0) {
                return Err(BusError::Expired { group: self.group, partition: *partition });
            }
            self.next.insert(*partition, position.next.max(1));
            begun.insert(*partition, position);
        }
        Ok(begun)
    }

    async fn release(&mut self, partitions: &[Partition]) -> Result<(), BusError> {
        self.next.retain(|partition, _| !partitions.contains(partition));
        self.bus.state().released.extend(partitions);
        Ok(())
    }

    async fn close(&mut self) {}

    fn set_paused(&mut self, partition: Partition, paused: bool) {
        if paused {
            self.paused.insert(partition);
        } else {
            self.paused.remove(&partition);
        }
    }

    async fn commit(&mut self, positions: &Positions) -> Result<(), BusError> {
        self.bus.state().committed.extend(positions.iter().map(|(p, at)| (*p, at.clone())));
        Ok(())
    }

    async fn watermarks(&self) -> Result<BTreeMap<Partition, Vec<Watermark>>, BusError> {
        let state = self.bus.state();
        let complete_through = self.bus.clock.now_ms();
        let watermark =
            |p| (p, vec![Watermark { next: MemoryBus::next(&state, p), complete_through }]);
        Ok(self.next.keys().copied().map(watermark).collect())
    }
}

/// What a scripted sink does with a record.
type Script = dyn Fn(&SinkRecord, u32) -> RecordVerdict + Send + Sync;

/// A sink that stores states like a real one: newer wins, durable only after an advance.
pub(crate) struct ScriptedSink {
    pub(crate) state: Mutex<SinkState>,
    script: Box<Script>,
}

#[derive(Default)]
pub(crate) struct SinkState {
    /// Applied, not necessarily durable.
    pub(crate) applied: BTreeMap<ContentKey, Version>,
    durable: BTreeMap<ContentKey, Version>,
    pub(crate) positions: Option<Positions>,
    /// Every record offered, in order.
    pub(crate) offered: Vec<(ContentKey, Version, Instant)>,
    pub(crate) attempts: BTreeMap<(ContentKey, Version), u32>,
    pub(crate) down: bool,
    pub(crate) rebuilds: u32,
    pub(crate) closed: bool,
    /// The partitions that belong to it: those that were started and not ended.
    pub(crate) owned: BTreeSet<Partition>,
    pub(crate) visible: i64,
    pub(crate) canaries: u32,
    pub(crate) canary_dies: bool,
}

impl ScriptedSink {
    pub(crate) fn new(
        script: impl Fn(&SinkRecord, u32) -> RecordVerdict + Send + Sync + 'static,
    ) -> Arc<Self> {
        let positions = Some(Positions::new());
        Arc::new(Self {
            state: Mutex::new(SinkState { positions, ..SinkState::default() }),
            script: Box::new(script),
        })
    }

    pub(crate) fn willing() -> Arc<Self> {
        Self::new(|_, _| RecordVerdict::Applied)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, SinkState> {
        self.state.lock()
    }

    /// Keeps only durable state, as a crash does.
    pub(crate) fn crash(&self) {
        let mut state = self.state();
        state.applied = state.durable.clone();
    }

    fn check(state: &SinkState) -> Result<(), SinkError> {
        if state.down { Err(SinkError::new("down", "the sink is down")) } else { Ok(()) }
    }
}

#[async_trait]
impl Sink for ScriptedSink {
    fn group(&self) -> ConsumerGroup {
        GROUP
    }

    async fn start(&self, _epoch: EpochId, partitions: &[Partition]) -> Result<Start, SinkError> {
        let mut state = self.state();
        Self::check(&state)?;
        state.owned.extend(partitions);
        let Some(mut positions) = state.positions.clone() else {
            return Ok(Start::Rebuild("empty"));
        };
        // Nothing was copied for it: everything is to be read.
        for partition in partitions {
            positions
                .entry(*partition)
                .or_insert(BusPosition { next: 1, ..BusPosition::default() });
        }
        Ok(Start::From(positions))
    }

    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError> {
        let mut state = self.state();
        Self::check(&state)?;
        let keys: BTreeSet<_> = records.iter().map(|r| &r.event.key).collect();
        assert_eq!(keys.len(), records.len(), "at most one record per key");
        let mut verdicts = Vec::new();
        for record in records {
            let (key, version) = (record.event.key.clone(), record.event.version);
            state.offered.push((key.clone(), version, Instant::now()));
            if state.applied.get(&key).is_some_and(|known| *known >= version) {
                verdicts.push(RecordVerdict::Superseded);
                continue;
            }
            let attempts = state.attempts.entry((key.clone(), version)).or_default();
            *attempts += 1;
            let verdict = (self.script)(record, *attempts);
            if verdict == RecordVerdict::Applied {
                state.applied.insert(key, version);
            }
            verdicts.push(verdict);
        }
        Ok(verdicts)
    }

    fn end(&self, partitions: &[Partition]) {
        self.state().owned.retain(|partition| !partitions.contains(partition));
    }

    async fn canary(&self) -> Result<(), SinkError> {
        let mut state = self.state();
        state.canaries += 1;
        if state.canary_dies {
            return Err(SinkError::new("down", "the canary failed"));
        }
        Self::check(&state)
    }

    async fn flush(&self) -> Result<(), SinkError> {
        let mut state = self.state();
        Self::check(&state)?;
        state.durable = state.applied.clone();
        Ok(())
    }

    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError> {
        let state = self.state();
        Self::check(&state)?;
        Ok(keys.iter().map(|key| state.applied.get(key).copied()).collect())
    }

    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError> {
        let mut state = self.state();
        Self::check(&state)?;
        state.durable = state.applied.clone();
        state.positions = Some(positions.clone());
        Ok(positions.clone())
    }

    fn visible(&self, visible: &VisibleThrough) {
        if let Some(at) = visible.oldest() {
            self.state().visible = at;
        }
    }

    async fn rebuild(&self, request: RebuildRequest<'_>) -> Result<(), SinkError> {
        let RebuildRequest { from, progress, .. } = request;
        let mut state = self.state();
        Self::check(&state)?;
        progress(42);
        state.rebuilds += 1;
        state.positions = Some(from.clone());
        Ok(())
    }

    async fn close(&self) -> Result<(), SinkError> {
        self.state().closed = true;
        Ok(())
    }
}

/// A content's event.
pub(crate) fn event(id: &str, version: u64, epoch: u64) -> TaggingsEvent {
    let tagging = Tagging {
        name: TagName::from_canonical("tag"),
        display: "Tag".into(),
        user: UserId::parse("user").expect("valid"),
        at: BASE,
        decided_at: Version::from_packed(version).expect("fits"),
        present: true,
    };
    TaggingsEvent {
        key: ContentKey::parse("tenant", "type", id).expect("valid"),
        version: Version::from_packed(version).expect("fits"),
        at: BASE,
        publisher_epoch: EpochOrdinal(epoch),
        tags: vec![tagging],
        changes: Vec::new(),
    }
}

pub(crate) fn spawn(
    bus: &MemoryBus,
    sink: &Arc<ScriptedSink>,
    clock: &Arc<VirtualClock>,
) -> Consumer {
    let sink: Arc<dyn Sink> = Arc::<ScriptedSink>::clone(sink);
    Consumer::spawn(
        Arc::new(bus.clone()),
        sink,
        RuntimeOptions::default(),
        Arc::<VirtualClock>::clone(clock),
    )
}

/// Lets virtual time pass until a condition holds.
pub(crate) async fn until(what: &str, limit: Duration, condition: impl Fn() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "{what} did not happen within {limit:?}");
        tokio::time::advance(Duration::from_millis(5)).await;
        tokio::task::yield_now().await;
    }
}
