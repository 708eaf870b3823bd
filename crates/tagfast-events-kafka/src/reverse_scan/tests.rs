//! Partitions in which a scan that stops too early leaves a lost state behind.

use tagfast_domain::{ContentKey, TaggingsEvent, Version};
use tagfast_events::envelope::Message;

use super::*;

const CLUSTER: &str = "c0";
const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;

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

pub(super) fn published(record: BusRecord, published_at: UnixMillis) -> PublishedRecord {
    PublishedRecord { record, published_at: Some(published_at) }
}

/// Epochs from the first one on, each with the position at which it ends and whether its contents
/// were rewritten; then the one that begins. Each was minted an hour after the one before.
fn history(past: &[(u64, bool)]) -> EpochHistory {
    let numbered = (1_u64..).zip(past);
    let past = numbered.map(|(n, (epoch_end, reconciled))| EndedEpoch {
        ordinal: EpochOrdinal(n),
        minted_at: minted_at(n),
        epoch_end: *epoch_end,
        reconciled: *reconciled,
    });
    let past: Vec<EndedEpoch> = past.collect();
    let current = past.len() as u64 + 1;
    EpochHistory::new(EpochOrdinal(current), minted_at(current), &past)
}

fn minted_at(epoch: u64) -> UnixMillis {
    1_800_000_000_000 + epoch.cast_signed() * HOUR_MS
}

/// Scans a partition record by record; each was published a minute after its epoch was minted,
/// unless its time is given.
fn scan_at(
    partition: Vec<(BusRecord, Option<UnixMillis>)>,
    history: &EpochHistory,
) -> Vec<ContentKey> {
    let mut diverged = DivergedContents::new(0);
    let mut scan = PartitionScan {
        cluster: CLUSTER,
        history,
        marked: BTreeSet::new(),
        diverged: &mut diverged,
    };
    for (record, at) in partition.into_iter().rev() {
        let at = at.unwrap_or(minted_at(record.publisher_epoch.0) + MINUTE_MS);
        if scan.examine(&published(record, at)) {
            break;
        }
    }
    diverged.into_contents(CLUSTER).into_iter().map(|content| content.key).collect()
}

fn scan(partition: Vec<BusRecord>, history: &EpochHistory) -> Vec<ContentKey> {
    scan_at(partition.into_iter().map(|record| (record, None)).collect(), history)
}

/// X17b: the second epoch began, and its primary died before the lost state was overwritten.
#[test]
fn an_epoch_that_was_not_reconciled_does_not_end_the_scan() {
    let of = |second_is_reconciled| history(&[(10, true), (20, second_is_reconciled)]);
    let partition = || {
        let before = [event("before", 1, 9), event("lost", 1, 11)];
        let after = [marker(2), event("kept", 2, 15), marker(3)];
        before.into_iter().chain(after).collect::<Vec<_>>()
    };
    assert_eq!(scan(partition(), &of(false)), [key("lost")]);
    assert_eq!(scan(partition(), &of(true)), [], "it was overwritten in the second epoch");
    // It died before it published anything.
    let partition = vec![event("before", 1, 9), event("lost", 1, 11), marker(2), marker(3)];
    assert_eq!(scan(partition, &of(false)), [key("lost")]);
}

/// X18: a relay that was started again publishes a row a second time, behind rows that are lost.
#[test]
fn a_row_that_was_published_again_does_not_end_the_scan() {
    let history = history(&[(5, true)]);
    // The rows lie at 4 and 8. What is published with them was read after both.
    let partition = vec![event("one", 1, 4), event("two", 1, 8), event("one", 1, 9), marker(2)];
    assert_eq!(scan(partition, &history), [key("one"), key("two")]);
    // With the position of the row itself the scan would stop at the repetition.
    let partition = vec![event("one", 1, 4), event("two", 1, 8), event("one", 1, 4), marker(2)];
    assert_eq!(
        scan(partition, &history),
        [],
        "which is why the relay reads the position afterwards"
    );
}

/// The relay of the first epoch thaws, and publishes what it had read: a part of the history that
/// consumers drop, because they have seen the marker of a later epoch.
#[test]
fn what_consumers_drop_does_not_end_the_scan() {
    let thawed = || event("thawed", 1, 9);
    for (late, times) in [(3, "after the third epoch was minted"), (2, "after the second one")] {
        let at = Some(minted_at(late) + MINUTE_MS);
        let first =
            [(event("before", 1, 9), None), (marker(2), None), (event("lost", 2, 21), None)];
        let markers = [(marker(3), None), (marker(3), None)];
        for place in 0..=markers.len() {
            let mut partition: Vec<_> = first.iter().chain(&markers).cloned().collect();
            partition.insert(first.len() + place, (thawed(), at));
            let history = history(&[(10, true), (20, true)]);
            assert_eq!(scan_at(partition, &history), [key("lost")], "{times}, at {place}");
        }
    }
    // It got its time before the epoch ended, and was on its way to the broker until later.
    let at = Some(minted_at(2) - DELIVERY_MS_MAX);
    let partition = vec![
        (event("before", 1, 9), None),
        (marker(2), None),
        (event("lost", 2, 21), None),
        (thawed(), at),
        (marker(3), None),
    ];
    let history = history(&[(10, true), (20, true)]);
    assert_eq!(scan_at(partition, &history), [key("lost")]);
}
