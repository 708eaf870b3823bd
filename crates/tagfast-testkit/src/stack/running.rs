//! A running stack: starting and ending it, its nodes and its health.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::build::{Build, StartProxy, proxy_here};
use super::cleanup::{create_unique_dir, end_with_this_process, remove, tag_of};
use super::host::{self, Process, RunAs};
use super::info::{NodeInfo, StackInfo};
use super::install::{Needs, Progress, Tools, install};
use super::options::StackOptions;
use super::proxy::ProxyControl;
use super::{etcd, netns, patroni};

/// A running stack. A stack that this process owns ends when it is dropped.
#[derive(Debug)]
pub struct Stack {
    pub(super) info: StackInfo,
    pub(super) dir: PathBuf,
    pub(super) tools: Tools,
    pub(super) run_as: RunAs,
    owned: bool,
}

impl Stack {
    /// Installs what is missing and starts everything, the proxy in this process.
    pub fn up(options: &StackOptions, progress: Progress<'_>) -> Result<Self> {
        Self::up_with(options, progress, &proxy_here)
    }

    /// As [`Stack::up`], with the proxy started by `start_proxy`.
    pub fn up_with(
        options: &StackOptions,
        progress: Progress<'_>,
        start_proxy: StartProxy<'_>,
    ) -> Result<Self> {
        let tools = install(options.needs(), progress)?;
        let run_as = RunAs::for_servers()?;
        let (tag, base) = create_unique_dir(run_as)?;
        if options.owned {
            end_with_this_process(&base, &tag)?;
        }
        let build = Build { options, progress, tools: &tools, run_as, base: &base, tag: &tag };
        // Written first, so that an interrupted start can be ended with `down`.
        StackInfo::starting(&options.dir, &base).write(&options.dir)?;
        match build.start(start_proxy) {
            Ok(info) => {
                info.write(&options.dir)?;
                Ok(Self { info, dir: options.dir.clone(), tools, run_as, owned: options.owned })
            }
            Err(error) if options.owned => {
                remove(&base, &tag)?;
                Err(error)
            }
            // The logs stay for the person who started it.
            Err(error) => {
                etcd::thaw_disks(&base);
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
        Ok(Self { info, dir: dir.to_owned(), tools, run_as: RunAs::for_servers()?, owned: false })
    }

    /// Description of the servers.
    pub fn info(&self) -> &StackInfo {
        &self.info
    }

    /// Control of the fault proxy.
    pub fn control(&self) -> ProxyControl {
        ProxyControl(self.info.proxy)
    }

    /// Ends every process and removes all files but the installed tools.
    pub fn down(mut self) -> Result<()> {
        self.owned = false;
        self.end()
    }

    fn end(&self) -> Result<()> {
        remove(&self.info.base, tag_of(&self.info.base))?;
        for file in ["stack.json", "tagfast.toml", "postgres-password", "signing.key", "ca.pem"] {
            let _ = std::fs::remove_file(self.dir.join(file));
        }
        for file in self.info.optional_password_files() {
            let _ = std::fs::remove_file(file);
        }
        Ok(())
    }

    /// The primary of a cluster, according to Patroni.
    pub fn primary(&self, cluster: &str) -> Result<NodeInfo> {
        let info =
            self.info.cluster(cluster).with_context(|| format!("no cluster is named {cluster}"))?;
        for node in &info.nodes {
            let Ok(members) = patroni::members(node.direct_patroni) else { continue };
            let primary =
                members.iter().find(|m| m.is_primary()).and_then(|m| self.info.node(&m.name));
            if let Some(primary) = primary {
                return Ok(primary.clone());
            }
        }
        bail!("{cluster} has no primary now")
    }

    /// A replica of a cluster, according to Patroni.
    pub fn replica(&self, cluster: &str) -> Result<NodeInfo> {
        let primary = self.primary(cluster)?.name;
        let mut nodes = self.info.cluster(cluster).into_iter().flat_map(|info| &info.nodes);
        nodes
            .find(|node| node.name != primary)
            .cloned()
            .with_context(|| format!("{cluster} has no replica"))
    }

    /// Problems of the stack: ended processes and unhealthy clusters. Empty when there are none.
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
        for (n, member) in info.etcd.iter().enumerate() {
            check(&format!("etcd{n}"), member.process());
        }
        info.redis.iter().for_each(|s| check("redis", s.process()));
        info.state_redis.iter().for_each(|s| check("state-redis", s.process()));
        info.opensearch.iter().for_each(|s| check("opensearch", s.process()));
        info.kafka.iter().for_each(|k| check("kafka", Process { pid: k.pid, started: k.started }));
        info.clusters.iter().flat_map(|c| &c.nodes).for_each(|n| check(&n.name, n.process()));
        for cluster in &info.clusters {
            if let Err(error) = self.check_health(&cluster.name) {
                problems.push(format!("{error:#}"));
            }
        }
        problems
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.owned {
            // Nothing can handle the error here; the watcher retries once this process has ended.
            let _ = self.end();
        }
    }
}
