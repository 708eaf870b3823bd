//! The popular port: what the API may ask.

use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::{TagName, TenantId, UnixMillis};

/// A window of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Window {
    /// The last 60 minute buckets.
    Hour,
    /// The last 24 hour buckets.
    Day,
    /// The last 168 hour buckets.
    Week,
    /// Every tagging that exists.
    All,
}

impl Window {
    /// All windows.
    pub const ALL: [Self; 4] = [Self::Hour, Self::Day, Self::Week, Self::All];

    /// The word in requests and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "1h",
            Self::Day => "24h",
            Self::Week => "7d",
            Self::All => "all",
        }
    }
}

impl std::str::FromStr for Window {
    type Err = PopularError;
    fn from_str(s: &str) -> Result<Self, PopularError> {
        Self::ALL
            .into_iter()
            .find(|w| w.as_str() == s)
            .ok_or_else(|| PopularError::UnknownWindow(s.to_owned()))
    }
}

/// A tag with its use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagCount {
    /// The tag.
    pub tag: TagName,
    /// The tenant's spelling of it: the one with the smallest (added_at, bytes) among live
    /// taggings.
    pub display: Arc<str>,
    /// Contents that carry it, within the window.
    pub count: u64,
}

/// A ranking, most used first; ties by canonical name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Board {
    /// The tags.
    pub tags: Vec<TagCount>,
    /// Everything committed before this moment is counted.
    pub as_of: UnixMillis,
    /// Where the counts come from does not answer: this is what was read last.
    pub stale: bool,
}

/// Typeahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestions {
    /// Matching tags, most used first.
    pub tags: Vec<TagCount>,
    /// Rarely used tags may be missing.
    pub approximate: bool,
    /// Everything committed before this moment is counted.
    pub as_of: UnixMillis,
    /// As in [`Board`].
    pub stale: bool,
}

/// What a recount found.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct RecountReport {
    /// Contents compared.
    pub contents: u64,
    /// Contents whose counted state differs from the shard at the same version.
    pub drifted_contents: u64,
    /// Sums that differ from the states they are sums of.
    pub drifted_counts: u64,
    /// The drift per tenant and tag, at most 1,000 rows: (tenant, tag, counted, true).
    pub rows: Vec<(String, String, i64, i64)>,
    /// Whether the drift was repaired.
    pub repaired: bool,
}

/// Why no answer could be given.
#[derive(Debug, thiserror::Error)]
pub enum PopularError {
    /// Not one of the windows.
    #[error("unknown window {0:?}: use 1h, 24h, 7d or all")]
    UnknownWindow(String),
    /// The counts cannot be read now.
    #[error("popular tags are unavailable: {0}")]
    Unavailable(String),
}

/// Popular tags of a tenant.
#[async_trait]
pub trait PopularTags: Send + Sync {
    /// The most used tags of a window, at most 1,000.
    async fn popular(
        &self,
        tenant: &TenantId,
        window: Window,
        limit: usize,
    ) -> Result<Board, PopularError>;

    /// Tags whose canonical or display name begins with `prefix` (canonicalised), most used first.
    async fn suggest(
        &self,
        tenant: &TenantId,
        prefix: &str,
        limit: usize,
    ) -> Result<Suggestions, PopularError>;

    /// One tag's count over all time and its display; `None` if no content carries it.
    async fn count(
        &self,
        tenant: &TenantId,
        tag: &TagName,
    ) -> Result<Option<TagCount>, PopularError>;

    /// The displays of tags, canonical names where a tag is unknown; same order.
    async fn displays(
        &self,
        tenant: &TenantId,
        tags: &[TagName],
    ) -> Result<Vec<Arc<str>>, PopularError>;

    /// Compares counts with the shards while writes go on; with `repair`, mends what drifted.
    async fn recount(
        &self,
        repair: bool,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<RecountReport, PopularError>;
}
