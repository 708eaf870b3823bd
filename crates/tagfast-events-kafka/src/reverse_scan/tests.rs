//! Partitions in which a scan that stops too early leaves a lost state behind.

use tagfast_domain::{ContentKey, TaggingsEvent, Version};
use tagfast_events::envelope::Message;

use super::*;

const CLUSTER: &str = "c0";

fn key(id: &str) -> ContentKey {
    ContentKey::parse("test", "doc", id).expect("a content")
}

pub(super) fn record(message: Message) -> BusRecord {
    let attributes = Attributes::of(&message.headers);
    BusRecord {
        kind: attributes.kind,
        partition: Partition(0),
        offset: 0,
        key: Vec::new(),
        version: attributes.version,
        at: 0,
        cluster: attributes.cluster,
        publisher_epoch: attributes.publisher_epoch,
        headers: message.headers,
        payload: message.payload,
    }
}

/// A state of a content that the relay of an epoch published, and the position after its batch.
fn event(id: &str, epoch: u64, hi: u64) -> BusRecord {
    let event = TaggingsEvent {
        key: key(id),
        version: Version::from_packed(1).expect("a version"),
        publisher_epoch: EpochOrdinal(epoch),
        at: 0,
        tags: Vec::new(),
        changes: Vec::new(),
    };
    let mut record = record(envelope::encode_binary(&event, CLUSTER, hi));
    record.key = event.key.to_string().into_bytes();
    record
}

fn marker(epoch: u64) -> BusRecord {
    record(envelope::encode_marker(CLUSTER, EpochOrdinal(epoch), 0))
}

/// Scans a partition record by record.
fn scan(partition: Vec<BusRecord>, fate: &dyn Fn(EpochOrdinal) -> EpochFate) -> Vec<ContentKey> {
    let mut diverged = DivergedContents::new(0);
    for record in partition.iter().rev() {
        if examine(record, CLUSTER, fate, &mut diverged) {
            break;
        }
    }
    diverged.into_contents(CLUSTER).into_iter().map(|content| content.key).collect()
}

/// X17b: the second epoch began, and its primary died before the lost state was overwritten.
#[test]
fn an_epoch_that_was_not_reconciled_does_not_end_the_scan() {
    let fate = |second_is_reconciled| {
        move |epoch: EpochOrdinal| match epoch.0 {
            1 => EpochFate::Ended { epoch_end: 10, reconciled: true },
            2 => EpochFate::Ended { epoch_end: 20, reconciled: second_is_reconciled },
            _ => EpochFate::Current,
        }
    };
    let partition = || {
        let before = [event("before", 1, 9), event("lost", 1, 11)];
        let after = [marker(2), event("kept", 2, 15), marker(3)];
        before.into_iter().chain(after).collect::<Vec<_>>()
    };
    assert_eq!(scan(partition(), &fate(false)), [key("lost")]);
    assert_eq!(scan(partition(), &fate(true)), [], "it was overwritten in the second epoch");
    // It died before it published anything.
    let partition = vec![event("before", 1, 9), event("lost", 1, 11), marker(2), marker(3)];
    assert_eq!(scan(partition, &fate(false)), [key("lost")]);
}

/// X18: a relay that was started again publishes a row a second time, behind rows that are lost.
#[test]
fn a_row_that_was_published_again_does_not_end_the_scan() {
    let fate = |epoch: EpochOrdinal| match epoch.0 {
        1 => EpochFate::Ended { epoch_end: 5, reconciled: true },
        _ => EpochFate::Current,
    };
    // The rows lie at 4 and 8. What is published with them was read after both.
    let partition = vec![event("one", 1, 4), event("two", 1, 8), event("one", 1, 9), marker(2)];
    assert_eq!(scan(partition, &fate), [key("one"), key("two")]);
    // With the position of the row itself the scan would stop at the repetition.
    let partition = vec![event("one", 1, 4), event("two", 1, 8), event("one", 1, 4), marker(2)];
    assert_eq!(scan(partition, &fate), [], "which is why the relay reads the position afterwards");
}
