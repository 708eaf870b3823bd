//! The one function that changes a document.

use std::collections::HashMap;

use proptest::prelude::*;
use tagfast_domain::limits::{RECENT_WRITES, TOMBSTONE_AGE_MS, TOMBSTONES, WRITE_ID_MEMORY_MS};
use tagfast_domain::*;

use crate::kit::{
    LIMITS, T0, any_operation, cases, epoch, id, live, name, patch, replace, tag, write,
};

/// A document with its clock, its epoch and a store's `applied` table.
struct Desk {
    doc: Document,
    epoch: Epoch,
    now: UnixMillis,
    limits: Limits,
    applied: HashMap<WriteId, RecentWrite>,
}

impl Desk {
    fn new() -> Self {
        Self {
            doc: Document::default(),
            epoch: epoch(0),
            now: T0,
            limits: Limits::default(),
            applied: HashMap::new(),
        }
    }

    fn apply(&mut self, write: &Write) -> Outcome {
        let prior =
            self.applied.get(&write.id).filter(|_| self.doc.overflow_until > self.now).cloned();
        let context = ApplyContext { epoch: &self.epoch, now: self.now, limits: &self.limits };
        let outcome = apply(&mut self.doc, write, prior.as_ref(), &context);
        if let Outcome::Written { evicted, .. } = &outcome {
            self.applied.extend(evicted.iter().map(|w| (w.id, w.clone())));
        }
        outcome
    }

    fn written(&mut self, write: &Write) -> (Version, Effect) {
        match self.apply(write) {
            Outcome::Written { version, effect, .. } => (version, effect),
            other
            @ (Outcome::Unchanged { .. } | Outcome::Repeated { .. } | Outcome::Refused(_)) => {
                panic!("{write:?} must be written: {other:?}")
            }
        }
    }

    fn ord(&self, tag: &str) -> Option<Version> {
        self.doc.taggings.iter().find(|t| t.name.as_str() == tag).map(|t| t.ord)
    }
}

fn names(names: &[TagName]) -> Vec<&str> {
    names.iter().map(TagName::as_str).collect()
}

#[test]
fn adds_and_removes_say_what_they_did() {
    let mut desk = Desk::new();
    let (v1, effect) = desk.written(&patch(1, &["b", "a"], &[]));
    assert_eq!((v1, names(&effect.added)), (desk.epoch.first_version(), vec!["b", "a"]));
    let (v2, effect) = desk.written(&patch(2, &["c", "a"], &["b", "z"]));
    assert_eq!((names(&effect.added), names(&effect.removed)), (vec!["c"], vec!["b"]));
    assert_eq!(v2.packed(), v1.packed() + 1);
    assert_eq!(live(&desk.doc), ["a", "c"]);
    assert_eq!(
        (desk.ord("a"), desk.ord("b"), desk.ord("c")),
        (Some(v2), Some(v2), Some(v2)),
        "all listed are decided"
    );
    assert_eq!(desk.doc.floor, Version::NONE, "a patch decides its listed taggings only");
}

#[test]
fn a_no_op_is_free_in_its_epoch_and_stamped_once_in_the_next() {
    let mut desk = Desk::new();
    let (v1, _) = desk.written(&patch(1, &["a", "b"], &[]));
    desk.written(&patch(2, &[], &["b"]));
    let before = desk.doc.clone();
    for w in [patch(3, &["a"], &[]), patch(4, &[], &["b"]), patch(5, &["a"], &["b"])] {
        assert_eq!(desk.apply(&w), Outcome::Unchanged { version: before.version });
    }
    assert_eq!(desk.doc, before, "a free no-op leaves the document alone");

    desk.epoch = epoch(50);
    let (v3, effect) = desk.written(&patch(6, &["a"], &[]));
    assert_eq!((effect, v3), (Effect::default(), desk.epoch.first_version()));
    assert_eq!(
        (desk.ord("a"), desk.ord("b")),
        (Some(v3), before.taggings.iter().find(|t| !t.present).map(|t| t.ord))
    );
    assert!(v3 > v1);
    let (v4, _) = desk.written(&patch(7, &[], &["b"]));
    let (v5, _) = desk.written(&patch(8, &[], &["never-there"]));
    assert_eq!(
        (desk.ord("b"), desk.ord("never-there")),
        (Some(v4), Some(v5)),
        "absence is decided too"
    );
    let again = [patch(9, &["a"], &[]), patch(10, &[], &["b"]), patch(11, &[], &["never-there"])];
    for w in again {
        assert_eq!(
            desk.apply(&w),
            Outcome::Unchanged { version: v5 },
            "at most one extra write per tagging and epoch"
        );
    }
    let a = desk.doc.live().next().expect("a");
    assert_eq!((a.at, a.user.as_str()), (T0, "ann"), "a stamp does not change who and when");
}

#[test]
fn a_replace_decides_every_tagging() {
    let mut desk = Desk::new();
    desk.written(&patch(1, &["a", "b"], &[]));
    desk.written(&patch(2, &[], &["gone"]));
    let (v, effect) = desk.written(&replace(3, &["c", "b"]));
    assert_eq!((names(&effect.added), names(&effect.removed)), (vec!["c"], vec!["a"]));
    assert_eq!((desk.doc.floor, desk.doc.cond), (v, Version::NONE));
    assert!(
        desk.doc.taggings.iter().all(|t| t.ord == v && t.present),
        "the floor says what is absent"
    );
    assert_eq!(desk.apply(&replace(4, &["b", "c"])), Outcome::Unchanged { version: v });

    desk.epoch = epoch(9);
    let (v, effect) = desk.written(&replace(5, &["b", "c"]));
    assert_eq!(
        (effect, desk.doc.floor),
        (Effect::default(), v),
        "the same set in a new epoch is decided anew"
    );
    assert_eq!(desk.apply(&replace(6, &["b", "c"])), Outcome::Unchanged { version: v });
    assert_eq!(
        desk.apply(&patch(7, &[], &["any"])),
        Outcome::Unchanged { version: v },
        "the floor decides absence"
    );
}

#[test]
fn a_conditional_write_decides_every_tagging() {
    let mut desk = Desk::new();
    let (seen, _) = desk.written(&patch(1, &["a", "b", "c"], &["gone"]));
    let conditional = |n, expected, w: Write| Write { id: id(n), if_match: Some(expected), ..w };
    let stale = Version::from_packed(seen.packed() - 1).expect("a version");
    let before = desk.doc.clone();
    let refused = desk.apply(&conditional(2, stale, patch(0, &["x"], &[])));
    assert_eq!(
        (refused, &desk.doc),
        (Outcome::Refused(Refusal::VersionMismatch { current: seen }), &before)
    );
    let (v, effect) = desk.written(&conditional(3, seen, patch(0, &["d"], &["a"])));
    assert_eq!((names(&effect.added), names(&effect.removed)), (vec!["d"], vec!["a"]));
    assert_eq!((desk.doc.floor, desk.doc.cond), (v, v));
    assert!(desk.doc.taggings.iter().all(|t| t.ord == v && t.present));
    assert_eq!(live(&desk.doc), ["b", "c", "d"]);

    let mut fresh = Desk::new();
    let first = conditional(1, Version::NONE, replace(0, &["a"]));
    fresh.written(&first);
    let second = conditional(2, Version::NONE, replace(0, &["b"]));
    let current = fresh.doc.version;
    assert_eq!(fresh.apply(&second), Outcome::Refused(Refusal::VersionMismatch { current }));
}

#[test]
fn the_limit_counts_what_would_be_there() {
    let mut desk = Desk::new();
    desk.limits = LIMITS;
    desk.written(&patch(1, &["a", "b", "c", "d", "e"], &[]));
    let before = desk.doc.clone();
    let refused = desk.apply(&patch(2, &["f", "g"], &[]));
    assert_eq!(refused, Outcome::Refused(Refusal::TooManyTags { allowed: 6, given: 7 }));
    assert_eq!(desk.doc, before);
    desk.written(&patch(3, &["f", "g"], &["a"]));
    assert_eq!(desk.doc.live().count(), 6);
    desk.limits.tags_per_content = 4;
    assert_eq!(
        desk.apply(&patch(4, &["h"], &["b"])),
        Outcome::Refused(Refusal::TooManyTags { allowed: 4, given: 6 })
    );
    desk.written(&patch(5, &[], &["b"]));
    assert_eq!(
        desk.doc.live().count(),
        5,
        "tags can be removed though a lowered limit is exceeded"
    );
}

#[test]
fn who_and_when_are_the_first_adders() {
    let mut desk = Desk::new();
    desk.written(&patch(1, &["Needs Review"], &[]));
    desk.now += 1000;
    let ben = UserId::parse("ben").expect("a user");
    desk.written(&Write { user: ben.clone(), ..patch(2, &["NEEDS-REVIEW", "x"], &[]) });
    let seen: Vec<_> = desk.doc.live().map(|t| (&*t.display, t.user.as_str(), t.at)).collect();
    assert_eq!(seen, [("Needs Review", "ann", T0), ("x", "ben", T0 + 1000)]);
    desk.written(&Write { user: ben.clone(), ..patch(3, &[], &["x"]) });
    let grave = desk.doc.taggings.iter().find(|t| !t.present).expect("a tombstone");
    assert_eq!((grave.user.as_str(), grave.at), ("ben", T0 + 1000));
    let mut imported = tag("Old");
    imported.origin = Some(Origin { by: ben, at: 5 });
    desk.written(&write(
        4,
        Operation::patch(vec![imported], vec![], &desk.limits).expect("a patch"),
    ));
    let old = desk.doc.live().find(|t| t.name.as_str() == "old").expect("the imported tag");
    assert_eq!((old.user.as_str(), old.at), ("ben", 5));
}

#[test]
fn old_tombstones_go_and_raise_the_floor() {
    let mut desk = Desk::new();
    desk.written(&patch(1, &["a"], &["x"]));
    let (second, _) = desk.written(&patch(2, &[], &["y"]));
    desk.now += TOMBSTONE_AGE_MS;
    desk.written(&patch(3, &["b"], &[]));
    assert_eq!(desk.doc.taggings.len(), 4, "ten minutes are not over");
    assert_eq!(desk.doc.floor, Version::NONE);
    let (fourth, _) = desk.written(&patch(4, &[], &["z"]));
    desk.now += 1;
    let (fifth, _) = desk.written(&patch(5, &["c"], &[]));
    assert_eq!(desk.doc.floor, second, "the floor is the newest decision that was dropped");
    assert_eq!((desk.ord("x"), desk.ord("y"), desk.ord("z")), (None, None, Some(fourth)));
    assert_eq!((desk.ord("c"), live(&desk.doc)), (Some(fifth), vec!["a", "b", "c"]));
}

#[test]
fn tombstones_are_bounded() {
    let mut desk = Desk::new();
    let mut versions = Vec::new();
    for n in 0..TOMBSTONES as u64 + 10 {
        let tag = format!("t{n}");
        desk.written(&patch(2 * n, &[&tag], &[]));
        versions.push(desk.written(&patch(2 * n + 1, &[], &[&tag])).0);
        assert!(desk.doc.taggings.len() <= TOMBSTONES);
    }
    assert_eq!(desk.doc.taggings.len(), TOMBSTONES);
    assert_eq!(desk.doc.floor, versions[9], "the oldest ten were dropped");
}

#[test]
fn an_id_is_known_for_ten_minutes_behind_any_number_of_writes() {
    let mut desk = Desk::new();
    let mut answers = Vec::new();
    for n in 0..5 * RECENT_WRITES as u64 {
        let w = patch(n, &[&format!("t{n}")], &[]);
        answers.push((desk.written(&w), w));
        assert!(desk.doc.recent.len() <= RECENT_WRITES);
        desk.now += 1000;
    }
    desk.now += WRITE_ID_MEMORY_MS - 1000 - answers.len() as i64 * 1000;
    desk.written(&patch(1000, &["later"], &[]));
    let before = desk.doc.clone();
    for ((version, effect), w) in &answers {
        let repeated = Outcome::Repeated { version: *version, effect: effect.clone() };
        assert_eq!(desk.apply(w), repeated);
        let other = Write { operation: replace(0, &["other"]).operation, ..w.clone() };
        assert_eq!(desk.apply(&other), Outcome::Refused(Refusal::WriteIdReused));
    }
    assert_eq!(desk.doc, before);
}

#[test]
fn forgetting_is_bounded_too() {
    let mut desk = Desk::new();
    for n in 0..3 * RECENT_WRITES as u64 {
        desk.written(&patch(n, &[&format!("t{n}")], &[]));
    }
    assert_eq!(desk.doc.overflow_until, T0 + WRITE_ID_MEMORY_MS);
    desk.now += WRITE_ID_MEMORY_MS;
    desk.written(&patch(100, &["later"], &[]));
    assert_eq!(desk.doc.overflow_until, 0, "the store need not look any more");
    assert_eq!(desk.doc.recent.len(), 1, "old ids leave the document");
}

#[test]
fn a_clock_that_steps_back_forgets_nothing() {
    let mut desk = Desk::new();
    for n in 0..RECENT_WRITES as u64 + 1 {
        desk.written(&patch(n, &[&format!("t{n}")], &[]));
    }
    let until = desk.doc.overflow_until;
    desk.now -= 3_600_000;
    for n in 100..100 + 2 * RECENT_WRITES as u64 {
        desk.written(&patch(n, &[&format!("t{n}")], &[]));
    }
    assert!(desk.doc.overflow_until >= until);
    assert!(matches!(desk.apply(&patch(0, &["t0"], &[])), Outcome::Repeated { .. }));
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

    /// Whatever is written: the limit, the order, the answers to retries, the memory.
    #[test]
    fn every_sequence_keeps_the_rules(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut desk = Desk::new();
        desk.limits = LIMITS;
        let mut done: Vec<(Write, UnixMillis, Version, Effect)> = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            desk.now += step.wait;
            if step.new_epoch {
                desk.epoch = epoch(n as u64 + 1);
            }
            let mut next = write(n as u64, step.operation);
            if step.conditional < 20 {
                next.if_match = Some(desk.doc.version);
            } else if step.conditional < 25 {
                next.if_match = Some(Version::NONE);
            }
            let mut known = None;
            if let Some(back) = step.reuse.filter(|_| !done.is_empty()) {
                let (w, at, version, effect) = done[usize::from(back) % done.len()].clone();
                known = (desk.now - at < WRITE_ID_MEMORY_MS).then_some(Outcome::Repeated { version, effect });
                next = w;
            }
            let before = desk.doc.clone();
            let outcome = desk.apply(&next);
            match (&outcome, known) {
                (_, Some(known)) => {
                    prop_assert_eq!(&outcome, &known, "a retry within ten minutes gets its first answer");
                    prop_assert_eq!(&desk.doc, &before);
                }
                (Outcome::Written { version, effect, .. }, None) => {
                    prop_assert!(*version > before.version && *version >= desk.epoch.first_version());
                    prop_assert_eq!(desk.doc.version, *version);
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
                    prop_assert_eq!(desk.doc.live().map(|t| &t.name).collect::<Vec<_>>(), expected);
                    let repeated = Outcome::Repeated { version: *version, effect: effect.clone() };
                    let after = desk.doc.clone();
                    prop_assert_eq!(desk.apply(&next), repeated, "the same write at once");
                    prop_assert_eq!(&desk.doc, &after);
                    done.retain(|(w, ..)| w.id != next.id);
                    done.push((next.clone(), desk.now, *version, effect.clone()));
                }
                (Outcome::Unchanged { version }, None) => {
                    prop_assert_eq!(*version, before.version);
                    prop_assert_eq!(&desk.doc, &before);
                }
                (Outcome::Refused(_) | Outcome::Repeated { .. }, None) => prop_assert_eq!(&desk.doc, &before),
            }
            let doc = &desk.doc;
            prop_assert!(doc.live().count() <= LIMITS.tags_per_content);
            prop_assert!(doc.taggings.windows(2).all(|w| w[0].name < w[1].name), "sorted, no tag twice");
            prop_assert!(doc.taggings.iter().all(|t| t.ord <= doc.version));
            prop_assert!(doc.taggings.iter().filter(|t| !t.present).all(|t| t.ord > doc.floor));
            prop_assert!(doc.floor <= doc.version && doc.cond <= doc.version && doc.floor >= before.floor);
            prop_assert!(doc.recent.len() <= RECENT_WRITES);
            prop_assert!(doc.taggings.iter().filter(|t| !t.present).count() <= TOMBSTONES);
            // A decision never gets older: not in the list, not when it moves into the floor.
            for was in &before.taggings {
                let now = desk.ord(was.name.as_str()).unwrap_or(doc.floor);
                prop_assert!(now >= was.ord, "{} was decided at {}, now at {}", was.name, was.ord, now);
            }
            if matches!(outcome, Outcome::Written { .. }) {
                let decided = |n: &TagName| desk.ord(n.as_str()).unwrap_or(doc.floor) == doc.version;
                match &next.operation {
                    Operation::Patch { add, remove } => {
                        prop_assert!(add.iter().all(|t| decided(&t.name)) && remove.iter().all(decided));
                    }
                    Operation::Replace { .. } => prop_assert_eq!(doc.floor, doc.version),
                }
                if next.if_match.is_some() {
                    prop_assert!(doc.floor == doc.version && doc.cond == doc.version);
                }
            }
            prop_assert_eq!(codec::decode(&codec::encode(doc)), Ok(doc.clone()));
        }
        let unseen = name("unseen");
        prop_assert!(desk.doc.live().all(|t| t.name != unseen));
    }
}
