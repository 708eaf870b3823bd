//! Import and export through the HTTP client.

mod transfer;
