//! The ports: what the API and the consumers may ask of a store.

use std::sync::Arc;

use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{
    ContentKey, Document, Epoch, EpochId, TagName, Tagging, TenantId, UnixMillis, UserId, Version,
    Write,
};
use tagfast_resilience::Criticality;
use tagfast_sharding::LogicalShard;

use crate::{ConsistencyToken, Position, Receipt, StoreError};

/// How new a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Whatever is nearest.
    Eventual,
    /// At least what this client has written and seen.
    #[default]
    Session,
    /// The newest acknowledged state.
    Strong,
}

/// What an acknowledgement must have survived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Committed and flushed where it was written.
    #[default]
    Local,
    /// Also flushed by the replicas. Embedded: `not_in_this_mode`.
    Replicated,
}

/// How to read.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions<'a> {
    /// How new the answer must be.
    pub consistency: Consistency,
    /// What this client has seen so far.
    pub token: Option<&'a ConsistencyToken>,
    /// When the caller stops waiting.
    pub deadline: Option<tokio::time::Instant>,
    /// Who reads. Without a token, what this user wrote last is what the answer must show.
    pub user: Option<&'a UserId>,
    /// Ask the primary before any replica: what must be shown is not known, so it must be the
    /// newest. Unlike with [`Consistency::Strong`], a replica answers when the primary does
    /// not.
    pub primary_first: bool,
    /// What is given up first when not everything can be answered.
    pub criticality: Criticality,
    /// The oldest stale answer that is better than none; `None`: as old as the service allows,
    /// zero: none.
    pub max_stale: Option<Duration>,
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A cache.
    Cache,
    /// The primary; embedded: the store's files.
    Primary,
    /// A replica that was proven new enough.
    Replica,
    /// The search index.
    Index,
    /// A snapshot in memory.
    Snapshot,
}

impl Source {
    /// The stable word in `meta.source`.
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

/// A promise that an answer could not keep, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Degraded {
    /// The feature, a stable word: `session`, `facets`, ...
    pub feature: &'static str,
    /// The reason, a stable word: `failover`, `token_unknown`, ...
    pub reason: &'static str,
}

/// What caches did for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheUse {
    /// None was asked.
    #[default]
    Bypass,
    /// The layer that answered.
    Hit(&'static str),
    /// None had what was asked for.
    Miss {
        /// The answer was fetched once for several who waited.
        collapsed: bool,
    },
    /// The layer that had an entry, too old to answer while the store does.
    Stale(&'static str),
}

/// The tags of one content, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The version that was read; `Version::NONE` for a content nobody tagged.
    pub version: Version,
    /// The live taggings, sorted by canonical name.
    pub tags: Vec<Tagging>,
    /// Where the store stood: the floor that a token takes from this answer.
    pub position: Position,
    /// Where it was read.
    pub source: Source,
    /// The answer is at least as new as this moment.
    pub as_of: UnixMillis,
    /// Promises that could not be kept.
    pub degraded: Vec<Degraded>,
    /// Every transaction below this id had ended when it was read: what it wrote is in the answer.
    /// 0: not known.
    pub xmin: u64,
    /// Older than what the store would have answered.
    pub stale: bool,
    /// What caches did.
    pub cache: CacheUse,
}

/// A write with what the transport knows of it.
#[derive(Debug, Clone)]
pub struct WriteRequest {
    /// What to do.
    pub write: Write,
    /// The write's id was made for this call: nobody has used it before, so a store need not look
    /// whether somebody has.
    pub fresh: bool,
    /// What the acknowledgement must have survived.
    pub durability: Durability,
    /// When the caller stops waiting; a write still queued then is dropped, one already taken is
    /// finished.
    pub deadline: Option<tokio::time::Instant>,
    /// W3C `traceparent`, carried into the event.
    pub traceparent: Option<String>,
}

/// An acknowledged write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteAnswer {
    /// The content's version after the write (of a repeated write: the one it made then).
    pub version: Version,
    /// Whether any tagging changed.
    pub changed: bool,
    /// Canonical names added.
    pub added: Vec<TagName>,
    /// Canonical names removed.
    pub removed: Vec<TagName>,
    /// The id had been applied before; this is that answer again.
    pub repeated: bool,
    /// Names the write for later questions.
    pub receipt: Receipt,
    /// The content as this write left it; `None` when it wrote nothing, or when the store does not
    /// tell.
    pub view: Option<Arc<View>>,
    /// Promises about later reads that could not be kept.
    pub degraded: Vec<Degraded>,
}

/// Reads.
#[async_trait]
pub trait TagReader: Send + Sync {
    /// The tags of one content. Content nobody tagged is an empty view, not an error.
    async fn view(&self, key: &ContentKey, options: &ReadOptions<'_>) -> Result<View, StoreError>;

    /// The tags of several contents, in the order asked; one failing shard fails only its own
    /// items.
    async fn view_many(
        &self,
        keys: &[ContentKey],
        options: &ReadOptions<'_>,
    ) -> Vec<Result<View, StoreError>>;
}

/// Writes.
#[async_trait]
pub trait TagWriter: Send + Sync {
    /// Applies one write. `Ok` means committed, flushed, and its event with it. After
    /// [`StoreError::is_outcome_unknown`] the write may have happened: retry it with the same id.
    async fn write(&self, request: WriteRequest) -> Result<WriteAnswer, StoreError>;

    /// Applies several writes, each atomic by itself, in the order asked where they share a
    /// content.
    async fn write_many(&self, requests: Vec<WriteRequest>)
    -> Vec<Result<WriteAnswer, StoreError>>;
}

/// A page of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanPage {
    /// Contents with their documents, in key order; dropped contents (no live tags) are included.
    pub items: Vec<(ContentKey, Document)>,
    /// Where the next page starts; `None` at the end of the shard.
    pub next: Option<ContentKey>,
}

/// Walks whole shards: export, rebuild, recount.
#[async_trait]
pub trait ShardScanner: Send + Sync {
    /// Up to `limit` contents of a shard after `after`, in key order; with `tenant`, only that
    /// tenant's. A content that exists during the whole walk is returned; each page is
    /// consistent in itself.
    async fn scan(
        &self,
        shard: LogicalShard,
        tenant: Option<&TenantId>,
        after: Option<&ContentKey>,
        limit: usize,
    ) -> Result<ScanPage, StoreError>;

    /// The epoch this store writes in.
    async fn epoch(&self) -> Result<Epoch, StoreError>;
}

/// What became of a past write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the current history.
    Kept,
    /// It was lost with a primary and has been joined again.
    Repaired,
    /// It is gone for good.
    Lost,
    /// It cannot be told (the word says why: `pending`, `expired`, `restored`).
    Unknown(&'static str),
}

impl Verdict {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Repaired => "repaired",
            Self::Lost => "lost",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// Tells what became of a write.
#[async_trait]
pub trait ReceiptReader: Send + Sync {
    /// The verdict of the write that a receipt names.
    async fn verdict(&self, receipt: &Receipt) -> Result<Verdict, StoreError>;
}

/// What a store knows of its own past. It is asked for every entry of a cache, and answers from
/// memory.
pub trait History: Send + Sync {
    /// The epoch that a shard is in; `None` while it is not known.
    fn current(&self, shard: LogicalShard) -> Option<EpochId>;

    /// Up to which log position an epoch is part of the current history of a shard: `u64::MAX` is
    /// all of it, 0 nothing. `None`: this process has not heard of that epoch, it may be a
    /// newer one.
    fn fence(&self, shard: LogicalShard, epoch: EpochId) -> Option<u64>;
}

/// A whole store.
pub trait TagStore: TagReader + TagWriter + ShardScanner + ReceiptReader {}
impl<T: TagReader + TagWriter + ShardScanner + ReceiptReader + ?Sized> TagStore for T {}

/// A store that several parts share.
pub type SharedStore = Arc<dyn TagStore>;
