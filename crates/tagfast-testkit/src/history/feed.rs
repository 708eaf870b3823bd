//! I7, I8 and I9: what became of the events of the topic.
//!
//! For each content, the version in the index must never decrease. An event with a smaller
//! publisher epoch (`emit`: the ordinal of the epoch whose relay published it) than the largest one
//! seen of its cluster in its partition must change nothing: a replaced primary published it. At
//! rest the index has what the primaries have, and the topic has every row of the outboxes.
//!
//! How it fails: whether a consumer applied an event is what the recorder says; a recorder that
//! cannot see it says `false`, and then only the end is checked.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Display;

use super::record::{FeedEvent, History};
use super::violation::{Invariant, Violation};

/// I8: the index never goes back, and no event of a replaced relay changes it.
pub(super) fn index_goes_forward(history: &History) -> Vec<Violation> {
    let mut largest: HashMap<(u32, &str), &FeedEvent> = HashMap::new();
    let mut indexed: HashMap<&str, &FeedEvent> = HashMap::new();
    let mut violations = Vec::new();
    for event in &history.topic {
        let seen = largest.entry((event.partition, &event.cluster)).or_insert(event);
        if event.emit < seen.emit && event.applied {
            let what = format!(
                "an event of the replaced relay of epoch {} changed {}",
                event.emit, event.content
            );
            let trace = [*seen as &dyn Display, event as &dyn Display];
            violations.push(Violation::new(Invariant::IndexGoesForward, what, trace));
        }
        if event.emit > seen.emit {
            *seen = event;
        }
        if event.applied
            && let Some(before) = indexed.insert(&event.content, event)
            && event.version < before.version
        {
            let what = format!(
                "the index of {} went from version {} back to {}",
                event.content, before.version, event.version
            );
            let trace = [before as &dyn Display, event as &dyn Display];
            violations.push(Violation::new(Invariant::IndexGoesForward, what, trace));
        }
    }
    violations
}

/// I7: at rest the index has the primary's state of every content that was ever published.
pub(super) fn index_equals_primary(history: &History) -> Vec<Violation> {
    let Some(index) = &history.index else { return Vec::new() };
    let primary: BTreeMap<&str, (u64, &BTreeSet<String>)> =
        history.finals.iter().map(|(c, f)| (c.as_str(), (f.version, &f.tags))).collect();
    let published = history.topic.iter().map(|e| e.content.as_str());
    let contents: BTreeSet<&str> =
        published.chain(primary.keys().copied()).chain(index.keys().map(String::as_str)).collect();
    let mut violations = Vec::new();
    for content in contents {
        let indexed = index.get(content).map(|(version, tags)| (*version, tags));
        let stored = primary.get(content).copied();
        if indexed != stored {
            let what = format!("the index has a different state of {content} than its primary");
            let (indexed, stored) = (format!("index: {indexed:?}"), format!("primary: {stored:?}"));
            let last = history.topic.iter().rev().find(|e| e.content == content);
            let trace = [&stored as &dyn Display, &indexed];
            let trace = trace.into_iter().chain(last.map(|e| e as &dyn Display));
            violations.push(Violation::new(Invariant::IndexEqualsPrimary, what, trace));
        }
    }
    violations
}

/// I9: every outbox row of the current history is in the topic.
pub(super) fn outbox_is_published(history: &History) -> Vec<Violation> {
    let published: HashSet<(&str, u64)> =
        history.topic.iter().map(|e| (e.content.as_str(), e.version)).collect();
    let rows = history.outbox.iter().flatten();
    let missing = rows.filter(|(content, v)| !published.contains(&(content.as_str(), *v)));
    let violation = |(content, version): &(String, u64)| {
        let what = format!("version {version} of {content} was never published");
        let writes = history.acknowledged();
        let of_row = writes.filter(|w| w.content == *content && w.version == *version);
        let trace = of_row.map(|w| w as &dyn Display);
        Violation::new(Invariant::OutboxIsPublished, what, trace)
    };
    missing.map(violation).collect()
}
