//! Leaderboards and completion of one tenant at one moment.
//!
//! Memory is bounded however many tags the tenant has: a snapshot keeps the most used tags only,
//! and so does the builder while counts stream through it.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use tagfast_domain::TagName;
use tagfast_resilience::task;

use crate::completion::{CompletionForms, MatchPlace};
use crate::port::{PopularError, Suggestion, TagCount, Window};

/// Maximum number of tags on a leaderboard.
pub const LEADERBOARD_TAGS_MAX: usize = 1000;
/// Maximum number of a tenant's tags that completion knows.
pub const TYPEAHEAD_TAGS_MAX: usize = 100_000;
/// Completion among more tags than this runs on the blocking pool: it takes milliseconds.
const INLINE_TAGS_MAX: usize = 5000;

/// Leaderboards and completion of one tenant at one moment.
#[derive(Default)]
pub struct LeaderboardSnapshot {
    /// The leaderboards of the windows that expire, in the order of [`Window::ALL`].
    expiring: [Vec<TagCount>; 3],
    /// The most used tags, at most [`TYPEAHEAD_TAGS_MAX`].
    ranked: Vec<TagCount>,
    /// Place of each tag in `ranked`.
    by_name: HashMap<TagName, u32>,
    forms: CompletionForms,
    /// Whether the tenant has more tags than `ranked`.
    approximate: bool,
    bytes: usize,
}

/// A tag on its way to a leaderboard. The greater one of two is the worse one.
struct Ranked(TagCount);

impl Ranked {
    fn order(&self, count: u64, tag: &str) -> Ordering {
        count.cmp(&self.0.count).then_with(|| self.0.tag.as_str().cmp(tag))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order(other.0.count, other.0.tag.as_str())
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

/// The best tags of those that were offered.
struct BestTags {
    worst_first: BinaryHeap<Ranked>,
    max: usize,
}

impl BestTags {
    fn new(max: usize) -> Self {
        Self { worst_first: BinaryHeap::new(), max }
    }

    /// Whether a tag with this count belongs to the best ones so far.
    fn wants(&self, tag: &str, count: u64) -> bool {
        let full = self.worst_first.len() >= self.max;
        let worst = self.worst_first.peek().filter(|_| full);
        count > 0 && worst.is_none_or(|worst| worst.order(count, tag) == Ordering::Greater)
    }

    fn put(&mut self, tag: TagCount) {
        if self.worst_first.len() >= self.max {
            self.worst_first.pop();
        }
        self.worst_first.push(Ranked(tag));
    }

    fn into_sorted(self) -> Vec<TagCount> {
        self.worst_first.into_sorted_vec().into_iter().map(|ranked| ranked.0).collect()
    }
}

/// Builds a snapshot from counts that are given one by one, in any order, each tag once.
pub struct SnapshotBuilder {
    /// In the order of [`Window::ALL`].
    best: [BestTags; 4],
    tags: usize,
}

impl Default for SnapshotBuilder {
    fn default() -> Self {
        Self {
            best: Window::ALL.map(|window| {
                BestTags::new(match window {
                    Window::All => TYPEAHEAD_TAGS_MAX,
                    Window::Hour | Window::Day | Window::Week => LEADERBOARD_TAGS_MAX,
                })
            }),
            tags: 0,
        }
    }
}

impl SnapshotBuilder {
    /// Adds a tag: its canonical name, its display (`None` if unknown) and its counts in the order
    /// of [`Window::ALL`]. A count of 0 is no use.
    pub fn add(&mut self, tag: &str, display: Option<&str>, counts: [u64; 4]) {
        self.tags += usize::from(counts[Window::All.index()] > 0);
        let mut made: Option<(TagName, Arc<str>)> = None;
        for (best, count) in self.best.iter_mut().zip(counts) {
            if !best.wants(tag, count) {
                continue;
            }
            let (tag, display) = made.get_or_insert_with(|| {
                let name = TagName::from_canonical(tag);
                let display = match display {
                    Some(display) if display != tag => display.into(),
                    Some(_) | None => name.shared(),
                };
                (name, display)
            });
            best.put(TagCount { tag: tag.clone(), display: Arc::clone(display), count });
        }
    }

    /// The snapshot of the tags that were added.
    pub fn finish(self) -> LeaderboardSnapshot {
        let [all, hour, day, week] = self.best;
        let ranked = all.into_sorted();
        let expiring = [hour, day, week].map(BestTags::into_sorted);
        let forms = CompletionForms::of(ranked.iter().map(|t| (t.tag.as_str(), &*t.display)));
        let by_name = (0..).zip(&ranked).map(|(n, t)| (t.tag.clone(), n)).collect();
        let text = |t: &TagCount| 2 * t.tag.as_str().len() + t.display.len();
        let per_tag = 2 * size_of::<TagCount>() + size_of::<(TagName, u32)>();
        let bytes = forms.bytes()
            + ranked.iter().map(|t| text(t) + per_tag).sum::<usize>()
            + expiring.iter().flatten().map(|t| text(t) + per_tag).sum::<usize>();
        let approximate = self.tags > ranked.len();
        LeaderboardSnapshot { expiring, ranked, by_name, forms, approximate, bytes }
    }
}

impl LeaderboardSnapshot {
    /// Whether completion may miss rarely used tags, and [`LeaderboardSnapshot::count`] too.
    pub fn is_approximate(&self) -> bool {
        self.approximate
    }

    /// Memory of the snapshot, in bytes, as an estimate that is not too low.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The most used tags of a window, at most [`LEADERBOARD_TAGS_MAX`].
    pub fn leaderboard(&self, window: Window, limit: usize) -> Vec<TagCount> {
        let ranking = match window.index().checked_sub(1) {
            None => &self.ranked,
            Some(expiring) => &self.expiring[expiring],
        };
        ranking.iter().take(limit.min(LEADERBOARD_TAGS_MAX)).cloned().collect()
    }

    /// Count of a tag over all time; `None` if no content carries it, or if it is not among the
    /// [`TYPEAHEAD_TAGS_MAX`] most used ones.
    pub fn count(&self, tag: &TagName) -> Option<&TagCount> {
        self.by_name.get(tag).and_then(|n| self.ranked.get(*n as usize))
    }

    /// Tags that the typed text may become: by place, then by use.
    ///
    /// # Errors
    ///
    /// [`PopularError::Unavailable`] if the work on the blocking pool is lost.
    pub async fn suggest(
        self: Arc<Self>,
        typed: &str,
        limit: usize,
    ) -> Result<Vec<Suggestion>, PopularError> {
        if self.ranked.len() <= INLINE_TAGS_MAX {
            return Ok(self.completions(typed, limit));
        }
        let typed = typed.to_owned();
        task::blocking(move || self.completions(&typed, limit))
            .await
            .map_err(PopularError::unavailable)
    }

    fn completions(&self, typed: &str, limit: usize) -> Vec<Suggestion> {
        let of = |tag: &TagCount, place| Suggestion { tag: tag.clone(), place };
        match self.forms.complete(typed, limit) {
            None => self.ranked.iter().take(limit).map(|t| of(t, MatchPlace::Start)).collect(),
            Some(found) => {
                let found = found.into_iter();
                found.filter_map(|(n, p)| self.ranked.get(n as usize).map(|t| of(t, p))).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many tags stream through it, the builder keeps the best ones only.
    #[test]
    fn the_best_tags_stay_and_memory_is_bounded() {
        let mut builder = SnapshotBuilder::default();
        let tags = TYPEAHEAD_TAGS_MAX + 5000;
        for n in 0..tags {
            // Neither ascending nor descending.
            let n = (n * 7919) % tags;
            builder.add(&format!("tag-{n:07}"), None, [n as u64, (n / 2) as u64, 0, 1]);
        }
        builder.add("unused", None, [0; 4]);
        assert!(builder.best[0].worst_first.len() <= TYPEAHEAD_TAGS_MAX);
        let snapshot = builder.finish();
        assert!(snapshot.is_approximate());
        let top = snapshot.leaderboard(Window::All, 3);
        let counts: Vec<u64> = top.iter().map(|t| t.count).collect();
        assert_eq!(counts, [tags - 1, tags - 2, tags - 3].map(|n| n as u64));
        assert_eq!(snapshot.leaderboard(Window::All, 5000).len(), LEADERBOARD_TAGS_MAX);
        assert!(snapshot.leaderboard(Window::Day, 10).is_empty());
        let week = snapshot.leaderboard(Window::Week, 2);
        let names: Vec<&str> = week.iter().map(|t| t.tag.as_str()).collect();
        assert_eq!(names, ["tag-0000000", "tag-0000001"], "ties are ordered by name");
        assert_eq!(snapshot.count(&TagName::from_canonical("tag-0000007")), None);
        assert!(snapshot.bytes() < 40 << 20, "{}", snapshot.bytes());
    }
}
