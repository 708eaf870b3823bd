//! The index is killed under load and comes back: dead letters, and how fast the backlog is
//! indexed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tagfast_events::Consumer;
use tagfast_search::SearchIndex;
use tagfast_search_opensearch::OpenSearchIndex;
use tagfast_testkit::stack::Fault;

use crate::{Harness, pause, writers};

const WRITES_PER_SECOND: u64 = 1500;

fn fault(harness: &mut Harness, fault: Fault) {
    tokio::task::block_in_place(|| harness.stack.fault(fault, "opensearch")).expect("a fault");
}

pub(crate) async fn run(
    harness: &mut Harness,
    consumer: &Consumer,
    index: &Arc<OpenSearchIndex>,
    seconds: u64,
) -> Vec<Value> {
    let stop = Arc::new(AtomicBool::new(false));
    let load =
        tokio::spawn(writers(Arc::clone(&harness.store), WRITES_PER_SECOND, Arc::clone(&stop)));
    pause(2000).await;
    fault(harness, Fault::Freeze);
    fault(harness, Fault::Kill);
    let (down, mut worst) = (Instant::now(), 0.0f64);
    while down.elapsed() < Duration::from_secs(seconds) {
        pause(1000).await;
        let lag = consumer.status().lag_seconds.unwrap_or(f64::INFINITY);
        // Everything committed since it went down waits; the gauge is right to about a second.
        worst = worst.max((lag - down.elapsed().as_secs_f64()).abs());
    }
    fault(harness, Fault::Restart);
    while index.documents().await.is_err() {
        pause(200).await;
    }
    let (back, before) = (Instant::now(), consumer.status().applied);
    while consumer.status().lag_seconds.is_none_or(|lag| lag > 2.0) {
        pause(50).await;
    }
    let (took, applied) =
        (back.elapsed().as_secs_f64(), (consumer.status().applied - before) as f64);
    stop.store(true, Ordering::SeqCst);
    let written = load.await.expect("no panic");
    let (rate, dead_letters) = (applied / took, consumer.status().parked);
    let times = rate / WRITES_PER_SECOND as f64;
    println!(
        "the index was down for {seconds} s at {WRITES_PER_SECOND} writes/s ({written} written): {dead_letters} dead letters; then {applied:.0} records \
         in {took:.1} s = {rate:.0}/s = {times:.1}x the writes, which went on; <= 100 dead letters, >= 5x: {}",
        if dead_letters <= 100 && times >= 5.0 { "reached" } else { "MISSED" }
    );
    println!(
        "the lag gauge was at most {worst:.2} s from the truth meanwhile; <= 1 s: {}",
        if worst <= 1.0 { "reached" } else { "MISSED" }
    );
    vec![
        json!({"what": format!("index down for {seconds} s under load, then drained"), "value": rate, "unit": "/s",
            "baseline": "the writes meanwhile", "baseline_value": WRITES_PER_SECOND, "target": "<= 100 dead letters, >= 5x",
            "ok": dead_letters <= 100 && times >= 5.0}),
        json!({"what": "lag gauge beside the truth in that outage", "value": worst, "unit": "s", "target": "<= 1 s",
            "ok": worst <= 1.0}),
    ]
}
