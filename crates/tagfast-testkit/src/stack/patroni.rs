//! A PostgreSQL node: the configuration of its Patroni, its start, and Patroni's REST API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::host::{Process, RunAs, wait_until};
use super::info::NodeInfo;
use super::install::{POSTGRES_BIN, Tools};
use super::secret::random_word;
use crate::http::Client;

/// Passwords of a stack.
#[derive(Debug, Clone)]
pub(super) struct Passwords {
    superuser: String,
    pub(super) replication: String,
    rewind: String,
    pub(super) service: String,
    /// Half of the key that signs tokens.
    pub(super) signing: String,
    /// Of etcd's administrator.
    pub(super) etcd_root: String,
}

impl Passwords {
    /// Random passwords from the kernel.
    pub(super) fn random() -> Result<Self> {
        Ok(Self {
            superuser: random_word()?,
            replication: random_word()?,
            rewind: random_word()?,
            service: random_word()?,
            signing: random_word()?,
            etcd_root: random_word()?,
        })
    }
}

/// Inputs of a node's configuration.
pub(super) struct NodePlan<'a> {
    pub(super) scope: &'a str,
    pub(super) name: &'a str,
    /// Listen address and proxy address of PostgreSQL, then of the REST API.
    pub(super) postgres: (SocketAddr, SocketAddr),
    pub(super) rest: (SocketAddr, SocketAddr),
    pub(super) etcd: &'a [SocketAddr],
    /// User and password in etcd, which does not ask for them while it has no users.
    pub(super) etcd_login: (&'a str, &'a str),
    pub(super) shared_buffers: &'a str,
    pub(super) synchronous: bool,
    pub(super) passwords: &'a Passwords,
    /// Folder of the servers' certificate and key.
    pub(super) tls: &'a Path,
    /// Folder of the node; `data` in it is PostgreSQL's.
    pub(super) dir: &'a Path,
}

impl NodePlan<'_> {
    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Writes the files of the node.
    pub(super) fn write(&self, run_as: RunAs) -> Result<()> {
        run_as.make_dir(self.dir)?;
        run_as.write(&self.dir.join("init.sql"), &self.init_sql())?;
        let script = format!(
            "#!/bin/sh\nexec {POSTGRES_BIN}/psql -X -q -v ON_ERROR_STOP=1 -d \"$1\" -f {}/init.sql\n",
            self.dir.display()
        );
        run_as.write(&self.dir.join("init.sh"), &script)?;
        run_as.write(&self.dir.join("patroni.json"), &serde_json::to_string_pretty(&self.config())?)
    }

    fn init_sql(&self) -> String {
        let password = &self.passwords.service;
        // The service reads the fork of a timeline from its history file. Tests create their own
        // databases from the template.
        format!(
            "CREATE ROLE tagfast LOGIN CREATEDB PASSWORD '{password}';\nGRANT pg_monitor TO tagfast;\n\
             \\c template1\nGRANT EXECUTE ON FUNCTION pg_read_file(text) TO tagfast;\n\
             CREATE DATABASE tagfast OWNER tagfast;\n"
        )
    }

    fn config(&self) -> Value {
        let dir = self.dir.display().to_string();
        let login = |user: &str, password: &str| serde_json::json!({"username": user, "password": password});
        let (user, password) = self.etcd_login;
        let etcd = serde_json::json!({
            "hosts": self.etcd, "username": user, "password": password,
        });
        let parameters = serde_json::json!({
            "shared_buffers": self.shared_buffers, "max_connections": 100, "max_wal_senders": 6,
            "max_replication_slots": 6, "max_prepared_transactions": 8, "max_worker_processes": 4, "wal_keep_size": "64MB",
            "min_wal_size": "64MB", "max_wal_size": "1GB", "checkpoint_timeout": "15min",
            "wal_compression": "lz4", "wal_log_hints": "on", "hot_standby": "on",
            "autovacuum_max_workers": 1, "jit": "off", "password_encryption": "scram-sha-256",
            "wal_receiver_timeout": "3s", "wal_sender_timeout": "3s",
            "wal_receiver_status_interval": "100ms", "wal_retrieve_retry_interval": "200ms",
            "tcp_keepalives_idle": 1, "tcp_keepalives_interval": 1, "tcp_keepalives_count": 3,
            "tcp_user_timeout": "3s", "client_connection_check_interval": "1s",
            "ssl": "on", "ssl_cert_file": self.tls.join("server.pem"), "ssl_key_file": self.tls.join("server.key"),
        });
        serde_json::json!({
            "scope": self.scope,
            "name": self.name,
            "restapi": {"listen": self.rest.0.to_string(), "connect_address": self.rest.1.to_string()},
            "etcd3": etcd,
            "watchdog": {"mode": "off"},
            "bootstrap": {
                "dcs": {
                    "ttl": 20, "loop_wait": 1, "retry_timeout": 3, "maximum_lag_on_failover": 67_108_864,
                    "synchronous_mode": self.synchronous, "primary_start_timeout": 0, "failsafe_mode": true, "check_timeline": true,
                    "postgresql": {"use_pg_rewind": true, "use_slots": true, "parameters": parameters},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, {"auth-host": "scram-sha-256"},
                           {"auth-local": "scram-sha-256"}, "no-sync"],
                "post_init": format!("{dir}/init.sh"),
            },
            "postgresql": {
                "listen": self.postgres.0.to_string(),
                "connect_address": self.postgres.1.to_string(),
                "bin_dir": POSTGRES_BIN,
                "data_dir": self.data_dir(),
                "pgpass": format!("{dir}/pgpass"),
                // pg_rewind before PostgreSQL 16 fails on a primary that died before its first
                // checkpoint: its control file still has the timeline before.
                "remove_data_directory_on_rewind_failure": true,
                "remove_data_directory_on_diverged_timelines": true,
                "use_unix_socket": true,
                "use_unix_socket_repl": true,
                "parameters": {"unix_socket_directories": dir},
                "authentication": {
                    "superuser": login("postgres", &self.passwords.superuser),
                    "replication": login("replicator", &self.passwords.replication),
                    "rewind": login("rewinder", &self.passwords.rewind),
                },
                "basebackup": [{"checkpoint": "fast"}, "no-sync"],
                "pg_hba": ["local all all scram-sha-256", "local replication all scram-sha-256",
                           "host all all 0.0.0.0/0 scram-sha-256", "host replication replicator 0.0.0.0/0 scram-sha-256"],
            },
        })
    }
}

/// Starts a node's Patroni, which starts its PostgreSQL.
pub(super) fn start(
    tools: &Tools,
    run_as: RunAs,
    dir: &Path,
    netns: Option<&str>,
) -> Result<Process> {
    let config = dir.join("patroni.json").display().to_string();
    run_as.start("patroni", dir, netns, &tools.patroni(), &[config])
}

/// A member of a cluster, as Patroni's `/cluster` reports it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Member {
    /// Name of the node.
    pub name: String,
    /// `leader` or `replica`, in Patroni's words.
    pub role: String,
    /// `running`, `streaming`, ...
    pub state: String,
    /// Timeline of PostgreSQL; `None` when Patroni does not know it.
    pub timeline: Option<u64>,
    /// Replication lag in bytes; `None` for the primary or when unknown.
    pub lag: Option<u64>,
}

impl Member {
    /// Whether it is the running primary.
    pub fn is_primary(&self) -> bool {
        self.role == "leader" && self.state == "running"
    }
}

/// The members of a cluster, according to one Patroni.
pub fn members(rest: SocketAddr) -> Result<Vec<Member>> {
    let answer = get(rest, "/cluster")?;
    let list = answer["members"].as_array().context("/cluster has no members")?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    Ok(list
        .iter()
        .map(|m| Member {
            name: text(&m["name"]),
            role: text(&m["role"]),
            state: text(&m["state"]),
            timeline: m["timeline"].as_u64(),
            lag: m["lag"].as_u64(),
        })
        .collect())
}

fn get(rest: SocketAddr, path: &str) -> Result<Value> {
    let mut client = Client::new(rest).with_timeout(Duration::from_secs(2));
    let answer = client
        .request("GET", path, &[], None)
        .with_context(|| format!("Patroni at {rest} does not answer"))?;
    if answer.status >= 500 {
        bail!("Patroni at {rest} answered {} to {path}", answer.status);
    }
    Ok(answer.json())
}

/// Turns the maintenance mode of a cluster on or off; returns when every node has seen it.
pub(super) fn set_maintenance(nodes: &[NodeInfo], on: bool) -> Result<()> {
    let pause = if on { Value::Bool(true) } else { Value::Null };
    let body = serde_json::json!({"pause": pause}).to_string();
    wait_until("Patroni to take the maintenance mode", Duration::from_secs(30), || {
        for node in nodes {
            let mut client = Client::new(node.direct_patroni).with_timeout(Duration::from_secs(5));
            let sent = client.request("PATCH", "/config", &[], Some(&body));
            if sent.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
        }
        bail!("no Patroni took it")
    })?;
    for node in nodes {
        wait_until("Patroni to see the maintenance mode", Duration::from_secs(30), || {
            let seen = get(node.direct_patroni, "/patroni")?["pause"] == true;
            if seen == on { Ok(()) } else { bail!("{} has not seen it", node.name) }
        })?;
    }
    Ok(())
}

/// Has the Patroni of a replica copy the primary again, as `patronictl reinit` does; returns when
/// it has begun. Asked again meanwhile, it begins again.
///
/// # Errors
/// Patroni does not answer, or refuses.
pub fn reinitialize(node: &NodeInfo) -> Result<()> {
    let mut client = Client::new(node.direct_patroni).with_timeout(Duration::from_secs(30));
    let answer = client.request("POST", "/reinitialize", &[], Some("{\"force\": true}"))?;
    if answer.status == 200 { Ok(()) } else { bail!("Patroni refused: {}", answer.text()) }
}

/// Makes the primary's Patroni hand over; returns when it has.
pub(super) fn switchover(rest: SocketAddr, primary: &str) -> Result<()> {
    let body = serde_json::json!({"leader": primary}).to_string();
    let mut client = Client::new(rest).with_timeout(Duration::from_secs(60));
    let answer = client.request("POST", "/switchover", &[], Some(&body))?;
    if answer.status != 200 {
        bail!("the switchover was refused ({}): {}", answer.status, answer.text());
    }
    Ok(())
}
