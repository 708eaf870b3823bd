//! Errors of tantivy and the file system, as the ports report them.

use tagfast_events::SinkError;
use tagfast_resilience::BoxError;
use tagfast_search::SearchError;

/// The index cannot answer.
pub(crate) fn unavailable(error: impl Into<BoxError>) -> SearchError {
    SearchError::unavailable(error)
}

/// The sink failed as a whole, because of an error or a sentence; no record is to blame.
pub(crate) fn systemic(cause: impl Into<BoxError>) -> SinkError {
    SinkError::caused_by("search_index", "the search index cannot be used", cause)
}
