//! The router: every route with its gate, and the OpenAPI document that is made from the same list.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::response::Response;
use bytes::Bytes;
use http::Method;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use crate::auth::Authenticator;
use crate::gate::{Access, Gate};
use crate::parts::ApiParts;
use crate::problem::{Code, Problem};
use crate::rate::RateLimiter;
use crate::routes::{batch, breakers, content, export, find, letters, open, operations, tags};
use crate::sheddable::Sheddable;

/// What the handlers share.
pub(crate) struct App {
    pub(crate) parts: ApiParts,
    pub(crate) auth: Authenticator,
    pub(crate) rate: Option<RateLimiter>,
    pub(crate) sheddable: Arc<Sheddable>,
    openapi: OnceLock<Bytes>,
}

impl App {
    /// The OpenAPI document, made at the first request.
    pub(crate) fn openapi_json(&self) -> &Bytes {
        self.openapi.get_or_init(|| crate::openapi().to_json().unwrap_or_default().into())
    }
}

type Routes = UtoipaMethodRouter<Arc<App>>;

/// Every route: its handlers and who may call it. The gate's metrics carry the path as it stands in
/// the document.
fn table() -> Vec<(Access, Routes)> {
    whole().into_iter().chain(running()).collect()
}

/// What the service is for.
fn whole() -> Vec<(Access, Routes)> {
    use Access::Caller;
    vec![
        (Caller, routes!(content::view, content::patch_tags, content::replace_tags)),
        (Caller, routes!(content::add_tag, content::remove_tag)),
        (Caller, routes!(batch::batch_get)),
        (Caller, routes!(batch::batch_tag)),
        (Caller, routes!(find::search)),
        (Caller, routes!(tags::suggest)),
        (Caller, routes!(tags::popular_tags)),
        (Caller, routes!(tags::one_tag)),
        (Caller, routes!(export::export)),
        (Caller, routes!(operations::receipt)),
    ]
}

/// What is needed to run it: every process answers these.
fn running() -> Vec<(Access, Routes)> {
    use Access::{Caller, Public};
    vec![
        (Caller, routes!(operations::status)),
        (Caller, routes!(operations::reindex)),
        (Caller, routes!(operations::recount)),
        (Caller, routes!(operations::failovers)),
        (Caller, routes!(breakers::list, breakers::force)),
        (Caller, routes!(letters::list)),
        (Caller, routes!(letters::show)),
        (Caller, routes!(letters::replay)),
        (Caller, routes!(letters::job)),
        (Caller, routes!(letters::discard)),
        (Caller, routes!(letters::acts)),
        (Caller, routes!(letters::allow_storm)),
        (Public, routes!(open::healthz)),
        (Public, routes!(open::readyz)),
        (Public, routes!(open::metrics)),
        (Public, routes!(open::openapi_json)),
        (Public, routes!(open::docs_page)),
        (Public, routes!(open::problem_page)),
    ]
}

/// The HTTP API, whole or what operations need of it.
pub fn router(parts: ApiParts) -> Router {
    let whole = parts.whole;
    let app = Arc::new(App {
        auth: Authenticator::new(&parts.auth, &parts.clock),
        rate: RateLimiter::new(&parts.limits),
        sheddable: Sheddable::new(parts.limits.max_stale),
        parts,
        openapi: OnceLock::new(),
    });
    let mut all = OpenApiRouter::new();
    let routes = if whole { table() } else { running() };
    for (access, (schemas, paths, methods)) in routes {
        let path = paths.paths.keys().next().cloned().unwrap_or_default();
        let gated = methods.fallback(method_not_allowed).layer(Gate::new(&app, &path, access));
        all = all.routes((schemas, paths, gated));
    }
    let (router, _) = all.split_for_parts();
    let unknown = tower::Layer::layer(
        &Gate::new(&app, "unknown", Access::Public),
        tower::service_fn(not_found),
    );
    router.fallback_service(unknown).with_state(app)
}

/// The paths and schemas of every route, as the handlers describe them.
pub(crate) fn described() -> OpenApi {
    let mut all: OpenApiRouter<Arc<App>> = OpenApiRouter::new();
    for (_, routes) in table() {
        all = all.routes(routes);
    }
    all.into_openapi()
}

async fn method_not_allowed(method: Method) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("this route has no {method}"))
}

async fn not_found(request: axum::extract::Request) -> Result<Response, std::convert::Infallible> {
    let path: String = request.uri().path().chars().take(200).collect();
    Ok(axum::response::IntoResponse::into_response(Problem::new(
        Code::NotFound,
        format!("there is no route {path:?}"),
    )))
}
