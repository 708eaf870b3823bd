//! Faults inside PostgreSQL: a stream that stands still, a replay that waits, writes that are
//! refused, a password that is another one.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::change::Change;
use super::host::{Process, processes_in, run, wait_until};
use super::info::NodeInfo;
use super::install::POSTGRES_BIN;
use super::patroni;
use super::running::Stack;
use super::secret::{random_word, write_secret};

/// A fault inside PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostgresFault {
    /// SIGSTOP to the walreceiver: the replica answers and receives nothing. Target: a node, or a
    /// cluster for all its replicas.
    StopWalReceiver,
    /// Replay is paused while the stream goes on. Target as above.
    PauseReplay,
    /// Replay waits three minutes behind each commit. Target as above.
    DelayReplay,
    /// `default_transaction_read_only` is on. Target: a node, or a cluster for its primary.
    ReadOnly,
    /// The tables of the service are locked exclusively. Target as above.
    LockTables,
    /// The service's role has a different password on every cluster, and its connections are
    /// ended; the end writes the new one into the password file. Target: `postgres`.
    RotatePassword,
}

/// How long a node may take to follow again.
const HEAL_TIMEOUT: Duration = Duration::from_secs(60);
/// The file of a data folder that Patroni includes in PostgreSQL's configuration and leaves alone.
const INCLUDED_CONFIG_FILE: &str = "postgresql.base.conf";
/// The setting that lets replay wait behind each commit.
const APPLY_DELAY_SETTING: &str = "recovery_min_apply_delay";
/// How long the locker of [`lock_tables`] holds its locks when they are not ended, in seconds.
const LOCK_SECONDS_MAX: u32 = 600;
/// `application_name` of the session that holds the locks.
const LOCKER: &str = "stack-lock-tables";

impl Stack {
    /// Runs SQL as the superuser in the service's database of a node, not through the proxy;
    /// returns the rows without alignment.
    ///
    /// # Errors
    /// The node does not answer, or refuses the statement.
    pub fn sql(&self, node: &NodeInfo, query: &str) -> Result<String> {
        let mut command = self.psql(node, "stack-sql")?;
        Ok(run(command.args(["-c", query]))?.trim().to_owned())
    }

    /// A command that receives a node's log into a folder, as an archiver does: it streams, and is
    /// no replica.
    ///
    /// # Errors
    /// The node's configuration cannot be read.
    pub fn log_receiver(&self, node: &NodeInfo, into: &Path) -> Result<std::process::Command> {
        let mut command = self.client("pg_receivewal", node, "pg_receivewal")?;
        command.args(["--synchronous", "--no-loop", "-D"]).arg(into);
        Ok(command)
    }

    fn psql(&self, node: &NodeInfo, application: &str) -> Result<std::process::Command> {
        let mut command = self.client("psql", node, application)?;
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &self.info().database.name]);
        Ok(command)
    }

    /// A client program of PostgreSQL that connects to a node as the superuser.
    fn client(
        &self,
        program: &str,
        node: &NodeInfo,
        application: &str,
    ) -> Result<std::process::Command> {
        let dir = node.data_dir.parent().context("the node has no folder")?;
        let config = std::fs::read_to_string(dir.join("patroni.json"))?;
        let config: serde_json::Value = serde_json::from_str(&config)?;
        let superuser = &config["postgresql"]["authentication"]["superuser"];
        let word = |name: &str| superuser[name].as_str().context("patroni.json has no superuser");
        let mut command = std::process::Command::new(Path::new(POSTGRES_BIN).join(program));
        command
            .env("PGPASSWORD", word("password")?)
            .env("PGOPTIONS", "-c default_transaction_read_only=off")
            .env("PGCONNECT_TIMEOUT", "5")
            .env("PGAPPNAME", application)
            .args(["-U", word("username")?, "-h"])
            .arg(dir)
            .args(["-p", &node.direct_postgres.port().to_string()]);
        Ok(command)
    }

    /// The replicas of a cluster, according to Patroni.
    pub fn replicas(&self, cluster: &str) -> Result<Vec<NodeInfo>> {
        let primary = self.primary(cluster)?.name;
        let nodes = self.info().cluster(cluster).into_iter().flat_map(|info| &info.nodes);
        let replicas: Vec<NodeInfo> = nodes.filter(|n| n.name != primary).cloned().collect();
        ensure!(!replicas.is_empty(), "{cluster} has no replica");
        Ok(replicas)
    }
}

/// Begins or ends a fault of a node, of the nodes of a cluster, or of all clusters.
pub(super) fn change(
    stack: &Stack,
    fault: PostgresFault,
    change: Change,
    target: &str,
) -> Result<()> {
    let one = || match stack.info().node(target) {
        Some(node) => Ok(node.clone()),
        None => stack.primary(target),
    };
    let replicas = || match stack.info().node(target) {
        Some(node) => Ok(vec![node.clone()]),
        None => stack.replicas(target),
    };
    match fault {
        PostgresFault::StopWalReceiver => {
            replicas()?.iter().try_for_each(|node| walreceiver(stack, node, change))
        }
        PostgresFault::PauseReplay => pause_replay(stack, &replicas()?, change),
        PostgresFault::DelayReplay => {
            replicas()?.iter().try_for_each(|node| apply_delay(stack, node, change))
        }
        PostgresFault::ReadOnly => read_only(stack, &one()?, change),
        PostgresFault::LockTables => lock_tables(stack, &one()?, change),
        PostgresFault::RotatePassword => {
            ensure!(target == "postgres", "{fault:?} is a fault of postgres, not of {target}");
            password(stack, change)
        }
    }
}

/// Pauses the replay of nodes of one cluster while its Patroni is in maintenance mode: otherwise
/// it resumes replay within a second.
fn pause_replay(stack: &Stack, nodes: &[NodeInfo], change: Change) -> Result<()> {
    let one = nodes.first().context("there is no node")?;
    let cluster = stack.info().clusters.iter().find(|c| c.nodes.iter().any(|n| n.name == one.name));
    let all = &cluster.context("the node has no cluster")?.nodes;
    if change == Change::Begin {
        patroni::set_maintenance(all, true)?;
    }
    nodes.iter().try_for_each(|node| replay(stack, node, change))?;
    if change == Change::End {
        patroni::set_maintenance(all, false)?;
    }
    Ok(())
}

/// Waits until a query of a node answers `t`.
fn wait_for(stack: &Stack, node: &NodeInfo, what: &str, query: &str) -> Result<()> {
    wait_until(&format!("{}: {what}", node.name), HEAL_TIMEOUT, || {
        let answer = stack.sql(node, query)?;
        if answer == "t" { Ok(()) } else { bail!("{query}: {answer:?}") }
    })
}

/// Stops the process that receives the stream. The primary ends its side after
/// `wal_sender_timeout`; the node does not notice.
fn walreceiver(stack: &Stack, node: &NodeInfo, change: Change) -> Result<()> {
    match change {
        Change::Begin => {
            let pid = stack.sql(node, "SELECT pid FROM pg_stat_wal_receiver")?;
            let pid = pid.parse().with_context(|| format!("{} receives no stream", node.name))?;
            let process = Process::of(pid).context("the walreceiver has ended")?;
            process.signal(Signal::STOP);
            Ok(())
        }
        Change::End => {
            processes_in(&node.data_dir).iter().for_each(|p| p.signal(Signal::CONT));
            wait_for_stream(stack, node)
        }
    }
}

/// Waits until a replica has replayed what the primary has at this moment.
fn wait_for_stream(stack: &Stack, node: &NodeInfo) -> Result<()> {
    let cluster =
        stack.info().clusters.iter().find(|c| c.nodes.iter().any(|n| n.name == node.name));
    let cluster = cluster.context("the node has no cluster")?.name.clone();
    let primary = stack.primary(&cluster)?;
    let position = stack.sql(&primary, "SELECT pg_current_wal_flush_lsn()")?;
    let caught_up = format!(
        "SELECT pg_last_wal_replay_lsn() >= '{position}' \
         AND EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')"
    );
    wait_for(stack, node, "it streams", &caught_up)
}

/// Pauses replay.
fn replay(stack: &Stack, node: &NodeInfo, change: Change) -> Result<()> {
    match change {
        Change::Begin => {
            stack.sql(node, "SELECT pg_wal_replay_pause()")?;
            // It is `pause requested` until a record arrives, which is not replayed.
            let paused = "SELECT pg_get_wal_replay_pause_state() <> 'not paused'";
            wait_for(stack, node, "replay pauses", paused)
        }
        Change::End => {
            stack.sql(node, "SELECT pg_wal_replay_resume()")?;
            wait_for_stream(stack, node)
        }
    }
}

/// Lets replay wait behind each commit.
///
/// The setting stands in the file that Patroni includes: what ALTER SYSTEM sets for recovery it
/// takes back as soon as it sees the file changed, in maintenance mode, too.
fn apply_delay(stack: &Stack, node: &NodeInfo, change: Change) -> Result<()> {
    let path = node.data_dir.join(INCLUDED_CONFIG_FILE);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let others = text.lines().filter(|line| !line.starts_with(APPLY_DELAY_SETTING));
    let delayed = format!("{APPLY_DELAY_SETTING} = '3min'");
    let own = (change == Change::Begin).then_some(delayed.as_str());
    let changed: String = others.chain(own).flat_map(|line| [line, "\n"]).collect();
    std::fs::write(&path, changed).with_context(|| format!("write {}", path.display()))?;
    stack.sql(node, "SELECT pg_reload_conf()")?;
    let shows =
        |value: &str| format!("SELECT current_setting('{APPLY_DELAY_SETTING}') = '{value}'");
    match change {
        Change::Begin => wait_for(stack, node, "replay is delayed", &shows("3min")),
        Change::End => {
            wait_for(stack, node, "replay is not delayed", &shows("0"))?;
            wait_for_stream(stack, node)
        }
    }
}

/// Makes every transaction read-only unless it says otherwise.
fn read_only(stack: &Stack, node: &NodeInfo, change: Change) -> Result<()> {
    let (statement, value) = match change {
        Change::Begin => ("ALTER SYSTEM SET default_transaction_read_only = on", "on"),
        Change::End => ("ALTER SYSTEM RESET default_transaction_read_only", "off"),
    };
    stack.sql(node, statement)?;
    stack.sql(node, "SELECT pg_reload_conf()")?;
    // The superuser's own sessions set it off: the file's value counts.
    let applied = format!(
        "SELECT count(*) {} FROM pg_file_settings \
         WHERE name = 'default_transaction_read_only' AND applied AND setting = 'on'",
        if value == "on" { "= 1" } else { "= 0" }
    );
    wait_for(stack, node, "the setting is read", &applied)
}

/// Locks every table of the service's schema, in a session of its own, until the end.
fn lock_tables(stack: &Stack, node: &NodeInfo, change: Change) -> Result<()> {
    let held = format!(
        "SELECT EXISTS (SELECT FROM pg_stat_activity \
         WHERE application_name = '{LOCKER}' AND wait_event = 'PgSleep')"
    );
    match change {
        Change::Begin => {
            let tables = stack.sql(
                node,
                "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') \
                 FROM pg_tables WHERE tableowner = 'tagfast'",
            )?;
            ensure!(!tables.is_empty(), "the service has no tables on {}", node.name);
            let mut locker = stack.psql(node, LOCKER)?;
            locker.args([
                "-c",
                &format!(
                    "BEGIN; LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE; \
                     SELECT pg_sleep({LOCK_SECONDS_MAX}); COMMIT"
                ),
            ]);
            locker.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
            let mut locker = locker.stderr(std::process::Stdio::null()).spawn()?;
            std::thread::Builder::new()
                .name("lock-tables".to_owned())
                .spawn(move || locker.wait())?;
            wait_for(stack, node, "the tables are locked", &held)
        }
        Change::End => {
            stack.sql(
                node,
                &format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE application_name = '{LOCKER}'"
                ),
            )?;
            wait_for(stack, node, "the locks are gone", &format!("SELECT NOT ({held})"))
        }
    }
}

/// Gives the service's role a new password on every cluster; the end writes it into the file that
/// the service reads.
fn password(stack: &Stack, change: Change) -> Result<()> {
    let info = stack.info();
    let new_password = info.base.join("rotated-password");
    match change {
        Change::Begin => {
            let password = random_word()?;
            write_secret(&new_password, &password)?;
            let role = &info.database.user;
            for cluster in &info.clusters {
                let primary = stack.primary(&cluster.name)?;
                stack.sql(&primary, &format!("ALTER ROLE {role} PASSWORD '{password}'"))?;
                let stored = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'");
                let verifier = stack.sql(&primary, &stored)?;
                for node in &cluster.nodes {
                    // A replica must have replayed it before its connections are made again.
                    let has_it = format!("SELECT ({stored}) = '{verifier}'");
                    wait_for(stack, node, "it has the new password", &has_it)?;
                    let end = format!(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                         WHERE usename = '{role}'"
                    );
                    stack.sql(node, &end)?;
                }
            }
            Ok(())
        }
        Change::End => {
            let password =
                std::fs::read_to_string(&new_password).context("the password was not rotated")?;
            write_secret(&info.database.password_file, &password)?;
            std::fs::remove_file(&new_password).context("the rotated password stays")
        }
    }
}
