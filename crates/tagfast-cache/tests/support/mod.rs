//! Shared by the test binaries: contents, writes, and a fake store that fails on request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tagfast_cache::{CacheDependencies, CacheOptions, CachedStore};
use tagfast_domain::{
    ContentKey, Epoch, EpochId, EpochOrdinal, Operation, Tag, TagName, Tagging, UserId, Version,
    Write, WriteId,
};
use tagfast_redis::{Redis, keys};
use tagfast_resilience::{Clock, ManualClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::{
    CacheUse, Degraded, History, Position, ReadOptions, Receipt, ReceiptReader, ScanPage,
    ScanRequest, ShardScanner, SharedStore, Source, StoreError, TagReader, TagWriter, Verdict,
    View, WriteAnswer, WriteRequest,
};
use tokio::sync::Notify;

pub(crate) const NOW: i64 = 1_800_000_000_000;

pub(crate) fn key(id: &str) -> ContentKey {
    ContentKey::parse("acme", "test.doc", id).expect("a content")
}

/// The Redis key of a content's cached view.
pub(crate) fn view_key(id: &str) -> String {
    let key = key(id);
    let bytes = keys::view(LogicalShard::of(&key).number(), &key.to_bytes());
    String::from_utf8(bytes).expect("ids of tests are text")
}

pub(crate) fn user(name: &str) -> UserId {
    UserId::parse(name).expect("a user")
}

pub(crate) fn version(n: u64) -> Version {
    Version::from_packed(n).expect("a version")
}

/// A write that adds one tag.
pub(crate) fn add(key: &ContentKey, tag: &str, by: &str) -> WriteRequest {
    let operation =
        Operation::patch(vec![Tag::parse(tag).expect("a tag")], Vec::new(), &Default::default())
            .expect("a patch");
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("random bytes");
    WriteRequest {
        fresh: true,
        ..WriteRequest::new(Write {
            id: WriteId(id),
            key: key.clone(),
            user: user(by),
            operation,
            if_match: None,
        })
    }
}

/// How the fake store treats reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FaultMode {
    /// Answers.
    #[default]
    Healthy,
    /// Refuses as overloaded.
    Overloaded,
    /// Answers with a very old state, marked; refuses clients that accept no stale view.
    Lags,
    /// Reads at once and answers only when the fault ends.
    Hangs,
}

struct State {
    version: u64,
    lsn: u64,
    tags: Vec<(ContentKey, Version, Vec<Tagging>)>,
    fault: FaultMode,
    /// End of each of the epochs 1 to n; the last one is current.
    epoch_ends: Vec<u64>,
    lose_next_answer: bool,
}

/// A store in memory that counts reads and fails on request. Several cached stores may share it, as
/// API nodes share a cluster.
pub(crate) struct FakeStore {
    state: Mutex<State>,
    pub(crate) reads: AtomicU64,
    fault_changed: Notify,
    clock: Arc<ManualClock>,
}

impl FakeStore {
    pub(crate) fn new(clock: &Arc<ManualClock>) -> Arc<Self> {
        let state = State {
            version: 0,
            lsn: 0,
            tags: Vec::new(),
            fault: FaultMode::Healthy,
            epoch_ends: vec![u64::MAX],
            lose_next_answer: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            reads: AtomicU64::new(0),
            fault_changed: Notify::new(),
            clock: Arc::clone(clock),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    pub(crate) fn set_fault(&self, fault: FaultMode) {
        self.state().fault = fault;
        self.fault_changed.notify_waiters();
    }

    /// Stores a content without tags in this version.
    pub(crate) fn set(&self, key: &ContentKey, to: u64) {
        let mut state = self.state();
        state.tags.retain(|(k, ..)| k != key);
        state.version = state.version.max(to);
        state.tags.push((key.clone(), version(to), Vec::new()));
    }

    /// The next write is stored, but its caller gets an unknown outcome.
    pub(crate) fn lose_next_answer(&self) {
        self.state().lose_next_answer = true;
    }

    pub(crate) fn lsn(&self) -> u64 {
        self.state().lsn
    }

    /// A failover: the epoch ends at `epoch_end`; what lies beyond it is lost, namely `lost`.
    pub(crate) fn fail_over(&self, epoch_end: u64, lost: &ContentKey) {
        let mut state = self.state();
        if let Some(last) = state.epoch_ends.last_mut() {
            *last = epoch_end;
        }
        state.epoch_ends.push(u64::MAX);
        state.tags.retain(|(key, ..)| key != lost);
    }

    fn epoch(state: &State) -> EpochId {
        EpochId([state.epoch_ends.len() as u8; 16])
    }

    fn view_of(&self, state: &State, key: &ContentKey) -> View {
        let found = state.tags.iter().find(|(k, ..)| k == key);
        View {
            version: found.map_or(Version::NONE, |(_, version, _)| *version),
            tags: found.map_or_else(Vec::new, |(.., tags)| tags.clone()),
            position: Position { epoch: Self::epoch(state), xid: state.lsn, lsn: state.lsn },
            source: Source::Primary,
            as_of: self.clock.now_ms(),
            degraded: Vec::new(),
            xmin: state.lsn + 1,
            stale: false,
            cache: CacheUse::Bypass,
        }
    }
}

impl History for FakeStore {
    fn current(&self, _: LogicalShard) -> Option<EpochId> {
        Some(Self::epoch(&self.state()))
    }

    fn epoch_end(&self, _: LogicalShard, epoch: EpochId) -> Option<u64> {
        self.state().epoch_ends.get(usize::from(epoch.0[0]).checked_sub(1)?).copied()
    }
}

#[async_trait]
impl TagReader for FakeStore {
    async fn view(&self, key: &ContentKey, options: &ReadOptions<'_>) -> Result<View, StoreError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let fault_changed = self.fault_changed.notified();
        tokio::pin!(fault_changed);
        fault_changed.as_mut().enable();
        let (fault, view) = {
            let state = self.state();
            (state.fault, self.view_of(&state, key))
        };
        match fault {
            FaultMode::Healthy => Ok(view),
            FaultMode::Lags if options.max_stale != Some(std::time::Duration::ZERO) => Ok(View {
                version: Version::NONE,
                tags: Vec::new(),
                degraded: vec![Degraded { feature: "session", reason: "overloaded" }],
                ..view
            }),
            FaultMode::Overloaded | FaultMode::Lags => {
                let retry_after = std::time::Duration::from_secs(1);
                Err(StoreError::Overloaded { queue: "test", limit: 1, retry_after })
            }
            FaultMode::Hangs => {
                let deadline = options.deadline.expect("reads through a cache have one");
                let timeout =
                    || StoreError::Deadline { waiting_for: "test", outcome_unknown: false };
                tokio::time::timeout_at(deadline, fault_changed).await.map_err(|_| timeout())?;
                Ok(view)
            }
        }
    }
}

#[async_trait]
impl TagWriter for FakeStore {
    async fn write(&self, request: WriteRequest) -> Result<WriteAnswer, StoreError> {
        let mut state = self.state();
        let Operation::Patch { add, .. } = &request.write.operation else {
            panic!("only patches are supported")
        };
        state.lsn += 1;
        state.version += 1;
        let version = version(state.version);
        let new = add.iter().map(|tag| Tagging {
            name: tag.name.clone(),
            display: Arc::clone(&tag.display),
            user: request.write.user.clone(),
            at: NOW,
            decided_at: version,
            present: true,
        });
        let new: Vec<Tagging> = new.collect();
        let key = request.write.key.clone();
        match state.tags.iter_mut().find(|(k, ..)| *k == key) {
            Some((_, v, tags)) => {
                *v = version;
                tags.extend(new);
                tags.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
            }
            None => state.tags.push((key.clone(), version, new)),
        }
        if std::mem::take(&mut state.lose_next_answer) {
            return Err(StoreError::Deadline { waiting_for: "test", outcome_unknown: true });
        }
        let view = self.view_of(&state, &key);
        let position = view.position;
        Ok(WriteAnswer {
            version,
            changed: true,
            added: add.iter().map(|tag| tag.name.clone()).collect(),
            removed: Vec::<TagName>::new(),
            repeated: false,
            receipt: Receipt {
                cluster: 0,
                shard: LogicalShard::of(&key),
                inside_lsn: position.lsn,
                position,
                write_id: request.write.id,
            },
            view: Some(Arc::new(view)),
            degraded: Vec::new(),
        })
    }

    async fn write_many(
        &self,
        requests: Vec<WriteRequest>,
    ) -> Vec<Result<WriteAnswer, StoreError>> {
        let mut all = Vec::new();
        for request in requests {
            all.push(self.write(request).await);
        }
        all
    }
}

#[async_trait]
impl ShardScanner for FakeStore {
    async fn scan(&self, _: ScanRequest<'_>) -> Result<ScanPage, StoreError> {
        Ok(ScanPage::default())
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(Epoch { id: Self::epoch(&self.state()), ordinal: EpochOrdinal(1) })
    }
}

#[async_trait]
impl ReceiptReader for FakeStore {
    async fn verdict(&self, _: &Receipt) -> Result<Verdict, StoreError> {
        Ok(Verdict::Kept)
    }
}

/// The cached store of an API node.
pub(crate) fn node(
    backend: &Arc<FakeStore>,
    clock: &Arc<ManualClock>,
    views: Option<Arc<Redis>>,
    positions: Option<Arc<Redis>>,
    options: CacheOptions,
) -> Arc<CachedStore> {
    let parts = CacheDependencies {
        store: Arc::clone(backend) as SharedStore,
        history: Arc::clone(backend) as Arc<dyn History>,
        views,
        positions,
        clock: Arc::clone(clock) as Arc<dyn Clock>,
    };
    CachedStore::start(parts, options)
}
