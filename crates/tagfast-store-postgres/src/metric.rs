//! The metrics of this crate; those that every store records are in [`tagfast_store::metric`].
//!
//! How it fails: it does not; a metric that no definition matches does not compile.

use tagfast_resilience::{Criticality, define_metrics};

use crate::health::cause::{CallKind, FailureCause};

/// What bounds the label `cluster`.
const CLUSTERS: &str = "clusters of the shard map";
/// What bounds the label `node`.
const MEMBERS: &str = "members of the cluster";

define_metrics! {
    /// The metrics of this crate, for the documentation.
    pub const METRICS;

    /// 1 while the cluster takes writes. 0 for longer than a failover (4 s): look at Patroni.
    pub(crate) gauge CLUSTER_HAS_PRIMARY = "tagfast_cluster_has_primary" { cluster in CLUSTERS };

    /// Writes and reads of the cluster that failed, by cause; a write that is tried again counts
    /// with each attempt.
    pub(crate) counter CALLS_FAILED = "tagfast_calls_failed_total" {
        cluster in CLUSTERS,
        calls: CallKind,
        cause: FailureCause,
    };

    /// 1 while most writes or reads of the cluster fail for this cause; `tagfast status` has its
    /// words and what to do.
    pub(crate) gauge CALLS_FAILING = "tagfast_calls_failing" {
        cluster in CLUSTERS,
        calls: CallKind,
        cause: FailureCause,
    };

    /// Connections to the primary that failed.
    pub(crate) counter PRIMARY_FAILURES = "tagfast_primary_failures_total" { cluster in CLUSTERS };

    /// Epochs that this node adopted: one at its start, one a failover.
    pub(crate) counter EPOCHS = "tagfast_epochs_total" { cluster in CLUSTERS };

    /// The current epoch's ordinal.
    pub(crate) gauge EPOCH_ORDINAL = "tagfast_epoch_ordinal" { cluster in CLUSTERS };

    /// How long the cluster has had no primary; its writes are held. 0 while it has one. A crash
    /// takes 2 to 4 s, the death of a node 20 s.
    pub(crate) gauge CLUSTER_DOWN = "tagfast_cluster_down_seconds" { cluster in CLUSTERS };

    /// How long writes were held, once for each time that the cluster had no primary.
    pub(crate) histogram WRITE_HOLD = "tagfast_hold_seconds" { cluster in CLUSTERS };

    /// Later epochs that began while this node ran: failovers, switchovers, Patroni's leader key
    /// taken again.
    pub(crate) counter FAILOVERS = "tagfast_failovers_total" { cluster in CLUSTERS };

    /// 1 for the member that holds Patroni's leader key. More than one 1 in a cluster: nodes of the
    /// service disagree.
    pub(crate) gauge NODE_IS_PRIMARY = "tagfast_node_is_primary" {
        cluster in CLUSTERS,
        node in MEMBERS,
    };

    /// 1 while the replica streams from the primary. 0: promoting it would lose writes; look at its
    /// Patroni.
    pub(crate) gauge REPLICA_STREAMING = "tagfast_replica_streaming" {
        cluster in CLUSTERS,
        node in MEMBERS,
    };

    /// Log that the replica has not replayed, as the primary sees it.
    pub(crate) gauge REPLICA_LAG_BYTES = "tagfast_replica_lag_bytes" {
        cluster in CLUSTERS,
        node in MEMBERS,
    };

    /// How long after the primary the replica replays. Writes younger than this can be lost with
    /// the primary.
    pub(crate) gauge REPLICA_LAG_SECONDS = "tagfast_replica_lag_seconds" {
        cluster in CLUSTERS,
        node in MEMBERS,
    };

    /// How old the newest replica is: everything acknowledged longer ago is proven to be on it. It
    /// grows while there is no primary. More than `store.replica_max_age_ms`: all views that no
    /// cache answers go to the primary.
    pub(crate) gauge REPLICA_AGE_NEWEST = "tagfast_replica_age_newest_seconds" {
        cluster in CLUSTERS,
    };

    /// How old the oldest replica is, in the same way; `tagfast status` names each that is older
    /// than `store.replica_max_age_ms`, and why.
    pub(crate) gauge REPLICA_AGE_OLDEST = "tagfast_replica_age_oldest_seconds" {
        cluster in CLUSTERS,
    };

    /// Weaknesses of the installation of this cluster; `tagfast status` names each and what to do.
    pub(crate) gauge INSTALLATION_WARNINGS = "tagfast_installation_warnings" {
        cluster in CLUSTERS,
    };

    /// Polls of etcd that failed.
    pub(crate) counter ETCD_FAILURES = "tagfast_etcd_failures_total" { cluster in CLUSTERS };

    /// How long the leader lease still permits acknowledgements. 0: only the members' answers do.
    pub(crate) gauge LEADER_LEASE_LEFT = "tagfast_leader_lease_left_seconds" {
        cluster in CLUSTERS,
    };

    /// Writes that wait in a lane.
    pub(crate) gauge LANE_QUEUE = "tagfast_lane_queue_writes" {
        cluster in CLUSTERS,
        lane in "writer lanes, at most 16",
    };

    /// Group commits in which another node had changed a document first.
    pub(crate) counter LANE_LOST_RACES = "tagfast_lane_lost_races_total" { cluster in CLUSTERS };

    /// Writes whose commit could not be proven; they were retried with their ids.
    pub(crate) counter UNPROVEN_WRITES = "tagfast_unproven_writes_total" { cluster in CLUSTERS };

    /// The age of the oldest acknowledged write that no replica has: what a failover could lose.
    /// 0: a replica has everything. Beyond `store.max_loss_ms` writes are held, unless
    /// `store.on_lag` is `availability`.
    pub(crate) gauge REPLICATION_EXPOSURE = "tagfast_replication_exposure_seconds" {
        cluster in CLUSTERS,
    };

    /// What the guard of loss does with writes: 0 nothing, 1 throttles, 2 holds until a replica has
    /// them, 3 refuses new ones.
    pub(crate) gauge GUARD_STATE = "tagfast_guard_state" { cluster in CLUSTERS };

    /// The log position up to which one replica at least has everything, in bytes of the current
    /// epoch's log. 0: no replica has told one in this epoch.
    pub(crate) gauge COVERED_POSITION = "tagfast_covered_position_bytes" { cluster in CLUSTERS };

    /// What the journal of acknowledged writes that not every replica has takes in memory. At
    /// `store.journal_max_bytes` it forgets the oldest.
    pub(crate) gauge JOURNAL_BYTES = "tagfast_journal_bytes" { cluster in CLUSTERS };

    /// Contents in that journal.
    pub(crate) gauge JOURNAL_CONTENTS = "tagfast_journal_contents" { cluster in CLUSTERS };

    /// What the copy of that journal takes on disk (`store.journal_dir`). At
    /// `store.journal_max_bytes` the oldest of it is given up.
    pub(crate) gauge JOURNAL_DISK_BYTES = "tagfast_journal_disk_bytes" { cluster in CLUSTERS };

    /// Attempts to save the copy of the journal that the disk did not take; `tagfast clusters` has
    /// the error. Writes go on.
    pub(crate) counter JOURNAL_DISK_FAILURES = "tagfast_journal_disk_failures_total" {
        cluster in CLUSTERS,
    };

    /// Writes that were acknowledged beyond `store.max_loss_ms` because `store.on_lag` is
    /// `availability`: a failover may have lost them.
    pub(crate) counter ACKNOWLEDGED_BEYOND_BOUND = "tagfast_acknowledged_beyond_bound_total" {
        cluster in CLUSTERS,
    };

    /// Disk that unpublished events take, with those published a moment ago. At
    /// `store.outbox_max_bytes` writes are refused.
    pub(crate) gauge OUTBOX_BYTES = "tagfast_outbox_bytes" { cluster in CLUSTERS };

    /// Age of the oldest transaction that holds the relay; 0: none does. Search and popular tags
    /// get no newer meanwhile, and the outbox grows: `tagfast status` names it.
    pub(crate) gauge RELAY_HELD = "tagfast_relay_held_seconds" { cluster in CLUSTERS };

    /// Outbox rows that the sink acknowledged.
    pub(crate) counter RELAY_PUBLISHED = "tagfast_relay_published_total" { cluster in CLUSTERS };

    /// Contents written again after a failover, because a replaced primary had published a write
    /// that was lost.
    pub(crate) counter RECONCILED_CONTENTS = "tagfast_reconciled_contents_total" {
        cluster in CLUSTERS,
    };

    /// Contents whose lost writes a repair brought back.
    pub(crate) counter REPAIRED_CONTENTS = "tagfast_repaired_contents_total" {
        cluster in CLUSTERS,
    };

    /// Acknowledged writes that this process could not bring back after a failover; each is listed
    /// in the failover's report with its reason.
    pub(crate) counter REPAIR_LOST_WRITES = "tagfast_repair_lost_writes_total" {
        cluster in CLUSTERS,
    };

    /// 1 while reads may lack acknowledged writes of before a failover, and say so. For longer than
    /// a minute: no relay closes the repair.
    pub(crate) gauge REPAIR_OPEN = "tagfast_repair_open" { cluster in CLUSTERS };

    /// Polls of the relay that failed and were repeated.
    pub(crate) counter RELAY_FAILURES = "tagfast_relay_failures_total" { cluster in CLUSTERS };

    /// Reads that were shed because a database node was overloaded. Critical ones: the limit is too
    /// low, or nodes are missing.
    pub(crate) counter READS_SHED = "tagfast_reads_shed_total" { criticality: Criticality };

    /// Contents in one read query.
    pub(crate) histogram READ_BATCH_KEYS = "tagfast_read_batch_keys";
}
