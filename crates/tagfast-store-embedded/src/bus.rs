//! The outbox as a durable bus: partition = file, offset = position of the event row.
//!
//! One writer per file assigns positions in commit order, so `pos >= next` is complete. A consumer
//! is woken after a COMMIT and reads again before it waits, so no wake-up is lost; a safety poll
//! covers the rest.
//!
//! How it fails: [`BusError::Expired`] when retention deleted events that the group has not read,
//! [`BusError::Unavailable`] when a file cannot be read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, params};
use tagfast_domain::{Epoch, EpochId, EpochOrdinal, Version};
use tagfast_events::{
    Bus, BusConsumer, BusError, BusPosition, BusRecord, ClusterName, ConsumerGroup, Continuity,
    DeadLetter, Partition, PartitionFacts, PollResult, Positions, PublisherEpochs, RecordKind,
    Watermark,
};
use tagfast_resilience::{Clock, task};
use tokio::sync::watch;

use crate::dead_letters;
use crate::file::StoreFile;

/// The bus of an [`crate::EmbeddedStore`].
pub struct EmbeddedBus {
    files: Arc<Vec<StoreFile>>,
    epoch: Epoch,
    clock: Arc<dyn Clock>,
    committed: watch::Receiver<u64>,
}

impl EmbeddedBus {
    pub(crate) fn new(
        files: Arc<Vec<StoreFile>>,
        epoch: Epoch,
        clock: Arc<dyn Clock>,
        committed: watch::Receiver<u64>,
    ) -> Self {
        Self { files, epoch, clock, committed }
    }
}

fn partition(index: usize) -> Partition {
    Partition(index as u16)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, BusError> {
    task::blocking(work).await.map_err(BusError::unavailable)?.map_err(BusError::unavailable)
}

#[async_trait]
impl Bus for EmbeddedBus {
    fn partitions(&self) -> Vec<Partition> {
        (0..self.files.len()).map(partition).collect()
    }

    fn epoch(&self) -> EpochId {
        self.epoch.id
    }

    async fn consumer(&self, group: ConsumerGroup) -> Result<Box<dyn BusConsumer>, BusError> {
        Ok(Box::new(EmbeddedConsumer {
            group,
            files: Arc::clone(&self.files),
            clock: Arc::clone(&self.clock),
            committed: self.committed.clone(),
            assigned: false,
            next: vec![None; self.files.len()],
            first: 0,
            paused: BTreeSet::new(),
        }))
    }

    async fn ends(&self) -> Result<Positions, BusError> {
        Ok(self
            .files
            .iter()
            .enumerate()
            .map(|(index, file)| {
                let next = file.state.newest.load(Ordering::Acquire) + 1;
                let publisher_epochs = PublisherEpochs::embedded(self.epoch.ordinal.0);
                (partition(index), BusPosition { next, publisher_epochs, anchor: None })
            })
            .collect())
    }

    async fn park(&self, dead_letter: &DeadLetter) -> Result<(), BusError> {
        let file =
            self.files.get(usize::from(dead_letter.record.partition.0)).ok_or_else(|| {
                BusError::unavailable(format!("no partition {}", dead_letter.record.partition.0))
            })?;
        let dead_letter = dead_letter.clone();
        let parked = file
            .state
            .queue
            .run_on_writer(move |conn| dead_letters::insert(conn, &dead_letter))
            .await;
        parked.map_err(BusError::unavailable)
    }
}

struct EmbeddedConsumer {
    group: ConsumerGroup,
    files: Arc<Vec<StoreFile>>,
    clock: Arc<dyn Clock>,
    committed: watch::Receiver<u64>,
    /// Whether the assignment was returned: the only member has all partitions.
    assigned: bool,
    /// The next position per file; `None`: not started.
    next: Vec<Option<u64>>,
    /// The partition read first in the next poll, so that a busy one does not starve the others.
    first: usize,
    paused: BTreeSet<Partition>,
}

/// Polls at this interval even without a wake-up.
const SAFETY_POLL_INTERVAL: Duration = Duration::from_secs(1);

impl EmbeddedConsumer {
    /// The files that can be read without waiting, with their next positions.
    fn readable(&self) -> Vec<(usize, u64)> {
        (0..self.files.len())
            .map(|n| (self.first + n) % self.files.len())
            .filter(|index| !self.paused.contains(&partition(*index)))
            .filter_map(|index| Some((index, self.next[index]?)))
            .filter(|(index, next)| {
                self.files[*index].state.newest.load(Ordering::Acquire) >= (*next).max(1)
            })
            .collect()
    }
}

impl EmbeddedConsumer {
    /// The group's committed position in a file; `None`: it has none.
    async fn committed_position(&self, index: usize) -> Result<Option<BusPosition>, BusError> {
        if let Some(position) = self.files[index].state.queue.offset(self.group) {
            return Ok(Some(position));
        }
        let (files, group) = (Arc::clone(&self.files), self.group.0);
        blocking(move || {
            files[index].readers.walk(|conn| {
                let row = |row: &rusqlite::Row<'_>| {
                    let publisher_epochs =
                        PublisherEpochs::embedded(row.get::<_, i64>(1)?.unsigned_abs());
                    let next = row.get::<_, i64>(0)?.unsigned_abs();
                    Ok(BusPosition { next, publisher_epochs, anchor: None })
                };
                conn.prepare_cached("SELECT pos, emit FROM bus_offset WHERE grp = ?1")?
                    .query_row([group], row)
                    .optional()
            })
        })
        .await
    }
}

fn read_events(
    conn: &Connection,
    partition: Partition,
    cluster: &ClusterName,
    next: u64,
    max: usize,
) -> rusqlite::Result<Vec<BusRecord>> {
    let mut select = conn.prepare_cached(
        "SELECT pos, key, ver, at, emit, payload FROM bus_event WHERE pos >= ?1 ORDER BY pos LIMIT ?2",
    )?;
    select
        .query_map(params![next as i64, max as i64], |row| {
            let version = Version::from_packed(row.get::<_, i64>(2)? as u64).map_err(|e| {
                rusqlite::Error::FromSqlConversionFailure(
                    2,
                    rusqlite::types::Type::Integer,
                    Box::new(e),
                )
            })?;
            Ok(BusRecord {
                kind: RecordKind::Event,
                cluster: Arc::clone(cluster),
                headers: Vec::new(),
                partition,
                offset: row.get::<_, i64>(0)?.unsigned_abs(),
                key: row.get(1)?,
                version,
                at: row.get(3)?,
                publisher_epoch: EpochOrdinal(row.get::<_, i64>(4)?.unsigned_abs()),
                payload: row.get(5)?,
            })
        })?
        .collect()
}

#[async_trait]
impl BusConsumer for EmbeddedConsumer {
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<PollResult, BusError> {
        if !std::mem::replace(&mut self.assigned, true) {
            return Ok(PollResult::Assigned((0..self.files.len()).map(partition).collect()));
        }
        let end = tokio::time::Instant::now() + wait;
        loop {
            // Marked as seen before reading, so that a commit after the read ends the wait.
            self.committed.borrow_and_update();
            let readable = self.readable();
            if !readable.is_empty() {
                let files = Arc::clone(&self.files);
                let records = blocking(move || {
                    let mut records = Vec::new();
                    let cluster = ClusterName::from("");
                    for (index, next) in readable {
                        let room = max.saturating_sub(records.len());
                        if room == 0 {
                            break;
                        }
                        let read = files[index]
                            .readers
                            .walk(|c| read_events(c, partition(index), &cluster, next, room))?;
                        // Positions have no gaps: retention deleted a missing one.
                        if read.first().is_none_or(|r| r.offset != next.max(1)) {
                            return Ok(Err(partition(index)));
                        }
                        records.extend(read);
                    }
                    Ok(Ok(records))
                })
                .await?
                .map_err(|partition| BusError::Expired { group: self.group, partition })?;
                // Advanced only now, so that a call cancelled before loses no record.
                for record in &records {
                    self.next[usize::from(record.partition.0)] = Some(record.offset + 1);
                }
                self.first = (self.first + 1) % self.files.len();
                if !records.is_empty() {
                    return Ok(PollResult::Records(records));
                }
            }
            let now = tokio::time::Instant::now();
            if now >= end {
                return Ok(PollResult::Records(Vec::new()));
            }
            let until = end.min(now + SAFETY_POLL_INTERVAL);
            if let Ok(Err(_)) = tokio::time::timeout_at(until, self.committed.changed()).await {
                // The store is closed; wait as on an idle bus.
                tokio::time::sleep_until(until).await;
            }
        }
    }

    /// One epoch is one history of these files: a sink that remembers a different one rebuilds, so
    /// a position that gets here is of this history.
    async fn inspect(
        &mut self,
        partitions: &[Partition],
        _: &Positions,
    ) -> Result<BTreeMap<Partition, PartitionFacts>, BusError> {
        let mut facts = BTreeMap::new();
        for partition in partitions {
            let index = usize::from(partition.0);
            let Some(file) = self.files.get(index) else { continue };
            let retained = file.state.retained_from.load(Ordering::Acquire);
            // Positions start at 1, so 0 and 1 are the same.
            let first = if retained <= 1 { 0 } else { retained };
            let end = file.state.newest.load(Ordering::Acquire) + 1;
            let committed = self.committed_position(index).await?;
            let continuity = Continuity::Proven;
            facts.insert(*partition, PartitionFacts { first, end, committed, continuity });
        }
        Ok(facts)
    }

    async fn start(
        &mut self,
        partitions: &[Partition],
        positions: &Positions,
    ) -> Result<Positions, BusError> {
        let mut begun = Positions::new();
        for partition in partitions {
            let index = usize::from(partition.0);
            let file = self
                .files
                .get(index)
                .ok_or_else(|| BusError::unavailable(format!("no partition {index}")))?;
            let retained = file.state.retained_from.load(Ordering::Acquire);
            let position = match positions.get(partition) {
                // Positions start at 1, so 0 and 1 are the same.
                Some(p) if p.next.max(1) < retained => {
                    return Err(BusError::Expired { group: self.group, partition: *partition });
                }
                Some(p) => p.clone(),
                None => {
                    self.committed_position(index).await?.filter(|p| p.next >= retained).unwrap_or(
                        BusPosition {
                            next: retained,
                            publisher_epochs: PublisherEpochs::default(),
                            anchor: None,
                        },
                    )
                }
            };
            // Registers the group: from now on retention keeps the events it has not read.
            file.state.queue.set_offset(self.group, position.clone());
            self.next[index] = Some(position.next);
            begun.insert(*partition, position);
        }
        Ok(begun)
    }

    async fn release(&mut self, partitions: &[Partition]) -> Result<(), BusError> {
        for partition in partitions {
            if let Some(next) = self.next.get_mut(usize::from(partition.0)) {
                *next = None;
            }
        }
        Ok(())
    }

    fn set_paused(&mut self, partition: Partition, paused: bool) {
        if paused {
            self.paused.insert(partition);
        } else {
            self.paused.remove(&partition);
        }
    }

    async fn commit(&mut self, positions: &Positions) -> Result<(), BusError> {
        for (partition, position) in positions {
            if let Some(file) = self.files.get(usize::from(partition.0)) {
                file.state.queue.set_offset(self.group, position.clone());
            }
        }
        Ok(())
    }

    async fn close(&mut self) {}

    async fn watermarks(&self) -> Result<BTreeMap<Partition, Vec<Watermark>>, BusError> {
        let watermarks = self.files.iter().enumerate().map(|(index, file)| {
            // The time is read first: every write acknowledged before it is below the position read
            // after it.
            let complete_through = self.clock.now_ms();
            let next = file.state.newest.load(Ordering::Acquire) + 1;
            (partition(index), vec![Watermark { next, complete_through }])
        });
        Ok(watermarks.collect())
    }
}
