//! The index as callers see it: opening, searching, counting.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use tagfast_domain::{ContentType, TagName, TenantId, UnixMillis};
use tagfast_resilience::task::{self, StopSignal};
use tagfast_resilience::{Clock, ErrorChain, generation};
use tagfast_search::metrics::count_query;
use tagfast_search::query::{self, Query};
use tagfast_search::{
    RelatedTags, SearchError, SearchIndex, SearchPage, SearchRequest, SearchResult,
};
use tagfast_store::ShardScanner;

use crate::error::unavailable;
use crate::index_writer::IndexWriterState;
use crate::options::TantivyOptions;
use crate::query_plan::{self, QueryPlan};
use crate::search_snapshot::SearchSnapshot;

/// A search over more postings runs on the blocking pool, so that it does not hold a worker of the
/// runtime.
const INLINE_POSTINGS_MAX: u64 = 20_000;

/// The tantivy engine.
pub struct TantivyIndex {
    pub(crate) dir: PathBuf,
    pub(crate) options: TantivyOptions,
    pub(crate) scanner: Arc<dyn ShardScanner>,
    pub(crate) clock: Arc<dyn Clock>,
    /// What searches read; `None` until a complete generation exists.
    pub(crate) snapshot: Arc<RwLock<Option<Arc<SearchSnapshot>>>>,
    /// The writer, which one blocking task uses at a time; `None` as `snapshot`.
    pub(crate) writer: Arc<Mutex<Option<IndexWriterState>>>,
    /// Every write committed before this time (Unix ms) is visible.
    pub(crate) visible: AtomicI64,
}

impl TantivyIndex {
    /// Opens the index in `dir`. A missing or damaged index is not an error: the consumer rebuilds
    /// it.
    ///
    /// # Errors
    ///
    /// [`SearchError::Unavailable`] if the directory cannot be created.
    pub fn open(
        dir: PathBuf,
        options: TantivyOptions,
        scanner: Arc<dyn ShardScanner>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, SearchError> {
        std::fs::create_dir_all(&dir).map_err(unavailable)?;
        let opened = match generation::current(&dir) {
            None => None,
            Some(path) => match IndexWriterState::open(&path, &options) {
                Ok(state) => {
                    if let Err(error) = generation::remove_others(&dir, &path) {
                        let error = ErrorChain(&error);
                        tracing::warn!(%error, "an old search index cannot be removed");
                    }
                    Some(state)
                }
                Err(error) => {
                    let (path, error) = (path.display(), ErrorChain(&error));
                    tracing::error!(
                        %error, %path, "the search index cannot be read; it is rebuilt"
                    );
                    None
                }
            },
        };
        let snapshot = opened.as_ref().map(IndexWriterState::snapshot);
        Ok(Arc::new(Self {
            dir,
            options,
            scanner,
            clock,
            snapshot: Arc::new(RwLock::new(snapshot)),
            writer: Arc::new(Mutex::new(opened)),
            visible: AtomicI64::new(0),
        }))
    }

    fn snapshot(&self) -> Result<Arc<SearchSnapshot>, SearchError> {
        let snapshot = self.snapshot.read().clone();
        snapshot.ok_or_else(|| SearchError::unavailable("the search index is being built"))
    }
}

/// Runs `work` on the blocking pool; it is told to stop when its caller leaves.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&StopSignal) -> Result<T, SearchError> + Send + 'static,
) -> Result<T, SearchError> {
    task::blocking_while_wanted(work).await.map_err(unavailable)?
}

/// Runs a short plan on the current worker, a long one on the blocking pool.
async fn run(snapshot: Arc<SearchSnapshot>, plan: QueryPlan) -> Result<SearchPage, SearchError> {
    if plan.postings() <= INLINE_POSTINGS_MAX {
        return query_plan::execute(&snapshot, &plan, &StopSignal::new()).map_err(unavailable);
    }
    blocking(move |stop| query_plan::execute(&snapshot, &plan, stop).map_err(unavailable)).await
}

impl TantivyIndex {
    async fn answer(
        &self,
        tenant: &TenantId,
        request: &SearchRequest,
    ) -> Result<SearchPage, SearchError> {
        let query = request.query.as_deref().map(query::parse).transpose()?.flatten();
        let query = query.map(Query::with_former_names);
        // `as_of` is read before the snapshot, so the snapshot can only be newer than it claims.
        let as_of = self.as_of();
        let snapshot = self.snapshot()?;
        let mut page = if query.as_ref().is_some_and(Query::has_prefix) {
            // Expanding a prefix takes longer than most searches.
            let (tenant, request) = (tenant.clone(), request.clone());
            blocking(move |stop| {
                let plan = QueryPlan::new(&snapshot, &tenant, &request, query.as_ref(), stop)?;
                query_plan::execute(&snapshot, &plan, stop).map_err(unavailable)
            })
            .await?
        } else {
            let plan =
                QueryPlan::new(&snapshot, tenant, request, query.as_ref(), &StopSignal::new())?;
            run(snapshot, plan).await?
        };
        page.as_of = as_of;
        Ok(page)
    }
}

#[async_trait]
impl SearchIndex for TantivyIndex {
    async fn search(&self, tenant: &TenantId, request: &SearchRequest) -> SearchResult<SearchPage> {
        count_query(self.answer(tenant, request).await)
    }

    async fn related(&self, tenant: &TenantId, tag: &TagName, limit: usize) -> RelatedTags {
        let snapshot = self.snapshot()?;
        let plan = QueryPlan::of_tag(&snapshot, tenant, tag)?;
        let facets = run(snapshot, plan).await?.facets.unwrap_or_default();
        Ok(facets.into_iter().filter(|(name, _)| name != tag).take(limit).collect())
    }

    async fn counts(
        &self,
        tenant: &TenantId,
        content_type: Option<&ContentType>,
        terms: &[Query],
    ) -> SearchResult<Vec<u64>> {
        let (snapshot, tenant) = (self.snapshot()?, tenant.clone());
        let (content_type, terms) = (content_type.cloned(), terms.to_vec());
        blocking(move |stop| {
            query_plan::counts(&snapshot, &tenant, content_type.as_ref(), &terms, stop)
        })
        .await
    }

    fn as_of(&self) -> UnixMillis {
        self.visible.load(Ordering::Acquire)
    }

    async fn documents(&self) -> Result<u64, SearchError> {
        let snapshot = self.snapshot()?;
        blocking(move |_| query_plan::count_live(&snapshot).map_err(unavailable)).await
    }
}
