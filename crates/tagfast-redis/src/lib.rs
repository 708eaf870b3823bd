//! A Redis as the cache and the counts use it: found, checked, kept connected, behind a breaker.
//!
//! Nobody waits for a connection: one task per server connects, checks what answers, and connects
//! again after a failure, while calls find a connection or fail at once. Every call has a deadline
//! and passes the breaker `redis/cache` or `redis/state`.
//!
//! How it fails: a server that is too old, in cluster mode, with a policy that would lose what is
//! kept, or with another password is named ([`Redis::problem`]) and not used, and looked at again;
//! one that hangs costs a call its deadline until the breaker opens; a replica is never written to:
//! it is looked for again.

mod check;
mod place;
mod server;

pub use check::random_name;
pub use place::{BadUrl, Place};
pub use server::{Redis, RedisError};

use tagfast_resilience::{LabelDef, MetricDef, MetricKind};

/// What a Redis is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Views: may be thrown away at any time.
    Cache,
    /// Positions and boards: nothing may be thrown away.
    State,
}

impl Use {
    /// The word for it, in names of breakers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::State => "state",
        }
    }
}

/// The metrics of this crate.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "tagfast_redis_connected",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("redis", "TO DO: values")],
        help: "1 while a checked connection is there. 0: the service runs without this Redis; the log says why.",
    },
    MetricDef {
        name: "tagfast_redis_calls_total",
        kind: MetricKind::Counter,
        labels: &[
            LabelDef::bounded("redis", "TO DO: values"),
            LabelDef::bounded("result", "TO DO: values"),
        ],
        help: "Calls by result: ok, refused (an error of the server), failed (no answer in time, or none at all), rejected (by the breaker).",
    },
];
