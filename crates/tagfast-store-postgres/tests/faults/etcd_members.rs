//! Faults of etcd that an acknowledgement must survive or notice: a member key that is missing, and
//! a leader that its other members have replaced while it still answers.
//!
//! The second half needs three members of etcd, each with a network and a disk of its own, so that
//! only `--full` runs it (which needs root).

use std::sync::Arc;

use tagfast_resilience::{Clock, SystemClock};
use tagfast_store_postgres::NullSink;
use tagfast_testkit::stack::Fault;
use tokio::runtime::Handle;

use crate::load::{LIMIT, Load, Work};
use crate::scenarios::{NODES, ONE_AT_A_TIME, SECOND, all_whole, fault, on_stack, primary};
use crate::support;

/// The primary's member key ends before the leader key does. Every Patroni stands still meanwhile:
/// one on a replica would take the primary that has no member key for gone, and stop following it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_while_the_leaders_member_key_is_missing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    all_whole().await;
    let mut options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    options.limits.tags_per_content = LIMIT;
    let store = support::open(options, Arc::new(NullSink)).await;
    let work = Work { run: "memberkey", clients: 4, clusters: 1, replicates: false };
    let load = Load::start(&[(Arc::clone(&store) as _, Handle::current())], &work);
    load.acknowledged_after(0, load.now() + SECOND, 30 * SECOND).await;
    let primary = primary().await.name;
    for node in NODES {
        fault(Fault::FreezePatroni, node).await;
    }
    let key = format!("/service/c0/members/{primary}");
    let delete = {
        let key = key.clone();
        move |stack: &mut tagfast_testkit::stack::Stack| stack.delete_etcd_key(&key)
    };
    assert!(on_stack(delete.clone()).await.expect("etcd answers"), "{key} was there");
    let missing = load.now();
    // A poll each second finds it missing. The lease lasts longer.
    load.acknowledged_after(0, missing + 5 * SECOND, 30 * SECOND).await;
    let was_back = on_stack(delete).await.expect("etcd answers");
    for node in NODES {
        fault(Fault::Thaw, node).await;
    }
    assert!(!was_back, "{key} was missing throughout");
    let [checked, _] = load.finish(&store, &[]).await;
    assert_eq!(checked.findings.violations, []);
    assert_eq!(checked.answers.refused, []);
    let gap = checked.largest_gap();
    assert!(gap < 3 * SECOND, "the largest gap between two acknowledgements was {gap:?}");
}

#[cfg(feature = "full")]
mod full {
    use std::time::{Duration, Instant};

    use tagfast_testkit::history::Counts;
    use tagfast_testkit::wait_for_condition_async;

    use super::*;
    use crate::judge::judge;
    use crate::load::Checked;
    use crate::process::ServiceProcess;
    use crate::scenarios::wait_all_healthy;

    /// The member whose faults these are. The leader terms are polled at the first one.
    const VICTIM: usize = 1;
    const VICTIM_NAME: &str = "etcd1";
    const MAX_LOSS: Duration = SECOND;
    /// See `failover.rs`.
    const ANSWER_TIME: Duration = Duration::from_millis(250);

    /// What happens to etcd's leader.
    struct Cell {
        name: &'static str,
        fault: Fault,
        lasts: Duration,
        /// Whether the primary must keep its leader key: the fault ends no lease.
        keeps_term: bool,
    }

    const CELLS: &[Cell] = &[
        Cell {
            name: "cut off from the other members",
            fault: Fault::CutPeers,
            lasts: Duration::from_secs(25),
            keeps_term: true,
        },
        // When it goes on, etcd before 3.5.13 and 3.4.31 ends leases that were kept alive.
        Cell {
            name: "disk frozen 9 s",
            fault: Fault::FreezeDisk,
            lasts: Duration::from_secs(9),
            keeps_term: false,
        },
    ];

    /// Two processes; the first asks the victim first, the second asks it last.
    async fn processes() -> Vec<ServiceProcess> {
        let mut options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
        options.limits.tags_per_content = LIMIT;
        options.max_loss = MAX_LOSS;
        options.etcd.rotate_left(VICTIM);
        let first = ServiceProcess::start(&options, "p0").await;
        options.etcd.rotate_left(1);
        vec![first, ServiceProcess::start(&options, "p1").await]
    }

    async fn run(cell: &Cell) -> (Counts, Vec<String>, String) {
        fault(Fault::Thaw, "etcd").await;
        fault(Fault::Heal, "etcd").await;
        all_whole().await;
        on_stack(|stack| stack.lead_etcd(VICTIM).expect("the victim leads")).await;
        let processes = processes().await;
        let since = processes[0].store().status()[0].epoch.expect("an epoch");
        let run: String = cell.name.chars().filter(char::is_ascii_alphanumeric).collect();
        let work = Work { run: &run, clients: 4, clusters: 1, replicates: true };
        let on: Vec<_> = processes.iter().map(|p| (p.front(), p.runtime())).collect();
        let load = Load::start(&on, &work);
        load.acknowledged_after(0, load.now() + SECOND, 60 * SECOND).await;

        fault(cell.fault, VICTIM_NAME).await;
        let began = load.now();
        wait_for_condition_async("a different member leads etcd", 30 * SECOND, || async {
            let leader = on_stack(|stack| stack.etcd_leader()).await;
            leader.ok().filter(|leader| *leader != VICTIM).ok_or("the former one, or none")
        })
        .await;
        let succeeded = load.now() - began;
        load.acknowledged_after(0, began + cell.lasts, 60 * SECOND).await;
        fault(cell.fault.end(), VICTIM_NAME).await;
        let ended = load.now();
        // A lease that the former leader ends, it ends within a second; the next term follows.
        load.acknowledged_after(0, ended + 5 * SECOND, 90 * SECOND).await;
        wait_all_healthy().await;

        let stores: Vec<_> = processes.iter().map(|p| Arc::clone(p.store())).collect();
        let collected = load.collect(&stores[0]).await;
        let [mut answers, _] = collected.answers;
        let clock = collected.began;
        judge(&mut answers, &stores, since, collected.began_ms, || clock.elapsed()).await;
        answers.history.max_loss = Some(MAX_LOSS + ANSWER_TIME);
        let findings = answers.history.check();
        let terms = answers.history.epochs.len();
        let checked = Checked { answers, findings };
        let mut wrong: Vec<String> =
            checked.findings.violations.iter().map(ToString::to_string).collect();
        let refused = checked.answers.refused.iter().filter(|(_, _, is_retryable)| !is_retryable);
        wrong.extend(refused.map(|(at, error, _)| format!("refused for good at {at:?}: {error}")));
        let gap = checked.largest_gap();
        if cell.keeps_term && (terms > 1 || gap > 5 * SECOND) {
            wrong.push(format!("{terms} leader terms, largest gap {gap:?}"));
        }
        drop(stores);
        for process in processes {
            process.close().await;
        }
        let figures = format!(
            "its successor led after {:.1} s, largest gap {:.2} s, {terms} leader terms",
            succeeded.as_secs_f64(),
            gap.as_secs_f64()
        );
        (checked.findings.counts, wrong, figures)
    }

    /// etcd's leader is replaced by the other members, answers for leases all the same, and comes
    /// back. `ETCD_CELLS=word` runs the cells whose name has the word.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
    async fn no_proof_comes_from_a_leader_of_etcd_that_was_replaced() {
        let _turn = ONE_AT_A_TIME.lock().await;
        let word = std::env::var("ETCD_CELLS").unwrap_or_default();
        let mut wrong = Vec::new();
        for cell in CELLS.iter().filter(|cell| cell.name.contains(&word)) {
            let began = Instant::now();
            let (counts, found, figures) = run(cell).await;
            let took = began.elapsed().as_secs_f64();
            println!("etcd's leader {}: {figures}; {counts}; it took {took:.0} s", cell.name);
            wrong.extend(found.into_iter().map(|what| format!("{}: {what}", cell.name)));
        }
        assert!(
            wrong.is_empty(),
            "{} violations: {:#?}",
            wrong.len(),
            &wrong[..wrong.len().min(10)]
        );
    }
}
