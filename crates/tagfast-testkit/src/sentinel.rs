//! Redis servers of a test alone: single ones, and a primary with a replica and the Sentinel that
//! watches both.
//!
//! A server keeps its folder and its port: it can be killed, given another `dump.rdb` and started
//! again. It ends with the test, also when it is frozen.
//!
//! How it fails: a server that does not come up, or does not do as it is told, ends the test with
//! what it said last.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::stack::host::free_ports;
use crate::wait::wait_for_condition;

/// How long a server may take to do what it is told; generous, because tests share few processors.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one command may take.
const ANSWER: Duration = Duration::from_millis(500);
/// The name that the Sentinel knows its servers by.
const NAME: &str = "main";

/// A local address where nobody listens.
///
/// # Panics
/// When all ports are taken.
pub fn free_address() -> SocketAddr {
    free_ports(IpAddr::V4(Ipv4Addr::LOCALHOST), 1).expect("a free port")[0]
}

/// Asks a Redis or a Sentinel something. Lists are answered one item a line, and nothing as an
/// empty text.
pub fn ask(at: SocketAddr, command: &[&str]) -> Result<String, String> {
    let asked = || -> std::io::Result<Result<String, String>> {
        let mut stream = TcpStream::connect_timeout(&at, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut words = format!("*{}\r\n", command.len());
        command.iter().for_each(|word| words.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        stream.write_all(words.as_bytes())?;
        answer(&mut BufReader::new(stream))
    };
    asked().map_err(|error| format!("{at}: {error}"))?
}

/// Reads one answer of the Redis protocol.
fn answer(from: &mut impl BufRead) -> std::io::Result<Result<String, String>> {
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
                match answer(from)? {
                    Ok(item) => items.push(item),
                    Err(error) => return Ok(Err(error)),
                }
            }
            Ok(Ok(items.join("\n")))
        }
        _ => Ok(Ok(rest.to_owned())),
    }
}

/// A Redis server, or a Sentinel. Killed when it is dropped.
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
    /// Starts a server that keeps its files in `home` and saves nothing unless it is told to.
    ///
    /// # Panics
    /// When it does not answer.
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
        server.answers();
        server
    }

    fn spawn(home: &Path, args: &[String]) -> Child {
        let mut command = Command::new("redis-server");
        command.args(args).current_dir(home).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().expect("redis-server is installed")
    }

    fn answers(&self) {
        wait_for_condition("the server answers", PATIENCE, || self.ask(&["PING"]));
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of this server alone.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// As [`ask`].
    pub fn ask(&self, command: &[&str]) -> Result<String, String> {
        ask(self.address, command)
    }

    /// Tells it to do something.
    ///
    /// # Panics
    /// When it does not.
    pub fn tell(&self, command: &[&str]) -> String {
        self.ask(command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Whether it says that it is a replica.
    pub fn is_replica(&self) -> Result<bool, String> {
        Ok(self.ask(&["INFO", "replication"])?.contains("role:slave"))
    }

    fn offset(&self, name: &str) -> Result<String, String> {
        let info = self.ask(&["INFO", "replication"])?;
        let value = info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
        value.map(str::to_owned).ok_or(info.clone())
    }

    /// What tells this process from any other.
    ///
    /// # Panics
    /// When it does not say.
    pub fn run_id(&self) -> String {
        let info = self.tell(&["INFO", "server"]);
        let value = info.lines().find_map(|line| line.trim().strip_prefix("run_id:"));
        value.expect("a run_id").to_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a number");
        kill_process(pid, signal).expect("it runs");
    }

    /// Stops it from doing anything, also from saying that it does not.
    ///
    /// # Panics
    /// When it has ended.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// When it has ended.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it as a crash would; it may be frozen or have ended.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after a [`RedisServer::kill`], in the same place, with whatever `dump.rdb`
    /// is there.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn start_again(&mut self) {
        self.child = Self::spawn(&self.home, &self.args);
        self.answers();
    }

    fn dump(&self) -> PathBuf {
        self.home.join("dump.rdb")
    }

    /// A copy of what it holds now.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn copy(&self) -> Vec<u8> {
        self.tell(&["SAVE"]);
        std::fs::read(self.dump()).expect("a copy")
    }

    /// Kills it and starts it again with a copy.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn restore(&mut self, copy: &[u8]) {
        self.kill();
        std::fs::write(self.dump(), copy).expect("written");
        self.start_again();
    }
}

/// A primary, its replica, and a Sentinel that promotes the replica half a second after the primary
/// went silent.
#[derive(Debug)]
pub struct Watched {
    /// The primary at first.
    pub primary: RedisServer,
    /// The replica at first.
    pub replica: RedisServer,
    sentinel: RedisServer,
    _dir: tempfile::TempDir,
}

impl Watched {
    /// Starts them; both servers get `args`, for example `--min-replicas-to-write 1`.
    ///
    /// # Panics
    /// When they do not find each other.
    pub fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        // More replicas need not be waited for.
        let args = [&["--repl-diskless-sync-delay", "0"], args].concat();
        let primary = RedisServer::start(dir.path().join("primary"), &args);
        let of = format!("127.0.0.1 {}", primary.address.port());
        let replica = RedisServer::start(
            dir.path().join("replica"),
            &[&["--replicaof", &of], args.as_slice()].concat(),
        );
        wait_for_condition("the replica follows", PATIENCE, || {
            let info = primary.ask(&["INFO", "replication"])?;
            if info.contains("state=online") { Ok(()) } else { Err(info) }
        });
        let file = dir.path().join("sentinel.conf");
        let lines = format!(
            "sentinel monitor {NAME} {of} 1\nsentinel down-after-milliseconds {NAME} 500\n\
             sentinel failover-timeout {NAME} 2000\n"
        );
        std::fs::write(&file, lines).expect("a file");
        let file = file.to_str().expect("a path");
        let sentinel = RedisServer::start(dir.path().join("sentinel"), &[file, "--sentinel"]);
        wait_for_condition("Sentinel knows the replica", PATIENCE, || {
            let known = sentinel.ask(&["SENTINEL", "replicas", NAME])?;
            if known.contains(&replica.address.to_string()) { Ok(()) } else { Err(known) }
        });
        Self { primary, replica, sentinel, _dir: dir }
    }

    /// The URL by which the Sentinel is asked. The first of two Sentinels in it is not there.
    pub fn url(&self) -> String {
        format!("redis+sentinel://{},{}/{NAME}", free_address(), self.sentinel.address)
    }

    /// Waits until the replica has everything and lets go of it: it is frozen, and nothing that the
    /// primary does from now on reaches it.
    ///
    /// # Panics
    /// When they do not do as they are told.
    pub fn part(&self) {
        wait_for_condition("the replica has everything", PATIENCE, || {
            let at = [
                self.primary.offset("master_repl_offset")?,
                self.replica.offset("slave_repl_offset")?,
            ];
            if at[0] == at[1] { Ok(()) } else { Err(format!("{at:?}")) }
        });
        self.replica.freeze();
        // What is on its way to a frozen process would be read when it goes on.
        self.primary.tell(&["CLIENT", "KILL", "TYPE", "replica"]);
    }

    /// Kills the primary and lets the replica, parted from it before, take its place.
    ///
    /// # Panics
    /// When it is not promoted.
    pub fn lose(&mut self) {
        self.primary.kill();
        self.replica.thaw();
        self.promoted();
    }

    /// Waits until the replica is the primary.
    ///
    /// # Panics
    /// When that does not happen.
    pub fn promoted(&self) {
        wait_for_condition("the replica is promoted", PATIENCE, || {
            if self.replica.is_replica()? { Err("it is a replica".to_owned()) } else { Ok(()) }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let read = |bytes: &str| answer(&mut bytes.as_bytes()).map_err(|error| error.kind());
        assert_eq!(read("+PONG\r\n"), Ok(Ok("PONG".to_owned())));
        assert_eq!(read(":7\r\n"), Ok(Ok("7".to_owned())));
        assert_eq!(read("$-1\r\n"), Ok(Ok(String::new())));
        assert_eq!(read("*2\r\n$4\r\na\r\nb\r\n*1\r\n:1\r\n"), Ok(Ok("a\r\nb\n1".to_owned())));
        assert_eq!(read("-ERR no\r\n"), Ok(Err("ERR no".to_owned())));
        assert_eq!(read(""), Err(std::io::ErrorKind::UnexpectedEof));
        assert_eq!(read("$4\r\na"), Err(std::io::ErrorKind::UnexpectedEof));
    }
}
