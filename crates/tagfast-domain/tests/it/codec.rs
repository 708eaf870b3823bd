//! The stored form of documents and events.

use proptest::prelude::*;
use tagfast_domain::codec::{
    EVENT_FORMAT, FORMAT, FORMAT_WITH_OUTCOMES, decode, decode_event, decode_result, encode,
    encode_event, encode_result,
};
use tagfast_domain::*;

use crate::support::{T0, any_document, cases, epoch, id, name};

/// One document with everything a document can hold.
fn golden() -> Document {
    let first = epoch(0).first_version().packed();
    let version = |n: u64| Version::from_packed(first + n).expect("a version");
    let tagging = |canonical: &str, display: &str, user: &str, at, decided_at, present| Tagging {
        name: TagName::from_canonical(canonical),
        display: display.into(),
        user: UserId::from_stored(user),
        at,
        decided_at: version(decided_at),
        present,
    };
    Document {
        version: version(9),
        absent_since: version(3),
        last_conditional: Version::NONE,
        overflow_until: T0 + 600_000,
        taggings: vec![
            tagging("c++", "C++", "ann", T0 - 5000, 4, true),
            tagging("gone", "gone", "ben@example", T0, 9, false),
            tagging("ui", "ui", "ann", 946_684_800_123, 4, true),
            tagging("日本語", "日本語", "ünïcode", -1, 5, true),
        ],
        recent: vec![
            RecentWrite {
                id: id(7),
                fingerprint: 0x0123_4567_89AB_CDEF,
                version: version(5),
                at: T0 - 5000,
                effect: Effect {
                    added: vec![name("日本語"), name("never-stored")],
                    removed: vec![],
                },
                outcome: RecordedOutcome::Written,
            },
            RecentWrite {
                id: WriteId([0xFF; 16]),
                fingerprint: u64::MAX,
                version: version(9),
                at: T0,
                effect: Effect { added: vec![], removed: vec![name("gone")] },
                outcome: RecordedOutcome::Written,
            },
        ],
    }
}

/// Format 1, byte for byte: every later version of the program must still read it.
#[test]
fn format_1_is_frozen() {
    let stored = include_bytes!("../golden/document-1.bin");
    assert_eq!(stored[0], 1);
    assert_eq!(decode(stored).expect("a document of format 1"), golden());
    assert_eq!(FORMAT, 1, "a new format needs its own golden file and keeps this one");
    assert_eq!(encode(&golden()), stored);
}

/// The golden document with a remembered write of every outcome.
fn golden_with_outcomes() -> Document {
    let mut document = golden();
    let write = |n, outcome| RecentWrite {
        id: id(n),
        fingerprint: n,
        version: document.version,
        at: T0 - 1,
        effect: Effect::default(),
        outcome,
    };
    let writes = [
        write(10, RecordedOutcome::Unchanged),
        write(11, RecordedOutcome::VersionMismatch),
        write(12, RecordedOutcome::TooManyTags { allowed: 100, given: 1000 }),
    ];
    document.recent.extend(writes);
    document
}

/// Format 2, byte for byte.
#[test]
fn format_2_is_frozen() {
    let stored = include_bytes!("../golden/document-2.bin");
    assert_eq!(stored[0], 2);
    assert_eq!(decode(stored).expect("a document of format 2"), golden_with_outcomes());
    assert_eq!(FORMAT_WITH_OUTCOMES, 2, "a new format needs its own golden file");
    assert_eq!(encode(&golden_with_outcomes()), stored);
    for len in 0..stored.len() {
        assert!(decode(&stored[..len]).is_err(), "truncated to {len} bytes");
    }
}

/// Rows of the `applied` table, byte for byte.
#[test]
fn the_results_of_evicted_writes_are_frozen() {
    let bytes: Vec<String> =
        golden_with_outcomes().recent.iter().map(|w| hex(&encode_result(w))).collect();
    let frozen = [
        "0209e697a5e69cace8aa9e0c6e657665722d73746f72656400",
        "000104676f6e65",
        "000001",
        "000002",
        "00000364e807",
    ];
    assert_eq!(bytes, frozen);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// An event with everything an event can hold.
fn golden_event() -> TaggingsEvent {
    let document = golden();
    let change = |n, added: &[&str], removed: &[&str], traceparent: Option<&str>| Change {
        write_id: id(n),
        user: UserId::from_stored("ben@example"),
        version: document.version,
        added: added.iter().map(|n| name(n)).collect(),
        removed: removed.iter().map(|n| name(n)).collect(),
        traceparent: traceparent.map(str::to_owned),
    };
    TaggingsEvent {
        key: ContentKey::parse("acme", "jira.issue", "OPS-1").expect("a content"),
        version: document.version,
        at: T0 + 3,
        publisher_epoch: EpochOrdinal(1_800_000_000_000),
        tags: document.taggings.into_iter().filter(|t| t.present).collect(),
        changes: vec![
            change(
                1,
                &["ui", "日本語"],
                &["gone"],
                Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ),
            change(2, &[], &[], None),
        ],
    }
}

/// Format 1 of events, byte for byte.
#[test]
fn event_format_1_is_frozen() {
    let stored = include_bytes!("../golden/event-1.bin");
    let event = golden_event();
    assert_eq!(encode_event(&event), stored);
    assert_eq!(decode_event(event.key.clone(), stored).expect("an event of format 1"), event);
    assert_eq!(
        (stored[0], EVENT_FORMAT),
        (1, 1),
        "a new format needs its own golden file and keeps this one"
    );
    for format in (0..=255).filter(|f| *f != EVENT_FORMAT) {
        let other = [&[format], &stored[1..]].concat();
        assert!(decode_event(event.key.clone(), &other).is_err(), "format {format}");
    }
    for cut in 0..stored.len() {
        assert!(decode_event(event.key.clone(), &stored[..cut]).is_err(), "cut at {cut}");
    }
    assert!(
        decode_event(event.key, &[stored.as_slice(), &[0]].concat()).is_err(),
        "a byte too many"
    );
}

#[test]
fn an_empty_document_is_a_few_bytes() {
    let bytes = encode(&Document::default());
    assert!(bytes.len() <= 16, "{} bytes", bytes.len());
    assert_eq!(decode(&bytes), Ok(Document::default()));
}

#[test]
fn other_formats_are_refused() {
    let mut bytes = encode(&golden());
    for format in (0..=255).filter(|f| ![FORMAT, FORMAT_WITH_OUTCOMES].contains(f)) {
        bytes[0] = format;
        let error = decode(&bytes).expect_err("an unknown format");
        assert!(error.to_string().contains("format"), "{error}");
    }
    assert!(decode(&[]).is_err());
}

#[test]
fn damage_is_refused() {
    let bytes = encode(&golden());
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len]).is_err(), "truncated to {len} of {} bytes", bytes.len());
    }
    assert!(decode(&[&bytes[..], &[0]].concat()).is_err(), "a byte too many");
    let mut unsorted = golden();
    unsorted.taggings.swap(0, 1);
    assert!(decode(&encode(&unsorted)).is_err(), "taggings out of order");
    let mut twice = golden();
    twice.taggings[1].name = twice.taggings[0].name.clone();
    assert!(decode(&encode(&twice)).is_err(), "a tag twice");
}

#[test]
fn names_are_shared_within_a_document() {
    let doc = decode(&encode(&golden())).expect("a document");
    let ui = doc.taggings.iter().find(|t| t.name.as_str() == "ui").expect("ui");
    assert!(
        std::sync::Arc::ptr_eq(&ui.name.shared(), &ui.display),
        "a display like the name costs nothing"
    );
    assert!(std::sync::Arc::ptr_eq(
        &doc.recent[1].effect.removed[0].shared(),
        &doc.taggings[1].name.shared()
    ));
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn every_document_round_trips(doc in any_document()) {
        prop_assert_eq!(decode(&encode(&doc)), Ok(doc));
    }

    #[test]
    fn every_result_round_trips(doc in any_document()) {
        for write in &doc.recent {
            let result = (write.effect.clone(), write.outcome);
            prop_assert_eq!(decode_result(&encode_result(write)), Ok(result));
        }
    }

    #[test]
    fn every_event_round_trips(doc in any_document(), at in any::<i64>(), emit in any::<u64>()) {
        let changes = doc.recent.iter().map(|w| Change {
            write_id: w.id,
            user: UserId::from_stored("ann"),
            version: w.version,
            added: w.effect.added.clone(),
            removed: w.effect.removed.clone(),
            traceparent: None,
        });
        let key = ContentKey::parse("acme", "t", "1").expect("a content");
        let event = TaggingsEvent {
            key: key.clone(),
            version: doc.version,
            at,
            publisher_epoch: EpochOrdinal(emit),
            changes: changes.collect(),
            tags: doc.taggings,
        };
        prop_assert_eq!(decode_event(key, &encode_event(&event)), Ok(event));
    }

    #[test]
    fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), ours in any::<bool>()) {
        if let (Some(first), true) = (bytes.first_mut(), ours) {
            *first = FORMAT;
        }
        let _ = decode(&bytes);
        let _ = decode_result(&bytes);
        let _ = decode_event(ContentKey::parse("acme", "t", "1").expect("a content"), &bytes);
    }

    #[test]
    fn no_damage_panics(doc in any_document(), at in any::<prop::sample::Index>(), bits in 1u8.., cut in any::<prop::sample::Index>()) {
        let mut bytes = encode(&doc);
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        if let Ok(other) = decode(&bytes) {
            prop_assert!(other.taggings.windows(2).all(|w| w[0].name < w[1].name));
        }
        bytes.truncate(cut.index(bytes.len()));
        let _ = decode(&bytes);
    }
}
