//! Traces over OTLP (HTTP, protobuf).
//!
//! The exporter works in a thread of its own that knows no runtime; its HTTP calls are handed to
//! ours. Spans that find the queue full are dropped. What waits is sent when the server stops.

use std::time::Duration;

use async_trait::async_trait;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tagfast_domain::ContentKey;
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;

use crate::config::TelemetryConfig;
use crate::failure::Failure;

/// Only spans of this target are exported: one for each request, and for each event of a traced one
/// that is applied.
const TARGET: &str = "tagfast::request";
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Running export of traces.
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts the export if an endpoint is configured.
    pub fn start(config: &TelemetryConfig) -> Result<Option<Self>, Failure> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
        let failed = |e: &dyn std::fmt::Display| {
            Failure::new(format!("cannot export traces to {endpoint}: {e}"))
        };
        let http =
            reqwest::Client::builder().timeout(EXPORT_TIMEOUT).build().map_err(|e| failed(&e))?;
        let handle = tokio::runtime::Handle::current();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(OnRuntime { handle, http })
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|e| failed(&e))?;
        let sampler =
            Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.trace_ratio)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(
                Resource::builder().with_service_name(config.service_name.clone()).build(),
            )
            .build();
        Ok(Some(Self { provider }))
    }

    /// Turns our spans into exported ones.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + 'static + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let ours = FilterFn::new(|metadata| metadata.is_span() && metadata.target() == TARGET);
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("tagfast"))
            .with_filter(ours)
    }

    /// Sends what waits and stops. Blocks; call it outside of async code while the runtime still
    /// runs.
    pub fn stop(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(EXPORT_TIMEOUT) {
            tracing::warn!(%error, "traces were not flushed");
        }
    }
}

/// The span of an event that is applied, child of the write's `traceparent`; none if that was not
/// sampled.
pub fn applied(group: &str, content: &ContentKey, traceparent: &str) -> Option<tracing::Span> {
    if !traceparent.ends_with("-01") {
        return None;
    }
    let span = tracing::info_span!(
        target: TARGET,
        "apply",
        otel.name = format!("apply {group}"),
        otel.kind = "consumer",
        tagfast.content = %content,
    );
    let parent = TraceContextPropagator::new().extract(&One(traceparent));
    let _ = span.set_parent(parent);
    Some(span)
}

/// Middleware: one span a request, child of the caller's `traceparent`. What is written is told the
/// span, so that what consumers do with it is in the same trace.
pub async fn span(mut request: Request, next: Next) -> Response {
    let span = tracing::info_span!(
        target: TARGET,
        "request",
        otel.name = format!("{} {}", request.method(), route(&request)),
        otel.kind = "server",
        http.request.method = %request.method(),
        url.path = request.uri().path(),
        http.response.status_code = tracing::field::Empty,
    );
    let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
    // Fails only without an exporter, and then nobody reads the parent.
    let _ = span.set_parent(parent);
    let context = span.context();
    if context.span().span_context().is_sampled() {
        TraceContextPropagator::new().inject_context(&context, &mut Written(request.headers_mut()));
    }
    let recorded = span.clone();
    let response = next.run(request).instrument(span).await;
    recorded.record("http.response.status_code", response.status().as_u16());
    response
}

fn route(request: &Request) -> &str {
    request
        .extensions()
        .get::<axum::extract::MatchedPath>()
        .map_or("", axum::extract::MatchedPath::as_str)
}

/// A `traceparent` that came with an event.
struct One<'a>(&'a str);

impl Extractor for One<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

struct Written<'a>(&'a mut http::HeaderMap);

impl Injector for Written<'_> {
    fn set(&mut self, key: &str, value: String) {
        // What this propagator writes is made of digits and letters.
        if let (Ok(name), Ok(value)) =
            (http::HeaderName::try_from(key), http::HeaderValue::try_from(value))
        {
            self.0.insert(name, value);
        }
    }
}

struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// An HTTP client whose calls run on our runtime, whichever thread asks.
#[derive(Debug, Clone)]
struct OnRuntime {
    handle: tokio::runtime::Handle,
    http: reqwest::Client,
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let call = async move {
            let request: reqwest::Request = request.try_into()?;
            let response = http.execute(request).await?;
            let status = response.status();
            let body = response.bytes().await?;
            let mut answer = http::Response::new(body);
            *answer.status_mut() = status;
            Ok::<_, reqwest::Error>(answer)
        };
        Ok(self.handle.spawn(call).await??)
    }
}
