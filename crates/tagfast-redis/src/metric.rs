//! The metrics of this crate.

use tagfast_resilience::{LabelDef, MetricDef, MetricKind};

use crate::role::RedisRole;

tagfast_resilience::label_enum! {
    /// Result of a call.
    pub(crate) enum CallResult {
        Ok = "ok",
        Refused = "refused",
        Failed = "failed",
        Rejected = "rejected",
    }
}

pub(crate) const CONNECTED: MetricDef = MetricDef {
    name: "tagfast_redis_connected",
    kind: MetricKind::Gauge,
    labels: &[LabelDef::of::<RedisRole>("redis")],
    help: "1 while a checked connection exists. 0: the service runs without this Redis; the log says why.",
};
pub(crate) const CALLS: MetricDef = MetricDef {
    name: "tagfast_redis_calls_total",
    kind: MetricKind::Counter,
    labels: &[LabelDef::of::<RedisRole>("redis"), LabelDef::of::<CallResult>("result")],
    help: "Calls by result: ok, refused (the server answered with an error), failed (no answer in time, or no connection), rejected (by the breaker).",
};

/// The metrics of this crate.
pub const METRICS: &[MetricDef] = &[CONNECTED, CALLS];
