//! etcd: one member, or several with a raft between them; their faults.
//!
//! Several members in a stack with network namespaces have one each, and a disk each: an ext4 image
//! in a file. So a member can be cut off from the others while its clients reach it, and its disk
//! can stand still while it runs.
//!
//! How it fails: a member that does not come up, or a fault that needs what the stack lacks, is an
//! error that says which. Disks are thawed before a stack ends: a process that waits for a frozen
//! one cannot be killed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::Value;

use super::fault::{Fault, link_mode};
use super::host::{Process, RunAs, find_program, run, wait_until};
use super::info::ServerInfo;
use super::netns;
use super::running::Stack;
use super::servers::http_ok;
use crate::http::Client;

/// Size of a member's disk; the file takes what is written. etcd allocates two segments of 64 MB.
const DISK_MIB: u64 = 512;
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// A member's ports in a namespace of its own.
const PORTS: [u16; 2] = [2379, 2380];

/// A member that is to be started.
pub(super) struct EtcdPlan {
    /// Its name, and its target in faults.
    pub(super) name: String,
    pub(super) client: SocketAddr,
    pub(super) peer: SocketAddr,
    /// `None`: it shares the host's network and disk.
    pub(super) netns: Option<String>,
}

impl EtcdPlan {
    /// A member in a network namespace of its own.
    pub(super) fn in_namespace(number: u8, (netns, ip): (String, std::net::IpAddr)) -> Self {
        let [client, peer] = PORTS.map(|port| SocketAddr::new(ip, port));
        Self { name: name(number), client, peer, netns: Some(netns) }
    }

    /// A member on the host.
    pub(super) fn on_host(number: u8, client: SocketAddr, peer: SocketAddr) -> Self {
        Self { name: name(number), client, peer, netns: None }
    }
}

fn name(number: u8) -> String {
    format!("etcd{number}")
}

/// Starts the members; ready when each answers `/health`, which needs a quorum.
pub(super) fn start(run_as: RunAs, base: &Path, plans: &[EtcdPlan]) -> Result<Vec<Process>> {
    let program = find_program("etcd").context("etcd is not installed")?;
    let members: Vec<String> =
        plans.iter().map(|plan| format!("{}=http://{}", plan.name, plan.peer)).collect();
    let mut processes = Vec::new();
    for plan in plans {
        let dir = base.join(&plan.name);
        run_as.make_dir(&dir)?;
        if plan.netns.is_some() {
            mount_disk(&dir)?;
            run_as.make_dir(&dir)?;
        }
        let (client, peer) = (format!("http://{}", plan.client), format!("http://{}", plan.peer));
        let args = [
            format!("--name={}", plan.name),
            "--data-dir=data".to_owned(),
            "--heartbeat-interval=100".to_owned(),
            "--election-timeout=1000".to_owned(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", members.join(",")),
        ];
        processes.push(run_as.start("etcd", &dir, plan.netns.as_deref(), &program, &args)?);
    }
    for plan in plans {
        wait_until("etcd's start", START_TIMEOUT, || http_ok(plan.client, "/health"))?;
    }
    Ok(processes)
}

/// Mounts a new disk over an empty folder.
fn mount_disk(dir: &Path) -> Result<()> {
    let image = dir.with_extension("img");
    let file = std::fs::File::create(&image)?;
    file.set_len(DISK_MIB << 20)?;
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
    run(Command::new("mount").args(["-o", "loop"]).args([&image, dir]))
        .context("the disk of an etcd member needs root and loop devices")
        .map(drop)
}

/// The disks that are mounted below a folder.
fn disks_in(base: &Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    points.filter(|point| point.starts_with(base)).collect()
}

/// Thaws every disk of a stack, so that its processes can end.
pub(super) fn thaw_disks(base: &Path) {
    for disk in disks_in(base) {
        // Most are not frozen.
        let _ = freeze_disk(&disk, false);
    }
}

/// Unmounts every disk of a stack whose processes have ended.
pub(super) fn unmount_disks(base: &Path) -> Result<()> {
    disks_in(base).iter().try_for_each(|disk| run(Command::new("umount").arg(disk)).map(drop))
}

/// Lets every write to a disk stand still, or go on.
fn freeze_disk(disk: &Path, freeze: bool) -> Result<()> {
    let change = if freeze { "--freeze" } else { "--unfreeze" };
    run(Command::new("fsfreeze").arg(change).arg(disk)).map(drop)
}

impl Stack {
    /// The places of the members that a target names: `etcd` for all, `etcd1` for one of them.
    fn etcd_members(&self, target: &str) -> Result<Vec<usize>> {
        let count = self.info.etcd.len();
        let places: Vec<usize> = match target.strip_prefix("etcd") {
            Some("") => (0..count).collect(),
            Some(number) => number.parse::<usize>().into_iter().filter(|n| *n < count).collect(),
            None => Vec::new(),
        };
        ensure!(!places.is_empty(), "{target} is not part of this stack");
        Ok(places)
    }

    /// Whether a target of a fault is etcd or a member of it.
    pub(super) fn is_etcd(target: &str) -> bool {
        target.strip_prefix("etcd").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
    }

    pub(super) fn fault_etcd(&mut self, fault: Fault, target: &str) -> Result<()> {
        for place in self.etcd_members(target)? {
            let (process, name) = (self.info.etcd[place].process(), name(place as u8));
            match fault {
                Fault::Kill => process.kill()?,
                Fault::Freeze => process.signal(Signal::STOP),
                Fault::Thaw => {
                    process.signal(Signal::CONT);
                    thaw_disks(&self.info.base.join(&name));
                }
                Fault::Restart => self.restart_etcd(place, process)?,
                Fault::FreezeDisk => {
                    let disks = disks_in(&self.info.base.join(&name));
                    let disk = disks.first().context("it has no disk of its own: --netns")?;
                    freeze_disk(disk, true)?;
                }
                Fault::CutPeers => {
                    self.set_peers(place, false);
                    ensure!(self.set_peers(place, true), "it has no network of its own: --netns");
                }
                Fault::Heal => {
                    self.set_peers(place, false);
                    self.control().set(&name, link_mode(fault))?;
                }
                Fault::Cut
                | Fault::Slow { .. }
                | Fault::Hang
                | Fault::Reset
                | Fault::Refuse
                | Fault::Garbage => self.control().set(&name, link_mode(fault))?,
                Fault::KillPatroni
                | Fault::KillNode
                | Fault::FreezePostgres
                | Fault::FreezePatroni
                | Fault::State(_)
                | Fault::EndState(_)
                | Fault::Switchover => bail!("this is no fault of etcd"),
            }
        }
        Ok(())
    }

    /// Lets packets between a member and the others vanish, or arrive again. False: not all could
    /// be changed, because there are none, or they had been.
    fn set_peers(&self, place: usize, is_cut: bool) -> bool {
        let members = &self.info.etcd;
        let peer = |member: &ServerInfo| SocketAddr::new(member.direct.ip(), PORTS[1]);
        let between = |from: &ServerInfo, to: &ServerInfo| {
            let namespace = from.netns.as_deref();
            namespace.is_some_and(|from| netns::set_unreachable(from, peer(to), is_cut).is_ok())
        };
        let member = &members[place];
        let others: Vec<_> = members.iter().filter(|other| other.pid != member.pid).collect();
        let changed: Vec<bool> = others
            .iter()
            .flat_map(|other| [between(member, other), between(other, member)])
            .collect();
        !changed.is_empty() && changed.iter().all(|is_changed| *is_changed)
    }

    fn restart_etcd(&mut self, place: usize, old: Process) -> Result<()> {
        let name = name(place as u8);
        ensure!(!old.is_alive(), "{name} is running");
        let netns = self.info.etcd[place].netns.clone();
        let dir = self.info.base.join(&name);
        let new = self.run_as.restart("etcd", &dir, netns.as_deref())?;
        let server = &mut self.info.etcd[place];
        (server.pid, server.started) = (new.pid, new.started);
        self.info.write(&self.dir)
    }

    /// The place of the member that leads etcd, as the member of the latest raft term says.
    ///
    /// # Errors
    /// No member says that one leads.
    pub fn etcd_leader(&self) -> Result<usize> {
        self.etcd_status().map(|(leader, _)| leader)
    }

    /// The place of the leader, and the ids of the members; `None`: it does not answer.
    fn etcd_status(&self) -> Result<(usize, Vec<Option<String>>)> {
        let status = |member: &ServerInfo| etcd_call(member, "/v3/maintenance/status", "{}").ok();
        let answers: Vec<Option<Value>> = self.info.etcd.iter().map(status).collect();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let term = |answer: &&Value| text(&answer["raftTerm"])?.parse::<u64>().ok();
        let newest = answers.iter().flatten().max_by_key(term).context("no member answers")?;
        let leader = text(&newest["leader"]).context("etcd has no leader")?;
        let id = |answer: Option<Value>| text(&answer?["header"]["member_id"]);
        let ids: Vec<Option<String>> = answers.into_iter().map(id).collect();
        let place = ids.iter().position(|id| id.as_ref() == Some(&leader));
        Ok((place.context("etcd has no leader that answers")?, ids))
    }

    /// Makes a member the leader of etcd; returns when it is.
    ///
    /// # Errors
    /// It does not become the leader.
    pub fn lead_etcd(&self, place: usize) -> Result<()> {
        wait_until("etcd's leadership to move", START_TIMEOUT, || {
            let (leader, ids) = self.etcd_status()?;
            if leader == place {
                return Ok(());
            }
            let id = ids.get(place).and_then(Option::as_ref).context("it does not answer")?;
            let body = serde_json::json!({"targetID": id}).to_string();
            etcd_call(&self.info.etcd[leader], "/v3/maintenance/transfer-leadership", &body)?;
            bail!("it was asked")
        })
    }

    /// Deletes a key in etcd, as it ends with its lease; whether it was there.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn delete_etcd_key(&self, key: &str) -> Result<bool> {
        let server = self.info.etcd.first().context("etcd is not part of this stack")?;
        let body = serde_json::json!({"key": STANDARD.encode(key)}).to_string();
        let answer = etcd_call(server, "/v3/kv/deleterange", &body)?;
        Ok(answer["deleted"].as_str() == Some("1"))
    }
}

fn etcd_call(member: &ServerInfo, path: &str, body: &str) -> Result<Value> {
    let mut client = Client::new(member.direct).with_timeout(Duration::from_secs(2));
    let answer = client.request("POST", path, &[], Some(body))?;
    ensure!(answer.status == 200, "etcd answered {} to {path}: {}", answer.status, answer.text());
    Ok(answer.json())
}
