//! The bounded queue in front of a file's writer, fair by tenant.
//!
//! [`FairQueue`] decides the order; this module adds the waiting and the other work of a writer:
//! tasks between batches, and the offsets of consumer groups.
//!
//! How it fails: a full queue refuses a write with [`StoreError::Overloaded`]; once the writer has
//! ended, every waiting and later caller gets [`StoreError::Unavailable`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tagfast_domain::{Operation, TenantId, Write};
use tagfast_events::{BusPosition, ConsumerGroup};
use tagfast_resilience::jittered_retry_after;
use tagfast_store::fair_queue::{FairQueue, Queued};
use tagfast_store::metric::count_queue_full;
use tagfast_store::{StoreError, WriteAnswer, WriteRequest};
use tokio::sync::oneshot;

use crate::error::CommitFailure;

/// Capacity of a file's queue in units; a write takes one unit per four tags, at least one. Bounds
/// the waiting time (a fraction of a second at full speed) and the memory (about 8 MB per file).
pub(crate) const QUEUE_UNITS: usize = 16_384;
/// Units after which a batch is full, so that 512 writes of 100 tags do not make one long commit.
const BATCH_UNITS_MAX: usize = 2048;
const TAGS_PER_UNIT: usize = 4;

/// The state of a write whose caller has a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum WriteClaim {
    Queued = 0,
    /// The writer took it into a batch.
    Taken = 1,
    /// The caller's deadline passed first.
    GivenUp = 2,
}

/// The race between the writer that takes a write and the caller whose deadline passes. Exactly one
/// wins, so a caller never gets the answer "it did not happen" for a write that is in a batch.
#[derive(Debug, Clone)]
pub(crate) struct DeadlineRace(Arc<AtomicU8>);

impl DeadlineRace {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU8::new(WriteClaim::Queued as u8)))
    }

    fn win(&self, claim: WriteClaim) -> bool {
        let (queued, claim) = (WriteClaim::Queued as u8, claim as u8);
        self.0.compare_exchange(queued, claim, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Called by the writer; false: the caller gave up with the answer that nothing happened.
    pub(crate) fn take(&self) -> bool {
        self.win(WriteClaim::Taken)
    }

    /// Called by the caller; false: the write is already in a batch.
    pub(crate) fn give_up(&self) -> bool {
        self.win(WriteClaim::GivenUp)
    }
}

/// A queued write and the channel to its caller.
pub(crate) struct WriteJob {
    pub(crate) request: WriteRequest,
    /// `None`: the caller has no deadline.
    pub(crate) race: Option<DeadlineRace>,
    pub(crate) reply: oneshot::Sender<Result<WriteAnswer, StoreError>>,
}

/// Work for the writer between two batches, in a transaction of its own. It answers its caller
/// itself.
pub(crate) type WriterTask = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()> + Send>;

impl Queued for WriteJob {
    fn tenant(&self) -> &TenantId {
        &self.request.write.key.tenant
    }

    fn units(&self) -> usize {
        units(&self.request.write)
    }
}

struct State {
    writes: FairQueue<WriteJob>,
    tasks: Vec<WriterTask>,
    /// Offsets to be written, and offsets handed to the writer before.
    offsets: BTreeMap<ConsumerGroup, BusPosition>,
    offsets_taken: BTreeMap<ConsumerGroup, BusPosition>,
    offsets_since: Option<Instant>,
    closed: bool,
}

/// The next work of the writer.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) writes: Vec<WriteJob>,
    pub(crate) tasks: Vec<WriterTask>,
    pub(crate) offsets: BTreeMap<ConsumerGroup, BusPosition>,
    /// The queue is closed and empty.
    pub(crate) finished: bool,
}

/// The queue of a file's writer.
pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
}

impl Default for Queue {
    fn default() -> Self {
        let state = State {
            writes: FairQueue::new(QUEUE_UNITS),
            tasks: Vec::new(),
            offsets: BTreeMap::new(),
            offsets_taken: BTreeMap::new(),
            offsets_since: None,
            closed: false,
        };
        Self { state: Mutex::new(state), arrived: Condvar::new() }
    }
}

impl Queue {
    /// The standard library's lock, not parking_lot's: that one wakes the writer so soon that it
    /// finds 1.9 writes a commit instead of 2.9, which costs a fifth more processor time a write
    /// (measured, 64 connections).
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn units(write: &Write) -> usize {
    let tags = match &write.operation {
        Operation::Patch { add, remove } => add.len() + remove.len(),
        Operation::Replace { tags } => tags.len(),
    };
    tags.div_ceil(TAGS_PER_UNIT).max(1)
}

fn in_transaction<T>(
    conn: &Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    // Dropping the transaction rolls it back.
    let tx = conn.unchecked_transaction()?;
    let value = work(&tx)?;
    tx.commit()?;
    Ok(value)
}

impl Queue {
    /// Queues a write.
    ///
    /// # Errors
    ///
    /// [`StoreError::Overloaded`] when it does not fit, [`StoreError::Unavailable`] after
    /// [`Queue::close`]; nothing happened.
    pub(crate) fn push(&self, job: WriteJob) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.closed {
            let error = StoreError::Unavailable {
                reason: "the store is shutting down",
                outcome_unknown: false,
                retry_after: jittered_retry_after(),
            };
            return Err(error);
        }
        state.writes.push(job).map_err(|(why, _)| StoreError::Overloaded {
            queue: count_queue_full(why),
            limit: QUEUE_UNITS,
            retry_after: jittered_retry_after(),
        })?;
        if state.writes.len() == 1 {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Runs `work` on the writer, in a transaction of its own; dead letters are written this way.
    /// Each caller waits for its work, so few tasks are queued.
    ///
    /// # Errors
    ///
    /// The error of the failed transaction, or [`StoreError::Unavailable`] with an unknown outcome
    /// when the writer has ended.
    pub(crate) async fn run_on_writer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, done) = oneshot::channel();
        let task: WriterTask = Box::new(move |conn| {
            let result = in_transaction(conn, work);
            let (answer, result) = match result {
                Ok(value) => (Ok(value), Ok(())),
                Err(error) => (Err(CommitFailure::of(&error, true).store_error()), Err(error)),
            };
            // The caller may have stopped waiting; all such work may be repeated.
            drop(reply.send(answer));
            result
        });
        {
            let mut state = self.lock();
            if !state.closed {
                state.tasks.push(task);
                self.arrived.notify_one();
            }
        }
        let stopped = StoreError::Unavailable {
            reason: "the writer has stopped",
            outcome_unknown: true,
            retry_after: jittered_retry_after(),
        };
        done.await.unwrap_or(Err(stopped))
    }

    /// Sets the offset of a group; it is written with the next batch or after the writer's delay.
    /// An offset that was already written is not written again, so an idle consumer costs nothing.
    pub(crate) fn set_offset(&self, group: ConsumerGroup, position: BusPosition) {
        let mut state = self.lock();
        if state.offsets_taken.get(&group) == Some(&position) && !state.offsets.contains_key(&group)
        {
            return;
        }
        state.offsets.insert(group, position);
        if state.offsets_since.is_none() {
            state.offsets_since = Some(Instant::now());
            self.arrived.notify_one();
        }
    }

    /// The last offset that was set for a group since the file was opened; `None`: none was.
    pub(crate) fn offset(&self, group: ConsumerGroup) -> Option<BusPosition> {
        let state = self.lock();
        state.offsets.get(&group).or_else(|| state.offsets_taken.get(&group)).cloned()
    }

    /// Marks the offsets of a failed transaction as unwritten, so that the consumer's next call
    /// writes them.
    pub(crate) fn offsets_failed(&self, offsets: &BTreeMap<ConsumerGroup, BusPosition>) {
        let mut state = self.lock();
        offsets.keys().for_each(|group| {
            state.offsets_taken.remove(group);
        });
    }

    /// Refuses new writes; queued work is still done.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_one();
    }

    /// Fails all waiting callers because the writer has ended.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        let dropped = (state.writes.take(usize::MAX, usize::MAX), std::mem::take(&mut state.tasks));
        drop(state);
        drop(dropped);
    }

    /// Number of queued writes.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().writes.len()
    }

    /// Waits for work for at most `idle`, then takes it: at most `max` writes, without waiting for
    /// more.
    pub(crate) fn take(&self, max: usize, idle: Duration, offsets_delay: Duration) -> Batch {
        let end = Instant::now() + idle;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let offsets_due = state.offsets_since.map(|since| since + offsets_delay);
            if !state.writes.is_empty()
                || !state.tasks.is_empty()
                || state.closed
                || offsets_due.is_some_and(|d| d <= now)
            {
                return state.drain(max);
            }
            let until = offsets_due.map_or(end, |due| due.min(end));
            if until <= now {
                return Batch::default();
            }
            let left = until.saturating_duration_since(Instant::now());
            state =
                self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    fn drain(&mut self, max: usize) -> Batch {
        let writes = self.writes.take(max, BATCH_UNITS_MAX);
        self.offsets_since = None;
        let offsets = std::mem::take(&mut self.offsets);
        self.offsets_taken.extend(offsets.iter().map(|(g, p)| (*g, p.clone())));
        let finished = self.closed && self.writes.is_empty();
        Batch { writes, tasks: std::mem::take(&mut self.tasks), offsets, finished }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tagfast_domain::{ContentKey, Limits, Tag, UserId, WriteId};

    type Answer = oneshot::Receiver<Result<WriteAnswer, StoreError>>;

    fn job(tenant: &str, id: &str, tags: usize) -> (WriteJob, Answer) {
        let tags = (0..tags).map(|n| Tag::parse(&format!("t{n}")).expect("a tag")).collect();
        let key = ContentKey::parse(tenant, "doc", id).expect("a content");
        job_of(WriteId([0; 16]), key, tags)
    }

    /// A write that adds `tags`, and its answer.
    pub(crate) fn job_of(id: WriteId, key: ContentKey, tags: Vec<Tag>) -> (WriteJob, Answer) {
        let user = UserId::parse("u").expect("a user");
        let operation = Operation::patch(tags, Vec::new(), &Limits::default()).expect("a patch");
        let write = Write { id, key, user, operation, if_match: None };
        let request = WriteRequest::new(write);
        let (reply, answer) = oneshot::channel();
        (WriteJob { request, race: None, reply }, answer)
    }

    fn push(queue: &Queue, tenant: &str, id: &str, tags: usize) -> Result<(), StoreError> {
        queue.push(job(tenant, id, tags).0)
    }

    fn ids(batch: &Batch) -> Vec<String> {
        let name =
            |k: &ContentKey| format!("{}/{}", k.tenant.as_str(), k.content.content_id.as_str());
        batch.writes.iter().map(|j| name(&j.request.write.key)).collect()
    }

    fn take(queue: &Queue, max: usize) -> Batch {
        queue.take(max, Duration::ZERO, Duration::ZERO)
    }

    #[test]
    fn a_batch_takes_tenants_round_robin_and_keeps_their_order() {
        let queue = Queue::default();
        for n in 0..5 {
            push(&queue, "flood", &n.to_string(), 1).expect("room");
        }
        push(&queue, "small", "0", 1).expect("room");
        push(&queue, "other", "0", 1).expect("room");
        assert_eq!(ids(&take(&queue, 4)), ["flood/0", "small/0", "other/0", "flood/1"]);
        push(&queue, "small", "1", 1).expect("room");
        assert_eq!(ids(&take(&queue, 512)), ["flood/2", "small/1", "flood/3", "flood/4"]);
        assert_eq!(queue.waiting(), 0);
    }

    #[test]
    fn a_flood_leaves_room_for_a_late_tenant() {
        let queue = Queue::default();
        let fill = |tenant: &str| {
            (0..).take_while(|n| push(&queue, tenant, &n.to_string(), 1).is_ok()).count()
        };
        assert_eq!(fill("a"), QUEUE_UNITS / 2);
        assert_eq!(fill("b"), QUEUE_UNITS / 4);
        assert!(matches!(
            push(&queue, "a", "more", 1),
            Err(StoreError::Overloaded {
                queue: "tenant's share of the write",
                limit: QUEUE_UNITS,
                ..
            })
        ));
        push(&queue, "c", "0", 1).expect("a third tenant finds room");
    }

    #[test]
    fn large_writes_take_more_room_and_end_a_batch_earlier() {
        let queue = Queue::default();
        let fitted = (0..).take_while(|n| push(&queue, "a", &n.to_string(), 100).is_ok()).count();
        assert_eq!(fitted, QUEUE_UNITS.div_ceil(2 * 25));
        assert_eq!(take(&queue, 512).writes.len(), BATCH_UNITS_MAX.div_ceil(25));
    }

    #[test]
    fn an_offset_is_handed_over_once() {
        let (queue, group) = (Queue::default(), ConsumerGroup("g"));
        let at = |next| BusPosition {
            next,
            publisher_epochs: tagfast_events::PublisherEpochs::embedded(1),
            anchor: None,
        };
        queue.set_offset(group, at(5));
        assert_eq!(take(&queue, 1).offsets[&group], at(5));
        queue.set_offset(group, at(5));
        assert!(take(&queue, 1).offsets.is_empty());
        queue.set_offset(group, at(6));
        let batch = take(&queue, 1);
        assert_eq!(batch.offsets[&group], at(6));
        queue.offsets_failed(&batch.offsets);
        queue.set_offset(group, at(6));
        assert_eq!(take(&queue, 1).offsets[&group], at(6), "a failed one is handed over again");
    }

    #[test]
    fn callers_of_a_dead_writer_get_an_error() {
        let queue = Queue::default();
        let (job, mut answer) = job("a", "0", 1);
        queue.push(job).expect("room");
        queue.abandon();
        assert!(matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert!(matches!(
            push(&queue, "a", "1", 1),
            Err(StoreError::Unavailable { outcome_unknown: false, .. })
        ));
    }

    #[test]
    fn a_deadline_race_has_one_winner() {
        let race = DeadlineRace::new();
        assert!(race.take() && !race.give_up());
        let race = DeadlineRace::new();
        assert!(race.give_up() && !race.take());
    }
}
