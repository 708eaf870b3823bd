//! Faults of real servers under load. One stack of two clusters for all tests, which run one at a
//! time.

mod client;
mod etcd_members;
#[cfg(feature = "full")]
mod failback;
#[cfg(feature = "full")]
mod failover;
mod journal_copy;
#[cfg(feature = "full")]
mod judge;
mod load;
mod process;
mod repair;
mod repair_clients;
mod repair_races;
mod replica_ages;
mod replica_faults;
mod replication_lag;
mod retries;
mod scenarios;
mod shield;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "shared with the conformance tests, which use other parts")]
mod support;
mod terms;
mod unresponsive;
#[path = "../real/writes.rs"]
mod writes;
