//! Faults of the store in memory: broken promises, which a conformance suite must find, and failing
//! calls, which a caller must survive.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_domain::UserId;
use tagfast_resilience::Criticality;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{ReadOptions, StoreError, View, WriteRequest};

/// One promise that the store breaks on every call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokenPromise {
    /// Every fifth event is not published.
    DropsEvents,
    /// The two newest events of a content are swapped.
    ReordersEvents,
    /// A write that changes nothing publishes the last event again.
    PublishesNoOps,
    /// A retry is applied like a new write.
    AppliesRetries,
    /// The outcome of a write that changed nothing is not remembered.
    ForgetsNoOps,
    /// Write ids that a document evicts are not kept.
    ForgetsEvictedIds,
    /// Evicted write ids are kept without their content.
    ConfusesContentsOfIds,
    /// Nothing remembers which request an idempotency key came with.
    ForgetsKeys,
    /// A restart forgets which request an idempotency key came with.
    ForgetsKeysAtRestart,
    /// One tag more than the limit is accepted.
    ExceedsTheLimit,
    /// A document is read and written under two separate locks.
    LosesUpdates,
    /// A tag is identified by its spelling.
    LosesIdentity,
    /// `If-Match` is ignored.
    IgnoresConditions,
    /// A restart loses the newest write.
    LosesTheLastWriteAtRestart,
    /// A view shows the state before the last write.
    ReadsStale,
    /// A view has no time of an added tag.
    ForgetsWho,
    /// A token of a different epoch is accepted as one of this epoch.
    TrustsEveryToken,
    /// A page of a scan ends one content too early.
    ScanSkips,
    /// A scan includes contents of other tenants.
    ScanMixesTenants,
    /// The heartbeat does not move while there are no writes.
    HeartbeatStops,
    /// The answers of a batch are sorted by content.
    BatchAnswersUnordered,
    /// Receipts are forgotten at a restart.
    ForgetsReceipts,
}

/// The options of the last read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadCall {
    /// The reading user; `None`: anonymous.
    pub user: Option<UserId>,
    /// Its criticality.
    pub criticality: Criticality,
    /// Its bound on staleness; `None`: no bound.
    pub max_stale: Option<Duration>,
}

/// Which calls wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paused {
    None,
    Reads,
    All,
}

/// Which port a call belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallKind {
    /// A view.
    Read,
    /// Any other call.
    Other,
}

type Failure = fn() -> StoreError;
type ViewHook = fn(&ReadOptions<'_>, &mut View) -> Result<(), StoreError>;

#[derive(Debug, Default)]
struct Script {
    failure: Option<Failure>,
    view_hook: Option<ViewHook>,
    delay: Duration,
    panics: bool,
    loses_answer: bool,
    last_write: Option<WriteRequest>,
    last_read: Option<ReadCall>,
}

/// Counters and faults of the calls to a store in memory. All faults are off at first.
#[derive(Debug)]
pub struct CallFaults {
    reads: AtomicU64,
    writes: AtomicU64,
    script: Mutex<Script>,
    paused: watch::Sender<Paused>,
    is_repair_open: AtomicBool,
}

impl Default for CallFaults {
    fn default() -> Self {
        Self {
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            script: Mutex::default(),
            paused: watch::Sender::new(Paused::None),
            is_repair_open: AtomicBool::new(false),
        }
    }
}

impl CallFaults {
    /// Views requested so far.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    /// Writes requested so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// All calls fail with this error until [`CallFaults::heal`].
    pub fn fail_with(&self, failure: fn() -> StoreError) {
        self.script.lock().failure = Some(failure);
    }

    /// Every view passes through `hook`, which may change it or fail it.
    pub fn set_view_hook(&self, hook: Option<ViewHook>) {
        self.script.lock().view_hook = hook;
    }

    /// Every call takes this long, whatever its deadline.
    pub fn delay(&self, delay: Duration) {
        self.script.lock().delay = delay;
    }

    /// Calls wait until [`CallFaults::heal`] or their deadline. A paused view is of the time of its
    /// call.
    pub fn pause(&self) {
        self.paused.send_replace(Paused::All);
    }

    /// As [`CallFaults::pause`], but only views wait.
    pub fn pause_reads(&self) {
        self.paused.send_replace(Paused::Reads);
    }

    /// The repair after a failover is open: views are marked. [`CallFaults::heal`] does not end it.
    pub fn set_repair_open(&self, is_open: bool) {
        self.is_repair_open.store(is_open, Ordering::SeqCst);
    }

    pub(super) fn is_repair_open(&self) -> bool {
        self.is_repair_open.load(Ordering::SeqCst)
    }

    /// The next call panics.
    pub fn panic_once(&self) {
        self.script.lock().panics = true;
    }

    /// The next write is applied and answered with an unknown outcome.
    pub fn lose_next_answer(&self) {
        self.script.lock().loses_answer = true;
    }

    /// Ends all faults and resumes paused calls.
    pub fn heal(&self) {
        let mut script = self.script.lock();
        (script.failure, script.view_hook, script.delay) = (None, None, Duration::ZERO);
        drop(script);
        self.paused.send_replace(Paused::None);
    }

    /// The last write; `None`: there was none.
    pub fn last_write(&self) -> Option<WriteRequest> {
        self.script.lock().last_write.clone()
    }

    /// The options of the last read; `None`: there was none.
    pub fn last_read(&self) -> Option<ReadCall> {
        self.script.lock().last_read.clone()
    }

    pub(super) fn record_read(&self, options: &ReadOptions<'_>) {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.script.lock().last_read = Some(ReadCall {
            user: options.user.cloned(),
            criticality: options.criticality,
            max_stale: options.max_stale,
        });
    }

    pub(super) fn record_write(&self, request: &WriteRequest) {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.script.lock().last_write = Some(request.clone());
    }

    /// Applies the faults that every call has.
    pub(super) async fn enter(
        &self,
        kind: CallKind,
        deadline: Option<Instant>,
    ) -> Result<(), StoreError> {
        let (failure, delay, panics) = {
            let mut script = self.script.lock();
            (script.failure, script.delay, std::mem::take(&mut script.panics))
        };
        assert!(!panics, "a panic on request");
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut paused = self.paused.subscribe();
        let resumed = paused.wait_for(|paused| match paused {
            Paused::None => true,
            Paused::Reads => kind != CallKind::Read,
            Paused::All => false,
        });
        let late = || StoreError::Deadline { waiting_for: "the test", outcome_unknown: false };
        match deadline {
            Some(deadline) => {
                let resumed = tokio::time::timeout_at(deadline, resumed).await;
                drop(resumed.map_err(|_| late())?);
            }
            None => drop(resumed.await),
        }
        failure.map_or(Ok(()), |failure| Err(failure()))
    }

    pub(super) fn shape(
        &self,
        options: &ReadOptions<'_>,
        mut view: View,
    ) -> Result<View, StoreError> {
        let hook = self.script.lock().view_hook;
        if let Some(hook) = hook {
            hook(options, &mut view)?;
        }
        Ok(view)
    }

    /// Whether the answer of this write is to be lost.
    pub(super) fn takes_answer(&self) -> bool {
        std::mem::take(&mut self.script.lock().loses_answer)
    }
}
