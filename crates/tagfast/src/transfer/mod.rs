//! Import and export: NDJSON, one line a content.

pub mod export;
pub mod import;
pub mod line;
pub mod reader;
pub mod send;
pub mod state;

pub use reader::open_lines;

#[cfg(test)]
mod tests;
