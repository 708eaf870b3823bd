//! The true counts: the newest state of every content, counted naively.

use std::collections::BTreeMap;

use tagfast_domain::{ContentKey, TaggingsEvent, UnixMillis};
use tagfast_popular::Window;

#[derive(Default)]
pub(crate) struct Model {
    states: BTreeMap<ContentKey, TaggingsEvent>,
}

impl Model {
    pub(crate) fn observe(&mut self, event: &TaggingsEvent) {
        if self.states.get(&event.key).is_none_or(|known| known.version < event.version) {
            self.states.insert(event.key.clone(), event.clone());
        }
    }

    pub(crate) fn states(&self) -> impl Iterator<Item = (&ContentKey, &TaggingsEvent)> {
        self.states.iter()
    }

    /// Tags of a window at `now` (Unix ms), most used first, ties by name: (tag, display, count).
    pub(crate) fn leaderboard(
        &self,
        tenant: &str,
        window: Window,
        now: UnixMillis,
    ) -> Vec<(String, String, u64)> {
        let start = match window {
            Window::All => i64::MIN,
            Window::Hour => (now.div_euclid(60_000) - 59) * 60_000,
            Window::Day => (now.div_euclid(3_600_000) - 23) * 3_600_000,
            Window::Week => (now.div_euclid(3_600_000) - 167) * 3_600_000,
        };
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        let mut firsts: BTreeMap<&str, (UnixMillis, &str)> = BTreeMap::new();
        for event in self.states.values().filter(|e| e.key.tenant.as_str() == tenant) {
            for tagging in &event.tags {
                let (name, first) = (tagging.name.as_str(), (tagging.at, &*tagging.display));
                if tagging.at >= start {
                    *counts.entry(name).or_default() += 1;
                }
                let known = firsts.entry(name).or_insert(first);
                *known = first.min(*known);
            }
        }
        let mut leaderboard: Vec<_> = counts
            .into_iter()
            .map(|(tag, n)| (tag.to_owned(), firsts[tag].1.to_owned(), n))
            .collect();
        leaderboard.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| a.0.cmp(&b.0)));
        leaderboard
    }
}
