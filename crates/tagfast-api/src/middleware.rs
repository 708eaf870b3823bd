//! The one middleware of every route: limits, host and origin, authentication, rate limit,
//! deadline, panics, problem bodies, gzip, metrics and the request id.
//!
//! It is one pass instead of a stack of layers, because a view of a content costs little more than
//! the layers would.
//!
//! How it fails: every refusal is a problem document; a panic of a handler is caught, counted and
//! answered 500.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use metrics::{Counter, Gauge, Histogram};
use tagfast_resilience::{Bounded, counter, gauge, histogram};
use tokio::time::Instant;
use tower_service::Service;

use crate::body::{self, AnswerBytes};
use crate::gzip;
use crate::header_rules;
use crate::headers::{self, REQUEST_ID};
use crate::metric::{
    HTTP_PANICS, HTTP_REQUEST_SECONDS, HTTP_REQUESTS, HTTP_REQUESTS_IN_FLIGHT, Held,
};
use crate::problem::{Code, Problem};
use crate::rate_limit::Admission;
use crate::request::RequestContext;
use crate::state::ApiState;

/// How long after the handler's deadline the middleware gives up: the store's own answer at the
/// deadline says more.
const TIMEOUT_GRACE: Duration = Duration::from_millis(250);
/// The call below `/v1/content` whose POST changes nothing.
const BATCH_GET: &str = "/v1/content:batchGet";
/// Longest request id of a client that is kept, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// Whether a route requires a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// No authentication: health, metrics, documentation.
    Public,
    /// An authenticated caller; the handler's extractor names the scope.
    Caller,
}

/// Adds the middleware to the handlers of one route.
#[derive(Clone)]
pub(crate) struct RequestLayer(Arc<Route>);

struct Route {
    state: Arc<ApiState>,
    access: Access,
    /// Whether every method but GET and HEAD changes contents.
    changes_contents: bool,
    meters: RouteMeters,
}

impl RequestLayer {
    /// `route` is the path in metrics and traces.
    pub(crate) fn new(state: &Arc<ApiState>, route: &str, access: Access) -> Self {
        let meters = RouteMeters::new(route);
        let changes_contents = route.starts_with("/v1/content") && route != BATCH_GET;
        Self(Arc::new(Route { state: Arc::clone(state), access, changes_contents, meters }))
    }
}

impl<S> tower::Layer<S> for RequestLayer {
    type Service = RequestService<S>;
    fn layer(&self, inner: S) -> RequestService<S> {
        RequestService { inner, route: Arc::clone(&self.0) }
    }
}

/// A handler with the middleware around it.
#[derive(Clone)]
pub(crate) struct RequestService<S> {
    inner: S,
    route: Arc<Route>,
}

impl<S> Service<Request> for RequestService<S>
where
    S: Service<Request, Response = Response, Error = std::convert::Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, std::convert::Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        let route = Arc::clone(&self.route);
        Box::pin(async move { Ok(handle(inner, route, request).await) })
    }
}

async fn handle<S>(mut inner: S, route: Arc<Route>, mut request: Request) -> Response
where
    S: Service<Request, Response = Response, Error = std::convert::Infallible>,
{
    let started = Instant::now();
    let _in_flight = InFlight::enter(&route.meters);
    let method = request.method().clone();
    let id = request_id(request.headers());
    // Copied only if there is one: the request is gone when a problem has to name its trace.
    let parent =
        headers::traceparent(request.headers()).and_then(|p| p.get(3..35)).map(str::to_owned);
    let trace = parent.as_deref().unwrap_or_else(|| id.to_str().unwrap_or_default());
    let gzip = headers::accepts_gzip(request.headers());
    let writes = route.changes_contents && !matches!(method, Method::GET | Method::HEAD);

    let admitted = authorize(&route, &mut request, started, &id).await;
    let rate = admitted.as_ref().map_or(None, |admission| *admission);
    let mut response = match admitted {
        Err(problem) => problem.into_response(),
        Ok(_) => {
            let deadline = started + route.state.services.limits.request_timeout + TIMEOUT_GRACE;
            let span = tracing::debug_span!(
                "request",
                route = &*route.meters.route,
                method = %method,
                trace_id = trace,
            );
            let work = AssertUnwindSafe(async move { inner.call(request).await }).catch_unwind();
            let work = tokio::time::timeout_at(deadline, work);
            let outcome = if span.is_disabled() {
                work.await
            } else {
                tracing::Instrument::instrument(work, span).await
            };
            match outcome {
                Ok(Ok(Ok(response))) => response,
                Ok(Err(_panic)) => {
                    counter!(HTTP_PANICS).increment(1);
                    tracing::error!(
                        route = &*route.meters.route,
                        trace_id = trace,
                        "a handler panicked"
                    );
                    Problem::new(Code::Internal, "the request hit a bug; the log has the details")
                        .may_be_written(writes)
                        .into_response()
                }
                Err(_elapsed) => Problem::new(Code::Deadline, "the request timeout passed")
                    .may_be_written(writes)
                    .into_response(),
            }
        }
    };

    // The answer of a change must be given: the change has happened. A batch of views has taken its
    // bytes while it was made.
    let mut held = response.extensions_mut().remove::<AnswerBytes>();
    if held.is_none()
        && let Some(size) = response.body().size_hint().exact().filter(|size| *size > 0)
    {
        let mut bytes = route.state.services.byte_budget.holder(Held::Answer);
        let grown = if matches!(method, Method::GET | Method::HEAD) {
            bytes.grow(size as usize)
        } else {
            bytes.grow_always(size as usize);
            Ok(())
        };
        match grown {
            Ok(()) => held = Some(AnswerBytes(Arc::new(bytes))),
            Err(problem) => response = problem.into_response(),
        }
    }
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let problem = if writes { problem.of_write() } else { problem.of_read() };
        write_problem(&mut response, &problem, trace);
    }
    if let Some(admission) = rate {
        admission.write(response.headers_mut());
    }
    response.headers_mut().insert(REQUEST_ID.clone(), id.clone());
    headers::protect(response.headers_mut(), route.access == Access::Public);
    let mut response = gzip::compress(response, gzip && method != Method::HEAD).await;
    if let Some(mut held) = held {
        if let Some(size) = response.body().size_hint().exact() {
            held.shrink_to(size as usize);
        }
        response = response.map(|body| body::holding(body, held));
    }
    route.meters.answered(&method, response.status(), started.elapsed());
    response
}

/// The checks before the handler: length of the URL, headers, host and origin, authentication, rate
/// limit. `None`: the route is public, or no rate limit is configured.
async fn authorize(
    route: &Route,
    request: &mut Request,
    started: Instant,
    id: &HeaderValue,
) -> Result<Option<Admission>, Problem> {
    let state = &route.state;
    let limits = &state.services.limits;
    let url_bytes = request.uri().path_and_query().map_or(0, |p| p.as_str().len());
    if url_bytes > limits.url_bytes {
        let allowed = limits.url_bytes;
        let detail = format!("the URL has {url_bytes} bytes; at most {allowed} are allowed");
        return Err(Problem::new(Code::UrlTooLong, detail).limit(
            "url_bytes",
            allowed as u64,
            url_bytes as u64,
        ));
    }
    if let Some(header_rules::WireFault(problem)) = request.extensions_mut().remove() {
        return Err(problem);
    }
    header_rules::check(request.headers(), request.body().is_end_stream())?;
    state.services.allowed_hosts.check(request.method(), request.uri(), request.headers())?;
    if route.access == Access::Public {
        return Ok(None);
    }
    let caller = state.auth.authenticate(request.headers()).await?;
    let limiter = state.rate_limiter.as_ref();
    let admission = limiter.map(|l| l.admit(&caller.tenant, &caller.user)).transpose()?;
    request.extensions_mut().insert(RequestContext {
        caller,
        deadline: started + limits.request_timeout,
        request_id: id.clone(),
    });
    Ok(admission)
}

fn write_problem(response: &mut Response, problem: &Problem, trace: &str) {
    let status = problem.code().definition().status;
    if status >= 500 && status != 501 {
        tracing::warn!(code = problem.code().definition().code, trace_id = trace, "request failed");
    }
    let body = serde_json::to_vec(&problem.body(trace)).unwrap_or_default();
    *response.body_mut() = Body::from(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// The client's request id if it is a short plain word, else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    static SERIES: LazyLock<u64> = LazyLock::new(|| uuid::Uuid::now_v7().as_u64_pair().1);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let is_plain = |v: &&HeaderValue| {
        let b = v.as_bytes();
        !b.is_empty()
            && b.len() <= REQUEST_ID_BYTES_MAX
            && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b':'))
    };
    if let Some(given) = headers::lone(headers, &REQUEST_ID).filter(is_plain) {
        return given.clone();
    }
    // A random series mixed with a counter: unique per process without a system call per request.
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let halves = [*SERIES, SERIES.rotate_left(32) ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15)];
    let mut text = [0; 32];
    let encoded = hex::encode_to_slice(halves[0].to_be_bytes(), &mut text[..16])
        .and_then(|()| hex::encode_to_slice(halves[1].to_be_bytes(), &mut text[16..]));
    match encoded {
        Ok(()) => HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0")),
        Err(_) => HeaderValue::from_static("0"),
    }
}

const METHODS: [&str; 7] = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "other"];
const STATUSES: [u16; 28] = [
    200, 304, 400, 401, 403, 404, 405, 408, 409, 412, 413, 414, 415, 421, 422, 429, 431, 500, 501,
    503, 504, 505, 507, 201, 202, 204, 206, 0,
];

/// Metric handles of one route, each looked up once.
struct RouteMeters {
    route: Arc<str>,
    requests: Vec<OnceLock<Counter>>,
    seconds: OnceLock<Histogram>,
    in_flight: OnceLock<Gauge>,
}

impl RouteMeters {
    fn new(route: &str) -> Self {
        let requests = (0..METHODS.len() * STATUSES.len()).map(|_| OnceLock::new()).collect();
        Self { route: route.into(), requests, seconds: OnceLock::new(), in_flight: OnceLock::new() }
    }

    fn answered(&self, method: &Method, status: StatusCode, took: Duration) {
        let m = METHODS.iter().position(|m| *m == method.as_str()).unwrap_or(METHODS.len() - 1);
        let s = STATUSES.iter().position(|s| *s == status.as_u16()).unwrap_or(STATUSES.len() - 1);
        let counter = self.requests[m * STATUSES.len() + s].get_or_init(|| {
            let status =
                if STATUSES[s] == 0 { "other".to_owned() } else { STATUSES[s].to_string() };
            counter!(
                HTTP_REQUESTS,
                "route" => Bounded(self.route.to_string()),
                "method" => Bounded(METHODS[m]),
                "status" => Bounded(status),
            )
        });
        counter.increment(1);
        let seconds = self.seconds.get_or_init(
            || histogram!(HTTP_REQUEST_SECONDS, "route" => Bounded(self.route.to_string())),
        );
        seconds.record(took.as_secs_f64());
    }
}

/// Counts a request as in flight until it is dropped, also when its future is dropped early.
struct InFlight(Gauge);

impl InFlight {
    fn enter(meters: &RouteMeters) -> Self {
        let gauge = meters.in_flight.get_or_init(|| gauge!(HTTP_REQUESTS_IN_FLIGHT)).clone();
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
