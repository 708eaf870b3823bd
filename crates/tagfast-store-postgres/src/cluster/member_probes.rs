//! Probes of a cluster's members: the leadership proof that is left while etcd does not answer.
//!
//! Every half second every member reports whether it is in recovery, and the primary whether it
//! still passes the epoch check. The watcher does not wait for it, nor it for the watcher.
//!
//! How it fails: a member that does not answer within [`limit::MEMBER_PROBE_TIMEOUT`] breaks the
//! chain of proofs; leadership is then proven by the lease alone.

use std::collections::HashMap;
use std::sync::Arc;

use tagfast_failover::{
    EpochRecord, MemberAnswer, ProbeRound, WriteEligibility, check_eligibility,
};
use tokio::time::{Instant, timeout};

use crate::boot_clock::boot_time;
use crate::cluster::topology::{Cluster, Node};
use crate::connect::{Connection, ConnectionFactory, within};
use crate::options::limit;
use crate::sql::{PRIMARY_FACTS, connection_facts};

/// Whether a member is in recovery, and the timeline that it receives.
const MEMBER_FACTS: &str =
    "SELECT pg_is_in_recovery(), (SELECT received_tli FROM pg_stat_wal_receiver)";

/// What a probe of one member brought.
pub(crate) struct Probe {
    address: String,
    /// `None`: the member did not answer.
    pub(crate) answer: Option<(Connection, MemberAnswer)>,
}

/// Probes the members of a cluster in rounds, until the task is dropped.
pub(crate) async fn probe_members(cluster: Arc<Cluster>, connections: ConnectionFactory) {
    let mut open: HashMap<String, Connection> = HashMap::new();
    loop {
        let began = Instant::now();
        let topology = Arc::clone(&cluster.topology.borrow());
        if let Some((epoch, primary)) = &topology.primary {
            let sent = boot_time();
            let nodes = std::iter::once(primary).chain(&topology.replicas);
            let probes: Vec<_> = nodes
                .map(|node| probe_member(&connections, node, open.remove(&node.address)))
                .collect();
            let mut probes = futures_util::future::join_all(probes).await.into_iter();
            let first = probes.next();
            let primary_checked = match first.as_ref().and_then(|probe| probe.answer.as_ref()) {
                Some((server, answer)) => !answer.in_recovery && leads_epoch(server, epoch).await,
                None => false,
            };
            let others: Vec<Probe> = probes.collect();
            let members =
                others.iter().map(|probe| probe.answer.as_ref().map(|(_, answer)| *answer));
            let round = ProbeRound { sent, primary_checked, members: members.collect() };
            cluster.ack_gate().record_round(epoch.id, &round);
            cluster.notify_proof();
            for probe in first.into_iter().chain(others) {
                if let Some((connection, _)) = probe.answer {
                    open.insert(probe.address, connection);
                }
            }
        }
        tokio::time::sleep_until(began + limit::PROBE_ROUND_INTERVAL).await;
    }
}

/// Probes one member, on its open connection or a new one.
pub(crate) async fn probe_member(
    connections: &ConnectionFactory,
    node: &Node,
    open: Option<Connection>,
) -> Probe {
    let work = async {
        let server = match open.filter(|c| !c.client.is_closed()) {
            Some(server) => server,
            None => connections.open(&node.address, "probe").await.ok()?,
        };
        let row = server.client.query_one(MEMBER_FACTS, &[]).await.ok()?;
        let received: Option<i32> = row.get(1);
        let answer = MemberAnswer {
            in_recovery: row.get(0),
            received_timeline: received.map(i32::cast_unsigned),
        };
        Some((server, answer))
    };
    let answer = timeout(limit::MEMBER_PROBE_TIMEOUT, work).await.ok().flatten();
    Probe { address: node.address.clone(), answer }
}

async fn leads_epoch(server: &Connection, epoch: &EpochRecord) -> bool {
    let facts = server.client.query_one(PRIMARY_FACTS, &[]);
    let row = within("checking the epoch", limit::MEMBER_PROBE_TIMEOUT, facts).await;
    row.is_ok_and(|row| {
        check_eligibility(&connection_facts(&row), epoch) == WriteEligibility::Eligible
    })
}
