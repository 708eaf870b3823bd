//! The metrics of this crate.

use tagfast_resilience::{define_metrics, label_enum};

use crate::role::RedisRole;

label_enum! {
    /// Result of a call.
    pub(crate) enum CallResult {
        Ok = "ok", Refused = "refused", Failed = "failed", Rejected = "rejected",
    }
}

define_metrics! {
    /// The metrics of this crate.
    pub const METRICS;

    /// 1 while a checked connection exists. 0: the service runs without this Redis; the log says
    /// why.
    pub(crate) gauge CONNECTED = "tagfast_redis_connected" { redis: RedisRole };

    /// Calls by result: ok, refused (the server answered with an error), failed (no answer in time,
    /// or no connection), rejected (by the breaker).
    pub(crate) counter CALLS = "tagfast_redis_calls_total" { redis: RedisRole, result: CallResult };
}
