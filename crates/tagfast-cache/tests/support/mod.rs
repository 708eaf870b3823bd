//! What the tests share: the embedded store as what is behind the caches, and a store that does as
//! it is told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tagfast_cache::{CacheOptions, CacheParts, CachedStore};
use tagfast_domain::{
    ContentKey, Epoch, EpochId, EpochOrdinal, Operation, Tag, TagName, Tagging, TenantId, UserId,
    Version, Write, WriteId,
};
use tagfast_redis::Redis;
use tagfast_resilience::{Clock, ManualClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::{
    CacheUse, Degraded, Durability, History, Position, ReadOptions, Receipt, ReceiptReader,
    ScanPage, ShardScanner, SharedStore, Source, StoreError, TagReader, TagWriter, Verdict, View,
    WriteAnswer, WriteRequest,
};
use tokio::sync::Notify;

pub(crate) const NOW: i64 = 1_800_000_000_000;

pub(crate) fn key(id: &str) -> ContentKey {
    ContentKey::parse("acme", "test.doc", id).expect("a content")
}

pub(crate) fn user(name: &str) -> UserId {
    UserId::parse(name).expect("a user")
}

pub(crate) fn version(n: u64) -> Version {
    Version::from_packed(n).expect("a version")
}

/// A write of one tag by somebody.
pub(crate) fn add(key: &ContentKey, tag: &str, by: &str) -> WriteRequest {
    let operation =
        Operation::patch(vec![Tag::parse(tag).expect("a tag")], Vec::new(), &Default::default())
            .expect("a patch");
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("random bytes");
    WriteRequest {
        write: Write {
            id: WriteId(id),
            key: key.clone(),
            user: user(by),
            operation,
            if_match: None,
        },
        fresh: true,
        durability: Durability::Local,
        deadline: None,
        traceparent: None,
    }
}

/// What the store behind the caches does with reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mood {
    #[default]
    Well,
    /// Refuses.
    Overloaded,
    /// Has only what was there long ago, and refuses whoever takes nothing old.
    Lags,
    /// Reads, and keeps the answer to itself until it is told to be well again.
    Hangs,
}

struct State {
    version: u64,
    lsn: u64,
    tags: Vec<(ContentKey, Version, Vec<Tagging>)>,
    mood: Mood,
    /// Of the epochs 1 to n, the last is current; what each leaves to the next.
    fences: Vec<u64>,
    lost_answer: bool,
}

/// A store in memory that counts and fails as told. Several caches may be in front of it, as API
/// nodes are.
pub(crate) struct Behind {
    state: Mutex<State>,
    pub(crate) reads: AtomicU64,
    pub(crate) go: Notify,
    clock: Arc<ManualClock>,
}

impl Behind {
    pub(crate) fn new(clock: &Arc<ManualClock>) -> Arc<Self> {
        let state = State {
            version: 0,
            lsn: 0,
            tags: Vec::new(),
            mood: Mood::Well,
            fences: vec![u64::MAX],
            lost_answer: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            reads: AtomicU64::new(0),
            go: Notify::new(),
            clock: Arc::clone(clock),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    pub(crate) fn mood(&self, mood: Mood) {
        self.state().mood = mood;
        self.go.notify_waiters();
    }

    /// A content without tags has this version.
    pub(crate) fn set(&self, key: &ContentKey, to: u64) {
        let mut state = self.state();
        state.tags.retain(|(k, ..)| k != key);
        state.version = state.version.max(to);
        state.tags.push((key.clone(), version(to), Vec::new()));
    }

    /// The next write happens, and nobody is told.
    pub(crate) fn lose_an_answer(&self) {
        self.state().lost_answer = true;
    }

    pub(crate) fn lsn(&self) -> u64 {
        self.state().lsn
    }

    /// A primary dies: what lies past `fence` is lost, and of it `forget` names a content.
    pub(crate) fn fail_over(&self, fence: u64, forget: &ContentKey) {
        let mut state = self.state();
        if let Some(last) = state.fences.last_mut() {
            *last = fence;
        }
        state.fences.push(u64::MAX);
        state.tags.retain(|(key, ..)| key != forget);
    }

    fn epoch(state: &State) -> EpochId {
        EpochId([state.fences.len() as u8; 16])
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

impl History for Behind {
    fn current(&self, _: LogicalShard) -> Option<EpochId> {
        Some(Self::epoch(&self.state()))
    }

    fn fence(&self, _: LogicalShard, epoch: EpochId) -> Option<u64> {
        self.state().fences.get(usize::from(epoch.0[0]).checked_sub(1)?).copied()
    }
}

#[async_trait]
impl TagReader for Behind {
    async fn view(&self, key: &ContentKey, options: &ReadOptions<'_>) -> Result<View, StoreError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let told = self.go.notified();
        tokio::pin!(told);
        told.as_mut().enable();
        let (mood, view) = {
            let state = self.state();
            (state.mood, self.view_of(&state, key))
        };
        match mood {
            Mood::Well => Ok(view),
            Mood::Lags if options.max_stale != Some(std::time::Duration::ZERO) => Ok(View {
                version: Version::NONE,
                tags: Vec::new(),
                degraded: vec![Degraded { feature: "session", reason: "overloaded" }],
                ..view
            }),
            Mood::Overloaded | Mood::Lags => {
                let retry_after = std::time::Duration::from_secs(1);
                Err(StoreError::Overloaded { queue: "test", limit: 1, retry_after })
            }
            Mood::Hangs => {
                let deadline = options.deadline.expect("reads through a cache have one");
                let late = || StoreError::Deadline { waiting_for: "test", outcome_unknown: false };
                tokio::time::timeout_at(deadline, told).await.map_err(|_| late())?;
                Ok(view)
            }
        }
    }

    async fn view_many(
        &self,
        keys: &[ContentKey],
        options: &ReadOptions<'_>,
    ) -> Vec<Result<View, StoreError>> {
        let mut all = Vec::new();
        for key in keys {
            all.push(self.view(key, options).await);
        }
        all
    }
}

#[async_trait]
impl TagWriter for Behind {
    async fn write(&self, request: WriteRequest) -> Result<WriteAnswer, StoreError> {
        let mut state = self.state();
        let Operation::Patch { add, .. } = &request.write.operation else { panic!("only patches") };
        state.lsn += 1;
        state.version += 1;
        let version = version(state.version);
        let new = add.iter().map(|tag| Tagging {
            name: tag.name.clone(),
            display: Arc::clone(&tag.display),
            user: request.write.user.clone(),
            at: NOW,
            ord: version,
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
        if std::mem::take(&mut state.lost_answer) {
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
impl ShardScanner for Behind {
    async fn scan(
        &self,
        _: LogicalShard,
        _: Option<&TenantId>,
        _: Option<&ContentKey>,
        _: usize,
    ) -> Result<ScanPage, StoreError> {
        Ok(ScanPage::default())
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(Epoch { id: Self::epoch(&self.state()), ordinal: EpochOrdinal(1) })
    }
}

#[async_trait]
impl ReceiptReader for Behind {
    async fn verdict(&self, _: &Receipt) -> Result<Verdict, StoreError> {
        Ok(Verdict::Kept)
    }
}

/// An API node: a store behind caches.
pub(crate) fn node(
    behind: &Arc<Behind>,
    clock: &Arc<ManualClock>,
    views: Option<Arc<Redis>>,
    positions: Option<Arc<Redis>>,
    options: CacheOptions,
) -> Arc<CachedStore> {
    let parts = CacheParts {
        store: Arc::clone(behind) as SharedStore,
        history: Arc::clone(behind) as Arc<dyn History>,
        views,
        positions,
        clock: Arc::clone(clock) as Arc<dyn Clock>,
    };
    CachedStore::start(parts, options)
}
