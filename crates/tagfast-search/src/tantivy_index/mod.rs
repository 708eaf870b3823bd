//! The index on tantivy.
//!
//! Terms carry their tenant (`tenant 0 tag`), so that no query can reach another tenant's contents and an AND of two
//! tags reads two posting lists. One writer lives as long as the index; content and position are one commit. tantivy
//! has no versions, so apply-if-newer is done here, against the uncommitted keys and then the index.
//!
//! How it fails: a directory that cannot be read, is of another format or of another epoch is rebuilt from the shards by
//! the consumer, while nothing is answered from it. What was not committed at a crash is applied again.

mod live;
mod schema;
mod search;
mod sink;

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{TagName, TenantId, UnixMillis};
use tagfast_resilience::{Clock, generation};
use tagfast_store::ShardScanner;

use crate::{SearchError, SearchIndex, SearchPage, SearchRequest};
use live::Live;
use sink::WriterState;

/// How the index is kept.
#[derive(Debug, Clone)]
pub struct TantivyOptions {
    /// Memory of the writer before it flushes a segment, in bytes; at least 15 MB.
    pub writer_bytes: usize,
    /// A change is committed and visible this long after it was applied. Shorter: more small segments; longer: search
    /// lags behind.
    pub commit_after: Duration,
    /// Or after this many changes.
    pub commit_documents: usize,
}

impl Default for TantivyOptions {
    fn default() -> Self {
        Self { writer_bytes: 24 << 20, commit_after: Duration::from_millis(200), commit_documents: 10_000 }
    }
}

/// A search that would touch more postings than this runs on the blocking pool: it would hold the runtime's worker.
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
                Ok(state) => Some(state),
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
        live.clone().ok_or_else(|| SearchError::Unavailable("the search index is being built".to_owned()))
    }
}

fn unavailable(error: impl std::fmt::Display) -> SearchError {
    SearchError::Unavailable(error.to_string())
}

/// Runs a search here when it is short, else on the blocking pool.
async fn run<T: Send + 'static>(
    postings: u64,
    work: impl FnOnce() -> tantivy::Result<T> + Send + 'static,
) -> Result<T, SearchError> {
    if postings <= INLINE_POSTINGS {
        return work().map_err(unavailable);
    }
    tokio::task::spawn_blocking(work).await.map_err(unavailable)?.map_err(unavailable)
}

#[async_trait]
impl SearchIndex for TantivyIndex {
    async fn search(&self, tenant: &TenantId, request: &SearchRequest) -> Result<SearchPage, SearchError> {
        let live = self.live()?;
        // Before the search: what is visible by then is in the answer.
        let as_of = self.as_of();
        let plan = search::Plan::new(&live, tenant, request)?;
        let postings = plan.postings();
        let mut page = run(postings, move || search::execute(&live, &plan)).await?;
        page.as_of = as_of;
        Ok(page)
    }

    async fn related(
        &self,
        tenant: &TenantId,
        tag: &TagName,
        limit: usize,
    ) -> Result<Vec<(TagName, u64)>, SearchError> {
        let live = self.live()?;
        let plan = search::Plan::of_tag(&live, tenant, tag)?;
        let postings = plan.postings();
        let tag = tag.clone();
        let page = run(postings, move || search::execute(&live, &plan)).await?;
        let facets = page.facets.unwrap_or_default();
        Ok(facets.into_iter().filter(|(name, _)| *name != tag).take(limit).collect())
    }

    fn as_of(&self) -> UnixMillis {
        self.visible.load(Ordering::Acquire)
    }

    async fn documents(&self) -> Result<u64, SearchError> {
        let live = self.live()?;
        run(u64::MAX, move || search::count_live(&live)).await
    }
}
