//! The metrics of this crate; those that every store records are in [`tagfast_store::metric`].
//!
//! How it fails: it does not; a metric that no definition matches does not compile.

use tagfast_resilience::{LabelDef, LabelValues, MetricDef, MetricKind};

const CLUSTER: LabelDef = LabelDef::bounded("cluster", "clusters of the shard map");
const NODE: LabelDef = LabelDef::bounded("node", "members of the cluster");
const CRITICALITY: LabelDef = LabelDef {
    name: "criticality",
    values: LabelValues::Closed(&["sheddable", "degradable", "critical"]),
};
const LANE: LabelDef = LabelDef::bounded("lane", "writer lanes, at most 16");

pub(crate) const CLUSTER_HAS_PRIMARY: MetricDef = MetricDef {
    name: "tagfast_cluster_has_primary",
    kind: MetricKind::Gauge,
    labels: &[CLUSTER],
    help: "1 while the cluster takes writes. 0 for longer than a failover (4 s): look at Patroni.",
};
pub(crate) const PRIMARY_FAILURES: MetricDef = MetricDef {
    name: "tagfast_primary_failures_total",
    kind: MetricKind::Counter,
    labels: &[CLUSTER],
    help: "Connections to the primary that failed.",
};
pub(crate) const EPOCHS: MetricDef = MetricDef {
    name: "tagfast_epochs_total",
    kind: MetricKind::Counter,
    labels: &[CLUSTER],
    help: "Epochs that this node adopted: one at its start, one a failover.",
};
pub(crate) const EPOCH_ORDINAL: MetricDef = MetricDef {
    name: "tagfast_epoch_ordinal",
    kind: MetricKind::Gauge,
    labels: &[CLUSTER],
    help: "The current epoch's ordinal.",
};
pub(crate) const CLUSTER_DOWN: MetricDef = MetricDef {
    name: "tagfast_cluster_down_seconds",
    kind: MetricKind::Gauge,
    labels: &[CLUSTER],
    help: "How long the cluster has had no primary; its writes are held. 0 while it has one. A \
           crash takes 2 to 4 s, the death of a node 20 s.",
};
pub(crate) const WRITE_HOLD: MetricDef = MetricDef {
    name: "tagfast_hold_seconds",
    kind: MetricKind::Histogram,
    labels: &[CLUSTER],
    help: "How long writes were held, once for each time that the cluster had no primary.",
};
pub(crate) const FAILOVERS: MetricDef = MetricDef {
    name: "tagfast_failovers_total",
    kind: MetricKind::Counter,
    labels: &[CLUSTER],
    help: "Later epochs that began while this node ran: failovers, switchovers, Patroni's leader \
           key taken again.",
};
pub(crate) const NODE_IS_PRIMARY: MetricDef = MetricDef {
    name: "tagfast_node_is_primary",
    kind: MetricKind::Gauge,
    labels: &[CLUSTER, NODE],
    help: "1 for the member that holds Patroni's leader key. More than one 1 in a cluster: nodes \
           of the service disagree.",
};
pub(crate) const REPLICA_STREAMING: MetricDef = MetricDef {
    name: "tagfast_replica_streaming",
    kind: MetricKind::Gauge,
    labels: &[CLUSTER, NODE],
    help: "1 while the replica streams from the primary. 0: promoting it would lose writes; look \
           at its Patroni.",
};
pub(crate) const REPLICA_LAG_BYTES: MetricDef = MetricDef {
    name: "tagfast_replica_lag_bytes",
    kind: MetricKind::Gauge,
    labels: &[CLUSTER, NODE],
    help: "Log that the replica has not replayed, as the primary sees it.",
};
pub(crate) const REPLICA_LAG_SECONDS: MetricDef = MetricDef {
    name: "tagfast_replica_lag_seconds",
    kind: MetricKind::Gauge,
    labels: &[CLUSTER, NODE],
    help: "How long after the primary the replica replays. Writes younger than this can be lost \
           with the primary.",
};
pub(crate) const INSTALLATION_WARNINGS: MetricDef = MetricDef {
    name: "tagfast_installation_warnings",
    kind: MetricKind::Gauge,
    labels: &[CLUSTER],
    help: "Weaknesses of the installation of this cluster; `tagfast status` names each and what to \
           do.",
};
pub(crate) const ETCD_FAILURES: MetricDef = MetricDef {
    name: "tagfast_etcd_failures_total",
    kind: MetricKind::Counter,
    labels: &[CLUSTER],
    help: "Polls of etcd that failed.",
};
pub(crate) const LEADER_LEASE_LEFT: MetricDef = MetricDef {
    name: "tagfast_leader_lease_left_seconds",
    kind: MetricKind::Gauge,
    labels: &[CLUSTER],
    help: "How long the leader lease still permits acknowledgements. 0: only the members' answers \
           do.",
};
pub(crate) const LANE_QUEUE: MetricDef = MetricDef {
    name: "tagfast_lane_queue_writes",
    kind: MetricKind::Gauge,
    labels: &[CLUSTER, LANE],
    help: "Writes that wait in a lane.",
};
pub(crate) const LANE_LOST_RACES: MetricDef = MetricDef {
    name: "tagfast_lane_lost_races_total",
    kind: MetricKind::Counter,
    labels: &[CLUSTER],
    help: "Group commits in which another node had changed a document first.",
};
pub(crate) const UNPROVEN_WRITES: MetricDef = MetricDef {
    name: "tagfast_unproven_writes_total",
    kind: MetricKind::Counter,
    labels: &[CLUSTER],
    help: "Writes whose commit could not be proven; they were retried with their ids.",
};
pub(crate) const OUTBOX_BYTES: MetricDef = MetricDef {
    name: "tagfast_outbox_bytes",
    kind: MetricKind::Gauge,
    labels: &[CLUSTER],
    help: "Disk that unpublished events take, with those published a moment ago. At \
           `store.outbox_max_bytes` writes are refused.",
};
pub(crate) const RELAY_PUBLISHED: MetricDef = MetricDef {
    name: "tagfast_relay_published_total",
    kind: MetricKind::Counter,
    labels: &[CLUSTER],
    help: "Outbox rows that the sink acknowledged.",
};
pub(crate) const RECONCILED_CONTENTS: MetricDef = MetricDef {
    name: "tagfast_reconciled_contents_total",
    kind: MetricKind::Counter,
    labels: &[CLUSTER],
    help: "Contents written again after a failover, because a replaced primary had published a \
           write that was lost.",
};
pub(crate) const RELAY_FAILURES: MetricDef = MetricDef {
    name: "tagfast_relay_failures_total",
    kind: MetricKind::Counter,
    labels: &[CLUSTER],
    help: "Polls of the relay that failed and were repeated.",
};
pub(crate) const READS_SHED: MetricDef = MetricDef {
    name: "tagfast_reads_shed_total",
    kind: MetricKind::Counter,
    labels: &[CRITICALITY],
    help: "Reads that were shed because a database node was overloaded. Critical ones: the limit \
           is too low, or nodes are missing.",
};
pub(crate) const READ_BATCH_KEYS: MetricDef = MetricDef {
    name: "tagfast_read_batch_keys",
    kind: MetricKind::Histogram,
    labels: &[],
    help: "Contents in one read query.",
};

/// The metrics of this crate, for the documentation.
pub const METRICS: &[MetricDef] = &[
    CLUSTER_HAS_PRIMARY,
    PRIMARY_FAILURES,
    EPOCHS,
    EPOCH_ORDINAL,
    CLUSTER_DOWN,
    WRITE_HOLD,
    FAILOVERS,
    NODE_IS_PRIMARY,
    REPLICA_STREAMING,
    REPLICA_LAG_BYTES,
    REPLICA_LAG_SECONDS,
    INSTALLATION_WARNINGS,
    ETCD_FAILURES,
    LEADER_LEASE_LEFT,
    LANE_QUEUE,
    LANE_LOST_RACES,
    UNPROVEN_WRITES,
    OUTBOX_BYTES,
    RELAY_PUBLISHED,
    RECONCILED_CONTENTS,
    RELAY_FAILURES,
    READS_SHED,
    READ_BATCH_KEYS,
];
