//! I4, I5 and I6: what the service says about acknowledged writes, and how much a failover loses.
//!
//! That a write which is missing is listed as lost is I3's part: only a write with that verdict may
//! be missing. Here each write must have one verdict, always the same one after the closing, and
//! the same one as in the report of the failover.
//!
//! How it fails: without a log position in its receipt no one can say whether a failover lost a
//! write that was repaired, so the bound of the loss is checked for writes with a position only.
//! The time of an acknowledgement is the one at which its client had it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use super::record::{EpochSeen, History, WriteCall, WriteVerdict};
use super::registers::{END, Registers};
use super::violation::{Invariant, Violation};

/// The reason of a loss that no process of the service reported.
const UNREPORTED: &str = "unreported";

/// I4: one final verdict for every acknowledged write. Nothing is checked when no one asked.
pub(super) fn final_verdicts(history: &History) -> Vec<Violation> {
    if !history.asks_for_verdicts() {
        return Vec::new();
    }
    history.acknowledged().filter_map(|write| final_verdict(history, write)).collect()
}

fn final_verdict(history: &History, write: &WriteCall) -> Option<Violation> {
    let id = write.id;
    let of_write = |what: String, why: &dyn Display| {
        Some(Violation::new(Invariant::FinalVerdict, what, [write as &dyn Display, why]))
    };
    let Some(last) = write.final_verdict() else {
        return of_write(format!("write {id:032x} has no verdict"), &"none was given");
    };
    let closed = write.verdicts.iter().filter(|a| a.closed);
    if let Some(other) = closed.clone().find(|a| a.verdict != *last) {
        let changed = format!("at {:?} it was {:?}", other.at, other.verdict);
        return of_write(format!("the final verdict of write {id:032x} changed"), &changed);
    }
    let reason = match last {
        WriteVerdict::Kept => return None,
        // A commit that lies across the end of its epoch may be on either side of it.
        WriteVerdict::Unknown(_)
            if history.is_across_end(write) && reporter(history, write).is_none() =>
        {
            return None;
        }
        WriteVerdict::Unknown(reason) => {
            let closing = format!("it is unknown ({reason}) although every repair is closed");
            return of_write(format!("write {id:032x} has no final verdict"), &closing);
        }
        WriteVerdict::Repaired => None,
        WriteVerdict::Lost(reason) => Some(reason.as_str()),
    };
    if reason == Some(UNREPORTED) {
        // The process that acknowledged it reported, and should have repaired or listed it.
        let reporter = reporter(history, write)?;
        let what = format!("write {id:032x} is lost, and node {} reported", write.node);
        return of_write(what, reporter);
    }
    let listed = history.listed.as_ref()?.get(&id);
    if listed != Some(last) {
        let says = format!("the reports say {listed:?}");
        return of_write(format!("the reports do not list write {id:032x} as {last:?}"), &says);
    }
    None
}

/// The first later epoch of whose repair the process that acknowledged this reported.
fn reporter<'a>(history: &'a History, write: &WriteCall) -> Option<&'a EpochSeen> {
    let place = history.epochs.iter().position(|e| e.id == write.epoch.0)?;
    history.epochs[place + 1..].iter().find(|e| e.reported.contains(&write.node))
}

/// I4: what is listed as lost must not count.
pub(super) fn lost_is_absent(history: &History, registers: &Registers<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let is_lost = |w: &WriteCall| match w.final_verdict() {
        // The tags that did fit were merged back.
        Some(WriteVerdict::Lost(reason)) => reason != "limit",
        Some(_) | None => false,
    };
    for (content, of_content) in registers.contents() {
        let Some(finally) = history.finals.get(content) else { continue };
        for tag in of_content.tags() {
            let present = finally.tags.contains(tag);
            let after = of_content.required(tag, u64::MAX).map_or(0, |d| d.write.version);
            let mut lost = of_content.optional(tag, after, u64::MAX);
            if let Some(lost) = lost.find(|d| d.present == present && is_lost(d.write))
                && of_content.explain(tag, present, END, |w| !is_lost(w)).is_err()
            {
                let what = format!("write {:032x} is listed as lost, and counts", lost.write.id);
                let state = format!("in the end {content} has {:?}", finally.tags);
                let trace = [lost.write as &dyn Display, &state];
                violations.push(Violation::new(Invariant::FinalVerdict, what, trace));
            }
        }
    }
    violations
}

/// What one failover lost of one process, by the times of the acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostSpan {
    /// Ordinal of the epoch that ended.
    pub epoch: u64,
    /// The process that acknowledged them.
    pub node: u32,
    /// How many.
    pub writes: usize,
    /// The first acknowledgement.
    pub first: Duration,
    /// The last acknowledgement.
    pub last: Duration,
}

impl LostSpan {
    /// From the first to the last acknowledgement.
    pub fn length(&self) -> Duration {
        self.last.saturating_sub(self.first)
    }
}

/// The acknowledged writes beyond the end of each epoch, for each process, whether they were
/// repaired or not.
pub(super) fn lost_spans(history: &History) -> Vec<LostSpan> {
    let spans = spans(history).into_iter();
    let span = |((epoch, node), lost): ((u64, u32), Vec<&WriteCall>)| LostSpan {
        epoch,
        node,
        writes: lost.len(),
        first: lost.iter().map(|w| w.ended).min().unwrap_or_default(),
        last: lost.iter().map(|w| w.ended).max().unwrap_or_default(),
    };
    spans.map(span).collect()
}

fn spans(history: &History) -> BTreeMap<(u64, u32), Vec<&WriteCall>> {
    let mut spans: BTreeMap<(u64, u32), Vec<&WriteCall>> = BTreeMap::new();
    for write in history.acknowledged().filter(|w| history.is_diverged(w)) {
        spans.entry((write.epoch.1, write.node)).or_default().push(write);
    }
    spans
}

/// I5: they lie within the maximum loss.
pub(super) fn loss_bound(history: &History) -> Vec<Violation> {
    let Some(max_loss) = history.max_loss else { return Vec::new() };
    let mut violations = Vec::new();
    for ((epoch, node), lost) in spans(history) {
        let first = lost.iter().min_by_key(|w| w.ended);
        let last = lost.iter().max_by_key(|w| w.ended);
        let (Some(first), Some(last)) = (first, last) else { continue };
        let length = last.ended.saturating_sub(first.ended);
        if length > max_loss {
            let what = format!(
                "epoch {epoch} lost writes of node {node} over {length:?}, of {max_loss:?} \
                 allowed: {:032x} to {:032x}",
                first.id, last.id
            );
            let trace = [*first as &dyn Display, *last as &dyn Display];
            violations.push(Violation::new(Invariant::LossBound, what, trace));
        }
    }
    violations
}

/// I6: what all streaming replicas had survives the promotion of one of them.
pub(super) fn replicated_survives(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let by_all = |w: &&WriteCall| w.replicated.is_some_and(|r| r.of > 0 && r.had == r.of);
    for write in history.acknowledged().filter(by_all) {
        let Some(place) = history.epochs.iter().position(|e| e.id == write.epoch.0) else {
            continue;
        };
        let Some(next) = history.epochs.get(place + 1).filter(|next| next.was_streaming) else {
            continue;
        };
        let is_lost = matches!(write.final_verdict(), Some(WriteVerdict::Lost(_)));
        if is_lost || history.is_diverged(write) {
            let what = format!("replicated write {:032x} did not survive", write.id);
            let epoch = &history.epochs[place];
            let trace = [write as &dyn Display, epoch as &dyn Display, next as &dyn Display];
            violations.push(Violation::new(Invariant::ReplicatedSurvives, what, trace));
        }
    }
    violations
}
