//! The HTTP API: wire types, handlers by resource, problem+json, OpenAPI. Sees ports only.
//!
//! Every answer that is not a success is `application/problem+json` with a stable code, whichever
//! part made it: a handler, the router, the body reader or a limit, and also when the HTTP library
//! refuses a head before a request exists (`connection.rs`).
//!
//! Reading order: [`router`] lists the routes, `middleware.rs` is what every request passes,
//! `handlers/<resource>.rs` has the handlers and `wire/<resource>.rs` the bodies beside them.

mod auth;
mod body;
mod byte_budget;
mod claims;
mod connection;
mod connection_io;
mod cursor;
mod docs;
mod encoding;
mod entity_tags;
mod fallback;
mod gzip;
mod handlers;
mod head;
mod header_rules;
mod headers;
mod jwks;
mod last_good;
mod metric;
mod middleware;
mod openapi;
mod params;
pub mod problem;
mod rate_limit;
mod refusal;
mod request;
mod router;
mod server;
pub mod services;
mod session_writes;
mod state;
mod time;
mod web_guard;
mod wire;

pub use byte_budget::ByteBudget;
pub use jwks::usable_keys;
pub use metric::METRICS;
pub use problem::{PROBLEM_CODES, ProblemCode};
pub use router::{openapi, router};
pub use server::serve;
pub use services::{
    ApiLimits, ApiServices, AuthConfig, ConsumerStatus, DeadLetters, JwksSource, JwksSourceError,
    LimitStatus, Operations, OperationsError, Readiness, RunningOperation, StatusReport,
};
pub use web_guard::AllowedHosts;
