//! The keys of asymmetric tokens: a JSON Web Key Set from a file or a URL, refreshed while serving.
//!
//! Rotation: a file is checked every second, a URL is fetched every ten minutes and, for an unknown
//! key id, at most every 30 seconds.
//!
//! How it fails: when a refresh fails, the known keys stay in force; before the first success no
//! token can be verified.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::RwLock;
use serde::Deserialize;
use tagfast_resilience::OutageLog;
use tagfast_resilience::task::{TaskGroup, blocking};
use tokio::time::Instant;

use crate::services::JwksSource;

/// Largest key set in bytes.
const JWKS_BYTES_MAX: usize = 1 << 20;
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
const URL_FETCH_INTERVAL: Duration = Duration::from_secs(600);
/// Least time between two fetches because of an unknown key id.
const URL_REFETCH_INTERVAL_MIN: Duration = Duration::from_secs(30);
/// Least time between two attempts while no key set has been loaded, and for files.
const RETRY_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The keys of one set, each with its algorithm.
#[derive(Default)]
pub(crate) struct Keys(Vec<Key>);

struct Key {
    kid: Option<String>,
    alg: Algorithm,
    key: DecodingKey,
}

impl Keys {
    /// The keys that may have signed a token: those of its algorithm and, if the token names a key
    /// id, of that id.
    pub(crate) fn find<'a>(
        &'a self,
        kid: Option<&'a str>,
        alg: Algorithm,
    ) -> impl Iterator<Item = &'a DecodingKey> {
        self.0
            .iter()
            .filter(move |k| k.alg == alg && (kid.is_none() || k.kid.as_deref() == kid))
            .map(|k| &k.key)
    }

    /// Parses a set; keys of unsupported kinds are left out.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = tagfast_json::from_slice(bytes)?;
        Ok(Self(
            set.keys
                .into_iter()
                .filter_map(|k| Key::new(tagfast_json::from_value(k).ok()?))
                .collect(),
        ))
    }
}

impl Key {
    /// `None`: the key is of a kind or use that is not supported here.
    fn new(jwk: Jwk) -> Option<Self> {
        let alg = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            // A symmetric key in a public set would let every reader of the set sign tokens.
            AlgorithmParameters::EllipticCurve(_)
            | AlgorithmParameters::OctetKeyPair(_)
            | AlgorithmParameters::OctetKey(_)
            | AlgorithmParameters::Other(_)
            | _ => return None,
        };
        let declared = jwk.common.key_algorithm.is_none_or(|a| a.to_string() == format!("{alg:?}"));
        let signs =
            jwk.common.public_key_use.as_ref().is_none_or(|u| *u == PublicKeyUse::Signature);
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        (declared && signs).then_some(Self { kid: jwk.common.key_id, alg, key })
    }
}

/// A key set that refreshes itself.
pub(crate) struct KeySet {
    source: JwksSource,
    start: Instant,
    keys: RwLock<Option<Arc<Keys>>>,
    generation: AtomicU64,
    /// Milliseconds since `start` when the next periodic refresh is due.
    due_ms: AtomicU64,
    /// Held while one refresh runs.
    refreshing: tokio::sync::Mutex<RefreshState>,
    /// The periodic refreshes; each ends with the timeout of its fetch.
    tasks: TaskGroup,
    outage: OutageLog,
}

#[derive(Default)]
struct RefreshState {
    /// The last attempt; `None` before the first.
    attempted: Option<Instant>,
    /// Modification time of the file that was read last; `None` before the first.
    modified: Option<SystemTime>,
}

impl KeySet {
    pub(crate) fn new(source: JwksSource, tasks: TaskGroup) -> Arc<Self> {
        Arc::new(Self {
            source,
            start: Instant::now(),
            keys: RwLock::default(),
            generation: AtomicU64::new(0),
            due_ms: AtomicU64::new(0),
            refreshing: tokio::sync::Mutex::default(),
            tasks,
            outage: OutageLog::new("loading the key set"),
        })
    }

    /// The keys in force; `None` before the first success.
    pub(crate) fn current(&self) -> Option<Arc<Keys>> {
        self.keys.read().clone()
    }

    /// Changes whenever the keys do.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn refresh_interval(&self) -> Duration {
        match self.source {
            JwksSource::File(_) => FILE_CHECK_INTERVAL,
            JwksSource::Url(_) => URL_FETCH_INTERVAL,
        }
    }

    /// The least time between two refreshes that requests start.
    fn refresh_interval_min(&self) -> Duration {
        match (&self.source, self.current().is_some()) {
            (JwksSource::Url(_), true) => URL_REFETCH_INTERVAL_MIN,
            (JwksSource::Url(_), false) | (JwksSource::File(_), _) => RETRY_INTERVAL_MIN,
        }
    }

    /// Starts a periodic refresh in the background when it is due.
    pub(crate) fn refresh_when_due(self: &Arc<Self>) {
        let now = self.start.elapsed().as_millis() as u64;
        let due = self.due_ms.load(Ordering::Relaxed);
        if now < due || self.generation() == 0 {
            return;
        }
        let next = now + self.refresh_interval().as_millis() as u64;
        if self.due_ms.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let this = Arc::clone(self);
            self.tasks.spawn(async move { this.load(&mut *this.refreshing.lock().await).await });
        }
    }

    /// Refreshes because a request needs an unknown key; at most once per
    /// [`KeySet::refresh_interval_min`].
    pub(crate) async fn refresh(&self) {
        let mut state = self.refreshing.lock().await;
        if state.attempted.is_some_and(|at| at.elapsed() < self.refresh_interval_min()) {
            return;
        }
        self.load(&mut state).await;
    }

    async fn load(&self, state: &mut RefreshState) {
        state.attempted = Some(Instant::now());
        let loaded = match &self.source {
            JwksSource::File(path) => read(path.clone(), state).await,
            JwksSource::Url(url) => fetch(url).await.map(Some),
        };
        let keys = match loaded {
            Ok(None) => return,
            Ok(Some(bytes)) => Keys::parse(&bytes).map_err(LoadError::Parse),
            Err(error) => Err(error),
        };
        match keys {
            Ok(keys) => {
                self.outage.recovered();
                tracing::info!(keys = keys.0.len(), "key set loaded");
                *self.keys.write() = Some(Arc::new(keys));
                self.generation.fetch_add(1, Ordering::Release);
                let next = self.start.elapsed() + self.refresh_interval();
                self.due_ms.store(next.as_millis() as u64, Ordering::Relaxed);
            }
            // The known keys stay in force.
            Err(error) => drop(self.outage.failed(&error)),
        }
    }
}

/// Why a key set could not be loaded.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("the file cannot be read")]
    Read(#[source] std::io::Error),
    #[error("reading the file was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
    #[error("the key server cannot be reached")]
    Fetch(#[from] reqwest::Error),
    #[error("the key server answered {0}")]
    Status(http::StatusCode),
    #[error("the key set has more than {JWKS_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the key set is not a JSON Web Key Set")]
    Parse(#[source] serde_json::Error),
}

/// The file's content; `None` if it was not modified since it was read last.
async fn read(path: PathBuf, state: &mut RefreshState) -> Result<Option<Vec<u8>>, LoadError> {
    let known = state.modified;
    let read = move || -> std::io::Result<Option<(Vec<u8>, SystemTime)>> {
        let modified = std::fs::metadata(&path)?.modified()?;
        if known == Some(modified) {
            return Ok(None);
        }
        Ok(Some((std::fs::read(&path)?, modified)))
    };
    match blocking(read).await.map_err(LoadError::Interrupted)?.map_err(LoadError::Read)? {
        Some((bytes, modified)) => {
            state.modified = Some(modified);
            Ok(Some(bytes))
        }
        None => Ok(None),
    }
}

async fn fetch(url: &str) -> Result<Vec<u8>, LoadError> {
    let client = reqwest::Client::builder()
        .timeout(FETCH_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let mut response = client.get(url).send().await?;
    if !response.status().is_success() {
        return Err(LoadError::Status(response.status()));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > JWKS_BYTES_MAX {
            return Err(LoadError::TooLarge);
        }
    }
    Ok(bytes)
}
