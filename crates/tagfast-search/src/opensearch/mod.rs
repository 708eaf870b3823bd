//! Search on OpenSearch, by the same rules as the embedded engine.
//!
//! One document per content, also for contents without tags: a tombstone keeps the version, so that
//! a late event cannot bring the content back (a deleted id would forget its version after a
//! minute). Writes carry their version, and the server refuses what is older. The index of a
//! generation (`tagfast-content-v1`, ...) is read and written under an alias; while a rebuild fills
//! the next one, every indexer writes both.
//!
//! How it fails. A server that is away, overloaded, red or short of shards makes a search fail with
//! "unavailable", never with an empty page, and makes the indexer wait without blaming a record. A
//! single record that the server refuses is poison, a batch that it refuses as a whole is halved
//! until the record is alone.

mod bulk;
mod client;
mod index;
mod lock;
mod query;
mod shared;
mod sink;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::{TagName, TenantId, UnixMillis};
use tagfast_resilience::Clock;
use tagfast_store::ShardScanner;

pub use self::client::OpenSearchOptions;
use self::client::{Client, Failure};
use self::shared::Shared;
pub use self::shared::SharedProgress;
use self::sink::Progress;
use crate::{SearchError, SearchIndex, SearchPage, SearchRequest, query as language};

/// Why the index cannot be used until somebody changes something.
#[derive(Debug, thiserror::Error)]
pub enum OpenSearchError {
    /// The server does not answer; it may later.
    #[error("OpenSearch does not answer: {0}; look at search.opensearch_url")]
    Unavailable(String),
    /// What is there is not ours, or of a newer program.
    #[error("{0}")]
    Foreign(String),
}

/// The engine.
pub struct OpenSearchIndex {
    client: Arc<Client>,
    scanner: Arc<dyn ShardScanner>,
    clock: Arc<dyn Clock>,
    /// Who this is among those that rebuild.
    owner: String,
    visible: Arc<AtomicI64>,
    shared: Arc<Mutex<Shared>>,
    progress: Arc<Mutex<Progress>>,
}

impl OpenSearchIndex {
    /// Prepares a client; nothing is asked yet, so this succeeds while the server is away.
    pub fn new(
        options: OpenSearchOptions,
        scanner: Arc<dyn ShardScanner>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, OpenSearchError> {
        let client =
            Arc::new(Client::new(options).map_err(|e| OpenSearchError::Foreign(e.to_string()))?);
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|e| OpenSearchError::Foreign(format!("no random bits: {e}")))?;
        let owner = format!("{:032x}", u128::from_be_bytes(id));
        let (visible, shared, progress) = (Arc::default(), Arc::default(), Arc::default());
        Ok(Arc::new(Self { client, scanner, clock, owner, visible, shared, progress }))
    }

    /// Shares how far this process has come with the others that index some of the bus's
    /// partitions, until the result is dropped.
    pub fn share_progress(&self, partitions: u16) -> SharedProgress {
        let (clock, visible) = (Arc::clone(&self.clock), Arc::clone(&self.visible));
        let (client, shared) = (Arc::clone(&self.client), Arc::clone(&self.shared));
        let seen = move |at| {
            visible.fetch_max(at, Ordering::AcqRel);
        };
        shared::spawn(client, shared, self.owner.clone(), partitions, move || clock.now_ms(), seen)
    }

    /// Whether the alias, if it is there, leads to an index that this program can use.
    pub async fn check(&self) -> Result<(), OpenSearchError> {
        index::check(&self.client).await.map(drop)
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(
        &self,
        tenant: &TenantId,
        request: &SearchRequest,
    ) -> Result<SearchPage, SearchError> {
        let parsed = request.query.as_deref().map(language::parse).transpose()?.flatten();
        // The moment first, the index after: it can only be newer than the moment says.
        let as_of = self.as_of();
        if let Some(parsed) = &parsed {
            query::check_prefixes(&self.client, tenant, parsed).await?;
        }
        let body = query::body(tenant, request, parsed.as_ref());
        let answer = self.client.search(&body).await.map_err(unavailable)?;
        let mut page = query::page(&answer, request).map_err(unavailable)?;
        page.as_of = as_of;
        Ok(page)
    }
}

fn unavailable(failure: Failure) -> SearchError {
    let refused = |reason, seconds| {
        tracing::debug!(%failure, "the index refuses a question");
        SearchError::Refused { reason, retry_after: Duration::from_secs(seconds) }
    };
    match failure.status().map(|status| status.as_u16()) {
        // It works and has too much to do.
        Some(429) => refused("overloaded", 1),
        // Of this question alone: others are answered.
        Some(400 | 413) => refused("rejected", 5),
        Some(_) | None => SearchError::Unavailable(failure.to_string()),
    }
}

#[async_trait]
impl SearchIndex for OpenSearchIndex {
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
        let answer =
            self.client.search(&query::related(tenant, tag, limit)).await.map_err(unavailable)?;
        Ok(query::facets(&answer).map_err(unavailable)?.0)
    }

    fn as_of(&self) -> UnixMillis {
        self.visible.load(Ordering::Acquire)
    }

    async fn documents(&self) -> Result<u64, SearchError> {
        self.client.count().await.map_err(unavailable)
    }
}
