//! Writes and views on a real cluster of three nodes, beside pgbench on the same cluster, in turns.
//!
//! `cargo bench -p tagfast-store-postgres --bench cluster [-- --json --only WORD --lanes N]`. Callers, proxy and servers
//! share the processors. `--only` measures the rows whose name holds the word.
#![expect(clippy::print_stdout, reason = "a benchmark speaks to its terminal")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tagfast_domain::{ContentKey, Limits, Operation, Tag, UserId, Write, WriteId};
use tagfast_resilience::SystemClock;
use tagfast_store::{ConsistencyToken, Durability, ReadOptions, TagReader, TagWriter, WriteRequest};
use tagfast_store_postgres::{ClusterOptions, Discard, PostgresOptions, PostgresStore};
use tagfast_testkit::stack::{NodeInfo, Stack, StackOptions, host};

const CONTENTS: u64 = 20_000;
/// So few that each is written several times a second: its document pushes an id out with every write.
const HOT: u64 = 4_000;
const SECONDS: u64 = 5;
const ROUNDS: usize = 3;

struct Measured {
    per_second: f64,
    /// CPU of the primary's PostgreSQL, in microseconds an operation.
    server_us: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// What, ours, the baseline's, the target ratio, the target ratio of CPU (NaN: none).
type Row = (&'static str, Vec<Measured>, Vec<Measured>, f64, f64);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let json = arguments.iter().any(|a| a == "--json");
    let lanes = arguments.iter().skip_while(|a| *a != "--lanes").nth(1).and_then(|n| n.parse().ok()).unwrap_or(2);
    let only = arguments.iter().skip_while(|a| *a != "--only").nth(1).map_or("", String::as_str);
    let dir = tempfile::tempdir().expect("a folder");
    let options = StackOptions { shared_buffers: "256MB".to_owned(), ..StackOptions::clusters_only(1, dir.path()) };
    let stack = Stack::up(&options, &|line| eprint(line)).expect("the stack comes up");
    let primary = stack.primary("c0").expect("a primary");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let store = runtime.block_on(open(&stack, lanes));
    runtime.block_on(load(&store));
    let pg = Pgbench::prepare(&stack, &primary);

    let mut rows: Vec<Row> = vec![
        ("single-tag writes, 256 callers", Vec::new(), Vec::new(), 3.0, 0.13),
        ("single-tag writes, 64 callers", Vec::new(), Vec::new(), 2.5, f64::NAN),
        ("bulk, 100 contents a batch, 8 callers", Vec::new(), Vec::new(), 5.0, f64::NAN),
        ("single-tag writes, 256 callers, hot: each pushes an id out", Vec::new(), Vec::new(), f64::NAN, f64::NAN),
        ("views, 64 callers, with a token", Vec::new(), Vec::new(), 3.0, f64::NAN),
    ];
    for round in 0..ROUNDS as u64 {
        for (n, row) in rows.iter_mut().enumerate().filter(|(_, row)| row.0.contains(only)) {
            row.1.push(match n {
                0 => runtime.block_on(writes(&store, &primary, 256, 1, CONTENTS, round)),
                1 => runtime.block_on(writes(&store, &primary, 64, 1, CONTENTS, round)),
                2 => runtime.block_on(writes(&store, &primary, 8, 100, CONTENTS, round)),
                3 => runtime.block_on(writes(&store, &primary, 256, 1, HOT, round)),
                _ => runtime.block_on(views(&store, &primary, 64)),
            });
            row.2.push(if n == 4 { pg.selects() } else { pg.two_inserts() });
        }
    }
    let mut figures = Vec::new();
    for (what, own, base, target, cpu_target) in rows.into_iter().filter(|row| !row.1.is_empty()) {
        let (own, base) = (median(own), median(base));
        let ratio = own.per_second / base.per_second;
        let cpu = own.server_us / base.server_us;
        let ok = (target.is_nan() || ratio >= target) && (cpu_target.is_nan() || cpu <= cpu_target);
        println!(
            "{what}: {:.0}/s = {ratio:.2}x of {:.0}/s (target {target}x{}), server {:.1} us = {cpu:.3}x of {:.1} us, \
             p50 {:.2} ms, p99 {:.2} ms, baseline {:.2} ms on average: {}",
            own.per_second,
            base.per_second,
            if cpu_target.is_nan() { String::new() } else { format!(", CPU {cpu_target}x") },
            own.server_us,
            base.server_us,
            own.p50_ms,
            own.p99_ms,
            base.p50_ms,
            if ok { "reached" } else { "MISSED" }
        );
        figures.push(serde_json::json!({
            "what": what, "value": own.per_second, "unit": "/s", "baseline": "pgbench on the same cluster",
            "baseline_value": base.per_second, "target": format!(">= {target}x"), "ok": ok,
        }));
    }
    drop(store);
    if json {
        println!("{}", serde_json::json!({"figures": figures}));
    }
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
    let info = stack.info();
    let options = PostgresOptions {
        clusters: vec![ClusterOptions {
            name: "c0".to_owned(),
            scope: "c0".to_owned(),
            shards: "0-63".to_owned(),
            patroni: Vec::new(),
            moved_from: None,
        }],
        map_version: 1,
        etcd: info.etcd.iter().map(|e| e.url.clone()).collect(),
        database: info.database.name.clone(),
        user: info.database.user.clone(),
        password: std::fs::read_to_string(&info.database.password_file).expect("the password"),
        tls: None,
        limits: Limits::default(),
        clock: Arc::new(SystemClock),
        node: "bench".to_owned(),
        lanes,
        hold: Duration::from_secs(10),
    };
    let store = PostgresStore::open(options, Arc::new(Discard)).expect("it opens");
    assert!(store.wait_until_ready(Duration::from_secs(30)).await, "{:?}", store.status());
    store
}

fn key(n: u64) -> ContentKey {
    ContentKey::parse("bench", "doc", &format!("content-{n}")).expect("a content")
}

fn write_of(n: u64, operation: Operation, id: u128) -> WriteRequest {
    let user = UserId::parse("bench").expect("a user");
    let write = Write { id: WriteId(id.to_be_bytes()), key: key(n), user, operation, if_match: None };
    WriteRequest { write, fresh: true, durability: Durability::Local, deadline: None, traceparent: None }
}

fn tag(n: u64) -> Tag {
    Tag::parse(&format!("tag-{n}")).expect("a tag")
}

fn request(n: u64, t: u64, remove: bool, id: u128) -> WriteRequest {
    let (add, gone) = if remove { (Vec::new(), vec![tag(t).name]) } else { (vec![tag(t)], Vec::new()) };
    write_of(n, Operation::patch(add, gone, &Limits::default()).expect("a patch"), id)
}

/// Five tags on every content.
async fn load(store: &PostgresStore) {
    for first in (0..CONTENTS).step_by(1000) {
        let five = |n: u64| {
            let operation = Operation::patch((0..5).map(tag).collect(), Vec::new(), &Limits::default());
            write_of(n, operation.expect("a patch"), u128::from(n))
        };
        for answer in store.write_many((first..first + 1000).map(five).collect()).await {
            answer.expect("loaded");
        }
    }
}

async fn writes(
    store: &Arc<PostgresStore>,
    primary: &NodeInfo,
    callers: u64,
    batch: u64,
    contents: u64,
    round: u64,
) -> Measured {
    let store = Arc::clone(store);
    measure(primary, callers, batch, move |caller, turn| {
        let store = Arc::clone(&store);
        async move {
            // Every write changes something: a tag is added, then removed again.
            let one = |n: u64| {
                let content = (caller * 7919 + (turn / 2) * 104_729 + n * 31) % contents;
                let tag = 10 + caller % 64;
                let id = u128::from(1 + round) << 116
                    | u128::from(contents == HOT) << 112
                    | u128::from(callers) << 96
                    | u128::from(caller) << 80
                    | u128::from(turn) << 16
                    | u128::from(n);
                request(content, tag, turn % 2 == 1, id)
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

async fn views(store: &Arc<PostgresStore>, primary: &NodeInfo, callers: u64) -> Measured {
    let seen = store.view(&key(0), &ReadOptions::default()).await.expect("a view");
    let mut token = ConsistencyToken::default();
    token.see(tagfast_sharding::ContentHash::of(&key(0)), seen.version, seen.position);
    let token = Arc::new(token);
    let store = Arc::clone(store);
    measure(primary, callers, 1, move |caller, turn| {
        let (store, token) = (Arc::clone(&store), Arc::clone(&token));
        async move {
            let options = ReadOptions { token: Some(&token), ..ReadOptions::default() };
            let view = store.view(&key((caller * 7919 + turn * 104_729) % CONTENTS), &options).await.expect("a view");
            assert!(view.tags.len() >= 5);
        }
    })
    .await
}

async fn measure<F: Future<Output = ()> + Send + 'static>(
    primary: &NodeInfo,
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
                let mut turn = 0;
                // An even number of turns: what was added is removed.
                while !stop.load(Ordering::Relaxed) || turn % 2 == 1 {
                    let began = Instant::now();
                    call(caller, turn).await;
                    took.push(began.elapsed());
                    turn += 1;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                took
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (began, before, cpu) = (Instant::now(), done.load(Ordering::Relaxed), cpu_seconds(&primary.data_dir));
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let count = (done.load(Ordering::Relaxed) - before) as f64 * operations as f64;
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(&primary.data_dir) - cpu);
    stop.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.expect("no panic"));
    }
    took.sort();
    let at = |share: usize| took[(took.len() - 1) * share / 100].as_secs_f64() * 1000.0;
    Measured { per_second: count / seconds, server_us: cpu * 1e6 / count, p50_ms: at(50), p99_ms: at(99) }
}

/// CPU time of everything that runs in a data directory, with the sessions that ended.
fn cpu_seconds(data_dir: &Path) -> f64 {
    let ticks: u64 = host::processes_in(data_dir)
        .iter()
        .filter_map(|p| std::fs::read_to_string(format!("/proc/{}/stat", p.pid)).ok())
        .map(|stat| {
            let fields: Vec<u64> =
                stat[stat.rfind(')').unwrap_or(0)..].split(' ').map(|f| f.parse().unwrap_or(0)).collect();
            fields.get(12..16).map_or(0, |times| times.iter().sum())
        })
        .sum();
    ticks as f64 / 100.0
}

/// PostgreSQL's own load generator, through the same port.
struct Pgbench {
    primary: NodeInfo,
    password: String,
    user: String,
    script: std::path::PathBuf,
}

impl Pgbench {
    fn prepare(stack: &Stack, primary: &NodeInfo) -> Self {
        let database = &stack.info().database;
        let script = stack.info().config.with_file_name("two-inserts.sql");
        std::fs::write(
            &script,
            "\\set k random(1, 100000000)\nBEGIN;\nINSERT INTO pb_a VALUES (:k, 1);\nINSERT INTO pb_b VALUES (:k, 1);\nCOMMIT;\n",
        )
        .expect("the script");
        let this = Self {
            primary: primary.clone(),
            password: std::fs::read_to_string(&database.password_file).expect("the password"),
            user: database.user.clone(),
            script,
        };
        this.run("psql", &["-q", "-c", "CREATE TABLE pb_a (k bigint, v int); CREATE TABLE pb_b (k bigint, v int)"]);
        this.run("pgbench", &["-i", "-q", "-s", "10"]);
        this
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        let mut command = Command::new(Path::new("/usr/lib/postgresql/15/bin").join(program));
        command.env("PGPASSWORD", &self.password).env("PGHOST", self.primary.postgres.ip().to_string());
        command
            .env("PGPORT", self.primary.postgres.port().to_string())
            .env("PGUSER", &self.user)
            .env("PGDATABASE", "tagfast");
        host::run(command.args(args)).expect("it runs")
    }

    fn two_inserts(&self) -> Measured {
        let script = self.script.display().to_string();
        self.measure(&["-n", "-M", "prepared", "-c", "64", "-j", "2", "-f", &script])
    }

    fn selects(&self) -> Measured {
        self.measure(&["-n", "-S", "-M", "prepared", "-c", "16", "-j", "2"])
    }

    fn measure(&self, args: &[&str]) -> Measured {
        let seconds = SECONDS.to_string();
        let mut args = args.to_vec();
        args.extend(["-T", &seconds]);
        let cpu = cpu_seconds(&self.primary.data_dir);
        let said = self.run("pgbench", &args);
        let cpu = cpu_seconds(&self.primary.data_dir) - cpu;
        let number = |after: &str| -> f64 {
            let rest = said.split_once(after).map_or("", |(_, rest)| rest);
            rest.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)
        };
        let per_second = number("tps = ");
        let average = number("latency average = ");
        Measured { per_second, server_us: cpu * 1e6 / (per_second * SECONDS as f64), p50_ms: average, p99_ms: f64::NAN }
    }
}
