//! The metrics of this crate.

use tagfast_resilience::{LabelDef, MetricDef, MetricKind};

tagfast_resilience::label_enum! {
    /// Who answered a read.
    pub(crate) enum AnsweredBy { L1 = "l1", Redis = "redis", Store = "store", Stale = "stale" }
}
tagfast_resilience::label_enum! {
    /// Why an entry could not answer.
    pub(crate) enum Unproven {
        Expired = "expired",
        Diverged = "diverged",
        UnknownEpoch = "unknown_epoch",
        TooOld = "too_old",
    }
}
tagfast_resilience::label_enum! {
    /// Result of a fill of the cache Redis.
    pub(crate) enum FillResult {
        Set = "set",
        Kept = "kept",
        Failed = "failed",
        Dropped = "dropped",
    }
}
tagfast_resilience::label_enum! {
    /// Why a stored entry could not be decoded.
    pub(crate) enum Unreadable { UnknownFormat = "unknown_format", Corrupted = "corrupted" }
}
tagfast_resilience::label_enum! {
    /// Kind of request that lacked session positions.
    pub(crate) enum RequestKind { Read = "read", Write = "write" }
}

pub(crate) const READS: MetricDef = MetricDef {
    name: "tagfast_cache_reads_total",
    kind: MetricKind::Counter,
    labels: &[LabelDef::of::<AnsweredBy>("answer")],
    help: "Views by who answered: l1, redis, store, or stale (an old entry, because the store could not answer).",
};
pub(crate) const UNPROVEN: MetricDef = MetricDef {
    name: "tagfast_cache_unproven_total",
    kind: MetricKind::Counter,
    labels: &[LabelDef::of::<Unproven>("reason")],
    help: "Cached entries that could not answer: expired, diverged (may show what a failover lost), unknown_epoch (this node has not learned of the epoch yet), too_old (the client has seen more).",
};
pub(crate) const FILLS: MetricDef = MetricDef {
    name: "tagfast_cache_fills_total",
    kind: MetricKind::Counter,
    labels: &[LabelDef::of::<FillResult>("result")],
    help: "Fills of the cache Redis: set, kept (a newer entry was stored), failed, dropped (too many in flight).",
};
pub(crate) const UNREADABLE: MetricDef = MetricDef {
    name: "tagfast_cache_unreadable_total",
    kind: MetricKind::Counter,
    labels: &[LabelDef::of::<Unreadable>("reason")],
    help: "Entries in Redis that could not be decoded: unknown_format (of a newer program), corrupted. Corrupted above 0: check the server.",
};
pub(crate) const INVALIDATION_GAPS: MetricDef = MetricDef {
    name: "tagfast_cache_invalidation_gaps_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Gaps in the sequence of cache invalidations; each expires the L1 entries of one shard.",
};
pub(crate) const POSITIONS_UNKNOWN: MetricDef = MetricDef {
    name: "tagfast_cache_positions_unknown_total",
    kind: MetricKind::Counter,
    labels: &[LabelDef::of::<RequestKind>("at")],
    help: "Reads and writes without a token whose user's session positions could not be read or stored.",
};
pub(crate) const L1_BYTES: MetricDef = MetricDef {
    name: "tagfast_cache_l1_bytes",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Approximate size of the local cache (L1).",
};

/// The metrics of this crate.
pub const METRICS: &[MetricDef] =
    &[READS, UNPROVEN, FILLS, UNREADABLE, INVALIDATION_GAPS, POSITIONS_UNKNOWN, L1_BYTES];
