//! The cost of a view from the local cache (L1), beside a bare HTTP server that answers the same
//! bytes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::http::header;
use axum::routing::get;
use tagfast_client::load::Connection;
use tagfast_client::process_usage::usage;

use crate::harness::Harness;

/// Requests of one turn.
const ROUND_TIME: Duration = Duration::from_secs(4);
const ROUNDS: usize = 5;
const CONNECTIONS: usize = 64;
/// The name of its threads.
const BARE_SERVER_THREADS: &str = "bare-axum";

/// The bare server, on a runtime like the program's: its address.
fn hello(body: &'static str) -> SocketAddr {
    let (address_sender, address_receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime =
            runtime.enable_all().thread_name(BARE_SERVER_THREADS).build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            address_sender
                .send(listener.local_addr().expect("an address"))
                .expect("the benchmark waits");
            let answer =
                move || async move { ([(header::CONTENT_TYPE, "application/json")], body) };
            axum::serve(listener, axum::Router::new().route("/", get(answer)))
                .await
                .expect("it serves");
        });
    });
    address_receiver.recv().expect("it started")
}

/// Processor time of the bare server's threads, in seconds.
fn hello_cpu() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
    let of = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (name, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?;
        name.ends_with(BARE_SERVER_THREADS).then_some(ticks / 100.0)
    };
    tasks.filter_map(of).sum()
}

/// Sends the same request from all connections in a closed loop; returns requests per second, and
/// their number.
fn measure_round(address: SocketAddr, request: &[u8]) -> (f64, u64) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let began = Instant::now();
    let done = runtime.block_on(async {
        let loops = (0..CONNECTIONS).map(|_| async {
            let mut connection = Connection::new(address);
            let mut done = 0u64;
            while began.elapsed() < ROUND_TIME {
                let answer = connection.exchange(request).await.expect("an answer");
                assert_eq!(answer.status, 200);
                done += 1;
            }
            done
        });
        futures_util::future::join_all(loops).await.into_iter().sum()
    });
    (done as f64 / began.elapsed().as_secs_f64(), done)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

pub(crate) fn measure(harness: &Harness) {
    let address = harness.address();
    let mut client = harness.server.client();
    let path = "/v1/content/test.doc/d1/tags";
    let answer = client.get(path).expect(200);
    let token = answer.header("consistency-token").expect("a token").to_owned();
    let body: &'static str = Box::leak(answer.text().into_boxed_str());
    let bare = hello(body);
    let head = |extra: &str, path: &str, host: SocketAddr| {
        format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{extra}\r\n").into_bytes()
    };
    let kinds = [
        ("eventual", head("consistency: eventual\r\n", path, address)),
        ("session with a token", head(&format!("consistency-token: {token}\r\n"), path, address)),
        ("session without one (one round trip to Redis)", head("", path, address)),
    ];
    let hello = head("", "/", bare);
    let mut figures: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); kinds.len() + 1];
    for _ in 0..ROUNDS {
        let cpu = hello_cpu();
        let (rate, done) = measure_round(bare, &hello);
        figures[0].0.push(rate);
        figures[0].1.push((hello_cpu() - cpu) * 1e6 / done as f64);
        for (n, (_, request)) in kinds.iter().enumerate() {
            // The local cache holds it before the measurement.
            measure_once(address, request);
            let cpu = || usage(Some(harness.server.pid())).expect("it runs").cpu_seconds;
            let before = cpu();
            let (rate, done) = measure_round(address, request);
            figures[n + 1].0.push(rate);
            figures[n + 1].1.push((cpu() - before) * 1e6 / done as f64);
        }
    }
    println!(
        "\n## hits: a view of {} bytes beside a bare axum server with the same body",
        body.len()
    );
    println!("| | requests/s | CPU us/request | ratio of CPU |\n|---|---|---|---|");
    let bare_cpu = median(figures[0].1.clone());
    let names = std::iter::once("bare axum").chain(kinds.iter().map(|(name, _)| *name));
    for (name, (rates, cpu)) in names.zip(figures) {
        let (rate, cpu) = (median(rates), median(cpu));
        println!("| {name} | {rate:.0} | {cpu:.1} | {:.2} |", cpu / bare_cpu);
        println!(
            "{}",
            serde_json::json!({"hit": name, "rate": rate, "cpu_us": cpu, "ratio": cpu / bare_cpu})
        );
    }
    let metrics = harness.server.client().get("/metrics").text();
    metrics
        .lines()
        .filter(|l| l.starts_with("tagfast_cache_reads_total"))
        .for_each(|l| println!("{l}"));
}

fn measure_once(address: SocketAddr, request: &[u8]) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut connection = Connection::new(address);
    runtime.block_on(connection.exchange(request)).expect("an answer");
}
