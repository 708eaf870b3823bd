//! Directories of older schema versions open, with everything in them.

use std::sync::Arc;

use rusqlite::{Connection, params};
use tagfast_domain::{ContentKey, Document, EpochId, Tagging, UserId, Version, codec};
use tagfast_events::LetterFilter;
use tagfast_sharding::LogicalShard;
use tagfast_store_embedded::{EmbeddedStore, OpenOptions};

use crate::support::{Fixture, NOW, add, key, view, write};

const V1: &str = include_str!("v1.sql");
const V2: &str = include_str!("v2.sql");

fn document(version: u64) -> Document {
    let version = Version::from_packed(version).expect("a version");
    let tag = tagfast_domain::Tag::parse("Kept Tag").expect("a tag");
    let user = UserId::parse("somebody").expect("a user");
    let tagging = Tagging {
        name: tag.name,
        display: tag.display,
        user,
        at: NOW,
        ord: version,
        present: true,
    };
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
            let letter = "INSERT INTO bus_dlq VALUES (?1, 'indexer', 9, ?2, 41, 5, 6, x'7b7d', '{}', 'poison', 'code', 'why', 1, 0,
                          'open', NULL, 7, 8)";
            conn.execute(letter, params![format!("indexer/{n}/9"), page.to_bytes()])
                .expect("a letter");
        }
    }
    let store =
        EmbeddedStore::open(OpenOptions::new(fixture.dir(), Arc::clone(&fixture.clock) as _))
            .expect("it opens");
    assert_eq!(store.current_epoch().id, EpochId([7; 16]));
    let seen = view(&store, &page).await;
    assert_eq!((seen.version.packed(), &*seen.tags[0].display), (41, "Kept Tag"));
    let filter = LetterFilter {
        tenant: Some("t".to_owned()),
        id_prefix: Some("page".to_owned()),
        ..LetterFilter::default()
    };
    let letters = store.letters().list(&filter, None, 10).await.expect("a page").letters;
    assert_eq!(
        letters.iter().map(|l| (l.letter.code.as_str(), l.letter.attempts)).collect::<Vec<_>>(),
        [("code", 1)]
    );
    let answer = write(&store, add(&page, &["new"])).await;
    assert_eq!(answer.receipt.position.lsn, 101, "positions go on");
}

/// The statements of each version are what the program still makes: a changed one would be a second
/// version of that number.
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
    let pragma = |c: &Connection, name: &str| -> i64 {
        c.pragma_query_value(None, name, |r| r.get(0)).expect("a number")
    };
    for name in ["application_id", "user_version"] {
        assert_eq!(pragma(&made, name), pragma(&golden, name), "{name}");
    }
    assert_eq!(schema(&made), schema(&golden));
}
