//! The bounded queue in front of a file's writer, fair by tenant.
//!
//! A batch takes one write of each waiting tenant in turn, so a tenant with a flood delays the others by at most their
//! share of a batch. One tenant may fill at most half of the queue. Within a tenant the order is that of arrival.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tagfast_domain::TenantId;
use tagfast_events::{BusPosition, DeadLetter, Group};
use tagfast_store::{StoreError, WriteAnswer, WriteRequest};
use tokio::sync::oneshot;

/// Most writes that wait for one file.
pub(crate) const QUEUE_WRITES: usize = 16_384;
/// Most of them of one tenant.
pub(crate) const TENANT_WRITES: usize = QUEUE_WRITES / 2;

/// A write and who waits for it.
pub(crate) struct WriteJob {
    pub(crate) request: WriteRequest,
    pub(crate) reply: oneshot::Sender<Result<WriteAnswer, StoreError>>,
}

/// A letter and who waits for it.
pub(crate) struct ParkJob {
    pub(crate) letter: DeadLetter,
    pub(crate) reply: oneshot::Sender<Result<(), StoreError>>,
}

#[derive(Default)]
struct State {
    tenants: HashMap<TenantId, VecDeque<WriteJob>>,
    /// Tenants that wait, next one first.
    turn: VecDeque<TenantId>,
    waiting: usize,
    park: Vec<ParkJob>,
    offsets: BTreeMap<Group, BusPosition>,
    offsets_since: Option<Instant>,
    closed: bool,
}

/// What the writer does next.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) writes: Vec<WriteJob>,
    pub(crate) park: Vec<ParkJob>,
    pub(crate) offsets: BTreeMap<Group, BusPosition>,
    /// The queue is closed and empty.
    pub(crate) finished: bool,
}

/// The queue.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held cannot leave the state half changed: no code of others runs under it.
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
        let tenant = &job.request.write.key.tenant;
        let mine = state.tenants.get(tenant).map_or(0, VecDeque::len);
        let full = if state.waiting >= QUEUE_WRITES {
            Some(("write", "queue_full", QUEUE_WRITES))
        } else if mine >= TENANT_WRITES {
            Some(("tenant's write", "tenant_share", TENANT_WRITES))
        } else {
            None
        };
        if let Some((queue, reason, limit)) = full {
            metrics::counter!("tagfast_store_refused_total", "reason" => reason).increment(1);
            return Err(StoreError::Overloaded { queue, limit, retry_after: Duration::from_secs(1) });
        }
        if mine == 0 {
            let tenant = tenant.clone();
            state.turn.push_back(tenant.clone());
            state.tenants.entry(tenant).or_default().push_back(job);
        } else if let Some(jobs) = state.tenants.get_mut(tenant) {
            jobs.push_back(job);
        }
        state.waiting += 1;
        if state.waiting == 1 {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Takes a letter in. Letters are few and never refused.
    pub(crate) fn park(&self, job: ParkJob) {
        self.lock().park.push(job);
        self.arrived.notify_one();
    }

    /// Remembers how far a group has come; written with the next batch or after `OFFSETS_DELAY`.
    pub(crate) fn set_offset(&self, group: Group, position: BusPosition) {
        let mut state = self.lock();
        state.offsets.insert(group, position);
        if state.offsets_since.is_none() {
            state.offsets_since = Some(Instant::now());
            self.arrived.notify_one();
        }
    }

    /// Refuses what comes from now on; what waits is still done.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_one();
    }

    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Waits for work, at most `idle`; then takes what is there, at most `max` writes, without lingering.
    pub(crate) fn take(&self, max: usize, idle: Duration, offsets_delay: Duration) -> Batch {
        let end = Instant::now() + idle;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let offsets_due = state.offsets_since.map(|since| since + offsets_delay);
            if state.waiting > 0 || !state.park.is_empty() || state.closed || offsets_due.is_some_and(|d| d <= now) {
                return Self::drain(&mut state, max);
            }
            let until = offsets_due.map_or(end, |due| due.min(end));
            if until <= now {
                return Batch::default();
            }
            state = self.arrived.wait_timeout(state, until - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn drain(state: &mut State, max: usize) -> Batch {
        let mut writes = Vec::with_capacity(state.waiting.min(max));
        while writes.len() < max {
            let Some(tenant) = state.turn.pop_front() else { break };
            let Some(jobs) = state.tenants.get_mut(&tenant) else { continue };
            if state.turn.is_empty() {
                // The only tenant that waits: no turns to keep.
                let n = jobs.len().min(max - writes.len());
                writes.extend(jobs.drain(..n));
            } else {
                writes.extend(jobs.pop_front());
            }
            if jobs.is_empty() {
                state.tenants.remove(&tenant);
            } else {
                state.turn.push_back(tenant);
            }
        }
        state.waiting -= writes.len();
        state.offsets_since = None;
        let finished = state.closed && state.waiting == 0;
        Batch { writes, park: std::mem::take(&mut state.park), offsets: std::mem::take(&mut state.offsets), finished }
    }
}
