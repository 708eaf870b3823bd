//! What becomes of records that cannot be applied: letters, and what is done when there are too
//! many of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tagfast_domain::{TaggingsEvent, UnixMillis};
use tokio::time::Instant;

use super::{Engine, StopAsked};
use crate::bus::{BusPosition, BusRecord, DeadLetter, Emits, LetterClass, Partition, Positions};
use crate::runtime::ConsumerState;
use crate::sink::{RecordVerdict, SinkRecord};
use crate::waiting::Candidate;

/// Between two attempts to apply a held record.
const PROBE: Duration = Duration::from_secs(5);

/// Why a record cannot be applied.
pub(super) struct Why {
    class: LetterClass,
    code: String,
    message: String,
    attempts: u32,
}

impl Why {
    pub(super) fn new(class: LetterClass, code: &str, message: &str, attempts: u32) -> Self {
        let message = message.chars().take(1000).collect();
        Self { class, code: code.to_owned(), message, attempts }
    }
}

/// A letter that is not written yet.
pub(super) struct Held {
    record: BusRecord,
    /// None if it cannot be decoded.
    event: Option<Arc<TaggingsEvent>>,
    emits: Emits,
    why: Why,
    first_failed_at: UnixMillis,
}

impl Held {
    fn for_sink(&self) -> Option<SinkRecord> {
        let (partition, offset) = (self.record.partition, self.record.offset);
        Some(SinkRecord { partition, offset, event: Arc::clone(self.event.as_ref()?) })
    }
}

impl Engine {
    /// Parks a record before the position passes it, or holds it while there is a storm.
    pub(super) async fn park(
        &mut self,
        record: BusRecord,
        event: Option<Arc<TaggingsEvent>>,
        why: Why,
    ) -> Result<(), StopAsked> {
        let (group, now) = (self.sink.group().0, self.clock.now_ms());
        let partition = record.partition;
        let first_failed_at = self.waiting.first_failed_at(&record.key).unwrap_or(now);
        let emits = self.progress.emits(partition);
        let held = Held { record, event, emits, why, first_failed_at };
        if !self.held.contains_key(&partition) && self.storm.may_write(now) {
            return self.write_letter(held).await;
        }
        if self.held.is_empty() {
            tracing::error!(
                group,
                code = held.why.code,
                message = held.why.message,
                "a storm of dead letters: no more are written, the partitions wait"
            );
            metrics::gauge!("tagfast_dead_letter_storm", "group" => group).set(1.0);
            self.probe_at = Instant::now() + PROBE;
            self.shared.storm.store(true, Ordering::Relaxed);
        }
        self.held.entry(partition).or_default().push(held);
        Ok(())
    }

    /// Writes a letter; tries for as long as it takes.
    async fn write_letter(&mut self, held: Held) -> Result<(), StopAsked> {
        let group = self.sink.group();
        let Held { record, why, first_failed_at, .. } = held;
        let Why { class, code, message, attempts } = why;
        tracing::error!(
            group = group.0,
            partition = record.partition.0,
            offset = record.offset,
            code,
            message,
            "parking a record"
        );
        let last_failed_at = self.clock.now_ms();
        let letter = DeadLetter {
            group,
            class,
            code,
            message,
            attempts,
            first_failed_at,
            last_failed_at,
            record,
        };
        let bus = Arc::clone(&self.bus);
        let mut attempt = 0;
        while let Err(error) = bus.park(&letter).await {
            metrics::counter!("tagfast_dead_letter_write_failures_total", "group" => group.0)
                .increment(1);
            self.pause(&error, attempt).await?;
            attempt += 1;
        }
        if attempt > 0 {
            self.shared.set(ConsumerState::Running);
        }
        self.shared.parked.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("tagfast_dead_letters_total", "group" => group.0, "class" => class.as_str()).increment(1);
        Ok(())
    }

    /// During a storm: writes what somebody allowed, or tries one held record of each partition
    /// again. When it succeeds, the records were good: all of the partition are applied.
    pub(super) async fn weather(&mut self) -> Result<(), StopAsked> {
        if self.shared.storm_allowed.swap(false, Ordering::Relaxed) {
            self.storm.allow(self.clock.now_ms());
            for held in std::mem::take(&mut self.held).into_values().flatten() {
                self.write_letter(held).await?;
            }
        } else if self.held.is_empty() || Instant::now() < self.probe_at {
            return Ok(());
        } else {
            self.probe_at = Instant::now() + PROBE;
            for partition in self.held.keys().copied().collect::<Vec<_>>() {
                if self.is_good_again(partition).await? {
                    let held = self.held.remove(&partition).unwrap_or_default();
                    self.admit_again(held).await?;
                }
            }
        }
        if self.held.is_empty() {
            let group = self.sink.group().0;
            tracing::info!(group, "the storm of dead letters is over");
            metrics::gauge!("tagfast_dead_letter_storm", "group" => group).set(0.0);
            self.shared.storm.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether the sink takes a held record of the partition now.
    async fn is_good_again(&mut self, partition: Partition) -> Result<bool, StopAsked> {
        let held = self.held.get(&partition).into_iter().flatten();
        let Some(probe) = held.filter_map(Held::for_sink).next() else { return Ok(false) };
        let (sink, records) = (Arc::clone(&self.sink), Arc::new(vec![probe]));
        // Does the sink work at all? Then it is the record.
        self.insist(|| {
            let sink = Arc::clone(&sink);
            async move { sink.canary().await }
        })
        .await?;
        let verdicts = self
            .insist(|| {
                let (sink, records) = (Arc::clone(&sink), Arc::clone(&records));
                async move { sink.apply(&records).await }
            })
            .await?;
        Ok(matches!(verdicts.first(), Some(RecordVerdict::Applied | RecordVerdict::Superseded)))
    }

    /// Applies records that were held: of each key the newest, as one batch.
    async fn admit_again(&mut self, held: Vec<Held>) -> Result<(), StopAsked> {
        let mut newest: BTreeMap<Vec<u8>, Candidate> = BTreeMap::new();
        for held in held {
            match &held.event {
                Some(event) => {
                    let candidate = Candidate::again(
                        held.record.clone(),
                        Arc::clone(event),
                        held.emits.clone(),
                    );
                    let known = newest.get(&held.record.key);
                    if known.is_none_or(|known| known.event.version < event.version) {
                        newest.insert(held.record.key.clone(), candidate);
                    }
                }
                // What cannot be decoded did not become better.
                None => self.park(held.record, None, held.why).await?,
            }
        }
        self.apply(newest.into_values().collect()).await
    }

    /// What holds the position of each partition back.
    pub(super) fn undone(&self) -> Positions {
        let mut oldest = self.waiting.oldest();
        for (partition, held) in &self.held {
            let Some(first) = held.iter().min_by_key(|held| held.record.offset) else { continue };
            let here = BusPosition { next: first.record.offset, emits: first.emits.clone() };
            if oldest.get(partition).is_none_or(|known| here.next < known.next) {
                oldest.insert(*partition, here);
            }
        }
        oldest
    }
}
