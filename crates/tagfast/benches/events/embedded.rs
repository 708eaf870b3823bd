//! The embedded bus: an import that consumers keep up with, and one that they come back to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tagfast_domain::{ContentKey, Limits, Operation, Tag, UserId, Write, WriteId};
use tagfast_events::{Bus, Consumer, RuntimeOptions, Sink};
use tagfast_popular_counts::PopularCounts;
use tagfast_resilience::{Clock, SystemClock};
use tagfast_search_tantivy::{TantivyIndex, TantivyOptions};
use tagfast_store::{ShardScanner, TagWriter, WriteRequest};
use tagfast_store_embedded::{EmbeddedStore, OpenOptions};

use crate::pause;

/// Tags of a content that is imported.
const TAGS: u64 = 5;
/// Contents per second: 50,000 taggings.
const PACE: u64 = 10_000;
const SECONDS: u64 = 20;

fn request(n: u64) -> WriteRequest {
    let key = ContentKey::parse("bench", "page", &format!("content-{n}")).expect("a content");
    let tags = (0..TAGS)
        .map(|t| Tag::parse(&format!("tag-{}", (n * 7 + t * 13) % 5000)).expect("a tag"))
        .collect();
    let operation = Operation::patch(tags, Vec::new(), &Limits::default()).expect("a patch");
    let user = UserId::parse("bench").expect("a user");
    let write =
        Write { id: WriteId(u128::from(n).to_be_bytes()), key, user, operation, if_match: None };
    WriteRequest { keyed: None, ..WriteRequest::new(write) }
}

async fn write(store: &Arc<EmbeddedStore>, next: &AtomicU64, count: u64) {
    let first = next.fetch_add(count, Ordering::Relaxed);
    for answer in store.write_many((first..first + count).map(request).collect()).await {
        answer.expect("written");
    }
}

fn sinks(
    dir: &std::path::Path,
    store: &Arc<EmbeddedStore>,
    clock: &Arc<dyn Clock>,
) -> [Arc<dyn Sink>; 2] {
    let scanner = Arc::clone(store) as Arc<dyn ShardScanner>;
    let options = TantivyOptions::default();
    let index =
        TantivyIndex::open(dir.join("search"), options, Arc::clone(&scanner), Arc::clone(clock))
            .expect("it opens");
    let popular =
        PopularCounts::open(dir.join("popular"), scanner, Arc::clone(clock)).expect("it opens");
    [index, popular]
}

/// The consumers as the program runs them.
fn runtime(sink: &Arc<dyn Sink>) -> RuntimeOptions {
    let default = RuntimeOptions::default();
    if sink.group() == tagfast_popular_counts::CONSUMER_GROUP {
        return RuntimeOptions { batch: tagfast_popular_counts::APPLY_BATCH_MAX, ..default };
    }
    default
}

fn consume(
    bus: &Arc<dyn Bus>,
    sinks: &[Arc<dyn Sink>; 2],
    clock: &Arc<dyn Clock>,
) -> Vec<Consumer> {
    let start = |sink: &Arc<dyn Sink>| {
        Consumer::spawn(Arc::clone(bus), Arc::clone(sink), runtime(sink), Arc::clone(clock))
    };
    sinks.iter().map(start).collect()
}

pub(crate) async fn run(backlog: u64) -> Vec<Value> {
    let dir = tempfile::tempdir().expect("a folder");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let options = OpenOptions::new(dir.path().join("data"), Arc::clone(&clock));
    let store = EmbeddedStore::open(options).expect("it opens");
    let (bus, next) = (store.bus(), AtomicU64::new(0));
    let feeds = sinks(dir.path(), &store, &clock);
    let consumers = consume(&bus, &feeds, &clock);
    while !consumers.iter().all(|consumer| consumer.status().caught_up) {
        pause(20).await;
    }

    println!("importing {} taggings/s for {SECONDS} s into the embedded store", PACE * TAGS);
    let (began, mut worst) = (Instant::now(), 0.0f64);
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    while began.elapsed() < Duration::from_secs(SECONDS) {
        ticks.tick().await;
        write(&store, &next, PACE / 20).await;
        let lags = consumers.iter().filter_map(|consumer| consumer.status().lag_seconds);
        worst = lags.fold(worst, f64::max);
    }
    let written = next.load(Ordering::Relaxed) as f64;
    let rate = written * TAGS as f64 / began.elapsed().as_secs_f64();
    let keeps_up = rate >= 0.98 * (PACE * TAGS) as f64 && worst <= 5.0;
    println!(
        "{rate:.0} taggings/s, consumers at most {worst:.2} s behind; 50000/s, <= 5 s: {}",
        verdict(keeps_up)
    );

    // The consumer is stopped while writers go on: as many events as this rate makes in a minute or
    // more.
    for consumer in consumers {
        consumer.stop().await;
    }
    println!("writing {backlog} events while both consumers are stopped");
    let first = next.load(Ordering::Relaxed);
    while next.load(Ordering::Relaxed) < first + backlog {
        write(&store, &next, 5000).await;
    }
    let mut figures = vec![
        json!({"what": "embedded import at 50,000 taggings/s, consumers behind at most", "value": worst,
        "unit": "s", "target": "keeps up", "ok": keeps_up}),
    ];
    // One after the other, so that each figure is of one stopped consumer.
    let feeds = {
        drop(feeds);
        sinks(dir.path(), &store, &clock)
    };
    for sink in feeds {
        let group = sink.group().0;
        let began = Instant::now();
        let options = runtime(&sink);
        let consumer = Consumer::spawn(Arc::clone(&bus), sink, options, Arc::clone(&clock));
        while consumer.status().applied < backlog {
            pause(10).await;
        }
        let rate = backlog as f64 / began.elapsed().as_secs_f64();
        println!(
            "{group} drains {backlog} events at {rate:.0}/s; >= 10000/s: {}",
            verdict(rate >= 10_000.0)
        );
        figures.push(
            json!({"what": format!("embedded {group} drains a backlog of {backlog}"), "value": rate, "unit": "/s",
            "target": ">= 10000/s", "ok": rate >= 10_000.0}),
        );
        consumer.stop().await;
    }
    store.close();
    figures
}

fn verdict(ok: bool) -> &'static str {
    if ok { "reached" } else { "MISSED" }
}
