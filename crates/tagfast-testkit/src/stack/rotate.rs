//! The change of a password at its server.
//!
//! How it fails: a change that a server refuses is an error with the server's words.

use std::process::Command;

use anyhow::{Context, Result};

use super::auth::{AuthInfo, Secured, USER};
use super::host::{find_program, run};
use super::running::Stack;
use super::{etcd_auth, gate, redis_faults};

impl Stack {
    /// Changes the service's password at a server; the file stays as it is. `old` is the one that
    /// the server knows.
    pub fn change_password(&self, secured: Secured, old: &str, new: &str) -> Result<()> {
        match secured {
            Secured::Postgres => self.change_postgres_password(new),
            Secured::Etcd => self.change_etcd_password(new),
            Secured::Redis | Secured::StateRedis => self.change_redis_password(secured, old, new),
            Secured::Kafka => self.change_kafka_password(new),
            Secured::OpenSearch => {
                let gate = self.auth()?.gate.context("no OpenSearch runs")?;
                gate::change_password(gate, new)
            }
        }
    }

    fn auth(&self) -> Result<&AuthInfo> {
        self.info.auth.as_ref().context("the stack was started without authentication")
    }

    fn change_postgres_password(&self, new: &str) -> Result<()> {
        let role = &self.info.database.user;
        for cluster in &self.info.clusters {
            let primary = self.primary(&cluster.name)?;
            self.sql(&primary, &format!("ALTER ROLE {role} PASSWORD '{new}'"))?;
        }
        Ok(())
    }

    fn change_etcd_password(&self, new: &str) -> Result<()> {
        let etcd = self.info.etcd.first().context("no etcd runs")?.direct;
        etcd_auth::change_password(etcd, self.auth()?, USER, new)
    }

    fn change_redis_password(&self, secured: Secured, old: &str, new: &str) -> Result<()> {
        let target = if secured == Secured::Redis { "redis" } else { "state-redis" };
        let server = redis_faults::address(&self.info, target)?;
        let change = format!("CONFIG SET requirepass {new}");
        redis_faults::commands(server, &[&format!("AUTH {old}"), &change])
    }

    fn change_kafka_password(&self, new: &str) -> Result<()> {
        let auth = self.auth()?;
        let admin = auth.kafka_admin.context("no Kafka runs")?.to_string();
        let java = find_program("java").context("java is not installed")?;
        run(Command::new(java)
            .current_dir(&self.info.base)
            .args(["-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(format!("{}/*", auth.kafka_libs.display()))
            .args(["kafka.admin.ConfigCommand", "--bootstrap-server", &admin, "--alter"])
            .args(["--entity-type", "users", "--entity-name", USER, "--add-config"])
            .arg(format!("SCRAM-SHA-256=[password={new}]")))
        .map(drop)
    }
}
