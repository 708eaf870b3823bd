//! Clusters with Patroni's `synchronous_mode`: what an acknowledgement waits for, what is told when
//! no standby confirms, and that nothing is acknowledged without one.

use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{Call, IdempotencyKey};
use tagfast_store::{
    Consistency, ReadOptions, StoreError, TagReader, TagWriter, WriteAnswer, WriteRequest,
};
use tagfast_store_postgres::{
    ClusterOptions, NullSink, PostgresOptions, PostgresStore, SynchronousCommit,
};
use tagfast_testkit::http::Client;
use tagfast_testkit::stack::{Fault, SharedStack, Stack, StackOptions, patroni};
use tagfast_testkit::{wait_for_condition, wait_for_condition_async};

use crate::support;
use crate::writes::{key_of, put, request};

const SECOND: Duration = Duration::from_secs(1);
const NODES: [&str; 3] = ["c0-n0", "c0-n1", "c0-n2"];

/// One test at a time: they break the same servers.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn on_stack<T: Send + 'static>(work: impl FnOnce(&mut Stack) -> T + Send + 'static) -> T {
    static SHARED: SharedStack = SharedStack::new();
    let get = || SHARED.get(|base| StackOptions { clusters: 1, synchronous: true, ..base });
    tokio::task::spawn_blocking(move || work(&mut get())).await.expect("no panic")
}

/// Changes Patroni's configuration, and waits until it has a synchronous standby to promote.
async fn configure(change: &'static str) {
    on_stack(move |stack| {
        let primary = stack.primary("c0").expect("a primary");
        let mut client = Client::new(primary.direct_patroni).with_timeout(10 * SECOND);
        let answer = client.request("PATCH", "/config", &[], Some(change)).expect("an answer");
        answer.expect(200);
        wait_for_condition("Patroni has a synchronous standby", 60 * SECOND, || {
            let members = patroni::members(primary.direct_patroni).map_err(|e| e.to_string())?;
            let found = members.iter().any(|member| member.role == "sync_standby");
            if found { Ok(()) } else { Err(format!("{members:?}")) }
        });
    })
    .await;
}

async fn session(
    database: &str,
) -> (tokio_postgres::Client, tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>) {
    let (address, info) = on_stack(|stack| {
        let primary = stack.primary("c0").expect("a primary");
        (primary.postgres.to_string(), stack.info().database.clone())
    })
    .await;
    let password = std::fs::read_to_string(&info.password_file).expect("the password");
    support::connect(&address, &info.user, &password, database).await
}

async fn fault(fault: Fault, nodes: &[String]) {
    let nodes = nodes.to_vec();
    on_stack(move |stack| {
        for node in nodes {
            stack.fault(fault, &node).expect("the fault is made");
        }
    })
    .await;
}

async fn replicas() -> Vec<String> {
    let primary = on_stack(|stack| stack.primary("c0").expect("a primary").name).await;
    NODES.into_iter().filter(|node| *node != primary).map(str::to_owned).collect()
}

/// A healthy cluster in this mode, a store whose commits wait like this, and its database.
async fn open(mode: &'static str, synchronous_commit: SynchronousCommit) -> Arc<PostgresStore> {
    fault(Fault::Thaw, &NODES.map(str::to_owned)).await;
    on_stack(|stack| stack.wait_until_healthy("c0", 90 * SECOND).expect("healthy")).await;
    configure(mode).await;
    let (info, etcd) = on_stack(|stack| {
        let etcd = stack.info().etcd.iter().map(|server| server.url.clone()).collect();
        (stack.info().database.clone(), etcd)
    })
    .await;
    let password = std::fs::read_to_string(&info.password_file).expect("the password");
    let options = PostgresOptions {
        synchronous_commit,
        hold: 8 * SECOND,
        ..PostgresOptions::new(
            vec![ClusterOptions::new("c0", "0-63")],
            etcd,
            info.name,
            info.user,
            password,
        )
    };
    support::open(options, Arc::new(NullSink)).await
}

const LOOSE: &str = r#"{"synchronous_mode": true, "synchronous_mode_strict": false}"#;
const STRICT: &str = r#"{"synchronous_mode": true, "synchronous_mode_strict": true}"#;

async fn warns(store: &PostgresStore, within: Duration, word: &str) {
    wait_for_condition_async(&format!("{word:?} is told"), within, || async {
        let warnings = store.status().remove(0).warnings;
        if warnings.iter().any(|text| text.contains(word)) {
            Ok(())
        } else {
            Err(format!("{warnings:?}"))
        }
    })
    .await;
}

async fn warns_of_nothing(store: &PostgresStore) {
    wait_for_condition_async("nothing is weak", 30 * SECOND, || async {
        let mut warnings = store.status().remove(0).warnings;
        warnings.retain(|text| !support::is_of_etcd(text));
        if warnings.is_empty() { Ok(()) } else { Err(format!("{warnings:?}")) }
    })
    .await;
}

fn keyed(name: &str, tag: &str) -> WriteRequest {
    let request = request(&key_of(0, name), tag);
    let key = IdempotencyKey::of_write(request.write.id, Call::Patch, &request.write.key.content);
    WriteRequest { keyed: Some(key), ..request }
}

fn is_unknown(answer: &Result<WriteAnswer, StoreError>) -> bool {
    matches!(answer, Err(error) if error.is_outcome_unknown())
}

/// `local`: the standbys are not waited for, and that is told.
#[tokio::test(flavor = "multi_thread")]
async fn local_commits_do_not_wait_for_a_standby_and_status_says_so() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let store = open(STRICT, SynchronousCommit::Local).await;
    warns(&store, 5 * SECOND, "store.synchronous_commit is `local`").await;
    let replicas = replicas().await;
    fault(Fault::Freeze, &replicas).await;
    put(&store, &key_of(0, "local"), "tag").await.expect("acknowledged without a standby");
    fault(Fault::Thaw, &replicas).await;
}

/// `on`, and a standby is lost that Patroni can replace or do without: writes pause, then go on,
/// and what they are worth then is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_standby_pauses_writes_until_patroni_has_reacted() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let store = open(LOOSE, SynchronousCommit::On).await;
    warns_of_nothing(&store).await;
    put(&store, &key_of(0, "loose"), "healthy").await.expect("acknowledged");
    let replicas = replicas().await;
    fault(Fault::Freeze, &replicas).await;
    let during = keyed("loose", "during");
    wait_for_condition_async("Patroni goes on without a standby", 60 * SECOND, || async {
        // The same write again and again, as a client retries it.
        store.write(during.clone()).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    warns(&store, 5 * SECOND, "the primary alone").await;
    fault(Fault::Thaw, &replicas).await;
    warns_of_nothing(&store).await;
    let again = store.write(during).await.expect("acknowledged");
    assert!(again.repeated && again.added.len() == 1, "{again:?}");
}

/// `on`, and no standby confirms: nothing is acknowledged, neither a write, nor its retry, nor one
/// that changes nothing; each is told so in time, and all is settled when the standby is back.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_that_no_standby_confirmed() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let store = open(STRICT, SynchronousCommit::On).await;
    warns_of_nothing(&store).await;
    put(&store, &key_of(0, "strict"), "old").await.expect("acknowledged");
    let replicas = replicas().await;
    fault(Fault::Freeze, &replicas).await;
    let write = keyed("strict", "new");
    let first = tokio::spawn({
        let (store, write) = (Arc::clone(&store), write.clone());
        async move { store.write(write).await }
    });
    // Either the standby is still listed, or the primary has dropped it.
    wait_for_condition_async("the cause is told", 5 * SECOND, || async {
        let warnings = store.status().remove(0).warnings;
        let told = warnings.iter().any(|text| text.contains("synchronous standby"));
        if told { Ok(()) } else { Err(format!("{warnings:?}")) }
    })
    .await;
    let first = first.await.expect("no panic");
    assert!(is_unknown(&first), "{first:?}");
    // The wait was cancelled: the write is on the primary, and a reader may see it.
    let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    let view = store.view(&key_of(0, "strict"), &strong).await.expect("a strong read");
    assert_eq!(view.tags.len(), 2, "committed locally: {view:?}");
    let (retry, unchanged) = tokio::join!(
        store.write(write.clone()),
        store.write(request(&key_of(0, "strict"), "old")),
    );
    assert!(retry.is_err() && unchanged.is_err(), "{retry:?} {unchanged:?}");
    // No session of a write that was given up stays behind.
    let waiting = "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    wait_for_condition_async("no commit waits", 10 * SECOND, || async {
        let (client, driver) = session("tagfast").await;
        let row = client.query_one(waiting, &[]).await.expect("a row");
        driver.abort();
        let count: i32 = row.get(0);
        if count == 0 { Ok(()) } else { Err(count) }
    })
    .await;
    warns(&store, 5 * SECOND, "no synchronous standby streams").await;
    fault(Fault::Thaw, &replicas).await;
    wait_for_condition_async("the retry is settled", 60 * SECOND, || async {
        match store.write(write.clone()).await {
            Ok(answer) if answer.repeated && answer.added.len() == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    warns_of_nothing(&store).await;
}

/// PostgreSQL calls a commit successful whose wait was cancelled, with a warning only.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_wait_is_no_acknowledgement() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let store = open(STRICT, SynchronousCommit::On).await;
    let replicas = replicas().await;
    fault(Fault::Freeze, &replicas).await;
    let write = keyed("cancelled", "tag");
    let first = tokio::spawn({
        let (store, write) = (Arc::clone(&store), write.clone());
        async move { store.write(write).await }
    });
    let cancel = "SELECT count(pg_cancel_backend(pid))::int FROM pg_stat_activity
                  WHERE wait_event = 'SyncRep' AND application_name = 'tagfast-write'";
    wait_for_condition_async("a wait is cancelled", 5 * SECOND, || async {
        let (client, driver) = session("tagfast").await;
        let row = client.query_one(cancel, &[]).await.expect("a row");
        driver.abort();
        if row.get::<_, i32>(0) > 0 { Ok(()) } else { Err("no commit waits") }
    })
    .await;
    let first = first.await.expect("no panic");
    assert!(is_unknown(&first), "{first:?}");
    fault(Fault::Thaw, &replicas).await;
    wait_for_condition_async("the retry is settled", 60 * SECOND, || async {
        let answer = store.write(write.clone()).await.map_err(|error| error.to_string())?;
        if answer.repeated { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

/// What is acknowledged outlives the primary: Patroni promotes a synchronous standby.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_loses_no_acknowledged_write() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let store = open(LOOSE, SynchronousCommit::On).await;
    warns_of_nothing(&store).await;
    let primary = on_stack(|stack| stack.primary("c0").expect("a primary").name).await;
    let acknowledged = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (store, acknowledged) = (Arc::clone(&store), Arc::clone(&acknowledged));
            tokio::spawn(async move {
                for n in 0.. {
                    let key = key_of(0, &format!("kept {writer} {n}"));
                    match put(&store, &key, "tag").await {
                        Ok(_) => acknowledged.lock().push(key),
                        Err(_) => return,
                    }
                    if acknowledged.lock().len() > 6_000 {
                        return;
                    }
                }
            })
        })
        .collect();
    wait_for_condition_async("writes are acknowledged", 30 * SECOND, || async {
        let count = acknowledged.lock().len();
        if count > 500 { Ok(()) } else { Err(count) }
    })
    .await;
    fault(Fault::KillNode, std::slice::from_ref(&primary)).await;
    for writer in writers {
        writer.await.expect("no panic");
    }
    assert!(store.wait_until_ready(60 * SECOND).await, "{:?}", store.status());
    let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    let keys = acknowledged.lock().clone();
    for key in &keys {
        let view = wait_for_condition_async("a strong read", 30 * SECOND, || async {
            store.view(key, &strong).await.map_err(|error| error.to_string())
        })
        .await;
        assert_eq!(view.tags.len(), 1, "{key} is lost, of {} acknowledged", keys.len());
    }
    fault(Fault::Restart, &[primary]).await;
    on_stack(|stack| stack.wait_until_healthy("c0", 90 * SECOND).expect("healthy")).await;
}
