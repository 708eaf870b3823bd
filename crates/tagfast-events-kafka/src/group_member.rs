//! The client of a group member, polled by a thread of its own into a buffer.
//!
//! Kafka requires that the client is polled all the time. A full buffer pauses the partitions, not
//! the polling. Revoked partitions are released only after the runtime has committed its progress
//! in them, unless the group has taken them already.
//!
//! How it fails: errors of the client are returned by the next poll; the client itself goes on
//! trying.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tagfast_events::{
    BusError, BusPosition, BusRecord, ConsumerGroup, Partition, PollResult, Positions,
    PublisherEpochs,
};
use tagfast_resilience::ErrorChain;
use tagfast_resilience::task::TaskTracker;
use tokio::sync::Notify;

use crate::client;
use crate::options::KafkaOptions;
use crate::record;

/// Buffered records at which fetching pauses.
const BUFFER_MAX: usize = 10_000;
/// Buffered records at which fetching resumes.
const BUFFER_LOW_WATER: usize = 2_000;
/// How long one poll of the client waits.
const POLL_TIMEOUT: Duration = Duration::from_millis(50);

/// The client of a group member.
pub(crate) type GroupMember = BaseConsumer<RebalanceContext>;

/// Records and changes that wait for the runtime.
#[derive(Default)]
pub(crate) struct PartitionBuffer {
    pub(crate) records: VecDeque<BusRecord>,
    pub(crate) changes: VecDeque<PollResult>,
    /// `None` without an error since the last poll.
    pub(crate) error: Option<BusError>,
    /// Whether fetching is paused because the buffer is full.
    pub(crate) full: bool,
    /// Partitions that the runtime paused.
    pub(crate) paused: BTreeSet<i32>,
    /// Partitions that are read, with the publisher epochs seen.
    pub(crate) reading: BTreeMap<i32, PublisherEpochs>,
}

/// State that the polling thread and the runtime share.
pub(crate) struct MemberState {
    pub(crate) topic: String,
    pub(crate) group: ConsumerGroup,
    buffer: Mutex<PartitionBuffer>,
    pub(crate) ready: Notify,
    pub(crate) closing: AtomicBool,
    /// An asynchronous commit failed.
    pub(crate) commit_failed: AtomicBool,
    /// A broker refused this member's credentials.
    pub(crate) refused: AtomicBool,
}

impl MemberState {
    pub(crate) fn buffer(&self) -> MutexGuard<'_, PartitionBuffer> {
        self.buffer.lock()
    }

    pub(crate) fn list(&self, partitions: impl IntoIterator<Item = i32>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, partition);
        }
        list
    }

    /// Positions in the client's format.
    pub(crate) fn offsets(&self, positions: &Positions) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (partition, position) in positions {
            let mut one = list.add_partition(&self.topic, i32::from(partition.0));
            one.set_offset(Offset::Offset(position.next.cast_signed()))?;
            one.set_metadata(metadata(position));
        }
        Ok(list)
    }
}

/// What is committed beside an offset: the publisher epochs seen below it, and the anchor.
pub(crate) fn metadata(position: &BusPosition) -> String {
    let epochs = &position.publisher_epochs;
    position.anchor.map_or_else(|| epochs.to_string(), |anchor| format!("{epochs};{anchor}"))
}

/// Receives changes of the assignment.
pub(crate) struct RebalanceContext(Arc<MemberState>);

impl ClientContext for RebalanceContext {
    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Authentication) {
            self.0.refused.store(true, Ordering::Release);
        }
        let (group, error) = (self.0.group.0, ErrorChain(&error));
        tracing::debug!(group, %error, reason, "the client reports an error");
    }
}

impl ConsumerContext for RebalanceContext {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            let (group, error) = (self.0.group.0, ErrorChain(&error));
            tracing::warn!(group, %error, "positions were not committed; they are sent again");
            self.0.commit_failed.store(true, Ordering::Release);
        }
    }

    fn rebalance(
        &self,
        member: &BaseConsumer<Self>,
        error: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let state = &self.0;
        let numbers: Vec<i32> = list.elements().iter().map(|e| e.partition()).collect();
        let partitions: Vec<Partition> = numbers.iter().map(|n| Partition(*n as u16)).collect();
        tracing::debug!(group = state.group.0, ?error, ?numbers, "the assignment changes");
        let log_failure = |result: KafkaResult<()>| {
            if let Err(error) = result {
                let (group, error) = (state.group.0, ErrorChain(&error));
                tracing::warn!(group, %error, "the assignment was not changed");
            }
        };
        if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            if state.closing.load(Ordering::Acquire) || partitions.is_empty() {
                log_failure(member.incremental_assign(list));
            } else {
                state.buffer().changes.push_back(PollResult::Assigned(partitions));
            }
        } else {
            let lost = member.assignment_lost();
            let now = lost || partitions.is_empty() || state.closing.load(Ordering::Acquire);
            {
                let mut buffer = state.buffer();
                // The next owner reads these records again.
                buffer.records.retain(|record| !partitions.contains(&record.partition));
                buffer.reading.retain(|partition, _| !numbers.contains(partition));
                if !partitions.is_empty() {
                    buffer.changes.push_back(if lost {
                        PollResult::Lost(partitions)
                    } else {
                        PollResult::Revoked(partitions)
                    });
                }
            }
            if now {
                log_failure(member.incremental_unassign(list));
            }
        }
        state.ready.notify_one();
    }
}

/// Joins a group and starts the polling thread, which ends once the state is closing. `threads`
/// counts the thread until it has let go of the client.
pub(crate) fn join(
    options: &KafkaOptions,
    group: ConsumerGroup,
    threads: &TaskTracker,
) -> KafkaResult<(Arc<GroupMember>, Arc<MemberState>)> {
    let state = Arc::new(MemberState {
        topic: options.topic.clone(),
        group,
        buffer: Mutex::default(),
        ready: Notify::new(),
        closing: AtomicBool::new(false),
        commit_failed: AtomicBool::new(false),
        refused: AtomicBool::new(false),
    });
    let context = RebalanceContext(Arc::clone(&state));
    let member: GroupMember = client::member(options, group).create_with_context(context)?;
    member.subscribe(&[&options.topic])?;
    let member = Arc::new(member);
    let (polled, shared) = (Arc::clone(&member), Arc::clone(&state));
    let running = threads.token();
    std::thread::Builder::new()
        .name(format!("kafka-{}", group.0))
        .spawn(move || {
            poll_until_closing(&polled, &shared);
            drop(polled);
            drop(running);
        })
        .map_err(|e| KafkaError::ClientCreation(e.to_string()))?;
    Ok((member, state))
}

fn poll_until_closing(member: &GroupMember, state: &MemberState) {
    while !state.closing.load(Ordering::Acquire) {
        match member.poll(POLL_TIMEOUT) {
            None => {}
            Some(Ok(message)) => {
                let record = record::decode(&message);
                let mut buffer = state.buffer();
                if buffer.reading.contains_key(&message.partition()) {
                    buffer.records.push_back(record);
                }
            }
            Some(Err(error)) => {
                let expired = matches!(
                    error.rdkafka_error_code(),
                    Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset)
                );
                tracing::debug!(group = state.group.0, error = %ErrorChain(&error), "client error");
                let error = if expired {
                    // The client does not say which partition; the rebuild covers all.
                    BusError::Expired { group: state.group, partition: Partition(0) }
                } else {
                    BusError::unavailable(error)
                };
                state.buffer().error.get_or_insert(error);
            }
        }
        let mut buffer = state.buffer();
        if !buffer.full && buffer.records.len() >= BUFFER_MAX {
            buffer.full = true;
            drop(member.pause(&state.list(buffer.reading.keys().copied())));
        } else if buffer.full && buffer.records.len() <= BUFFER_LOW_WATER {
            buffer.full = false;
            let resumed = buffer.reading.keys().filter(|p| !buffer.paused.contains(p)).copied();
            drop(member.resume(&state.list(resumed)));
        }
        let ready =
            !buffer.records.is_empty() || !buffer.changes.is_empty() || buffer.error.is_some();
        drop(buffer);
        if ready {
            state.ready.notify_one();
        }
    }
}
