//! Ways in which a replica stops to follow in silence, each with its end.

use rustix::process::Signal;
#[cfg(feature = "full")]
use tagfast_testkit::stack::host::RunAs;
use tagfast_testkit::stack::host::{Process, processes_in};
use tagfast_testkit::stack::{Fault, NodeInfo};
use tagfast_testkit::wait_for_condition_async;

use crate::scenarios::{SECOND, fault, on_stack, primary};

/// A way to stop a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Its walreceiver connects to nowhere, and its Patroni, which would mend that, stands still.
    ReceiverAstray,
    /// Its walreceiver is frozen: it is listed as streaming.
    ReceiverFrozen,
    /// It receives and does not replay; its Patroni, which would resume that, stands still.
    ReplayPaused,
    /// What it is sent stands still in the sender, again and again.
    SenderFrozen,
    /// Its whole server is frozen.
    ServerFrozen,
    /// Its link delays every chunk of bytes by this many milliseconds.
    Slow(u64),
    /// Nothing passes its link.
    Cut,
}

impl Stop {
    pub(crate) async fn begin(self, node: &NodeInfo) {
        match self {
            Self::ReceiverAstray => {
                fault(Fault::FreezePatroni, &node.name).await;
                let nowhere = "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'";
                superuser(node, &[nowhere, "SELECT pg_reload_conf()"]).await;
                // The old walreceiver may live on until it notices.
                wait_for_condition_async("the walreceiver to end", 10 * SECOND, || async {
                    let left = processes_of(node, "walreceiver").len();
                    if left == 0 { Ok(()) } else { Err(format!("{left} run")) }
                })
                .await;
            }
            Self::ReceiverFrozen => signal(&processes_of(node, "walreceiver"), Signal::STOP),
            Self::ReplayPaused => {
                fault(Fault::FreezePatroni, &node.name).await;
                superuser(node, &["SELECT pg_wal_replay_pause()"]).await;
            }
            Self::SenderFrozen => freeze_senders().await,
            Self::ServerFrozen => fault(Fault::FreezePostgres, &node.name).await,
            Self::Slow(ms) => fault(Fault::Slow { ms }, &node.name).await,
            Self::Cut => fault(Fault::Cut, &node.name).await,
        }
    }

    /// Called now and then while it lasts.
    pub(crate) async fn go_on(self) {
        if self == Self::SenderFrozen {
            freeze_senders().await;
        }
    }

    pub(crate) async fn end(self, node: &NodeInfo) {
        match self {
            Self::ReceiverAstray => {
                let own = "ALTER SYSTEM RESET primary_conninfo";
                superuser(node, &[own, "SELECT pg_reload_conf()"]).await;
                fault(Fault::Thaw, &node.name).await;
            }
            Self::ReceiverFrozen => signal(&processes_of(node, "walreceiver"), Signal::CONT),
            Self::ReplayPaused => {
                superuser(node, &["SELECT pg_wal_replay_resume()"]).await;
                fault(Fault::Thaw, &node.name).await;
            }
            Self::SenderFrozen => {
                let nodes = on_stack(|stack| stack.info().clusters[0].nodes.clone()).await;
                for node in nodes {
                    signal(&processes_of(&node, "walsender"), Signal::CONT);
                }
            }
            Self::ServerFrozen => fault(Fault::Thaw, &node.name).await,
            Self::Slow(_) | Self::Cut => fault(Fault::Heal, &node.name).await,
        }
    }
}

async fn freeze_senders() {
    let primary = on_stack(|stack| stack.primary("c0").expect("a primary")).await;
    signal(&processes_of(&primary, "walsender"), Signal::STOP);
}

/// The processes of a node's PostgreSQL whose title has this word.
pub(crate) fn processes_of(node: &NodeInfo, word: &str) -> Vec<Process> {
    let title = |process: &Process| {
        std::fs::read_to_string(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default()
    };
    let mut all = processes_in(&node.data_dir);
    all.retain(|process| title(process).contains(word));
    all
}

pub(crate) fn signal(processes: &[Process], signal: Signal) {
    processes.iter().for_each(|process| process.signal(signal));
}

/// Runs statements on a node as the superuser, each on its own.
pub(crate) async fn superuser(node: &NodeInfo, statements: &[&str]) {
    let node = node.clone();
    let statements: Vec<String> = statements.iter().map(|s| (*s).to_owned()).collect();
    on_stack(move |stack| {
        for statement in &statements {
            stack.sql(&node, statement).expect("it runs");
        }
    })
    .await;
}

/// Restarts a server in recovery, as it is.
#[cfg(feature = "full")]
pub(crate) async fn demote(node: &NodeInfo) {
    let node = node.clone();
    let work = move || {
        let run_as = RunAs::for_servers().expect("a user for servers");
        run_as.write(&node.data_dir.join("standby.signal"), "").expect("written");
        let pg_ctl = "/usr/lib/postgresql/15/bin/pg_ctl";
        let mut command = match &node.netns {
            None => run_as.command(pg_ctl),
            // To enter the namespace of its network needs root.
            Some(netns) => {
                let mut command = std::process::Command::new("ip");
                command.args(["netns", "exec", netns, "runuser", "-u", "postgres", "--", pg_ctl]);
                command
            }
        };
        let restarted = command
            .current_dir("/")
            .args(["restart", "--wait", "--mode=fast", "--log=/dev/null", "--pgdata"])
            .arg(&node.data_dir)
            .status()
            .expect("pg_ctl runs");
        assert!(restarted.success(), "{restarted}");
    };
    tokio::task::spawn_blocking(work).await.expect("no panic");
}

/// Has the Patroni of a replica copy the primary again.
#[cfg(feature = "full")]
pub(crate) async fn reinitialize(node: &NodeInfo) {
    let node = node.clone();
    let work = move || tagfast_testkit::stack::patroni::reinitialize(&node).expect("it begins");
    tokio::task::spawn_blocking(work).await.expect("no panic");
}

/// The primary of the first cluster, whose stream stands still.
pub(crate) struct FrozenPrimary {
    pub(crate) node: NodeInfo,
    senders: Vec<Process>,
}

impl FrozenPrimary {
    pub(crate) async fn freeze() -> Self {
        let node = primary().await;
        let senders = processes_of(&node, "walsender");
        signal(&senders, Signal::STOP);
        Self { node, senders }
    }

    /// Freezes the senders that began since.
    pub(crate) fn freeze_new(&mut self) {
        self.senders = processes_of(&self.node, "walsender");
        signal(&self.senders, Signal::STOP);
    }

    /// Kills the server. A sender that was woken would send what is to be lost.
    pub(crate) async fn kill(self) {
        fault(Fault::Kill, &self.node.name).await;
        signal(&self.senders, Signal::KILL);
    }
}
