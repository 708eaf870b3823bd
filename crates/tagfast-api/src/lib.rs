//! The HTTP API: wire types, handlers by resource, problem+json, OpenAPI. Sees ports only.
//!
//! Every answer that is not a success is `application/problem+json` with a stable code, whoever
//! made it: a handler, the router, the body reader or a limit. Only what the HTTP library refuses
//! before a request exists (a head that is no HTTP or larger than 64 KiB) is answered without a
//! body.
//!
//! Reading order: [`router`] lists the routes, the gate is what every request passes, `routes/` has
//! the handlers.

mod app;
mod auth;
mod call;
mod cursor;
mod docs;
mod encoding;
mod gate;
mod gzip;
mod headers;
mod jwks;
mod openapi;
pub mod parts;
pub mod problem;
mod rate;
mod routes;
mod server;
mod sheddable;
mod snapshots;
mod time;
mod wire;

use tagfast_resilience::{LabelDef, MetricDef, MetricKind};

pub use app::router;
pub use openapi::openapi;
pub use parts::{
    ApiLimits, ApiParts, AuthConfig, JwksSource, Letters, LimitStatus, Operations, OperationsError,
    Readiness, StatusReport,
};
pub use problem::{PROBLEM_CODES, ProblemCode};
pub use server::serve;

/// The metrics of this crate.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "tagfast_http_requests_total",
        kind: MetricKind::Counter,
        labels: &[
            LabelDef::bounded("route", "TO DO: values"),
            LabelDef::bounded("method", "TO DO: values"),
            LabelDef::bounded("status", "TO DO: values"),
        ],
        help: "Requests answered. Worry when the share of 5xx other than 501 grows.",
    },
    MetricDef {
        name: "tagfast_http_request_seconds",
        kind: MetricKind::Histogram,
        labels: &[LabelDef::bounded("route", "TO DO: values")],
        help: "Time from a request's head to its answer's head.",
    },
    MetricDef {
        name: "tagfast_http_requests_in_flight",
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Requests being worked on.",
    },
    MetricDef {
        name: "tagfast_http_connections",
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Open connections. At the limit new ones wait in the kernel's queue.",
    },
    MetricDef {
        name: "tagfast_http_panics_total",
        kind: MetricKind::Counter,
        labels: &[],
        help: "Handlers that panicked; each is a bug.",
    },
    MetricDef {
        name: "tagfast_auth_failures_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("reason", "TO DO: values")],
        help: "Requests refused with 401 or 403, and 503 while no key set is loaded, by reason.",
    },
    MetricDef {
        name: "tagfast_rate_limited_total",
        kind: MetricKind::Counter,
        labels: &[],
        help: "Requests refused with 429.",
    },
    MetricDef {
        name: "tagfast_degraded_answers_total",
        kind: MetricKind::Counter,
        labels: &[
            LabelDef::bounded("feature", "TO DO: values"),
            LabelDef::bounded("outcome", "TO DO: values"),
            LabelDef::bounded("reason", "TO DO: values"),
        ],
        help: "Features that could not be had: answered as they were last (last_good), left out (features_limited), or an error because the client takes neither (refused).",
    },
    MetricDef {
        name: "tagfast_last_good_bytes",
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Memory of the last good answers that are kept for when a feature fails; at most 64 MiB.",
    },
];
