//! One Redis: its connection, its breaker, and the task that keeps them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use metrics::Counter;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisResult,
    ServerErrorKind,
};
use tagfast_resilience::{Breaker, BreakerOptions, Breakers, Permit};
use tokio::sync::{Notify, watch};

use crate::check::{self, Fitness};
use crate::place::Place;
use crate::{BadUrl, Use};

/// How long connecting may take, checks included.
const CONNECT: Duration = Duration::from_secs(1);
/// No call waits longer, whatever its own deadline is.
const ANSWER: Duration = Duration::from_millis(500);
/// Between two attempts to connect, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Between two looks at a connection that nobody uses.
const LOOK: Duration = Duration::from_secs(1);
/// Requests that may be on their way to the server.
const PIPELINE: usize = 4096;

/// Why a server is left that answers as a primary.
const REPLACED: &str = "another server has taken its place";

/// Why a call got no answer that it can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisError {
    /// The breaker is open.
    #[error("the breaker of the {0} Redis is open")]
    BreakerOpen(&'static str),
    /// It is not there, not to be used, or did not answer in time.
    #[error("the {used_as} Redis is unavailable: {reason}")]
    Unavailable {
        /// Which one.
        used_as: &'static str,
        /// Why.
        reason: String,
    },
    /// It is not the primary any more: it is looked for again.
    #[error("the {0} Redis is another server now")]
    Moved(&'static str),
    /// It answered with an error; `code` is its first word.
    #[error("the {used_as} Redis refused: {code} {detail}")]
    Refused {
        /// Which one.
        used_as: &'static str,
        /// The error's first word, for example `OOM`.
        code: String,
        /// The rest.
        detail: String,
    },
}

/// Counts calls by result; looked up once, since a plain view makes one.
struct Calls {
    ok: Counter,
    refused: Counter,
    failed: Counter,
    rejected: Counter,
}

impl Calls {
    fn new(used_as: Use) -> Self {
        let of = |result: &'static str| metrics::counter!("tagfast_redis_calls_total", "redis" => used_as.as_str(), "result" => result);
        Self {
            ok: of("ok"),
            refused: of("refused"),
            failed: of("failed"),
            rejected: of("rejected"),
        }
    }
}

#[derive(Clone)]
struct Link {
    connection: MultiplexedConnection,
    run_id: Arc<str>,
    at: ConnectionAddr,
    number: u64,
}

/// A connection to a server that can be used.
struct Opened {
    connection: MultiplexedConnection,
    run_id: String,
    at: ConnectionAddr,
    warning: Option<String>,
}

/// A Redis.
pub struct Redis {
    used_as: Use,
    place: Place,
    breaker: Arc<Breaker>,
    calls: Calls,
    link: RwLock<Option<Link>>,
    problem: Mutex<Option<String>>,
    warning: Mutex<Option<String>>,
    /// Tells the task that a connection failed, or that nobody needs it any more.
    wake: Arc<Notify>,
    connects: watch::Sender<u64>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis")
            .field("used_as", &self.used_as)
            .field("problem", &self.problem())
            .finish_non_exhaustive()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an error of the client means.
enum Meaning {
    /// The server answered; the connection and the server are well.
    Refused,
    /// The server is not the one to talk to any more.
    WrongRole,
    /// The server or the way to it is not well.
    Failed,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the client's kinds may grow")]
fn meaning(error: &redis::RedisError) -> Meaning {
    match error.kind() {
        ErrorKind::Server(kind) => match kind {
            ServerErrorKind::ReadOnly => Meaning::WrongRole,
            ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::TryAgain => Meaning::Failed,
            _ => Meaning::Refused,
        },
        ErrorKind::Extension => match error.code() {
            // A cut-off primary that may not take writes any more.
            Some("NOREPLICAS") => Meaning::WrongRole,
            Some(_) | None => Meaning::Refused,
        },
        _ => Meaning::Failed,
    }
}

impl Redis {
    /// Starts to connect, in the background; needs a tokio runtime.
    pub fn start(url: &str, used_as: Use, breakers: &Arc<Breakers>) -> Result<Arc<Self>, BadUrl> {
        let options = BreakerOptions {
            slow_after: Duration::from_millis(25),
            open_cap: Duration::from_secs(2),
            ..BreakerOptions::default()
        };
        let redis = Arc::new(Self {
            used_as,
            place: Place::parse(url)?,
            breaker: breakers.make(&format!("redis/{}", used_as.as_str()), options),
            calls: Calls::new(used_as),
            link: RwLock::new(None),
            problem: Mutex::new(Some("it is not connected yet".to_owned())),
            warning: Mutex::default(),
            wake: Arc::default(),
            connects: watch::channel(0).0,
        });
        metrics::gauge!("tagfast_redis_connected", "redis" => used_as.as_str()).set(0.0);
        tokio::spawn(keep(Arc::downgrade(&redis), Arc::clone(&redis.wake)));
        Ok(redis)
    }

    /// Why it cannot be used now.
    pub fn problem(&self) -> Option<String> {
        lock(&self.problem).clone()
    }

    /// What makes it worse than it could be.
    pub fn warning(&self) -> Option<String> {
        lock(&self.warning).clone()
    }

    /// Where it is now, for a connection of one's own.
    pub async fn find(&self) -> Result<ConnectionInfo, RedisError> {
        self.place.find().await.map_err(|reason| self.unavailable(reason))
    }

    /// Waits until there is a connection. False: there was none in time.
    pub async fn connected(&self, within: Duration) -> bool {
        let mut connects = self.connects.subscribe();
        let there = async {
            while self.problem().is_some() {
                if connects.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(within, there).await.is_ok()
    }

    fn unavailable(&self, reason: impl Into<String>) -> RedisError {
        RedisError::Unavailable { used_as: self.used_as.as_str(), reason: reason.into() }
    }

    fn link(&self) -> Option<Link> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Throws a connection away and asks for another one.
    fn lost(&self, number: u64, why: &str) {
        let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
        if link.as_ref().is_some_and(|link| link.number == number) {
            *link = None;
            *lock(&self.problem) = Some(why.to_owned());
            metrics::gauge!("tagfast_redis_connected", "redis" => self.used_as.as_str()).set(0.0);
            self.wake.notify_one();
        }
    }

    /// Leave for a caller whose question goes to the server together with others'
    /// ([`Redis::attempt`]): each of them counts.
    pub fn admit(&self) -> Result<Permit, RedisError> {
        self.breaker.acquire().map_err(|_| {
            self.calls.rejected.increment(1);
            RedisError::BreakerOpen(self.used_as.as_str())
        })
    }

    /// What became of an admitted caller.
    pub fn ended<T>(&self, permit: Permit, result: &Result<T, RedisError>) {
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
                // The role moved: what failed is not this server's health.
                drop(permit);
                self.calls.failed.increment(1);
            }
            Err(RedisError::Unavailable { .. } | RedisError::BreakerOpen(_)) => {
                permit.failed();
                self.calls.failed.increment(1);
            }
        }
    }

    /// Makes a call that may take `within`, and no longer than half a second.
    pub async fn call<T, F>(
        &self,
        within: Duration,
        work: impl FnOnce(MultiplexedConnection) -> F,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let permit = self.admit()?;
        let result = self.attempt(within, work).await;
        self.ended(permit, &result);
        result
    }

    /// A call past the breaker, for callers that were admitted one by one.
    pub async fn attempt<T, F>(
        &self,
        within: Duration,
        work: impl FnOnce(MultiplexedConnection) -> F,
    ) -> Result<T, RedisError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let link =
            self.link().ok_or_else(|| self.unavailable(self.problem().unwrap_or_default()))?;
        let error = match tokio::time::timeout(within.min(ANSWER), work(link.connection)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => {
                self.lost(link.number, "it did not answer in time");
                return Err(self.unavailable("it did not answer in time"));
            }
        };
        let used_as = self.used_as.as_str();
        match meaning(&error) {
            Meaning::Refused => {
                let code = error.code().unwrap_or_default().to_owned();
                let detail = error.detail().unwrap_or_default().to_owned();
                Err(RedisError::Refused { used_as, code, detail })
            }
            Meaning::WrongRole => {
                self.lost(link.number, "the connection failed");
                Err(RedisError::Moved(used_as))
            }
            Meaning::Failed => {
                self.lost(link.number, "the connection failed");
                Err(self.unavailable(error.to_string()))
            }
        }
    }

    /// A connection for work of many steps that nobody waits for: it does not pass the breaker,
    /// which judges requests. Whoever finds that it failed says so ([`Redis::failed`]).
    pub fn connection(&self) -> Result<MultiplexedConnection, RedisError> {
        let link =
            self.link().ok_or_else(|| self.unavailable(self.problem().unwrap_or_default()))?;
        Ok(link.connection)
    }

    /// The connection failed: another one is made.
    pub fn failed(&self) {
        if let Some(link) = self.link() {
            self.lost(link.number, "the connection failed");
        }
    }

    /// Which server process the connection leads to.
    pub fn run_id(&self) -> Option<Arc<str>> {
        self.link().map(|link| link.run_id)
    }

    /// Which Redis this is: another text means that what was there may be gone or old.
    pub async fn generation(&self) -> Result<String, RedisError> {
        let run_id =
            self.run_id().ok_or_else(|| self.unavailable(self.problem().unwrap_or_default()))?;
        self.call(ANSWER, async move |mut connection| {
            check::generation(&mut connection, &run_id).await
        })
        .await
    }

    /// Whether another server than this one is named now. When nobody can be asked, it is the same
    /// one.
    async fn is_replaced(&self, at: &ConnectionAddr) -> bool {
        self.place.find().await.is_ok_and(|now| now.addr() != at)
    }

    /// Asks a connection whether it still answers, and whether it still is the one to ask.
    async fn look(&self, number: u64) {
        let Some(Link { mut connection, at, .. }) =
            self.link().filter(|link| link.number == number)
        else {
            return;
        };
        match tokio::time::timeout(
            ANSWER,
            redis::cmd("PING").query_async::<redis::Value>(&mut connection),
        )
        .await
        {
            Ok(Ok(_)) => {
                if self.is_replaced(&at).await {
                    self.lost(number, REPLACED);
                }
            }
            Ok(Err(error)) => self.lost(number, &error.to_string()),
            Err(_) => self.lost(number, "it does not answer"),
        }
    }

    /// Connects and looks at what answers.
    async fn open(&self) -> Result<Opened, String> {
        let info = self.place.find().await?;
        let at = info.addr().clone();
        let client = Client::open(info).map_err(|error| error.to_string())?;
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(ANSWER))
            .set_connection_timeout(Some(CONNECT))
            .set_pipeline_buffer_size(PIPELINE);
        let opened = client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = opened.map_err(|error| {
            let refused = error.kind() == ErrorKind::AuthenticationFailed;
            if refused {
                format!("it refuses the password or user: {error}")
            } else {
                error.to_string()
            }
        })?;
        let looked = check::look(&mut connection, self.used_as).await;
        let fitness = looked.map_err(|error| match error.code() {
            Some("NOAUTH") => "it wants a password, and none is configured".to_owned(),
            Some(_) | None => error.to_string(),
        })?;
        match fitness {
            Fitness::Unfit(why) => Err(why),
            Fitness::Fit { run_id, warning } => {
                // It may have been frozen since it was named: it says that it is the primary until
                // it is told otherwise.
                if self.is_replaced(&at).await {
                    return Err(REPLACED.to_owned());
                }
                if self.used_as == Use::State {
                    check::generation(&mut connection, &run_id)
                        .await
                        .map_err(|error| error.to_string())?;
                }
                Ok(Opened { connection, run_id, at, warning })
            }
        }
    }
}

/// Connects, and connects again whenever the connection failed, until the Redis is dropped.
async fn keep(weak: Weak<Redis>, wake: Arc<Notify>) {
    let mut pause = PAUSE.0;
    let mut number = 0;
    loop {
        let Some(redis) = weak.upgrade() else { return };
        let used_as = redis.used_as.as_str();
        let opened = tokio::time::timeout(CONNECT, redis.open()).await;
        match opened.unwrap_or_else(|_| Err("it does not answer".to_owned())) {
            Ok(Opened { connection, run_id, at, warning }) => {
                number += 1;
                pause = PAUSE.0;
                tracing::info!(redis = used_as, run_id, "connected to Redis");
                if let Some(warning) = &warning {
                    tracing::warn!(redis = used_as, warning, "Redis is not set up as it should be");
                }
                *lock(&redis.warning) = warning;
                let link = Link { connection, run_id: run_id.into(), at, number };
                *redis.link.write().unwrap_or_else(PoisonError::into_inner) = Some(link);
                *lock(&redis.problem) = None;
                metrics::gauge!("tagfast_redis_connected", "redis" => used_as).set(1.0);
                redis.connects.send_replace(number);
                drop(redis);
                // Also when nobody calls: whoever asks how it stands is told the truth.
                while tokio::time::timeout(LOOK, wake.notified()).await.is_err() {
                    let Some(redis) = weak.upgrade() else { return };
                    redis.look(number).await;
                }
            }
            Err(why) => {
                let new =
                    lock(&redis.problem).replace(why.clone()).is_none_or(|before| before != why);
                if new {
                    tracing::warn!(redis = used_as, why, "Redis cannot be used");
                }
                drop(redis);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}
