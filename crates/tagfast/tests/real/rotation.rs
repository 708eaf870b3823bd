//! Passwords are rotated under load, at every server and in every order; nothing is restarted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tagfast_testkit::stack::{Fault, Secured, Stack, StackOptions};
use tagfast_testkit::{Client, wait_for_condition};

use crate::events::{Writer, all_agree, bus_lock};
use crate::{ONE_STACK, TEST_TIMEOUT, full, serve, wait_until_ready};

/// How long a cell of the matrix may wait; it takes less than 5 s on an idle machine.
const CELL_TIMEOUT: Duration = Duration::from_secs(30);

/// What happens to the file and at the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rotation {
    /// The server changes, all connections break, then the file follows: in between nothing is
    /// right.
    ServerFirst,
    /// The file changes, then the server.
    FileFirst,
    /// The file holds something else for a while, and all connections break meanwhile.
    WrongFile,
    /// The file is empty for a while.
    EmptyFile,
    /// The file is missing for a while.
    MissingFile,
}

const ROTATIONS: [Rotation; 5] = [
    Rotation::FileFirst,
    Rotation::ServerFirst,
    Rotation::WrongFile,
    Rotation::EmptyFile,
    Rotation::MissingFile,
];

/// A password of the service.
struct Place {
    secured: Secured,
    key: &'static str,
    /// Links of the fault proxy to its servers.
    links: Vec<String>,
    file: PathBuf,
    /// What the server knows.
    password: String,
}

impl Place {
    fn all(stack: &Stack) -> Vec<Self> {
        let info = stack.info();
        let nodes = info.clusters.iter().flat_map(|c| &c.nodes).map(|n| n.name.clone()).collect();
        let one = |name: &str| vec![name.to_owned()];
        [
            (Secured::Postgres, "store.password_file", nodes),
            (Secured::Etcd, "store.etcd_password_file", one("etcd")),
            (Secured::Redis, "cache.redis_password_file", one("redis")),
            (Secured::StateRedis, "state.redis_password_file", one("state-redis")),
            (Secured::Kafka, "kafka.sasl_password_file", one("kafka")),
            (Secured::OpenSearch, "search.opensearch_password_file", one("opensearch")),
        ]
        .map(|(secured, key, links)| {
            let file = info.password_file(secured);
            let password = std::fs::read_to_string(&file).expect("a password");
            Self { secured, key, links, file, password }
        })
        .into()
    }

    fn write_file(&self, text: &str) {
        std::fs::write(&self.file, text).expect("written");
    }

    fn change_server(&mut self, stack: &Stack, new: &str) {
        stack.change_password(self.secured, &self.password, new).expect("the server changes it");
        self.password = new.to_owned();
    }

    fn break_connections(&self, stack: &mut Stack) {
        for link in &self.links {
            stack.fault(Fault::Reset, link).expect("reset");
        }
        for link in &self.links {
            stack.fault(Fault::Heal, link).expect("healed");
        }
    }

    /// What status says about the credential; `None`: nothing is wrong.
    fn named(&self, client: &mut Client) -> Option<String> {
        let status = client.get("/v1/status").expect(200).json();
        let degraded = status["degraded"].as_array().cloned().unwrap_or_default();
        let found = degraded.iter().find(|d| d.to_string().contains(self.key))?;
        Some(found.to_string())
    }

    /// Waits until status names the credential with these words.
    fn wait_named(&self, client: &mut Client, words: &str) -> Duration {
        let began = Instant::now();
        wait_for_condition("the credential is named", CELL_TIMEOUT, || match self.named(client) {
            Some(text) if text.contains(words) => Ok(()),
            other => Err(format!("{}: {other:?}, not {words:?}", self.key)),
        });
        began.elapsed()
    }

    /// Waits until status names nothing of it.
    fn wait_healed(&self, client: &mut Client) -> Duration {
        let began = Instant::now();
        wait_for_condition("nothing is named", CELL_TIMEOUT, || match self.named(client) {
            None => Ok(()),
            Some(text) => Err(text),
        });
        began.elapsed()
    }

    /// Rotates; returns how long it took to be named and to heal.
    fn rotate(
        &mut self,
        rotation: Rotation,
        new: &str,
        stack: &mut Stack,
        client: &mut Client,
    ) -> (Duration, Duration) {
        match rotation {
            Rotation::ServerFirst => {
                self.change_server(stack, new);
                self.break_connections(stack);
                let named = self.wait_named(client, "authentication");
                self.write_file(new);
                (named, self.wait_healed(client))
            }
            Rotation::FileFirst => {
                self.write_file(new);
                let named = self.wait_named(client, "only with what it held before");
                self.break_connections(stack);
                self.change_server(stack, new);
                (named, self.wait_healed(client))
            }
            Rotation::WrongFile => {
                self.write_file("wrong");
                let named = self.wait_named(client, "only with what it held before");
                self.break_connections(stack);
                self.write_file(&self.password);
                (named, self.wait_healed(client))
            }
            Rotation::EmptyFile | Rotation::MissingFile => {
                let words = if rotation == Rotation::EmptyFile {
                    self.write_file("");
                    "is empty; what it held before stays in force"
                } else {
                    std::fs::remove_file(&self.file).expect("removed");
                    "No such file"
                };
                let named = self.wait_named(client, words);
                self.break_connections(stack);
                self.write_file(&self.password);
                (named, self.wait_healed(client))
            }
        }
    }
}

/// Every password, rotated in every order while writes go on: status names the credential, nothing
/// acknowledged is lost, the process is the same all the time.
#[test]
#[expect(clippy::print_stdout, reason = "how long each took is a figure")]
fn every_password_is_rotated_in_every_order_without_a_restart() {
    let _lock = (bus_lock(), ONE_STACK.lock());
    let dir = tempfile::tempdir().expect("a folder");
    let options = StackOptions { auth: true, replicas: 1, ..StackOptions::complete(1, dir.path()) };
    let mut stack = Stack::up(&options, &|_| ()).expect("the stack comes up");
    let server = serve(&stack);
    let mut client = server.client().with_timeout(TEST_TIMEOUT);
    wait_until_ready(&mut client);
    let mut places = Place::all(&stack);
    for place in &places {
        assert_eq!(place.named(&mut client), None, "nothing is wrong at first");
    }
    let writer = Writer::start(&server);
    writer.goes_on();
    let mut failed = Vec::new();
    // File and server first; with `full`, every damaged file too.
    let rotations = if full() { ROTATIONS.len() } else { 2 };
    for (n, rotation) in ROTATIONS.into_iter().enumerate().take(rotations) {
        for place in &mut places {
            let new = format!("password-{n}");
            let cell = format!("{} {rotation:?}", place.key);
            let rotate = || place.rotate(rotation, &new, &mut stack, &mut client);
            match catch_unwind(AssertUnwindSafe(rotate)) {
                Ok((named, healed)) => println!("{cell}: named {named:.1?}, healed {healed:.1?}"),
                Err(_) => {
                    // The other cells are tried all the same.
                    place.write_file(&place.password);
                    failed.push(cell);
                }
            }
            writer.goes_on();
        }
    }
    writer.end();
    assert_eq!(failed, Vec::<String>::new());
    all_agree(&mut client);
    let text = server.log();
    for n in 0..rotations {
        assert!(!text.contains(&format!("password-{n}")), "a password is in the log");
    }
}
