//! What this node knows of one cluster: its epoch, its members, which one may be written to, what
//! may be acknowledged.
//!
//! The watcher writes it, everything else reads it. A change of epoch replaces the topology as a
//! whole, so no reader combines the primary of one term with the epoch of a different one.
//!
//! How it fails: without a primary [`Cluster::primary`] waits; without a proof
//! [`Cluster::may_acknowledge`] waits for one until its deadline, then says no.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};
use tagfast_domain::{Epoch, EpochId};
use tagfast_failover::{AckGate, Commit, Decision, EpochRecord};
use tagfast_resilience::{Bounded, Breaker, Breakers, counter};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::boot_clock::boot_time;
use crate::cluster::epoch_ends::EpochEnds;
use crate::metric::PRIMARY_FAILURES;
use crate::options::breaker_options;

/// A node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its name in Patroni.
    pub(crate) name: String,
    /// `host:port` of its PostgreSQL.
    pub(crate) address: String,
}

/// The cluster as of the last poll.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Topology {
    /// The epoch and its primary; `None` unless a connection to it was checked in this epoch.
    pub(crate) primary: Option<(Arc<EpochRecord>, Node)>,
    /// All other members.
    pub(crate) replicas: Vec<Node>,
    /// Why there is no primary, or no cluster at all; `None`: there is one.
    pub(crate) problem: Option<String>,
    /// What weakens a promise on this cluster.
    pub(crate) warnings: Vec<String>,
}

/// The state of one cluster.
pub(crate) struct Cluster {
    pub(crate) index: u16,
    pub(crate) name: String,
    pub(crate) scope: String,
    /// Shared: each read takes a reference.
    pub(crate) topology: watch::Sender<Arc<Topology>>,
    /// Counts proofs and changes of the epoch.
    proofs: watch::Sender<u64>,
    ack_gate: Mutex<AckGate>,
    epoch_ends: RwLock<EpochEnds>,
    history_known: AtomicBool,
    /// What the outbox tables take on disk, in bytes, as of the last poll.
    pub(crate) outbox_bytes: AtomicU64,
    /// Makes the watcher poll now.
    pub(crate) refresh: Notify,
    /// Wakes this node's relay after a commit of this node.
    pub(crate) committed: Notify,
    /// Of reads and writes on the primary.
    pub(crate) primary_breaker: Arc<Breaker>,
    /// Of reads on replicas.
    pub(crate) replica_breaker: Arc<Breaker>,
}

impl Cluster {
    pub(crate) fn new(index: u16, name: &str, scope: &str, breakers: &Arc<Breakers>) -> Self {
        let breaker = |role| breakers.make(&format!("postgres/{name}/{role}"), breaker_options());
        let starting =
            Topology { problem: Some("not polled yet".to_owned()), ..Topology::default() };
        Self {
            index,
            name: name.to_owned(),
            scope: scope.to_owned(),
            topology: watch::channel(Arc::new(starting)).0,
            proofs: watch::channel(0).0,
            ack_gate: Mutex::default(),
            epoch_ends: RwLock::default(),
            history_known: AtomicBool::new(false),
            outbox_bytes: AtomicU64::new(0),
            refresh: Notify::new(),
            committed: Notify::new(),
            primary_breaker: breaker("primary"),
            replica_breaker: breaker("replica"),
        }
    }

    pub(crate) fn ack_gate(&self) -> MutexGuard<'_, AckGate> {
        self.ack_gate.lock()
    }

    /// Lets everything that waits for a proof decide again.
    pub(crate) fn notify_proof(&self) {
        self.proofs.send_modify(|n| *n += 1);
    }

    /// The epoch this node is in; `None`: it has adopted none.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.ack_gate().epoch().map(|e| Epoch { id: e.id, ordinal: e.ordinal })
    }

    /// The id of the epoch this node is in, and its timeline.
    pub(crate) fn epoch_and_timeline(&self) -> Option<(EpochId, u32)> {
        self.ack_gate().epoch().map(|e| (e.id, e.timeline))
    }

    /// Replaces the table of epoch ends; `None`: the history could not be read.
    pub(crate) fn set_epoch_ends(&self, history: Option<&[EpochRecord]>, current: &EpochRecord) {
        *self.epoch_ends.write() = EpochEnds::new(history, current);
        self.history_known.store(history.is_some(), Ordering::Relaxed);
    }

    /// Whether the epochs before the current one are known.
    pub(crate) fn knows_history(&self) -> bool {
        self.history_known.load(Ordering::Relaxed)
    }

    /// The ordinal and the end of every earlier epoch.
    pub(crate) fn past_epoch_ends(&self) -> Vec<(u64, u64)> {
        self.epoch_ends.read().past.clone()
    }

    /// The epoch that [`Cluster::epoch_end_of`] is relative to; `None`: no epoch is known.
    pub(crate) fn history_epoch(&self) -> Option<EpochId> {
        self.epoch_ends.read().current
    }

    /// The end of an epoch: `u64::MAX` for the current one; `None`: the epoch is unknown.
    pub(crate) fn epoch_end_of(&self, epoch: EpochId) -> Option<u64> {
        self.epoch_ends.read().of(epoch)
    }

    /// The end of an epoch; 0 for an unknown one.
    pub(crate) fn epoch_end(&self, epoch: EpochId) -> u64 {
        self.epoch_end_of(epoch).unwrap_or(0)
    }

    /// Waits until a commit may be acknowledged. False: not before `until`, or never; the write
    /// must be retried with its id.
    pub(crate) async fn may_acknowledge(&self, commit: &Commit, until: Instant) -> bool {
        let mut proofs = self.proofs.subscribe();
        loop {
            let decision = self.ack_gate().decide(commit, boot_time());
            match decision {
                Decision::Acknowledge => return true,
                Decision::Unknown => return false,
                Decision::ProofAfter(_) => self.refresh.notify_one(),
            }
            tokio::select! {
                changed = proofs.changed() => if changed.is_err() { return false },
                () = tokio::time::sleep_until(until) => return false,
            }
        }
    }

    /// Waits for a primary; `None`: there was none before `until`.
    pub(crate) async fn primary(&self, until: Instant) -> Option<(Arc<EpochRecord>, Node)> {
        let mut topologies = self.topology.subscribe();
        loop {
            let primary = topologies.borrow_and_update().primary.clone();
            if primary.is_some() {
                return primary;
            }
            tokio::select! {
                changed = topologies.changed() => changed.ok()?,
                () = tokio::time::sleep_until(until) => return None,
            }
        }
    }

    /// Reports that a connection of this epoch failed: the watcher polls at once.
    pub(crate) fn report_failure(&self) {
        counter!(PRIMARY_FAILURES, "cluster" => Bounded(self.name.clone())).increment(1);
        self.refresh.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::epoch_ends::tests::epoch;

    #[test]
    fn an_unknown_epoch_is_not_a_lost_one() {
        let breakers = Breakers::new(Arc::new(tagfast_resilience::SystemClock));
        let cluster = Cluster::new(0, "c0", "c0", &breakers);
        let of = |n| cluster.epoch_end_of(EpochId([n; 16]));
        assert_eq!((cluster.history_epoch(), of(1)), (None, None));
        // The second was lost whole: the third continues the first.
        let (one, two, three) = (
            epoch(1, None, 1, None),
            epoch(2, Some(1), 2, Some(500)),
            epoch(3, Some(1), 3, Some(300)),
        );
        cluster.set_epoch_ends(Some(&[one, two, three.clone()]), &three);
        let current = Some(EpochId([3; 16]));
        assert_eq!((cluster.history_epoch(), cluster.knows_history()), (current, true));
        assert_eq!([of(3), of(2), of(1), of(9)], [Some(u64::MAX), Some(0), Some(300), None]);
        assert_eq!(cluster.past_epoch_ends(), [(1, 300), (2, 0)]);
        // Its history could not be read: the earlier epochs are unknown, not current.
        cluster.set_epoch_ends(None, &epoch(4, Some(3), 4, Some(900)));
        assert_eq!(
            (of(4), of(3), of(1), cluster.knows_history()),
            (Some(u64::MAX), None, None, false)
        );
    }
}
