//! The index as callers see it: searching, counting, and how old the answers are.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_domain::{ContentType, TagName, TenantId, UnixMillis};
use tagfast_resilience::Clock;
use tagfast_resilience::task::{StopSignal, TaskTracker};
use tagfast_search::metrics::count_query;
use tagfast_search::query::parse;
use tagfast_search::{
    Query, RelatedTags, SearchError, SearchIndex, SearchPage, SearchRequest, SearchResult,
};
use tagfast_store::ShardScanner;

use crate::client::{Client, OpenSearchOptions};
use crate::error::{OpenSearchError, RequestError, unavailable};
use crate::shared_progress::{ProgressTable, SharedProgress};
use crate::write_progress::WriteProgress;
use crate::{index, query};

/// The OpenSearch engine.
pub struct OpenSearchIndex {
    pub(crate) client: Arc<Client>,
    pub(crate) scanner: Arc<dyn ShardScanner>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Unique name of this process among those that rebuild and share progress.
    pub(crate) owner: String,
    /// Every write committed before this time (Unix ms) is visible.
    pub(crate) visible: Arc<AtomicI64>,
    pub(crate) progress_table: Arc<Mutex<ProgressTable>>,
    pub(crate) progress: Arc<Mutex<WriteProgress>>,
    /// Running refreshes and sweeps.
    pub(crate) tasks: TaskTracker,
    /// Cancelled and replaced when the index is closed.
    pub(crate) stop: Mutex<StopSignal>,
}

impl OpenSearchIndex {
    /// Prepares a client. Sends no request, so it succeeds while the server is away.
    ///
    /// # Errors
    ///
    /// [`OpenSearchError::Unavailable`] if the HTTP client cannot be built.
    pub fn new(
        options: OpenSearchOptions,
        scanner: Arc<dyn ShardScanner>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, OpenSearchError> {
        let client = Arc::new(Client::new(options).map_err(RequestError::from)?);
        Ok(Arc::new(Self {
            client,
            scanner,
            clock,
            owner: format!("{:032x}", fastrand::u128(..)),
            visible: Arc::default(),
            progress_table: Arc::default(),
            progress: Arc::default(),
            tasks: TaskTracker::new(),
            stop: Mutex::default(),
        }))
    }

    /// Shares the progress of this process with the others that index some of the bus's
    /// `partitions`, until the result is stopped or dropped.
    pub fn share_progress(&self, partitions: u16) -> SharedProgress {
        let (clock, visible) = (Arc::clone(&self.clock), Arc::clone(&self.visible));
        let (client, table) = (Arc::clone(&self.client), Arc::clone(&self.progress_table));
        let seen = move |at| {
            visible.fetch_max(at, Ordering::AcqRel);
        };
        let now = move || clock.now_ms();
        SharedProgress::spawn(client, table, self.owner.clone(), partitions, now, seen)
    }

    /// Checks that the alias, if it exists, leads to an index that this version can use.
    ///
    /// # Errors
    ///
    /// [`OpenSearchError::Foreign`] if it does not, [`OpenSearchError::Unavailable`] if the server
    /// does not answer.
    pub async fn check(&self) -> Result<(), OpenSearchError> {
        index::check(&self.client).await.map(drop)
    }

    async fn answer(
        &self,
        tenant: &TenantId,
        request: &SearchRequest,
    ) -> Result<SearchPage, SearchError> {
        let parsed = request.query.as_deref().map(parse).transpose()?.flatten();
        let parsed = parsed.map(Query::with_former_names);
        // `as_of` is read before the search, so the index can only be newer than it claims.
        let as_of = self.as_of();
        if let Some(parsed) = &parsed {
            query::check_prefixes(&self.client, tenant, parsed).await?;
        }
        let body = query::body(tenant, request, parsed.as_ref());
        let response = self.client.search(&body).await.map_err(unavailable)?;
        let mut page = query::page(&response, request).map_err(unavailable)?;
        page.as_of = as_of;
        Ok(page)
    }
}

#[async_trait]
impl SearchIndex for OpenSearchIndex {
    async fn search(&self, tenant: &TenantId, request: &SearchRequest) -> SearchResult<SearchPage> {
        count_query(self.answer(tenant, request).await)
    }

    async fn related(&self, tenant: &TenantId, tag: &TagName, limit: usize) -> RelatedTags {
        let body = query::related(tenant, tag, limit);
        let response = self.client.search(&body).await.map_err(unavailable)?;
        Ok(query::facets(&response).map_err(unavailable)?.0)
    }

    async fn counts(
        &self,
        tenant: &TenantId,
        content_type: Option<&ContentType>,
        terms: &[Query],
    ) -> SearchResult<Vec<u64>> {
        if terms.is_empty() {
            return Ok(Vec::new());
        }
        let body = query::counts(tenant, content_type, terms);
        let response = self.client.search(&body).await.map_err(unavailable)?;
        query::read_counts(&response, terms.len()).map_err(unavailable)
    }

    fn as_of(&self) -> UnixMillis {
        self.visible.load(Ordering::Acquire)
    }

    async fn documents(&self) -> Result<u64, SearchError> {
        self.client.count().await.map_err(unavailable)
    }
}
