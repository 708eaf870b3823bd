//! The servers, and one process of the service in front of them.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser as _;
use serde_json::Value;
use tagfast_client::args::{BenchArgs, ClientArgs};
use tagfast_client::http::Client;
use tagfast_client::load::Connection;
use tagfast_testkit::sentinel::query;
use tagfast_testkit::stack::{Fault, Stack, StackOptions};
use tagfast_testkit::{ReadYourWritesClients, ServerOptions, ServerProcess, wait_for_condition};
use tokio::sync::{Barrier, Semaphore};

use crate::drive::{Driver, Running, statements};
use crate::scenarios::Scenario;

const TEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Contents that are read.
const CONTENTS: usize = 20_000;
/// Clients of a stampede.
const STAMPEDE: usize = 10_000;
/// The mix of requests: mostly views.
const MIX: &str = "view=90,popular=5,suggest=5";

#[derive(clap::Parser)]
struct Parsed {
    #[command(flatten)]
    bench: BenchArgs,
}

pub(crate) struct Harness {
    stack: Stack,
    /// The node with all roles that carries the load; its link to Redis can fail.
    pub(crate) server: ServerProcess,
    /// A node with its own link to Redis; clients write through one node and read through the
    /// other.
    second: ServerProcess,
    stampedes: u64,
    pub(crate) notes: Vec<String>,
    contents: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Harness {
    pub(crate) fn start(capacity: u64) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let options = StackOptions {
            redis: true,
            kafka: true,
            ..StackOptions::clusters_only(1, dir.path().join("stack"))
        };
        println!("starting a cluster with two replicas, two Redis servers and Kafka");
        let stack = Stack::up(&options, &|_| ()).expect("the stack comes up");
        let options = |name: &str| {
            ServerOptions::other(env!("CARGO_BIN_EXE_tagfast"))
                .arg("--config")
                .arg(&stack.info().config)
                .env("TAGFAST__STORE__READS_PER_SECOND", &capacity.to_string())
                .env("TAGFAST__SERVER__MAX_CONNECTIONS", "12000")
                .arg("--data-dir")
                .arg(dir.path().join(name))
        };
        let server = options("first").serve().start();
        let direct = |server: &Option<tagfast_testkit::stack::ServerInfo>| {
            format!("redis://{}", server.as_ref().expect("Redis").direct)
        };
        let second = options("second")
            .arg("--role")
            .arg("api")
            .env("TAGFAST__CACHE__REDIS_URL", &direct(&stack.info().redis))
            .env("TAGFAST__STATE__REDIS_URL", &direct(&stack.info().state_redis))
            .serve()
            .start();
        second.wait_until_ready();
        let mut client = server.client();
        wait_for_condition("ready", TEST_TIMEOUT, || {
            let answer = client.get("/readyz");
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        });
        let contents = dir.path().join("contents.ndjson");
        let mut file = std::io::BufWriter::new(std::fs::File::create(&contents).expect("a file"));
        for n in 0..CONTENTS {
            let tags = [
                format!("area-{}", n % 40),
                format!("team-{}", n % 300),
                format!("k{}", n % 7),
                "all".to_owned(),
            ];
            let line = serde_json::json!({"type": "test.doc", "id": format!("d{n}"), "tags": tags});
            writeln!(file, "{line}").expect("it is written");
        }
        file.into_inner().expect("it is written");
        let imported = Command::new(env!("CARGO_BIN_EXE_tagfast"))
            .args(["import", "--url", &server.url()])
            .arg(&contents)
            .output()
            .expect("the import runs");
        assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
        wait_for_condition("popular tags are counted", TEST_TIMEOUT, || {
            let body = client.get("/v1/tags/popular?window=all").json();
            let most = body["tags"][0]["count"].as_u64().unwrap_or(0);
            if most as usize >= CONTENTS { Ok(()) } else { Err(body.to_string()) }
        });
        // The positions of a state Redis that has just started are unknown for 75 s.
        wait_for_condition("plain reads are answered from L1", TEST_TIMEOUT, || {
            let status = client
                .get("/v1/content/test.doc/d1/tags")
                .header("cache-status")
                .unwrap_or_default()
                .to_owned();
            if status == "tagfast; hit; detail=l1" { Ok(()) } else { Err(status) }
        });
        Self { stack, server, second, stampedes: 0, notes: Vec::new(), contents, _dir: dir }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The load generator's options.
    pub(crate) fn asks(&self, mix: &str) -> tagfast_client::load::Workload {
        let url = self.server.url();
        let ids = self.contents.to_str().expect("a path");
        let args = Parsed::parse_from([
            "bench",
            "--url",
            &url,
            "--mix",
            mix,
            "--write",
            "--ids-from",
            ids,
            "--zipf",
            "0.9",
        ])
        .bench;
        let client = Client::new(&ClientArgs { url: url.clone(), token: None, timeout: 10 })
            .expect("a client");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let host = url.strip_prefix("http://").expect("a URL");
        runtime
            .block_on(tagfast_client::load::Workload::prepare(&args, host, &client))
            .expect("a load")
    }

    /// Requests per second that it answers without a fault, measured in a closed loop.
    pub(crate) fn carried(&self) -> u64 {
        let bench = |seconds: &str| -> Value {
            let output = Command::new(env!("CARGO_BIN_EXE_tagfast"))
                .args([
                    "--json",
                    "bench",
                    "--url",
                    &self.server.url(),
                    "--mix",
                    MIX,
                    "--write",
                    "--zipf",
                    "0.9",
                ])
                .args([
                    "--warmup",
                    "0s",
                    "--duration",
                    seconds,
                    "--connections",
                    "64",
                    "--ids-from",
                ])
                .arg(&self.contents)
                .output()
                .expect("it runs");
            serde_json::from_slice(&output.stdout).expect("figures")
        };
        // The caches fill first.
        bench("20s");
        bench("10s")["requests_per_second"].as_f64().expect("a rate") as u64
    }

    /// Lets the caches fill and background work finish.
    pub(crate) fn warm(&self, rate: u64) {
        self.load(rate, 5, None).finish();
    }

    /// Starts an open loop with these seconds before, during and after the scenario's fault.
    pub(crate) fn load(&self, rate: u64, seconds: u64, scenario: Option<&Scenario>) -> Running {
        let path = "/v1/content/test.doc/d777/tags";
        let hot = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address()).into_bytes();
        Driver {
            load: self.asks(MIX),
            nodes: [self.address(), self.second.address()],
            rate,
            seconds,
            hot: scenario.filter(|scenario| scenario.hot).map(|_| hot),
            retries: scenario.map_or(0, |scenario| scenario.retries),
        }
        .start()
    }

    /// Clients who write through one node and read through the other one.
    pub(crate) fn own_writes(&self) -> ReadYourWritesClients {
        ReadYourWritesClients::start([self.address(), self.second.address()], 2, TEST_TIMEOUT)
    }

    pub(crate) fn fault(&mut self, fault: Fault, target: &str) {
        self.stack.fault(fault, target).expect("a fault");
    }

    pub(crate) fn begin(&mut self, faults: &[(&str, Fault)]) {
        for (target, fault) in faults {
            self.servers(target).iter().for_each(|server| self.fault(*fault, server));
        }
    }

    pub(crate) fn end(&mut self, faults: &[(&str, Fault)]) {
        for (target, fault) in faults {
            self.servers(target).iter().for_each(|server| self.fault(fault.end(), server));
        }
    }

    /// The servers that a word of a scenario names.
    fn servers(&self, target: &str) -> Vec<String> {
        match target {
            "primary" => vec![self.stack.primary("c0").expect("a primary").name],
            "replica" => vec![self.stack.replica("c0").expect("a replica").name],
            "nodes" => {
                self.stack.info().clusters[0].nodes.iter().map(|node| node.name.clone()).collect()
            }
            server => vec![server.to_owned()],
        }
    }

    /// Sends a command to the cache Redis itself, not through its link.
    pub(crate) fn cache_redis(&mut self, words: &[&str]) {
        query(self.stack.info().redis.as_ref().expect("Redis").direct, words).expect("it does");
    }

    /// Sends a command to the state Redis itself, not through its link.
    pub(crate) fn state_redis(&mut self, words: &[&str]) {
        query(self.stack.info().state_redis.as_ref().expect("Redis").direct, words)
            .expect("it does");
    }

    /// All clients request one uncached content at once; returns how many were answered, and the
    /// latency of the last answer.
    pub(crate) fn stampede(&mut self, header: &str) {
        self.stampedes += 1;
        let address = self.address();
        let request = format!(
            "GET /v1/content/test.doc/stampede{}/tags HTTP/1.1\r\nHost: {address}\r\n{header}\r\n",
            self.stampedes
        );
        let warm = format!("GET /livez HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let before = statements(&[address]);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (request, warm) =
            (Arc::<[u8]>::from(request.as_bytes()), Arc::<[u8]>::from(warm.as_bytes()));
        let (barrier, opening) = (Arc::new(Barrier::new(STAMPEDE)), Arc::new(Semaphore::new(200)));
        let clients = (0..STAMPEDE).map(|_| {
            let (request, warm, barrier, opening) = (
                Arc::clone(&request),
                Arc::clone(&warm),
                Arc::clone(&barrier),
                Arc::clone(&opening),
            );
            async move {
                let mut connection = Connection::new(address);
                {
                    let _turn = opening.acquire().await.expect("it is open");
                    connection.exchange(&warm).await.expect("the server takes connections");
                }
                barrier.wait().await;
                let began = Instant::now();
                let answered =
                    connection.exchange(&request).await.is_ok_and(|answer| answer.status == 200);
                answered.then(|| began.elapsed())
            }
        });
        let local = tokio::task::LocalSet::new();
        let clients: Vec<_> = clients.map(|client| local.spawn_local(client)).collect();
        let all = runtime.block_on(local.run_until(futures_util::future::join_all(clients)));
        let answered: Vec<Duration> =
            all.into_iter().filter_map(|one| one.expect("no panic")).collect();
        let slowest = answered.iter().max().copied().unwrap_or_default();
        self.notes.push(format!(
            "stampede ({}): {} of {STAMPEDE} answered, the last after {} ms; the database got {:.0} statements meanwhile",
            if header.is_empty() { "session" } else { header.trim_end() },
            answered.len(),
            slowest.as_millis(),
            statements(&[address]) - before
        ));
    }
}
