//! Connections: opened with a timeout, configured once, with every statement prepared.
//!
//! Each connection belongs to one task at a time (a lane, a query, a watcher), so there is no pool
//! to exhaust: the queue or the limiter in front of the task bounds the work.
//!
//! How it fails: a connection that failed is dropped, never repaired; its owner opens a new one. A
//! password that a node refuses is followed by the one before it, because file and node do not
//! change in the same moment; a node that refuses both is named (`authentication`).

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tagfast_resilience::Credential;
use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

use crate::options::{PostgresOptions, SynchronousCommit, limit};
use crate::tls::{TlsConnector, TlsError};

/// Why a request to PostgreSQL failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PgError {
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("{0} took longer than {1:?}")]
    Timeout(&'static str, Duration),
    #[error("the address `{0}` cannot be used")]
    Address(String),
    /// PostgreSQL says so with a warning, and that the commit was successful.
    #[error("the wait for the synchronous standby was cancelled")]
    StandbyWaitCancelled,
}

/// What failed and what an operator can do; the source says the rest.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.code().map(SqlState::code) {
        Some(code) => format!("PostgreSQL refused with {code}{}", advice(code)),
        None => "the connection to PostgreSQL failed".to_owned(),
    }
}

/// What an operator can do about an error that does not pass without one.
fn advice(code: &str) -> &'static str {
    match code {
        "28P01" | "28000" => {
            " (authentication); look at store.user, store.password_file and pg_hba.conf"
        }
        "3D000" => "; create the database named by store.database, owned by store.user",
        "42501" => {
            "; the role of store.user must own the database and have pg_monitor and EXECUTE on \
             pg_read_file(text)"
        }
        "25006" => "; is default_transaction_read_only set for this database or role?",
        "53300" => {
            "; raise max_connections: docs/concepts/failover-protocol.md says how many each node of the service \
             needs"
        }
        _ => "",
    }
}

impl PgError {
    /// The SQLSTATE; `None`: the error is not PostgreSQL's.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Postgres(error) => error.code().map(SqlState::code),
            Self::Timeout(..) | Self::Address(_) | Self::StandbyWaitCancelled => None,
        }
    }

    /// Whether the server is healthy and has, or is getting, a different role: poll the cluster
    /// again.
    pub(crate) fn is_role_change(&self) -> bool {
        self.code().is_some_and(|code| code == "25006" || code.starts_with("57P0"))
    }
}

/// An open connection; it closes when its owner drops it.
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// What its commits wait for.
    pub(crate) synchronous_commit: SynchronousCommit,
    /// Warnings that the server has sent; each is counted before the statement that it belongs to
    /// has its result.
    warnings: Arc<AtomicU64>,
    /// Moves bytes between the client and the socket.
    _driver: BackgroundTask,
}

impl Connection {
    /// How many warnings the server has sent so far.
    pub(crate) fn warnings(&self) -> u64 {
        self.warnings.load(Ordering::Acquire)
    }
}

/// Opens connections: database, role, TLS and settings are the same for all.
#[derive(Clone)]
pub(crate) struct ConnectionFactory {
    database: String,
    user: String,
    password: Credential,
    tls: Option<Arc<TlsConnector>>,
    synchronous_commit: SynchronousCommit,
}

impl ConnectionFactory {
    pub(crate) fn new(options: &PostgresOptions) -> Result<Self, TlsError> {
        Ok(Self {
            database: options.database.clone(),
            user: options.user.clone(),
            password: options.password.clone(),
            tls: options.tls.as_ref().map(TlsConnector::new).transpose()?.map(Arc::new),
            synchronous_commit: options.synchronous_commit,
        })
    }

    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// Opens a connection to `host:port`. `name` is shown in `pg_stat_activity`.
    pub(crate) async fn open(&self, address: &str, name: &str) -> Result<Connection, PgError> {
        self.open_with(address, name, limit::STATEMENT_TIMEOUT, SynchronousCommit::Local).await
    }

    /// Opens a connection whose commits are acknowledged to callers.
    pub(crate) async fn open_to_write(&self, address: &str) -> Result<Connection, PgError> {
        let timeout = limit::STATEMENT_TIMEOUT;
        self.open_with(address, "write", timeout, self.synchronous_commit).await
    }

    /// What the commits of writes wait for.
    pub(crate) fn synchronous_commit(&self) -> SynchronousCommit {
        self.synchronous_commit
    }

    /// Cancels what a connection that was given up still does on the server, as far as the server
    /// can be reached.
    pub(crate) async fn cancel(&self, connection: &Connection) -> Result<(), PgError> {
        let token = connection.client.cancel_token();
        let what = "cancelling a commit";
        match &self.tls {
            None => within(what, limit::CONNECT_TIMEOUT, token.cancel_query(NoTls)).await,
            Some(tls) => within(what, limit::CONNECT_TIMEOUT, token.cancel_query(tls.get())).await,
        }
    }

    /// Opens a connection whose statements the server cancels before a reader gives up.
    pub(crate) async fn open_to_read(
        &self,
        address: &str,
        name: &str,
    ) -> Result<Connection, PgError> {
        let timeout = limit::READ_STATEMENT_TIMEOUT;
        self.open_with(address, name, timeout, SynchronousCommit::Local).await
    }

    async fn open_with(
        &self,
        address: &str,
        name: &str,
        statement_timeout: Duration,
        synchronous_commit: SynchronousCommit,
    ) -> Result<Connection, PgError> {
        let bad = || PgError::Address(address.to_owned());
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        let mut config = Config::new();
        config
            .host(host.trim_matches(['[', ']']))
            .port(port.parse().map_err(|_| bad())?)
            .dbname(&self.database)
            .user(&self.user)
            .application_name(format!("tagfast-{name}"))
            .connect_timeout(limit::CONNECT_TIMEOUT)
            .tcp_user_timeout(limit::COMMIT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(5))
            // A plan with a sequential scan would be JIT-compiled in every execution; a session
            // that holds locks while its process stands still is ended; a lock is waited for
            // shorter than a new connection may take to prepare, so that its error is what is seen;
            // an acknowledgement without a flush would be worthless.
            .options(format!(
                "-c jit=off -c enable_seqscan=off -c plan_cache_mode=force_generic_plan \
                 -c synchronous_commit={} -c idle_in_transaction_session_timeout=1000 \
                 -c lock_timeout=2500 -c statement_timeout={}",
                synchronous_commit.as_str(),
                statement_timeout.as_millis()
            ));
        let opened =
            timeout(limit::CONNECT_TIMEOUT, self.log_in(address, config, synchronous_commit));
        let timed_out = |_| PgError::Timeout("connecting", limit::CONNECT_TIMEOUT);
        opened.await.map_err(timed_out)?
    }

    /// Connects with the newest password, or with the one before it if the node has not changed
    /// yet.
    async fn log_in(
        &self,
        address: &str,
        mut config: Config,
        synchronous_commit: SynchronousCommit,
    ) -> Result<Connection, PgError> {
        let mut refused = None;
        for password in self.password.to_try() {
            config.password(password.value.expose());
            match self.connect(&mut config, synchronous_commit).await {
                Ok(connection) => {
                    self.password.accepted(address, password.number);
                    return Ok(connection);
                }
                Err(error) if error.code() == Some(&SqlState::INVALID_PASSWORD) => {
                    self.password.refused(address, password.number);
                    refused.get_or_insert(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        // There is always a password to try.
        refused.map_or(Err(PgError::Address(address.to_owned())), |error| Err(error.into()))
    }

    async fn connect(
        &self,
        config: &mut Config,
        synchronous_commit: SynchronousCommit,
    ) -> Result<Connection, tokio_postgres::Error> {
        let warnings = Arc::new(AtomicU64::new(0));
        let (client, _driver) = match &self.tls {
            None => {
                let (client, connection) = config.connect(NoTls).await?;
                (client, drive(connection, Arc::clone(&warnings)))
            }
            Some(tls) => {
                let (client, connection) =
                    config.ssl_mode(SslMode::Require).connect(tls.get()).await?;
                (client, drive(connection, Arc::clone(&warnings)))
            }
        };
        Ok(Connection { client, synchronous_commit, warnings, _driver })
    }
}

/// Starts the task of a connection. The client's callers get the error that ended the connection;
/// the driver has none to add.
fn drive<S, T>(
    mut connection: tokio_postgres::Connection<S, T>,
    warnings: Arc<AtomicU64>,
) -> BackgroundTask
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let messages = async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message
                && notice.parsed_severity() == Some(Severity::Warning)
            {
                warnings.fetch_add(1, Ordering::Release);
                tracing::warn!(
                    code = notice.code().code(),
                    "PostgreSQL warns: {}",
                    notice.message()
                );
            }
        }
    };
    BackgroundTask::spawn("PostgreSQL connection", |stop: StopSignal| async move {
        stop.run_until_cancelled(messages).await;
    })
}

/// Gives a request a timeout; `what` names it in the error.
pub(crate) async fn within<T>(
    what: &'static str,
    timeout_after: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, PgError> {
    match timeout(timeout_after, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(PgError::Timeout(what, timeout_after)),
    }
}
