//! The true counts: the newest state of every content, counted naively.

use std::collections::BTreeMap;

use tagfast_domain::{TenantId, UnixMillis};
use tagfast_popular::Window;
use tagfast_store::testing::MemoryStore;

/// Tags of a window at `now` (Unix ms), most used first, ties by name: (tag, display, count).
pub(crate) fn leaderboard(
    shards: &MemoryStore,
    tenant: &TenantId,
    window: Window,
    now: UnixMillis,
) -> Vec<(String, String, u64)> {
    let documents = shards.documents(tenant);
    let start = match window {
        Window::All => i64::MIN,
        Window::Hour => (now.div_euclid(60_000) - 59) * 60_000,
        Window::Day => (now.div_euclid(3_600_000) - 23) * 3_600_000,
        Window::Week => (now.div_euclid(3_600_000) - 167) * 3_600_000,
    };
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut firsts: BTreeMap<&str, (UnixMillis, &str)> = BTreeMap::new();
    for (_, document) in &documents {
        for tagging in document.live() {
            let (name, first) = (tagging.name.as_str(), (tagging.at, &*tagging.display));
            if tagging.at >= start {
                *counts.entry(name).or_default() += 1;
            }
            let known = firsts.entry(name).or_insert(first);
            *known = first.min(*known);
        }
    }
    let mut leaderboard: Vec<_> =
        counts.into_iter().map(|(tag, n)| (tag.to_owned(), firsts[tag].1.to_owned(), n)).collect();
    leaderboard.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| a.0.cmp(&b.0)));
    leaderboard
}
