//! Parks records that cannot be applied as dead letters, or holds them back in a storm.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tagfast_domain::{TaggingsEvent, UnixMillis};
use tokio::time::Instant;

use super::context::Context;
use super::parking_limiter::ParkingLimiter;
use super::retry_queue::PendingRecord;
use super::state::{ConsumerState, StopRequested};
use crate::bus::{
    BusPosition, BusRecord, DeadLetter, FailureClass, Partition, Positions, PublisherEpochs,
};
use crate::metric;
use crate::sink::{RecordVerdict, SinkRecord};

/// Between two attempts to apply a held record.
const HELD_PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Longest message of a dead letter.
const MESSAGE_CHARS_MAX: usize = 1000;

/// Why a record cannot be applied.
pub(super) struct FailureReason {
    class: FailureClass,
    code: String,
    message: String,
    attempts: u32,
}

impl FailureReason {
    pub(super) fn new(class: FailureClass, code: &str, message: &str, attempts: u32) -> Self {
        let message = message.chars().take(MESSAGE_CHARS_MAX).collect();
        Self { class, code: code.to_owned(), message, attempts }
    }
}

/// A dead letter that is held back.
struct UnwrittenDeadLetter {
    record: BusRecord,
    /// `None` if the record cannot be decoded.
    event: Option<Arc<TaggingsEvent>>,
    publisher_epochs: PublisherEpochs,
    reason: FailureReason,
    first_failed_at: UnixMillis,
}

impl UnwrittenDeadLetter {
    fn for_sink(&self) -> Option<SinkRecord> {
        let (partition, offset) = (self.record.partition, self.record.offset);
        Some(SinkRecord { partition, offset, event: Arc::clone(self.event.as_ref()?) })
    }
}

/// The dead letters of one consumer that are not written yet.
pub(super) struct Parking {
    limiter: ParkingLimiter,
    /// Held back by a storm; their partitions are paused.
    held: BTreeMap<Partition, Vec<UnwrittenDeadLetter>>,
    /// When a held record is tried again.
    probe_at: Instant,
}

impl Default for Parking {
    fn default() -> Self {
        let (limiter, held) = (ParkingLimiter::default(), BTreeMap::new());
        Self { limiter, held, probe_at: Instant::now() }
    }
}

impl Parking {
    /// Drops everything held: it is read again.
    pub(super) fn clear(&mut self) {
        self.held.clear();
    }

    /// Drops the held records of partitions that move to a different member.
    pub(super) fn end(&mut self, partitions: &[Partition]) {
        self.held.retain(|partition, _| !partitions.contains(partition));
    }

    /// Whether records of the partition are held back.
    pub(super) fn holds(&self, partition: Partition) -> bool {
        self.held.contains_key(&partition)
    }

    /// Counts records that were applied or superseded.
    pub(super) fn record_done(&mut self, records: u64, now: UnixMillis) {
        self.limiter.record_done(records, now);
    }

    /// Parks a record before the position passes it, or holds it back during a storm.
    /// `first_failed_at` is `None` if this is the first failure.
    pub(super) async fn park(
        &mut self,
        context: &mut Context,
        record: BusRecord,
        event: Option<Arc<TaggingsEvent>>,
        reason: FailureReason,
        first_failed_at: Option<UnixMillis>,
    ) -> Result<(), StopRequested> {
        let (group, now) = (context.group(), context.clock.now_ms());
        let partition = record.partition;
        let first_failed_at = first_failed_at.unwrap_or(now);
        let publisher_epochs = context.progress.publisher_epochs(partition);
        let unwritten =
            UnwrittenDeadLetter { record, event, publisher_epochs, reason, first_failed_at };
        if !self.holds(partition) && self.limiter.try_park(now) {
            return write(context, unwritten).await;
        }
        if self.held.is_empty() {
            tracing::error!(
                group = group.0,
                code = unwritten.reason.code,
                message = unwritten.reason.message,
                "dead-letter storm: no more records are parked, their partitions wait"
            );
            metric::storm(group, true);
            self.probe_at = Instant::now() + HELD_PROBE_INTERVAL;
            context.shared.storm.store(true, Ordering::Relaxed);
        }
        self.held.entry(partition).or_default().push(unwritten);
        Ok(())
    }

    /// Writes everything held if an operator has allowed it; returns whether one has.
    pub(super) async fn write_allowed(
        &mut self,
        context: &mut Context,
    ) -> Result<bool, StopRequested> {
        if !context.shared.storm_allowed.swap(false, Ordering::Relaxed) {
            return Ok(false);
        }
        self.limiter.allow(context.clock.now_ms());
        for unwritten in std::mem::take(&mut self.held).into_values().flatten() {
            write(context, unwritten).await?;
        }
        self.end_storm_if_clear(context);
        Ok(true)
    }

    /// The partitions whose held records must be tried again now; `None` if none is due.
    pub(super) fn partitions_to_probe(&mut self) -> Option<Vec<Partition>> {
        if self.held.is_empty() || Instant::now() < self.probe_at {
            return None;
        }
        self.probe_at = Instant::now() + HELD_PROBE_INTERVAL;
        Some(self.held.keys().copied().collect())
    }

    /// Whether the sink applies one held record of the partition now: then the records were good.
    pub(super) async fn has_recovered(
        &self,
        context: &mut Context,
        partition: Partition,
    ) -> Result<bool, StopRequested> {
        let mut held = self.held.get(&partition).into_iter().flatten();
        let Some(probe) = held.find_map(UnwrittenDeadLetter::for_sink) else { return Ok(false) };
        let (sink, records) = (Arc::clone(&context.sink), Arc::new(vec![probe]));
        // If the canary succeeds and the record fails, the record is to blame.
        context
            .retry_until_ok(|| {
                let sink = Arc::clone(&sink);
                async move { sink.canary().await }
            })
            .await?;
        let verdicts = context
            .retry_until_ok(|| {
                let (sink, records) = (Arc::clone(&sink), Arc::clone(&records));
                async move { sink.apply(&records).await }
            })
            .await?;
        Ok(matches!(verdicts.first(), Some(RecordVerdict::Applied | RecordVerdict::Superseded)))
    }

    /// Removes the held records of a partition and returns the newest of each key, to be applied
    /// as one batch. Records that cannot be decoded are parked again.
    pub(super) async fn readmit(
        &mut self,
        context: &mut Context,
        partition: Partition,
    ) -> Result<Vec<PendingRecord>, StopRequested> {
        let mut newest: BTreeMap<Vec<u8>, PendingRecord> = BTreeMap::new();
        for held in self.held.remove(&partition).unwrap_or_default() {
            let UnwrittenDeadLetter { record, event, publisher_epochs, reason, first_failed_at } =
                held;
            let Some(event) = event else {
                self.park(context, record, None, reason, Some(first_failed_at)).await?;
                continue;
            };
            let known = newest.get(&record.key);
            if known.is_none_or(|known| known.event.version < event.version) {
                let key = record.key.clone();
                newest.insert(key, PendingRecord::new(record, event, publisher_epochs));
            }
        }
        Ok(newest.into_values().collect())
    }

    /// Ends the storm once nothing is held.
    pub(super) fn end_storm_if_clear(&self, context: &Context) {
        if self.held.is_empty() {
            let group = context.group();
            tracing::info!(group = group.0, "the dead-letter storm is over");
            metric::storm(group, false);
            context.shared.storm.store(false, Ordering::Relaxed);
        }
    }

    /// Lowers positions to the first held record of each partition.
    pub(super) fn hold_back(&self, mut positions: Positions) -> Positions {
        for (partition, held) in &self.held {
            let Some(first) = held.iter().min_by_key(|held| held.record.offset) else { continue };
            let publisher_epochs = first.publisher_epochs.clone();
            let here = BusPosition { next: first.record.offset, publisher_epochs, anchor: None };
            if positions.get(partition).is_none_or(|known| here.next < known.next) {
                positions.insert(*partition, here);
            }
        }
        positions
    }
}

/// Writes a dead letter; repeats until the bus has it or the owner stops the consumer.
async fn write(context: &mut Context, unwritten: UnwrittenDeadLetter) -> Result<(), StopRequested> {
    let group = context.group();
    let UnwrittenDeadLetter { record, reason, first_failed_at, .. } = unwritten;
    let FailureReason { class, code, message, attempts } = reason;
    tracing::error!(
        group = group.0,
        partition = record.partition.0,
        offset = record.offset,
        code,
        message,
        "parking a record"
    );
    let last_failed_at = context.clock.now_ms();
    let dead_letter = DeadLetter {
        group,
        class,
        code,
        message,
        attempts,
        first_failed_at,
        last_failed_at,
        record,
    };
    let bus = Arc::clone(&context.bus);
    let mut attempt = 0;
    while let Err(error) = bus.park(&dead_letter).await {
        metric::dead_letter_write_failed(group);
        context.pause(&error, attempt).await?;
        attempt += 1;
    }
    if attempt > 0 {
        context.shared.set(ConsumerState::Running);
    }
    context.shared.parked.fetch_add(1, Ordering::Relaxed);
    metric::parked(group, class);
    Ok(())
}
