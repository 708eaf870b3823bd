//! What keeps calls of a cluster from being done is named with its cause, also while nothing is
//! called, and heals without help. Each cell breaks one database of cluster c0 in its own way; the
//! cells run at the same time. Faults of a whole server are in `tagfast/tests/real`.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tagfast_domain::ContentKey;
use tagfast_resilience::{LabelEnum, SystemClock};
use tagfast_store::{Consistency, ReadOptions, StoreError, TagReader, TagWriter};
use tagfast_store_postgres::{
    CallKind, ClusterStatus, FailureCause, NullSink, PostgresOptions, PostgresStore,
};
use tagfast_testkit::wait_for_condition_async;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support;
use crate::writes::{key_of, put, request};

/// How long it may take until a cause is named, and until it is no longer: 5 s, and three times
/// that on a machine that runs other tests meanwhile.
const NAMED_WITHIN: Duration = Duration::from_secs(if cfg!(feature = "full") { 5 } else { 15 });
/// For how long calls that succeed are watched: longer than a cause takes to be named.
const CALM: Duration = Duration::from_secs(5);
/// A wait that only ends a test which fails anyway.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The outbox of the stores, in bytes, from which writes are refused.
const OUTBOX_BYTES: u64 = 8 << 20;

/// A way to break a database, and what must be said of it.
struct Cell {
    name: &'static str,
    /// Statements, sent in a session of a different database; `{d}` is the broken one.
    outside: [&'static str; 2],
    /// Statements, sent in a session of the database itself, which is held until the end.
    inside: [&'static str; 2],
    /// `None`: nothing fails.
    cause: Option<FailureCause>,
}

/// Ends the sessions of the service, so that the next ones get what was set.
const END_SESSIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = '{d}' AND application_name LIKE 'tagfast-%'";

/// A trigger of the statement that writes, which also fires when it writes nothing.
macro_rules! trigger {
    ($statement:literal) => {
        concat!(
            "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ",
            $statement,
            "; RETURN NULL; END $$;
             CREATE TRIGGER broken BEFORE INSERT ON content EXECUTE FUNCTION broken()"
        )
    };
}

const NO_TRIGGER: &str = "DROP FUNCTION broken() CASCADE";

const CELLS: &[Cell] = &[
    Cell {
        name: "read-only by database",
        outside: [
            "ALTER DATABASE {d} SET default_transaction_read_only = on",
            "ALTER DATABASE {d} RESET default_transaction_read_only",
        ],
        inside: ["", ""],
        cause: Some(FailureCause::ReadOnly),
    },
    Cell {
        name: "read-only by role",
        outside: [
            "ALTER ROLE tagfast IN DATABASE {d} SET default_transaction_read_only = on",
            "ALTER ROLE tagfast IN DATABASE {d} RESET default_transaction_read_only",
        ],
        inside: ["", ""],
        cause: Some(FailureCause::ReadOnly),
    },
    Cell {
        name: "table locked",
        outside: ["", ""],
        inside: ["BEGIN; LOCK TABLE content IN ACCESS EXCLUSIVE MODE", "COMMIT"],
        cause: Some(FailureCause::Locked),
    },
    Cell {
        name: "table locked against writes",
        outside: ["", ""],
        inside: ["BEGIN; LOCK TABLE outbox_0, outbox_1, outbox_2 IN SHARE MODE", "COMMIT"],
        cause: Some(FailureCause::Locked),
    },
    Cell {
        name: "no right to insert",
        outside: ["", ""],
        inside: ["REVOKE INSERT ON content FROM tagfast", "GRANT INSERT ON content TO tagfast"],
        cause: Some(FailureCause::MissingRight),
    },
    Cell {
        name: "no right to read",
        outside: ["", ""],
        inside: ["REVOKE SELECT ON content FROM tagfast", "GRANT SELECT ON content TO tagfast"],
        cause: Some(FailureCause::MissingRight),
    },
    Cell {
        name: "table renamed",
        outside: ["", ""],
        inside: [
            "ALTER TABLE content RENAME TO content_elsewhere",
            "ALTER TABLE content_elsewhere RENAME TO content",
        ],
        cause: Some(FailureCause::SchemaChanged),
    },
    Cell {
        name: "column renamed",
        outside: ["", ""],
        inside: [
            "ALTER TABLE content RENAME COLUMN rev TO rev_elsewhere",
            "ALTER TABLE content RENAME COLUMN rev_elsewhere TO rev",
        ],
        cause: Some(FailureCause::SchemaChanged),
    },
    Cell {
        name: "no connection left",
        outside: [
            "ALTER DATABASE {d} CONNECTION LIMIT 0",
            "ALTER DATABASE {d} CONNECTION LIMIT -1",
        ],
        inside: ["", ""],
        cause: Some(FailureCause::TooManyConnections),
    },
    Cell {
        name: "outbox full",
        outside: ["", ""],
        inside: [
            "INSERT INTO outbox_2 (n, k, event)
             SELECT g, convert_to(repeat(md5(g::text), 20), 'UTF8'),
                    convert_to(repeat(md5(g::text), 20), 'UTF8')
             FROM generate_series(1, 20000) g",
            "TRUNCATE outbox_2",
        ],
        cause: Some(FailureCause::OutboxFull),
    },
    Cell {
        name: "disk full",
        outside: ["", ""],
        inside: [trigger!("RAISE SQLSTATE '53100'"), NO_TRIGGER],
        cause: Some(FailureCause::DiskFull),
    },
    Cell {
        name: "out of memory",
        outside: ["", ""],
        inside: [trigger!("RAISE SQLSTATE '53200'"), NO_TRIGGER],
        cause: Some(FailureCause::OutOfResources),
    },
    Cell {
        name: "a limit of PostgreSQL",
        outside: ["", ""],
        inside: [trigger!("RAISE SQLSTATE '54000'"), NO_TRIGGER],
        cause: Some(FailureCause::OutOfResources),
    },
    Cell {
        name: "an error that no table knows",
        outside: ["", ""],
        inside: [trigger!("RAISE SQLSTATE 'ZZ999'"), NO_TRIGGER],
        cause: Some(FailureCause::Other),
    },
    Cell {
        name: "statements that do not end",
        outside: ["", ""],
        inside: [trigger!("PERFORM pg_sleep(60)"), NO_TRIGGER],
        cause: Some(FailureCause::NoAnswer),
    },
    Cell {
        name: "a newer schema",
        outside: ["", ""],
        inside: [
            "UPDATE tagfast_schema SET version = version + 100",
            "UPDATE tagfast_schema SET version = version - 100",
        ],
        cause: None,
    },
    Cell {
        name: "one row locked",
        outside: ["", ""],
        inside: ["BEGIN; SELECT FROM content FOR UPDATE", "COMMIT"],
        cause: None,
    },
];

/// The causes for which writes of a cluster fail.
fn causes(status: &ClusterStatus) -> Vec<FailureCause> {
    let writes = status.failing.iter().filter(|failing| failing.calls == CallKind::Writes);
    writes.map(|failing| failing.cause).collect()
}

/// Whether a cluster names this cause: as that of its writes, or as what keeps it from having a
/// primary.
fn is_named(status: &ClusterStatus, cause: FailureCause) -> bool {
    let problem = status.problem.as_ref().filter(|_| status.primary.is_none());
    let of_primary = cause == FailureCause::TooManyConnections
        && problem.is_some_and(|problem| problem.contains("53300"));
    of_primary || causes(status) == [cause]
}

/// Whether a cluster is told to do its work.
fn is_ready(status: &ClusterStatus) -> bool {
    status.primary.is_some() && status.failing.is_empty()
}

/// Waits until the status of c0 is as wanted; how long it took. What c0 suffers, c1 does not.
async fn until(
    cell: &Cell,
    store: &PostgresStore,
    wanted: impl Fn(&ClusterStatus) -> bool,
) -> Duration {
    let began = Instant::now();
    wait_for_condition_async(cell.name, TEST_TIMEOUT, || async {
        let status = store.status();
        let struck = cell.cause.is_some_and(|cause| is_named(&status[1], cause));
        let busy = [FailureCause::NoAnswer, FailureCause::Slow];
        let may_be = cell.cause.is_some_and(|cause| busy.contains(&cause));
        assert!(!struck || may_be, "{}: c1 is not concerned: {:?}", cell.name, status[1]);
        if wanted(&status[0]) { Ok(()) } else { Err(format!("{:?}", status[0])) }
    })
    .await;
    began.elapsed()
}

/// Writes; a server that many tests keep busy may be too slow for a first attempt.
async fn put_at_last(store: &PostgresStore, key: &ContentKey, tag: &str) {
    wait_for_condition_async("written", TEST_TIMEOUT, || async {
        put(store, key, tag).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

#[expect(clippy::print_stdout, reason = "how long each cell took is a figure")]
async fn run(cell: &Cell, calls: bool) {
    // Where all callers write the one row that is locked, most calls do fail.
    if calls && cell.cause.is_none() {
        return;
    }
    let base = support::options(Arc::new(SystemClock)).await;
    let database = base.database.clone();
    let hold = Duration::from_secs(2);
    let options = PostgresOptions { outbox_bytes: OUTBOX_BYTES, relay: false, hold, ..base };
    let store = support::open(options, Arc::new(NullSink)).await;
    let keys = [key_of(0, "struck"), key_of(1, "spared")];
    for key in &keys {
        put_at_last(&store, key, "before").await;
    }
    until(cell, &store, is_ready).await;
    let (inside, driver) = support::session(0, &database).await;
    let (outside, other_driver) = support::session(0, "tagfast").await;
    let send = async |n: usize| {
        let outer = cell.outside[n].replace("{d}", &database);
        if !outer.is_empty() {
            outside.batch_execute(&outer).await.expect("it runs");
            outside.batch_execute(&END_SESSIONS.replace("{d}", &database)).await.expect("it runs");
        }
        if !cell.inside[n].is_empty() {
            inside.batch_execute(cell.inside[n]).await.expect("it runs");
        }
    };
    // They end with the set.
    let mut writers = JoinSet::new();
    for key in keys.iter().filter(|_| calls) {
        writers.spawn(write_on(Arc::clone(&store), key.clone()));
        writers.spawn(write_on(Arc::clone(&store), key.clone()));
    }

    send(0).await;
    let Some(cause) = cell.cause else {
        // Longer than a cause takes to be named, with calls that do succeed.
        let began = Instant::now();
        let free = key_of(0, "free");
        while began.elapsed() < CALM {
            put_at_last(&store, &free, "during").await;
            assert!(is_ready(&store.status()[0]), "{}: {:?}", cell.name, store.status()[0]);
        }
        send(1).await;
        return store.close().await;
    };
    let named = until(cell, &store, |status| is_named(status, cause)).await;
    println!("{}, calls {calls}: named after {named:?}", cell.name);
    assert!(named < NAMED_WITHIN, "{}: named after {named:?}", cell.name);
    // Each call says why, and that it did nothing; the other cluster's succeed.
    let refused = put(&store, &keys[0], "during").await.expect_err(cell.name);
    let text = refused.to_string();
    let full = cause == FailureCause::OutboxFull && text.contains("the outbox queue is full");
    assert!(full || text.contains(&format!("({})", cause.as_str())), "{}: {text}", cell.name);
    assert!(!refused.is_outcome_unknown() && refused.is_retryable(), "{}: {text}", cell.name);
    put_at_last(&store, &keys[1], "during").await;
    assert!(is_named(&store.status()[0], cause), "{}: it lasts", cell.name);

    send(1).await;
    let healed = until(cell, &store, is_ready).await;
    println!("{}, calls {calls}: ready again after {healed:?}", cell.name);
    assert!(healed < NAMED_WITHIN, "{}: ready again after {healed:?}", cell.name);
    put_at_last(&store, &keys[0], "after").await;
    let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    let view = store.view(&keys[0], &strong).await.expect("read");
    assert!(view.tags.iter().any(|tag| tag.name.as_str() == "after"), "{}", cell.name);
    writers.shutdown().await;
    store.close().await;
    driver.abort();
    other_driver.abort();
}

/// Writes one content again and again until it is aborted.
async fn write_on(store: Arc<PostgresStore>, key: ContentKey) {
    for round in 0.. {
        let mut request = request(&key, &format!("w{}", round % 5));
        request.deadline = Some(Instant::now() + Duration::from_secs(1));
        match store.write(request).await {
            Ok(_) => {}
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

async fn run_all(calls: bool) {
    // A few at a time: each has a store with its connections. One that fails stops no other.
    let mut failed = Vec::new();
    for cells in CELLS.chunks(4) {
        let run = async |cell: &Cell| {
            let ended = AssertUnwindSafe(run(cell, calls)).catch_unwind().await;
            ended.is_err().then_some(cell.name)
        };
        failed.extend(join_all(cells.iter().map(run)).await.into_iter().flatten());
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// The canaries of idle lanes find it.
#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_writes_from_being_done_is_named_while_nothing_is_written() {
    run_all(false).await;
}

/// The writes themselves find it.
#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_writes_from_being_done_is_named_while_many_are_written() {
    run_all(true).await;
}

/// A write that is late in the queue did not happen; one that was sent may have.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_write_says_why_it_is_late_and_whether_it_may_have_happened() {
    let options = support::options(Arc::new(SystemClock)).await;
    let database = options.database.clone();
    let store = support::open(options, Arc::new(NullSink)).await;
    let key = key_of(0, "late");
    put(&store, &key, "before").await.expect("written");
    let (locker, driver) = support::session(0, &database).await;
    locker.batch_execute("BEGIN; SELECT FROM content FOR UPDATE").await.expect("locked");
    let late = |tag: &str| {
        let mut request = request(&key, tag);
        request.deadline = Some(Instant::now() + Duration::from_millis(800));
        store.write(request)
    };
    // The first one is in the statement that waits for the row, the second one in the queue.
    let (sent, queued) = tokio::join!(late("sent"), async {
        wait_for_condition_async("the first one waits", TEST_TIMEOUT, || async {
            let waiting =
                "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                AND application_name = 'tagfast-write' AND datname = current_database()";
            match support::number(0, &database, waiting).await {
                0 => Err("not yet".to_owned()),
                _ => Ok(()),
            }
        })
        .await;
        late("queued").await
    });
    let deadline = |result: Result<tagfast_store::WriteAnswer, StoreError>| match result {
        Err(error @ StoreError::Deadline { .. }) => (error.is_outcome_unknown(), error.to_string()),
        other => panic!("{other:?}"),
    };
    let ((sent, sent_text), (queued, queued_text)) = (deadline(sent), deadline(queued));
    assert!(sent && !queued, "{sent_text}; {queued_text}");
    for text in [sent_text, queued_text] {
        assert!(text.contains("(no_answer)") || text.contains("(locked)"), "{text}");
    }
    locker.batch_execute("COMMIT").await.expect("ended");
    driver.abort();
    store.close().await;
}
