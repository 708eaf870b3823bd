//! Operating the service: status, rebuilding the index, recounting popular tags.

use std::sync::Arc;

use axum::response::Response;
use tagfast_resilience::task::{StopSignal, TaskGroup};
use tagfast_resilience::{BreakerState, ErrorChain};

use crate::problem::{Code, Problem};
use crate::request::Admin;
use crate::services::OperationsError;
use crate::wire::admin::{
    DriftBody, PartProblemBody, Recount, RecountBody, Reindex, ReindexBody, RunningBody, StatusBody,
};
use crate::wire::breakers::{BreakerBody, BreakerEventBody};
use crate::wire::meta::DegradedBody;
use crate::wire::response::json;

/// Changes of circuit breakers that `/v1/status` shows.
const BREAKER_EVENTS_MAX: usize = 20;

/// The status of all parts
#[utoipa::path(
    get,
    path = "/v1/status",
    operation_id = "getStatus",
    tag = "operations",
    responses((status = 200, description = "The status", body = StatusBody))
)]
pub(crate) async fn status(Admin(request, _): Admin) -> Result<Response, Problem> {
    let operations = &request.services().operations;
    let report = operations.status().await;
    let readiness = operations.readiness().await;
    let mut degraded: Vec<_> = report
        .degraded
        .into_iter()
        .chain(request.state.degraded())
        .map(DegradedBody::from)
        .collect();
    let features = request.state.fallback.degraded_features().into_iter();
    degraded
        .extend(features.map(|(feature, reason)| (feature.to_owned(), reason.to_owned()).into()));
    let breakers = &request.services().breakers;
    let not_closed =
        breakers.snapshot().into_iter().filter(|breaker| breaker.state != BreakerState::Closed);
    Ok(json(&StatusBody {
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
            .map(|running| RunningBody {
                operation: running.operation,
                contents: running.contents,
                total: running.total,
            })
            .collect(),
        not_ready: PartProblemBody::not_ready(readiness),
        breakers: not_closed.map(BreakerBody::from).collect(),
        breaker_events: breakers
            .events()
            .into_iter()
            .rev()
            .take(BREAKER_EVENTS_MAX)
            .map(BreakerEventBody::from)
            .collect(),
        limits: report.limits,
    }))
}

/// Rebuilds the search index
///
/// From the shards, while the old index serves. The answer comes when the rebuild is done; the
/// rebuild continues when the client disconnects.
#[utoipa::path(
    post,
    path = "/v1/admin/reindex",
    operation_id = "rebuildIndex",
    tag = "operations",
    request_body = Reindex,
    responses((status = 200, description = "The rebuild is done", body = ReindexBody))
)]
pub(crate) async fn reindex(Admin(mut request, _): Admin) -> Result<Response, Problem> {
    let _: Option<Reindex> = request.json_or_nothing().await?;
    let operations = Arc::clone(&request.services().operations);
    let contents =
        detached(&request.services().tasks, async move { operations.reindex().await }).await??;
    Ok(json(&ReindexBody { contents }))
}

/// Compares the popular counts with the shards
///
/// Writes continue meanwhile. The rows of the drift are those of the caller's tenant only; the sums
/// are of all tenants. The recount ends when the client disconnects; what it has repaired by then
/// is right.
#[utoipa::path(
    post,
    path = "/v1/admin/recount",
    operation_id = "recountTags",
    tag = "operations",
    request_body = Recount,
    responses((status = 200, description = "The drift", body = RecountBody))
)]
pub(crate) async fn recount(Admin(mut request, _): Admin) -> Result<Response, Problem> {
    let Recount { repair } = request.json().await?;
    let operations = Arc::clone(&request.services().operations);
    // The report is for the client alone, and nothing is half repaired.
    let disconnected = StopSignal::new();
    let _ends_with_the_call = disconnected.clone().drop_guard();
    let recount = async move {
        let report = disconnected.run_until_cancelled(operations.recount(repair)).await;
        report.unwrap_or_else(|| Err(OperationsError::Failed("the client has gone".into())))
    };
    let report = detached(&request.services().tasks, recount).await??;
    let rows = report
        .rows
        .into_iter()
        .filter(|(tenant, ..)| tenant == request.tenant().as_str())
        .map(|(tenant, tag, counted, actual)| DriftBody { tenant, tag, counted, actual })
        .collect();
    Ok(json(&RecountBody {
        contents: report.contents,
        drifted_contents: report.drifted_contents,
        drifted_counts: report.drifted_counts,
        rows,
        repaired: report.repaired,
    }))
}

/// Runs work that continues when the client disconnects, and ends with the node.
async fn detached<T: Send + 'static>(
    tasks: &TaskGroup,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Problem> {
    let result = tasks.spawn(work).await.map_err(|error| {
        tracing::error!(error = %ErrorChain(&error), "an operation panicked");
        Problem::new(Code::Internal, "the operation hit a bug; the log has the details")
    })?;
    result.ok_or_else(|| Problem::new(Code::OperationFailed, "the node stops"))
}
