//! The metrics recorder, and the reference of all metrics: both made from the lists of the crates.
//!
//! A metric is recorded only through its definition (see [`tagfast_resilience::metric`]), so that a
//! metric that is not listed here, or has different labels, does not compile.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tagfast_client::error::CliError;
use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tagfast_resilience::{
    LabelDef, LabelValues, MetricDef, MetricKind, define_metrics, label_enum,
};

use super::listen_queue::ListenQueue;
use super::{listen_queue, process};

/// Bucket bounds of durations, in seconds: 100 us to 10 s, about two steps for a doubling near the
/// targets.
const DURATION_BUCKETS_SECONDS: &[f64] = &[
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.35, 0.5,
    1.0, 2.0, 5.0, 10.0,
];
/// Bucket bounds of sizes: powers of two.
const SIZE_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Time between two rounds of upkeep.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

label_enum! {
    /// What became of an attempt to deliver a message to the webhook.
    pub(crate) enum WebhookOutcome {
        /// The receiver took it.
        Delivered = "delivered",
        /// It failed and is tried again.
        Retried = "retried",
        /// It failed for the last time.
        GivenUp = "given_up",
    }
}

define_metrics! {
    /// Metrics of the webhook.
    const WEBHOOK_METRICS;

    /// Messages about dead letters that need attention, and about failovers that lost writes.
    pub(crate) counter WEBHOOK_MESSAGES = "tagfast_webhook_messages_total" {
        outcome: WebhookOutcome,
    };
}

define_metrics! {
    /// Metrics of the files of credentials.
    const CREDENTIAL_METRICS;

    /// Credentials whose file cannot be read, or whose newest content a server refuses;
    /// `tagfast status` names them. More than 0 for longer than a rotation takes: look.
    pub(crate) gauge CREDENTIALS_WITH_PROBLEM = "tagfast_credentials_with_problem";
}

/// Every metric of the program: one list per crate, under the crate's name.
pub(crate) fn all() -> Vec<(&'static str, &'static [MetricDef])> {
    vec![
        ("HTTP", tagfast_api::METRICS),
        ("Store", tagfast_store::metric::METRICS),
        ("Embedded store and bus", tagfast_store_embedded::METRICS),
        ("Clusters", tagfast_store_postgres::METRICS),
        ("Consumers", tagfast_events::METRICS),
        ("Search", tagfast_search::METRICS),
        ("Search engine", tagfast_search_tantivy::METRICS),
        ("Popular tags", tagfast_popular_counts::METRICS),
        ("Cache", tagfast_cache::METRICS),
        ("Redis", tagfast_redis::METRICS),
        ("Breakers", tagfast_resilience::breaker::METRICS),
        ("Webhook", WEBHOOK_METRICS),
        ("Credentials", CREDENTIAL_METRICS),
        ("Queue of connections", listen_queue::METRICS),
        ("Process", process::METRICS),
    ]
}

/// Renders the answer of `/metrics`.
pub(crate) type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// The recorder of this process.
#[derive(Clone)]
pub(crate) struct Metrics {
    handle: PrometheusHandle,
    started: f64,
    /// Empty until the server listens.
    listen_queue: Arc<OnceLock<ListenQueue>>,
}

impl Metrics {
    /// Installs the recorder. Once a process.
    pub(crate) fn install() -> Result<Self, CliError> {
        let failed = |e: BuildError| CliError::new("cannot start the metrics").with_source(e);
        let mut builder = PrometheusBuilder::new();
        for def in all()
            .iter()
            .flat_map(|(_, defs)| defs.iter())
            .filter(|d| d.kind == MetricKind::Histogram)
        {
            let buckets = if def.name.ends_with("_seconds") {
                DURATION_BUCKETS_SECONDS
            } else {
                SIZE_BUCKETS
            };
            builder = builder
                .set_buckets_for_metric(Matcher::Full(def.name.to_owned()), buckets)
                .map_err(failed)?;
        }
        let handle = builder.install_recorder().map_err(failed)?;
        for def in all().iter().flat_map(|(_, defs)| defs.iter()) {
            match def.kind {
                MetricKind::Counter => metrics::describe_counter!(def.name, def.help),
                MetricKind::Gauge => metrics::describe_gauge!(def.name, def.help),
                MetricKind::Histogram => metrics::describe_histogram!(def.name, def.help),
            }
        }
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        Ok(Self { handle, started, listen_queue: Arc::default() })
    }

    /// Adds the metrics of the queue in front of a listener. Once a process.
    pub(crate) fn watch_listener(&self, address: SocketAddr) {
        self.listen_queue.get_or_init(|| ListenQueue::new(address));
    }

    /// The text of `/metrics`.
    pub(crate) fn render(&self) -> String {
        process::record(self.started);
        if let Some(queue) = self.listen_queue.get() {
            queue.record();
        }
        self.handle.render()
    }

    /// Starts the task that folds recorded samples together now and then, so that the memory of an
    /// unscraped server does not grow.
    pub(crate) fn start_upkeep(&self) -> BackgroundTask {
        let handle = self.handle.clone();
        BackgroundTask::spawn("metrics upkeep", async move |stop: StopSignal| {
            let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = tick.tick() => handle.run_upkeep(),
                }
            }
        })
    }
}

/// The reference of all metrics as Markdown: the content of `docs/reference/metrics.md`.
pub(crate) fn markdown() -> String {
    let mut out = String::from(
        "# Metrics\n\n\
         <!-- Made by `tagfast debug metrics-docs` from the METRICS lists of the crates. -->\n\n\
         `GET /metrics` answers in Prometheus' text format. Every label has a bounded set of\n\
         values; tenants, users, contents and tags are never labels.\n",
    );
    for (group, defs) in all() {
        out.push_str(&format!(
            "\n## {group}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n"
        ));
        for def in defs {
            let kind = match def.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "histogram",
            };
            let labels = def.labels.iter().map(describe_label).collect::<Vec<_>>().join("; ");
            out.push_str(&format!(
                "| `{}` | {kind} | {labels} | {} |\n",
                def.name,
                def.help.replace('|', "\\|")
            ));
        }
    }
    out
}

/// A label with its values: all of them, or what bounds them.
fn describe_label(label: &LabelDef) -> String {
    match label.values {
        LabelValues::Closed(values) => {
            let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
            format!("`{}`: {}", label.name, values.join(", "))
        }
        LabelValues::BoundedBy(bound) => format!("`{}` ({bound})", label.name),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_rule() {
        let mut seen = BTreeSet::new();
        for def in all().iter().flat_map(|(_, defs)| defs.iter()) {
            assert!(seen.insert(def.name), "{} twice", def.name);
            assert!(
                def.name.starts_with("tagfast_") || def.name.starts_with("process_"),
                "{}",
                def.name
            );
            assert!(!def.help.is_empty(), "{}", def.name);
            assert_eq!(
                def.kind == MetricKind::Counter,
                def.name.ends_with("_total"),
                "{}",
                def.name
            );
        }
    }

    #[test]
    fn alert_rules_ask_for_metrics_that_exist() {
        let rules = include_str!("../../../../deploy/prometheus/alerts.yml");
        let word = |c: char| !(c.is_ascii_lowercase() || c == '_');
        let queried: BTreeSet<&str> =
            rules.split(word).filter(|w| w.starts_with("tagfast_")).collect();
        let known: BTreeSet<&str> =
            all().iter().flat_map(|(_, defs)| defs.iter()).map(|d| d.name).collect();
        assert!(queried.len() > 8, "{queried:?}");
        assert_eq!(queried.difference(&known).collect::<Vec<_>>(), Vec::<&&str>::new());
    }

    #[test]
    fn the_page_in_docs_is_this_reference() {
        crate::golden::assert_page("metrics.md", &markdown());
    }
}
