//! Redis servers for one test: single servers, and a primary with a replica and the Sentinel that
//! watches both.
//!
//! A server keeps its folder and its port: it can be killed, given a different `dump.rdb` and
//! started again. It ends with the test, also when it is frozen.
//!
//! How it fails: a server that does not come up, or refuses a command, fails the test with its last
//! answer.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::stack::ports::free_ports;
use crate::wait::wait_for_condition;

/// Timeout of a change of state. Generous, because tests share few CPU cores.
const STATE_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of one command.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(500);
/// Name under which the Sentinel knows the primary.
const PRIMARY_NAME: &str = "main";

/// A local address on which nothing listens.
///
/// # Panics
/// All ports are taken.
pub fn free_address() -> SocketAddr {
    free_ports(IpAddr::V4(Ipv4Addr::LOCALHOST), 1).expect("a free port")[0]
}

/// Sends a command to a Redis or a Sentinel. A list is returned as one item per line, nil as an
/// empty text.
///
/// # Errors
/// The server does not answer, or answers with an error.
pub fn query(at: SocketAddr, command: &[&str]) -> Result<String, String> {
    let send = || -> std::io::Result<Result<String, String>> {
        let mut stream = TcpStream::connect_timeout(&at, COMMAND_TIMEOUT)?;
        stream.set_read_timeout(Some(COMMAND_TIMEOUT))?;
        let mut words = format!("*{}\r\n", command.len());
        command.iter().for_each(|word| words.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        stream.write_all(words.as_bytes())?;
        parse_answer(&mut BufReader::new(stream))
    };
    send().map_err(|error| format!("{at}: {error}"))?
}

/// Parses one answer of the Redis protocol.
fn parse_answer(from: &mut impl BufRead) -> std::io::Result<Result<String, String>> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let line = line.trim_end();
    let Some((kind, rest)) = line.split_at_checked(1) else {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    };
    let count =
        || rest.parse::<i64>().map_err(|_| std::io::Error::other(format!("not an answer: {line}")));
    match kind {
        "-" => Ok(Err(rest.to_owned())),
        "$" => {
            let Ok(length) = usize::try_from(count()?) else { return Ok(Ok(String::new())) };
            let mut bytes = vec![0; length + 2];
            from.read_exact(&mut bytes)?;
            bytes.truncate(length);
            Ok(Ok(String::from_utf8_lossy(&bytes).into_owned()))
        }
        "*" => {
            let mut items = Vec::new();
            for _ in 0..count()? {
                match parse_answer(from)? {
                    Ok(item) => items.push(item),
                    Err(error) => return Ok(Err(error)),
                }
            }
            Ok(Ok(items.join("\n")))
        }
        _ => Ok(Ok(rest.to_owned())),
    }
}

/// A Redis server or a Sentinel. Dropping it kills it.
#[derive(Debug)]
pub struct RedisServer {
    home: PathBuf,
    address: SocketAddr,
    args: Vec<String>,
    child: Child,
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl RedisServer {
    /// Starts a server that keeps its files in `home` and saves them only on command.
    ///
    /// # Panics
    /// The server does not answer.
    pub fn start(home: impl Into<PathBuf>, args: &[&str]) -> Self {
        let (home, address) = (home.into(), free_address());
        std::fs::create_dir_all(&home).expect("a folder");
        let mut all: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        all.extend(
            ["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""]
                .map(str::to_owned),
        );
        let child = Self::spawn(&home, &all);
        let server = Self { home, address, args: all, child };
        server.wait_until_it_answers();
        server
    }

    fn spawn(home: &Path, args: &[String]) -> Child {
        let mut command = Command::new("redis-server");
        command.args(args).current_dir(home).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().expect("redis-server is installed")
    }

    fn wait_until_it_answers(&self) {
        wait_for_condition("the server answers", STATE_TIMEOUT, || self.query(&["PING"]));
    }

    /// Address on which the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of this server alone.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Sends a command; see [`query`].
    ///
    /// # Errors
    /// As [`query`].
    pub fn query(&self, command: &[&str]) -> Result<String, String> {
        query(self.address, command)
    }

    /// Executes a command.
    ///
    /// # Panics
    /// The server refuses it or does not answer.
    pub fn command(&self, command: &[&str]) -> String {
        self.query(command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Whether the server reports that it is a replica.
    pub fn is_replica(&self) -> Result<bool, String> {
        Ok(self.query(&["INFO", "replication"])?.contains("role:slave"))
    }

    fn offset(&self, name: &str) -> Result<String, String> {
        let info = self.query(&["INFO", "replication"])?;
        let value = info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
        value.map(str::to_owned).ok_or(info.clone())
    }

    /// `run_id` of the server process.
    ///
    /// # Panics
    /// The server does not answer.
    pub fn run_id(&self) -> String {
        let info = self.command(&["INFO", "server"]);
        let value = info.lines().find_map(|line| line.trim().strip_prefix("run_id:"));
        value.expect("a run_id").to_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a number");
        kill_process(pid, signal).expect("it runs");
    }

    /// Freezes the process with SIGSTOP.
    ///
    /// # Panics
    /// The process has ended.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Resumes the process with SIGCONT.
    ///
    /// # Panics
    /// The process has ended.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the process, which may be frozen or have ended.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Restarts the server after [`RedisServer::kill`] with the same folder, port and `dump.rdb`.
    ///
    /// # Panics
    /// The server does not answer.
    pub fn restart(&mut self) {
        self.child = Self::spawn(&self.home, &self.args);
        self.wait_until_it_answers();
    }

    fn dump(&self) -> PathBuf {
        self.home.join("dump.rdb")
    }

    /// Saves and returns a copy of the data.
    ///
    /// # Panics
    /// The server cannot save.
    pub fn copy(&self) -> Vec<u8> {
        self.command(&["SAVE"]);
        std::fs::read(self.dump()).expect("a copy")
    }

    /// Kills the server and restarts it with a copy of earlier data.
    ///
    /// # Panics
    /// The server does not answer.
    pub fn restore(&mut self, copy: &[u8]) {
        self.kill();
        std::fs::write(self.dump(), copy).expect("written");
        self.restart();
    }
}

/// A primary, its replica, and a Sentinel that promotes the replica half a second after the primary
/// stopped answering.
#[derive(Debug)]
pub struct SentinelSetup {
    /// The initial primary.
    pub primary: RedisServer,
    /// The initial replica.
    pub replica: RedisServer,
    sentinel: RedisServer,
    _dir: tempfile::TempDir,
}

impl SentinelSetup {
    /// Starts the servers; `args` are for primary and replica, for example `--min-replicas-to-write
    /// 1`.
    ///
    /// # Panics
    /// The servers do not find each other.
    pub fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        // Do not wait for further replicas.
        let args = [&["--repl-diskless-sync-delay", "0"], args].concat();
        let primary = RedisServer::start(dir.path().join("primary"), &args);
        let of = format!("127.0.0.1 {}", primary.address.port());
        let replica = RedisServer::start(
            dir.path().join("replica"),
            &[&["--replicaof", &of], args.as_slice()].concat(),
        );
        wait_for_condition("the replica follows", STATE_TIMEOUT, || {
            let info = primary.query(&["INFO", "replication"])?;
            if info.contains("state=online") { Ok(()) } else { Err(info) }
        });
        let file = dir.path().join("sentinel.conf");
        let lines = format!(
            "sentinel monitor {PRIMARY_NAME} {of} 1\nsentinel down-after-milliseconds {PRIMARY_NAME} 500\n\
             sentinel failover-timeout {PRIMARY_NAME} 2000\n"
        );
        std::fs::write(&file, lines).expect("a file");
        let file = file.to_str().expect("a path");
        let sentinel = RedisServer::start(dir.path().join("sentinel"), &[file, "--sentinel"]);
        wait_for_condition("Sentinel knows the replica", STATE_TIMEOUT, || {
            let known = sentinel.query(&["SENTINEL", "replicas", PRIMARY_NAME])?;
            if known.contains(&replica.address.to_string()) { Ok(()) } else { Err(known) }
        });
        Self { primary, replica, sentinel, _dir: dir }
    }

    /// URL with two Sentinels, of which the first one does not exist.
    pub fn url(&self) -> String {
        format!("redis+sentinel://{},{}/{PRIMARY_NAME}", free_address(), self.sentinel.address)
    }

    /// Waits until the replica has caught up, then freezes it: later writes do not reach it.
    ///
    /// # Panics
    /// The replica does not catch up.
    pub fn detach_replica(&self) {
        wait_for_condition("the replica catches up", STATE_TIMEOUT, || {
            let at = [
                self.primary.offset("master_repl_offset")?,
                self.replica.offset("slave_repl_offset")?,
            ];
            if at[0] == at[1] { Ok(()) } else { Err(format!("{at:?}")) }
        });
        self.replica.freeze();
        // Otherwise a frozen process would read what is in flight once it resumes.
        self.primary.command(&["CLIENT", "KILL", "TYPE", "replica"]);
    }

    /// Kills the primary and lets the replica, detached before, take over.
    ///
    /// # Panics
    /// The replica is not promoted.
    pub fn fail_over(&mut self) {
        self.primary.kill();
        self.replica.thaw();
        self.wait_promoted();
    }

    /// Waits until the replica is promoted.
    ///
    /// # Panics
    /// That does not happen in time.
    pub fn wait_promoted(&self) {
        wait_for_condition("the replica is promoted", STATE_TIMEOUT, || {
            if self.replica.is_replica()? { Err("it is a replica".to_owned()) } else { Ok(()) }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed() {
        let parse = |bytes: &str| parse_answer(&mut bytes.as_bytes()).map_err(|error| error.kind());
        assert_eq!(parse("+PONG\r\n"), Ok(Ok("PONG".to_owned())));
        assert_eq!(parse(":7\r\n"), Ok(Ok("7".to_owned())));
        assert_eq!(parse("$-1\r\n"), Ok(Ok(String::new())));
        assert_eq!(parse("*2\r\n$4\r\na\r\nb\r\n*1\r\n:1\r\n"), Ok(Ok("a\r\nb\n1".to_owned())));
        assert_eq!(parse("-ERR no\r\n"), Ok(Err("ERR no".to_owned())));
        assert_eq!(parse(""), Err(std::io::ErrorKind::UnexpectedEof));
        assert_eq!(parse("$4\r\na"), Err(std::io::ErrorKind::UnexpectedEof));
    }
}
