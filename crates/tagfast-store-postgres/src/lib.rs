//! The store on PostgreSQL clusters under Patroni.
//!
//! A cluster is a primary with its replicas; the shard map says which cluster holds a content. For
//! each cluster there is one watcher (who reigns, may it be believed), a few writer lanes (group
//! commit on the primary), one reader a node (batches of reads under a limit), another one for
//! strong reads on the primary, a breaker for each role, and a relay (outbox to sink). Nothing is
//! shared between clusters: one that hangs takes no task, connection or queue place of another.
//!
//! How it fails. A primary dies: its writes wait, at most the hold time; its reads go to replicas,
//! marked where a promise cannot be kept. A primary that another node may have replaced: nothing it
//! commits is acknowledged; the writes are tried again with their ids. etcd is silent:
//! acknowledgements go on while the lease or the members prove the reign.

mod checks;
mod cluster;
mod connect;
mod etcd;
mod group;
mod lane;
mod letters;
pub mod metric;
mod options;
mod query;
mod reader;
pub mod relay;
mod remembered;
mod schema;
#[cfg(test)]
mod silence;
mod store;
mod tls;
mod touch;
mod views;
mod watcher;

pub use letters::PostgresLetters;
pub use metric::METRICS;
pub use options::{ClusterOptions, PostgresOptions};
pub use relay::{Discard, OutboxRow, OutboxSink, PastEpoch, PublishError};
pub use store::{ClusterStatus, OpenError, PostgresStore};
pub use tls::{Tls, TlsError};

/// Time since this machine's start, asleep or not.
pub(crate) fn boot_time() -> tagfast_failover::BootTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    tagfast_failover::BootTime(std::time::Duration::new(seconds, nanos))
}
