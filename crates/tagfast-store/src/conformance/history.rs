//! The history checker: the answers to clients, the published events and the stored state must form
//! one consistent history.
//!
//! The events of each content are replayed in publication order. The history is consistent when
//! 1. versions strictly increase, over events and over the changes within them;
//! 2. each step, applied to the set before it, gives the set the event carries, sorted, without
//!    duplicates and never beyond the limit, and a tagging that no change touched is the same as
//!    before;
//! 3. the last event is what the store shows;
//! 4. each write id appears at most once, and only if a client sent that write for that content;
//! 5. each answered change appears with exactly its version, added and removed names; a write that
//!    was refused, or failed with a known outcome, does not appear;
//! 6. real time is respected: a write that began after another one was answered never has the
//!    smaller version.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tagfast_domain::{ContentKey, TagName, TaggingsEvent, Version, WriteId};

use super::harness::StoreHarness;
use super::support::Fixture;
use crate::{StoreError, WriteAnswer, WriteRequest};

/// One attempt of a client and its result.
struct Attempt {
    request: WriteRequest,
    began: u64,
    ended: u64,
    result: AttemptResult,
}

enum AttemptResult {
    Answer(WriteAnswer),
    NotDone,
    Unknown,
}

/// Collects attempts; clones share one history.
#[derive(Clone, Default)]
pub(super) struct History {
    attempts: Arc<Mutex<Vec<Attempt>>>,
    ticks: Arc<AtomicU64>,
}

impl History {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst)
    }

    /// Writes, and records the request and its result.
    pub(super) async fn write(
        &self,
        fixture: &Fixture,
        request: WriteRequest,
    ) -> Result<WriteAnswer, StoreError> {
        let began = self.tick();
        let outcome = fixture.store.write(request.clone()).await;
        self.note(request, began, &outcome);
        outcome
    }

    /// Writes a batch, and records each item.
    pub(super) async fn write_many(
        &self,
        fixture: &Fixture,
        requests: Vec<WriteRequest>,
    ) -> Vec<Result<WriteAnswer, StoreError>> {
        let began = self.tick();
        let outcomes = fixture.store.write_many(requests.clone()).await;
        assert_eq!(outcomes.len(), requests.len(), "as many answers as items");
        for (request, outcome) in requests.into_iter().zip(&outcomes) {
            self.note(request, began, outcome);
        }
        outcomes
    }

    fn note(&self, request: WriteRequest, began: u64, outcome: &Result<WriteAnswer, StoreError>) {
        let result = match outcome {
            Ok(answer) => AttemptResult::Answer(answer.clone()),
            Err(e) if e.is_outcome_unknown() => AttemptResult::Unknown,
            Err(_) => AttemptResult::NotDone,
        };
        let ended = self.tick();
        self.attempts.lock().push(Attempt { request, began, ended, result });
    }

    /// Checks the whole history of this tenant; panics with the first contradiction.
    pub(super) async fn check(&self, fixture: &Fixture, harness: &dyn StoreHarness) {
        let events = fixture.events(harness).await;
        let mut by_content: BTreeMap<ContentKey, Vec<&TaggingsEvent>> = BTreeMap::new();
        for event in &events {
            by_content.entry(event.key.clone()).or_default().push(event);
        }
        for (key, events) in &by_content {
            replay(key, events, fixture.limits.tags_per_content);
            let view = fixture.view(key).await;
            let last = events.last().expect("a content in the map has an event");
            assert_eq!(
                (view.version, &view.tags),
                (last.version, &last.tags),
                "{key}: the last event must be what the store shows"
            );
        }
        let attempts = self.attempts.lock();
        check_ids(&attempts, &events);
        check_real_time(&attempts);
    }
}

fn replay(key: &ContentKey, events: &[&TaggingsEvent], limit: usize) {
    for pair in events.windows(2) {
        let (first, second) = (pair[0].version, pair[1].version);
        assert!(second > first, "{key}: {second} was published after {first}");
    }
    let mut names: BTreeSet<TagName> = BTreeSet::new();
    let mut version = Version::NONE;
    let mut before: Option<&TaggingsEvent> = None;
    for event in events {
        let mut touched: BTreeSet<&TagName> = BTreeSet::new();
        assert!(
            !event.changes.is_empty(),
            "{key}: the event of {} says what led to it",
            event.version
        );
        for change in &event.changes {
            assert!(
                change.version > version,
                "{key}: {} was published after {version}",
                change.version
            );
            version = change.version;
            for name in &change.removed {
                assert!(
                    names.remove(name),
                    "{key} at {version}: {name} was removed, but it was not there"
                );
                touched.insert(name);
            }
            for name in &change.added {
                assert!(
                    names.insert(name.clone()),
                    "{key} at {version}: {name} was added, but it was there"
                );
                touched.insert(name);
            }
            assert!(
                names.len() <= limit,
                "{key} at {version}: {} tags, at most {limit} are allowed",
                names.len()
            );
        }
        assert_eq!(event.version, version, "{key}: an event has the version of its last change");
        let published: Vec<&TagName> = event.tags.iter().map(|t| &t.name).collect();
        assert_eq!(
            published,
            names.iter().collect::<Vec<_>>(),
            "{key} at {version}: the published set must be what the changes make of the set before"
        );
        for tag in &event.tags {
            assert!(tag.present && tag.decided_at <= version, "{key} at {version}: {tag:?}");
            let was = before.and_then(|b| b.tags.iter().find(|t| t.name == tag.name));
            if let Some(was) = was.filter(|_| !touched.contains(&tag.name)) {
                assert_eq!(
                    (&was.display, &was.user, was.at),
                    (&tag.display, &tag.user, tag.at),
                    "{key} at {version}: {} was not touched",
                    tag.name
                );
            }
        }
        before = Some(event);
    }
}

fn check_ids(attempts: &[Attempt], events: &[TaggingsEvent]) {
    let mut published = HashMap::new();
    for event in events {
        for change in &event.changes {
            let id = (event.key.clone(), change.write_id);
            assert!(
                published.insert(id, change).is_none(),
                "{}: write {} had two effects",
                event.key,
                change.write_id
            );
        }
    }
    let mut requested: HashMap<(ContentKey, WriteId), Vec<&Attempt>> = HashMap::new();
    for attempt in attempts {
        let write = &attempt.request.write;
        requested.entry((write.key.clone(), write.id)).or_default().push(attempt);
    }
    for (id, change) in &published {
        // Writes of the test's preparation are not in the history; those in it must have been able
        // to happen.
        let Some(attempts) = requested.get(id) else { continue };
        assert!(
            attempts.iter().any(|a| !matches!(a.result, AttemptResult::NotDone)),
            "{}: write {} was refused each time and published all the same: {change:?}",
            id.0,
            id.1
        );
        assert!(
            attempts.iter().any(|a| a.request.write.user == change.user),
            "{}: write {} is of another user than {}",
            id.0,
            id.1,
            change.user
        );
    }
    for (id, attempts) in &requested {
        let change = published.get(id);
        for attempt in attempts {
            let AttemptResult::Answer(answer) = &attempt.result else { continue };
            match change {
                Some(change) if answer.changed || answer.repeated => assert_eq!(
                    (answer.version, &answer.added, &answer.removed),
                    (change.version, &change.added, &change.removed),
                    "{}: write {} was answered otherwise than it was published",
                    id.0,
                    id.1
                ),
                Some(_) => {}
                None => assert!(
                    !answer.changed,
                    "{}: write {} was answered as done, but never published: {answer:?}",
                    id.0, id.1
                ),
            }
        }
    }
}

fn check_real_time(attempts: &[Attempt]) {
    let mut answered: BTreeMap<&ContentKey, Vec<(&Attempt, &WriteAnswer)>> = BTreeMap::new();
    for attempt in attempts {
        // A repeated answer tells an old version, and rightly so.
        if let AttemptResult::Answer(answer) = &attempt.result
            && !answer.repeated
        {
            answered.entry(&attempt.request.write.key).or_default().push((attempt, answer));
        }
    }
    for (key, mut list) in answered {
        let mut ends: Vec<(u64, Version)> =
            list.iter().map(|(a, w)| (a.ended, w.version)).collect();
        ends.sort_unstable();
        list.sort_unstable_by_key(|(a, _)| a.began);
        let (mut next, mut newest) = (0, Version::NONE);
        for (attempt, answer) in list {
            while let Some((_, version)) =
                ends.get(next).filter(|(ended, _)| *ended < attempt.began)
            {
                newest = newest.max(*version);
                next += 1;
            }
            let allowed =
                if answer.changed { answer.version > newest } else { answer.version >= newest };
            assert!(
                allowed,
                "{key}: a write began after {newest} was answered and got {}",
                answer.version
            );
        }
    }
}
