//! What one process may tell its callers about one cluster: the acknowledgement gate, the journal,
//! the positions of the replicas and the guard as one state machine.
//!
//! They are one because of their order. A group commit is journaled, then proven, then passed by
//! the guard, then acknowledged; and the moment at which a process adopts an epoch separates what
//! its repair looks at from what it must not acknowledge any more. A lock around this machine is
//! the lock under which a repair starts.
//!
//! How it fails: see [`crate::ack_gate`], [`crate::journal`] and
//! [`crate::guard`](mod@crate::guard).

use std::collections::BTreeMap;
use std::time::Duration;

use tagfast_domain::EpochId;

use crate::ack_gate::{AckGate, Commit, Decision};
use crate::coverage::{Coverage, ReplicaCount};
use crate::epoch::EpochRecord;
use crate::guard::{EPOCH_SETTLE_TIME, GuardFacts, GuardOptions, GuardState, guard};
use crate::journal::{GroupId, Journal};
use crate::journaled::{JournaledContent, LogRange};
use crate::leadership::{BootTime, LeaderObservation, ProbeRound};

/// What the callers of a group commit may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckDecision {
    /// It is durable; so many of the streaming replicas had it at this moment, `None`: the cluster
    /// has none. It counts as acknowledged from now on.
    Acknowledge(Option<ReplicaCount>),
    /// Not yet: get a proof that was requested after this moment, then decide again.
    ProofAfter(BootTime),
    /// Not yet: no replica has it, and more must not be exposed.
    WaitForReplica,
    /// The epoch has ended: the outcome is unknown. Retry with the same id on the new primary.
    Unknown,
}

/// A group commit that is in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournaledCommit {
    /// Its group.
    pub group: GroupId,
    /// The commit.
    pub commit: Commit,
    /// A log position at or after it.
    pub flushed: u64,
}

/// What a process knows of one cluster when it acknowledges writes.
#[derive(Debug)]
pub struct Acknowledger {
    gate: AckGate,
    journal: Journal,
    coverage: Coverage,
    options: GuardOptions,
    /// When this process adopted the epoch.
    epoch_began: BootTime,
    /// The positions of the groups that wait for a replica, and since when.
    waiting: BTreeMap<u64, (u64, BootTime)>,
}

impl Acknowledger {
    /// Knows no epoch yet. `journal_bytes_max`: the size of the journal.
    pub fn new(options: GuardOptions, journal_bytes_max: usize) -> Self {
        Self {
            gate: AckGate::default(),
            journal: Journal::new(journal_bytes_max),
            coverage: Coverage::default(),
            options,
            epoch_began: BootTime::default(),
            waiting: BTreeMap::new(),
        }
    }

    /// The epoch this process is in; `None` before it adopted one.
    pub fn epoch(&self) -> Option<&EpochRecord> {
        self.gate.epoch()
    }

    /// Until when the lease proves leadership; `None` before the first lease answer.
    pub fn deadline(&self) -> Option<BootTime> {
        self.gate.deadline()
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The journal, for a repair.
    pub fn journal_mut(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// The positions of the replicas.
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Adopts the epoch in etcd, see [`AckGate::adopt_epoch`]. What was journaled before waits for
    /// a repair from now on. True when the epoch changed.
    pub fn adopt_epoch(&mut self, epoch: &EpochRecord, now: BootTime) -> bool {
        let changed = self.gate.adopt_epoch(epoch);
        if changed {
            self.journal.begin_epoch(epoch.id);
            self.coverage.begin_epoch(epoch.id, now);
            self.epoch_began = now;
            self.waiting.clear();
        }
        changed
    }

    /// Records an observation of the leader key, see [`AckGate::record_observation`]. False: the
    /// term has ended, or no epoch is known.
    pub fn record_observation(&mut self, observation: &LeaderObservation) -> bool {
        self.gate.record_observation(observation)
    }

    /// Records a round of member probes, see [`AckGate::record_round`].
    pub fn record_round(&mut self, epoch: EpochId, round: &ProbeRound) {
        self.gate.record_round(epoch, round);
    }

    /// Sets the members beside the primary: all that were ever seen, see [`Coverage::set_members`]
    /// and [`AckGate::set_members`].
    pub fn set_members(&mut self, names: &[String], now: BootTime) {
        self.gate.set_members(names.len());
        self.coverage.set_members(names, now);
    }

    /// Takes the positions that the primary told, which must have been proven to lead `epoch` when
    /// it was asked.
    pub fn record_replicas(&mut self, epoch: EpochId, streaming: &[(String, u64)], now: BootTime) {
        self.coverage.record(epoch, streaming, now);
        // Without any other member no failover can lose anything.
        let (by_one, by_all) = match self.coverage.has_members() {
            true => (self.coverage.by_one(), self.coverage.by_all(now)),
            false => (u64::MAX, u64::MAX),
        };
        self.waiting.retain(|_, (flushed, _)| *flushed > by_one);
        self.journal.cover(epoch, by_one, by_all);
    }

    /// Decides about an answer that vouches for no write: a read of the primary, or a canary.
    pub fn decide(&self, commit: &Commit, now: BootTime) -> Decision {
        self.gate.decide(commit, now)
    }

    /// Journals a group commit. `None`: its epoch has ended, and its outcome is unknown.
    pub fn record(
        &mut self,
        commit: Commit,
        at: LogRange,
        contents: Vec<JournaledContent>,
    ) -> Option<JournaledCommit> {
        if commit.epoch != at.epoch {
            return None;
        }
        let group = self.journal.record(at, contents)?;
        Some(JournaledCommit { group, commit, flushed: at.flushed })
    }

    /// Decides about a journaled group commit.
    pub fn decide_group(&mut self, group: &JournaledCommit, now: BootTime) -> AckDecision {
        match self.gate.decide(&group.commit, now) {
            Decision::Acknowledge => {}
            Decision::ProofAfter(moment) => return AckDecision::ProofAfter(moment),
            Decision::Unknown => return AckDecision::Unknown,
        }
        let covered = self.coverage.by_one();
        if group.flushed > covered && self.guard_state(now) >= GuardState::Holding {
            self.waiting.entry(group.group.number()).or_insert((group.flushed, now));
            return AckDecision::WaitForReplica;
        }
        self.waiting.remove(&group.group.number());
        if !self.journal.acknowledge(group.group, now, covered) {
            return AckDecision::Unknown;
        }
        let has_members = self.coverage.has_members();
        AckDecision::Acknowledge(has_members.then(|| self.coverage.count(group.flushed)))
    }

    /// The callers of a group do not wait any more.
    pub fn stop_waiting(&mut self, group: &JournaledCommit) {
        self.waiting.remove(&group.group.number());
    }

    /// The age of the oldest acknowledged write that no replica has.
    pub fn exposure(&self, now: BootTime) -> Duration {
        let oldest = self.journal.oldest_exposed();
        oldest.map_or(Duration::ZERO, |at| now.0.saturating_sub(at.0))
    }

    /// Whether the epoch is so young that its replicas may still attach.
    pub fn is_settling(&self, now: BootTime) -> bool {
        now.0.saturating_sub(self.epoch_began.0) < EPOCH_SETTLE_TIME
    }

    /// What is done with writes now.
    pub fn guard_state(&self, now: BootTime) -> GuardState {
        let oldest = self.waiting.values().map(|(_, since)| since).min();
        let facts = GuardFacts {
            exposure: self.exposure(now),
            waiting: oldest.map_or(Duration::ZERO, |at| now.0.saturating_sub(at.0)),
            streaming: self.coverage.streaming(),
            has_members: self.coverage.has_members(),
            epoch_age: now.0.saturating_sub(self.epoch_began.0),
        };
        guard(&self.options, &facts)
    }
}
