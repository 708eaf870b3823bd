//! Clients that retry a write after a failover that lost its first attempt: until the repair can
//! bring that attempt back no more, its content does not refuse it for good.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use tagfast_domain::{ContentKey, IfMatch, Refusal, Version};
use tagfast_store::{
    Consistency, Durability, ReadOptions, ReceiptReader, StoreError, TagReader, TagWriter, Verdict,
    WriteAnswer, WriteRequest,
};
use tagfast_store_postgres::{NullSink, PostgresOptions, PostgresStore};
use tagfast_testkit::wait_for_condition_async;

use crate::process::ServiceProcess;
use crate::repair_clients::{
    acknowledge, closed_report, epoch_of, is_past_end, names, next_epoch, options, patch, process,
    write_of,
};
use crate::replica_faults::FrozenPrimary;
use crate::scenarios::{ONE_AT_A_TIME, SECOND};
use crate::support;
use crate::writes::key_of;

/// Tags of a content at most.
const LIMIT: usize = 2;

fn matches(version: Version) -> Option<IfMatch> {
    Some(IfMatch::any_of(vec![version]))
}

async fn version_of(store: &PostgresStore, key: &ContentKey) -> Version {
    let options = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    store.view(key, &options).await.expect("a view").version
}

fn is_undecided(answer: &Result<WriteAnswer, StoreError>) -> bool {
    matches!(answer, Err(StoreError::Unavailable { outcome_unknown: true, .. }))
}

/// Writes until it is decided.
async fn decided(store: &PostgresStore, request: &WriteRequest) -> Result<WriteAnswer, StoreError> {
    wait_for_condition_async("a decision", 60 * SECOND, || async {
        let answer = store.write(request.clone()).await;
        if is_undecided(&answer) { Err(format!("{answer:?}")) } else { Ok(answer) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_refused_for_good_only_when_its_first_attempt_cannot_come_back() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut options = options().await;
    options.limits.tags_per_content = LIMIT;
    options.hold = 2 * SECOND;
    let other = support::open(process(&options, "awake"), Arc::new(NullSink)).await;
    let relayless = PostgresOptions { relay: false, ..options.clone() };
    // Waited for, for longer than one without a copy of its journal.
    let directory = tempfile::tempdir().expect("a directory");
    let copied = PostgresOptions {
        journal_dir: Some(directory.path().join("journal")),
        ..relayless.clone()
    };
    let sleeper = ServiceProcess::start(&copied, "sleepy").await;
    let before = epoch_of(&other).await;
    let key = |name: &str| key_of(0, &format!("retry-{name}"));
    let first = version_of(&other, &key("never")).await;
    for name in ["conditional", "limit", "never"] {
        let mut request = write_of(&key(name), patch(&["old", "gone"], &[]), None);
        request.durability = Durability::Replicated;
        acknowledge(&other, request).await;
    }

    let mut frozen = FrozenPrimary::freeze().await;
    frozen.freeze_new();
    // What the first attempts stand on is lost with them.
    let mut seen = Vec::new();
    for name in ["conditional", "limit"] {
        let request = write_of(&key(name), patch(&[], &["gone"]), None);
        seen.push(acknowledge(sleeper.store(), request).await.version);
    }
    let add = |name: &str, if_match| write_of(&key(name), patch(&["x"], &[]), if_match);
    let lost = [add("conditional", matches(seen[0])), add("limit", None)];
    let mut receipts = Vec::new();
    for request in &lost {
        receipts.push(acknowledge(sleeper.store(), request.clone()).await.receipt);
    }
    let wake = sleeper.freeze();
    frozen.kill().await;
    next_epoch(&other, before, 60 * SECOND).await;

    // Neither process has heard of the first attempts; one was started after the failover. What was
    // never tried looks the same to them.
    let started = support::open(process(&relayless, "started"), Arc::new(NullSink)).await;
    let never = add("never", matches(first));
    let requests = || lost.iter().chain([&never]);
    let tried = [&other, &started]
        .into_iter()
        .flat_map(|store| requests().map(move |request| store.write(request.clone())));
    for answer in join_all(tried).await {
        assert!(is_undecided(&answer), "{answer:?}");
    }
    // A condition on what was seen in this epoch was not tried in an earlier one.
    let mut versions = Vec::new();
    for tag in ["one", "two"] {
        let request = write_of(&key("new"), patch(&[tag], &[]), None);
        versions.push(acknowledge(&other, request).await.version);
    }
    let answer = other.write(add("new", matches(versions[0]))).await;
    let current = versions[1];
    let mismatch = |answer: &Result<WriteAnswer, StoreError>, expected: Version| {
        matches!(answer, Err(StoreError::Refused(Refusal::VersionMismatch { current }))
            if *current == expected)
    };
    assert!(mismatch(&answer, current), "{answer:?}");

    drop(wake);
    let report = closed_report(&other, before).await;
    assert!(receipts.iter().all(|receipt| is_past_end(&other, receipt)), "all of them were lost");
    let current = version_of(&other, &key("never")).await;
    for store in [&other, &started] {
        for request in &lost {
            let answer = decided(store, request).await;
            let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", request.write.key));
            assert!(answer.repeated, "{answer:?}");
        }
        let answer = decided(store, &never).await;
        assert!(mismatch(&answer, current), "{answer:?}");
    }
    for (name, receipt) in ["conditional", "limit"].into_iter().zip(&receipts) {
        let expected = BTreeSet::from(["old", "x"].map(str::to_owned));
        assert_eq!(names(&other, &key(name)).await, expected, "{name}");
        let repaired = Verdict::Repaired { is_superseded: false, by_event: false };
        assert_eq!(other.verdict(receipt).await.ok(), Some(repaired), "{name}: {report:?}");
    }
    sleeper.close().await;
    started.close().await;
    other.close().await;
}
