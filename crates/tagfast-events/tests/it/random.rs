//! Random streams with poison, failures, outages and crashes: the sink ends equal to the model, and
//! exactly the poison is parked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tagfast_domain::{ContentKey, Version};
use tagfast_events::RecordVerdict;

use crate::support::{MemoryBus, ScriptedSink, VirtualClock, event, spawn, until};

/// The version number decides the outcome, so that it is the same after a restart.
fn is_poison(version: u64) -> bool {
    version.is_multiple_of(23)
}

fn failures(version: u64) -> u32 {
    if version.is_multiple_of(7) { 1 + (version % 3) as u32 } else { 0 }
}

async fn one_run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let clock = VirtualClock::new();
    let bus = MemoryBus::new(3, &clock);
    let sink = ScriptedSink::new(|r, attempt| {
        let version = r.event.version.packed();
        if is_poison(version) {
            return RecordVerdict::Poison { code: "poison", message: String::new() };
        }
        if attempt <= failures(version) {
            return RecordVerdict::Failed { code: "flaky", message: String::new() };
        }
        RecordVerdict::Applied
    });
    let mut versions: BTreeMap<u64, u64> = BTreeMap::new();
    let mut published: BTreeMap<ContentKey, BTreeSet<Version>> = BTreeMap::new();
    let mut consumer = spawn(&bus, &sink, &clock);
    for _ in 0..120 {
        for _ in 0..random.u64(..6) {
            let content = random.u64(..12);
            let version = versions.entry(content).or_default();
            *version += 1 + random.u64(..3);
            let e = event(&format!("c{content}"), *version, 1);
            published.entry(e.key.clone()).or_default().insert(e.version);
            bus.publish(&e);
            if random.u64(..4) == 0 {
                bus.publish(&e);
            }
        }
        tokio::time::advance(Duration::from_millis(random.u64(..300))).await;
        match random.u64(..25) {
            0 => {
                // A crash: only durable state survives.
                drop(consumer);
                tokio::time::advance(Duration::from_millis(100)).await;
                tokio::task::yield_now().await;
                sink.crash();
                consumer = spawn(&bus, &sink, &clock);
            }
            1 => {
                consumer.stop().await;
                consumer = spawn(&bus, &sink, &clock);
            }
            2 => sink.state().down = true,
            3 => sink.state().down = false,
            _ => tokio::task::yield_now().await,
        }
    }
    sink.state().down = false;
    until("all positions at the end", Duration::from_secs(60), || {
        // This much poison may count as a storm: an operator allows it.
        if consumer.status().storm {
            consumer.allow_storm();
        }
        let state = bus.state();
        state
            .records
            .iter()
            .all(|(p, r)| state.committed.get(p).is_some_and(|c| c.next == r.len() as u64 + 1))
    })
    .await;
    consumer.stop().await;
    let dead_letters = bus.state().dead_letters.clone();
    for dead_letter in dead_letters.values() {
        assert!(
            is_poison(dead_letter.record.version.packed()),
            "seed {seed}: only poison is parked, {dead_letter:?}"
        );
    }
    let state = sink.state();
    for (key, versions) in &published {
        let newest = versions.iter().rfind(|v| !is_poison(v.packed())).copied();
        let parked_newer = versions.iter().any(|v| is_poison(v.packed()) && Some(*v) > newest);
        let applied = state.applied.get(key).copied();
        // A poison record that is the newest of its key may supersede the one before it in a batch.
        assert!(
            applied == newest || (parked_newer && applied < newest),
            "seed {seed}: {key}: {applied:?}, {newest:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn random_faults_end_equal_to_the_model() {
    let runs = if cfg!(feature = "full") { 2000 } else { 60 };
    for seed in 0..runs {
        one_run(seed).await;
    }
}
