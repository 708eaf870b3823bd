//! A content's shard is frozen: with a different hash no stored content would be found again.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tagfast_domain::ContentKey;
use tagfast_sharding::{ContentHash, LogicalShard, SHARDS};

fn key(tenant: &str, content_type: &str, id: &str) -> ContentKey {
    ContentKey::parse(tenant, content_type, id).expect("a content")
}

/// Golden file, tab separated: tenant, type, id, hash in hexadecimal, shard.
#[test]
fn hashes_and_shards_are_frozen() {
    let mut lines = 0;
    for line in include_str!("../golden.tsv").lines().filter(|l| !l.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [tenant, content_type, id, hash, shard] = fields[..] else {
            panic!("five fields: {line}")
        };
        let id = id.replace("{256}", &"x".repeat(256));
        let key = key(tenant, content_type, &id);
        assert_eq!(format!("{:016x}", ContentHash::of(&key).0), hash, "{line}");
        assert_eq!(LogicalShard::of(&key).number().to_string(), shard, "{line}");
        lines += 1;
    }
    assert!(lines >= 24, "{lines} golden lines");
}

#[test]
fn all_shards_are_numbered() {
    let all: Vec<u8> = LogicalShard::all().map(LogicalShard::number).collect();
    assert_eq!(all, (0..64).collect::<Vec<u8>>());
    for number in 0..=255 {
        assert_eq!(
            LogicalShard::from_number(number).map(LogicalShard::number),
            (number < SHARDS).then_some(number)
        );
    }
}

/// Ids as products assign them: sequential, prefixed, padded, UUID-like hexadecimal, URLs. No shard
/// receives far more than its share: with 200 contents expected, 300 would be 7 standard
/// deviations away.
#[test]
fn ids_in_sequence_spread_evenly() {
    let shapes: [fn(u64) -> String; 5] = [
        |n| n.to_string(),
        |n| format!("PROJ-{n}"),
        |n| format!("{n:012}"),
        |n| format!("{:032x}", u128::from(n) << 64),
        |n| format!("https://example.com/pages/{n}?view=full"),
    ];
    for (shape, id) in shapes.iter().enumerate() {
        for (tenant, content_type) in [("acme", "jira.issue"), ("t", "x")] {
            let mut counts: BTreeMap<LogicalShard, u32> = BTreeMap::new();
            for n in 0..64 * 200 {
                *counts.entry(LogicalShard::of(&key(tenant, content_type, &id(n)))).or_default() +=
                    1;
            }
            assert_eq!(counts.len(), 64, "shape {shape}");
            let (min, max) = (counts.values().min(), counts.values().max());
            assert!(min > Some(&130) && max < Some(&290), "shape {shape}: {min:?} to {max:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_shard_is_a_function_of_the_key_bytes(tenant in "[a-z0-9]{1,9}", id in "[^\\p{Cc}]{1,30}") {
        let key = key(&tenant, "test.doc", &id);
        let copy = ContentKey::from_bytes(&key.to_bytes()).expect("our own bytes");
        prop_assert_eq!(ContentHash::of(&key), ContentHash::of_bytes(&copy.to_bytes()));
        prop_assert_eq!(LogicalShard::of(&key), LogicalShard::of_hash(ContentHash::of(&copy)));
        prop_assert!(LogicalShard::of(&key).number() < SHARDS);
    }

    /// Moving a character from one part of the key to the next yields a different hash.
    #[test]
    fn boundaries_between_key_parts_matter(left in "[a-z0-9]{2,9}", right in "[a-z0-9]{1,9}") {
        let (head, last) = left.split_at(left.len() - 1);
        let moved = format!("{last}{right}");
        prop_assert_ne!(ContentHash::of(&key(&left, &right, "1")), ContentHash::of(&key(head, &moved, "1")));
        prop_assert_ne!(ContentHash::of(&key("t", &left, &right)), ContentHash::of(&key("t", head, &moved)));
    }
}

/// The library returns the hash that the XXH3 specification publishes for empty input.
#[test]
fn the_hash_is_xxh3() {
    assert_eq!(xxhash_rust::xxh3::xxh3_64_with_seed(b"", 0), 0x2D06_8005_38D3_94C2);
}
