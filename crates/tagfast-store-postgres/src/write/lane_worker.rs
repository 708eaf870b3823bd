//! The worker of a lane: takes what waits, commits it as one batch, has the commit proven, answers.
//!
//! The worker does not wait for proofs: a commit that needs one is handed to a task, and the next
//! batch runs.
//!
//! A lane that has nothing to write for a second sends a canary: it goes the whole way of a write,
//! with empty statements in the lane's session, and counts as a write. So what keeps writes from
//! being done is noticed before the first one comes. A canary waits for a lock for half a second
//! only. It writes nothing, so it does not notice a full disk.
//!
//! How it fails. No primary: writes wait, at most the hold time and never beyond their deadline,
//! then their callers learn that nothing happened. The primary's breaker is open: they wait
//! likewise, and one small batch at a time probes it. A connection that dies before COMMIT: the
//! batch runs again. After COMMIT: it runs again too, with the same ids, which the document has if
//! the first attempt was durable; when no primary comes in time the callers learn that the outcome
//! is unknown. A content refuses a write that a failover may have lost an attempt of: it waits
//! until the repair is final, at most as long as for a primary, then its outcome is unknown.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tagfast_domain::{Epoch, EpochId, Limits};
use tagfast_failover::{AckDecision, Commit, EpochRecord, GuardState, ReplicaCount};
use tagfast_resilience::task::{StopSignal, TaskTracker};
use tagfast_resilience::{Bounded, Clock, ErrorChain, Permit, counter, gauge, histogram};
use tagfast_store::metric::{
    CommitFailureReason, RefusalReason, STORE_BATCH_WRITES, STORE_COMMIT_FAILURES,
    STORE_COMMIT_SECONDS, STORE_REFUSED,
};
use tagfast_store::write_batch::ItemResult;
use tagfast_store::{CommitContext, Durability, WriteAnswer};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use crate::cluster::topology::Cluster;
use crate::connect::{ConnectionFactory, PgError};
use crate::health::cause::FailureCause;
use crate::metric::{ACKNOWLEDGED_BEYOND_BOUND, LANE_LOST_RACES, LANE_QUEUE, UNPROVEN_WRITES};
use crate::options::{ReplicatedMeans, limit, reconnect_delay};
use crate::refusal::{
    NO_REPLICA_IN_TIME, NOT_REPLICATED_IN_TIME, REPAIR_OPEN, replication_lag, unavailable,
};
use crate::sql::EPOCH_ENDED;
use crate::write::acknowledgement::{AckOutcome, CommittedGroup};
use crate::write::group_commit::{self, BatchItem, CommitOutcome};
use crate::write::lane::{EXPIRY_INTERVAL, Lane, QueuedWrite, WriteResult};
use crate::write::session::WriteSession;
use crate::write::slots::{GroupCommitError, GroupContext};

/// How long a lane has nothing to write before it sends a canary.
const CANARY_INTERVAL: Duration = Duration::from_secs(1);

/// A commit that is not proven after this time counts as failed, and may still be acknowledged.
const PROOF_LATE_AFTER: Duration = Duration::from_secs(2);

/// A group commit that has not returned after this time counts as failed, and may still succeed.
/// Longer than the server waits for a lock, whose error says more.
const COMMIT_LATE_AFTER: Duration = Duration::from_millis(3200);

/// The same for a canary, whose statements the server cancels before.
const CANARY_LATE_AFTER: Duration = Duration::from_millis(2500);

/// How long a lane takes its advisory lock after it lost a race against a different node.
const LOCK_AFTER_CONFLICT: Duration = Duration::from_secs(1);

/// Everything the worker of a lane runs with.
pub(crate) struct LaneWorker {
    pub(crate) lane: Arc<Lane>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) connections: ConnectionFactory,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
    /// Whether the lane sends canaries while it has nothing to write.
    pub(crate) canaries: bool,
    /// See [`crate::PostgresOptions::replicated_means`].
    pub(crate) replicated_means: ReplicatedMeans,
    /// The size of the outbox, in bytes, from which writes are refused.
    pub(crate) outbox_bytes_max: u64,
    /// Owns the tasks that wait for proofs.
    pub(crate) tasks: TaskTracker,
    /// Ends them when the store is dropped.
    pub(crate) stop: StopSignal,
}

/// What a worker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// It commits the writes that wait.
    Writes,
    /// None waits: it goes the way of a write with nothing to write.
    Canary,
}

/// What a worker keeps from batch to batch.
#[derive(Default)]
struct Progress {
    /// The session on the primary and its epoch; `None`: it is to be opened.
    session: Option<(Arc<EpochRecord>, WriteSession)>,
    /// Until when the lane takes its lock; `None`: it has lost no race lately.
    locked_until: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    /// When the lane last committed, sent a canary or failed to; `None`: it has not yet.
    tried: Option<Instant>,
}

/// Tells the breaker about a failure, if it is one of the primary: a conflict with other writers,
/// an epoch that has ended and a change of role are not.
fn record_failure(permit: Permit, error: &PgError) {
    let conflict = matches!(error.code(), Some("40P01" | "40001" | "55P03" | EPOCH_ENDED));
    if !conflict && !error.is_role_change() {
        permit.failed();
    }
}

/// Answers writes; `count`: how many replicas had their commit.
fn answer(done: DoneWrites, count: Option<ReplicaCount>) {
    let count =
        count.map(|ReplicaCount { replicas, of }| tagfast_store::ReplicaCount { replicas, of });
    for (write, result) in done {
        let counted = |answer| WriteAnswer { replicated: count, ..answer };
        drop(write.reply.send(result.map(counted)));
    }
}

impl LaneWorker {
    /// Runs until the lane is closed and empty.
    pub(crate) async fn run(self) {
        let mut progress = Progress::default();
        let depth = gauge!(LANE_QUEUE, "cluster" => self.label(),
            "lane" => Bounded(self.lane.number.to_string()));
        loop {
            depth.set(self.lane.len() as f64);
            if self.lane.is_finished() {
                return;
            }
            let mut work = Work::Writes;
            if self.lane.len() == 0 {
                let arrived = self.lane.arrived.notified();
                let idle_until = progress.tried.unwrap_or_else(Instant::now) + CANARY_INTERVAL;
                if !self.canaries {
                    arrived.await;
                    continue;
                }
                if timeout_at(idle_until, arrived).await.is_ok() {
                    continue;
                }
                work = Work::Canary;
            }
            self.run_batch(&mut progress, work).await;
            progress.tried = Some(Instant::now());
        }
    }

    fn label(&self) -> Bounded<String> {
        Bounded(self.cluster.name.clone())
    }

    /// Commits one batch, or a canary, once there is a primary and its breaker lets it through.
    async fn run_batch(&self, progress: &mut Progress, work: Work) {
        // Writes stay in the queue until there is a primary to take them.
        let Some((epoch, node)) = self.cluster.primary(Instant::now() + EXPIRY_INTERVAL).await
        else {
            progress.session = None;
            self.lane.expire(&self.cluster);
            return;
        };
        let Some(throttle) = self.throttle(work).await else {
            return self.lane.expire(&self.cluster);
        };
        // A primary that does not answer is probed now and then, by one batch; the other writes
        // wait meanwhile.
        let permit = match self.cluster.primary_breaker.acquire() {
            Ok(permit) => permit,
            Err(refused) => {
                self.lane.expire(&self.cluster);
                let delay = refused.retry_after.min(limit::BREAKER_RETRY_INTERVAL);
                tokio::time::sleep(delay).await;
                return;
            }
        };
        let open = progress.session.take().filter(|(known, session)| {
            known.id == epoch.id && !session.connection.client.is_closed()
        });
        let (epoch, mut session) = match open {
            Some(open) => open,
            None => match self.open(&node.address).await {
                Ok(session) => (epoch, session),
                Err(error) => {
                    record_failure(permit, &error);
                    self.cluster.health.writes_failed_with(&error, self.lane.len());
                    self.lane.expire(&self.cluster);
                    self.back_off(progress).await;
                    return;
                }
            },
        };
        self.lane.expire(&self.cluster);
        let max = match (permit.is_probe(), &throttle) {
            (true, _) => limit::PROBE_BATCH_MAX,
            (false, Some(_)) => limit::THROTTLED_BATCH_MAX,
            (false, None) => limit::COMMIT_BATCH_MAX,
        };
        let writes = self.lane.take(max);
        if writes.is_empty() && work == Work::Writes {
            progress.session = Some((epoch, session));
            return;
        }
        let began = Instant::now();
        let locked = progress.locked_until.is_some_and(|until| began < until);
        let current = Epoch { id: epoch.id, ordinal: epoch.ordinal };
        let commit = CommitContext {
            cluster: self.cluster.index,
            epoch: &current,
            limits: &self.limits,
            now: self.clock.now_ms(),
        };
        let lane_lock = (locked && !writes.is_empty()).then_some(self.lane.number);
        let journals = !self.cluster.guard.is_off();
        let context = GroupContext { commit, lane_lock, is_canary: writes.is_empty(), journals };
        let is_final = self.cluster.repair.is_final();
        let batch: Vec<BatchItem<'_>> = writes
            .iter()
            .map(|write| BatchItem {
                request: &write.request,
                in_doubt: write.in_doubt.is_some(),
                may_come_back: write.may_come_back(epoch.id, is_final),
            })
            .collect();
        match self.note_late(writes.len(), group_commit::run(&mut session, &batch, &context)).await
        {
            Ok(outcome) => {
                progress.failures = 0;
                let took = began.elapsed();
                if writes.is_empty() {
                    // A slow canary delays no caller; slow writes tell the breaker.
                    if took < limit::SLOW_CALL || permit.is_probe() {
                        permit.ok();
                    }
                    progress.session = Some((epoch, session));
                    return self.finish_canary(outcome.commit);
                }
                // A large batch takes its time; only a small one that is slow says something about
                // the primary.
                if took < limit::SLOW_CALL || writes.len() <= limit::PROBE_BATCH_MAX {
                    permit.ok();
                }
                histogram!(STORE_BATCH_WRITES).record(writes.len() as f64);
                histogram!(STORE_COMMIT_SECONDS).record(took.as_secs_f64());
                if outcome.lost_race {
                    counter!(LANE_LOST_RACES, "cluster" => self.label()).increment(1);
                    progress.locked_until = Some(Instant::now() + LOCK_AFTER_CONFLICT);
                }
                progress.session = Some((epoch, session));
                self.cluster.committed.notify_one();
                self.finish(writes, outcome, throttle);
            }
            // The session is dropped: after an aborted transaction only a new one is clean.
            Err(failure) => {
                let keep = failure.is_of_the_batch();
                if failure.waited_for_standby {
                    // The primary is not to blame. Its session would wait on, and hold its rows.
                    if let Err(error) = self.connections.cancel(&session.connection).await {
                        let error = ErrorChain(&error);
                        tracing::warn!(%error, "the wait for the standby cannot be cancelled");
                    }
                    self.cluster.health.writes_failed(FailureCause::NoStandby, writes.len());
                } else {
                    record_failure(permit, &failure.error);
                    self.cluster.health.writes_failed_with(&failure.error, writes.len());
                }
                self.retry(writes, current.id, &failure);
                if !keep {
                    self.back_off(progress).await;
                }
            }
        }
    }

    /// Waits for what the guard of loss demands before a commit: nothing, or while it throttles,
    /// that no other commit of this process is on its way. `None`: not now.
    async fn throttle(&self, work: Work) -> Option<Option<OwnedSemaphorePermit>> {
        match self.cluster.guard.state() {
            GuardState::Open => Some(None),
            GuardState::Throttled | GuardState::Holding if work == Work::Canary => Some(None),
            GuardState::Throttled | GuardState::Holding => {
                let throttle = Arc::clone(&self.cluster.guard.throttle).acquire_owned();
                timeout(EXPIRY_INTERVAL, throttle).await.ok()?.ok().map(Some)
            }
            // Writes wait in the queue: nothing of them has reached the database.
            GuardState::Refusing => {
                if work == Work::Canary {
                    self.cluster.health.writes_failed(FailureCause::ReplicationLag, 1);
                }
                tokio::time::sleep(limit::BREAKER_RETRY_INTERVAL).await;
                None
            }
        }
    }

    /// Counts the writes of a commit that does not return as failed, and goes on waiting.
    async fn note_late<T>(&self, writes: usize, commit: impl Future<Output = T>) -> T {
        let mut commit = std::pin::pin!(commit);
        let late = if writes == 0 { CANARY_LATE_AFTER } else { COMMIT_LATE_AFTER };
        match timeout(late, &mut commit).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.cluster.health.writes_failed(FailureCause::NoAnswer, writes.max(1));
                commit.await
            }
        }
    }

    /// Has the commit of a canary proven, as that of a write.
    fn finish_canary(&self, commit: Commit) {
        let cluster = Arc::clone(&self.cluster);
        if cluster.outbox_bytes.load(Ordering::Relaxed) >= self.outbox_bytes_max {
            return cluster.health.writes_failed(FailureCause::OutboxFull, 1);
        }
        let until = Instant::now() + PROOF_LATE_AFTER;
        self.spawn(async move {
            match cluster.may_acknowledge(&commit, until).await {
                true => cluster.health.writes_succeeded(1),
                false => cluster.health.writes_failed(FailureCause::Unproven, 1),
            }
        });
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(work).await });
    }

    async fn open(&self, address: &str) -> Result<WriteSession, PgError> {
        WriteSession::new(self.connections.open_to_write(address).await?).await
    }

    /// Reports the failure and waits before the next attempt.
    async fn back_off(&self, progress: &mut Progress) {
        self.cluster.report_failure();
        tokio::time::sleep(reconnect_delay(progress.failures)).await;
        progress.failures += 1;
    }

    /// Queues the writes of a failed batch again.
    fn retry(&self, writes: Vec<QueuedWrite>, epoch: EpochId, failure: &GroupCommitError) {
        if writes.is_empty() {
            return;
        }
        let unknown = failure.outcome_unknown;
        // The begin and the end of what fails writes are logged as such.
        tracing::debug!(
            cluster = self.cluster.name,
            error = %ErrorChain(&failure.error),
            unknown,
            "a group commit failed; it is retried"
        );
        let reason = match unknown {
            true => CommitFailureReason::Unknown,
            false => CommitFailureReason::Aborted,
        };
        counter!(STORE_COMMIT_FAILURES, "reason" => reason).increment(1);
        let doubtful = |write: QueuedWrite| if unknown { write.doubted(epoch) } else { write };
        self.lane.requeue(writes.into_iter().map(doubtful).collect());
    }

    /// Journals the commit and has it proven, then answers; requeues the writes that lost a race.
    /// `throttle` ends when the commit is acknowledged.
    fn finish(
        &self,
        writes: Vec<QueuedWrite>,
        mut outcome: CommitOutcome,
        throttle: Option<OwnedSemaphorePermit>,
    ) {
        let epoch = outcome.commit.epoch;
        let group = CommittedGroup::record(&self.cluster, &mut outcome);
        let mut done = Vec::with_capacity(writes.len());
        let (mut lost, mut undecided) = (Vec::new(), Vec::new());
        for (write, item) in writes.into_iter().zip(outcome.items) {
            match item {
                ItemResult::Done(result) => done.push((write, result)),
                ItemResult::Retry => lost.push(write),
                ItemResult::Undecided => undecided.push(write),
            }
        }
        self.lane.requeue(lost);
        if !undecided.is_empty() {
            let (lane, cluster) = (Arc::clone(&self.lane), Arc::clone(&self.cluster));
            self.spawn(await_repair(lane, cluster, epoch, undecided));
        }
        let Some(until) = done.iter().map(|(write, _)| write.until).max() else { return };
        let (lane, cluster) = (Arc::clone(&self.lane), Arc::clone(&self.cluster));
        let Some(group) = group else { return retry_unproven(&lane, &cluster, epoch, done) };
        let means = self.replicated_means;
        if let AckDecision::Acknowledge(count) = group.decide(&cluster) {
            let replicated = answer_acknowledged(&cluster, done, count);
            if !replicated.is_empty() {
                self.spawn(answer_replicated(lane, cluster, group, replicated, means));
            }
            return;
        }
        self.spawn(async move {
            let late = until.min(Instant::now() + PROOF_LATE_AFTER);
            let mut waited = group.acknowledged(&cluster, late).await;
            if let Some(cause) = waited.failure() {
                cluster.health.writes_failed(cause, done.len());
                waited = group.acknowledged(&cluster, until).await;
            }
            drop(throttle);
            match waited {
                AckOutcome::Acknowledged(count) => {
                    let replicated = answer_acknowledged(&cluster, done, count);
                    answer_replicated(lane, cluster, group, replicated, means).await;
                }
                AckOutcome::Unproven => {
                    group.stop_waiting(&cluster);
                    retry_unproven(&lane, &cluster, epoch, done);
                }
                AckOutcome::Unreplicated => {
                    group.stop_waiting(&cluster);
                    answer_unreplicated(done, NO_REPLICA_IN_TIME);
                }
            }
        });
    }
}

type DoneWrites = Vec<(QueuedWrite, WriteResult)>;

/// Holds writes that their contents refuse in this epoch while a repair may bring earlier attempts
/// of them back, then queues them again. Those whose time is up are answered: their outcome is
/// unknown.
async fn await_repair(
    lane: Arc<Lane>,
    cluster: Arc<Cluster>,
    epoch: EpochId,
    mut writes: Vec<QueuedWrite>,
) {
    while !writes.is_empty() {
        let is_current = cluster.epoch().is_some_and(|current| current.id == epoch);
        if cluster.repair.is_final() || !is_current {
            return lane.requeue(writes);
        }
        tokio::time::sleep(EXPIRY_INTERVAL).await;
        let now = Instant::now();
        for late in writes.extract_if(.., |write| write.until <= now) {
            counter!(STORE_REFUSED, "reason" => RefusalReason::RepairOpen).increment(1);
            drop(late.reply.send(Err(unavailable(REPAIR_OPEN, true))));
        }
    }
}

/// Answers the writes of an acknowledged commit, except those that asked for replicas, which are
/// returned. `count`: how many replicas had the commit.
fn answer_acknowledged(
    cluster: &Cluster,
    mut done: DoneWrites,
    count: Option<ReplicaCount>,
) -> DoneWrites {
    let asks = |(write, result): &mut (QueuedWrite, WriteResult)| {
        write.request.durability == Durability::Replicated && result.is_ok()
    };
    let replicated: DoneWrites = done.extract_if(.., asks).collect();
    let writes = done.iter().filter(|(_, result)| result.is_ok()).count();
    if cluster.guard.is_beyond() && count.is_some_and(|count| count.replicas == 0) && writes > 0 {
        counter!(ACKNOWLEDGED_BEYOND_BOUND, "cluster" => Bounded(cluster.name.clone()))
            .increment(writes as u64);
    }
    if !done.is_empty() {
        cluster.health.writes_succeeded(done.len());
    }
    answer(done, count);
    replicated
}

/// Answers the writes of an acknowledged commit that asked for replicas, once these have it.
async fn answer_replicated(
    lane: Arc<Lane>,
    cluster: Arc<Cluster>,
    group: CommittedGroup,
    done: DoneWrites,
    means: ReplicatedMeans,
) {
    let Some(until) = done.iter().map(|(write, _)| write.until).max() else { return };
    match group.replicated(&cluster, means, until).await {
        AckOutcome::Acknowledged(count) => {
            cluster.health.writes_succeeded(done.len());
            answer(done, count);
        }
        AckOutcome::Unproven => retry_unproven(&lane, &cluster, group.epoch(), done),
        AckOutcome::Unreplicated => {
            cluster.health.writes_failed(FailureCause::ReplicationLag, done.len());
            answer_unreplicated(done, NOT_REPLICATED_IN_TIME);
        }
    }
}

/// Queues writes again whose commit could not be proven.
fn retry_unproven(lane: &Lane, cluster: &Cluster, epoch: EpochId, done: DoneWrites) {
    counter!(UNPROVEN_WRITES, "cluster" => Bounded(cluster.name.clone()))
        .increment(done.len() as u64);
    let unproven = done.into_iter().map(|(write, _)| write.doubted(epoch));
    lane.requeue(unproven.collect());
}

/// Answers the writes of a commit that no replica has in time. A refusal promised nothing and
/// stands.
fn answer_unreplicated(done: DoneWrites, reason: &'static str) {
    for (write, result) in done {
        drop(write.reply.send(result.and_then(|_| Err(replication_lag(reason, true)))));
    }
}
