//! I3, I12 and I13: some serial order explains every state, no state has too many tags, and no
//! write id has effect twice.
//!
//! The order is that of the versions, see [`super::registers`]. It must respect real time: a write
//! that was requested after another one was acknowledged has the larger version. Then the state
//! that a version shows, in the end or in an unmarked read, must be what the newest decisions up to
//! that version say. A conditional write must follow the version that it names directly.
//!
//! How it fails: as the registers; and an effect that is repeated right after the first one, with
//! nothing between, looks like one effect.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;

use super::record::{FinalContent, History, WriteCall, WriteVerdict};
use super::registers::{Decision, END, Registers, is_in_lossy_period};
use super::violation::{Invariant, Violation};

/// What the final states say.
#[derive(Debug, Default)]
pub(super) struct FinalStates {
    pub(super) violations: Vec<Violation>,
    /// Acknowledged writes that are missing and should not be.
    pub(super) missing: usize,
    /// Tags whose last acknowledged write was lost while the test allowed that.
    pub(super) lost: usize,
}

/// I3: the final states.
pub(super) fn final_states(history: &History, registers: &Registers<'_>) -> FinalStates {
    let mut found = FinalStates::default();
    let none = FinalContent::default();
    for (content, of_content) in registers.contents() {
        let finally = history.finals.get(content).unwrap_or(&none);
        for tag in of_content.tags() {
            let present = finally.tags.contains(tag);
            match of_content.explain(tag, present, END, |_| true) {
                Err(newest) => {
                    found.missing += usize::from(newest.is_some());
                    let what = mismatch(tag, present, newest, "in the end");
                    found.violations.push(final_violation(&what, newest, content, finally));
                }
                Ok(()) => {
                    let after = of_content.required(tag, u64::MAX).map_or(0, |d| d.write.version);
                    let lost = of_content.optional(tag, after, u64::MAX).last();
                    let is_lost = lost.is_some_and(|d| {
                        d.present != present && is_in_lossy_period(history, d.write)
                    });
                    found.lost += usize::from(is_lost);
                }
            }
        }
    }
    for (content, finally) in &history.finals {
        let of_content = registers.content(content);
        for tag in finally.tags.iter().filter(|tag| !of_content.knows(tag)) {
            let what = format!("{content} has {tag}, which was never written");
            found.violations.push(final_violation(&what, None, content, finally));
        }
    }
    found
}

fn mismatch(tag: &str, present: bool, newest: Option<Decision<'_>>, when: &str) -> String {
    match newest {
        Some(_) if present => format!("{tag} is there {when} although it was removed"),
        Some(d) => format!("{tag} of write {:032x} is missing {when}", d.write.id),
        None => format!("{tag} is there {when} although no write that counts adds it"),
    }
}

fn final_violation(
    what: &str,
    newest: Option<Decision<'_>>,
    content: &str,
    finally: &FinalContent,
) -> Violation {
    let FinalContent { version, tags, .. } = finally;
    let state = format!("in the end {content} has {tags:?} at version {version}");
    let trace = newest.iter().map(|d| d.write as &dyn Display).chain([&state as &dyn Display]);
    Violation::new(Invariant::SerialOrder, what, trace)
}

/// I3: unmarked reads.
pub(super) fn reads(history: &History, registers: &Registers<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for read in history.reads.iter().filter(|r| !r.marked) {
        let of_content = registers.content(&read.content);
        for tag in of_content.tags() {
            let present = read.tags.contains(tag);
            let shown = (read.version, read.ended);
            // Before a failover, reads showed what it lost later.
            if let Err(newest) = of_content.explain(tag, present, shown, |_| true) {
                let what = mismatch(tag, present, newest, "in an unmarked read");
                let write = newest.iter().map(|d| d.write as &dyn Display);
                let trace = write.chain([read as &dyn Display]);
                violations.push(Violation::new(Invariant::SerialOrder, what, trace));
            }
        }
        for tag in read.tags.iter().filter(|tag| !of_content.knows(tag)) {
            let what = format!("{tag} was read and never written");
            violations.push(Violation::new(Invariant::SerialOrder, what, [read as &dyn Display]));
        }
    }
    violations
}

/// The acknowledged writes of each content, without those that were answered again.
fn by_content(history: &History) -> BTreeMap<&str, Vec<&WriteCall>> {
    let mut by_content: BTreeMap<&str, Vec<&WriteCall>> = BTreeMap::new();
    for write in history.acknowledged().filter(|w| !w.repeated) {
        by_content.entry(&write.content).or_default().push(write);
    }
    by_content
}

/// I3: the order of the versions respects real time.
pub(super) fn real_time(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    for writes in by_content(history).values_mut() {
        let mut ended = writes.clone();
        ended.sort_by_key(|w| w.ended);
        writes.sort_by_key(|w| w.began);
        // Of the writes that had ended when this one began, the one with the largest version.
        let (mut next, mut largest): (usize, Option<&WriteCall>) = (0, None);
        for write in writes.iter() {
            while let Some(earlier) = ended.get(next).filter(|w| w.ended < write.began) {
                largest = largest.filter(|l| l.version >= earlier.version).or(Some(earlier));
                next += 1;
            }
            let Some(earlier) = largest else { continue };
            let is_newer = write.version > earlier.version;
            if !is_newer && (write.changed || write.version < earlier.version) {
                let what = format!(
                    "write {:032x} was requested after {} and answered with {}",
                    write.id, earlier.version, write.version
                );
                let trace = [earlier as &dyn Display, *write as &dyn Display];
                violations.push(Violation::new(Invariant::SerialOrder, what, trace));
            }
        }
    }
    violations
}

/// I3: a conditional write directly follows the version that it names.
pub(super) fn conditional_writes(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let counts = |w: &&WriteCall| {
        !matches!(w.final_verdict(), Some(WriteVerdict::Lost(_) | WriteVerdict::Unknown(_)))
            && !is_in_lossy_period(history, w)
    };
    for writes in by_content(history).values_mut() {
        writes.retain(counts);
        writes.sort_by_key(|w| w.version);
        for (n, write) in writes.iter().enumerate() {
            // The write itself was made before, if a failover lost what its first answer was about.
            let is_other_change = |before: &&&WriteCall| before.changed && before.id != write.id;
            if let Some(named) = write.if_match
                && let Some(before) = writes[..n].iter().rev().find(is_other_change)
                && before.version > named
                && before.version < write.version
            {
                let what = format!(
                    "conditional write {:032x} named version {named}, and {} came between",
                    write.id, before.version
                );
                let trace = [*before as &dyn Display, *write as &dyn Display];
                violations.push(Violation::new(Invariant::SerialOrder, what, trace));
            }
        }
    }
    violations
}

/// I12: no state has more tags than the limit.
pub(super) fn tag_limit(history: &History) -> Vec<Violation> {
    let too_many = |content: &str, count: usize, shown: &dyn Display| {
        let what = format!("{content} has {count} tags, the limit is {}", history.limit);
        Violation::new(Invariant::TagLimit, what, [shown])
    };
    let reads = history.reads.iter().filter(|r| r.tags.len() > history.limit);
    let reads = reads.map(|r| too_many(&r.content, r.tags.len(), r));
    let finals = history.finals.iter().filter(|(_, f)| f.tags.len() > history.limit);
    let finals = finals.map(|(content, f)| {
        too_many(content, f.tags.len(), &format!("in the end, at version {}", f.version))
    });
    reads.chain(finals).collect()
}

/// I13: a write id has effect at most once in the current history.
pub(super) fn one_effect(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut applied: HashMap<(u128, &str), &WriteCall> = HashMap::new();
    // An application that a failover lost is not in the current history.
    let counts = |w: &&WriteCall| !w.repeated && w.changed && !history.is_diverged(w);
    for write in history.acknowledged().filter(counts) {
        let Some(first) = applied.insert((write.id, &write.content), write) else { continue };
        if first.version != write.version {
            let what = format!("write {:032x} was applied twice", write.id);
            let trace = [first as &dyn Display, write as &dyn Display];
            violations.push(Violation::new(Invariant::OneEffect, what, trace));
        }
    }
    for (content, finally) in &history.finals {
        let mut known: HashMap<u128, u64> = HashMap::new();
        for (id, version) in &finally.recent {
            if let Some(first) = known.insert(*id, *version) {
                let what = format!("{content} remembers write {id:032x} twice");
                let versions = format!("with the versions {first} and {version}");
                let trace = [&versions as &dyn Display];
                violations.push(Violation::new(Invariant::OneEffect, what, trace));
            }
        }
    }
    violations
}
