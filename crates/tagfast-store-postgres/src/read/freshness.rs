//! What a session read must cover, and which servers cover it.
//!
//! How it fails: towards "not covered"; such an answer is marked, or a different node is read.

use tagfast_domain::Version;
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{Consistency, LocalWrites, Position, ReadOptions};

use crate::cluster::replica_states::LogFacts;
use crate::cluster::topology::Cluster;
use crate::read::group_read::SnapshotFacts;

/// What a read must cover.
pub(crate) struct FreshnessRequirement {
    /// A log position; `None`: any.
    pub(crate) position: Option<Position>,
    /// A version of the document; `None`: any.
    pub(crate) version: Option<Version>,
    /// It comes from a token, so it was promised to this client: an answer that does not keep it
    /// is marked.
    pub(crate) promised: bool,
}

impl FreshnessRequirement {
    /// The requirement of a read of this content.
    pub(crate) fn of(
        local_writes: &LocalWrites<Position>,
        shard: LogicalShard,
        hash: ContentHash,
        options: &ReadOptions<'_>,
    ) -> Self {
        let none = Self { position: None, version: None, promised: false };
        match (options.consistency, options.token) {
            (Consistency::Eventual | Consistency::Strong, _) => none,
            (Consistency::Session, Some(token)) => Self {
                position: token.floors.get(&shard).copied(),
                version: token.version_of(hash),
                promised: true,
            },
            (Consistency::Session, None) => Self { position: local_writes.get(hash), ..none },
        }
    }

    /// The log position that a server of the current history must have reached. `None`: the
    /// required position lies past the end of its epoch, no server has it.
    pub(crate) fn floor(&self, cluster: &Cluster) -> Option<u64> {
        match self.position {
            None => Some(0),
            // The last epoch known, also while it has lost its primary and no later one has begun.
            Some(p) if cluster.epoch_and_timeline().is_some_and(|(id, _)| id == p.epoch) => {
                Some(p.lsn)
            }
            // Up to the end of its epoch, every server of the current epoch has it.
            Some(p) => (p.lsn <= cluster.epoch_end(p.epoch)).then_some(0),
        }
    }
}

/// What a server in recovery reports of its log around a read.
pub(crate) fn log_facts(facts: &SnapshotFacts) -> LogFacts {
    let epoch = facts.epoch.map(|(id, _)| id);
    LogFacts { replayed: facts.covered, receiving: facts.timeline, epoch }
}
