//! Faults on request: the actions of `stack fault KIND TARGET`.

use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::change::Change;
use super::host::{self, Process, processes_in, wait_until};
use super::info::{NodeInfo, ServerInfo};
use super::netns;
use super::patroni;
use super::proxy::Mode;
use super::running::Stack;
use super::state_fault::StateFault;

/// A fault, or the end of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to the postmaster, or to a server.
    Kill,
    /// SIGKILL to Patroni; PostgreSQL keeps running.
    KillPatroni,
    /// SIGKILL to Patroni and every process of PostgreSQL.
    KillNode,
    /// SIGSTOP to all processes of the target.
    Freeze,
    /// SIGSTOP to PostgreSQL only.
    FreezePostgres,
    /// SIGSTOP to Patroni only.
    FreezePatroni,
    /// The end of a freeze.
    Thaw,
    /// Starts Patroni again after a kill.
    Restart,
    /// The disk of a member of etcd stands still, while it runs; needs network namespaces.
    FreezeDisk,
    /// The target's link passes nothing; with network namespaces the link goes down.
    Cut,
    /// A member of etcd and the others do not reach each other, while clients reach all; needs
    /// network namespaces.
    CutPeers,
    /// The end of cut, cut-peers, slow, hang, reset, refuse and garbage.
    Heal,
    /// Every chunk of bytes is delayed.
    Slow {
        /// Delay in milliseconds.
        ms: u64,
    },
    /// Requests arrive, answers do not.
    Hang,
    /// Connections are reset.
    Reset,
    /// The port is closed.
    Refuse,
    /// Answers are garbage.
    Garbage,
    /// A planned switchover of the primary; the target is a cluster.
    Switchover,
    /// A fault inside a server that goes on answering.
    State(StateFault),
    /// The end of one.
    EndState(StateFault),
}

impl Fault {
    /// The action that ends this fault. A switchover has none and returns itself.
    pub fn end(self) -> Self {
        match self {
            Self::Kill | Self::KillPatroni | Self::KillNode => Self::Restart,
            Self::Freeze | Self::FreezePostgres | Self::FreezePatroni | Self::FreezeDisk => {
                Self::Thaw
            }
            Self::Cut
            | Self::CutPeers
            | Self::Slow { .. }
            | Self::Hang
            | Self::Reset
            | Self::Refuse
            | Self::Garbage => Self::Heal,
            Self::State(fault) => Self::EndState(fault),
            Self::Thaw | Self::Restart | Self::Heal | Self::Switchover | Self::EndState(_) => self,
        }
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        Ok(match word {
            "kill" => Self::Kill,
            "kill-patroni" => Self::KillPatroni,
            "kill-node" => Self::KillNode,
            "freeze" => Self::Freeze,
            "freeze-postgres" => Self::FreezePostgres,
            "freeze-patroni" => Self::FreezePatroni,
            "freeze-disk" => Self::FreezeDisk,
            "thaw" => Self::Thaw,
            "restart" => Self::Restart,
            "cut" => Self::Cut,
            "cut-peers" => Self::CutPeers,
            "heal" => Self::Heal,
            "slow" => Self::Slow { ms: 50 },
            "hang" => Self::Hang,
            "reset" => Self::Reset,
            "refuse" => Self::Refuse,
            "garbage" => Self::Garbage,
            "switchover" => Self::Switchover,
            other => {
                let (end, name) = match other.strip_prefix("end-") {
                    Some(name) => (true, name),
                    None => (false, other),
                };
                match StateFault::of(name) {
                    Some(fault) if end => Self::EndState(fault),
                    Some(fault) => Self::State(fault),
                    None => bail!(
                        "no fault is named {other}; use kill, kill-patroni, kill-node, freeze, \
                         freeze-postgres, freeze-patroni, freeze-disk, thaw, restart, cut, \
                         cut-peers, heal, slow, hang, reset, refuse, garbage, switchover, or one \
                         inside a server and end-KIND to end it: {}",
                        StateFault::ALL
                            .iter()
                            .map(|(name, _)| *name)
                            .collect::<Vec<_>>()
                            .join(", ")
                    ),
                }
            }
        })
    }
}

impl Stack {
    /// Injects a fault. The target is a node (`c0-n1`), a cluster (its current primary) or a server
    /// (`etcd` or a member of it, as `etcd0`, `redis`, `state-redis`, `kafka`, `opensearch`).
    pub fn fault(&mut self, fault: Fault, target: &str) -> Result<()> {
        if let Fault::State(fault) = fault {
            return self.state_fault(fault, Change::Begin, target);
        }
        if let Fault::EndState(fault) = fault {
            return self.state_fault(fault, Change::End, target);
        }
        if fault == Fault::Switchover {
            let primary = self.primary(target)?;
            return patroni::switchover(primary.direct_patroni, &primary.name);
        }
        let node = match self.info.cluster(target) {
            Some(_) => Some(self.primary(target)?),
            None => self.info.node(target).cloned(),
        };
        match node {
            Some(node) => self.fault_node(fault, &node),
            None if Self::is_etcd(target) => self.fault_etcd(fault, target),
            None => self.fault_server(fault, target),
        }
    }

    /// Lets packets of a node to a port vanish, or arrive again. Nodes reach each other through the
    /// stack's proxy: the port is the one that is announced.
    ///
    /// # Errors
    /// The node is unknown or has no namespace of its own, or `ip` fails.
    pub fn set_unreachable(
        &self,
        node: &str,
        port: SocketAddr,
        is_unreachable: bool,
    ) -> Result<()> {
        let info = self.info.node(node).with_context(|| format!("no node is named {node}"))?;
        let namespace = info.netns.as_deref().context("the stack has no network namespaces")?;
        netns::set_unreachable(namespace, port, is_unreachable)
    }

    fn fault_node(&mut self, fault: Fault, node: &NodeInfo) -> Result<()> {
        let postgres = || processes_in(&node.data_dir);
        let signal =
            |processes: &[Process], signal| processes.iter().for_each(|p| p.signal(signal));
        match fault {
            Fault::Kill => postmaster(node)?.kill()?,
            Fault::KillPatroni => node.process().kill()?,
            Fault::KillNode => {
                node.process().kill()?;
                host::kill_all_in(&node.data_dir)?;
            }
            Fault::Freeze => {
                node.process().signal(Signal::STOP);
                stop_all(node)?;
            }
            Fault::FreezePostgres => stop_all(node)?,
            Fault::FreezePatroni => node.process().signal(Signal::STOP),
            Fault::Thaw => {
                signal(&postgres(), Signal::CONT);
                node.process().signal(Signal::CONT);
            }
            Fault::Restart => self.restart(node)?,
            Fault::Cut if node.netns.is_some() => {
                netns::set_link(node.netns.as_deref().unwrap_or_default(), false)?;
            }
            Fault::Heal if node.netns.is_some() => {
                netns::set_link(node.netns.as_deref().unwrap_or_default(), true)?;
                self.set_links(&node.name, Mode::Pass)?;
            }
            Fault::Cut
            | Fault::Heal
            | Fault::Slow { .. }
            | Fault::Hang
            | Fault::Reset
            | Fault::Refuse
            | Fault::Garbage => self.set_links(&node.name, link_mode(fault))?,
            Fault::Switchover => bail!("the target of a switchover must be a cluster"),
            Fault::FreezeDisk | Fault::CutPeers => bail!("the target must be a member of etcd"),
            Fault::State(_) | Fault::EndState(_) => bail!("a fault inside a server has no link"),
        }
        Ok(())
    }

    fn set_links(&self, node: &str, mode: Mode) -> Result<()> {
        self.control().set(node, mode)?;
        self.control().set(&format!("{node}-rest"), mode)
    }

    fn restart(&mut self, node: &NodeInfo) -> Result<()> {
        if node.process().is_alive() {
            bail!("the Patroni of {} is running", node.name);
        }
        let dir = node.data_dir.parent().context("the node has no folder")?;
        let process = patroni::start(&self.tools, self.run_as, dir, node.netns.as_deref())?;
        for known in
            self.info.clusters.iter_mut().flat_map(|c| &mut c.nodes).filter(|n| n.name == node.name)
        {
            (known.patroni_pid, known.patroni_started) = (process.pid, process.started);
        }
        self.info.write(&self.dir)
    }

    /// The process of a server of one process.
    pub(super) fn server_process(&self, target: &str) -> Result<Process> {
        let server = match target {
            "redis" => self.info.redis.as_ref(),
            "state-redis" => self.info.state_redis.as_ref(),
            "opensearch" => self.info.opensearch.as_ref(),
            "kafka" => None,
            other => bail!("nothing is named {other}"),
        };
        let kafka = self.info.kafka.as_ref().filter(|_| target == "kafka");
        server
            .map(ServerInfo::process)
            .or_else(|| kafka.map(|k| Process { pid: k.pid, started: k.started }))
            .with_context(|| format!("{target} is not part of this stack"))
    }

    fn fault_server(&mut self, fault: Fault, target: &str) -> Result<()> {
        let process = self.server_process(target)?;
        match fault {
            Fault::Kill => process.kill()?,
            Fault::Freeze => process.signal(Signal::STOP),
            Fault::Thaw => process.signal(Signal::CONT),
            Fault::Cut
            | Fault::Heal
            | Fault::Slow { .. }
            | Fault::Hang
            | Fault::Reset
            | Fault::Refuse
            | Fault::Garbage => self.control().set(target, link_mode(fault))?,
            Fault::KillPatroni
            | Fault::KillNode
            | Fault::FreezePostgres
            | Fault::FreezePatroni
            | Fault::FreezeDisk
            | Fault::CutPeers
            | Fault::State(_)
            | Fault::EndState(_)
            | Fault::Switchover => {
                bail!("{target} has no such fault: its target is a PostgreSQL node or etcd")
            }
            Fault::Restart => return self.restart_server(process, target),
        }
        Ok(())
    }

    /// Restarts a killed server; its clients reconnect once it answers.
    pub(super) fn restart_server(&mut self, old: Process, target: &str) -> Result<()> {
        wait_until(&format!("{target} to be gone"), Duration::from_secs(5), || {
            if old.is_alive() { bail!("{target} is running") } else { Ok(()) }
        })?;
        let name = if target == "state-redis" { "redis" } else { target };
        let new = self.run_as.restart(name, &self.info.base.join(target), None)?;
        let info = &mut self.info;
        let server = match target {
            "redis" => info.redis.as_mut(),
            "state-redis" => info.state_redis.as_mut(),
            "opensearch" => info.opensearch.as_mut(),
            _ => None,
        };
        if let Some(server) = server {
            (server.pid, server.started) = (new.pid, new.started);
        } else if let Some(kafka) = info.kafka.as_mut() {
            (kafka.pid, kafka.started) = (new.pid, new.started);
        }
        self.info.write(&self.dir)
    }
}

pub(super) fn link_mode(fault: Fault) -> Mode {
    match fault {
        Fault::Cut => Mode::Cut,
        Fault::Slow { ms } => Mode::Slow { ms },
        Fault::Hang => Mode::Hang,
        Fault::Reset => Mode::Reset,
        Fault::Refuse => Mode::Refuse,
        Fault::Garbage => Mode::Garbage,
        Fault::Kill
        | Fault::KillPatroni
        | Fault::KillNode
        | Fault::Freeze
        | Fault::FreezePostgres
        | Fault::FreezePatroni
        | Fault::FreezeDisk
        | Fault::CutPeers
        | Fault::Thaw
        | Fault::Restart
        | Fault::Heal
        | Fault::State(_)
        | Fault::EndState(_)
        | Fault::Switchover => Mode::Pass,
    }
}

/// The postmaster: the first line of `postmaster.pid`.
fn postmaster(node: &NodeInfo) -> Result<Process> {
    let file: &Path = &node.data_dir.join("postmaster.pid");
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("PostgreSQL of {} is not running", node.name))?;
    let pid = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok())
        .context("postmaster.pid has no pid")?;
    Process::of(pid).with_context(|| format!("PostgreSQL of {} is not running", node.name))
}

/// Stops every process of a node's PostgreSQL, the postmaster first, so that it forks no more.
fn stop_all(node: &NodeInfo) -> Result<()> {
    postmaster(node)?.signal(Signal::STOP);
    // A child that was just forked may not have entered the folder yet: repeat until no new process
    // appears.
    let mut stopped = 0;
    loop {
        let processes = processes_in(&node.data_dir);
        processes.iter().for_each(|p| p.signal(Signal::STOP));
        if processes.len() == stopped {
            return Ok(());
        }
        stopped = processes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_begins_and_ends_its_fault() {
        for (word, fault) in StateFault::ALL {
            assert_eq!(word.parse::<Fault>().unwrap(), Fault::State(*fault));
            assert_eq!(format!("end-{word}").parse::<Fault>().unwrap(), Fault::EndState(*fault));
            assert_eq!(Fault::State(*fault).end(), Fault::EndState(*fault));
        }
        assert!("end-kill".parse::<Fault>().is_err());
    }
}
