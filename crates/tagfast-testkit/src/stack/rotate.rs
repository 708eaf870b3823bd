//! The change of a password at its server.
//!
//! How it fails: a change that a server refuses is an error with the server's words.

use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::auth::{AuthInfo, ROOT, Secured, USER};
use super::gate;
use super::host::{find_program, run};
use super::install::POSTGRES_BIN;
use super::running::Stack;
use crate::http::Client;

impl Stack {
    /// Changes the service's password at a server; the file stays as it is. `old` is the one that
    /// the server knows.
    pub fn change_password(&self, secured: Secured, old: &str, new: &str) -> Result<()> {
        match secured {
            Secured::Postgres => self.change_postgres_password(old, new),
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

    fn change_postgres_password(&self, old: &str, new: &str) -> Result<()> {
        for cluster in &self.info.clusters {
            let node = self.primary(&cluster.name)?.direct_postgres;
            let database = &self.info.database;
            run(Command::new(format!("{POSTGRES_BIN}/psql"))
                .env("PGPASSWORD", old)
                .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", &database.user])
                .args(["-h", &node.ip().to_string(), "-p", &node.port().to_string()])
                .args(["-d", &database.name, "-c"])
                .arg(format!("ALTER ROLE {} PASSWORD '{new}'", database.user)))?;
        }
        Ok(())
    }

    fn change_etcd_password(&self, new: &str) -> Result<()> {
        let auth = self.auth()?;
        let etcd = self.info.etcd.first().context("no etcd runs")?.direct;
        let mut client = Client::new(etcd).with_timeout(Duration::from_secs(5));
        let body = json!({"name": ROOT, "password": auth.etcd_root}).to_string();
        let answer = client.request("POST", "/v3/auth/authenticate", &[], Some(&body))?;
        let answer = answer.json();
        let token = answer["token"].as_str().with_context(|| format!("no token: {answer}"))?;
        let body = json!({"name": USER, "password": new}).to_string();
        let token = [("authorization", token)];
        let answer = client.request("POST", "/v3/auth/user/changepw", &token, Some(&body))?;
        if answer.status == 200 { Ok(()) } else { bail!("etcd refused: {}", answer.text()) }
    }

    fn change_redis_password(&self, secured: Secured, old: &str, new: &str) -> Result<()> {
        let server =
            if secured == Secured::Redis { &self.info.redis } else { &self.info.state_redis };
        let at = server.as_ref().context("no Redis runs")?.direct;
        let mut stream = TcpStream::connect(at)?;
        let mut answers = BufReader::new(stream.try_clone()?);
        for words in [&["AUTH", old][..], &["CONFIG", "SET", "requirepass", new]] {
            let mut text = format!("*{}\r\n", words.len());
            words.iter().for_each(|w| text.push_str(&format!("${}\r\n{w}\r\n", w.len())));
            stream.write_all(text.as_bytes())?;
            let mut answer = String::new();
            answers.read_line(&mut answer)?;
            if !answer.starts_with("+OK") {
                bail!("Redis answered {answer:?} to {}", words[0]);
            }
        }
        Ok(())
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
