//! Metrics of this crate. The consumer runtime publisher_epochs the lag and the records of the
//! consumer group `analytics`.

use tagfast_resilience::{MetricDef, MetricKind};

pub(crate) const LEADERBOARDS_UP: MetricDef = MetricDef {
    name: "tagfast_popular_leaderboards_up",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "1 while this process can write the leaderboards in the state Redis. 0: popular tags \
           keep the age they have.",
};

/// Metrics of this crate.
pub const METRICS: &[MetricDef] = &[LEADERBOARDS_UP];
