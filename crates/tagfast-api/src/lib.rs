//! The HTTP API: wire types, handlers by resource, problem+json, OpenAPI. Sees ports only.
//!
//! Every answer that is not a success is `application/problem+json` with a stable code, whoever made it: a handler,
//! the router, the body reader or a limit.

pub mod parts;

pub use parts::{ApiLimits, ApiParts, AuthConfig, JwksSource, Operations, OperationsError, Readiness, StatusReport};
