//! The state of the clusters for `GET /v1/clusters`: one picture of each, made from memory.
//!
//! A picture is of the epoch that this process is in. The primary is the node that takes writes in
//! that epoch; every other member is a replica in it, whatever it says of itself. What the
//! acknowledger knows is read under one lock, so its figures belong together.
//!
//! How it fails: it does not. A sample that gets no newer says so by its time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tagfast_failover::{Acknowledger, BootTime, GuardState};
use tagfast_resilience::LabelEnum;
use tagfast_store::{
    ClusterEpoch, ClusterGuard, ClusterMember, ClusterReader, ClusterReport, ClusterWarning,
    FailingCallsReport, JournalReport, LaneReport, MemberRole, OutboxReport,
};

use crate::boot_clock::{Moment, boot_time};
use crate::cluster::node::Node;
use crate::cluster::topology::Cluster;
use crate::health::calls::FailingCalls;
use crate::options::limit;
use crate::store::{ClusterHandle, PostgresStore};
use crate::write::lane::Lane;

/// How long etcd must not have answered before it is named: one poll may be late.
const ETCD_WARNING_AFTER: Duration = Duration::from_secs(2);

impl ClusterReader for PostgresStore {
    fn clusters(&self) -> Vec<ClusterReport> {
        let moment = Moment { boot: boot_time(), wall: self.clock.now_ms() };
        let of = |handle: &ClusterHandle| {
            report(&handle.cluster, &handle.lanes, self.outbox_bytes_max, moment)
        };
        let mut reports: Vec<ClusterReport> = self.clusters().iter().map(of).collect();
        reports.sort_by(|a, b| a.name.cmp(&b.name));
        reports
    }
}

/// What a replica has, as the primary of the epoch says.
struct ReplicaPosition {
    name: String,
    flushed: Option<u64>,
    is_streaming: bool,
}

/// What the acknowledger knows at one moment.
struct Acknowledged {
    epoch: Option<ClusterEpoch>,
    proof_left: Option<Duration>,
    guard: ClusterGuard,
    journal: JournalReport,
    positions: Vec<ReplicaPosition>,
}

impl Acknowledged {
    fn of(acknowledger: &Acknowledger, cluster: &Cluster, now: BootTime) -> Self {
        let epoch = acknowledger.epoch().map(|epoch| ClusterEpoch {
            id: epoch.id,
            ordinal: epoch.ordinal,
            term: epoch.term,
            timeline: epoch.timeline,
            since: epoch.minted_at,
            primary: None,
        });
        let left = acknowledger.deadline().map(|deadline| deadline.0.saturating_sub(now.0));
        let journal = acknowledger.journal();
        let position = |(name, flushed, is_streaming): (&str, Option<u64>, bool)| ReplicaPosition {
            name: name.to_owned(),
            flushed,
            is_streaming,
        };
        Self {
            epoch,
            proof_left: left,
            guard: ClusterGuard {
                state: acknowledger.guard_state(now).as_str(),
                exposure: acknowledger.exposure(now),
                max_loss: cluster.guard_options.max_loss,
            },
            journal: JournalReport {
                bytes: journal.bytes(),
                bytes_max: journal.bytes_max(),
                contents: journal.contents(),
                waiting_for_repair: journal.waiting_for_repair(),
                forgotten_writes: journal.incomplete().iter().map(|range| range.writes).sum(),
            },
            positions: acknowledger.coverage().positions().map(position).collect(),
        }
    }
}

fn report(
    cluster: &Cluster,
    lanes: &[Arc<Lane>],
    outbox_bytes_max: u64,
    moment: Moment,
) -> ClusterReport {
    let topology = Arc::clone(&cluster.topology.borrow());
    let Acknowledged { mut epoch, proof_left, guard, journal, positions } =
        Acknowledged::of(&cluster.acknowledger(), cluster, moment.boot);
    // The epoch changes before its primary is found: the primary of the one before is none.
    let is_current = |id| epoch.as_ref().is_some_and(|epoch| epoch.id == id);
    let (primary, former) = match &topology.primary {
        Some((of, node)) if is_current(of.id) => (Some(node), None),
        Some((_, node)) => (None, Some(node)),
        None => (None, None),
    };
    if let (Some(epoch), Some(node)) = (&mut epoch, primary) {
        epoch.primary = Some(node.name.clone());
    }
    let replicas = former.into_iter().chain(&topology.replicas);
    let replicas = replicas.map(|node| replica_member(cluster, node, &positions, moment));
    let primary = primary.map(|node| primary_member(cluster, node, moment));
    let lane = |(number, lane): (usize, &Arc<Lane>)| LaneReport {
        number,
        queued: lane.len(),
        queued_max: limit::LANE_QUEUE_MAX,
    };
    let epoch_is_known = epoch.is_some();
    ClusterReport {
        name: cluster.name.clone(),
        observed_at: moment.wall,
        epoch,
        problem: topology.problem.clone(),
        members: primary.into_iter().chain(replicas).collect(),
        proof_left,
        guard,
        lanes: lanes.iter().enumerate().map(lane).collect(),
        outbox: OutboxReport {
            bytes: cluster.outbox_bytes.load(Ordering::Relaxed),
            bytes_max: outbox_bytes_max,
            observed_at: cluster.checked_at().map(|at| moment.wall_time(at)),
        },
        journal,
        is_repair_closed: epoch_is_known.then(|| !cluster.repair.is_open()),
        long_transactions: cluster.long_transactions.texts(),
        failing: cluster.health.failing().iter().map(failing_calls).collect(),
        warnings: warnings(cluster, &topology.warnings, (&guard, &journal)),
    }
}

fn primary_member(cluster: &Cluster, node: &Node, moment: Moment) -> ClusterMember {
    ClusterMember {
        name: node.name.clone(),
        address: node.address.clone(),
        role: MemberRole::Primary,
        observed_at: cluster.sampled_at().map(|at| moment.wall_time(at)),
        age: None,
        is_streaming: None,
        flushed: None,
        problem: None,
    }
}

fn replica_member(
    cluster: &Cluster,
    node: &Node,
    positions: &[ReplicaPosition],
    moment: Moment,
) -> ClusterMember {
    let ages = cluster.replica_ages();
    let age = ages.iter().find(|replica| replica.name == node.name);
    let position = positions.iter().find(|position| position.name == node.name);
    let has_primary = cluster.topology.borrow().primary.is_some();
    let behind = age.filter(|replica| replica.age > cluster.replica_age_max);
    ClusterMember {
        name: node.name.clone(),
        address: node.address.clone(),
        role: MemberRole::Replica,
        observed_at: age.and_then(|replica| replica.answered).map(|at| moment.wall_time(at)),
        age: age.map(|replica| replica.age),
        is_streaming: position.map(|position| position.is_streaming),
        flushed: position.and_then(|position| position.flushed),
        problem: behind.map(|replica| replica.text(&cluster.name, has_primary)),
    }
}

fn failing_calls(failing: &FailingCalls) -> FailingCallsReport {
    FailingCallsReport {
        calls: failing.calls.as_str(),
        cause: failing.cause.as_str(),
        problem: failing.cause.sentence().to_owned(),
        remedy: failing.cause.remedy().to_owned(),
        lasts: failing.lasts,
        share_percent: failing.share_percent,
        error: failing.error.clone(),
    }
}

/// What weakens a promise: the bound of the loss first, because it is about writes of this moment.
fn warnings(
    cluster: &Cluster,
    installation: &[String],
    (guard, journal): (&ClusterGuard, &JournalReport),
) -> Vec<ClusterWarning> {
    let mut warnings = Vec::new();
    let mut warn = |part, text| warnings.push(ClusterWarning { part, text });
    if guard.state != GuardState::Open.as_str() {
        let text = format!(
            "no replica has the acknowledged writes of the last {} ms, of {} ms that a failover \
             may lose: look at the replicas with `patronictl list`",
            guard.exposure.as_millis(),
            guard.max_loss.as_millis()
        );
        warn("loss", text);
    }
    if journal.forgotten_writes > 0 {
        let text = format!(
            "the journal was full and forgot {} acknowledged writes, which a failover would lose \
             unlisted: bring the replicas back, or raise store.journal_max_bytes",
            journal.forgotten_writes
        );
        warn("loss", text);
    }
    cluster.copy_health.warnings().into_iter().for_each(|text| warn("journal", text));
    let etcd = cluster.health.etcd_problem().filter(|(lasts, _)| *lasts >= ETCD_WARNING_AFTER);
    if let Some((lasts, why)) = etcd {
        let text = format!(
            "{why} (for {} s); writes are acknowledged only while every member answers: look at \
             etcd's members and their disks",
            lasts.as_secs()
        );
        warn("etcd", text);
    }
    installation.iter().for_each(|text| warn("installation", text.clone()));
    warnings
}

#[cfg(test)]
mod tests {
    use tagfast_failover::EpochRecord;
    use tagfast_resilience::{Breakers, SystemClock};
    use tagfast_store::fair_queue::TenantWeights;

    use super::*;
    use crate::cluster::epoch_ends::tests::epoch;
    use crate::cluster::topology::{ClusterBounds, Topology};

    const WALL: tagfast_domain::UnixMillis = 1_767_225_600_000;

    fn cluster() -> Cluster {
        let breakers = Breakers::new(Arc::new(SystemClock));
        Cluster::new(0, ("c0", "c0"), ClusterBounds::default(), &breakers)
    }

    fn node(n: u8) -> Node {
        Node { name: format!("n{n}"), address: format!("h:{n}") }
    }

    fn now() -> Moment {
        Moment { boot: boot_time(), wall: WALL }
    }

    /// `n1` leads in this epoch, as the topology says; `n2` and `n3` are the other members.
    fn led_by_n1(epoch: &EpochRecord) -> Arc<Topology> {
        Arc::new(Topology {
            primary: Some((Arc::new(epoch.clone()), node(1))),
            replicas: vec![node(2), node(3)],
            problem: None,
            warnings: vec!["a warning; do this".to_owned()],
        })
    }

    #[test]
    fn a_cluster_that_was_not_polled_says_so() {
        let report = report(&cluster(), &[], 99, now());
        assert_eq!((report.epoch, report.members), (None, Vec::new()));
        assert_eq!(report.problem.as_deref(), Some("not polled yet"));
        assert_eq!((report.proof_left, report.outbox.observed_at), (None, None));
        assert_eq!((report.guard.state, report.outbox.bytes_max), ("open", 99));
    }

    #[test]
    fn the_primary_is_named_under_its_epoch_alone() {
        let epochs =
            [epoch(1, None, 1, None), epoch(2, Some(1), 2, Some(9)), epoch(3, Some(2), 3, None)];
        for adopted in &epochs {
            for led in &epochs {
                let cluster = cluster();
                cluster.acknowledger().adopt_epoch(adopted, boot_time());
                cluster.topology.send_replace(led_by_n1(led));
                let report = report(&cluster, &[], 0, now());
                let of = report.epoch.unwrap();
                let same = adopted.id == led.id;
                assert_eq!((of.id, of.primary), (adopted.id, same.then(|| "n1".to_owned())));
                let roles: Vec<_> =
                    report.members.iter().map(|m| (m.name.as_str(), m.role)).collect();
                let first = if same { MemberRole::Primary } else { MemberRole::Replica };
                let replica = MemberRole::Replica;
                assert_eq!(roles, [("n1", first), ("n2", replica), ("n3", replica)]);
            }
        }
    }

    #[test]
    fn samples_have_their_own_times() {
        let cluster = cluster();
        let first = epoch(1, None, 1, None);
        let began = boot_time();
        cluster.acknowledger().set_members(&["n2".to_owned(), "n3".to_owned()], began);
        cluster.acknowledger().adopt_epoch(&first, began);
        cluster.acknowledger().record_replicas(first.id, &[("n2".to_owned(), 77)], began);
        cluster.topology.send_replace(led_by_n1(&first));
        cluster.record_check(4096);
        let later = Moment { boot: BootTime(began.0 + Duration::from_secs(60)), wall: WALL };
        let lane = Arc::new(Lane::new(0, Duration::from_secs(1), TenantWeights::default()));
        let report = report(&cluster, &[lane], 1 << 20, later);
        let position = |n: usize| (report.members[n].is_streaming, report.members[n].flushed);
        assert_eq!(position(0), (None, None));
        assert_eq!(position(1), (Some(true), Some(77)));
        assert_eq!(position(2), (Some(false), None));
        assert_eq!(report.members[1].observed_at, None, "no probe was answered");
        assert_eq!((report.lanes[0].queued, report.outbox.bytes), (0, 4096));
        let checked = report.outbox.observed_at.unwrap();
        assert!((WALL - 60_000..WALL).contains(&checked), "{checked}");
        assert_eq!(report.warnings[0].part, "installation");
    }
}
