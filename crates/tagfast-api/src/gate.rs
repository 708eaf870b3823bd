//! The one middleware every route passes: limits, authentication, rate, deadline, panics, problem
//! bodies, gzip, metrics and the request id.
//!
//! One pass instead of a stack of layers, because a view of a content costs little more than the
//! layers would. What can fail here fails as a problem document; a panic of a handler is caught,
//! counted and answered 500.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use metrics::{Counter, Gauge, Histogram};
use tokio::time::Instant;
use tower_service::Service;

use crate::app::App;
use crate::call::Context;
use crate::gzip;
use crate::headers::{self, REQUEST_ID};
use crate::problem::{Code, Problem};
use crate::rate::Admission;

/// How much later than the handler's deadline the gate gives up: the store's own answer says more.
const GRACE: Duration = Duration::from_millis(250);

/// Whether a route asks who is calling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Open: health, metrics, documentation.
    Public,
    /// A caller is needed; the handler's extractor names the scope.
    Caller,
}

/// Wraps the handlers of one route.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Route>);

struct Route {
    app: Arc<App>,
    access: Access,
    meters: Meters,
}

impl Gate {
    pub(crate) fn new(app: &Arc<App>, route: &str, access: Access) -> Self {
        Self(Arc::new(Route { app: Arc::clone(app), access, meters: Meters::new(route) }))
    }
}

impl<S> tower::Layer<S> for Gate {
    type Service = Gated<S>;
    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, route: Arc::clone(&self.0) }
    }
}

/// A handler behind the gate.
#[derive(Clone)]
pub(crate) struct Gated<S> {
    inner: S,
    route: Arc<Route>,
}

impl<S> Service<Request> for Gated<S>
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
        Box::pin(async move { Ok(pass(inner, route, request).await) })
    }
}

async fn pass<S>(mut inner: S, route: Arc<Route>, mut request: Request) -> Response
where
    S: Service<Request, Response = Response, Error = std::convert::Infallible>,
{
    let started = Instant::now();
    let _in_flight = InFlight::enter(&route.meters);
    let method = request.method().clone();
    let id = request_id(request.headers());
    // Copied only where there is one: the request is gone when a problem has to name its trace.
    let parent =
        headers::traceparent(request.headers()).and_then(|p| p.get(3..35)).map(str::to_owned);
    let trace = parent.as_deref().unwrap_or_else(|| id.to_str().unwrap_or_default());
    let gzip = headers::accepts_gzip(request.headers());

    let admitted = admit(&route, &mut request, started, &id).await;
    let rate = admitted.as_ref().map_or(None, |admission| *admission);
    let mut response = match admitted {
        Err(problem) => problem.into_response(),
        Ok(_) => {
            let deadline = started + route.app.parts.limits.request_timeout + GRACE;
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
                    metrics::counter!("tagfast_http_panics_total").increment(1);
                    tracing::error!(
                        route = &*route.meters.route,
                        trace_id = trace,
                        "a handler panicked"
                    );
                    Problem::new(Code::Internal, "the request met a bug; the log has the details")
                        .into_response()
                }
                Err(_elapsed) => {
                    Problem::new(Code::Deadline, "the request timeout passed").into_response()
                }
            }
        }
    };

    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        write_problem(&mut response, &problem, trace);
    }
    if let Some(admission) = rate {
        admission.write(response.headers_mut());
    }
    response.headers_mut().insert(REQUEST_ID.clone(), id.clone());
    let response = gzip::compress(response, gzip && method != Method::HEAD).await;
    route.meters.answered(&method, response.status(), started.elapsed());
    response
}

/// Everything that is decided before the handler runs.
async fn admit(
    route: &Route,
    request: &mut Request,
    started: Instant,
    id: &HeaderValue,
) -> Result<Option<Admission>, Problem> {
    let app = &route.app;
    let url_bytes = request.uri().path_and_query().map_or(0, |p| p.as_str().len());
    if url_bytes > app.parts.limits.url_bytes {
        let allowed = app.parts.limits.url_bytes;
        return Err(Problem::new(
            Code::UrlTooLong,
            format!("the URL has {url_bytes} bytes; at most {allowed} are allowed"),
        )
        .limit("url_bytes", allowed as u64, url_bytes as u64));
    }
    if route.access == Access::Public {
        return Ok(None);
    }
    let who = app.auth.authenticate(request.headers()).await?;
    let admission = app.rate.as_ref().map(|r| r.admit(&who)).transpose()?;
    request.extensions_mut().insert(Context {
        who,
        deadline: started + app.parts.limits.request_timeout,
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

/// The client's id if it is a sane word, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    static SERIES: LazyLock<u64> = LazyLock::new(|| uuid::Uuid::now_v7().as_u64_pair().1);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let sane = |v: &&HeaderValue| {
        let b = v.as_bytes();
        !b.is_empty()
            && b.len() <= 64
            && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b':'))
    };
    if let Some(given) = headers.get(&REQUEST_ID).filter(sane) {
        return given.clone();
    }
    // A random series and a counter, both mixed: unique per process life without a system call per
    // request.
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut text = [0; 32];
    let halves = [*SERIES, SERIES.rotate_left(32) ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15)];
    for (at, slot) in text.iter_mut().enumerate() {
        let nibble = (halves[at / 16] >> (60 - at % 16 * 4)) & 0xf;
        *slot = b"0123456789abcdef"[nibble as usize];
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0"))
}

const METHODS: [&str; 7] = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "other"];
const STATUSES: [u16; 26] = [
    200, 304, 400, 401, 403, 404, 405, 408, 409, 412, 413, 414, 415, 422, 429, 431, 500, 501, 503,
    504, 507, 201, 202, 204, 206, 0,
];

/// Metric handles of one route, looked up once.
struct Meters {
    route: Arc<str>,
    requests: Vec<OnceLock<Counter>>,
    seconds: OnceLock<Histogram>,
    in_flight: OnceLock<Gauge>,
}

impl Meters {
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
            metrics::counter!("tagfast_http_requests_total",
                "route" => self.route.to_string(), "method" => METHODS[m], "status" => status)
        });
        counter.increment(1);
        let seconds = self
            .seconds
            .get_or_init(|| metrics::histogram!("tagfast_http_request_seconds", "route" => self.route.to_string()));
        seconds.record(took.as_secs_f64());
    }
}

/// Counts a request while it runs, also when its future is dropped.
struct InFlight(Gauge);

impl InFlight {
    fn enter(meters: &Meters) -> Self {
        let gauge = meters
            .in_flight
            .get_or_init(|| metrics::gauge!("tagfast_http_requests_in_flight"))
            .clone();
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
