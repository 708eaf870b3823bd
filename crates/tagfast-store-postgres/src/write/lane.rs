//! A writer lane's queue, shared by callers, the lane's worker and the tasks that wait for proofs.
//!
//! A content always goes to the same lane of its cluster, so its writes keep their order.
//!
//! How it fails: a full lane refuses. A write whose time is up is answered while it waits: nothing
//! happened, or, if an earlier attempt may have been durable, the outcome is unknown.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_domain::{EpochId, TenantId};
use tagfast_failover::GuardState;
use tagfast_resilience::{BreakerState, counter};
use tagfast_store::fair_queue::{FairQueue, Queued, TenantWeights};
use tagfast_store::metric::{RefusalReason, STORE_REFUSED, count_queue_full};
use tagfast_store::{StoreError, WriteAnswer, WriteRequest};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::cluster::topology::Cluster;
use crate::health::cause::FailureCause;
use crate::options::limit;
use crate::refusal::{NO_REPLICA_IN_TIME, overloaded, replication_lag, unavailable};

/// How often a lane answers writes whose time is up.
pub(crate) const EXPIRY_INTERVAL: Duration = Duration::from_millis(50);

/// What a caller receives.
pub(crate) type WriteResult = Result<WriteAnswer, StoreError>;

/// A write that waits.
pub(crate) struct QueuedWrite {
    pub(crate) request: WriteRequest,
    pub(crate) reply: oneshot::Sender<WriteResult>,
    /// Its caller waits no longer than this.
    pub(crate) until: Instant,
    /// The epoch of an earlier attempt that may have been durable, the first such; `None`: there
    /// was none.
    pub(crate) in_doubt: Option<EpochId>,
}

impl QueuedWrite {
    /// The same after an attempt in this epoch that may have been durable.
    pub(crate) fn doubted(self, epoch: EpochId) -> Self {
        Self { in_doubt: self.in_doubt.or(Some(epoch)), ..self }
    }

    /// Whether an earlier attempt of it, in an epoch before this one, may still be brought back by
    /// a repair, of this process or of a different one. `is_final`: none is brought back any more.
    /// A key may be that of a retry: who took the first attempt is not known here.
    pub(crate) fn may_come_back(&self, epoch: EpochId, is_final: bool) -> bool {
        let was_lost = self.in_doubt.is_some_and(|doubtful| doubtful != epoch);
        !is_final && (was_lost || self.request.keyed.is_some())
    }
}

impl Queued for QueuedWrite {
    fn tenant(&self) -> &TenantId {
        &self.request.write.key.tenant
    }

    fn units(&self) -> usize {
        1
    }
}

struct WriteQueue {
    fresh: FairQueue<QueuedWrite>,
    /// Writes that are retried, before everything that came later.
    retries: Vec<QueuedWrite>,
    closed: bool,
}

/// A lane.
pub(crate) struct Lane {
    pub(crate) number: i32,
    queue: Mutex<WriteQueue>,
    /// Wakes the worker.
    pub(crate) arrived: Notify,
    /// Wakes the task that answers late writes.
    filled: Notify,
    hold: Duration,
}

impl Lane {
    /// An empty lane whose writes wait at most `hold` for a primary.
    pub(crate) fn new(number: i32, hold: Duration, weights: TenantWeights) -> Self {
        let fresh = FairQueue::weighted(limit::LANE_QUEUE_MAX, weights);
        Self {
            number,
            queue: Mutex::new(WriteQueue { fresh, retries: Vec::new(), closed: false }),
            arrived: Notify::new(),
            filled: Notify::new(),
            hold,
        }
    }

    /// Queues a write.
    ///
    /// # Errors
    ///
    /// [`StoreError::Overloaded`]: the lane or the tenant's share of it is full.
    /// [`StoreError::Unavailable`]: the lane is closed.
    pub(crate) fn push(
        &self,
        request: WriteRequest,
    ) -> Result<oneshot::Receiver<WriteResult>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let hold = Instant::now() + self.hold;
        let until = request.deadline.map_or(hold, |deadline| deadline.min(hold));
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(unavailable("the store is shutting down", false));
        }
        let write = QueuedWrite { request, reply, until, in_doubt: None };
        queue
            .fresh
            .push(write)
            .map_err(|(why, _)| overloaded(count_queue_full(why), limit::LANE_QUEUE_MAX))?;
        drop(queue);
        self.arrived.notify_one();
        self.filled.notify_one();
        Ok(answer)
    }

    /// Puts writes back, before all others.
    pub(crate) fn requeue(&self, writes: Vec<QueuedWrite>) {
        if writes.is_empty() {
            return;
        }
        let mut queue = self.queue.lock();
        let later = std::mem::replace(&mut queue.retries, writes);
        queue.retries.extend(later);
        drop(queue);
        self.arrived.notify_one();
        self.filled.notify_one();
    }

    /// Takes a batch: all retries, then new writes up to `max` in total.
    pub(crate) fn take(&self, max: usize) -> Vec<QueuedWrite> {
        let mut queue = self.queue.lock();
        let mut writes = std::mem::take(&mut queue.retries);
        let room = max.saturating_sub(writes.len());
        writes.extend(queue.fresh.take(room, room));
        writes
    }

    /// Answers the writes whose time is up with what keeps them from being done; the others go on
    /// waiting.
    pub(crate) fn expire(&self, cluster: &Cluster) {
        let now = Instant::now();
        let mut queue = self.queue.lock();
        if queue.fresh.is_empty() && queue.retries.is_empty() {
            return;
        }
        let mut late = queue.fresh.take_if(|write| write.until <= now);
        let (gone, stay): (Vec<QueuedWrite>, Vec<QueuedWrite>) =
            std::mem::take(&mut queue.retries).into_iter().partition(|write| write.until <= now);
        queue.retries = stay;
        drop(queue);
        late.extend(gone);
        if late.is_empty() {
            return;
        }
        let cause = delay_cause(cluster);
        cluster.health.writes_failed(cause, late.len());
        for write in late {
            let outcome_unknown = write.in_doubt.is_some();
            let error = match write.request.deadline {
                _ if cause == FailureCause::ReplicationLag => {
                    replication_lag(NO_REPLICA_IN_TIME, outcome_unknown)
                }
                Some(deadline) if deadline <= now => {
                    StoreError::Deadline { waiting_for: cause.waiting_for(), outcome_unknown }
                }
                _ => unavailable(cause.reason(), outcome_unknown),
            };
            let reason = if cause == FailureCause::NoPrimary {
                RefusalReason::NoPrimary
            } else if cause == FailureCause::ReplicationLag {
                RefusalReason::ReplicationLag
            } else {
                RefusalReason::Deadline
            };
            counter!(STORE_REFUSED, "reason" => reason).increment(1);
            drop(write.reply.send(Err(error)));
        }
    }

    /// Refuses new writes from now on; the worker ends when the queued ones are answered.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.arrived.notify_one();
    }

    /// How many writes wait.
    pub(crate) fn len(&self) -> usize {
        let queue = self.queue.lock();
        queue.fresh.len() + queue.retries.len()
    }

    /// Whether nothing waits and nothing will.
    pub(crate) fn is_finished(&self) -> bool {
        let queue = self.queue.lock();
        queue.closed && queue.fresh.is_empty() && queue.retries.is_empty()
    }
}

/// Why a write of a cluster was not done in time.
pub(crate) fn delay_cause(cluster: &Cluster) -> FailureCause {
    if cluster.topology.borrow().primary.is_none() {
        return cluster.health.without_primary();
    }
    if cluster.guard.state() >= GuardState::Holding {
        return FailureCause::ReplicationLag;
    }
    match cluster.health.recent_write_failure() {
        Some(cause) => cause,
        None if cluster.primary_breaker.snapshot().state != BreakerState::Closed => {
            FailureCause::Slow
        }
        None => FailureCause::NoAnswer,
    }
}

/// Answers late writes of a lane, also while its worker waits for a primary; until it is dropped.
pub(crate) async fn expire_late(lane: Arc<Lane>, cluster: Arc<Cluster>) {
    loop {
        if lane.len() == 0 {
            lane.filled.notified().await;
        }
        tokio::time::sleep(EXPIRY_INTERVAL).await;
        lane.expire(&cluster);
    }
}

#[cfg(test)]
mod tests {
    use tagfast_domain::{
        Call, ContentKey, IdempotencyKey, Limits, Operation, Tag, UserId, Write as ContentWrite,
        WriteId,
    };

    use super::*;

    fn queued() -> QueuedWrite {
        let tags = vec![Tag::parse("x").expect("a tag")];
        let write = ContentWrite {
            id: WriteId([1; 16]),
            key: ContentKey::parse("t", "doc", "1").expect("a content"),
            user: UserId::parse("u").expect("a user"),
            operation: Operation::patch(tags, Vec::new(), &Limits::default()).expect("a patch"),
            if_match: None,
        };
        let (reply, _) = oneshot::channel();
        let request = WriteRequest { keyed: None, ..WriteRequest::new(write) };
        QueuedWrite { request, reply, until: Instant::now(), in_doubt: None }
    }

    #[test]
    fn an_attempt_may_come_back_until_the_repair_is_final() {
        let (first, second) = (EpochId([1; 16]), EpochId([2; 16]));
        assert!(!queued().may_come_back(second, false), "it was tried once");
        let doubted = queued().doubted(first);
        assert!(!doubted.may_come_back(first, false), "the document would have it");
        assert!(doubted.may_come_back(second, false));
        let again = doubted.doubted(second);
        assert!(again.may_come_back(second, false), "the first attempt counts");
        let mut keyed = queued();
        let content = &keyed.request.write.key.content;
        let key = IdempotencyKey::of_write(WriteId([1; 16]), Call::Patch, content);
        keyed.request.keyed = Some(key);
        assert!(keyed.may_come_back(second, false), "a different process may have tried it");
        for write in [again, keyed] {
            assert!(!write.may_come_back(second, true));
        }
    }
}
