//! Faults of the topic of events: gone, another one of the same name, with more partitions, or
//! without its records, while the broker itself answers.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::change::Change;
use super::host::wait_until;
use super::info::{KAFKA_PARTITIONS, StackInfo};
use super::kafka_admin::{KafkaAdmin, TOPIC_EXISTS, UNKNOWN_TOPIC};

/// A fault of the topic of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicFault {
    /// The topic is deleted; the end creates it.
    Delete,
    /// The topic is deleted and created.
    Recreate,
    /// The topic has one partition more; the end creates it again with its first number.
    RaisePartitions,
    /// Every record of the topic is deleted.
    DeleteRecords,
}

/// The topic of the service's events.
const TOPIC: &str = "tagfast.taggings.v1";
const TIMEOUT: Duration = Duration::from_secs(30);

/// Begins or ends a fault of the topic.
pub(super) fn change(info: &StackInfo, fault: TopicFault, change: Change) -> Result<()> {
    let broker = info.kafka.as_ref().context("kafka is not part of this stack")?.bootstrap;
    let admin = &mut KafkaAdmin::connect(broker)?;
    match (fault, change) {
        (TopicFault::Delete, Change::Begin) => delete(admin),
        (TopicFault::Delete, Change::End) => create(admin),
        (TopicFault::Recreate, Change::Begin) | (TopicFault::RaisePartitions, Change::End) => {
            delete(admin)?;
            create(admin)
        }
        (TopicFault::RaisePartitions, Change::Begin) => {
            let more = i32::from(KAFKA_PARTITIONS) + 1;
            admin.raise_partitions(TOPIC, more)?;
            wait_for_partitions(admin, Some(more))
        }
        (TopicFault::DeleteRecords, Change::Begin) => {
            // The partitions of a new topic have no leader at first.
            wait_until("the records to be deleted", TIMEOUT, || {
                let partitions = admin.partitions(TOPIC)?.context("there is no topic")?;
                admin.delete_records(TOPIC, &partitions)
            })
        }
        // The service rebuilds what it has lost.
        (TopicFault::Recreate | TopicFault::DeleteRecords, Change::End) => {
            wait_for_partitions(admin, Some(i32::from(KAFKA_PARTITIONS)))
        }
    }
}

fn delete(admin: &mut KafkaAdmin) -> Result<()> {
    match admin.delete_topic(TOPIC)? {
        0 | UNKNOWN_TOPIC => wait_for_partitions(admin, None),
        code => bail!("Kafka answered error {code} to the deletion of {TOPIC}"),
    }
}

/// Creates the topic with its first number of partitions. The service may do so at the same time.
fn create(admin: &mut KafkaAdmin) -> Result<()> {
    match admin.create_topic(TOPIC, i32::from(KAFKA_PARTITIONS))? {
        0 | TOPIC_EXISTS => wait_for_partitions(admin, Some(i32::from(KAFKA_PARTITIONS))),
        code => bail!("Kafka answered error {code} to the creation of {TOPIC}"),
    }
}

fn wait_for_partitions(admin: &mut KafkaAdmin, wanted: Option<i32>) -> Result<()> {
    wait_until(&format!("{TOPIC} to have {wanted:?} partitions"), TIMEOUT, || {
        let found = admin.partitions(TOPIC)?.map(|partitions| partitions.len() as i32);
        // The service may have created it again.
        let gone = wanted.is_none() && found == Some(0);
        if found == wanted || gone { Ok(()) } else { bail!("it has {found:?}") }
    })
}
