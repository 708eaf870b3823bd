//! Import and export through the HTTP client.

mod order;
mod resume;
mod support;
mod transfer;
