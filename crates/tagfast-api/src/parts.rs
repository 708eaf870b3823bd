//! What the composition root hands to the API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tagfast_domain::Limits;
use tagfast_events::{Cooldown, LetterBook};
use tagfast_popular::{PopularTags, RecountReport};
use tagfast_resilience::{Breakers, Clock};
use tagfast_search::SearchIndex;
use tagfast_store::{Sealer, SharedStore};

/// Limits of the HTTP layer. Each is documented in `docs/limits.md` and named in its error.
#[derive(Debug, Clone)]
pub struct ApiLimits {
    /// Largest request body in bytes.
    pub body_bytes: usize,
    /// Longest URL in bytes.
    pub url_bytes: usize,
    /// Items in a batch.
    pub batch_items: usize,
    /// How long a request may take in all.
    pub request_timeout: Duration,
    /// How long a client may take to send its head.
    pub header_timeout: Duration,
    /// Connections at a time.
    pub connections: usize,
    /// Requests per second and (tenant, user); 0 = unlimited.
    pub requests_per_second: u32,
    /// Size of the allowance that fills at the rate: requests at once, per (tenant, user); at
    /// least 1.
    pub burst: u32,
    /// How long requests in flight may take to finish after a stop was asked for.
    pub drain_timeout: Duration,
    /// The oldest stale answer that is given; zero: none. Too high: users see a state of long ago.
    /// Too low: more of them see an answer without a part, or an error.
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
    /// A file, read again when it changes.
    File(PathBuf),
    /// A URL, fetched again on an unknown key id (at most every 30 s) and every 10 minutes.
    Url(String),
}

/// Who may call.
#[derive(Debug, Clone)]
pub enum AuthConfig {
    /// Everybody is user `anonymous` of tenant `default` with every scope; the composition root
    /// allows it on loopback only.
    None,
    /// Bearer JWTs.
    Jwt {
        /// Secret of HS256 tokens, at least 32 bytes.
        hs256_secret: Option<Vec<u8>>,
        /// Keys of RS256, ES256 and EdDSA tokens.
        jwks: Option<JwksSource>,
        /// Required `aud`, if any.
        audience: Option<String>,
        /// Required `iss`, if any.
        issuer: Option<String>,
        /// Clock skew allowed on `exp` and `nbf`.
        leeway: Duration,
    },
}

/// One part and why it is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// The part: `store`, `search`, `popular`.
    pub part: &'static str,
    /// `None` when it is ready.
    pub problem: Option<String>,
}

/// What `GET /v1/status` shows beside what the API knows itself.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct StatusReport {
    /// `embedded` or `postgres`.
    pub mode: String,
    /// What this process does: `all`, or roles with commas between them.
    pub roles: String,
    /// The program's version.
    pub version: String,
    /// The current epoch's id and ordinal.
    pub epoch: String,
    /// Seconds since start.
    pub uptime_seconds: u64,
    /// Per consumer group: state, lag in seconds, parked letters.
    pub consumers: Vec<ConsumerStatus>,
    /// Contents in the search index.
    pub indexed_contents: u64,
    /// Features that do not work fully now: (feature, reason).
    pub degraded: Vec<(String, String)>,
    /// Long work under way: (`reindex` or `recount`, contents done).
    pub running: Vec<(String, u64)>,
    /// How much may be done at once, and how much is.
    pub limits: Vec<LimitStatus>,
}

/// A limit on calls to something.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct LimitStatus {
    /// What is called: `index`, a database node.
    pub name: String,
    /// Most calls at once now; it may move by itself.
    pub limit: u64,
    /// Calls that have not ended.
    pub in_flight: u64,
    /// Calls that were refused since the start because of it.
    pub shed: u64,
}

/// One consumer group.
#[derive(Debug, Clone, Default, serde::Serialize, utoipa::ToSchema)]
pub struct ConsumerStatus {
    /// `indexer` or `analytics`.
    pub group: String,
    /// `running`, `paused`, `rebuilding`, `stopped`.
    pub state: String,
    /// Seconds from commit to applied and visible.
    pub lag_seconds: f64,
    /// Open dead letters.
    pub dead_letters: u64,
}

/// Why an operation did not run.
#[derive(Debug, thiserror::Error)]
pub enum OperationsError {
    /// The same operation is under way.
    #[error("{0} is already running")]
    AlreadyRunning(&'static str),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// Operations that span parts; the composition root implements them.
#[async_trait]
pub trait Operations: Send + Sync {
    /// Which parts are ready.
    async fn readiness(&self) -> Vec<Readiness>;
    /// What works worse than it should while everything is ready: (feature, reason). From memory:
    /// nobody waits for it.
    fn degraded(&self) -> Vec<(String, String)> {
        Vec::new()
    }
    /// The state of everything.
    async fn status(&self) -> StatusReport;
    /// Rebuilds the search index from the shards while serving; returns the contents copied.
    async fn reindex(&self) -> Result<u64, OperationsError>;
    /// Compares (and repairs) the popular counts.
    async fn recount(&self, repair: bool) -> Result<RecountReport, OperationsError>;
    /// Lets a consumer group write the dead letters of a storm, for a minute.
    fn allow_storm(&self, group: &str) -> Result<(), OperationsError>;
    /// The metrics in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// Dead letters.
#[derive(Clone)]
pub struct Letters {
    /// Where they are kept.
    pub book: Arc<dyn LetterBook>,
    /// When they are replayed by themselves.
    pub cooldown: Cooldown,
}

/// Everything the API needs.
#[derive(Clone)]
pub struct ApiParts {
    /// The store.
    pub store: SharedStore,
    /// Search; `None` answers 501 `not_in_this_mode`.
    pub search: Option<Arc<dyn SearchIndex>>,
    /// Popular tags; `None` answers 501 `not_in_this_mode`.
    pub popular: Option<Arc<dyn PopularTags>>,
    /// Dead letters; `None` answers 501 `not_in_this_mode`.
    pub letters: Option<Letters>,
    /// Whether all routes are served; else those of operations alone, by a process that has
    /// another role.
    pub whole: bool,
    /// Whether past writes can be judged; without it 501 `not_in_this_mode`.
    pub verdicts: bool,
    /// The circuit breakers of this process.
    pub breakers: Arc<Breakers>,
    /// Operations.
    pub operations: Arc<dyn Operations>,
    /// Seals tokens and cursors.
    pub sealer: Sealer,
    /// The date.
    pub clock: Arc<dyn Clock>,
    /// Who may call.
    pub auth: AuthConfig,
    /// Limits of the domain.
    pub domain_limits: Limits,
    /// Limits of the API.
    pub limits: ApiLimits,
}
