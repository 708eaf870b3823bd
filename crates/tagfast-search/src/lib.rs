//! The search port and everything that is independent of an engine: the query language, the guard
//! around an index, the state that engines index, and the suite that every engine passes.
//!
//! Search is eventually consistent: the bus feeds it, and every answer says how old it is. An index
//! must never answer an error as an empty page. The engines are crates of their own
//! (`tagfast-search-tantivy`, `tagfast-search-opensearch`), so that callers link none of them.

#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod former_names;
mod guarded;
pub mod hints;
pub mod indexed_state;
pub mod metrics;
pub mod port;
mod problem;
pub mod query;

pub use error::SearchError;
pub use guarded::{GuardOptions, GuardSnapshot, GuardedIndex};
pub use hints::{Hint, HintCode};
pub use indexed_state::IndexedState;
pub use metrics::METRICS;
pub use port::{
    Hit, RelatedTags, SearchIndex, SearchPage, SearchRequest, SearchResult, Sort, SortKey, Total,
};
pub use problem::{IndexProblem, SearchEffect};
pub use query::{Query, caret};
