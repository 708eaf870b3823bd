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
    DeadLetterStore, NewReplayJob, Partition, RecordKind, ReplayWorker, RuntimeOptions, Sink,
    envelope,
};
use tagfast_search_opensearch::OpenSearchIndex;
use tagfast_sharding::LogicalShard;
use tagfast_store::testing::MemoryStore;
use tagfast_store_postgres::PostgresDeadLetters;

use crate::{PARTITIONS, World, example, pause};

fn letter(n: u64) -> DeadLetter {
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
    let mut letter = exhausted(record, event.at);
    letter.last_failed_at += (n / 10) as i64;
    letter
}

pub(crate) async fn run(world: &World, count: u64) -> Vec<Value> {
    let book = Arc::new(PostgresDeadLetters::new(Arc::clone(&world.store)));
    println!("parking {count} letters");
    for first in (0..count).step_by(1000) {
        let letters: Vec<_> = (first..(first + 1000).min(count)).map(letter).collect();
        book.ingest(ConsumerGroup::INDEXER, &letters, &BTreeMap::new()).await.expect("taken in");
    }
    let (mut worst, mut pages, mut after) = (Duration::ZERO, 0, None);
    let filter =
        DeadLetterFilter { tenant: Some("bench".to_owned()), ..DeadLetterFilter::default() };
    loop {
        let began = Instant::now();
        let page = book.list(&filter, after.as_ref(), 100).await.expect("a page");
        (worst, pages) = (worst.max(began.elapsed()), pages + 1);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let ms = worst.as_secs_f64() * 1000.0;
    println!(
        "{pages} pages of {count} letters: the slowest took {ms:.1} ms; <= 200: {}",
        said(ms <= 200.0)
    );

    let shards = MemoryStore::new(Arc::clone(&world.clock));
    let index = world.index("bench-replay", shards);
    index
        .rebuild(&world.bus.ends().await.expect("the ends"), world.bus.epoch(), &|_| {})
        .await
        .expect("an empty index");
    let (bus, sink) = (Arc::clone(&world.bus) as Arc<dyn Bus>, Arc::clone(&index) as Arc<dyn Sink>);
    let consumer =
        Arc::new(Consumer::spawn(bus, sink, RuntimeOptions::default(), Arc::clone(&world.clock)));
    while !consumer.status().caught_up {
        pause(50).await;
    }
    let shared = Arc::clone(&book) as Arc<dyn DeadLetterStore>;
    let replay_worker =
        ReplayWorker::spawn(shared, Arc::clone(&consumer), Arc::clone(&world.clock));
    let began = Instant::now();
    let job = NewReplayJob {
        id: "bench".to_owned(),
        dry_run: false,
        rate: REPLAY_RATE_MAX,
        at: world.clock.now_ms(),
    };
    let begun = book.create_job(&job, &filter).await.expect("a job");
    assert_eq!(begun.letters, count);
    let ended = loop {
        let job = book.job("bench").await.expect("a look").expect("the job");
        if job.left() == 0 {
            break job;
        }
        pause(50).await;
    };
    let rate = count as f64 / began.elapsed().as_secs_f64();
    println!(
        "{count} letters replayed ({} applied, {} superseded): {rate:.0}/s; >= 5000/s: {}",
        ended.applied,
        ended.superseded,
        said(rate >= 5000.0)
    );
    replay_worker.stop().await;
    let (with, without) = (blocked(world, &index, true).await, blocked(world, &index, false).await);
    println!(
        "a record behind a poison record of its partition is indexed after {with:.0} ms at most, {without:.0} ms without one; \
         <= 1000: {}",
        said(with <= 1000.0)
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
async fn blocked(world: &World, index: &OpenSearchIndex, poison: bool) -> f64 {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &world.brokers).create().expect("a producer");
    let (publisher, mut worst) = (world.bus.publisher(), 0.0f64);
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

fn said(ok: bool) -> &'static str {
    if ok { "reached" } else { "MISSED" }
}
