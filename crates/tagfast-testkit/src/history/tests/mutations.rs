//! Correct histories of the simulated store that are made wrong in exactly one way: the check of
//! the broken invariant must find it and name the call, and no other check may find anything.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::simulation::{DOUBTFUL, LIMIT, simulate};
use super::*;

/// Breaks a history. Returns what the violation must name; `None`: this history has nothing that
/// can be broken in this way.
type Mutation = fn(&mut History, &mut Rng) -> Option<String>;

const MUTATIONS: &[(&str, Invariant, Mutation)] = &[
    ("a version is given twice", Invariant::UniqueVersions, version_twice),
    ("an ordinal is given twice", Invariant::UniqueVersions, ordinal_twice),
    ("a replaced primary acknowledges", Invariant::CommittedBeforePromotion, late_write),
    ("an added tag is missing", Invariant::SerialOrder, missing),
    ("a removed tag is back", Invariant::SerialOrder, resurrected),
    ("a read lacks a tag", Invariant::SerialOrder, incomplete_read),
    ("a condition did not hold", Invariant::SerialOrder, broken_condition),
    ("a verdict is missing", Invariant::FinalVerdict, no_verdict),
    ("a verdict changes", Invariant::FinalVerdict, changed_verdict),
    ("a reporting process lost a write", Invariant::FinalVerdict, lost_by_reporter),
    ("a repaired write is not listed", Invariant::FinalVerdict, unlisted),
    ("more is lost than the maximum", Invariant::LossBound, long_loss),
    ("a replicated write is beyond the fork", Invariant::ReplicatedSurvives, replicated_lost),
    ("the index has another version", Invariant::IndexEqualsPrimary, old_index),
    ("the index has a lost content", Invariant::IndexEqualsPrimary, ghost_in_index),
    ("an event of a replaced relay counts", Invariant::IndexGoesForward, stale_event),
    ("the index goes back", Invariant::IndexGoesForward, older_event),
    ("a row was never published", Invariant::OutboxIsPublished, unpublished),
    ("a read shows what is beyond the end", Invariant::FreshIsCurrent, old_position),
    ("a session goes back", Invariant::TokenIsCovered, older_read),
    ("a content has too many tags", Invariant::TagLimit, too_many),
    ("a write is applied again", Invariant::OneEffect, applied_again),
    ("a document remembers a write twice", Invariant::OneEffect, remembered_twice),
];

#[test]
fn every_mutation_is_found_by_its_check_alone() {
    let mut made: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..80 {
        let correct = simulate(seed);
        for (name, invariant, mutation) in MUTATIONS {
            let mut broken = correct.clone();
            let Some(needle) = mutation(&mut broken, &mut Rng::with_seed(seed)) else { continue };
            *made.entry(name).or_default() += 1;
            let found = broken.check().violations;
            assert!(!found.is_empty(), "seed {seed}: {name}: not found ({needle})");
            let foreign = found.iter().find(|v| v.invariant != *invariant);
            assert_eq!(foreign, None, "seed {seed}: {name}");
            let named = found.iter().any(|v| v.to_string().contains(&needle));
            assert!(named, "seed {seed}: {name}: {needle} is not named in {found:#?}");
        }
    }
    for (name, ..) in MUTATIONS {
        assert!(made.get(name).is_some_and(|n| *n >= 10), "{name} was hardly ever tried: {made:?}");
    }
}

#[test]
fn every_invariant_has_a_mutation() {
    for invariant in Invariant::ALL {
        assert!(MUTATIONS.iter().any(|(_, of, _)| *of == invariant), "{invariant}");
    }
}

fn name(write: &WriteCall) -> String {
    format!("{:032x}", write.id)
}

/// One of those calls, drawn at random.
fn pick<T>(of: &[T], rng: &mut Rng, which: impl Fn(&T) -> bool) -> Option<usize> {
    let places: Vec<usize> = (0..of.len()).filter(|place| which(&of[*place])).collect();
    if places.is_empty() { None } else { Some(places[rng.usize(0..places.len())]) }
}

fn end(history: &History) -> Duration {
    let writes = history.writes.iter().map(|w| w.ended);
    writes.chain(history.reads.iter().map(|r| r.ended)).max().unwrap_or_default() + at(1)
}

fn is_change(write: &WriteCall) -> bool {
    write.is_acknowledged() && write.changed && !write.repeated
}

/// Changes the final state of a content together with everything that shows it.
fn rewrite_final(history: &mut History, content: &str, change: impl Fn(&mut FinalContent)) {
    let finally = history.finals.get_mut(content).expect("it has a final state");
    finally.version += 1000;
    change(finally);
    let (version, tags) = (finally.version, finally.tags.clone());
    let emit = history.epochs.last().expect("there is one").ordinal;
    let (cluster, content) = ("c0".to_owned(), content.to_owned());
    history.index.as_mut().expect("it has one").insert(content.clone(), (version, tags));
    history.topic.push(FeedEvent { partition: 0, cluster, content, emit, version, applied: true });
}

/// An acknowledged and kept write of a content that has no other one.
fn write_of_new_content(history: &mut History, adds: BTreeSet<String>) -> &mut WriteCall {
    let (content, began) = ("new".to_owned(), end(history));
    let epoch = history.epochs.last().expect("there is one");
    let (version, epoch) = (epoch.ordinal * 10_000 + 1, (epoch.id, epoch.ordinal));
    let finally = FinalContent { version: 0, tags: adds.clone(), recent: Vec::new() };
    history.finals.insert(content.clone(), finally);
    rewrite_final(history, &content, |_| {});
    let kept = VerdictAnswer { at: began, closed: true, verdict: WriteVerdict::Kept };
    let write = WriteCall {
        id: 0xF00,
        client: 77,
        content,
        began,
        ended: began + at(1),
        adds,
        version,
        epoch,
        verdicts: vec![kept],
        ..super::write(0, &[], &[], 0)
    };
    history.writes.push(write);
    history.writes.last_mut().expect("it was pushed")
}

fn version_twice(history: &mut History, rng: &mut Rng) -> Option<String> {
    let place = pick(&history.writes, rng, is_change)?;
    let twin = WriteCall { id: 0xF01, client: 77, ..history.writes[place].clone() };
    let listed = history.listed.as_mut()?;
    if let Some(verdict) = listed.get(&history.writes[place].id).cloned() {
        listed.insert(twin.id, verdict);
    }
    history.writes.push(twin);
    Some(name(&history.writes[place]))
}

fn ordinal_twice(history: &mut History, rng: &mut Rng) -> Option<String> {
    let place = pick(&history.writes, rng, |w| w.is_acknowledged() && w.epoch.1 == 2)?;
    history.writes[place].epoch.0 += 1;
    Some("ordinal 2".to_owned())
}

fn late_write(history: &mut History, _: &mut Rng) -> Option<String> {
    let first = (history.epochs[0].id, history.epochs[0].ordinal);
    let write = write_of_new_content(history, set(&["x"]));
    (write.epoch, write.version) = (first, 10_001);
    Some(name(write))
}

/// Whether the newest decision about a tag is this write's, beyond doubt.
fn decides(history: &History, write: &WriteCall, tag: &str) -> bool {
    let about_it = |w: &&WriteCall| {
        w.content == write.content
            && (w.replaces || w.adds.contains(tag) || w.removes.contains(tag))
    };
    let mut others = history.writes.iter().filter(about_it);
    is_change(write)
        && write.content != DOUBTFUL
        && !matches!(write.final_verdict(), Some(WriteVerdict::Lost(_)))
        && others.all(|w| w.version < write.version || w.id == write.id)
}

fn missing(history: &mut History, rng: &mut Rng) -> Option<String> {
    let added = |w: &WriteCall| w.adds.iter().any(|tag| decides(history, w, tag));
    let place = pick(&history.writes, rng, added)?;
    let write = history.writes[place].clone();
    let tag = write.adds.iter().find(|tag| decides(history, &write, tag))?.clone();
    rewrite_final(history, &write.content, |f| {
        f.tags.remove(&tag);
    });
    Some(name(&write))
}

fn resurrected(history: &mut History, rng: &mut Rng) -> Option<String> {
    let removed = |w: &WriteCall| w.removes.iter().any(|tag| decides(history, w, tag));
    let place = pick(&history.writes, rng, removed)?;
    let write = history.writes[place].clone();
    let tag = write.removes.iter().find(|tag| decides(history, &write, tag))?.clone();
    rewrite_final(history, &write.content, |f| {
        f.tags.insert(tag.clone());
    });
    Some(name(&write))
}

fn incomplete_read(history: &mut History, rng: &mut Rng) -> Option<String> {
    let is_only = |read: &ReadCall| {
        let same = |r: &&ReadCall| r.content == read.content && r.version == read.version;
        history.reads.iter().filter(same).count() == 1
            && history.finals[&read.content].version != read.version
    };
    let is_sure = |read: &ReadCall| {
        !read.marked && read.content != DOUBTFUL && !read.tags.is_empty() && is_only(read)
    };
    // A tag whose only write was not lost.
    let sure_tag = |read: &ReadCall| {
        let about_it = |tag: &str| {
            let of_content = history.writes.iter().filter(|w| w.content == read.content);
            let of_content = of_content.filter(|w| w.is_acknowledged());
            let tag = tag.to_owned();
            of_content
                .filter(move |w| w.replaces || w.adds.contains(&tag) || w.removes.contains(&tag))
                .all(|w| !matches!(w.final_verdict(), Some(WriteVerdict::Lost(_))))
        };
        read.tags.iter().find(|tag| about_it(tag)).cloned()
    };
    let place = pick(&history.reads, rng, |r| is_sure(r) && sure_tag(r).is_some())?;
    let tag = sure_tag(&history.reads[place])?;
    history.reads[place].tags.remove(&tag);
    Some(format!("{tag} of write"))
}

fn broken_condition(history: &mut History, rng: &mut Rng) -> Option<String> {
    let is_lost = |w: &WriteCall| matches!(w.final_verdict(), Some(WriteVerdict::Lost(_)));
    let follows = |write: &WriteCall| {
        let before = |w: &&WriteCall| w.content == write.content && w.version < write.version;
        let before = history.writes.iter().filter(before);
        let before = before.filter(|w| is_change(w) && !is_lost(w)).map(|w| w.version).max();
        // The named version may be a repair's, which no write made.
        write.if_match.is_some() && is_change(write) && !is_lost(write) && before == write.if_match
    };
    let place = pick(&history.writes, rng, follows)?;
    let write = &mut history.writes[place];
    write.if_match = write.if_match.map(|named| named - 1);
    Some(name(write))
}

fn no_verdict(history: &mut History, rng: &mut Rng) -> Option<String> {
    let place = pick(&history.writes, rng, |w| w.final_verdict() == Some(&WriteVerdict::Kept))?;
    history.writes[place].verdicts.clear();
    Some(name(&history.writes[place]))
}

fn changed_verdict(history: &mut History, rng: &mut Rng) -> Option<String> {
    let place = pick(&history.writes, rng, |w| w.verdicts.len() > 1)?;
    history.writes[place].verdicts[0].closed = true;
    Some(name(&history.writes[place]))
}

fn lost_by_reporter(history: &mut History, rng: &mut Rng) -> Option<String> {
    let reported = |w: &WriteCall| {
        let mut later = history.epochs.iter().filter(|e| e.ordinal > w.epoch.1);
        later.any(|e| e.reported.contains(&w.node))
    };
    let repaired = |w: &WriteCall| w.final_verdict() == Some(&WriteVerdict::Repaired);
    let place = pick(&history.writes, rng, |w| repaired(w) && reported(w))?;
    let write = &mut history.writes[place];
    write.verdicts.last_mut()?.verdict = WriteVerdict::Lost("unreported".to_owned());
    write.replicated = None;
    // Its effect is there, which is the same lie.
    Some(name(write))
}

fn unlisted(history: &mut History, rng: &mut Rng) -> Option<String> {
    let repaired = |w: &WriteCall| w.final_verdict() == Some(&WriteVerdict::Repaired);
    let place = pick(&history.writes, rng, repaired)?;
    history.listed.as_mut()?.remove(&history.writes[place].id);
    Some(name(&history.writes[place]))
}

fn long_loss(history: &mut History, _: &mut Rng) -> Option<String> {
    let spans = history.check().counts.lost_spans;
    let longest = spans.iter().max_by_key(|span| span.length())?;
    history.max_loss = Some(longest.length().checked_sub(at(1))?);
    Some(format!("epoch {} lost writes of node {}", longest.epoch, longest.node))
}

fn replicated_lost(history: &mut History, rng: &mut Rng) -> Option<String> {
    let is_repaired = |w: &WriteCall| w.final_verdict() == Some(&WriteVerdict::Repaired);
    let place = pick(&history.writes, rng, |w| is_change(w) && is_repaired(w))?;
    history.writes[place].replicated = Some(Replicas { had: 2, of: 2 });
    Some(name(&history.writes[place]))
}

fn old_index(history: &mut History, rng: &mut Rng) -> Option<String> {
    let index = history.index.as_mut()?;
    let place = rng.usize(0..index.len());
    let (content, (version, _)) = index.iter_mut().nth(place)?;
    *version -= 1;
    Some(format!("different state of {content}"))
}

fn ghost_in_index(history: &mut History, _: &mut Rng) -> Option<String> {
    history.index.as_mut()?.insert("ghost".to_owned(), (7, set(&["x"])));
    Some("different state of ghost".to_owned())
}

fn stale_event(history: &mut History, _: &mut Rng) -> Option<String> {
    // After all others, and newer than what the index has.
    let last = history.topic.last()?.clone();
    let version = history.finals[&last.content].version + 1;
    let content = last.content.clone();
    history.topic.push(FeedEvent { emit: 1, version, applied: true, ..last });
    Some(format!("changed {content}"))
}

fn older_event(history: &mut History, rng: &mut Rng) -> Option<String> {
    let emit = history.epochs.last()?.ordinal;
    let (content, finally) = history.finals.iter().nth(rng.usize(0..history.finals.len()))?;
    let content = content.clone();
    let version = finally.version - 1;
    let last = history.topic.last()?.clone();
    history.topic.push(FeedEvent {
        emit,
        version,
        applied: true,
        content: content.clone(),
        ..last
    });
    Some(format!("the index of {content}"))
}

fn unpublished(history: &mut History, rng: &mut Rng) -> Option<String> {
    let write = pick(&history.writes, rng, |w| {
        let rows = history.outbox.iter().flatten();
        is_change(w) && rows.into_iter().any(|(c, v)| *c == w.content && *v == w.version)
    })?;
    let write = history.writes[write].clone();
    history.topic.retain(|e| e.content != write.content || e.version != write.version);
    Some(name(&write))
}

fn old_position(history: &mut History, rng: &mut Rng) -> Option<String> {
    let (first, second) = (history.epochs[0].clone(), history.epochs[1].id);
    let writes = history.acknowledged().map(|w| (w.node, w.epoch.0, w.ended));
    let mut knew: BTreeMap<u32, Duration> = BTreeMap::new();
    for (node, _, ended) in writes.filter(|(_, epoch, _)| *epoch == second) {
        let since = knew.entry(node).or_insert(ended);
        *since = ended.min(*since);
    }
    let knows = |r: &ReadCall| knew.get(&r.node).is_some_and(|since| *since < r.began);
    let place = pick(&history.reads, rng, |r| !r.marked && knows(r))?;
    history.reads[place].position = Some((first.id, first.end? + 1));
    Some(format!("{} was shown beyond the end", history.reads[place].content))
}

fn older_read(history: &mut History, rng: &mut Rng) -> Option<String> {
    let place = pick(&history.reads, rng, |r| {
        let told = |m: &ReadCall| m.client == r.client && m.marked && m.began > r.began;
        let newer =
            |m: &ReadCall| m.client == r.client && m.content == r.content && m.version > r.version;
        r.session && !r.marked && !history.reads.iter().any(told) && history.reads.iter().any(newer)
    })?;
    let began = end(history);
    let read = history.reads[place].clone();
    let needle = format!("client {} was shown version {}", read.client, read.version);
    history.reads.push(ReadCall { began, ended: began + at(1), position: None, ..read });
    Some(needle)
}

fn too_many(history: &mut History, _: &mut Rng) -> Option<String> {
    let tags = (0..=LIMIT).map(|n| format!("x{n}")).collect();
    let write = write_of_new_content(history, tags);
    Some(format!("{} has {} tags", write.content, LIMIT + 1))
}

fn applied_again(history: &mut History, rng: &mut Rng) -> Option<String> {
    let place = pick(&history.writes, rng, |w| {
        let is_kept = w.final_verdict() == Some(&WriteVerdict::Kept);
        is_change(w) && is_kept && w.if_match.is_none() && w.content != DOUBTFUL
    })?;
    let first = history.writes[place].clone();
    rewrite_final(history, &first.content, |f| {
        if first.replaces {
            f.tags.clear();
        }
        f.tags.extend(first.adds.iter().cloned());
        f.tags.retain(|tag| !first.removes.contains(tag));
    });
    let epoch = history.epochs.last().map(|e| (e.id, e.ordinal))?;
    let (began, version) = (end(history), history.finals[&first.content].version);
    let needle = format!("write {} was applied twice", name(&first));
    let log = Some(LogRange { inside: 1, flushed: 9 });
    let ended = began + at(1);
    history.writes.push(WriteCall { began, ended, version, epoch, log, ..first });
    Some(needle)
}

fn remembered_twice(history: &mut History, rng: &mut Rng) -> Option<String> {
    let contents: Vec<String> = history.finals.keys().cloned().collect();
    let finally = history.finals.get_mut(&contents[rng.usize(0..contents.len())])?;
    let twice = *finally.recent.first()?;
    finally.recent.push(twice);
    Some(format!("remembers write {:032x} twice", twice.0))
}
