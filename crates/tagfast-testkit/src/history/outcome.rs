//! The outcome of a write, as its client knows it.

/// The outcome of a write, as its client knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The service acknowledged the write.
    Acknowledged,
    /// The connection broke, or the service reported an unknown outcome.
    Unknown,
    /// The service reported that nothing was written.
    Refused,
}
