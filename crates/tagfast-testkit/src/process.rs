//! The program as a child process: started on a free port, killed, frozen or stopped, and killed at
//! the latest when the test ends.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use crate::http::Client;
use crate::wait::wait_for_condition;

/// Timeout of a start or a stop. Generous, because tests share few CPU cores.
const START_STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// How to start a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    program: PathBuf,
    data_dir: PathBuf,
    args: Vec<OsString>,
    environment: Vec<(String, String)>,
    tmpfs: Option<(PathBuf, u64)>,
}

impl ServerOptions {
    /// `PROGRAM serve --listen 127.0.0.1:0 --data-dir DIR`, without any configuration from the
    /// environment of the test.
    pub fn new(program: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        let mut options = Self::other(program).arg("--data-dir").arg(&data_dir);
        options.args.insert(0, "serve".into());
        options.data_dir = data_dir;
        options
    }

    /// A different program that takes `--listen` and logs where it listens.
    pub fn other(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            data_dir: PathBuf::new(),
            args: ["--listen", "127.0.0.1:0"].map(Into::into).to_vec(),
            environment: Vec::new(),
            tmpfs: None,
        }
    }

    /// Turns the command of [`ServerOptions::other`] into `PROGRAM serve ...`: a server without a
    /// data directory.
    #[must_use]
    pub fn serve(mut self) -> Self {
        self.args.insert(0, "serve".into());
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it in its own mount namespace with a small file system of `bytes` at `mount_point`,
    /// which must exist. Needs root or user namespaces.
    #[must_use]
    pub fn on_small_disk(mut self, mount_point: impl Into<PathBuf>, bytes: u64) -> Self {
        self.tmpfs = Some((mount_point.into(), bytes));
        self
    }

    fn command(&self) -> Command {
        let mut command = match &self.tmpfs {
            None => Command::new(&self.program),
            Some((mount_point, bytes)) => {
                let mut command = Command::new("unshare");
                if !rustix::process::geteuid().is_root() {
                    command.args(["--user", "--map-root-user"]);
                }
                // `exec` keeps the process id, so that it is the server's in the end.
                let script = "mount -t tmpfs -o size=\"$1\" tmpfs \"$2\" && shift 2 && exec \"$@\"";
                command.args(["--mount", "sh", "-c", script, "sh"]);
                command.arg(bytes.to_string()).arg(mount_point).arg(&self.program);
                command
            }
        };
        for (name, _) in
            std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("TAGFAST_"))
        {
            command.env_remove(name);
        }
        command.args(&self.args);
        command.envs(self.environment.iter().map(|(n, v)| (n, v)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Starts the server and waits until it listens.
    ///
    /// # Panics
    /// The server ends before it listens; the message has its log.
    pub fn start(&self) -> ServerProcess {
        match self.try_start() {
            Ok(server) => server,
            Err((status, log)) => {
                panic!("the server ended with {status} before it listened:\n{log}")
            }
        }
    }

    /// Starts the server and waits until it listens.
    ///
    /// # Errors
    /// The server ended before it listened: its exit status and its log.
    ///
    /// # Panics
    /// The program cannot be started, or neither listens nor ends in time.
    pub fn try_start(&self) -> Result<ServerProcess, (ExitStatus, String)> {
        let mut child = match self.command().spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start {}: {error}", self.program.display()),
        };
        let log = Arc::new(Mutex::new(Vec::new()));
        let reader = child.stderr.take().map(|stderr| {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    log.lock().push(line);
                }
            })
        });
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = ServerProcess {
            child,
            address: unspecified,
            reader,
            log,
            data_dir: self.data_dir.clone(),
        };
        let address = wait_for_condition("listening", START_STOP_TIMEOUT, || {
            if let Some(address) = server.listening() {
                return Ok(Ok(address));
            }
            match server.child.try_wait() {
                Ok(Some(status)) => Ok(Err(status)),
                Ok(None) => Err(server.log()),
                Err(error) => Err(error.to_string()),
            }
        });
        match address {
            Ok(address) => {
                server.address = address;
                Ok(server)
            }
            Err(status) => {
                server.finish_log();
                Err((status, server.log()))
            }
        }
    }
}

/// A running server; dropping it kills it.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    address: SocketAddr,
    reader: Option<JoinHandle<()>>,
    log: Arc<Mutex<Vec<String>>>,
    data_dir: PathBuf,
}

impl ServerProcess {
    /// Address on which the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Base URL of the server.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A new client of the server.
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Process id of the server.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Data directory of the server, as a path in its mount namespace.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A path of the server's mount namespace, as the test sees it.
    pub fn inside(&self, path: &Path) -> PathBuf {
        let mut seen = PathBuf::from(format!("/proc/{}/root", self.pid()));
        seen.extend(path.components().skip(1));
        seen
    }

    /// Everything that the server has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().join("\n")
    }

    /// Waits until the server reports that it is ready.
    ///
    /// # Panics
    /// The server does not become ready in time.
    pub fn wait_until_ready(&self) {
        wait_for_condition("ready", START_STOP_TIMEOUT, || {
            match self.client().request("GET", "/readyz", &[], None) {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(error) => Err(format!("{error}; log:\n{}", self.log())),
            }
        });
    }

    /// Sends SIGKILL and waits until the process has ended.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Sends SIGTERM without waiting; see [`Self::wait`].
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGSTOP: the server keeps its connections and answers nothing.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Sends SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends SIGTERM and waits for a clean exit.
    ///
    /// # Panics
    /// The process does not end with status 0 in time.
    pub fn stop(&mut self) {
        self.terminate();
        let status = self.wait();
        assert!(status.success(), "the server stopped with {status}:\n{}", self.log());
    }

    /// Waits until the process has ended.
    ///
    /// # Panics
    /// The process does not end in time.
    pub fn wait(&mut self) -> ExitStatus {
        let status = wait_for_condition("the server's end", START_STOP_TIMEOUT, || {
            match self.child.try_wait() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err(self.log()),
                Err(error) => Err(error.to_string()),
            }
        });
        self.finish_log();
        status
    }

    fn signal(&self, signal: Signal) {
        // The process may have ended; then there is nothing to signal.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    fn finish_log(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    /// The address in the log line `listening on http://ADDRESS`, in text or JSON.
    fn listening(&self) -> Option<SocketAddr> {
        let log = self.log.lock();
        log.iter().find_map(|line| address_in(line))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.finish_log();
    }
}

fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("listening on http://")?;
    let end =
        rest.find(|c: char| c == '"' || c == '\u{1b}' || c.is_whitespace()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_text_and_json() {
        let expected = Some(SocketAddr::from(([127, 0, 0, 1], 7070)));
        assert_eq!(address_in("INFO listening on http://127.0.0.1:7070 version=0.1.0"), expected);
        assert_eq!(
            address_in("{\"message\":\"listening on http://127.0.0.1:7070\",\"v\":1}"),
            expected
        );
        assert_eq!(address_in("something else"), None);
    }

    #[test]
    fn a_program_that_ends_at_once_gives_its_status_and_log() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("program");
        std::fs::write(&script, "#!/bin/sh\necho \"no $1 today\" >&2\nexit 7\n").unwrap();
        let mut mode = std::fs::metadata(&script).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        let (status, log) = ServerOptions::new(&script, dir.path()).try_start().unwrap_err();
        assert_eq!((status.code(), log.as_str()), (Some(7), "no serve today"));
    }
}
