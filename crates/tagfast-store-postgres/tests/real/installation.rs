//! A wrong installation is reported for its cluster and does not stop the other cluster; TLS.

use std::sync::Arc;
use std::time::Duration;

use tagfast_resilience::{Clock, Credential, Secret, SystemClock};
use tagfast_store::TagReader;
use tagfast_store_postgres::{ClusterStatus, NullSink, PostgresOptions, PostgresStore, Tls};
use tagfast_testkit::wait_for_condition_async;

use crate::support;
use crate::writes::{key_of, put};

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

async fn options() -> PostgresOptions {
    support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await
}

/// Opens a store, waits until c1 takes writes and c0 reports `word` as its problem.
async fn problem_of_c0(options: PostgresOptions, word: &str) {
    let store = PostgresStore::open(options, Arc::new(NullSink))
        .expect("a wrong installation does not fail startup");
    wait_for_condition_async("c0's problem is reported and c1 serves", TEST_TIMEOUT, || async {
        let status = store.status();
        let named = status[0].problem.as_deref().is_some_and(|p| p.contains(word));
        if named && status[1].primary.is_some() {
            Ok(())
        } else {
            Err(format!("no {word:?} in {status:?}"))
        }
    })
    .await;
    put(&store, &key_of(1, "other"), "tag").await.expect("the other cluster takes writes");
    let refused = put(&store, &key_of(0, "this"), "tag").await.expect_err("this one does not");
    assert!(refused.is_retryable(), "{refused}");
}

fn short(options: PostgresOptions) -> PostgresOptions {
    PostgresOptions { hold: Duration::from_millis(200), ..options }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_another_application_are_refused() {
    let options = options().await;
    support::execute(0, &options.database, "CREATE TABLE content (what text)").await;
    problem_of_c0(short(options), "another application").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_reported() {
    let options = options().await;
    let read_only =
        format!("ALTER DATABASE {} SET default_transaction_read_only = on", options.database);
    support::execute(0, &options.database, &read_only).await;
    problem_of_c0(short(options), "default_transaction_read_only").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_database_is_reported() {
    let options = options().await;
    support::execute(0, "tagfast", &format!("DROP DATABASE {}", options.database)).await;
    problem_of_c0(short(options), "store.database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_that_no_patroni_has_is_reported() {
    let mut options = options().await;
    options.clusters[0].scope = "unknown".to_owned();
    problem_of_c0(short(options), "/service/unknown/").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_reported() {
    let mut options = options().await;
    options.password = tagfast_resilience::Secret::new("wrong".to_owned()).into();
    let store = PostgresStore::open(options, Arc::new(NullSink))
        .expect("a wrong installation does not fail startup");
    wait_for_condition_async("both clusters report it", TEST_TIMEOUT, || async {
        let status = store.status();
        let named = status
            .iter()
            .all(|c| c.problem.as_deref().is_some_and(|p| p.contains("store.password_file")));
        if named { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_does_not_answer_is_reported() {
    let mut options = options().await;
    options.etcd = vec!["http://127.0.0.1:9".to_owned().into()];
    let store = PostgresStore::open(options, Arc::new(NullSink))
        .expect("a wrong installation does not fail startup");
    wait_for_condition_async(
        "it is reported and the nodes are known from Patroni",
        TEST_TIMEOUT,
        || async {
            let status = store.status();
            let named = status
                .iter()
                .all(|c| c.problem.as_deref().is_some_and(|p| p.contains("store.etcd")));
            if named && status.iter().all(|c| c.replicas.len() == 3) {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_installation_has_no_warnings() {
    let store = support::open(options().await, Arc::new(NullSink)).await;
    // The watcher warns once it has checked more than that there is a primary.
    let etcd_is_old = support::etcd_is_old().await;
    wait_for_condition_async("what is weak is told", TEST_TIMEOUT, || async {
        let status = store.status();
        let of_etcd = |c: &ClusterStatus| c.warnings.iter().any(|text| support::is_of_etcd(text));
        if status.iter().all(|c| of_etcd(c) == etcd_is_old) {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    let status = store.status();
    let others = status.iter().flat_map(|c| &c.warnings).filter(|text| !support::is_of_etcd(text));
    assert_eq!(others.collect::<Vec<_>>(), Vec::<&String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_nodes_use_tls() {
    let mut options = options().await;
    let authorities = support::authority().await;
    options.tls = Some(Tls { authorities: authorities.into(), names: true });
    let store = support::open(options.clone(), Arc::new(NullSink)).await;
    let key = key_of(0, "encrypted");
    put(&store, &key, "tag").await.expect("written");
    assert_eq!(store.view(&key, &Default::default()).await.expect("read").tags.len(), 1);
    let plain = "SELECT count(*)::int FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)
                 WHERE datname = current_database() AND application_name LIKE 'tagfast-%'
                 AND NOT ssl";
    assert_eq!(
        support::number(0, &options.database, plain).await,
        0,
        "no session of ours is plain"
    );
    let encrypted = plain.replace("NOT ssl", "ssl");
    assert!(support::number(0, &options.database, &encrypted).await > 3);
    drop(store);

    // A different authority: no node is trusted, whether names matter or not.
    for names in [true, false] {
        options.tls = Some(Tls { authorities: support::unrelated_authority().into(), names });
        let store = PostgresStore::open(options.clone(), Arc::new(NullSink))
            .expect("a wrong installation does not fail startup");
        wait_for_condition_async("the certificate is refused", TEST_TIMEOUT, || async {
            let status = store.status();
            let named = |p: &str| p.contains("certificate") || p.contains("UnknownIssuer");
            if status.iter().all(|c| c.problem.as_deref().is_some_and(named)) {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        })
        .await;
    }
}

/// Authorities are read again: a store that trusts no node takes writes once the right authority is
/// there, and trusts no new connection once it is gone, while its open connections go on.
#[tokio::test(flavor = "multi_thread")]
async fn changed_authorities_are_trusted_without_a_restart() {
    let mut options = options().await;
    let authorities = Credential::new("store.tls_ca_file", support::unrelated_authority());
    options.tls = Some(Tls { authorities: authorities.clone(), names: true });
    let store = PostgresStore::open(options.clone(), Arc::new(NullSink)).expect("it opens");
    wait_for_condition_async("the certificate is refused", TEST_TIMEOUT, || async {
        let status = store.status();
        let refused = status.iter().all(|c| c.primary.is_none() && c.problem.is_some());
        if refused { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    authorities.replace(support::authority().await);
    assert!(store.wait_until_ready(TEST_TIMEOUT).await, "{:?}", store.status());
    let key = key_of(0, "rotated");
    put(&store, &key, "tag").await.expect("written");
    authorities.replace(support::unrelated_authority());
    put(&store, &key, "more").await.expect("the open connection goes on");
    let stranger = PostgresStore::open(options, Arc::new(NullSink)).expect("it opens");
    assert!(!stranger.wait_until_ready(Duration::from_secs(2)).await, "it trusts no node");
}

/// A role's password is changed at the servers before and after its credential.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_password_is_followed_by_the_one_before() {
    let mut options = options().await;
    let password = Credential::new("store.password_file", options.password.newest().value);
    options.password = password.clone();
    let store = support::open(options.clone(), Arc::new(NullSink)).await;
    password.replace(Secret::new("not yet".to_owned()));
    let second = support::open(options, Arc::new(NullSink)).await;
    let key = key_of(0, "former");
    put(&second, &key, "tag").await.expect("written with the former password");
    let problem = password.problem().expect("the newest one is refused");
    assert!(problem.contains("authentication") && problem.contains("before"), "{problem}");
    drop(store);
}
