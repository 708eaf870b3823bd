//! A database of an older schema version is migrated in place.

use std::sync::Arc;

use tagfast_domain::{Document, Version, codec};
use tagfast_resilience::SystemClock;
use tagfast_sharding::LogicalShard;
use tagfast_store::TagReader;
use tagfast_store_postgres::NullSink;

use crate::support;
use crate::writes::{key_of, put};

/// Schema versions 1 and 2, as the builds before version 3 made them, with an epoch of their time.
const VERSION_2: &[&str] = &[
    include_str!("../../migrations/0001_store.sql"),
    include_str!("../../migrations/0002_dead_letters.sql"),
    "CREATE TABLE tagfast_schema (version int NOT NULL);
     INSERT INTO tagfast_schema VALUES (2);
     INSERT INTO epoch (ordinal, id, reign, timeline, minted_at, minted_by)
     VALUES (1, '\\x0101', 77, 1, clock_timestamp(), 'earlier');
     UPDATE turn SET outbox = 2;
     INSERT INTO tagfast_control.letter_act (at, by, action, detail, letters)
     VALUES (5, 'admin', 'discard', 'all', 3);",
];

#[tokio::test(flavor = "multi_thread")]
async fn an_older_schema_is_migrated_in_place() {
    let options = support::options(Arc::new(SystemClock)).await;
    let database = options.database.clone();
    for statements in VERSION_2 {
        support::execute(0, &database, statements).await;
    }
    let key = key_of(0, "migrated");
    let stored = tagfast_store::stored_key(LogicalShard::of(&key), &key.to_bytes());
    let version = Version::from_packed(41).expect("a version");
    let tag = tagfast_domain::Tag::parse("kept").expect("a tag");
    let user = tagfast_domain::UserId::parse("user").expect("a user");
    let taggings = vec![tagfast_domain::Tagging::of(tag, user, 1, version)];
    let document = Document { version, taggings, ..Document::default() };
    let row = format!(
        "INSERT INTO content VALUES ('\\x{}', 41, '\\x{}')",
        hex::encode(stored),
        hex::encode(codec::encode(&document))
    );
    support::execute(0, &database, &row).await;
    let store = support::open(options, Arc::new(NullSink)).await;
    put(&store, &key, "tag").await.expect("the migrated cluster takes writes");
    assert_eq!(store.view(&key, &Default::default()).await.expect("read").tags.len(), 2);
    for (query, expected) in [
        ("SELECT version FROM tagfast_schema", 6),
        ("SELECT count(*)::int FROM repair_log", 0),
        ("SELECT rev::int FROM content", 1),
        ("SELECT term::int FROM epoch WHERE ordinal = 1", 77),
        ("SELECT count(*)::int FROM rotation", 1),
        ("SELECT count(*)::int FROM idempotency_key_0", 0),
        (
            "SELECT dead_letters::int FROM tagfast_control.dead_letter_audit WHERE actor = 'admin'",
            3,
        ),
        ("SELECT (to_regclass('turn') IS NULL)::int", 1),
    ] {
        assert_eq!(support::number(0, &database, query).await, expected, "{query}");
    }
}
