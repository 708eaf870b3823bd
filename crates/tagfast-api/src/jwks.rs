//! The keys of asymmetric tokens: a JSON Web Key Set from a file or a URL, kept fresh while
//! serving.
//!
//! Rotation: a file is looked at every second, a URL fetched every ten minutes and, for an unknown
//! key id, at most every 30 seconds. When a refresh fails the keys that are known stay in force;
//! before the first success tokens cannot be checked at all.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use tokio::time::Instant;

use crate::parts::JwksSource;

/// Largest key set in bytes.
const SET_BYTES: usize = 1 << 20;
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Keys with what each may check.
#[derive(Default)]
pub(crate) struct Keys(Vec<Key>);

struct Key {
    kid: Option<String>,
    alg: Algorithm,
    key: DecodingKey,
}

impl Keys {
    /// The keys that may have signed: those of this algorithm and, when the token names one, of
    /// this id.
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

    /// Parses a set; keys of kinds that are not used here are left out.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(bytes)?;
        Ok(Self(
            set.keys
                .into_iter()
                .filter_map(|k| Key::new(serde_json::from_value(k).ok()?))
                .collect(),
        ))
    }
}

impl Key {
    fn new(jwk: Jwk) -> Option<Self> {
        let alg = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            // A symmetric key in a public set would let its readers sign.
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

/// A key set that renews itself.
pub(crate) struct KeySet {
    source: JwksSource,
    start: Instant,
    keys: RwLock<Option<Arc<Keys>>>,
    generation: AtomicU64,
    /// Milliseconds since `start` when the next periodic refresh is due.
    due_ms: AtomicU64,
    refreshing: tokio::sync::Mutex<Refreshing>,
}

#[derive(Default)]
struct Refreshing {
    attempted: Option<Instant>,
    modified: Option<SystemTime>,
}

impl KeySet {
    pub(crate) fn new(source: JwksSource) -> Arc<Self> {
        Arc::new(Self {
            source,
            start: Instant::now(),
            keys: RwLock::default(),
            generation: AtomicU64::new(0),
            due_ms: AtomicU64::new(0),
            refreshing: tokio::sync::Mutex::default(),
        })
    }

    /// The keys in force; `None` before the first success.
    pub(crate) fn current(&self) -> Option<Arc<Keys>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes whenever the keys do.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn period(&self) -> Duration {
        match self.source {
            JwksSource::File(_) => Duration::from_secs(1),
            JwksSource::Url(_) => Duration::from_secs(600),
        }
    }

    /// The least time between two attempts that a request asks for.
    fn pause(&self) -> Duration {
        match (&self.source, self.current().is_some()) {
            (JwksSource::Url(_), true) => Duration::from_secs(30),
            (JwksSource::Url(_), false) | (JwksSource::File(_), _) => Duration::from_secs(1),
        }
    }

    /// Starts a refresh in the background when its time has come.
    pub(crate) fn refresh_when_due(self: &Arc<Self>) {
        let now = self.start.elapsed().as_millis() as u64;
        let due = self.due_ms.load(Ordering::Relaxed);
        if now < due || self.generation() == 0 {
            return;
        }
        let next = now + self.period().as_millis() as u64;
        if self.due_ms.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let this = Arc::clone(self);
            tokio::spawn(async move { this.load(&mut *this.refreshing.lock().await).await });
        }
    }

    /// Refreshes because a request needs a key that is not there; not more often than
    /// [`KeySet::pause`].
    pub(crate) async fn refresh(&self) {
        let mut state = self.refreshing.lock().await;
        if state.attempted.is_some_and(|at| at.elapsed() < self.pause()) {
            return;
        }
        self.load(&mut state).await;
    }

    async fn load(&self, state: &mut Refreshing) {
        state.attempted = Some(Instant::now());
        let loaded = match &self.source {
            JwksSource::File(path) => read(path.clone(), state).await,
            JwksSource::Url(url) => fetch(url).await.map(Some),
        };
        let keys = match loaded {
            Ok(None) => return,
            Ok(Some(bytes)) => Keys::parse(&bytes).map_err(|e| e.to_string()),
            Err(error) => Err(error),
        };
        match keys {
            Ok(keys) => {
                tracing::info!(keys = keys.0.len(), "key set loaded");
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
                self.generation.fetch_add(1, Ordering::Release);
                let next = self.start.elapsed() + self.period();
                self.due_ms.store(next.as_millis() as u64, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(error, "the key set cannot be loaded; known keys stay in force")
            }
        }
    }
}

/// The file's content if it was modified since the last look.
async fn read(path: std::path::PathBuf, state: &mut Refreshing) -> Result<Option<Vec<u8>>, String> {
    let known = state.modified;
    let read = move || -> std::io::Result<Option<(Vec<u8>, SystemTime)>> {
        let modified = modified(&path)?;
        if known == Some(modified) {
            return Ok(None);
        }
        Ok(Some((std::fs::read(&path)?, modified)))
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(Some((bytes, modified)))) => {
            state.modified = Some(modified);
            Ok(Some(bytes))
        }
        Ok(Ok(None)) => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn modified(path: &Path) -> std::io::Result<SystemTime> {
    std::fs::metadata(path)?.modified()
}

async fn fetch(url: &str) -> Result<Vec<u8>, String> {
    let client = reqwest::Client::builder()
        .timeout(FETCH_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|e| e.to_string())?;
    let mut response = client.get(url).send().await.map_err(|e| e.to_string())?;
    if !response.status().is_success() {
        return Err(format!("the key server answered {}", response.status()));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| e.to_string())? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > SET_BYTES {
            return Err(format!("the key set has more than {SET_BYTES} bytes"));
        }
    }
    Ok(bytes)
}
