//! The search port, the query language and the tantivy engine.
//!
//! Search is eventually consistent: it is fed by the bus and says how old it is. It never answers an error as an empty
//! page.

pub mod port;

pub use port::{Hit, SearchError, SearchIndex, SearchPage, SearchRequest, Sort, SortKey, Total};
