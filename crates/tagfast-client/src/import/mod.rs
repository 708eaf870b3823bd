//! `tagfast import`: NDJSON, one line per content.

mod checkpoint;
mod keeper;
mod ledger;
mod line;
mod order;
mod reader;
mod run;
mod upload;

pub use run::run;
