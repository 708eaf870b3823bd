//! Readers that ask every source several times a second and judge each answer at once, and readers
//! of what every process says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tagfast_testkit::Client;

use crate::cells::{Place, Source};
use crate::judge::{Lie, Observation, judge, lacks_since, now};
use crate::load::{CONTENTS_PER_SOURCE, Written, pause};

const ASK_INTERVAL: Duration = Duration::from_millis(200);
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// A source has caught up when it lacks no write older than this, in milliseconds.
const CAUGHT_UP_MS: u64 = 5_000;
/// Characters of an entry that are shown.
const ENTRY_CHARS_MAX: usize = 120;
/// A lag that was told longer ago than this is not compared with an answer, in milliseconds.
const LAG_TOLD_MS: u64 = 2_000;

/// What was seen of a source since the last reset.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) answered: u64,
    pub(crate) unanswered: u64,
    pub(crate) marked: u64,
    /// Unmarked answers that lack what they may not lack.
    pub(crate) lies: u64,
    /// The first of them, and the worst.
    pub(crate) first: Option<String>,
    worst_ms: u64,
    /// Whether its last answer was complete and not marked.
    clean: bool,
}

impl Seen {
    /// The lies of a source in one line; `None` when it told none.
    pub(crate) fn lies_text(&self) -> Option<String> {
        let first = self.first.as_ref()?;
        let (lies, unmarked) = (self.lies, self.answered - self.marked);
        Some(format!("{lies} of {unmarked} unmarked answers, up to {} ms; {first}", self.worst_ms))
    }
}

/// What a process said of itself.
struct Said {
    at: u64,
    entries: BTreeSet<String>,
}

/// The lag that a consumer told: everything before `through` is applied, Unix ms.
#[derive(Clone, Copy)]
struct LagTold {
    at: u64,
    through: u64,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<BTreeMap<Source, Seen>>,
    said: Mutex<Vec<Said>>,
    /// What each process says now; `None` while it does not answer.
    says: Mutex<BTreeMap<&'static str, Option<BTreeSet<String>>>>,
    lag: Mutex<BTreeMap<Source, LagTold>>,
    stop: AtomicBool,
}

/// The running readers.
pub(crate) struct Probes {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Probes {
    pub(crate) fn start(address: impl Fn(Place) -> SocketAddr, written: &Arc<Written>) -> Self {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for source in Source::ALL.into_iter().filter(|source| *source != Source::Lag) {
            let place = if source == Source::Replica { Place::Plain } else { Place::Cached };
            let client = Client::new(address(place)).with_timeout(ASK_TIMEOUT);
            let (shared, written) = (Arc::clone(&shared), Arc::clone(written));
            threads.push(std::thread::spawn(move || ask_again(source, client, &written, &shared)));
        }
        for place in Place::ALL {
            let client = Client::new(address(place)).with_timeout(ASK_TIMEOUT);
            let shared = Arc::clone(&shared);
            threads.push(std::thread::spawn(move || listen(place, client, &shared)));
        }
        Self { shared, threads }
    }

    /// Forgets what was seen so far, but not whether sources are clean.
    pub(crate) fn reset(&self) {
        for seen in self.shared.seen.lock().values_mut() {
            *seen = Seen { clean: seen.clean, ..Seen::default() };
        }
        self.shared.said.lock().clear();
    }

    pub(crate) fn seen(&self) -> BTreeMap<Source, Seen> {
        self.shared.seen.lock().clone()
    }

    /// Sources that are marked, behind or silent; with what processes say beyond `known`, and those
    /// that do not answer.
    pub(crate) fn not_clean(&self, known: &BTreeSet<String>) -> BTreeSet<String> {
        let seen = self.shared.seen.lock();
        let sources = Source::ALL.into_iter().filter(|source| *source != Source::Lag);
        let mut wrong: BTreeSet<String> = sources
            .filter(|source| !seen.get(source).is_some_and(|seen| seen.clean))
            .map(|source| source.name().to_owned())
            .collect();
        let says = self.shared.says.lock();
        for place in Place::ALL {
            match says.get(place.name()) {
                Some(Some(entries)) => {
                    let new = entries.iter().filter(|entry| !known.contains(*entry));
                    wrong.extend(new.map(|entry| entry.chars().take(ENTRY_CHARS_MAX).collect()));
                }
                Some(None) | None => {
                    wrong.insert(format!("{} does not answer", place.name()));
                }
            }
        }
        wrong
    }

    /// What all processes say now.
    pub(crate) fn says(&self) -> BTreeSet<String> {
        self.shared.says.lock().values().flatten().flatten().cloned().collect()
    }

    /// When an entry that is not `known` first had all words of one group, since this time.
    pub(crate) fn named_at(
        &self,
        since: u64,
        groups: &[&[&str]],
        known: &BTreeSet<String>,
    ) -> Option<(u64, String)> {
        let has = |entry: &&String| {
            let entry = entry.to_lowercase();
            groups.iter().any(|words| words.iter().all(|w| entry.contains(&w.to_lowercase())))
        };
        let said = self.shared.said.lock();
        let later = said.iter().filter(|said| said.at >= since);
        later
            .filter_map(|said| {
                let entry = said.entries.iter().filter(|e| !known.contains(*e)).find(has)?;
                Some((said.at, entry.clone()))
            })
            .min()
    }

    pub(crate) fn stop(self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a reader does not panic");
        }
    }
}

/// Asks one source until the end.
fn ask_again(source: Source, mut client: Client, written: &Written, shared: &Shared) {
    for turn in 0.. {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let content = turn % CONTENTS_PER_SOURCE;
        let asked = now();
        let observed = ask(source, &mut client, written, content, asked);
        record(source, written, content, observed, shared);
        pause(ASK_INTERVAL);
    }
}

/// An answer and its body; `None` when the source refused or did not answer.
fn ask(
    source: Source,
    client: &mut Client,
    written: &Written,
    content: usize,
    asked: u64,
) -> Option<(Observation, String)> {
    let eventual: &[(&str, &str)] = &[("consistency", "eventual")];
    let tag = written.tag();
    let (path, headers) = match source {
        Source::Replica => (written.path(0, content), eventual),
        Source::Session => (written.path(1, content), &[][..]),
        Source::Cache => (written.path(2, content), eventual),
        Source::Leaderboard => ("/v1/tags/popular?window=all&limit=100".to_owned(), &[][..]),
        Source::Search => (format!("/v1/search?q={tag}&total=exact&limit=1"), &[][..]),
        Source::Count => (format!("/v1/tags/{tag}"), &[][..]),
        Source::Lag => return None,
    };
    let answer = client.request("GET", &path, headers, None).ok()?;
    if answer.status != 200 {
        return None;
    }
    let body = answer.json();
    let seen = match source {
        Source::Replica | Source::Session | Source::Cache => {
            let tag = body["tags"][0]["tag"].as_str().unwrap_or("v0");
            tag.trim_start_matches('v').parse().ok()?
        }
        Source::Leaderboard => {
            let tags = body["tags"].as_array()?;
            let found = tags.iter().find(|row| row["tag"] == tag.as_str());
            found.map_or(0, |row| row["count"].as_u64().unwrap_or(0))
        }
        Source::Search => body["total"]["value"].as_u64()?,
        Source::Count => body["count"].as_u64()?,
        Source::Lag => return None,
    };
    let meta = &body["meta"];
    let limited = meta["degraded"].as_array().is_some_and(|list| !list.is_empty());
    let observation = Observation {
        asked,
        // At the earliest: the answer was made after it was asked for.
        as_of: meta["age_ms"].as_u64().map(|age| asked.saturating_sub(age)),
        marked: meta["stale"] == true || limited,
        seen: usize::try_from(seen).unwrap_or(usize::MAX),
    };
    Some((observation, format!("meta {meta}")))
}

fn record(
    source: Source,
    written: &Written,
    content: usize,
    observed: Option<(Observation, String)>,
    shared: &Shared,
) {
    let acknowledged = match source {
        Source::Replica => written.rewrites(0, content),
        Source::Session => written.rewrites(1, content),
        Source::Cache => written.rewrites(2, content),
        Source::Leaderboard | Source::Search | Source::Count | Source::Lag => &written.counted,
    };
    let mut all = shared.seen.lock();
    let seen = all.entry(source).or_default();
    let Some((observation, meta)) = observed else {
        (seen.unanswered, seen.clean) = (seen.unanswered + 1, false);
        return;
    };
    seen.answered += 1;
    seen.marked += u64::from(observation.marked);
    let judged = acknowledged.read(|times| judge(&observation, times, source.bound_ms()));
    if let Err(lie) = judged {
        blame(seen, lie, &observation, acknowledged.count(), &meta);
    }
    let since = acknowledged.read(|times| lacks_since(&observation, times));
    let behind = since.is_some_and(|since| since + CAUGHT_UP_MS < observation.asked);
    seen.clean = !observation.marked && !behind;
    if !matches!(source, Source::Leaderboard | Source::Search) || observation.marked {
        return;
    }
    // What a consumer told of its lag a moment ago is held against what is shown now.
    let Some(told) = shared.lag.lock().get(&source).copied() else { return };
    let lag = all.entry(Source::Lag).or_default();
    lag.answered += 1;
    let through = told.through.saturating_sub(Source::Lag.bound_ms());
    let is_new = observation.asked.saturating_sub(told.at) <= LAG_TOLD_MS;
    if let Some(since) = since.filter(|since| is_new && *since < through) {
        let text = format!(
            "the consumer of {} told a lag of {} ms",
            source.name(),
            told.at - told.through
        );
        blame(lag, Lie::Claim(through - since), &observation, acknowledged.count(), &text);
    }
}

fn blame(seen: &mut Seen, lie: Lie, observation: &Observation, written: usize, meta: &str) {
    let (ms, what) = match lie {
        Lie::Claim(ms) => (ms, "than it says"),
        Lie::Bound(ms) => (ms, "in all, which is more than its bound"),
    };
    seen.lies += 1;
    seen.worst_ms = seen.worst_ms.max(ms);
    let shown = observation.seen;
    seen.first.get_or_insert_with(|| {
        format!("first: {ms} ms older {what}: shows {shown} of {written} writes, {meta}")
    });
}

/// Reads readiness and status of one process until the end.
fn listen(place: Place, mut client: Client, shared: &Shared) {
    while !shared.stop.load(Ordering::SeqCst) {
        let at = now();
        let mut entries = BTreeSet::new();
        let mut answers = true;
        for path in ["/readyz", "/v1/status"] {
            match client.request("GET", path, &[], None) {
                Ok(answer) => {
                    let body = answer.json();
                    add_entries(&body, &mut entries);
                    if path == "/v1/status" {
                        note_lag(place, &body, at, shared);
                    }
                }
                Err(_) => answers = false,
            }
        }
        if !entries.is_empty() {
            // Said when it was read, not when it was asked for.
            shared.said.lock().push(Said { at: now(), entries: entries.clone() });
        }
        shared.says.lock().insert(place.name(), answers.then_some(entries));
        pause(ASK_INTERVAL);
    }
}

/// What is not ready and what is degraded, as `part: problem`.
fn add_entries(body: &Value, entries: &mut BTreeSet<String>) {
    for (list, name, why) in [("not_ready", "part", "problem"), ("degraded", "feature", "reason")] {
        for entry in body[list].as_array().into_iter().flatten() {
            let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            entries.insert(format!("{}: {}", text(name), text(why)));
        }
    }
}

fn note_lag(place: Place, body: &Value, at: u64, shared: &Shared) {
    let source = match place {
        Place::Indexer => Source::Search,
        Place::Analytics => Source::Leaderboard,
        Place::Writer | Place::Cached | Place::Plain | Place::Relay => return,
    };
    let Some(seconds) = body["consumers"][0]["lag_seconds"].as_f64() else { return };
    let through = at.saturating_sub((seconds * 1_000.0) as u64);
    shared.lag.lock().insert(source, LagTold { at, through });
}
