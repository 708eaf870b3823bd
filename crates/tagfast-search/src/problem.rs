//! What is wrong with an index, for people and metrics.

/// A state of the index in which it cannot be written, or cannot be asked, though no record and no
/// query is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct IndexProblem {
    /// A stable word, for example `index_missing`.
    pub code: &'static str,
    /// What is wrong: a sentence without a full stop, free of secrets.
    pub cause: String,
    /// What ends it: a sentence without a full stop that says who must do what, or that it ends
    /// without help.
    pub remedy: String,
    /// What it means for searches.
    pub searches: SearchEffect,
}

/// What a problem of the index means for searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchEffect {
    /// They must be refused: an answer would be wrong.
    Refused,
    /// They are tried and fail by themselves, because of the problem.
    Failing,
    /// They are answered, from a state that grows older and says so.
    Answered,
}

impl IndexProblem {
    /// Cause and remedy in one text, for status and readiness.
    pub fn full_text(&self) -> String {
        format!("{}: {}", self.cause, self.remedy)
    }
}
