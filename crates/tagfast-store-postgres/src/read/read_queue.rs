//! The reads that wait for one node, and what is known of the node.
//!
//! How it fails: it does not; a full queue hands the read back.

use std::time::Duration;

use tagfast_domain::TenantId;
use tagfast_resilience::{Criticality, Permit};
use tagfast_store::fair_queue::{FairQueue, Queued, TenantWeights};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::options::limit;
use crate::read::group_read::{ReadSession, SnapshotFacts};

/// How long the median of the last queries is used.
const LATENCY_MEMORY: Duration = Duration::from_secs(1);

/// Why a node did not answer a read.
#[derive(Debug)]
pub(crate) enum NodeReadError {
    /// The node's limit or its queue is full; come back after this time.
    Overloaded(Duration),
    /// The node failed, or was too slow; the log has the error.
    Failed,
    /// The caller's deadline was too short.
    DeadlineExceeded,
}

/// A document's bytes (`None`: there is no document), and the facts of its query.
pub(crate) type NodeReadResult = (Option<Vec<u8>>, SnapshotFacts);

/// A read that waits.
pub(crate) struct QueuedRead {
    pub(crate) tenant: TenantId,
    pub(crate) key: Vec<u8>,
    pub(crate) criticality: Criticality,
    /// Of the breaker of the node's role.
    pub(crate) permit: Permit,
    /// No other node of the role is healthy.
    pub(crate) only_healthy: bool,
    pub(crate) enqueued_at: Instant,
    /// Its caller waits no longer than this.
    pub(crate) until: Instant,
    pub(crate) reply: oneshot::Sender<Result<NodeReadResult, NodeReadError>>,
}

impl Queued for QueuedRead {
    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn units(&self) -> usize {
        1
    }
}

/// The index of a criticality in arrays.
pub(crate) fn rank(criticality: Criticality) -> usize {
    match criticality {
        Criticality::Sheddable => 0,
        Criticality::Degradable => 1,
        Criticality::Critical => 2,
    }
}

/// The median of the last queries.
#[derive(Default)]
pub(crate) struct Latency {
    last: [Duration; 15],
    next: usize,
    median: Duration,
    at: Option<Instant>,
}

impl Latency {
    /// Records how long a query took.
    pub(crate) fn record(&mut self, took: Duration) {
        self.last[self.next % self.last.len()] = took;
        self.next += 1;
        let known = self.next.min(self.last.len());
        let mut sorted = self.last;
        sorted[..known].sort_unstable();
        self.median = sorted[known / 2];
        self.at = Some(Instant::now());
    }

    /// How long the next query will probably take; zero when the last one is older than a second,
    /// so that a node that was slow once is read again.
    pub(crate) fn expected(&self) -> Duration {
        if self.at.is_some_and(|at| at.elapsed() < LATENCY_MEMORY) {
            self.median
        } else {
            Duration::ZERO
        }
    }
}

/// The queue of a node.
pub(crate) struct ReadQueue {
    pub(crate) reads: FairQueue<QueuedRead>,
    /// How many reads of each criticality wait.
    pub(crate) waiting: [usize; 3],
    /// Since when the oldest read waits, or earlier; `None`: none waits.
    pub(crate) oldest: Option<Instant>,
    /// Idle connections and since when they are, the one used last at the end.
    pub(crate) idle: Vec<(Instant, ReadSession)>,
    pub(crate) latency: Latency,
    /// How many reads of each criticality were shed.
    pub(crate) shed: [u64; 3],
    /// Until when the node is ejected; `None`: it is healthy.
    pub(crate) ejected_until: Option<Instant>,
    /// Until when a node that has not answered yet may still be connecting; `None`: it has
    /// answered, or nothing was read from it.
    pub(crate) connects_until: Option<Instant>,
    pub(crate) answered: bool,
}

impl ReadQueue {
    /// An empty queue in front of a node with this many concurrent queries at most.
    pub(crate) fn new(concurrency: usize, weights: TenantWeights) -> Self {
        Self {
            reads: FairQueue::weighted(concurrency * limit::READ_BATCH_MAX, weights),
            waiting: [0; 3],
            oldest: None,
            idle: Vec::new(),
            latency: Latency::default(),
            shed: [0; 3],
            ejected_until: None,
            connects_until: None,
            answered: false,
        }
    }

    /// Keeps the counts right after reads have left the queue.
    pub(crate) fn on_dequeued(&mut self, reads: &[QueuedRead]) {
        reads.iter().for_each(|read| self.waiting[rank(read.criticality)] -= 1);
        if self.reads.is_empty() {
            self.oldest = None;
        }
    }

    /// The highest criticality that waits.
    pub(crate) fn most_important(&self) -> Criticality {
        let order = [Criticality::Critical, Criticality::Degradable];
        order.into_iter().find(|of| self.waiting[rank(*of)] > 0).unwrap_or(Criticality::Sheddable)
    }

    /// The queue does not know the age of its oldest read: it is scanned again after a quarter of
    /// `wait`.
    pub(crate) fn rescan_oldest(&mut self, now: Instant, wait: Duration) {
        if self.oldest.is_some() {
            self.oldest = now.checked_sub(wait * 3 / 4);
        }
    }

    /// Ejects the node: other nodes are read first.
    pub(crate) fn eject(&mut self, now: Instant) {
        // Healthy | Probing => Ejected
        self.ejected_until = Some(now + limit::EJECTION);
    }

    /// Whether a read may go to the node: it is healthy, or its ejection is over and this read
    /// probes it.
    pub(crate) fn try_probe(&mut self, now: Instant) -> bool {
        match self.ejected_until {
            None => true,
            Some(until) if now < until => false,
            // Ejected => Probing: the next read comes after another ejection time.
            Some(_) => {
                self.eject(now);
                true
            }
        }
    }

    /// Records the answer of a query.
    pub(crate) fn on_answer(&mut self, took: Duration) {
        self.latency.record(took);
        (self.answered, self.connects_until) = (true, None);
        // Probing => Healthy, unless the answer was late
        if took < limit::REPLICA_TIMEOUT {
            self.ejected_until = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_expected_time_is_the_median_of_the_last_queries_and_is_forgotten() {
        let ms = Duration::from_millis;
        let mut latency = Latency::default();
        assert_eq!(latency.expected(), Duration::ZERO, "nothing is known");
        latency.record(ms(7));
        assert_eq!(latency.expected(), ms(7));
        [3, 900, 4, 800].into_iter().for_each(|took| latency.record(ms(took)));
        assert_eq!(latency.expected(), ms(7), "two slow ones of five do not count");
        (0..15).for_each(|_| latency.record(ms(2)));
        assert_eq!(latency.expected(), ms(2), "only the last ones count");
        tokio::time::advance(ms(1000)).await;
        assert_eq!(latency.expected(), Duration::ZERO, "a node that was slow once is read again");
    }
}
