//! Failovers that lose acknowledged writes, one cell of a table after the other, each ending in the
//! history checker: what was acknowledged is there, or its receipt says that it is lost and why.
//!
//! Two processes of the service, behind the caches, with clients of their own write in every way.
//! A cell breaks the first cluster, waits until it goes on and is healthy, and asks for the
//! verdicts of all receipts once every repair is closed. Only `--full` runs them, with a network
//! namespace for each node (which needs root); `FAILOVER_CELLS=word` runs the cells whose name has
//! the word.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tagfast_resilience::{Clock, SystemClock};
use tagfast_testkit::history::Counts;
use tagfast_testkit::stack::{Fault, NodeInfo};

use crate::judge::judge;
use crate::load::{LIMIT, Load, Work};
use crate::process::ServiceProcess;
use crate::replica_faults::{FrozenPrimary, processes_of, signal};
use crate::scenarios::{
    NODES, ONE_AT_A_TIME, SECOND, all_whole, fault, on_stack, primary, wait_all_healthy,
};
use crate::support;

const MS: Duration = Duration::from_millis(1);
/// What a failover may lose of each process.
const MAX_LOSS: Duration = SECOND;
/// What an acknowledgement may take from the guard's decision to the client's note of it, on two
/// processors that everything shares in a debug build.
const ANSWER_TIME: Duration = Duration::from_millis(250);
/// How long Patroni's leader key lives without its primary.
const LEASE: Duration = Duration::from_secs(20);
/// Violations in the message of a failed run.
const SHOWN_MAX: usize = 10;
/// Writers of each process.
const CLIENTS: u32 = 4;

/// Which nodes a primary does not reach any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CutOff {
    /// All, and the service.
    AllOthers,
    /// The two replicas.
    Replicas,
    /// etcd.
    Etcd,
}

impl CutOff {
    /// Begins or ends it for a node.
    async fn set(self, node: &NodeInfo, is_cut: bool) {
        let node = node.clone();
        on_stack(move |stack| {
            let info = stack.info().clone();
            // Who does not reach what. Servers reach each other through the stack's proxy.
            let ports: Vec<(String, SocketAddr)> = match self {
                Self::AllOthers => {
                    let cut = if is_cut { Fault::Cut } else { Fault::Heal };
                    return stack.fault(cut, &node.name).expect("the link changes");
                }
                Self::Replicas => {
                    let others = info.clusters[0].nodes.iter().filter(|n| n.name != node.name);
                    others.map(|other| (other.name.clone(), node.postgres)).collect()
                }
                Self::Etcd => {
                    info.etcd.iter().map(|etcd| (node.name.clone(), etcd.direct)).collect()
                }
            };
            for (from, port) in ports {
                stack.set_unreachable(&from, port, is_cut).expect("its routes change");
            }
        })
        .await;
    }
}

/// What is done to the first cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Replication stands still for this time, then the primary is killed.
    Killed(Duration),
    /// As [`Fate::Killed`], and a process of the service dies with it.
    KilledWithProcess(Duration),
    /// As [`Fate::Killed`], while a process of the service stands still until the cluster goes on.
    KilledWhileProcessSleeps(Duration),
    /// The primary loses its connection.
    Cut(CutOff),
    /// Both replicas stand still for this time.
    ReplicasFrozen(Duration),
    /// One replica stands still for this time; then the primary and the other replica die.
    AdvancedReplicaLost(Duration),
    /// The new primary is killed, too, so long after its term began.
    KilledTwice(Duration),
    /// etcd stands still from the next leader term on, while the repair is under way.
    EtcdFrozen(Duration),
    /// Patroni is killed, and its PostgreSQL goes on committing.
    PatroniKilled,
}

impl Fate {
    /// Whether acknowledged writes are certain to be lost: replication stood still for long enough.
    fn is_certain_to_lose(self) -> bool {
        match self {
            Self::Killed(frozen)
            | Self::KilledWithProcess(frozen)
            | Self::KilledWhileProcessSleeps(frozen)
            | Self::AdvancedReplicaLost(frozen) => frozen >= FROZEN,
            Self::KilledTwice(_) | Self::EtcdFrozen(_) => true,
            Self::Cut(_) | Self::ReplicasFrozen(_) | Self::PatroniKilled => false,
        }
    }
}

struct Cell {
    name: &'static str,
    fate: Fate,
}

const fn cell(name: &'static str, fate: Fate) -> Cell {
    Cell { name, fate }
}

const FROZEN: Duration = Duration::from_millis(600);

const CELLS: &[Cell] = &[
    cell("killed, frozen 0.1 s", Fate::Killed(Duration::from_millis(100))),
    cell("killed, frozen 0.6 s", Fate::Killed(FROZEN)),
    cell("killed, frozen 3 s", Fate::Killed(Duration::from_secs(3))),
    cell("killed with a process", Fate::KilledWithProcess(FROZEN)),
    cell("killed, a process sleeps", Fate::KilledWhileProcessSleeps(FROZEN)),
    cell("cut off from all others", Fate::Cut(CutOff::AllOthers)),
    cell("cut off from replicas", Fate::Cut(CutOff::Replicas)),
    cell("cut off from etcd", Fate::Cut(CutOff::Etcd)),
    cell("both replicas frozen", Fate::ReplicasFrozen(Duration::from_secs(5))),
    cell("advanced replica lost", Fate::AdvancedReplicaLost(FROZEN)),
    cell("killed twice, 1 s apart", Fate::KilledTwice(Duration::from_secs(1))),
    cell("killed twice, 3 s apart", Fate::KilledTwice(Duration::from_secs(3))),
    cell("killed twice, 10 s apart", Fate::KilledTwice(Duration::from_secs(10))),
    cell("etcd frozen in the repair", Fate::EtcdFrozen(Duration::from_secs(5))),
    cell("Patroni killed", Fate::PatroniKilled),
];

/// A running cell.
struct Drill {
    processes: Vec<ServiceProcess>,
    load: Load,
    /// The ordinal of the epoch before the faults.
    since: u64,
}

impl Drill {
    async fn begin(name: &str) -> Self {
        all_whole().await;
        let mut options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
        options.limits.tags_per_content = LIMIT;
        options.max_loss = MAX_LOSS;
        let mut processes = Vec::new();
        for name in ["p0", "p1"] {
            processes.push(ServiceProcess::start(&options, name).await.with_caches().await);
        }
        let since = processes[0].store().status()[0].epoch.expect("an epoch");
        let run: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let work = Work { run: &run, clients: CLIENTS, clusters: 1, replicates: true };
        let on: Vec<_> = processes.iter().map(|p| (p.front(), p.runtime())).collect();
        let load = Load::start(&on, &work);
        let drill = Self { processes, load, since };
        drill.acknowledged(drill.load.now() + SECOND).await;
        drill
    }

    /// Waits for an acknowledgement after this time.
    async fn acknowledged(&self, after: Duration) -> Duration {
        after + self.load.acknowledged_after(0, after, 60 * SECOND).await
    }

    /// Waits until a later term was seen and has acknowledged something.
    async fn goes_on(&self, since: Duration) -> Duration {
        let term = self.load.next_term(0, since, 90 * SECOND).await;
        self.acknowledged(term).await;
        term
    }

    async fn break_it(&mut self, fate: Fate) {
        let since = self.load.now();
        match fate {
            Fate::Killed(frozen) => {
                kill_primary(frozen).await;
                self.goes_on(since).await;
            }
            Fate::KilledWithProcess(frozen) => {
                let primary = FrozenPrimary::freeze().await;
                tokio::time::sleep(frozen).await;
                drop(self.processes.pop());
                primary.kill().await;
                self.goes_on(since).await;
            }
            Fate::KilledWhileProcessSleeps(frozen) => {
                let primary = FrozenPrimary::freeze().await;
                tokio::time::sleep(frozen).await;
                let asleep = self.processes[1].freeze();
                primary.kill().await;
                let term = self.goes_on(since).await;
                self.acknowledged(term + 2 * SECOND).await;
                drop(asleep);
            }
            Fate::Cut(off) => {
                let node = primary().await;
                off.set(&node, true).await;
                match off {
                    CutOff::AllOthers => {
                        self.goes_on(since).await;
                    }
                    // It stays the primary, and no one has what it commits.
                    CutOff::Replicas => tokio::time::sleep(5 * SECOND).await,
                    // Its failsafe mode asks the replicas, which take no key that it lost.
                    CutOff::Etcd => tokio::time::sleep(LEASE + 5 * SECOND).await,
                }
                off.set(&node, false).await;
                if off == CutOff::Etcd {
                    // It takes the key again.
                    self.goes_on(since).await;
                }
                self.acknowledged(self.load.now()).await;
            }
            Fate::ReplicasFrozen(frozen) => {
                let primary = primary().await.name;
                for replica in NODES.into_iter().filter(|node| *node != primary) {
                    fault(Fault::FreezePostgres, replica).await;
                }
                tokio::time::sleep(frozen).await;
                for replica in NODES.into_iter().filter(|node| *node != primary) {
                    fault(Fault::Thaw, replica).await;
                }
                self.acknowledged(self.load.now()).await;
            }
            Fate::AdvancedReplicaLost(frozen) => {
                let node = primary().await;
                let mut others = NODES.into_iter().filter(|name| *name != node.name);
                let (slow, advanced) = (others.next(), others.next());
                let (slow, advanced) = (slow.expect("a replica"), advanced.expect("a replica"));
                let senders = senders_to(slow).await;
                let senders: Vec<_> = processes_of(&node, "walsender")
                    .into_iter()
                    .filter(|process| senders.contains(&process.pid))
                    .collect();
                assert_eq!(senders.len(), 1, "one sender serves {slow}");
                signal(&senders, Signal::STOP);
                tokio::time::sleep(frozen).await;
                fault(Fault::KillNode, advanced).await;
                fault(Fault::Kill, &node.name).await;
                signal(&senders, Signal::KILL);
                self.goes_on(since).await;
                fault(Fault::Restart, advanced).await;
            }
            Fate::KilledTwice(apart) => {
                kill_primary(FROZEN).await;
                let term = self.load.next_term(0, since, 90 * SECOND).await;
                tokio::time::sleep(apart).await;
                kill_primary(100 * MS).await;
                self.goes_on(term).await;
            }
            Fate::EtcdFrozen(frozen) => {
                kill_primary(FROZEN).await;
                let term = self.load.next_term(0, since, 90 * SECOND).await;
                fault(Fault::Freeze, "etcd").await;
                tokio::time::sleep(frozen).await;
                fault(Fault::Thaw, "etcd").await;
                self.acknowledged(term.max(self.load.now())).await;
            }
            Fate::PatroniKilled => {
                let old = primary().await.name;
                fault(Fault::KillPatroni, &old).await;
                let term = self.goes_on(since).await;
                self.acknowledged(term + 2 * SECOND).await;
                fault(Fault::Restart, &old).await;
            }
        }
    }

    /// Ends the clients, asks for the verdicts and checks; returns the counts and what is wrong.
    async fn end(self, fate: Fate) -> (Counts, Vec<String>) {
        wait_all_healthy().await;
        let stores: Vec<_> = self.processes.iter().map(|p| Arc::clone(p.store())).collect();
        let collected = self.load.collect(&stores[0]).await;
        let [mut answers, _] = collected.answers;
        let began = collected.began;
        judge(&mut answers, &stores, self.since, collected.began_ms, || began.elapsed()).await;
        let history = &mut answers.history;
        history.max_loss = Some(MAX_LOSS + ANSWER_TIME);
        // A replica whose stream stood still is promoted: that it streamed was not true.
        let is_cut = matches!(fate, Fate::Cut(_));
        history.epochs.iter_mut().for_each(|epoch| epoch.was_streaming = !is_cut);
        let findings = history.check();
        let mut wrong: Vec<String> = findings.violations.iter().map(ToString::to_string).collect();
        let refused = answers.refused.iter().filter(|(_, _, is_retryable)| !is_retryable);
        wrong.extend(refused.map(|(at, error, _)| format!("refused for good at {at:?}: {error}")));
        drop(stores);
        for process in self.processes {
            process.close().await;
        }
        (findings.counts, wrong)
    }
}

/// The primary of the first cluster is killed, after its streams stood still.
async fn kill_primary(frozen: Duration) {
    let primary = FrozenPrimary::freeze().await;
    tokio::time::sleep(frozen).await;
    primary.kill().await;
}

/// The process ids of the primary's senders to a replica.
async fn senders_to(replica: &str) -> Vec<u32> {
    let query = format!("SELECT pid FROM pg_stat_replication WHERE application_name = '{replica}'");
    let pids = on_stack(move |stack| {
        let primary = stack.primary("c0").expect("a primary");
        stack.sql(&primary, &query).expect("it answers")
    });
    pids.await.lines().map(|pid| pid.parse().expect("a number")).collect()
}

/// Runs the cells; all of them, also after one that found something.
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn run(cells: impl Iterator<Item = &'static Cell>) {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (mut total, mut wrong) = (Counts::default(), Vec::new());
    // Only those whose name has this word.
    let word = std::env::var("FAILOVER_CELLS").unwrap_or_default();
    for cell in cells.filter(|cell| cell.name.contains(&word)) {
        let began = Instant::now();
        let mut drill = Drill::begin(cell.name).await;
        drill.break_it(cell.fate).await;
        let (counts, found) = drill.end(cell.fate).await;
        println!("{}: {counts}; it took {:.0} s", cell.name, began.elapsed().as_secs_f64());
        if cell.fate.is_certain_to_lose() && counts.lost_spans.is_empty() {
            wrong.push(format!("{}: the fault lost nothing", cell.name));
        }
        wrong.extend(found.into_iter().map(|what| format!("{}: {what}", cell.name)));
        total.add(&counts);
    }
    println!("failovers, all cells: {total}");
    let shown = wrong.len().min(SHOWN_MAX);
    assert!(
        wrong.is_empty(),
        "{} violations, the first:\n{}",
        wrong.len(),
        wrong[..shown].join("\n")
    );
    assert!(total.acknowledged > 0, "nothing was acknowledged: {total}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_loses_is_repaired_or_listed() {
    run(CELLS.iter()).await;
}
