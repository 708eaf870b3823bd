//! The journal against a plain list of groups.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tagfast_failover::{
    BootTime, GroupId, Journal, JournaledContent, LogRange, RepairEntry, RepairId,
};

use crate::support::{at, cases, content, epoch_id, range, version, write_id};

const ROOMY: usize = 1 << 20;

fn journal_of_epoch(n: u64, bytes_max: usize) -> Journal {
    let mut journal = Journal::new(bytes_max);
    journal.begin_epoch(epoch_id(n));
    journal
}

/// Records a group of one content, and tells its callers.
fn acknowledged(journal: &mut Journal, at_position: LogRange, content: JournaledContent) {
    let group = journal.record(at_position, vec![content]).expect("the epoch");
    assert!(journal.acknowledge(group, at(1), 0));
}

/// The versions of the entries that wait for a repair, by key, with the ids of their writes.
fn waiting(journal: &Journal) -> Vec<(String, u64, Vec<u64>)> {
    let mut all: Vec<_> = journal.repair_entries(None, usize::MAX).iter().map(plain).collect();
    all.sort();
    all
}

fn plain(entry: &RepairEntry) -> (String, u64, Vec<u64>) {
    let key = String::from_utf8_lossy(&entry.key).into_owned();
    let number = |n: &[u8; 16]| u128::from_be_bytes(*n) as u64;
    let writes = entry.writes.iter().map(|(w, _)| number(&w.id.0)).collect();
    (key, entry.version.packed(), writes)
}

/// X12: one replica has it and a different one is promoted.
#[test]
fn an_entry_stays_until_every_replica_has_it() {
    let mut journal = journal_of_epoch(1, ROOMY);
    acknowledged(&mut journal, range(1, 100), content("k", 1, &[1]));
    journal.cover(epoch_id(1), 100, 99);
    assert_eq!(journal.contents(), 1);
    journal.begin_epoch(epoch_id(2));
    assert_eq!(waiting(&journal), [("k".to_owned(), 1, vec![1])]);
}

/// X12: all three nodes are past the position, in the log of a later epoch.
#[test]
fn a_position_of_a_different_epoch_drops_nothing() {
    let mut journal = journal_of_epoch(1, ROOMY);
    acknowledged(&mut journal, range(1, 100), content("k", 1, &[1]));
    journal.cover(epoch_id(2), 500, 500);
    assert_eq!(journal.contents(), 1);
    journal.begin_epoch(epoch_id(2));
    journal.cover(epoch_id(1), 500, 500);
    journal.cover(epoch_id(2), 500, 500);
    assert_eq!(journal.waiting_for_repair(), 1, "it is not in the log of epoch 2");
}

/// X14: the repair itself is lost by the next failover.
#[test]
fn a_repaired_entry_stays_behind_the_position_of_its_repair() {
    let mut journal = journal_of_epoch(1, ROOMY);
    acknowledged(&mut journal, range(1, 100), content("k", 1, &[1]));
    journal.begin_epoch(epoch_id(2));
    let entry = journal.repair_entries(None, 10).remove(0);
    assert!(journal.put_back(range(2, 50), vec![(entry.id, content("k", 7, &[1]))], at(10)));
    assert_eq!((journal.waiting_for_repair(), journal.contents()), (0, 1));
    journal.cover(epoch_id(2), 49, 49);
    journal.begin_epoch(epoch_id(3));
    assert_eq!(waiting(&journal), [("k".to_owned(), 7, vec![1])]);
    // Covered in time, it is gone.
    let entry = journal.repair_entries(None, 10).remove(0);
    assert!(journal.put_back(range(3, 60), vec![(entry.id, content("k", 9, &[1]))], at(20)));
    journal.cover(epoch_id(3), 60, 60);
    assert_eq!((journal.contents(), journal.bytes()), (0, 0));
}

#[test]
fn a_repair_of_an_epoch_that_has_ended_puts_nothing_back() {
    let mut journal = journal_of_epoch(1, ROOMY);
    acknowledged(&mut journal, range(1, 100), content("k", 1, &[1]));
    journal.begin_epoch(epoch_id(2));
    let entry = journal.repair_entries(None, 10).remove(0);
    journal.begin_epoch(epoch_id(3));
    assert!(!journal.put_back(range(2, 50), vec![(entry.id, content("k", 7, &[1]))], at(10)));
    assert_eq!(waiting(&journal), [("k".to_owned(), 1, vec![1])]);
}

#[test]
fn a_repaired_entry_without_writes_is_dropped_with_its_position_too() {
    let mut journal = journal_of_epoch(1, ROOMY);
    acknowledged(&mut journal, range(1, 100), content("k", 1, &[1]));
    journal.begin_epoch(epoch_id(2));
    let entry = journal.repair_entries(None, 10).remove(0);
    assert!(journal.put_back(range(2, 50), vec![(entry.id, content("k", 7, &[]))], at(10)));
    journal.cover(epoch_id(2), 50, 50);
    assert_eq!((journal.contents(), journal.bytes()), (0, 0));
}

/// A replaced primary commits after the next epoch has acknowledged.
#[test]
fn what_no_caller_was_told_of_is_not_repaired() {
    let mut journal = journal_of_epoch(1, ROOMY);
    acknowledged(&mut journal, range(1, 10), content("k", 1, &[1]));
    journal.record(range(1, 20), vec![content("k", 2, &[2])]).expect("the epoch");
    journal.record(range(1, 30), vec![content("other", 3, &[3])]).expect("the epoch");
    assert_eq!(journal.contents(), 1);
    journal.begin_epoch(epoch_id(2));
    assert_eq!(waiting(&journal), [("k".to_owned(), 1, vec![1])]);
    let entry = journal.repair_entries(None, 1).remove(0);
    journal.give_up(entry.id);
    assert_eq!(journal.bytes(), 0);
}

/// Answers of parallel transactions arrive in any order.
#[test]
fn a_late_group_of_an_earlier_position_takes_no_document_away() {
    let mut journal = journal_of_epoch(1, ROOMY);
    acknowledged(&mut journal, range(1, 200), content("k", 5, &[5]));
    acknowledged(&mut journal, range(1, 100), content("k", 4, &[4]));
    journal.cover(epoch_id(1), 150, 150);
    journal.begin_epoch(epoch_id(2));
    assert_eq!(waiting(&journal), [("k".to_owned(), 5, vec![5])]);
}

#[test]
fn what_the_journal_had_to_forget_stays_exposed_and_is_named() {
    let mut journal = journal_of_epoch(1, 2000);
    let groups: Vec<GroupId> = (1..=20u64)
        .map(|n| {
            let key = format!("k{n}");
            let group = journal.record(range(1, n * 10), vec![content(&key, n, &[n])]);
            let group = group.expect("the epoch");
            assert!(journal.acknowledge(group, at(n), 0));
            group
        })
        .collect();
    assert!(journal.contents() < 20);
    assert_eq!(journal.oldest_exposed(), Some(at(1)), "the guard must still see it");
    assert!(journal.acknowledge(groups[0], at(30), 0), "it is in the log");
    let [range] = journal.incomplete() else { panic!("{:?}", journal.incomplete()) };
    assert_eq!((range.from, range.writes), (9, 20 - journal.contents() as u64));
    let end = range.to;
    journal.cover(epoch_id(1), end, end - 1);
    assert_eq!(journal.incomplete().len(), 1);
    assert_eq!(journal.oldest_exposed(), Some(at(end / 10 + 1)));
    journal.cover(epoch_id(1), end, end);
    assert_eq!(journal.incomplete(), [], "no failover can lose it any more");
}

#[test]
fn a_forgotten_range_that_was_reported_is_forgotten_past_the_end_of_its_epoch() {
    let forgetful = || {
        let mut journal = journal_of_epoch(1, 1000);
        for n in 1..=40u64 {
            let document = content(&format!("k{n}"), n, &[n]);
            acknowledged(&mut journal, range(1, n * 10), document);
        }
        journal.begin_epoch(epoch_id(2));
        journal
    };
    let mut journal = forgetful();
    let [lost] = *journal.incomplete() else { panic!("{:?}", journal.incomplete()) };
    assert!(lost.epoch == epoch_id(1) && lost.from < 200 && lost.to > 200, "{lost:?}");
    // The epoch ended in the middle of it.
    journal.settle_incomplete(|epoch| if epoch == epoch_id(1) { 200 } else { u64::MAX });
    let [kept] = *journal.incomplete() else { panic!("{:?}", journal.incomplete()) };
    assert_eq!((kept.epoch, kept.from, kept.to), (epoch_id(2), lost.from, 200));
    journal.cover(epoch_id(2), 200, 199);
    assert_eq!(journal.incomplete().len(), 1, "the next failover may lose it");
    journal.cover(epoch_id(2), 200, 200);
    assert_eq!(journal.incomplete(), []);

    let mut journal = forgetful();
    journal.settle_incomplete(|_| 0);
    assert_eq!(journal.incomplete(), [], "nothing of its epoch is left to lose");
}

#[test]
fn entries_that_wait_for_a_repair_are_never_forgotten() {
    let mut journal = journal_of_epoch(1, 1000);
    acknowledged(&mut journal, range(1, 10), content("old", 1, &[1]));
    journal.begin_epoch(epoch_id(2));
    for n in 2..40 {
        acknowledged(&mut journal, range(2, n), content(&format!("k{n}"), n, &[n]));
    }
    assert!(!journal.incomplete().is_empty());
    assert_eq!(waiting(&journal), [("old".to_owned(), 1, vec![1])]);
}

#[test]
fn only_the_epoch_that_is_known_is_recorded_and_acknowledged() {
    let mut journal = Journal::new(ROOMY);
    assert_eq!(journal.record(range(1, 1), vec![content("k", 1, &[1])]), None);
    journal.begin_epoch(epoch_id(1));
    let contents = vec![content("k", 1, &[1])];
    let group = journal.record(range(1, 1), contents).expect("the epoch");
    journal.begin_epoch(epoch_id(2));
    assert!(!journal.acknowledge(group, at(1), 0), "its repair may have looked already");
    assert_eq!(journal.record(range(1, 2), vec![content("k", 1, &[1])]), None);
}

#[derive(Debug, Clone)]
enum Step {
    /// A group at a position, of contents at versions.
    Record(u64, Vec<(u8, u64)>),
    /// The number of a group, and whether its callers are told twice.
    Acknowledge(usize, u64),
    Cover(u64, u64),
    Begin,
    /// Puts back every `n`th entry that waits, with a newer document.
    PutBack(usize, u64),
    GiveUp(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let contents = prop::collection::vec((0..5u8, 1..40u64), 1..4);
    prop_oneof![
        8 => (1..200u64, contents).prop_map(|(at, contents)| Step::Record(at, contents)),
        6 => (0..40usize, 0..200u64).prop_map(|(n, covered)| Step::Acknowledge(n, covered)),
        4 => (0..200u64, 0..200u64).prop_map(|(a, b)| Step::Cover(a.max(b), a.min(b))),
        1 => Just(Step::Begin),
        2 => (1..3usize, 1..200u64).prop_map(|(n, at)| Step::PutBack(n, at)),
        1 => (0..5usize).prop_map(Step::GiveUp),
    ]
}

/// What the journal must hold, kept in the plainest way.
#[derive(Default)]
struct Model {
    epoch: u64,
    groups: Vec<ModelGroup>,
    /// The newest version of each key that a group vouches for.
    newest: BTreeMap<u8, u64>,
    exposed: Vec<(u64, BootTime)>,
    older: Vec<(u8, u64, Vec<u64>)>,
}

struct ModelGroup {
    /// Its place among the recorded ones; `None`: it was put back.
    place: Option<usize>,
    flushed: u64,
    contents: Vec<(u8, u64, Vec<u64>)>,
    is_acknowledged: bool,
}

impl Model {
    fn acknowledge(&mut self, place: Option<usize>) {
        let Some(group) = self.groups.iter_mut().rfind(|g| g.place == place) else { return };
        if !std::mem::replace(&mut group.is_acknowledged, true) {
            for (key, version, _) in &group.contents {
                let newest = self.newest.entry(*key).or_insert(*version);
                *newest = (*newest).max(*version);
            }
        }
    }

    fn cover(&mut self, by_one: u64, by_all: u64) {
        self.exposed.retain(|(flushed, _)| *flushed > by_one);
        self.groups.retain(|group| group.flushed > by_all);
        let told = self.groups.iter().filter(|g| g.is_acknowledged);
        let left: BTreeSet<u8> = told.flat_map(|g| &g.contents).map(|(key, _, _)| *key).collect();
        self.newest.retain(|key, _| left.contains(key));
    }

    fn begin(&mut self) {
        self.epoch += 1;
        for (key, version) in std::mem::take(&mut self.newest) {
            let of_key = |g: &ModelGroup| {
                let is_it = |k: u8| k == key && g.is_acknowledged;
                let contents = g.contents.iter().filter(|(k, _, _)| is_it(*k));
                contents.flat_map(|(_, _, ids)| ids.clone()).collect::<Vec<u64>>()
            };
            self.older.push((key, version, self.groups.iter().flat_map(of_key).collect()));
        }
        self.groups.clear();
        self.exposed.clear();
    }
}

fn key(n: u8) -> String {
    format!("k{n}")
}

/// The writes of a group on one content: one, but none where the version is divisible by seven.
fn ids_of(next: &mut u64, version: u64) -> Vec<u64> {
    *next += 1;
    if version.is_multiple_of(7) { Vec::new() } else { vec![*next] }
}

proptest! {
    #![proptest_config(cases(1000, 20))]

    #[test]
    fn it_holds_what_a_plain_list_holds(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut journal = journal_of_epoch(1, ROOMY);
        let mut model = Model { epoch: 1, ..Model::default() };
        // Each group with its epoch and position.
        let mut recorded: Vec<(GroupId, u64, u64)> = Vec::new();
        let mut next = 0;
        for (now, step) in steps.into_iter().enumerate() {
            let now = at(now as u64);
            match step {
                Step::Record(flushed, versions) => {
                    let contents: Vec<(u8, u64, Vec<u64>)> =
                        versions.iter().map(|(k, v)| (*k, *v, ids_of(&mut next, *v))).collect();
                    let journaled =
                        contents.iter().map(|(k, v, ids)| content(&key(*k), *v, ids)).collect();
                    let group = journal.record(range(model.epoch, flushed), journaled);
                    let place = Some(recorded.len());
                    recorded.push((group.expect("the epoch"), model.epoch, flushed));
                    let is_acknowledged = false;
                    model.groups.push(ModelGroup { place, flushed, contents, is_acknowledged });
                }
                Step::Acknowledge(n, covered) => {
                    let Some(&(group, epoch, flushed)) = recorded.get(n) else { continue };
                    let is_current = epoch == model.epoch;
                    prop_assert_eq!(journal.acknowledge(group, now, covered), is_current);
                    if !is_current {
                        continue;
                    }
                    model.acknowledge(Some(n));
                    if flushed > covered {
                        model.exposed.push((flushed, now));
                    }
                }
                Step::Cover(by_one, by_all) => {
                    journal.cover(epoch_id(model.epoch), by_one, by_all);
                    model.cover(by_one, by_all);
                }
                Step::Begin => {
                    model.begin();
                    journal.begin_epoch(epoch_id(model.epoch));
                }
                Step::PutBack(every, flushed) => {
                    let entries = journal.repair_entries(None, usize::MAX);
                    let picked: Vec<&RepairEntry> = entries.iter().step_by(every).collect();
                    let mut contents = Vec::new();
                    let mut back = Vec::new();
                    for entry in picked {
                        let (name, version, ids) = plain(entry);
                        let number = name[1..].parse().expect("a key");
                        let place = model.older.iter().position(|(k, v, all)| {
                            *k == number && *v == version
                                && *all == ids
                        });
                        model.older.remove(place.expect("the model has it"));
                        back.push((entry.id, content(&name, version + 100, &ids)));
                        contents.push((number, version + 100, ids));
                    }
                    prop_assert!(journal.put_back(range(model.epoch, flushed), back, now));
                    if !contents.is_empty() {
                        model.exposed.push((flushed, now));
                        let (place, is_acknowledged) = (None, false);
                        model.groups.push(ModelGroup { place, flushed, contents, is_acknowledged });
                        model.acknowledge(None);
                    }
                }
                Step::GiveUp(n) => {
                    let entries = journal.repair_entries(None, usize::MAX);
                    let Some(entry) = entries.get(n) else { continue };
                    let (name, version, ids) = plain(entry);
                    let place = model.older.iter().position(|(k, v, all)| {
                        key(*k) == name && *v == version && *all == ids
                    });
                    model.older.remove(place.expect("the model has it"));
                    journal.give_up(entry.id);
                    journal.give_up(entry.id);
                }
            }
            prop_assert_eq!(journal.contents(), model.newest.len() + model.older.len());
            prop_assert_eq!(journal.is_empty(), model.groups.is_empty());
            let oldest = model.exposed.iter().map(|(_, at)| *at).min();
            prop_assert_eq!(journal.oldest_exposed(), oldest);
            let mut held: Vec<_> =
                journal.repair_entries(None, usize::MAX).iter().map(plain).collect();
            let mut expected: Vec<(String, u64, Vec<u64>)> =
                model.older.iter().map(|(k, v, ids)| (key(*k), *v, ids.clone())).collect();
            held.sort();
            expected.sort();
            prop_assert_eq!(held, expected);
        }
        // Nothing is left behind, whatever the way here.
        model.begin();
        journal.begin_epoch(epoch_id(model.epoch));
        let ids: Vec<RepairId> =
            journal.repair_entries(None, usize::MAX).iter().map(|entry| entry.id).collect();
        ids.into_iter().for_each(|id| journal.give_up(id));
        prop_assert_eq!((journal.contents(), journal.bytes()), (0, 0));
    }

    /// However small the journal is: it keeps to its size but for the newest group, and each write
    /// is in it or in the range that it names.
    #[test]
    fn what_does_not_fit_is_within_the_named_range(
        count in 1..60u64, bytes_max in 0..4000usize, covered in 0..600u64,
    ) {
        let mut journal = journal_of_epoch(1, bytes_max);
        for n in 1..=count {
            let key = format!("k{}", n % 11);
            acknowledged(&mut journal, range(1, n * 10), content(&key, n, &[n]));
            prop_assert!(journal.bytes() <= bytes_max || journal.contents() == 1);
        }
        journal.cover(epoch_id(1), covered, covered);
        let incomplete = journal.incomplete().to_vec();
        journal.begin_epoch(epoch_id(2));
        let entries = journal.repair_entries(None, usize::MAX);
        for n in (1..=count).filter(|n| n * 10 > covered) {
            let is_held = entries.iter().any(|entry| {
                entry.version >= version(n) && entry.writes.iter().any(|w| w.0.id == write_id(n))
            });
            let is_named = incomplete.iter().any(|r| r.from < n * 10 && n * 10 <= r.to);
            prop_assert!(is_held || is_named, "write {}", n);
        }
    }

    #[test]
    fn entries_are_handed_out_once_each_in_pages(count in 0..30u64, page in 1..7usize) {
        let mut journal = journal_of_epoch(1, ROOMY);
        for n in 0..count {
            acknowledged(&mut journal, range(1, n), content(&format!("k{n}"), 1, &[n]));
        }
        journal.begin_epoch(epoch_id(2));
        let (mut after, mut keys) = (None, BTreeSet::new());
        loop {
            let entries = journal.repair_entries(after, page);
            let Some(last) = entries.last() else { break };
            prop_assert!(entries.len() <= page);
            after = Some(last.id);
            for entry in entries {
                prop_assert!(keys.insert(entry.key));
            }
        }
        prop_assert_eq!(keys.len() as u64, count);
    }
}
