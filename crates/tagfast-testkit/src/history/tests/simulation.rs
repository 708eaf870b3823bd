//! A serial store that is simulated with its failovers, repairs, feed and index, and the history
//! that its clients record. It keeps every promise, so its histories are correct.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::*;

pub(super) const LIMIT: usize = 100;
/// What a failover loses was committed within this time.
const MAX_LOSS_MS: u64 = 40;
/// Versions of one epoch; its ordinal times this is the first one.
const VERSIONS_OF_EPOCH: u64 = 10_000;
/// Only this content has writes with an unknown outcome, which may explain any state.
pub(super) const DOUBTFUL: &str = "doubtful";
const CONTENTS: [&str; 4] = ["a", "b", "c", DOUBTFUL];
const CLIENTS: u32 = 5;

/// A document: what decided each tag, and which writes it remembers.
#[derive(Debug, Clone, Default)]
struct Document {
    version: u64,
    tags: BTreeMap<String, (u64, bool)>,
    floor: u64,
    recent: BTreeMap<u128, u64>,
}

impl Document {
    fn decided(&self, tag: &str) -> (u64, bool) {
        self.tags.get(tag).copied().unwrap_or((self.floor, false))
    }

    fn live(&self) -> BTreeSet<String> {
        self.tags.iter().filter(|(_, (_, present))| *present).map(|(t, _)| t.clone()).collect()
    }

    /// Of each tag the newest decision of both.
    fn join(&mut self, lost: &Self) {
        let names: Vec<String> = self.tags.keys().chain(lost.tags.keys()).cloned().collect();
        for name in names {
            let newest = self.decided(&name).max(lost.decided(&name));
            self.tags.insert(name, newest);
        }
        self.floor = self.floor.max(lost.floor);
        self.recent.extend(&lost.recent);
    }
}

type Documents = BTreeMap<String, Document>;

/// The database after a commit.
#[derive(Clone, Default)]
struct Snapshot {
    documents: Documents,
    /// An event carries the whole state at its version.
    outbox: Vec<(String, u64, BTreeSet<String>)>,
    at: u64,
}

struct Simulation {
    rng: Rng,
    now: u64,
    /// When each client's last call ended.
    free: BTreeMap<u32, u64>,
    nodes: Vec<u32>,
    next_node: u32,
    next_tag: u32,
    next_id: u128,
    /// The first one is the state in which the epoch began.
    log: Vec<Snapshot>,
    /// Before this place of the log nothing can be lost.
    safe: usize,
    /// How much of the outbox is published.
    published: usize,
    is_repairing: bool,
    to_be_told: BTreeSet<u32>,
    index: BTreeMap<String, (u64, BTreeSet<String>)>,
    history: History,
}

/// A correct history.
pub(super) fn simulate(seed: u64) -> History {
    let mut simulation = Simulation::new(Rng::with_seed(seed));
    for _ in 0..3 {
        simulation.work(20);
        simulation.fail_over();
    }
    simulation.work(20);
    simulation.end()
}

impl Simulation {
    fn new(rng: Rng) -> Self {
        let mut simulation = Self {
            rng,
            now: 10,
            free: BTreeMap::new(),
            nodes: vec![0, 1, 2],
            next_node: 3,
            next_tag: 0,
            next_id: 1 << 100,
            log: vec![Snapshot::default()],
            safe: 0,
            published: 0,
            is_repairing: false,
            to_be_told: BTreeSet::new(),
            index: BTreeMap::new(),
            history: History { limit: LIMIT, ..History::default() },
        };
        simulation.history.max_loss = Some(at(MAX_LOSS_MS));
        simulation.history.listed = Some(BTreeMap::new());
        simulation.begin_epoch();
        simulation
    }

    fn begin_epoch(&mut self) {
        let ordinal = self.history.epochs.len() as u64 + 1;
        let (id, seen_at) = (u128::from(ordinal) << 64 | 0xE, at(self.now));
        let epoch = EpochSeen { id, ordinal, seen_at, was_streaming: true, ..Default::default() };
        self.history.epochs.push(epoch);
    }

    fn current(&mut self) -> &mut EpochSeen {
        self.history.epochs.last_mut().expect("one began")
    }

    /// Id and ordinal of the current epoch.
    fn epoch(&self) -> (u128, u64) {
        self.history.epochs.last().map_or((0, 0), |e| (e.id, e.ordinal))
    }

    fn state(&self) -> &Snapshot {
        self.log.last().expect("there is a first one")
    }

    fn next_version(&self, document: &Document) -> u64 {
        (document.version + 1).max(self.epoch().1 * VERSIONS_OF_EPOCH + 1)
    }

    fn commit(&mut self, content: &str, document: Document) {
        let mut next = self.state().clone();
        next.outbox.push((content.to_owned(), document.version, document.live()));
        next.documents.insert(content.to_owned(), document);
        next.at = self.now;
        self.log.push(next);
    }

    /// The place of the last commit in the log of the epoch.
    fn position(&self) -> LogRange {
        let commit = self.log.len() as u64;
        LogRange { inside: commit * 10 + 1, flushed: commit * 10 + 9 }
    }

    /// A client that is free, with the times of its call around now.
    fn call(&mut self) -> (u32, Duration, Duration) {
        let client = self.rng.u32(0..CLIENTS);
        let free = self.free.get(&client).copied().unwrap_or(0);
        self.now = (self.now + self.rng.u64(0..4)).max(free + 1);
        let began = self.rng.u64((free + 1).max(self.now.saturating_sub(5))..=self.now);
        let ended = self.now + self.rng.u64(1..5);
        self.free.insert(client, ended);
        (client, at(began), at(ended))
    }

    fn work(&mut self, calls: usize) {
        for _ in 0..calls {
            match self.rng.u32(0..10) {
                0..6 => self.write(),
                6..9 => self.read(),
                _ => self.retry(),
            }
            if self.rng.bool() {
                self.publish();
            }
        }
    }

    fn content(&mut self) -> &'static str {
        CONTENTS[self.rng.usize(0..CONTENTS.len())]
    }

    fn write(&mut self) {
        let content = self.content();
        let (client, began, ended) = self.call();
        let node = self.nodes[self.rng.usize(0..self.nodes.len())];
        let mut document = self.state().documents.get(content).cloned().unwrap_or_default();
        let pool = ["s0", "s1", "s2", "s3"].map(str::to_owned);
        let (mut adds, mut removes) = (BTreeSet::new(), BTreeSet::new());
        let replaces = self.rng.u32(0..12) == 0;
        if self.rng.bool() || replaces {
            self.next_tag += 1;
            adds.insert(format!("t{}", self.next_tag));
        }
        if self.rng.bool() || adds.is_empty() {
            adds.insert(pool[self.rng.usize(0..pool.len())].clone());
        }
        let known: Vec<&String> = document.tags.keys().filter(|t| !adds.contains(*t)).collect();
        if !known.is_empty() && !replaces && self.rng.bool() {
            removes.insert(known[self.rng.usize(0..known.len())].clone());
            if self.rng.bool() {
                adds.clear();
            }
        }
        let conditional = !self.is_repairing && self.rng.u32(0..8) == 0 && document.version > 0;
        self.next_id += 1;
        let mut call = WriteCall {
            id: self.next_id,
            client,
            node,
            began,
            ended,
            adds,
            removes,
            replaces,
            if_match: conditional.then_some(document.version),
            content: content.to_owned(),
            epoch: self.epoch(),
            ..super::write(0, &[], &[], 0)
        };
        self.apply(&mut call, &mut document);
        if content == DOUBTFUL && self.rng.u32(0..3) == 0 {
            call.outcome = Outcome::Unknown;
        }
        self.history.writes.push(call);
    }

    /// Applies a write, and fills in its answer.
    fn apply(&mut self, call: &mut WriteCall, document: &mut Document) {
        let next = self.next_version(document);
        let before = document.live();
        let decides = call.adds.iter().map(|t| (t.clone(), true));
        let mut decides: Vec<(String, bool)> =
            decides.chain(call.removes.iter().map(|t| (t.clone(), false))).collect();
        let decides_all = call.replaces || call.if_match.is_some();
        if decides_all {
            let others = document.tags.iter().filter(|(t, _)| !call.adds.contains(*t));
            let others = others.filter(|(t, _)| !call.removes.contains(*t));
            let kept = |present: bool| present && !call.replaces;
            decides.extend(others.map(|(t, (_, present))| (t.clone(), kept(*present))));
        }
        let current = self.epoch().1 * VERSIONS_OF_EPOCH;
        let is_free = decides.iter().all(|(tag, present)| {
            let (decided_at, is) = document.decided(tag);
            is == *present && decided_at > current
        });
        if is_free && !decides_all {
            call.changed = false;
            call.version = document.version;
            let flushed = self.position().flushed;
            call.log = Some(LogRange { inside: flushed, flushed });
            return;
        }
        document.version = next;
        document.tags.extend(decides.into_iter().map(|(t, present)| (t, (next, present))));
        if decides_all {
            document.floor = next;
        }
        document.recent.insert(call.id, next);
        call.changed = document.live() != before;
        call.version = next;
        let content = call.content.clone();
        self.commit(&content, document.clone());
        call.log = Some(self.position());
        if self.rng.u32(0..6) == 0 {
            call.replicated = Some(Replicas { had: 2, of: 2 });
            self.safe = self.log.len() - 1;
        }
    }

    /// Repeats an acknowledged write that the document remembers.
    fn retry(&mut self) {
        let (client, began, ended) = self.call();
        let known = |w: &&WriteCall| {
            let document = self.state().documents.get(&w.content);
            let is_told = w.is_acknowledged() && w.client == client && w.ended < began;
            is_told && document.is_some_and(|d| d.recent.contains_key(&w.id))
        };
        let Some(first) = self.history.writes.iter().rev().find(known).cloned() else { return };
        let flushed = self.position().flushed;
        self.history.writes.push(WriteCall {
            began,
            ended,
            repeated: true,
            epoch: self.epoch(),
            log: Some(LogRange { inside: flushed, flushed }),
            replicated: None,
            node: self.nodes[0],
            ..first
        });
    }

    fn read(&mut self) {
        let content = self.content();
        let (client, began, ended) = self.call();
        let document = self.state().documents.get(content).cloned().unwrap_or_default();
        let session = self.rng.u32(0..4) != 0;
        let is_told = session && self.to_be_told.remove(&client);
        let node = self.nodes[self.rng.usize(0..self.nodes.len())];
        self.history.reads.push(ReadCall {
            client,
            node,
            content: content.to_owned(),
            began,
            ended,
            tags: document.live(),
            version: document.version,
            position: Some((self.epoch().0, self.position().flushed)),
            session,
            // What a client has seen of any content may be gone: it hears so at every content.
            marked: self.is_repairing || is_told || self.is_behind(client, content),
        });
    }

    /// Whether the client has seen more of a content than there is.
    fn is_behind(&self, client: u32, content: &str) -> bool {
        let version = self.state().documents.get(content).map_or(0, |d| d.version);
        let writes = self.history.acknowledged().filter(|w| w.client == client);
        let writes = writes.filter(|w| w.content == content).map(|w| w.version);
        let reads = self.history.reads.iter().filter(|r| r.client == client);
        let reads = reads.filter(|r| r.content == content).map(|r| r.version);
        writes.chain(reads).any(|seen| seen > version)
    }

    /// Publishes the outbox; the consumer applies what is newer.
    fn publish(&mut self) {
        let emit = self.epoch().1;
        let rows = self.state().outbox[self.published..].to_vec();
        self.published = self.state().outbox.len();
        for (content, version, state) in rows {
            let indexed = self.index.get(&content).map_or(0, |(version, _)| *version);
            let applied = version > indexed;
            if applied {
                self.index.insert(content.clone(), (version, state));
            }
            let cluster = "c0".to_owned();
            self.history.topic.push(FeedEvent {
                partition: 0,
                cluster,
                content,
                emit,
                version,
                applied,
            });
        }
    }

    /// The primary dies; a replica that lacks the last commits is promoted. What the surviving
    /// processes acknowledged comes back.
    fn fail_over(&mut self) {
        self.now = self.free.values().copied().max().unwrap_or(0).max(self.now) + 1;
        let recent = self.log.partition_point(|s| s.at + MAX_LOSS_MS - 5 < self.now).max(1) - 1;
        let fork = self.rng.usize(self.safe.max(recent).min(self.log.len() - 1)..self.log.len());
        let lost = self.log.split_off(fork + 1);
        let end = self.log.len() as u64 * 10 + 10;
        self.current().end = Some(end);
        let crashed = if self.rng.bool() { Some(self.nodes.remove(2)) } else { None };
        if crashed.is_some() {
            self.nodes.push(self.next_node);
            self.next_node += 1;
        }
        let (begins_at, old) = (self.history.writes.len(), self.epoch().0);
        // What was published and is lost has diverged.
        let kept = self.state().outbox.len();
        let diverged: BTreeSet<String> = lost.last().map_or_else(BTreeSet::new, |s| {
            s.outbox[kept..self.published.max(kept)].iter().map(|row| row.0.clone()).collect()
        });
        self.published = 0;
        let base = self.state().documents.clone();
        let first = self.state().clone();
        self.log = vec![first];
        self.safe = 0;
        self.begin_epoch();
        self.to_be_told = (0..CLIENTS).collect();
        self.is_repairing = true;
        self.work(6);
        self.repair(&lost, crashed, (old, end), &base, begins_at);
        for content in diverged {
            let mut document = self.state().documents.get(&content).cloned().unwrap_or_default();
            document.version = self.next_version(&document);
            self.commit(&content, document);
        }
        self.is_repairing = false;
        self.safe = self.log.len() - 1;
        self.publish();
    }

    /// Joins the newest document that each surviving process acknowledged of a content.
    fn repair(
        &mut self,
        lost: &[Snapshot],
        crashed: Option<u32>,
        (old, end): (u128, u64),
        base: &Documents,
        begins_at: usize,
    ) {
        let diverged = |w: &WriteCall| {
            w.epoch.0 == old && w.is_acknowledged() && w.log.is_some_and(|l| l.inside >= end)
        };
        let mut joined: BTreeMap<String, Document> = BTreeMap::new();
        for call in self.history.writes[..begins_at].iter().filter(|w| diverged(w)) {
            if Some(call.node) == crashed {
                continue;
            }
            // The log position of the answer names the state that it vouches for.
            let place =
                (call.log.expect("it has one").flushed / 10).saturating_sub(end / 10) as usize;
            let state = &lost[place.min(lost.len() - 1)].documents[&call.content];
            joined.entry(call.content.clone()).or_default().join(state);
        }
        for (content, lost) in &joined {
            let mut document = self.state().documents.get(content).cloned().unwrap_or_default();
            document.join(lost);
            document.version = self.next_version(&document);
            self.now += 1;
            self.commit(content, document);
        }
        self.now += 5;
        let (now, survivors) = (at(self.now), self.nodes.clone());
        let is_lost = |w: &WriteCall| {
            let document = self.state().documents.get(&w.content);
            let is_known = document.is_some_and(|d| d.recent.contains_key(&w.id));
            Some(w.node) == crashed && !is_known
        };
        let mut verdicts = Vec::new();
        for (place, call) in self.history.writes[..begins_at].iter().enumerate() {
            if diverged(call) {
                let was_there =
                    base.get(&call.content).is_some_and(|d| d.recent.contains_key(&call.id));
                let verdict = match (is_lost(call), was_there) {
                    (true, _) => WriteVerdict::Lost("unreported".to_owned()),
                    (false, true) => WriteVerdict::Kept,
                    (false, false) => WriteVerdict::Repaired,
                };
                verdicts.push((place, verdict));
            }
        }
        for (place, verdict) in verdicts {
            let call = &mut self.history.writes[place];
            if verdict == WriteVerdict::Repaired {
                let listed = self.history.listed.as_mut().expect("it is read");
                listed.insert(call.id, WriteVerdict::Repaired);
            }
            let pending = WriteVerdict::Unknown("pending".to_owned());
            call.verdicts = vec![
                VerdictAnswer { at: now - at(2), closed: false, verdict: pending },
                VerdictAnswer { at: now, closed: true, verdict },
            ];
        }
        self.current().reported = survivors.into_iter().collect();
        self.current().closed_at = Some(now);
    }

    fn end(mut self) -> History {
        self.publish();
        // A relay of the first epoch comes back: nothing that it publishes counts.
        if let Some(first) = self.history.topic.first().cloned() {
            self.history.topic.push(FeedEvent { applied: false, ..first });
        }
        let end = self.state().clone();
        for call in self.history.writes.iter_mut().filter(|w| w.is_acknowledged()) {
            if call.verdicts.is_empty() {
                let kept = WriteVerdict::Kept;
                call.verdicts.push(VerdictAnswer { at: at(self.now), closed: true, verdict: kept });
            }
        }
        let finals = end.documents.iter().map(|(content, document)| {
            let recent = document.recent.iter().map(|(id, version)| (*id, *version)).collect();
            let (version, tags) = (document.version, document.live());
            (content.clone(), FinalContent { version, tags, recent })
        });
        self.history.finals = finals.collect();
        let rows = end.outbox.into_iter().map(|(content, version, _)| (content, version));
        self.history.outbox = Some(rows.collect());
        self.history.index = Some(self.index);
        self.history
    }
}

#[test]
fn a_store_that_keeps_every_promise_has_no_violations() {
    let (mut repaired, mut lost, mut reads) = (0, 0, 0);
    for seed in 0..300 {
        let history = simulate(seed);
        let found = history.check();
        assert_eq!(found.violations, [], "seed {seed}");
        repaired += found.counts.repaired;
        lost += found.counts.lost.values().sum::<usize>();
        reads += history.reads.iter().filter(|r| !r.marked).count();
    }
    // What is never simulated is never checked.
    assert!(repaired > 300 && lost > 100 && reads > 3000, "{repaired} {lost} {reads}");
}
