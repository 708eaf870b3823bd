//! Which commits the replicas of a cluster have.
//!
//! A commit is covered by a replica when that replica has flushed its position, as the primary of
//! the same epoch tells: a position that was read in a different epoch proves nothing, because two
//! forks of a log have the same positions. What a replica has flushed it keeps, so one that
//! vanishes still covers what it had.
//!
//! How it fails: pessimistically. Without an answer the positions stay as they are. A replica that
//! has not streamed for [`ABSENT_AFTER`] no longer counts among "all", or one that is gone for good
//! would keep the journal from ever shrinking; a promotion of that replica is not protected.

use std::collections::BTreeMap;
use std::time::Duration;

use tagfast_domain::EpochId;

use crate::leadership::BootTime;

/// A member that has not streamed for this long does not count among "all".
pub const ABSENT_AFTER: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy)]
struct Member {
    /// `None`: it has not streamed in this epoch.
    flushed: Option<u64>,
    is_streaming: bool,
    /// When it last streamed, or when the epoch began.
    streamed: BootTime,
}

/// How many replicas have a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaCount {
    /// The streaming replicas that have it.
    pub replicas: usize,
    /// The streaming replicas.
    pub of: usize,
}

impl ReplicaCount {
    /// Whether all streaming replicas have it, at least one.
    pub fn is_all(self) -> bool {
        self.of > 0 && self.replicas == self.of
    }
}

/// What the members of a cluster have flushed in one epoch.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    /// `None`: no epoch is known.
    epoch: Option<EpochId>,
    /// Whether the members were ever told.
    is_roster_known: bool,
    members: BTreeMap<String, Member>,
}

impl Coverage {
    /// Begins an epoch in which no member has flushed anything yet.
    pub fn begin_epoch(&mut self, epoch: EpochId, now: BootTime) {
        self.epoch = Some(epoch);
        for member in self.members.values_mut() {
            *member = Member { flushed: None, is_streaming: false, streamed: now };
        }
    }

    /// Sets the members beside the primary: all that were ever seen, not only those that answer.
    pub fn set_members(&mut self, names: &[String], now: BootTime) {
        self.is_roster_known = true;
        self.members.retain(|name, _| names.contains(name));
        for name in names {
            self.members.entry(name.clone()).or_insert(Member {
                flushed: None,
                is_streaming: false,
                streamed: now,
            });
        }
    }

    /// Takes what the primary of `epoch` told about the replicas that stream from it: names and
    /// flushed positions. Others than members, such as a base backup, are ignored.
    pub fn record(&mut self, epoch: EpochId, streaming: &[(String, u64)], now: BootTime) {
        if self.epoch != Some(epoch) {
            return;
        }
        for (name, member) in &mut self.members {
            // One that connects again is listed twice for a while.
            let positions = streaming.iter().filter(|(streaming, _)| streaming == name);
            let flushed = positions.map(|(_, flushed)| *flushed).max();
            member.is_streaming = flushed.is_some();
            if flushed.is_some() {
                member.flushed = member.flushed.max(flushed);
                member.streamed = member.streamed.max(now);
            }
        }
    }

    /// The position up to which at least one member has everything.
    pub fn by_one(&self) -> u64 {
        self.members.values().filter_map(|member| member.flushed).max().unwrap_or(0)
    }

    /// The position up to which every member has everything, those left out that have been absent
    /// for long. Without members: 0, nothing is covered.
    pub fn by_all(&self, now: BootTime) -> u64 {
        let counts = |m: &&Member| now.0.saturating_sub(m.streamed.0) <= ABSENT_AFTER;
        let flushed = |m: &Member| m.flushed.unwrap_or(0);
        self.members.values().filter(counts).map(flushed).min().unwrap_or(0)
    }

    /// The members that stream now.
    pub fn streaming(&self) -> usize {
        self.members.values().filter(|member| member.is_streaming).count()
    }

    /// Whether there may be any member beside the primary: there is one, or none was told yet.
    pub fn has_members(&self) -> bool {
        !self.is_roster_known || !self.members.is_empty()
    }

    /// How many of the streaming replicas have a position.
    pub fn count(&self, flushed: u64) -> ReplicaCount {
        let streaming = || self.members.values().filter(|member| member.is_streaming);
        let replicas = streaming().filter(|m| m.flushed.is_some_and(|f| f >= flushed)).count();
        ReplicaCount { replicas, of: streaming().count() }
    }

    /// Whether every streaming replica has a position. While none of them streams, any of them may
    /// be promoted without it.
    pub fn has_all(&self, flushed: u64) -> bool {
        !self.has_members() || self.count(flushed).is_all()
    }

    /// The members with what they have flushed in this epoch and whether they stream now, by name.
    pub fn positions(&self) -> impl Iterator<Item = (&str, Option<u64>, bool)> {
        self.members.iter().map(|(name, m)| (name.as_str(), m.flushed, m.is_streaming))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_safe_once_every_streaming_replica_has_it() {
        let epoch = EpochId([1; 16]);
        let of = |members: &[&str], streaming: &[(&str, u64)]| {
            let mut coverage = Coverage::default();
            coverage.begin_epoch(epoch, BootTime::default());
            let names: Vec<String> = members.iter().map(|name| (*name).to_owned()).collect();
            coverage.set_members(&names, BootTime::default());
            let streaming: Vec<(String, u64)> =
                streaming.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
            coverage.record(epoch, &streaming, BootTime::default());
            coverage.has_all(10)
        };
        let members = ["r1", "r2"];
        assert!(of(&members, &[("r1", 10), ("r2", 11)]));
        assert!(!of(&members, &[("r1", 10), ("r2", 9)]));
        // The other one is away, and cannot be promoted while this one is ahead of it.
        assert!(of(&members, &[("r1", 10)]));
        assert!(!of(&members, &[]), "a replica that does not stream may be promoted");
        assert!(!of(&members, &[("backup", 99)]));
        assert!(of(&[], &[]), "nothing can be promoted");
    }
}
