//! A primary that was replaced becomes the primary again, on its dead timeline, because Patroni's
//! `check_timeline` is off: a whole epoch is discarded. No promise holds for its writes but one:
//! none of them is said to be kept.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tagfast_store::{ReceiptReader, Verdict};
use tagfast_store_postgres::{NullSink, PostgresStore};
use tagfast_testkit::stack::{Fault, NodeInfo};
use tagfast_testkit::wait_for_condition_async;

use crate::repair_clients::{
    closed_report, epoch_of, names, options, patch, process, until_acknowledged,
};
use crate::scenarios::{NODES, ONE_AT_A_TIME, SECOND, fault, primary, wait_all_healthy};
use crate::support;
use crate::writes::key_of;

/// Writes of the epoch that is discarded.
const WRITES: usize = 40;

async fn set_check_timeline(node: &NodeInfo, is_on: bool) {
    let url = format!("http://{}/config", node.direct_patroni);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let sent = client.patch(url).body(json!({"check_timeline": is_on}).to_string()).send().await;
    let answer = sent.expect("Patroni answers");
    assert!(answer.status().is_success(), "{answer:?}");
}

/// Patroni does not take a key for a server whose timeline is older than what this one tells.
async fn forget_timelines() {
    let key = STANDARD.encode("/service/c0/history");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let url = format!("{}/v3/kv/deleterange", support::etcd());
    let sent = client.post(url).json(&json!({"key": key})).send().await;
    assert!(sent.expect("etcd answers").status().is_success());
}

/// Waits until the store has a primary of a later epoch; returns its ordinal.
async fn next_epoch(store: &PostgresStore, before: u64) -> u64 {
    wait_for_condition_async("the next epoch", 90 * SECOND, || async {
        let status = store.status();
        let epoch = status[0].epoch.filter(|epoch| *epoch > before);
        epoch.filter(|_| status[0].primary.is_some()).ok_or(format!("{status:?}"))
    })
    .await
}

async fn warned(store: &PostgresStore, word: &str) {
    wait_for_condition_async("a warning", 20 * SECOND, || async {
        let warnings = &store.status()[0].warnings;
        if warnings.iter().any(|text| text.contains(word)) {
            Ok(())
        } else {
            Err(format!("{warnings:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures of a run; `--nocapture` shows them")]
async fn of_a_discarded_epoch_no_write_is_said_to_be_kept() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let options = options().await;
    let old = primary().await;
    set_check_timeline(&old, false).await;
    let store = support::open(process(&options, "failback"), Arc::new(NullSink)).await;
    warned(&store, "check_timeline is off").await;
    let first = epoch_of(&store).await;
    fault(Fault::KillPatroni, &old.name).await;
    let second = next_epoch(&store, first).await;
    let replaced_by = primary().await;
    let mut writes = Vec::new();
    for n in 0..WRITES {
        let key = key_of(0, &format!("discarded-{n}"));
        writes.push((until_acknowledged(&store, patch(&["x"], &[]), &key).await, key));
    }
    // Both replicas of the second primary are gone, and so is what tells the old one its place.
    let others = NODES.into_iter().filter(|n| *n != old.name && *n != replaced_by.name);
    let third = others.into_iter().next().expect("a third node");
    fault(Fault::Freeze, third).await;
    fault(Fault::KillNode, &replaced_by.name).await;
    forget_timelines().await;
    fault(Fault::Restart, &old.name).await;
    let back = next_epoch(&store, second).await;
    assert_eq!(store.status()[0].primary.as_deref(), Some(old.name.as_str()), "it is back");
    warned(&store, &format!("nothing of epoch {second}")).await;
    fault(Fault::Thaw, third).await;
    fault(Fault::Restart, &replaced_by.name).await;
    let report = closed_report(&store, back - 1).await;
    let mut counts = (0, 0);
    for (receipt, key) in &writes {
        let is_there = names(&store, key).await.contains("x");
        match store.verdict(receipt).await.expect("a verdict") {
            Verdict::Repaired { .. } if is_there => counts.0 += 1,
            Verdict::Lost(_) if !is_there => counts.1 += 1,
            other => panic!("{key}: {other:?}, and it is there: {is_there}; {report:?}"),
        }
    }
    println!("failback: of {WRITES} writes {} are repaired and {} lost", counts.0, counts.1);
    set_check_timeline(&old, true).await;
    wait_all_healthy().await;
    store.close().await;
}
