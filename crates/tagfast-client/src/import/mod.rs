//! `tagfast import`: NDJSON, one line per content.

mod checkpoint;
mod line;
mod reader;
mod run;
mod upload;

pub use run::run;
