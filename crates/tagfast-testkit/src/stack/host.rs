//! The machine: users, processes identified beyond their pid, and programs started as a
//! different user.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// A process, distinguishable from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Start time, in clock ticks since boot.
    pub started: u64,
}

impl Process {
    /// The running process with this pid; `None` when there is none.
    pub fn of(pid: u32) -> Option<Self> {
        let (state, started) = stat(pid)?;
        (state != 'Z' && state != 'X').then_some(Self { pid, started })
    }

    /// Whether this very process is still running.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    fn is_postgres(self) -> bool {
        std::fs::read_link(format!("/proc/{}/exe", self.pid))
            .is_ok_and(|exe| exe.ends_with("postgres"))
    }

    /// Sends a signal, if this very process is still running.
    pub fn signal(self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            // The process may have ended since.
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills the process and waits until it has ended, so that what is started next in its place
    /// does not meet it.
    ///
    /// # Errors
    /// It has not ended after 10 s.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::KILL);
        wait_until("the killed process to end", Duration::from_secs(10), || {
            if self.is_alive() { bail!("process {} is running", self.pid) } else { Ok(()) }
        })
    }
}

/// State (one character) and start time of a process. The second field, its name, may contain
/// blanks and parentheses.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = text.get(text.rfind(')')? + 2..)?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The processes whose working directory is `dir` or below it.
pub fn processes_in(dir: &Path) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
        })
        .filter_map(Process::of)
        .collect()
}

/// The processes whose working directory or `HOME` is in `dir`: some servers change their working
/// directory.
pub fn processes_of(dir: &Path) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let home = format!("HOME={}/", dir.display()).into_bytes();
    let ours = |pid: &u32| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
            || std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|all| all.split(|b| *b == 0).any(|variable| variable.starts_with(&home)))
    };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(ours).filter_map(Process::of).collect()
}

/// Ends every process of `dir`, also frozen ones. PostgreSQL gets SIGQUIT first: killed, it would
/// leave its shared memory behind.
pub fn end_all_of(dir: &Path) -> Result<()> {
    let (polite, end) =
        (Instant::now() + Duration::from_secs(3), Instant::now() + Duration::from_secs(10));
    loop {
        let left = processes_of(dir);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{} processes of {} do not end", left.len(), dir.display());
        }
        for process in left {
            if Instant::now() < polite && process.is_postgres() {
                process.signal(Signal::QUIT);
                process.signal(Signal::CONT);
            } else {
                process.signal(Signal::KILL);
            }
        }
        sleep_ms(50);
    }
}

/// Kills every process that works in `dir`, as a crash of the machine would.
pub fn kill_all_in(dir: &Path) -> Result<()> {
    wait_until("the processes to end", Duration::from_secs(10), || {
        let left = processes_in(dir);
        left.iter().for_each(|p| p.signal(Signal::KILL));
        if left.is_empty() {
            Ok(())
        } else {
            bail!("{} processes run in {}", left.len(), dir.display())
        }
    })
}

/// The account that servers run as; they refuse to run as root.
#[derive(Debug, Clone, Copy)]
pub struct RunAs {
    uid: u32,
    gid: u32,
}

impl RunAs {
    /// `postgres` when this process is root, else the current user.
    pub fn for_servers() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            });
        }
        let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let line = users.lines().find(|line| line.starts_with("postgres:"));
        let fields: Vec<&str> = line.map(|l| l.split(':').collect()).unwrap_or_default();
        match (
            fields.get(2).and_then(|n| n.parse().ok()),
            fields.get(3).and_then(|n| n.parse().ok()),
        ) {
            (Some(uid), Some(gid)) => Ok(Self { uid, gid }),
            _ => bail!("there is no user `postgres`; install the package postgresql-15"),
        }
    }

    /// Makes a folder that only this account can access.
    pub fn make_dir(self, path: &Path) -> Result<()> {
        std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        self.own(path)
    }

    /// Writes a file that only this account can access.
    pub fn write(self, path: &Path, text: &str) -> Result<()> {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        self.own(path)
    }

    fn own(self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("cannot give {} away", path.display()))
    }

    /// A command that runs as this account.
    pub fn command(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        if rustix::process::geteuid().is_root() {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Starts a server in its folder and its own process group, with its output in `dir/NAME.log`.
    /// With a network namespace the whole process runs in it.
    pub fn start(
        self,
        name: &str,
        dir: &Path,
        netns: Option<&str>,
        program: &Path,
        args: &[String],
    ) -> Result<Process> {
        // For [`RunAs::restart`].
        let again = serde_json::to_string(&StartCommand {
            program: program.to_owned(),
            args: args.to_vec(),
        })?;
        self.write(&dir.join(format!("{name}.start.json")), &again)?;
        let log = dir.join(format!("{name}.log"));
        let open = || File::options().create(true).append(true).open(&log);
        let output = open().with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = match netns {
            None => self.command(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, "setpriv", "--clear-groups"]);
                command
                    .args([format!("--reuid={}", self.uid), format!("--regid={}", self.gid)])
                    .arg(program);
                command
            }
        };
        command
            .args(args)
            .current_dir(dir)
            .env("HOME", dir)
            .env("LC_ALL", "C.UTF-8")
            .process_group(0);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let pid = child.id();
        // Without a `wait`, an ended child would stay a zombie of this process.
        std::thread::Builder::new().name(format!("reap-{name}")).spawn(move || child.wait())?;
        Process::of(pid).with_context(|| format!("{name} ended at once; see {}", log.display()))
    }
}

/// How a server was started.
#[derive(serde::Serialize, serde::Deserialize)]
struct StartCommand {
    program: PathBuf,
    args: Vec<String>,
}

impl RunAs {
    /// Starts a server with the command that it was started with before.
    pub fn restart(self, name: &str, dir: &Path, netns: Option<&str>) -> Result<Process> {
        let file = dir.join(format!("{name}.start.json"));
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("{name} was never started"))?;
        let StartCommand { program, args } = serde_json::from_str(&text)?;
        self.start(name, dir, netns, &program, &args)
    }
}

/// Polls until `poll` succeeds.
///
/// # Errors
/// The last error of `poll` once the timeout has passed.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut poll: impl FnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + timeout;
    loop {
        match poll() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > end => {
                return Err(
                    error.context(format!("{what} did not happen within {} s", timeout.as_secs()))
                );
            }
            Err(_) => sleep_ms(50),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "between two polls of a server that starts or ends")]
pub(super) fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Runs a command to its end and returns its output; the end of its error output is part of the
/// error.
pub fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = stderr.lines().rev().take(15).collect();
        bail!(
            "{name} failed ({}): {}",
            output.status,
            last.into_iter().rev().collect::<Vec<_>>().join("\n")
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Finds a program on the path or in Debian's folders for administrators.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(PathBuf::from));
    folders.into_iter().map(|folder| folder.join(name)).find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_distinguished_from_a_later_one_with_its_pid() {
        let me = Process::of(std::process::id()).expect("this process runs");
        assert!(me.is_alive());
        assert!(!Process { started: me.started + 1, ..me }.is_alive());
        let mut child = Command::new("true").spawn().expect("starts");
        let pid = child.id();
        crate::wait_for_condition("it ends", Duration::from_secs(5), || match Process::of(pid) {
            None => Ok(()),
            Some(process) => Err(format!("{process:?}")),
        });
        child.wait().expect("collected");
    }
}
