//! A node of a cluster.
//!
//! How it fails: it does not.

/// A node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its name in Patroni.
    pub(crate) name: String,
    /// `host:port` of its PostgreSQL.
    pub(crate) address: String,
}
