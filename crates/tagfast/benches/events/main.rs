//! From commits to the search index on a real cluster with Kafka and OpenSearch: the relay beside a
//! bare producer loop, the indexer beside a bare bulk loader, and how long a write takes until a
//! search finds it.
//!
//! `cargo bench -p tagfast --bench events [-- --events N --seconds N --dead-letters N
//! --outage SECONDS --only PART]`, PART one of `cluster`, `dead_letters`, `embedded`. Servers and
//! clients share the processors.
#![expect(clippy::print_stdout, reason = "a benchmark speaks to its terminal")]

mod dead_letters;
mod embedded;
mod outage;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::json;
use tagfast::outbox::KafkaOutbox;
use tagfast_domain::{
    ContentKey, EpochOrdinal, Limits, Operation, Tag, Tagging, TaggingsEvent, TenantId, UserId,
    Version, Write, WriteId,
};
use tagfast_events::{Bus, Consumer, Partition, RebuildRequest, RuntimeOptions, Sink, envelope};
use tagfast_events_kafka::{KafkaBus, KafkaOptions, Security};
use tagfast_resilience::{Breakers, Clock, SystemClock};
use tagfast_search::{SearchIndex, SearchRequest, Sort};
use tagfast_search_opensearch::{OpenSearchIndex, OpenSearchOptions};
use tagfast_store::{ShardScanner, TagWriter, WriteRequest};
use tagfast_store_postgres::testing::GatedSink;
use tagfast_store_postgres::{ClusterOptions, PostgresOptions, PostgresStore};
use tagfast_testkit::stack::{Stack, StackInfo, StackOptions};

const PARTITIONS: u16 = 8;
const BASELINE: &str = "bench.baseline";

fn key(n: u64) -> ContentKey {
    ContentKey::parse("bench", "page", &format!("content-{n}")).expect("a content")
}

fn request(key: ContentKey, tag: &str, id: u128) -> WriteRequest {
    let user = UserId::parse("bench").expect("a user");
    let tags = vec![Tag::parse(tag).expect("a tag")];
    let operation = Operation::patch(tags, Vec::new(), &Limits::default()).expect("a patch");
    let write = Write { id: WriteId(id.to_be_bytes()), key, user, operation, if_match: None };
    WriteRequest { keyed: None, ..WriteRequest::new(write) }
}

/// Processor time of this process, in microseconds.
fn cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("it is there");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("a process").split(' ').collect();
    let ticks = |n: usize| fields[n].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) * 10_000.0
}

/// Records per second, and the processor time of each in microseconds.
async fn timed(count: u64, work: impl Future<Output = ()>) -> (f64, f64) {
    let (began, cpu) = (Instant::now(), cpu_us());
    work.await;
    (count as f64 / began.elapsed().as_secs_f64(), (cpu_us() - cpu) / count as f64)
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// librdkafka's own producer loop: messages encoded in advance, to the same number of partitions.
fn producer_loop(brokers: &str, messages: &[envelope::Message]) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "2")
        .set("compression.type", "lz4")
        .create()
        .expect("a producer");
    for (n, message) in messages.iter().enumerate() {
        let mut record = BaseRecord::to(BASELINE)
            .partition((n % usize::from(PARTITIONS)) as i32)
            .key("bench/page/content")
            .payload(&message.payload);
        while let Err((_, back)) = producer.send(record) {
            producer.poll(Duration::from_millis(1));
            record = back;
        }
        if n % 1000 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(Duration::from_secs(60)).expect("everything is delivered");
}

fn example(n: u64) -> TaggingsEvent {
    let (tag, at) = (Tag::parse("some-tag").expect("a tag"), SystemClock.now_ms());
    let user = UserId::parse("bench").expect("a user");
    let version = Version::from_packed(n + 1).expect("fits");
    let tagging = Tagging::of(tag, user, at, version);
    TaggingsEvent {
        key: key(n),
        version,
        at,
        publisher_epoch: EpochOrdinal(1),
        tags: vec![tagging],
        changes: Vec::new(),
    }
}

/// A bulk loader that does nothing else: the same documents into an index of the same kind, without
/// or with versions that the server compares.
async fn bulk_loader(url: &str, count: u64, versions: bool) {
    let http = reqwest::Client::new();
    let index = format!("{url}/{BASELINE}.{versions}");
    let send = async |request: reqwest::RequestBuilder, kind: &str, body: String| {
        let answer =
            request.header("content-type", kind).body(body).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.status());
        answer.bytes().await.expect("a body");
    };
    let keyword = json!({"type": "keyword"});
    let definition = json!({
        "settings": {"number_of_shards": 2, "refresh_interval": "1s"},
        "mappings": {"dynamic": "strict", "properties": {
            "tenant": keyword, "type": keyword, "id": keyword, "tags": keyword,
            "updated_at": {"type": "long"}, "ver": {"type": "long"}, "gone": {"type": "boolean"}}},
    });
    send(http.put(&index), "application/json", definition.to_string()).await;
    for first in (0..count).step_by(500) {
        let mut lines = String::new();
        for n in first..(first + 500).min(count) {
            let id = format!("content-{n}");
            let document = json!({"tenant": "bench", "type": "page", "id": id, "tags": ["some-tag"],
                "updated_at": 1_800_000_000_000u64, "ver": n + 1, "gone": false});
            let version = if versions {
                format!(",\"version\":{},\"version_type\":\"external\"", n + 1)
            } else {
                String::new()
            };
            lines.push_str(&format!(
                "{{\"index\": {{\"_id\": \"bench:page:{id}\"{version}}}}}\n{document}\n"
            ));
        }
        send(http.post(format!("{index}/_bulk")), "application/x-ndjson", lines).await;
    }
}

fn argument(name: &str, default: u64) -> u64 {
    let mut args = std::env::args().skip_while(|a| a != name);
    args.nth(1).and_then(|n| n.parse().ok()).unwrap_or(default)
}

type Rate = (f64, f64);

fn figure(
    what: &str,
    own: Rate,
    (name, base): (&str, Rate),
    target: &str,
    ok: bool,
) -> serde_json::Value {
    println!(
        "{what}: {:.0}/s = {:.2}x of {:.0}/s ({name}), {:.1} us each, baseline {:.1} us; {target}: {}",
        own.0,
        own.0 / base.0,
        base.0,
        own.1,
        base.1,
        if ok { "reached" } else { "MISSED" }
    );
    json!({"what": what, "value": own.0, "unit": "/s", "cpu_us": own.1, "baseline": name, "baseline_value": base.0,
        "baseline_cpu_us": base.1, "target": target, "ok": ok})
}

async fn bus(brokers: &str) -> Arc<KafkaBus> {
    let bus = KafkaBus::new(KafkaOptions {
        brokers: vec![brokers.to_owned()],
        topic: "tagfast.taggings.v1".to_owned(),
        partitions: PARTITIONS,
        security: Security::default(),
        member: "bench".to_owned(),
        clusters: (0..PARTITIONS).map(|p| (Partition(p), BTreeSet::from(["c0".into()]))).collect(),
        standalone_groups: Vec::new(),
    })
    .expect("the settings are fine");
    bus.check_topics().await.expect("topics");
    bus
}

async fn store(info: &StackInfo, gate: &Arc<GatedSink<KafkaOutbox>>) -> Arc<PostgresStore> {
    let options = PostgresOptions {
        node: "bench".to_owned(),
        ..PostgresOptions::new(
            vec![ClusterOptions::new("c0", "0-63")],
            info.etcd.iter().map(|e| e.url.clone()).collect(),
            info.database.name.clone(),
            info.database.user.clone(),
            std::fs::read_to_string(&info.database.password_file).expect("the password"),
        )
    };
    let store = PostgresStore::open(options, Arc::clone(gate) as _).expect("it opens");
    assert!(store.wait_until_ready(Duration::from_secs(30)).await, "{:?}", store.status());
    store
}

async fn make_topic(brokers: &str) {
    let admin: rdkafka::admin::AdminClient<rdkafka::client::DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client");
    let copies = rdkafka::admin::TopicReplication::Fixed(1);
    let topic = rdkafka::admin::NewTopic::new(BASELINE, i32::from(PARTITIONS), copies);
    admin.create_topics([&topic], &rdkafka::admin::AdminOptions::new()).await.expect("a reply");
}

/// The parts that run on the real stack.
struct Harness {
    stack: Stack,
    brokers: String,
    url: String,
    bus: Arc<KafkaBus>,
    /// While it is closed, events wait in the outbox.
    gate: Arc<GatedSink<KafkaOutbox>>,
    store: Arc<PostgresStore>,
    clock: Arc<dyn Clock>,
}

impl Harness {
    async fn up() -> Self {
        let dir = tempfile::tempdir().expect("a folder").keep();
        let options = StackOptions {
            kafka: true,
            opensearch: true,
            shared_buffers: "256MB".to_owned(),
            ..StackOptions::clusters_only(1, dir)
        };
        let up =
            tokio::task::spawn_blocking(move || Stack::up(&options, &|line| println!("{line}")));
        let stack = up.await.expect("no panic").expect("the stack comes up");
        let info = stack.info().clone();
        let brokers = info.kafka.as_ref().expect("Kafka").bootstrap.to_string();
        let url = info.opensearch.as_ref().expect("OpenSearch").url.clone();
        let bus = bus(&brokers).await;
        let breakers = Breakers::new(Arc::new(SystemClock));
        let gate = Arc::new(GatedSink::new(KafkaOutbox::new(bus.publisher(), &breakers)));
        gate.close();
        let store = store(&info, &gate).await;
        Self { stack, brokers, url, bus, gate, store, clock: Arc::new(SystemClock) }
    }

    fn index(&self, alias: &str, scanner: Arc<dyn ShardScanner>) -> Arc<OpenSearchIndex> {
        let options = OpenSearchOptions {
            url: self.url.clone().into(),
            login: None,
            alias: alias.to_owned(),
            shards: 2,
        };
        OpenSearchIndex::new(options, scanner, Arc::clone(&self.clock)).expect("a client")
    }
}

#[tokio::main]
async fn main() {
    let only = std::env::args().skip_while(|a| a != "--only").nth(1);
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let (dead_letters, outage) = (argument("--dead-letters", 100_000), argument("--outage", 60));
    let mut figures = Vec::new();
    if wanted("embedded") {
        figures.extend(embedded::run(argument("--embedded", 600_000)).await);
    }
    if wanted("cluster") || wanted("dead_letters") {
        let mut harness = Harness::up().await;
        if wanted("cluster") {
            figures.extend(cluster(&mut harness, outage).await);
        }
        if wanted("dead_letters") {
            figures.extend(dead_letters::run(&harness, dead_letters).await);
        }
    }
    println!("{}", json!({"figures": figures}));
}

async fn cluster(harness: &mut Harness, outage: u64) -> Vec<serde_json::Value> {
    let (events, seconds) = (argument("--events", 200_000), argument("--seconds", 60));
    let (bus, store, url) =
        (Arc::clone(&harness.bus), Arc::clone(&harness.store), harness.url.clone());
    let index = harness.index("tagfast-content", Arc::clone(&store) as Arc<dyn ShardScanner>);
    // Before there are contents to copy.
    index
        .rebuild(RebuildRequest::new(&bus.ends().await.expect("the ends"), bus.epoch()))
        .await
        .expect("an empty index");

    println!("writing {events} contents while the relay's sink is closed");
    for first in (0..events).step_by(2000) {
        let batch =
            (first..(first + 2000).min(events)).map(|n| request(key(n), "some-tag", u128::from(n)));
        for answer in store.write_many(batch.collect()).await {
            answer.expect("written");
        }
    }
    let messages: Vec<_> =
        (0..events).map(|n| envelope::encode_binary(&example(n), "c0", 1)).collect();
    make_topic(&harness.brokers).await;
    let to = harness.brokers.clone();
    let base = timed(events, async {
        tokio::task::spawn_blocking(move || producer_loop(&to, &messages)).await.expect("no panic");
    })
    .await;
    harness.gate.open();
    let relay = timed(events, store.drained()).await;
    let mut figures = vec![figure(
        "relay and Kafka, a backlog, writers stopped",
        relay,
        ("librdkafka's producer loop, encoded before", base),
        ">= 20000 events/s",
        relay.0 >= 20_000.0,
    )];

    // A million documents say no more of a rate than these.
    let documents = events.min(200_000);
    let base = timed(documents, bulk_loader(&url, documents, false)).await;
    let versioned = timed(documents, bulk_loader(&url, documents, true)).await;
    println!("the bare bulk loader with versions: {:.0}/s, without: {:.0}/s", versioned.0, base.0);
    let (from, sink) = (Arc::clone(&bus) as Arc<dyn Bus>, Arc::clone(&index) as Arc<dyn Sink>);
    let consumer =
        Consumer::spawn(from, sink, RuntimeOptions::default(), Arc::clone(&harness.clock));
    // Joining a group takes the broker's time, three seconds for the first member: the rate begins
    // with the first record.
    while consumer.status().applied == 0 {
        pause(5).await;
    }
    let before = consumer.status().applied;
    let (began, cpu) = (Instant::now(), cpu_us());
    while consumer.status().applied < documents {
        pause(5).await;
    }
    let done = (consumer.status().applied - before) as f64;
    let indexed = (done / began.elapsed().as_secs_f64(), (cpu_us() - cpu) / done);
    figures.push(figure(
        "indexer into OpenSearch",
        indexed,
        ("a bare bulk loader, the same documents", base),
        ">= 0.7x",
        indexed.0 >= 0.7 * base.0,
    ));
    while consumer.status().applied < events {
        pause(20).await;
    }
    figures.push(searchable(&store, &index, seconds).await);
    if outage > 0 {
        figures.extend(outage::run(harness, &consumer, &index, outage).await);
    }
    assert_eq!(consumer.status().parked, 0, "nothing is a record's fault");
    consumer.stop().await;
    figures
}

/// Writes contents at this rate, per second, until `stop` is set; returns how many.
async fn writers(store: Arc<PostgresStore>, rate: u64, stop: Arc<AtomicBool>) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (mut ticks, mut written) = (tokio::time::interval(Duration::from_millis(20)), 0u64);
    while !stop.load(Ordering::SeqCst) {
        ticks.tick().await;
        let batch = (0..rate / 50).map(|_| {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            // Each round leaves every content with a different set of tags: a write that changes
            // nothing has no event.
            let tags = [format!("tag-{}", n % 50), format!("round-{}", n / 100_000 % 7)];
            let tags = tags.iter().map(|tag| Tag::parse(tag).expect("a tag")).collect();
            let mut request = request(key(n * 7919 % 100_000), "any", 1 << 80 | u128::from(n));
            request.write.operation = Operation::replace(tags, &Limits::default()).expect("a set");
            request
        });
        for answer in store.write_many(batch.collect()).await {
            assert!(answer.expect("written").changed, "every write has an event");
            written += 1;
        }
    }
    written
}

/// How long after its acknowledgement a write is found, while 1,500 others a second are written.
async fn searchable(
    store: &Arc<PostgresStore>,
    index: &Arc<OpenSearchIndex>,
    seconds: u64,
) -> serde_json::Value {
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(writers(Arc::clone(store), 1500, Arc::clone(&stop)));
    let tenant = TenantId::parse("bench").expect("a tenant");
    let (mut took, began) = (Vec::new(), Instant::now());
    for n in 0.. {
        if began.elapsed() > Duration::from_secs(seconds) {
            break;
        }
        let tag = format!("canary-{n}");
        store
            .write(request(key(1_000_000 + n), &tag, 2 << 80 | u128::from(n)))
            .await
            .expect("written");
        let acknowledged = Instant::now();
        let wanted = SearchRequest {
            query: Some(tag),
            content_type: None,
            sort: Sort::Id,
            after: None,
            limit: 1,
            facets: false,
            total_exact: false,
            criticality: tagfast_resilience::Criticality::Degradable,
        };
        while index.search(&tenant, &wanted).await.expect("answered").hits.is_empty() {
            pause(10).await;
        }
        took.push(acknowledged.elapsed().as_secs_f64() * 1000.0);
        pause(50).await;
    }
    stop.store(true, Ordering::SeqCst);
    let rate = load.await.expect("no panic") as f64 / began.elapsed().as_secs_f64();
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took[((took.len() as f64 * share) as usize).min(took.len() - 1)];
    let (p50, p99, most) = (at(0.5), at(0.99), at(1.0));
    let ok = p50 <= 500.0 && p99 <= 2000.0 && most <= 5000.0;
    println!(
        "acknowledged -> found at {rate:.0} writes/s: p50 {p50:.0} ms, p99 {p99:.0} ms, at most {most:.0} ms ({} in {seconds} s); \
         p50 <= 500, p99 <= 2000, at most 5000 ms: {}",
        took.len(),
        if ok { "reached" } else { "MISSED" }
    );
    json!({"what": "acknowledged until found, 1,500 writes/s", "value": p50, "unit": "ms (p50)",
        "latency_us": [p50 * 1000.0, p99 * 1000.0, most * 1000.0],
        "target": "p50 <= 500, p99 <= 2000, at most 5000 ms", "ok": ok})
}
