//! The popular port: what the API may ask about popular tags.

use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::{TagName, TenantId, UnixMillis};
use tagfast_resilience::{BoxError, SharedError};

use crate::completion::MatchPlace;

/// A window of time. The order is that of stored counts: column `n0` of a count is `All`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Window {
    /// Every tagging that exists.
    All,
    /// The last 60 minute buckets.
    Hour,
    /// The last 24 hour buckets.
    Day,
    /// The last 168 hour buckets.
    Week,
}

impl Window {
    /// All windows, in stored order.
    pub const ALL: [Self; 4] = [Self::All, Self::Hour, Self::Day, Self::Week];

    /// Name of the window in requests, responses and Redis keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Hour => "1h",
            Self::Day => "24h",
            Self::Week => "7d",
        }
    }

    /// Position of the window in [`Window::ALL`] and in stored counts.
    pub fn index(self) -> usize {
        match self {
            Self::All => 0,
            Self::Hour => 1,
            Self::Day => 2,
            Self::Week => 3,
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

/// A tag and its number of uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagCount {
    /// Canonical name of the tag.
    pub tag: TagName,
    /// Spelling of the tag in this tenant: the one with the smallest (added_at, bytes) among live
    /// taggings.
    pub display: Arc<str>,
    /// Number of contents that carry the tag, within the window.
    pub count: u64,
}

/// The most used tags of a window, most used first; ties are ordered by canonical name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaderboard {
    /// The tags.
    pub tags: Vec<TagCount>,
    /// Every write committed before this time (Unix ms) is counted.
    pub as_of: UnixMillis,
    /// Whether the source of the counts does not answer, so that these are the last good ones.
    pub stale: bool,
}

/// A page of all tags of a tenant that contents carry, in the order of canonical names (bytes of
/// UTF-8). Every tag that contents carry during the whole walk is on exactly one page, whatever is
/// written meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPage {
    /// The tags with their counts over all time.
    pub tags: Vec<TagCount>,
    /// The last name that the page has looked at: the next page begins after it. `None` on the last
    /// page.
    pub next: Option<TagName>,
    /// Every write committed before this time (Unix ms) is counted.
    pub as_of: UnixMillis,
}

/// A tag that a typed text may become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestion {
    /// The tag with its count over all time.
    pub tag: TagCount,
    /// Where in the tag the text is.
    pub place: MatchPlace,
}

/// Tags that complete a typed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestions {
    /// Matching tags: by the place of the match, then most used first.
    pub tags: Vec<Suggestion>,
    /// Whether rarely used tags may be missing.
    pub approximate: bool,
    /// Every write committed before this time (Unix ms) is counted.
    pub as_of: UnixMillis,
    /// As in [`Leaderboard::stale`].
    pub stale: bool,
}

/// How often a tag is used, over all time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagUse {
    /// Its count and display; `None`: no content carries it.
    pub tag: Option<TagCount>,
    /// Every write committed before this time (Unix ms) is counted.
    pub as_of: UnixMillis,
    /// As in [`Leaderboard::stale`].
    pub stale: bool,
}

/// How far a recount is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecountProgress {
    /// Contents compared so far.
    pub done: u64,
    /// About how many there are.
    pub total: u64,
}

/// Result of a recount.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct RecountReport {
    /// Contents compared.
    pub contents: u64,
    /// Contents whose counted state differs from the shard at the same version.
    pub drifted_contents: u64,
    /// Sums that differ from the states that they sum up.
    pub drifted_counts: u64,
    /// Drift per tenant and tag, at most 1,000 rows: (tenant, tag, counted, true).
    pub rows: Vec<(String, String, i64, i64)>,
    /// Whether the recount repaired the drift.
    pub repaired: bool,
}

/// Why popular tags have no answer.
#[derive(Debug, thiserror::Error)]
pub enum PopularError {
    /// The text is not the name of a window.
    #[error("unknown window {0:?}: use 1h, 24h, 7d or all")]
    UnknownWindow(String),
    /// The counts cannot be read now.
    #[error("popular tags are unavailable")]
    Unavailable(#[source] BoxError),
}

impl PopularError {
    /// The counts cannot be read now because of `source`, an error or a sentence.
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self::Unavailable(source.into())
    }
}

impl From<SharedError> for PopularError {
    fn from(error: SharedError) -> Self {
        Self::unavailable(error)
    }
}

/// Popular tags of a tenant.
#[async_trait]
pub trait PopularTags: Send + Sync {
    /// Returns the most used tags of a window, at most 1,000.
    ///
    /// # Errors
    ///
    /// [`PopularError::Unavailable`] if no counts can be read. An implementation must never return
    /// an empty leaderboard instead.
    async fn popular(
        &self,
        tenant: &TenantId,
        window: Window,
        limit: usize,
    ) -> Result<Leaderboard, PopularError>;

    /// Returns tags whose canonical name or display begins with `typed` or has it inside, by the
    /// place of the match, then most used first. The implementation canonicalises the text; without
    /// any text every tag fits.
    ///
    /// # Errors
    ///
    /// [`PopularError::Unavailable`] if no counts can be read.
    async fn suggest(
        &self,
        tenant: &TenantId,
        typed: &str,
        limit: usize,
    ) -> Result<Suggestions, PopularError>;

    /// Lists the tags that contents carry, in the order of canonical names, after `after` (`None`:
    /// from the first one), at most `limit`. Costs work in proportion to `limit`, however many tags
    /// there are.
    ///
    /// # Errors
    ///
    /// [`PopularError::Unavailable`] if no counts can be read now. There is no stale page: a walk
    /// must not miss tags.
    async fn list(
        &self,
        tenant: &TenantId,
        after: Option<&TagName>,
        limit: usize,
    ) -> Result<TagPage, PopularError>;

    /// Returns the count of a tag over all time and its display.
    ///
    /// # Errors
    ///
    /// [`PopularError::Unavailable`] if no counts can be read.
    async fn count(&self, tenant: &TenantId, tag: &TagName) -> Result<TagUse, PopularError>;

    /// Returns the displays of tags in the same order; the canonical name for an unknown tag.
    ///
    /// # Errors
    ///
    /// [`PopularError::Unavailable`] if no counts can be read.
    async fn displays(
        &self,
        tenant: &TenantId,
        tags: &[TagName],
    ) -> Result<Vec<Arc<str>>, PopularError>;

    /// Compares the counts with the shards while writes go on; with `repair`, corrects what
    /// drifted. Reports to `progress` how far it is. A recount that is dropped ends; what it has
    /// repaired by then is right.
    ///
    /// # Errors
    ///
    /// [`PopularError::Unavailable`] if the counts or the shards cannot be read, or if the counts
    /// do not catch up with the shards.
    async fn recount(
        &self,
        repair: bool,
        progress: &(dyn Fn(RecountProgress) + Send + Sync),
    ) -> Result<RecountReport, PopularError>;
}
