//! The real cluster from plain processes: etcd, PostgreSQL under Patroni, Redis, Kafka, OpenSearch,
//! each behind the fault proxy.
//!
//! `cargo xtask stack` and the tests start the same thing with [`Stack::up`]. Data, logs and
//! sockets lie in one folder below `/var/tmp`, owned by the user that the servers run as; `down`
//! ends every process that works there and removes it. A stack that a test owns is ended by a small
//! watcher when the test's process is gone, however it went.
//!
//! How it fails: a server that does not come up is named with the path of its log. What was started
//! until then is ended.

pub mod fault;
pub mod host;
pub mod info;
pub mod install;
mod netns;
pub mod patroni;
pub mod proxy;
mod servers;
mod shared;
mod tls;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use self::fault::Fault;
use self::host::{Account, Process, free_ports, wait_until};
pub use self::info::{ClusterInfo, NodeInfo, ServerInfo, StackInfo};
use self::info::{DatabaseInfo, KafkaInfo};
pub use self::install::{Needs, Progress, Tools, install, install_libraries, install_packages};
use self::netns::Network;
use self::patroni::{NodePlan, Passwords};
use self::proxy::{Link, Proxy, ProxyControl};
pub use self::shared::SharedStack;

/// What to start.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// PostgreSQL clusters.
    pub clusters: u8,
    /// Replicas of each.
    pub replicas: u8,
    /// Two Redis servers.
    pub redis: bool,
    /// Kafka.
    pub kafka: bool,
    /// OpenSearch.
    pub opensearch: bool,
    /// A network namespace for each PostgreSQL node; needs root.
    pub netns: bool,
    /// PostgreSQL's `shared_buffers`.
    pub shared_buffers: String,
    /// Where `stack.json` and `tagfast.toml` go.
    pub dir: PathBuf,
    /// Whether everything ends with this process.
    pub owned: bool,
}

impl StackOptions {
    /// Only PostgreSQL clusters and etcd, owned by this process: what most tests need.
    pub fn clusters_only(clusters: u8, dir: impl Into<PathBuf>) -> Self {
        Self {
            clusters,
            replicas: 2,
            redis: false,
            kafka: false,
            opensearch: false,
            netns: false,
            shared_buffers: "32MB".to_owned(),
            dir: dir.into(),
            owned: true,
        }
    }

    /// What has to be installed for it.
    pub fn needs(&self) -> Needs {
        Needs {
            clusters: self.clusters > 0,
            redis: self.redis,
            kafka: self.kafka,
            opensearch: self.opensearch,
            netns: self.netns,
        }
    }
}

/// A running stack. An owned one ends when it is dropped.
#[derive(Debug)]
pub struct Stack {
    info: StackInfo,
    dir: PathBuf,
    tools: Tools,
    account: Account,
    owned: bool,
}

/// Starts the proxy of a stack, which gets its folder: in this process, or as one that outlives it.
pub type StartProxy<'a> = &'a dyn Fn(&Path, SocketAddr, Vec<Link>) -> Result<()>;

/// A proxy in this process.
pub fn proxy_here(_base: &Path, control: SocketAddr, links: Vec<Link>) -> Result<()> {
    Proxy::start(control, links).map(drop)
}

impl Stack {
    /// Installs what is missing and starts everything, the proxy in this process.
    pub fn up(options: &StackOptions, progress: Progress<'_>) -> Result<Self> {
        Self::up_with(options, progress, &proxy_here)
    }

    /// As [`Stack::up`], with another place for the proxy.
    pub fn up_with(
        options: &StackOptions,
        progress: Progress<'_>,
        start_proxy: StartProxy<'_>,
    ) -> Result<Self> {
        let tools = install(options.needs(), progress)?;
        let account = Account::of_servers()?;
        let (tag, base) = own_folder(account)?;
        if options.owned {
            watch(&base, &tag)?;
        }
        let plan = Build { options, progress, tools: &tools, account, base: &base, tag: &tag };
        // Whoever is interrupted from here on finds with it what to end.
        StackInfo::begun(&options.dir, &base).write(&options.dir)?;
        match plan.start(start_proxy) {
            Ok(info) => {
                info.write(&options.dir)?;
                Ok(Self { info, dir: options.dir.clone(), tools, account, owned: options.owned })
            }
            Err(error) if options.owned => {
                remove(&base, &tag)?;
                Err(error)
            }
            // A person wants to read the logs.
            Err(error) => {
                let _ = host::end_all_of(&base);
                netns::remove(&tag);
                let _ = std::fs::remove_file(options.dir.join("stack.json"));
                Err(error.context(format!(
                    "the stack did not come up; its logs are in {}",
                    base.display()
                )))
            }
        }
    }

    /// The stack that `stack.json` in a folder describes.
    pub fn open(dir: &Path) -> Result<Self> {
        let info = StackInfo::read(dir)?;
        let tools = install(
            Needs { clusters: true, redis: false, kafka: false, opensearch: false, netns: false },
            &|_| (),
        )?;
        Ok(Self { info, dir: dir.to_owned(), tools, account: Account::of_servers()?, owned: false })
    }

    /// What runs where.
    pub fn info(&self) -> &StackInfo {
        &self.info
    }

    /// The fault proxy.
    pub fn control(&self) -> ProxyControl {
        ProxyControl(self.info.proxy)
    }

    /// Ends every process and removes every trace but the installed tools.
    pub fn down(mut self) -> Result<()> {
        self.owned = false;
        self.end()
    }

    fn end(&self) -> Result<()> {
        remove(&self.info.base, tag_of(&self.info.base))?;
        for file in ["stack.json", "tagfast.toml", "postgres-password", "signing.key", "ca.pem"] {
            let _ = std::fs::remove_file(self.dir.join(file));
        }
        Ok(())
    }

    /// What is not as it should be: processes that are gone, clusters that are not whole. Empty
    /// when all is well.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.info.ready {
            return vec!["its start was interrupted".to_owned()];
        }
        let mut check = |name: &str, process: Process| {
            if !process.is_alive() {
                problems.push(format!("{name} does not run"));
            }
        };
        let info = &self.info;
        info.etcd.iter().for_each(|s| check("etcd", s.process()));
        info.redis.iter().for_each(|s| check("redis", s.process()));
        info.state_redis.iter().for_each(|s| check("state-redis", s.process()));
        info.opensearch.iter().for_each(|s| check("opensearch", s.process()));
        info.kafka.iter().for_each(|k| check("kafka", Process { pid: k.pid, started: k.started }));
        info.clusters.iter().flat_map(|c| &c.nodes).for_each(|n| check(&n.name, n.process()));
        for cluster in &info.clusters {
            if let Err(error) = self.wait_until_whole(&cluster.name, Duration::ZERO) {
                problems.push(format!("{error:#}"));
            }
        }
        problems
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.owned {
            // Nobody is left to tell; the watcher tries again when this process has ended.
            let _ = self.end();
        }
    }
}

fn clock() -> u32 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .subsec_nanos()
}

/// A folder that nobody else has: several stacks may begin at the same moment, in one process, too.
fn own_folder(account: Account) -> Result<(String, PathBuf)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x85EB_CA6B);
        let tag =
            format!("{:x}", std::process::id().wrapping_mul(0x9E37_79B1).wrapping_add(n) ^ clock());
        let base = PathBuf::from(format!("/var/tmp/tagfast-stack-{tag}"));
        match std::fs::create_dir(&base) {
            Ok(()) => {
                account.make_dir(&base)?;
                return Ok((tag, base));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make {}", base.display()));
            }
        }
    }
}

fn tag_of(base: &Path) -> &str {
    base.file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.rsplit('-').next())
        .unwrap_or_default()
}

fn remove(base: &Path, tag: &str) -> Result<()> {
    host::end_all_of(base)?;
    netns::remove(tag);
    // A process that just died may still write its last file.
    wait_until(
        "the stack's folder to go",
        Duration::from_secs(10),
        || match std::fs::remove_dir_all(base) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", base.display()))
            }
            _ => Ok(()),
        },
    )
}

/// Ends the stack when this process is gone: a test that is killed cannot clean up.
fn watch(base: &Path, tag: &str) -> Result<()> {
    let me = Process::of(std::process::id()).context("we have no entry in /proc")?;
    let script = format!(
        "while [ -d {base} ] && [ \"$(sed 's/.*) //' /proc/{pid}/stat 2>/dev/null | cut -d' ' -f20)\" = {started} ]; do \
           sleep 0.5; done; \
         [ -d {base} ] || exit 0; \
         n=0; while :; do left=; for p in /proc/[0-9]*; do \
           case \"$(readlink $p/cwd) $(tr '\\0' ' ' < $p/environ)\" in {base}*|*HOME={base}/*) left=1; \
             case \"$n $(readlink $p/exe)\" in \
               [0-9]\\ */postgres) kill -QUIT ${{p#/proc/}}; kill -CONT ${{p#/proc/}};; \
               *) kill -9 ${{p#/proc/}};; esac;; \
           esac; done 2>/dev/null; [ -z \"$left\" ] && break; n=$((n+1)); sleep 0.2; done; \
         for n in $(ip netns list 2>/dev/null | cut -d' ' -f1 | grep '^tf{tag}n'); do \
           ip link del v$n; ip netns del $n; done 2>/dev/null; \
         ip link del tf{tag} 2>/dev/null; rm -rf {base}",
        base = base.display(),
        pid = me.pid,
        started = me.started,
    );
    let mut watcher = Command::new("setsid");
    watcher.args(["--fork", "sh", "-c", &script]).current_dir("/");
    watcher.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = watcher.status().context("cannot start the watcher")?;
    if !status.success() {
        bail!("the watcher did not start");
    }
    Ok(())
}

/// Everything that starting needs.
struct Build<'a> {
    options: &'a StackOptions,
    progress: Progress<'a>,
    tools: &'a Tools,
    account: Account,
    base: &'a Path,
    tag: &'a str,
}

struct Node {
    info: NodeInfo,
    dir: PathBuf,
}

impl Build<'_> {
    fn start(&self, start_proxy: StartProxy<'_>) -> Result<StackInfo> {
        let options = self.options;
        let network = options.netns.then(|| Network::make(self.tag)).transpose()?;
        let ip = network.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), Network::host);
        let mut links = Vec::new();
        let mut link = |name: &str, to: SocketAddr| -> Result<SocketAddr> {
            let listen = free_ports(ip, 1)?[0];
            links.push(Link { name: name.to_owned(), listen, to });
            Ok(listen)
        };

        let etcd = [free_ports(ip, 1)?[0], free_ports(ip, 1)?[0]];
        let mut clusters: Vec<Vec<Node>> = Vec::new();
        let mut count = 0;
        for c in 0..options.clusters {
            let mut nodes = Vec::new();
            for n in 0..=options.replicas {
                let name = format!("c{c}-n{n}");
                let (namespace, node_ip) = match &network {
                    Some(network) => network.node(count).map(|(name, ip)| (Some(name), ip))?,
                    None => (None, ip),
                };
                count += 1;
                // In a namespace of its own every port is free.
                let direct = match namespace {
                    Some(_) => vec![SocketAddr::new(node_ip, 5432), SocketAddr::new(node_ip, 8008)],
                    None => free_ports(node_ip, 2)?,
                };
                let dir = self.base.join(&name);
                let patroni = format!("http://{}", link(&format!("{name}-rest"), direct[1])?);
                let info = NodeInfo {
                    postgres: link(&name, direct[0])?,
                    patroni,
                    patroni_pid: 0,
                    patroni_started: 0,
                    data_dir: dir.join("data"),
                    direct_postgres: direct[0],
                    direct_patroni: direct[1],
                    netns: namespace,
                    name,
                };
                nodes.push(Node { info, dir });
            }
            clusters.push(nodes);
        }
        let redis = options.redis.then(|| free_ports(ip, 2)).transpose()?;
        let redis_known = match &redis {
            Some(direct) => Some([link("redis", direct[0])?, link("state-redis", direct[1])?]),
            None => None,
        };
        let kafka = options.kafka.then(|| free_ports(ip, 2)).transpose()?;
        let kafka_known = kafka.as_ref().map(|direct| link("kafka", direct[0])).transpose()?;
        let opensearch = options.opensearch.then(|| free_ports(ip, 2)).transpose()?;
        let opensearch_direct = opensearch.as_ref().map(|direct| direct[0]);
        let opensearch_known =
            opensearch.as_ref().map(|direct| link("opensearch", direct[0])).transpose()?;
        let etcd_known = link("etcd", etcd[0])?;
        let control = free_ports(ip, 1)?[0];
        start_proxy(self.base, control, links)?;

        tls::make(self.account, &self.base.join("tls"), ip)?;
        let started = Instant::now();
        let say = |what: &str| {
            (self.progress)(&format!("{:5.1} s  {what}", started.elapsed().as_secs_f64()))
        };
        let passwords = passwords()?;
        let (account, base, tools) = (self.account, self.base, self.tools);
        // The slow starters run beside the clusters.
        let (java, rest) = std::thread::scope(|scope| -> Result<_> {
            let brokers = scope.spawn(move || -> Result<_> {
                let opensearch = opensearch
                    .map(|at| {
                        servers::opensearch(
                            tools,
                            account,
                            &base.join("opensearch"),
                            [at[0], at[1]],
                        )
                    })
                    .transpose()?;
                let kafka = kafka
                    .zip(kafka_known)
                    .map(|(at, known)| {
                        servers::kafka(
                            tools,
                            account,
                            &base.join("kafka"),
                            [at[0], at[1], known],
                            8,
                        )
                    })
                    .transpose()?;
                Ok((kafka, opensearch))
            });
            let rest = self.start_light(etcd, &redis, &mut clusters, &passwords, &say);
            let java = brokers.join().map_err(|_| anyhow::anyhow!("a starting thread panicked"))?;
            Ok((java?, rest?))
        })?;
        let (kafka_process, opensearch_process) = java;
        let (etcd_process, redis_processes) = rest;
        if options.kafka || options.opensearch {
            say("Kafka and OpenSearch answer");
        }

        let known =
            |address: SocketAddr, direct: SocketAddr, process: Process, scheme: &str| ServerInfo {
                url: format!("{scheme}://{address}"),
                direct,
                pid: process.pid,
                started: process.started,
            };
        std::fs::create_dir_all(&options.dir)?;
        let dir = std::fs::canonicalize(&options.dir)?;
        let password_file = dir.join("postgres-password");
        write_secret(&password_file, &passwords.service)?;
        let redis_info = |n: usize| {
            let (processes, (at, direct)) = redis_processes.zip(redis_known.zip(redis.as_ref()))?;
            Some(known(at[n], direct[n], processes[n], "redis"))
        };
        let info = StackInfo {
            clusters: clusters
                .into_iter()
                .enumerate()
                .map(|(c, nodes)| ClusterInfo {
                    name: format!("c{c}"),
                    scope: format!("c{c}"),
                    nodes: nodes.into_iter().map(|n| n.info).collect(),
                })
                .collect(),
            etcd: etcd_process
                .map(|process| known(etcd_known, etcd[0], process, "http"))
                .into_iter()
                .collect(),
            redis: redis_info(0),
            state_redis: redis_info(1),
            kafka: kafka_process.zip(kafka_known).map(|(process, bootstrap)| KafkaInfo {
                bootstrap,
                pid: process.pid,
                started: process.started,
            }),
            opensearch: opensearch_process
                .zip(opensearch_known.zip(opensearch_direct))
                .map(|(process, (at, direct))| known(at, direct, process, "http")),
            config: dir.join("tagfast.toml"),
            proxy: control,
            base: self.base.to_owned(),
            database: DatabaseInfo {
                name: "tagfast".to_owned(),
                user: "tagfast".to_owned(),
                password_file,
                tls_ca_file: dir.join("ca.pem"),
            },
            ready: true,
        };
        std::fs::copy(self.base.join("tls/ca.pem"), &info.database.tls_ca_file)
            .context("cannot copy ca.pem")?;
        write_secret(&dir.join("signing.key"), &passwords.signing.repeat(2))?;
        std::fs::write(&info.config, info.service_config())?;
        Ok(info)
    }

    /// etcd, Redis and the clusters.
    fn start_light(
        &self,
        etcd: [SocketAddr; 2],
        redis: &Option<Vec<SocketAddr>>,
        clusters: &mut [Vec<Node>],
        passwords: &Passwords,
        say: &dyn Fn(&str),
    ) -> Result<(Option<Process>, Option<[Process; 2]>)> {
        let redis = match redis {
            Some(at) => Some([
                servers::redis(self.account, &self.base.join("redis"), at[0], true)?,
                servers::redis(self.account, &self.base.join("state-redis"), at[1], false)?,
            ]),
            None => None,
        };
        if clusters.is_empty() {
            return Ok((None, redis));
        }
        // Patroni talks to etcd itself: a fault of the link is one of ours.
        let process = servers::etcd(self.account, &self.base.join("etcd"), etcd[0], etcd[1])?;
        say("etcd answers");
        for (c, nodes) in clusters.iter_mut().enumerate() {
            for node in nodes {
                let plan = NodePlan {
                    scope: &format!("c{c}"),
                    name: &node.info.name,
                    postgres: (node.info.direct_postgres, node.info.postgres),
                    rest: (
                        node.info.direct_patroni,
                        node.info.patroni.trim_start_matches("http://").parse()?,
                    ),
                    etcd: etcd[0],
                    shared_buffers: &self.options.shared_buffers,
                    passwords,
                    tls: &self.base.join("tls"),
                    dir: &node.dir,
                };
                debug_assert_eq!(plan.data_dir(), node.info.data_dir);
                plan.write(self.account)?;
                let process = patroni::start(
                    self.tools,
                    self.account,
                    &node.dir,
                    node.info.netns.as_deref(),
                )?;
                (node.info.patroni_pid, node.info.patroni_started) = (process.pid, process.started);
            }
        }
        let mut waiting: Vec<usize> = (0..clusters.len()).collect();
        wait_until("the clusters to be whole", Duration::from_secs(120), || {
            for c in waiting.clone() {
                if is_whole(&clusters[c])? {
                    say(&format!("c{c} has a primary and {} replicas", clusters[c].len() - 1));
                    waiting.retain(|other| *other != c);
                }
            }
            if !waiting.is_empty() {
                bail!("still starting: {waiting:?}; logs are in {}", self.base.display());
            }
            Ok(())
        })?;
        Ok((Some(process), redis))
    }
}

fn is_whole(nodes: &[Node]) -> Result<bool> {
    for node in nodes {
        if !node.info.process().is_alive() {
            bail!(
                "the Patroni of {} ended; see {}",
                node.info.name,
                node.dir.join("patroni.log").display()
            );
        }
    }
    let Ok(members) = patroni::members(nodes[0].info.direct_patroni) else { return Ok(false) };
    let streaming = members.iter().filter(|m| m.state == "streaming").count();
    Ok(members.iter().any(patroni::Member::is_primary) && streaming + 1 == nodes.len())
}

/// Writes a file that nobody else can read at any moment.
fn write_secret(path: &Path, text: &str) -> Result<()> {
    let mut options = std::fs::File::options();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create(true).truncate(true), 0o600);
    let mut file =
        options.open(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(std::io::Write::write_all(&mut file, text.as_bytes())?)
}

/// Fresh passwords from the kernel.
fn passwords() -> Result<Passwords> {
    let word = || -> Result<String> {
        let mut bytes = [0; 16];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
        Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
    };
    Ok(Passwords {
        superuser: word()?,
        replication: word()?,
        rewind: word()?,
        service: word()?,
        signing: word()?,
    })
}
