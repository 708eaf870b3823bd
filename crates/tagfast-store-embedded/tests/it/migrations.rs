//! Directories of older schema versions are migrated with all their data.

use std::sync::Arc;

use rusqlite::{Connection, params};
use tagfast_domain::{
    ContentKey, Document, Effect, EpochId, RecentWrite, RecordedOutcome, Refusal, Tagging, UserId,
    Version, codec,
};
use tagfast_events::DeadLetterFilter;
use tagfast_sharding::LogicalShard;
use tagfast_store::{History, StoreError, TagWriter};
use tagfast_store_embedded::{EmbeddedStore, OpenOptions};

use crate::support::{Fixture, NOW, add, key, reused, view, write};

const V1: &str = include_str!("v1.sql");
const V2: &str = include_str!("v2.sql");
const V3: &str = include_str!("v3.sql");
const V4: &str = include_str!("v4.sql");
const V5: &str = include_str!("v5.sql");

fn document(version: u64) -> Document {
    let version = Version::from_packed(version).expect("a version");
    let tag = tagfast_domain::Tag::parse("Kept Tag").expect("a tag");
    let user = UserId::parse("someone").expect("a user");
    let tagging = Tagging::of(tag, user, NOW, version);
    Document { version, taggings: vec![tagging], ..Document::default() }
}

fn stored_key(key: &ContentKey) -> Vec<u8> {
    [&[LogicalShard::of(key).number()], key.to_bytes().as_slice()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_version_1_opens_with_all_that_is_in_it() {
    let fixture = Fixture::new();
    let page = key("t", "page");
    std::fs::create_dir(fixture.dir()).expect("a directory");
    for n in 0..2 {
        let conn =
            Connection::open(fixture.dir().join(format!("store-{n}.sqlite"))).expect("a file");
        conn.execute_batch(V1).expect("version 1");
        conn.execute("INSERT INTO meta VALUES ('clean', '1')", []).expect("a row");
        if n == 0 {
            conn.execute("INSERT INTO meta VALUES ('files', '2'), ('created', '1')", [])
                .expect("rows");
            let epoch = "INSERT INTO epoch VALUES (?1, ?2, ?1, NULL)";
            conn.execute(epoch, params![NOW - 1000, [7u8; 16].as_slice()]).expect("an epoch");
        }
        if n == LogicalShard::of(&page).number() % 2 {
            let insert = "INSERT INTO content VALUES (?1, 41, ?2)";
            conn.execute(insert, params![stored_key(&page), codec::encode(&document(41))])
                .expect("a document");
            conn.execute("INSERT INTO sqlite_sequence VALUES ('bus_event', 100)", [])
                .expect("a position");
            conn.execute("INSERT INTO meta VALUES ('retained_from', '101')", []).expect("a row");
            let parked = "INSERT INTO bus_dlq VALUES (?1, 'indexer', 9, ?2, 41, 5, 6, x'7b7d', '{}', 'poison', 'code', 'why', 1, 0,
                          'open', NULL, 7, 8)";
            conn.execute(parked, params![format!("indexer/{n}/9"), page.to_bytes()])
                .expect("a dead letter");
        }
    }
    let store =
        EmbeddedStore::open(OpenOptions::new(fixture.dir(), Arc::clone(&fixture.clock) as _))
            .expect("it opens");
    assert_eq!(store.current_epoch().id, EpochId([7; 16]));
    let seen = view(&store, &page).await;
    assert_eq!((seen.version.packed(), &*seen.tags[0].display), (41, "Kept Tag"));
    let filter = DeadLetterFilter {
        tenant: Some("t".to_owned()),
        id_prefix: Some("page".to_owned()),
        ..DeadLetterFilter::default()
    };
    let parked = store.dead_letters().list(&filter, None, 10).await.expect("a page").dead_letters;
    assert_eq!(
        parked
            .iter()
            .map(|l| (l.dead_letter.code.as_str(), l.dead_letter.attempts))
            .collect::<Vec<_>>(),
        [("code", 1)]
    );
    let answer = write(&store, add(&page, &["new"])).await;
    assert_eq!(answer.receipt.position.lsn, 101, "positions go on");
}

/// A directory as version 2 left it after a restore, with a dead letter in a replay job.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_version_2_keeps_its_epoch_ends_and_dead_letters() {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.dir()).expect("a directory");
    let path = fixture.dir().join("store-0.sqlite");
    let conn = Connection::open(&path).expect("a file");
    conn.execute_batch(V1).expect("version 1");
    conn.execute_batch(V2).expect("version 2");
    conn.execute_batch(
        "INSERT INTO meta VALUES ('clean', '1'), ('files', '1'), ('created', '1');
         INSERT INTO epoch VALUES (1, zeroblob(16), 1, '40'), (2, x'07070707070707070707070707070707', 2, NULL);
         INSERT INTO bus_dlq (letter_id, grp, pos, key, ver, at, emit, payload, headers, class, code, message,
                              attempts, replays, state, first_failed_at, last_failed_at, job)
             VALUES ('indexer/0/9', 'indexer', 9, x'00', 41, 5, 6, x'7b7d', '[]', 'poison', 'code', 'why', 1, 0,
                     'open', 7, 8, 'job-1');
         INSERT INTO letter_job (id, dry_run, rate, at, letters, closed, busy) VALUES ('job-1', 0, 10, 5, 3, 2, 1);
         INSERT INTO letter_act (at, by, action, detail, letters) VALUES (5, 'ann', 'replay', 'all', 3);",
    )
    .expect("rows of version 2");
    drop(conn);
    let store =
        EmbeddedStore::open(OpenOptions::new(fixture.dir(), Arc::clone(&fixture.clock) as _))
            .expect("it opens");
    let shard = LogicalShard::of(&key("t", "page"));
    assert_eq!(store.epoch_end(shard, EpochId([0; 16])), Some(40));
    assert_eq!(store.epoch_end(shard, EpochId([7; 16])), Some(u64::MAX));
    store.close();
    let conn = Connection::open(&path).expect("a file");
    let text = |sql: &str| -> String { conn.query_row(sql, [], |row| row.get(0)).expect(sql) };
    assert_eq!(
        text("SELECT id || ' ' || job FROM dead_letter WHERE state = 'open'"),
        "indexer/0/9 job-1"
    );
    assert_eq!(text("SELECT id || ' ' || dead_letters FROM replay_job"), "job-1 3");
    let audit = "SELECT id || ' ' || actor || ' ' || dead_letters FROM dead_letter_audit";
    assert_eq!(text(audit), "1 ann 3");
}

/// A directory of version 3: the ids that its documents and its table remember are known, and what
/// is new is remembered beside them.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_version_3_knows_its_write_ids() {
    let fixture = Fixture::new();
    let page = key("t", "page");
    std::fs::create_dir(fixture.dir()).expect("a directory");
    let conn = Connection::open(fixture.dir().join("store-0.sqlite")).expect("a file");
    for sql in [V1, V2, V3] {
        conn.execute_batch(sql).expect("an older version");
    }
    conn.execute_batch(
        "INSERT INTO meta VALUES ('clean', '1'), ('files', '1'), ('created', '1');
         INSERT INTO epoch VALUES (1, x'07070707070707070707070707070707', 1, NULL);",
    )
    .expect("rows");
    let requests = [add(&page, &["in the document"]), add(&page, &["in the table"])];
    let [in_document, in_table] = requests.each_ref().map(|request| RecentWrite {
        id: request.write.id,
        // Before version 4 a key was not bound to its call.
        fingerprint: request.write.operation.fingerprint(None, None),
        version: Version::from_packed(40).expect("a version"),
        at: NOW,
        effect: Effect::default(),
        outcome: RecordedOutcome::Written,
    });
    let mut stored = document(41);
    stored.overflow_until = NOW + 600_000;
    stored.recent = vec![in_document];
    let bytes = codec::encode(&stored);
    assert_eq!(bytes[0], 1, "the format of version 3");
    let k = stored_key(&page);
    conn.execute("INSERT INTO content VALUES (?1, 41, ?2)", params![k, bytes]).expect("a document");
    conn.execute(
        "INSERT INTO applied VALUES (?1, ?2, ?3, x'0000', 40, ?4)",
        params![k, in_table.id.0.as_slice(), in_table.fingerprint.cast_signed(), NOW],
    )
    .expect("an evicted id");
    drop(conn);
    let store =
        EmbeddedStore::open(OpenOptions::new(fixture.dir(), Arc::clone(&fixture.clock) as _))
            .expect("it opens");
    let unchanged = add(&page, &["Kept Tag"]);
    let mut first = Vec::new();
    for request in requests.iter().chain([&unchanged]) {
        first.push(write(&store, request.clone()).await);
    }
    assert_eq!(first.iter().map(|a| a.repeated).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(view(&store, &page).await.tags.len(), 1, "no retry had an effect");
    let again = write(&store, unchanged).await;
    assert_eq!((again.repeated, again.version), (true, first[2].version));
}

/// A directory of version 4: its retries are answered, and its keys are bound from now on.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_version_4_answers_its_retries_and_binds_keys() {
    let fixture = Fixture::new();
    let (page, other) = (key("t", "page"), key("t", "other"));
    std::fs::create_dir(fixture.dir()).expect("a directory");
    let conn = Connection::open(fixture.dir().join("store-0.sqlite")).expect("a file");
    for sql in [V1, V2, V3, V4] {
        conn.execute_batch(sql).expect("an older version");
    }
    conn.execute_batch(
        "INSERT INTO meta VALUES ('clean', '1'), ('files', '1'), ('created', '1');
         INSERT INTO epoch VALUES (1, x'07070707070707070707070707070707', 1, NULL);",
    )
    .expect("rows");
    let known = add(&page, &["x"]);
    let mut stored = document(41);
    stored.recent = vec![RecentWrite {
        id: known.write.id,
        fingerprint: known.write.operation.fingerprint(None, known.keyed.map(|key| key.call)),
        version: Version::from_packed(41).expect("a version"),
        at: NOW,
        effect: Effect::default(),
        outcome: RecordedOutcome::Unchanged,
    }];
    conn.execute(
        "INSERT INTO content VALUES (?1, 41, ?2)",
        params![stored_key(&page), codec::encode(&stored)],
    )
    .expect("a document");
    // A content that was never written, whose refusal expired.
    let refused = Document::default();
    conn.execute(
        "INSERT INTO content VALUES (?1, 0, ?2)",
        params![stored_key(&key("t", "refused")), codec::encode(&refused)],
    )
    .expect("a row");
    drop(conn);
    let store =
        EmbeddedStore::open(OpenOptions::new(fixture.dir(), Arc::clone(&fixture.clock) as _))
            .expect("it opens");
    assert!(write(&store, known.clone()).await.repeated, "the retry is known");
    let error = store.write(reused(&known, &other)).await.expect_err("the key is bound now");
    assert!(matches!(error, StoreError::Refused(Refusal::KeyReused)), "{error}");
}

/// A new file has exactly the schema of its version: an edited migration would make two different
/// schemas of one version.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_has_the_schema_of_its_version() {
    let fixture = Fixture::new();
    fixture.open().close();
    let schema = |conn: &Connection| -> Vec<String> {
        let mut select = conn
            .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
            .expect("sql");
        let rows = select.query_map([], |row| row.get::<_, String>(0)).expect("rows");
        rows.map(|r| r.expect("a row").split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let made = Connection::open(fixture.dir().join("store-1.sqlite")).expect("a file");
    let golden = Connection::open_in_memory().expect("a database");
    golden.execute_batch(V1).expect("version 1");
    golden.execute_batch(V2).expect("version 2");
    golden.execute_batch(V3).expect("version 3");
    golden.execute_batch(V4).expect("version 4");
    golden.execute_batch(V5).expect("version 5");
    let pragma = |c: &Connection, name: &str| -> i64 {
        c.pragma_query_value(None, name, |r| r.get(0)).expect("a number")
    };
    for name in ["application_id", "user_version"] {
        assert_eq!(pragma(&made, name), pragma(&golden, name), "{name}");
    }
    assert_eq!(schema(&made), schema(&golden));
}
