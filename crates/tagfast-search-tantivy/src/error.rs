//! Errors of tantivy and the file system, as the ports report them.

use std::error::Error;
use std::fmt::Display;

use tagfast_events::SinkError;
use tagfast_resilience::ErrorChain;
use tagfast_search::SearchError;

/// The index cannot answer.
pub(crate) fn unavailable(error: impl Error + 'static) -> SearchError {
    SearchError::Unavailable(ErrorChain(&error).to_string())
}

/// The sink failed as a whole; no record is to blame.
pub(crate) fn systemic(error: impl Error + 'static) -> SinkError {
    systemic_message(ErrorChain(&error))
}

/// As [`systemic`], with a message for operators.
pub(crate) fn systemic_message(message: impl Display) -> SinkError {
    SinkError::new("search_index", message.to_string())
}
