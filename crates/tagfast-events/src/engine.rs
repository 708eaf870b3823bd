//! The loop of one consumer: polls, decodes, lets the sink apply, moves the position.

mod letters;
mod replay;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tagfast_domain::UnixMillis;
use tagfast_resilience::{Breaker, BreakerOptions, BreakerState, Clock, Transition};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use self::letters::{Held, Why};
use crate::bus::{
    Bus, BusConsumer, BusError, BusRecord, Group, LetterClass, Partition, Polled, Positions,
    RecordKind,
};
use crate::envelope;
use crate::progress::Progress;
use crate::runtime::{ConsumerState, Request, RuntimeOptions, Shared};
use crate::sink::{RecordVerdict, Sink, SinkError, SinkRecord, Start, Visible};
use crate::storm::Storm;
use crate::waiting::{Candidate, Waiting};

/// The loop ends because somebody asked for it.
struct StopAsked;

/// Why the loop begins anew.
enum Restart {
    Rebuild(&'static str, Option<oneshot::Sender<u64>>),
    Resume,
}

pub(crate) struct Engine {
    bus: Arc<dyn Bus>,
    sink: Arc<dyn Sink>,
    options: RuntimeOptions,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
    requests: mpsc::Receiver<Request>,
    waiting: Waiting,
    progress: Progress,
    storm: Storm,
    /// Between the consumer and its sink.
    breaker: Arc<Breaker>,
    /// Letters that are not written while there is a storm; their partitions are paused.
    held: BTreeMap<Partition, Vec<Held>>,
    /// When one of them is tried again.
    probe_at: Instant,
    /// Where a rebuilt sink reads on, of partitions that were not assigned since.
    rebuilt_from: Positions,
    /// When this generation began to consume.
    began_at: UnixMillis,
}

impl Engine {
    pub(crate) fn new(
        bus: Arc<dyn Bus>,
        sink: Arc<dyn Sink>,
        options: RuntimeOptions,
        clock: Arc<dyn Clock>,
        shared: Arc<Shared>,
        stopped: watch::Receiver<bool>,
        requests: mpsc::Receiver<Request>,
    ) -> Self {
        let breaker = breaker(sink.group(), &options);
        Self {
            breaker,
            bus,
            sink,
            options,
            clock,
            shared,
            stopped,
            requests,
            waiting: Waiting::default(),
            progress: Progress::default(),
            storm: Storm::default(),
            held: BTreeMap::new(),
            probe_at: Instant::now(),
            rebuilt_from: Positions::new(),
            began_at: UnixMillis::MAX,
        }
    }

    pub(crate) async fn run(mut self) {
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

    /// One life between two rebuilds.
    async fn generation(&mut self, restart: Restart) -> Result<Restart, StopAsked> {
        self.waiting = Waiting::default();
        self.sink.end(&self.progress.partitions());
        self.progress = Progress::default();
        self.shared.has(Vec::new());
        self.held.clear();
        self.rebuilt_from = match restart {
            Restart::Rebuild(reason, reply) => self.rebuild(reason, None, reply).await?,
            Restart::Resume => Positions::new(),
        };
        self.shared.set(ConsumerState::Starting);
        let (bus, group) = (Arc::clone(&self.bus), self.sink.group());
        let mut attempt = 0;
        let mut consumer = loop {
            match bus.consumer(group).await {
                Ok(consumer) => break consumer,
                Err(error) => self.pause(&error, attempt).await?,
            }
            attempt += 1;
        };
        self.began_at = self.clock.now_ms();
        let ended = loop {
            match self.step(consumer.as_mut()).await {
                Ok(None) => {}
                Ok(Some(restart)) => break Ok(restart),
                Err(stop) => break Err(stop),
            }
        };
        consumer.close().await;
        ended
    }

    /// Begins to read partitions that are ours now.
    async fn begin(
        &mut self,
        consumer: &mut dyn BusConsumer,
        partitions: &[Partition],
    ) -> Result<Option<Restart>, StopAsked> {
        // A copy that was just made is at least as new as these.
        let rebuilt: Positions =
            partitions.iter().filter_map(|p| self.rebuilt_from.remove_entry(p)).collect();
        let mut positions = Positions::new();
        if rebuilt.len() < partitions.len() {
            let (sink, epoch) = (Arc::clone(&self.sink), self.bus.epoch());
            match self.insist(|| sink.start(epoch, partitions)).await? {
                Start::From(known) => {
                    let lack = |p: &&Partition| !known.contains_key(p) && !rebuilt.contains_key(p);
                    let missing: Vec<Partition> = partitions.iter().filter(lack).copied().collect();
                    positions = known;
                    if !missing.is_empty() {
                        positions.extend(
                            self.rebuild("some partitions are new here", Some(&missing), None)
                                .await?,
                        );
                    }
                }
                Start::Committed => {}
                Start::Rebuild(reason) => return Ok(Some(Restart::Rebuild(reason, None))),
            }
        }
        positions.extend(rebuilt);
        let mut attempt = 0;
        let begun = loop {
            match consumer.start(partitions, &positions).await {
                Ok(begun) => break begun,
                Err(BusError::Expired { .. }) => {
                    return Ok(Some(Restart::Rebuild("fell behind what the bus retained", None)));
                }
                Err(error @ BusError::Unavailable(_)) => self.pause(&error, attempt).await?,
            }
            attempt += 1;
        };
        self.progress.begin(begun);
        self.shared.has(self.progress.partitions());
        self.shared.set(ConsumerState::Running);
        Ok(None)
    }

    /// Forgets partitions that go to another member.
    fn end(&mut self, partitions: &[Partition]) {
        self.waiting.end(partitions);
        self.sink.end(partitions);
        self.progress.end(partitions);
        self.shared.has(self.progress.partitions());
        self.held.retain(|partition, _| !partitions.contains(partition));
        let group = self.sink.group().0;
        for partition in partitions {
            // Whoever has it now shows its lag.
            metrics::gauge!("tagfast_consumer_lag_seconds", "group" => group, "partition" => partition.0.to_string())
                .set(0.0);
        }
    }

    async fn rebuild(
        &mut self,
        reason: &'static str,
        only: Option<&[Partition]>,
        reply: Option<oneshot::Sender<u64>>,
    ) -> Result<Positions, StopAsked> {
        let group = self.sink.group().0;
        tracing::info!(group, reason, ?only, "rebuilding from the shards");
        self.shared.set(ConsumerState::Rebuilding);
        self.shared.caught_up.store(false, Ordering::Relaxed);
        let (sink, bus, shared) =
            (Arc::clone(&self.sink), Arc::clone(&self.bus), Arc::clone(&self.shared));
        // The ends first, the copy after: an event between the two is applied again, never missed.
        let mut attempt = 0;
        let from: Positions = loop {
            match bus.ends().await {
                Ok(ends) => {
                    break ends
                        .into_iter()
                        .filter(|(p, _)| only.is_none_or(|only| only.contains(p)))
                        .collect();
                }
                Err(error) => self.pause(&error, attempt).await?,
            }
            attempt += 1;
        };
        let mut attempt = 0;
        loop {
            let report = |n| shared.rebuilt.store(n, Ordering::Relaxed);
            // A copy of everything may take long; a stop does not wait for it. What is half built
            // is thrown away.
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

    /// Repeats a call to the sink until it succeeds: its failures are systemic. The breaker says
    /// when; while it finds out whether the sink works again, a canary goes first.
    async fn insist<T, F: Future<Output = Result<T, SinkError>>>(
        &mut self,
        call: impl Fn() -> F,
    ) -> Result<T, StopAsked> {
        let before = *self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let permit = match self.breaker.acquire() {
                Ok(permit) => permit,
                Err(refused) => {
                    self.shared.set(ConsumerState::Paused);
                    self.wait(refused.retry_after).await?;
                    continue;
                }
            };
            let canary = if permit.is_probe() { self.sink.canary().await } else { Ok(()) };
            let result = match canary {
                Ok(()) => call().await,
                Err(error) => Err(error),
            };
            match result {
                Ok(value) => {
                    permit.ok();
                    self.shared.set(before);
                    return Ok(value);
                }
                Err(error) => {
                    permit.failed();
                    let group = self.sink.group().0;
                    tracing::warn!(group, %error, "the sink failed; the consumer waits for it");
                    metrics::counter!("tagfast_consumer_pauses_total", "group" => group)
                        .increment(1);
                }
            }
        }
    }

    /// Waits before the next attempt; ends early when a stop was asked for.
    async fn pause(
        &mut self,
        error: &(dyn std::error::Error + Sync),
        attempt: u32,
    ) -> Result<(), StopAsked> {
        let group = self.sink.group().0;
        tracing::warn!(group, %error, attempt, "the consumer pauses and tries again");
        metrics::counter!("tagfast_consumer_pauses_total", "group" => group).increment(1);
        self.shared.set(ConsumerState::Paused);
        let delay = Duration::from_millis(100).saturating_mul(2u32.saturating_pow(attempt.min(16)));
        self.wait(delay.min(self.options.pause_cap)).await
    }

    /// Lets time pass, while the gauges go on; ends early when a stop was asked for.
    async fn wait(&mut self, delay: Duration) -> Result<(), StopAsked> {
        let until = Instant::now() + delay;
        while Instant::now() < until {
            // The gauges tell the truth meanwhile: it is later than it was.
            self.report(&self.progress.known_visible());
            let slice = until.min(Instant::now() + Duration::from_millis(500));
            tokio::select! {
                _ = self.stopped.wait_for(|s| *s) => return Err(StopAsked),
                () = tokio::time::sleep_until(slice) => {}
            }
        }
        Ok(())
    }

    /// Polls once, applies, advances.
    async fn step(&mut self, consumer: &mut dyn BusConsumer) -> Result<Option<Restart>, StopAsked> {
        let wait = self.waiting.next_due().map_or(self.options.idle, |due| {
            due.saturating_duration_since(Instant::now()).min(self.options.idle)
        });
        let polled = tokio::select! {
            biased;
            stop = self.stopped.wait_for(|s| *s) => {
                // A dropped handle is a crash of the owner: end like one.
                let _ = stop;
                return Err(StopAsked);
            }
            request = self.requests.recv() => Err(request.ok_or(StopAsked)?),
            polled = consumer.poll(self.options.batch, wait) => Ok(polled),
        };
        let polled = match polled {
            Ok(polled) => polled,
            Err(Request::Rebuild(reply)) => {
                return Ok(Some(Restart::Rebuild("asked for", Some(reply))));
            }
            Err(Request::Replay(replay)) => return self.replay(replay).await.map(|()| None),
        };
        let records = match polled {
            Ok(Polled::Records(records)) => records,
            Ok(Polled::Assigned(partitions)) => return self.begin(consumer, &partitions).await,
            Ok(Polled::Revoked(partitions)) => {
                self.advance(consumer).await?;
                self.end(&partitions);
                if let Err(error) = consumer.release(&partitions).await {
                    tracing::warn!(%error, "the partitions were not handed over; the group takes them");
                }
                return Ok(None);
            }
            Ok(Polled::Lost(partitions)) => {
                self.end(&partitions);
                return Ok(None);
            }
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
        self.weather().await?;
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
            // Of a partition that went away in between.
            if !self.progress.has(record.partition) {
                continue;
            }
            let event = match record.kind {
                RecordKind::Heartbeat => continue,
                RecordKind::Marker => {
                    self.progress.accepts(record.partition, &record.cluster, record.emit);
                    continue;
                }
                RecordKind::Event => envelope::decode_keyed(&record),
            };
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    self.park(
                        record,
                        None,
                        Why::new(LetterClass::Poison, error.code(), &error.to_string(), 1),
                    )
                    .await?;
                    continue;
                }
            };
            if !self.progress.accepts(record.partition, &record.cluster, event.emit) {
                dropped += 1;
                continue;
            }
            let emits = self.progress.emits(record.partition);
            match newest.get_mut(&record.key) {
                Some(held) if held.event.version >= event.version => superseded += 1,
                Some(held) => {
                    superseded += 1;
                    *held = Candidate::new(record, event, emits);
                }
                None => {
                    order.push(record.key.clone());
                    newest.insert(record.key.clone(), Candidate::new(record, event, emits));
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
        let records: Arc<Vec<SinkRecord>> =
            Arc::new(candidates.iter().map(Candidate::for_sink).collect());
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
                    let why = Why::new(LetterClass::Poison, code, &message, candidate.attempts + 1);
                    self.park(candidate.record, Some(candidate.event), why).await?;
                }
                RecordVerdict::Failed { code, message } => {
                    self.failed(candidate, code, &message).await?
                }
            }
        }
        self.storm.done(applied + superseded, self.clock.now_ms());
        self.shared.applied.fetch_add(applied, Ordering::Relaxed);
        metrics::counter!("tagfast_consumer_records_total", "group" => group, "outcome" => "applied")
            .increment(applied);
        metrics::counter!("tagfast_consumer_records_total", "group" => group, "outcome" => "superseded")
            .increment(superseded);
        Ok(())
    }

    async fn failed(
        &mut self,
        candidate: Candidate,
        code: &'static str,
        message: &str,
    ) -> Result<(), StopAsked> {
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
                let why = Why::new(LetterClass::Exhausted, code, message, attempts);
                self.park(candidate.record, Some(candidate.event), why).await
            }
        }
    }

    /// Moves the position, tells the bus, measures the lag.
    async fn advance(&mut self, consumer: &mut dyn BusConsumer) -> Result<(), StopAsked> {
        let positions = self.progress.done(&self.undone());
        for (partition, ahead) in self.progress.ahead(&positions) {
            consumer.set_paused(
                partition,
                ahead > self.options.window || self.held.contains_key(&partition),
            );
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
                // Under steady writes there is no instant without a newer event: what counts is
                // what was there at start.
                let past_start = visible.len() == self.progress.len()
                    && !visible.is_empty()
                    && visible.values().all(|at| *at > self.began_at);
                if past_start
                    || (self.progress.len() > 0 && self.progress.has_all(&durable, &frontiers))
                {
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
        // A partition nothing is known of yet may hold anything: nobody is told an age before all
        // of ours have one.
        let complete = visible.len() == self.progress.len() && !visible.is_empty();
        let visible = Visible { partitions: visible.clone(), complete };
        if let Some(oldest) = visible.oldest() {
            self.shared.visible.store(oldest.unsigned_abs(), Ordering::Relaxed);
        }
        self.sink.visible(&visible);
    }
}

/// The breaker between a consumer and its sink: a systemic failure opens it at once, a slow sink
/// never does.
fn breaker(group: Group, options: &RuntimeOptions) -> Arc<Breaker> {
    let began = Instant::now();
    let behaviour = BreakerOptions {
        min_calls: 1,
        failed_share: 0.0,
        failed_or_slow_share: f64::INFINITY,
        slow_after: Duration::from_secs(60),
        stalled_calls: 0,
        open_first: Duration::from_millis(200),
        open_cap: options.pause_cap,
        reset_after: Duration::from_secs(30),
    };
    let told = move |transition: &Transition| {
        let (from, to, reason) =
            (transition.from.as_str(), transition.to.as_str(), transition.reason);
        tracing::info!(breaker = transition.name, from, to, reason, "a breaker changed its state");
        let open = if transition.to == BreakerState::Closed { 0.0 } else { 1.0 };
        metrics::gauge!("tagfast_consumer_breaker_open", "group" => group.0).set(open);
    };
    Breaker::new(
        format!("sink {}", group.0),
        behaviour,
        Arc::new(move || began.elapsed()),
        Arc::new(told),
        0x5eed,
    )
}

/// Spreads retries of different records; the same record at the same attempt waits the same, which
/// tests rely on.
fn jitter(candidate: &Candidate) -> f64 {
    let seed = candidate.record.offset.wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ u64::from(candidate.attempts) << 32;
    (seed >> 11) as f64 / (1u64 << 53) as f64
}
