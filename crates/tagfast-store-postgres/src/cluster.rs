//! What this node knows of one cluster: its epoch, its members, who may be written to, what may be
//! acknowledged.
//!
//! One watcher writes it, everybody reads it. A change of epoch replaces the view as a whole, so
//! nobody combines the primary of one reign with the epoch of another.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tagfast_domain::{Epoch, EpochId};
use tagfast_failover::{Acknowledger, Commit, Decision, EpochRecord};
use tagfast_resilience::{Breaker, Breakers};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::boot_time;
use crate::etcd::Member;
use crate::options::breaker_options;

/// A node that can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
}

impl From<&Member> for Node {
    fn from(member: &Member) -> Self {
        Self { name: member.name.clone(), address: member.postgres.clone() }
    }
}

/// The cluster as the last look found it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClusterView {
    /// The epoch and its primary, when a connection to it was checked in this epoch.
    pub(crate) primary: Option<(Arc<EpochRecord>, Node)>,
    /// All other members.
    pub(crate) replicas: Vec<Node>,
    /// Why there is no primary, or no cluster at all.
    pub(crate) problem: Option<String>,
    /// What makes a promise weaker here.
    pub(crate) warnings: Vec<String>,
}

/// How much of each epoch is part of the current history. Replaced as a whole: nobody sees a new
/// epoch with an old fence.
#[derive(Default)]
struct Fences {
    current: Option<EpochId>,
    /// Of every epoch that was heard of.
    by_id: HashMap<EpochId, u64>,
    /// Of earlier epochs, by ordinal, also of those that are no ancestors.
    past: Vec<(u64, u64)>,
}

/// The state of one cluster.
pub(crate) struct Cluster {
    pub(crate) index: u16,
    pub(crate) name: String,
    pub(crate) scope: String,
    /// Shared: each read takes it.
    pub(crate) view: watch::Sender<Arc<ClusterView>>,
    /// Told when a proof arrived or the epoch changed.
    pub(crate) proof: watch::Sender<u64>,
    acknowledger: Mutex<Acknowledger>,
    fences: RwLock<Fences>,
    history_read: AtomicBool,
    /// What the outbox's tables take on the disk, as of the last look.
    pub(crate) outbox_bytes: AtomicU64,
    /// Asks the watcher to look now.
    pub(crate) look_now: Notify,
    /// Told after a commit of this node: its relay need not wait to find it.
    pub(crate) committed: Notify,
    /// Whether the primary is asked and written to.
    pub(crate) primary_breaker: Arc<Breaker>,
    /// Whether replicas are asked.
    pub(crate) replica_breaker: Arc<Breaker>,
}

impl Cluster {
    pub(crate) fn new(index: u16, name: &str, scope: &str, breakers: &Arc<Breakers>) -> Self {
        let breaker = |role| breakers.make(&format!("postgres/{name}/{role}"), breaker_options());
        let starting =
            ClusterView { problem: Some("not looked at yet".to_owned()), ..ClusterView::default() };
        Self {
            index,
            name: name.to_owned(),
            scope: scope.to_owned(),
            view: watch::channel(Arc::new(starting)).0,
            proof: watch::channel(0).0,
            acknowledger: Mutex::default(),
            fences: RwLock::default(),
            history_read: AtomicBool::new(false),
            outbox_bytes: AtomicU64::new(0),
            look_now: Notify::new(),
            committed: Notify::new(),
            primary_breaker: breaker("primary"),
            replica_breaker: breaker("replica"),
        }
    }

    pub(crate) fn acknowledger(&self) -> MutexGuard<'_, Acknowledger> {
        // Pure decisions run under it; a panic in one cannot leave it half changed.
        self.acknowledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whoever waits for a proof to decide again.
    pub(crate) fn proved(&self) {
        self.proof.send_modify(|n| *n += 1);
    }

    /// The epoch this node is in.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.acknowledger().epoch().map(|e| Epoch { id: e.id, ordinal: e.ordinal })
    }

    /// The id of the epoch this node is in, and its timeline.
    pub(crate) fn reign(&self) -> Option<(EpochId, u32)> {
        self.acknowledger().epoch().map(|e| (e.id, e.timeline))
    }

    /// Up to which log position an older epoch is part of the current history: the whole table,
    /// made anew with each epoch. Without the history nothing is known of older epochs.
    pub(crate) fn set_fences(&self, history: Option<&[EpochRecord]>, current: &EpochRecord) {
        let mut by_id = fences(history.unwrap_or_default(), current);
        let fence =
            |epoch: &EpochRecord| (epoch.ordinal.0, by_id.get(&epoch.id).copied().unwrap_or(0));
        let past = || history.unwrap_or_default().iter().filter(|epoch| epoch.id != current.id);
        let by_ordinal = past().map(fence).collect();
        for epoch in past() {
            by_id.entry(epoch.id).or_insert(0);
        }
        let fences = Fences { current: Some(current.id), by_id, past: by_ordinal };
        *self.fences.write().unwrap_or_else(PoisonError::into_inner) = fences;
        self.history_read.store(history.is_some(), Ordering::Relaxed);
    }

    fn fences(&self) -> RwLockReadGuard<'_, Fences> {
        self.fences.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the epochs before the current one are known.
    pub(crate) fn knows_history(&self) -> bool {
        self.history_read.load(Ordering::Relaxed)
    }

    /// The fence of every earlier epoch, by its ordinal.
    pub(crate) fn fences_by_ordinal(&self) -> Vec<(u64, u64)> {
        self.fences().past.clone()
    }

    /// The epoch that [`Cluster::fence_of`] speaks of.
    pub(crate) fn fenced_in(&self) -> Option<EpochId> {
        self.fences().current
    }

    /// The fence of an epoch: everything for the current one; `None` for one that nobody has told
    /// of.
    pub(crate) fn fence_of(&self, epoch: EpochId) -> Option<u64> {
        let fences = self.fences();
        // Nearly always, and it is asked for every entry of a cache.
        if fences.current == Some(epoch) {
            return Some(u64::MAX);
        }
        fences.by_id.get(&epoch).copied()
    }

    /// The fence of an epoch; nothing for an unknown one.
    pub(crate) fn fence(&self, epoch: EpochId) -> u64 {
        self.fence_of(epoch).unwrap_or(0)
    }

    /// Waits until a commit may be acknowledged. False: it may not, ever; the write is to be tried
    /// again by its id.
    pub(crate) async fn may_acknowledge(&self, commit: &Commit, until: Instant) -> bool {
        let mut proofs = self.proof.subscribe();
        loop {
            let decision = self.acknowledger().decide(commit, boot_time());
            match decision {
                Decision::Acknowledge => return true,
                Decision::Unknown => return false,
                Decision::ProofAfter(_) => self.look_now.notify_one(),
            }
            tokio::select! {
                changed = proofs.changed() => if changed.is_err() { return false },
                () = tokio::time::sleep_until(until) => return false,
            }
        }
    }

    /// Waits for a primary.
    pub(crate) async fn primary(&self, until: Instant) -> Option<(Arc<EpochRecord>, Node)> {
        let mut views = self.view.subscribe();
        loop {
            let primary = views.borrow_and_update().primary.clone();
            if primary.is_some() {
                return primary;
            }
            tokio::select! {
                changed = views.changed() => changed.ok()?,
                () = tokio::time::sleep_until(until) => return None,
            }
        }
    }

    /// Something went wrong with a connection of this epoch: look again at once.
    pub(crate) fn suspect(&self) {
        metrics::counter!("tagfast_cluster_suspected_total", "cluster" => self.name.clone())
            .increment(1);
        self.look_now.notify_one();
    }
}

/// Where each ancestor's log ends in the current history. Epochs that are no ancestors are not in
/// it: fence 0.
fn fences(history: &[EpochRecord], current: &EpochRecord) -> HashMap<EpochId, u64> {
    let by_id: HashMap<EpochId, &EpochRecord> = history.iter().map(|e| (e.id, e)).collect();
    let mut fences = HashMap::from([(current.id, u64::MAX)]);
    let (mut child, mut fence) = (current, u64::MAX);
    while let Some(parent) = child.parent_id.and_then(|id| by_id.get(&id)) {
        // The same timeline went on: nothing of the parent's log was left behind here.
        if parent.timeline != child.timeline {
            fence = fence.min(child.fork_lsn.unwrap_or(0));
        }
        if fences.insert(parent.id, fence).is_some() {
            break;
        }
        child = parent;
    }
    fences
}

/// How long a connection that failed keeps its owner from trying again.
pub(crate) fn pause_after(failures: u32) -> Duration {
    Duration::from_millis(20)
        .saturating_mul(2u32.saturating_pow(failures.min(5)))
        .min(Duration::from_millis(500))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tagfast_domain::EpochOrdinal;

    fn epoch(n: u8, parent: Option<u8>, timeline: u32, fork_lsn: Option<u64>) -> EpochRecord {
        EpochRecord {
            id: EpochId([n; 16]),
            ordinal: EpochOrdinal(u64::from(n)),
            reign: u64::from(n),
            member: "n".to_owned(),
            timeline,
            fork_lsn,
            parent_id: parent.map(|p| EpochId([p; 16])),
            minted_at: 0,
            minted_by: "a".to_owned(),
        }
    }

    #[test]
    fn a_second_failover_may_lower_the_fence_of_the_first() {
        let (one, two, three) = (
            epoch(1, None, 1, None),
            epoch(2, Some(1), 2, Some(500)),
            epoch(3, Some(2), 3, Some(400)),
        );
        let fences = fences(&[one, two, three.clone()], &three);
        let of = |n| fences.get(&EpochId([n; 16])).copied().unwrap_or(0);
        assert_eq!((of(3), of(2), of(1), of(9)), (u64::MAX, 400, 400, 0));
    }

    #[test]
    fn an_epoch_that_nobody_told_of_is_not_one_that_was_lost() {
        let breakers = Breakers::new(Arc::new(tagfast_resilience::SystemClock));
        let cluster = Cluster::new(0, "c0", "c0", &breakers);
        let of = |n| cluster.fence_of(EpochId([n; 16]));
        assert_eq!((cluster.fenced_in(), of(1)), (None, None));
        // The second was lost whole: the third went on from the first.
        let (one, two, three) = (
            epoch(1, None, 1, None),
            epoch(2, Some(1), 2, Some(500)),
            epoch(3, Some(1), 3, Some(300)),
        );
        cluster.set_fences(Some(&[one, two, three.clone()]), &three);
        assert_eq!((cluster.fenced_in(), cluster.knows_history()), (Some(EpochId([3; 16])), true));
        assert_eq!([of(3), of(2), of(1), of(9)], [Some(u64::MAX), Some(0), Some(300), None]);
        assert_eq!(cluster.fences_by_ordinal(), [(1, 300), (2, 0)]);
        // Its history could not be read: what came before is not known, least of all as current.
        cluster.set_fences(None, &epoch(4, Some(3), 4, Some(900)));
        assert_eq!(
            (of(4), of(3), of(1), cluster.knows_history()),
            (Some(u64::MAX), None, None, false)
        );
    }

    #[test]
    fn a_reign_on_the_same_timeline_leaves_nothing_behind() {
        let (one, two) = (epoch(1, None, 1, None), epoch(2, Some(1), 1, None));
        let fences = fences(&[one, two.clone()], &two);
        assert_eq!(fences[&EpochId([1; 16])], u64::MAX);
    }
}
