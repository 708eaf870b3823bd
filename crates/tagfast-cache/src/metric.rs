//! The metrics of this crate.

use tagfast_resilience::{LabelDef, MetricDef, MetricKind};

/// The metrics of this crate.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "tagfast_cache_reads_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("answer", "TO DO: values")],
        help: "Views by who answered: l1, redis, store, or stale (an old entry, since the store could not).",
    },
    MetricDef {
        name: "tagfast_cache_unproven_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("reason", "TO DO: values")],
        help: "Entries that were there and could not answer: expired, phantom (it may show what a failover lost), epoch (not heard of yet), uncovered (the client has seen more).",
    },
    MetricDef {
        name: "tagfast_cache_fills_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("result", "TO DO: values")],
        help: "Entries offered to Redis: set, or kept (a newer one was there), failed, dropped (too many at once).",
    },
    MetricDef {
        name: "tagfast_cache_unreadable_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("reason", "TO DO: values")],
        help: "Entries in Redis that are none: unknown_format (of a newer program), corrupted. Corrupted ones above 0: look at the server.",
    },
    MetricDef {
        name: "tagfast_cache_gaps_total",
        kind: MetricKind::Counter,
        labels: &[],
        help: "Messages that were missed; each empties the L1 of one stripe.",
    },
    MetricDef {
        name: "tagfast_cache_positions_unknown_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("at", "TO DO: values")],
        help: "Reads (read) and writes (write) without a token whose user's last writes could not be read or stored.",
    },
    MetricDef {
        name: "tagfast_cache_l1_bytes",
        kind: MetricKind::Gauge,
        labels: &[],
        help: "What L1 holds, about.",
    },
];
