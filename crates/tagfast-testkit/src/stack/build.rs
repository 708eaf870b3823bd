//! Starts the servers of a stack.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::auth::{self, AuthInfo};
use super::etcd::EtcdPlan;
use super::host::{Process, RunAs, wait_until};
use super::info::{
    ClusterInfo, DatabaseInfo, KAFKA_PARTITIONS, KafkaInfo, NodeInfo, ServerInfo, StackInfo,
};
use super::install::{Progress, Tools};
use super::netns::Network;
use super::options::StackOptions;
use super::patroni::{self, NodePlan, Passwords};
use super::ports::free_ports;
use super::proxy::{Link, Proxy};
use super::secret::write_secret;
use super::{etcd, etcd_auth, gate, node_log, servers, tls};

/// Starts the fault proxy of a stack, given the stack's folder: in this process, or as a process
/// that outlives it.
pub type StartProxy<'a> = &'a dyn Fn(&Path, SocketAddr, Vec<Link>) -> Result<()>;

/// Starts the fault proxy in this process.
pub fn proxy_here(_base: &Path, control: SocketAddr, links: Vec<Link>) -> Result<()> {
    Proxy::start(control, links).map(drop)
}

/// Inputs of a start.
pub(super) struct Build<'a> {
    pub(super) options: &'a StackOptions,
    pub(super) progress: Progress<'a>,
    pub(super) tools: &'a Tools,
    pub(super) run_as: RunAs,
    pub(super) base: &'a Path,
    pub(super) tag: &'a str,
}

struct Node {
    info: NodeInfo,
    dir: PathBuf,
}

impl Build<'_> {
    /// Starts all servers and writes the configuration for the service.
    pub(super) fn start(&self, start_proxy: StartProxy<'_>) -> Result<StackInfo> {
        let options = self.options;
        let network = options.netns.then(|| Network::make(self.tag)).transpose()?;
        let ip = network.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), Network::host);
        let mut links = Vec::new();
        let mut link = |name: &str, to: SocketAddr| -> Result<SocketAddr> {
            let listen = free_ports(ip, 1)?[0];
            links.push(Link { name: name.to_owned(), listen, to });
            Ok(listen)
        };

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
                // In its own namespace every port is free.
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
        let mut etcd = Vec::new();
        let mut etcd_known = Vec::new();
        for number in 0..if options.clusters > 0 { options.etcd } else { 0 } {
            let plan = match &network {
                Some(network) if options.etcd > 1 => {
                    count += 1;
                    EtcdPlan::in_namespace(number, network.node(count - 1)?)
                }
                _ => {
                    let ports = free_ports(ip, 2)?;
                    EtcdPlan::on_host(number, ports[0], ports[1])
                }
            };
            etcd_known.push(link(&plan.name, plan.client)?);
            etcd.push(plan);
        }
        let redis = options.redis.then(|| free_ports(ip, 2)).transpose()?;
        let redis_known = match &redis {
            Some(direct) => Some([link("redis", direct[0])?, link("state-redis", direct[1])?]),
            None => None,
        };
        let kafka = options.kafka.then(|| free_ports(ip, 2)).transpose()?;
        let kafka_admin = (options.auth && options.kafka).then(|| free_ports(ip, 1)).transpose()?;
        let kafka_admin = kafka_admin.map(|ports| ports[0]);
        let kafka_known = kafka.as_ref().map(|direct| link("kafka", direct[0])).transpose()?;
        let opensearch = options.opensearch.then(|| free_ports(ip, 2)).transpose()?;
        let opensearch_direct = opensearch.as_ref().map(|direct| direct[0]);
        let gate_at = match opensearch_direct.filter(|_| options.auth) {
            Some(_) => Some(free_ports(ip, 1)?[0]),
            None => None,
        };
        let opensearch_known = gate_at.or(opensearch_direct);
        let opensearch_known = opensearch_known.map(|to| link("opensearch", to)).transpose()?;
        let control = free_ports(ip, 1)?[0];
        start_proxy(self.base, control, links)?;

        tls::make(self.run_as, &self.base.join("tls"), ip)?;
        let started = Instant::now();
        let say = |what: &str| {
            (self.progress)(&format!("{:5.1} s  {what}", started.elapsed().as_secs_f64()))
        };
        let passwords = Passwords::random()?;
        let auth = options.auth.then(|| AuthInfo {
            etcd_root: passwords.etcd_root.clone(),
            service: passwords.service.clone(),
            kafka_admin,
            kafka_libs: self.tools.kafka().join("libs"),
            gate: gate_at,
        });
        if let Some((at, to)) = gate_at.zip(opensearch_direct) {
            gate::start_gate(at, to, &passwords.service)?;
        }
        let kafka_auth = kafka_admin.map(|admin| (admin, passwords.service.as_str()));
        let (run_as, base, tools) = (self.run_as, self.base, self.tools);
        // Kafka and OpenSearch start slowly, so they start beside the clusters.
        let (java, rest) = std::thread::scope(|scope| -> Result<_> {
            let brokers = scope.spawn(move || -> Result<_> {
                let opensearch = opensearch
                    .map(|at| {
                        servers::opensearch(tools, run_as, &base.join("opensearch"), [at[0], at[1]])
                    })
                    .transpose()?;
                let kafka = kafka
                    .zip(kafka_known)
                    .map(|(at, known)| {
                        let (dir, at) = (base.join("kafka"), [at[0], at[1], known]);
                        servers::kafka(tools, run_as, &dir, at, KAFKA_PARTITIONS, kafka_auth)
                    })
                    .transpose()?;
                Ok((kafka, opensearch))
            });
            let rest =
                self.start_light(&etcd, &redis, &mut clusters, &passwords, auth.as_ref(), &say);
            let java = brokers.join().map_err(|_| anyhow::anyhow!("a starting thread panicked"))?;
            Ok((java?, rest?))
        })?;
        let (kafka_process, opensearch_process) = java;
        let (etcd_processes, redis_processes) = rest;
        if options.kafka || options.opensearch {
            say("Kafka and OpenSearch answer");
        }

        let known =
            |address: SocketAddr, direct: SocketAddr, process: Process, scheme: &str| ServerInfo {
                url: format!("{scheme}://{address}"),
                direct,
                pid: process.pid,
                started: process.started,
                netns: None,
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
            etcd: etcd_processes
                .into_iter()
                .zip(etcd_known.into_iter().zip(etcd))
                .map(|(process, (at, plan))| ServerInfo {
                    netns: plan.netns,
                    ..known(at, plan.client, process, "http")
                })
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
            auth,
            ready: true,
        };
        if info.auth.is_some() {
            for file in info.optional_password_files() {
                write_secret(&file, &passwords.service)?;
            }
        }
        std::fs::copy(self.base.join("tls/ca.pem"), &info.database.tls_ca_file)
            .context("cannot copy ca.pem")?;
        write_secret(&dir.join("signing.key"), &passwords.signing.repeat(2))?;
        std::fs::write(&info.config, info.service_config())?;
        Ok(info)
    }

    /// etcd, Redis and the clusters.
    fn start_light(
        &self,
        etcd: &[EtcdPlan],
        redis: &Option<Vec<SocketAddr>>,
        clusters: &mut [Vec<Node>],
        passwords: &Passwords,
        auth: Option<&AuthInfo>,
        say: &dyn Fn(&str),
    ) -> Result<(Vec<Process>, Option<[Process; 2]>)> {
        let password = auth.map(|auth| auth.service.as_str());
        let redis = match redis {
            Some(at) => Some([
                servers::redis(self.run_as, &self.base.join("redis"), at[0], true, password)?,
                servers::redis(
                    self.run_as,
                    &self.base.join("state-redis"),
                    at[1],
                    false,
                    password,
                )?,
            ]),
            None => None,
        };
        if clusters.is_empty() {
            return Ok((Vec::new(), redis));
        }
        // Patroni uses etcd directly: a fault of the etcd link affects the service only.
        let processes = etcd::start(self.run_as, self.base, etcd)?;
        let etcd: Vec<SocketAddr> = etcd.iter().map(|plan| plan.client).collect();
        if let (Some(auth), Some(first)) = (auth, etcd.first()) {
            etcd_auth::enable_with_service(*first, auth, auth::USER)?;
        }
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
                    etcd: &etcd,
                    etcd_login: etcd_auth::patroni_login(auth),
                    shared_buffers: &self.options.shared_buffers,
                    synchronous: self.options.synchronous,
                    passwords,
                    tls: &self.base.join("tls"),
                    dir: &node.dir,
                };
                debug_assert_eq!(plan.data_dir(), node.info.data_dir);
                plan.write(self.run_as)?;
                let process =
                    patroni::start(self.tools, self.run_as, &node.dir, node.info.netns.as_deref())?;
                (node.info.patroni_pid, node.info.patroni_started) = (process.pid, process.started);
            }
        }
        let mut waiting: Vec<usize> = (0..clusters.len()).collect();
        let healthy = wait_until("the clusters to be healthy", Duration::from_secs(120), || {
            for c in waiting.clone() {
                if is_healthy(&clusters[c])? {
                    say(&format!("c{c} has a primary and {} replicas", clusters[c].len() - 1));
                    waiting.retain(|other| *other != c);
                }
            }
            if !waiting.is_empty() {
                bail!("still starting: {waiting:?}; logs are in {}", self.base.display());
            }
            Ok(())
        });
        healthy.map_err(|error| {
            let nodes = waiting.iter().flat_map(|c| &clusters[*c]).map(|node| &node.info);
            anyhow::anyhow!("{error:#}{}", node_log::logs(nodes))
        })?;
        Ok((processes, redis))
    }
}

fn is_healthy(nodes: &[Node]) -> Result<bool> {
    for node in nodes {
        if !node.info.process().is_alive() {
            bail!(
                "the Patroni of {} ended; see {}",
                node.info.name,
                node_log::log_file(&node.dir).display()
            );
        }
    }
    let Ok(members) = patroni::members(nodes[0].info.direct_patroni) else { return Ok(false) };
    let streaming = members.iter().filter(|m| m.state == "streaming").count();
    Ok(members.iter().any(patroni::Member::is_primary) && streaming + 1 == nodes.len())
}
