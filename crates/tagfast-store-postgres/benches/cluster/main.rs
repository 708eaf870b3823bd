//! Writes and views on a real cluster of three nodes, alternating with pgbench on the same cluster.
//!
//! `cargo bench -p tagfast-store-postgres --bench cluster [-- --json --only WORD --seconds N
//! --large --contents N]`. Callers, proxy and servers share the processors. `--only` measures the
//! rows whose name contains the word; `--large` measures the growth to 10 million taggings instead.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod pgbench;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tagfast_domain::{
    Call, ContentKey, IdempotencyKey, Limits, Operation, Tag, UserId, Write, WriteId,
};
use tagfast_store::{ConsistencyToken, ReadOptions, TagReader, TagWriter, WriteRequest};
use tagfast_store_postgres::{NullSink, PostgresOptions, PostgresStore};
use tagfast_testkit::stack::{NodeInfo, Stack, StackOptions};

use crate::pgbench::{Measured, Pgbench, cpu_seconds};

const CONTENTS: u64 = 20_000;
/// So few that each is written several times a second: its document evicts an id with every write.
const HOT_CONTENTS: u64 = 4_000;
/// Repetitions; the median counts.
const ROUNDS: usize = 3;

#[derive(Clone, Copy)]
enum Workload {
    /// Callers, contents a call, tags a content, contents to choose from.
    Writes(u64, u64, u64, u64),
    /// The same with idempotency keys, one a call.
    KeyedWrites(u64, u64, u64, u64),
    /// Callers.
    Views(u64),
}

/// A row of the table.
struct Row {
    name: &'static str,
    workload: Workload,
    lanes: usize,
    /// The target as a multiple of the baseline's rate; `None`: no target.
    ratio: Option<f64>,
    /// The target as a multiple of the baseline's CPU; `None`: no target.
    cpu: Option<f64>,
    /// The target in taggings a second; `None`: no target.
    rate: Option<f64>,
    own: Vec<Measured>,
    base: Vec<Measured>,
}

impl Row {
    fn new(name: &'static str, workload: Workload) -> Self {
        Self {
            name,
            workload,
            lanes: 2,
            ratio: None,
            cpu: None,
            rate: None,
            own: Vec::new(),
            base: Vec::new(),
        }
    }

    fn figure(self) -> serde_json::Value {
        let (own, base) = (median(self.own), median(self.base));
        let (ratio, cpu) = (own.per_second / base.per_second, own.server_us / base.server_us);
        let tags = match self.workload {
            Workload::Writes(_, _, tags, _) | Workload::KeyedWrites(_, _, tags, _) => tags as f64,
            Workload::Views(_) => 1.0,
        };
        let reached = self.ratio.is_none_or(|target| ratio >= target)
            && self.cpu.is_none_or(|target| cpu <= target)
            && self.rate.is_none_or(|target| own.per_second * tags >= target);
        let targets = [
            self.ratio.map(|r| format!(">= {r}x")),
            self.cpu.map(|c| format!("CPU <= {c}x")),
            self.rate.map(|r| format!(">= {r} taggings/s")),
        ];
        let target = targets.into_iter().flatten().collect::<Vec<_>>().join(", ");
        println!(
            "{}: {:.0}/s = {ratio:.2}x of {:.0}/s, server {:.1} us = {cpu:.3}x of {:.1} us, \
             p50 {:.2} ms, p99 {:.2} ms, baseline {:.2} ms on average; {target}: {}",
            self.name,
            own.per_second,
            base.per_second,
            own.server_us,
            base.server_us,
            own.latency_ms[0],
            own.latency_ms[1],
            base.latency_ms[0],
            if target.is_empty() {
                "-"
            } else if reached {
                "reached"
            } else {
                "MISSED"
            }
        );
        let baseline = if let Workload::Views(_) = self.workload {
            "pgbench -S -M prepared -c 16".to_owned()
        } else {
            format!("pgbench, 2 inserts, 64 clients, {:.1} ms on average", base.latency_ms[0])
        };
        let unit = if tags > 1.0 { format!("contents/s of {tags} tags") } else { "/s".to_owned() };
        serde_json::json!({
            "what": self.name, "value": own.per_second, "unit": unit, "baseline": baseline,
            "baseline_value": base.per_second,
            "cpu_us": own.server_us, "baseline_cpu_us": base.server_us,
            "latency_us": own.latency_ms.map(|ms| ms * 1000.0),
            "target": (!target.is_empty()).then_some(&target),
            "ok": (!target.is_empty()).then_some(reached),
        })
    }
}

/// The command line.
struct Arguments {
    json: bool,
    large: bool,
    only: String,
    seconds: f64,
    contents: u64,
}

impl Arguments {
    fn parse() -> Self {
        let arguments: Vec<String> = std::env::args().collect();
        let flag = |name: &str| arguments.iter().any(|a| a == name);
        let value = |name: &str| arguments.iter().skip_while(|a| *a != name).nth(1).cloned();
        Self {
            json: flag("--json"),
            large: flag("--large"),
            only: value("--only").unwrap_or_default(),
            seconds: value("--seconds").and_then(|s| s.parse().ok()).unwrap_or(5.0),
            contents: value("--contents").and_then(|n| n.parse().ok()).unwrap_or(2_000_000),
        }
    }
}

/// A cluster and its stores.
struct Fixture {
    stack: Stack,
    primary: NodeInfo,
    seconds: f64,
    /// By their number of lanes, less one.
    stores: [Arc<PostgresStore>; 2],
}

impl Fixture {
    fn store(&self, lanes: usize) -> &Arc<PostgresStore> {
        &self.stores[lanes - 1]
    }

    fn all_nodes(&self) -> Vec<PathBuf> {
        self.stack.info().clusters[0].nodes.iter().map(|n| n.data_dir.clone()).collect()
    }
}

fn main() {
    let arguments = Arguments::parse();
    let dir = tempfile::tempdir().expect("a folder");
    let options = StackOptions {
        shared_buffers: "256MB".to_owned(),
        ..StackOptions::clusters_only(1, dir.path())
    };
    let stack = Stack::up(&options, &|line| eprint(line)).expect("the stack comes up");
    let primary = stack.primary("c0").expect("a primary");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let stores = [runtime.block_on(open(&stack, 1)), runtime.block_on(open(&stack, 2))];
    let fixture = Fixture { stack, primary, seconds: arguments.seconds, stores };
    runtime.block_on(load(fixture.store(2), 0..CONTENTS));
    let figures = if arguments.large {
        runtime.block_on(growth(&fixture, arguments.contents))
    } else {
        beside_pgbench(&fixture, &runtime, &arguments.only)
    };
    if arguments.json {
        println!("{}", serde_json::json!({"figures": figures}));
    }
}

fn beside_pgbench(
    fixture: &Fixture,
    runtime: &tokio::runtime::Runtime,
    only: &str,
) -> Vec<serde_json::Value> {
    let pg = Pgbench::prepare(&fixture.stack, &fixture.primary, fixture.seconds);
    let mut rows = vec![
        Row {
            ratio: Some(3.0),
            cpu: Some(0.13),
            ..Row::new("single-tag writes, 256 callers", Workload::Writes(256, 1, 1, CONTENTS))
        },
        Row {
            lanes: 1,
            ..Row::new(
                "single-tag writes, 256 callers, one lane",
                Workload::Writes(256, 1, 1, CONTENTS),
            )
        },
        Row::new(
            "single-tag writes, 256 callers, hot: each evicts an id",
            Workload::Writes(256, 1, 1, HOT_CONTENTS),
        ),
        Row::new(
            "single-tag writes with a key, 256 callers",
            Workload::KeyedWrites(256, 1, 1, CONTENTS),
        ),
        Row {
            ratio: Some(2.5),
            ..Row::new("single-tag writes, 64 callers", Workload::Writes(64, 1, 1, CONTENTS))
        },
        Row {
            ratio: Some(5.0),
            ..Row::new(
                "bulk, 100 contents a batch, 8 callers",
                Workload::Writes(8, 100, 1, CONTENTS),
            )
        },
        Row::new(
            "bulk with a key, 100 contents a batch, 8 callers",
            Workload::KeyedWrites(8, 100, 1, CONTENTS),
        ),
        Row {
            rate: Some(100_000.0),
            ..Row::new(
                "bulk, 100 contents of 5 tags a batch, 8 callers",
                Workload::Writes(8, 100, 5, CONTENTS),
            )
        },
        Row {
            ratio: Some(3.0),
            ..Row::new("views, 64 callers, with a token", Workload::Views(64))
        },
    ];
    rows.retain(|row| row.name.contains(only));
    for round in 0..ROUNDS as u64 {
        for (n, row) in rows.iter_mut().enumerate() {
            // No two measurements share a write id.
            let series = round << 8 | n as u64;
            row.own.push(runtime.block_on(measured(fixture, row.workload, row.lanes, series)));
            row.base.push(if let Workload::Views(_) = row.workload {
                pg.selects()
            } else {
                pg.two_inserts()
            });
        }
    }
    rows.into_iter().map(Row::figure).collect()
}

async fn measured(fixture: &Fixture, workload: Workload, lanes: usize, series: u64) -> Measured {
    match workload {
        Workload::Writes(callers, batch, tags, contents) => {
            writes(fixture, lanes, [callers, batch, tags, contents], series, false).await
        }
        Workload::KeyedWrites(callers, batch, tags, contents) => {
            writes(fixture, lanes, [callers, batch, tags, contents], series, true).await
        }
        Workload::Views(callers) => views(fixture, callers).await,
    }
}

/// Size and speed with 10 million taggings, beside 20,000 contents.
async fn growth(fixture: &Fixture, contents: u64) -> Vec<serde_json::Value> {
    let small = [
        measured(fixture, Workload::Writes(256, 1, 1, CONTENTS), 2, 1).await,
        measured(fixture, Workload::Views(64), 2, 0).await,
    ];
    let began = Instant::now();
    load(fixture.store(2), CONTENTS..contents).await;
    let rate = (contents - CONTENTS) as f64 * 5.0 / began.elapsed().as_secs_f64();
    let (client, connection) =
        tokio_postgres::connect(&connection_string(fixture), tokio_postgres::NoTls)
            .await
            .expect("connects");
    let driver = tokio::spawn(connection);
    let size = "SELECT pg_total_relation_size('content')::bigint, count(*)::bigint FROM content";
    let row = client.query_one(size, &[]).await.expect("a size");
    let (bytes, count): (i64, i64) = (row.get(0), row.get(1));
    // Dead rows and a cold cache are left from loading, and are not to be measured.
    client.batch_execute("VACUUM (ANALYZE) content").await.expect("it is vacuumed");
    driver.abort();
    measured(fixture, Workload::Writes(256, 1, 1, CONTENTS), 2, 3).await;
    measured(fixture, Workload::Views(64), 2, 0).await;
    let each = bytes as f64 / (count as f64 * 5.0);
    println!(
        "{count} contents of 5 tags: {each:.1} B a tagging on disk, loaded at {rate:.0} taggings/s"
    );
    let large = [
        measured(fixture, Workload::Writes(256, 1, 1, CONTENTS), 2, 2).await,
        measured(fixture, Workload::Views(64), 2, 0).await,
    ];
    let millions = count as f64 * 5.0 / 1e6;
    let mut figures = vec![
        serde_json::json!({
            "what": format!("disk for {millions:.0} million taggings, documents and index"),
            "value": each, "unit": "B/tagging", "target": "<= 90 B", "ok": each <= 90.0,
        }),
        serde_json::json!({
            "what": "loading them, one caller, 1,000 contents a batch",
            "value": rate, "unit": "taggings/s",
        }),
    ];
    for (name, (small, large)) in
        ["writes, 256 callers", "views, 64 callers"].iter().zip(small.into_iter().zip(large))
    {
        let ok = large.per_second * 1.2 >= small.per_second;
        println!(
            "{name}, {CONTENTS} hot contents: {:.0}/s, before {:.0}/s",
            large.per_second, small.per_second
        );
        figures.push(serde_json::json!({
            "what": format!("{name}, {millions:.0} million taggings, {CONTENTS} contents hot"),
            "value": large.per_second, "unit": "/s",
            "baseline": "100,000 taggings", "baseline_value": small.per_second,
            "cpu_us": large.server_us, "baseline_cpu_us": small.server_us,
            "target": "within 1.2x", "ok": ok,
        }));
    }
    figures
}

fn connection_string(fixture: &Fixture) -> String {
    let database = &fixture.stack.info().database;
    let password = std::fs::read_to_string(&database.password_file).expect("the password");
    let at = fixture.primary.postgres;
    format!(
        "host={} port={} user={} password={password} dbname={}",
        at.ip(),
        at.port(),
        database.user,
        database.name
    )
}

#[expect(clippy::print_stderr, reason = "progress")]
fn eprint(line: &str) {
    eprintln!("{line}");
}

fn median(mut all: Vec<Measured>) -> Measured {
    all.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    all.swap_remove(all.len() / 2)
}

async fn open(stack: &Stack, lanes: usize) -> Arc<PostgresStore> {
    let options = PostgresOptions { lanes, ..support::options(stack.info(), "bench") };
    let store = PostgresStore::open(options, Arc::new(NullSink)).expect("it opens");
    assert!(store.wait_until_ready(Duration::from_secs(30)).await, "{:?}", store.status());
    store
}

fn key(n: u64) -> ContentKey {
    ContentKey::parse("bench", "doc", &format!("content-{n}")).expect("a content")
}

fn write_of(n: u64, operation: Operation, id: u128) -> WriteRequest {
    let user = UserId::parse("bench").expect("a user");
    let write =
        Write { id: WriteId(id.to_be_bytes()), key: key(n), user, operation, if_match: None };
    WriteRequest { keyed: None, ..WriteRequest::new(write) }
}

fn tag(n: u64) -> Tag {
    Tag::parse(&format!("tag-{n}")).expect("a tag")
}

/// Adds or removes tags of a content.
fn request(n: u64, tags: impl Iterator<Item = u64>, remove: bool, id: u128) -> WriteRequest {
    let tags: Vec<Tag> = tags.map(tag).collect();
    let names = tags.iter().map(|t| t.name.clone()).collect();
    let (add, gone) = if remove { (Vec::new(), names) } else { (tags, Vec::new()) };
    write_of(n, Operation::patch(add, gone, &Limits::default()).expect("a patch"), id)
}

/// The write with a key that is shared by all writes of its call.
fn keyed(request: WriteRequest, call: u128) -> WriteRequest {
    // Keys of clients are spread over the index.
    let id = call.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_be_bytes();
    WriteRequest {
        keyed: Some(IdempotencyKey { id, call: Call::BatchItem, request: 1 }),
        ..request
    }
}

/// Puts five tags on every content.
async fn load(store: &PostgresStore, contents: std::ops::Range<u64>) {
    for first in contents.clone().step_by(1000) {
        let last = (first + 1000).min(contents.end);
        let batch = (first..last).map(|n| request(n, 0..5, false, u128::from(n)));
        for answer in store.write_many(batch.collect()).await {
            answer.expect("loaded");
        }
    }
}

async fn writes(
    fixture: &Fixture,
    lanes: usize,
    [callers, batch, tags, contents]: [u64; 4],
    series: u64,
    with_key: bool,
) -> Measured {
    let store = Arc::clone(fixture.store(lanes));
    let dirs = vec![fixture.primary.data_dir.clone()];
    measure(fixture.seconds, &dirs, callers, batch, move |caller, round| {
        let store = Arc::clone(&store);
        async move {
            // Every write changes its content: tags are added, then removed again.
            let one = |n: u64| {
                let content = (caller * 7919 + (round / 2) * 104_729 + n * 31) % contents;
                let first = 10 + caller % 16 * 5;
                let id = u128::from(1 + series) << 104
                    | u128::from(caller) << 80
                    | u128::from(round) << 16
                    | u128::from(n);
                let request = request(content, first..first + tags, round % 2 == 1, id);
                if with_key { keyed(request, id - u128::from(n)) } else { request }
            };
            if batch == 1 {
                store.write(one(0)).await.expect("written");
            } else {
                for answer in store.write_many((0..batch).map(one).collect()).await {
                    answer.expect("written");
                }
            }
        }
    })
    .await
}

async fn views(fixture: &Fixture, callers: u64) -> Measured {
    let store = Arc::clone(fixture.store(2));
    let seen = store.view(&key(0), &ReadOptions::default()).await.expect("a view");
    let mut token = ConsistencyToken::default();
    token.observe(tagfast_sharding::ContentHash::of(&key(0)), seen.version, seen.position);
    let token = Arc::new(token);
    measure(fixture.seconds, &fixture.all_nodes(), callers, 1, move |caller, round| {
        let (store, token) = (Arc::clone(&store), Arc::clone(&token));
        async move {
            let options = ReadOptions { token: Some(&token), ..ReadOptions::default() };
            let view = store
                .view(&key((caller * 7919 + round * 104_729) % CONTENTS), &options)
                .await
                .expect("a view");
            assert!(view.tags.len() >= 5);
        }
    })
    .await
}

async fn measure<F: Future<Output = ()> + Send + 'static>(
    seconds: f64,
    dirs: &[PathBuf],
    callers: u64,
    operations: u64,
    call: impl Fn(u64, u64) -> F + Send + Sync + 'static + Clone,
) -> Measured {
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (stop, done, call) = (Arc::clone(&stop), Arc::clone(&done), call.clone());
            tokio::spawn(async move {
                let mut took = Vec::new();
                let mut round = 0;
                // An even number of rounds: tags that were added are removed.
                while !stop.load(Ordering::Relaxed) || round % 2 == 1 {
                    let began = Instant::now();
                    call(caller, round).await;
                    took.push(began.elapsed());
                    round += 1;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                took
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (began, before, cpu) = (Instant::now(), done.load(Ordering::Relaxed), cpu_seconds(dirs));
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let count = (done.load(Ordering::Relaxed) - before) as f64 * operations as f64;
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(dirs) - cpu);
    stop.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.expect("no panic"));
    }
    took.sort();
    let at = |share: usize| took[(took.len() - 1) * share / 1000].as_secs_f64() * 1000.0;
    let latency_ms = [at(500), at(990), at(999)];
    Measured { per_second: count / seconds, server_us: cpu * 1e6 / count, latency_ms }
}
