//! Long transactions beside the relay: those of other databases, and those that only read, do not
//! hold it; those of its own database are named until they end.

use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::UnixMillis;
use tagfast_resilience::{Clock, SystemClock};
use tagfast_store_postgres::PostgresStore;
use tagfast_store_postgres::testing::RecordingSink;
use tagfast_testkit::wait_for_condition_async;

use crate::support;
use crate::writes::{key_of, put};

/// Other tests need the xmin of the first cluster.
const CLUSTER: usize = 1;
/// A long transaction must be named within this time.
const NAMED_WITHIN: Duration = Duration::from_secs(5);
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How a transaction stays open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It has an id and its session is idle.
    Idle,
    /// It has more subtransactions than a session caches.
    Subtransactions,
    /// It is prepared and its session goes on.
    Prepared,
    /// It runs a statement.
    Busy,
    /// It has a snapshot and no id.
    Reading,
}

impl Kind {
    const WITH_ID: [Self; 4] = [Self::Idle, Self::Subtransactions, Self::Prepared, Self::Busy];

    fn begin(self, gid: &str) -> String {
        match self {
            Self::Idle | Self::Busy => "BEGIN; SELECT pg_current_xact_id()".to_owned(),
            Self::Subtransactions => "BEGIN; CREATE TEMP TABLE held (n int);
                 DO $$ BEGIN FOR i IN 1..100 LOOP
                     BEGIN INSERT INTO held VALUES (i); EXCEPTION WHEN others THEN NULL; END;
                 END LOOP; END $$"
                .to_owned(),
            Self::Prepared => {
                format!("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION '{gid}'")
            }
            Self::Reading => {
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class".to_owned()
            }
        }
    }
}

/// An open transaction.
struct Holder {
    kind: Kind,
    gid: String,
    pid: i32,
    client: Arc<tokio_postgres::Client>,
    _driver: tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl Holder {
    async fn begin(kind: Kind, database: &str) -> Self {
        let (client, driver) = support::session(CLUSTER, database).await;
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("a row").get(0);
        let gid = format!("held-in-{database}");
        client.batch_execute(&kind.begin(&gid)).await.expect("it begins");
        let client = Arc::new(client);
        if kind == Kind::Busy {
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(600)").await });
        }
        Self { kind, gid, pid, client, _driver: driver }
    }

    /// What its name in the status says.
    fn name(&self) -> String {
        match self.kind {
            Kind::Prepared => format!("prepared transaction \"{}\"", self.gid),
            Kind::Idle | Kind::Subtransactions | Kind::Busy | Kind::Reading => {
                format!("pid {} ", self.pid)
            }
        }
    }

    async fn end(self) {
        match self.kind {
            Kind::Prepared => {
                let statement = format!("ROLLBACK PREPARED '{}'", self.gid);
                self.client.batch_execute(&statement).await.expect("it ends");
            }
            Kind::Busy => {
                let token = self.client.cancel_token();
                token.cancel_query(tokio_postgres::NoTls).await.expect("cancelled");
                // After the cancelled statement.
                self.client.batch_execute("ROLLBACK").await.expect("it ends");
            }
            Kind::Idle | Kind::Subtransactions | Kind::Reading => {
                self.client.batch_execute("ROLLBACK").await.expect("it ends");
            }
        }
    }
}

struct Relaying {
    sink: Arc<RecordingSink>,
    store: Arc<PostgresStore>,
    database: String,
}

impl Relaying {
    async fn new() -> Self {
        let options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
        let (database, sink) = (options.database.clone(), Arc::new(RecordingSink::default()));
        let store = support::open(options, Arc::clone(&sink) as _).await;
        Self { sink, store, database }
    }

    async fn write(&self, name: &str) {
        put(&self.store, &key_of(CLUSTER, name), "tag").await.expect("written");
    }

    fn has(&self, name: &str) -> bool {
        let key = key_of(CLUSTER, name);
        self.sink.events().iter().any(|event| event.key == key)
    }

    async fn publishes(&self, name: &str) {
        wait_for_condition_async(&format!("{name:?} is published"), TEST_TIMEOUT, || async {
            if self.has(name) { Ok(()) } else { Err(self.status()) }
        })
        .await;
    }

    fn status(&self) -> String {
        format!("{:?}", self.store.status()[CLUSTER].long_transactions)
    }

    fn through(&self) -> UnixMillis {
        let name = &self.store.status()[CLUSTER].name;
        self.sink.through().get(name).copied().unwrap_or_default()
    }
}

/// Fails without the proof which transactions are of other databases: the snapshot's xmin stands
/// still for all of them.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_of_other_databases_and_readers_do_not_hold_the_relay() {
    let relaying = Relaying::new().await;
    let other = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await.database;
    relaying.write("before").await;
    relaying.publishes("before").await;
    let mut holders = vec![Holder::begin(Kind::Reading, &relaying.database).await];
    for kind in Kind::WITH_ID {
        holders.push(Holder::begin(kind, &other).await);
    }
    for n in 0..20 {
        relaying.write(&format!("meanwhile {n}")).await;
    }
    relaying.publishes("meanwhile 19").await;
    for n in 0..20 {
        assert!(relaying.has(&format!("meanwhile {n}")), "none is missed: {n}");
    }
    let now = SystemClock.now_ms();
    wait_for_condition_async("a heartbeat promises it", TEST_TIMEOUT, || async {
        if relaying.through() >= now { Ok(()) } else { Err(relaying.through()) }
    })
    .await;
    let rows = "SELECT (SELECT count(*) FROM outbox_0)::int + (SELECT count(*) FROM outbox_1)::int
                     + (SELECT count(*) FROM outbox_2)::int";
    wait_for_condition_async("the outbox is emptied", TEST_TIMEOUT, || async {
        let left = support::number(CLUSTER, &relaying.database, rows).await;
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    relaying.store.drained().await;
    assert_eq!(relaying.status(), "[]", "no transaction holds the relay");
    for holder in holders {
        holder.end().await;
    }
    relaying.write("after").await;
    relaying.publishes("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_transaction_of_the_own_database_is_named_until_it_ends() {
    let relaying = Relaying::new().await;
    for kind in Kind::WITH_ID {
        let (during, after) = (format!("during {kind:?}"), format!("after {kind:?}"));
        let holder = Holder::begin(kind, &relaying.database).await;
        relaying.write(&during).await;
        let name = holder.name();
        wait_for_condition_async(&format!("{name:?} is named"), NAMED_WITHIN, || async {
            let status = relaying.store.status();
            let named = |text: &String| text.contains(&name) && text.contains(&relaying.database);
            let [others @ .., of] = &status[..] else { return Err("no cluster".to_owned()) };
            assert!(others.iter().all(|c| c.long_transactions.is_empty()), "{others:?}");
            if of.long_transactions.iter().any(named) { Ok(()) } else { Err(relaying.status()) }
        })
        .await;
        assert!(!relaying.has(&during), "order cannot be promised while it lasts: {kind:?}");
        holder.end().await;
        relaying.write(&after).await;
        relaying.publishes(&after).await;
        assert!(relaying.has(&during), "in the order of commits: {kind:?}");
        wait_for_condition_async("none is named any more", TEST_TIMEOUT, || async {
            let status = relaying.status();
            if status == "[]" { Ok(()) } else { Err(status) }
        })
        .await;
    }
}
