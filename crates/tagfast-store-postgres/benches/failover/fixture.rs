//! The cluster, the runtime of callers and stores, and the faults that the figures need.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tagfast_domain::EpochOrdinal;
use tagfast_store::failovers::{FailoverReader, FailoverReport};
use tagfast_store_postgres::{NullSink, PostgresOptions, PostgresStore};
use tagfast_testkit::stack::host::{Process, processes_in};
use tagfast_testkit::stack::{Fault, NodeInfo, Stack, StackOptions};
use tagfast_testkit::wait_for_condition_async;
use tokio::runtime::Runtime;

use crate::cpu::THREADS;
use crate::{progress, support};

/// How long the cluster may take to be healthy after a failover.
const HEALTHY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a failover may take, until its repair is closed.
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(120);
/// How many of the newest failovers are looked at.
const FAILOVERS_LISTED: usize = 20;

pub(crate) struct Fixture {
    pub(crate) stack: Stack,
    pub(crate) runtime: Runtime,
    _dir: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let options = StackOptions {
            shared_buffers: "256MB".to_owned(),
            netns: rustix::process::geteuid().is_root(),
            ..StackOptions::clusters_only(1, dir.path())
        };
        let stack = Stack::up(&options, &progress).expect("the stack comes up");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(THREADS)
            .enable_all()
            .build()
            .expect("a runtime");
        Self { stack, runtime, _dir: dir }
    }

    pub(crate) fn has_namespaces(&self) -> bool {
        self.stack.info().clusters[0].nodes.iter().all(|node| node.netns.is_some())
    }

    pub(crate) fn primary(&self) -> NodeInfo {
        self.stack.primary("c0").expect("a primary")
    }

    pub(crate) fn wait_until_healthy(&self) {
        self.stack.wait_until_healthy("c0", HEALTHY_TIMEOUT).expect("it is healthy again");
    }

    pub(crate) fn kill(&mut self, node: &NodeInfo) {
        self.stack.fault(Fault::Kill, &node.name).expect("it is killed");
    }

    /// Opens a store that takes writes.
    pub(crate) fn open(&self, name: &str, max_loss: Duration) -> Arc<PostgresStore> {
        self.open_with(name, |options| options.max_loss = max_loss)
    }

    /// The same, with other options.
    pub(crate) fn open_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut PostgresOptions),
    ) -> Arc<PostgresStore> {
        let mut options = support::options(self.stack.info(), name);
        change(&mut options);
        self.runtime.block_on(async {
            let store = PostgresStore::open(options, Arc::new(NullSink)).expect("it opens");
            assert!(store.wait_until_ready(HEALTHY_TIMEOUT).await, "{:?}", store.status());
            store
        })
    }

    pub(crate) fn sleep(&self, length: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(length).await });
    }

    pub(crate) fn close(&self, store: Arc<PostgresStore>) {
        self.runtime.block_on(store.close());
        drop(store);
    }
}

/// The ordinal of the epoch that a store is in; `None`: it has no primary.
pub(crate) fn epoch_of(store: &PostgresStore) -> Option<EpochOrdinal> {
    store.status()[0].epoch.map(EpochOrdinal)
}

/// Waits for an epoch after this one.
pub(crate) async fn next_epoch(store: &PostgresStore, before: EpochOrdinal) {
    wait_for_condition_async("the next epoch", FAILOVER_TIMEOUT, || async {
        if epoch_of(store) > Some(before) { Ok(()) } else { Err(format!("{:?}", store.status())) }
    })
    .await;
}

/// The report of the first failover after this epoch, once its repair is closed.
pub(crate) async fn closed_report(store: &PostgresStore, before: EpochOrdinal) -> FailoverReport {
    wait_for_condition_async("the repair to be closed", FAILOVER_TIMEOUT, || async {
        let reports = store.failovers(None, FAILOVERS_LISTED).await;
        let reports = reports.map_err(|error| error.to_string())?;
        let later = reports.into_iter().filter(|report| report.ordinal > before);
        let first = later.min_by_key(|report| report.ordinal).ok_or("no failover")?;
        if first.is_closed { Ok(first) } else { Err(format!("open: {first:?}")) }
    })
    .await
}

/// The senders of a primary's log, which stand still: what it acknowledges is lost with it.
pub(crate) struct FrozenSenders(Vec<Process>);

impl FrozenSenders {
    pub(crate) fn of(primary: &NodeInfo) -> Self {
        let is_sender = |process: &Process| {
            std::fs::read_to_string(format!("/proc/{}/cmdline", process.pid))
                .is_ok_and(|title| title.contains("walsender"))
        };
        let mut senders = processes_in(&primary.data_dir);
        senders.retain(is_sender);
        senders.iter().for_each(|sender| sender.signal(Signal::STOP));
        Self(senders)
    }

    /// Ends them; one that was woken would send what is to be lost.
    pub(crate) fn kill(self) {
        self.0.iter().for_each(|sender| sender.signal(Signal::KILL));
    }
}
