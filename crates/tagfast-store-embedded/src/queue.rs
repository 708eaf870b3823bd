//! The bounded queue in front of a file's writer, fair by tenant.
//!
//! Fairness is [`FairQueue`]'s; this is the waiting around it, and what else a writer does between
//! writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tagfast_domain::{Operation, TenantId, Write};
use tagfast_events::{BusPosition, Group};
use tagfast_store::queue::{FairQueue, NoRoom, Queued};
use tagfast_store::{StoreError, WriteAnswer, WriteRequest};
use tokio::sync::oneshot;

use crate::error::CommitFailure;

/// Room of a file's queue in units; a write takes one per four tags it names, at least one. Bounds
/// the waiting time (a fraction of a second at full speed) and the memory (some 8 MB a file).
pub(crate) const QUEUE_UNITS: usize = 16_384;
/// Units after which a batch takes no more, so that 512 writes of 100 tags do not make one long
/// commit.
const BATCH_UNITS: usize = 2048;
const TAGS_PER_UNIT: usize = 4;

const QUEUED: u8 = 0;
const TAKEN: u8 = 1;
const GIVEN_UP: u8 = 2;

/// Decides between the writer that takes a write and the caller whose deadline passes: exactly one
/// wins, so "it did not happen" is never said of a write that is in a batch.
#[derive(Debug, Clone)]
pub(crate) struct Claim(Arc<AtomicU8>);

impl Claim {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU8::new(QUEUED)))
    }

    /// By the writer: false when the caller has gone and been told that nothing happened.
    pub(crate) fn take(&self) -> bool {
        self.0.compare_exchange(QUEUED, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// By the caller: false when the write is in a batch already.
    pub(crate) fn give_up(&self) -> bool {
        self.0.compare_exchange(QUEUED, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A write and who waits for it.
pub(crate) struct WriteJob {
    pub(crate) request: WriteRequest,
    /// Present when the caller has a deadline.
    pub(crate) claim: Option<Claim>,
    pub(crate) reply: oneshot::Sender<Result<WriteAnswer, StoreError>>,
}

/// Something the writer does between two batches, in a transaction of its own; who waits for it is
/// told inside.
pub(crate) type Aside = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()> + Send>;

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
    asides: Vec<Aside>,
    /// What waits to be written, and what was handed to the writer before.
    offsets: BTreeMap<Group, BusPosition>,
    offsets_taken: BTreeMap<Group, BusPosition>,
    offsets_since: Option<Instant>,
    closed: bool,
}

/// What the writer does next.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) writes: Vec<WriteJob>,
    pub(crate) asides: Vec<Aside>,
    pub(crate) offsets: BTreeMap<Group, BusPosition>,
    /// The queue is closed and empty.
    pub(crate) finished: bool,
}

/// The queue.
pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
}

impl Default for Queue {
    fn default() -> Self {
        let state = State {
            writes: FairQueue::new(QUEUE_UNITS),
            asides: Vec::new(),
            offsets: BTreeMap::new(),
            offsets_taken: BTreeMap::new(),
            offsets_since: None,
            closed: false,
        };
        Self { state: Mutex::new(state), arrived: Condvar::new() }
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
    // Not dropped half-way without an end: a transaction rolls back when it goes away.
    let tx = conn.unchecked_transaction()?;
    let value = work(&tx)?;
    tx.commit()?;
    Ok(value)
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held cannot leave the state half changed: no code of others
        // runs under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a write in, or says why not.
    pub(crate) fn push(&self, job: WriteJob) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.closed {
            let error = StoreError::Unavailable {
                reason: "the store is shutting down",
                outcome_unknown: false,
                retry_after: Duration::from_secs(1),
            };
            return Err(error);
        }
        state.writes.push(job).map_err(|(why, _)| {
            let (queue, reason) = match why {
                NoRoom::Full => ("write", "queue_full"),
                NoRoom::TenantShare => ("tenant's share of the write", "tenant_share"),
            };
            metrics::counter!("tagfast_store_refused_total", "reason" => reason).increment(1);
            StoreError::Overloaded {
                queue,
                limit: QUEUE_UNITS,
                retry_after: Duration::from_secs(1),
            }
        })?;
        if state.writes.len() == 1 {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Lets the writer do something: letters are parked and what becomes of them is written down
    /// so. Whoever asks waits for it before it asks again, so there are few.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, done) = oneshot::channel();
        let aside: Aside = Box::new(move |conn| {
            let result = in_transaction(conn, work);
            let (answer, result) = match result {
                Ok(value) => (Ok(value), Ok(())),
                Err(error) => (Err(CommitFailure::of(&error, true).store_error()), Err(error)),
            };
            // Who asked may have stopped waiting; what is asked for here may be done twice.
            drop(reply.send(answer));
            result
        });
        {
            let mut state = self.lock();
            if !state.closed {
                state.asides.push(aside);
                self.arrived.notify_one();
            }
        }
        let stopped = StoreError::Unavailable {
            reason: "the writer has stopped",
            outcome_unknown: true,
            retry_after: Duration::from_secs(1),
        };
        done.await.unwrap_or(Err(stopped))
    }

    /// Remembers how far a group has come; written with the next batch or after the writer's delay.
    /// What was written already is not written again, so an idle consumer costs nothing.
    pub(crate) fn set_offset(&self, group: Group, position: BusPosition) {
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

    /// The last offset of a group that was set since the file was opened.
    pub(crate) fn offset(&self, group: Group) -> Option<BusPosition> {
        let state = self.lock();
        state.offsets.get(&group).or_else(|| state.offsets_taken.get(&group)).cloned()
    }

    /// The offsets of a failed transaction: forgotten as written, so that the consumer's next call
    /// writes them.
    pub(crate) fn offsets_failed(&self, offsets: &BTreeMap<Group, BusPosition>) {
        let mut state = self.lock();
        offsets.keys().for_each(|group| {
            state.offsets_taken.remove(group);
        });
    }

    /// Refuses what comes from now on; what waits is still done.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_one();
    }

    /// The writer is gone: whoever waits learns it now instead of never.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        let dropped =
            (state.writes.take(usize::MAX, usize::MAX), std::mem::take(&mut state.asides));
        drop(state);
        drop(dropped);
    }

    /// Writes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().writes.len()
    }

    /// Waits for work, at most `idle`; then takes what is there, at most `max` writes, without
    /// lingering.
    pub(crate) fn take(&self, max: usize, idle: Duration, offsets_delay: Duration) -> Batch {
        let end = Instant::now() + idle;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let offsets_due = state.offsets_since.map(|since| since + offsets_delay);
            if !state.writes.is_empty()
                || !state.asides.is_empty()
                || state.closed
                || offsets_due.is_some_and(|d| d <= now)
            {
                return state.drain(max);
            }
            let until = offsets_due.map_or(end, |due| due.min(end));
            if until <= now {
                return Batch::default();
            }
            state = self
                .arrived
                .wait_timeout(state, until - now)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl State {
    fn drain(&mut self, max: usize) -> Batch {
        let writes = self.writes.take(max, BATCH_UNITS);
        self.offsets_since = None;
        let offsets = std::mem::take(&mut self.offsets);
        self.offsets_taken.extend(offsets.iter().map(|(g, p)| (*g, p.clone())));
        let finished = self.closed && self.writes.is_empty();
        Batch { writes, asides: std::mem::take(&mut self.asides), offsets, finished }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tagfast_domain::{ContentKey, Limits, Tag, UserId, WriteId};
    use tagfast_store::Durability;

    type Answer = oneshot::Receiver<Result<WriteAnswer, StoreError>>;

    fn job(tenant: &str, id: &str, tags: usize) -> (WriteJob, Answer) {
        let tags = (0..tags).map(|n| Tag::parse(&format!("t{n}")).expect("a tag")).collect();
        let write = Write {
            id: WriteId([0; 16]),
            key: ContentKey::parse(tenant, "doc", id).expect("a content"),
            user: UserId::parse("u").expect("a user"),
            operation: Operation::patch(tags, Vec::new(), &Limits::default()).expect("a patch"),
            if_match: None,
        };
        let request = WriteRequest {
            write,
            fresh: false,
            durability: Durability::Local,
            deadline: None,
            traceparent: None,
        };
        let (reply, answer) = oneshot::channel();
        (WriteJob { request, claim: None, reply }, answer)
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
    fn a_batch_takes_tenants_in_turn_and_keeps_each_ones_order() {
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
    fn a_flood_leaves_room_for_whoever_comes_later() {
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
        assert_eq!(take(&queue, 512).writes.len(), BATCH_UNITS.div_ceil(25));
    }

    #[test]
    fn an_offset_is_handed_over_once() {
        let (queue, group) = (Queue::default(), Group("g"));
        let at = |next| BusPosition { next, emits: tagfast_events::Emits::embedded(1) };
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
    fn whoever_waits_for_a_dead_writer_is_told() {
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
    fn a_claim_has_one_winner() {
        let claim = Claim::new();
        assert!(claim.take() && !claim.give_up());
        let claim = Claim::new();
        assert!(claim.give_up() && !claim.take());
    }
}
