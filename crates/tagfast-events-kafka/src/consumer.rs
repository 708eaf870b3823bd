//! A member of a consumer group.
//!
//! A thread of its own polls the client all the time, as Kafka wants it, and puts what comes into
//! an inbox; the consumer runtime takes it from there. A full inbox pauses the partitions, not the
//! polling. Partitions that are taken away are let go only after the runtime has committed what it
//! did of them, unless they have gone already.
//!
//! How it fails: errors of the client are told to the next poll; the client itself goes on trying.
//! Positions are committed once a second, before a partition is let go, and at the end; what was
//! done since the last commit is delivered again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tagfast_domain::UnixMillis;
use tagfast_events::envelope::Attributes;
use tagfast_events::{
    BusConsumer, BusError, BusPosition, BusRecord, ClusterName, Emits, Frontier, Group, Partition,
    Polled, Positions, RecordKind,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::{ASK, KafkaOptions, client, unavailable};

/// Records that wait for the runtime; more are not fetched.
const FULL: usize = 10_000;
/// Fetching goes on when so few wait.
const LOW: usize = 2_000;
/// How long the client is waited for while it has nothing.
const TICK: Duration = Duration::from_millis(50);
/// Between two commits of positions.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

type Member = BaseConsumer<Context>;

/// How far the clusters that feed a partition are complete.
#[derive(Default)]
struct Beats {
    latest: BTreeMap<ClusterName, UnixMillis>,
    frontiers: Vec<Frontier>,
}

#[derive(Default)]
struct Inbox {
    records: VecDeque<BusRecord>,
    changes: VecDeque<Polled>,
    error: Option<BusError>,
    /// Fetching is paused because the inbox is full.
    held: bool,
    /// Paused by the runtime.
    paused: BTreeSet<i32>,
    /// Partitions that are read, with the epochs seen.
    reading: BTreeMap<i32, Emits>,
}

/// What the client's thread and the runtime share.
struct Shared {
    topic: String,
    group: Group,
    inbox: Mutex<Inbox>,
    ready: Notify,
    closing: AtomicBool,
    /// A commit that nobody waited for did not arrive.
    commit_failed: AtomicBool,
}

/// Positions as the client commits them.
fn offsets(topic: &str, positions: &Positions) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, position) in positions {
        let mut one = list.add_partition(topic, i32::from(partition.0));
        one.set_offset(Offset::Offset(position.next.cast_signed()))?;
        one.set_metadata(position.emits.to_string());
    }
    Ok(list)
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self, partitions: impl IntoIterator<Item = i32>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, partition);
        }
        list
    }
}

struct Context(Arc<Shared>);

impl ClientContext for Context {}

impl ConsumerContext for Context {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::warn!(group = self.0.group.0, %error, "positions were not committed; they are sent again");
            self.0.commit_failed.store(true, Ordering::Release);
        }
    }

    fn rebalance(
        &self,
        member: &BaseConsumer<Self>,
        error: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let shared = &self.0;
        let numbers: Vec<i32> = list.elements().iter().map(|e| e.partition()).collect();
        let partitions: Vec<Partition> = numbers.iter().map(|n| Partition(*n as u16)).collect();
        tracing::debug!(group = shared.group.0, ?error, ?numbers, "the assignment changes");
        let at_once = |result: KafkaResult<()>| {
            if let Err(error) = result {
                tracing::warn!(group = shared.group.0, %error, "the assignment was not changed");
            }
        };
        if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            if shared.closing.load(Ordering::Acquire) || partitions.is_empty() {
                at_once(member.incremental_assign(list));
            } else {
                shared.inbox().changes.push_back(Polled::Assigned(partitions));
            }
        } else {
            let lost = member.assignment_lost();
            let now = lost || partitions.is_empty() || shared.closing.load(Ordering::Acquire);
            {
                let mut inbox = shared.inbox();
                // Whoever has them next reads them again.
                inbox.records.retain(|record| !partitions.contains(&record.partition));
                inbox.reading.retain(|partition, _| !numbers.contains(partition));
                if !partitions.is_empty() {
                    inbox.changes.push_back(if lost {
                        Polled::Lost(partitions)
                    } else {
                        Polled::Revoked(partitions)
                    });
                }
            }
            if now {
                at_once(member.incremental_unassign(list));
            }
        }
        shared.ready.notify_one();
    }
}

/// A member of a group.
pub(crate) struct KafkaConsumer {
    shared: Arc<Shared>,
    member: Arc<Member>,
    clusters: BTreeMap<Partition, BTreeSet<ClusterName>>,
    beats: BTreeMap<Partition, Beats>,
    seen: Arc<Mutex<BTreeMap<Partition, Emits>>>,
    /// To be committed.
    positions: Positions,
    committed: Positions,
    committed_at: Instant,
}

/// A message as the bus has it.
pub(crate) fn record(message: &BorrowedMessage<'_>) -> BusRecord {
    let headers: Vec<(String, Vec<u8>)> = message
        .headers()
        .map(|all| {
            all.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect()
        })
        .unwrap_or_default();
    let attributes = Attributes::of(&headers);
    BusRecord {
        kind: attributes.kind,
        partition: Partition(message.partition() as u16),
        offset: message.offset().unsigned_abs(),
        key: message.key().unwrap_or_default().to_vec(),
        version: attributes.version,
        at: attributes.at.or(message.timestamp().to_millis()).unwrap_or(0),
        cluster: attributes.cluster,
        emit: attributes.emit,
        headers,
        payload: message.payload().unwrap_or_default().to_vec(),
    }
}

/// Polls until the consumer is closed or dropped.
fn serve(member: &Member, shared: &Shared) {
    while !shared.closing.load(Ordering::Acquire) {
        match member.poll(TICK) {
            None => {}
            Some(Ok(message)) => {
                let record = record(&message);
                let mut inbox = shared.inbox();
                if inbox.reading.contains_key(&message.partition()) {
                    inbox.records.push_back(record);
                }
            }
            Some(Err(error)) => {
                let gone = matches!(
                    error.rdkafka_error_code(),
                    Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset)
                );
                tracing::debug!(group = shared.group.0, %error, "the client reports");
                let told = if gone {
                    // Which one is not told; the rebuild that follows covers all.
                    BusError::Expired { group: shared.group, partition: Partition(0) }
                } else {
                    unavailable(error)
                };
                shared.inbox().error.get_or_insert(told);
            }
        }
        let mut inbox = shared.inbox();
        if !inbox.held && inbox.records.len() >= FULL {
            inbox.held = true;
            drop(member.pause(&shared.list(inbox.reading.keys().copied())));
        } else if inbox.held && inbox.records.len() <= LOW {
            inbox.held = false;
            let ours = inbox.reading.keys().filter(|p| !inbox.paused.contains(p)).copied();
            drop(member.resume(&shared.list(ours)));
        }
        let ready = !inbox.records.is_empty() || !inbox.changes.is_empty() || inbox.error.is_some();
        drop(inbox);
        if ready {
            shared.ready.notify_one();
        }
    }
}

impl KafkaConsumer {
    pub(crate) fn join(
        options: &KafkaOptions,
        group: Group,
        seen: Arc<Mutex<BTreeMap<Partition, Emits>>>,
    ) -> KafkaResult<Self> {
        let shared = Arc::new(Shared {
            topic: options.topic.clone(),
            group,
            inbox: Mutex::default(),
            ready: Notify::new(),
            closing: AtomicBool::new(false),
            commit_failed: AtomicBool::new(false),
        });
        let member: Member =
            client::member(options, group).create_with_context(Context(Arc::clone(&shared)))?;
        member.subscribe(&[&options.topic])?;
        let member = Arc::new(member);
        let (polled, inbox) = (Arc::clone(&member), Arc::clone(&shared));
        std::thread::Builder::new()
            .name(format!("kafka-{}", group.0))
            .spawn(move || serve(&polled, &inbox))
            .map_err(|e| KafkaError::ClientCreation(e.to_string()))?;
        Ok(Self {
            shared,
            member,
            clusters: options.clusters.clone(),
            beats: BTreeMap::new(),
            seen,
            positions: Positions::new(),
            committed: Positions::new(),
            committed_at: Instant::now(),
        })
    }

    /// Runs a call that waits for a broker away from the caller's task.
    async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Member, &Shared) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, BusError> {
        let (member, shared) = (Arc::clone(&self.member), Arc::clone(&self.shared));
        crate::blocking(move || call(&member, &shared)).await
    }

    /// What is not committed yet, of these partitions or of all.
    fn uncommitted(&mut self, only: Option<&[Partition]>) -> Positions {
        self.committed_at = Instant::now();
        if self.shared.commit_failed.swap(false, Ordering::AcqRel) {
            self.committed.clear();
        }
        let wanted = |p: &Partition| only.is_none_or(|only| only.contains(p));
        let news =
            self.positions.iter().filter(|(p, at)| wanted(p) && self.committed.get(p) != Some(at));
        news.map(|(p, at)| (*p, at.clone())).collect()
    }

    /// Commits and waits for the broker, not for long.
    async fn commit_now(&mut self, only: Option<&[Partition]>) -> Result<(), BusError> {
        let news = self.uncommitted(only);
        if news.is_empty() {
            return Ok(());
        }
        let wanted = news.clone();
        let call = self.ask(move |member, shared| {
            member.commit(&offsets(&shared.topic, &wanted)?, CommitMode::Sync)
        });
        tokio::time::timeout(ASK, call).await.map_err(unavailable)??;
        self.committed.extend(news);
        Ok(())
    }

    /// Takes note of what the records that are handed out say of epochs and completeness.
    fn note(&mut self, records: &[BusRecord]) {
        let mut inbox = self.shared.inbox();
        for record in records {
            let Some(emits) = inbox.reading.get_mut(&i32::from(record.partition.0)) else {
                continue;
            };
            let current = emits.see(&record.cluster, record.emit);
            // A replaced primary's relay does not know what is complete.
            if record.kind != RecordKind::Heartbeat || !current {
                continue;
            }
            let Some(at) = Attributes::of(&record.headers).complete_through else { continue };
            let beats = self.beats.entry(record.partition).or_default();
            beats.latest.insert(Arc::clone(&record.cluster), at);
            let feeding = self.clusters.get(&record.partition);
            if feeding
                .is_none_or(|all| all.iter().all(|cluster| beats.latest.contains_key(cluster)))
                && let Some(complete_through) = beats.latest.values().min().copied()
            {
                beats.frontiers.push(Frontier { next: record.offset + 1, complete_through });
            }
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (partition, emits) in &inbox.reading {
            seen.insert(Partition(*partition as u16), emits.clone());
        }
    }

    /// Where the group committed last, of partitions that have such a place.
    async fn committed(&self, partitions: &[Partition]) -> Result<Positions, BusError> {
        let numbers: Vec<i32> = partitions.iter().map(|p| i32::from(p.0)).collect();
        let list = self
            .ask(move |member, shared| member.committed_offsets(shared.list(numbers), ASK))
            .await?;
        let mut committed = Positions::new();
        for element in list.elements() {
            element.error().map_err(unavailable)?;
            if let Offset::Offset(next) = element.offset() {
                // Metadata of another program's commit is no reason to stop: the ordinals come with
                // the next records.
                let emits = element.metadata().parse().unwrap_or_default();
                committed.insert(
                    Partition(element.partition() as u16),
                    BusPosition { next: next.unsigned_abs(), emits },
                );
            }
        }
        Ok(committed)
    }
}

#[async_trait]
impl BusConsumer for KafkaConsumer {
    async fn poll(&mut self, max: usize, wait: Duration) -> Result<Polled, BusError> {
        let end = Instant::now() + wait;
        loop {
            {
                let mut inbox = self.shared.inbox();
                if let Some(change) = inbox.changes.pop_front() {
                    return Ok(change);
                }
                // What was fetched before an error is in order.
                if !inbox.records.is_empty() {
                    let taken = inbox.records.len().min(max);
                    let mut records: Vec<BusRecord> = inbox.records.drain(..taken).collect();
                    drop(inbox);
                    records.sort_by_key(|r| (r.partition, r.offset));
                    self.note(&records);
                    return Ok(Polled::Records(records));
                }
                if let Some(error) = inbox.error.take() {
                    return Err(error);
                }
            }
            if tokio::time::timeout_at(end, self.shared.ready.notified()).await.is_err() {
                return Ok(Polled::Records(Vec::new()));
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
                .ask(move |member, shared| member.fetch_watermarks(&shared.topic, number, ASK))
                .await
                .map(|(low, high)| (low.unsigned_abs(), high.unsigned_abs()))?;
            let position = match positions.get(partition).or_else(|| committed.get(partition)) {
                // Beyond the end: the topic was made anew.
                Some(p) if p.next < low || p.next > high => {
                    return Err(BusError::Expired {
                        group: self.shared.group,
                        partition: *partition,
                    });
                }
                Some(p) => p.clone(),
                None if low > 0 => {
                    return Err(BusError::Expired {
                        group: self.shared.group,
                        partition: *partition,
                    });
                }
                None => BusPosition::default(),
            };
            begun.insert(*partition, position);
        }
        {
            let mut inbox = self.shared.inbox();
            for (partition, position) in &begun {
                inbox.reading.insert(i32::from(partition.0), position.emits.clone());
            }
        }
        for (partition, position) in &begun {
            self.beats.remove(partition);
            self.positions.remove(partition);
            self.committed.insert(*partition, position.clone());
        }
        let wanted = begun.clone();
        let held = self.shared.inbox().held;
        self.ask(move |member, shared| {
            let mut list = TopicPartitionList::new();
            for (partition, position) in wanted {
                let offset = Offset::Offset(position.next.cast_signed());
                list.add_partition_offset(&shared.topic, i32::from(partition.0), offset)?;
            }
            member.incremental_assign(&list)?;
            if held { member.pause(&list) } else { Ok(()) }
        })
        .await?;
        Ok(begun)
    }

    async fn release(&mut self, partitions: &[Partition]) -> Result<(), BusError> {
        let committed = self.commit_now(Some(partitions)).await;
        for partition in partitions {
            self.positions.remove(partition);
            self.beats.remove(partition);
        }
        let numbers: Vec<i32> = partitions.iter().map(|p| i32::from(p.0)).collect();
        self.ask(move |member, shared| member.incremental_unassign(&shared.list(numbers))).await?;
        committed
    }

    fn set_paused(&mut self, partition: Partition, paused: bool) {
        let number = i32::from(partition.0);
        let mut inbox = self.shared.inbox();
        let changed =
            if paused { inbox.paused.insert(number) } else { inbox.paused.remove(&number) };
        let held = inbox.held;
        drop(inbox);
        if !changed {
            return;
        }
        let list = self.shared.list([number]);
        let result = if paused {
            self.member.pause(&list)
        } else if held {
            Ok(())
        } else {
            self.member.resume(&list)
        };
        if let Err(error) = result {
            tracing::warn!(partition = partition.0, paused, %error, "the partition was not paused or resumed");
        }
    }

    async fn commit(&mut self, positions: &Positions) -> Result<(), BusError> {
        for (partition, position) in positions {
            let Some(beats) = self.beats.get_mut(partition) else { continue };
            // The newest one that is reached says everything that older ones say.
            let reached =
                beats.frontiers.iter().rposition(|f| f.next <= position.next).unwrap_or(0);
            beats.frontiers.drain(..reached);
        }
        let reading: BTreeSet<i32> = self.shared.inbox().reading.keys().copied().collect();
        // A sink may still tell where a partition was when it was ours before.
        let behind = |p: &Partition, at: &BusPosition| {
            self.committed.get(p).is_some_and(|known| at.next < known.next)
        };
        let ours =
            positions.iter().filter(|(p, at)| reading.contains(&i32::from(p.0)) && !behind(p, at));
        self.positions.extend(ours.map(|(p, at)| (*p, at.clone())));
        if self.committed_at.elapsed() >= COMMIT_EVERY {
            let news = self.uncommitted(None);
            if !news.is_empty() {
                let list = offsets(&self.shared.topic, &news).map_err(unavailable)?;
                self.member.commit(&list, CommitMode::Async).map_err(unavailable)?;
                self.committed.extend(news);
            }
        }
        Ok(())
    }

    async fn frontiers(&self) -> Result<BTreeMap<Partition, Vec<Frontier>>, BusError> {
        Ok(self
            .beats
            .iter()
            .map(|(partition, beats)| (*partition, beats.frontiers.clone()))
            .collect())
    }

    async fn close(&mut self) {
        if let Err(error) = self.commit_now(None).await {
            tracing::warn!(group = self.shared.group.0, %error, "the last positions were not committed");
        }
        // Whoever drops the client last leaves the group with it. An `unsubscribe` before that
        // loses the word to the broker about every second time, and the others wait for the
        // session to run out (librdkafka 2.12.1).
        self.shared.closing.store(true, Ordering::Release);
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        // The thread drops the client, which leaves the group; nobody waits for that here.
        self.shared.closing.store(true, Ordering::Release);
    }
}
