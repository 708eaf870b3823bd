//! Every advisory lock that the service takes in PostgreSQL.
//!
//! | lock | held by | so that | released with |
//! |---|---|---|---|
//! | [`MIGRATION`] | a watcher | one node migrates | the transaction |
//! | [`ACTIVE_RELAY`] | a relay | one relay publishes a cluster | the session |
//! | [`DEAD_LETTER_LEADER`] | a dead-letter supervisor | one supervises | the session |
//! | ([`LANE_CLASS`], lane) | a lane after a lost race | nodes take turns | the transaction |
//!
//! | lock | number |
//! |---|---|
//! | [`MIGRATION`] | `0x7461_6766_6173_7401` |
//! | [`ACTIVE_RELAY`] | `0x7461_6766_6173_7402` |
//! | [`DEAD_LETTER_LEADER`] | `0x7461_6766_6173_7403` |
//! | ([`LANE_CLASS`], lane) | `1952540518` and the lane's number |
//!
//! The first three are numbers of one 64-bit key; the last one is a pair of 32-bit keys, which
//! PostgreSQL keeps apart from those. A session that ends, for whatever reason, releases its locks;
//! the sessions that hold one have an `idle_session_timeout`, so that a process that stands still
//! loses it.

/// Held while migrating the schema.
pub(crate) const MIGRATION: i64 = 0x7461_6766_6173_7401;

/// Held by the session of the active relay.
pub(crate) const ACTIVE_RELAY: i64 = 0x7461_6766_6173_7402;

/// Held by the session of the process that supervises dead letters.
pub(crate) const DEAD_LETTER_LEADER: i64 = 0x7461_6766_6173_7403;

/// The first key of the locks of writer lanes; the lane's number is the second one.
pub(crate) const LANE_CLASS: i32 = 1_952_540_518;
