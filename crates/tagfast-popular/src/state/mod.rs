//! The boards of all processes, in the state Redis.
//!
//! Each partition's owner pushes absolute counts of the tags that changed; the owner of a tenant's
//! partition adds them up to the tenant's boards; whoever answers questions reads those. Redis
//! keeps nothing that is not in the owners' files: emptied, restored from an old copy or replaced
//! by a replica it is filled again. Every change is made behind a claim: who owned a partition
//! before cannot put older counts over newer ones.
//!
//! | key | |
//! |---|---|
//! | `tf:gen` | which Redis this is (`tagfast-redis`) |
//! | `tf:po:P` | who owns partition P: a random claim |
//! | `tf:pc:P:tenant:window` | hash tag -> count in this partition; of `all` with the first spelling |
//! | `tf:pp:P` | tenants that partition P has counts of |
//! | `tf:pa` | hash partition -> everything committed before this is pushed |
//! | `tf:pd:tenant`, `tf:pm:tenant` | tags to be added up, and those being added up |
//! | `tf:pt:P` | tenants whose boards the owner of P has to add up |
//! | `tf:pl:tenant:window`, `tf:pn:tenant` | the board, and the spellings |
//! | `tf:pv:tenant` | when the boards changed: no counter, which an emptied Redis would begin anew |
//! | `tf:pw` | hash partition -> everything committed before this is on the boards that its owner adds up |

mod reader;
mod writer;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use tagfast_domain::TenantId;
use tagfast_events::Partition;
use tagfast_sharding::ContentHash;

pub use self::reader::StateBoards;
pub use self::writer::BoardWriter;
use crate::Window;

/// Why the boards cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state Redis cannot be reached, or does not answer.
    #[error("the state Redis is unavailable: {0}")]
    Unavailable(String),
    /// Somebody else claimed the partition.
    #[error("another process owns the partition")]
    Fenced,
}

impl From<RedisError> for StateError {
    fn from(error: RedisError) -> Self {
        if error.code() == Some("FENCED") {
            return Self::Fenced;
        }
        if error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
            return Self::Unavailable("it is a replica now".to_owned());
        }
        Self::Unavailable(error.to_string())
    }
}

impl From<tagfast_redis::RedisError> for StateError {
    fn from(error: tagfast_redis::RedisError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The number of a window's part in scripts and values.
pub(crate) const WINDOWS: [Window; 4] = [Window::All, Window::Hour, Window::Day, Window::Week];

/// The partition whose owner adds up a tenant's boards.
pub(crate) fn merging(tenant: &TenantId, partitions: u16) -> Partition {
    let hash = ContentHash::of_bytes(tenant.as_str().as_bytes()).0;
    Partition((hash % u64::from(partitions.max(1))) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenant_has_one_partition_that_adds_up() {
        let tenant: TenantId = "acme".parse().unwrap();
        assert_eq!(merging(&tenant, 8), merging(&tenant, 8));
        assert!(merging(&tenant, 3).0 < 3);
    }
}
