//! Writers and readers of tags that race through failovers, and everything that must hold for what
//! they were told.
//!
//! Each tag of a content is a register of its own: present or absent, decided by adds, removes and
//! replaced sets. A write takes effect once, somewhere between its call and its answer; one whose
//! outcome is unknown at any later time, or never. What a read shows must be explained by some
//! write that no later write, known to the reader, had decided otherwise. Replication is
//! asynchronous: around a failover acknowledged writes may be lost. The history says when
//! ([`History::may_lose`]); what is lost at any other time is a fault.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::Outcome;

/// A write, from its call to its answer. Times are since the history's beginning.
#[derive(Debug, Clone)]
pub struct WriteCall {
    /// Who wrote.
    pub client: u32,
    /// The content.
    pub content: String,
    /// When it was asked for first.
    pub began: Duration,
    /// When the answer came.
    pub ended: Duration,
    /// Tags that are present after it.
    pub adds: BTreeSet<String>,
    /// Tags that are absent after it.
    pub removes: BTreeSet<String>,
    /// What the writer was told.
    pub outcome: Outcome,
    /// Whether the answer said that something changed.
    pub changed: bool,
    /// The version in the answer.
    pub version: u64,
    /// The reign in the answer: its id and its ordinal.
    pub reign: (u128, u64),
}

/// A read and its answer.
#[derive(Debug, Clone)]
pub struct ReadCall {
    /// Who read.
    pub client: u32,
    /// The content.
    pub content: String,
    /// When it was asked.
    pub began: Duration,
    /// When the answer came.
    pub ended: Duration,
    /// The tags it showed.
    pub tags: BTreeSet<String>,
    /// The version it showed.
    pub version: u64,
    /// Whether it carried the client's token: its own writes and earlier reads are covered, or the
    /// answer is marked.
    pub session: bool,
    /// The answer said that it may lack something.
    pub marked: bool,
}

/// A reign as somebody who watched Patroni's key saw it.
#[derive(Debug, Clone, Copy)]
pub struct Reign {
    /// Its id, as in the receipts of its writes.
    pub id: u128,
    /// The key was seen to be of this reign at this time, for the first time.
    pub seen: Duration,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An acknowledged write is not in the final state (set-full).
    Lost(String),
    /// A tag whose removal was acknowledged is there, and nobody added it since.
    Resurrected(String),
    /// A read with a token shows neither the client's own write nor a later one.
    ReadYourWrites(String),
    /// A read with a token shows an older version than the client had seen.
    WentBack(String),
    /// A state that no write explains.
    Unexplained(String),
    /// More tags than the limit.
    Limit(String),
    /// Of two writes, one after the other, the later has no larger version.
    VersionOrder(String),
    /// One version was given to two states or two changes (I1).
    OneVersionTwice(String),
    /// Two reigns share an ordinal (I1).
    OneOrdinalTwice(String),
    /// A write that was asked for after a later reign had begun was acknowledged by an older one
    /// (I2).
    AcknowledgedByReplaced(String),
}

/// Everything that clients and watchers saw.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// All writes.
    pub writes: Vec<WriteCall>,
    /// All reads.
    pub reads: Vec<ReadCall>,
    /// The reigns, in their order.
    pub reigns: Vec<Reign>,
    /// Most tags of a content.
    pub limit: usize,
    /// When acknowledged writes may be lost: answers within these times.
    pub may_lose: Vec<(Duration, Duration)>,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Faults, each named.
    pub faults: Vec<Fault>,
    /// Acknowledged writes that are lost where that was announced.
    pub lost: usize,
}

/// One write, as it decides one tag.
struct Decision<'a> {
    write: &'a WriteCall,
    present: bool,
}

type Registers<'a> = HashMap<(&'a str, &'a str), Vec<Decision<'a>>>;

impl History {
    /// Adds what another recorder saw.
    pub fn merge(&mut self, other: Self) {
        self.writes.extend(other.writes);
        self.reads.extend(other.reads);
    }

    /// Checks everything against the final state: content, its version and its tags.
    pub fn check(&self, finally: &BTreeMap<String, (u64, BTreeSet<String>)>) -> Verdict {
        let mut verdict = Verdict::default();
        let registers = self.registers();
        self.check_final(&registers, finally, &mut verdict);
        self.check_reads(&registers, &mut verdict.faults);
        self.check_limit(finally, &mut verdict.faults);
        self.check_versions(finally, &mut verdict.faults);
        self.check_reigns(&mut verdict.faults);
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

    fn is_announced(&self, write: &WriteCall) -> bool {
        self.may_lose.iter().any(|(from, to)| write.ended >= *from && write.ended <= *to)
    }

    /// Whether `present` at a moment is explained. `known`: the writes that the observer may count
    /// on.
    fn explained(
        decisions: &[Decision<'_>],
        present: bool,
        asked: Duration,
        answered: Duration,
        known: impl Fn(&WriteCall) -> bool,
    ) -> Result<(), usize> {
        // Later writes that decided otherwise, for certain.
        let overruled = |after: Option<Duration>| {
            decisions.iter().position(|d| {
                d.present != present
                    && d.write.outcome == Outcome::Acknowledged
                    && known(d.write)
                    && d.write.ended < asked
                    && after.is_none_or(|after| d.write.began > after)
            })
        };
        let mut last = None;
        // Nobody tagged it: absent, until a write for certain says otherwise.
        if !present {
            match overruled(None) {
                None => return Ok(()),
                some => last = some,
            }
        }
        for decision in
            decisions.iter().filter(|d| d.present == present && d.write.began <= answered)
        {
            // An unknown outcome may take effect at any later time.
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
        finally: &BTreeMap<String, (u64, BTreeSet<String>)>,
        verdict: &mut Verdict,
    ) {
        let mut lost: BTreeSet<(&str, &str)> = BTreeSet::new();
        for ((content, tag), decisions) in registers {
            let present = finally.get(*content).is_some_and(|(_, tags)| tags.contains(*tag));
            let all = |_: &WriteCall| true;
            let Err(by) = Self::explained(decisions, present, Duration::MAX, Duration::MAX, all)
            else {
                continue;
            };
            // Without the writes that may be lost, is there another explanation?
            let surviving = |w: &WriteCall| !self.is_announced(w);
            if Self::explained(decisions, present, Duration::MAX, Duration::MAX, surviving).is_ok()
            {
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
        for (content, (_, tags)) in finally {
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
        // What each client has seen of each content, by the time it saw it.
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
                let own = |w: &WriteCall| w.client == read.client && !self.is_announced(w);
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
        finally: &BTreeMap<String, (u64, BTreeSet<String>)>,
        faults: &mut Vec<Fault>,
    ) {
        let read = self.reads.iter().map(|r| (&r.content, r.tags.len()));
        for (content, count) in
            read.chain(finally.iter().map(|(content, (_, tags))| (content, tags.len())))
        {
            if count > self.limit {
                faults.push(Fault::Limit(format!("{content} has {count} tags")));
            }
        }
    }

    fn check_versions(
        &self,
        finally: &BTreeMap<String, (u64, BTreeSet<String>)>,
        faults: &mut Vec<Fault>,
    ) {
        let mut by_content: HashMap<&str, Vec<&WriteCall>> = HashMap::new();
        for write in self.writes.iter().filter(|w| w.outcome == Outcome::Acknowledged) {
            by_content.entry(&write.content).or_default().push(write);
        }
        for (content, writes) in &mut by_content {
            // The largest version whose write had ended when another began.
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
                        "{content}: {} was told at {:?} after {largest}",
                        write.version, write.ended
                    )));
                }
                // A change that was lost may give its version to nobody else: ordinals are never
                // used again.
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
            finally.iter().map(|(content, (version, tags))| (content.as_str(), *version, tags));
        for (content, version, tags) in
            self.reads.iter().map(|r| (r.content.as_str(), r.version, &r.tags)).chain(last)
        {
            if *states.entry((content, version)).or_insert(tags) != tags {
                faults
                    .push(Fault::OneVersionTwice(format!("{content}: two states have {version}")));
            }
        }
    }

    fn check_reigns(&self, faults: &mut Vec<Fault>) {
        let mut ordinals: HashMap<u64, u128> = HashMap::new();
        for write in self.writes.iter().filter(|w| w.outcome == Outcome::Acknowledged) {
            let (id, ordinal) = write.reign;
            if *ordinals.entry(ordinal).or_insert(id) != id {
                faults.push(Fault::OneOrdinalTwice(format!("ordinal {ordinal}")));
            }
            let Some(place) = self.reigns.iter().position(|r| r.id == id) else { continue };
            if let Some(next) = self.reigns.get(place + 1).filter(|next| write.began > next.seen) {
                faults.push(Fault::AcknowledgedByReplaced(format!(
                    "{}: asked for at {:?}, {:?} after the next reign was seen",
                    write.content,
                    write.began,
                    write.began.saturating_sub(next.seen)
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests;
