//! Cost of the embedded index: searches over the debtags sample, applying states, and the delay
//! from apply to visible.
//!
//! `cargo bench -p tagfast-search-tantivy --bench search -- [FILE]` with FILE a gzipped NDJSON
//! file of `{"type", "id", "tags"}` (default: the sample in `demo/`). Prints one JSON object per
//! line and measure; the last line is `{"figures": [...]}`, the rows of the documentation's table.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::json;
use tagfast_domain::{EpochId, TagName, TenantId};
use tagfast_events::{BusPosition, Partition, Positions, RebuildRequest, Sink, SinkRecord};
use tagfast_resilience::{Clock, SystemClock};
use tagfast_search::conformance::event;
use tagfast_search::{SearchIndex, SearchRequest, Sort};
use tagfast_search_tantivy::{TantivyIndex, TantivyOptions};
use tagfast_store::testing::MemoryStore;

const EPOCH: EpochId = EpochId([1; 16]);
const TENANT: &str = "debian";
const RUN_DURATION: Duration = Duration::from_secs(4);
const THREADS: usize = 2;

struct Sample {
    content_type: String,
    id: String,
    tags: Vec<String>,
}

fn load() -> Vec<Sample> {
    let given = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/debtags.ndjson.gz");
    let path = PathBuf::from(given.unwrap_or_else(|| default.to_owned()));
    let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let text = |v: &serde_json::Value| v.as_str().expect("a string").to_owned();
    BufReader::new(flate2::read::GzDecoder::new(file))
        .lines()
        .map(|line| {
            let line: serde_json::Value =
                serde_json::from_str(&line.expect("readable")).expect("JSON lines");
            let tags = line["tags"].as_array().expect("a list of tags").iter().map(text).collect();
            Sample { content_type: text(&line["type"]), id: text(&line["id"]), tags }
        })
        .collect()
}

fn positions(next: u64) -> Positions {
    Positions::from([(
        Partition(0),
        BusPosition {
            next,
            publisher_epochs: tagfast_events::PublisherEpochs::embedded(1),
            anchor: None,
        },
    )])
}

/// CPU seconds of all threads of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |n: usize| {
        after_name.split_whitespace().nth(n).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / 100.0
}

fn percentile(sorted: &[Duration], of: f64) -> f64 {
    let at = ((sorted.len() as f64 * of) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |d| d.as_secs_f64() * 1000.0)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn main() {
    let samples = load();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let clock = Arc::new(SystemClock);
    let index = TantivyIndex::open(
        dir.path().to_owned(),
        TantivyOptions::default(),
        // Without contents: every state arrives as an event.
        MemoryStore::new(Arc::<SystemClock>::clone(&clock)),
        clock,
    )
    .expect("the index opens");
    let mut figures = Vec::new();
    runtime().block_on(async {
        index.rebuild(RebuildRequest::new(&positions(0), EPOCH)).await.expect("an empty index");
        figures.push(fill(&index, &samples).await);
    });
    let tenant = TenantId::parse(TENANT).expect("a tenant");
    let pairs = pairs(&samples);
    for (name, facets) in [("and_of_2", false), ("and_of_2_facets", true)] {
        let rows = searches(name, &pairs, |text| {
            let (index, tenant) = (Arc::clone(&index), tenant.clone());
            let request = SearchRequest {
                query: Some(text.to_owned()),
                content_type: None,
                sort: Sort::Updated,
                after: None,
                limit: 20,
                facets,
                total_exact: false,
                criticality: tagfast_resilience::Criticality::Degradable,
            };
            async move { index.search(&tenant, &request).await.expect("answered").hits.len() }
        });
        figures.extend(rows);
    }
    let names: Vec<String> = samples.iter().filter_map(|s| s.tags.first().cloned()).collect();
    figures.extend(searches("related", &names, |text| {
        let (index, tenant) = (Arc::clone(&index), tenant.clone());
        let tag = TagName::parse(text).expect("a tag");
        async move { index.related(&tenant, &tag, 20).await.expect("answered").len() }
    }));
    figures.extend(runtime().block_on(freshness(&index, &samples)));
    print(&json!({ "figures": figures }));
}

/// A row of the documentation's table; a row without a target is for comparison only.
fn figure(what: &str, value: f64, unit: &str, target: Option<(&str, bool)>) -> serde_json::Value {
    json!({"what": what, "value": value, "unit": unit, "baseline": null, "baseline_value": null,
        "target": target.map(|t| t.0), "ok": target.map(|t| t.1)})
}

async fn fill(index: &TantivyIndex, samples: &[Sample]) -> serde_json::Value {
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let mut next = 0;
    for chunk in samples.chunks(1000) {
        let records: Vec<SinkRecord> = chunk
            .iter()
            .map(|s| {
                next += 1;
                record(s, next, next)
            })
            .collect();
        index.apply(&records).await.expect("applies");
        index.advance(&positions(next + 1)).await.expect("advances");
    }
    until_visible(index, next + 1).await;
    let seconds = started.elapsed().as_secs_f64();
    let per_second = (next as f64 / seconds).round();
    let line = json!({"measure": "apply", "documents": next, "documents_per_s": per_second,
        "cpu_us_per_document": round((cpu_seconds() - cpu) * 1e6 / next as f64)});
    print(&line);
    figure("search: states applied to the index, in process", per_second, "/s", None)
}

fn record(sample: &Sample, offset: u64, version: u64) -> SinkRecord {
    let tags: Vec<&str> = sample.tags.iter().map(String::as_str).collect();
    let event =
        event(TENANT, &sample.content_type, &sample.id, version, SystemClock.now_ms(), &tags);
    SinkRecord { partition: Partition(0), offset, event: Arc::new(event) }
}

async fn until_visible(index: &TantivyIndex, next: u64) {
    while index.advance(&positions(next)).await.expect("advances") != positions(next) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Two tags of one content each, so that every search has a hit.
fn pairs(samples: &[Sample]) -> Vec<String> {
    let mut rng = Rng::with_seed(42);
    let several: Vec<&Sample> = samples.iter().filter(|s| s.tags.len() > 1).collect();
    (0..4096)
        .map(|_| {
            let tags = &several[rng.u64(..several.len() as u64) as usize].tags;
            let a = rng.u64(..tags.len() as u64) as usize;
            let b = (a + 1 + rng.u64(..tags.len() as u64 - 1) as usize) % tags.len();
            format!("{} AND {}", tags[a], tags[b])
        })
        .collect()
}

/// Runs a closed loop on every thread.
fn searches<F: Future<Output = usize>>(
    name: &str,
    texts: &[String],
    search: impl Fn(&str) -> F + Sync,
) -> Vec<serde_json::Value> {
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let per_thread: Vec<(u64, usize, Vec<Duration>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let search = &search;
                scope.spawn(move || {
                    runtime().block_on(async {
                        let (mut count, mut hits, mut times) = (0u64, 0, Vec::new());
                        for text in texts.iter().cycle().skip(thread * texts.len() / THREADS) {
                            let begun = Instant::now();
                            if begun - started > RUN_DURATION {
                                break;
                            }
                            hits += search(text).await;
                            times.push(begun.elapsed());
                            count += 1;
                        }
                        (count, hits, times)
                    })
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("a searching thread")).collect()
    });
    let seconds = started.elapsed().as_secs_f64();
    let count: u64 = per_thread.iter().map(|t| t.0).sum();
    let hits: usize = per_thread.iter().map(|t| t.1).sum();
    let mut times: Vec<Duration> = per_thread.into_iter().flat_map(|t| t.2).collect();
    times.sort_unstable();
    let (per_second, per_query) =
        ((count as f64 / seconds).round(), round((cpu_seconds() - cpu) * 1e6 / count as f64));
    let line = json!({"measure": name, "threads": THREADS, "queries_per_s": per_second,
        "cpu_us_per_query": per_query,
        "hits_per_query": round(hits as f64 / count as f64),
        "p50_ms": round3(percentile(&times, 0.50)), "p99_ms": round3(percentile(&times, 0.99))});
    print(&line);
    let what = |unit: &str| {
        format!("search: {name}, 20 hits, debtags, in process, {THREADS} threads, {unit}")
    };
    vec![
        figure(&what("searches"), per_second, "/s", None),
        figure(&what("CPU per search"), per_query, "us", None),
    ]
}

/// Applies 2,000 changes a second for some seconds; measures the delay until each is visible.
async fn freshness(index: &TantivyIndex, samples: &[Sample]) -> Vec<serde_json::Value> {
    const PER_SECOND: f64 = 2000.0;
    let (started, cpu, mut next) = (Instant::now(), cpu_seconds(), samples.len() as u64 + 1);
    let mut rng = Rng::with_seed(7);
    let mut waiting: Vec<(u64, Instant)> = Vec::new();
    let mut delays: Vec<Duration> = Vec::new();
    let mut sent = 0u64;
    while started.elapsed() < RUN_DURATION || !waiting.is_empty() {
        let due = if started.elapsed() < RUN_DURATION {
            (started.elapsed().as_secs_f64() * PER_SECOND) as u64
        } else {
            sent
        };
        let records: Vec<SinkRecord> = (sent..due)
            .map(|n| {
                waiting.push((next, started + Duration::from_secs_f64(n as f64 / PER_SECOND)));
                next += 1;
                record(&samples[rng.u64(..samples.len() as u64) as usize], next - 1, next)
            })
            .collect();
        sent = due;
        // One record per key, as the runtime hands them over; the chance of a pair here is
        // negligible.
        index.apply(&records).await.expect("applies");
        let visible = index.advance(&positions(next)).await.expect("advances");
        let (below, now) = (visible.get(&Partition(0)).map_or(0, |p| p.next), Instant::now());
        waiting.retain(|(offset, at)| {
            let done = *offset < below;
            if done {
                delays.push(now - *at);
            }
            !done
        });
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    delays.sort_unstable();
    let line = json!({"measure": "apply_to_visible", "changes_per_s": PER_SECOND, "changes": sent,
        "p50_ms": round(percentile(&delays, 0.50)), "p99_ms": round(percentile(&delays, 0.99)),
        "max_ms": round(percentile(&delays, 1.0)),
        "cpu_us_per_change": round((cpu_seconds() - cpu) * 1e6 / sent as f64)});
    print(&line);
    let p99 = round(percentile(&delays, 0.99));
    vec![
        figure(
            "search: from applied to visible at 2,000 changes/s, p50",
            round(percentile(&delays, 0.5)),
            "ms",
            None,
        ),
        figure(
            "search: from applied to visible at 2,000 changes/s, p99",
            p99,
            "ms",
            Some(("<= 500 ms", p99 <= 500.0)),
        ),
    ]
}

fn round(n: f64) -> f64 {
    (n * 10.0).round() / 10.0
}

fn round3(n: f64) -> f64 {
    (n * 1000.0).round() / 1000.0
}

#[expect(clippy::print_stdout, reason = "the results of a benchmark are its output")]
fn print(line: &serde_json::Value) {
    println!("{line}");
}
