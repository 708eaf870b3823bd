//! The search port: what the API may ask of an index, whichever engine is behind it.

use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{Content, ContentType, TagName, TenantId, UnixMillis, Version};
use tagfast_resilience::Criticality;

/// The order of hits; ties are broken by (type, id) ascending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sort {
    /// Newest first.
    #[default]
    Updated,
    /// By (type, id) ascending.
    Id,
}

/// The place of a hit in the order: where a page ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortKey {
    /// The hit's time; not compared under [`Sort::Id`].
    pub updated_at: UnixMillis,
    /// The tie-breaker.
    pub content: Content,
}

/// What to search. The tenant is not part of it: the port adds the tenant's filter itself.
#[derive(Debug, Clone)]
pub struct SearchRequest {
    /// The query text, in the language of `docs/query-language.md`; `None` = everything.
    pub query: Option<String>,
    /// Only this type.
    pub content_type: Option<ContentType>,
    /// The order.
    pub sort: Sort,
    /// Hits after this place.
    pub after: Option<SortKey>,
    /// Most hits, 1 to 200.
    pub limit: usize,
    /// Count the tags of all hits.
    pub facets: bool,
    /// Count beyond 10,000.
    pub total_exact: bool,
    /// What is given up first when the index cannot answer everything: hits are degradable, facets
    /// and exact totals sheddable.
    pub criticality: Criticality,
}

/// A hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Which content.
    pub content: Content,
    /// Its tags' canonical names, sorted.
    pub tags: Vec<TagName>,
    /// Commit time of the indexed state.
    pub updated_at: UnixMillis,
    /// The indexed version.
    pub version: Version,
}

/// How many contents match.
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
    /// The hits.
    pub hits: Vec<Hit>,
    /// How many match.
    pub total: Total,
    /// Tags of all matching contents with their counts, most used first, at most 50; `None` if not
    /// asked for.
    pub facets: Option<Vec<(TagName, u64)>>,
    /// The facets' counts may be too low.
    pub facets_approximate: bool,
    /// Where the next page starts; `None` on the last one.
    pub next: Option<SortKey>,
    /// Everything committed before this moment is in the answer.
    pub as_of: UnixMillis,
}

/// Why a search was not answered.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The query breaks the grammar.
    #[error("{message}")]
    Syntax {
        /// Where, in Unicode scalar values from 0.
        position: usize,
        /// Where, in bytes from 0.
        byte: usize,
        /// What was expected there.
        expected: String,
        /// The whole sentence.
        message: String,
    },
    /// A limit of the query language.
    #[error("the query has {given} {limit}; at most {allowed} are allowed")]
    Limit {
        /// The limit's name.
        limit: &'static str,
        /// Its value.
        allowed: usize,
        /// What was given.
        given: usize,
    },
    /// A prefix matches too many tags.
    #[error("the prefix {prefix:?} matches more than {allowed} tags")]
    PrefixTooBroad {
        /// The prefix.
        prefix: String,
        /// The limit.
        allowed: usize,
    },
    /// The index cannot answer now.
    #[error("the search index is unavailable: {0}")]
    Unavailable(String),
    /// The index was not asked, or would not take the question. It says nothing of whether it
    /// works.
    #[error("the search index was not asked: {reason}")]
    Refused {
        /// A stable word: `overloaded`, `breaker_open`, `rejected`.
        reason: &'static str,
        /// When to ask again.
        retry_after: Duration,
    },
}

/// An index.
#[async_trait]
pub trait SearchIndex: Send + Sync {
    /// Searches one tenant's contents.
    async fn search(
        &self,
        tenant: &TenantId,
        request: &SearchRequest,
    ) -> Result<SearchPage, SearchError>;

    /// Tags that occur together with `tag`, most often first, without `tag` itself. Sheddable.
    async fn related(
        &self,
        tenant: &TenantId,
        tag: &TagName,
        limit: usize,
    ) -> Result<Vec<(TagName, u64)>, SearchError>;

    /// Everything committed before this moment can be found.
    fn as_of(&self) -> UnixMillis;

    /// Contents in the index, tombstones not counted.
    async fn documents(&self) -> Result<u64, SearchError>;
}
