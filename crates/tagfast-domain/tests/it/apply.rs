//! `apply`, the one function that changes a document.

use std::collections::HashMap;

use proptest::prelude::*;
use tagfast_domain::limits::{RECENT_WRITES, TOMBSTONE_AGE_MS, TOMBSTONES, WRITE_ID_MEMORY_MS};
use tagfast_domain::*;

use crate::support::{
    LIMITS, T0, any_operation, cases, epoch, id, live, name, patch, replace, tag, write,
};

/// A document with its clock, its epoch and a store's `applied` table.
struct Fixture {
    doc: Document,
    epoch: Epoch,
    now: UnixMillis,
    limits: Limits,
    call: Option<Call>,
    applied: HashMap<WriteId, RecentWrite>,
}

impl Fixture {
    fn new() -> Self {
        Self {
            doc: Document::default(),
            epoch: epoch(0),
            now: T0,
            limits: Limits::default(),
            call: None,
            applied: HashMap::new(),
        }
    }

    fn apply(&mut self, write: &Write) -> Outcome {
        let prior =
            self.applied.get(&write.id).filter(|_| self.doc.overflow_until > self.now).cloned();
        let context = ApplyContext {
            epoch: &self.epoch,
            now: self.now,
            limits: &self.limits,
            call: self.call,
        };
        let outcome = apply(&mut self.doc, write, prior.as_ref(), &context);
        let evicted = if let Outcome::Written { evicted, .. } = &outcome {
            evicted.clone()
        } else {
            remember(&mut self.doc, write, &outcome, &context).unwrap_or_default()
        };
        self.applied.extend(evicted.into_iter().map(|w| (w.id, w)));
        outcome
    }

    fn apply_written(&mut self, write: &Write) -> (Version, Effect) {
        match self.apply(write) {
            Outcome::Written { version, effect, .. } => (version, effect),
            other @ (Outcome::Unchanged { .. }
            | Outcome::Repeated { .. }
            | Outcome::Refused(_)
            | Outcome::RefusedAgain(_)) => panic!("{write:?} must be written: {other:?}"),
        }
    }

    fn decided_at(&self, tag: &str) -> Option<Version> {
        self.doc.taggings.iter().find(|t| t.name.as_str() == tag).map(|t| t.decided_at)
    }
}

fn names(names: &[TagName]) -> Vec<&str> {
    names.iter().map(TagName::as_str).collect()
}

#[test]
fn adds_and_removes_say_what_they_did() {
    let mut fixture = Fixture::new();
    let (v1, effect) = fixture.apply_written(&patch(1, &["b", "a"], &[]));
    assert_eq!((v1, names(&effect.added)), (fixture.epoch.first_version(), vec!["b", "a"]));
    let (v2, effect) = fixture.apply_written(&patch(2, &["c", "a"], &["b", "z"]));
    assert_eq!((names(&effect.added), names(&effect.removed)), (vec!["c"], vec!["b"]));
    assert_eq!(v2.packed(), v1.packed() + 1);
    assert_eq!(live(&fixture.doc), ["a", "c"]);
    assert_eq!(
        (fixture.decided_at("a"), fixture.decided_at("b"), fixture.decided_at("c")),
        (Some(v2), Some(v2), Some(v2)),
        "all listed are decided"
    );
    assert_eq!(fixture.doc.absent_since, Version::NONE, "a patch decides its listed taggings only");
}

#[test]
fn a_no_op_is_free_in_its_epoch_and_stamped_once_in_the_next() {
    let mut fixture = Fixture::new();
    let (v1, _) = fixture.apply_written(&patch(1, &["a", "b"], &[]));
    fixture.apply_written(&patch(2, &[], &["b"]));
    let before = fixture.doc.clone();
    for w in [patch(3, &["a"], &[]), patch(4, &[], &["b"]), patch(5, &["a"], &["b"])] {
        assert_eq!(fixture.apply(&w), Outcome::Unchanged { version: before.version });
    }
    assert_eq!(fixture.doc, before, "a free no-op leaves the document alone");

    fixture.epoch = epoch(50);
    let (v3, effect) = fixture.apply_written(&patch(6, &["a"], &[]));
    assert_eq!((effect, v3), (Effect::default(), fixture.epoch.first_version()));
    assert_eq!(
        (fixture.decided_at("a"), fixture.decided_at("b")),
        (Some(v3), before.taggings.iter().find(|t| !t.present).map(|t| t.decided_at))
    );
    assert!(v3 > v1);
    let (v4, _) = fixture.apply_written(&patch(7, &[], &["b"]));
    let (v5, _) = fixture.apply_written(&patch(8, &[], &["never-there"]));
    assert_eq!(
        (fixture.decided_at("b"), fixture.decided_at("never-there")),
        (Some(v4), Some(v5)),
        "absence is decided too"
    );
    let again = [patch(9, &["a"], &[]), patch(10, &[], &["b"]), patch(11, &[], &["never-there"])];
    for w in again {
        assert_eq!(
            fixture.apply(&w),
            Outcome::Unchanged { version: v5 },
            "at most one extra write per tagging and epoch"
        );
    }
    let a = fixture.doc.live().next().expect("a");
    assert_eq!((a.at, a.user.as_str()), (T0, "ann"), "a stamp does not change who and when");
}

#[test]
fn a_replace_decides_every_tagging() {
    let mut fixture = Fixture::new();
    fixture.apply_written(&patch(1, &["a", "b"], &[]));
    fixture.apply_written(&patch(2, &[], &["gone"]));
    let (v, effect) = fixture.apply_written(&replace(3, &["c", "b"]));
    assert_eq!((names(&effect.added), names(&effect.removed)), (vec!["c"], vec!["a"]));
    assert_eq!((fixture.doc.absent_since, fixture.doc.last_conditional), (v, Version::NONE));
    assert!(
        fixture.doc.taggings.iter().all(|t| t.decided_at == v && t.present),
        "absent_since covers every tagging that is not listed"
    );
    assert_eq!(fixture.apply(&replace(4, &["b", "c"])), Outcome::Unchanged { version: v });

    fixture.epoch = epoch(9);
    let (v, effect) = fixture.apply_written(&replace(5, &["b", "c"]));
    assert_eq!(
        (effect, fixture.doc.absent_since),
        (Effect::default(), v),
        "the same set in a new epoch is decided again"
    );
    assert_eq!(fixture.apply(&replace(6, &["b", "c"])), Outcome::Unchanged { version: v });
    assert_eq!(
        fixture.apply(&patch(7, &[], &["any"])),
        Outcome::Unchanged { version: v },
        "absent_since decides absence"
    );
}

#[test]
fn a_conditional_write_decides_every_tagging() {
    let mut fixture = Fixture::new();
    let (seen, _) = fixture.apply_written(&patch(1, &["a", "b", "c"], &["gone"]));
    let conditional =
        |n, expected: Version, w: Write| Write { id: id(n), if_match: Some(expected.into()), ..w };
    let stale = Version::from_packed(seen.packed() - 1).expect("a version");
    let before = fixture.doc.clone();
    let refused = fixture.apply(&conditional(2, stale, patch(0, &["x"], &[])));
    assert_eq!(
        (refused, &fixture.doc),
        (Outcome::Refused(Refusal::VersionMismatch { current: seen }), &before)
    );
    let (v, effect) = fixture.apply_written(&conditional(3, seen, patch(0, &["d"], &["a"])));
    assert_eq!((names(&effect.added), names(&effect.removed)), (vec!["d"], vec!["a"]));
    assert_eq!((fixture.doc.absent_since, fixture.doc.last_conditional), (v, v));
    assert!(fixture.doc.taggings.iter().all(|t| t.decided_at == v && t.present));
    assert_eq!(live(&fixture.doc), ["b", "c", "d"]);

    let mut fresh = Fixture::new();
    let first = conditional(1, Version::NONE, replace(0, &["a"]));
    fresh.apply_written(&first);
    let second = conditional(2, Version::NONE, replace(0, &["b"]));
    let current = fresh.doc.version;
    assert_eq!(fresh.apply(&second), Outcome::Refused(Refusal::VersionMismatch { current }));
}

#[test]
fn the_limit_counts_what_would_be_there() {
    let mut fixture = Fixture::new();
    fixture.limits = LIMITS;
    fixture.apply_written(&patch(1, &["a", "b", "c", "d", "e"], &[]));
    let before = fixture.doc.clone();
    let refused = fixture.apply(&patch(2, &["f", "g"], &[]));
    assert_eq!(refused, Outcome::Refused(Refusal::TooManyTags { allowed: 6, given: 7 }));
    assert_eq!(fixture.doc, before);
    fixture.apply_written(&patch(3, &["f", "g"], &["a"]));
    assert_eq!(fixture.doc.live().count(), 6);
    fixture.limits.tags_per_content = 4;
    assert_eq!(
        fixture.apply(&patch(4, &["h"], &["b"])),
        Outcome::Refused(Refusal::TooManyTags { allowed: 4, given: 6 })
    );
    fixture.apply_written(&patch(5, &[], &["b"]));
    assert_eq!(
        fixture.doc.live().count(),
        5,
        "tags can be removed though a lowered limit is exceeded"
    );
}

#[test]
fn who_and_when_are_the_first_adders() {
    let mut fixture = Fixture::new();
    fixture.apply_written(&patch(1, &["Needs Review"], &[]));
    fixture.now += 1000;
    let ben = UserId::parse("ben").expect("a user");
    fixture.apply_written(&Write { user: ben.clone(), ..patch(2, &["NEEDS-REVIEW", "x"], &[]) });
    let seen: Vec<_> = fixture.doc.live().map(|t| (&*t.display, t.user.as_str(), t.at)).collect();
    assert_eq!(seen, [("Needs Review", "ann", T0), ("x", "ben", T0 + 1000)]);
    fixture.apply_written(&Write { user: ben.clone(), ..patch(3, &[], &["x"]) });
    let grave = fixture.doc.taggings.iter().find(|t| !t.present).expect("a tombstone");
    assert_eq!((grave.user.as_str(), grave.at), ("ben", T0 + 1000));
    let mut imported = tag("Old");
    imported.origin = Some(Origin { by: ben, at: 5 });
    fixture.apply_written(&write(
        4,
        Operation::patch(vec![imported], vec![], &fixture.limits).expect("a patch"),
    ));
    let old = fixture.doc.live().find(|t| t.name.as_str() == "old").expect("the imported tag");
    assert_eq!((old.user.as_str(), old.at), ("ben", 5));
}

#[test]
fn old_tombstones_go_and_raise_absent_since() {
    let mut fixture = Fixture::new();
    fixture.apply_written(&patch(1, &["a"], &["x"]));
    let (second, _) = fixture.apply_written(&patch(2, &[], &["y"]));
    fixture.now += TOMBSTONE_AGE_MS;
    fixture.apply_written(&patch(3, &["b"], &[]));
    assert_eq!(fixture.doc.taggings.len(), 4, "ten minutes are not over");
    assert_eq!(fixture.doc.absent_since, Version::NONE);
    let (fourth, _) = fixture.apply_written(&patch(4, &[], &["z"]));
    fixture.now += 1;
    let (fifth, _) = fixture.apply_written(&patch(5, &["c"], &[]));
    assert_eq!(
        fixture.doc.absent_since, second,
        "absent_since is the newest decision that was dropped"
    );
    assert_eq!(
        (fixture.decided_at("x"), fixture.decided_at("y"), fixture.decided_at("z")),
        (None, None, Some(fourth))
    );
    assert_eq!((fixture.decided_at("c"), live(&fixture.doc)), (Some(fifth), vec!["a", "b", "c"]));
}

#[test]
fn tombstones_are_bounded() {
    let mut fixture = Fixture::new();
    let mut versions = Vec::new();
    for n in 0..TOMBSTONES as u64 + 10 {
        let tag = format!("t{n}");
        fixture.apply_written(&patch(2 * n, &[&tag], &[]));
        versions.push(fixture.apply_written(&patch(2 * n + 1, &[], &[&tag])).0);
        assert!(fixture.doc.taggings.len() <= TOMBSTONES);
    }
    assert_eq!(fixture.doc.taggings.len(), TOMBSTONES);
    assert_eq!(fixture.doc.absent_since, versions[9], "the oldest ten were dropped");
}

#[test]
fn an_id_is_known_for_ten_minutes_behind_any_number_of_writes() {
    let mut fixture = Fixture::new();
    let mut answers = Vec::new();
    for n in 0..5 * RECENT_WRITES as u64 {
        let w = patch(n, &[&format!("t{n}")], &[]);
        answers.push((fixture.apply_written(&w), w));
        assert!(fixture.doc.recent.len() <= RECENT_WRITES);
        fixture.now += 1000;
    }
    fixture.now += WRITE_ID_MEMORY_MS - 1000 - answers.len() as i64 * 1000;
    fixture.apply_written(&patch(1000, &["later"], &[]));
    let before = fixture.doc.clone();
    for ((version, effect), w) in &answers {
        let repeated = Outcome::Repeated { version: *version, effect: effect.clone() };
        assert_eq!(fixture.apply(w), repeated);
        let other = Write { operation: replace(0, &["other"]).operation, ..w.clone() };
        assert_eq!(fixture.apply(&other), Outcome::Refused(Refusal::WriteIdReused));
    }
    assert_eq!(fixture.doc, before);
}

#[test]
fn every_outcome_of_a_keyed_write_is_remembered_and_makes_no_version() {
    let mut fixture = Fixture::new();
    fixture.limits = LIMITS;
    fixture.call = Some(Call::Patch);
    fixture.apply_written(&patch(1, &["a", "b", "c", "d", "e", "f"], &[]));
    let version = fixture.doc.version;
    let next = Version::from_packed(version.packed() + 1).expect("a version");
    let unchanged = patch(2, &["a"], &[]);
    let mismatch = Write { if_match: Some(next.into()), ..patch(3, &["z"], &["a"]) };
    let too_many = patch(4, &["z"], &[]);
    let refusals = [
        Refusal::VersionMismatch { current: version },
        Refusal::TooManyTags { allowed: 6, given: 7 },
    ];
    assert_eq!(fixture.apply(&unchanged), Outcome::Unchanged { version });
    assert_eq!(fixture.apply(&mismatch), Outcome::Refused(refusals[0]));
    assert_eq!(fixture.apply(&too_many), Outcome::Refused(refusals[1]));
    assert_eq!(fixture.doc.version, version, "remembering makes no version");
    assert_eq!(time::commit_time(&fixture.doc), T0);

    // After this each of them would be decided otherwise.
    fixture.apply_written(&patch(5, &[], &["a", "b"]));
    for n in 0..2 * RECENT_WRITES as u64 {
        fixture.now += 1000;
        let before = fixture.doc.clone();
        assert_eq!(
            fixture.apply(&unchanged),
            Outcome::Repeated { version, effect: Effect::default() }
        );
        assert_eq!(fixture.apply(&mismatch), Outcome::RefusedAgain(refusals[0]));
        assert_eq!(fixture.apply(&too_many), Outcome::RefusedAgain(refusals[1]));
        assert_eq!(fixture.doc, before, "a retry does nothing");
        // Nothing changes, and the ids above leave the document.
        fixture.apply(&patch(100 + n, &["c"], &[]));
        assert!(fixture.doc.recent.len() <= RECENT_WRITES);
    }
    assert_eq!(time::commit_time(&fixture.doc), T0, "the newest commit stays known");
    fixture.call = Some(Call::AddTag);
    let reused = Outcome::Refused(Refusal::WriteIdReused);
    assert_eq!(fixture.apply(&unchanged), reused, "the key is bound to its call");
}

#[test]
fn a_write_without_a_key_leaves_no_trace_when_it_changes_nothing() {
    let mut fixture = Fixture::new();
    fixture.apply_written(&patch(1, &["a"], &[]));
    let before = fixture.doc.clone();
    fixture.apply(&patch(2, &["a"], &[]));
    fixture.apply(&Write { if_match: Some(Version::NONE.into()), ..patch(3, &["z"], &[]) });
    assert_eq!(fixture.doc, before);
}

#[test]
fn a_key_that_was_remembered_without_its_call_is_known() {
    let mut fixture = Fixture::new();
    let write = patch(1, &["b", "a"], &["c"]);
    let (version, effect) = fixture.apply_written(&write);
    fixture.call = Some(Call::BatchItem);
    assert_eq!(fixture.apply(&write), Outcome::Repeated { version, effect });
}

#[test]
fn forgetting_is_bounded_too() {
    let mut fixture = Fixture::new();
    for n in 0..3 * RECENT_WRITES as u64 {
        fixture.apply_written(&patch(n, &[&format!("t{n}")], &[]));
    }
    assert_eq!(fixture.doc.overflow_until, T0 + WRITE_ID_MEMORY_MS);
    fixture.now += WRITE_ID_MEMORY_MS;
    fixture.apply_written(&patch(100, &["later"], &[]));
    assert_eq!(fixture.doc.overflow_until, 0, "the store need not look any more");
    assert_eq!(fixture.doc.recent.len(), 1, "old ids leave the document");
}

#[test]
fn a_clock_that_steps_back_forgets_nothing() {
    let mut fixture = Fixture::new();
    for n in 0..RECENT_WRITES as u64 + 1 {
        fixture.apply_written(&patch(n, &[&format!("t{n}")], &[]));
    }
    let until = fixture.doc.overflow_until;
    fixture.now -= 3_600_000;
    for n in 100..100 + 2 * RECENT_WRITES as u64 {
        fixture.apply_written(&patch(n, &[&format!("t{n}")], &[]));
    }
    assert!(fixture.doc.overflow_until >= until);
    assert!(matches!(fixture.apply(&patch(0, &["t0"], &[])), Outcome::Repeated { .. }));
}

#[derive(Debug, Clone)]
struct Step {
    operation: Operation,
    reuse: Option<u8>,
    conditional: u8,
    wait: i64,
    new_epoch: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    (
        any_operation(),
        prop::option::weighted(0.2, any::<u8>()),
        any::<u8>(),
        0..200_000i64,
        prop::bool::weighted(0.1),
    )
        .prop_map(|(operation, reuse, conditional, wait, new_epoch)| Step {
            operation,
            reuse,
            conditional,
            wait,
            new_epoch,
        })
}

proptest! {
    #![proptest_config(cases(200))]

    /// After every write: the limit, the order, the answers to retries and the bounds hold.
    #[test]
    fn every_sequence_keeps_the_rules(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut fixture = Fixture::new();
        fixture.limits = LIMITS;
        let mut done: Vec<(Write, UnixMillis, Version, Effect)> = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            fixture.now += step.wait;
            if step.new_epoch {
                fixture.epoch = epoch(n as u64 + 1);
            }
            let mut next = write(n as u64, step.operation);
            if step.conditional < 20 {
                next.if_match = Some(fixture.doc.version.into());
            } else if step.conditional < 25 {
                next.if_match = Some(Version::NONE.into());
            }
            let mut known = None;
            if let Some(back) = step.reuse.filter(|_| !done.is_empty()) {
                let (w, at, version, effect) = done[usize::from(back) % done.len()].clone();
                known = (fixture.now - at < WRITE_ID_MEMORY_MS).then_some(Outcome::Repeated { version, effect });
                next = w;
            }
            let before = fixture.doc.clone();
            let outcome = fixture.apply(&next);
            match (&outcome, known) {
                (_, Some(known)) => {
                    prop_assert_eq!(&outcome, &known, "a retry within ten minutes gets its first answer");
                    prop_assert_eq!(&fixture.doc, &before);
                }
                (Outcome::Written { version, effect, .. }, None) => {
                    prop_assert!(*version > before.version && *version >= fixture.epoch.first_version());
                    prop_assert_eq!(fixture.doc.version, *version);
                    let mut expected: Vec<&TagName> = before.live().map(|t| &t.name).collect();
                    for name in &effect.removed {
                        prop_assert!(expected.contains(&name));
                        expected.retain(|e| *e != name);
                    }
                    for name in &effect.added {
                        prop_assert!(!expected.contains(&name));
                        expected.push(name);
                    }
                    expected.sort();
                    prop_assert_eq!(fixture.doc.live().map(|t| &t.name).collect::<Vec<_>>(), expected);
                    let repeated = Outcome::Repeated { version: *version, effect: effect.clone() };
                    let after = fixture.doc.clone();
                    prop_assert_eq!(fixture.apply(&next), repeated, "the same write at once");
                    prop_assert_eq!(&fixture.doc, &after);
                    done.retain(|(w, ..)| w.id != next.id);
                    done.push((next.clone(), fixture.now, *version, effect.clone()));
                }
                (Outcome::Unchanged { version }, None) => {
                    prop_assert_eq!(*version, before.version);
                    prop_assert_eq!(&fixture.doc, &before);
                }
                (Outcome::Refused(_) | Outcome::RefusedAgain(_) | Outcome::Repeated { .. }, None) => prop_assert_eq!(&fixture.doc, &before),
            }
            let doc = &fixture.doc;
            prop_assert!(doc.live().count() <= LIMITS.tags_per_content);
            prop_assert!(doc.taggings.windows(2).all(|w| w[0].name < w[1].name), "sorted, no tag twice");
            prop_assert!(doc.taggings.iter().all(|t| t.decided_at <= doc.version));
            prop_assert!(doc.taggings.iter().filter(|t| !t.present).all(|t| t.decided_at > doc.absent_since));
            prop_assert!(doc.absent_since <= doc.version && doc.last_conditional <= doc.version && doc.absent_since >= before.absent_since);
            prop_assert!(doc.recent.len() <= RECENT_WRITES);
            prop_assert!(doc.taggings.iter().filter(|t| !t.present).count() <= TOMBSTONES);
            // A decision never gets older: not in the list, not when it moves into `absent_since`.
            for was in &before.taggings {
                let now = fixture.decided_at(was.name.as_str()).unwrap_or(doc.absent_since);
                prop_assert!(now >= was.decided_at, "{} was decided at {}, now at {}", was.name, was.decided_at, now);
            }
            if matches!(outcome, Outcome::Written { .. }) {
                let decided = |n: &TagName| fixture.decided_at(n.as_str()).unwrap_or(doc.absent_since) == doc.version;
                match &next.operation {
                    Operation::Patch { add, remove } => {
                        prop_assert!(add.iter().all(|t| decided(&t.name)) && remove.iter().all(decided));
                    }
                    Operation::Replace { .. } => prop_assert_eq!(doc.absent_since, doc.version),
                }
                if next.if_match.is_some() {
                    prop_assert!(doc.absent_since == doc.version && doc.last_conditional == doc.version);
                }
            }
            prop_assert_eq!(codec::decode(&codec::encode(doc)), Ok(doc.clone()));
        }
        let unseen = name("unseen");
        prop_assert!(fixture.doc.live().all(|t| t.name != unseen));
    }
}
