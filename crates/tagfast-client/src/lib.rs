//! The client half of the program: everything that talks to a running server and links no part of
//! one.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`] | the clap definitions of the client commands |
//! | [`commands`] | what each client command does |
//! | [`http`] | the HTTP client: one call in, JSON or a typed error out |
//! | [`import`], [`export`] | NDJSON in and out, resumable |
//! | [`output`] | files that a user named: atomic, or written through |
//! | [`load`] | the load generator of `tagfast bench` |
//! | [`error`], [`terminal`], [`color`], [`progress`] | exit codes, error chains, results and notes |
//! | [`runtime`], [`signal`] | the runtime of a command, and Ctrl-C |
//!
//! A command gets its arguments and a [`terminal::Terminal`], and returns an [`error::Exit`] or an
//! [`error::CliError`]; only the program prints errors and ends the process.

mod advice;
pub mod args;
pub mod color;
pub mod commands;
pub mod error;
pub mod export;
mod gzip;
pub mod http;
pub mod import;
mod input;
mod json;
pub mod load;
pub mod output;
pub mod process_usage;
pub mod progress;
pub mod proxy;
pub mod runtime;
pub mod signal;
pub mod terminal;
