//! One Redis: its connection, its breaker and the task that keeps it connected.
//!
//! How it fails: a call without a connection fails at once; a call that times out drops the
//! connection, since an answer that arrives late would only queue up behind the next call. A server
//! whose settings become unusable while it is connected is left within [`SERVER_CHECK_INTERVAL`]
//! and used again when they are right. A password that it refuses is followed by the one before.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use metrics::Counter;
use parking_lot::{Mutex, RwLock};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, ErrorKind, RedisResult, ServerErrorKind,
};
use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tagfast_resilience::{
    Backoff, Breaker, BreakerOptions, Breakers, ErrorChain, Permit, Secret, counter, gauge,
};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::credentials::{self, RedisOptions, log_in, with_password};
use crate::discovery::discover;
use crate::endpoint::{Endpoint, InvalidUrl};
use crate::error::RedisError;
use crate::metric::{CALLS, CONNECTED, CallResult};
use crate::role::RedisRole;
use crate::server_check::{self, ServerCheck};

/// Timeout of connecting, including discovery and the server check.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Upper bound of every call's timeout.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(500);
/// Interval between two health checks of an established connection.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between two checks that the server still accepts the password: the connection stays
/// open when it is changed.
const PASSWORD_CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// Interval between two checks of a connected server's settings.
const SERVER_CHECK_INTERVAL: Duration = Duration::from_secs(4);
/// Requests that may be in flight on the connection.
const PIPELINE_REQUESTS_MAX: usize = 4096;
/// Delays between attempts to connect.
const RECONNECT_BACKOFF: Backoff = Backoff {
    retries: u32::MAX,
    base: Duration::from_millis(50),
    factor: 2,
    cap: Duration::from_secs(1),
};
/// Problem text for a server that still claims to be primary after Sentinel has named another one.
const SERVER_REPLACED: &str = "another server has taken its place";

/// Counters of calls by result, resolved once because every plain view makes a call.
struct CallCounters {
    ok: Counter,
    refused: Counter,
    failed: Counter,
    rejected: Counter,
}

impl CallCounters {
    fn new(role: RedisRole) -> Self {
        let of = |result| counter!(CALLS, "redis" => role, "result" => result);
        Self {
            ok: of(CallResult::Ok),
            refused: of(CallResult::Refused),
            failed: of(CallResult::Failed),
            rejected: of(CallResult::Rejected),
        }
    }
}

/// The current connection.
#[derive(Clone)]
struct ConnectionSlot {
    connection: MultiplexedConnection,
    run_id: Arc<str>,
    address: ConnectionAddr,
    /// Counts connections of this process, so that a late failure cannot drop a newer one.
    number: u64,
}

/// A new connection to a server that passed the check.
struct CheckedConnection {
    connection: MultiplexedConnection,
    run_id: String,
    address: ConnectionAddr,
    warning: Option<String>,
    password: Option<Secret>,
}

/// A client of one Redis.
pub struct Redis {
    role: RedisRole,
    endpoint: Endpoint,
    options: RedisOptions,
    /// The password that the server accepted last; `None`: none of a file was.
    accepted_password: Mutex<Option<Secret>>,
    breaker: Arc<Breaker>,
    calls: CallCounters,
    slot: RwLock<Option<ConnectionSlot>>,
    problem: Mutex<Option<String>>,
    warning: Mutex<Option<String>>,
    /// Wakes the connection task when the connection failed.
    wake: Arc<Notify>,
    connects: watch::Sender<u64>,
    /// The connection task. It ends when the client is stopped or dropped.
    task: OnceLock<BackgroundTask>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis")
            .field("role", &self.role)
            .field("problem", &self.problem())
            .finish_non_exhaustive()
    }
}

/// What an error of the client library says about the server.
enum ErrorClass {
    /// The server answered with an error; server and connection are healthy.
    Refused,
    /// The server is not the primary.
    WrongRole,
    /// The server or the connection is broken.
    Failed,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the client library's kinds may grow")]
fn classify(error: &redis::RedisError) -> ErrorClass {
    match error.kind() {
        ErrorKind::Server(kind) => match kind {
            ServerErrorKind::ReadOnly => ErrorClass::WrongRole,
            ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::TryAgain => ErrorClass::Failed,
            _ => ErrorClass::Refused,
        },
        ErrorKind::Extension => match error.code() {
            // A primary that lost its replicas must not accept writes.
            Some("NOREPLICAS") => ErrorClass::WrongRole,
            Some(_) | None => ErrorClass::Refused,
        },
        _ => ErrorClass::Failed,
    }
}

impl Redis {
    /// Starts to connect in the background, with the password of the URL. Needs a tokio runtime.
    ///
    /// # Errors
    /// As of [`Redis::start_with`].
    pub fn start(
        url: &str,
        role: RedisRole,
        breakers: &Arc<Breakers>,
    ) -> Result<Arc<Self>, InvalidUrl> {
        Self::start_with(RedisOptions::new(url), role, breakers)
    }

    /// Starts to connect in the background. Needs a tokio runtime.
    ///
    /// # Errors
    /// The URL is invalid. A server that cannot be reached is not an error: see
    /// [`Redis::problem`].
    pub fn start_with(
        options: RedisOptions,
        role: RedisRole,
        breakers: &Arc<Breakers>,
    ) -> Result<Arc<Self>, InvalidUrl> {
        let endpoint = Endpoint::parse(options.url.expose())?;
        let breaker = BreakerOptions {
            slow_after: Duration::from_millis(25),
            open_cap: Duration::from_secs(2),
            ..BreakerOptions::default()
        };
        let redis = Arc::new(Self {
            role,
            endpoint,
            options,
            accepted_password: Mutex::default(),
            breaker: breakers.make(&format!("redis/{role}"), breaker),
            calls: CallCounters::new(role),
            slot: RwLock::new(None),
            problem: Mutex::new(Some("it is not connected yet".to_owned())),
            warning: Mutex::default(),
            wake: Arc::default(),
            connects: watch::channel(0).0,
            task: OnceLock::new(),
        });
        redis.report_connected(false);
        let (client, wake) = (Arc::downgrade(&redis), Arc::clone(&redis.wake));
        redis.task.get_or_init(|| {
            BackgroundTask::spawn("redis-connection", async move |stop: StopSignal| {
                stop.run_until_cancelled(keep_connected(client, wake)).await;
            })
        });
        Ok(redis)
    }

    /// Ends the connection task and waits until it has ended. Calls keep the connection that they
    /// have; a lost one is not replaced.
    pub async fn stop(&self) {
        if let Some(task) = self.task.get() {
            // A panic was logged when the task was joined.
            let _ = task.stop().await;
        }
    }

    /// Role of the server.
    pub fn role(&self) -> RedisRole {
        self.role
    }

    /// Why the server cannot be used at this moment; `None` while it is connected.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    /// What is not set up well on the server; `None` when all is.
    pub fn warning(&self) -> Option<String> {
        self.warning.lock().clone()
    }

    /// The server's current address, for a caller that opens its own connection.
    ///
    /// # Errors
    /// No Sentinel names a primary.
    pub async fn discover(&self) -> Result<ConnectionInfo, RedisError> {
        let found = discover(&self.endpoint, &self.options).await;
        let info = found.map_err(|reason| self.unavailable(reason))?;
        let accepted = self.accepted_password.lock().clone();
        let newest = || Some(self.options.password.as_ref()?.newest().value);
        Ok(with_password(&info, accepted.or_else(newest).as_ref()))
    }

    /// Waits until the server is connected; `false` when it was not within `timeout`.
    pub async fn wait_connected(&self, timeout: Duration) -> bool {
        let mut connects = self.connects.subscribe();
        let connected = async {
            while self.problem().is_some() {
                if connects.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(timeout, connected).await.is_ok()
    }

    fn unavailable(&self, reason: impl Into<String>) -> RedisError {
        RedisError::Unavailable { role: self.role, reason: reason.into(), source: None }
    }

    /// The current connection, or the reason why there is none.
    fn slot(&self) -> Result<ConnectionSlot, RedisError> {
        let slot = self.slot.read().clone();
        slot.ok_or_else(|| self.unavailable(self.problem().unwrap_or_default()))
    }

    fn report_connected(&self, connected: bool) {
        gauge!(CONNECTED, "redis" => self.role).set(if connected { 1.0 } else { 0.0 });
    }

    /// Drops connection `number`, unless a newer one replaced it, and wakes the connection task.
    fn drop_connection(&self, number: u64, problem: &str) {
        let mut slot = self.slot.write();
        if slot.as_ref().is_some_and(|slot| slot.number == number) {
            *slot = None;
            *self.problem.lock() = Some(problem.to_owned());
            self.report_connected(false);
            self.wake.notify_one();
        }
    }

    /// Permit for a caller whose request travels in a batch ([`Redis::call_unguarded`]): each
    /// caller counts at the breaker. The caller must report the result with [`Redis::record`].
    ///
    /// # Errors
    /// The breaker is open.
    pub fn acquire(&self) -> Result<Permit, RedisError> {
        self.breaker.acquire().map_err(|_| {
            self.calls.rejected.increment(1);
            RedisError::BreakerOpen(self.role)
        })
    }

    /// Records the result of a call under the permit that it was made with.
    pub fn record<T>(&self, permit: Permit, result: &Result<T, RedisError>) {
        match result {
            Ok(_) => {
                permit.ok();
                self.calls.ok.increment(1);
            }
            Err(RedisError::Refused { .. }) => {
                permit.ok();
                self.calls.refused.increment(1);
            }
            Err(RedisError::Moved(_)) => {
                // The role moved: this says nothing about the server's health.
                drop(permit);
                self.calls.failed.increment(1);
            }
            Err(RedisError::Unavailable { .. } | RedisError::BreakerOpen(_)) => {
                permit.failed();
                self.calls.failed.increment(1);
            }
        }
    }

    /// Makes a call with this timeout, at most `COMMAND_TIMEOUT`, behind the breaker.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub async fn call<T, F>(
        &self,
        timeout: Duration,
        work: impl FnOnce(MultiplexedConnection) -> F,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let permit = self.acquire()?;
        let result = self.call_unguarded(timeout, work).await;
        self.record(permit, &result);
        result
    }

    /// Makes a call past the breaker, on behalf of callers that hold permits of their own.
    ///
    /// # Errors
    /// Any [`RedisError`] but `BreakerOpen`.
    pub async fn call_unguarded<T, F>(
        &self,
        timeout: Duration,
        work: impl FnOnce(MultiplexedConnection) -> F,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let slot = self.slot()?;
        let timeout = timeout.min(COMMAND_TIMEOUT);
        let error = match tokio::time::timeout(timeout, work(slot.connection)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => {
                self.drop_connection(slot.number, "it did not answer in time");
                return Err(self.unavailable("it did not answer in time"));
            }
        };
        match classify(&error) {
            ErrorClass::Refused => Err(RedisError::refused(self.role, &error)),
            ErrorClass::WrongRole => {
                self.drop_connection(slot.number, "the connection failed");
                Err(RedisError::Moved(self.role))
            }
            ErrorClass::Failed => {
                self.drop_connection(slot.number, "the connection failed");
                Err(RedisError::Unavailable {
                    role: self.role,
                    reason: "the connection failed".to_owned(),
                    source: Some(Arc::new(error)),
                })
            }
        }
    }

    /// The connection, for background work of several steps. It does not pass the breaker, which
    /// judges requests; the caller must report a failure with [`Redis::report_failure`].
    ///
    /// # Errors
    /// There is no connection.
    pub fn connection(&self) -> Result<MultiplexedConnection, RedisError> {
        Ok(self.slot()?.connection)
    }

    /// The connection failed: it is dropped and a new one is made.
    pub fn report_failure(&self) {
        if let Ok(slot) = self.slot() {
            self.drop_connection(slot.number, "the connection failed");
        }
    }

    /// `run_id` of the connected server process; `None` without a connection.
    pub fn run_id(&self) -> Option<Arc<str>> {
        self.slot().ok().map(|slot| slot.run_id)
    }

    /// Generation of the state Redis. A different text than before means that the server's
    /// contents may be gone or old.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub async fn generation(&self) -> Result<String, RedisError> {
        let run_id = self.slot()?.run_id;
        self.call(COMMAND_TIMEOUT, async move |mut connection| {
            server_check::generation(&mut connection, &run_id).await
        })
        .await
    }

    /// Whether Sentinel names a different server by now. `false` when no Sentinel answers.
    async fn is_replaced(&self, address: &ConnectionAddr) -> bool {
        discover(&self.endpoint, &self.options).await.is_ok_and(|now| now.addr() != address)
    }

    /// Checks that connection `number` answers and still leads to the primary; drops it otherwise.
    async fn check_health(&self, number: u64) {
        let slot = self.slot().ok().filter(|slot| slot.number == number);
        let Some(ConnectionSlot { mut connection, address, .. }) = slot else { return };
        let ping = redis::cmd("PING");
        let answer = ping.query_async::<redis::Value>(&mut connection);
        match tokio::time::timeout(COMMAND_TIMEOUT, answer).await {
            Ok(Ok(_)) => {
                if self.is_replaced(&address).await {
                    self.drop_connection(number, SERVER_REPLACED);
                }
            }
            Ok(Err(error)) => self.drop_connection(number, &ErrorChain(&error).to_string()),
            Err(_) => self.drop_connection(number, "it does not answer"),
        }
    }

    /// Checks that the server of connection `number` still accepts the password. A refused one
    /// leaves the connection as it is.
    async fn check_password(&self, number: u64) {
        let Some(password) = &self.options.password else { return };
        let slot = self.slot().ok().filter(|slot| slot.number == number);
        let Some(ConnectionSlot { mut connection, address, .. }) = slot else { return };
        let check = credentials::check(&mut connection, self.endpoint.user(), password, &address);
        // A server that does not answer says nothing about the password.
        if let Ok(Some(accepted)) = tokio::time::timeout(COMMAND_TIMEOUT, check).await {
            *self.accepted_password.lock() = Some(accepted);
        }
    }

    /// Checks the settings of the server of connection `number`; leaves it if they have become
    /// unusable.
    async fn check_server(&self, number: u64) {
        let slot = self.slot().ok().filter(|slot| slot.number == number);
        let Some(mut connection) = slot.map(|slot| slot.connection) else { return };
        let check = server_check::check(&mut connection, self.role);
        // A server that does not answer is left by the health check.
        let Ok(Ok(checked)) = tokio::time::timeout(COMMAND_TIMEOUT, check).await else { return };
        match checked {
            ServerCheck::Usable { warning, .. } => self.set_warning(warning),
            ServerCheck::Unusable(problem) => {
                tracing::warn!(redis = %self.role, problem, "Redis cannot be used any more");
                self.drop_connection(number, &problem);
            }
        }
    }

    fn set_warning(&self, warning: Option<String>) {
        let mut known = self.warning.lock();
        if let Some(warning) = warning.as_ref().filter(|_| *known != warning) {
            tracing::warn!(redis = %self.role, warning, "Redis is not set up well");
        }
        *known = warning;
    }

    /// Connects and checks the server.
    ///
    /// # Errors
    /// Why the server cannot be used, as [`Redis::problem`] shows it.
    async fn connect(&self) -> Result<CheckedConnection, String> {
        let info = discover(&self.endpoint, &self.options).await?;
        let address = info.addr().clone();
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(COMMAND_TIMEOUT))
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_pipeline_buffer_size(PIPELINE_REQUESTS_MAX);
        let (mut connection, password) =
            log_in(&info, self.options.password.as_ref(), &config).await?;
        let checked = server_check::check(&mut connection, self.role).await;
        let checked = checked.map_err(|error| match error.code() {
            Some("NOAUTH") => {
                "authentication: it wants a password, and none is configured".to_owned()
            }
            Some(_) | None => error.to_string(),
        })?;
        match checked {
            ServerCheck::Unusable(problem) => Err(problem),
            ServerCheck::Usable { run_id, warning } => {
                // The server may have been frozen since Sentinel named it: a demoted primary claims
                // to be primary until Sentinel has reconfigured it.
                if self.is_replaced(&address).await {
                    return Err(SERVER_REPLACED.to_owned());
                }
                if self.role == RedisRole::State {
                    server_check::generation(&mut connection, &run_id)
                        .await
                        .map_err(|error| error.to_string())?;
                }
                Ok(CheckedConnection { connection, run_id, address, warning, password })
            }
        }
    }

    /// Puts a checked connection into use.
    fn install(&self, checked: CheckedConnection, number: u64) {
        let CheckedConnection { connection, run_id, address, warning, password } = checked;
        tracing::info!(redis = %self.role, run_id, "connected to Redis");
        self.set_warning(warning);
        *self.accepted_password.lock() = password;
        let slot = ConnectionSlot { connection, run_id: run_id.into(), address, number };
        *self.slot.write() = Some(slot);
        *self.problem.lock() = None;
        self.report_connected(true);
        self.connects.send_replace(number);
    }
}

/// Connects, and reconnects whenever the connection failed, until the client is dropped.
async fn keep_connected(redis: Weak<Redis>, wake: Arc<Notify>) {
    let (mut number, mut attempt) = (0, 0);
    loop {
        let Some(this) = redis.upgrade() else { return };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, this.connect()).await;
        match connected.unwrap_or_else(|_| Err("it does not answer".to_owned())) {
            Ok(checked) => {
                (number, attempt) = (number + 1, 0);
                this.install(checked, number);
                drop(this);
                let (mut password_checked, mut server_checked) = (Instant::now(), Instant::now());
                // Also without any call: `problem` must not show a dead connection as healthy.
                while tokio::time::timeout(HEALTH_CHECK_INTERVAL, wake.notified()).await.is_err() {
                    let Some(this) = redis.upgrade() else { return };
                    this.check_health(number).await;
                    if password_checked.elapsed() >= PASSWORD_CHECK_INTERVAL {
                        this.check_password(number).await;
                        password_checked = Instant::now();
                    }
                    if server_checked.elapsed() >= SERVER_CHECK_INTERVAL {
                        this.check_server(number).await;
                        server_checked = Instant::now();
                    }
                }
            }
            Err(problem) => {
                let before = this.problem.lock().replace(problem.clone());
                if before.is_none_or(|before| before != problem) {
                    tracing::warn!(redis = %this.role, problem, "Redis cannot be used");
                }
                drop(this);
                let delay = RECONNECT_BACKOFF.delay(attempt, fastrand::f64());
                attempt = attempt.saturating_add(1);
                tokio::time::sleep(delay.unwrap_or(RECONNECT_BACKOFF.cap)).await;
            }
        }
    }
}
