//! etcd: one member, or several with a raft between them; their disks.
//!
//! Several members in a stack with network namespaces have one each, and a disk each: an ext4 image
//! in a file. So a member can be cut off from the others while its clients reach it, and its disk
//! can stand still while it runs.
//!
//! How it fails: a member that does not come up is an error that says which. Disks are thawed
//! before a stack ends: a process that waits for a frozen one cannot be killed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::host::{Process, RunAs, find_program, run, wait_until};
use super::servers::http_ok;

/// Size of a member's disk; the file takes what is written. etcd allocates two segments of 64 MB.
const DISK_MIB: u64 = 512;
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(20);
/// A member's ports in a namespace of its own.
pub(super) const PORTS: [u16; 2] = [2379, 2380];

/// A member that is to be started.
pub(super) struct EtcdPlan {
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

/// The name of a member, and its target in faults.
pub(super) fn name(number: u8) -> String {
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
pub(super) fn disks_in(base: &Path) -> Vec<PathBuf> {
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
pub(super) fn freeze_disk(disk: &Path, freeze: bool) -> Result<()> {
    let change = if freeze { "--freeze" } else { "--unfreeze" };
    run(Command::new("fsfreeze").arg(change).arg(disk)).map(drop)
}
