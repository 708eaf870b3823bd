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
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard, RwLock};
use tagfast_domain::{Epoch, EpochId, EpochOrdinal, UnixMillis};
#[cfg(test)]
use tagfast_failover::OnLag;
use tagfast_failover::{Acknowledger, BootTime, Commit, Decision, EpochRecord, GuardOptions};
use tagfast_resilience::{Bounded, Breaker, Breakers, counter};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::boot_clock::boot_time;
use crate::cluster::epoch_ends::{EpochEnds, PastEnd};
use crate::cluster::guard_signal::GuardSignal;
use crate::cluster::long_transactions::LongTransactions;
pub(crate) use crate::cluster::node::Node;
use crate::cluster::primary_positions::{PrimaryPositions, SAMPLE_INTERVAL_MIN};
use crate::cluster::repair_window::RepairWindow;
use crate::cluster::replica_states::{
    CurrentEpoch, LogFacts, ProbeAnswer, ReplicaAge, ReplicaStates, age,
};
use crate::health::calls::CallHealth;
use crate::journal_files::copy_health::CopyHealth;
use crate::metric::PRIMARY_FAILURES;
use crate::options::breaker_options;

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

impl Topology {
    /// The node of this name; `None`: it was not seen lately.
    pub(crate) fn node(&self, name: &str) -> Option<&Node> {
        let primary = self.primary.as_ref().map(|(_, node)| node);
        self.replicas.iter().chain(primary).find(|node| node.name == name)
    }
}

/// The current history: where earlier epochs ended, and what proves how old a server is. Changed as
/// a whole, so that no position of one history is compared with those of a different one.
#[derive(Default)]
struct KnownHistory {
    ends: EpochEnds,
    /// Of the current epoch.
    timeline: u32,
    minted_at: UnixMillis,
    positions: PrimaryPositions,
}

impl KnownHistory {
    fn current(&self) -> CurrentEpoch {
        self.ends.current.map(|epoch| (epoch, self.timeline))
    }
}

/// How much of the history a server in recovery shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proven {
    /// Everything up to this log position.
    pub(crate) position: u64,
    /// Everything that was acknowledged before this time; `None`: that is not proven.
    pub(crate) through: Option<BootTime>,
}

/// What a cluster is held to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClusterBounds {
    /// See [`crate::PostgresOptions::replica_age_max`].
    pub(crate) replica_age_max: Duration,
    /// See [`crate::PostgresOptions::max_loss`] and [`crate::PostgresOptions::on_lag`].
    pub(crate) guard: GuardOptions,
    /// See [`crate::PostgresOptions::journal_bytes_max`].
    pub(crate) journal_bytes_max: usize,
}

#[cfg(test)]
impl Default for ClusterBounds {
    fn default() -> Self {
        Self {
            replica_age_max: Duration::from_secs(3),
            guard: GuardOptions { max_loss: Duration::from_secs(1), on_lag: OnLag::Hold },
            journal_bytes_max: 1 << 20,
        }
    }
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
    acknowledger: Mutex<Acknowledger>,
    /// What the guard of loss is asked to keep.
    pub(crate) guard_options: GuardOptions,
    /// What the guard of loss decided last.
    pub(crate) guard: GuardSignal,
    /// Every member ever seen; empty: not known.
    roster: RwLock<Arc<[String]>>,
    history: RwLock<KnownHistory>,
    history_known: AtomicBool,
    /// When the newest position of the primary was taken, in ms since the machine's start.
    sampled_at: AtomicU64,
    replica_states: RwLock<ReplicaStates>,
    /// See [`crate::PostgresOptions::replica_age_max`].
    pub(crate) replica_age_max: Duration,
    /// What the outbox tables take on disk, in bytes, as of the last poll.
    pub(crate) outbox_bytes: AtomicU64,
    /// When the primary was last checked, in ms since the machine's start; 0: never.
    checked_at: AtomicU64,
    /// Those that hold the relay, as of the last poll.
    pub(crate) long_transactions: LongTransactions,
    /// Makes the watcher poll now.
    pub(crate) refresh: Notify,
    /// Wakes this node's relay after a commit of this node.
    pub(crate) committed: Notify,
    /// Of reads and writes on the primary.
    pub(crate) primary_breaker: Arc<Breaker>,
    /// Of reads on replicas.
    pub(crate) replica_breaker: Arc<Breaker>,
    /// What calls experience.
    pub(crate) health: CallHealth,
    /// Since when what was lost in a failover may be missing, and how the failover went.
    pub(crate) repair: RepairWindow,
    /// How the copy of the journal on disk fares.
    pub(crate) copy_health: CopyHealth,
}

impl Cluster {
    pub(crate) fn new(
        index: u16,
        (name, scope): (&str, &str),
        bounds: ClusterBounds,
        breakers: &Arc<Breakers>,
    ) -> Self {
        let breaker = |role| breakers.make(&format!("postgres/{name}/{role}"), breaker_options());
        let starting =
            Topology { problem: Some("not polled yet".to_owned()), ..Topology::default() };
        Self {
            index,
            name: name.to_owned(),
            scope: scope.to_owned(),
            topology: watch::channel(Arc::new(starting)).0,
            proofs: watch::channel(0).0,
            guard_options: bounds.guard,
            guard: GuardSignal::default(),
            roster: RwLock::default(),
            acknowledger: Mutex::new(Acknowledger::new(bounds.guard, bounds.journal_bytes_max)),
            history: RwLock::default(),
            history_known: AtomicBool::new(false),
            sampled_at: AtomicU64::new(0),
            replica_states: RwLock::default(),
            replica_age_max: bounds.replica_age_max,
            outbox_bytes: AtomicU64::new(0),
            checked_at: AtomicU64::new(0),
            long_transactions: LongTransactions::default(),
            refresh: Notify::new(),
            committed: Notify::new(),
            primary_breaker: breaker("primary"),
            replica_breaker: breaker("replica"),
            health: CallHealth::new(name),
            repair: RepairWindow::default(),
            copy_health: CopyHealth::default(),
        }
    }

    /// What may be acknowledged. Holding it is what separates acknowledgements from a repair: it is
    /// never held across a call.
    pub(crate) fn acknowledger(&self) -> MutexGuard<'_, Acknowledger> {
        self.acknowledger.lock()
    }

    /// Lets everything that waits for a proof decide again.
    pub(crate) fn notify_proof(&self) {
        self.proofs.send_modify(|n| *n += 1);
    }

    /// Changes whenever what waits for a proof may decide again.
    pub(crate) fn subscribe_proofs(&self) -> watch::Receiver<u64> {
        self.proofs.subscribe()
    }

    /// The epoch this node is in; `None`: it has adopted none.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.acknowledger().epoch().map(|e| Epoch { id: e.id, ordinal: e.ordinal })
    }

    /// Every member ever seen, by name; empty: not known, which is not the same as none.
    pub(crate) fn roster(&self) -> Arc<[String]> {
        Arc::clone(&self.roster.read())
    }

    /// Takes the roster. It is known before an epoch is adopted, so that no acknowledgement of that
    /// epoch lacks a member.
    pub(crate) fn set_roster(&self, names: &[String]) {
        if **self.roster.read() != *names {
            *self.roster.write() = names.into();
        }
    }

    /// Tells the acknowledgements which members an epoch's primary has beside it.
    pub(crate) fn set_members(&self, acknowledger: &mut Acknowledger, epoch: &EpochRecord) {
        let roster = self.roster();
        let others = roster.iter().filter(|name| **name != epoch.member);
        let others: Vec<String> = others.cloned().collect();
        acknowledger.set_members(&others, boot_time());
    }

    /// The id of the epoch this node is in, and its timeline.
    pub(crate) fn epoch_and_timeline(&self) -> Option<(EpochId, u32)> {
        self.acknowledger().epoch().map(|e| (e.id, e.timeline))
    }

    /// Replaces the table of epoch ends; `None`: the history could not be read.
    pub(crate) fn set_epoch_ends(&self, history: Option<&[EpochRecord]>, current: &EpochRecord) {
        let ends = EpochEnds::new(history, current);
        let mut known = self.history.write();
        if known.ends.current != Some(current.id) {
            known.positions.clear();
            self.sampled_at.store(0, Ordering::Relaxed);
        }
        (known.ends, known.timeline) = (ends, current.timeline);
        known.minted_at = current.minted_at;
        drop(known);
        self.history_known.store(history.is_some(), Ordering::Relaxed);
    }

    /// The epoch before the current one, if the current primary has nothing of it.
    pub(crate) fn discarded_epoch(&self) -> Option<EpochOrdinal> {
        self.history.read().ends.discarded
    }

    /// Whether the epochs before the current one are known.
    pub(crate) fn knows_history(&self) -> bool {
        self.history_known.load(Ordering::Relaxed)
    }

    /// Every earlier epoch with its end.
    pub(crate) fn past_epoch_ends(&self) -> Vec<PastEnd> {
        self.history.read().ends.past.clone()
    }

    /// The epoch that [`Cluster::epoch_end_of`] is relative to; `None`: no epoch is known.
    pub(crate) fn history_epoch(&self) -> Option<EpochId> {
        self.history.read().ends.current
    }

    /// The end of an epoch: `u64::MAX` for the current one; `None`: the epoch is unknown.
    pub(crate) fn epoch_end_of(&self, epoch: EpochId) -> Option<u64> {
        self.history.read().ends.of(epoch)
    }

    /// The ends of all epochs, as of one moment.
    pub(crate) fn epoch_ends(&self) -> EpochEnds {
        self.history.read().ends.clone()
    }

    /// The ordinal of an epoch; `None`: the epoch is unknown.
    pub(crate) fn epoch_ordinal(&self, epoch: EpochId) -> Option<EpochOrdinal> {
        self.history.read().ends.ordinal_of(epoch)
    }

    /// The end of an epoch; 0 for an unknown one.
    pub(crate) fn epoch_end(&self, epoch: EpochId) -> u64 {
        self.epoch_end_of(epoch).unwrap_or(0)
    }

    /// Records a log position of the primary, up to which everything was flushed at some moment
    /// between `asked.sent` and `asked.returned`. The primary must be proven for this question,
    /// like for a commit.
    pub(crate) fn record_primary_position(&self, asked: &Commit, position: u64) {
        let sent_ms = u64::try_from(asked.sent.0.as_millis()).unwrap_or(u64::MAX);
        let next = self.sampled_at.load(Ordering::Relaxed);
        if sent_ms < next.saturating_add(SAMPLE_INTERVAL_MIN.as_millis() as u64) {
            return;
        }
        let mut known = self.history.write();
        if known.ends.current == Some(asked.epoch) {
            self.sampled_at.store(sent_ms, Ordering::Relaxed);
            known.positions.record(asked.sent, position);
        }
    }

    /// Takes the answers of a round of probes; see [`ReplicaStates::record`].
    pub(crate) fn record_replicas(&self, answers: &[(&Node, ProbeAnswer)], has_primary: bool) {
        let mut states = self.replica_states.write();
        let known = self.history.read();
        let prove = |position| known.positions.proven_through(position);
        states.record(answers, has_primary, known.current(), boot_time(), prove);
    }

    /// What a server in recovery is proven to show; `None`: it shows what is not part of the
    /// history, or that cannot be told.
    pub(crate) fn proven(&self, address: &str, log: &LogFacts) -> Option<Proven> {
        let states = self.replica_states.read();
        let known = self.history.read();
        let position = states.position(address, log, known.current())?;
        Some(Proven { position, through: known.positions.proven_through(position) })
    }

    /// When the current epoch was minted, in Unix ms: a server with its row shows everything that
    /// was acknowledged before. `None`: `epoch` is a different one.
    pub(crate) fn minted_at(&self, epoch: EpochId) -> Option<UnixMillis> {
        let known = self.history.read();
        (known.ends.current == Some(epoch)).then_some(known.minted_at)
    }

    /// Whether a time is not longer ago than a replica may be behind.
    pub(crate) fn is_recent(&self, through: Option<BootTime>) -> bool {
        through.is_some_and(|through| age(through, boot_time()) <= self.replica_age_max)
    }

    /// When the newest position of the primary was taken; `None`: there is none of this epoch.
    pub(crate) fn sampled_at(&self) -> Option<BootTime> {
        self.history.read().positions.newest()
    }

    /// The primary was checked now: what its installation lacks, and the size of its outbox.
    pub(crate) fn record_check(&self, outbox_bytes: u64) {
        self.outbox_bytes.store(outbox_bytes, Ordering::Relaxed);
        let now = u64::try_from(boot_time().0.as_millis()).unwrap_or(u64::MAX);
        self.checked_at.store(now, Ordering::Relaxed);
    }

    /// When the primary was last checked; `None`: it was not.
    pub(crate) fn checked_at(&self) -> Option<BootTime> {
        let at = self.checked_at.load(Ordering::Relaxed);
        (at > 0).then_some(BootTime(Duration::from_millis(at)))
    }

    /// Whether leadership was proven lately, or this process has not had the time for it: without a
    /// proof no position of the primary is recorded.
    pub(crate) fn is_provable(&self) -> bool {
        let newest = self.history.read().positions.newest();
        newest.is_none() || self.is_recent(newest)
    }

    /// Of these nodes the replicas that are proven to be recent.
    pub(crate) fn recent_replicas<'a>(
        &self,
        nodes: impl Iterator<Item = &'a Node>,
    ) -> Vec<&'a Node> {
        let (states, now) = (self.replica_states.read(), boot_time());
        nodes.filter(|node| states.is_current(&node.address, self.replica_age_max, now)).collect()
    }

    /// The nodes with the newest replica first; equally old ones keep their order.
    pub(crate) fn newest_first<'a>(&self, mut nodes: Vec<&'a Node>) -> Vec<&'a Node> {
        let states = self.replica_states.read();
        nodes.sort_by_cached_key(|node| std::cmp::Reverse(states.rank(&node.address)));
        nodes
    }

    /// How old each replica is.
    pub(crate) fn replica_ages(&self) -> Vec<ReplicaAge> {
        self.replica_states.read().ages(boot_time())
    }

    /// The replicas that are older than they may be, each a sentence for people.
    pub(crate) fn replicas_behind(&self) -> Vec<String> {
        let has_primary = self.topology.borrow().primary.is_some();
        let ages = self.replica_ages();
        let behind = ages.iter().filter(|replica| replica.age > self.replica_age_max);
        behind.map(|replica| replica.text(&self.name, has_primary)).collect()
    }

    /// Waits until a commit may be acknowledged. False: not before `until`, or never; the write
    /// must be retried with its id.
    pub(crate) async fn may_acknowledge(&self, commit: &Commit, until: Instant) -> bool {
        let mut proofs = self.subscribe_proofs();
        loop {
            let decision = self.acknowledger().decide(commit, boot_time());
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
        self.repair.suspect(boot_time());
        self.refresh.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tagfast_domain::Version;
    use tagfast_failover::{
        AckDecision, GuardState, JournaledContent, LeaderKey, LeaderObservation, LeaseAnswer,
        LogRange,
    };

    use super::*;
    use crate::cluster::epoch_ends::tests::epoch;

    /// Under this roster, a minute after a write was acknowledged that no replica has:
    /// what the guard does, and whether the journal still holds the write.
    fn after_a_minute(roster: &[&str]) -> (GuardState, bool) {
        let at = |ms| BootTime(Duration::from_millis(ms));
        let breakers = Breakers::new(Arc::new(tagfast_resilience::SystemClock));
        let cluster = Cluster::new(0, ("c0", "c0"), ClusterBounds::default(), &breakers);
        cluster.set_roster(&roster.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let epoch = epoch(1, None, 1, None);
        let mut acknowledger = cluster.acknowledger();
        assert!(acknowledger.adopt_epoch(&epoch, at(0)));
        cluster.set_members(&mut acknowledger, &epoch);
        let observation = LeaderObservation {
            revision: epoch.term,
            raft_term: 1,
            leader: Some(LeaderKey { create_revision: epoch.term, member: epoch.member.clone() }),
            key_lease: 5,
            lease: Some(LeaseAnswer { id: 5, sent: at(0), remaining_s: 20, raft_term: 1 }),
            paused: false,
        };
        assert!(acknowledger.record_observation(&observation));
        let content = JournaledContent {
            key: Arc::from(&b"k"[..]),
            document: Arc::from(&b"d"[..]),
            version: Version::NONE,
            writes: Vec::new(),
        };
        let commit = Commit { epoch: epoch.id, sent: at(1), returned: at(2) };
        let range = LogRange { epoch: epoch.id, inside: 90, flushed: 100 };
        let group = acknowledger.record(commit, range, vec![content]).expect("its epoch goes on");
        let decision = acknowledger.decide_group(&group, at(3));
        assert!(matches!(decision, AckDecision::Acknowledge(_)), "{decision:?}");
        acknowledger.record_replicas(epoch.id, &[("pg_receivewal".to_owned(), 100)], at(60_000));
        (acknowledger.guard_state(at(60_000)), !acknowledger.journal().is_empty())
    }

    #[test]
    fn a_cluster_without_other_members_is_never_held() {
        let primary = epoch(1, None, 1, None).member;
        assert_eq!(after_a_minute(&[&primary]), (GuardState::Open, false));
        assert_eq!(after_a_minute(&[&primary, "away"]), (GuardState::Refusing, true));
    }

    #[test]
    fn an_unknown_epoch_is_not_a_lost_one() {
        let breakers = Breakers::new(Arc::new(tagfast_resilience::SystemClock));
        let cluster = Cluster::new(0, ("c0", "c0"), ClusterBounds::default(), &breakers);
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
        let ends = cluster.past_epoch_ends().into_iter().map(|past| (past.ordinal.0, past.end));
        assert_eq!(ends.collect::<Vec<_>>(), [(1, 300), (2, 0)]);
        // Its history could not be read: the earlier epochs are unknown, not current.
        cluster.set_epoch_ends(None, &epoch(4, Some(3), 4, Some(900)));
        assert_eq!(
            (of(4), of(3), of(1), cluster.knows_history()),
            (Some(u64::MAX), None, None, false)
        );
    }
}
