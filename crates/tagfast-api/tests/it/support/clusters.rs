//! Fakes of what only clusters have: failovers with their writes, and the state of the clusters.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_domain::{ContentKey, EpochId, EpochOrdinal, Version, WriteId};
use tagfast_store::{
    ClusterEpoch, ClusterGuard, ClusterMember, ClusterReader, ClusterReport, ClusterWarning,
    FailingCallsReport, FailoverCursor, FailoverReader, FailoverReport, FailoverTimes,
    FailoverWrite, FailoverWritesRequest, IncompleteLog, JournalReport, LaneReport, LostReason,
    MemberRole, NodeRepair, OutboxReport, StoreError, Verdict, VerdictCounts, VerdictKind,
};

use super::NOW;

/// Failovers of two clusters, and the writes of the first of them.
#[derive(Default)]
pub(crate) struct FakeFailovers {
    pub(crate) reports: Mutex<Vec<FailoverReport>>,
    pub(crate) writes: Mutex<Vec<FailoverWrite>>,
    /// etcd does not answer.
    pub(crate) down: AtomicBool,
}

/// The id of epoch `n`.
pub(crate) fn epoch(n: u8) -> EpochId {
    EpochId([n; 16])
}

/// The failover that began epoch `n` of a cluster.
pub(crate) fn report(cluster: &str, n: u8, ordinal: u64) -> FailoverReport {
    let times = FailoverTimes {
        suspected_at: Some(NOW),
        promoted_at: Some(NOW + 1900),
        minted_at: NOW + 2000,
        first_acknowledged_at: Some(NOW + 2030),
        repair_closed_at: Some(NOW + 3000),
        ..FailoverTimes::default()
    };
    let counts = VerdictCounts { kept: 5, repaired: 2, lost: 1, unknown: 0 };
    FailoverReport {
        cluster: cluster.to_owned(),
        epoch: epoch(n),
        ordinal: EpochOrdinal(ordinal),
        previous: Some(epoch(n - 1)),
        primary: format!("{cluster}-2"),
        previous_primary: Some(format!("{cluster}-1")),
        term: 77,
        timeline: 3,
        fork_lsn: Some(0x16_B374_D848),
        times,
        counts,
        nodes: vec![NodeRepair {
            node: "api-1".to_owned(),
            counts,
            began_at: NOW + 2010,
            ended_at: Some(NOW + 2500),
            incomplete: vec![IncompleteLog { epoch: epoch(n - 1), from: 1, to: 255, writes: 9 }],
            times,
        }],
        missing_nodes: vec!["api-2".to_owned()],
        is_closed: true,
        superseded_by: None,
    }
}

/// Write `n` of a tenant.
pub(crate) fn write(tenant: &str, n: u8, verdict: Verdict) -> FailoverWrite {
    FailoverWrite {
        write_id: WriteId([n; 16]),
        key: ContentKey::parse(tenant, "page", &format!("p{n}")).unwrap(),
        verdict,
        version: Version::from_packed(u64::from(n)).unwrap(),
        epoch: epoch(1),
        at: NOW + 2400,
    }
}

impl FakeFailovers {
    fn check(&self) -> Result<(), StoreError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable {
                reason: "etcd does not answer",
                outcome_unknown: false,
                retry_after: Duration::from_secs(1),
            });
        }
        Ok(())
    }

    /// Failovers of two clusters, two of them with one ordinal, and writes of two tenants.
    pub(crate) fn fill(&self) {
        *self.reports.lock() =
            vec![report("c0", 2, 100), report("c1", 4, 200), report("c0", 6, 200)];
        let repaired = |is_superseded| Verdict::Repaired { is_superseded, by_event: false };
        *self.writes.lock() = vec![
            write("acme", 1, repaired(false)),
            write("acme", 2, Verdict::Lost(LostReason::Limit)),
            write("umbra", 3, Verdict::Lost(LostReason::Conflict)),
            write("acme", 4, repaired(true)),
        ];
    }
}

#[async_trait]
impl FailoverReader for FakeFailovers {
    async fn failovers(
        &self,
        before: Option<FailoverCursor>,
        limit: usize,
    ) -> Result<Vec<FailoverReport>, StoreError> {
        self.check()?;
        let mut reports = self.reports.lock().clone();
        reports.sort_by_key(|report| std::cmp::Reverse(report.cursor()));
        reports.retain(|report| before.is_none_or(|before| report.cursor() < before));
        reports.truncate(limit);
        Ok(reports)
    }

    async fn failover(&self, epoch: EpochId) -> Result<Option<FailoverReport>, StoreError> {
        self.check()?;
        Ok(self.reports.lock().iter().find(|report| report.epoch == epoch).cloned())
    }

    async fn failover_writes(
        &self,
        request: &FailoverWritesRequest<'_>,
    ) -> Result<Vec<FailoverWrite>, StoreError> {
        self.check()?;
        let kind = |verdict| match verdict {
            Verdict::Repaired { .. } => Some(VerdictKind::Repaired),
            Verdict::Lost(_) => Some(VerdictKind::Lost),
            Verdict::Kept | Verdict::Unknown(_) => None,
        };
        let is_wanted = |write: &&FailoverWrite| {
            request.epoch == epoch(2)
                && request.verdict.is_none_or(|wanted| kind(write.verdict) == Some(wanted))
                && request.tenant.is_none_or(|tenant| *tenant == write.key.tenant)
                && request.after.is_none_or(|after| write.write_id > after)
        };
        Ok(self.writes.lock().iter().filter(is_wanted).take(request.limit).cloned().collect())
    }
}

/// One cluster in trouble, and one that this process has not reached yet.
pub(crate) struct FakeClusters;

fn member(name: &str, role: MemberRole) -> ClusterMember {
    ClusterMember {
        name: name.to_owned(),
        address: format!("{name}.example:5432"),
        role,
        observed_at: Some(NOW - 200),
        age: None,
        is_streaming: None,
        flushed: None,
        problem: None,
    }
}

impl ClusterReader for FakeClusters {
    fn clusters(&self) -> Vec<ClusterReport> {
        let degraded = ClusterReport {
            name: "c0".to_owned(),
            observed_at: NOW,
            epoch: Some(ClusterEpoch {
                id: epoch(2),
                ordinal: EpochOrdinal(100),
                term: 77,
                timeline: 3,
                since: NOW - 60_000,
                primary: Some("c0-2".to_owned()),
            }),
            problem: None,
            members: vec![
                member("c0-2", MemberRole::Primary),
                ClusterMember {
                    age: Some(Duration::from_millis(1250)),
                    is_streaming: Some(false),
                    flushed: Some(0x16_B374_D848),
                    problem: Some("replica c0-3 of c0 is 1 s behind".to_owned()),
                    ..member("c0-3", MemberRole::Replica)
                },
            ],
            proof_left: Some(Duration::from_millis(17_400)),
            guard: ClusterGuard {
                state: "holding",
                exposure: Duration::from_millis(970),
                max_loss: Duration::from_secs(1),
            },
            lanes: vec![LaneReport { number: 0, queued: 3, queued_max: 1024 }],
            outbox: OutboxReport {
                bytes: 98_304,
                bytes_max: 1 << 30,
                observed_at: Some(NOW - 400),
            },
            journal: JournalReport {
                bytes: 4096,
                bytes_max: 1 << 28,
                contents: 7,
                waiting_for_repair: 2,
                forgotten_writes: 0,
            },
            is_repair_closed: Some(false),
            long_transactions: vec!["the transaction of pid 7: end it".to_owned()],
            failing: vec![FailingCallsReport {
                calls: "writes",
                cause: "statement",
                problem: "PostgreSQL refuses a statement".to_owned(),
                remedy: "look at its log".to_owned(),
                lasts: Duration::from_secs(3),
                share_percent: 40,
                error: String::new(),
            }],
            warnings: vec![ClusterWarning {
                part: "installation",
                text: "Patroni is paused; end it with `patronictl resume`".to_owned(),
            }],
        };
        let unreached = ClusterReport {
            name: "c1".to_owned(),
            epoch: None,
            problem: Some("not polled yet".to_owned()),
            members: vec![ClusterMember {
                observed_at: None,
                ..member("c1-1", MemberRole::Replica)
            }],
            proof_left: None,
            is_repair_closed: None,
            long_transactions: Vec::new(),
            failing: Vec::new(),
            warnings: Vec::new(),
            outbox: OutboxReport { observed_at: None, ..degraded.outbox },
            ..degraded.clone()
        };
        vec![degraded, unreached]
    }
}
