//! The composition root of embedded mode: store, bus, search index, counts, consumers and the API
//! over them.
//!
//! The parts know each other only through ports; here they are opened, joined and closed. Order of
//! closing: the consumers first (they make their state durable), then the store (it checkpoints),
//! so that a clean stop leaves nothing to repeat. A crash at any point repeats work and loses none.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use tagfast_api::{ApiParts, Letters, Operations, OperationsError, Readiness, StatusReport};
use tagfast_popular::{PopularCounts, RecountReport};
use tagfast_resilience::{Breakers, Clock};
use tagfast_search::{TantivyIndex, TantivyOptions};
use tagfast_store::{Sealer, ShardScanner, SharedStore};
use tagfast_store_embedded::{EmbeddedStore, OpenError, OpenOptions};
use tokio::sync::watch;

use crate::config::Config;
use crate::consumers::{Consumers, Feed};
use crate::failure::Failure;
use crate::replayer::Replayer;

/// Renders `/metrics`.
pub type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// All parts of a running embedded service.
pub struct Embedded {
    store: Arc<EmbeddedStore>,
    operations: Arc<EmbeddedOperations>,
    parts: ApiParts,
}

impl Embedded {
    /// Opens everything in the data directory and starts the consumers. Needs a tokio runtime.
    pub async fn start(
        config: &Config,
        clock: Arc<dyn Clock>,
        metrics: MetricsText,
    ) -> Result<Self, Failure> {
        let opened = {
            let (config, clock) = (config.clone(), Arc::clone(&clock));
            tokio::task::spawn_blocking(move || open(&config, &clock))
                .await
                .map_err(|e| Failure::new(format!("opening the data directory failed: {e}")))??
        };
        let Opened { store, index, popular, keys } = opened;
        let bus = store.bus();
        let letters = store.letters();
        let options = config.dead_letters.replayer().map_err(Failure::new)?;
        let traced = config.telemetry.otlp_endpoint.is_some();
        let feed = Feed { bus: &bus, letters: &letters, clock: &clock, traced };
        let consumers =
            Consumers::start(&feed, Some(Arc::clone(&index)), Some(Arc::clone(&popular)));
        let leads = watch::channel(false).0;
        let replayer = Replayer::spawn(Arc::clone(&letters), options, Arc::clone(&clock), leads);
        let operations = Arc::new(EmbeddedOperations {
            epoch: store.current_epoch().id.to_string(),
            consumers,
            replayer,
            metrics,
            started: Instant::now(),
        });
        let parts = ApiParts {
            store: Arc::clone(&store) as SharedStore,
            search: Some(index),
            popular: Some(popular),
            letters: Some(Letters { book: letters, cooldown: config.dead_letters.cooldown }),
            whole: true,
            verdicts: true,
            breakers: Breakers::new(Arc::clone(&clock)),
            operations: Arc::clone(&operations) as _,
            sealer: Sealer::new(&keys),
            clock,
            auth: config.auth().map_err(|e| Failure::config(&[e]))?,
            domain_limits: config.limits,
            limits: config.api_limits.clone(),
        };
        Ok(Self { store, operations, parts })
    }

    /// What the API is made from.
    pub fn parts(&self) -> ApiParts {
        self.parts.clone()
    }

    /// The store, for loading the demo.
    pub fn store(&self) -> SharedStore {
        Arc::clone(&self.store) as _
    }

    /// Stops the consumers, then closes the store. Requests must have ended before.
    pub async fn stop(self) {
        self.operations.replayer.stop().await;
        self.operations.consumers.stop().await;
        let store = self.store;
        let closed = tokio::task::spawn_blocking(move || store.close()).await;
        if let Err(error) = closed {
            tracing::error!(%error, "the store did not close cleanly; nothing acknowledged is lost");
        }
    }
}

struct Opened {
    store: Arc<EmbeddedStore>,
    index: Arc<TantivyIndex>,
    popular: Arc<PopularCounts>,
    keys: Vec<[u8; 32]>,
}

fn open(config: &Config, clock: &Arc<dyn Clock>) -> Result<Opened, Failure> {
    let dir = config.data_dir.as_path();
    let mut options = OpenOptions::new(dir.to_owned(), Arc::clone(clock));
    options.limits = config.limits;
    options.cache_bytes = config.cache_bytes;
    let store = EmbeddedStore::open(options).map_err(|e| open_failure(dir, &e))?;
    let keys = config.signing_keys().map_err(Failure::new)?;
    let scanner = Arc::clone(&store) as Arc<dyn ShardScanner>;
    let index = TantivyIndex::open(
        dir.join("search"),
        TantivyOptions::default(),
        Arc::clone(&scanner),
        Arc::clone(clock),
    )
    .map_err(|e| Failure::new(format!("cannot open the search index: {e}")))?;
    let popular = PopularCounts::open(dir.join("popular"), scanner, Arc::clone(clock))
        .map_err(|e| Failure::new(format!("cannot open the counts: {e}")))?;
    Ok(Opened { store, index, popular, keys })
}

fn open_failure(dir: &Path, error: &OpenError) -> Failure {
    let mut message = format!("cannot open the data directory {}: {error}", dir.display());
    let mut source = std::error::Error::source(error);
    while let Some(e) = source {
        message.push_str(&format!(": {e}"));
        source = e.source();
    }
    Failure::new(message)
}

struct EmbeddedOperations {
    epoch: String,
    consumers: Consumers,
    replayer: Replayer,
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

    async fn status(&self) -> StatusReport {
        let mut report = StatusReport {
            mode: "embedded".to_owned(),
            roles: crate::roles::Roles::ALL.names(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.epoch.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
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
    use tagfast_store::{Durability, WriteRequest};
    use tagfast_testkit::wait_for_condition_async;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn start(dir: &Path) -> Embedded {
        let flags = [crate::config::Override {
            path: ("store", "data_dir"),
            flag: "--data-dir",
            value: dir.to_str().unwrap().to_owned(),
        }];
        let (config, _) = crate::config::load(None, &BTreeMap::new(), &flags).unwrap();
        Embedded::start(&config, Arc::new(SystemClock), Arc::new(|| "metrics".to_owned()))
            .await
            .unwrap()
    }

    async fn ready(embedded: &Embedded) {
        wait_for_condition_async("ready", PATIENCE, || async {
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
        let request = WriteRequest {
            write,
            fresh: false,
            durability: Durability::Local,
            deadline: None,
            traceparent: None,
        };
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
