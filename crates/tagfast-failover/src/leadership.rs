//! Leadership proofs: that no other node can have become primary before a commit returned. They
//! fence off a primary that was replaced.
//!
//! **The lease proof.** An observation of the leader key asks etcd for the time that is left of the
//! lease, then reads the key. If the key is of our term and its lease has `r` seconds left, no
//! other node can take it before `sent + r`. One second of that is kept back for clock rates and
//! for the way of the acknowledgement to the writer.
//!
//! etcd answers for a lease without a quorum: a leader that was cut off from the other members, or
//! whose disk stands still, goes on answering, and renews leases that its successor lets expire.
//! The read of the key has a quorum. So the lease is asked for first, and the pair counts only if
//! both answers are of one raft term: then the leader that knew the lease was the leader after it
//! had answered.
//!
//! **The member proof.** While etcd does not answer: every other member answers that it is in
//! recovery and follows our timeline, in probe rounds at most a second apart since the last lease
//! proof, the last one sent after the commit returned. "No member is primary now" alone would
//! believe a member that was promoted, acknowledged, died and came back. The members are all that
//! were ever seen, not those that etcd lists now: keys of members expire. An empty list proves
//! nothing.
//!
//! An observation that does not show our term ends every proof at once and for good, because a term
//! never returns. Observations overtake each other: one that is older than the newest that was used
//! is dropped.
//!
//! Why not Patroni's `GET /primary`: it may be true up to the last moment of the lease, and on a
//! stalled node even after it.
//!
//! How it fails: without a proof a commit is not acknowledged; the writer waits or retries.

use std::time::Duration;

use crate::epoch::{EpochRecord, LeaderKey};

/// Time since this machine's start, suspended or not (`CLOCK_BOOTTIME`): setting the wall clock
/// does not move it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct BootTime(pub Duration);

/// Kept back from a lease: 0.1 % clock rate over 20 s is 20 ms, the rest is for the way of the
/// acknowledgement to the writer.
pub const LEASE_MARGIN: Duration = Duration::from_secs(1);
/// A lease counts for no longer than this, in seconds: Patroni's default `ttl` is larger, and may
/// be lowered to this while the cluster runs.
pub const LEASE_COUNTED_MAX_S: u64 = 20;
/// Longest gap between two probe rounds of the member proof; a promotion, death, rewind and return
/// takes six seconds or more.
pub const PROBE_ROUND_GAP_MAX: Duration = Duration::from_secs(1);
/// A commit that took longer needs a proof that was requested after it returned: a backend may
/// outlive its postmaster.
pub const SLOW_COMMIT_AFTER: Duration = Duration::from_secs(1);

/// etcd's answer to how long a lease has left, which it gives without a quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseAnswer {
    /// The lease that was asked for.
    pub id: u64,
    /// When the request was sent.
    pub sent: BootTime,
    /// How long the lease had left, in whole seconds, rounded down.
    pub remaining_s: u64,
    /// The raft term of the member that answered (`header.raft_term`).
    pub raft_term: u64,
}

/// One observation of the leader key: its lease was asked for first, then the key was read
/// linearizably.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderObservation {
    /// etcd's revision at the read of the key (`header.revision`): it orders observations.
    pub revision: u64,
    /// The raft term of the member that answered the read (`header.raft_term`).
    pub raft_term: u64,
    /// The key; `None`: no node holds it.
    pub leader: Option<LeaderKey>,
    /// The lease that the key is bound to; 0: none.
    pub key_lease: u64,
    /// The lease as asked for before the key was read; `None`: it was not asked for, it had ended,
    /// or etcd did not say.
    pub lease: Option<LeaseAnswer>,
    /// Patroni is paused: the lease proves nothing then.
    pub paused: bool,
}

impl LeaderObservation {
    /// Whether the key is of this epoch's term, and held by its member.
    fn shows(&self, epoch: &EpochRecord) -> bool {
        let is_ours =
            |key: &LeaderKey| key.create_revision == epoch.term && key.member == epoch.member;
        self.leader.as_ref().is_some_and(is_ours)
    }

    /// The lease of the key, if the member that answered for it led etcd until after its answer.
    fn confirmed_lease(&self) -> Option<LeaseAnswer> {
        let is_of_key = |lease: &LeaseAnswer| lease.id == self.key_lease;
        self.lease.filter(is_of_key).filter(|lease| lease.raft_term == self.raft_term)
    }
}

/// What one other member answered to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberAnswer {
    /// Whether it is in recovery.
    pub in_recovery: bool,
    /// The timeline that its WAL receiver follows; `None`: it receives nothing.
    pub received_timeline: Option<u32>,
}

/// One round of probes of all members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeRound {
    /// When the first probe was sent.
    pub sent: BootTime,
    /// Our primary still passes the epoch check.
    pub primary_checked: bool,
    /// One answer for each other member that was ever seen; `None`: it did not answer.
    pub members: Vec<Option<MemberAnswer>>,
}

/// The proofs of leadership in one epoch.
#[derive(Debug, Clone)]
pub struct LeadershipProof {
    epoch: EpochRecord,
    /// Until when the lease proves leadership; `None`: no lease was read yet.
    deadline: Option<BootTime>,
    /// When the newest lease proof was requested; `None`: there is none.
    proven_at: Option<BootTime>,
    /// The newest round of an unbroken chain that began at the last lease proof; `None`: the chain
    /// is broken.
    chain: Option<BootTime>,
    paused: bool,
    /// How many other members there are; `None`: not known yet.
    members: Option<usize>,
    /// etcd's revision at the newest observation that was used; the term began at the first one.
    revision: u64,
    /// An observation showed that the term is over.
    has_ended: bool,
}

/// Whether leadership is proven for a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofStatus {
    /// No other primary can have begun before the commit returned.
    Proven,
    /// Not yet: a proof that was requested after this moment is needed.
    ProofAfter(BootTime),
}

impl LeadershipProof {
    /// Nothing is proven yet.
    pub fn new(epoch: EpochRecord) -> Self {
        Self {
            revision: epoch.term,
            epoch,
            deadline: None,
            proven_at: None,
            chain: None,
            paused: false,
            members: None,
            has_ended: false,
        }
    }

    /// Sets how many other members were ever seen: a round proves nothing without an answer for
    /// each of them.
    pub fn set_members(&mut self, count: usize) {
        self.members = Some(count);
    }

    /// The epoch that it is about.
    pub fn epoch(&self) -> &EpochRecord {
        &self.epoch
    }

    /// Until when the lease proves leadership; `None`: no lease was read yet.
    pub fn deadline(&self) -> Option<BootTime> {
        self.deadline
    }

    /// Records an observation. One that is older than the newest that was used, or than the term,
    /// changes nothing. One that does not show the term ends it. False: the term has ended.
    pub fn record_observation(&mut self, observation: &LeaderObservation) -> bool {
        if observation.revision < self.revision || self.has_ended {
            return !self.has_ended;
        }
        self.revision = observation.revision;
        // Proven | Unproven => Ended
        if !observation.shows(&self.epoch) {
            self.has_ended = true;
            self.deadline = None;
            self.proven_at = None;
            self.chain = None;
            return false;
        }
        self.paused = observation.paused;
        if let Some(lease) = observation.confirmed_lease() {
            self.extend(&lease);
        }
        true
    }

    fn extend(&mut self, lease: &LeaseAnswer) {
        let counted = Duration::from_secs(lease.remaining_s.min(LEASE_COUNTED_MAX_S));
        let until = BootTime((lease.sent.0 + counted).saturating_sub(LEASE_MARGIN));
        self.deadline = self.deadline.max(Some(until));
        // Broken | Chained(at) => Chained(sent): a newer lease proof begins the chain again. One
        // that was answered late does not set an unbroken chain back.
        if self.proven_at.is_none_or(|at| at < lease.sent) {
            self.proven_at = Some(lease.sent);
            self.chain = self.chain.max(Some(lease.sent));
        }
    }

    /// Records a round of probes. A failed or late one breaks the chain until etcd proves the term
    /// again.
    pub fn record_round(&mut self, round: &ProbeRound) {
        let is_complete =
            self.members.is_some_and(|count| count > 0 && round.members.len() >= count);
        let good = round.primary_checked
            && is_complete
            && round.members.iter().all(|answer| {
                answer.is_some_and(|a| {
                    a.in_recovery && a.received_timeline == Some(self.epoch.timeline)
                })
            });
        self.chain = match self.chain {
            // Chained(last) => Chained(sent)
            Some(last) if good && round.sent.0 <= last.0 + PROBE_ROUND_GAP_MAX => {
                Some(last.max(round.sent))
            }
            // Chained | Broken => Broken
            _ => None,
        };
    }

    /// Whether leadership is proven now for a commit that was sent and returned at these times.
    pub fn proof_status(&self, sent: BootTime, returned: BootTime, now: BootTime) -> ProofStatus {
        let slow = returned.0.saturating_sub(sent.0) > SLOW_COMMIT_AFTER;
        let lease = !self.paused && self.deadline.is_some_and(|deadline| now < deadline);
        let lease = lease && (!slow || self.proven_at.is_some_and(|at| at > returned));
        // The chain begins with a lease proof, which is not a round: that moment alone is no member
        // proof.
        let rounds = self.chain.is_some_and(|at| at > returned && Some(at) != self.proven_at);
        if lease || rounds { ProofStatus::Proven } else { ProofStatus::ProofAfter(returned) }
    }
}

#[cfg(test)]
mod tests;
