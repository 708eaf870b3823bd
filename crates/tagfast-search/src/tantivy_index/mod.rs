//! The index on tantivy.
//!
//! Terms carry their tenant (`tenant 0 tag`), so that no query can reach another tenant's contents
//! and an AND of two tags reads two posting lists. One writer lives as long as the index; content
//! and position are one commit. tantivy has no versions, so apply-if-newer is done here, against
//! the uncommitted keys and then the index.
//!
//! How it fails: a directory that cannot be read, is of another format or of another epoch is
//! rebuilt from the shards by the consumer, while nothing is answered from it. What was not
//! committed at a crash is applied again.

mod live;
mod schema;
mod search;
mod sink;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{TagName, TenantId, UnixMillis};
use tagfast_resilience::{Clock, generation};
use tagfast_store::ShardScanner;

use crate::query::{self, Query};
use crate::{SearchError, SearchIndex, SearchPage, SearchRequest};
use live::Live;
use writer::WriterState;

/// How the index is kept.
#[derive(Debug, Clone)]
pub struct TantivyOptions {
    /// Memory of the writer before it flushes a segment, in bytes; at least 15 MB.
    pub writer_bytes: usize,
    /// A change is committed and visible this long after it was applied. Shorter: more small
    /// segments; longer: search lags behind.
    pub commit_after: Duration,
    /// From this many uncommitted changes on, `commit_after_busy` holds instead.
    pub busy_documents: usize,
    /// Under load: fewer, larger commits. Shorter: commits and merges eat the processor; longer:
    /// search lags behind.
    pub commit_after_busy: Duration,
    /// Or after this many changes.
    pub commit_documents: usize,
}

impl Default for TantivyOptions {
    fn default() -> Self {
        Self {
            writer_bytes: 24 << 20,
            commit_after: Duration::from_millis(200),
            busy_documents: 1_000,
            commit_after_busy: Duration::from_secs(1),
            commit_documents: 10_000,
        }
    }
}

/// A search that would touch more postings than this runs on the blocking pool: it would hold the
/// runtime's worker.
const INLINE_POSTINGS: u64 = 20_000;

/// The tantivy engine.
pub struct TantivyIndex {
    dir: PathBuf,
    options: TantivyOptions,
    scanner: Arc<dyn ShardScanner>,
    clock: Arc<dyn Clock>,
    /// What searches see; `None` until there is something complete.
    live: Arc<RwLock<Option<Arc<Live>>>>,
    /// The writer, used by one blocking task at a time.
    writer: Arc<Mutex<Option<WriterState>>>,
    visible: AtomicI64,
}

impl TantivyIndex {
    /// Opens what is there. A missing or damaged index is not an error: the consumer rebuilds it.
    pub fn open(
        dir: PathBuf,
        options: TantivyOptions,
        scanner: Arc<dyn ShardScanner>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, SearchError> {
        std::fs::create_dir_all(&dir).map_err(|e| SearchError::Unavailable(e.to_string()))?;
        let opened = match generation::current(&dir) {
            None => None,
            Some(path) => match WriterState::open(&path, &options) {
                Ok(state) => {
                    if let Err(error) = generation::remove_others(&dir, &path) {
                        tracing::warn!(%error, "an old search index cannot be removed");
                    }
                    Some(state)
                }
                Err(error) => {
                    tracing::error!(%error, path = %path.display(), "the search index cannot be read; it is rebuilt");
                    None
                }
            },
        };
        let live = opened.as_ref().map(WriterState::live);
        Ok(Arc::new(Self {
            dir,
            options,
            scanner,
            clock,
            live: Arc::new(RwLock::new(live)),
            writer: Arc::new(Mutex::new(opened)),
            visible: AtomicI64::new(0),
        }))
    }

    fn live(&self) -> Result<Arc<Live>, SearchError> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.clone()
            .ok_or_else(|| SearchError::Unavailable("the search index is being built".to_owned()))
    }
}

fn unavailable(error: impl std::fmt::Display) -> SearchError {
    SearchError::Unavailable(error.to_string())
}

/// Runs on the blocking pool.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SearchError> + Send + 'static,
) -> Result<T, SearchError> {
    tokio::task::spawn_blocking(work).await.map_err(unavailable)?
}

/// Runs a planned search here when it is short, else on the blocking pool.
async fn run(live: Arc<Live>, plan: search::Plan) -> Result<SearchPage, SearchError> {
    if plan.postings() <= INLINE_POSTINGS {
        return search::execute(&live, &plan).map_err(unavailable);
    }
    blocking(move || search::execute(&live, &plan).map_err(unavailable)).await
}

impl TantivyIndex {
    async fn answer(
        &self,
        tenant: &TenantId,
        request: &SearchRequest,
    ) -> Result<SearchPage, SearchError> {
        let query = request.query.as_deref().map(query::parse).transpose()?.flatten();
        // The moment first, the index after: it can only be newer than the moment says.
        let as_of = self.as_of();
        let live = self.live()?;
        let mut page = if query.as_ref().is_some_and(Query::has_prefix) {
            // Looking up the tags of a prefix takes longer than many searches.
            let (tenant, request) = (tenant.clone(), request.clone());
            blocking(move || {
                let plan = search::Plan::new(&live, &tenant, &request, query.as_ref())?;
                search::execute(&live, &plan).map_err(unavailable)
            })
            .await?
        } else {
            let plan = search::Plan::new(&live, tenant, request, query.as_ref())?;
            run(live, plan).await?
        };
        page.as_of = as_of;
        Ok(page)
    }
}

#[async_trait]
impl SearchIndex for TantivyIndex {
    async fn search(
        &self,
        tenant: &TenantId,
        request: &SearchRequest,
    ) -> Result<SearchPage, SearchError> {
        let result = self.answer(tenant, request).await;
        crate::count_query(&result);
        result
    }

    async fn related(
        &self,
        tenant: &TenantId,
        tag: &TagName,
        limit: usize,
    ) -> Result<Vec<(TagName, u64)>, SearchError> {
        let live = self.live()?;
        let plan = search::Plan::of_tag(&live, tenant, tag)?;
        let facets = run(live, plan).await?.facets.unwrap_or_default();
        Ok(facets.into_iter().filter(|(name, _)| name != tag).take(limit).collect())
    }

    fn as_of(&self) -> UnixMillis {
        self.visible.load(Ordering::Acquire)
    }

    async fn documents(&self) -> Result<u64, SearchError> {
        let live = self.live()?;
        blocking(move || search::count_live(&live).map_err(unavailable)).await
    }
}
