//! The throughput of the storage level, each figure beside its baseline of the same run.
//!
//! Prints one JSON object per line: views per second on 2 threads, durable single-tag writes with
//! 256 concurrent callers for 8 files and for 1, and a plain SQLite table with one row per durable
//! transaction. CPU is that of the whole process, load generator included, from `/proc/self/stat`.
//!
//! Options: `--contents N` (20,000), `--tags N` per content (5), `--seconds S` per measurement (3),
//! `--callers N` (256), `--files N` (1 and 8), `--cache-mb N` (64), `--dir PATH` (a new directory
//! below it; the system's default for temporary files), `--large` (2 million contents instead: size
//! on disk, and the cost of views and writes with 20,000 hot contents and with all hot), `--keyed`
//! (instead: writes with an idempotency key beside writes without one, in turns).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::json;
use tagfast_domain::{ContentKey, Limits, Operation, Tag, UserId, Write, WriteId};
use tagfast_resilience::SystemClock;
use tagfast_store::{ReadOptions, TagReader, TagWriter, WriteRequest};
use tagfast_store_embedded::{EmbeddedStore, OpenOptions};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone)]
struct Options {
    contents: u64,
    tags: u64,
    seconds: f64,
    callers: usize,
    files: Vec<u8>,
    cache_bytes: usize,
    dir: PathBuf,
    large: bool,
    keyed: bool,
}

impl Options {
    fn parse() -> Result<Self, Failure> {
        let mut options = Self {
            contents: 20_000,
            tags: 5,
            seconds: 3.0,
            callers: 256,
            files: vec![1, 8],
            cache_bytes: 64 << 20,
            dir: std::env::temp_dir(),
            large: false,
            keyed: false,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--contents" => options.contents = value()?.parse()?,
                "--tags" => options.tags = value()?.parse()?,
                "--seconds" => options.seconds = value()?.parse()?,
                "--callers" => options.callers = value()?.parse()?,
                "--files" => options.files = vec![value()?.parse()?],
                "--cache-mb" => options.cache_bytes = value()?.parse::<usize>()? << 20,
                "--dir" => options.dir = PathBuf::from(value()?),
                "--large" => options.large = true,
                "--keyed" => options.keyed = true,
                // Given by cargo or by the caller; there is no other form.
                "--json" | "--bench" => {}
                other => return Err(format!("unknown option {other}").into()),
            }
        }
        Ok(options)
    }
}

/// CPU time of the process so far, user and system.
fn cpu() -> Duration {
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = |n: usize| -> u32 {
        let fields = stat.rsplit(')').next().unwrap_or_default();
        fields.split_whitespace().nth(n).and_then(|f| f.parse().ok()).unwrap_or(0)
    };
    TICK * (ticks(11) + ticks(12))
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

fn key(n: u64) -> Result<ContentKey, Failure> {
    Ok(ContentKey::parse("default", "debian.package", &format!("package-{n}"))?)
}

fn request(key: ContentKey, add: Vec<Tag>, remove: Vec<Tag>) -> Result<WriteRequest, Failure> {
    let id = u128::from(NEXT_ID.fetch_add(1, Ordering::Relaxed))
        .wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    let remove = remove.into_iter().map(|t| t.name).collect();
    let operation = Operation::patch(add, remove, &Limits::default())?;
    let write = Write {
        id: WriteId(id.to_be_bytes()),
        key,
        user: UserId::parse("alice")?,
        operation,
        if_match: None,
    };
    Ok(WriteRequest { keyed: None, ..WriteRequest::new(write) })
}

/// The same write with an idempotency key.
fn keyed(request: WriteRequest) -> WriteRequest {
    WriteRequest::new(request.write)
}

fn tag(n: u64) -> Result<Tag, Failure> {
    Ok(Tag::parse(&format!("implemented-in::{n}"))?)
}

fn open(options: &Options, dir: &Path, files: u8) -> Result<Arc<EmbeddedStore>, Failure> {
    let mut open = OpenOptions::new(dir.join(format!("store-{files}")), Arc::new(SystemClock));
    open.files = files;
    open.cache_bytes = options.cache_bytes;
    Ok(EmbeddedStore::open(open)?)
}

/// Tags every content with its first tags, in bulk.
async fn load(store: &EmbeddedStore, options: &Options) -> Result<(), Failure> {
    for first in (0..options.contents).step_by(4000) {
        let requests: Result<Vec<_>, Failure> = (first..options.contents.min(first + 4000))
            .map(|n| {
                let tags: Result<Vec<_>, _> =
                    (0..options.tags).map(|t| tag((n * 7 + t * 13) % 600)).collect();
                request(key(n)?, tags?, Vec::new())
            })
            .collect();
        for answer in store.write_many(requests?).await {
            answer?;
        }
    }
    Ok(())
}

struct Measured {
    ops: u64,
    wall: Duration,
    cpu: Duration,
    micros: Vec<u32>,
}

impl Measured {
    fn print(mut self, what: &str, extra: serde_json::Value) -> f64 {
        self.micros.sort_unstable();
        let at = |q: f64| {
            let last = self.micros.len().saturating_sub(1);
            self.micros.get((last as f64 * q) as usize).copied().unwrap_or(0)
        };
        let rate = self.ops as f64 / self.wall.as_secs_f64();
        let mut line = json!({
            "what": what,
            "per_second": rate.round(),
            "cpu_us_per_op": (self.cpu.as_secs_f64() * 1e7 / self.ops.max(1) as f64).round() / 10.0,
            "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999),
        });
        if let (Some(line), Some(extra)) = (line.as_object_mut(), extra.as_object()) {
            line.extend(extra.clone());
        }
        println(&line);
        rate
    }
}

fn println(line: &serde_json::Value) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    // A reader that went away ends the run at the next line; nothing is lost by it.
    let _ = writeln!(out, "{line}");
}

type ReaderThread = std::thread::JoinHandle<Result<(u64, Vec<u32>), Failure>>;

/// What the threads measured together.
fn joined(
    threads: Vec<ReaderThread>,
    started: Instant,
    cpu_before: Duration,
) -> Result<Measured, Failure> {
    let (mut ops, mut micros) = (0, Vec::new());
    for thread in threads {
        let (n, m) = thread.join().map_err(|_| "a reader panicked")??;
        ops += n;
        micros.extend(m);
    }
    Ok(Measured { ops, wall: started.elapsed(), cpu: cpu().saturating_sub(cpu_before), micros })
}

/// Views on two threads, each on random contents among the first `hot`.
fn views(store: &Arc<EmbeddedStore>, options: &Options, hot: u64) -> Result<Measured, Failure> {
    let (started, cpu_before) = (Instant::now(), cpu());
    let end = started + Duration::from_secs_f64(options.seconds);
    let threads: Vec<_> = (0..2)
        .map(|thread| {
            let store = Arc::clone(store);
            std::thread::spawn(move || -> Result<(u64, Vec<u32>), Failure> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let mut random = fastrand::Rng::with_seed(thread);
                    let keys: Result<Vec<_>, _> =
                        (0..4096).map(|_| key(random.u64(..hot))).collect();
                    let mut keys = keys?;
                    let (mut ops, mut micros) = (0, Vec::new());
                    while Instant::now() < end {
                        if hot > 4096 {
                            for key in keys.iter_mut().step_by(16) {
                                *key = self::key(random.u64(..hot))?;
                            }
                        }
                        for batch in keys.chunks(64) {
                            let first = Instant::now();
                            for key in batch {
                                let view = store.view(key, &ReadOptions::default()).await?;
                                std::hint::black_box(view.tags.len());
                            }
                            micros.push(
                                u32::try_from(first.elapsed().as_micros() / 64).unwrap_or(u32::MAX),
                            );
                        }
                        ops += keys.len() as u64;
                    }
                    Ok((ops, micros))
                })
            })
        })
        .collect();
    joined(threads, started, cpu_before)
}

/// Single-tag writes; each caller waits for its answer, and alternately adds and removes a tag.
async fn writes(
    store: &Arc<EmbeddedStore>,
    options: &Options,
    hot: u64,
    with_key: bool,
) -> Result<Measured, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let (started, cpu_before) = (Instant::now(), cpu());
    let callers: Vec<_> = (0..options.callers)
        .map(|caller| {
            let (store, stop) = (Arc::clone(store), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(caller as u64 + 1000);
                let (mut micros, mut last) = (Vec::new(), None);
                while !stop.load(Ordering::Relaxed) {
                    let request = match last.take() {
                        Some((n, t)) => request(key(n)?, Vec::new(), vec![tag(t)?])?,
                        None => {
                            let (n, t) = (random.u64(..hot), 1000 + caller as u64);
                            last = Some((n, t));
                            request(key(n)?, vec![tag(t)?], Vec::new())?
                        }
                    };
                    let request = if with_key { keyed(request) } else { request };
                    let sent = Instant::now();
                    store.write(request).await?;
                    micros.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
                }
                Ok::<_, Failure>(micros)
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs_f64(options.seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let mut micros = Vec::new();
    for caller in callers {
        micros.extend(caller.await??);
    }
    Ok(Measured {
        ops: micros.len() as u64,
        wall: started.elapsed(),
        cpu: cpu().saturating_sub(cpu_before),
        micros,
    })
}

/// The baseline of writes: a plain table, one row per durable transaction, one connection.
fn plain(options: &Options, dir: &Path) -> Result<Measured, Failure> {
    let conn = Connection::open(dir.join("plain.sqlite"))?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.execute_batch(
        "CREATE TABLE tagging (content TEXT, tag TEXT, user TEXT, at INTEGER, PRIMARY KEY (content, tag)) WITHOUT ROWID",
    )?;
    let (started, cpu_before) = (Instant::now(), cpu());
    let mut micros = Vec::new();
    let mut random = fastrand::Rng::with_seed(7);
    while started.elapsed().as_secs_f64() < options.seconds {
        let sent = Instant::now();
        let row = (
            format!("package-{}", random.u64(..options.contents)),
            format!("implemented-in::{}", micros.len()),
        );
        conn.prepare_cached("INSERT INTO tagging VALUES (?1, ?2, 'alice', 1800000000000)")?
            .execute(row)?;
        micros.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    Ok(Measured {
        ops: micros.len() as u64,
        wall: started.elapsed(),
        cpu: cpu().saturating_sub(cpu_before),
        micros,
    })
}

/// The baseline of views: the same rows by key on a connection per thread, not decoded.
fn plain_views(options: &Options, dir: &Path) -> Result<Measured, Failure> {
    let (started, cpu_before) = (Instant::now(), cpu());
    let end = started + Duration::from_secs_f64(options.seconds);
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let path = dir.join("store-1").join("store-0.sqlite");
            std::thread::spawn(move || -> Result<(u64, Vec<u32>), Failure> {
                let conn = Connection::open(path)?;
                conn.pragma_update(None, "cache_size", -32768)?;
                let mut select = conn.prepare("SELECT k FROM content LIMIT 4096")?;
                let keys: Vec<Vec<u8>> =
                    select.query_map([], |r| r.get(0))?.collect::<Result<_, _>>()?;
                let mut select = conn.prepare("SELECT doc FROM content WHERE k = ?1")?;
                let (mut ops, mut micros) = (0, Vec::new());
                while Instant::now() < end {
                    for batch in keys.chunks(64) {
                        let first = Instant::now();
                        for key in batch {
                            let length =
                                select.query_row([key], |r| Ok(r.get_ref(0)?.as_blob()?.len()))?;
                            std::hint::black_box(length);
                        }
                        micros.push(
                            u32::try_from(first.elapsed().as_micros() / 64).unwrap_or(u32::MAX),
                        );
                    }
                    ops += keys.len() as u64;
                }
                Ok((ops, micros))
            })
        })
        .collect();
    joined(threads, started, cpu_before)
}

fn bytes(dir: &Path) -> Result<u64, Failure> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}

/// Bytes of the content tables without the bus, which retention empties.
fn content_bytes(dir: &Path, files: usize) -> Result<u64, Failure> {
    let mut sum = 0;
    for n in 0..files {
        let conn = Connection::open(dir.join(format!("store-{n}.sqlite")))?;
        let rows: (i64, i64) = conn.query_row(
            "SELECT coalesce(sum(length(k) * 2 + length(doc) + 8), 0), count(*) FROM content",
            [],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )?;
        sum += (rows.0 + rows.1 * 12).unsigned_abs();
    }
    Ok(sum)
}

async fn usual(options: &Options, dir: &Path) -> Result<(), Failure> {
    let baseline = plain(options, dir)?.print("plain_sqlite_row_per_transaction", json!({}));
    let mut rates = Vec::new();
    for files in options.files.iter().copied() {
        let store = open(options, dir, files)?;
        load(&store, options).await?;
        // Once unmeasured: caches and the allocator settle.
        let short = Options { seconds: options.seconds / 4.0, ..options.clone() };
        writes(&store, &short, options.contents, false).await?;
        let rate = writes(&store, options, options.contents, false)
            .await?
            .print("writes_durable", json!({"files": files, "callers": options.callers}));
        rates.push(rate);
        views(&store, &short, options.contents)?;
        views(&store, options, options.contents)?
            .print("views", json!({"files": files, "threads": 2}));
        store.close();
        drop(store);
        if files == 1 {
            plain_views(options, dir)?.print("plain_sqlite_row_by_key", json!({"threads": 2}));
        }
    }
    if let [one, eight] = *rates {
        println(&json!({
            "what": "ratios",
            "writes_8_files_to_plain": (eight / baseline * 100.0).round() / 100.0,
            "writes_8_files_to_1": (eight / one * 100.0).round() / 100.0,
        }));
    }
    Ok(())
}

/// Turns of writes without and with a key.
const TURNS: usize = 5;

async fn keyed_writes(options: &Options, dir: &Path) -> Result<(), Failure> {
    let store = open(options, dir, 8)?;
    load(&store, options).await?;
    writes(&store, options, options.contents, false).await?;
    let mut cpu: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        for with_key in [false, true] {
            let measured = writes(&store, options, options.contents, with_key).await?;
            let micros = measured.cpu.as_secs_f64() * 1e6 / measured.ops.max(1) as f64;
            cpu[usize::from(with_key)].push(micros);
            let what = if with_key { "writes_with_key" } else { "writes_without_key" };
            measured.print(what, json!({"callers": options.callers}));
        }
    }
    let [without, with] = cpu.map(|mut all| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    });
    println(&json!({
        "what": "keyed",
        "cpu_us_without_key": (without * 10.0).round() / 10.0,
        "cpu_us_with_key": (with * 10.0).round() / 10.0,
        "ratio": (with / without * 1000.0).round() / 1000.0,
    }));
    store.close();
    Ok(())
}

async fn large(options: &Options, dir: &Path) -> Result<(), Failure> {
    const HOT: u64 = 20_000;
    let small = Options { contents: HOT, ..options.clone() };
    let store = open(&small, &dir.join("small"), 8)?;
    load(&store, &small).await?;
    writes(&store, &small, HOT, false)
        .await?
        .print("writes_durable", json!({"contents": HOT, "hot": HOT}));
    views(&store, &small, HOT)?.print("views", json!({"contents": HOT, "hot": HOT}));
    store.close();
    drop(store);

    let contents = if options.contents == HOT { 2_000_000 } else { options.contents };
    let many = Options { contents, ..options.clone() };
    let store = open(&many, &dir.join("large"), 8)?;
    let started = Instant::now();
    load(&store, &many).await?;
    let seconds = started.elapsed().as_secs_f64();
    let taggings = (contents * options.tags) as f64;
    println(
        &json!({"what": "load", "taggings": taggings, "per_second": (taggings / seconds).round()}),
    );
    for hot in [HOT, contents] {
        writes(&store, &many, hot, false)
            .await?
            .print("writes_durable", json!({"contents": contents, "hot": hot}));
        views(&store, &many, hot)?.print("views", json!({"contents": contents, "hot": hot}));
    }
    store.close();
    drop(store);
    let path = dir.join("large").join("store-8");
    println(&json!({
        "what": "size",
        "bytes_per_tagging_with_events": (bytes(&path)? as f64 / taggings * 10.0).round() / 10.0,
        "bytes_per_tagging_documents": (content_bytes(&path, 8)? as f64 / taggings * 10.0).round() / 10.0,
    }));
    Ok(())
}

fn main() -> Result<(), Failure> {
    let options = Options::parse()?;
    let dir = tempfile::Builder::new().prefix("tagfast-storage-bench").tempdir_in(&options.dir)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        if options.keyed {
            keyed_writes(&options, dir.path()).await
        } else if options.large {
            large(&options, dir.path()).await
        } else {
            usual(&options, dir.path()).await
        }
    })
}
