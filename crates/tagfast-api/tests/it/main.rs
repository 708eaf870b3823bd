//! Tests of the HTTP API over a store in memory.

mod admin;
mod auth;
mod batch;
mod breakers;
mod conditions;
mod content;
mod dead_letters;
mod degraded;
mod docs;
mod freshness;
mod identity;
mod jwks;
mod limits;
mod memory;
mod openapi;
mod openapi_shapes;
mod problems;
mod retries;
mod search;
mod server;
mod strict;
mod support;
mod tags;
mod tenants;
mod web;
mod wire;
