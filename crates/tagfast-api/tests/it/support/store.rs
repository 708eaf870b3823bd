//! A store in memory: the domain's `apply` over a map, with faults on demand.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::apply::ApplyContext;
use tagfast_domain::{
    ContentKey, Document, Effect, Epoch, EpochId, EpochOrdinal, Limits, Outcome, TenantId, Version,
    WriteId, apply,
};
use tagfast_resilience::{Clock, Criticality, ManualClock};
use tagfast_sharding::LogicalShard;
use tagfast_store::{
    CacheUse, Durability, Position, ReadOptions, Receipt, ReceiptReader, ScanPage, ScanRequest,
    ShardScanner, Source, StoreError, TagReader, TagWriter, Verdict, View, WriteAnswer,
    WriteRequest,
};

pub(crate) const EPOCH: Epoch =
    Epoch { id: EpochId([9; 16]), ordinal: EpochOrdinal(1_750_000_000_000) };

pub(crate) struct MemoryStore {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) documents: Mutex<BTreeMap<ContentKey, Document>>,
    written: Mutex<HashSet<WriteId>>,
    position: AtomicU64,
    /// The next calls fail with this.
    pub(crate) fault: Mutex<Option<fn() -> StoreError>>,
    /// Calls hang.
    pub(crate) hang: AtomicBool,
    /// The next call panics.
    pub(crate) panic: AtomicBool,
    /// The last write as the store received it.
    pub(crate) last_write: Mutex<Option<WriteRequest>>,
    /// The options of the last read.
    pub(crate) last_read: Mutex<Option<ReadSeen>>,
    /// Changes a view as a cache in front of the store would.
    pub(crate) view_change: Mutex<Option<fn(&mut View)>>,
}

/// The options of a read that the tests look at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ReadSeen {
    pub(crate) user: Option<String>,
    pub(crate) criticality: Criticality,
    pub(crate) max_stale: Option<Duration>,
}

impl MemoryStore {
    pub(crate) fn new(clock: Arc<ManualClock>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            documents: Mutex::default(),
            written: Mutex::default(),
            position: AtomicU64::new(0),
            fault: Mutex::new(None),
            hang: AtomicBool::new(false),
            panic: AtomicBool::new(false),
            last_write: Mutex::default(),
            last_read: Mutex::default(),
            view_change: Mutex::new(None),
        })
    }

    pub(crate) fn fail_with(&self, fault: fn() -> StoreError) {
        *self.fault.lock().unwrap() = Some(fault);
    }

    pub(crate) fn heal(&self) {
        *self.fault.lock().unwrap() = None;
    }

    /// Live taggings of a tenant: (content, document).
    pub(crate) fn of(&self, tenant: &TenantId) -> Vec<(ContentKey, Document)> {
        let all = self.documents.lock().unwrap();
        let live =
            all.iter().filter(|(key, doc)| key.tenant == *tenant && doc.live().next().is_some());
        live.map(|(key, doc)| (key.clone(), doc.clone())).collect()
    }

    async fn check(&self) -> Result<(), StoreError> {
        if self.hang.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        assert!(!self.panic.swap(false, Ordering::SeqCst), "a panic on request");
        match *self.fault.lock().unwrap() {
            Some(fault) => Err(fault()),
            None => Ok(()),
        }
    }

    fn position(&self) -> Position {
        let lsn = self.position.load(Ordering::SeqCst);
        Position { epoch: EPOCH.id, xid: lsn, lsn }
    }

    fn apply(&self, request: &WriteRequest) -> Result<WriteAnswer, StoreError> {
        if request.durability == Durability::Replicated {
            return Err(StoreError::NotInThisMode("Durability: replicated"));
        }
        let write = &request.write;
        let mut documents = self.documents.lock().unwrap();
        let document = documents.entry(write.key.clone()).or_default();
        let context =
            ApplyContext { epoch: &EPOCH, now: self.clock.now_ms(), limits: &Limits::default() };
        let (version, effect, repeated): (Version, Effect, bool) =
            match apply(document, write, None, &context) {
                Outcome::Written { version, effect, .. } => (version, effect, false),
                Outcome::Unchanged { version } => (version, Effect::default(), false),
                Outcome::Repeated { version, effect } => (version, effect, true),
                Outcome::Refused(refusal) => return Err(StoreError::Refused(refusal)),
            };
        let lsn = self.position.fetch_add(1, Ordering::SeqCst) + 1;
        self.written.lock().unwrap().insert(write.id);
        let position = Position { epoch: EPOCH.id, xid: lsn, lsn };
        Ok(WriteAnswer {
            version,
            changed: effect != Effect::default(),
            added: effect.added,
            removed: effect.removed,
            repeated,
            receipt: Receipt {
                cluster: 0,
                shard: LogicalShard::of(&write.key),
                inside_lsn: lsn,
                position,
                write_id: write.id,
            },
            view: None,
            degraded: Vec::new(),
        })
    }
}

#[async_trait]
impl TagReader for MemoryStore {
    async fn view(&self, key: &ContentKey, options: &ReadOptions<'_>) -> Result<View, StoreError> {
        *self.last_read.lock().unwrap() = Some(ReadSeen {
            user: options.user.map(|user| user.as_str().to_owned()),
            criticality: options.criticality,
            max_stale: options.max_stale,
        });
        self.check().await?;
        let document = self.documents.lock().unwrap().get(key).cloned().unwrap_or_default();
        let mut view = View {
            version: document.version,
            tags: document.live().cloned().collect(),
            position: self.position(),
            source: Source::Primary,
            as_of: self.clock.now_ms(),
            degraded: Vec::new(),
            xmin: 0,
            stale: false,
            cache: CacheUse::Bypass,
        };
        if let Some(change) = *self.view_change.lock().unwrap() {
            change(&mut view);
        }
        Ok(view)
    }
}

#[async_trait]
impl TagWriter for MemoryStore {
    async fn write(&self, request: WriteRequest) -> Result<WriteAnswer, StoreError> {
        *self.last_write.lock().unwrap() = Some(request.clone());
        self.check().await?;
        self.apply(&request)
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
impl ShardScanner for MemoryStore {
    async fn scan(&self, request: ScanRequest<'_>) -> Result<ScanPage, StoreError> {
        let ScanRequest { shard, tenant, after, limit } = request;
        self.check().await?;
        let all = self.documents.lock().unwrap();
        let fits = |key: &ContentKey| {
            LogicalShard::of(key) == shard
                && tenant.is_none_or(|t| key.tenant == *t)
                && after.is_none_or(|a| key > a)
        };
        let items: Vec<_> = all
            .iter()
            .filter(|(key, _)| fits(key))
            .take(limit)
            .map(|(key, doc)| (key.clone(), doc.clone()))
            .collect();
        let next =
            (items.len() == limit).then(|| items.last().map(|(key, _)| key.clone())).flatten();
        Ok(ScanPage { items, next })
    }

    async fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(EPOCH)
    }
}

#[async_trait]
impl ReceiptReader for MemoryStore {
    async fn verdict(&self, receipt: &Receipt) -> Result<Verdict, StoreError> {
        self.check().await?;
        let known = self.written.lock().unwrap().contains(&receipt.write_id);
        Ok(if known { Verdict::Kept } else { Verdict::Unknown("expired") })
    }
}
