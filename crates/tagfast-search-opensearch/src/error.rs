//! Why a request to OpenSearch has no usable response, and what that means to the ports.

use reqwest::StatusCode;
use tagfast_events::SinkError;
use tagfast_resilience::{BoxError, ErrorChain, jittered_retry_after};
use tagfast_search::SearchError;

/// Why a request has no usable response.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// OpenSearch did not respond in time.
    #[error("OpenSearch does not answer in time")]
    Timeout,
    /// OpenSearch cannot be reached, or the connection broke.
    #[error("OpenSearch does not answer")]
    Transport(#[source] reqwest::Error),
    /// OpenSearch responded with an error status.
    #[error("OpenSearch answers {status}: {reason}")]
    Rejected {
        /// HTTP status.
        status: StatusCode,
        /// OpenSearch's word for the error; empty in an answer that is not OpenSearch's.
        kind: String,
        /// Word and reason from the response body.
        reason: String,
    },
    /// The response cannot be used.
    #[error("OpenSearch's answer cannot be used: {0}")]
    BadResponse(String),
}

impl RequestError {
    /// HTTP status of an error response; `None` if there was no response or no error status.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Rejected { status, .. } => Some(*status),
            Self::Timeout | Self::Transport(_) | Self::BadResponse(_) => None,
        }
    }

    pub(crate) fn is(&self, status: StatusCode) -> bool {
        self.status() == Some(status)
    }
}

impl From<reqwest::Error> for RequestError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() { Self::Timeout } else { Self::Transport(error.without_url()) }
    }
}

/// The HTTP client cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("the client of OpenSearch cannot be made; look at search.opensearch_url")]
pub struct OpenSearchError(#[from] RequestError);

/// Why `tagfast reindex` did nothing or did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ReindexError {
    /// This process rebuilds the index already.
    #[error("this process rebuilds the index already; {copied} contents are copied")]
    AlreadyRunning {
        /// Contents copied so far.
        copied: u64,
    },
    /// The index is in a state that a rebuild cannot end.
    #[error("a rebuild cannot help: {0}")]
    Impossible(String),
    /// The rebuild failed; the old index, if there is one, serves on.
    #[error("the rebuild failed")]
    Failed(#[source] SinkError),
}

/// The sink failed as a whole, because of an error or a sentence; no record is to blame.
pub(crate) fn systemic(cause: impl Into<BoxError>) -> SinkError {
    SinkError::caused_by("search_index", "the search index cannot be used", cause)
}

/// Maps a failed request of a search.
pub(crate) fn unavailable(error: RequestError) -> SearchError {
    let refused = |reason| {
        tracing::debug!(error = %ErrorChain(&error), "OpenSearch refuses a search");
        SearchError::Refused { reason, retry_after: jittered_retry_after() }
    };
    match error.status().map(|status| status.as_u16()) {
        // The server works and has too much to do.
        Some(429) => refused("overloaded"),
        // The server rejects this search alone and answers others.
        Some(400 | 413) => refused("rejected"),
        Some(_) | None => SearchError::unavailable(error),
    }
}
