//! Options of reads and writes: consistency, durability, deadline, criticality.

use std::time::Duration;

use tagfast_domain::UserId;
use tagfast_resilience::Criticality;

use crate::ConsistencyToken;

/// How recent a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Any copy, the nearest first.
    Eventual,
    /// At least everything that this client has written and seen.
    #[default]
    Session,
    /// The newest acknowledged state.
    Strong,
}

/// What a write must survive before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Committed and flushed by the primary; embedded: by the data directory's disk.
    #[default]
    Local,
    /// Also flushed by the replicas. The embedded store refuses it with
    /// [`StoreError::NotInThisMode`](crate::StoreError::NotInThisMode).
    Replicated,
}

/// Options of a read.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions<'a> {
    /// How recent the answer must be.
    pub consistency: Consistency,
    /// What this client has written and seen so far; `None`: no token was sent.
    pub token: Option<&'a ConsistencyToken>,
    /// When the caller stops waiting; `None`: no deadline.
    pub deadline: Option<tokio::time::Instant>,
    /// The reading user. Without a token, the answer must show at least this user's last writes.
    /// `None`: anonymous.
    pub user: Option<&'a UserId>,
    /// Ask the primary before any replica, because the required version is unknown. Unlike
    /// [`Consistency::Strong`], a replica may answer when the primary does not.
    pub primary_first: bool,
    /// Decides which reads are shed first under overload.
    pub criticality: Criticality,
    /// Maximum age of a stale answer; `None`: as old as the service allows; zero: no stale answer.
    pub max_stale: Option<Duration>,
}
