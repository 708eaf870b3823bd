//! Faults, and what must hold in spite of them. Every scenario ends with the history checker.
//!
//! `cargo xtask test` runs those that need at most one lease to expire; `--full` runs all, with a
//! network namespace for each node (which needs root).

use std::sync::Arc;
use std::time::Duration;

use tagfast_resilience::{Clock, SystemClock};
use tagfast_store_postgres::{NullSink, PostgresStore};
use tagfast_testkit::stack::{Fault, NodeInfo, Stack};
use tokio::runtime::Handle;

use crate::load::{Checked, LIMIT, Load, Work};
use crate::support;

/// One scenario at a time: they break the same servers.
pub(crate) static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub(crate) const NODES: [&str; 3] = ["c0-n0", "c0-n1", "c0-n2"];
/// A write that was acknowledged this shortly before a crash may be missing on the replicas.
const UNREPLICATED: Duration = Duration::from_millis(1500);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Two API nodes over two healthy clusters.
async fn two_stores() -> [Arc<PostgresStore>; 2] {
    all_whole().await;
    let mut options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    options.limits.tags_per_content = LIMIT;
    let mut other = options.clone();
    // Two processes do not share breakers.
    other.breakers = tagfast_resilience::Breakers::new(Arc::new(SystemClock));
    [
        support::open(options, Arc::new(NullSink)).await,
        support::open(other, Arc::new(NullSink)).await,
    ]
}

/// Ends the faults that a failed test left behind, and waits until both clusters are healthy.
pub(crate) async fn all_whole() {
    on_stack(|stack| {
        for (fault, node) in
            NODES.into_iter().flat_map(|node| [(Fault::Thaw, node), (Fault::Heal, node)])
        {
            stack.fault(fault, node).expect("the fault ends");
        }
        for cluster in ["c0", "c1"] {
            stack.wait_until_healthy(cluster, 90 * SECOND).expect("healthy again");
        }
    })
    .await;
}

/// Runs blocking code that drives the stack.
pub(crate) async fn on_stack<T: Send + 'static>(
    work: impl FnOnce(&mut Stack) -> T + Send + 'static,
) -> T {
    tokio::task::spawn_blocking(move || work(&mut support::stack())).await.expect("no panic")
}

pub(crate) async fn fault(fault: Fault, target: &str) {
    let target = target.to_owned();
    on_stack(move |stack| stack.fault(fault, &target).expect("the fault is made")).await;
}

pub(crate) async fn primary() -> NodeInfo {
    on_stack(|stack| stack.primary("c0").expect("a primary")).await
}

pub(crate) async fn wait_all_healthy() {
    on_stack(|stack| stack.wait_until_healthy("c0", 120 * SECOND).expect("healthy again")).await;
}

/// A running scenario.
struct Scenario {
    what: &'static str,
    stores: [Arc<PostgresStore>; 2],
    load: Load,
}

/// The results of a scenario: of the broken cluster and of the other one.
struct Results {
    what: &'static str,
    clusters: [Checked; 2],
}

impl Scenario {
    /// Healthy clusters, two API nodes, clients at work for a second.
    async fn begin(what: &'static str) -> Self {
        let stores = two_stores().await;
        let process = |store: &Arc<PostgresStore>| (Arc::clone(store) as _, Handle::current());
        let processes = stores.each_ref().map(process);
        let run = what.replace(' ', "-");
        let work = Work { run: &run, clients: 4, clusters: 2, replicates: false };
        let load = Load::start(&processes, &work);
        let scenario = Self { what, stores, load };
        scenario.goes_on().await;
        scenario.load.acknowledged_after(0, scenario.load.now() + SECOND, 10 * SECOND).await;
        scenario
    }

    /// Waits until both clusters have acknowledged a write from now on.
    async fn goes_on(&self) {
        for cluster in [0, 1] {
            self.load.acknowledged_after(cluster, self.load.now(), 30 * SECOND).await;
        }
    }

    /// Ends the clients and checks. `fault`: from the fault until the cluster went on; `may_lose`:
    /// when writes may be lost.
    async fn end(self, fault: (Duration, Duration), may_lose: &[(Duration, Duration)]) -> Results {
        self.goes_on().await;
        let clusters = self.load.finish(&self.stores[0], may_lose).await;
        let results = Results { what: self.what, clusters };
        results.report(fault);
        results.check();
        results
    }
}

impl Results {
    /// What holds whatever the fault.
    fn check(&self) {
        for (cluster, checked) in self.clusters.iter().enumerate() {
            let what = self.what;
            assert_eq!(checked.findings.violations, [], "{what}: the history of c{cluster}");
            assert_eq!(
                checked.answers.failed_reads,
                Vec::<String>::new(),
                "{what}: failed reads of c{cluster}"
            );
            assert!(
                checked.answers.refused.iter().all(|(_, _, again)| *again),
                "{what}: {:?}",
                checked.answers.refused
            );
        }
        assert_eq!(
            self.clusters[1].answers.refused,
            [],
            "{}: the other cluster is not affected",
            self.what
        );
    }

    fn nothing_lost_nothing_refused(&self) {
        let broken = &self.clusters[0];
        assert_eq!(
            (broken.findings.counts.lost_in_allowed_periods, &broken.answers.refused),
            (0, &Vec::new()),
            "{}",
            self.what
        );
    }

    #[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
    fn report(&self, (from, to): (Duration, Duration)) {
        let [broken, other] = &self.clusters;
        let during = broken.answers.reads.iter().filter(|(at, _, _)| *at >= from && *at <= to);
        let marked = during.clone().filter(|(_, _, marked)| *marked).count();
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        println!(
            "{}: until it went on {:.2} s, largest gap {:.2} s (other cluster {:.2} s), \
             {} acknowledged, {} lost, {} refused for now; {} reads meanwhile, {marked} marked, \
             p99 {:.1} ms (before {:.1}; other cluster {:.1}, before {:.1})",
            self.what,
            (to - from).as_secs_f64(),
            broken.largest_gap().as_secs_f64(),
            other.largest_gap().as_secs_f64(),
            broken.acknowledged(),
            broken.findings.counts.lost_in_allowed_periods,
            broken.answers.refused.len(),
            during.count(),
            ms(broken.read_p99(from, to)),
            ms(broken.read_p99(Duration::ZERO, from)),
            ms(other.read_p99(from, to)),
            ms(other.read_p99(Duration::ZERO, from)),
        );
    }
}

/// The primary is killed; its writes wait and go on. Returns how long until the next leader term,
/// and until the next acknowledgement.
async fn kill_once() -> (Duration, Duration) {
    let scenario = Scenario::begin("primary killed").await;
    let since = scenario.load.now();
    fault(Fault::Kill, "c0").await;
    let term = scenario.load.next_term(0, since, 30 * SECOND).await;
    let went_on = term + scenario.load.acknowledged_after(0, term, 30 * SECOND).await;
    if support::full() {
        // The old primary comes back, is rewound, and serves reads again.
        wait_all_healthy().await;
    }
    let results =
        scenario.end((since, went_on), &[(since.saturating_sub(UNREPLICATED), went_on)]).await;
    assert_eq!(results.clusters[0].answers.refused, [], "its writes waited and went on");
    (term - since, went_on - since)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn the_primary_is_killed() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut took = Vec::new();
    for _ in 0..if support::full() { 20 } else { 1 } {
        let (term, went_on) = kill_once().await;
        took.push((went_on.as_secs_f64(), term.as_secs_f64()));
    }
    took.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!(
        "primary killed, {} runs: until the next acknowledged write (the next leader term) \
         {took:.2?} s",
        took.len()
    );
    assert!(took.iter().all(|(went_on, _)| *went_on < 10.0), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_loses_nothing_and_shows_no_error() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let scenario = Scenario::begin("switchover").await;
    let since = scenario.load.now();
    fault(Fault::Switchover, "c0").await;
    let term = scenario.load.next_term(0, since, 30 * SECOND).await;
    let went_on = term + scenario.load.acknowledged_after(0, term, 30 * SECOND).await;
    scenario.end((since, went_on), &[]).await.nothing_lost_nothing_refused();
}

/// The zombie: Patroni dies, PostgreSQL goes on committing while a replica is promoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patroni_is_killed_and_postgresql_lives() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let scenario = Scenario::begin("Patroni killed, PostgreSQL alive").await;
    let old = primary().await;
    let since = scenario.load.now();
    fault(Fault::KillPatroni, &old.name).await;
    let term = scenario.load.next_term(0, since, 60 * SECOND).await;
    let went_on = term + scenario.load.acknowledged_after(0, term, 30 * SECOND).await;
    // The clients go on for a while beside the zombie.
    scenario.load.acknowledged_after(0, went_on + 2 * SECOND, 30 * SECOND).await;
    fault(Fault::Restart, &old.name).await;
    scenario
        .end((term.saturating_sub(SECOND), went_on), &[(term.saturating_sub(2 * SECOND), went_on)])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_frozen() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let scenario = Scenario::begin("etcd frozen for 15 s").await;
    fault(Fault::Freeze, "etcd").await;
    let frozen = scenario.load.now();
    // While the lease lives it proves leadership; after that the members' answers do.
    scenario.load.acknowledged_after(0, frozen + 15 * SECOND, 40 * SECOND).await;
    fault(Fault::Thaw, "etcd").await;
    let thawed = scenario.load.now();
    let results = scenario.end((frozen, thawed), &[]).await;
    results.nothing_lost_nothing_refused();
    assert!(
        results.clusters[0].largest_gap() < 3 * SECOND,
        "{:?}",
        results.clusters[0].largest_gap()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_hangs() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let scenario = Scenario::begin("a replica hangs").await;
    let primary = primary().await.name;
    let replica = NODES.into_iter().find(|n| *n != primary).expect("a replica");
    fault(Fault::Hang, replica).await;
    let since = scenario.load.now();
    scenario.load.acknowledged_after(0, since + 4 * SECOND, 20 * SECOND).await;
    fault(Fault::Heal, replica).await;
    let healed = scenario.load.now();
    scenario.end((since, healed), &[]).await.nothing_lost_nothing_refused();
}

/// The primary receives and does not answer; Patroni, beside it, notices nothing. Writes that were
/// committed without an answer are found by their ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_hangs() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let scenario = Scenario::begin("the primary hangs").await;
    let old = primary().await.name;
    fault(Fault::Hang, &old).await;
    let since = scenario.load.now();
    tokio::time::sleep(6 * SECOND).await;
    fault(Fault::Heal, &old).await;
    let healed = scenario.load.now();
    let went_on = healed + scenario.load.acknowledged_after(0, healed, 30 * SECOND).await;
    let results = scenario.end((since, went_on), &[]).await;
    assert_eq!(results.clusters[0].findings.counts.lost_in_allowed_periods, 0);
}

/// Other sessions take every free connection of the cluster, and one of them locks the `content`
/// table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_queries_use_the_cluster_up() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let scenario = Scenario::begin("slow queries").await;
    let (host, database, password) = {
        let node = primary().await;
        let password =
            on_stack(|stack| std::fs::read_to_string(&stack.info().database.password_file)).await;
        (node.postgres, scenario.stores[0].database().to_owned(), password.expect("the password"))
    };
    let mut config = tokio_postgres::Config::new();
    config
        .host(host.ip().to_string())
        .port(host.port())
        .user("tagfast")
        .password(password)
        .dbname(database);
    let since = scenario.load.now();
    let mut others = Vec::new();
    // Until the server refuses more.
    while let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await {
        let driver = tokio::spawn(connection);
        others.push((client, driver));
        assert!(others.len() < 200, "the server has no limit");
    }
    assert!(others.len() > 20, "{} connections were free", others.len());
    let lock = "BEGIN; LOCK TABLE content IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3); COMMIT";
    let locker = others[0].0.batch_execute(lock);
    let sleepers = futures_util::future::join_all(
        others[1..].iter().map(|(c, _)| c.batch_execute("SELECT pg_sleep(3)")),
    );
    let (locked, slept) = futures_util::future::join(locker, sleepers).await;
    locked.expect("the table was locked for a while");
    slept.into_iter().for_each(|s| s.expect("it slept"));
    others.into_iter().for_each(|(_, driver)| driver.abort());
    let free = scenario.load.now();
    let went_on = free + scenario.load.acknowledged_after(0, free, 30 * SECOND).await;
    let results = scenario.end((since, went_on), &[]).await;
    results.nothing_lost_nothing_refused();
    let waited = results.clusters[1].largest_gap();
    assert!(waited < SECOND, "the other cluster waited {waited:?} for a lock that is not its own");
}

/// The second half of the matrix: needs more than one lease to expire, or network namespaces.
#[cfg(feature = "full")]
mod full {
    use super::*;
    use tagfast_testkit::wait_for_condition_async;

    /// The primary stands still for 35 s and wakes up believing that it still is one.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_primary_is_frozen_and_thawed() {
        let _turn = ONE_AT_A_TIME.lock().await;
        let scenario = Scenario::begin("node frozen 35 s").await;
        let old = primary().await.name;
        let since = scenario.load.now();
        fault(Fault::Freeze, &old).await;
        let frozen = scenario.load.now();
        let term = scenario.load.next_term(0, since, 60 * SECOND).await;
        let went_on = term + scenario.load.acknowledged_after(0, term, 30 * SECOND).await;
        scenario.load.acknowledged_after(0, since + 35 * SECOND, 60 * SECOND).await;
        fault(Fault::Thaw, &old).await;
        scenario.load.acknowledged_after(0, scenario.load.now() + 5 * SECOND, 30 * SECOND).await;
        wait_all_healthy().await;
        scenario
            .end((since, went_on), &[(since.saturating_sub(UNREPLICATED), frozen + SECOND)])
            .await;
    }

    /// The primary's link goes down; we are with the majority.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_primary_is_cut_off() {
        let _turn = ONE_AT_A_TIME.lock().await;
        let scenario = Scenario::begin("primary cut off").await;
        let old = primary().await.name;
        let since = scenario.load.now();
        fault(Fault::Cut, &old).await;
        let cut = scenario.load.now();
        let term = scenario.load.next_term(0, since, 60 * SECOND).await;
        let went_on = term + scenario.load.acknowledged_after(0, term, 30 * SECOND).await;
        fault(Fault::Heal, &old).await;
        wait_all_healthy().await;
        scenario.end((since, went_on), &[(since.saturating_sub(UNREPLICATED), cut + SECOND)]).await;
    }

    /// The primary is alone: writes and reads go on, proven by the lease.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn both_replicas_die() {
        let _turn = ONE_AT_A_TIME.lock().await;
        let scenario = Scenario::begin("both replicas dead").await;
        let primary = primary().await.name;
        let replicas: Vec<&str> = NODES.into_iter().filter(|n| *n != primary).collect();
        let since = scenario.load.now();
        for replica in &replicas {
            fault(Fault::KillNode, replica).await;
        }
        let dead = scenario.load.now();
        scenario.load.acknowledged_after(0, dead + 5 * SECOND, 30 * SECOND).await;
        for replica in &replicas {
            fault(Fault::Restart, replica).await;
        }
        wait_all_healthy().await;
        scenario.end((since, dead + 5 * SECOND), &[]).await.nothing_lost_nothing_refused();
    }

    /// All Patronis die, the lease expires, and the old primary's Patroni takes the free key again:
    /// no promotion, the same timeline, a new leader term.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_key_is_taken_again_without_a_promotion() {
        let _turn = ONE_AT_A_TIME.lock().await;
        let scenario = Scenario::begin("key taken again").await;
        let old = primary().await.name;
        let epoch = scenario.stores[0].status()[0].epoch;
        let since = scenario.load.now();
        for node in NODES {
            fault(Fault::KillPatroni, node).await;
        }
        wait_for_condition_async("the lease expires", 60 * SECOND, || async {
            let status = scenario.stores[0].status();
            if status[0].primary.is_none() { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
        let free = scenario.load.now();
        fault(Fault::Restart, &old).await;
        let term = scenario.load.next_term(0, since, 60 * SECOND).await;
        let went_on = term + scenario.load.acknowledged_after(0, term, 30 * SECOND).await;
        // The acknowledgement may have come through the other API node.
        wait_for_condition_async("the old primary in a new leader term", 10 * SECOND, || async {
            let status = scenario.stores[0].status();
            let again =
                status[0].primary.as_deref() == Some(old.as_str()) && status[0].epoch > epoch;
            if again { Ok(()) } else { Err(format!("{:?}, it was {old} in {epoch:?}", status[0])) }
        })
        .await;
        for node in NODES.into_iter().filter(|n| *n != old) {
            fault(Fault::Restart, node).await;
        }
        wait_all_healthy().await;
        let results = scenario.end((free, went_on), &[]).await;
        assert_eq!(results.clusters[0].findings.counts.lost_in_allowed_periods, 0);
    }

    /// A replica is removed and comes back empty; no API node is restarted.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_replica_is_removed_and_added() {
        let _turn = ONE_AT_A_TIME.lock().await;
        let scenario = Scenario::begin("replica removed and added").await;
        let primary = primary().await.name;
        let replica = NODES.into_iter().find(|n| *n != primary).expect("a replica");
        let since = scenario.load.now();
        fault(Fault::KillNode, replica).await;
        let replicas = |scenario: &Scenario| scenario.stores[0].status()[0].replicas.clone();
        wait_for_condition_async("it is no member any more", 60 * SECOND, || async {
            let known = replicas(&scenario);
            if known.iter().any(|n| n == replica) { Err(format!("{known:?}")) } else { Ok(()) }
        })
        .await;
        let name = replica.to_owned();
        on_stack(move |stack| {
            let dir = stack.info().node(&name).expect("a node").data_dir.clone();
            std::fs::remove_dir_all(dir).expect("its data is gone");
        })
        .await;
        fault(Fault::Restart, replica).await;
        wait_for_condition_async("it is a member again", 60 * SECOND, || async {
            let known = replicas(&scenario);
            if known.iter().any(|n| n == replica) { Ok(()) } else { Err(format!("{known:?}")) }
        })
        .await;
        wait_all_healthy().await;
        let back = scenario.load.now();
        scenario.load.acknowledged_after(0, back + 2 * SECOND, 30 * SECOND).await;
        scenario.end((since, back), &[]).await.nothing_lost_nothing_refused();
    }
}
