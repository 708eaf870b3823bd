//! A writer lane: takes what waits, runs it as one group, has its answers proven, answers.
//!
//! A content always goes to the same lane of its cluster, so its writes keep their order. The lane
//! does not wait for proofs: a group whose answer needs one is handed to a task, and the next group
//! runs.
//!
//! How it fails. No primary: writes wait, at most the hold time and never beyond their deadline,
//! then they are told that nothing happened. A primary whose breaker is open: they wait likewise,
//! and one small group at a time tries it. A connection that dies before COMMIT: the group runs
//! again. After COMMIT: it runs again too, with the same ids, which the document knows if it did
//! happen; when no primary comes in time the callers are told that the outcome is unknown.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tagfast_domain::{Limits, TenantId};
use tagfast_resilience::{Clock, Permit};
use tagfast_store::queue::{FairQueue, NoRoom, Queued, TenantWeights};
use tagfast_store::{StoreError, WriteAnswer, WriteRequest};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::cluster::{Cluster, pause_after};
use crate::connect::{Opener, PgError};
use crate::group::{self, Asked, Finished, ItemResult, Terms, Writing};
use crate::options::limit;

/// A lane that lost a race takes its lock this long.
const LOCKED_FOR: Duration = Duration::from_secs(1);

/// Whom to answer.
type Reply = oneshot::Sender<Result<WriteAnswer, StoreError>>;

/// A write that waits.
pub(crate) struct Job {
    pub(crate) request: WriteRequest,
    pub(crate) reply: Reply,
    /// Nobody waits for it longer than this.
    until: Instant,
    /// An earlier attempt may have happened.
    in_doubt: bool,
}

impl Queued for Job {
    fn tenant(&self) -> &TenantId {
        &self.request.write.key.tenant
    }

    fn units(&self) -> usize {
        1
    }
}

struct Inbox {
    queue: FairQueue<Job>,
    /// Groups that run again, before everything that came later.
    again: Vec<Job>,
    closed: bool,
}

/// A lane's queue, shared by callers, the lane and its tasks.
pub(crate) struct Lane {
    number: i32,
    inbox: Mutex<Inbox>,
    arrived: Notify,
    /// For whoever watches the time of what waits.
    filled: Notify,
    hold: Duration,
}

/// Everything a lane runs with.
pub(crate) struct LaneTask {
    pub(crate) lane: Arc<Lane>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) opener: Opener,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Limits,
}

impl Lane {
    pub(crate) fn new(number: i32, hold: Duration, weights: TenantWeights) -> Self {
        let queue = FairQueue::weighted(limit::LANE_QUEUE, weights);
        let inbox = Inbox { queue, again: Vec::new(), closed: false };
        Self {
            number,
            inbox: Mutex::new(inbox),
            arrived: Notify::new(),
            filled: Notify::new(),
            hold,
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a write in, or says why not.
    pub(crate) fn push(
        &self,
        request: WriteRequest,
    ) -> Result<oneshot::Receiver<Result<WriteAnswer, StoreError>>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let hold = Instant::now() + self.hold;
        let until = request.deadline.map_or(hold, |deadline| deadline.min(hold));
        let mut inbox = self.inbox();
        if inbox.closed {
            return Err(unavailable("the store is shutting down", false));
        }
        inbox.queue.push(Job { request, reply, until, in_doubt: false }).map_err(|(why, _)| {
            let queue = match why {
                NoRoom::Full => "write",
                NoRoom::TenantShare => "tenant's share of the write",
            };
            metrics::counter!("tagfast_store_refused_total", "reason" => "queue_full").increment(1);
            StoreError::Overloaded {
                queue,
                limit: limit::LANE_QUEUE,
                retry_after: Duration::from_secs(1),
            }
        })?;
        drop(inbox);
        self.arrived.notify_one();
        self.filled.notify_one();
        Ok(answer)
    }

    /// Lets a group run again.
    fn again(&self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let mut inbox = self.inbox();
        let later = std::mem::take(&mut inbox.again);
        inbox.again = jobs;
        inbox.again.extend(later);
        drop(inbox);
        self.arrived.notify_one();
        self.filled.notify_one();
    }

    fn take(&self, most: usize) -> Vec<Job> {
        let mut inbox = self.inbox();
        let mut jobs = std::mem::take(&mut inbox.again);
        let room = most.saturating_sub(jobs.len());
        jobs.extend(inbox.queue.take(room, room));
        jobs
    }

    /// Tells those whose time is up; the others go on waiting.
    fn expire(&self) {
        let now = Instant::now();
        let mut inbox = self.inbox();
        if inbox.queue.is_empty() && inbox.again.is_empty() {
            return;
        }
        let mut late = inbox.queue.take_if(|job| job.until <= now);
        let (gone, stay): (Vec<Job>, Vec<Job>) =
            std::mem::take(&mut inbox.again).into_iter().partition(|job| job.until <= now);
        inbox.again = stay;
        drop(inbox);
        late.extend(gone);
        for job in late {
            let unknown = job.in_doubt;
            let error = match job.request.deadline {
                Some(deadline) if deadline <= now => StoreError::Deadline {
                    waiting_for: "the cluster's primary",
                    outcome_unknown: unknown,
                },
                _ => unavailable("the cluster has no primary", unknown),
            };
            metrics::counter!("tagfast_store_refused_total", "reason" => "no_primary").increment(1);
            drop(job.reply.send(Err(error)));
        }
    }

    /// Refuses what comes from now on.
    pub(crate) fn close(&self) {
        self.inbox().closed = true;
        self.arrived.notify_one();
    }

    fn waiting(&self) -> usize {
        let inbox = self.inbox();
        inbox.queue.len() + inbox.again.len()
    }

    fn is_closed_and_empty(&self) -> bool {
        let inbox = self.inbox();
        inbox.closed && inbox.queue.is_empty() && inbox.again.is_empty()
    }
}

pub(crate) fn unavailable(reason: &'static str, outcome_unknown: bool) -> StoreError {
    StoreError::Unavailable { reason, outcome_unknown, retry_after: Duration::from_secs(1) }
}

/// Tells the breaker of a failure, if it is one: a conflict with other writers, a reign that has
/// ended and a change of role are none.
fn failed(permit: Permit, error: &PgError) {
    let conflict = matches!(error.code(), Some("40P01" | "40001" | "55P03" | "22012"));
    if !conflict && !error.is_role_change() {
        permit.failed();
    }
}

/// Tells late writes of a lane also while the lane waits for its primary.
pub(crate) async fn expire_late(lane: Arc<Lane>) {
    loop {
        if lane.waiting() == 0 {
            lane.filled.notified().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        lane.expire();
    }
}

impl LaneTask {
    /// Runs until the lane is closed and empty.
    pub(crate) async fn run(self) {
        let mut server: Option<(Arc<tagfast_failover::EpochRecord>, Writing)> = None;
        let mut locked_until: Option<Instant> = None;
        let mut failures = 0;
        let depth = metrics::gauge!("tagfast_lane_queue_writes", "cluster" => self.cluster.name.clone(),
            "lane" => self.lane.number.to_string());
        loop {
            depth.set(self.lane.waiting() as f64);
            if self.lane.is_closed_and_empty() {
                return;
            }
            if self.lane.waiting() == 0 {
                self.lane.arrived.notified().await;
                continue;
            }
            // Nothing is taken out before there is somebody to give it to.
            let soon = Instant::now() + Duration::from_millis(50);
            let Some((epoch, node)) = self.cluster.primary(soon).await else {
                server = None;
                self.lane.expire();
                continue;
            };
            // A primary that does not answer is tried now and then, by one call; what waits here is
            // held meanwhile.
            let permit = match self.cluster.primary_breaker.acquire() {
                Ok(permit) => permit,
                Err(refused) => {
                    self.lane.expire();
                    tokio::time::sleep(refused.retry_after.min(limit::PROBE_AGAIN)).await;
                    continue;
                }
            };
            if server
                .as_ref()
                .is_none_or(|(e, w)| e.id != epoch.id || w.connection.client.is_closed())
            {
                server = None;
                match self.open(&node.address).await {
                    Ok(writing) => server = Some((epoch, writing)),
                    Err(error) => {
                        failed(permit, &error);
                        tracing::warn!(cluster = self.cluster.name, %error, "the primary is not reached");
                        self.cluster.suspect();
                        self.lane.expire();
                        tokio::time::sleep(pause_after(failures)).await;
                        failures += 1;
                        continue;
                    }
                }
            }
            let Some((epoch, writing)) = server.as_mut() else { continue };
            self.lane.expire();
            let jobs = self.lane.take(if permit.is_probe() { limit::PROBE } else { limit::GROUP });
            if jobs.is_empty() {
                continue;
            }
            let now = Instant::now();
            let locked = locked_until.is_some_and(|until| now < until).then_some(self.lane.number);
            let terms = Terms {
                cluster: self.cluster.index,
                epoch,
                limits: &self.limits,
                now: self.clock.now_ms(),
                locked,
            };
            let asked: Vec<Asked<'_>> = jobs
                .iter()
                .map(|job| Asked {
                    request: &job.request,
                    seen_before: job.in_doubt || !job.request.fresh,
                })
                .collect();
            match group::run(writing, &asked, &terms).await {
                Ok(finished) => {
                    failures = 0;
                    // A large group takes its time; only a small one that is slow says something
                    // about the primary.
                    if now.elapsed() < limit::SLOW || jobs.len() <= limit::PROBE {
                        permit.ok();
                    }
                    metrics::histogram!("tagfast_store_batch_writes").record(jobs.len() as f64);
                    metrics::histogram!("tagfast_store_commit_seconds")
                        .record(now.elapsed().as_secs_f64());
                    if finished.lost_race {
                        metrics::counter!("tagfast_lane_lost_races_total", "cluster" => self.cluster.name.clone())
                            .increment(1);
                        locked_until = Some(Instant::now() + LOCKED_FOR);
                    }
                    self.cluster.committed.notify_one();
                    self.finish(jobs, finished);
                }
                Err(group::Failed { error, outcome_unknown: doubtful }) => {
                    let keep = group::is_worth_keeping(&error);
                    failed(permit, &error);
                    tracing::warn!(cluster = self.cluster.name, %error, unknown = doubtful, "a group commit failed; it runs again");
                    metrics::counter!("tagfast_store_commit_failures_total",
                        "reason" => if doubtful { "unknown" } else { "aborted" })
                    .increment(1);
                    self.lane.again(
                        jobs.into_iter()
                            .map(|job| Job { in_doubt: job.in_doubt || doubtful, ..job })
                            .collect(),
                    );
                    // After an aborted transaction the session is clean only when it was ended.
                    server = None;
                    if !keep {
                        self.cluster.suspect();
                        tokio::time::sleep(pause_after(failures)).await;
                        failures += 1;
                    }
                }
            }
        }
    }

    async fn open(&self, address: &str) -> Result<Writing, PgError> {
        Writing::new(self.opener.open(address, "write").await?).await
    }

    /// Has the commit proven, then answers; runs again what must.
    fn finish(&self, jobs: Vec<Job>, finished: Finished) {
        let mut done = Vec::with_capacity(jobs.len());
        let mut again = Vec::new();
        for (job, item) in jobs.into_iter().zip(finished.items) {
            match item {
                ItemResult::Done(result) => done.push((job, result)),
                ItemResult::Again => again.push(job),
            }
        }
        self.lane.again(again);
        let Some(until) = done.iter().map(|(job, _)| job.until).max() else { return };
        let commit = finished.commit;
        if self.cluster.acknowledger().decide(&commit, crate::boot_time())
            == tagfast_failover::Decision::Acknowledge
        {
            done.into_iter().for_each(|(job, result)| drop(job.reply.send(result)));
            return;
        }
        let (lane, cluster) = (Arc::clone(&self.lane), Arc::clone(&self.cluster));
        tokio::spawn(async move {
            if cluster.may_acknowledge(&commit, until).await {
                done.into_iter().for_each(|(job, result)| drop(job.reply.send(result)));
            } else {
                metrics::counter!("tagfast_unproven_writes_total", "cluster" => cluster.name.clone())
                    .increment(done.len() as u64);
                lane.again(
                    done.into_iter().map(|(job, _)| Job { in_doubt: true, ..job }).collect(),
                );
            }
        });
    }
}
