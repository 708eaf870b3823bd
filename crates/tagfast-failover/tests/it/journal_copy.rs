//! The copy of a journal on disk: its files as bytes, and which of them are needed.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tagfast_failover::{
    AcknowledgedGroup, FileEnd, FileError, FileHeader, IncompleteRange, Journal, JournalRecord,
    JournalSegments, decode_file, encode_header, encode_record,
};

use crate::support::{at, cases, content, epoch_id, range};

fn header() -> FileHeader {
    FileHeader { number: 7, scope: "c0".to_owned(), process: "api-1.00ff".to_owned() }
}

fn group(epoch: u64, flushed: u64, writes: &[u64]) -> AcknowledgedGroup {
    let contents = writes.iter().map(|n| content(&format!("k{n}"), *n + 1, &[*n])).collect();
    AcknowledgedGroup { at: range(epoch, flushed), contents }
}

fn any_record() -> impl Strategy<Value = JournalRecord> {
    let writes = prop::collection::vec(0u64..1 << 40, 0..5);
    prop_oneof![
        (0u64..4, any::<u64>(), writes)
            .prop_map(|(e, flushed, writes)| JournalRecord::Group(group(e, flushed, &writes))),
        (0u64..4, any::<u64>())
            .prop_map(|(e, up_to)| JournalRecord::Covered { epoch: epoch_id(e), up_to }),
        (0u64..4, any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(e, from, to, writes)| {
            JournalRecord::Forgotten(IncompleteRange { epoch: epoch_id(e), from, to, writes })
        }),
    ]
}

/// A file, and where each of its frames ends.
fn file_of(records: &[JournalRecord]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = encode_header(&header());
    let mut ends = vec![bytes.len()];
    for record in records {
        encode_record(&mut bytes, record);
        ends.push(bytes.len());
    }
    (bytes, ends)
}

proptest! {
    #![proptest_config(cases(200, 20))]

    #[test]
    fn a_file_reads_back_as_it_was_written(records in prop::collection::vec(any_record(), 0..8)) {
        let (bytes, _) = file_of(&records);
        let file = decode_file(&bytes).expect("a file");
        prop_assert_eq!(file.header, Some(header()));
        prop_assert_eq!(file.records, records);
        prop_assert_eq!((file.readable_bytes, file.end), (bytes.len(), FileEnd::Whole));
    }

    /// What was being written when the process ended, in every length, also filled with zeros.
    #[test]
    fn every_prefix_is_a_torn_file_with_all_whole_records(
        records in prop::collection::vec(any_record(), 0..4),
        zeros in 0usize..40,
    ) {
        let (bytes, ends) = file_of(&records);
        for cut in 0..=bytes.len() {
            let mut prefix = bytes[..cut].to_vec();
            let whole = ends.iter().filter(|end| **end <= cut).count();
            if ends.contains(&cut) || cut == 0 {
                prefix.resize(cut + zeros, 0);
            }
            let file = decode_file(&prefix).expect("a file");
            prop_assert_eq!(file.header.is_some(), whole > 0);
            prop_assert_eq!(&file.records, &records[..whole.saturating_sub(1)]);
            let is_whole = ends.contains(&cut) && prefix.len() == cut;
            prop_assert_eq!(file.end, if is_whole { FileEnd::Whole } else { FileEnd::Torn });
        }
    }

    /// Whatever bit is flipped: it is named, and what comes before it is whole.
    #[test]
    fn a_flipped_bit_is_named_and_never_makes_a_record(
        records in prop::collection::vec(any_record(), 1..4),
    ) {
        let (bytes, ends) = file_of(&records);
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[place] ^= 1 << bit;
                match decode_file(&damaged) {
                    Err(_) => prop_assert!(place < ends[0], "byte {place}"),
                    Ok(file) => {
                        let whole = ends.iter().filter(|end| **end <= place).count();
                        prop_assert!(matches!(file.end, FileEnd::Damaged(_)), "byte {place}");
                        prop_assert_eq!(&file.records, &records[..whole - 1]);
                        prop_assert_eq!(file.readable_bytes, ends[whole - 1]);
                    }
                }
            }
        }
    }

    #[test]
    fn no_input_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_file(&bytes);
        let (mut file, _) = file_of(&[]);
        file.extend_from_slice(&bytes);
        let _ = decode_file(&file);
    }
}

#[test]
fn a_file_of_a_different_program_is_named() {
    let (mut bytes, _) = file_of(&[]);
    bytes[7] = 9;
    assert_eq!(decode_file(&bytes), Err(FileError::UnknownFormat(9)));
    assert_eq!(decode_file(b"SQLite format 3"), Err(FileError::NotAJournal));
    assert_eq!(decode_file(b"x"), Err(FileError::NotAJournal));
}

/// The format is frozen: this is what the first program wrote.
#[test]
fn the_format_is_the_one_that_was_released() {
    let (bytes, _) = file_of(&[JournalRecord::Covered { epoch: epoch_id(1), up_to: 2 }]);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, GOLDEN, "a change needs a new format");
}

/// In hexadecimal digits.
const GOLDEN: &str = "\
    54464a524e4c0a011d000000e3bf774c4c8868267ededddc0107000000000000000200000063300a\
    0000006170692d312e30306666190000006faef2e127ee7872388234c50300000000000000000000\
    0000000000010200000000000000";

/// What the files hold, against a plain list: a segment is removed only if nothing in it is needed.
#[derive(Debug, Clone)]
enum Step {
    Begin,
    /// Of this epoch, at this position.
    Add(u64, u64),
    Cover(u64),
    NextEpoch,
    Repaired,
    GiveUp,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Begin),
        6 => (0u64..2, 1u64..100).prop_map(|(ago, flushed)| Step::Add(ago, flushed)),
        3 => (1u64..100).prop_map(Step::Cover),
        1 => Just(Step::NextEpoch),
        1 => Just(Step::Repaired),
        1 => Just(Step::GiveUp),
    ]
}

const RECORD_BYTES: u64 = 10;

proptest! {
    #![proptest_config(cases(500, 20))]

    #[test]
    fn nothing_that_is_needed_is_removed_unnamed(
        steps in prop::collection::vec(any_step(), 1..80)
    ) {
        let mut segments = JournalSegments::new(8 * RECORD_BYTES, 1);
        segments.begin(1, 0);
        // By segment: epoch and position of each group.
        let mut model: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::from([(1, Vec::new())]);
        let (mut epoch, mut covered, mut has_older) = (10, 0, false);
        let mut said: BTreeMap<u64, u64> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Begin => {
                    let number = segments.next_number();
                    segments.begin(number, 0);
                    model.insert(number, Vec::new());
                }
                Step::Add(ago, flushed) => {
                    segments.add(&JournalRecord::Group(group(epoch - ago, flushed, &[1])));
                    segments.grow(RECORD_BYTES);
                    let mut last = model.last_entry().expect("a segment");
                    last.get_mut().push((epoch - ago, flushed));
                }
                Step::Cover(up_to) => covered = up_to.max(covered),
                Step::NextEpoch => (epoch, covered, has_older) = (epoch + 1, 0, true),
                Step::Repaired => has_older = false,
                Step::GiveUp => {
                    if let Some(given_up) = segments.give_up_oldest() {
                        let of = model.remove(&given_up.number).expect("it is there");
                        let lost = of.iter().filter(|(e, p)| said.get(e).is_none_or(|s| p > s));
                        for (e, position) in lost {
                            let is_named = given_up.missing.iter().any(|range| {
                                range.epoch == epoch_id(*e) && range.to >= *position
                                    && range.from <= *position
                            });
                            prop_assert!(is_named, "{e} {position}: {given_up:?}");
                        }
                    }
                }
            }
            let records = segments.to_be_covered(Some((epoch_id(epoch), covered)), has_older);
            for record in &records {
                let JournalRecord::Covered { epoch: id, up_to } = record else { panic!("{record:?}") };
                let e = u128::from_be_bytes(id.0) as u64;
                let is_true = if e == epoch { *up_to == covered } else { !has_older };
                prop_assert!(is_true, "{record:?}");
                said.insert(e, *up_to);
                segments.add(record);
            }
            let again = segments.to_be_covered(Some((epoch_id(epoch), covered)), has_older);
            prop_assert_eq!(again, vec![], "it is said once");
            let last = *model.last_key_value().expect("a segment").0;
            for number in segments.take_unneeded() {
                let groups = model.remove(&number).expect("it is there");
                prop_assert!(number != last);
                for (e, position) in groups {
                    prop_assert!(said.get(&e).is_some_and(|s| position <= *s), "{e} {position}");
                }
            }
            let needed = |groups: &Vec<(u64, u64)>| {
                groups.iter().any(|(e, p)| said.get(e).is_none_or(|s| p > s))
            };
            let others = model.iter().filter(|(n, _)| **n != last);
            prop_assert!(others.map(|(_, groups)| groups).all(needed), "nothing is kept in vain");
            prop_assert_eq!(segments.count(), model.len());
        }
    }
}

fn restored(groups: Vec<AcknowledgedGroup>, has_unread: bool) -> Journal {
    let mut journal = Journal::new(1 << 20);
    let groups = groups.into_iter().map(|group| (group, at(5))).collect();
    journal.restore(groups, &[], has_unread, 1 << 20);
    journal
}

/// The process was started again, and no failover has happened.
#[test]
fn entries_of_the_current_epoch_are_back_until_they_are_covered() {
    let mut journal = restored(vec![group(1, 100, &[1, 2])], false);
    journal.begin_epoch(epoch_id(1));
    assert_eq!((journal.contents(), journal.waiting_for_repair()), (2, 0));
    assert_eq!(journal.oldest_exposed(), Some(at(5)), "the guard counts them");
    journal.cover(epoch_id(1), 100, 100);
    assert_eq!((journal.contents(), journal.bytes()), (0, 0));
    assert_eq!(journal.take_unsaved().expect("a copy").covered, Some((epoch_id(1), 100)));
}

/// A failover, or two, happened while the process was dead.
#[test]
fn entries_of_epochs_that_have_ended_wait_for_a_repair() {
    let groups = vec![group(1, 100, &[1]), group(2, 50, &[1, 2])];
    let mut journal = restored(groups, false);
    journal.begin_epoch(epoch_id(4));
    let found: Vec<_> =
        journal.repair_entries(None, 9).into_iter().map(|e| (e.at, e.key)).collect();
    let at = [range(1, 100), range(2, 50), range(2, 50)];
    assert_eq!(found.iter().map(|(at, _)| *at).collect::<Vec<_>>(), at);
    assert_eq!(found[0].1, content("k1", 0, &[]).key);
    assert_eq!(journal.oldest_exposed(), None, "this epoch can lose nothing yet");
}

#[test]
fn the_copy_gets_what_was_acknowledged_and_is_not_covered() {
    let mut journal = restored(Vec::new(), false);
    journal.begin_epoch(epoch_id(1));
    let first = journal.record(range(1, 10), group(1, 10, &[1]).contents).expect("the epoch");
    let second = journal.record(range(1, 20), group(1, 20, &[2]).contents).expect("the epoch");
    let third = journal.record(range(1, 30), group(1, 30, &[3]).contents).expect("the epoch");
    assert!(journal.acknowledge(first, at(1), 0) && journal.acknowledge(second, at(1), 0));
    // A caller that asks again is told the same.
    assert!(journal.acknowledge(second, at(1), 0));
    journal.cover(epoch_id(1), 10, 10);
    let batch = journal.take_unsaved().expect("a copy");
    assert_eq!(
        (batch.groups.as_slice(), batch.has_older),
        ([group(1, 20, &[2])].as_slice(), false)
    );
    assert_eq!(journal.take_unsaved().expect("a copy").groups, []);
    journal.put_back_unsaved(batch);
    assert!(journal.acknowledge(third, at(1), 0));
    let batch = journal.take_unsaved().expect("a copy");
    assert_eq!(batch.groups, [group(1, 20, &[2]), group(1, 30, &[3])]);
}

/// The disk does not take them for long.
#[test]
fn what_the_copy_lacks_is_bounded_and_named() {
    let mut journal = Journal::new(1 << 20);
    journal.restore(Vec::new(), &[], false, 1000);
    journal.begin_epoch(epoch_id(1));
    for n in 1..=50 {
        let group = journal.record(range(1, n * 10), group(1, n * 10, &[n]).contents);
        assert!(journal.acknowledge(group.expect("the epoch"), at(n), 0));
    }
    let batch = journal.take_unsaved().expect("a copy");
    let kept = batch.groups.len() as u64;
    assert!((1..10).contains(&kept), "{kept}");
    let to = (50 - kept) * 10;
    let forgotten = IncompleteRange { epoch: epoch_id(1), from: 9, to, writes: 50 - kept };
    assert_eq!(batch.forgotten, [forgotten]);
    assert_eq!(journal.incomplete(), [], "this process still has them");
}

/// A file could not be read: nothing is known of it, until what came before is covered.
#[test]
fn what_could_not_be_read_back_is_incomplete_until_a_later_write_is_covered() {
    let unknown = |epoch| IncompleteRange { epoch, from: 0, to: u64::MAX, writes: 0 };
    let mut journal = restored(vec![group(1, 40, &[1])], true);
    journal.begin_epoch(epoch_id(1));
    let earlier = unknown(IncompleteRange::UNKNOWN_EPOCH);
    assert_eq!(journal.incomplete(), [earlier, unknown(epoch_id(1))]);
    journal.record(range(1, 70), group(1, 70, &[2]).contents).expect("the epoch");
    journal.cover(epoch_id(1), 69, 69);
    assert_eq!(journal.incomplete().len(), 2);
    journal.cover(epoch_id(1), 70, 70);
    assert_eq!(journal.incomplete(), [earlier]);
}

/// The folder of a different cluster of the same name.
#[test]
fn entries_of_a_cluster_that_never_had_their_epoch_are_refused_and_named() {
    let mut journal = restored(vec![group(1, 40, &[1]), group(2, 60, &[2, 3])], false);
    journal.begin_epoch(epoch_id(3));
    let known = [epoch_id(2), epoch_id(3)];
    assert_eq!(journal.refuse_foreign(|epoch| known.contains(&epoch)), [epoch_id(1)]);
    assert_eq!(journal.refuse_foreign(|epoch| known.contains(&epoch)), []);
    let refused = IncompleteRange { epoch: epoch_id(1), from: 39, to: 40, writes: 1 };
    assert_eq!((journal.waiting_for_repair(), journal.incomplete()), (2, [refused].as_slice()));
    assert_eq!(journal.take_unsaved().expect("a copy").refused, [epoch_id(1)]);
    // What this process acknowledged itself is never refused.
    let group = journal.record(range(3, 10), group(3, 10, &[4]).contents).expect("the epoch");
    assert!(journal.acknowledge(group, at(1), 0));
    journal.begin_epoch(epoch_id(4));
    assert_eq!(journal.refuse_foreign(|epoch| epoch == epoch_id(2)), []);
    let entries = journal.repair_entries(None, 9);
    entries.iter().for_each(|entry| journal.give_up(entry.id));
    assert_eq!(journal.bytes(), 0);
}
