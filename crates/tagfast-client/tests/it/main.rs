//! Import, export and the commands of operators through the HTTP client.

mod operations;
mod order;
mod resume;
mod support;
mod transfer;
