//! What breaks, and what must hold all the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tagfast_resilience::{Clock, SystemClock};
use tagfast_store_postgres::{Discard, PostgresStore};
use tagfast_testkit::stack::Fault;

use crate::kit;
use crate::load::{Load, Told, acknowledged_by_replaced, largest_gap, lost, read_p99};

/// One scenario at a time: they break the same servers.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Two API nodes over two clusters that are whole.
async fn two_stores() -> [Arc<PostgresStore>; 2] {
    on_stack(|stack| {
        for cluster in ["c0", "c1"] {
            stack.wait_until_whole(cluster, Duration::from_secs(90)).expect("whole again");
        }
    })
    .await;
    let options = kit::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    [kit::open(options.clone(), Arc::new(Discard)).await, kit::open(options, Arc::new(Discard)).await]
}

/// The stack is driven by blocking code.
async fn on_stack<T: Send + 'static>(work: impl FnOnce(&mut tagfast_testkit::stack::Stack) -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(move || work(&mut kit::stack())).await.expect("no panic")
}

async fn fault(fault: Fault, target: &str) {
    let target = target.to_owned();
    on_stack(move |stack| stack.fault(fault, &target).expect("the fault is made")).await;
}

/// What holds whatever breaks.
fn check(what: &str, told: &[Told; 2]) {
    for (cluster, told) in told.iter().enumerate() {
        assert_eq!(acknowledged_by_replaced(told), 0, "{what}: acknowledged by a replaced primary of c{cluster}");
        assert_eq!(told.went_back, Vec::<String>::new(), "{what}: reads with a token went back on c{cluster}");
        assert_eq!(told.failed_reads, Vec::<String>::new(), "{what}: failed reads of c{cluster}");
        assert!(told.refused.iter().all(|(_, _, again)| *again), "{what}: {:?}", told.refused);
    }
    assert_eq!(told[1].refused, Vec::new(), "{what}: the other cluster notices nothing");
}

#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
fn report(what: &str, told: &[Told; 2], lost: usize, rto: Option<Duration>) {
    let [broken, other] = told;
    let marked = broken.reads.iter().filter(|(_, _, marked)| *marked).count();
    println!(
        "{what}: until the next acknowledgement {:.2} s, largest gap {:.2} s (other cluster {:.2} s), {} acknowledged, \
         {lost} lost, {} refused for now; {} reads, {marked} marked, p99 {:.1} ms (other cluster {:.1} ms)",
        rto.unwrap_or_default().as_secs_f64(),
        largest_gap(broken).as_secs_f64(),
        largest_gap(other).as_secs_f64(),
        broken.acknowledged.len(),
        broken.refused.len(),
        broken.reads.len(),
        read_p99(broken).as_secs_f64() * 1000.0,
        read_p99(other).as_secs_f64() * 1000.0,
    );
}

async fn warm(load: &Load) {
    for cluster in [0, 1] {
        load.acknowledged_after(cluster, Instant::now(), Duration::from_secs(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_is_killed() {
    let _turn = TURN.lock().await;
    let stores = two_stores().await;
    let load = Load::start(&stores, "kill", 4);
    warm(&load).await;
    let since = Instant::now();
    fault(Fault::Kill, "c0").await;
    // What was under way when it died may still be answered: it was committed.
    let later = since + Duration::from_millis(500);
    let rto = load.acknowledged_after(0, later, Duration::from_secs(30)).await + Duration::from_millis(500);
    warm(&load).await;
    let told = load.stop().await;
    let lost = lost(&stores[0], &told[0]).await;
    report("primary killed", &told, lost, Some(rto));
    check("primary killed", &told);
    assert_eq!(told[0].refused, Vec::new(), "its writes waited and went on");
    assert!(rto < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_loses_nothing_and_shows_no_error() {
    let _turn = TURN.lock().await;
    let stores = two_stores().await;
    let load = Load::start(&stores, "switchover", 4);
    warm(&load).await;
    let since = Instant::now();
    fault(Fault::Switchover, "c0").await;
    let rto = load.acknowledged_after(0, Instant::now(), Duration::from_secs(30)).await + since.elapsed();
    warm(&load).await;
    let told = load.stop().await;
    let lost = lost(&stores[0], &told[0]).await;
    report("switchover", &told, lost, Some(rto));
    check("switchover", &told);
    assert_eq!((lost, told[0].refused.len()), (0, 0));
}

/// The zombie: Patroni dies, PostgreSQL goes on taking commits while a replica is promoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patroni_is_killed_and_postgresql_lives() {
    let _turn = TURN.lock().await;
    let stores = two_stores().await;
    let load = Load::start(&stores, "zombie", 4);
    warm(&load).await;
    let old = on_stack(|stack| stack.primary("c0").expect("a primary")).await;
    let since = Instant::now();
    fault(Fault::KillPatroni, &old.name).await;
    let name = old.name.clone();
    on_stack(move |stack| {
        tagfast_testkit::wait_for_condition("a replica is promoted", Duration::from_secs(60), || {
            match stack.primary("c0") {
                Ok(node) if node.name != name => Ok(()),
                Ok(node) => Err(format!("{} is still called the primary", node.name)),
                Err(error) => Err(format!("{error:#}")),
            }
        });
    })
    .await;
    let rto = load.acknowledged_after(0, Instant::now(), Duration::from_secs(30)).await + since.elapsed();
    warm(&load).await;
    let told = load.stop().await;
    let lost = lost(&stores[0], &told[0]).await;
    report("Patroni killed, PostgreSQL alive", &told, lost, Some(rto));
    fault(Fault::Restart, &old.name).await;
    check("Patroni killed, PostgreSQL alive", &told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_frozen() {
    let _turn = TURN.lock().await;
    let stores = two_stores().await;
    let load = Load::start(&stores, "etcd", 4);
    warm(&load).await;
    fault(Fault::Freeze, "etcd").await;
    let frozen = Instant::now();
    // As long as the lease lives the fence needs nobody; beyond it the members' answers carry on.
    let until = frozen + Duration::from_secs(15);
    load.acknowledged_after(0, until, Duration::from_secs(40)).await;
    fault(Fault::Thaw, "etcd").await;
    warm(&load).await;
    let told = load.stop().await;
    let lost = lost(&stores[0], &told[0]).await;
    report("etcd frozen for 15 s", &told, lost, None);
    check("etcd frozen for 15 s", &told);
    assert_eq!((lost, told[0].refused.len()), (0, 0));
    assert!(largest_gap(&told[0]) < Duration::from_secs(3), "{:?}", largest_gap(&told[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_hangs() {
    let _turn = TURN.lock().await;
    let stores = two_stores().await;
    let load = Load::start(&stores, "hang", 4);
    warm(&load).await;
    let primary = on_stack(|stack| stack.primary("c0").expect("a primary").name).await;
    let replica = ["c0-n0", "c0-n1", "c0-n2"].into_iter().find(|n| *n != primary).expect("a replica");
    fault(Fault::Hang, replica).await;
    let since = Instant::now();
    load.acknowledged_after(0, since + Duration::from_secs(4), Duration::from_secs(20)).await;
    fault(Fault::Heal, replica).await;
    warm(&load).await;
    let told = load.stop().await;
    let lost = lost(&stores[0], &told[0]).await;
    report("a replica hangs", &told, lost, None);
    check("a replica hangs", &told);
    assert_eq!((lost, told[0].refused.len()), (0, 0));
}
