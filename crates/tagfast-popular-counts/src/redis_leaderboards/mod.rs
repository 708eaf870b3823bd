//! The leaderboards of all processes, in the state Redis.
//!
//! The owner of each partition pushes absolute counts of the tags that changed. The owner of a
//! tenant's merge partition sums them up to the tenant's leaderboards, and every process that
//! answers requests reads those. Redis keeps nothing that is not in the owners' files: if it is
//! emptied, restored from an old copy or replaced by a replica, the owners fill it again. Fencing:
//! every write checks the claim of its partition, so a previous owner cannot overwrite newer counts
//! with older ones.
//!
//! | key | value |
//! |---|---|
//! | `tf:gen` | identity of this Redis (`tagfast-redis`) |
//! | `tf:po:P` | owner of partition P: a random claim |
//! | `tf:pc:P:tenant:window` | hash tag -> count in partition P; of `all` with first spelling |
//! | `tf:pp:P` | set of tenants with counts in partition P |
//! | `tf:pa` | hash partition -> every write committed before this time (Unix ms) is pushed |
//! | `tf:pd:tenant`, `tf:pm:tenant` | set of tags to merge, and of tags being merged |
//! | `tf:pt:P` | set of tenants whose leaderboards the owner of P must merge |
//! | `tf:pl:tenant:window` | sorted set tag -> count: the leaderboard |
//! | `tf:pn:tenant` | hash tag -> display |
//! | `tf:pv:tenant` | time of the last change; a counter would restart in an emptied Redis |
//! | `tf:pw` | hash partition -> every write committed before this time (Unix ms) is merged |

mod error;
mod keys;
mod publisher;
mod reader;
mod scripts;

pub use self::error::LeaderboardError;
pub use self::publisher::LeaderboardPublisher;
pub use self::reader::RedisLeaderboards;
