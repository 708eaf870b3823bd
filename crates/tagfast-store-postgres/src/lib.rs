//! The store on PostgreSQL clusters under Patroni.
//!
//! A cluster is a primary with its replicas; the shard map says which cluster holds a content. Each
//! cluster has one watcher (which member leads, and is that proven), a few writer lanes (group
//! commit on the primary), one reader a node (batches of reads under a limit) and a second one for
//! strong reads on the primary, a breaker for each role, and a relay (outbox to sink). Clusters
//! share nothing: one that hangs takes no task, connection or queue place of another.
//!
//! | folder | it holds |
//! |---|---|
//! | `cluster/` | what is known of a cluster, and the tasks that keep it current |
//! | `health/` | how many calls fail lately, and why |
//! | `journal_files/` | the copies of the journals on disk |
//! | `write/` | lanes and group commit |
//! | `read/` | routing of reads, batches, limits |
//! | `outbox/` | committed events on their way to the bus |
//! | `repair/` | what failovers lost comes back; verdicts and reports |
//!
//! How it fails. A primary dies: its writes wait, at most the hold time; its reads go to replicas,
//! marked where a promise cannot be kept. A primary that may have been replaced: nothing that it
//! commits is acknowledged; the writes are retried with their ids. etcd does not answer:
//! acknowledgements go on while the lease or the members prove leadership.

mod boot_clock;
mod cluster;
mod cluster_report;
mod cluster_status;
mod connect;
mod dead_letters;
mod health;
mod journal_files;
mod locks;
pub mod metric;
mod options;
mod outbox;
mod read;
mod refusal;
mod repair;
mod scan;
mod scan_session;
mod schema;
mod sql;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;
#[cfg(test)]
mod unresponsive_tests;
mod write;

pub use cluster::etcd::EtcdError;
pub use cluster_status::ClusterStatus;
pub use dead_letters::PostgresDeadLetters;
pub use health::calls::FailingCalls;
pub use health::cause::{CallKind, FailureCause};
pub use journal_files::{JournalFolderError, check_journal_dir};
pub use metric::METRICS;
pub use options::{ClusterOptions, EtcdLogin, PostgresOptions, ReplicatedMeans, SynchronousCommit};
pub use outbox::sink::{NullSink, OutboxBatch, OutboxRow, OutboxSink, PublishError};
pub use store::{OpenError, PostgresStore};
pub use tagfast_failover::OnLag;
pub use tls::{Tls, TlsError, check_authorities};
