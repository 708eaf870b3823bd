//! Definitions of metrics: each crate lists its own, the program documents and registers them.

/// What a metric counts like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution; the name ends in its unit.
    Histogram,
}

/// One metric, as the documentation lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricDef {
    /// `tagfast_<subject>_<unit>[_total]`.
    pub name: &'static str,
    /// How to read it.
    pub kind: MetricKind,
    /// Label names; every label has a bounded set of values.
    pub labels: &'static [&'static str],
    /// What it says and when to worry.
    pub help: &'static str,
}
