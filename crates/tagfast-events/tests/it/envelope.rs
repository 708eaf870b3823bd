//! The envelope: golden bytes, its schema, tolerated and refused input.

use proptest::prelude::*;
use tagfast_domain::{
    Change, ContentKey, EpochOrdinal, TagName, Tagging, TaggingsEvent, UserId, Version, WriteId,
};
use tagfast_events::envelope::{Attributes, document, encode_binary};
use tagfast_events::{
    BusRecord, EnvelopeError, Partition, RecordKind, decode, decode_record, encode,
};
use tagfast_json::testing::{arrays_for_objects, repeated_keys};

const GOLDEN: &str = include_str!("../golden/event.json");
const SCHEMA: &str = include_str!("../../../../docs/reference/event.schema.json");

fn example() -> TaggingsEvent {
    let version = |n| Version::from_packed(n).expect("fits");
    let tagging = |name: &str, display: &str, ord| Tagging {
        name: TagName::from_canonical(name),
        display: display.into(),
        user: UserId::parse("ann@example.org").expect("valid"),
        at: 1_800_000_000_123,
        decided_at: version(ord),
        present: true,
    };
    TaggingsEvent {
        key: ContentKey::parse("acme", "jira.issue", "OPS/7 ü").expect("valid"),
        version: version(402_653_184_000_000_002),
        at: 1_800_000_000_456,
        publisher_epoch: EpochOrdinal(1_799_999_999_000),
        tags: vec![
            tagging("critical", "Critical", 402_653_184_000_000_001),
            tagging("日本語", "日本語", 402_653_184_000_000_002),
        ],
        changes: vec![Change {
            write_id: WriteId([0xab; 16]),
            user: UserId::parse("ann@example.org").expect("valid"),
            version: version(402_653_184_000_000_002),
            added: vec![TagName::from_canonical("日本語")],
            removed: vec![TagName::from_canonical("wontfix")],
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        }],
    }
}

#[test]
fn the_golden_event_is_read_and_written() {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/event.json");
        std::fs::write(path, [encode(&example()), b"\n".to_vec()].concat())
            .expect("the golden file can be written");
        return;
    }
    assert_eq!(decode(GOLDEN.trim_end().as_bytes()), Ok(example()));
    assert_eq!(String::from_utf8(encode(&example())).expect("UTF-8"), GOLDEN.trim_end());
}

/// Headers and data of a record on a broker.
#[test]
fn the_golden_record_is_read_and_written() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/record.txt");
    let message = encode_binary(&example(), "c0", 4711);
    let mut text = String::new();
    for (name, value) in &message.headers {
        text.push_str(&format!(
            "{name}: {}\n",
            std::str::from_utf8(value).expect("headers are text")
        ));
    }
    text.push_str(&format!("\n{}\n", std::str::from_utf8(&message.payload).expect("data is text")));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, text).expect("the golden file can be written");
        return;
    }
    assert_eq!(text, std::fs::read_to_string(path).expect("the golden file is there"));
    let attributes = Attributes::of(&message.headers);
    let decoded = (attributes.kind, &*attributes.cluster, attributes.hi, attributes.at);
    assert_eq!(decoded, (RecordKind::Event, "c0", Some(4711), Some(example().at)));
    let record = BusRecord {
        kind: attributes.kind,
        partition: Partition(0),
        offset: 0,
        key: example().key.to_string().into_bytes(),
        version: attributes.version,
        at: 0,
        cluster: attributes.cluster,
        publisher_epoch: attributes.publisher_epoch,
        headers: message.headers,
        payload: message.payload,
    };
    assert_eq!(
        (record.version, record.publisher_epoch),
        (example().version, example().publisher_epoch)
    );
    assert_eq!(decode_record(&record), Ok(example()));
    let data = std::str::from_utf8(&record.payload).expect("data is text");
    for damaged in arrays_for_objects(data).into_iter().chain(repeated_keys(data)) {
        let damaged = BusRecord { payload: damaged.into_bytes(), ..record.clone() };
        assert!(matches!(decode_record(&damaged), Err(EnvelopeError::Undecodable(_))));
    }
    let mut newer = record.clone();
    newer
        .headers
        .iter_mut()
        .filter(|(name, _)| name == "ce_type")
        .for_each(|(_, v)| *v = b"tagfast.taggings.v2".to_vec());
    assert_eq!(
        decode_record(&newer),
        Err(EnvelopeError::UnknownType("tagfast.taggings.v2".to_owned()))
    );
}

/// A consumer that does not know the header reads the same event.
#[test]
fn a_document_stands_beside_the_event() {
    let plain = encode_binary(&example(), "c0", 4711);
    assert_eq!(document(&plain.headers), None);
    let message = encode_binary(&example(), "c0", 4711).with_document(&[0, 0xff, 7]);
    assert_eq!(message.payload, plain.payload);
    let (last, others) = message.headers.split_last().expect("headers");
    assert_eq!(others, plain.headers);
    assert_eq!(*last, ("ce_tagfastdocument".to_owned(), b"AP8H".to_vec()));
    assert_eq!(document(&message.headers), Some(vec![0, 0xff, 7]));
    assert_eq!(Attributes::of(&message.headers), Attributes::of(&plain.headers));
    let damaged = [("ce_tagfastdocument".to_owned(), b"AP8".to_vec())];
    assert_eq!(document(&damaged), None);
}

/// Every field of the golden event is in the schema, and every required one is in the event.
#[test]
fn the_schema_describes_the_event() {
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let golden: serde_json::Value = serde_json::from_str(GOLDEN).expect("the golden event is JSON");
    fn compare(schema: &serde_json::Value, value: &serde_json::Value, path: &str) {
        if let (Some(items), Some(list)) = (schema.get("items"), value.as_array()) {
            list.iter().for_each(|v| compare(items, v, path));
        }
        let Some(object) = value.as_object() else { return };
        let properties =
            schema["properties"].as_object().unwrap_or_else(|| panic!("{path} has no properties"));
        for (name, v) in object {
            let s = properties
                .get(name)
                .unwrap_or_else(|| panic!("{path}/{name} is not in the schema"));
            compare(s, v, &format!("{path}/{name}"));
        }
        for required in schema["required"].as_array().into_iter().flatten() {
            let name = required.as_str().expect("a name");
            assert!(object.contains_key(name), "{path}/{name} is required");
        }
    }
    compare(&schema, &golden, "");
}

#[test]
fn an_array_is_no_event_and_no_part_of_one() {
    for damaged in arrays_for_objects(GOLDEN).into_iter().chain(repeated_keys(GOLDEN)) {
        let error = decode(damaged.as_bytes()).expect_err(&damaged).to_string();
        let clear = error.contains("expected an object") || error.contains("duplicate field");
        assert!(clear, "{damaged}: {error}");
    }
}

#[test]
fn unknown_fields_are_tolerated_and_unknown_types_are_not() {
    let newer = GOLDEN.replacen("\"data\":{", "\"future\":[1,{}],\"data\":{\"also\":null,", 1);
    assert_eq!(decode(newer.as_bytes()), Ok(example()));
    let major = GOLDEN.replace("tagfast.taggings.v1", "tagfast.taggings.v2");
    assert_eq!(
        decode(major.as_bytes()),
        Err(EnvelopeError::UnknownType("tagfast.taggings.v2".to_owned()))
    );
    let foreign = br#"{"type":"tagfast.epoch.v1","ordinal":1}"#;
    assert!(matches!(decode(foreign), Err(EnvelopeError::UnknownType(_))));
    let bad_time = GOLDEN.replace("2027-", "yesterday-");
    assert!(matches!(decode(bad_time.as_bytes()), Err(EnvelopeError::Undecodable(_))));
}

prop_compose! {
    fn taggings()(
        names in prop::collection::btree_set("[a-z:]{1,8}", 0..6),
        display in "\\PC{1,10}",
        at in 0i64..4_000_000_000_000,
    ) -> Vec<Tagging> {
        names.iter().map(|name| Tagging {
            name: TagName::from_canonical(name),
            display: display.as_str().into(),
            user: UserId::from_stored("u\"\\\u{1F600}"),
            at,
            decided_at: Version::NONE,
            present: true,
        }).collect()
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        tags in taggings(),
        id in "[^\\p{Cc}]{1,60}",
        version in 0u64..=i64::MAX as u64,
    ) {
        let Ok(key) = ContentKey::parse("t", "x", &id) else { return Ok(()) };
        let version = Version::from_packed(version).expect("fits");
        let publisher_epoch = EpochOrdinal(u64::MAX);
        let changes = Vec::new();
        let event = TaggingsEvent { key, version, at: 5, publisher_epoch, tags, changes };
        prop_assert_eq!(decode(&encode(&event)), Ok(event));
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn damaged_events_do_not_panic(at in 0usize..600, byte in any::<u8>()) {
        let mut bytes = encode(&example());
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = decode(&bytes);
        let _ = decode(&bytes[..at]);
    }
}
