//! The metrics of this crate.

use tagfast_resilience::{LabelDef, MetricDef, MetricKind};

/// What is measured, for the documentation.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "tagfast_cluster_has_primary",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "1 while the cluster takes writes. 0 for longer than a failover (4 s): look at Patroni.",
    },
    MetricDef {
        name: "tagfast_cluster_suspected_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "Connections to the primary that failed.",
    },
    MetricDef {
        name: "tagfast_epochs_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "Epochs this node has seen begin: one at its start, one a failover.",
    },
    MetricDef {
        name: "tagfast_epoch_ordinal",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "The current epoch's ordinal.",
    },
    MetricDef {
        name: "tagfast_cluster_down_seconds",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "How long the cluster has had no primary by now; its writes are held. 0 while it has one. A crash takes 2 to 4 s, the death of a node 20 s.",
    },
    MetricDef {
        name: "tagfast_hold_seconds",
        kind: MetricKind::Histogram,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "How long writes were held, once for each time the cluster had no primary.",
    },
    MetricDef {
        name: "tagfast_failovers_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "Later epochs that began while this node ran: failovers, switchovers, Patroni's key taken again.",
    },
    MetricDef {
        name: "tagfast_node_is_primary",
        kind: MetricKind::Gauge,
        labels: &[
            LabelDef::bounded("cluster", "TO DO: values"),
            LabelDef::bounded("node", "TO DO: values"),
        ],
        help: "1 for the member that holds Patroni's key. More than one 1 in a cluster: nodes of the service disagree.",
    },
    MetricDef {
        name: "tagfast_replica_streaming",
        kind: MetricKind::Gauge,
        labels: &[
            LabelDef::bounded("cluster", "TO DO: values"),
            LabelDef::bounded("node", "TO DO: values"),
        ],
        help: "1 while the replica streams from the primary. 0: a promotion of it is not protected; look at its Patroni.",
    },
    MetricDef {
        name: "tagfast_replica_lag_bytes",
        kind: MetricKind::Gauge,
        labels: &[
            LabelDef::bounded("cluster", "TO DO: values"),
            LabelDef::bounded("node", "TO DO: values"),
        ],
        help: "Log that the replica has not replayed, as the primary sees it.",
    },
    MetricDef {
        name: "tagfast_replica_lag_seconds",
        kind: MetricKind::Gauge,
        labels: &[
            LabelDef::bounded("cluster", "TO DO: values"),
            LabelDef::bounded("node", "TO DO: values"),
        ],
        help: "How long after the primary the replica replays. What is younger can die with the primary.",
    },
    MetricDef {
        name: "tagfast_installation_warnings",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "What makes a promise weaker on this cluster; `tagfast status` names each and what to do.",
    },
    MetricDef {
        name: "tagfast_etcd_failures_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "Looks at etcd that failed.",
    },
    MetricDef {
        name: "tagfast_fence_left_seconds",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "How long the lease still permits acknowledgements. 0: only the members' answers do.",
    },
    MetricDef {
        name: "tagfast_lane_queue_writes",
        kind: MetricKind::Gauge,
        labels: &[
            LabelDef::bounded("cluster", "TO DO: values"),
            LabelDef::bounded("lane", "TO DO: values"),
        ],
        help: "Writes that wait in a lane.",
    },
    MetricDef {
        name: "tagfast_lane_lost_races_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "Groups in which another node had changed a document first.",
    },
    MetricDef {
        name: "tagfast_unproven_writes_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "Commits that could not be proven and were tried again by their ids.",
    },
    MetricDef {
        name: "tagfast_outbox_bytes",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "Disk that events take which the bus has not taken, or did a moment ago. At `store.outbox_max_bytes` writes are refused.",
    },
    MetricDef {
        name: "tagfast_relay_published_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "Outbox rows that the sink acknowledged.",
    },
    MetricDef {
        name: "tagfast_reconciled_contents_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "Contents written again after a failover, because a replaced primary had published something that did not survive it.",
    },
    MetricDef {
        name: "tagfast_relay_failures_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("cluster", "TO DO: values")],
        help: "Passes of the relay that failed and were repeated.",
    },
    MetricDef {
        name: "tagfast_reads_shed_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("criticality", "TO DO: values")],
        help: "Reads that were refused because a database node had enough to do. Critical ones: the limit is too low, or nodes are missing.",
    },
    MetricDef {
        name: "tagfast_read_batch_keys",
        kind: MetricKind::Histogram,
        labels: &[],
        help: "Contents of one read query.",
    },
];
