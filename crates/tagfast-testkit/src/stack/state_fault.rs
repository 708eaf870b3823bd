//! Faults inside a server: it runs and answers, and what it holds, permits or passes on is wrong.
//!
//! The faults of [`super::fault`] break a process or a link, which a client notices. These break
//! what a feed carries, and nothing fails at once. Each has an end that returns the server to
//! health and waits until it is there. What a server has forgotten (an index, a topic's records,
//! the keys of a Redis) stays forgotten: the service must fill it again.
//!
//! How it fails: a fault that does not apply to its target, or an end that does not bring the
//! server back in time, is an error that says which.

use anyhow::{Result, ensure};

use super::change::Change;
use super::etcd_auth;
use super::index_faults::{self, IndexFault};
use super::postgres_faults::{self, PostgresFault};
use super::redis_faults::{self, RedisFault};
use super::running::Stack;
use super::topic_faults::{self, TopicFault};

/// A fault inside a server that goes on answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateFault {
    /// Target: a node; or a cluster, for its primary or for all its replicas; or `postgres` for all
    /// clusters.
    Postgres(PostgresFault),
    /// Target: `opensearch`.
    Index(IndexFault),
    /// Target: `kafka`.
    Topic(TopicFault),
    /// Target: `redis` or `state-redis`.
    Redis(RedisFault),
    /// etcd requires a user and a password. Target: `etcd`.
    EtcdAuth,
}

impl StateFault {
    /// Every one with its word on the command line. The word of its end has `end-` before it.
    pub const ALL: &'static [(&'static str, Self)] = &[
        ("stop-walreceiver", Self::Postgres(PostgresFault::StopWalReceiver)),
        ("pause-replay", Self::Postgres(PostgresFault::PauseReplay)),
        ("delay-replay", Self::Postgres(PostgresFault::DelayReplay)),
        ("read-only", Self::Postgres(PostgresFault::ReadOnly)),
        ("lock-tables", Self::Postgres(PostgresFault::LockTables)),
        ("rotate-password", Self::Postgres(PostgresFault::RotatePassword)),
        ("alias-twice", Self::Index(IndexFault::AliasTwice)),
        ("alias-foreign", Self::Index(IndexFault::AliasForeign)),
        ("close-index", Self::Index(IndexFault::Close)),
        ("block-index", Self::Index(IndexFault::Block)),
        ("empty-index", Self::Index(IndexFault::Empty)),
        ("delete-index", Self::Index(IndexFault::Delete)),
        ("recreate-index", Self::Index(IndexFault::Recreate)),
        ("delete-topic", Self::Topic(TopicFault::Delete)),
        ("recreate-topic", Self::Topic(TopicFault::Recreate)),
        ("raise-partitions", Self::Topic(TopicFault::RaisePartitions)),
        ("delete-records", Self::Topic(TopicFault::DeleteRecords)),
        ("flush", Self::Redis(RedisFault::Flush)),
        ("save", Self::Redis(RedisFault::Save)),
        ("rewind", Self::Redis(RedisFault::Rewind)),
        ("require-password", Self::Redis(RedisFault::RequirePassword)),
        ("etcd-auth", Self::EtcdAuth),
    ];

    /// The fault of this word; `None` when there is none.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(name, _)| *name == word).map(|(_, fault)| *fault)
    }
}

impl Stack {
    /// Begins or ends a fault inside a server; returns when the server is so.
    pub(super) fn state_fault(
        &mut self,
        fault: StateFault,
        change: Change,
        target: &str,
    ) -> Result<()> {
        let only = |name: &str| {
            ensure!(target == name, "{fault:?} is a fault of {name}, not of {target}");
            Ok(())
        };
        match fault {
            StateFault::Postgres(fault) => postgres_faults::change(self, fault, change, target),
            StateFault::Index(fault) => {
                only("opensearch")?;
                index_faults::change(self.info(), fault, change)
            }
            StateFault::Topic(fault) => {
                only("kafka")?;
                topic_faults::change(self.info(), fault, change)
            }
            StateFault::Redis(fault) => redis_faults::change(self, fault, change, target),
            StateFault::EtcdAuth => {
                only("etcd")?;
                etcd_auth::change(self.info(), change)
            }
        }
    }
}
