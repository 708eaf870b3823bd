//! The consumer runtime: one loop per consumer, the same for every sink.
//!
//! It decodes, drops what a replaced epoch published, collapses what it holds of one key to the newest version, lets the
//! sink apply, and moves the position only over records that are applied, superseded, dropped or parked.
//!
//! How it fails. A record that can never succeed is parked at once; one that fails is tried three more times with
//! growing delays while other keys go on, then parked. When the sink itself fails, no record is to blame: nothing is
//! parked, no attempt is used up, the consumer waits and tries again for as long as it takes. A letter that cannot be
//! parked stops the consumer's position. A crash at any point repeats work and loses none.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tagfast_domain::UnixMillis;
use tagfast_resilience::{Backoff, Clock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::bus::{Bus, BusConsumer, BusError, BusRecord, DeadLetter, Group, LetterClass, Positions};
use crate::progress::Progress;
use crate::sink::{RecordVerdict, Sink, SinkError, SinkRecord, Start};
use crate::waiting::{Candidate, Waiting};
use crate::{bus::Partition, envelope};

/// How a consumer runs.
#[derive(Debug, Clone)]
pub struct RuntimeOptions {
    /// Most records polled at once.
    pub batch: usize,
    /// How often an idle sink is asked to advance.
    pub idle: Duration,
    /// Retries of a failing record. Too many: a broken record holds its key back for long; too few: a hiccup parks it.
    pub retry: Backoff,
    /// Longest pause between two attempts while the sink itself fails.
    pub pause_cap: Duration,
    /// Most offsets read ahead of the position; beyond it the partition is paused.
    pub window: u64,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            batch: 1000,
            idle: Duration::from_millis(50),
            retry: Backoff { retries: 3, base: Duration::from_millis(200), factor: 4, cap: Duration::from_secs(10) },
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
    /// Letters that are open.
    pub parked: u64,
    /// It has once had everything since its start or its last rebuild.
    pub caught_up: bool,
    /// Records applied since it started.
    pub applied: u64,
    /// Contents copied by the rebuild under way or the last one.
    pub rebuilt: u64,
}

struct Shared {
    state: Mutex<ConsumerState>,
    /// Everything committed before this moment is visible.
    visible: AtomicU64,
    parked: AtomicU64,
    applied: AtomicU64,
    rebuilt: AtomicU64,
    caught_up: AtomicBool,
    clock: Arc<dyn Clock>,
}

impl Shared {
    fn set(&self, state: ConsumerState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// A running consumer. Dropping it ends its loop at the next step, without waiting for it.
pub struct Consumer {
    group: Group,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    rebuild: mpsc::Sender<oneshot::Sender<u64>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// The consumer ended before it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the consumer has stopped")]
pub struct Stopped;

impl Consumer {
    /// Starts consuming.
    pub fn spawn(bus: Arc<dyn Bus>, sink: Arc<dyn Sink>, options: RuntimeOptions, clock: Arc<dyn Clock>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(ConsumerState::Starting),
            // Nothing older than now is promised before it is known.
            visible: AtomicU64::new(clock.now_ms().max(0).unsigned_abs()),
            parked: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            rebuilt: AtomicU64::new(0),
            caught_up: AtomicBool::new(false),
            clock: Arc::clone(&clock),
        });
        let (stop, stopped) = watch::channel(false);
        let (rebuild, requests) = mpsc::channel(1);
        let group = sink.group();
        let engine = Engine {
            bus,
            sink,
            options,
            clock,
            shared: Arc::clone(&shared),
            stopped,
            requests,
            waiting: Waiting::default(),
            progress: Progress::default(),
            began_at: UnixMillis::MAX,
        };
        let task = tokio::spawn(engine.run());
        Self { group, shared, stop, rebuild, task: Mutex::new(Some(task)) }
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
        }
    }

    /// Rebuilds the sink from the shards while it goes on serving; returns the contents copied.
    pub async fn rebuild(&self) -> Result<u64, Stopped> {
        let (reply, done) = oneshot::channel();
        self.rebuild.send(reply).await.map_err(|_| Stopped)?;
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

/// The loop ends because somebody asked for it.
struct StopAsked;

/// Why the loop begins anew.
enum Restart {
    Rebuild(&'static str, Option<oneshot::Sender<u64>>),
    Resume,
}

struct Engine {
    bus: Arc<dyn Bus>,
    sink: Arc<dyn Sink>,
    options: RuntimeOptions,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
    requests: mpsc::Receiver<oneshot::Sender<u64>>,
    waiting: Waiting,
    progress: Progress,
    /// When this generation began to consume.
    began_at: UnixMillis,
}

impl Engine {
    async fn run(mut self) {
        let group = self.sink.group().0;
        let mut restart = Restart::Resume;
        while let Ok(next) = self.generation(restart).await {
            restart = next;
        }
        if let Err(error) = self.sink.close().await {
            tracing::warn!(group, %error, "the sink was not closed cleanly; its work is repeated at the next start");
        }
        self.shared.set(ConsumerState::Stopped);
    }

    /// One life between two (re)starts.
    async fn generation(&mut self, restart: Restart) -> Result<Restart, StopAsked> {
        self.waiting = Waiting::default();
        let positions = match restart {
            Restart::Rebuild(reason, reply) => self.rebuild(reason, reply).await?,
            Restart::Resume => {
                self.shared.set(ConsumerState::Starting);
                let (sink, epoch) = (Arc::clone(&self.sink), self.bus.epoch());
                match self.insist(|| sink.start(epoch)).await? {
                    Start::From(positions) => positions,
                    Start::Rebuild(reason) => self.rebuild(reason, None).await?,
                }
            }
        };
        let (bus, group) = (Arc::clone(&self.bus), self.sink.group());
        let mut consumer = loop {
            match bus.consumer(group, &positions).await {
                Ok(consumer) => break consumer,
                Err(BusError::Expired { .. }) => {
                    return Ok(Restart::Rebuild("fell behind what the bus retained", None));
                }
                Err(error @ BusError::Unavailable(_)) => self.pause(&error, 0).await?,
            }
        };
        self.progress = Progress::new(&self.bus.partitions(), positions);
        self.began_at = self.clock.now_ms();
        match self.bus.parked(group).await {
            Ok(open) => {
                self.shared.parked.store(open, Ordering::Relaxed);
                metrics::gauge!("tagfast_dead_letters_open", "group" => group.0).set(open as f64);
            }
            Err(error) => tracing::warn!(group = group.0, %error, "the open letters cannot be counted"),
        }
        self.shared.set(ConsumerState::Running);
        loop {
            if let Some(restart) = self.step(consumer.as_mut()).await? {
                return Ok(restart);
            }
        }
    }

    async fn rebuild(
        &mut self,
        reason: &'static str,
        reply: Option<oneshot::Sender<u64>>,
    ) -> Result<Positions, StopAsked> {
        let group = self.sink.group().0;
        tracing::info!(group, reason, "rebuilding from the shards");
        self.shared.set(ConsumerState::Rebuilding);
        self.shared.caught_up.store(false, Ordering::Relaxed);
        let (sink, bus, shared) = (Arc::clone(&self.sink), Arc::clone(&self.bus), Arc::clone(&self.shared));
        // The ends first, the copy after: an event between the two is applied again, never missed.
        let mut attempt = 0;
        let from = loop {
            match bus.ends().await {
                Ok(ends) => break ends,
                Err(error) => self.pause(&error, attempt).await?,
            }
            attempt += 1;
        };
        let mut attempt = 0;
        loop {
            let report = |n| shared.rebuilt.store(n, Ordering::Relaxed);
            // A copy of everything may take long; a stop does not wait for it. What is half built is thrown away.
            let result = tokio::select! {
                _ = self.stopped.wait_for(|s| *s) => return Err(StopAsked),
                result = sink.rebuild(&from, bus.epoch(), &report) => result,
            };
            match result {
                Ok(()) => break,
                Err(error) => self.pause(&error, attempt).await?,
            }
            attempt += 1;
        }
        let copied = shared.rebuilt.load(Ordering::Relaxed);
        tracing::info!(group, contents = copied, "rebuilt");
        if let Some(reply) = reply {
            let _ = reply.send(copied);
        }
        Ok(from)
    }

    /// Repeats a call to the sink until it succeeds: its failures are systemic.
    async fn insist<T, F: Future<Output = Result<T, SinkError>>>(
        &mut self,
        call: impl Fn() -> F,
    ) -> Result<T, StopAsked> {
        let before = *self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut attempt = 0;
        loop {
            match call().await {
                Ok(value) => {
                    self.shared.set(before);
                    return Ok(value);
                }
                Err(error) => self.pause(&error, attempt).await?,
            }
            attempt += 1;
        }
    }

    /// Waits before the next attempt; ends early when a stop was asked for.
    async fn pause(&mut self, error: &(dyn std::error::Error + Sync), attempt: u32) -> Result<(), StopAsked> {
        let group = self.sink.group().0;
        tracing::warn!(group, %error, attempt, "the consumer pauses and tries again");
        metrics::counter!("tagfast_consumer_pauses_total", "group" => group).increment(1);
        self.shared.set(ConsumerState::Paused);
        let delay =
            Duration::from_millis(100).saturating_mul(2u32.saturating_pow(attempt.min(16))).min(self.options.pause_cap);
        tokio::select! {
            _ = self.stopped.wait_for(|s| *s) => Err(StopAsked),
            () = tokio::time::sleep(delay) => Ok(()),
        }
    }

    /// Polls once, applies, advances.
    async fn step(&mut self, consumer: &mut dyn BusConsumer) -> Result<Option<Restart>, StopAsked> {
        let wait = self
            .waiting
            .next_due()
            .map_or(self.options.idle, |due| due.saturating_duration_since(Instant::now()).min(self.options.idle));
        let polled = tokio::select! {
            biased;
            stop = self.stopped.wait_for(|s| *s) => {
                // A dropped handle is a crash of the owner: end like one.
                let _ = stop;
                return Err(StopAsked);
            }
            request = self.requests.recv() => match request {
                Some(reply) => return Ok(Some(Restart::Rebuild("asked for", Some(reply)))),
                None => return Err(StopAsked),
            },
            polled = consumer.poll(self.options.batch, wait) => polled,
        };
        let records = match polled {
            Ok(records) => records,
            Err(BusError::Expired { .. }) => {
                return Ok(Some(Restart::Rebuild("fell behind what the bus retained", None)));
            }
            Err(error @ BusError::Unavailable(_)) => {
                self.pause(&error, 3).await?;
                self.shared.set(ConsumerState::Running);
                return Ok(None);
            }
        };
        self.progress.read(&records);
        let mut candidates = self.admit(records).await?;
        candidates.extend(self.waiting.take_due(Instant::now()));
        if !candidates.is_empty() {
            self.apply(candidates).await?;
        }
        self.advance(consumer).await?;
        Ok(None)
    }

    /// Decodes, drops and collapses a batch.
    async fn admit(&mut self, records: Vec<BusRecord>) -> Result<Vec<Candidate>, StopAsked> {
        let group = self.sink.group().0;
        let (mut dropped, mut superseded) = (0, 0);
        let mut newest: BTreeMap<Vec<u8>, Candidate> = BTreeMap::new();
        let mut order = Vec::with_capacity(records.len());
        for record in records {
            if !self.progress.accepts(record.partition, record.emit) {
                dropped += 1;
                continue;
            }
            let event = match envelope::decode(&record.payload) {
                Ok(event) if event.key.to_bytes() == record.key => event,
                Ok(_) => {
                    self.park(record, LetterClass::Poison, "event_key_mismatch", "the key is not the body's", 1)
                        .await?;
                    continue;
                }
                Err(error) => {
                    self.park(record, LetterClass::Poison, error.code(), &error.to_string(), 1).await?;
                    continue;
                }
            };
            match newest.get_mut(&record.key) {
                Some(held) if held.record.version >= record.version => superseded += 1,
                Some(held) => {
                    superseded += 1;
                    *held = Candidate::new(record, event);
                }
                None => {
                    order.push(record.key.clone());
                    newest.insert(record.key.clone(), Candidate::new(record, event));
                }
            }
        }
        let mut candidates = Vec::with_capacity(order.len());
        for key in order {
            let Some(candidate) = newest.remove(&key) else { continue };
            if self.waiting.supersede(&candidate) {
                candidates.push(candidate);
            } else {
                superseded += 1;
            }
        }
        metrics::counter!("tagfast_consumer_records_total", "group" => group, "outcome" => "dropped")
            .increment(dropped);
        metrics::counter!("tagfast_consumer_records_total", "group" => group, "outcome" => "superseded")
            .increment(superseded);
        Ok(candidates)
    }

    async fn apply(&mut self, candidates: Vec<Candidate>) -> Result<(), StopAsked> {
        let group = self.sink.group().0;
        let records: Arc<Vec<SinkRecord>> = Arc::new(candidates.iter().map(Candidate::for_sink).collect());
        let sink = Arc::clone(&self.sink);
        let verdicts = self
            .insist(|| {
                let (sink, records) = (Arc::clone(&sink), Arc::clone(&records));
                async move { sink.apply(&records).await }
            })
            .await?;
        let (mut applied, mut superseded) = (0, 0);
        for (candidate, verdict) in candidates.into_iter().zip(verdicts) {
            match verdict {
                RecordVerdict::Applied => applied += 1,
                RecordVerdict::Superseded => superseded += 1,
                RecordVerdict::Poison { code, message } => {
                    let attempts = candidate.attempts + 1;
                    self.park(candidate.record, LetterClass::Poison, code, &message, attempts).await?;
                }
                RecordVerdict::Failed { code, message } => self.failed(candidate, code, &message).await?,
            }
        }
        self.shared.applied.fetch_add(applied, Ordering::Relaxed);
        metrics::counter!("tagfast_consumer_records_total", "group" => group, "outcome" => "applied")
            .increment(applied);
        metrics::counter!("tagfast_consumer_records_total", "group" => group, "outcome" => "superseded")
            .increment(superseded);
        Ok(())
    }

    async fn failed(&mut self, candidate: Candidate, code: &'static str, message: &str) -> Result<(), StopAsked> {
        let group = self.sink.group().0;
        match self.options.retry.delay(candidate.attempts, jitter(&candidate)) {
            Some(delay) => {
                metrics::counter!("tagfast_consumer_records_total", "group" => group, "outcome" => "retried")
                    .increment(1);
                self.waiting.put(candidate, Instant::now() + delay, self.clock.now_ms());
                Ok(())
            }
            None => {
                let attempts = candidate.attempts + 1;
                self.park(candidate.record, LetterClass::Exhausted, code, message, attempts).await
            }
        }
    }

    /// Parks a record before the position passes it; tries for as long as it takes.
    async fn park(
        &mut self,
        record: BusRecord,
        class: LetterClass,
        code: &str,
        message: &str,
        attempts: u32,
    ) -> Result<(), StopAsked> {
        let group = self.sink.group();
        tracing::error!(
            group = group.0,
            partition = record.partition.0,
            offset = record.offset,
            code,
            message,
            "parking a record"
        );
        let now = self.clock.now_ms();
        let message = message.chars().take(1000).collect();
        let letter = DeadLetter {
            group,
            class,
            code: code.to_owned(),
            message,
            attempts,
            first_failed_at: self.waiting.first_failed_at(&record.key).unwrap_or(now),
            last_failed_at: now,
            record,
        };
        let bus = Arc::clone(&self.bus);
        let mut attempt = 0;
        while let Err(error) = bus.park(&letter).await {
            self.pause(&error, attempt).await?;
            attempt += 1;
        }
        if attempt > 0 {
            self.shared.set(ConsumerState::Running);
        }
        self.shared.parked.fetch_add(1, Ordering::Relaxed);
        metrics::gauge!("tagfast_dead_letters_open", "group" => group.0).increment(1.0);
        metrics::counter!("tagfast_dead_letters_total", "group" => group.0, "class" => class_word(class)).increment(1);
        Ok(())
    }

    /// Moves the position, tells the bus, measures the lag.
    async fn advance(&mut self, consumer: &mut dyn BusConsumer) -> Result<(), StopAsked> {
        let positions = self.progress.done(&self.waiting.oldest());
        for (partition, ahead) in self.progress.ahead(&positions) {
            consumer.set_paused(partition, ahead > self.options.window);
        }
        let sink = Arc::clone(&self.sink);
        let durable = self
            .insist(|| {
                let (sink, positions) = (Arc::clone(&sink), positions.clone());
                async move { sink.advance(&positions).await }
            })
            .await?;
        if self.progress.commit(&durable)
            && let Err(error) = consumer.commit(&durable).await
        {
            tracing::warn!(%error, "the bus did not take the position; the sink has it");
        }
        match consumer.frontiers().await {
            Ok(frontiers) => {
                let visible = self.progress.visible(&durable, &frontiers);
                self.report(&visible);
                // Under steady writes there is no instant without a newer event: what counts is what was there at start.
                let past_start = visible.len() == frontiers.len() && visible.values().all(|at| *at > self.began_at);
                if past_start || self.progress.has_all(&durable, &frontiers) {
                    self.shared.caught_up.store(true, Ordering::Relaxed);
                }
            }
            Err(error) => tracing::warn!(%error, "the bus did not tell its ends"),
        }
        Ok(())
    }

    fn report(&self, visible: &BTreeMap<Partition, UnixMillis>) {
        let now = self.clock.now_ms();
        let group = self.sink.group().0;
        for (partition, at) in visible {
            let lag = (now - at).max(0) as f64 / 1000.0;
            metrics::gauge!("tagfast_consumer_lag_seconds", "group" => group, "partition" => partition.0.to_string())
                .set(lag);
        }
        // A partition nothing is known of yet may hold anything: nobody is told an age before all have one.
        if visible.len() < self.bus.partitions().len() {
            return;
        }
        if let Some(oldest) = visible.values().min() {
            self.shared.visible.store(oldest.unsigned_abs(), Ordering::Relaxed);
            self.sink.visible_through(*oldest);
        }
    }
}

fn class_word(class: LetterClass) -> &'static str {
    match class {
        LetterClass::Poison => "poison",
        LetterClass::Exhausted => "exhausted",
    }
}

/// Spreads retries of different records; the same record at the same attempt waits the same, which tests rely on.
fn jitter(candidate: &Candidate) -> f64 {
    let seed = candidate.record.offset.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(candidate.attempts) << 32;
    (seed >> 11) as f64 / (1u64 << 53) as f64
}
