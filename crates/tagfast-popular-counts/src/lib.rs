//! The engine of popular tags: counts in SQLite files, and leaderboards that all processes share in
//! Redis.
//!
//! Each partition of the bus has one file with the newest state of every content and the counts
//! that follow from these states. In embedded mode the files answer requests themselves. In a
//! cluster each process counts the partitions that the consumer group assigned to it and publishes
//! their counts to Redis, from which every process answers.

mod counts;
mod files;
mod merged_tags;
pub mod metrics;
mod owned_partitions;
mod partition_file;
mod popular_tags;
mod recount;
pub mod redis_leaderboards;
mod sink;

pub use counts::PopularCounts;
pub use metrics::METRICS;
pub use redis_leaderboards::{LeaderboardError, LeaderboardPublisher, RedisLeaderboards};
pub use sink::{APPLY_BATCH_MAX, CONSUMER_GROUP};
