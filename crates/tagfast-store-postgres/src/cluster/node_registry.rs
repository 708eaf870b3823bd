//! The registration of this process in etcd, and the memory of those that were registered.
//!
//! Every process that may hold a journal is registered, so that the closing of a repair waits for
//! it. A registration ends with its lease, so a process that died delays a closing by the lease at
//! most. One whose journal is also on disk is waited for longer, because it may be started again:
//! it then registers and reports under the same name. What was registered a while ago is
//! remembered, so that a process that died together with a primary is named in the report of the
//! failover, also when its lease ended before.
//!
//! How it fails: while etcd does not answer the lease runs out, and the process is registered again
//! with the first answer. A repair that is closed meanwhile refuses what this process still has,
//! and lists it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_failover::closing::CLOSING_AFTER;
use tagfast_resilience::{Clock, OutageLog};
use tokio::time::Instant;

use crate::cluster::etcd::repair_keys::StoredNode;
use crate::cluster::etcd::{Etcd, EtcdError};

/// How long a registration lives without its process.
const REGISTRATION_TTL: Duration = Duration::from_secs(10);
/// The same of a process that has a copy of its journal on disk: as long as a closing waits.
const REGISTRATION_TTL_WITH_COPY: Duration = CLOSING_AFTER;
/// Between two renewals: two may fail.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(3);
/// After a failure.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long before an epoch a process may have been seen last and still be missed in its report:
/// longer than a node's death takes to be noticed, with the longest lease of a leader key.
const MISSED_AFTER: Duration = Duration::from_secs(60);

/// When each process was last seen registered. One that left is forgotten.
#[derive(Debug, Default)]
struct SeenNodes(HashMap<String, Instant>);

impl SeenNodes {
    fn record(&mut self, nodes: &[(String, StoredNode)], now: Instant) {
        for (process, node) in nodes {
            if node.is_leaving {
                self.0.remove(process);
            } else {
                self.0.insert(process.clone(), now);
            }
        }
        // A repair takes minutes at most.
        self.0.retain(|_, seen| now.duration_since(*seen) < MISSED_AFTER * 10);
    }

    /// Those that were registered shortly before this moment, or later.
    fn around(&self, moment: Instant) -> BTreeSet<String> {
        let recent = |seen: &Instant| *seen + MISSED_AFTER >= moment;
        let recent = self.0.iter().filter(|(_, seen)| recent(seen));
        recent.map(|(process, _)| process.clone()).collect()
    }
}

/// A name for a process: that of its node and a random part, so that a process that was started
/// again is not taken for the one before it.
pub(crate) fn new_process_name(node: &str) -> String {
    format!("{node}.{:08x}", fastrand::u32(..))
}

/// The registration of this process, and what it knows of the others.
pub(crate) struct NodeRegistry {
    etcd: Etcd,
    clock: Arc<dyn Clock>,
    /// The name of this process.
    pub(crate) process: String,
    /// It has a copy of its journal on disk, and the same name when it is started again.
    pub(crate) has_copy: bool,
    seen: Mutex<SeenNodes>,
    /// `None`: it is to be asked for.
    lease: Mutex<Option<u64>>,
}

impl NodeRegistry {
    /// Nothing is registered before [`NodeRegistry::keep`] runs. `has_copy`: the process has a copy
    /// of its journal on disk, and its name is that of the copy.
    pub(crate) fn new(etcd: Etcd, clock: Arc<dyn Clock>, process: String, has_copy: bool) -> Self {
        Self { etcd, clock, process, has_copy, seen: Mutex::default(), lease: Mutex::default() }
    }

    /// Keeps this process registered until it is dropped.
    pub(crate) async fn keep(self: Arc<Self>) {
        let outage = OutageLog::new("registering this process in etcd");
        loop {
            match self.renew().await {
                Ok(()) => {
                    outage.recovered();
                    tokio::time::sleep(RENEWAL_INTERVAL).await;
                }
                Err(error) => {
                    outage.failed(&error);
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), EtcdError> {
        let known = *self.lease.lock();
        let lives = match known {
            Some(lease) => self.etcd.keep_lease(lease).await?,
            None => false,
        };
        // Unregistered | Registered(lease expired) => Registered(new lease)
        if !lives {
            *self.lease.lock() = None;
            let ttl = if self.has_copy { REGISTRATION_TTL_WITH_COPY } else { REGISTRATION_TTL };
            let lease = self.etcd.grant_lease(ttl).await?;
            self.put(lease, false).await?;
            *self.lease.lock() = Some(lease);
        }
        self.registered().await.map(drop)
    }

    async fn put(&self, lease: u64, is_leaving: bool) -> Result<(), EtcdError> {
        let node = StoredNode { registered_at: self.clock.now_ms(), is_leaving };
        self.etcd.put_node(&self.process, &node, lease).await
    }

    /// Says that this process ends and that no failover can lose what it acknowledged. Without it
    /// the registration ends with its lease, and the process is missed by failovers meanwhile.
    pub(crate) async fn leave(&self) {
        let Some(lease) = *self.lease.lock() else { return };
        if let Err(error) = self.put(lease, true).await {
            let error = tagfast_resilience::ErrorChain(&error);
            tracing::debug!(%error, "etcd does not know that this process ends");
        }
    }

    /// The processes that are registered and stay.
    pub(crate) async fn registered(&self) -> Result<BTreeSet<String>, EtcdError> {
        let nodes = self.etcd.nodes().await?;
        self.seen.lock().record(&nodes, Instant::now());
        let staying = nodes.into_iter().filter(|(_, node)| !node.is_leaving);
        Ok(staying.map(|(process, _)| process).collect())
    }

    /// The processes that may have held a journal when an epoch began.
    pub(crate) fn seen_around(&self, epoch_began: Instant) -> BTreeSet<String> {
        self.seen.lock().around(epoch_began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(process: &str, is_leaving: bool) -> (String, StoredNode) {
        (process.to_owned(), StoredNode { registered_at: 0, is_leaving })
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_died_is_missed_and_one_that_left_is_not() {
        let mut seen = SeenNodes::default();
        seen.record(&[node("a", false), node("b", false), node("c", false)], Instant::now());
        tokio::time::advance(Duration::from_secs(20)).await;
        // `b` died with the primary, and its lease ended; `c` left.
        seen.record(&[node("a", false), node("c", true)], Instant::now());
        let names = |at| seen.around(at).into_iter().collect::<Vec<_>>();
        assert_eq!(names(Instant::now()), ["a", "b"]);
        // It died long before this failover.
        assert_eq!(names(Instant::now() + MISSED_AFTER), ["a"]);
    }
}
