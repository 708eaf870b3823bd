//! Tests of the HTTP API over a store in memory.

mod auth;
mod batch;
mod breakers;
mod content;
mod degraded;
mod find;
mod freshness;
mod letters;
mod limits;
mod openapi;
mod operations;
mod problems;
mod server;
mod support;
mod tenants;
