//! The loop of one consumer: polls, decodes, lets the sink apply, moves the position.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tagfast_domain::UnixMillis;
use tagfast_resilience::ErrorChain;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::context::Context;
use super::parking::{FailureReason, Parking};
use super::progress::Progress;
use super::replay::replay;
use super::retry_queue::{PendingRecord, RetryQueue};
use super::state::{ConsumerState, Request, StopRequested};
use crate::bus::{
    BusConsumer, BusError, BusRecord, FailureClass, Partition, PollResult, Positions, RecordKind,
};
use crate::envelope;
use crate::metric::{self, RecordOutcome};
use crate::sink::{RebuildRequest, RecordVerdict, SinkRecord, Start};

/// Why a rebuild starts when the bus no longer has the next record.
const FELL_BEHIND: &str = "the group fell behind what the bus retained";

/// Why the loop starts a new generation.
enum RestartReason {
    Rebuild(&'static str, Option<oneshot::Sender<u64>>),
    Resume,
}

/// One consumer's loop.
pub(super) struct Engine {
    context: Context,
    requests: mpsc::Receiver<Request>,
    retries: RetryQueue,
    parking: Parking,
    /// Where a rebuilt sink reads on, for partitions that have not been assigned since.
    rebuilt_from: Positions,
    /// When this generation began to consume, Unix ms.
    began_at: UnixMillis,
}

impl Engine {
    pub(super) fn new(context: Context, requests: mpsc::Receiver<Request>) -> Self {
        Self {
            context,
            requests,
            retries: RetryQueue::default(),
            parking: Parking::default(),
            rebuilt_from: Positions::new(),
            began_at: UnixMillis::MAX,
        }
    }

    /// Runs until the owner stops the consumer.
    pub(super) async fn run(mut self) {
        let group = self.context.group().0;
        let mut restart = RestartReason::Resume;
        while let Ok(next) = self.generation(restart).await {
            restart = next;
        }
        if let Err(error) = self.context.sink.close().await {
            let error = ErrorChain(&error);
            tracing::warn!(group, %error, "sink did not close; its last work is repeated");
        }
        self.context.shared.set(ConsumerState::Stopped);
    }

    /// Consumes until a rebuild or a stop.
    async fn generation(&mut self, restart: RestartReason) -> Result<RestartReason, StopRequested> {
        self.retries = RetryQueue::default();
        self.context.sink.end(&self.context.progress.partitions());
        self.context.progress = Progress::default();
        self.context.shared.set_partitions(Vec::new());
        self.parking.clear();
        self.rebuilt_from = match restart {
            RestartReason::Rebuild(reason, reply) => self.rebuild(reason, None, reply).await?,
            RestartReason::Resume => Positions::new(),
        };
        self.context.shared.set(ConsumerState::Starting);
        let (bus, group) = (Arc::clone(&self.context.bus), self.context.group());
        let mut attempt = 0;
        let mut consumer = loop {
            match bus.consumer(group).await {
                Ok(consumer) => break consumer,
                Err(error) => self.context.pause(&error, attempt).await?,
            }
            attempt += 1;
        };
        self.began_at = self.context.clock.now_ms();
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

    /// Starts reading newly assigned partitions.
    async fn begin(
        &mut self,
        consumer: &mut dyn BusConsumer,
        partitions: &[Partition],
    ) -> Result<Option<RestartReason>, StopRequested> {
        // A fresh copy of the shards is at least as new as these positions.
        let rebuilt: Positions =
            partitions.iter().filter_map(|p| self.rebuilt_from.remove_entry(p)).collect();
        let mut positions = Positions::new();
        if rebuilt.len() < partitions.len() {
            let (sink, epoch) = (Arc::clone(&self.context.sink), self.context.bus.epoch());
            match self.context.retry_until_ok(|| sink.start(epoch, partitions)).await? {
                Start::From(known) => {
                    let lack = |p: &&Partition| !known.contains_key(p) && !rebuilt.contains_key(p);
                    let missing: Vec<Partition> = partitions.iter().filter(lack).copied().collect();
                    positions = known;
                    if !missing.is_empty() {
                        let reason = "the sink has no state of some partitions";
                        positions.extend(self.rebuild(reason, Some(&missing), None).await?);
                    }
                }
                Start::Committed => {}
                Start::Rebuild(reason) => return Ok(Some(RestartReason::Rebuild(reason, None))),
            }
        }
        positions.extend(rebuilt);
        let mut attempt = 0;
        let begun = loop {
            match consumer.start(partitions, &positions).await {
                Ok(begun) => break begun,
                Err(BusError::Expired { .. }) => {
                    return Ok(Some(RestartReason::Rebuild(FELL_BEHIND, None)));
                }
                Err(error @ BusError::Unavailable(_)) => {
                    self.context.pause(&error, attempt).await?;
                }
            }
            attempt += 1;
        };
        self.context.progress.begin(begun);
        self.context.shared.set_partitions(self.context.progress.partitions());
        self.context.shared.set(ConsumerState::Running);
        Ok(None)
    }

    /// Drops the state of partitions that move to a different member.
    fn end(&mut self, partitions: &[Partition]) {
        self.retries.end(partitions);
        self.context.sink.end(partitions);
        self.context.progress.end(partitions);
        self.context.shared.set_partitions(self.context.progress.partitions());
        self.parking.end(partitions);
        for partition in partitions {
            // The new owner reports its lag.
            metric::lag(self.context.group(), *partition, 0.0);
        }
    }

    /// Rebuilds the sink from the shards, all partitions or only some; returns where to read on.
    async fn rebuild(
        &mut self,
        reason: &'static str,
        only: Option<&[Partition]>,
        reply: Option<oneshot::Sender<u64>>,
    ) -> Result<Positions, StopRequested> {
        let group = self.context.group().0;
        tracing::info!(group, reason, ?only, "rebuilding from the shards");
        let (sink, bus, shared) = (
            Arc::clone(&self.context.sink),
            Arc::clone(&self.context.bus),
            Arc::clone(&self.context.shared),
        );
        shared.set(ConsumerState::Rebuilding);
        shared.caught_up.store(false, Ordering::Relaxed);
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
                Err(error) => self.context.pause(&error, attempt).await?,
            }
            attempt += 1;
        };
        let mut attempt = 0;
        loop {
            let report = |n| shared.rebuilt.store(n, Ordering::Relaxed);
            // A stop must not wait for a long copy; the half-built state is discarded.
            let result = tokio::select! {
                () = self.context.stop.cancelled() => return Err(StopRequested),
                result = sink.rebuild(RebuildRequest { from: &from, epoch: bus.epoch(), progress: &report }) => result,
            };
            match result {
                Ok(()) => break,
                Err(error) => self.context.pause(&error, attempt).await?,
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

    /// Polls once, applies, advances.
    async fn step(
        &mut self,
        consumer: &mut dyn BusConsumer,
    ) -> Result<Option<RestartReason>, StopRequested> {
        let idle = self.context.options.idle;
        let wait = self
            .retries
            .next_due()
            .map_or(idle, |due| due.saturating_duration_since(Instant::now()).min(idle));
        let polled = tokio::select! {
            biased;
            // Also when the owner was dropped: a crash of the owner ends the loop the same way.
            () = self.context.stop.cancelled() => return Err(StopRequested),
            request = self.requests.recv() => Err(request.ok_or(StopRequested)?),
            polled = consumer.poll(self.context.options.batch, wait) => Ok(polled),
        };
        let polled = match polled {
            Ok(polled) => polled,
            Err(Request::Rebuild(reply)) => {
                return Ok(Some(RestartReason::Rebuild("requested", Some(reply))));
            }
            Err(Request::Replay(request)) => {
                return replay(&mut self.context, request).await.map(|()| None);
            }
        };
        let records = match polled {
            Ok(PollResult::Records(records)) => records,
            Ok(PollResult::Assigned(partitions)) => return self.begin(consumer, &partitions).await,
            Ok(PollResult::Revoked(partitions)) => {
                self.advance(consumer).await?;
                self.end(&partitions);
                if let Err(error) = consumer.release(&partitions).await {
                    let error = ErrorChain(&error);
                    tracing::warn!(%error, "partitions were not released; the group takes them");
                }
                return Ok(None);
            }
            Ok(PollResult::Lost(partitions)) => {
                self.end(&partitions);
                return Ok(None);
            }
            Err(BusError::Expired { .. }) => {
                return Ok(Some(RestartReason::Rebuild(FELL_BEHIND, None)));
            }
            Err(error @ BusError::Unavailable(_)) => {
                self.context.pause(&error, 3).await?;
                self.context.shared.set(ConsumerState::Running);
                return Ok(None);
            }
        };
        self.context.progress.read(&records);
        let mut pending = self.decode_batch(records).await?;
        pending.extend(self.retries.take_due(Instant::now()));
        if !pending.is_empty() {
            self.apply(pending).await?;
        }
        self.recheck_held().await?;
        self.advance(consumer).await?;
        Ok(None)
    }

    /// Decodes a batch, drops records of replaced publisher epochs, keeps the newest of each key.
    async fn decode_batch(
        &mut self,
        records: Vec<BusRecord>,
    ) -> Result<Vec<PendingRecord>, StopRequested> {
        let group = self.context.group();
        let (mut dropped, mut superseded) = (0, 0);
        let mut newest: BTreeMap<Vec<u8>, PendingRecord> = BTreeMap::new();
        let mut order = Vec::with_capacity(records.len());
        for record in records {
            let progress = &mut self.context.progress;
            // The partition may have been revoked since the record was fetched.
            if !progress.has(record.partition) {
                continue;
            }
            let event = match record.kind {
                RecordKind::Heartbeat => continue,
                RecordKind::Marker => {
                    progress.accepts(record.partition, &record.cluster, record.publisher_epoch);
                    continue;
                }
                RecordKind::Event => envelope::decode_keyed(&record),
            };
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    let (class, code) = (FailureClass::Poison, error.code());
                    let reason = FailureReason::new(class, code, &error.to_string(), 1);
                    self.park(record, None, reason).await?;
                    continue;
                }
            };
            if !progress.accepts(record.partition, &record.cluster, event.publisher_epoch) {
                dropped += 1;
                continue;
            }
            let epochs = progress.publisher_epochs(record.partition);
            match newest.get_mut(&record.key) {
                Some(held) if held.event.version >= event.version => superseded += 1,
                Some(held) => {
                    superseded += 1;
                    *held = PendingRecord::new(record, Arc::new(event), epochs);
                }
                None => {
                    let key = record.key.clone();
                    order.push(key.clone());
                    newest.insert(key, PendingRecord::new(record, Arc::new(event), epochs));
                }
            }
        }
        let mut pending = Vec::with_capacity(order.len());
        for key in order {
            let Some(newer) = newest.remove(&key) else { continue };
            if self.retries.supersede(&newer) {
                pending.push(newer);
            } else {
                superseded += 1;
            }
        }
        metric::records(group, RecordOutcome::Dropped, dropped);
        metric::records(group, RecordOutcome::Superseded, superseded);
        Ok(pending)
    }

    /// Applies records, at most one per key; parks or retries those that failed.
    async fn apply(&mut self, pending: Vec<PendingRecord>) -> Result<(), StopRequested> {
        let group = self.context.group();
        let records: Arc<Vec<SinkRecord>> =
            Arc::new(pending.iter().map(PendingRecord::for_sink).collect());
        let sink = Arc::clone(&self.context.sink);
        let verdicts = self
            .context
            .retry_until_ok(|| {
                let (sink, records) = (Arc::clone(&sink), Arc::clone(&records));
                async move { sink.apply(&records).await }
            })
            .await?;
        let (mut applied, mut superseded) = (0, 0);
        for (pending, verdict) in pending.into_iter().zip(verdicts) {
            match verdict {
                RecordVerdict::Applied => applied += 1,
                RecordVerdict::Superseded => superseded += 1,
                RecordVerdict::Poison { code, message } => {
                    let attempts = pending.attempts + 1;
                    let reason = FailureReason::new(FailureClass::Poison, code, &message, attempts);
                    self.park(pending.record, Some(pending.event), reason).await?;
                }
                RecordVerdict::Failed { code, message } => {
                    self.retry_or_park(pending, code, &message).await?;
                }
            }
        }
        self.parking.record_done(applied + superseded, self.context.clock.now_ms());
        self.context.shared.applied.fetch_add(applied, Ordering::Relaxed);
        metric::records(group, RecordOutcome::Applied, applied);
        metric::records(group, RecordOutcome::Superseded, superseded);
        Ok(())
    }

    async fn retry_or_park(
        &mut self,
        pending: PendingRecord,
        code: &'static str,
        message: &str,
    ) -> Result<(), StopRequested> {
        match self.context.options.retry.delay(pending.attempts, retry_jitter(&pending)) {
            Some(delay) => {
                metric::records(self.context.group(), RecordOutcome::Retried, 1);
                let due = Instant::now() + delay;
                self.retries.put(pending, due, self.context.clock.now_ms());
                Ok(())
            }
            None => {
                let attempts = pending.attempts + 1;
                let reason = FailureReason::new(FailureClass::Exhausted, code, message, attempts);
                self.park(pending.record, Some(pending.event), reason).await
            }
        }
    }

    async fn park(
        &mut self,
        record: BusRecord,
        event: Option<Arc<tagfast_domain::TaggingsEvent>>,
        reason: FailureReason,
    ) -> Result<(), StopRequested> {
        let first_failed_at = self.retries.first_failed_at(&record.key);
        self.parking.park(&mut self.context, record, event, reason, first_failed_at).await
    }

    /// In a storm: writes what an operator allowed, or tries one held record of each partition
    /// again and applies all of a partition whose record succeeds.
    async fn recheck_held(&mut self) -> Result<(), StopRequested> {
        if self.parking.write_allowed(&mut self.context).await? {
            return Ok(());
        }
        let Some(partitions) = self.parking.partitions_to_probe() else { return Ok(()) };
        for partition in partitions {
            if self.parking.has_recovered(&mut self.context, partition).await? {
                let readmitted = self.parking.readmit(&mut self.context, partition).await?;
                self.apply(readmitted).await?;
            }
        }
        self.parking.end_storm_if_clear(&self.context);
        Ok(())
    }

    /// The position that the unfinished records of each partition hold back.
    fn lowest_unfinished(&self) -> Positions {
        self.parking.hold_back(self.retries.oldest())
    }

    /// Moves the position, commits it to the bus, measures the lag.
    async fn advance(&mut self, consumer: &mut dyn BusConsumer) -> Result<(), StopRequested> {
        let positions = self.context.progress.done(&self.lowest_unfinished());
        for (partition, ahead) in self.context.progress.ahead(&positions) {
            let paused = ahead > self.context.options.window || self.parking.holds(partition);
            consumer.set_paused(partition, paused);
        }
        let sink = Arc::clone(&self.context.sink);
        let durable = self
            .context
            .retry_until_ok(|| {
                let (sink, positions) = (Arc::clone(&sink), positions.clone());
                async move { sink.advance(&positions).await }
            })
            .await?;
        if self.context.progress.commit(&durable)
            && let Err(error) = consumer.commit(&durable).await
        {
            let error = ErrorChain(&error);
            tracing::warn!(%error, "the bus did not take the position; the sink has it");
        }
        match consumer.watermarks().await {
            Ok(watermarks) => {
                let progress = &mut self.context.progress;
                let visible = progress.visible(&durable, &watermarks);
                // Under steady writes some newer event always waits: a consumer has caught up once
                // everything committed before it started is visible.
                let past_start = visible.len() == progress.len()
                    && !visible.is_empty()
                    && visible.values().all(|at| *at > self.began_at);
                if past_start || (progress.len() > 0 && progress.has_all(&durable, &watermarks)) {
                    self.context.shared.caught_up.store(true, Ordering::Relaxed);
                }
                self.context.report(&visible);
            }
            Err(error) => {
                let error = ErrorChain(&error);
                tracing::warn!(%error, "the watermarks of the bus cannot be read");
            }
        }
        Ok(())
    }
}

/// Spreads the retries of different records. The same record at the same attempt always gets the
/// same delay, which tests rely on.
fn retry_jitter(pending: &PendingRecord) -> f64 {
    let seed = pending.record.offset ^ u64::from(pending.attempts) << 32;
    fastrand::Rng::with_seed(seed).f64()
}
