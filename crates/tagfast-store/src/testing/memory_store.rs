//! A store in memory that passes the conformance suite: the fake for tests of code above the store.
//!
//! [`MemoryStore::faults`] makes its calls fail, wait or panic; [`MemoryStore::broken`] makes a
//! store that breaks one promise, to prove that the conformance suite notices it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_domain::{
    ContentKey, Document, Effect, Epoch, EpochId, EpochOrdinal, Limits, Operation, RecentWrite,
    RecordedOutcome, Tag, TagName, TaggingsEvent, TenantId, UnixMillis, Version, WriteId, codec,
    limits,
};
use tagfast_resilience::Clock;
use tagfast_sharding::{ContentHash, LogicalShard};

use super::faults::{BrokenPromise, CallFaults, CallKind};
use crate::write_batch::{CommitPosition, ItemResult, SlotCommit};
use crate::{
    CacheUse, CommitContext, Consistency, Degraded, Durability, History, Position, REPAIR_PENDING,
    ReadOptions, Receipt, ReceiptReader, RepairWatch, ScanPage, ScanRequest, ShardScanner, Source,
    StoreError, TagReader, TagWriter, Verdict, View, WriteAnswer, WriteBatch, WriteRequest,
    stored_key,
};

/// Ordinal of the first epoch, Unix ms.
const FIRST_EPOCH_ORDINAL: u64 = 1_750_000_000_000;

#[derive(Default)]
struct State {
    documents: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The states before the last writes, for stale reads.
    before: BTreeMap<Vec<u8>, Vec<u8>>,
    applied: HashMap<(Vec<u8>, WriteId), RecentWrite>,
    /// By the id of an idempotency key: the request that it is bound to, and since when, Unix ms.
    keys: HashMap<[u8; 16], (u64, UnixMillis)>,
    events: Vec<TaggingsEvent>,
    position: u64,
    /// Receipts below this position are forgotten.
    receipts_from: u64,
    /// The ends of the past epochs, oldest first.
    epoch_ends: Vec<u64>,
    /// See [`MemoryStore::judge`].
    verdicts: HashMap<WriteId, fn() -> Result<Verdict, StoreError>>,
}

impl State {
    fn document(&self, key: &[u8]) -> Document {
        let stored = self.documents.get(key);
        stored.map(|bytes| codec::decode(bytes).expect("own bytes")).unwrap_or_default()
    }

    fn epoch(&self) -> Epoch {
        let number = self.epoch_ends.len() as u64 + 1;
        Epoch {
            id: EpochId([number as u8; 16]),
            ordinal: EpochOrdinal(FIRST_EPOCH_ORDINAL + number),
        }
    }

    fn position(&self) -> Position {
        Position { epoch: self.epoch().id, xid: self.position, lsn: self.position }
    }

    fn epoch_end(&self, epoch: EpochId) -> Option<u64> {
        if epoch == self.epoch().id {
            return Some(u64::MAX);
        }
        let number = usize::from(epoch.0[0]);
        self.epoch_ends.get(number.checked_sub(1)?).copied()
    }
}

/// A store in memory.
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
    limits: Limits,
    broken: Option<BrokenPromise>,
    faults: CallFaults,
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// An empty store with default limits.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Self::over(Arc::default(), clock, None)
    }

    /// An empty store that breaks one promise.
    pub fn broken(clock: Arc<dyn Clock>, promise: BrokenPromise) -> Arc<Self> {
        Self::over(Arc::default(), clock, Some(promise))
    }

    fn over(
        state: Arc<Mutex<State>>,
        clock: Arc<dyn Clock>,
        broken: Option<BrokenPromise>,
    ) -> Arc<Self> {
        let (limits, faults) = (Limits::default(), CallFaults::default());
        Arc::new(Self { state, clock, limits, broken, faults })
    }

    /// Makes this the verdict about a write.
    pub fn judge(&self, write: WriteId, verdict: fn() -> Result<Verdict, StoreError>) {
        self.state.lock().verdicts.insert(write, verdict);
    }

    /// The store after a restart, over the same data.
    pub fn reopen(&self) -> Arc<Self> {
        let mut state = self.state.lock();
        if self.breaks(BrokenPromise::LosesTheLastWriteAtRestart) {
            let lost = std::mem::take(&mut state.before);
            state.documents.extend(lost.into_iter().next_back());
        }
        if self.breaks(BrokenPromise::ForgetsKeysAtRestart) {
            state.keys.clear();
        }
        if self.breaks(BrokenPromise::ForgetsReceipts) {
            state.receipts_from = state.position + 1;
        }
        drop(state);
        Self::over(Arc::clone(&self.state), Arc::clone(&self.clock), self.broken)
    }

    /// Counters and faults of its calls.
    pub fn faults(&self) -> &CallFaults {
        &self.faults
    }

    /// The limits it applies.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether it breaks this promise.
    pub fn breaks(&self, promise: BrokenPromise) -> bool {
        self.broken == Some(promise)
    }

    /// The newest log position.
    pub fn newest_position(&self) -> u64 {
        self.state.lock().position
    }

    /// All published events, oldest first.
    pub fn events(&self) -> Vec<TaggingsEvent> {
        self.state.lock().events.clone()
    }

    /// All written documents of a tenant, in key order.
    pub fn documents(&self, tenant: &TenantId) -> Vec<(ContentKey, Document)> {
        let state = self.state.lock();
        let all = state.documents.keys().map(|bytes| {
            (ContentKey::from_bytes(bytes).expect("own bytes"), state.document(bytes))
        });
        all.filter(|(key, doc)| key.tenant == *tenant && doc.version > Version::NONE).collect()
    }

    /// All documents of a tenant that have live tags, in key order.
    pub fn live_documents(&self, tenant: &TenantId) -> Vec<(ContentKey, Document)> {
        let mut documents = self.documents(tenant);
        documents.retain(|(_, document)| document.live().next().is_some());
        documents
    }

    /// Stores the state that an event carries, unless the content has this version or a newer one:
    /// what a consumer finds that rebuilds from the shards. No event is published.
    pub fn store_event(&self, event: &TaggingsEvent) {
        let write = RecentWrite {
            id: WriteId([0; 16]),
            fingerprint: 0,
            version: event.version,
            at: event.at,
            effect: Effect::default(),
            outcome: RecordedOutcome::Written,
        };
        let document = Document {
            version: event.version,
            taggings: event.tags.clone(),
            recent: vec![write],
            ..Document::default()
        };
        let key = event.key.to_bytes();
        let mut state = self.state.lock();
        if state.document(&key).version < event.version {
            state.documents.insert(key, codec::encode(&document));
        }
    }

    /// Replaces a content by one without tags that has this version.
    pub fn set_version(&self, key: &ContentKey, version: Version) {
        let document = Document { version, ..Document::default() };
        self.state.lock().documents.insert(key.to_bytes(), codec::encode(&document));
    }

    /// Simulates a failover that loses everything past `epoch_end`: a new epoch begins, and the
    /// content `lost` is as if it had never been written.
    pub fn fail_over(&self, epoch_end: u64, lost: &ContentKey) {
        let mut state = self.state.lock();
        state.epoch_ends.push(epoch_end);
        state.documents.remove(&lost.to_bytes());
    }

    fn applied_key(&self, key: &[u8], id: WriteId) -> (Vec<u8>, WriteId) {
        let shared = self.breaks(BrokenPromise::ConfusesContentsOfIds);
        (if shared { Vec::new() } else { key.to_vec() }, id)
    }

    /// Changes a request as the broken promise demands.
    fn spoil(&self, request: &mut WriteRequest, document: &Document) {
        let write = &mut request.write;
        if self.breaks(BrokenPromise::AppliesRetries) && document.recent_write(write.id).is_some() {
            let position = u128::from(self.state.lock().position);
            write.id = WriteId((position << 64 | position).to_be_bytes());
        }
        if self.breaks(BrokenPromise::IgnoresConditions) {
            write.if_match = None;
        }
        if self.breaks(BrokenPromise::LosesIdentity) {
            let raw = |t: &Tag| Tag { name: TagName::from_canonical(&t.display), ..t.clone() };
            match &mut write.operation {
                Operation::Patch { add, .. } => *add = add.iter().map(raw).collect(),
                Operation::Replace { tags } => *tags = tags.iter().map(raw).collect(),
            }
        }
    }

    async fn apply(&self, mut request: WriteRequest) -> Result<WriteAnswer, StoreError> {
        if request.durability == Durability::Replicated {
            return Err(StoreError::NotInThisMode("durability replicated"));
        }
        if request.deadline.is_some_and(|d| d <= tokio::time::Instant::now()) {
            return Err(StoreError::Deadline { waiting_for: "the queue", outcome_unknown: false });
        }
        let key = request.write.key.to_bytes();
        let mut document = self.state.lock().document(&key);
        self.spoil(&mut request, &document);
        if self.breaks(BrokenPromise::LosesUpdates) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut state = self.state.lock();
        if !self.breaks(BrokenPromise::LosesUpdates) {
            document = state.document(&key);
        }
        self.commit(&mut state, &key, document, &request)
    }

    /// One group commit of one write.
    fn commit(
        &self,
        state: &mut State,
        key: &[u8],
        document: Document,
        request: &WriteRequest,
    ) -> Result<WriteAnswer, StoreError> {
        let (now, epoch) = (self.clock.now_ms(), state.epoch());
        let mut limits = self.limits;
        limits.tags_per_content += usize::from(self.breaks(BrokenPromise::ExceedsTheLimit));
        let context = CommitContext { cluster: 0, epoch: &epoch, limits: &limits, now };
        let mut batch = WriteBatch::new(context, 1);
        let content = &request.write.key;
        batch.load(content, stored_key(LogicalShard::of(content), key), Ok(document));
        let prior = batch
            .needs_prior(&request.write)
            .and_then(|_| state.applied.get(&self.applied_key(key, request.write.id)));
        let needed = batch.needs_key(request);
        if let Some(key) = needed.filter(|_| !self.breaks(BrokenPromise::ForgetsKeys)) {
            let bound = state.keys.entry(key.id).or_insert((key.request, now));
            if now.saturating_sub(bound.1) >= limits::WRITE_ID_MEMORY_MS {
                *bound = (key.request, now);
            }
            batch.bind_key(key.id, bound.0);
        }
        batch.apply(request, prior);
        let mut is_changed = false;
        for (_, slot) in batch.slots_to_store_mut() {
            if !slot.is_changed() && self.breaks(BrokenPromise::ForgetsNoOps) {
                continue;
            }
            if !self.breaks(BrokenPromise::ForgetsEvictedIds) {
                for write in slot.evicted.drain(..) {
                    state.applied.insert(self.applied_key(key, write.id), write);
                }
            }
            let stored = codec::encode(&slot.document);
            let before = state.documents.insert(key.to_vec(), stored);
            if let Some(event) = slot.take_event(now, epoch.ordinal) {
                is_changed = true;
                state.position += 1;
                state.before.extend(before.map(|before| (key.to_vec(), before)));
                self.publish(state, event);
            }
        }
        let position = state.position();
        let commit = CommitPosition { inside_lsn: position.lsn, position, xmin: position.xid + 1 };
        let result = match batch.finish(|_| SlotCommit::Committed(commit)).pop() {
            Some(ItemResult::Done(result)) => result,
            Some(ItemResult::Retry | ItemResult::Undecided) | None => {
                Err(StoreError::Internal("no result".into()))
            }
        };
        let is_no_op = result.as_ref().is_ok_and(|answer| !is_changed && !answer.repeated);
        if is_no_op && self.breaks(BrokenPromise::PublishesNoOps) {
            let last = state.events.last().cloned();
            state.events.extend(last);
        }
        result
    }

    fn publish(&self, state: &mut State, event: TaggingsEvent) {
        if self.breaks(BrokenPromise::DropsEvents) && state.position.is_multiple_of(5) {
            return;
        }
        let key = event.key.clone();
        state.events.push(event);
        let newest = state.events.len() - 1;
        let before = state.events[..newest].iter().rposition(|e| e.key == key);
        if let Some(before) = before.filter(|_| self.breaks(BrokenPromise::ReordersEvents)) {
            state.events.swap(before, newest);
        }
    }

    fn read(&self, key: &ContentKey, options: &ReadOptions<'_>) -> View {
        let state = self.state.lock();
        let bytes = key.to_bytes();
        let mut document = state.document(&bytes);
        if self.breaks(BrokenPromise::ReadsStale)
            && options.consistency != Consistency::Strong
            && let Some(before) = state.before.get(&bytes)
        {
            document = codec::decode(before).expect("own bytes");
        }
        let mut tags: Vec<_> = document.live().cloned().collect();
        if self.breaks(BrokenPromise::ForgetsWho) {
            tags.iter_mut().for_each(|t| t.at = 0);
        }
        let hash = ContentHash::of(key);
        let is_session = options.consistency == Consistency::Session;
        let is_unkept = options.token.filter(|_| is_session).is_some_and(|token| {
            let floor = token.floors.get(&LogicalShard::of_hash(hash));
            let is_past_end = floor.is_some_and(|floor| {
                state.epoch_end(floor.epoch).is_none_or(|end| floor.lsn > end)
            });
            is_past_end || token.version_of(hash).is_some_and(|v| v > document.version)
        });
        let is_unkept = is_unkept && !self.breaks(BrokenPromise::TrustsEveryToken);
        let position = state.position();
        View {
            version: document.version,
            tags,
            position,
            source: Source::Primary,
            as_of: self.clock.now_ms(),
            degraded: is_unkept
                .then_some(Degraded { feature: "session", reason: "token_unknown" })
                .into_iter()
                .collect(),
            xmin: position.xid + 1,
            stale: false,
            cache: CacheUse::Bypass,
        }
    }
}

impl History for MemoryStore {
    fn current(&self, _: LogicalShard) -> Option<EpochId> {
        Some(self.state.lock().epoch().id)
    }

    fn epoch_end(&self, _: LogicalShard, epoch: EpochId) -> Option<u64> {
        self.state.lock().epoch_end(epoch)
    }

    fn is_repair_open(&self, _: LogicalShard) -> bool {
        self.faults.is_repair_open()
    }
}

#[async_trait]
impl TagReader for MemoryStore {
    async fn view(&self, key: &ContentKey, options: &ReadOptions<'_>) -> Result<View, StoreError> {
        self.faults.record_read(options);
        let shard = LogicalShard::of(key);
        let watch = RepairWatch::begin(self, shard);
        let view = self.read(key, options);
        self.faults.enter(CallKind::Read, options.deadline).await?;
        let mut view = self.faults.shape(options, view)?;
        if watch.may_lack(self, shard, view.position.epoch) {
            view.degraded.push(REPAIR_PENDING);
        }
        Ok(view)
    }
}

#[async_trait]
impl TagWriter for MemoryStore {
    async fn write(&self, request: WriteRequest) -> Result<WriteAnswer, StoreError> {
        self.faults.record_write(&request);
        self.faults.enter(CallKind::Other, request.deadline).await?;
        let answer = self.apply(request).await?;
        if self.faults.takes_answer() {
            return Err(StoreError::Deadline { waiting_for: "the test", outcome_unknown: true });
        }
        Ok(answer)
    }

    async fn write_many(
        &self,
        requests: Vec<WriteRequest>,
    ) -> Vec<Result<WriteAnswer, StoreError>> {
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            answers.push((request.write.key.clone(), self.write(request).await));
        }
        if self.breaks(BrokenPromise::BatchAnswersUnordered) {
            answers.sort_by_key(|(key, _)| ContentHash::of(key));
        }
        answers.into_iter().map(|(_, answer)| answer).collect()
    }
}

#[async_trait]
impl ShardScanner for MemoryStore {
    async fn scan(&self, request: ScanRequest<'_>) -> Result<ScanPage, StoreError> {
        let ScanRequest { shard, tenant, after, limit } = request;
        self.faults.enter(CallKind::Other, None).await?;
        let tenant = tenant.filter(|_| !self.breaks(BrokenPromise::ScanMixesTenants));
        let after = after.map(ContentKey::to_bytes).unwrap_or_default();
        let state = self.state.lock();
        let mut items: Vec<(ContentKey, Document)> = state
            .documents
            .range::<[u8], _>((Bound::Excluded(after.as_slice()), Bound::Unbounded))
            .filter(|(key, _)| LogicalShard::of_hash(ContentHash::of_bytes(key)) == shard)
            .map(|(key, _)| (ContentKey::from_bytes(key).expect("own bytes"), state.document(key)))
            .filter(|(_, document)| document.version > Version::NONE)
            .filter(|(key, _)| tenant.is_none_or(|t| *t == key.tenant))
            .take(limit + 1)
            .collect();
        let has_more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| has_more).map(|(key, _)| key.clone());
        if self.breaks(BrokenPromise::ScanSkips) && has_more {
            items.pop();
        }
        Ok(ScanPage { items, next })
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(self.state.lock().epoch())
    }
}

#[async_trait]
impl ReceiptReader for MemoryStore {
    async fn verdict(&self, receipt: &Receipt) -> Result<Verdict, StoreError> {
        self.faults.enter(CallKind::Other, None).await?;
        let state = self.state.lock();
        if let Some(verdict) = state.verdicts.get(&receipt.write_id) {
            return verdict();
        }
        let position = receipt.position;
        let end = state.epoch_end(position.epoch);
        let is_kept = end.is_some_and(|end| position.lsn <= end.min(state.position))
            && position.lsn >= state.receipts_from;
        Ok(if is_kept { Verdict::Kept } else { Verdict::Unknown("restored") })
    }
}
