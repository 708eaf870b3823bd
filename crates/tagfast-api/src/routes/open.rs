//! What needs no caller: health, readiness, metrics, the API's description.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::operations::PartBody;
use crate::app::App;
use crate::problem::{Code, PROBLEM_CODES, Problem};
use crate::wire::DegradedBody;
use crate::{docs, encoding, wire};

/// The process answers.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
struct HealthBody {
    #[schema(value_type = String, pattern = "^ok$")]
    status: &'static str,
}

/// Whether the service can do its work.
#[derive(Serialize, ToSchema)]
#[schema(as = Ready)]
struct ReadyBody {
    ready: bool,
    /// Parts that are not ready and why.
    not_ready: Vec<PartBody>,
    /// What works worse than it should, and why; the service is ready nevertheless.
    degraded: Vec<DegradedBody>,
}

fn no_query(uri: &Uri) -> Result<(), Problem> {
    encoding::Query::parse(uri.query(), &[]).map(drop)
}

/// Whether the process answers
#[utoipa::path(get, path = "/healthz", tag = "open", responses((status = 200, description = "It does", body = HealthBody)))]
pub(crate) async fn healthz(uri: Uri) -> Result<Response, Problem> {
    no_query(&uri)?;
    Ok(wire::json(&HealthBody { status: "ok" }))
}

/// Whether the service can do its work
///
/// 503 names the parts that are not ready.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "open",
    responses(
        (status = 200, description = "Every part is ready", body = ReadyBody),
        (status = 503, description = "Some part is not ready", body = ReadyBody),
    )
)]
pub(crate) async fn readyz(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    no_query(&uri)?;
    let parts = app.parts.operations.readiness().await;
    let not_ready: Vec<_> = parts
        .into_iter()
        .filter_map(|r| Some(PartBody { part: r.part, problem: r.problem? }))
        .collect();
    let ready = not_ready.is_empty();
    let degraded = app.parts.operations.degraded();
    let degraded =
        degraded.into_iter().map(|(feature, reason)| DegradedBody { feature, reason }).collect();
    let mut response = wire::json(&ReadyBody { ready, not_ready, degraded });
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    Ok(response)
}

/// Metrics in Prometheus' text format
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "open",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain"))
)]
pub(crate) async fn metrics(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    no_query(&uri)?;
    Ok(text(app.parts.operations.metrics(), "text/plain; version=0.0.4; charset=utf-8"))
}

/// This description
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "open",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value))
)]
pub(crate) async fn openapi_json(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Response, Problem> {
    no_query(&uri)?;
    Ok(text(app.openapi_json().clone(), "application/json"))
}

/// A page for people
#[utoipa::path(
    get,
    path = "/docs",
    tag = "open",
    responses((status = 200, description = "The routes", body = String, content_type = "text/html"))
)]
pub(crate) async fn docs_page(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    no_query(&uri)?;
    Ok(text(docs::page(app.openapi_json()), "text/html; charset=utf-8"))
}

/// What a problem code means
#[utoipa::path(
    get,
    path = "/docs/problems/{code}",
    tag = "open",
    params(("code" = String, Path, description = "A problem's `code`", pattern = "^[a-z_]+$")),
    responses((status = 200, description = "The meaning", body = String, content_type = "text/html"))
)]
pub(crate) async fn problem_page(uri: Uri) -> Result<Response, Problem> {
    no_query(&uri)?;
    let code = encoding::segment(uri.path().split('/').nth(3).unwrap_or_default())?;
    let row = PROBLEM_CODES.iter().find(|row| row.code == code);
    let row = row.ok_or_else(|| Problem::new(Code::NotFound, "there is no such problem code"))?;
    Ok(text(docs::problem(row), "text/html; charset=utf-8"))
}

fn text(body: impl Into<Body>, content_type: &'static str) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
