//! A server that was primary, and died before another one was promoted, becomes the primary again
//! from where it died: Patroni lets it while `check_timeline` is off. A whole epoch is discarded.
//! What a living process had acknowledged in it is repaired; the rest is lost, and said to be.
//!
//! Patroni's `failsafe_mode` is off here: with it, a member that the last primary did not list
//! takes part in no election, whatever its timeline.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tagfast_domain::ContentKey;
use tagfast_store::{LostReason, Receipt, ReceiptReader, Verdict};
use tagfast_store_postgres::{NullSink, PostgresOptions, PostgresStore};
use tagfast_testkit::stack::{Fault, NodeInfo};
use tagfast_testkit::wait_for_condition_async;

use crate::process::ServiceProcess;
use crate::repair_clients::{
    closed_report, epoch_of, is_past_end, names, next_epoch, options, patch, process,
    until_acknowledged,
};
use crate::scenarios::{ONE_AT_A_TIME, SECOND, fault, on_stack, primary, wait_all_healthy};
use crate::support;
use crate::terms::{is_leaderless, patroni_history};
use crate::writes::key_of;

/// Writes of each process in the epoch that is discarded.
const WRITES: usize = 40;
/// How long the next primary may take.
const EPOCH_TIMEOUT: Duration = Duration::from_secs(90);
/// What Patroni says of a server that may not lead, because the history of the cluster has a later
/// timeline.
const BEHIND: &str = "is behind last known cluster timeline";

/// Sets something for the whole cluster, through the Patroni of a node.
async fn configure(node: &NodeInfo, settings: Value) {
    let url = format!("http://{}/config", node.direct_patroni);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer =
        client.patch(url).body(settings.to_string()).send().await.expect("Patroni answers");
    assert!(answer.status().is_success(), "{answer:?}");
}

/// How often a node's Patroni has said so.
fn said(node: &NodeInfo, words: &str) -> usize {
    let log = node.data_dir.with_file_name("patroni.log");
    std::fs::read_to_string(log).expect("its log").matches(words).count()
}

async fn warned(store: &PostgresStore, words: &str) {
    wait_for_condition_async("a warning", 20 * SECOND, || async {
        let warnings = &store.status()[0].warnings;
        let is_there = warnings.iter().any(|text| text.contains(words));
        if is_there { Ok(()) } else { Err(format!("{warnings:?}")) }
    })
    .await;
}

async fn write_all(store: &PostgresStore, name: &str) -> Vec<(Receipt, ContentKey)> {
    let mut written = Vec::new();
    for n in 0..WRITES {
        let key = key_of(0, &format!("{name}-{n}"));
        written.push((until_acknowledged(store, patch(&["x"], &[]), &key).await, key));
    }
    written
}

/// A node without data comes back.
async fn come_back_empty(node: &NodeInfo) {
    fault(Fault::KillNode, &node.name).await;
    std::fs::remove_dir_all(&node.data_dir).expect("its data is gone");
    fault(Fault::Restart, &node.name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn a_failback_needs_check_timeline_off_and_discards_no_write_silently() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let options = options().await;
    let living = support::open(process(&options, "living"), Arc::new(NullSink)).await;
    let relayless = PostgresOptions { relay: false, ..options.clone() };
    let dying = ServiceProcess::start(&relayless, "dying").await;
    let first = epoch_of(&living).await;
    let old = primary().await;
    configure(&old, json!({"failsafe_mode": false})).await;
    let timelines = patroni_history("c0").await;
    fault(Fault::KillNode, &old.name).await;
    let second = next_epoch(&living, first, EPOCH_TIMEOUT).await;
    // Before a new primary's Patroni has written its timeline, `check_timeline` knows none.
    wait_for_condition_async("Patroni to write the timeline", 10 * SECOND, || async {
        let now = patroni_history("c0").await;
        if now == timelines { Err(now) } else { Ok(()) }
    })
    .await;
    let successor = primary().await;
    let mut written = vec![write_all(&living, "living").await];
    written.push(write_all(dying.store(), "dying").await);

    // Everyone who has the second epoch is gone, but for the process that lives.
    let third = on_stack(|stack| stack.info().clusters[0].nodes.clone()).await;
    let is_third = |node: &NodeInfo| node.name != old.name && node.name != successor.name;
    let third = third.into_iter().find(is_third).expect("a third node");
    fault(Fault::Freeze, &third.name).await;
    fault(Fault::KillNode, &successor.name).await;
    drop(dying);
    wait_for_condition_async("the end of the second term", 60 * SECOND, || async {
        if is_leaderless("c0").await { Ok(()) } else { Err("its key lives") }
    })
    .await;

    // With `check_timeline` the old primary waits for someone who has more.
    let refused = said(&old, BEHIND);
    fault(Fault::Restart, &old.name).await;
    wait_for_condition_async("Patroni to hold it back", 60 * SECOND, || async {
        let times = said(&old, BEHIND) - refused;
        if times >= 3 { Ok(()) } else { Err(times) }
    })
    .await;
    assert!(is_leaderless("c0").await, "the old primary leads with check_timeline");
    assert_eq!(living.status()[0].primary, None);

    configure(&old, json!({"check_timeline": false})).await;
    let back = next_epoch(&living, second, EPOCH_TIMEOUT).await;
    assert_eq!(living.status()[0].primary.as_deref(), Some(old.name.as_str()), "it is back");
    let started = support::open(process(&relayless, "started"), Arc::new(NullSink)).await;
    for store in [&living, &started] {
        warned(store, "check_timeline is off").await;
        warned(store, &format!("nothing of epoch {second}")).await;
    }
    come_back_empty(&third).await;
    come_back_empty(&successor).await;
    wait_all_healthy().await;
    let report = closed_report(&living, back - 1).await;
    assert_eq!(report.ordinal.0, back, "{report:?}");
    let is_past = |(receipt, _): &(Receipt, ContentKey)| is_past_end(&living, receipt);
    assert!(written.iter().flatten().all(is_past), "the epoch is discarded");
    let repaired = Verdict::Repaired { is_superseded: false, by_event: false };
    let lost = Verdict::Lost(LostReason::Unreported);
    for (writes, expected, is_there) in [(&written[0], repaired, true), (&written[1], lost, false)]
    {
        for (receipt, key) in writes {
            let verdict = wait_for_condition_async("a final verdict", 60 * SECOND, || async {
                match living.verdict(receipt).await {
                    Ok(Verdict::Unknown(reason)) => Err(reason.to_owned()),
                    other => other.map_err(|error| error.to_string()),
                }
            });
            assert_eq!(verdict.await, expected, "{key}: {report:?}");
            assert_eq!(names(&living, key).await.contains("x"), is_there, "{key}");
        }
    }
    println!("failback: {WRITES} writes of a living process repaired, {WRITES} of a dead one lost");

    configure(&old, json!({"check_timeline": true, "failsafe_mode": true})).await;
    wait_for_condition_async("the warning to go", 20 * SECOND, || async {
        let warnings = &living.status()[0].warnings;
        let is_there = warnings.iter().any(|text| text.contains("check_timeline is off"));
        if is_there { Err(format!("{warnings:?}")) } else { Ok(()) }
    })
    .await;
    started.close().await;
    living.close().await;
}
