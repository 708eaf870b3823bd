//! The consumer runtime: one loop per consumer, the same for every sink.
//!
//! It decodes, drops what a replaced epoch published, collapses what it holds of one key to the
//! newest version, lets the sink apply, and moves the position only over records that are applied,
//! superseded, dropped or parked.
//!
//! How it fails. A record that can never succeed is parked at once; one that fails is tried three
//! more times with growing delays while other keys go on, then parked. When the sink itself fails,
//! no record is to blame: nothing is parked, no attempt is used up, the consumer waits and tries
//! again for as long as it takes. When so many records fail that they cannot be to blame, no more
//! are parked: their partitions wait, one record is tried again every five seconds. A letter that
//! cannot be parked stops the consumer's position. A crash at any point repeats work and loses
//! none.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tagfast_resilience::{Backoff, Clock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::bus::{Bus, BusRecord, Group, Partition};
use crate::engine::Engine;
use crate::letters::ReplayOutcome;
use crate::sink::Sink;

/// How a consumer runs.
#[derive(Debug, Clone)]
pub struct RuntimeOptions {
    /// Most records polled at once.
    pub batch: usize,
    /// How often an idle sink is asked to advance.
    pub idle: Duration,
    /// Retries of a failing record. Too many: a broken record holds its key back for long; too
    /// few: a hiccup parks it.
    pub retry: Backoff,
    /// Longest pause between two attempts while the sink itself fails.
    pub pause_cap: Duration,
    /// Most offsets read ahead of the position; beyond it the partition is paused.
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
    /// Beginning.
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
    /// The stable word.
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

/// A consumer as seen from outside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConsumerSnapshot {
    /// What it is doing.
    pub state: ConsumerState,
    /// Seconds from commit to durable and visible, now.
    pub lag_seconds: f64,
    /// Letters parked since it started.
    pub parked: u64,
    /// It has once had everything since its start or its last rebuild.
    pub caught_up: bool,
    /// Records applied since it started.
    pub applied: u64,
    /// Contents copied by the rebuild under way or the last one.
    pub rebuilt: u64,
    /// So many records fail that no more are parked.
    pub storm: bool,
}

/// What a consumer's loop and whoever watches it share.
pub(crate) struct Shared {
    pub(crate) state: Mutex<ConsumerState>,
    /// Everything committed before this moment is visible.
    pub(crate) visible: AtomicU64,
    pub(crate) parked: AtomicU64,
    pub(crate) applied: AtomicU64,
    pub(crate) rebuilt: AtomicU64,
    pub(crate) caught_up: AtomicBool,
    pub(crate) storm: AtomicBool,
    pub(crate) storm_allowed: AtomicBool,
    partitions: Mutex<Vec<Partition>>,
    clock: Arc<dyn Clock>,
}

/// What is asked of the loop.
pub(crate) enum Request {
    Rebuild(oneshot::Sender<u64>),
    Replay(Replay),
}

/// Letters that are to be applied again.
pub(crate) struct Replay {
    pub(crate) letters: Vec<BusRecord>,
    pub(crate) dry_run: bool,
    pub(crate) reply: oneshot::Sender<Vec<ReplayOutcome>>,
}

impl Shared {
    /// Takes note of the partitions that are read.
    pub(crate) fn has(&self, partitions: Vec<Partition>) {
        *self.partitions.lock().unwrap_or_else(PoisonError::into_inner) = partitions;
    }

    pub(crate) fn set(&self, state: ConsumerState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// A running consumer. Dropping it ends its loop at the next step, without waiting for it.
pub struct Consumer {
    group: Group,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    requests: mpsc::Sender<Request>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// The consumer ended before it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the consumer has stopped")]
pub struct Stopped;

impl Consumer {
    /// Starts consuming.
    pub fn spawn(
        bus: Arc<dyn Bus>,
        sink: Arc<dyn Sink>,
        options: RuntimeOptions,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(ConsumerState::Starting),
            // Nothing older than now is promised before it is known.
            visible: AtomicU64::new(clock.now_ms().max(0).unsigned_abs()),
            parked: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            rebuilt: AtomicU64::new(0),
            caught_up: AtomicBool::new(false),
            storm: AtomicBool::new(false),
            storm_allowed: AtomicBool::new(false),
            partitions: Mutex::default(),
            clock: Arc::clone(&clock),
        });
        let (stop, stopped) = watch::channel(false);
        let (sender, requests) = mpsc::channel(1);
        let group = sink.group();
        let engine = Engine::new(bus, sink, options, clock, Arc::clone(&shared), stopped, requests);
        let task = tokio::spawn(engine.run());
        Self { group, shared, stop, requests: sender, task: Mutex::new(Some(task)) }
    }

    /// The group it consumes as.
    pub fn group(&self) -> Group {
        self.group
    }

    /// What it is doing.
    pub fn status(&self) -> ConsumerSnapshot {
        let shared = &self.shared;
        let visible = shared.visible.load(Ordering::Relaxed) as i64;
        let lag_ms = (shared.clock.now_ms() - visible).max(0);
        ConsumerSnapshot {
            state: *shared.state.lock().unwrap_or_else(PoisonError::into_inner),
            lag_seconds: lag_ms as f64 / 1000.0,
            parked: shared.parked.load(Ordering::Relaxed),
            caught_up: shared.caught_up.load(Ordering::Relaxed),
            applied: shared.applied.load(Ordering::Relaxed),
            rebuilt: shared.rebuilt.load(Ordering::Relaxed),
            storm: shared.storm.load(Ordering::Relaxed),
        }
    }

    /// Lets the letters of a storm be written, for a minute: somebody looked, and the records are
    /// to blame.
    pub fn allow_storm(&self) {
        self.shared.storm_allowed.store(true, Ordering::Relaxed);
    }

    /// Rebuilds the sink from the shards while it goes on serving; returns the contents copied.
    pub async fn rebuild(&self) -> Result<u64, Stopped> {
        let (reply, done) = oneshot::channel();
        self.requests.send(Request::Rebuild(reply)).await.map_err(|_| Stopped)?;
        done.await.map_err(|_| Stopped)
    }

    /// The partitions it has now.
    pub fn partitions(&self) -> Vec<Partition> {
        self.shared.partitions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Applies records of letters again, or with `dry_run` only says what that would do; one
    /// outcome for each, in their order. Waits while the sink does not work.
    pub async fn replay(
        &self,
        letters: Vec<BusRecord>,
        dry_run: bool,
    ) -> Result<Vec<ReplayOutcome>, Stopped> {
        let (reply, done) = oneshot::channel();
        self.requests
            .send(Request::Replay(Replay { letters, dry_run, reply }))
            .await
            .map_err(|_| Stopped)?;
        done.await.map_err(|_| Stopped)
    }

    /// Finishes what is in work, closes the sink and ends.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(group = self.group.0, %error, "the consumer ended badly");
        }
    }
}
