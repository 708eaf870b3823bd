//! The copy of a journal in real files: written, damaged, read back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tagfast_domain::{EpochId, Version, WriteId};
use tagfast_failover::{
    AcknowledgedGroup, IncompleteRange, JournaledContent, JournaledWrite, LogRange, UnsavedBatch,
};
use tempfile::TempDir;

use super::folder::JournalFolder;
use super::read_back::{ReadBack, read_back, segment_path};
use super::segment_writer::SegmentWriter;

const NOW: i64 = 1_800_000_000_000;
const ONE: EpochId = EpochId([1; 16]);
const TWO: EpochId = EpochId([2; 16]);
/// Holds a few groups in a segment.
const BYTES_MAX: u64 = 8 << 10;

struct Copy {
    root: TempDir,
}

impl Copy {
    fn new() -> Self {
        Self { root: tempfile::tempdir().expect("a directory") }
    }

    fn folder(&self) -> Arc<JournalFolder> {
        Arc::new(JournalFolder::open(self.root.path(), "api-1.aa").expect("a folder"))
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("clusters").join("c0")
    }

    fn read(&self) -> ReadBack {
        read_back(&self.dir(), ("c0", "api-1.aa"), BYTES_MAX, NOW).expect("a folder")
    }

    /// A process that begins with what is there.
    fn writer(&self) -> SegmentWriter {
        SegmentWriter::new(self.folder(), "c0", self.read().segments)
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir()).expect("a folder");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> =
            names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn group(epoch: EpochId, flushed: u64) -> AcknowledgedGroup {
    let version = Version::from_packed(flushed).expect("63 bits");
    let write = JournaledWrite { id: WriteId([flushed as u8; 16]), version, at: NOW };
    let content = JournaledContent {
        key: Arc::from(flushed.to_be_bytes().as_slice()),
        document: vec![7; 200].into(),
        version,
        writes: vec![write],
    };
    let at = LogRange { epoch, inside: flushed - 1, flushed };
    AcknowledgedGroup { at, contents: vec![content] }
}

fn batch(epoch: EpochId, flushed: &[u64], covered: u64) -> UnsavedBatch {
    UnsavedBatch {
        groups: flushed.iter().map(|flushed| group(epoch, *flushed)).collect(),
        covered: Some((epoch, covered)),
        ..UnsavedBatch::default()
    }
}

fn positions(found: &ReadBack) -> Vec<u64> {
    found.groups.iter().map(|group| group.at.flushed).collect()
}

#[test]
fn what_was_saved_is_read_back_until_it_is_covered() {
    let copy = Copy::new();
    let mut writer = copy.writer();
    assert!(!writer.is_news(&batch(ONE, &[], 5)), "there is nothing to be covered");
    writer.save(&batch(ONE, &[10, 20], 5)).expect("saved");
    writer.save(&batch(ONE, &[30], 15)).expect("saved");
    drop(writer);
    let found = copy.read();
    assert_eq!(found.groups, [group(ONE, 20), group(ONE, 30)]);
    assert_eq!((found.forgotten, found.set_aside), (vec![], vec![]));
    let mut writer = copy.writer();
    let covered = batch(ONE, &[], 30);
    assert!(writer.is_news(&covered));
    writer.save(&covered).expect("saved");
    assert!(!writer.is_news(&covered), "it is said once");
    // The segment of the first process is gone, the one that is written to is left.
    assert_eq!((positions(&copy.read()), copy.files().len()), (vec![], 1));
}

#[test]
fn files_take_no_more_than_they_may_and_what_they_lack_is_named() {
    let copy = Copy::new();
    let mut writer = copy.writer();
    let mut lost = 0;
    for n in 1..=200 {
        lost += writer.save(&batch(ONE, &[n * 10], 0)).expect("saved");
        assert!(writer.bytes() <= BYTES_MAX + 512, "{}", writer.bytes());
    }
    let size = |name: &String| std::fs::metadata(copy.dir().join(name)).expect("a file").len();
    assert_eq!(copy.files().iter().map(size).sum::<u64>(), writer.bytes());
    drop(writer);
    let found = copy.read();
    let kept = positions(&found);
    assert_eq!(kept.len() as u64 + lost, 200);
    let writes: u64 = found.forgotten.iter().map(|range| range.writes).sum();
    let to = found.forgotten.iter().map(|range| range.to).max();
    assert_eq!((writes, to), (lost, Some(kept[0] - 10)));
}

/// A failover, and the repair has put everything back in the new epoch.
#[test]
fn what_was_repaired_is_not_needed_once_its_repair_is_saved() {
    let copy = Copy::new();
    copy.writer().save(&batch(ONE, &[10, 20], 0)).expect("saved");
    let mut writer = copy.writer();
    let waiting = UnsavedBatch { has_older: true, ..batch(TWO, &[], 0) };
    assert!(!writer.is_news(&waiting));
    writer.save(&UnsavedBatch { has_older: true, ..batch(TWO, &[5], 0) }).expect("saved");
    assert_eq!(positions(&copy.read()), [10, 20, 5]);
    writer.save(&batch(TWO, &[6, 7], 0)).expect("saved");
    drop(writer);
    assert_eq!((positions(&copy.read()), copy.files().len()), (vec![5, 6, 7], 1));
}

/// In every length that the last write may have had when the process was killed.
#[test]
fn a_torn_tail_is_cut() {
    let copy = Copy::new();
    let mut writer = copy.writer();
    writer.save(&batch(ONE, &[10], 0)).expect("saved");
    let path = segment_path(&copy.dir(), 1);
    let whole = std::fs::metadata(&path).expect("a file").len() as usize;
    writer.save(&batch(ONE, &[20], 0)).expect("saved");
    drop(writer);
    let bytes = std::fs::read(&path).expect("a file");
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).expect("written");
        let found = copy.read();
        let expected = if length < whole { vec![] } else { vec![10] };
        assert_eq!((positions(&found), found.set_aside), (expected, vec![]), "{length}");
    }
    assert_eq!(std::fs::metadata(&path).expect("a file").len() as usize, whole, "it was cut");
}

fn flip(path: &Path, place: usize) {
    let mut bytes = std::fs::read(path).expect("a file");
    bytes[place] ^= 1;
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn a_damaged_file_is_set_aside_and_what_comes_before_is_kept() {
    let copy = Copy::new();
    let mut writer = copy.writer();
    writer.save(&batch(ONE, &[10], 0)).expect("saved");
    let path = segment_path(&copy.dir(), 1);
    let first = std::fs::metadata(&path).expect("a file").len() as usize;
    writer.save(&batch(ONE, &[20, 30], 0)).expect("saved");
    drop(writer);
    flip(&path, first + 100);
    let found = copy.read();
    assert_eq!(positions(&found), [10]);
    assert_eq!(found.set_aside.len(), 1);
    assert!(found.set_aside[0].contains("does not match its check, at byte"), "{found:?}");
    assert_eq!(copy.files(), ["0000000000000001.journal", "0000000000000001.journal.aside"]);
    let again = copy.read();
    assert_eq!((positions(&again), again.set_aside), (vec![10], vec![]), "it is told once");
}

#[test]
fn foreign_and_unknown_files_are_set_aside_and_the_start_goes_on() {
    let copy = Copy::new();
    copy.writer().save(&batch(ONE, &[10], 0)).expect("saved");
    let path = segment_path(&copy.dir(), 1);
    let saved = std::fs::read(&path).expect("a file");
    let of = |names: (&str, &str)| {
        read_back(&copy.dir(), names, BYTES_MAX, NOW).expect("a folder").set_aside.concat()
    };
    assert!(of(("c1", "api-1.aa")).contains("it is of the cluster \"c0\""));
    std::fs::write(&path, &saved).expect("written");
    assert!(of(("c0", "api-2.bb")).contains("it is of the process \"api-1.aa\""));
    std::fs::write(&path, &saved).expect("written");
    flip(&path, 7);
    assert!(of(("c0", "api-1.aa")).contains("it has format 0, this program knows 1"));
    std::fs::write(&path, "a note of an operator").expect("written");
    assert!(of(("c0", "api-1.aa")).contains("it is not a file of a journal"));
    assert_eq!(copy.files(), ["0000000000000001.journal.aside"]);
    // A new file does not get the number of one that was set aside.
    copy.writer().save(&batch(ONE, &[20], 0)).expect("saved");
    assert_eq!(copy.files()[1], "0000000000000002.journal");
}

/// The folder of a cluster of the same name: only its epochs tell.
#[test]
fn refused_epochs_are_kept_aside() {
    let copy = Copy::new();
    copy.writer().save(&batch(ONE, &[10], 0)).expect("saved");
    let mut writer = copy.writer();
    let refused = UnsavedBatch { refused: vec![ONE], ..batch(TWO, &[], 0) };
    assert!(writer.is_news(&refused));
    writer.save(&refused).expect("saved");
    let files = ["0000000000000001.journal.aside", "0000000000000002.journal"];
    assert_eq!(copy.files(), files);
    assert_eq!(positions(&copy.read()), [0; 0]);
}

/// The disk does not take it, and then does.
#[test]
fn a_batch_that_failed_is_saved_later() {
    let copy = Copy::new();
    let mut writer = copy.writer();
    std::fs::remove_dir(copy.dir()).expect("it is empty");
    std::fs::write(copy.dir(), "in its place").expect("written");
    let batch = batch(ONE, &[10], 0);
    assert!(writer.save(&batch).is_err() && writer.save(&batch).is_err());
    assert_eq!(writer.bytes(), 0);
    std::fs::remove_file(copy.dir()).expect("it is there");
    writer.save(&batch).expect("saved");
    assert_eq!(positions(&copy.read()), [10]);
}

#[test]
fn a_group_without_a_verdict_any_more_is_not_repaired() {
    let copy = Copy::new();
    copy.writer().save(&batch(ONE, &[10], 0)).expect("saved");
    let week = 7 * 24 * 3_600_000;
    let at = |now| read_back(&copy.dir(), ("c0", "api-1.aa"), BYTES_MAX, now).expect("a folder");
    assert_eq!(positions(&at(NOW + week)), [10]);
    assert_eq!(positions(&at(NOW - week)), [10], "the clock was set back");
    let found = at(NOW + week + 1);
    assert_eq!(positions(&found), [0; 0]);
    assert!(found.set_aside[0].starts_with("1 writes are older than seven days"), "{found:?}");
}

#[test]
fn what_the_files_lack_is_read_back_until_it_is_covered() {
    let copy = Copy::new();
    let mut writer = copy.writer();
    let range = IncompleteRange { epoch: ONE, from: 1, to: 9, writes: 4 };
    let lacking = UnsavedBatch { forgotten: vec![range], ..batch(ONE, &[20], 0) };
    writer.save(&lacking).expect("saved");
    assert_eq!(copy.read().forgotten, [range]);
    writer.save(&batch(ONE, &[], 9)).expect("saved");
    assert_eq!((copy.read().forgotten, positions(&copy.read())), (vec![], vec![20]));
}
