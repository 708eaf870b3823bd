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
        /// Reason from the response body.
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

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenSearchError {
    /// The server does not answer now; it may later.
    #[error("OpenSearch cannot be used now; look at search.opensearch_url")]
    Unavailable(#[from] RequestError),
    /// The index is not one of this service, or belongs to a newer version. An operator must act.
    #[error("{0}")]
    Foreign(String),
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
