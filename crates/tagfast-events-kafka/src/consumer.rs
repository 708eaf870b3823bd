//! A member of a consumer group, as the consumer runtime sees it.
//!
//! Positions are committed once a second, before a partition is released, and at the end. Work
//! since the last commit is delivered again. The metadata of a committed offset is the publisher
//! epochs seen below it, a semicolon, and the anchor. When other credentials come into force the
//! member releases its partitions, leaves the group and joins it again with them.
//!
//! While records arrive, the member reads again, in the background, the record by which it knows
//! each partition ([`crate::feed`]): a watermark counts once that is found, and a partition in
//! which it is not found begins again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use tagfast_events::envelope::Attributes;
use tagfast_events::{
    Anchor, BusConsumer, BusError, BusPosition, BusRecord, ConsumerGroup, Continuity, Partition,
    PartitionFacts, PollResult, Positions, PublisherEpochs, RecordKind, Watermark,
};
use tagfast_resilience::task::TaskTracker;
use tagfast_resilience::{Clock, ErrorChain, SystemClock};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use crate::anchor_reader::{AnchorReader, anchor_of};
use crate::client;
use crate::feed::{Feed, Verification};
use crate::group_member::{self, GroupMember, MemberState};
use crate::options::{KafkaOptions, METADATA_TIMEOUT};
use crate::topic_health::TopicHealth;

/// Between two commits of positions.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// Between the starts of two verifications.
const VERIFY_INTERVAL: Duration = Duration::from_millis(250);

/// What all members of a process share.
#[derive(Clone)]
pub(crate) struct MemberDeps {
    /// The newest publisher epochs that any consumer of this process saw.
    pub(crate) seen: Arc<Mutex<BTreeMap<Partition, PublisherEpochs>>>,
    pub(crate) anchors: Arc<AnchorReader>,
    pub(crate) topics: Arc<TopicHealth>,
    /// The threads that poll, and the verifications.
    pub(crate) threads: TaskTracker,
}

/// A verification that runs.
struct Verifying {
    verification: Verification,
    result: oneshot::Receiver<KafkaResult<BTreeMap<Partition, Continuity>>>,
}

/// A member of a group.
pub(crate) struct KafkaConsumer {
    options: Arc<KafkaOptions>,
    /// Of the credentials of this member.
    generation: u64,
    state: Arc<MemberState>,
    member: Arc<GroupMember>,
    shared: MemberDeps,
    feed: Feed,
    verifying: Option<Verifying>,
    verified_at: Instant,
    /// Why the last verification did not end; `None` if it did.
    unverified: Option<String>,
    /// Positions to commit.
    positions: Positions,
    committed: Positions,
    committed_at: Instant,
}

impl KafkaConsumer {
    pub(crate) fn join(
        options: Arc<KafkaOptions>,
        group: ConsumerGroup,
        shared: MemberDeps,
    ) -> KafkaResult<Self> {
        let generation = options.security.generation();
        let (member, state) = group_member::join(&options, group, &shared.threads)?;
        Ok(Self {
            feed: Feed::new(options.clusters.clone()),
            options,
            generation,
            state,
            member,
            shared,
            verifying: None,
            verified_at: Instant::now(),
            unverified: None,
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
        let joined = group_member::join(&self.options, group, &self.shared.threads);
        let (member, state) = joined.map_err(BusError::unavailable)?;
        // The polling thread drops the old client, which leaves the group.
        drop(std::mem::replace(&mut self.member, member));
        std::mem::replace(&mut self.state, state).closing.store(true, Ordering::Release);
        self.generation = generation;
        self.feed = Feed::new(self.options.clusters.clone());
        (self.verifying, self.unverified) = (None, None);
        self.positions.clear();
        self.committed.clear();
        tracing::info!(group = group.0, "the member joins again with the changed credentials");
        Ok(None)
    }

    /// Takes the result of a verification, and starts the next one when something new was read.
    ///
    /// # Errors
    ///
    /// [`BusError::Replaced`] if a partition is not the one that was read.
    fn verify(&mut self) -> Result<(), BusError> {
        if let Some(verifying) = &mut self.verifying {
            match verifying.result.try_recv() {
                Err(TryRecvError::Empty) => return Ok(()),
                Ok(Ok(result)) => {
                    self.unverified = None;
                    let replaced = self.feed.verified(&verifying.verification, &result);
                    self.verifying = None;
                    if let Some(partition) = replaced {
                        return Err(BusError::Replaced { group: self.state.group, partition });
                    }
                }
                Ok(Err(error)) => {
                    self.unverified = Some(ErrorChain(&error).to_string());
                    self.verifying = None;
                }
                Err(TryRecvError::Closed) => self.verifying = None,
            }
        }
        if self.verified_at.elapsed() < VERIFY_INTERVAL {
            return Ok(());
        }
        if let Some(verification) = self.feed.verification() {
            self.verified_at = Instant::now();
            let (reader, anchors) =
                (Arc::clone(&self.shared.anchors), verification.anchors.clone());
            let (reply, result) = oneshot::channel();
            self.shared.threads.spawn_blocking(move || {
                // The member may be gone.
                let _ = reply.send(reader.verify(&anchors));
            });
            self.verifying = Some(Verifying { verification, result });
        }
        Ok(())
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

    /// Stops reading those of these partitions that are read, and drops what was fetched of them.
    async fn stop_reading(&mut self, partitions: &[Partition]) -> Result<(), BusError> {
        let read: Vec<i32> = {
            let mut buffer = self.state.buffer();
            buffer.records.retain(|record| !partitions.contains(&record.partition));
            buffer.error = None;
            let numbers = partitions.iter().map(|p| i32::from(p.0));
            numbers.filter(|number| buffer.reading.remove(number).is_some()).collect()
        };
        if read.is_empty() {
            return Ok(());
        }
        for number in &read {
            let partition = Partition(*number as u16);
            self.feed.end(partition);
            self.positions.remove(&partition);
            self.state.buffer().paused.remove(number);
        }
        self.call(move |member, state| member.incremental_unassign(&state.list(read))).await
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

    /// Tracks publisher epochs, heartbeats and the newest record of each partition.
    fn track(&mut self, records: &[BusRecord]) {
        let mut buffer = self.state.buffer();
        let now = Instant::now();
        // A clock that is ahead proves nothing about the time to come.
        let wall_now = SystemClock.now_ms();
        for (n, record) in records.iter().enumerate() {
            let partition = record.partition;
            let Some(epochs) = buffer.reading.get_mut(&i32::from(partition.0)) else {
                continue;
            };
            if records.get(n + 1).is_none_or(|next| next.partition != partition) {
                self.feed.read(partition, anchor_of(record));
            }
            let current = epochs.observe(&record.cluster, record.publisher_epoch);
            // The relay of a replaced primary does not know what is complete.
            if record.kind != RecordKind::Heartbeat || !current {
                continue;
            }
            let Some(at) = Attributes::of(&record.headers).complete_through else { continue };
            let watermark = (record.offset + 1, at.min(wall_now));
            self.feed.heartbeat(partition, &record.cluster, watermark, now);
        }
        let mut seen = self.shared.seen.lock();
        for (partition, publisher_epochs) in &buffer.reading {
            seen.insert(Partition(*partition as u16), publisher_epochs.clone());
        }
    }

    /// The first retained offset of a partition, and the offset of its next record.
    async fn range(&self, partition: Partition) -> Result<(u64, u64), BusError> {
        let number = i32::from(partition.0);
        let range = self.call(move |member, state| {
            client::request(|| member.fetch_watermarks(&state.topic, number, METADATA_TIMEOUT))
        });
        range.await.map(|(low, high)| (low.unsigned_abs(), high.unsigned_abs()))
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
                let position = committed_position(next.unsigned_abs(), element.metadata());
                committed.insert(Partition(element.partition() as u16), position);
            }
        }
        Ok(committed)
    }
}

/// The position that a committed offset and its metadata say. Metadata that a different program
/// committed is ignored: the epochs arrive with the next records, and without an anchor nothing is
/// proven.
fn committed_position(next: u64, metadata: &str) -> BusPosition {
    let (publisher_epochs, anchor) = metadata.split_once(';').unwrap_or((metadata, ""));
    BusPosition {
        next,
        publisher_epochs: publisher_epochs.parse().unwrap_or_default(),
        anchor: anchor.parse().ok(),
    }
}

#[async_trait]
impl BusConsumer for KafkaConsumer {
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<PollResult, BusError> {
        let end = Instant::now() + wait;
        let mut renewed = self.renew()?;
        loop {
            let change = renewed.take().or_else(|| self.state.buffer().changes.pop_front());
            if let Some(change) = change {
                if let PollResult::Lost(partitions) = &change {
                    partitions.iter().for_each(|partition| self.feed.end(*partition));
                }
                return Ok(change);
            }
            self.verify()?;
            if let Some(problem) = self.shared.topics.unusable() {
                // Nothing is read from a topic with a different layout.
                tokio::time::sleep_until(end).await;
                return Err(BusError::unavailable(problem));
            }
            {
                let mut buffer = self.state.buffer();
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

    async fn inspect(
        &mut self,
        partitions: &[Partition],
        positions: &Positions,
    ) -> Result<BTreeMap<Partition, PartitionFacts>, BusError> {
        if let Some(problem) = self.shared.topics.unusable() {
            return Err(BusError::unavailable(problem));
        }
        let mut committed = self.committed(partitions).await?;
        let anchors = partitions.iter().filter_map(|partition| {
            let position = positions.get(partition).or_else(|| committed.get(partition))?;
            Some((*partition, position.anchor?))
        });
        let (reader, anchors) = (Arc::clone(&self.shared.anchors), anchors.collect());
        let continuity = client::blocking(move || reader.verify(&anchors)).await?;
        let mut facts = BTreeMap::new();
        for partition in partitions {
            // After the anchors: a topic that is replaced in between has a shorter range, or is
            // found out by the next verification.
            let (first, end) = self.range(*partition).await?;
            let continuity = continuity.get(partition).copied().unwrap_or(Continuity::Unknown);
            let committed = committed.remove(partition);
            facts.insert(*partition, PartitionFacts { first, end, committed, continuity });
        }
        Ok(facts)
    }

    async fn start(
        &mut self,
        partitions: &[Partition],
        positions: &Positions,
    ) -> Result<Positions, BusError> {
        self.stop_reading(partitions).await?;
        let unknown: Vec<Partition> =
            partitions.iter().filter(|p| !positions.contains_key(p)).copied().collect();
        let committed =
            if unknown.is_empty() { Positions::new() } else { self.committed(&unknown).await? };
        let mut begun = Positions::new();
        for partition in partitions {
            let (low, high) = self.range(*partition).await?;
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
        self.feed.begin(&begun, Instant::now());
        for (partition, position) in &begun {
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
            self.feed.end(*partition);
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
        self.feed.reached(positions);
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
        Ok(self.feed.watermarks())
    }

    fn anchors(&self) -> BTreeMap<Partition, Anchor> {
        self.feed.anchors()
    }

    fn feed_problem(&self) -> Option<String> {
        if let Some(problem) = self.shared.topics.problem() {
            return Some(problem);
        }
        if let Some(error) = &self.unverified {
            return Some(format!("the topic cannot be verified: {error}"));
        }
        // What waits to be read may hold heartbeats.
        let idle = self.state.buffer().records.is_empty();
        if idle { self.feed.silence(Instant::now()) } else { None }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_its_commit() {
        let anchor = Anchor { offset: 4710, fingerprint: 0x00c0_ffee };
        let publisher_epochs: PublisherEpochs = "c0=17,c1=18".parse().unwrap();
        let position = BusPosition {
            next: 4711,
            publisher_epochs: publisher_epochs.clone(),
            anchor: Some(anchor),
        };
        for position in [position.clone(), BusPosition { anchor: None, ..position }] {
            let metadata = group_member::metadata(&position);
            assert_eq!(committed_position(4711, &metadata), position);
        }
        // Of an earlier release, and of a different program.
        let earlier = committed_position(1, "c0=17,c1=18");
        assert_eq!((earlier.publisher_epochs, earlier.anchor), (publisher_epochs, None));
        assert_eq!(committed_position(1, "anything; else").anchor, None);
    }
}
