//! The metrics recorder: every metric is described once from the crates' own lists.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tagfast_resilience::{MetricDef, MetricKind};

use super::process;
use crate::failure::Failure;

/// Bounds of times in seconds: 100 us to 10 s, about two steps for a doubling near the targets.
const SECONDS: &[f64] = &[
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.35, 0.5,
    1.0, 2.0, 5.0, 10.0,
];
/// Bounds of sizes: powers of two.
const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Every metric of the program: one list per crate, under the crate's name.
pub fn all() -> Vec<(&'static str, &'static [MetricDef])> {
    vec![
        ("HTTP", tagfast_api::METRICS),
        ("Store and bus", tagfast_store_embedded::METRICS),
        ("Clusters", tagfast_store_postgres::METRICS),
        ("Consumers", tagfast_events::METRICS),
        ("Search", tagfast_search::METRICS),
        ("Popular tags", tagfast_popular::METRICS),
        ("Cache", tagfast_cache::METRICS),
        ("Redis", tagfast_redis::METRICS),
        ("Breakers", tagfast_resilience::breakers::METRICS),
        ("Process", process::METRICS),
    ]
}

/// The recorder of this process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    started: f64,
}

impl Metrics {
    /// Installs the recorder. Once a process.
    pub fn install() -> Result<Self, Failure> {
        let failed =
            |e: &dyn std::fmt::Display| Failure::new(format!("cannot start the metrics: {e}"));
        let mut builder = PrometheusBuilder::new();
        for def in all()
            .iter()
            .flat_map(|(_, defs)| defs.iter())
            .filter(|d| d.kind == MetricKind::Histogram)
        {
            let buckets = if def.name.ends_with("_seconds") { SECONDS } else { COUNTS };
            builder = builder
                .set_buckets_for_metric(Matcher::Full(def.name.to_owned()), buckets)
                .map_err(|e| failed(&e))?;
        }
        let handle = builder.install_recorder().map_err(|e| failed(&e))?;
        for def in all().iter().flat_map(|(_, defs)| defs.iter()) {
            match def.kind {
                MetricKind::Counter => metrics::describe_counter!(def.name, def.help),
                MetricKind::Gauge => metrics::describe_gauge!(def.name, def.help),
                MetricKind::Histogram => metrics::describe_histogram!(def.name, def.help),
            }
        }
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        Ok(Self { handle, started })
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        process::record(self.started);
        self.handle.render()
    }

    /// Folds recorded samples together now and then, so that an unscraped server does not grow.
    pub async fn upkeep(self) {
        let mut tick = tokio::time::interval(Duration::from_secs(5));
        loop {
            tick.tick().await;
            self.handle.run_upkeep();
        }
    }
}

/// The reference of all metrics as Markdown: the content of `docs/metrics.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Metrics\n\n\
         <!-- Made by `tagfast debug metrics-docs` from the METRICS lists of the crates. -->\n\n\
         `GET /metrics` answers in Prometheus' text format. Every label has a bounded set of values; tenants, users,\n\
         contents and tags are never labels.\n",
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
            let labels =
                def.labels.iter().map(|l| format!("`{}`", l.name)).collect::<Vec<_>>().join(", ");
            out.push_str(&format!(
                "| `{}` | {kind} | {labels} | {} |\n",
                def.name,
                def.help.replace('|', "\\|")
            ));
        }
    }
    out
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
        let asked: BTreeSet<&str> =
            rules.split(word).filter(|w| w.starts_with("tagfast_")).collect();
        let known: BTreeSet<&str> =
            all().iter().flat_map(|(_, defs)| defs.iter()).map(|d| d.name).collect();
        assert!(asked.len() > 8, "{asked:?}");
        assert_eq!(asked.difference(&known).collect::<Vec<_>>(), Vec::<&&str>::new());
    }

    #[test]
    fn the_page_in_docs_is_this_reference() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap();
        assert!(
            page == markdown(),
            "docs/metrics.md is old: run this test with UPDATE_GOLDEN=1 and look at the difference"
        );
    }
}
