//! Dead letters: how long one page of many takes, and how fast they are replayed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use tagfast_events::conformance::dead_letters::exhausted;
use tagfast_events::dead_letters::REPLAY_RATE_MAX;
use tagfast_events::{
    Bus, BusRecord, ClusterName, Consumer, ConsumerGroup, DeadLetter, DeadLetterFilter,
    DeadLetterStore, NewReplayJob, Partition, RebuildRequest, RecordKind, ReplayWorker,
    RuntimeOptions, Sink, envelope,
};
use tagfast_search_opensearch::OpenSearchIndex;
use tagfast_sharding::LogicalShard;
use tagfast_store::testing::MemoryStore;
use tagfast_store_postgres::PostgresDeadLetters;

use crate::{Harness, PARTITIONS, example, pause};

fn dead_letter(n: u64) -> DeadLetter {
    let event = example(n);
    let record = BusRecord {
        kind: RecordKind::Event,
        partition: Partition((n % u64::from(PARTITIONS)) as u16),
        offset: n,
        key: event.key.to_bytes(),
        version: event.version,
        at: event.at,
        cluster: ClusterName::from("c0"),
        publisher_epoch: event.publisher_epoch,
        headers: Vec::new(),
        payload: envelope::encode(&event),
    };
    let mut dead_letter = exhausted(record, event.at);
    dead_letter.last_failed_at += (n / 10) as i64;
    dead_letter
}

pub(crate) async fn run(harness: &Harness, count: u64) -> Vec<Value> {
    let store = Arc::new(PostgresDeadLetters::new(Arc::clone(&harness.store)));
    println!("parking {count} dead letters");
    for first in (0..count).step_by(1000) {
        let dead_letters: Vec<_> = (first..(first + 1000).min(count)).map(dead_letter).collect();
        store
            .ingest(ConsumerGroup::INDEXER, &dead_letters, &BTreeMap::new())
            .await
            .expect("ingested");
    }
    let (mut worst, mut pages, mut after) = (Duration::ZERO, 0, None);
    let filter =
        DeadLetterFilter { tenant: Some("bench".to_owned()), ..DeadLetterFilter::default() };
    loop {
        let began = Instant::now();
        let page = store.list(&filter, after.as_ref(), 100).await.expect("a page");
        (worst, pages) = (worst.max(began.elapsed()), pages + 1);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let ms = worst.as_secs_f64() * 1000.0;
    println!(
        "{pages} pages of {count} dead letters: the slowest took {ms:.1} ms; <= 200: {}",
        verdict(ms <= 200.0)
    );

    let shards = MemoryStore::new(Arc::clone(&harness.clock));
    let index = harness.index("bench-replay", shards);
    index
        .rebuild(RebuildRequest::new(
            &harness.bus.ends().await.expect("the ends"),
            harness.bus.epoch(),
        ))
        .await
        .expect("an empty index");
    let (bus, sink) =
        (Arc::clone(&harness.bus) as Arc<dyn Bus>, Arc::clone(&index) as Arc<dyn Sink>);
    let consumer =
        Arc::new(Consumer::spawn(bus, sink, RuntimeOptions::default(), Arc::clone(&harness.clock)));
    while !consumer.status().caught_up {
        pause(50).await;
    }
    let shared = Arc::clone(&store) as Arc<dyn DeadLetterStore>;
    let replay_worker =
        ReplayWorker::spawn(shared, Arc::clone(&consumer), Arc::clone(&harness.clock));
    let began = Instant::now();
    let job = NewReplayJob {
        id: "bench".to_owned(),
        dry_run: false,
        rate: REPLAY_RATE_MAX,
        at: harness.clock.now_ms(),
    };
    let begun = store.create_job(&job, &filter).await.expect("a job");
    assert_eq!(begun.dead_letters, count);
    let ended = loop {
        let job = store.job("bench").await.expect("a read").expect("the job");
        if job.left() == 0 {
            break job;
        }
        pause(50).await;
    };
    let rate = count as f64 / began.elapsed().as_secs_f64();
    println!(
        "{count} dead letters replayed ({} applied, {} superseded): {rate:.0}/s; >= 5000/s: {}",
        ended.applied,
        ended.superseded,
        verdict(rate >= 5000.0)
    );
    replay_worker.stop().await;
    let (with, without) =
        (blocked(harness, &index, true).await, blocked(harness, &index, false).await);
    println!(
        "a record behind a poison record of its partition is indexed after {with:.0} ms at most, {without:.0} ms without one; \
         <= 1000: {}",
        verdict(with <= 1000.0)
    );
    consumer.stop().await;
    vec![
        json!({"what": "a record behind poison in its partition, until it is indexed, at most", "value": with, "unit": "ms",
            "baseline": "without poison", "baseline_value": without, "target": "<= 1000 ms", "ok": with <= 1000.0}),
        json!({"what": format!("a page of {count} dead letters, the slowest"), "value": ms, "unit": "ms",
            "target": "<= 200 ms", "ok": ms <= 200.0}),
        json!({"what": "dead letters replayed into OpenSearch", "value": rate, "unit": "/s", "target": ">= 5000/s",
            "ok": rate >= 5000.0}),
    ]
}

/// Longest time that a record takes into the index, in milliseconds, with or without an undecodable
/// record before it.
async fn blocked(harness: &Harness, index: &OpenSearchIndex, poison: bool) -> f64 {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &harness.brokers)
        .create()
        .expect("a producer");
    let (publisher, mut worst) = (harness.bus.publisher(), 0.0f64);
    for n in 0..20 {
        let event = example(10_000_000 + n + if poison { 1000 } else { 0 });
        let partition = i32::from(LogicalShard::of(&event.key).number()) % i32::from(PARTITIONS);
        if poison {
            let record = BaseRecord::to("tagfast.taggings.v1")
                .partition(partition)
                .key("any/key")
                .payload("garbage");
            producer.send(record).map_err(|(error, _)| error).expect("taken");
            producer.flush(Duration::from_secs(10)).expect("written");
        }
        let began = Instant::now();
        publisher.publish("bench", std::slice::from_ref(&event), 0).await.expect("published");
        while index.versions(std::slice::from_ref(&event.key)).await.expect("answered")[0].is_none()
        {
            pause(5).await;
        }
        worst = worst.max(began.elapsed().as_secs_f64() * 1000.0);
    }
    worst
}

fn verdict(ok: bool) -> &'static str {
    if ok { "reached" } else { "MISSED" }
}
