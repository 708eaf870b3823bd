//! Popular tags: the port, the arithmetic of windows, and leaderboards in memory.
//!
//! Counts are a function of the shards' current state, never of a stream of increments, so that a
//! recount can verify and repair them. The engine that counts is a crate of its own
//! (`tagfast-popular-counts`), so that callers link neither SQLite nor Redis.

pub mod leaderboards;
pub mod port;
pub mod windows;

pub use leaderboards::{LeaderboardCache, LeaderboardSnapshot};
pub use port::{
    Leaderboard, PopularError, PopularTags, RecountReport, Suggestions, TagCount, Window,
};
