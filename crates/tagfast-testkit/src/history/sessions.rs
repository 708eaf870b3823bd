//! I10 and I11: what an unmarked answer may show, and what it must show to a client with a token.
//!
//! A process is known to have learned of an epoch once it has answered from it. From then on none
//! of its unmarked answers may show a position beyond the end of an epoch before.
//!
//! How it fails: an entry from which a process answers before it has answered anything from the
//! next epoch is not checked; nor is a read whose answer names no position.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use super::record::{History, ReadCall, WriteCall, WriteVerdict};
use super::registers::Registers;
use super::violation::{Invariant, Violation};

/// I10: no unmarked answer shows what lies beyond the end of an epoch known to have ended.
pub(super) fn fresh_is_current(history: &History) -> Vec<Violation> {
    let places: HashMap<u128, usize> =
        history.epochs.iter().enumerate().map(|(place, e)| (e.id, place)).collect();
    // When each process first answered from each epoch.
    let mut learned: HashMap<(u32, usize), Duration> = HashMap::new();
    let writes = history.acknowledged().map(|w| (w.node, w.epoch.0, w.ended));
    let reads = history.reads.iter();
    let reads = reads.filter_map(|r| r.position.map(|(epoch, _)| (r.node, epoch, r.ended)));
    for (node, epoch, at) in writes.chain(reads) {
        if let Some(place) = places.get(&epoch) {
            let first = learned.entry((node, *place)).or_insert(at);
            *first = at.min(*first);
        }
    }
    let mut violations = Vec::new();
    for read in history.reads.iter().filter(|r| !r.marked) {
        let Some((epoch, position)) = read.position else { continue };
        let Some(place) = places.get(&epoch).copied() else { continue };
        let is_diverged = history.epochs[place].end.is_some_and(|end| position > end);
        let later = place + 1..history.epochs.len();
        let knew = later.filter_map(|later| learned.get(&(read.node, later))).min();
        if let Some(knew) = knew.filter(|knew| is_diverged && **knew < read.began) {
            let what = format!(
                "{} was shown beyond the end of its epoch, which node {} knew had ended",
                read.content, read.node
            );
            let since = format!("it answered from a later epoch at {knew:?}");
            let trace = [&history.epochs[place] as &dyn Display, &since, read];
            violations.push(Violation::new(Invariant::FreshIsCurrent, what, trace));
        }
    }
    violations
}

/// A version that a client has seen.
#[derive(Clone, Copy)]
struct Seen<'a> {
    ended: Duration,
    version: u64,
    call: &'a dyn Display,
    /// It was told that it had seen more: what it has seen begins again.
    is_told: bool,
}

/// What one client saw, in the order of the times.
#[derive(Default)]
struct Session<'a> {
    /// Its acknowledged writes and its reads of each content.
    seen: HashMap<&'a str, Vec<Seen<'a>>>,
    /// When its reads were marked.
    marked: Vec<Duration>,
    /// Its acknowledged writes that were lost, by content.
    lost: HashMap<&'a str, Vec<&'a WriteCall>>,
}

fn sessions(history: &History) -> HashMap<u32, Session<'_>> {
    let mut sessions: HashMap<u32, Session<'_>> = HashMap::new();
    for write in history.acknowledged() {
        let session = sessions.entry(write.client).or_default();
        let seen = session.seen.entry(&write.content).or_default();
        let (ended, version) = (write.ended, write.version);
        seen.push(Seen { ended, version, call: write, is_told: false });
        if matches!(write.final_verdict(), Some(WriteVerdict::Lost(_))) {
            session.lost.entry(&write.content).or_default().push(write);
        }
    }
    for read in &history.reads {
        let session = sessions.entry(read.client).or_default();
        let seen = session.seen.entry(&read.content).or_default();
        let (ended, version) = (read.ended, read.version);
        let is_told = read.marked && read.session;
        seen.push(Seen { ended, version, call: read, is_told });
        if is_told {
            session.marked.push(read.ended);
        }
    }
    for session in sessions.values_mut() {
        session.marked.sort_unstable();
        for seen in session.seen.values_mut() {
            seen.sort_by_key(|s| s.ended);
            // Each place gets the largest version up to it, and the call that had it.
            for place in 1..seen.len() {
                let before = seen[place - 1];
                if seen[place].version < before.version && !seen[place].is_told {
                    (seen[place].version, seen[place].call) = (before.version, before.call);
                }
            }
        }
    }
    sessions
}

/// I11: an unmarked read with a token shows at least the versions that its client has seen, and a
/// client hears once that a write of it was lost.
pub(super) fn token_is_covered(history: &History, registers: &Registers<'_>) -> Vec<Violation> {
    let sessions = sessions(history);
    let mut violations = Vec::new();
    for read in history.reads.iter().filter(|r| r.session && !r.marked) {
        let Some(session) = sessions.get(&read.client) else { continue };
        let seen = session.seen.get(read.content.as_str()).map_or(&[][..], Vec::as_slice);
        let before = seen.partition_point(|s| s.ended < read.began);
        if let Some(newest) = before.checked_sub(1).map(|last| seen[last])
            && read.version < newest.version
        {
            let what = format!(
                "client {} was shown version {} of {} after {}",
                read.client, read.version, read.content, newest.version
            );
            let trace = [newest.call, read as &dyn Display];
            violations.push(Violation::new(Invariant::TokenIsCovered, what, trace));
        }
        for write in session.lost.get(read.content.as_str()).into_iter().flatten() {
            if let Some(tag) = unheard(session, write, read, registers) {
                let what = format!(
                    "client {} was not told that its write {:032x} of {tag} is gone",
                    read.client, write.id
                );
                let trace = [*write as &dyn Display, read as &dyn Display];
                violations.push(Violation::new(Invariant::TokenIsCovered, what, trace));
            }
        }
    }
    violations
}

/// The tag that a read lacks of its client's own lost write, if no answer said so before.
fn unheard<'a>(
    session: &Session<'_>,
    write: &'a WriteCall,
    read: &ReadCall,
    registers: &Registers<'_>,
) -> Option<&'a String> {
    if write.ended >= read.began || read.version < write.version {
        return None;
    }
    let next_mark = session.marked.get(session.marked.partition_point(|at| *at < write.ended));
    if next_mark.is_some_and(|at| *at <= read.began) {
        return None;
    }
    let of_content = registers.content(&read.content);
    let shown = (read.version, read.ended);
    write.adds.iter().find(|tag| {
        !read.tags.contains(*tag) && !of_content.is_removed_after(tag, write.version, shown)
    })
}
