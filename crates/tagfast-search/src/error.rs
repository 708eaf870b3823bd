//! Why a search has no answer: the query is to blame, or the index.

use std::time::Duration;

use tagfast_resilience::BoxError;

use crate::problem::IndexProblem;

/// Why a search has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The query breaks the grammar.
    #[error("{message}")]
    Syntax {
        /// Position of the error in Unicode scalar values, from 0.
        position: usize,
        /// Position of the error in bytes, from 0.
        byte: usize,
        /// What the parser expected at that position.
        expected: String,
        /// The complete sentence for people.
        message: String,
    },
    /// The query exceeds a limit of the query language.
    #[error("the query has {given} {limit}; at most {allowed} are allowed")]
    Limit {
        /// Name of the limit.
        limit: &'static str,
        /// Value of the limit.
        allowed: usize,
        /// Value of the query.
        given: usize,
    },
    /// A prefix matches too many tags.
    #[error("the prefix {prefix:?} matches more than {allowed} tags")]
    PrefixTooBroad {
        /// The prefix.
        prefix: String,
        /// Maximum number of tags that a prefix may match.
        allowed: usize,
    },
    /// The index cannot answer now.
    #[error("the search index is unavailable")]
    Unavailable(#[source] BoxError),
    /// The index is in a state in which it must not answer, however well its server works.
    #[error("the search index cannot be used: {0}")]
    Unusable(IndexProblem),
    /// The call was not made, or the index rejected this call alone. Says nothing about the health
    /// of the index.
    #[error("the search index was not called: {reason}")]
    Refused {
        /// A stable word: `overloaded`, `breaker_open` or `rejected`.
        reason: &'static str,
        /// How long the caller should wait before it retries.
        retry_after: Duration,
    },
}

impl SearchError {
    /// The index cannot answer now because of `source`, an error or a sentence.
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self::Unavailable(source.into())
    }
}
