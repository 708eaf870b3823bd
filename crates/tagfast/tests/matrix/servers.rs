//! The stack, and the processes of the service on it: one for each role, so that each can stand
//! still alone.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tagfast_testkit::stack::{Fault, Stack, StackOptions, host::wait_until};
use tagfast_testkit::{Client, ServerOptions, ServerProcess};

use crate::cells::{Place, Step};

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A fault whose target is resolved: the node keeps its name when its role changes.
pub(crate) type Injected = (Fault, String);

/// The running servers.
pub(crate) struct Servers {
    pub(crate) stack: Stack,
    processes: Vec<(Place, ServerProcess)>,
    _dir: tempfile::TempDir,
}

impl Servers {
    /// Two clusters of three nodes, Redis, Kafka, OpenSearch, and every process of the service.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let stack =
            Stack::up(&StackOptions::complete(2, dir.path()), &|_| ()).expect("the stack comes up");
        let mut servers = Self { stack, processes: Vec::new(), _dir: dir };
        servers.start_processes();
        servers
    }

    fn start_processes(&mut self) {
        // All start at once: each waits for the same servers.
        let stack = &self.stack;
        self.processes = std::thread::scope(|scope| {
            let starting: Vec<_> = Place::ALL
                .into_iter()
                .map(|place| (place, scope.spawn(move || start(stack, place))))
                .collect();
            let started = |(place, thread): (_, std::thread::ScopedJoinHandle<'_, _>)| {
                (place, thread.join().expect("the process starts"))
            };
            starting.into_iter().map(started).collect()
        });
    }

    /// Starts every process of the service again, as an operator would in the end.
    pub(crate) fn restart_processes(&mut self) {
        self.processes.clear();
        self.start_processes();
    }

    fn process(&self, place: Place) -> &ServerProcess {
        let found = self.processes.iter().find(|(of, _)| *of == place);
        &found.expect("every process runs").1
    }

    pub(crate) fn address(&self, place: Place) -> SocketAddr {
        self.process(place).address()
    }

    /// The end of a process's log.
    pub(crate) fn log_end(&self, place: Place) -> String {
        let log = self.process(place).log();
        let lines: Vec<&str> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Waits until the clusters are healthy and every process is ready.
    pub(crate) fn wait_until_ready(&self) -> Result<()> {
        for cluster in ["c0", "c1"] {
            self.stack.wait_until_healthy(cluster, START_TIMEOUT)?;
        }
        for place in Place::ALL {
            let mut client = Client::new(self.address(place)).with_timeout(Duration::from_secs(5));
            wait_until(&format!("{} to be ready", place.name()), START_TIMEOUT, || {
                let answer = client.request("GET", "/readyz", &[], None)?;
                if answer.status == 200 { Ok(()) } else { bail!("{}", answer.text()) }
            })?;
        }
        Ok(())
    }

    /// Rebuilds the search index, when it could not come back by itself.
    pub(crate) fn reindex(&self) -> Result<()> {
        let mut client = Client::new(self.address(Place::Indexer)).with_timeout(START_TIMEOUT);
        let answer = client.request("POST", "/v1/admin/reindex", &[], Some("{}"))?;
        if answer.status == 200 { Ok(()) } else { bail!("{}", answer.text()) }
    }

    /// Takes one step; returns the fault to be ended.
    pub(crate) fn begin(&mut self, step: Step) -> Result<Option<Injected>> {
        match step {
            Step::Server(fault, target) => {
                let target = match target.split_once(':') {
                    Some((cluster, "replica")) => self.stack.replica(cluster)?.name,
                    Some((cluster, "primary")) => self.stack.primary(cluster)?.name,
                    Some((_, role)) => bail!("no node has the role {role}"),
                    None => target.to_owned(),
                };
                self.stack.fault(fault, &target).with_context(|| format!("{fault:?} {target}"))?;
                Ok(Some((fault, target)))
            }
            Step::Freeze(place) => {
                self.process(place).freeze();
                Ok(None)
            }
            Step::Thaw(place) => {
                self.process(place).thaw();
                Ok(None)
            }
            Step::Writes(_) => Ok(None),
        }
    }

    /// Ends one fault of a server.
    pub(crate) fn end(&mut self, (fault, target): &Injected) -> Result<()> {
        let end = fault.end();
        self.stack.fault(end, target).with_context(|| format!("{end:?} {target}"))
    }

    pub(crate) fn thaw(&self, place: Place) {
        self.process(place).thaw();
    }
}

fn start(stack: &Stack, place: Place) -> ServerProcess {
    let config = &stack.info().config;
    let role = match place {
        Place::Writer => "api,replayer",
        Place::Cached | Place::Plain => "api",
        Place::Relay => "relay",
        Place::Indexer => "indexer",
        Place::Analytics => "analytics",
    };
    let mut options = ServerOptions::other(env!("CARGO_BIN_EXE_tagfast"));
    if place == Place::Plain {
        let text = std::fs::read_to_string(config).expect("the configuration");
        let (before, rest) = text.split_once("\n[cache]\n").expect("a cache");
        let (_, after) = rest.split_once('\n').expect("its URL");
        let without = config.with_file_name("without-cache.toml");
        std::fs::write(&without, format!("{before}\n{after}")).expect("written");
        options = options.arg("--config").arg(without).env("TAGFAST__CACHE__LOCAL_MAX_BYTES", "0");
    } else {
        options = options.arg("--config").arg(config);
    }
    for role in role.split(',') {
        options = options.arg("--role").arg(role);
    }
    options.arg("--data-dir").arg(config.with_file_name(place.name())).serve().start()
}
