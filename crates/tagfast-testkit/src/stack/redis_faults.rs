//! Faults of what a Redis holds and whom it answers.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::change::Change;
use super::host::wait_until;
use super::info::StackInfo;
use super::running::Stack;

/// A fault of a Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisFault {
    /// FLUSHALL.
    Flush,
    /// Keeps a copy of the keys for [`RedisFault::Rewind`]; no fault by itself.
    Save,
    /// Killed, and started with the keys of the last copy.
    Rewind,
    /// The server requires a password and ends its connections.
    RequirePassword,
}

/// The password of [`RedisFault::RequirePassword`].
const PASSWORD: &str = "stack-password";
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends commands over one connection; each must be answered with `+...`, or with `:...` when it
/// counts something.
pub(super) fn commands(server: SocketAddr, commands: &[&str]) -> Result<()> {
    let stream = TcpStream::connect(server).context("Redis does not listen")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::new(stream);
    for command in commands {
        reader.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let mut answer = String::new();
        reader.read_line(&mut answer)?;
        ensure!(answer.starts_with(['+', ':']), "Redis answered {answer:?} to {command}");
    }
    Ok(())
}

pub(super) fn address(info: &StackInfo, target: &str) -> Result<SocketAddr> {
    let server = if target == "redis" { &info.redis } else { &info.state_redis };
    Ok(server.as_ref().with_context(|| format!("{target} is not part of this stack"))?.direct)
}

/// Begins or ends a fault of a Redis.
pub(super) fn change(
    stack: &mut Stack,
    fault: RedisFault,
    change: Change,
    target: &str,
) -> Result<()> {
    ensure!(target.ends_with("redis"), "{fault:?} is a fault of a Redis, not of {target}");
    let server = address(stack.info(), target)?;
    let dir = stack.info().base.join(target);
    let (dump, saved) = (dir.join("dump.rdb"), dir.join("saved.rdb"));
    match (fault, change) {
        (RedisFault::Flush, Change::Begin) => commands(server, &["FLUSHALL"]),
        (RedisFault::Save, Change::Begin) => {
            commands(server, &["SAVE"])?;
            // A server that is restarted otherwise comes back empty.
            std::fs::rename(&dump, &saved).context("cannot keep the copy")
        }
        (RedisFault::Rewind, Change::Begin) => {
            ensure!(saved.exists(), "{target} has no copy; make one with `save`");
            let process = stack.server_process(target)?;
            process.kill()?;
            std::fs::rename(&saved, &dump)?;
            stack.restart_server(process, target)?;
            // It has read its keys when it answers.
            wait_until("Redis's start", TIMEOUT, || commands(server, &["PING"]))?;
            std::fs::rename(&dump, &saved).context("cannot keep the copy")
        }
        (RedisFault::RequirePassword, Change::Begin) => commands(
            server,
            &[
                &format!("CONFIG SET requirepass {PASSWORD}"),
                "CLIENT KILL TYPE normal",
                "CLIENT KILL TYPE pubsub",
            ],
        ),
        (RedisFault::RequirePassword, Change::End) => {
            commands(server, &[&format!("AUTH {PASSWORD}"), "CONFIG SET requirepass \"\""])
        }
        // Its clients fill it again.
        (RedisFault::Flush | RedisFault::Save | RedisFault::Rewind, Change::End) => {
            commands(server, &["PING"])
        }
    }
}
