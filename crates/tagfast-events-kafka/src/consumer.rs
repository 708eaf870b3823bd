//! A member of a consumer group, as the consumer runtime sees it.
//!
//! Positions are committed once a second, before a partition is released, and at the end. Work
//! since the last commit is delivered again. When other credentials come into force the member
//! releases its partitions, leaves the group and joins it again with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use tagfast_domain::UnixMillis;
use tagfast_events::envelope::Attributes;
use tagfast_events::{
    BusConsumer, BusError, BusPosition, BusRecord, ClusterName, ConsumerGroup, Partition,
    PollResult, Positions, PublisherEpochs, RecordKind, Watermark,
};
use tagfast_resilience::ErrorChain;
use tagfast_resilience::task::TaskTracker;
use tokio::time::Instant;

use crate::client;
use crate::group_member::{self, GroupMember, MemberState};
use crate::options::{KafkaOptions, METADATA_TIMEOUT};

/// Between two commits of positions.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// How far the clusters that feed a partition are complete.
#[derive(Default)]
struct HeartbeatTracker {
    /// Newest heartbeat of each cluster, Unix ms.
    latest: BTreeMap<ClusterName, UnixMillis>,
    watermarks: Vec<Watermark>,
}

/// A member of a group.
pub(crate) struct KafkaConsumer {
    options: Arc<KafkaOptions>,
    threads: TaskTracker,
    /// Of the credentials of this member.
    generation: u64,
    state: Arc<MemberState>,
    member: Arc<GroupMember>,
    clusters: BTreeMap<Partition, BTreeSet<ClusterName>>,
    heartbeats: BTreeMap<Partition, HeartbeatTracker>,
    seen: Arc<Mutex<BTreeMap<Partition, PublisherEpochs>>>,
    /// Positions to commit.
    positions: Positions,
    committed: Positions,
    committed_at: Instant,
}

impl KafkaConsumer {
    pub(crate) fn join(
        options: Arc<KafkaOptions>,
        group: ConsumerGroup,
        seen: Arc<Mutex<BTreeMap<Partition, PublisherEpochs>>>,
        threads: TaskTracker,
    ) -> KafkaResult<Self> {
        let generation = options.security.generation();
        let (member, state) = group_member::join(&options, group, &threads)?;
        Ok(Self {
            clusters: options.clusters.clone(),
            options,
            threads,
            generation,
            state,
            member,
            heartbeats: BTreeMap::new(),
            seen,
            positions: Positions::new(),
            committed: Positions::new(),
            committed_at: Instant::now(),
        })
    }

    /// Replaces the member if other credentials are in force. The partitions of the old one come
    /// back first, as if the group had taken them.
    fn renew(&mut self) -> Result<Option<PollResult>, BusError> {
        let generation = self.options.security.generation();
        if generation == self.generation {
            return Ok(None);
        }
        let reading: Vec<Partition> = {
            let mut buffer = self.state.buffer();
            buffer.records.clear();
            while let Some(change) = buffer.changes.pop_front() {
                // What was assigned and is not read yet is assigned again.
                if !matches!(change, PollResult::Assigned(_)) {
                    return Ok(Some(change));
                }
            }
            std::mem::take(&mut buffer.reading).into_keys().map(|n| Partition(n as u16)).collect()
        };
        if !reading.is_empty() {
            // A member that brokers refuse can commit nothing: that would only take time.
            let refused = self.state.refused.load(Ordering::Acquire);
            let change = if refused { PollResult::Lost } else { PollResult::Revoked };
            return Ok(Some(change(reading)));
        }
        let group = self.state.group;
        let joined = group_member::join(&self.options, group, &self.threads);
        let (member, state) = joined.map_err(BusError::unavailable)?;
        // The polling thread drops the old client, which leaves the group.
        drop(std::mem::replace(&mut self.member, member));
        std::mem::replace(&mut self.state, state).closing.store(true, Ordering::Release);
        self.generation = generation;
        self.heartbeats.clear();
        self.positions.clear();
        self.committed.clear();
        tracing::info!(group = group.0, "the member joins again with the changed credentials");
        Ok(None)
    }

    /// Runs a call that waits for a broker on the blocking pool.
    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&GroupMember, &MemberState) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, BusError> {
        let (member, state) = (Arc::clone(&self.member), Arc::clone(&self.state));
        client::blocking(move || call(&member, &state)).await
    }

    /// Uncommitted positions of these partitions; `None`: of all.
    fn uncommitted(&mut self, only: Option<&[Partition]>) -> Positions {
        self.committed_at = Instant::now();
        if self.state.commit_failed.swap(false, Ordering::AcqRel) {
            self.committed.clear();
        }
        let selected = |p: &Partition| only.is_none_or(|only| only.contains(p));
        let uncommitted = self
            .positions
            .iter()
            .filter(|(p, at)| selected(p) && self.committed.get(p) != Some(at));
        uncommitted.map(|(p, at)| (*p, at.clone())).collect()
    }

    /// Commits and waits for the broker, at most [`METADATA_TIMEOUT`].
    async fn commit_now(&mut self, only: Option<&[Partition]>) -> Result<(), BusError> {
        let uncommitted = self.uncommitted(only);
        if uncommitted.is_empty() {
            return Ok(());
        }
        let wanted = uncommitted.clone();
        let call = self
            .call(move |member, state| member.commit(&state.offsets(&wanted)?, CommitMode::Sync));
        tokio::time::timeout(METADATA_TIMEOUT, call).await.map_err(BusError::unavailable)??;
        self.committed.extend(uncommitted);
        Ok(())
    }

    /// Tracks publisher epochs and heartbeats of the records handed to the runtime.
    fn track(&mut self, records: &[BusRecord]) {
        let mut buffer = self.state.buffer();
        for record in records {
            let Some(epochs) = buffer.reading.get_mut(&i32::from(record.partition.0)) else {
                continue;
            };
            let current = epochs.observe(&record.cluster, record.publisher_epoch);
            // The relay of a replaced primary does not know what is complete.
            if record.kind != RecordKind::Heartbeat || !current {
                continue;
            }
            let Some(at) = Attributes::of(&record.headers).complete_through else { continue };
            let tracker = self.heartbeats.entry(record.partition).or_default();
            tracker.latest.insert(Arc::clone(&record.cluster), at);
            let feeding = self.clusters.get(&record.partition);
            if feeding
                .is_none_or(|all| all.iter().all(|cluster| tracker.latest.contains_key(cluster)))
                && let Some(complete_through) = tracker.latest.values().min().copied()
            {
                tracker.watermarks.push(Watermark { next: record.offset + 1, complete_through });
            }
        }
        let mut seen = self.seen.lock();
        for (partition, publisher_epochs) in &buffer.reading {
            seen.insert(Partition(*partition as u16), publisher_epochs.clone());
        }
    }

    /// Where the group committed last; partitions without a commit are missing.
    async fn committed(&self, partitions: &[Partition]) -> Result<Positions, BusError> {
        let numbers: Vec<i32> = partitions.iter().map(|p| i32::from(p.0)).collect();
        let list = self
            .call(move |member, state| {
                client::request(|| {
                    member.committed_offsets(state.list(numbers.clone()), METADATA_TIMEOUT)
                })
            })
            .await?;
        let mut committed = Positions::new();
        for element in list.elements() {
            element.error().map_err(BusError::unavailable)?;
            if let Offset::Offset(next) = element.offset() {
                // Metadata that a different program committed is ignored: the epochs arrive with
                // the next records.
                let publisher_epochs = element.metadata().parse().unwrap_or_default();
                committed.insert(
                    Partition(element.partition() as u16),
                    BusPosition { next: next.unsigned_abs(), publisher_epochs },
                );
            }
        }
        Ok(committed)
    }
}

#[async_trait]
impl BusConsumer for KafkaConsumer {
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<PollResult, BusError> {
        let end = Instant::now() + wait;
        if let Some(change) = self.renew()? {
            return Ok(change);
        }
        loop {
            {
                let mut buffer = self.state.buffer();
                if let Some(change) = buffer.changes.pop_front() {
                    return Ok(change);
                }
                // Records fetched before an error are valid.
                if !buffer.records.is_empty() {
                    let taken = buffer.records.len().min(max);
                    let mut records: Vec<BusRecord> = buffer.records.drain(..taken).collect();
                    drop(buffer);
                    records.sort_by_key(|r| (r.partition, r.offset));
                    self.track(&records);
                    return Ok(PollResult::Records(records));
                }
                if let Some(error) = buffer.error.take() {
                    return Err(error);
                }
            }
            if tokio::time::timeout_at(end, self.state.ready.notified()).await.is_err() {
                return Ok(PollResult::Records(Vec::new()));
            }
        }
    }

    async fn start(
        &mut self,
        partitions: &[Partition],
        positions: &Positions,
    ) -> Result<Positions, BusError> {
        let unknown: Vec<Partition> =
            partitions.iter().filter(|p| !positions.contains_key(p)).copied().collect();
        let committed =
            if unknown.is_empty() { Positions::new() } else { self.committed(&unknown).await? };
        let mut begun = Positions::new();
        for partition in partitions {
            let number = i32::from(partition.0);
            let (low, high) = self
                .call(move |member, state| {
                    client::request(|| {
                        member.fetch_watermarks(&state.topic, number, METADATA_TIMEOUT)
                    })
                })
                .await
                .map(|(low, high)| (low.unsigned_abs(), high.unsigned_abs()))?;
            let position = match positions.get(partition).or_else(|| committed.get(partition)) {
                // Beyond the end: the topic was recreated.
                Some(p) if p.next < low || p.next > high => {
                    return Err(BusError::Expired {
                        group: self.state.group,
                        partition: *partition,
                    });
                }
                Some(p) => p.clone(),
                None if low > 0 => {
                    return Err(BusError::Expired {
                        group: self.state.group,
                        partition: *partition,
                    });
                }
                None => BusPosition::default(),
            };
            begun.insert(*partition, position);
        }
        {
            let mut buffer = self.state.buffer();
            for (partition, position) in &begun {
                buffer.reading.insert(i32::from(partition.0), position.publisher_epochs.clone());
            }
        }
        for (partition, position) in &begun {
            self.heartbeats.remove(partition);
            self.positions.remove(partition);
            self.committed.insert(*partition, position.clone());
        }
        let wanted = begun.clone();
        let full = self.state.buffer().full;
        self.call(move |member, state| {
            let mut list = TopicPartitionList::new();
            for (partition, position) in wanted {
                let offset = Offset::Offset(position.next.cast_signed());
                list.add_partition_offset(&state.topic, i32::from(partition.0), offset)?;
            }
            member.incremental_assign(&list)?;
            if full { member.pause(&list) } else { Ok(()) }
        })
        .await?;
        Ok(begun)
    }

    async fn release(&mut self, partitions: &[Partition]) -> Result<(), BusError> {
        let committed = self.commit_now(Some(partitions)).await;
        for partition in partitions {
            self.positions.remove(partition);
            self.heartbeats.remove(partition);
        }
        let numbers: Vec<i32> = partitions.iter().map(|p| i32::from(p.0)).collect();
        self.call(move |member, state| member.incremental_unassign(&state.list(numbers))).await?;
        committed
    }

    fn set_paused(&mut self, partition: Partition, paused: bool) {
        let number = i32::from(partition.0);
        let mut buffer = self.state.buffer();
        let changed =
            if paused { buffer.paused.insert(number) } else { buffer.paused.remove(&number) };
        let full = buffer.full;
        drop(buffer);
        if !changed {
            return;
        }
        let list = self.state.list([number]);
        let result = if paused {
            self.member.pause(&list)
        } else if full {
            Ok(())
        } else {
            self.member.resume(&list)
        };
        if let Err(error) = result {
            let (partition, error) = (partition.0, ErrorChain(&error));
            tracing::warn!(partition, paused, %error, "the partition was not paused or resumed");
        }
    }

    async fn commit(&mut self, positions: &Positions) -> Result<(), BusError> {
        for (partition, position) in positions {
            let Some(tracker) = self.heartbeats.get_mut(partition) else { continue };
            // The newest reached watermark includes all older ones.
            let reached =
                tracker.watermarks.iter().rposition(|f| f.next <= position.next).unwrap_or(0);
            tracker.watermarks.drain(..reached);
        }
        let reading: BTreeSet<i32> = self.state.buffer().reading.keys().copied().collect();
        // A sink may still report the position of an earlier assignment of the partition.
        let behind = |p: &Partition, at: &BusPosition| {
            self.committed.get(p).is_some_and(|known| at.next < known.next)
        };
        let ours =
            positions.iter().filter(|(p, at)| reading.contains(&i32::from(p.0)) && !behind(p, at));
        self.positions.extend(ours.map(|(p, at)| (*p, at.clone())));
        if self.committed_at.elapsed() >= COMMIT_INTERVAL {
            let uncommitted = self.uncommitted(None);
            if !uncommitted.is_empty() {
                let list = self.state.offsets(&uncommitted).map_err(BusError::unavailable)?;
                self.member.commit(&list, CommitMode::Async).map_err(BusError::unavailable)?;
                self.committed.extend(uncommitted);
            }
        }
        Ok(())
    }

    async fn watermarks(&self) -> Result<BTreeMap<Partition, Vec<Watermark>>, BusError> {
        Ok(self
            .heartbeats
            .iter()
            .map(|(partition, tracker)| (*partition, tracker.watermarks.clone()))
            .collect())
    }

    async fn close(&mut self) {
        if let Err(error) = self.commit_now(None).await {
            let (group, error) = (self.state.group.0, ErrorChain(&error));
            tracing::warn!(group, %error, "the last positions were not committed");
        }
        // Dropping the last reference to the client leaves the group. With an `unsubscribe` before
        // that, about every second leave does not reach the broker, and the other members wait for
        // the session timeout (librdkafka 2.12.1).
        self.state.closing.store(true, Ordering::Release);
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        // The polling thread drops the client, which leaves the group.
        self.state.closing.store(true, Ordering::Release);
    }
}
