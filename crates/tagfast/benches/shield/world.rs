//! The servers, and one process of the service in front of them.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use clap::Parser as _;
use serde_json::Value;
use tagfast::cli::{BenchArgs, ClientArgs};
use tagfast::client::Client;
use tagfast_testkit::stack::{Fault, Stack, StackOptions};
use tagfast_testkit::{ServerOptions, ServerProcess, wait_for_condition};

use crate::drive::{Driver, Running};

const PATIENCE: Duration = Duration::from_secs(120);
/// Contents that are read.
const CONTENTS: usize = 20_000;
/// What is asked: mostly views.
const MIX: &str = "view=90,popular=5,suggest=5";

#[derive(clap::Parser)]
struct Parsed {
    #[command(flatten)]
    bench: BenchArgs,
}

pub(crate) struct World {
    stack: Stack,
    pub(crate) server: ServerProcess,
    contents: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn start(capacity: u64) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let options =
            StackOptions { redis: true, kafka: true, ..StackOptions::clusters_only(1, dir.path().join("stack")) };
        println!("starting a cluster with two replicas, two Redis servers and Kafka");
        let stack = Stack::up(&options, &|_| ()).expect("the stack comes up");
        let server = ServerOptions::other(env!("CARGO_BIN_EXE_tagfast"))
            .arg("--config")
            .arg(&stack.info().config)
            .env("TAGFAST__STORE__READS_PER_SECOND", &capacity.to_string())
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .serve()
            .start();
        let mut client = server.client();
        wait_for_condition("ready", PATIENCE, || {
            let answer = client.get("/readyz");
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        });
        let contents = dir.path().join("contents.ndjson");
        let mut file = std::io::BufWriter::new(std::fs::File::create(&contents).expect("a file"));
        for n in 0..CONTENTS {
            let tags =
                [format!("area-{}", n % 40), format!("team-{}", n % 300), format!("k{}", n % 7), "all".to_owned()];
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
        wait_for_condition("popular tags are counted", PATIENCE, || {
            let body = client.get("/v1/tags/popular?window=all").json();
            let most = body["tags"][0]["count"].as_u64().unwrap_or(0);
            if most as usize >= CONTENTS { Ok(()) } else { Err(body.to_string()) }
        });
        Self { stack, server, contents, _dir: dir }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What the generator asks.
    pub(crate) fn asks(&self, mix: &str) -> tagfast::bench::load::Load {
        let url = self.server.url();
        let ids = self.contents.to_str().expect("a path");
        let args = Parsed::parse_from(["bench", "--url", &url, "--mix", mix, "--ids-from", ids, "--zipf", "0.9"]).bench;
        let client = Client::new(&ClientArgs { url: url.clone(), token: None, timeout: 10 }).expect("a client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let host = url.strip_prefix("http://").expect("a URL");
        runtime.block_on(tagfast::bench::load::Load::prepare(&args, host, &client)).expect("a load")
    }

    /// Requests a second that it answers while everything is well, measured in a closed loop.
    pub(crate) fn carried(&self) -> u64 {
        let bench = |seconds: &str| -> Value {
            let output = Command::new(env!("CARGO_BIN_EXE_tagfast"))
                .args(["--json", "bench", "--url", &self.server.url(), "--mix", MIX, "--zipf", "0.9"])
                .args(["--warmup", "0s", "--duration", seconds, "--connections", "64", "--ids-from"])
                .arg(&self.contents)
                .output()
                .expect("it runs");
            serde_json::from_slice(&output.stdout).expect("figures")
        };
        // The caches fill first.
        bench("20s");
        bench("10s")["requests_per_second"].as_f64().expect("a rate") as u64
    }

    /// Lets the caches fill and everything come to rest.
    pub(crate) fn warm(&self, rate: u64) {
        self.load(rate, Duration::from_secs(15)).finish(5);
    }

    /// Begins an open loop.
    pub(crate) fn load(&self, rate: u64, length: Duration) -> Running {
        Driver { load: self.asks(MIX), address: self.address(), rate }.start(length)
    }

    pub(crate) fn fault(&mut self, fault: Fault, target: &str) {
        self.stack.fault(fault, target).expect("a fault");
    }

    pub(crate) fn replica(&self) -> String {
        let primary = self.stack.primary("c0").expect("a primary").name;
        let nodes = &self.stack.info().clusters[0].nodes;
        nodes.iter().find(|node| node.name != primary).expect("a replica").name.clone()
    }
}
