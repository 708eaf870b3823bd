//! Why leaderboards cannot be read or written.

use redis::{ErrorKind, RedisError, ServerErrorKind};
use tokio::task::JoinError;

/// Why leaderboards cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LeaderboardError {
    /// The state Redis cannot be reached or does not answer.
    #[error("the state Redis is unavailable")]
    Redis(#[source] RedisError),
    /// The connection to the state Redis cannot be used.
    #[error("the state Redis is unavailable")]
    Connection(#[from] tagfast_redis::RedisError),
    /// The state Redis has become a replica.
    #[error("the state Redis is unavailable: it is a replica now")]
    Replica,
    /// Another process claimed the partition.
    #[error("another process owns the partition")]
    Fenced,
    /// The files of the counts cannot be read.
    #[error("the counts cannot be read")]
    Counts(#[from] rusqlite::Error),
    /// No random claim could be drawn.
    #[error("no random claim can be drawn")]
    Random(#[from] std::io::Error),
    /// A blocking task ended early.
    #[error("the work did not end")]
    Task(#[from] JoinError),
}

impl From<RedisError> for LeaderboardError {
    fn from(error: RedisError) -> Self {
        if error.code() == Some("FENCED") {
            return Self::Fenced;
        }
        if error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
            return Self::Replica;
        }
        Self::Redis(error)
    }
}
