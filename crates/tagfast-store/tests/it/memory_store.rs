//! A store in memory: the smallest one that keeps every promise, and, with a [`Fault`], one that
//! breaks a single one.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{
    ApplyContext, Change, ContentKey, Document, Epoch, EpochId, EpochOrdinal, Limits, Operation,
    Outcome, RecentWrite, Tag, TagName, TaggingsEvent, TenantId, UnixMillis, WriteId, apply, codec,
};
use tagfast_resilience::{Clock, ManualClock};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::conformance::StoreHarness;
use tagfast_store::{
    CacheUse, Consistency, Degraded, Durability, Position, ReadOptions, Receipt, ReceiptReader,
    ScanPage, ShardScanner, SharedStore, Source, StoreError, TagReader, TagWriter, Verdict, View,
    WriteAnswer, WriteRequest,
};

/// A promise to break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Every fifth event is not published.
    DropsEvents,
    /// The two newest events of a content change places.
    ReordersEvents,
    /// A write that changes nothing publishes the last event again.
    PublishesNoOps,
    /// A retry is applied like a new write.
    AppliesRetries,
    /// Ids that are pushed out of the document are not kept.
    ForgetsPushedOutIds,
    /// Pushed-out ids are kept without their content.
    ConfusesContentsOfIds,
    /// One tag more than the limit fits.
    LetsOneMoreIn,
    /// The document is read and written under two locks.
    LosesUpdates,
    /// A tag is known by its spelling.
    LosesIdentity,
    /// `If-Match` is not looked at.
    IgnoresConditions,
    /// A restart loses the newest write.
    LosesTheLastWriteAtRestart,
    /// A view shows the state before the last write.
    ReadsStale,
    /// A view does not know when a tag was added.
    ForgetsWho,
    /// A token of another epoch is taken for one of this.
    TrustsEveryToken,
    /// A page of a scan ends one content too early.
    ScanSkips,
    /// Another tenant's contents are in the scan.
    ScanMixesTenants,
    /// The heartbeat stands still while nobody writes.
    HeartbeatStops,
    /// The answers of a batch are sorted by content.
    BatchAnswersUnordered,
    /// Receipts are forgotten at a restart.
    ForgetsReceipts,
}

#[derive(Default)]
struct State {
    documents: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The state before the last write, for stale reads.
    before: BTreeMap<Vec<u8>, Vec<u8>>,
    applied: HashMap<(Vec<u8>, WriteId), RecentWrite>,
    events: Vec<TaggingsEvent>,
    position: u64,
    dropped: u64,
    receipts_from: u64,
}

struct MemoryStore {
    state: Arc<Mutex<State>>,
    clock: Arc<ManualClock>,
    limits: Limits,
    fault: Fault,
}

const EPOCH: Epoch = Epoch { id: EpochId([7; 16]), ordinal: EpochOrdinal(1_800_000_000_000) };

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the lock")
    }

    fn read(state: &State, key: &[u8]) -> Document {
        state
            .documents
            .get(key)
            .map(|bytes| codec::decode(bytes).expect("our own bytes"))
            .unwrap_or_default()
    }

    fn position(state: &State) -> Position {
        Position { epoch: EPOCH.id, xid: state.position, lsn: state.position }
    }

    fn applied_key(&self, key: &[u8], id: WriteId) -> (Vec<u8>, WriteId) {
        if self.fault == Fault::ConfusesContentsOfIds {
            (Vec::new(), id)
        } else {
            (key.to_vec(), id)
        }
    }

    fn spoil(&self, request: &mut WriteRequest, document: &Document) {
        let write = &mut request.write;
        if self.fault == Fault::AppliesRetries && document.recent_write(write.id).is_some() {
            write.id =
                WriteId(self.lock().position.to_be_bytes().repeat(2).try_into().expect("16 bytes"));
        }
        if self.fault == Fault::IgnoresConditions {
            write.if_match = None;
        }
        if self.fault == Fault::LosesIdentity {
            let raw = |t: &Tag| Tag { name: TagName::from_canonical(&t.display), ..t.clone() };
            match &mut write.operation {
                Operation::Patch { add, .. } => *add = add.iter().map(raw).collect(),
                Operation::Replace { tags } => *tags = tags.iter().map(raw).collect(),
            }
        }
    }

    async fn apply(&self, mut request: WriteRequest) -> Result<WriteAnswer, StoreError> {
        if request.durability == Durability::Replicated {
            return Err(StoreError::NotInThisMode("durability `replicated`"));
        }
        if request.deadline.is_some_and(|d| d <= tokio::time::Instant::now()) {
            return Err(StoreError::Deadline { waiting_for: "the queue", outcome_unknown: false });
        }
        let key = request.write.key.to_bytes();
        let id = request.write.id;
        let mut document = Self::read(&self.lock(), &key);
        self.spoil(&mut request, &document);
        if self.fault == Fault::LosesUpdates {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut state = self.lock();
        if self.fault != Fault::LosesUpdates {
            document = Self::read(&state, &key);
        }
        let now = self.clock.now_ms();
        let prior = state
            .applied
            .get(&self.applied_key(&key, id))
            .filter(|_| document.overflow_until > now)
            .cloned();
        let mut limits = self.limits;
        limits.tags_per_content += usize::from(self.fault == Fault::LetsOneMoreIn);
        let context = ApplyContext { epoch: &EPOCH, now, limits: &limits };
        let outcome = apply(&mut document, &request.write, prior.as_ref(), &context);
        let (version, effect, repeated) = match outcome {
            Outcome::Refused(refusal) => return Err(StoreError::Refused(refusal)),
            Outcome::Unchanged { version } => {
                if self.fault == Fault::PublishesNoOps
                    && let Some(event) = state.events.last().cloned()
                {
                    state.events.push(event);
                }
                (version, Default::default(), false)
            }
            Outcome::Repeated { version, effect } => (version, effect, true),
            Outcome::Written { version, effect, evicted } => {
                if self.fault != Fault::ForgetsPushedOutIds {
                    for write in evicted {
                        state.applied.insert(self.applied_key(&key, write.id), write);
                    }
                }
                self.store(&mut state, key, &document, &request, effect.clone(), now);
                (version, effect, false)
            }
        };
        let receipt = Receipt {
            cluster: 0,
            shard: LogicalShard::of(&request.write.key),
            inside_lsn: state.position,
            position: Self::position(&state),
            write_id: id,
        };
        let changed = !effect.added.is_empty() || !effect.removed.is_empty();
        Ok(WriteAnswer {
            version,
            changed,
            added: effect.added,
            removed: effect.removed,
            repeated,
            receipt,
            view: None,
            degraded: Vec::new(),
        })
    }

    fn store(
        &self,
        state: &mut State,
        key: Vec<u8>,
        document: &Document,
        request: &WriteRequest,
        effect: tagfast_domain::Effect,
        now: UnixMillis,
    ) {
        state.position += 1;
        if let Some(before) = state.documents.insert(key.clone(), codec::encode(document)) {
            state.before.insert(key, before);
        }
        let event = TaggingsEvent {
            key: request.write.key.clone(),
            version: document.version,
            at: now,
            emit: EPOCH.ordinal,
            tags: document.live().cloned().collect(),
            changes: vec![Change {
                write_id: request.write.id,
                user: request.write.user.clone(),
                version: document.version,
                added: effect.added,
                removed: effect.removed,
                traceparent: request.traceparent.clone(),
            }],
        };
        if self.fault == Fault::DropsEvents && state.position.is_multiple_of(5) {
            state.dropped += 1;
            return;
        }
        state.events.push(event);
        let newest = state.events.len() - 1;
        let before = state.events[..newest].iter().rposition(|e| e.key == request.write.key);
        if let Some(before) = before.filter(|_| self.fault == Fault::ReordersEvents) {
            state.events.swap(before, newest);
        }
    }
}

#[async_trait]
impl TagReader for MemoryStore {
    async fn view(&self, key: &ContentKey, options: &ReadOptions<'_>) -> Result<View, StoreError> {
        let state = self.lock();
        let bytes = key.to_bytes();
        let mut document = Self::read(&state, &bytes);
        if self.fault == Fault::ReadsStale
            && options.consistency != Consistency::Strong
            && let Some(before) = state.before.get(&bytes)
        {
            document = codec::decode(before).expect("our own bytes");
        }
        let mut tags: Vec<_> = document.live().cloned().collect();
        if self.fault == Fault::ForgetsWho {
            tags.iter_mut().for_each(|t| t.at = 0);
        }
        let hash = ContentHash::of(key);
        let unkept = options
            .token
            .filter(|_| options.consistency == Consistency::Session)
            .is_some_and(|token| {
                let foreign = token
                    .floors
                    .get(&LogicalShard::of_hash(hash))
                    .is_some_and(|f| f.epoch != EPOCH.id);
                foreign || token.version_of(hash).is_some_and(|v| v > document.version)
            });
        let unkept = unkept && self.fault != Fault::TrustsEveryToken;
        Ok(View {
            version: document.version,
            tags,
            position: Self::position(&state),
            source: Source::Primary,
            as_of: self.clock.now_ms(),
            degraded: unkept
                .then_some(Degraded { feature: "session", reason: "token_unknown" })
                .into_iter()
                .collect(),
            xmin: 0,
            stale: false,
            cache: CacheUse::Bypass,
        })
    }

    async fn view_many(
        &self,
        keys: &[ContentKey],
        options: &ReadOptions<'_>,
    ) -> Vec<Result<View, StoreError>> {
        let mut views = Vec::with_capacity(keys.len());
        for key in keys {
            views.push(self.view(key, options).await);
        }
        views
    }
}

#[async_trait]
impl TagWriter for MemoryStore {
    async fn write(&self, request: WriteRequest) -> Result<WriteAnswer, StoreError> {
        self.apply(request).await
    }

    async fn write_many(
        &self,
        requests: Vec<WriteRequest>,
    ) -> Vec<Result<WriteAnswer, StoreError>> {
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            answers.push((request.write.key.clone(), self.apply(request).await));
        }
        if self.fault == Fault::BatchAnswersUnordered {
            answers.sort_by_key(|(key, _)| ContentHash::of(key));
        }
        answers.into_iter().map(|(_, answer)| answer).collect()
    }
}

#[async_trait]
impl ShardScanner for MemoryStore {
    async fn scan(
        &self,
        shard: LogicalShard,
        tenant: Option<&TenantId>,
        after: Option<&ContentKey>,
        limit: usize,
    ) -> Result<ScanPage, StoreError> {
        let tenant = tenant.filter(|_| self.fault != Fault::ScanMixesTenants);
        let after = after.map(ContentKey::to_bytes).unwrap_or_default();
        let state = self.lock();
        let mut items: Vec<(ContentKey, Document)> = state
            .documents
            .range::<[u8], _>((Bound::Excluded(after.as_slice()), Bound::Unbounded))
            .filter(|(key, _)| LogicalShard::of_hash(ContentHash::of_bytes(key)) == shard)
            .map(|(key, _)| {
                (ContentKey::from_bytes(key).expect("our own bytes"), Self::read(&state, key))
            })
            .filter(|(key, _)| tenant.is_none_or(|t| *t == key.tenant))
            .take(limit + 1)
            .collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let next = more.then(|| items[limit - 1].0.clone());
        if self.fault == Fault::ScanSkips && more {
            items.pop();
        }
        Ok(ScanPage { items, next })
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(EPOCH)
    }
}

#[async_trait]
impl ReceiptReader for MemoryStore {
    async fn verdict(&self, receipt: &Receipt) -> Result<Verdict, StoreError> {
        let state = self.lock();
        let known = receipt.position.epoch == EPOCH.id
            && (state.receipts_from..=state.position).contains(&receipt.position.lsn);
        Ok(if known { Verdict::Kept } else { Verdict::Unknown("restored") })
    }
}

/// Opens [`MemoryStore`]s over one state.
pub(crate) struct MemoryHarness {
    state: Arc<Mutex<State>>,
    clock: Arc<ManualClock>,
    fault: Fault,
    last_write_at: i64,
}

impl MemoryHarness {
    pub(crate) fn sound() -> Self {
        Self::with(Fault::None)
    }

    pub(crate) fn with(fault: Fault) -> Self {
        let now = 1_800_000_123_456;
        Self {
            state: Arc::default(),
            clock: Arc::new(ManualClock::new(now)),
            fault,
            last_write_at: now,
        }
    }

    fn store(&self) -> SharedStore {
        Arc::new(MemoryStore {
            state: Arc::clone(&self.state),
            clock: Arc::clone(&self.clock),
            limits: self.limits(),
            fault: self.fault,
        })
    }
}

#[async_trait]
impl StoreHarness for MemoryHarness {
    async fn open(&self) -> SharedStore {
        self.store()
    }

    async fn reopen(&self) -> Option<SharedStore> {
        let mut state = self.state.lock().expect("no panic under the lock");
        if self.fault == Fault::LosesTheLastWriteAtRestart {
            let lost = std::mem::take(&mut state.before);
            state.documents.extend(lost.into_iter().next_back());
        }
        if self.fault == Fault::ForgetsReceipts {
            state.receipts_from = state.position + 1;
        }
        drop(state);
        Some(self.store())
    }

    async fn events(&self, tenant: &TenantId) -> Vec<TaggingsEvent> {
        let state = self.state.lock().expect("no panic under the lock");
        state.events.iter().filter(|e| e.key.tenant == *tenant).cloned().collect()
    }

    async fn complete_through(&self) -> UnixMillis {
        if self.fault == Fault::HeartbeatStops { self.last_write_at } else { self.clock.now_ms() }
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    fn advance(&self, ms: i64) -> bool {
        self.clock.advance(ms);
        true
    }

    fn limits(&self) -> Limits {
        Limits { tags_per_content: 100 }
    }
}
