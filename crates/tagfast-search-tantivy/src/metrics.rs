//! Metrics that only this engine publisher_epochs.

use tagfast_resilience::{MetricDef, MetricKind};

pub(crate) const DOCUMENTS: MetricDef = MetricDef {
    name: "tagfast_search_documents",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Contents in the index, with those whose last tag went in the last 30 days.",
};

pub(crate) const SEGMENTS: MetricDef = MetricDef {
    name: "tagfast_search_segments",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Segments of the index; every search visits each. Above 30 for minutes: merging does \
           not keep up.",
};

/// Metrics of this crate, beside those of `tagfast-search`.
pub const METRICS: &[MetricDef] = &[DOCUMENTS, SEGMENTS];
