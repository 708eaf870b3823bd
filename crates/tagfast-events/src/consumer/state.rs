//! Options and states of a consumer, and what its handle and its loop exchange.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_domain::UnixMillis;
use tagfast_resilience::{Backoff, Clock};
use tokio::sync::oneshot;

use crate::bus::{BusRecord, Partition};

/// How a consumer runs.
#[derive(Debug, Clone)]
pub struct RuntimeOptions {
    /// Records polled at once, at most.
    pub batch: usize,
    /// How often the consumer lets an idle sink advance.
    pub idle: Duration,
    /// Retries of a failing record. Too many: a broken record holds its key back for long. Too
    /// few: a hiccup parks it.
    pub retry: Backoff,
    /// Longest pause between two attempts while the sink itself fails.
    pub pause_cap: Duration,
    /// Offsets read ahead of the position, at most; beyond it the partition is paused.
    pub window: u64,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            batch: 2000,
            idle: Duration::from_millis(50),
            retry: Backoff {
                retries: 3,
                base: Duration::from_millis(200),
                factor: 4,
                cap: Duration::from_secs(10),
            },
            pause_cap: Duration::from_secs(5),
            window: 10_000,
        }
    }
}

/// What a consumer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsumerState {
    /// Joining its group.
    Starting,
    /// Copying the shards.
    Rebuilding,
    /// Consuming.
    Running,
    /// Waiting for the sink or the bus to work again.
    Paused,
    /// Ended.
    Stopped,
}

impl ConsumerState {
    /// The stable word in status answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Rebuilding => "rebuilding",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// Observable state of a consumer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConsumerSnapshot {
    /// What it is doing.
    pub state: ConsumerState,
    /// Seconds from commit to durable and visible, now; `None` before anything was proven about
    /// every partition.
    pub lag_seconds: Option<f64>,
    /// Records parked since it started.
    pub parked: u64,
    /// Whether it has applied everything on the bus once since its start or its last rebuild.
    pub caught_up: bool,
    /// Records applied since it started.
    pub applied: u64,
    /// Contents copied by the current or the last rebuild.
    pub rebuilt: u64,
    /// Whether a dead-letter storm holds parking back.
    pub storm: bool,
}

/// Why a consumer does not get nearer to what is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerProblem {
    /// Since when, Unix ms.
    pub since: UnixMillis,
    /// What is wrong, with partitions and clusters, and what to do.
    pub text: String,
}

/// Outcome of replaying one dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayOutcome {
    /// The sink applied it; in a dry run it would.
    Applied,
    /// The sink holds a newer state.
    Superseded,
    /// It failed again.
    Failed {
        /// A stable error code.
        code: String,
        /// The error for people.
        message: String,
    },
    /// A different process reads its partition: nothing was done.
    NotHere,
}

/// Stands for the time through which everything is visible before it is known.
const NOTHING_PROVEN: UnixMillis = UnixMillis::MIN;

/// State that a consumer's loop writes and its handle reads.
pub(crate) struct SharedState {
    pub(super) state: Mutex<ConsumerState>,
    /// Everything committed before this time (Unix ms) is visible; [`NOTHING_PROVEN`] before the
    /// first proof.
    visible: AtomicI64,
    problem: Mutex<Option<ConsumerProblem>>,
    pub(super) parked: AtomicU64,
    pub(super) applied: AtomicU64,
    pub(super) rebuilt: AtomicU64,
    pub(super) caught_up: AtomicBool,
    pub(super) storm: AtomicBool,
    pub(super) storm_allowed: AtomicBool,
    partitions: Mutex<Vec<Partition>>,
    clock: Arc<dyn Clock>,
}

impl SharedState {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            state: Mutex::new(ConsumerState::Starting),
            visible: AtomicI64::new(NOTHING_PROVEN),
            problem: Mutex::default(),
            parked: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            rebuilt: AtomicU64::new(0),
            caught_up: AtomicBool::new(false),
            storm: AtomicBool::new(false),
            storm_allowed: AtomicBool::new(false),
            partitions: Mutex::default(),
            clock,
        }
    }

    /// Publishes the partitions that are read.
    pub(super) fn set_partitions(&self, partitions: Vec<Partition>) {
        *self.partitions.lock() = partitions;
    }

    pub(super) fn partitions(&self) -> Vec<Partition> {
        self.partitions.lock().clone()
    }

    pub(super) fn set(&self, state: ConsumerState) {
        *self.state.lock() = state;
    }

    pub(super) fn set_visible(&self, at: UnixMillis) {
        self.visible.store(at, Ordering::Relaxed);
    }

    /// Notes why nothing newer becomes visible; the time when it began is kept.
    pub(super) fn set_problem(&self, text: Option<String>) {
        let mut problem = self.problem.lock();
        let since = problem.as_ref().map(|known| known.since);
        *problem = text.map(|text| ConsumerProblem {
            since: since.unwrap_or_else(|| self.clock.now_ms()),
            text,
        });
    }

    pub(super) fn problem(&self) -> Option<ConsumerProblem> {
        self.problem.lock().clone()
    }

    pub(super) fn snapshot(&self) -> ConsumerSnapshot {
        let visible = self.visible.load(Ordering::Relaxed);
        let lag_ms = self.clock.now_ms().saturating_sub(visible).max(0);
        ConsumerSnapshot {
            state: *self.state.lock(),
            lag_seconds: (visible != NOTHING_PROVEN).then_some(lag_ms as f64 / 1000.0),
            parked: self.parked.load(Ordering::Relaxed),
            caught_up: self.caught_up.load(Ordering::Relaxed),
            applied: self.applied.load(Ordering::Relaxed),
            rebuilt: self.rebuilt.load(Ordering::Relaxed),
            storm: self.storm.load(Ordering::Relaxed),
        }
    }
}

/// A request from the handle to the loop.
pub(super) enum Request {
    /// Rebuild the sink; the reply is the number of contents copied.
    Rebuild(oneshot::Sender<u64>),
    /// Replay dead letters.
    Replay(ReplayRequest),
}

/// Dead letters to replay; the reply has one outcome per record, in order.
pub(super) struct ReplayRequest {
    pub(super) records: Vec<BusRecord>,
    pub(super) dry_run: bool,
    pub(super) reply: oneshot::Sender<Vec<ReplayOutcome>>,
}

/// The loop ends because its owner stopped it.
pub(super) struct StopRequested;
