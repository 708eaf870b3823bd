//! `join`, which brings what a failover lost back into the current history.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tagfast_domain::limits::{RECENT_WRITES, TOMBSTONE_AGE_MS, TOMBSTONES};
use tagfast_domain::*;

use crate::support::{T0, any_operation, cases, epoch, id, live, name, patch, replace, write};

/// One line of history of a content. Clones of it are forks.
#[derive(Debug, Clone)]
struct History {
    doc: Document,
    epoch: Epoch,
    now: UnixMillis,
    limits: Limits,
    /// Each write that made a version.
    written: Vec<(Version, Write)>,
}

impl History {
    fn new() -> Self {
        let limits = Limits::default();
        Self { doc: Document::default(), epoch: epoch(1), now: T0, limits, written: Vec::new() }
    }

    /// A fork of this history that goes on in a later epoch.
    fn fork(&self, ordinal: u64) -> Self {
        Self { epoch: epoch(ordinal), ..self.clone() }
    }

    fn apply(&mut self, write: &Write) -> Outcome {
        let context =
            ApplyContext { epoch: &self.epoch, now: self.now, limits: &self.limits, call: None };
        let outcome = apply(&mut self.doc, write, None, &context);
        if let Outcome::Written { version, .. } = outcome {
            self.written.push((version, write.clone()));
        }
        outcome
    }

    /// Applies writes that must succeed.
    fn with(mut self, writes: &[Write]) -> Self {
        for write in writes {
            let outcome = self.apply(write);
            let is_success = matches!(outcome, Outcome::Written { .. } | Outcome::Unchanged { .. });
            assert!(is_success, "{write:?}: {outcome:?}");
        }
        self
    }

    fn join(&mut self, lost: &Document, writes: &[(WriteId, Version)]) -> Joined {
        let context = JoinContext { epoch: &self.epoch, now: self.now, limits: &self.limits };
        let (before, version) = (self.doc.clone(), self.doc.version);
        let joined = join(&mut self.doc, lost, writes, &context);
        if joined.changed {
            assert!(self.doc.version > version && self.doc.version >= self.epoch.first_version());
        } else {
            assert_eq!(self.doc, before, "an unchanged document is untouched");
        }
        let tags = |doc: &Document| live(doc).iter().map(|s| name(s)).collect::<BTreeSet<_>>();
        let (old, new) = (tags(&before), tags(&self.doc));
        assert_eq!(joined.added, new.difference(&old).cloned().collect::<Vec<_>>());
        assert_eq!(joined.removed, old.difference(&new).cloned().collect::<Vec<_>>());
        joined
    }

    /// Joins a different history, and tells the fate of its last write.
    fn join_last(&mut self, lost: &History) -> JoinFate {
        let (version, write) = lost.written.last().expect("a lost write");
        let joined = self.join(&lost.doc, &[(write.id, *version)]);
        joined.fates.iter().find(|(id, _)| *id == write.id).expect("a fate").1
    }
}

fn if_match(history: &History, write: Write) -> Write {
    Write { if_match: Some(history.doc.version.into()), ..write }
}

/// What a document says of each tagging, and of the writes.
fn decisions(doc: &Document) -> (Vec<(String, Version, bool)>, Version, BTreeSet<WriteId>) {
    let of = |n: u8| {
        let name = name(&format!("t{n}"));
        let listed = doc.taggings.iter().find(|t| t.name == name);
        let (at, present) = listed.map_or((doc.absent_since, false), |t| (t.decided_at, t.present));
        (name.as_str().to_owned(), at, present)
    };
    let ids = doc.recent.iter().map(|w| w.id).collect();
    ((0..10).map(of).collect(), doc.last_conditional, ids)
}

#[test]
fn a_lost_add_comes_back_as_it_was() {
    let base = History::new().with(&[patch(1, &["a"], &[])]);
    let lost = base.clone().with(&[patch(2, &["B"], &[])]);
    let mut current = base.fork(2).with(&[patch(3, &["c"], &[])]);
    let joined = current.join(&lost.doc, &[(id(2), lost.doc.version)]);
    assert_eq!((joined.changed, joined.fates), (true, vec![(id(2), JoinFate::Repaired)]));
    assert_eq!(live(&current.doc), ["a", "b", "c"]);
    let tagging = current.doc.live().find(|t| t.name == name("b")).expect("b");
    assert_eq!((&*tagging.display, tagging.decided_at), ("B", lost.doc.version));
    let again = current.join(&lost.doc, &[(id(2), lost.doc.version)]);
    assert_eq!((again.changed, again.fates), (false, vec![(id(2), JoinFate::Kept)]));
}

#[test]
fn a_retry_of_a_repaired_write_gets_its_first_answer() {
    let base = History::new();
    let lost = base.clone().with(&[patch(2, &["b"], &[])]);
    let mut current = base.fork(2);
    current.join(&lost.doc, &[]);
    assert!(matches!(current.apply(&patch(2, &["b"], &[])), Outcome::Repeated { .. }));
}

/// X3: a join that gave the add a version of its own would make the remove look older.
#[test]
fn of_two_lost_writes_the_later_one_wins_in_any_order_of_repair() {
    let base = History::new();
    let add = base.clone().with(&[patch(1, &["t"], &[])]);
    let remove = add.clone().with(&[patch(2, &[], &["t"])]);
    for order in [[&add, &remove], [&remove, &add]] {
        let mut current = base.fork(2);
        for lost in order {
            current.join(&lost.doc, &[]);
        }
        assert_eq!(live(&current.doc), [""; 0], "the remove was acknowledged last");
    }
}

/// X11: without the stamp the repair undoes what the second client was told.
#[test]
fn a_lost_remove_does_not_overrule_a_later_confirmation() {
    let base = History::new().with(&[patch(1, &["t"], &[])]);
    let lost = base.clone().with(&[patch(2, &[], &["t"])]);
    let mut current = base.fork(2).with(&[patch(3, &["t"], &[])]);
    assert_eq!(current.join_last(&lost), JoinFate::Superseded);
    assert_eq!(live(&current.doc), ["t"]);
}

/// X13: a replaced set stays replaced, also for tags that it did not see.
#[test]
fn a_lost_add_does_not_enter_a_set_that_was_replaced_later() {
    let base = History::new().with(&[patch(1, &["x"], &[])]);
    let lost = base.clone().with(&[patch(2, &["z"], &[])]);
    let mut current = base.fork(2).with(&[replace(3, &["y"])]);
    assert_eq!(current.join_last(&lost), JoinFate::Superseded);
    assert_eq!(live(&current.doc), ["y"]);
}

/// X13: the remove that the replaced set stood on is lost, and no process remembers it.
#[test]
fn a_lost_set_replaces_the_tags_that_it_did_not_see() {
    let base = History::new().with(&[patch(1, &["x"], &[])]);
    let lost = base.clone().with(&[patch(2, &[], &["x"]), replace(3, &["y"])]);
    let mut current = base.fork(2);
    assert_eq!(current.join_last(&lost), JoinFate::Repaired);
    assert_eq!(live(&current.doc), ["y"]);
}

#[test]
fn a_document_brings_the_writes_that_it_stands_on() {
    let base = History::new();
    let lost = base.clone().with(&[patch(1, &["a"], &[]), patch(2, &["b"], &[])]);
    let mut current = base.fork(2);
    let fates = current.join(&lost.doc, &[(id(2), lost.doc.version)]).fates;
    assert_eq!(fates, [(id(2), JoinFate::Repaired), (id(1), JoinFate::Repaired)]);
}

#[test]
fn a_write_that_changed_nothing_counts_by_what_it_stands_for() {
    let base = History::new().with(&[patch(1, &["a"], &[])]);
    let lost = base.clone().with(&[patch(2, &["b"], &[])]);
    let found = lost.doc.version;
    let fate = |current: &mut History, lost: &History| {
        current.join(&lost.doc, &[(id(9), lost.doc.version)]).fates[0].1
    };
    assert_eq!(fate(&mut base.fork(2), &lost), JoinFate::Repaired);
    assert_eq!(fate(&mut base.fork(2), &base), JoinFate::Kept, "nothing that it saw was lost");
    let mut current = base.fork(2).with(&[replace(3, &["c"])]);
    assert_eq!(fate(&mut current, &lost), JoinFate::Superseded);
    let mut full = base.fork(2);
    full.limits.tags_per_content = 1;
    let fates = full.join(&lost.doc, &[(id(9), found)]).fates;
    assert_eq!(fates, [(id(9), JoinFate::Limit), (id(2), JoinFate::Limit)]);
}

#[test]
fn an_add_that_does_not_fit_is_dropped_for_good() {
    let base = History::new().with(&[patch(1, &["a"], &[])]);
    let lost = base.clone().with(&[patch(2, &["b"], &[]), patch(3, &["c"], &["a"])]);
    let mut current = base.fork(2).with(&[patch(4, &["d"], &[])]);
    current.limits.tags_per_content = 2;
    let fates = current.join(&lost.doc, &[]).fates;
    assert_eq!(live(&current.doc), ["b", "d"], "the remove of a makes room for the older add");
    assert_eq!(fates, [(id(2), JoinFate::Repaired), (id(3), JoinFate::Limit)]);
    current = current.with(&[patch(5, &[], &["d"])]);
    assert!(!current.join(&lost.doc, &[]).changed, "there is room now, but it was listed as lost");
    assert_eq!(live(&current.doc), ["b"]);
    // A process that holds the write, and whose id the first join did not remember.
    current.doc.recent.clear();
    let fates = current.join(&lost.doc, &[(id(3), lost.doc.version)]).fates;
    assert_eq!(fates[0], (id(3), JoinFate::Limit));
}

#[test]
fn a_dropped_add_stays_dropped_after_its_tombstone_is_gone() {
    let lost = History::new().with(&[patch(1, &["a"], &[]), patch(2, &["b"], &[])]);
    let mut current = History::new().fork(2);
    current.limits.tags_per_content = 1;
    current.join(&lost.doc, &[]);
    current.now += TOMBSTONE_AGE_MS + 1;
    current = current.with(&[patch(3, &[], &["a"]), patch(4, &["x"], &[]), patch(5, &[], &["x"])]);
    assert!(current.doc.taggings.iter().all(|t| t.name != name("b")), "pruned");
    current.join(&lost.doc, &[]);
    assert_eq!(live(&current.doc), [""; 0]);
}

#[test]
fn a_decision_that_pruned_tombstones_overrule_is_not_repaired_silently() {
    let base = History::new().with(&[patch(1, &["z"], &[])]);
    let lost = base.clone().with(&[patch(2, &["b"], &[])]);
    let mut current = base.fork(2);
    for n in 0..=TOMBSTONES {
        let tag = format!("x{n}");
        let tag = tag.as_str();
        let number = 100 + 2 * n as u64;
        current = current.with(&[patch(number, &[tag], &[]), patch(number + 1, &[], &[tag])]);
    }
    assert!(current.doc.absent_since > lost.doc.version);
    assert_eq!(current.join_last(&lost), JoinFate::Limit, "no write has removed b");
}

#[test]
fn of_two_conditional_writes_on_one_version_one_is_lost() {
    let base = History::new().with(&[patch(1, &["a"], &[])]);
    let lost = base.clone().with(&[if_match(&base, patch(2, &["b"], &[]))]);
    let mut current = base.fork(2).with(&[if_match(&base, patch(3, &["c"], &[]))]);
    assert_eq!(current.join_last(&lost), JoinFate::Conflict);
    assert_eq!(live(&current.doc), ["a", "c"]);
    // An unconditional write that a conditional one overruled without seeing it.
    let lost = base.clone().with(&[patch(4, &["d"], &[])]);
    assert_eq!(current.join_last(&lost), JoinFate::Conflict);
}

#[test]
fn of_two_lost_conditional_writes_on_one_version_one_is_lost_in_any_order() {
    let base = History::new().with(&[patch(1, &["a"], &[])]);
    let first = base.clone().with(&[if_match(&base, patch(2, &["b"], &[]))]);
    let second = base.fork(2).with(&[if_match(&base, patch(3, &["c"], &[]))]);
    for order in [[&first, &second], [&second, &first]] {
        let mut current = base.fork(3);
        let fates = order.map(|lost| current.join_last(lost));
        assert_eq!(fates, [JoinFate::Repaired, JoinFate::Conflict]);
    }
}

#[test]
fn a_conditional_write_that_saw_the_others_is_no_conflict() {
    let base = History::new().with(&[patch(1, &["a"], &[])]);
    let lost = base.clone().with(&[patch(2, &["b"], &[])]);
    let lost = lost.clone().with(&[if_match(&lost, patch(3, &[], &["a"]))]);
    let mut current = base.fork(2);
    let fates = current.join(&lost.doc, &[]).fates;
    assert_eq!(fates, [(id(2), JoinFate::Repaired), (id(3), JoinFate::Repaired)]);
    // A different process holds only the first of them, and its id is no longer remembered.
    current.doc.recent.retain(|w| w.id != id(2));
    assert_ne!(current.join_last(&base.with(&[patch(2, &["b"], &[])])), JoinFate::Conflict);
    // Unconditional writes of the current history come after it.
    let other = History::new().with(&[patch(1, &["a"], &[])]);
    let lost = other.clone().with(&[if_match(&other, patch(4, &["b"], &[]))]);
    let mut current = other.fork(2).with(&[patch(5, &["c"], &["b"])]);
    assert_eq!(current.join_last(&lost), JoinFate::Repaired, "a was confirmed by it");
    assert_eq!(live(&current.doc), ["a", "c"]);
}

#[test]
fn more_ids_than_a_document_keeps_go_to_the_store() {
    let mut lost = History::new();
    let mut current = History::new().fork(2);
    for n in 0..RECENT_WRITES as u64 {
        lost = lost.with(&[patch(n, &[&format!("a{n}")], &[])]);
        current = current.with(&[patch(100 + n, &[&format!("b{n}")], &[])]);
    }
    let joined = current.join(&lost.doc, &[]);
    assert_eq!(current.doc.recent.len(), RECENT_WRITES);
    let evicted: Vec<WriteId> = joined.evicted.iter().map(|w| w.id).collect();
    assert_eq!(evicted, (0..RECENT_WRITES as u64).map(id).collect::<Vec<_>>(), "the oldest");
    assert!(current.doc.overflow_until > current.now, "the store must look them up");
}

/// A step of a history: an operation, whether it is conditional, and the time since the last one.
type Step = (Operation, bool, i64);

fn any_steps(count: usize, gap_ms: i64, conditional: f64) -> impl Strategy<Value = Vec<Step>> {
    let is_conditional = prop::bool::weighted(conditional);
    prop::collection::vec((any_operation(), is_conditional, 0..gap_ms), 0..count)
}

fn run(mut history: History, steps: &[Step], first_id: u64) -> History {
    for ((operation, is_conditional, gap), n) in steps.iter().zip(first_id..) {
        history.now += gap;
        let one = write(n, operation.clone());
        let one = if *is_conditional { if_match(&history, one) } else { one };
        history.apply(&one);
    }
    history
}

/// Base with long gaps, so that tombstones were pruned; then forks of less than ten minutes: the
/// epoch that goes on as a zombie, and two later ones. `conditional`: the share of such writes in
/// the base and in each fork.
fn any_forks(conditional: [f64; 4]) -> impl Strategy<Value = (History, [History; 3])> {
    let [base, first, second, third] = conditional;
    let fork = |share| any_steps(8, 20_000, share);
    (any_steps(16, 400_000, base), fork(first), fork(second), fork(third)).prop_map(
        |(base, first, second, third)| {
            let base = run(History::new(), &base, 1000);
            let zombie = run(base.clone(), &first, 2000);
            let lost = run(base.fork(2), &second, 3000);
            let current = run(base.fork(3), &third, 4000);
            let mut forks = [zombie, lost, current];
            let now = forks.iter().map(|h| h.now).max().unwrap_or(T0);
            forks.iter_mut().for_each(|h| h.now = now);
            (base, forks)
        },
    )
}

fn joined(into: &History, lost: &[&History]) -> History {
    let mut result = into.clone();
    result.epoch = epoch(4);
    for one in lost {
        result.join(&one.doc, &[]);
    }
    result
}

proptest! {
    #![proptest_config(cases(300))]

    /// A conditional write of a later epoch overrules by what it did not see: there the order
    /// decides which of the two is lost, see below. What all forks stand on counts as decided at
    /// their beginning: a tombstone of before can reach its age between two joins, and whether it
    /// was pruned or overruled first is left to the order.
    #[test]
    fn joins_commute_associate_and_repeat(
        (base, [a, b, c]) in any_forks([0.2, 0.2, 0.0, 0.0])
    ) {
        let taggings = |h: &History| {
            let (mut taggings, conditional, _) = decisions(&h.doc);
            taggings.iter_mut().for_each(|(_, at, _)| *at = base.doc.version.max(*at));
            (taggings, conditional)
        };
        let all = taggings(&joined(&a, &[&b, &c]));
        for (into, lost) in [
            (&a, [&c, &b]), (&b, [&a, &c]), (&b, [&c, &a]), (&c, [&a, &b]), (&c, [&b, &a]),
            (&a, [&joined(&b, &[&c]), &c]), (&joined(&b, &[&a]), [&c, &b]),
        ] {
            prop_assert_eq!(&taggings(&joined(into, &lost)), &all);
        }
        prop_assert_eq!(&taggings(&joined(&a, &[&b, &c, &b, &a, &c])), &all);
    }

    #[test]
    fn a_repeated_join_changes_nothing((_, [a, b, mut current]) in any_forks([0.2; 4])) {
        current.epoch = epoch(4);
        for lost in [&a, &b] {
            let evicted = current.join(&lost.doc, &[]).evicted;
            let mut again = lost.doc.clone();
            again.recent.retain(|w| evicted.iter().all(|e| e.id != w.id));
            let fates = current.join(&again, &[]);
            prop_assert!(!fates.changed, "{:?}", fates);
            let is_kept = |(id, fate): &(WriteId, JoinFate)| {
                *fate == JoinFate::Kept || again.recent_write(*id).is_none()
            };
            prop_assert!(fates.fates.iter().all(is_kept));
        }
    }

    /// The reference: the writes of all histories one after the other, in the order of versions. A
    /// conditional write stands on what it saw, so it is left out of this one.
    #[test]
    fn unconditional_writes_end_as_if_they_had_come_one_after_the_other(
        (_, forks) in any_forks([0.0; 4])
    ) {
        let [a, b, c] = &forks;
        let mut writes: Vec<&(Version, Write)> = forks.iter().flat_map(|h| &h.written).collect();
        writes.sort_by_key(|(version, _)| *version);
        let mut tags: BTreeSet<&str> = BTreeSet::new();
        for (_, write) in writes {
            match &write.operation {
                Operation::Patch { add, remove } => {
                    tags.extend(add.iter().map(|t| t.name.as_str()));
                    remove.iter().for_each(|n| { tags.remove(n.as_str()); });
                }
                Operation::Replace { tags: set } => {
                    tags = set.iter().map(|t| t.name.as_str()).collect();
                }
            }
        }
        let result = joined(c, &[a, b]);
        prop_assert_eq!(live(&result.doc), tags.into_iter().collect::<Vec<_>>());
    }

    /// However the limit is, it is kept, what was there stays, and what was dropped stays away.
    #[test]
    fn the_limit_holds((_, [a, b, mut current]) in any_forks([0.2; 4]), limit in 0..8usize) {
        current.epoch = epoch(4);
        current.limits.tags_per_content = limit;
        for _ in 0..2 {
            for lost in [&a, &b] {
                let before = current.doc.live().count();
                let joined = current.join(&lost.doc, &[]);
                prop_assert!(current.doc.live().count() <= limit.max(before));
                for w in &lost.doc.recent {
                    let fits = w.effect.added.iter().all(|n| {
                        let is_live = |doc: &Document| doc.live().any(|t| t.name == *n);
                        !is_live(&lost.doc) || is_live(&current.doc)
                    });
                    let fate = joined.fates.iter().find(|(id, _)| *id == w.id);
                    if fits || fate.is_none() { continue }
                    let fate = fate.map(|(_, fate)| *fate);
                    prop_assert!(fate != Some(JoinFate::Kept), "{:?} {:?}", w, fate);
                }
            }
        }
        let mut roomy = current.clone();
        roomy.limits = Limits::default();
        for lost in [&a, &b] {
            roomy.join(&lost.doc, &[]);
        }
        prop_assert_eq!(live(&roomy.doc), live(&current.doc));
    }

    /// No two conditional writes of different histories on one version are both told that they
    /// are part of the current history.
    #[test]
    fn one_version_satisfies_one_condition((base, [a, b, mut current]) in any_forks([0.5; 4])) {
        current.epoch = epoch(4);
        let version = base.doc.version;
        let is_first = |h: &History| {
            let first = h.written.iter().find(|(v, _)| *v > version)?;
            let is_on_base = first.1.if_match.as_ref().is_some_and(|c| c.holds(version));
            is_on_base.then_some((first.1.id, first.0))
        };
        let mut kept = usize::from(is_first(&current).is_some());
        for lost in [&a, &b] {
            let Some((id, v)) = is_first(lost) else { continue };
            let joined = current.join(&lost.doc, &[(id, v)]);
            let is_conflict = joined.fates[0].1 == JoinFate::Conflict;
            prop_assert!(!is_conflict || joined.added.is_empty());
            kept += usize::from(joined.fates[0].1 != JoinFate::Conflict);
        }
        prop_assert!(kept <= 1);
    }
}
