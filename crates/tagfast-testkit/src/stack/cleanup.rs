//! The folder of a stack: making a unique one, and removing it with everything that runs there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::host::{self, Process, RunAs, wait_until};
use super::{etcd, netns};

/// Makes a folder with a unique name; returns the unique part of the name, and the folder.
pub(super) fn create_unique_dir(run_as: RunAs) -> Result<(String, PathBuf)> {
    loop {
        let tag = format!("{:x}", fastrand::u32(..));
        let base = PathBuf::from(format!("/var/tmp/tagfast-stack-{tag}"));
        match std::fs::create_dir(&base) {
            Ok(()) => {
                run_as.make_dir(&base)?;
                return Ok((tag, base));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make {}", base.display()));
            }
        }
    }
}

/// The unique part of the folder's name.
pub(super) fn tag_of(base: &Path) -> &str {
    base.file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.rsplit('-').next())
        .unwrap_or_default()
}

/// Ends all processes of a stack and removes its folder and network.
pub(super) fn remove(base: &Path, tag: &str) -> Result<()> {
    etcd::thaw_disks(base);
    host::end_all_of(base)?;
    etcd::unmount_disks(base)?;
    netns::remove(tag);
    // A process that has just ended may still write its last file.
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

/// Starts a watcher process that removes the stack once this process has ended: a test that is
/// killed cannot clean up.
pub(super) fn end_with_this_process(base: &Path, tag: &str) -> Result<()> {
    let me = Process::of(std::process::id()).context("this process has no entry in /proc")?;
    let script = format!(
        "while [ -d {base} ] && [ \"$(sed 's/.*) //' /proc/{pid}/stat 2>/dev/null | cut -d' ' -f20)\" = {started} ]; do \
           sleep 0.5; done; \
         [ -d {base} ] || exit 0; \
         disks() {{ cut -d' ' -f2 /proc/mounts | grep '^{base}/'; }}; \
         for d in $(disks); do fsfreeze -u $d; done 2>/dev/null; \
         n=0; while :; do left=; for p in /proc/[0-9]*; do \
           case \"$(readlink $p/cwd) $(tr '\\0' ' ' < $p/environ)\" in {base}*|*HOME={base}/*) left=1; \
             case \"$n $(readlink $p/exe)\" in \
               [0-9]\\ */postgres) kill -QUIT ${{p#/proc/}}; kill -CONT ${{p#/proc/}};; \
               *) kill -9 ${{p#/proc/}};; esac;; \
           esac; done 2>/dev/null; [ -z \"$left\" ] && break; n=$((n+1)); sleep 0.2; done; \
         for n in $(ip netns list 2>/dev/null | cut -d' ' -f1 | grep '^tf{tag}n'); do \
           ip link del v$n; ip netns del $n; done 2>/dev/null; \
         ip link del tf{tag} 2>/dev/null; for d in $(disks); do umount $d; done; rm -rf {base}",
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
