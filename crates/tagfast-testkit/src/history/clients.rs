//! Checks the histories of concurrent writers and readers of tags, through failovers.
//!
//! Each tag of a content is a register: present or absent, set by adds, removes and replaced sets.
//! A write takes effect once, between its call and its answer; a write with an unknown outcome
//! takes effect at any later time, or never. What a read shows must be explained by a write that no
//! later write, known to the reader, has overruled. Replication is asynchronous, so acknowledged
//! writes may be lost around a failover. The history says when ([`History::may_lose`]); a loss at
//! any other time is a fault.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::outcome::Outcome;

/// A write, from its call to its answer. Times count from the start of the history.
#[derive(Debug, Clone)]
pub struct WriteCall {
    /// Number of the client that wrote.
    pub client: u32,
    /// Key of the content.
    pub content: String,
    /// Time of the first attempt.
    pub began: Duration,
    /// Time of the answer.
    pub ended: Duration,
    /// Tags that the write makes present.
    pub adds: BTreeSet<String>,
    /// Tags that the write makes absent.
    pub removes: BTreeSet<String>,
    /// Outcome as the client knows it.
    pub outcome: Outcome,
    /// Whether the answer reported a change.
    pub changed: bool,
    /// Version in the answer.
    pub version: u64,
    /// Epoch in the answer: id and ordinal.
    pub epoch: (u128, u64),
}

/// A read and its answer.
#[derive(Debug, Clone)]
pub struct ReadCall {
    /// Number of the client that read.
    pub client: u32,
    /// Key of the content.
    pub content: String,
    /// Time of the request.
    pub began: Duration,
    /// Time of the answer.
    pub ended: Duration,
    /// Tags in the answer.
    pub tags: BTreeSet<String>,
    /// Version in the answer.
    pub version: u64,
    /// Whether the request carried the client's token, so that the answer must cover the client's
    /// writes and earlier reads or be marked.
    pub session: bool,
    /// Whether the answer was marked as possibly incomplete.
    pub marked: bool,
}

/// The start of an epoch, as a watcher of Patroni's leader key saw it.
#[derive(Debug, Clone, Copy)]
pub struct EpochStart {
    /// Id of the epoch, as in the receipts of its writes.
    pub id: u128,
    /// Time at which the watcher first saw the leader key of this epoch.
    pub seen_at: Duration,
}

/// A promise that the history violates.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An acknowledged write is not in the final state (set-full).
    Lost(String),
    /// A tag exists although its removal was acknowledged and no client added it since.
    Resurrected(String),
    /// A read with a token shows neither the client's own write nor a later one.
    ReadYourWrites(String),
    /// A read with a token shows an older version than the client had seen (no monotonic reads).
    WentBack(String),
    /// A state that no write explains.
    Unexplained(String),
    /// A content has more tags than the limit.
    Limit(String),
    /// Of two sequential writes the later one has no larger version.
    VersionOrder(String),
    /// Two states or two changes have the same version (I1).
    OneVersionTwice(String),
    /// Two epochs share an ordinal (I1).
    OneOrdinalTwice(String),
    /// A write that was requested after a later epoch had started was acknowledged by an earlier
    /// one (I2).
    AcknowledgedByReplaced(String),
}

/// Everything that clients and watchers observed.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// All writes.
    pub writes: Vec<WriteCall>,
    /// All reads.
    pub reads: Vec<ReadCall>,
    /// Epochs in their order.
    pub epochs: Vec<EpochStart>,
    /// Maximum number of tags of a content.
    pub limit: usize,
    /// Periods whose acknowledged writes may be lost, by the time of the answer.
    pub may_lose: Vec<(Duration, Duration)>,
}

/// Result of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Violated promises.
    pub faults: Vec<Fault>,
    /// Acknowledged writes that were lost while that was allowed.
    pub lost: usize,
}

/// The effect of one write on one tag.
struct Decision<'a> {
    write: &'a WriteCall,
    present: bool,
}

type Registers<'a> = HashMap<(&'a str, &'a str), Vec<Decision<'a>>>;

impl History {
    /// Adds the observations of another recorder.
    pub fn merge(&mut self, other: Self) {
        self.writes.extend(other.writes);
        self.reads.extend(other.reads);
    }

    /// Checks everything against the final state: the version and the tags of each content.
    pub fn check(&self, final_state: &BTreeMap<String, (u64, BTreeSet<String>)>) -> Verdict {
        let mut verdict = Verdict::default();
        let registers = self.registers();
        self.check_final(&registers, final_state, &mut verdict);
        self.check_reads(&registers, &mut verdict.faults);
        self.check_limit(final_state, &mut verdict.faults);
        self.check_versions(final_state, &mut verdict.faults);
        self.check_epochs(&mut verdict.faults);
        verdict.faults.sort();
        verdict.faults.dedup();
        verdict
    }

    fn registers(&self) -> Registers<'_> {
        let mut registers: Registers<'_> = HashMap::new();
        for write in self.writes.iter().filter(|w| w.outcome != Outcome::Refused) {
            for (tags, present) in [(&write.adds, true), (&write.removes, false)] {
                for tag in tags {
                    registers
                        .entry((&write.content, tag))
                        .or_default()
                        .push(Decision { write, present });
                }
            }
        }
        registers
    }

    fn may_be_lost(&self, write: &WriteCall) -> bool {
        self.may_lose.iter().any(|(from, to)| write.ended >= *from && write.ended <= *to)
    }

    /// Whether some write explains `present` in a read between `requested` and `answered`. Only
    /// `known` writes overrule earlier ones. `Err` holds the index of an overruling write.
    fn explained(
        decisions: &[Decision<'_>],
        present: bool,
        requested: Duration,
        answered: Duration,
        known: impl Fn(&WriteCall) -> bool,
    ) -> Result<(), usize> {
        // An acknowledged later write with the opposite effect.
        let overruled = |after: Option<Duration>| {
            decisions.iter().position(|d| {
                d.present != present
                    && d.write.outcome == Outcome::Acknowledged
                    && known(d.write)
                    && d.write.ended < requested
                    && after.is_none_or(|after| d.write.began > after)
            })
        };
        let mut last = None;
        // Before any write the tag is absent.
        if !present {
            match overruled(None) {
                None => return Ok(()),
                some => last = some,
            }
        }
        for decision in
            decisions.iter().filter(|d| d.present == present && d.write.began <= answered)
        {
            // A write with an unknown outcome may take effect at any later time.
            let until = if decision.write.outcome == Outcome::Acknowledged {
                decision.write.ended
            } else {
                Duration::MAX
            };
            match overruled(Some(until)) {
                None => return Ok(()),
                some => last = some,
            }
        }
        Err(last.unwrap_or(usize::MAX))
    }

    fn check_final(
        &self,
        registers: &Registers<'_>,
        final_state: &BTreeMap<String, (u64, BTreeSet<String>)>,
        verdict: &mut Verdict,
    ) {
        let mut lost: BTreeSet<(&str, &str)> = BTreeSet::new();
        for ((content, tag), decisions) in registers {
            let present = final_state.get(*content).is_some_and(|(_, tags)| tags.contains(*tag));
            let all = |_: &WriteCall| true;
            let Err(by) = Self::explained(decisions, present, Duration::MAX, Duration::MAX, all)
            else {
                continue;
            };
            // Is the state explained once the writes that may be lost are ignored?
            let not_lost = |w: &WriteCall| !self.may_be_lost(w);
            if Self::explained(decisions, present, Duration::MAX, Duration::MAX, not_lost).is_ok() {
                lost.insert((content, tag));
                continue;
            }
            let what = decisions.get(by).map_or_else(String::new, |d| {
                format!(
                    "{content} {tag}: acknowledged to client {} at {:?}",
                    d.write.client, d.write.ended
                )
            });
            verdict.faults.push(if present { Fault::Resurrected(what) } else { Fault::Lost(what) });
        }
        for (content, (_, tags)) in final_state {
            for tag in
                tags.iter().filter(|tag| !registers.contains_key(&(content.as_str(), tag.as_str())))
            {
                verdict
                    .faults
                    .push(Fault::Unexplained(format!("{content} {tag} was never written")));
            }
        }
        verdict.lost = lost.len();
    }

    fn check_reads(&self, registers: &Registers<'_>, faults: &mut Vec<Fault>) {
        // The versions that each client has seen of each content, with the times.
        let mut seen: HashMap<(u32, &str), Vec<(Duration, u64)>> = HashMap::new();
        for write in self.writes.iter().filter(|w| w.outcome == Outcome::Acknowledged) {
            seen.entry((write.client, &write.content))
                .or_default()
                .push((write.ended, write.version));
        }
        for read in &self.reads {
            seen.entry((read.client, &read.content)).or_default().push((read.ended, read.version));
        }
        let mut tags_of: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        for (content, tag) in registers.keys() {
            tags_of.entry(content).or_default().insert(tag);
        }
        for read in self.reads.iter().filter(|r| r.session && !r.marked) {
            let before = seen[&(read.client, read.content.as_str())]
                .iter()
                .filter(|(at, _)| *at < read.began);
            let newest = before.map(|(_, version)| *version).max().unwrap_or(0);
            if read.version < newest {
                faults.push(Fault::WentBack(format!(
                    "{}: client {} saw {} at {:?} after {newest}",
                    read.content, read.client, read.version, read.began
                )));
            }
            for tag in tags_of.get(read.content.as_str()).into_iter().flatten() {
                let decisions = &registers[&(read.content.as_str(), *tag)];
                let present = read.tags.contains(*tag);
                let own = |w: &WriteCall| w.client == read.client && !self.may_be_lost(w);
                if Self::explained(decisions, present, read.began, read.ended, own).is_err() {
                    faults.push(Fault::ReadYourWrites(format!(
                        "{} {tag}: client {} read {} at {:?}",
                        read.content,
                        read.client,
                        if present { "it after its removal" } else { "no trace of its write" },
                        read.began
                    )));
                }
            }
            for tag in &read.tags {
                if !registers.contains_key(&(read.content.as_str(), tag.as_str())) {
                    faults.push(Fault::Unexplained(format!(
                        "{} {tag} was read and never written",
                        read.content
                    )));
                }
            }
        }
    }

    fn check_limit(
        &self,
        final_state: &BTreeMap<String, (u64, BTreeSet<String>)>,
        faults: &mut Vec<Fault>,
    ) {
        let read = self.reads.iter().map(|r| (&r.content, r.tags.len()));
        for (content, count) in
            read.chain(final_state.iter().map(|(content, (_, tags))| (content, tags.len())))
        {
            if count > self.limit {
                faults.push(Fault::Limit(format!("{content} has {count} tags")));
            }
        }
    }

    fn check_versions(
        &self,
        final_state: &BTreeMap<String, (u64, BTreeSet<String>)>,
        faults: &mut Vec<Fault>,
    ) {
        let mut by_content: HashMap<&str, Vec<&WriteCall>> = HashMap::new();
        for write in self.writes.iter().filter(|w| w.outcome == Outcome::Acknowledged) {
            by_content.entry(&write.content).or_default().push(write);
        }
        for (content, writes) in &mut by_content {
            // The largest version of a write that had ended when another one began.
            let mut ends: Vec<(Duration, u64)> =
                writes.iter().map(|w| (w.ended, w.version)).collect();
            ends.sort_unstable();
            writes.sort_by_key(|w| w.began);
            let (mut next, mut largest) = (0, 0);
            let mut changes: HashMap<u64, &WriteCall> = HashMap::new();
            for write in writes.iter() {
                while ends.get(next).is_some_and(|(ended, _)| *ended < write.began) {
                    largest = largest.max(ends[next].1);
                    next += 1;
                }
                if write.version < largest || (write.changed && write.version == largest) {
                    faults.push(Fault::VersionOrder(format!(
                        "{content}: {} was answered at {:?} after {largest}",
                        write.version, write.ended
                    )));
                }
                // Not even a lost change may share its version: ordinals are never reused.
                if write.changed && changes.insert(write.version, write).is_some() {
                    faults.push(Fault::OneVersionTwice(format!(
                        "{content}: two changes have {}",
                        write.version
                    )));
                }
            }
        }
        let mut states: HashMap<(&str, u64), &BTreeSet<String>> = HashMap::new();
        let last =
            final_state.iter().map(|(content, (version, tags))| (content.as_str(), *version, tags));
        for (content, version, tags) in
            self.reads.iter().map(|r| (r.content.as_str(), r.version, &r.tags)).chain(last)
        {
            if *states.entry((content, version)).or_insert(tags) != tags {
                faults
                    .push(Fault::OneVersionTwice(format!("{content}: two states have {version}")));
            }
        }
    }

    fn check_epochs(&self, faults: &mut Vec<Fault>) {
        let mut ordinals: HashMap<u64, u128> = HashMap::new();
        for write in self.writes.iter().filter(|w| w.outcome == Outcome::Acknowledged) {
            let (id, ordinal) = write.epoch;
            if *ordinals.entry(ordinal).or_insert(id) != id {
                faults.push(Fault::OneOrdinalTwice(format!("ordinal {ordinal}")));
            }
            let Some(place) = self.epochs.iter().position(|r| r.id == id) else { continue };
            if let Some(next) = self.epochs.get(place + 1).filter(|next| write.began > next.seen_at)
            {
                faults.push(Fault::AcknowledgedByReplaced(format!(
                    "{}: requested at {:?}, {:?} after the next epoch was seen",
                    write.content,
                    write.began,
                    write.began.saturating_sub(next.seen_at)
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests;
