//! Connections: opened with a deadline, set up once, with every statement prepared.
//!
//! Each connection belongs to one task at a time (a lane, a query, a watcher), so there is no pool
//! to exhaust: what bounds the work is the queue or the limit in front of the task. A connection
//! that failed is thrown away, never repaired.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::options::{PostgresOptions, limit};
use crate::tls::TlsError;

/// Why a conversation with PostgreSQL ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PgError {
    #[error("PostgreSQL: {}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("{0} took longer than {1:?}")]
    Late(&'static str, Duration),
    #[error("the address `{0}` cannot be used")]
    Address(String),
}

fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({}){}", db.message(), db.code().code(), advice(db.code().code())),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// What to do about an error that only an operator can mend.
fn advice(code: &str) -> &'static str {
    match code {
        "28P01" | "28000" => "; look at store.user, store.password_file and pg_hba.conf",
        "3D000" => "; create the database named by store.database, owned by store.user",
        "42501" => {
            "; the role of store.user must own the database and have pg_monitor and EXECUTE on pg_read_file(text)"
        }
        "25006" => "; is default_transaction_read_only set for this database or role?",
        "53300" => {
            "; raise max_connections: docs/failover.md says how many each node of the service needs"
        }
        _ => "",
    }
}

impl PgError {
    /// The SQLSTATE, if PostgreSQL gave one.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Postgres(error) => error.code().map(tokio_postgres::error::SqlState::code),
            Self::Late(..) | Self::Address(_) => None,
        }
    }

    /// The server is fine, it has, or is getting, another role: look at the cluster again.
    pub(crate) fn is_role_change(&self) -> bool {
        self.code().is_some_and(|code| code == "25006" || code.starts_with("57P0"))
    }
}

/// An open connection; ends with its owner.
pub(crate) struct Connection {
    pub(crate) client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What every connection of ours is opened with.
#[derive(Clone)]
pub(crate) struct Opener {
    database: String,
    user: String,
    password: String,
    tls: Option<MakeRustlsConnect>,
}

impl Opener {
    pub(crate) fn new(options: &PostgresOptions) -> Result<Self, TlsError> {
        Ok(Self {
            database: options.database.clone(),
            user: options.user.clone(),
            password: options.password.clone(),
            tls: options.tls.as_ref().map(crate::tls::Tls::connector).transpose()?,
        })
    }

    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// Opens a connection to `host:port`. `name` shows up in PostgreSQL's list of sessions.
    pub(crate) async fn open(&self, address: &str, name: &str) -> Result<Connection, PgError> {
        self.open_with(address, name, limit::WRITE_ENDS).await
    }

    /// Opens a connection whose statements the server ends before a reader gives them up.
    pub(crate) async fn open_to_read(
        &self,
        address: &str,
        name: &str,
    ) -> Result<Connection, PgError> {
        self.open_with(address, name, limit::READ_ENDS).await
    }

    async fn open_with(
        &self,
        address: &str,
        name: &str,
        statement: Duration,
    ) -> Result<Connection, PgError> {
        let bad = || PgError::Address(address.to_owned());
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        let mut config = Config::new();
        config
            .host(host.trim_matches(['[', ']']))
            .port(port.parse().map_err(|_| bad())?)
            .dbname(&self.database)
            .user(&self.user)
            .password(&self.password)
            .application_name(format!("tagfast-{name}"))
            .connect_timeout(limit::CONNECT)
            .tcp_user_timeout(limit::WRITE)
            .keepalives_idle(Duration::from_secs(5))
            // A plan with a sequential scan would be compiled in every execution; a session that holds locks and says
            // nothing is ended; an acknowledgement without a flush would be worth nothing.
            .options(format!(
                "-c jit=off -c enable_seqscan=off -c plan_cache_mode=force_generic_plan -c synchronous_commit=local \
                 -c idle_in_transaction_session_timeout=1000 -c lock_timeout=3000 -c statement_timeout={}",
                statement.as_millis()
            ));
        let late = |_| PgError::Late("connecting", limit::CONNECT);
        // Whoever uses the client is told why the connection ended; its driver has nothing to add.
        let (client, driver) = match &self.tls {
            None => {
                let opened = timeout(limit::CONNECT, config.connect(NoTls)).await;
                let (client, connection) = opened.map_err(late)??;
                (client, tokio::spawn(async move { drop(connection.await) }))
            }
            Some(tls) => {
                config.ssl_mode(SslMode::Require);
                let opened = timeout(limit::CONNECT, config.connect(tls.clone())).await;
                let (client, connection) = opened.map_err(late)??;
                (client, tokio::spawn(async move { drop(connection.await) }))
            }
        };
        Ok(Connection { client, driver })
    }
}

/// Gives a conversation a deadline.
pub(crate) async fn within<T>(
    what: &'static str,
    bound: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, PgError> {
    match timeout(bound, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(PgError::Late(what, bound)),
    }
}
