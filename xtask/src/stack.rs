//! `cargo xtask stack`: the real cluster on this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tagfast_testkit::stack::proxy::{Link, Proxy};
use tagfast_testkit::stack::{Fault, Stack, StackInfo, StackOptions, host, patroni};

use crate::run::target_dir;

#[derive(clap::Args)]
pub(crate) struct StackCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Args)]
struct StackDir {
    /// Where `stack.json` and `tagfast.toml` are; one stack a folder [default: target/stack]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl StackDir {
    fn dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| target_dir().join("stack"))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Redis,
    Kafka,
    Opensearch,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Install what is missing and start everything; does nothing when it runs.
    Up {
        #[command(flatten)]
        place: StackDir,
        /// PostgreSQL clusters; each is a primary with its replicas.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
        clusters: u8,
        /// Replicas of each primary.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=5))]
        replicas: u8,
        /// Members of etcd.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
        etcd: u8,
        /// Give each PostgreSQL node a network namespace of its own, and each of several members
        /// of etcd a namespace and a disk (needs root).
        #[arg(long)]
        netns: bool,
        /// Parts to leave out.
        #[arg(long, value_delimiter = ',')]
        without: Vec<Part>,
        /// Patroni's synchronous_mode: it names a synchronous standby while one streams.
        #[arg(long)]
        synchronous: bool,
        /// PostgreSQL's shared_buffers.
        #[arg(long, default_value = "64MB")]
        shared_buffers: String,
    },
    /// End every process and remove every trace.
    Down {
        #[command(flatten)]
        place: StackDir,
    },
    /// Show what runs, its roles and what is wrong.
    Status {
        #[command(flatten)]
        place: StackDir,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a fault, or end one.
    ///
    /// KIND: kill, kill-patroni, kill-node, freeze, freeze-postgres, freeze-patroni, freeze-disk,
    /// thaw, restart, cut, cut-peers, heal, slow, hang, reset, refuse, garbage, switchover. TARGET:
    /// a node (c0-n1), a cluster (c0: its primary now), etcd or a member of it (etcd0), redis,
    /// state-redis, kafka or opensearch; freeze-disk and cut-peers: a member of etcd.
    ///
    /// Inside a server that goes on answering, each ended by end-KIND: stop-walreceiver,
    /// pause-replay, delay-replay (a node, or all replicas of a cluster), read-only, lock-tables
    /// (a node, or the primary), rotate-password (postgres); alias-twice, alias-foreign,
    /// close-index, block-index, empty-index, delete-index, recreate-index (opensearch);
    /// delete-topic, recreate-topic, raise-partitions, delete-records (kafka); flush, save, rewind,
    /// require-password (redis, state-redis); etcd-auth (etcd).
    Fault {
        #[command(flatten)]
        place: StackDir,
        /// What to do.
        kind: Fault,
        /// To whom.
        target: String,
        /// How slow `slow` is, in ms a chunk of bytes.
        #[arg(long, default_value_t = 50)]
        ms: u64,
    },
    /// Runs the fault proxy of a stack.
    #[command(hide = true)]
    Proxy { control: std::net::SocketAddr, links: String },
}

pub(crate) fn stack(command: StackCommand) -> Result<()> {
    match command.action {
        Action::Up {
            place,
            clusters,
            replicas,
            etcd,
            netns,
            without,
            synchronous,
            shared_buffers,
        } => {
            let with = |part| !without.contains(&part);
            let options = StackOptions {
                clusters,
                replicas,
                etcd,
                redis: with(Part::Redis),
                kafka: with(Part::Kafka),
                opensearch: with(Part::Opensearch),
                auth: false,
                netns,
                synchronous,
                shared_buffers,
                dir: place.dir(),
                owned: false,
            };
            up(&options)
        }
        Action::Down { place } => {
            Stack::open(&place.dir())?.down()?;
            println!("the stack is down; nothing of it is left but the installed programs");
            Ok(())
        }
        Action::Status { place, json } => status(&Stack::open(&place.dir())?, json),
        Action::Fault { place, kind, target, ms } => {
            let kind = if matches!(kind, Fault::Slow { .. }) { Fault::Slow { ms } } else { kind };
            Stack::open(&place.dir())?.fault(kind, &target)?;
            println!("done: {target}");
            Ok(())
        }
        Action::Proxy { control, links } => {
            let links: Vec<Link> = serde_json::from_str(&links)?;
            let _proxy = Proxy::start(control, links)?;
            loop {
                std::thread::park();
            }
        }
    }
}

fn up(options: &StackOptions) -> Result<()> {
    if options.dir.join("stack.json").exists() {
        let stack = Stack::open(&options.dir)?;
        let problems = stack.problems();
        if !problems.is_empty() {
            bail!(
                "a stack runs here, but not well: {}. End it with `cargo xtask stack down`",
                problems.join("; ")
            );
        }
        println!("the stack runs already");
        return status(&stack, false);
    }
    let started = Instant::now();
    let progress = |line: &str| eprintln!("{line}");
    let stack = Stack::up_with(options, &progress, &|base, control, links| {
        start_proxy(base, control, &links)
    })?;
    println!("\nready after {:.1} s", started.elapsed().as_secs_f64());
    status(&stack, false)?;
    println!(
        "\nnext: cargo run --release --features kafka -- serve --config {}\n      cargo xtask stack fault kill c0\n      cargo xtask stack down",
        stack.info().config.display()
    );
    Ok(())
}

/// The proxy as a process that outlives this one, in the stack's folder, so that `down` ends it
/// like all others.
fn start_proxy(base: &Path, control: std::net::SocketAddr, links: &[Link]) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["stack", "proxy"]).arg(control.to_string()).arg(serde_json::to_string(links)?);
    command.current_dir(base).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(std::fs::File::create(base.join("proxy.log"))?);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().context("cannot start the fault proxy")?;
    host::wait_until("the fault proxy's start", Duration::from_secs(10), || {
        std::net::TcpStream::connect(control).context("the fault proxy does not listen")
    })?;
    Ok(())
}

fn status(stack: &Stack, json: bool) -> Result<()> {
    let info: &StackInfo = stack.info();
    let members: Vec<_> = info
        .clusters
        .iter()
        .map(|c| {
            c.nodes.iter().find_map(|n| patroni::members(n.direct_patroni).ok()).unwrap_or_default()
        })
        .collect();
    let problems = stack.problems();
    if json {
        let value = serde_json::json!({"stack": info, "members": members, "problems": problems});
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    println!(
        "{:<10} {:<10} {:<12} {:>8} {:>10}  PostgreSQL",
        "node", "role", "state", "timeline", "lag bytes"
    );
    for node in info.clusters.iter().flat_map(|c| &c.nodes) {
        let member = members.iter().flatten().find(|m| m.name == node.name);
        let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let role = member.map_or("unknown", |m| if m.is_primary() { "primary" } else { &m.role });
        println!(
            "{:<10} {role:<10} {:<12} {:>8} {:>10}  {}",
            node.name,
            member.map_or("-", |m| &m.state),
            number(member.and_then(|m| m.timeline)),
            number(member.and_then(|m| m.lag)),
            node.postgres
        );
    }
    for (n, member) in info.etcd.iter().enumerate() {
        println!("{:<12} {}", format!("etcd{n}"), member.url);
    }
    let servers = [("redis", info.redis.as_ref()), ("state-redis", info.state_redis.as_ref())];
    for (name, server) in servers.into_iter().chain([("opensearch", info.opensearch.as_ref())]) {
        if let Some(server) = server {
            println!("{name:<12} {}", server.url);
        }
    }
    if let Some(kafka) = &info.kafka {
        println!("{:<12} {}", "kafka", kafka.bootstrap);
    }
    println!("{:<12} {}", "config", info.config.display());
    println!("{:<12} {}", "logs", info.base.display());
    problems.iter().for_each(|problem| println!("problem: {problem}"));
    if !problems.is_empty() {
        bail!("{} problems", problems.len());
    }
    Ok(())
}
