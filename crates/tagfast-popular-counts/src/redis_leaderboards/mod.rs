//! The leaderboards of all processes, in the state Redis.
//!
//! The owner of each partition pushes absolute counts of the tags that changed. The owner of a
//! tenant's merge partition sums them up to the tenant's leaderboards, and every process that
//! answers requests reads those. Redis keeps nothing that is not in the owners' files: if it is
//! emptied, restored from an old copy or replaced by a replica, the owners fill it again. Fencing:
//! every write checks the claim of its partition, so a previous owner cannot overwrite newer counts
//! with older ones.
//!
//! [`tagfast_redis::keys`] lists the keys.

mod error;
mod merge_partition;
mod publisher;
mod publisher_health;
mod reader;
mod scripts;

pub use self::error::LeaderboardError;
pub use self::publisher::LeaderboardPublisher;
pub use self::reader::RedisLeaderboards;
