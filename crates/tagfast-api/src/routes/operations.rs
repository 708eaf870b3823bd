//! Operating the service: receipts, status, rebuilding, counting again; what the cluster mode adds
//! answers 501.

use axum::response::Response;
use serde::{Deserialize, Serialize};
use tagfast_events::Group;
use tagfast_resilience::BreakerState;
use tagfast_store::{Receipt, Verdict};
use utoipa::{IntoParams, ToSchema};

use super::breakers::{BreakerBody, EventBody};
use crate::call::{Admin, Read};
use crate::parts::{ConsumerStatus, LimitStatus, OperationsError};
use crate::problem::{Code, Problem, not_in_this_mode};
use crate::wire::{self, DegradedBody, VerdictBody};

/// What circuit breakers did that `/v1/status` shows.
const EVENTS: usize = 20;

impl From<OperationsError> for Problem {
    fn from(error: OperationsError) -> Self {
        let code = match &error {
            OperationsError::AlreadyRunning(_) => Code::AlreadyRunning,
            OperationsError::Failed(_) => Code::OperationFailed,
        };
        Self::new(code, error.to_string())
    }
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes the path to the OpenAPI document")]
struct ReceiptPath {
    /// The `receipt` of a write's answer.
    #[param(pattern = "^[A-Za-z0-9_-]+$", min_length = 1, max_length = 4096)]
    token: String,
}

/// What became of a write
///
/// A receipt that the service cannot place any more is answered `unknown` with the reason.
#[utoipa::path(
    get,
    path = "/v1/receipts/{token}",
    tag = "operations",
    params(ReceiptPath),
    responses((status = 200, description = "The verdict", body = VerdictBody))
)]
pub(crate) async fn receipt(Read(call): Read) -> Result<Response, Problem> {
    call.no_query()?;
    let receipt = Receipt::open(&call.app.parts.sealer, call.tenant(), &call.segment(3)?)
        .map_err(|e| Problem::new(Code::BadToken, format!("receipt: {e}")))?;
    if !call.app.parts.verdicts {
        // Without the repair of lost writes only half of the answers would be true.
        return Err(not_in_this_mode("looking receipts up"));
    }
    let verdict = call.app.parts.store.verdict(&receipt).await?;
    let reason = match verdict {
        Verdict::Unknown(reason) => Some(reason),
        Verdict::Kept | Verdict::Repaired | Verdict::Lost => None,
    };
    Ok(wire::json(&VerdictBody {
        verdict: verdict.as_str(),
        reason,
        write_id: receipt.write_id.to_string(),
        shard: receipt.shard.number(),
        epoch: receipt.position.epoch.to_string(),
    }))
}

/// The state of the service.
#[derive(Serialize, ToSchema)]
#[schema(as = Status)]
struct StatusBody {
    /// `embedded` or `postgres`.
    mode: String,
    /// What this process does: `all`, or roles with commas between them.
    roles: String,
    /// The program's version.
    version: String,
    /// The current epoch.
    epoch: String,
    uptime_seconds: u64,
    /// Per consumer group: state, lag, open dead letters.
    consumers: Vec<ConsumerStatus>,
    /// Contents in the search index.
    indexed_contents: u64,
    /// Features that do not work fully now.
    degraded: Vec<DegradedBody>,
    /// Long work under way.
    running: Vec<RunningBody>,
    /// Parts that are not ready.
    not_ready: Vec<PartBody>,
    /// Circuit breakers that are not closed.
    breakers: Vec<BreakerBody>,
    /// What circuit breakers did last, newest first; at most 20.
    breaker_events: Vec<EventBody>,
    /// How much may be done at once, and how much is.
    limits: Vec<LimitStatus>,
}

/// Long work under way.
#[derive(Serialize, ToSchema)]
#[schema(as = Running)]
struct RunningBody {
    /// `reindex` or `recount`.
    operation: String,
    /// Contents done.
    contents: u64,
}

/// A part and why it is not ready.
#[derive(Serialize, ToSchema)]
#[schema(as = PartProblem)]
pub(super) struct PartBody {
    pub(super) part: &'static str,
    pub(super) problem: String,
}

/// The state of everything
#[utoipa::path(
    get,
    path = "/v1/status",
    tag = "operations",
    responses((status = 200, description = "The state", body = StatusBody))
)]
pub(crate) async fn status(Admin(call): Admin) -> Result<Response, Problem> {
    call.no_query()?;
    let operations = &call.app.parts.operations;
    let report = operations.status().await;
    let readiness = operations.readiness().await;
    let mut degraded: Vec<_> = report
        .degraded
        .into_iter()
        .map(|(feature, reason)| DegradedBody { feature, reason })
        .collect();
    let troubled = call.app.sheddable.troubled().into_iter();
    degraded.extend(
        troubled.map(|(feature, reason)| DegradedBody {
            feature: feature.into(),
            reason: reason.into(),
        }),
    );
    let breakers = &call.app.parts.breakers;
    let open = breakers.look().into_iter().filter(|breaker| breaker.state != BreakerState::Closed);
    Ok(wire::json(&StatusBody {
        mode: report.mode,
        roles: report.roles,
        version: report.version,
        epoch: report.epoch,
        uptime_seconds: report.uptime_seconds,
        consumers: report.consumers,
        indexed_contents: report.indexed_contents,
        degraded,
        running: report
            .running
            .into_iter()
            .map(|(operation, contents)| RunningBody { operation, contents })
            .collect(),
        not_ready: readiness
            .into_iter()
            .filter_map(|r| Some(PartBody { part: r.part, problem: r.problem? }))
            .collect(),
        breakers: open.map(BreakerBody::from).collect(),
        breaker_events: breakers
            .events()
            .into_iter()
            .rev()
            .take(EVENTS)
            .map(EventBody::from)
            .collect(),
        limits: report.limits,
    }))
}

/// What a rebuild did.
#[derive(Serialize, ToSchema)]
#[schema(as = ReindexResult)]
struct ReindexBody {
    /// Contents copied from the shards.
    contents: u64,
}

/// Rebuilds the search index
///
/// From the shards, while the old index goes on serving. The answer comes when it is done; the work
/// goes on when the client leaves.
#[utoipa::path(
    post,
    path = "/v1/admin/reindex",
    tag = "operations",
    responses((status = 200, description = "Done", body = ReindexBody))
)]
pub(crate) async fn reindex(Admin(call): Admin) -> Result<Response, Problem> {
    call.no_query()?;
    let operations = std::sync::Arc::clone(&call.app.parts.operations);
    let contents = detached(async move { operations.reindex().await }).await??;
    Ok(wire::json(&ReindexBody { contents }))
}

/// How to recount.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recount {
    /// Mend what drifted; without it only report.
    #[serde(default)]
    repair: bool,
}

/// What a recount found.
#[derive(Serialize, ToSchema)]
#[schema(as = RecountResult)]
struct RecountBody {
    /// Contents compared.
    contents: u64,
    /// Contents whose counted state differs from the shard.
    drifted_contents: u64,
    /// Sums that differ from the states they are sums of.
    drifted_counts: u64,
    /// The drift per tenant and tag, at most 1,000.
    rows: Vec<DriftBody>,
    /// Whether the drift was repaired.
    repaired: bool,
}

/// The drift of one tag.
#[derive(Serialize, ToSchema)]
#[schema(as = Drift)]
struct DriftBody {
    tenant: String,
    tag: String,
    counted: i64,
    #[serde(rename = "true")]
    actual: i64,
}

/// Compares the popular counts with the shards
///
/// While writes go on. Of the drift only the caller's tenant is listed; the sums are of all
/// tenants.
#[utoipa::path(
    post,
    path = "/v1/admin/recount",
    tag = "operations",
    request_body = Recount,
    responses((status = 200, description = "What was found", body = RecountBody))
)]
pub(crate) async fn recount(Admin(mut call): Admin) -> Result<Response, Problem> {
    call.no_query()?;
    let asked: Recount = call.json().await?;
    let operations = std::sync::Arc::clone(&call.app.parts.operations);
    let report = detached(async move { operations.recount(asked.repair).await }).await??;
    let rows = report
        .rows
        .into_iter()
        .filter(|(tenant, ..)| tenant == call.tenant().as_str())
        .map(|(tenant, tag, counted, actual)| DriftBody { tenant, tag, counted, actual })
        .collect();
    Ok(wire::json(&RecountBody {
        contents: report.contents,
        drifted_contents: report.drifted_contents,
        drifted_counts: report.drifted_counts,
        rows,
        repaired: report.repaired,
    }))
}

/// A consumer group.
#[derive(Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GroupName {
    /// Feeds the search index.
    Indexer,
    /// Counts popular tags.
    Analytics,
}

impl GroupName {
    pub(crate) fn group(self) -> Group {
        match self {
            Self::Indexer => Group::INDEXER,
            Self::Analytics => Group::ANALYTICS,
        }
    }
}

/// Runs work that must not stop half-way because a client left.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(work).await.map_err(|error| {
        tracing::error!(%error, "an operation ended early");
        Problem::new(Code::Internal, "the operation met a bug; the log has the details")
    })
}

macro_rules! later {
    ($(#[doc = $summary:literal] $name:ident $method:ident $path:literal $feature:literal;)*) => {$(
        #[doc = $summary]
        #[utoipa::path($method, path = $path, tag = "operations", responses())]
        pub(crate) async fn $name(Admin(_call): Admin) -> Problem {
            not_in_this_mode($feature)
        }
    )*};
}

later! {
    /// Failovers with the verdict of each write that was not simply kept
    failovers get "/v1/failovers" "failovers";
}
