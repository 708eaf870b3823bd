//! The node of embedded mode: store, bus, search index, counts, consumers and the API over them.
//!
//! The consumers close first (they make their state durable), then the store (it checkpoints), so
//! that a clean stop leaves nothing to repeat.
//!
//! How it fails: a data directory that cannot be opened fails the start. A crash at any point
//! repeats work and loses none.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use tagfast_api::{
    ApiServices, ByteBudget, DeadLetters, Operations, OperationsError, Readiness, StatusReport,
};
use tagfast_client::error::CliError;
use tagfast_events::dead_letters::DeadLetterSupervisor;
use tagfast_popular::RecountReport;
use tagfast_popular_counts::PopularCounts;
use tagfast_resilience::task::blocking;
use tagfast_resilience::{Breakers, Clock, ErrorChain};
use tagfast_search_tantivy::{TantivyIndex, TantivyOptions};
use tagfast_store::{SealKeys, Sealer, ShardScanner, SharedStore};
use tagfast_store_embedded::{EmbeddedStore, OpenError, OpenOptions};
use tokio::sync::watch;

use super::dead_letters::supervisor_options;
use super::roles::Roles;
use crate::config::{Config, CredentialFile};
use crate::consumers::{ConsumerDeps, Consumers};
use crate::credentials::CredentialFiles;
use crate::telemetry::metrics::MetricsText;

/// All parts of a running embedded service.
pub(crate) struct EmbeddedNode {
    store: Arc<EmbeddedStore>,
    operations: Arc<EmbeddedOperations>,
    parts: ApiServices,
}

impl EmbeddedNode {
    /// Opens everything in the data directory and starts the consumers. Needs a tokio runtime.
    pub(crate) async fn start(
        config: &Config,
        clock: Arc<dyn Clock>,
        metrics: MetricsText,
    ) -> Result<Self, CliError> {
        let credentials = CredentialFiles::start();
        let opened = {
            let (config, clock) = (config.clone(), Arc::clone(&clock));
            blocking(move || open(&config, &clock))
                .await
                .map_err(|e| CliError::new("opening the data directory failed").with_source(e))??
        };
        let OpenedData { store, index, popular, keys } = opened;
        let bus = store.bus();
        let dead_letter_store = store.dead_letters();
        let options = supervisor_options(&config.dead_letters, &credentials)?;
        let traced = config.telemetry.otlp_endpoint.is_some();
        let deps =
            ConsumerDeps { bus: &bus, dead_letters: &dead_letter_store, clock: &clock, traced };
        let consumers =
            Consumers::start(&deps, Some(Arc::clone(&index)), Some(Arc::clone(&popular)));
        let leads = watch::channel(false).0;
        let dead_letters = DeadLetterSupervisor::spawn(
            Arc::clone(&dead_letter_store),
            options,
            Arc::clone(&clock),
            leads,
        );
        let keys = credentials.open(keys)?;
        let auth = config.auth(credentials.open_some(config.token_secret())?);
        let operations = Arc::new(EmbeddedOperations {
            epoch: store.current_epoch().id.to_string(),
            consumers,
            dead_letters,
            credentials,
            metrics,
            started: Instant::now(),
        });
        let parts = ApiServices {
            store: Arc::clone(&store) as SharedStore,
            search: Some(index),
            popular: Some(popular),
            dead_letters: Some(DeadLetters {
                store: dead_letter_store,
                auto_replay: config.dead_letters.auto_replay,
            }),
            serves_product: true,
            failovers: None,
            clusters: None,
            breakers: Breakers::new(Arc::clone(&clock)),
            operations: Arc::clone(&operations) as _,
            sealer: Sealer::of(keys),
            clock,
            auth,
            domain_limits: config.limits,
            limits: config.api_limits.clone(),
            allowed_hosts: config.allowed_hosts.clone(),
            machine_limits: Vec::new(),
            byte_budget: ByteBudget::new(config.api_limits.in_flight_bytes),
            tasks: ApiServices::task_group(),
        };
        Ok(Self { store, operations, parts })
    }

    /// What the API is made from.
    pub(crate) fn parts(&self) -> ApiServices {
        self.parts.clone()
    }

    /// The store, for loading the demo.
    pub(crate) fn store(&self) -> SharedStore {
        Arc::clone(&self.store) as _
    }

    /// Stops the consumers, then closes the store. Requests must have ended before.
    pub(crate) async fn stop(self) {
        self.operations.dead_letters.stop().await;
        self.operations.consumers.stop().await;
        self.operations.credentials.stop().await;
        let store = self.store;
        if let Err(error) = blocking(move || store.close()).await {
            tracing::error!(
                error = %ErrorChain(&error),
                "the store did not close cleanly; no acknowledged write is lost"
            );
        }
    }
}

struct OpenedData {
    store: Arc<EmbeddedStore>,
    index: Arc<TantivyIndex>,
    popular: Arc<PopularCounts>,
    keys: CredentialFile<SealKeys>,
}

fn open(config: &Config, clock: &Arc<dyn Clock>) -> Result<OpenedData, CliError> {
    let dir = config.data_dir.as_path();
    let mut options = OpenOptions::new(dir.to_owned(), Arc::clone(clock));
    options.limits = config.limits;
    options.cache_bytes = config.page_cache_bytes;
    let is_new = !dir.join("store-0.sqlite").exists();
    let store = EmbeddedStore::open(options).map_err(|e| open_failure(dir, e))?;
    if !is_new && config.lacks_signing_key() {
        tracing::warn!(
            dir = %dir.display(),
            "the signing key token.key is missing; a new one is made, with which tokens, receipts \
             and cursors from before cannot be read"
        );
    }
    let keys = config.signing_keys().map_err(CliError::new)?;
    let scanner = Arc::clone(&store) as Arc<dyn ShardScanner>;
    let index = TantivyIndex::open(
        dir.join("search"),
        TantivyOptions::default(),
        Arc::clone(&scanner),
        Arc::clone(clock),
    )
    .map_err(|e| CliError::new("cannot open the search index").with_source(e))?;
    let popular = PopularCounts::open(dir.join("popular"), scanner, Arc::clone(clock))
        .map_err(|e| CliError::new("cannot open the counts").with_source(e))?;
    Ok(OpenedData { store, index, popular, keys })
}

fn open_failure(dir: &Path, error: OpenError) -> CliError {
    CliError::new(format!("cannot open the data directory {}", dir.display())).with_source(error)
}

struct EmbeddedOperations {
    epoch: String,
    consumers: Consumers,
    dead_letters: DeadLetterSupervisor,
    credentials: CredentialFiles,
    metrics: MetricsText,
    started: Instant,
}

#[async_trait]
impl Operations for EmbeddedOperations {
    async fn readiness(&self) -> Vec<Readiness> {
        std::iter::once(Readiness { part: "store", problem: None })
            .chain(self.consumers.readiness())
            .collect()
    }

    fn degraded(&self) -> Vec<(String, String)> {
        self.credentials.degraded()
    }

    async fn status(&self) -> StatusReport {
        let mut report = StatusReport {
            mode: "embedded".to_owned(),
            roles: Roles::ALL.names(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.epoch.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            degraded: self.degraded(),
            ..StatusReport::default()
        };
        self.consumers.report(&mut report).await;
        report
    }

    async fn reindex(&self) -> Result<u64, OperationsError> {
        self.consumers.reindex().await
    }

    async fn recount(&self, repair: bool) -> Result<RecountReport, OperationsError> {
        self.consumers.recount(repair).await
    }

    fn allow_storm(&self, group: &str) -> Result<(), OperationsError> {
        self.consumers.allow_storm(group)
    }

    fn metrics(&self) -> String {
        (self.metrics)()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use tagfast_domain::{ContentKey, Operation, Tag, UserId, Write, WriteId};
    use tagfast_resilience::SystemClock;
    use tagfast_search::SearchRequest;
    use tagfast_store::WriteRequest;
    use tagfast_testkit::wait_for_condition_async;

    use super::*;

    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    async fn start(dir: &Path) -> EmbeddedNode {
        let flags = [crate::config::Override::data_dir(dir.to_str().unwrap().to_owned())];
        let (config, _) = crate::config::load(None, &BTreeMap::new(), &flags).unwrap();
        EmbeddedNode::start(&config, Arc::new(SystemClock), Arc::new(|| "metrics".to_owned()))
            .await
            .unwrap()
    }

    async fn ready(embedded: &EmbeddedNode) {
        wait_for_condition_async("ready", TEST_TIMEOUT, || async {
            let open: Vec<_> = embedded
                .operations
                .readiness()
                .await
                .into_iter()
                .filter(|r| r.problem.is_some())
                .collect();
            if open.is_empty() { Ok(()) } else { Err(format!("{open:?}")) }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_parts_work_together_and_survive_a_stop() {
        let dir = tempfile::tempdir().unwrap();
        let embedded = start(dir.path()).await;
        ready(&embedded).await;
        let key = ContentKey::parse("default", "t", "1").unwrap();
        let operation =
            Operation::patch(vec![Tag::parse("Ui").unwrap()], Vec::new(), &Default::default())
                .unwrap();
        let user = UserId::parse("ana").unwrap();
        let write =
            Write { id: WriteId([1; 16]), key: key.clone(), user, operation, if_match: None };
        let request = WriteRequest::new(write);
        assert!(embedded.store().write(request).await.unwrap().changed);
        assert_eq!(embedded.operations.recount(false).await.unwrap().drifted_contents, 0);
        assert_eq!(embedded.operations.reindex().await.unwrap(), 1);
        assert_eq!(embedded.operations.metrics(), "metrics");
        embedded.stop().await;

        let embedded = start(dir.path()).await;
        ready(&embedded).await;
        let status = embedded.operations.status().await;
        assert_eq!(
            (status.indexed_contents, status.consumers.len(), status.mode.as_str()),
            (1, 2, "embedded")
        );
        let request = SearchRequest {
            query: Some("ui".to_owned()),
            content_type: None,
            sort: tagfast_search::Sort::Id,
            after: None,
            limit: 1,
            facets: false,
            total_exact: false,
            criticality: tagfast_resilience::Criticality::Degradable,
        };
        let page = embedded.parts().search.unwrap().search(&key.tenant, &request).await.unwrap();
        assert_eq!(page.hits[0].content, key.content);
        embedded.stop().await;
    }
}
