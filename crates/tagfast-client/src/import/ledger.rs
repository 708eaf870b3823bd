//! Counts what became of each line, once.
//!
//! The server answers batches in any order. What is counted belongs to the lines up to one line,
//! which is the end of a segment of the file; answers beyond it wait. So the counts of a checkpoint
//! are those of the lines before it, and an import that resumes there counts no line twice and
//! leaves none out.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Upper limit of bad lines that are listed.
const BAD_LINES_MAX: usize = 10_000;
/// Upper limit of the reasons of the bad lines that are listed, in bytes.
const BAD_LINES_BYTES_MAX: usize = 1 << 20;

/// What became of lines; each line is in one of `contents`, `bad` and `blank`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Totals {
    /// Lines that were applied.
    pub(super) contents: u64,
    /// Taggings that these lines name.
    pub(super) taggings: u64,
    /// Taggings that were new.
    pub(super) added: u64,
    /// Lines that were refused, here or by the server.
    pub(super) bad: u64,
    /// Empty lines.
    pub(super) blank: u64,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.contents += other.contents;
        self.taggings += other.taggings;
        self.added += other.added;
        self.bad += other.bad;
        self.blank += other.blank;
    }
}

/// A line that was refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct BadLine {
    /// Line number, from 1.
    pub(super) line: u64,
    /// What is wrong with it.
    pub(super) reason: String,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct SendSummary {
    /// Contents written.
    pub(super) contents: u64,
    /// Taggings acknowledged.
    pub(super) taggings: u64,
    /// Taggings that were new.
    pub(super) added: u64,
    /// The lines that the server refused.
    pub(super) bad: Vec<BadLine>,
}

/// The lines up to a certain one, and what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    /// The last of these lines.
    pub(super) line: u64,
    /// SHA-256 of these lines, in hexadecimal digits; empty = no line.
    pub(super) digest: String,
    /// What became of them.
    pub(super) totals: Totals,
    /// The bad ones, in order; at most [`BAD_LINES_MAX`].
    pub(super) bad_lines: Vec<BadLine>,
}

/// A segment of which not every batch is answered, or which follows such a one.
#[derive(Debug)]
struct OpenSegment {
    through: u64,
    digest: String,
    batches_left: usize,
    totals: Totals,
    bad_lines: Vec<BadLine>,
}

/// What became of every line of an import so far.
#[derive(Debug)]
pub(super) struct Ledger {
    done: Done,
    open: VecDeque<OpenSegment>,
    /// Number of the first open segment.
    first_open: u64,
    /// Size of the reasons in `done`, in bytes.
    reason_bytes: usize,
}

impl Ledger {
    /// Goes on behind what is done.
    pub(super) fn after(done: Done) -> Self {
        let reason_bytes = done.bad_lines.iter().map(|b| b.reason.len()).sum();
        Self { done, open: VecDeque::new(), first_open: 0, reason_bytes }
    }

    /// Opens the next segment, which ends with line `through`, where the lines so far have this
    /// `digest`. Returns its number.
    pub(super) fn open(
        &mut self,
        through: u64,
        digest: String,
        batches: usize,
        blank: u64,
        bad_lines: Vec<BadLine>,
    ) -> u64 {
        let number = self.first_open + self.open.len() as u64;
        let totals = Totals { blank, bad: bad_lines.len() as u64, ..Totals::default() };
        self.open.push_back(OpenSegment {
            through,
            digest,
            batches_left: batches,
            totals,
            bad_lines,
        });
        self.close();
        number
    }

    /// A batch of the segment with this number is answered.
    pub(super) fn settle(&mut self, number: u64, sent: SendSummary) {
        let place = number.checked_sub(self.first_open).and_then(|p| usize::try_from(p).ok());
        let Some(segment) = place.and_then(|place| self.open.get_mut(place)) else { return };
        segment.totals.add(Totals {
            contents: sent.contents,
            taggings: sent.taggings,
            added: sent.added,
            bad: sent.bad.len() as u64,
            blank: 0,
        });
        segment.bad_lines.extend(sent.bad);
        segment.batches_left -= 1;
        self.close();
    }

    /// The lines that are done without a gap.
    pub(super) fn done(&self) -> &Done {
        &self.done
    }

    /// Segments that are not done.
    pub(super) fn open_segments(&self) -> usize {
        self.open.len()
    }

    /// What became of all lines that are answered, also behind a gap.
    pub(super) fn so_far(&self) -> Totals {
        let mut totals = self.done.totals;
        self.open.iter().for_each(|segment| totals.add(segment.totals));
        totals
    }

    fn close(&mut self) {
        while self.open.front().is_some_and(|s| s.batches_left == 0) {
            let Some(mut segment) = self.open.pop_front() else { return };
            self.first_open += 1;
            self.done.line = segment.through;
            self.done.digest = segment.digest;
            self.done.totals.add(segment.totals);
            segment.bad_lines.sort();
            for bad in segment.bad_lines {
                self.reason_bytes += bad.reason.len();
                if self.done.bad_lines.len() < BAD_LINES_MAX
                    && self.reason_bytes <= BAD_LINES_BYTES_MAX
                {
                    self.done.bad_lines.push(bad);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(contents: u64, bad: &[u64]) -> SendSummary {
        let bad = bad.iter().map(|line| BadLine { line: *line, reason: "no".to_owned() }).collect();
        SendSummary { contents, taggings: 2 * contents, added: contents, bad }
    }

    #[test]
    fn what_is_done_ends_before_the_first_gap_and_counts_each_line_once() {
        let mut ledger = Ledger::after(Done { line: 10, ..Done::default() });
        let first = ledger.open(20, "a".to_owned(), 2, 3, Vec::new());
        let second = ledger.open(30, "b".to_owned(), 1, 0, Vec::new());
        ledger.settle(second, sent(9, &[27]));
        ledger.settle(first, sent(4, &[]));
        assert_eq!((ledger.done().line, ledger.done().totals.contents), (10, 0));
        assert_eq!((ledger.so_far().contents, ledger.open_segments()), (13, 2));
        ledger.settle(first, sent(1, &[15, 12]));
        let done = ledger.done().clone();
        assert_eq!((done.line, done.digest.as_str(), ledger.open_segments()), (30, "b", 0));
        let totals = Totals { contents: 14, taggings: 28, added: 14, bad: 3, blank: 3 };
        assert_eq!(done.totals, totals);
        assert_eq!(done.bad_lines.iter().map(|b| b.line).collect::<Vec<_>>(), [12, 15, 27]);
        // A segment without a line to send is done at once.
        ledger.open(31, "c".to_owned(), 0, 0, vec![BadLine { line: 31, reason: "x".to_owned() }]);
        assert_eq!((ledger.done().line, ledger.done().totals.bad), (31, 4));
    }

    #[test]
    fn the_list_of_bad_lines_is_bounded_and_their_number_is_not() {
        let mut ledger = Ledger::after(Done::default());
        for n in 0..3 * BAD_LINES_MAX as u64 {
            let reason = "r".repeat(if n == 5 { BAD_LINES_BYTES_MAX } else { 1 });
            ledger.open(n + 1, String::new(), 0, 0, vec![BadLine { line: n + 1, reason }]);
        }
        assert_eq!(ledger.done().totals.bad, 3 * BAD_LINES_MAX as u64);
        assert_eq!(ledger.done().bad_lines.len(), 5);
    }
}
