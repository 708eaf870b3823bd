//! I1 and I2: versions and ordinals are given once, and an epoch that was replaced acknowledges
//! nothing more.
//!
//! How it fails: a commit's own time is not observed. What is checked is that no write which was
//! requested after the next leader key had been seen was acknowledged by the epoch before; a write
//! requested shortly before and committed shortly after is not found.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;

use super::record::{EpochSeen, History, ReadCall, WriteCall};
use super::violation::{Invariant, Violation};

/// The tags of a version, with the read that showed them; `None`: they are the final ones.
type State<'a> = (&'a BTreeSet<String>, Option<&'a ReadCall>);

/// I1: versions. Not even a lost change may share its version: ordinals are never reused.
pub(super) fn unique_versions(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut changes: HashMap<(&str, u64), &WriteCall> = HashMap::new();
    for write in history.acknowledged().filter(|w| w.changed && !w.repeated) {
        let first = changes.insert((&write.content, write.version), write);
        if let Some(first) = first.filter(|first| first.id != write.id) {
            let what = format!(
                "version {} was given to the writes {:032x} and {:032x}",
                write.version, first.id, write.id
            );
            let trace = [first as &dyn Display, write as &dyn Display];
            violations.push(Violation::new(Invariant::UniqueVersions, what, trace));
        }
    }
    // Of each version the first state that was seen, with the read that showed it.
    let mut states: HashMap<(&str, u64), State<'_>> = HashMap::new();
    let reads = history.reads.iter();
    let reads = reads.map(|r| ((r.content.as_str(), r.version), &r.tags, Some(r)));
    let finals = history.finals.iter();
    let finals = finals.map(|(content, f)| ((content.as_str(), f.version), &f.tags, None));
    for (state, tags, read) in reads.chain(finals) {
        let (first_tags, first_read) = states.entry(state).or_insert((tags, read));
        if *first_tags != tags {
            let what = format!("version {} of {} was given to two states", state.1, state.0);
            let show = |tags: &BTreeSet<String>, read: Option<&ReadCall>| match read {
                Some(read) => read.to_string(),
                None => format!("in the end it has {tags:?}"),
            };
            let trace = [show(first_tags, *first_read), show(tags, read)];
            let trace = trace.iter().map(|line| line as &dyn Display);
            violations.push(Violation::new(Invariant::UniqueVersions, what, trace));
        }
    }
    violations
}

/// I1: ordinals.
pub(super) fn unique_ordinals(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let twice = |ordinal: u64, trace: [&dyn Display; 2]| {
        let what = format!("two epochs have the ordinal {ordinal}");
        Violation::new(Invariant::UniqueVersions, what, trace)
    };
    let mut by_ordinal: HashMap<u64, &EpochSeen> = HashMap::new();
    for epoch in history.epochs.iter().filter(|e| e.ordinal != 0) {
        let first = by_ordinal.insert(epoch.ordinal, epoch);
        if let Some(first) = first.filter(|first| first.id != epoch.id) {
            violations.push(twice(epoch.ordinal, [first, epoch]));
        }
    }
    let mut by_write: HashMap<u64, &WriteCall> = HashMap::new();
    for write in history.acknowledged() {
        let (id, ordinal) = write.epoch;
        let first = by_write.entry(ordinal).or_insert(write);
        if first.epoch.0 != id {
            violations.push(twice(ordinal, [*first, write]));
        }
    }
    violations
}

/// I2: nothing that was requested after a later epoch had begun is acknowledged by an earlier one.
pub(super) fn committed_before_promotion(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let places: HashMap<u128, usize> =
        history.epochs.iter().enumerate().map(|(place, e)| (e.id, place)).collect();
    for write in history.acknowledged() {
        let next = places.get(&write.epoch.0).and_then(|place| history.epochs.get(place + 1));
        if let Some(next) = next.filter(|next| write.began > next.seen_at) {
            let what = format!(
                "write {:032x} was requested {:?} after the next epoch was seen, and acknowledged",
                write.id,
                write.began.saturating_sub(next.seen_at)
            );
            let trace = [next as &dyn Display, write as &dyn Display];
            violations.push(Violation::new(Invariant::CommittedBeforePromotion, what, trace));
        }
    }
    violations
}
