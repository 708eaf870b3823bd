//! Versions, keys, write ids, operations.

use proptest::prelude::*;
use tagfast_domain::*;

use crate::support::{cases, epoch, name, patch, replace, tag};

#[test]
fn a_version_packs_ordinal_and_counter() {
    let base = Epoch { id: EpochId([0; 16]), ordinal: EpochOrdinal(1_704_067_200_000) };
    assert_eq!(base.first_version().packed(), 1);
    let later = Epoch { ordinal: EpochOrdinal(1_704_067_200_003), ..base };
    assert_eq!(later.first_version().packed(), (3 << 22) + 1);
    assert_eq!(Version::NONE.next(&later), later.first_version());
    let far = Epoch { ordinal: EpochOrdinal(u64::MAX), ..base };
    assert!(
        far.first_version().packed() <= i64::MAX as u64,
        "a broken clock cannot make a version that does not fit"
    );
    assert!(Version::from_packed(1 << 63).is_err());
}

#[test]
fn keys_of_different_contents_differ() {
    let key = |t, c, i| ContentKey::parse(t, c, i).expect("a content");
    let keys = [
        key("a", "b", "c"),
        key("a", "bc", "c"),
        key("ab", "c", "c"),
        key("a", "b", "b.c"),
        key("a", "b.b", "c"),
    ];
    for (n, a) in keys.iter().enumerate() {
        for b in &keys[n + 1..] {
            assert_ne!(a.to_bytes(), b.to_bytes(), "{a} and {b}");
        }
    }
}

#[test]
fn words_and_ids_keep_their_rules() {
    for tenant in ["a", "0", "acme-1.eu_west", &"x".repeat(64)] {
        assert!(TenantId::parse(tenant).is_ok(), "{tenant}");
    }
    for tenant in ["", "_canary", "-a", ".a", "A", "a b", "ä", "a/b", &"x".repeat(65)] {
        assert!(TenantId::parse(tenant).is_err(), "{tenant}");
    }
    for content_type in ["jira.issue", "_", "-", "a", &"t".repeat(64)] {
        assert!(ContentType::parse(content_type).is_ok(), "{content_type}");
    }
    for content_type in ["", "Jira", "a/b", &"t".repeat(65)] {
        assert!(ContentType::parse(content_type).is_err(), "{content_type}");
    }
    for id in ["x", "a/b?c#d", "日本", &"i".repeat(256), &"é".repeat(128)] {
        assert!(ContentId::parse(id).is_ok(), "{id}");
    }
    for id in ["", "a\0b", "a\nb", "\u{85}", &"i".repeat(257), &"é".repeat(129)] {
        assert!(ContentId::parse(id).is_err(), "{id:?}");
    }
    assert!(UserId::parse(&"u".repeat(128)).is_ok() && UserId::parse(&"u".repeat(129)).is_err());
    assert_eq!(
        ContentId::parse("e\u{301}").expect("an id").as_str(),
        "e\u{301}",
        "ids are not normalised"
    );
}

#[test]
fn derived_write_ids_are_frozen_and_differ() {
    let (acme, ann) =
        (TenantId::parse("acme").expect("a tenant"), UserId::parse("ann").expect("a user"));
    let id = WriteId::derived(&acme, &ann, "key-1", 0);
    assert_eq!(id.to_string(), "4a985172cef89f4694d675fc2a851acb");
    let other = UserId::parse("annk").expect("a user");
    for different in [
        WriteId::derived(&acme, &ann, "key-1", 1),
        WriteId::derived(&acme, &ann, "key-2", 0),
        WriteId::derived(&acme, &other, "ey-1", 0),
        WriteId::derived(&TenantId::parse("acm").expect("a tenant"), &ann, "key-1", 0),
    ] {
        assert_ne!(id, different);
    }
}

/// Stores keep both hashes: they are frozen.
#[test]
fn an_idempotency_key_names_its_call_and_contents() {
    let (acme, ann) =
        (TenantId::parse("acme").expect("a tenant"), UserId::parse("ann").expect("a user"));
    let of = |key: &str, call, contents: &[(&str, &str)]| {
        IdempotencyKey::of_request(&acme, &ann, key, call, contents.iter().copied())
    };
    let first = of("key-1", Call::AddTag, &[("t", "1")]);
    assert_eq!(hex::encode(first.id), "7b9f9963fc2db0045934477159c109ce");
    assert_eq!(first.request, 0x34ad_dca1_0126_50e3);
    let mut requests = std::collections::HashSet::from([first.request]);
    for (call, contents) in [
        (Call::RemoveTag, &[("t", "1")][..]),
        (Call::Patch, &[("t", "1")]),
        (Call::Replace, &[("t", "1")]),
        (Call::BatchItem, &[("t", "1")]),
        (Call::AddTag, &[("t", "2")]),
        (Call::AddTag, &[("t1", "")]),
        (Call::AddTag, &[]),
        (Call::AddTag, &[("t", "1"), ("t", "1")]),
        (Call::AddTag, &[("t", "1"), ("t", "2")]),
    ] {
        let key = of("key-1", call, contents);
        assert_eq!(key.id, first.id);
        assert!(requests.insert(key.request), "{call:?} {contents:?} is a request of its own");
    }
    let order = [("t", "2"), ("t", "1")];
    assert_eq!(
        of("key-1", Call::AddTag, &order).request,
        of("key-1", Call::AddTag, &[order[1], order[0]]).request,
        "the order does not matter"
    );
    let (bob, other) =
        (UserId::parse("bob").expect("a user"), TenantId::parse("other").expect("a tenant"));
    let of = |tenant, user, key: &str| {
        IdempotencyKey::of_request(tenant, user, key, Call::AddTag, [("t", "1")])
    };
    for key in [of(&other, &ann, "key-1"), of(&acme, &bob, "key-1"), of(&acme, &ann, "key-2")] {
        assert_ne!(key.id, first.id);
        assert_eq!(key.request, first.request);
    }
    assert_ne!(WriteId(first.id), WriteId::derived(&acme, &ann, "key-1", 0), "no write has its id");
}

#[test]
fn operations_collapse_duplicates_and_refuse_nonsense() {
    let limits = Limits { tags_per_content: 3 };
    let same =
        Operation::patch(vec![tag("A"), tag("a"), tag("Ａ")], vec![], &limits).expect("one tag");
    assert!(
        matches!(&same, Operation::Patch { add, .. } if add.len() == 1 && &*add[0].display == "A")
    );
    assert_eq!(Operation::patch(vec![], vec![], &limits), Err(DomainError::NothingToDo));
    assert_eq!(
        Operation::patch(vec![tag("A")], vec![name("a")], &limits),
        Err(DomainError::AddedAndRemoved("a".to_owned()))
    );
    let four: Vec<Tag> = ["a", "b", "c", "d"].map(tag).into();
    let too_many = DomainError::TooManyTagsInWrite { allowed: 3, given: 4 };
    assert_eq!(Operation::patch(four.clone(), vec![], &limits), Err(too_many.clone()));
    assert_eq!(Operation::replace(four, &limits), Err(too_many.clone()));
    assert_eq!(too_many.limit(), Some(("tags_per_write", 3, 4)));
    assert_eq!(Operation::replace(vec![], &limits), Ok(Operation::Replace { tags: vec![] }));
}

#[test]
fn fingerprints_tell_operations_apart_and_not_spellings() {
    let of = |w: Write| w.operation.fingerprint(w.if_match.as_ref(), Some(Call::Patch));
    let different = [
        of(patch(0, &["a"], &[])),
        of(patch(0, &[], &["a"])),
        of(patch(0, &["a", "b"], &[])),
        of(patch(0, &["a"], &["b"])),
        of(patch(0, &["ab"], &[])),
        of(replace(0, &["a"])),
        of(replace(0, &[])),
        replace(0, &["a"]).operation.fingerprint(Some(&Version::NONE.into()), Some(Call::Patch)),
        patch(0, &["a"], &[]).operation.fingerprint(None, Some(Call::AddTag)),
        patch(0, &["a"], &[]).operation.fingerprint(None, Some(Call::BatchItem)),
        patch(0, &["a"], &[]).operation.fingerprint(None, None),
    ];
    for (n, a) in different.iter().enumerate() {
        assert!(!different[n + 1..].contains(a), "operation {n}");
    }
    assert_eq!(
        of(patch(0, &["Straße"], &[])),
        of(patch(0, &["STRASSE"], &[])),
        "a retry may spell otherwise"
    );
    assert_eq!(
        of(patch(0, &["b", "a"], &["d", "c"])),
        of(patch(0, &["a", "b", "A"], &["c", "d"])),
        "a set has no order"
    );
    assert_eq!(of(replace(0, &["a", "b"])), of(replace(0, &["b", "a"])));
    let frozen = |call| patch(0, &["a"], &[]).operation.fingerprint(None, call);
    assert_eq!(frozen(None), 2_688_525_454_187_327_844, "stored with each write id");
    assert_eq!(frozen(Some(Call::Patch)), 1_198_242_618_208_485_295, "stored with each write id");
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn versions_are_totally_ordered_and_grow(packed in 0..i64::MAX as u64 - 1, first in 0..1u64 << 40, second in 0..1u64 << 40) {
        let version = Version::from_packed(packed).expect("63 bits");
        let (a, b) = (epoch(first.min(second)), epoch(first.max(second)));
        let next = version.next(&a);
        prop_assert!(next > version && next >= a.first_version());
        prop_assert!(next.next(&b) > next && next.next(&b) >= b.first_version());
        prop_assert_eq!(next.to_string().parse::<Version>(), Ok(next));
        prop_assert!((a.first_version() < b.first_version()) == (a.ordinal < b.ordinal));
    }

    #[test]
    fn keys_round_trip(tenant in "[a-z0-9][a-z0-9._-]{0,20}", content_type in "[a-z0-9._-]{1,20}", id in "[^\\p{Cc}]{1,40}") {
        let key = ContentKey::parse(&tenant, &content_type, &id).expect("a content");
        prop_assert_eq!(ContentKey::from_bytes(&key.to_bytes()), Ok(key));
    }

    #[test]
    fn no_key_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = ContentKey::from_bytes(&bytes);
    }
}
