//! Which files of a journal's copy on disk are still needed. Pure.
//!
//! The copy is a sequence of *segments*, files that only grow. A segment is removed as a whole once
//! nothing in it is needed: every replica has what it says of the current epoch, and what it says
//! of ended epochs was repaired. The last segment is written to; it is replaced by a new one when
//! it has reached its size.
//!
//! How it fails: beyond the size of all together the oldest segment is given up, though it is
//! needed; the ranges that are missing then are named, and the copy keeps them
//! ([`JournalRecord::Forgotten`]).

use std::collections::{BTreeMap, VecDeque};

use tagfast_domain::EpochId;

use crate::journal_record::JournalRecord;
use crate::journaled::{AcknowledgedGroup, IncompleteRange, note_incomplete};

/// The size of a segment, as a part of the size of all.
const SEGMENT_PART: u64 = 8;
/// The size of a segment at most, in bytes.
const SEGMENT_BYTES_MAX: u64 = 16 << 20;

/// What a segment says of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    inside: u64,
    flushed: u64,
    writes: u64,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: u64,
    groups: BTreeMap<EpochId, Extent>,
    /// What it says is missing elsewhere.
    forgotten: Vec<IncompleteRange>,
}

/// A segment that is given up, though it is needed.
#[derive(Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Its number.
    pub number: u64,
    /// What is missing without it, and what it said is missing: one range an epoch.
    pub missing: Vec<IncompleteRange>,
    /// How many writes are missing now that were not before.
    pub writes: u64,
}

/// Up to where nothing of an epoch is needed, as the segments say.
#[derive(Debug, Default)]
struct Covered(BTreeMap<EpochId, u64>);

impl Covered {
    fn note(&mut self, epoch: EpochId, up_to: u64) {
        let covered = self.0.entry(epoch).or_insert(0);
        *covered = (*covered).max(up_to);
    }

    fn up_to(&self, epoch: EpochId) -> u64 {
        self.0.get(&epoch).copied().unwrap_or(0)
    }

    fn has(&self, epoch: EpochId, flushed: u64) -> bool {
        self.0.get(&epoch).is_some_and(|up_to| flushed <= *up_to)
    }
}

/// The segments of one cluster's journal.
#[derive(Debug)]
pub struct JournalSegments {
    bytes_max: u64,
    next_number: u64,
    /// The oldest first.
    segments: VecDeque<Segment>,
    covered: Covered,
}

impl JournalSegments {
    /// None yet; the first one gets this number, and all together may take `bytes_max` bytes.
    pub fn new(bytes_max: u64, next_number: u64) -> Self {
        Self { bytes_max, next_number, segments: VecDeque::new(), covered: Covered::default() }
    }

    /// What all segments take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.segments.len()
    }

    /// The number that a new segment gets.
    pub fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Whether the last segment has reached its size.
    pub fn is_last_full(&self) -> bool {
        let size = (self.bytes_max / SEGMENT_PART).min(SEGMENT_BYTES_MAX);
        self.segments.back().is_some_and(|last| last.bytes >= size)
    }

    /// Adds a segment of this size, which is the last one from now on.
    pub fn begin(&mut self, number: u64, bytes: u64) {
        let (groups, forgotten) = (BTreeMap::new(), Vec::new());
        self.segments.push_back(Segment { number, bytes, groups, forgotten });
        self.next_number = self.next_number.max(number + 1);
    }

    /// The number of the next segment is taken: a file could not be removed.
    pub fn skip_number(&mut self) {
        self.next_number += 1;
    }

    /// The segments that have groups of an epoch.
    pub fn numbers_of(&self, epoch: EpochId) -> impl Iterator<Item = u64> + '_ {
        let has_groups = move |segment: &&Segment| segment.groups.contains_key(&epoch);
        self.segments.iter().filter(has_groups).map(|segment| segment.number)
    }

    /// The last segment has grown by so many bytes.
    pub fn grow(&mut self, bytes: u64) {
        if let Some(last) = self.segments.back_mut() {
            last.bytes += bytes;
        }
    }

    /// The last segment has this record.
    pub fn add(&mut self, record: &JournalRecord) {
        match record {
            JournalRecord::Group(group) => self.add_group(group),
            JournalRecord::Covered { epoch, up_to } => self.covered.note(*epoch, *up_to),
            JournalRecord::Forgotten(range) => {
                if let Some(last) = self.segments.back_mut() {
                    note_incomplete(&mut last.forgotten, *range);
                }
            }
        }
    }

    /// The last segment has this group.
    pub fn add_group(&mut self, group: &AcknowledgedGroup) {
        let Some(last) = self.segments.back_mut() else { return };
        let (at, writes) = (group.at, group.writes() as u64);
        let new = Extent { inside: at.inside, flushed: at.flushed, writes: 0 };
        let extent = last.groups.entry(at.epoch).or_insert(new);
        extent.inside = extent.inside.min(at.inside);
        extent.flushed = extent.flushed.max(at.flushed);
        extent.writes += writes;
    }

    /// Whether a position is covered, as the segments say.
    pub fn is_covered(&self, epoch: EpochId, flushed: u64) -> bool {
        self.covered.has(epoch, flushed)
    }

    /// The records that must be added so that the segments say what is not needed any more:
    /// `current` with the position up to which all replicas have its log; `has_older`: entries of
    /// ended epochs wait for a repair.
    pub fn to_be_covered(
        &self,
        current: Option<(EpochId, u64)>,
        has_older: bool,
    ) -> Vec<JournalRecord> {
        let Some((current, up_to)) = current else { return Vec::new() };
        let mut newest: BTreeMap<EpochId, u64> = BTreeMap::new();
        for segment in &self.segments {
            let groups = segment.groups.iter().map(|(epoch, extent)| (*epoch, extent.flushed));
            let forgotten = segment.forgotten.iter().map(|range| (range.epoch, range.to));
            for (epoch, flushed) in groups.chain(forgotten) {
                let known = newest.entry(epoch).or_insert(flushed);
                *known = (*known).max(flushed);
            }
        }
        let covered = |(epoch, flushed): (EpochId, u64)| {
            let said = self.covered.up_to(epoch);
            let is_ended = epoch != current;
            let up_to = match is_ended {
                true if has_older => return None,
                true => u64::MAX,
                false => up_to,
            };
            let says_more = up_to > said && said < flushed;
            says_more.then_some(JournalRecord::Covered { epoch, up_to })
        };
        newest.into_iter().filter_map(covered).collect()
    }

    /// Takes the segments out that are not needed, never the last one; returns their numbers.
    pub fn take_unneeded(&mut self) -> Vec<u64> {
        let mut unneeded = Vec::new();
        let last = self.segments.back().map(|segment| segment.number);
        let covered = &self.covered;
        self.segments.retain(|segment| {
            let is_needed =
                Some(segment.number) == last || missing_without(segment, covered).next().is_some();
            if !is_needed {
                unneeded.push(segment.number);
            }
            is_needed
        });
        unneeded
    }

    /// Gives the oldest segment up while all together are too large; `None`: they are not, or there
    /// is only one.
    pub fn give_up_oldest(&mut self) -> Option<GivenUp> {
        if self.bytes() <= self.bytes_max || self.segments.len() <= 1 {
            return None;
        }
        let oldest = self.segments.pop_front()?;
        let said = oldest.forgotten.iter().filter(|r| !self.covered.has(r.epoch, r.to));
        let said: u64 = said.map(|range| range.writes).sum();
        let mut missing = Vec::new();
        let ranges = missing_without(&oldest, &self.covered);
        ranges.for_each(|range| note_incomplete(&mut missing, range));
        let all: u64 = missing.iter().map(|range| range.writes).sum();
        Some(GivenUp { number: oldest.number, missing, writes: all - said })
    }
}

/// The ranges that are missing without a segment.
fn missing_without<'a>(
    segment: &'a Segment,
    covered: &'a Covered,
) -> impl Iterator<Item = IncompleteRange> + 'a {
    let groups = segment.groups.iter().map(|(epoch, extent)| IncompleteRange {
        epoch: *epoch,
        from: extent.inside,
        to: extent.flushed,
        writes: extent.writes,
    });
    let all = groups.chain(segment.forgotten.iter().copied());
    all.filter(|range| !covered.has(range.epoch, range.to))
}
