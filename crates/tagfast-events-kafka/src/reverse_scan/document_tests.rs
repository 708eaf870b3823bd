//! Documents that are published with events: which of them a scan finds, and where it stops.

use tagfast_domain::{
    ApplyContext, ContentKey, Document, Epoch, EpochId, Limits, Operation, Tag, TaggingsEvent,
    UserId, Write, WriteId, apply, codec,
};
use tagfast_events::envelope::{encode_binary, encode_heartbeat, encode_marker};

use super::tests::{published, record};
use super::*;

const MINTED_AT: UnixMillis = 1_800_000_000_000;
const ONE: EpochOrdinal = EpochOrdinal(1_799_000_000_001);
const TWO: EpochOrdinal = EpochOrdinal(1_799_000_000_002);
const THREE: EpochOrdinal = EpochOrdinal(1_799_000_000_003);
/// Where epochs 1 and 2 end.
const END: u64 = 100;

/// The first write of a content: its event, with its document.
fn event(id: u8, publisher_epoch: EpochOrdinal, hi: u64) -> BusRecord {
    let key = ContentKey::parse("test", "doc", &id.to_string()).expect("a content");
    let (mut document, limits) = (Document::default(), Limits::default());
    let tags = vec![Tag::parse("a").expect("a tag")];
    let write = Write {
        id: WriteId([id; 16]),
        key: key.clone(),
        user: UserId::parse("ann").expect("a user"),
        operation: Operation::patch(tags, vec![], &limits).expect("a patch"),
        if_match: None,
    };
    let epoch = Epoch { id: EpochId([1; 16]), ordinal: publisher_epoch };
    let now = MINTED_AT - 1000;
    apply(
        &mut document,
        &write,
        None,
        &ApplyContext { epoch: &epoch, now, limits: &limits, call: None },
    );
    let event = TaggingsEvent {
        key,
        version: document.version,
        at: now,
        publisher_epoch,
        tags: document.taggings.clone(),
        changes: Vec::new(),
    };
    record(encode_binary(&event, "c0", hi).with_document(&codec::encode(&document)))
}

/// The ids of the contents that a scan of these records finds, each with its witnesses, and
/// whether it may stop.
fn scan(records: &[BusRecord], is_two_reconciled: bool) -> (Vec<(String, usize)>, bool) {
    let past = |ordinal, minted_at, reconciled| EndedEpoch {
        ordinal,
        minted_at,
        epoch_end: END,
        reconciled,
    };
    let past = [past(ONE, 0, true), past(TWO, 1, is_two_reconciled)];
    let history = EpochHistory::new(THREE, MINTED_AT, &past);
    let mut found = DivergedContents::new(MINTED_AT);
    let mut done = false;
    let mut scan = PartitionScan {
        cluster: "c0",
        history: &history,
        marked: BTreeSet::new(),
        diverged: &mut found,
    };
    for record in records.iter().rev() {
        done |= scan.examine(&published(record.clone(), MINTED_AT - DELIVERY_MS_MAX));
    }
    let contents = found.into_contents("c0").into_iter();
    let named = contents.map(|c| (c.key.content.content_id.as_str().to_owned(), c.documents.len()));
    (named.collect(), done)
}

fn marker(epoch: EpochOrdinal) -> BusRecord {
    record(encode_marker("c0", epoch, 0))
}

fn named(all: &[(&str, usize)]) -> Vec<(String, usize)> {
    all.iter().map(|(id, documents)| ((*id).to_owned(), *documents)).collect()
}

#[test]
fn x18_x19_what_was_published_past_the_end_is_found_with_its_document() {
    let records = [
        marker(TWO),
        event(1, TWO, END),
        record(encode_heartbeat("c0", TWO, 0, END)),
        event(2, TWO, END + 1),
        record(encode_heartbeat("c0", TWO, 0, END + 2)),
        event(3, TWO, END + 2),
        marker(THREE),
    ];
    assert_eq!(scan(&records, true), (named(&[("2", 1), ("3", 1)]), true));
    // An epoch whose lost contents were never written again is no stop.
    assert_eq!(scan(&records, false), (named(&[("2", 1), ("3", 1)]), false));
}

#[test]
fn x15_what_a_replaced_relay_published_behind_a_marker_is_written_again_and_not_joined() {
    let records = [
        marker(TWO),
        event(1, ONE, END + 1),
        event(2, TWO, END + 1),
        marker(THREE),
        event(3, TWO, END + 9),
    ];
    assert_eq!(scan(&records, false).0, named(&[("1", 0), ("2", 1), ("3", 0)]));
}

#[test]
fn records_of_other_clusters_and_of_unknown_epochs_prove_nothing() {
    let foreign = BusRecord { cluster: "c1".into(), ..event(1, TWO, END + 1) };
    let unknown = event(2, EpochOrdinal(5), 1);
    let (found, done) = scan(&[unknown, foreign, marker(THREE)], true);
    // A repair joins nothing of an epoch that it does not know.
    assert_eq!((found, done), (named(&[("2", 1)]), false));
}
