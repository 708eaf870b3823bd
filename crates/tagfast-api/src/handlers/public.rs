//! Calls that need no caller: index, health, readiness, metrics, documentation.
//!
//! They ignore a query: probes and browsers add one to get past caches.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tagfast_resilience::jittered_retry_after;

use crate::docs;
use crate::encoding::path_segment;
use crate::headers::prefers_html;
use crate::problem::{Code, PROBLEM_CODES, Problem, retry_after_header};
use crate::state::ApiState;
use crate::wire::admin::PartProblemBody;
use crate::wire::meta::DegradedBody;
use crate::wire::public::{
    HealthBody, HealthStatus, IndexBody, IndexLinks, ReadyBody, ServiceName,
};
use crate::wire::response::{json, with_type};

const HTML: &str = "text/html; charset=utf-8";

/// The service and its most important paths
///
/// A browser (a client whose `Accept` prefers `text/html`) is redirected to `/docs`.
#[utoipa::path(
    get,
    path = "/",
    operation_id = "getIndex",
    tag = "open",
    responses(
        (status = 200, description = "The index", body = IndexBody),
        (status = 303, description = "For browsers: see `/docs`"),
    )
)]
pub(crate) async fn index(headers: HeaderMap) -> Result<Response, Problem> {
    let mut response = if prefers_html(&headers) {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::SEE_OTHER;
        response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/docs"));
        response
    } else {
        json(&IndexBody {
            name: ServiceName::Tagfast,
            version: env!("CARGO_PKG_VERSION"),
            links: IndexLinks {
                docs: "/docs",
                openapi: "/openapi.json",
                health: "/healthz",
                ready: "/readyz",
                metrics: "/metrics",
                status: "/v1/status",
            },
        })
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// Whether the process answers
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "getHealth",
    tag = "open",
    responses((status = 200, description = "The process answers", body = HealthBody))
)]
pub(crate) async fn healthz() -> Result<Response, Problem> {
    Ok(json(&HealthBody { status: HealthStatus::Ok }))
}

/// Whether the service can do its work
///
/// 503 names the parts that are not ready.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "getReadiness",
    tag = "open",
    responses(
        (status = 200, description = "Every part is ready", body = ReadyBody),
        (status = 503, description = "At least one part is not ready", body = ReadyBody),
    )
)]
pub(crate) async fn readyz(State(state): State<Arc<ApiState>>) -> Result<Response, Problem> {
    let operations = &state.services.operations;
    let not_ready = PartProblemBody::not_ready(operations.readiness().await);
    let degraded = operations.degraded().into_iter().chain(state.degraded());
    let degraded = degraded.map(DegradedBody::from).collect();
    let ready = not_ready.is_empty();
    let mut response = json(&ReadyBody { ready, not_ready, degraded });
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let after = retry_after_header(jittered_retry_after());
        response.headers_mut().insert(header::RETRY_AFTER, after);
    }
    Ok(response)
}

/// Metrics in Prometheus' text format
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "getMetrics",
    tag = "open",
    responses((
        status = 200, description = "The metrics", body = String, content_type = "text/plain",
    ))
)]
pub(crate) async fn metrics(State(state): State<Arc<ApiState>>) -> Result<Response, Problem> {
    let metrics = state.services.operations.metrics();
    Ok(with_type(metrics, "text/plain; version=0.0.4; charset=utf-8"))
}

/// The reference of all calls, machine-readable
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "getOpenapi",
    tag = "open",
    responses((status = 200, description = "OpenAPI 3.1", body = Object))
)]
pub(crate) async fn openapi_json(State(state): State<Arc<ApiState>>) -> Result<Response, Problem> {
    Ok(with_type(state.openapi_json().clone(), "application/json"))
}

/// The reference of all calls, for people
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "getDocs",
    tag = "open",
    responses((
        status = 200, description = "The calls with examples", body = String,
        content_type = "text/html",
    ))
)]
pub(crate) async fn docs_page(State(state): State<Arc<ApiState>>) -> Result<Response, Problem> {
    Ok(with_type(state.docs_page(docs::reference_page), HTML))
}

/// The meaning of a problem code
#[utoipa::path(
    get,
    path = "/docs/problems/{code}",
    operation_id = "getProblemPage",
    tag = "open",
    params((
        "code" = String, Path, description = "A problem's `code`", pattern = "^[a-z_]+$",
        example = "bad_cursor",
    )),
    responses((
        status = 200, description = "The meaning", body = String, content_type = "text/html",
    ))
)]
pub(crate) async fn problem_page(uri: Uri) -> Result<Response, Problem> {
    let code = path_segment(uri.path().split('/').nth(3).unwrap_or_default())?;
    let row = PROBLEM_CODES.iter().find(|row| row.code == code);
    let row = row.ok_or_else(|| Problem::new(Code::NotFound, "there is no such problem code"))?;
    Ok(with_type(docs::problem_page(row), HTML))
}
