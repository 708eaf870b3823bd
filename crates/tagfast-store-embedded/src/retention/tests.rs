//! Retention: what is deleted, and what is never skipped.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tagfast_domain::{ContentKey, Operation, Tag, UserId, Write, WriteId};
use tagfast_events::bus::begin_at;
use tagfast_events::{BusError, BusPosition, ConsumerGroup, Positions};
use tagfast_resilience::ManualClock;
use tagfast_store::{TagWriter, WriteRequest};

use super::*;
use crate::queue::Queue;
use crate::{EmbeddedStore, OpenOptions};

const NOW: i64 = 1_800_000_000_000;
const HOUR: i64 = 3_600_000;

struct Fixture {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
}

impl Fixture {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            clock: Arc::new(ManualClock::new(NOW)),
        }
    }

    fn open(&self) -> Arc<EmbeddedStore> {
        let mut options =
            OpenOptions::new(self.dir.path().join("data"), Arc::clone(&self.clock) as _);
        options.files = 1;
        EmbeddedStore::open(options).expect("a store")
    }

    /// The file as its writer sees it; the store must be closed.
    fn file(&self) -> (Connection, FileState) {
        let path = crate::directory::file_path(&self.dir.path().join("data"), 0);
        let conn = schema::open_writer(&path, 1 << 20).expect("the file");
        let newest = AtomicU64::new(schema::last_position(&conn).expect("a position"));
        (
            conn,
            FileState {
                index: 0,
                queue: Queue::default(),
                newest,
                retained_from: AtomicU64::new(0),
                keys: Arc::default(),
            },
        )
    }
}

async fn write(store: &EmbeddedStore, n: u128) -> u64 {
    let operation = Operation::patch(
        vec![Tag::parse(&format!("t{n}")).expect("a tag")],
        vec![],
        &Default::default(),
    );
    let write = Write {
        id: WriteId((n + 1).to_be_bytes()),
        key: ContentKey::parse("t", "doc", &format!("page {}", n / 50)).expect("a content"),
        user: UserId::parse("u").expect("a user"),
        operation: operation.expect("a patch"),
        if_match: None,
    };
    let request = WriteRequest::new(write);
    store.write(request).await.expect("written").receipt.position.lsn
}

fn commit(conn: &Connection, group: &str, pos: u64) {
    let sql = "INSERT OR REPLACE INTO bus_offset VALUES (?1, ?2, 0, 0)";
    conn.execute(sql, params![group, pos.cast_signed()]).expect("an offset");
}

fn events(conn: &Connection) -> i64 {
    conn.query_row("SELECT count(*) FROM bus_event", [], |row| row.get(0)).expect("a count")
}

fn closed(store: Arc<EmbeddedStore>) {
    store.close();
    drop(store);
}

fn count(conn: &Connection, table: &str) -> i64 {
    conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a count")
}

/// Keys of 20 minutes: those that may still come are kept, the others go in bounded work.
#[tokio::test]
async fn idempotency_keys_are_kept_for_ten_minutes_and_deleted_after_twenty() {
    let f = Fixture::new();
    let store = f.open();
    for n in 0..5 {
        write(&store, n).await;
    }
    closed(store);
    let (conn, state) = f.file();
    let mut retention = Retention::new(0, ExpireBytes(1 << 30));
    retention.run(&conn, &state, NOW + limits::WRITE_ID_MEMORY_MS).expect("retention");
    assert_eq!(count(&conn, "idempotency_key"), 5, "known for at least ten minutes");
    let later = NOW + 2 * limits::WRITE_ID_MEMORY_MS;
    for n in 0..DELETE_BATCH + 1 {
        let insert = "INSERT INTO idempotency_key VALUES (?1, ?2, 0)";
        conn.execute(insert, params![key_slice(NOW), n.to_be_bytes()]).expect("a key");
        let insert = "INSERT INTO idempotency_key VALUES (?1, ?2, 0)";
        conn.execute(insert, params![key_slice(later), n.to_be_bytes()]).expect("a key");
    }
    assert!(retention.run(&conn, &state, later).expect("retention"), "a part at a time");
    assert_eq!(count(&conn, "idempotency_key"), 5 + DELETE_BATCH + 2);
    while retention.run(&conn, &state, later).expect("retention") {}
    assert_eq!(count(&conn, "idempotency_key"), DELETE_BATCH + 1, "the new ones stay");
}

/// A refusal of a content that was never written leaves a row, until the refusal is forgotten.
#[tokio::test]
async fn what_was_never_written_leaves_no_row_for_ever() {
    let f = Fixture::new();
    let store = f.open();
    write(&store, 0).await;
    let refuse = async |n: usize, id: u128| {
        let write = Write {
            id: WriteId(id.to_be_bytes()),
            key: ContentKey::parse("t", "doc", &format!("refused {n}")).expect("a content"),
            user: UserId::parse("u").expect("a user"),
            operation: Operation::replace(vec![], &Default::default()).expect("a replace"),
            if_match: Some(tagfast_domain::Version::from_packed(7).expect("a version").into()),
        };
        store.write(WriteRequest::new(write)).await.expect_err("it does not exist");
    };
    let many = NEVER_WRITTEN_BATCH + 20;
    for n in 0..many {
        refuse(n, 1000 + n as u128).await;
    }
    f.clock.advance(limits::WRITE_ID_MEMORY_MS / 2);
    // More than a document holds: some are in the table beside it.
    for id in 0..20 {
        refuse(7, 2000 + id).await;
    }
    closed(store);
    let (conn, state) = f.file();
    let mut retention = Retention::new(0, ExpireBytes(1 << 30));
    let mut sweep = |now| {
        while retention.run(&conn, &state, now).expect("retention") {}
        count(&conn, "content")
    };
    assert_eq!(sweep(NOW + limits::WRITE_ID_MEMORY_MS - 1), many as i64 + 1);
    assert_eq!(sweep(NOW + limits::WRITE_ID_MEMORY_MS), 2, "a refusal of it was remembered later");
    assert_eq!(sweep(NOW + limits::WRITE_ID_MEMORY_MS * 3 / 2), 1, "what was written stays");
}

#[tokio::test]
async fn events_wait_for_every_group_and_for_an_hour() {
    let f = Fixture::new();
    let store = f.open();
    for n in 0..10 {
        write(&store, n).await;
    }
    closed(store);
    let (conn, state) = f.file();
    let mut retention = Retention::new(0, ExpireBytes(1 << 30));
    assert!(!retention.run(&conn, &state, NOW + 2 * HOUR).expect("retention"));
    assert_eq!(events(&conn), 10, "without a group nothing is known to be done");
    commit(&conn, "indexer", 11);
    commit(&conn, "analytics", 4);
    retention.run(&conn, &state, NOW + HOUR / 2).expect("retention");
    assert_eq!(events(&conn), 10, "not an hour old");
    retention.run(&conn, &state, NOW + 2 * HOUR).expect("retention");
    assert_eq!(events(&conn), 7, "the slower group decides");
    assert_eq!(state.retained_from.load(Ordering::Acquire), 4);
}

#[tokio::test]
async fn positions_go_on_after_retention_emptied_the_table_and_a_restart() {
    let f = Fixture::new();
    let store = f.open();
    for n in 0..5 {
        write(&store, n).await;
    }
    closed(store);
    let (conn, state) = f.file();
    commit(&conn, "indexer", 6);
    Retention::new(0, ExpireBytes(1 << 30)).run(&conn, &state, NOW + 2 * HOUR).expect("retention");
    assert_eq!(events(&conn), 0);
    drop(conn);

    let store = f.open();
    let at = |next| {
        Positions::from([(
            tagfast_events::Partition(0),
            BusPosition {
                next,
                publisher_epochs: tagfast_events::PublisherEpochs::embedded(0),
                anchor: None,
            },
        )])
    };
    let mut consumer = begin_at(store.bus().as_ref(), ConsumerGroup("indexer"), &at(6))
        .await
        .expect("it has everything");
    assert_eq!(write(&store, 5).await, 6, "the next position, not the first one again");
    let records = consumer.poll(10, Duration::from_secs(10)).await.expect("records").into_records();
    assert_eq!(records.iter().map(|r| r.offset).collect::<Vec<_>>(), [6]);
    let behind = begin_at(store.bus().as_ref(), ConsumerGroup("analytics"), &at(3)).await;
    assert!(matches!(behind, Err(BusError::Expired { .. })), "what it needs is gone");
    begin_at(store.bus().as_ref(), ConsumerGroup("new"), &Positions::new())
        .await
        .expect("a new group begins at what there is");
}

#[tokio::test]
async fn a_group_too_far_behind_is_expired_and_holds_nothing_back() {
    let f = Fixture::new();
    let store = f.open();
    for n in 0..20 {
        write(&store, n).await;
    }
    closed(store);
    let (conn, state) = f.file();
    commit(&conn, "indexer", 21);
    commit(&conn, "analytics", 2);
    let mut retention = Retention::new(0, ExpireBytes(1 << 30));
    retention.run(&conn, &state, NOW + 6 * 24 * HOUR).expect("retention");
    assert_eq!(events(&conn), 19, "six days are allowed");
    // By size.
    let mut small = Retention::new(0, ExpireBytes(100));
    small.run(&conn, &state, NOW + 2 * HOUR).expect("retention");
    assert_eq!((events(&conn), small.expired.contains("analytics")), (0, true));
    drop(conn);

    // By age, with all groups stopped.
    let store = f.open();
    write(&store, 20).await;
    closed(store);
    let (conn, state) = f.file();
    commit(&conn, "indexer", 21);
    retention.run(&conn, &state, NOW + 8 * 24 * HOUR).expect("retention");
    assert_eq!(events(&conn), 0);
    assert_eq!(retention.expired.len(), 2, "{:?}", retention.expired);
}

#[tokio::test]
async fn a_running_consumer_whose_records_are_gone_gets_an_error() {
    let f = Fixture::new();
    let store = f.open();
    for n in 0..5 {
        write(&store, n).await;
    }
    let mut consumer = begin_at(store.bus().as_ref(), ConsumerGroup("indexer"), &Positions::new())
        .await
        .expect("a consumer");
    let (conn, _) = f.file();
    conn.execute("DELETE FROM bus_event WHERE pos <= 3", []).expect("deleted");
    let polled = consumer.poll(10, Duration::from_secs(1)).await;
    assert!(matches!(polled, Err(BusError::Expired { .. })), "{polled:?}");
    conn.execute("DELETE FROM bus_event", []).expect("deleted");
    let polled = consumer.poll(10, Duration::from_secs(1)).await;
    assert!(matches!(polled, Err(BusError::Expired { .. })), "{polled:?}");
}

#[tokio::test]
async fn much_is_deleted_in_chunks_and_old_ids_go_too() {
    let f = Fixture::new();
    closed(f.open());
    let (conn, state) = f.file();
    let insert = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
                  INSERT INTO bus_event (stripe, key, ver, at, emit, payload) SELECT 0, x'00', i, ?1, 0, x'00' FROM n";
    conn.execute(insert, [NOW]).expect("events");
    let insert = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500)
                  INSERT INTO applied SELECT x'00', i, 0, x'0000', i, CASE WHEN i <= 1200 THEN ?1 ELSE ?1 + 1000000 END FROM n";
    conn.execute(insert, [NOW]).expect("ids");
    state.newest.store(2500, Ordering::Release);
    commit(&conn, "indexer", 2501);
    let mut retention = Retention::new(0, ExpireBytes(1 << 30));
    // An hour later the ids are older than ten minutes; the younger ones stay.
    let now = NOW + HOUR + 1;
    let mut runs = 1;
    while retention.run(&conn, &state, now).expect("retention") {
        runs += 1;
    }
    assert_eq!((runs, events(&conn)), (3, 0));
    let left: i64 = conn
        .query_row("SELECT count(*) FROM applied WHERE at > ?1", [now - 600_000], |r| r.get(0))
        .expect("a count");
    let all: i64 =
        conn.query_row("SELECT count(*) FROM applied", [], |r| r.get(0)).expect("a count");
    assert_eq!(all, left);
}
