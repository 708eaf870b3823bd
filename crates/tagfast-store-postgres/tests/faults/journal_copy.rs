//! A process with a copy of its journal on disk dies with the primary, and is started again.

use std::sync::Arc;
use std::time::Duration;

use tagfast_store::failovers::FailoverReader;
use tagfast_store_postgres::{NullSink, PostgresOptions, PostgresStore};
use tagfast_testkit::wait_for_condition_async;

use crate::process::ServiceProcess;
use crate::repair_clients::{Clients, check, closed_report, epoch_of, options, process};
use crate::replica_faults::FrozenPrimary;
use crate::scenarios::{ONE_AT_A_TIME, SECOND};
use crate::support;

/// How long replication is frozen while clients write: less than the guard of loss allows.
const FROZEN: Duration = Duration::from_millis(400);
/// How long the last acknowledgement is ago when the process dies: longer than what the copy may
/// lack (100 ms), with room for a busy disk.
const COPIED_AFTER: Duration = Duration::from_millis(400);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn a_process_that_died_with_the_primary_repairs_when_it_is_started_again() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let directory = tempfile::tempdir().expect("a directory");
    let options = options().await;
    let living = support::open(process(&options, "living"), Arc::new(NullSink)).await;
    let copied = PostgresOptions {
        relay: false,
        journal_dir: Some(directory.path().join("journal")),
        ..options.clone()
    };
    let dying = ServiceProcess::start(&copied, "copied").await;
    let before = epoch_of(&living).await;
    let clients = Clients::start(dying.store(), "copied");
    clients.answered(50).await;
    let frozen = FrozenPrimary::freeze().await;
    tokio::time::sleep(FROZEN).await;
    let acknowledged = clients.finish().await;
    tokio::time::sleep(COPIED_AFTER).await;
    drop(dying);
    frozen.kill().await;
    // Its folder is free once the last of it is gone.
    let again = wait_for_condition_async("the folder", 30 * SECOND, || async {
        let options = process(&copied, "again");
        PostgresStore::open(options, Arc::new(NullSink)).map_err(|error| error.to_string())
    })
    .await;
    let report = closed_report(&living, before).await;
    let (lost, repaired) = check(&living, &acknowledged).await;
    println!(
        "a process with a copy of its journal died with the primary: {} acknowledged, {lost} lost \
         in the failover, {repaired} of them repaired; {:?}",
        acknowledged.len(),
        report.times
    );
    assert!(lost > 0, "the fault lost nothing");
    assert_eq!(repaired, lost, "each lost write was repaired, and no other one");
    // It is the same process to the others, though its node has a different name now.
    let of_copied = |name: &str| name.starts_with("copied.");
    assert!(!report.missing_nodes.iter().any(|name| of_copied(name)), "{report:?}");
    assert!(!report.nodes.iter().any(|node| node.node.starts_with("again.")), "{report:?}");
    let node = report.nodes.iter().find(|node| of_copied(&node.node));
    let node = node.unwrap_or_else(|| panic!("a report of the process: {report:?}"));
    assert_eq!((node.counts.repaired, node.counts.lost), (repaired as u64, 0), "{report:?}");
    assert_eq!(node.incomplete, [], "{report:?}");
    again.close().await;

    // Once more, after the closing: what it has repaired is neither reported again nor forgotten.
    let third = support::open(process(&copied, "third"), Arc::new(NullSink)).await;
    let clients = Clients::start(&third, "third");
    clients.answered(20).await;
    check(&third, &clients.finish().await).await;
    let later = third.failover(report.epoch).await.expect("a report").expect("the failover");
    let counts = later.nodes.iter().find(|node| of_copied(&node.node)).map(|node| node.counts);
    assert_eq!(counts, Some(node.counts), "{later:?}");
    third.close().await;
    living.close().await;
}
