//! The ports of a store: reads, writes, scans, receipts and history.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{
    Call, ContentKey, Document, Epoch, IdempotencyKey, TagName, Tagging, TenantId, UnixMillis,
    Version, Write,
};
use tagfast_sharding::LogicalShard;

use crate::{Durability, History, Position, ReadOptions, Receipt, StoreError};

/// The source of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A cache.
    Cache,
    /// The primary; embedded: the store's files.
    Primary,
    /// A replica that was proven recent enough.
    Replica,
    /// The search index.
    Index,
    /// A snapshot in memory (last good).
    Snapshot,
}

impl Source {
    /// The stable value of `meta.source` in responses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Index => "index",
            Self::Snapshot => "snapshot",
        }
    }
}

/// A guarantee that an answer could not keep, and the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Degraded {
    /// The feature, a stable value: `session`, `facets`, ...
    pub feature: &'static str,
    /// The reason, a stable value: `failover`, `token_unknown`, ...
    pub reason: &'static str,
}

/// A failover may have lost writes that this answer should show; their repair is under way.
pub const REPAIR_PENDING: Degraded = Degraded { feature: "repair", reason: "pending" };

/// A write of this session was acknowledged, and a failover has lost it for good.
pub const WRITE_LOST: Degraded = Degraded { feature: "session", reason: "write_lost" };

/// The part of the caches in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheUse {
    /// No cache was read.
    #[default]
    Bypass,
    /// This cache layer answered.
    Hit(&'static str),
    /// No cache had a usable entry.
    Miss {
        /// The answer was loaded once for several callers (single-flight).
        collapsed: bool,
    },
    /// This cache layer had an expired entry, used because the store did not answer.
    Stale(&'static str),
}

/// A view: the tags of one content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The version that was read; [`Version::NONE`] for a content that was never tagged.
    pub version: Version,
    /// The live taggings, sorted by canonical name.
    pub tags: Vec<Tagging>,
    /// The store's position: the floor that a token takes from this answer.
    pub position: Position,
    /// The source of the data.
    pub source: Source,
    /// The answer is at least as recent as this moment, Unix ms.
    pub as_of: UnixMillis,
    /// Guarantees that were not kept; empty: all were.
    pub degraded: Vec<Degraded>,
    /// Every transaction below this id had ended at the read, so its writes are in the answer; 0:
    /// unknown.
    pub xmin: u64,
    /// Whether the answer is older than the store's current one may be.
    pub stale: bool,
    /// The part of the caches.
    pub cache: CacheUse,
}

impl View {
    /// Whether it is stale, and older than `max` at `now`, Unix ms.
    pub fn is_stale_beyond(&self, max: Duration, now: UnixMillis) -> bool {
        let age_ms = now.saturating_sub(self.as_of).max(0).unsigned_abs();
        self.stale && u128::from(age_ms) > max.as_millis()
    }
}

/// A write with its transport options.
#[derive(Debug, Clone)]
pub struct WriteRequest {
    /// The write.
    pub write: Write,
    /// The idempotency key that the write's id was derived from: every outcome is remembered, also
    /// when nothing changed, and the key is bound to its request. `None`: the id was generated for
    /// this request, so no earlier attempt exists; the store may skip the lookup of past writes,
    /// and a write that changes nothing costs no commit.
    pub keyed: Option<IdempotencyKey>,
    /// What the write must survive before it is acknowledged.
    pub durability: Durability,
    /// When the caller stops waiting; `None`: no deadline. A write still queued then is dropped,
    /// one already in a batch is finished.
    pub deadline: Option<tokio::time::Instant>,
    /// W3C `traceparent`, copied into the event; `None`: no trace.
    pub traceparent: Option<String>,
}

impl WriteRequest {
    /// A write that may have been attempted before in the same call, acknowledged as
    /// [`Durability::Local`], without a deadline and without a trace.
    pub fn new(write: Write) -> Self {
        Self {
            keyed: Some(IdempotencyKey::of_write(write.id, Call::Patch, &write.key.content)),
            write,
            durability: Durability::Local,
            deadline: None,
            traceparent: None,
        }
    }
}

/// How many replicas had a write when it was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaCount {
    /// The streaming replicas that had it.
    pub replicas: usize,
    /// The replicas that streamed.
    pub of: usize,
}

/// An acknowledged write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteAnswer {
    /// The content's version after the write; of a repeated write, the version its first attempt
    /// made.
    pub version: Version,
    /// Whether any tag was added or removed.
    pub changed: bool,
    /// Canonical names added.
    pub added: Vec<TagName>,
    /// Canonical names removed.
    pub removed: Vec<TagName>,
    /// The write id is known; this is the first answer again.
    pub repeated: bool,
    /// Identifies the write in later queries.
    pub receipt: Receipt,
    /// The content after the commit; `None` when this write made no new version, or when the store
    /// does not return it. See [`crate::write_batch`].
    pub view: Option<Arc<View>>,
    /// The replicas that had it when it was acknowledged; `None`: the store has no replicas.
    pub replicated: Option<ReplicaCount>,
    /// Guarantees about later reads that were not kept; empty: all were.
    pub degraded: Vec<Degraded>,
}

/// Reads views.
#[async_trait]
pub trait TagReader: Send + Sync {
    /// The view of one content. A content that was never tagged is an empty view, not an error.
    ///
    /// # Errors
    ///
    /// - [`StoreError::Overloaded`]: a read queue or a limiter is full.
    /// - [`StoreError::Deadline`]: `options.deadline` passed; `outcome_unknown` is false.
    /// - [`StoreError::Unavailable`]: no node that may answer is reachable.
    /// - [`StoreError::Damaged`]: the stored document cannot be decoded.
    /// - [`StoreError::Internal`]: a bug.
    ///
    /// Never `Refused`, `NotInThisMode` or `DiskFull`.
    async fn view(&self, key: &ContentKey, options: &ReadOptions<'_>) -> Result<View, StoreError>;

    /// The views of several contents, in request order. A failing shard fails only its own items.
    /// By default they are read one after the other.
    ///
    /// # Errors
    ///
    /// Each item fails on its own, as [`TagReader::view`].
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

/// Writes tags.
#[async_trait]
pub trait TagWriter: Send + Sync {
    /// Applies one write. `Ok` means that the write and its event are committed and flushed.
    ///
    /// # Errors
    ///
    /// - [`StoreError::Refused`]: a rule was broken; nothing happened. A retry of a keyed write
    ///   gets the same refusal. A key whose first decided write belonged to a different request is
    ///   refused for at least [`WRITE_ID_MEMORY_MS`](tagfast_domain::limits::WRITE_ID_MEMORY_MS),
    ///   wherever the same file or cluster holds both contents.
    /// - [`StoreError::NotInThisMode`]: the durability is not supported; nothing happened.
    /// - [`StoreError::Overloaded`]: the write queue, the tenant's share of it or the outbox is
    ///   full; nothing happened.
    /// - [`StoreError::Deadline`]: the deadline passed, in the queue (nothing happened) or during
    ///   the commit (`outcome_unknown`).
    /// - [`StoreError::DiskFull`]: nothing happened.
    /// - [`StoreError::Unavailable`]: no primary, or the commit failed; see `outcome_unknown`.
    /// - [`StoreError::Damaged`]: the stored document cannot be decoded; nothing happened.
    /// - [`StoreError::Internal`]: a bug; the outcome is unknown.
    ///
    /// After an error with [`StoreError::is_outcome_unknown`] the write may have happened: the
    /// caller must retry it with the same id.
    async fn write(&self, request: WriteRequest) -> Result<WriteAnswer, StoreError>;

    /// Applies several writes, each atomic on its own; writes of one content keep their order.
    ///
    /// # Errors
    ///
    /// Each item fails on its own, as [`TagWriter::write`].
    async fn write_many(&self, requests: Vec<WriteRequest>)
    -> Vec<Result<WriteAnswer, StoreError>>;
}

/// One page of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanPage {
    /// Contents with their documents, in key order. Contents without live tags are included.
    pub items: Vec<(ContentKey, Document)>,
    /// The key after which the next page starts; `None` at the end of the shard.
    pub next: Option<ContentKey>,
}

/// What one page of a scan holds.
#[derive(Debug, Clone, Copy)]
pub struct ScanRequest<'a> {
    /// The shard that is scanned.
    pub shard: LogicalShard,
    /// Only the contents of this tenant; `None`: of all tenants.
    pub tenant: Option<&'a TenantId>,
    /// Only the contents after this key; `None`: from the start of the shard.
    pub after: Option<&'a ContentKey>,
    /// Maximum contents of the page.
    pub limit: usize,
}

impl<'a> ScanRequest<'a> {
    /// Contents of all tenants.
    pub fn of_all(shard: LogicalShard, after: Option<&'a ContentKey>, limit: usize) -> Self {
        Self { shard, tenant: None, after, limit }
    }
}

/// Scans whole shards: for export, rebuild and recount.
#[async_trait]
pub trait ShardScanner: Send + Sync {
    /// The contents that `request` names, in key order. A content that exists during the whole scan
    /// is returned; each page is consistent in itself.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::Deadline`] with a known outcome,
    /// [`StoreError::Damaged`] and [`StoreError::Internal`]; a page is never partial.
    async fn scan(&self, request: ScanRequest<'_>) -> Result<ScanPage, StoreError>;

    /// The epoch this store writes in.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] while the epoch is unknown (no primary yet).
    async fn epoch(&self) -> Result<Epoch, StoreError>;
}

/// Why a failover lost a write for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LostReason {
    /// No process that knew of it was left to repair it.
    Unreported,
    /// The content had no room for its tag any more.
    Limit,
    /// A conditional write of the new history decided otherwise, or it was one itself.
    Conflict,
    /// It was reported after the repair was closed.
    Late,
}

impl LostReason {
    /// The stable value in responses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreported => "unreported",
            Self::Limit => "limit",
            Self::Conflict => "conflict",
            Self::Late => "late",
        }
    }
}

/// The fate of a past write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The write is in the current history.
    Kept,
    /// The write was lost in a failover and merged back by a repair. With `is_superseded`, later
    /// writes had decided everything that it decided: it counts as if it had come before them.
    Repaired {
        /// Later writes had decided everything that it decided.
        is_superseded: bool,
        /// Its event brought it back, which had been published: the process that acknowledged it
        /// had not, or not yet.
        by_event: bool,
    },
    /// The write was lost in a failover for good.
    Lost(LostReason),
    /// The fate is unknown; the value is the reason: `pending`, `expired` or `restored`.
    Unknown(&'static str),
}

impl Verdict {
    /// The stable value in responses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Repaired { .. } => "repaired",
            Self::Lost(_) => "lost",
            Self::Unknown(_) => "unknown",
        }
    }

    /// The stable value of the reason; `None`: there is nothing to add.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Kept | Self::Repaired { is_superseded: false, by_event: false } => None,
            Self::Repaired { is_superseded: true, .. } => Some("superseded"),
            Self::Repaired { is_superseded: false, by_event: true } => Some("event"),
            Self::Lost(reason) => Some(reason.as_str()),
            Self::Unknown(reason) => Some(reason),
        }
    }
}

/// Answers receipts.
#[async_trait]
pub trait ReceiptReader: Send + Sync {
    /// The verdict about the write that a receipt identifies.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] or [`StoreError::Deadline`] while the cluster cannot be reached,
    /// [`StoreError::Internal`] for a bug.
    async fn verdict(&self, receipt: &Receipt) -> Result<Verdict, StoreError>;

    /// The verdicts about several writes, in the order of the receipts. By default they are asked
    /// for one after the other.
    ///
    /// # Errors
    ///
    /// Each item fails on its own, as [`ReceiptReader::verdict`].
    async fn verdicts(&self, receipts: &[Receipt]) -> Vec<Result<Verdict, StoreError>> {
        let mut verdicts = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            verdicts.push(self.verdict(receipt).await);
        }
        verdicts
    }
}

/// A complete store: all ports.
pub trait TagStore: TagReader + TagWriter + ShardScanner + ReceiptReader + History {}
impl<T: TagReader + TagWriter + ShardScanner + ReceiptReader + History + ?Sized> TagStore for T {}

/// A shared store.
pub type SharedStore = Arc<dyn TagStore>;
