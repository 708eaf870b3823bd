//! The index as callers see it: searching, counting, and how old the answers are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::Value;
use tagfast_domain::{ContentType, TagName, TenantId, UnixMillis};
use tagfast_resilience::Clock;
use tagfast_resilience::task::{StopSignal, TaskTracker};
use tagfast_search::metrics::count_query;
use tagfast_search::query::parse;
use tagfast_search::{
    IndexProblem, Query, RelatedTags, SearchError, SearchIndex, SearchPage, SearchRequest,
    SearchResult,
};
use tagfast_store::ShardScanner;

use crate::client::{Client, OpenSearchOptions};
use crate::error::{OpenSearchError, RequestError, unavailable};
use crate::index_state::KnownIndex;
use crate::index_watch::{CheckTimeout, IndexWatch};
use crate::query;
use crate::rebuild_lock::LockSeen;
use crate::shared_progress::{ProgressTable, SharedProgress};
use crate::write_progress::WriteProgress;

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
    /// The state of the index.
    pub(crate) watch: IndexWatch,
    /// Whether this process feeds the index: then it also rebuilds it without help.
    pub(crate) indexes: AtomicBool,
    /// Held by the rebuild of this process.
    pub(crate) one_rebuild: tokio::sync::Mutex<()>,
    /// Whether a rebuild runs in this process.
    pub(crate) rebuilding: AtomicBool,
    /// Contents that the running or last rebuild has copied.
    pub(crate) copied: AtomicU64,
    /// Why the last rebuild without help failed; `None` if it did not.
    pub(crate) rebuild_failure: Mutex<Option<String>>,
    /// The rebuild lock as a different process holds it.
    pub(crate) lock_seen: LockSeen,
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
    /// The HTTP client cannot be built.
    pub fn new(
        options: OpenSearchOptions,
        scanner: Arc<dyn ShardScanner>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, OpenSearchError> {
        let client = Arc::new(Client::new(options).map_err(RequestError::from)?);
        Ok(Arc::new(Self {
            watch: IndexWatch::new(Arc::clone(&client)),
            client,
            scanner,
            clock,
            owner: format!("{:032x}", fastrand::u128(..)),
            visible: Arc::default(),
            progress_table: Arc::default(),
            progress: Arc::default(),
            indexes: AtomicBool::new(false),
            one_rebuild: tokio::sync::Mutex::default(),
            rebuilding: AtomicBool::new(false),
            copied: AtomicU64::new(0),
            rebuild_failure: Mutex::default(),
            lock_seen: LockSeen::default(),
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

    /// Looks at the index now; returns what is wrong with it, `None` if nothing is.
    pub async fn check(&self) -> Option<IndexProblem> {
        self.watch.now(CheckTimeout::Short).await.problem(&self.client.options.alias)
    }

    /// Sends a search, or without a body a count; its response is that of the right index, whole.
    async fn ask(&self, body: Option<&Value>) -> Result<Value, SearchError> {
        let known = self.watch.searchable(false).await?;
        if let Reply::Proven(response) = self.ask_once(known, body).await? {
            return Ok(response);
        }
        // The index may have been replaced while it was asked.
        let known = self.watch.searchable(true).await?;
        match self.ask_once(known, body).await? {
            Reply::Proven(response) => Ok(response),
            Reply::Unproven(error) => Err(error),
        }
    }

    /// Hits name their index, and every response the number of shards that it comes from. One that
    /// finds nothing is that of an index that an operator emptied, unless a check that began after
    /// it says otherwise.
    async fn ask_once(
        &self,
        known: Option<KnownIndex>,
        body: Option<&Value>,
    ) -> Result<Reply, SearchError> {
        let response = match body {
            Some(body) => self.client.search(body).await,
            None => self.client.count().await,
        };
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                let status = error.status().map(|status| status.as_u16());
                let error = unavailable(error);
                // Said of an index that is closed, blocked, gone or red as well.
                let of_index = matches!(status, Some(400 | 403 | 404 | 503));
                return if of_index { Ok(Reply::Unproven(error)) } else { Err(error) };
            }
        };
        let finds_nothing = response["hits"]["total"]["value"] == 0 || response["count"] == 0;
        if !finds_nothing && known.is_some_and(|index| comes_from(&response, &index)) {
            return Ok(Reply::Proven(response));
        }
        let now = self.watch.searchable(true).await?;
        Ok(if now.is_some_and(|index| comes_from(&response, &index)) {
            Reply::Proven(response)
        } else {
            Reply::Unproven(SearchError::unavailable("the search index was replaced"))
        })
    }

    async fn check_prefixes(&self, tenant: &TenantId, query: &Query) -> Result<(), SearchError> {
        for prefix in query::prefixes(query) {
            let response = self.ask(Some(&query::tags_with_prefix(tenant, prefix))).await?;
            query::check_prefix(prefix, &response)?;
        }
        Ok(())
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
            self.check_prefixes(tenant, parsed).await?;
        }
        let body = query::body(tenant, request, parsed.as_ref());
        let response = self.ask(Some(&body)).await?;
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
        let response = self.ask(Some(&body)).await?;
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
        let response = self.ask(Some(&body)).await?;
        query::read_counts(&response, terms.len()).map_err(unavailable)
    }

    fn problem(&self) -> Option<IndexProblem> {
        let mut problem = self.watch.problem()?;
        if let Some(copied) = self.rebuilding() {
            problem.remedy = format!("it is being rebuilt, {copied} contents are copied");
        } else if let Some(failure) = &*self.rebuild_failure.lock() {
            problem.remedy = format!("{}; the last attempt failed: {failure}", problem.remedy);
        }
        Some(problem)
    }

    fn as_of(&self) -> UnixMillis {
        self.visible.load(Ordering::Acquire)
    }

    async fn documents(&self) -> Result<u64, SearchError> {
        let response = self.ask(None).await?;
        let lacks = || SearchError::unavailable("a count without a number");
        response["count"].as_u64().ok_or_else(lacks)
    }
}

/// A response of the server.
enum Reply {
    /// It is that of the served index.
    Proven(Value),
    /// It is an error that may be the index's fault, or the response of a different index.
    Unproven(SearchError),
}

/// Whether every part of a response is of this index.
fn comes_from(response: &Value, index: &KnownIndex) -> bool {
    let mut hits = response["hits"]["hits"].as_array().into_iter().flatten();
    response["_shards"]["total"] == index.shards
        && hits.all(|hit| hit["_index"] == index.name.as_str())
}
