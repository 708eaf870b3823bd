//! Traces over OTLP (HTTP, protobuf).
//!
//! The exporter runs in a thread of its own that has no runtime; its HTTP calls run on ours. Queued
//! spans are sent when the server stops.
//!
//! How it fails: spans that find the queue full are dropped; a collector that does not answer costs
//! nothing else.

use std::time::Duration;

use async_trait::async_trait;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use percent_encoding::percent_decode_str;
use tagfast_client::error::CliError;
use tagfast_domain::ContentKey;
use tagfast_resilience::{Address, ErrorChain};
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;

use crate::config::TelemetryConfig;

/// Only spans of this target are exported: one for each request, and for each event of a traced one
/// that is applied.
const SPAN_TARGET: &str = "tagfast::request";
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Running export of traces.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts the export if an endpoint is configured.
    pub(crate) fn start(config: &TelemetryConfig) -> Result<Option<Self>, CliError> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            CliError::new(format!("cannot export traces to {endpoint}")).with_source(e)
        };
        let Target { url, headers } = Target::of(endpoint).ok_or_else(|| {
            CliError::usage(format!("telemetry.otlp_endpoint {endpoint} is no URL"))
        })?;
        let http = reqwest::Client::builder()
            .timeout(EXPORT_TIMEOUT)
            .default_headers(headers)
            .build()
            .map_err(|e| failed(e.into()))?;
        let handle = tokio::runtime::Handle::current();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(OnRuntime { handle, http })
            .with_endpoint(url)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|e| failed(e.into()))?;
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
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + 'static + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let ours = FilterFn::new(|metadata| metadata.is_span() && metadata.target() == SPAN_TARGET);
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("tagfast"))
            .with_filter(ours)
    }

    /// Sends the queued spans and stops. Blocks: the caller must be outside of async code, and the
    /// runtime must still run.
    pub(crate) fn stop(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(EXPORT_TIMEOUT) {
            tracing::warn!(error = %ErrorChain(&error), "traces were not flushed");
        }
    }
}

/// The span of an event that a consumer applies, child of the write's `traceparent`; `None` if that
/// was not sampled.
pub(crate) fn applied(
    group: &str,
    content: &ContentKey,
    traceparent: &str,
) -> Option<tracing::Span> {
    if !traceparent.ends_with("-01") {
        return None;
    }
    let span = tracing::info_span!(
        target: SPAN_TARGET,
        "apply",
        otel.name = format!("apply {group}"),
        otel.kind = "consumer",
        tagfast.content = %content,
    );
    let parent = TraceContextPropagator::new().extract(&TraceparentExtractor(traceparent));
    let _ = span.set_parent(parent);
    Some(span)
}

/// Middleware: one span a request, child of the caller's `traceparent`. Writes carry the span's
/// context, so that the consumers' work on their events is in the same trace.
pub(crate) async fn span(mut request: Request, next: Next) -> Response {
    let span = tracing::info_span!(
        target: SPAN_TARGET,
        "request",
        otel.name = format!("{} {}", request.method(), route(&request)),
        otel.kind = "server",
        http.request.method = %request.method(),
        url.path = request.uri().path(),
        http.response.status_code = tracing::field::Empty,
    );
    let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
    // Fails only without an exporter, and then no exporter reads the parent.
    let _ = span.set_parent(parent);
    let context = span.context();
    if context.span().span_context().is_sampled() {
        TraceContextPropagator::new()
            .inject_context(&context, &mut HeaderInjector(request.headers_mut()));
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
struct TraceparentExtractor<'a>(&'a str);

impl Extractor for TraceparentExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

struct HeaderInjector<'a>(&'a mut http::HeaderMap);

impl Injector for HeaderInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        // This propagator writes letters and digits only.
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

/// Where traces are sent, with the user and password of the endpoint as a header.
struct Target {
    url: String,
    headers: http::HeaderMap,
}

impl Target {
    /// `None`: the endpoint is no URL.
    fn of(endpoint: &Address) -> Option<Self> {
        let mut url = reqwest::Url::parse(endpoint.expose()).ok()?;
        let mut headers = http::HeaderMap::new();
        if !url.username().is_empty() || url.password().is_some() {
            let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
            let user = decoded(url.username());
            let login = format!("{user}:{}", decoded(url.password().unwrap_or_default()));
            let mut value =
                http::HeaderValue::try_from(format!("Basic {}", STANDARD.encode(login))).ok()?;
            value.set_sensitive(true);
            headers.insert(http::header::AUTHORIZATION, value);
            url.set_username("").ok()?;
            url.set_password(None).ok()?;
        }
        let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&path);
        Some(Self { url: url.into(), headers })
    }
}

/// An HTTP client whose calls run on our runtime, whichever thread makes them.
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
        // The URL may hold a key.
        Ok(self.handle.spawn(call).await?.map_err(reqwest::Error::without_url)?)
    }
}
