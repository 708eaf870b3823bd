//! The reads of one node: collected into batches, limited, shed when there are too many.
//!
//! A dispatcher collects what waits, up to 16 keys, at most for a millisecond while other queries
//! run, and starts a query when the node's limiter has room. Each query is a task of its own, which
//! stays in the limiter until the query has ended on the connection: callers come and go, the
//! database never works on more than the limit. Connections are opened on demand and closed when
//! idle. Only critical reads wait for the limiter, fair between tenants, and not for long; all
//! others are shed at once.
//!
//! A node that failed, or that let a caller wait too long, is ejected for two seconds (outlier
//! ejection); after that one read probes it. This chooses among the nodes of a role. Whether the
//! role is read at all is its breaker's decision: the permit of a read travels with it and records
//! the result of its query, whether its caller still waits or not. While a different node of the
//! role is healthy, a failure is not the role's and the breaker learns nothing.
//!
//! How it fails: every caller of a failed query gets an error, and reads from a different node or
//! gives up; the connection is dropped.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tagfast_domain::TenantId;
use tagfast_resilience::task::{BackgroundTask, StopSignal, TaskGroup};
use tagfast_resilience::{
    Criticality, ErrorChain, InFlight, Limiter, LimiterOptions, LimiterSnapshot, Permit, counter,
    histogram, jittered_retry_after,
};
use tagfast_store::fair_queue::TenantWeights;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::cluster::topology::Cluster;
use crate::connect::{ConnectionFactory, PgError};
use crate::metric::{READ_BATCH_KEYS, READS_SHED};
use crate::options::limit;
use crate::read::group_read::{GroupRead, ReadSession};
use crate::read::read_queue::{NodeReadError, NodeReadResult, QueuedRead, ReadQueue, rank};

/// How a node is read.
#[derive(Clone)]
pub(crate) struct ReaderOptions {
    /// The name of its sessions in `pg_stat_activity`.
    pub(crate) name: &'static str,
    /// Concurrent queries at most.
    pub(crate) concurrency: usize,
    /// Queries a second at most; 0: no such limit.
    pub(crate) per_second: u32,
    /// How long a critical read waits for the limiter.
    pub(crate) wait: Duration,
    pub(crate) weights: TenantWeights,
    /// Owns the queries of all readers.
    pub(crate) queries: TaskGroup,
}

/// A read of one document from a node.
pub(crate) struct NodeRead<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) key: &'a [u8],
    pub(crate) criticality: Criticality,
    /// Of the breaker of the node's role.
    pub(crate) permit: Permit,
    /// No other node of the role is healthy: if this one fails, the role does.
    pub(crate) only_healthy: bool,
    /// The caller waits no longer than this.
    pub(crate) until: Instant,
    /// A node that takes longer is ejected.
    pub(crate) timeout: Duration,
}

struct ReaderState {
    label: String,
    cluster: Arc<Cluster>,
    connections: ConnectionFactory,
    address: String,
    options: ReaderOptions,
    limiter: Arc<Limiter>,
    queue: Mutex<ReadQueue>,
    /// Wakes the dispatcher: a read was queued, or a query has ended.
    wake: Notify,
}

struct NodeReaderHandle {
    state: Arc<ReaderState>,
    /// Ends with [`NodeReader::stop`] or with the last copy of the reader.
    dispatcher: BackgroundTask,
}

/// The reader of a node. Its tasks end with its last copy.
#[derive(Clone)]
pub(crate) struct NodeReader(Arc<NodeReaderHandle>);

impl NodeReader {
    /// Starts the dispatcher.
    pub(crate) fn start(
        label: String,
        cluster: Arc<Cluster>,
        connections: ConnectionFactory,
        address: String,
        options: ReaderOptions,
    ) -> Self {
        let limits = LimiterOptions {
            start: LimiterOptions::default().start.min(options.concurrency),
            min: LimiterOptions::default().min.min(options.concurrency),
            max: options.concurrency,
            per_second: (options.per_second > 0).then(|| f64::from(options.per_second)),
            ..LimiterOptions::default()
        };
        let began = std::time::Instant::now();
        let queue = ReadQueue::new(options.concurrency, options.weights.clone());
        let state = Arc::new(ReaderState {
            label,
            cluster,
            connections,
            address,
            options,
            limiter: Limiter::new(limits, Arc::new(move || began.elapsed())),
            queue: Mutex::new(queue),
            wake: Notify::new(),
        });
        let dispatch = Arc::clone(&state).dispatch();
        let dispatcher = BackgroundTask::spawn("node reader", |stop: StopSignal| async move {
            stop.run_until_cancelled(dispatch).await;
        });
        Self(Arc::new(NodeReaderHandle { state, dispatcher }))
    }

    /// Ends the dispatcher: no query starts any more.
    pub(crate) async fn stop(&self) {
        // Its panic is logged already.
        let _ = self.0.dispatcher.stop().await;
        self.state().queue().idle.clear();
    }

    fn state(&self) -> &Arc<ReaderState> {
        &self.0.state
    }

    /// Whether it has not failed lately.
    pub(crate) fn is_healthy(&self) -> bool {
        self.ejected_until().is_none()
    }

    /// Until when it is ejected; `None`: it is healthy.
    pub(crate) fn ejected_until(&self) -> Option<Instant> {
        self.state().queue().ejected_until
    }

    /// Whether a read may go to it: it is healthy, or its ejection is over and this read probes it.
    pub(crate) fn try_probe(&self) -> bool {
        self.state().queue().try_probe(Instant::now())
    }

    /// Its label and the state of its limiter.
    pub(crate) fn snapshot(&self) -> (String, LimiterSnapshot) {
        let state = self.state();
        let mut limiter = state.limiter.snapshot();
        // The limiter counts queries; callers are shed.
        let shed = &mut limiter.shed;
        [shed.sheddable, shed.degradable, shed.critical] = state.queue().shed;
        (state.label.clone(), limiter)
    }

    /// Reads one document, in a batch with others.
    pub(crate) async fn read(&self, read: NodeRead<'_>) -> Result<NodeReadResult, NodeReadError> {
        let state = self.state();
        let now = Instant::now();
        let ejected_after = now + read.timeout;
        let until = read.until.min(ejected_after);
        let (reply, answer) = oneshot::channel();
        state.push(QueuedRead {
            tenant: read.tenant.clone(),
            key: read.key.to_vec(),
            criticality: read.criticality,
            permit: read.permit,
            only_healthy: read.only_healthy,
            enqueued_at: now,
            until: read.until,
            reply,
        })?;
        match timeout_at(until, answer).await {
            Ok(Ok(result)) => result,
            // A short deadline says nothing about the node.
            Ok(Err(_)) => Err(NodeReadError::DeadlineExceeded),
            Err(_) if until < ejected_after => Err(NodeReadError::DeadlineExceeded),
            Err(_) => {
                state.on_timeout();
                Err(NodeReadError::Failed)
            }
        }
    }
}

impl ReaderState {
    fn queue(&self) -> MutexGuard<'_, ReadQueue> {
        self.queue.lock()
    }

    /// A caller gave up. While the first connections of a process are opened that is no fault of
    /// the node.
    fn on_timeout(&self) {
        let mut queue = self.queue();
        let now = Instant::now();
        if queue.connects_until.is_none_or(|until| now >= until) {
            queue.eject(now);
        }
    }

    /// Counts a read that is shed; the error for its caller.
    fn shed(&self, queue: &mut ReadQueue, criticality: Criticality) -> NodeReadError {
        queue.shed[rank(criticality)] += 1;
        counter!(READS_SHED, "criticality" => criticality).increment(1);
        NodeReadError::Overloaded(jittered_retry_after())
    }

    fn shed_all(&self, reads: Vec<QueuedRead>) {
        for read in reads {
            let error = self.shed(&mut self.queue(), read.criticality);
            drop(read.reply.send(Err(error)));
        }
    }

    /// Queues a read, or sheds it.
    fn push(&self, read: QueuedRead) -> Result<(), NodeReadError> {
        let limiter = self.limiter.snapshot();
        let criticality = read.criticality;
        let mut queue = self.queue();
        // What waits will be queries, too.
        let planned = limiter.in_flight + (queue.reads.len() + 1).div_ceil(limit::READ_BATCH_MAX);
        let room = match criticality {
            Criticality::Critical => true,
            Criticality::Degradable | Criticality::Sheddable => {
                planned <= criticality.max_of(limiter.limit)
            }
        };
        // As much as the limit lets run may wait; what starts at once does not wait.
        let free = limiter.limit.saturating_sub(limiter.in_flight);
        queue.reads.set_bound((limiter.limit + free) * limit::READ_BATCH_MAX);
        let enqueued_at = read.enqueued_at;
        if !room || queue.reads.push(read).is_err() {
            return Err(self.shed(&mut queue, criticality));
        }
        queue.waiting[rank(criticality)] += 1;
        queue.oldest.get_or_insert(enqueued_at);
        if !queue.answered {
            queue.connects_until.get_or_insert(enqueued_at + limit::READ_TIMEOUT);
        }
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    /// Closes connections that have been idle too long; returns when the next one will have been.
    fn close_idle(&self, now: Instant) -> Option<Instant> {
        let mut queue = self.queue();
        queue.idle.retain(|(since, session)| {
            now - *since < limit::READER_IDLE_TIMEOUT && !session.is_closed()
        });
        queue.idle.first().map(|(since, _)| *since + limit::READER_IDLE_TIMEOUT)
    }

    /// Sheds the reads that have waited too long and drops those whose callers are gone. Called
    /// only while the limiter is full: a read that the dispatcher found late is not shed for it.
    fn expire(&self, now: Instant) {
        let wait = self.options.wait;
        let mut queue = self.queue();
        if queue.oldest.is_none_or(|oldest| now < oldest + wait) {
            return;
        }
        let gone =
            queue.reads.take_if(|read| read.reply.is_closed() || now >= read.enqueued_at + wait);
        queue.on_dequeued(&gone);
        queue.rescan_oldest(now, wait);
        drop(queue);
        self.shed_all(gone);
    }

    /// Sheds the reads that do not wait for the limiter.
    fn shed_all_but_critical(&self) {
        let mut queue = self.queue();
        if queue.waiting[..2] == [0, 0] {
            return;
        }
        let gone = queue.reads.take_if(|read| read.criticality != Criticality::Critical);
        queue.on_dequeued(&gone);
        drop(queue);
        self.shed_all(gone);
    }

    /// Until when the batch is collected; `None`: it starts at once.
    fn batch_deadline(&self) -> Option<Instant> {
        let in_flight = self.limiter.snapshot().in_flight;
        let queue = self.queue();
        if in_flight == 0 || queue.reads.len() >= limit::READ_BATCH_MAX {
            return None;
        }
        queue
            .oldest
            .map(|oldest| oldest + limit::READ_BATCH_WINDOW)
            .filter(|until| *until > Instant::now())
    }

    /// The next batch, without reads that would be answered too late.
    fn take(&self) -> Vec<QueuedRead> {
        let mut queue = self.queue();
        let reads = queue.reads.take(limit::READ_BATCH_MAX, limit::READ_BATCH_MAX);
        queue.on_dequeued(&reads);
        let now = Instant::now();
        queue.rescan_oldest(now, self.options.wait);
        let expected = queue.latency.expected();
        drop(queue);
        let in_time = |read: &QueuedRead| !read.reply.is_closed() && read.until > now + expected;
        reads.into_iter().filter(in_time).collect()
    }

    async fn dispatch(self: Arc<Self>) {
        loop {
            let now = Instant::now();
            let idle = self.close_idle(now);
            if self.queue().oldest.is_none() {
                match idle {
                    None => self.wake.notified().await,
                    Some(at) => drop(timeout_at(at, self.wake.notified()).await),
                }
                continue;
            }
            if let Some(until) = self.batch_deadline() {
                drop(timeout_at(until, self.wake.notified()).await);
                continue;
            }
            let most_important = self.queue().most_important();
            match self.limiter.try_begin(most_important) {
                Ok(in_flight) => {
                    let reads = self.take();
                    if !reads.is_empty() {
                        self.options.queries.spawn(Arc::clone(&self).query(in_flight, reads));
                    }
                }
                Err(_) => {
                    self.shed_all_but_critical();
                    self.expire(now);
                    let Some(oldest) = self.queue().oldest else { continue };
                    // The limit of queries a second makes room without the end of a query.
                    let soon = if self.options.per_second > 0 {
                        now + limit::READ_BATCH_WINDOW
                    } else {
                        oldest + self.options.wait
                    };
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = sleep_until(soon) => {}
                    }
                }
            }
        }
    }

    /// An idle connection, or a new one, and whether it is new.
    async fn session(&self) -> Result<(ReadSession, bool), PgError> {
        loop {
            // The one that was used last, so that those that are not needed grow old.
            let Some((_, session)) = self.queue().idle.pop() else { break };
            if !session.is_closed() {
                return Ok((session, false));
            }
        }
        let name = self.options.name;
        Ok((ReadSession::open(&self.connections, &self.address, name).await?, true))
    }

    fn keep_idle(&self, session: ReadSession) {
        self.queue().idle.push((Instant::now(), session));
    }

    /// One query, to its end, even when its callers are gone.
    async fn query(self: Arc<Self>, in_flight: InFlight, mut reads: Vec<QueuedRead>) {
        let began = Instant::now();
        let opened = self.session().await;
        let (result, session, fresh) = match opened {
            Err(error) => (Err(error), None, true),
            // The callers have given up, and the node is why. The next ones find the connection.
            Ok((session, _)) if began.elapsed() >= limit::READ_TIMEOUT => {
                self.keep_idle(session);
                let error = PgError::Timeout("connecting for a query", limit::READ_TIMEOUT);
                (Err(error), None, true)
            }
            Ok((session, fresh)) => {
                reads.retain(|read| !read.reply.is_closed());
                if reads.is_empty() {
                    self.keep_idle(session);
                    drop(in_flight);
                    self.wake.notify_one();
                    return;
                }
                let mut keys: Vec<&[u8]> = reads.iter().map(|read| read.key.as_slice()).collect();
                keys.sort_unstable();
                keys.dedup();
                let began = Instant::now();
                let result = session.read(&keys).await;
                histogram!(READ_BATCH_KEYS).record(keys.len() as f64);
                if result.is_ok() {
                    self.queue().on_answer(began.elapsed());
                }
                (result, Some(session), fresh)
            }
        };
        match &result {
            // The time to connect is no measure of load.
            Ok(_) if fresh => drop(in_flight),
            Ok(_) => in_flight.ended(reads.len(), true),
            Err(_) => in_flight.ended(reads.len(), false),
        }
        // A cancelled statement has ended on the server; the connection is as good as before.
        let reusable = result.as_ref().map_or_else(|error| error.code() == Some("57014"), |_| true);
        if let Some(session) = session.filter(|_| reusable) {
            self.keep_idle(session);
        }
        self.wake.notify_one();
        self.answer(reads, result, fresh);
    }

    fn answer(&self, reads: Vec<QueuedRead>, result: Result<GroupRead, PgError>, fresh: bool) {
        match result {
            Ok((mut documents, facts)) => {
                // A document that is read once need not be copied.
                let mut seen = HashSet::with_capacity(reads.len());
                let unique = reads.iter().all(|read| seen.insert(&read.key));
                for read in reads {
                    let document = if unique {
                        documents.remove(&read.key)
                    } else {
                        documents.get(&read.key).cloned()
                    };
                    // A slow answer counts against the role only while no other node is healthy,
                    // and not when connecting made it slow.
                    if (read.only_healthy && !fresh)
                        || read.enqueued_at.elapsed() < limit::SLOW_CALL
                    {
                        read.permit.ok();
                    }
                    drop(read.reply.send(Ok((document, facts))));
                }
            }
            Err(error) => {
                tracing::warn!(reads = self.label, error = %ErrorChain(&error), "a query failed");
                self.cluster.health.note_query_failure(&error);
                self.queue().eject(Instant::now());
                let of_role = !error.is_role_change();
                for read in reads {
                    if read.only_healthy && of_role {
                        read.permit.failed();
                    }
                    drop(read.reply.send(Err(NodeReadError::Failed)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_that_are_shed_together_do_not_come_back_together() {
        let times: HashSet<Duration> = (0..100).map(|_| jittered_retry_after()).collect();
        let bounds = Duration::from_secs(1)..Duration::from_secs(3);
        assert!(times.len() > 50 && times.iter().all(|time| bounds.contains(time)), "{times:?}");
    }
}
