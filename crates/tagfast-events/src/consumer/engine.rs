//! The loop of one consumer: polls, decodes, lets the sink apply, moves the position.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tagfast_domain::UnixMillis;
use tagfast_resilience::ErrorChain;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::begin::{Claim, Plan};
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

/// Attempts to begin after which the delay no longer grows.
const BEGIN_BACKOFF_STEPS: u32 = 3;

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
    /// Where a rebuilt sink reads on, for partitions that have not begun since.
    rebuilt_from: Positions,
    /// Assigned partitions that have not begun.
    unbegun: Vec<Partition>,
    /// Attempts to begin them that failed.
    begin_attempt: u32,
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
            unbegun: Vec::new(),
            begin_attempt: 0,
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
        // The sink was told of these, too.
        self.context.sink.end(&self.unbegun);
        self.context.progress = Progress::default();
        self.context.shared.set_partitions(Vec::new());
        self.parking.clear();
        self.unbegun.clear();
        self.begin_attempt = 0;
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

    /// Begins the partitions that wait for it: newly assigned ones, those that a different member
    /// had, those that were rebuilt, those that the bus has replaced. Every start, rebuild and
    /// hand-over of a partition goes through here: the sink is told, [`Plan`] decides, and what
    /// must be rebuilt is. While the bus does not answer they go on waiting.
    async fn begin(
        &mut self,
        consumer: &mut dyn BusConsumer,
    ) -> Result<Option<RestartReason>, StopRequested> {
        let partitions = self.unbegun.clone();
        // A fresh copy of the shards is at least as new as these positions.
        let mut rebuilt: Positions = partitions
            .iter()
            .filter_map(|p| Some((*p, self.rebuilt_from.get(p)?.clone())))
            .collect();
        let begun = loop {
            let (sink, epoch) = (Arc::clone(&self.context.sink), self.context.bus.epoch());
            let start = self.context.retry_until_ok(|| sink.start(epoch, &partitions)).await?;
            let claims = match claims(start, &partitions, &rebuilt) {
                Ok(claims) => claims,
                Err(reason) => return Ok(Some(RestartReason::Rebuild(reason, None))),
            };
            let plan = match self.plan(consumer, &partitions, &claims).await {
                Ok(plan) => plan,
                Err(error) => return self.begin_later(&error).await.map(|()| None),
            };
            if let Some(reason) = plan.reason {
                if !self.context.sink.rebuilds_in_parts() {
                    return Ok(Some(RestartReason::Rebuild(reason, None)));
                }
                let from = self.rebuild(reason, Some(&plan.rebuild), None).await?;
                rebuilt.extend(from.clone());
                self.rebuilt_from.extend(from);
                continue;
            }
            match consumer.start(&partitions, &plan.from).await {
                Ok(begun) => break begun,
                // It changed since it was inspected, or the bus does not answer.
                Err(error) => return self.begin_later(&error).await.map(|()| None),
            }
        };
        self.rebuilt_from.retain(|partition, _| !partitions.contains(partition));
        self.unbegun.clear();
        self.begin_attempt = 0;
        self.context.progress.begin(begun);
        self.context.shared.set_partitions(self.context.progress.partitions());
        self.context.shared.set(ConsumerState::Running);
        Ok(None)
    }

    /// Waits before the next attempt to begin. The assignment may change until then, and partitions
    /// that have begun go on.
    async fn begin_later(&mut self, error: &BusError) -> Result<(), StopRequested> {
        self.context.pause(error, self.begin_attempt.min(BEGIN_BACKOFF_STEPS)).await?;
        self.begin_attempt += 1;
        Ok(())
    }

    /// What the bus says about the claims, and what follows.
    async fn plan(
        &self,
        consumer: &mut dyn BusConsumer,
        partitions: &[Partition],
        claims: &BTreeMap<Partition, Claim>,
    ) -> Result<Plan, BusError> {
        let claimed = claims.iter().filter_map(|(p, claim)| Some((*p, claim.position()?.clone())));
        let facts = consumer.inspect(partitions, &claimed.collect()).await?;
        let plan = Plan::of(claims, &facts);
        if plan.waiting.is_empty() {
            return Ok(plan);
        }
        let waiting = &plan.waiting;
        Err(BusError::unavailable(format!("the bus does not say what {waiting:?} hold")))
    }

    /// Lets every partition begin again: the bus says that one of them is not what was read until
    /// now.
    async fn begin_again(&mut self, error: &BusError) -> Result<(), StopRequested> {
        let partitions = self.context.progress.partitions();
        if partitions.is_empty() {
            return self.begin_later(error).await;
        }
        let group = self.context.group().0;
        tracing::warn!(group, error = %ErrorChain(error), "the partitions begin again");
        self.end(&partitions);
        self.unbegun.extend(partitions);
        Ok(())
    }

    /// Drops the state of partitions that move to a different member.
    fn end(&mut self, partitions: &[Partition]) {
        self.unbegun.retain(|partition| !partitions.contains(partition));
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
        shared.set_problem(Some(format!("rebuilding from the shards: {reason}")));
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
        if !self.unbegun.is_empty()
            && let Some(restart) = self.begin(consumer).await?
        {
            return Ok(Some(restart));
        }
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
            Ok(PollResult::Assigned(partitions)) => {
                self.unbegun.extend(partitions);
                return self.begin(consumer).await;
            }
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
            Err(error @ (BusError::Expired { .. } | BusError::Replaced { .. })) => {
                return self.begin_again(&error).await.map(|()| None);
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
        self.context.progress.set_anchors(consumer.anchors());
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
                if self.unbegun.is_empty() {
                    self.context.shared.set_problem(consumer.feed_problem());
                }
            }
            Err(error) => {
                let error = ErrorChain(&error);
                tracing::warn!(%error, "the watermarks of the bus cannot be read");
            }
        }
        Ok(())
    }
}

/// Who says how far the sink has applied each partition.
///
/// # Errors
///
/// Why the sink must be rebuilt as a whole.
fn claims(
    start: Start,
    partitions: &[Partition],
    rebuilt: &Positions,
) -> Result<BTreeMap<Partition, Claim>, &'static str> {
    let known = match start {
        Start::From(known) => Some(known),
        Start::Committed => None,
        Start::Rebuild(reason) => return Err(reason),
    };
    let claim = |partition: &Partition| {
        let claim = match (rebuilt.get(partition), &known) {
            (Some(position), _) => Claim::Rebuilt(position.clone()),
            (None, Some(known)) => Claim::Sink(known.get(partition).cloned()),
            (None, None) => Claim::Committed,
        };
        (*partition, claim)
    };
    Ok(partitions.iter().map(claim).collect())
}

/// Spreads the retries of different records. The same record at the same attempt always gets the
/// same delay, which tests rely on.
fn retry_jitter(pending: &PendingRecord) -> f64 {
    let seed = pending.record.offset ^ u64::from(pending.attempts) << 32;
    fastrand::Rng::with_seed(seed).f64()
}
