//! The router: every route with its middleware, and the OpenAPI document made from the same list.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::Method;
use tagfast_resilience::ErrorChain;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use crate::handlers::{
    admin, batch, breakers, clusters, content, dead_letters, export, failovers, jobs, public,
    receipts, search, tags,
};
use crate::middleware::{Access, RequestLayer};
use crate::openapi::complete;
use crate::problem::{Code, Problem};
use crate::services::ApiServices;
use crate::state::ApiState;

/// Longest part of an unknown path that the error repeats, in characters.
const SHOWN_PATH_CHARS_MAX: usize = 200;

type Routes = UtoipaMethodRouter<Arc<ApiState>>;

/// Every route with the access it needs. Metrics carry the path as the OpenAPI document has it.
fn all_routes() -> Vec<(Access, Routes)> {
    product_routes().into_iter().chain(operations_routes()).collect()
}

/// The routes that product code calls.
fn product_routes() -> Vec<(Access, Routes)> {
    use Access::Caller;
    vec![
        (Caller, routes!(content::view, content::patch_tags, content::replace_tags)),
        (Caller, routes!(content::add_tag, content::remove_tag)),
        (Caller, routes!(batch::batch_get)),
        (Caller, routes!(batch::batch_tag)),
        (Caller, routes!(search::search)),
        (Caller, routes!(tags::tags)),
        (Caller, routes!(tags::popular_tags)),
        (Caller, routes!(tags::one_tag)),
        (Caller, routes!(export::export)),
        (Caller, routes!(receipts::receipt)),
        (Caller, routes!(receipts::check)),
    ]
}

/// The routes that operators and monitoring call; every process serves them.
fn operations_routes() -> Vec<(Access, Routes)> {
    use Access::{Caller, Public};
    vec![
        (Caller, routes!(admin::status)),
        (Caller, routes!(admin::reindex)),
        (Caller, routes!(admin::recount)),
        (Caller, routes!(clusters::list)),
        (Caller, routes!(failovers::list)),
        (Caller, routes!(failovers::show)),
        (Caller, routes!(failovers::writes)),
        (Caller, routes!(breakers::list, breakers::force)),
        (Caller, routes!(dead_letters::list)),
        (Caller, routes!(dead_letters::audit_log)),
        (Caller, routes!(dead_letters::show)),
        (Caller, routes!(dead_letters::replay)),
        (Caller, routes!(dead_letters::discard)),
        (Caller, routes!(dead_letters::allow_storm)),
        (Caller, routes!(jobs::job)),
        (Public, routes!(public::index)),
        (Public, routes!(public::healthz)),
        (Public, routes!(public::readyz)),
        (Public, routes!(public::metrics)),
        (Public, routes!(public::openapi_json)),
        (Public, routes!(public::docs_page)),
        (Public, routes!(public::problem_page)),
    ]
}

/// The HTTP API: all routes, or the operations routes alone if the services say so.
pub fn router(services: ApiServices) -> Router {
    let routes = if services.serves_product { all_routes() } else { operations_routes() };
    let state = ApiState::new(services, openapi_json);
    let mut all = OpenApiRouter::new();
    for (access, (schemas, paths, methods)) in routes {
        let path = paths.paths.keys().next().cloned().unwrap_or_default();
        let layer = RequestLayer::new(&state, &path, access);
        all = all.routes((schemas, paths, methods.fallback(method_not_allowed).layer(layer)));
    }
    let (router, _) = all.split_for_parts();
    let unknown = tower::Layer::layer(
        &RequestLayer::new(&state, "unknown", Access::Public),
        tower::service_fn(not_found),
    );
    router.fallback_service(unknown).with_state(state)
}

/// The OpenAPI document: what the handlers describe, completed with what all of them share.
pub fn openapi() -> OpenApi {
    let mut all: OpenApiRouter<Arc<ApiState>> = OpenApiRouter::new();
    for (_, routes) in all_routes() {
        all = all.routes(routes);
    }
    complete(all.into_openapi())
}

fn openapi_json() -> Bytes {
    match openapi().to_json() {
        Ok(json) => json.into(),
        Err(error) => {
            tracing::error!(
                error = %ErrorChain(&error),
                "the OpenAPI document cannot be written as JSON"
            );
            Bytes::new()
        }
    }
}

async fn method_not_allowed(method: Method) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("this route has no {method}"))
}

async fn not_found(request: Request) -> Result<Response, Infallible> {
    let path: String = request.uri().path().chars().take(SHOWN_PATH_CHARS_MAX).collect();
    Ok(Problem::new(Code::NotFound, format!("there is no route {path:?}")).into_response())
}
