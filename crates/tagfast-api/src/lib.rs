//! The HTTP API: wire types, handlers by resource, problem+json, OpenAPI. Sees ports only.
