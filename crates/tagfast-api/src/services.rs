//! The services and settings that the composition root hands to the API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::Limits;
use tagfast_events::{AutoReplayPolicy, DeadLetterStore};
use tagfast_popular::{PopularTags, RecountReport};
use tagfast_resilience::{
    BoxError, Breakers, Clock, Credential, Secret, TaskGroup, is_loopback_host,
};
use tagfast_search::SearchIndex;
use tagfast_store::{ClusterReader, FailoverReader, Sealer, SharedStore};

use crate::byte_budget::ByteBudget;
use crate::web_guard::AllowedHosts;
use crate::wire::dead_letters::GroupName;
use crate::wire::words::ConsumerStateName;

/// Limits of the HTTP layer. An error names the limit that the request exceeds; all are documented
/// in `docs/reference/limits.md`.
#[derive(Debug, Clone)]
pub struct ApiLimits {
    /// Largest request body in bytes.
    pub body_bytes: usize,
    /// Longest URL in bytes.
    pub url_bytes: usize,
    /// Largest number of items in a batch.
    pub batch_items: usize,
    /// Total time for one request.
    pub request_timeout: Duration,
    /// Time for a client to send the head of a request.
    pub header_timeout: Duration,
    /// How long an answer may wait for its client to accept some of it.
    pub write_timeout: Duration,
    /// Bytes that request bodies and answers may hold in memory, over all connections.
    pub in_flight_bytes: u64,
    /// Largest number of open connections.
    pub connections: usize,
    /// Requests per second for each (tenant, user); 0 = unlimited.
    pub requests_per_second: u32,
    /// Size of the token bucket for each (tenant, user): requests at once, at least 1. The bucket
    /// refills at `requests_per_second`.
    pub burst: u32,
    /// Time for requests in flight to finish after a shutdown request.
    pub drain_timeout: Duration,
    /// Largest age of a stale answer; zero: no stale answers. Too high: users see outdated states.
    /// Too low: more users see an answer without a part, or an error.
    pub max_stale: Duration,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            body_bytes: 1 << 20,
            url_bytes: 8192,
            batch_items: 500,
            request_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(20),
            in_flight_bytes: 128 << 20,
            connections: 10_000,
            requests_per_second: 0,
            burst: 0,
            drain_timeout: Duration::from_secs(10),
            max_stale: Duration::from_secs(3600),
        }
    }
}

/// Where the keys of asymmetric tokens come from.
#[derive(Debug, Clone)]
pub enum JwksSource {
    /// A file; no token is verified with what it held more than a second ago.
    File(PathBuf),
    /// A URL, fetched at least every 10 minutes, and on an unknown key id at most every 30 s.
    Url(String),
}

/// Why a text is no source of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwksSourceError {
    /// Plain HTTP to a different machine.
    #[error(
        "http:// is accepted for loopback addresses alone, because anyone on the way could replace \
         the keys; use https:// or a file"
    )]
    PlainHttp,
    /// A URL of another scheme, or none at all.
    #[error("it is neither the path of a file nor a URL with https://")]
    UnknownScheme,
}

impl std::str::FromStr for JwksSource {
    type Err = JwksSourceError;

    fn from_str(text: &str) -> Result<Self, JwksSourceError> {
        if !text.contains("://") {
            return Ok(Self::File(text.into()));
        }
        let url: http::Uri = text.parse().map_err(|_| JwksSourceError::UnknownScheme)?;
        let host = url.host().unwrap_or_default();
        match url.scheme_str() {
            Some("https") if !host.is_empty() => Ok(Self::Url(text.to_owned())),
            Some("http") if is_loopback_host(host) => Ok(Self::Url(text.to_owned())),
            Some("http") => Err(JwksSourceError::PlainHttp),
            Some(_) | None => Err(JwksSourceError::UnknownScheme),
        }
    }
}

/// How callers are authenticated.
#[derive(Debug, Clone)]
pub enum AuthConfig {
    /// Every caller is user `anonymous` of tenant `default` with every scope; the composition root
    /// allows this on loopback addresses only.
    None,
    /// Bearer JWTs.
    Jwt {
        /// Secret of HS256 tokens, at least 32 bytes; `None` refuses HS256.
        hs256_secret: Option<Credential<Secret<Vec<u8>>>>,
        /// Keys of RS256, ES256 and EdDSA tokens; `None` refuses these algorithms.
        jwks: Option<JwksSource>,
        /// Required `aud`; `None` accepts any audience.
        audience: Option<String>,
        /// Required `iss`; `None` accepts any issuer.
        issuer: Option<String>,
        /// Clock skew allowed on `exp` and `nbf`.
        leeway: Duration,
    },
}

/// The readiness of one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// The part: `store`, `search`, `popular`.
    pub part: &'static str,
    /// Why the part is not ready; `None` when it is ready.
    pub problem: Option<String>,
}

/// The part of `GET /v1/status` that the API cannot know itself.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct StatusReport {
    /// `embedded` or `postgres`.
    pub mode: String,
    /// Roles of this process: `all`, or a comma-separated list.
    pub roles: String,
    /// The program's version.
    pub version: String,
    /// The current epoch's id and ordinal.
    pub epoch: String,
    /// Seconds since start.
    pub uptime_seconds: u64,
    /// Per consumer group: state, lag in seconds, open dead letters.
    pub consumers: Vec<ConsumerStatus>,
    /// Contents in the search index.
    pub indexed_contents: u64,
    /// Degraded features: (feature, reason).
    pub degraded: Vec<(String, String)>,
    /// Long operations in progress.
    pub running: Vec<RunningOperation>,
    /// Concurrency limits with their current use.
    pub limits: Vec<LimitStatus>,
}

/// A long operation in progress.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RunningOperation {
    /// `reindex` or `recount`.
    pub operation: String,
    /// Contents done.
    pub contents: u64,
    /// About how many there are; `None`: not known.
    pub total: Option<u64>,
}

/// A concurrency limit on calls to one dependency.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct LimitStatus {
    /// The dependency: `index`, or a database node.
    pub name: String,
    /// Largest number of concurrent calls now; an adaptive limit moves.
    pub limit: u64,
    /// Calls in flight.
    pub in_flight: u64,
    /// Calls shed by this limit since the start.
    pub shed: u64,
}

/// The status of one consumer group.
#[derive(Debug, Clone, Default, serde::Serialize, utoipa::ToSchema)]
pub struct ConsumerStatus {
    /// The consumer group.
    #[schema(value_type = GroupName)]
    pub group: String,
    /// What it is doing.
    #[schema(value_type = ConsumerStateName)]
    pub state: String,
    /// Seconds from commit to applied and visible; `null` before anything is proven.
    pub lag_seconds: Option<f64>,
    /// Open dead letters.
    pub dead_letters: u64,
}

/// Why an operation did not run.
#[derive(Debug, thiserror::Error)]
pub enum OperationsError {
    /// The same operation is in progress.
    #[error("{0} is already running")]
    AlreadyRunning(&'static str),
    /// The search index is in a state in which it cannot be rebuilt; the text says why and what
    /// ends it.
    #[error("{0}")]
    SearchUnavailable(String),
    /// The operation failed.
    #[error("the operation failed")]
    Failed(#[source] BoxError),
}

/// Operations that span several parts; the composition root implements them.
#[async_trait]
pub trait Operations: Send + Sync {
    /// The readiness of each part.
    async fn readiness(&self) -> Vec<Readiness>;
    /// Degraded features while every part is ready: (feature, reason). Must answer from memory
    /// without blocking.
    fn degraded(&self) -> Vec<(String, String)> {
        Vec::new()
    }
    /// The status of all parts.
    async fn status(&self) -> StatusReport;
    /// Rebuilds the search index from the shards while the old index serves; returns the number of
    /// contents copied.
    ///
    /// # Errors
    ///
    /// [`OperationsError::AlreadyRunning`] while a rebuild is in progress,
    /// [`OperationsError::SearchUnavailable`] where a rebuild cannot help, and
    /// [`OperationsError::Failed`] when it ends with an error; the old index then serves on.
    async fn reindex(&self) -> Result<u64, OperationsError>;
    /// Compares the popular counts with the shards, and corrects them if `repair`.
    ///
    /// # Errors
    ///
    /// As [`Operations::reindex`].
    async fn recount(&self, repair: bool) -> Result<RecountReport, OperationsError>;
    /// Lets a consumer group park records during a storm, for one minute.
    ///
    /// # Errors
    ///
    /// [`OperationsError::Failed`] when this process does not run the group.
    fn allow_storm(&self, group: &str) -> Result<(), OperationsError>;
    /// The metrics in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// The dead letters of all consumer groups.
#[derive(Clone)]
pub struct DeadLetters {
    /// The dead-letter store.
    pub store: Arc<dyn DeadLetterStore>,
    /// When dead letters are replayed automatically.
    pub auto_replay: AutoReplayPolicy,
}

/// Everything the API depends on.
#[derive(Clone)]
pub struct ApiServices {
    /// The store.
    pub store: SharedStore,
    /// Search; `None` answers 501 `not_in_this_mode`.
    pub search: Option<Arc<dyn SearchIndex>>,
    /// Popular tags; `None` answers 501 `not_in_this_mode`.
    pub popular: Option<Arc<dyn PopularTags>>,
    /// Dead letters; `None` answers 501 `not_in_this_mode`.
    pub dead_letters: Option<DeadLetters>,
    /// Whether the process serves the product routes; a process with another role serves the
    /// operations routes only.
    pub serves_product: bool,
    /// What failovers did; `None` answers 501 `not_in_this_mode`.
    pub failovers: Option<Arc<dyn FailoverReader>>,
    /// The state of the clusters; `None` answers 501 `not_in_this_mode`.
    pub clusters: Option<Arc<dyn ClusterReader>>,
    /// The circuit breakers of this process.
    pub breakers: Arc<Breakers>,
    /// Operations.
    pub operations: Arc<dyn Operations>,
    /// Seals consistency tokens, receipts and cursors.
    pub sealer: Sealer,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// How callers are authenticated.
    pub auth: AuthConfig,
    /// Limits of the domain.
    pub domain_limits: Limits,
    /// Limits of the HTTP layer.
    pub limits: ApiLimits,
    /// What the machine does not allow: (feature, reason). Shown with the degraded features.
    pub machine_limits: Vec<(String, String)>,
    /// The names by which the service may be called.
    pub allowed_hosts: AllowedHosts,
    /// What request bodies and answers hold in memory; of [`ApiLimits::in_flight_bytes`].
    pub byte_budget: ByteBudget,
    /// Work that outlives the request that started it; [`crate::serve`] ends it.
    pub tasks: TaskGroup,
}

impl ApiServices {
    /// A new group for [`ApiServices::tasks`].
    pub fn task_group() -> TaskGroup {
        TaskGroup::new("api")
    }
}
