//! The search port: what the API may ask of an index, independent of the engine behind it.

use async_trait::async_trait;
use tagfast_domain::{Content, ContentType, TagName, TenantId, UnixMillis, Version};
use tagfast_resilience::Criticality;

use crate::error::SearchError;
use crate::problem::IndexProblem;
use crate::query::Query;

/// Totals are exact up to this many contents unless [`SearchRequest::total_exact`] is set.
pub const EXACT_TOTAL_MAX: u64 = 10_000;
/// Maximum number of tags in the facets of a page.
pub const FACETS_MAX: usize = 50;
/// Maximum number of tags that one prefix may match.
pub const PREFIX_TAGS_MAX: usize = 1024;
/// Maximum number of terms that one call of [`SearchIndex::counts`] counts.
pub const COUNTED_TERMS_MAX: usize = 500;
/// Maximum number of hits on a page.
pub const PAGE_HITS_MAX: usize = 200;

/// Sort order of hits. Ties are broken by (type, id), ascending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sort {
    /// Newest first.
    #[default]
    Updated,
    /// By (type, id), ascending.
    Id,
}

/// Position of a hit in the sort order: where a page ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortKey {
    /// Commit time of the hit, Unix ms; ignored under [`Sort::Id`].
    pub updated_at: UnixMillis,
    /// The tie-breaker.
    pub content: Content,
}

/// A search. The tenant is not part of it: the index adds the tenant filter itself.
#[derive(Debug, Clone)]
pub struct SearchRequest {
    /// Query text in the language of `docs/reference/query-language.md`; `None` matches every
    /// content.
    pub query: Option<String>,
    /// Restricts the hits to this type; `None` allows every type.
    pub content_type: Option<ContentType>,
    /// Sort order of the hits.
    pub sort: Sort,
    /// Returns hits after this position; `None` starts at the first hit.
    pub after: Option<SortKey>,
    /// Maximum number of hits, 1 to [`PAGE_HITS_MAX`].
    pub limit: usize,
    /// Whether to count the tags of all matching contents.
    pub facets: bool,
    /// Whether to count matches beyond [`EXACT_TOTAL_MAX`].
    pub total_exact: bool,
    /// Load-shedding class of the call: hits are degradable, facets and exact totals sheddable.
    pub criticality: Criticality,
}

/// A content that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The content.
    pub content: Content,
    /// Canonical names of its tags, sorted.
    pub tags: Vec<TagName>,
    /// Commit time of the indexed state, Unix ms.
    pub updated_at: UnixMillis,
    /// Version of the indexed state.
    pub version: Version,
}

/// Number of matching contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Total {
    /// Exactly this many.
    Exactly(u64),
    /// This many or more.
    AtLeast(u64),
}

/// A page of hits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchPage {
    /// The hits in sort order.
    pub hits: Vec<Hit>,
    /// Number of matching contents.
    pub total: Total,
    /// Tags of all matching contents with their counts, most used first, at most [`FACETS_MAX`];
    /// `None` if the request did not ask for facets.
    pub facets: Option<Vec<(TagName, u64)>>,
    /// Whether counts in the facets may be too low.
    pub facets_approximate: bool,
    /// Where the next page starts; `None` on the last page.
    pub next: Option<SortKey>,
    /// Every write committed before this time (Unix ms) is reflected in the page.
    pub as_of: UnixMillis,
}

/// What a call to the index returns.
pub type SearchResult<T> = Result<T, SearchError>;

/// Tags with the number of contents that have them.
pub type RelatedTags = SearchResult<Vec<(TagName, u64)>>;

/// A search index.
#[async_trait]
pub trait SearchIndex: Send + Sync {
    /// Searches the contents of one tenant.
    ///
    /// # Errors
    ///
    /// [`SearchError::Syntax`], [`SearchError::Limit`] and [`SearchError::PrefixTooBroad`] blame
    /// the query. [`SearchError::Unavailable`], [`SearchError::Unusable`] and
    /// [`SearchError::Refused`] blame the index or its load; the same query may succeed later. An
    /// index must never return an empty page instead.
    async fn search(&self, tenant: &TenantId, request: &SearchRequest) -> SearchResult<SearchPage>;

    /// Returns the tags that occur together with `tag`, most frequent first, without `tag` itself.
    /// Sheddable.
    ///
    /// # Errors
    ///
    /// [`SearchError::Unavailable`], [`SearchError::Unusable`] and [`SearchError::Refused`], as for
    /// [`SearchIndex::search`].
    async fn related(&self, tenant: &TenantId, tag: &TagName, limit: usize) -> RelatedTags;

    /// Counts the contents that match each of `terms`, in the same order; with `content_type` only
    /// contents of this type. At most [`COUNTED_TERMS_MAX`] terms; sheddable.
    ///
    /// # Errors
    ///
    /// [`SearchError::PrefixTooBroad`], [`SearchError::Unavailable`], [`SearchError::Unusable`] and
    /// [`SearchError::Refused`], as for [`SearchIndex::search`].
    async fn counts(
        &self,
        tenant: &TenantId,
        content_type: Option<&ContentType>,
        terms: &[Query],
    ) -> SearchResult<Vec<u64>>;

    /// What is wrong with the index, as far as this process knows; `None` if nothing is. Answers
    /// from memory.
    fn problem(&self) -> Option<IndexProblem> {
        None
    }

    /// Every write committed before this time (Unix ms) can be found.
    fn as_of(&self) -> UnixMillis;

    /// Returns the number of indexed contents with tags, without tombstones.
    ///
    /// # Errors
    ///
    /// [`SearchError::Unavailable`], [`SearchError::Unusable`] and [`SearchError::Refused`], as for
    /// [`SearchIndex::search`].
    async fn documents(&self) -> Result<u64, SearchError>;
}
