//! Builders of writes, and strategies for random documents and writes.

use std::sync::Arc;

use proptest::prelude::*;
use tagfast_domain::*;

/// Cases of a property: a few hundred, 20 times as many with the feature `full`.
pub(crate) fn cases(count: u32) -> ProptestConfig {
    let full = cfg!(feature = "full");
    ProptestConfig {
        cases: if full { count * 20 } else { count },
        failure_persistence: None,
        ..Default::default()
    }
}

pub(crate) const LIMITS: Limits = Limits { tags_per_content: 6 };
/// 2027-01-15 in Unix milliseconds.
pub(crate) const T0: UnixMillis = 1_800_000_000_000;

pub(crate) fn epoch(ordinal_ms_after_t0: u64) -> Epoch {
    Epoch {
        id: EpochId([ordinal_ms_after_t0 as u8; 16]),
        ordinal: EpochOrdinal(T0 as u64 + ordinal_ms_after_t0),
    }
}

pub(crate) fn id(n: u64) -> WriteId {
    WriteId(u128::from(n).to_be_bytes())
}

pub(crate) fn tag(spelling: &str) -> Tag {
    Tag::parse(spelling).expect("a tag")
}

pub(crate) fn name(spelling: &str) -> TagName {
    TagName::parse(spelling).expect("a tag")
}

pub(crate) fn write(n: u64, operation: Operation) -> Write {
    let key = ContentKey::parse("acme", "test.doc", "1").expect("a content");
    Write { id: id(n), key, user: UserId::parse("ann").expect("a user"), operation, if_match: None }
}

pub(crate) fn patch(n: u64, add: &[&str], remove: &[&str]) -> Write {
    let add = add.iter().map(|s| tag(s)).collect();
    let remove = remove.iter().map(|s| name(s)).collect();
    write(n, Operation::patch(add, remove, &Limits::default()).expect("a patch"))
}

pub(crate) fn replace(n: u64, set: &[&str]) -> Write {
    write(
        n,
        Operation::replace(set.iter().map(|s| tag(s)).collect(), &Limits::default())
            .expect("a replace"),
    )
}

pub(crate) fn live(doc: &Document) -> Vec<&str> {
    doc.live().map(|t| t.name.as_str()).collect()
}

/// Random operations over few tags, so that they collide.
pub(crate) fn any_operation() -> impl Strategy<Value = Operation> {
    let spelling = (0..10u8, any::<bool>())
        .prop_map(|(n, upper)| if upper { format!("T{n}") } else { format!("t{n}") });
    let list = prop::collection::vec(spelling, 0..5);
    (list.clone(), list, 0..5u8).prop_map(|(first, second, kind)| {
        let tags: Vec<Tag> = first.iter().map(|s| tag(s)).collect();
        if kind == 0 {
            return Operation::replace(tags, &Limits::default()).expect("a replace");
        }
        let remove =
            second.iter().map(|s| name(s)).filter(|n| tags.iter().all(|t| t.name != *n)).collect();
        let alone =
            || Operation::patch(Vec::new(), vec![name("t0")], &Limits::default()).expect("a patch");
        Operation::patch(tags, remove, &Limits::default()).unwrap_or_else(|_| alone())
    })
}

fn any_text() -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 0..12).prop_map(|c| c.into_iter().collect())
}

fn any_version(at_most: u64) -> impl Strategy<Value = Version> {
    (0..=at_most).prop_map(|v| Version::from_packed(v).expect("63 bits"))
}

fn any_effect() -> impl Strategy<Value = Effect> {
    let names =
        || prop::collection::vec(any_text().prop_map(|s| TagName::from_canonical(&s)), 0..4);
    (names(), names()).prop_map(|(added, removed)| Effect { added, removed })
}

fn any_outcome() -> impl Strategy<Value = RecordedOutcome> {
    prop_oneof![
        3 => Just(RecordedOutcome::Written),
        1 => Just(RecordedOutcome::Unchanged),
        1 => Just(RecordedOutcome::VersionMismatch),
        1 => any::<(usize, usize)>()
            .prop_map(|(allowed, given)| RecordedOutcome::TooManyTags { allowed, given }),
    ]
}

/// Any document that the types allow, not only documents made by `apply`.
pub(crate) fn any_document() -> impl Strategy<Value = Document> {
    (0..=i64::MAX as u64).prop_flat_map(|newest| {
        let tagging = (
            any_text(),
            any_text(),
            any_text(),
            any::<bool>(),
            any::<i64>(),
            any_version(newest),
            any::<bool>(),
        );
        let taggings = prop::collection::btree_map(any_text(), tagging, 0..12);
        let answer = (any_effect(), any_outcome());
        let write = (any::<[u8; 16]>(), any::<u64>(), any_version(newest), any::<i64>(), answer);
        let recent = prop::collection::vec(write, 0..9);
        (any_version(newest), any_version(newest), any::<i64>(), taggings, recent).prop_map(
            move |(absent_since, last_conditional, overflow_until, taggings, recent)| Document {
                version: Version::from_packed(newest).expect("63 bits"),
                absent_since,
                last_conditional,
                overflow_until,
                taggings: taggings
                    .into_iter()
                    .map(|(name, (display, user, _, own, at, decided_at, present))| {
                        let name = TagName::from_canonical(&name);
                        let display: Arc<str> = if own { display.into() } else { name.shared() };
                        Tagging {
                            name,
                            display,
                            user: UserId::from_stored(&user),
                            at,
                            decided_at,
                            present,
                        }
                    })
                    .collect(),
                recent: recent
                    .into_iter()
                    .map(|(id, fingerprint, version, at, (effect, outcome))| RecentWrite {
                        id: WriteId(id),
                        fingerprint,
                        version,
                        at,
                        effect,
                        outcome,
                    })
                    .collect(),
            },
        )
    })
}
