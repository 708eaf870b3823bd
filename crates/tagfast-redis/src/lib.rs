//! A client of one Redis server for the cache, session positions and leaderboards: it discovers
//! the server, checks it, keeps one connection and guards calls with a breaker.
//!
//! Callers never wait for a connection. One background task per server connects, checks the server
//! and reconnects after a failure; a call finds a connection or fails at once. Every call has a
//! timeout and passes the breaker `redis/cache` or `redis/state`.
//!
//! How it fails: a server that is too old, in cluster mode, has an eviction policy that would lose
//! data, or refuses the password is not used. [`Redis::problem`] names the reason and the task
//! checks again. A server that hangs costs each call its timeout until the breaker opens. A replica
//! is never written to: the task discovers the primary again.

mod connection;
mod credentials;
mod discovery;
mod endpoint;
mod error;
pub mod keys;
mod metric;
mod role;
mod server_check;

pub use connection::Redis;
pub use credentials::RedisOptions;
pub use endpoint::{Endpoint, InvalidUrl};
pub use error::RedisError;
pub use metric::METRICS;
pub use role::RedisRole;
pub use server_check::random_name;
