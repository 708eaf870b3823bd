//! The HTTP API: wire types, handlers by resource, problem+json, OpenAPI. Sees ports only.
//!
//! Every answer that is not a success is `application/problem+json` with a stable code, whichever
//! part made it: a handler, the router, the body reader or a limit. Only a head that the HTTP
//! library refuses before a request exists (not HTTP, or larger than 64 KiB) is answered without a
//! body.
//!
//! Reading order: [`router`] lists the routes, `middleware.rs` is what every request passes,
//! `handlers/<resource>.rs` has the handlers and `wire/<resource>.rs` the bodies beside them.

mod auth;
mod body;
mod byte_budget;
mod connection_io;
mod cursor;
mod docs;
mod encoding;
mod fallback;
mod gzip;
mod handlers;
mod headers;
mod jwks;
mod key_bindings;
mod last_good;
mod metric;
mod middleware;
mod openapi;
mod params;
pub mod problem;
mod rate_limit;
mod request;
mod router;
mod server;
pub mod services;
mod state;
mod time;
mod web_guard;
mod wire;

pub use byte_budget::ByteBudget;
pub use metric::METRICS;
pub use problem::{PROBLEM_CODES, ProblemCode};
pub use router::{openapi, router};
pub use server::serve;
pub use services::{
    ApiLimits, ApiServices, AuthConfig, ConsumerStatus, DeadLetters, JwksSource, LimitStatus,
    Operations, OperationsError, Readiness, StatusReport,
};
pub use web_guard::AllowedHosts;
