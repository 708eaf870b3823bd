//! Why a call to Redis failed.

use std::sync::Arc;

use crate::role::RedisRole;

/// Why a call to Redis has no usable result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RedisError {
    /// The breaker is open; the server was not called.
    #[error("the breaker of the {0} Redis is open")]
    BreakerOpen(RedisRole),
    /// The server is not connected, not usable, or did not answer in time.
    #[error("the {role} Redis is unavailable: {reason}")]
    Unavailable {
        /// Role of the server.
        role: RedisRole,
        /// Why it is unavailable, for logs and health reports.
        reason: String,
        /// The client library's error; `None` when there was no connection or a call timed out.
        #[source]
        source: Option<Arc<redis::RedisError>>,
    },
    /// The server is no longer the primary; the connection task looks for the new one.
    #[error("the {0} Redis moved to another server")]
    Moved(RedisRole),
    /// The server answered with an error.
    #[error("the {role} Redis refused: {code} {detail}")]
    Refused {
        /// Role of the server.
        role: RedisRole,
        /// First word of the error, for example `OOM`.
        code: String,
        /// Rest of the error.
        detail: String,
    },
}

impl RedisError {
    /// An error that the server answered with.
    pub fn refused(role: RedisRole, error: &redis::RedisError) -> Self {
        let code = error.code().unwrap_or_default().to_owned();
        let detail = error.detail().unwrap_or_default().to_owned();
        Self::Refused { role, code, detail }
    }
}
