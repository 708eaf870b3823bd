//! Notices that the primary or etcd does not accept the newest password, while all connections and
//! tokens are still good.
//!
//! Open connections survive a change of the password, so that nothing would fail until one of them
//! breaks, which may be in the middle of a failover. A connection is opened and closed every few
//! seconds; what the node says to it is reported to the credential, whose problem is shown.
//!
//! How it fails: a node that does not answer says nothing about the password.

use std::sync::Arc;

use tagfast_resilience::ErrorChain;

use crate::cluster::etcd::Etcd;
use crate::cluster::topology::Cluster;
use crate::connect::ConnectionFactory;
use crate::options::limit;

/// Checks until the task is dropped.
pub(crate) async fn check_password(
    cluster: Arc<Cluster>,
    connections: ConnectionFactory,
    etcd: Etcd,
) {
    loop {
        tokio::time::sleep(limit::PASSWORD_CHECK_INTERVAL).await;
        etcd.follow_password().await;
        let primary =
            cluster.topology.borrow().primary.as_ref().map(|(_, node)| node.address.clone());
        // Without a primary the watcher connects at each poll.
        if let Some(address) = primary
            && let Err(error) = connections.open(&address, "password check").await
        {
            let error = ErrorChain(&error);
            tracing::debug!(cluster = cluster.name, %error, "the password check failed");
        }
    }
}
