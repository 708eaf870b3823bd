//! Bodies of operating the service: status, reindex, recount.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::breakers::{BreakerBody, BreakerEventBody};
use super::meta::DegradedBody;
use super::words::{ModeName, OperationName};
use crate::services::{ConsumerStatus, LimitStatus, Readiness};

/// The status of the service.
#[derive(Serialize, ToSchema)]
#[schema(as = Status)]
pub(crate) struct StatusBody {
    /// Where contents are kept.
    #[schema(value_type = ModeName)]
    pub(crate) mode: String,
    /// Roles of this process: `all`, or a comma-separated list.
    pub(crate) roles: String,
    /// The program's version.
    pub(crate) version: String,
    /// The current epoch.
    pub(crate) epoch: String,
    pub(crate) uptime_seconds: u64,
    /// Per consumer group: state, lag, open dead letters.
    pub(crate) consumers: Vec<ConsumerStatus>,
    /// Contents in the search index.
    pub(crate) indexed_contents: u64,
    /// Degraded features.
    pub(crate) degraded: Vec<DegradedBody>,
    /// Long operations in progress.
    pub(crate) running: Vec<RunningBody>,
    /// Parts that are not ready.
    pub(crate) not_ready: Vec<PartProblemBody>,
    /// Circuit breakers that are not closed.
    pub(crate) breakers: Vec<BreakerBody>,
    /// The last changes of circuit breakers, newest first; at most 20.
    pub(crate) breaker_events: Vec<BreakerEventBody>,
    /// Concurrency limits with their current use.
    pub(crate) limits: Vec<LimitStatus>,
}

/// A long operation in progress.
#[derive(Serialize, ToSchema)]
#[schema(as = Running)]
pub(crate) struct RunningBody {
    #[schema(value_type = OperationName)]
    pub(crate) operation: String,
    /// Contents done.
    pub(crate) contents: u64,
    /// About how many there are; missing when that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total: Option<u64>,
}

/// A rebuild of the search index has no settings.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({}))]
pub(crate) struct Reindex {}

/// A part that is not ready, and why.
#[derive(Serialize, ToSchema)]
#[schema(as = PartProblem)]
pub(crate) struct PartProblemBody {
    part: &'static str,
    problem: String,
}

impl PartProblemBody {
    /// The parts that are not ready.
    pub(crate) fn not_ready(parts: Vec<Readiness>) -> Vec<Self> {
        let body = |part: Readiness| Some(Self { part: part.part, problem: part.problem? });
        parts.into_iter().filter_map(body).collect()
    }
}

/// The result of a reindex.
#[derive(Serialize, ToSchema)]
#[schema(as = ReindexResult)]
pub(crate) struct ReindexBody {
    /// Contents copied from the shards.
    pub(crate) contents: u64,
}

/// How to recount.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"repair": true}))]
pub(crate) struct Recount {
    /// Correct drifted counts; without it only report them.
    #[serde(default)]
    pub(crate) repair: bool,
}

/// The result of a recount.
#[derive(Serialize, ToSchema)]
#[schema(as = RecountResult)]
pub(crate) struct RecountBody {
    /// Contents compared.
    pub(crate) contents: u64,
    /// Contents whose counted state differs from the shard.
    pub(crate) drifted_contents: u64,
    /// Sums that differ from the states they are sums of.
    pub(crate) drifted_counts: u64,
    /// The drift per tenant and tag, at most 1,000 rows.
    pub(crate) rows: Vec<DriftBody>,
    /// Whether the drift was corrected.
    pub(crate) repaired: bool,
}

/// The drift of one tag.
#[derive(Serialize, ToSchema)]
#[schema(as = Drift)]
pub(crate) struct DriftBody {
    pub(crate) tenant: String,
    pub(crate) tag: String,
    pub(crate) counted: i64,
    #[serde(rename = "true")]
    pub(crate) actual: i64,
}
