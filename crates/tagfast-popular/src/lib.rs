//! Popular tags: the port, the arithmetic of windows, completion, and leaderboards in memory.
//!
//! Counts are a function of the shards' current state, never of a stream of increments, so that a
//! recount can verify and repair them. The engine that counts is a crate of its own
//! (`tagfast-popular-counts`), so that callers link neither SQLite nor Redis.

mod completion;
mod leaderboard_snapshot;
pub mod leaderboards;
pub mod port;
pub mod windows;

pub use completion::MatchPlace;
pub use leaderboard_snapshot::{LeaderboardSnapshot, SnapshotBuilder};
pub use leaderboards::LeaderboardCache;
pub use port::{
    Leaderboard, PopularError, PopularTags, RecountProgress, RecountReport, Suggestion,
    Suggestions, TagCount, TagPage, TagUse, Window,
};
