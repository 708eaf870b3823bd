//! The key set in force and its refreshes.
//!
//! A background task loads the set again and again, so that no request waits for a key server. The
//! age of what is in force is bounded all the same: a request that finds a set older than
//! [`KeySet::age_max`], because the process stood still, waits for a refresh. What is compared is
//! the content, never a time of modification. An unknown key id asks out of turn.
//!
//! How it fails: a set that cannot be loaded, or that has no usable key, replaces nothing. The
//! known keys stay in force, which the log, the metrics, `/readyz` and `/v1/status` say; the
//! background task tries on, and no request waits meanwhile. Before the first success no token can
//! be verified.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tagfast_resilience::{OutageLog, counter, gauge};
use tokio::time::Instant;

use super::keys::Keys;
use super::source::{LoadError, load};
use crate::metric::{JWKS_KEYS, JWKS_REFRESHES, JwksRefresh};
use crate::services::JwksSource;

/// The age at which a set from a file is read again before a token is verified. The documentation
/// promises it.
const FILE_AGE_MAX: Duration = Duration::from_secs(1);
/// Interval of the background task's reads of a file.
const FILE_READ_INTERVAL: Duration = Duration::from_millis(500);
/// The age at which a set from a URL is fetched again before a token is verified. The documentation
/// promises it.
const URL_AGE_MAX: Duration = Duration::from_secs(600);
/// Interval of the background task's fetches: early enough for a slow key server.
const URL_FETCH_INTERVAL: Duration = Duration::from_secs(540);
/// Least time between two fetches because of an unknown key id, and between two after a failure.
const URL_REFETCH_INTERVAL_MIN: Duration = Duration::from_secs(30);
/// Least time between two attempts while no key set has been loaded, and for files.
const RETRY_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// A SHA-256.
type ContentHash = [u8; 32];

/// A key set that is kept fresh.
pub(crate) struct KeySet {
    source: JwksSource,
    state: RwLock<State>,
    generation: AtomicU64,
    /// Held while one refresh runs; the hash of the set in force, `None` before the first.
    refreshing: tokio::sync::Mutex<Option<ContentHash>>,
    keeper: OnceLock<BackgroundTask>,
    outage: OutageLog,
}

#[derive(Default)]
struct State {
    /// `None` before the first success.
    keys: Option<Arc<Keys>>,
    /// The last attempt's begin; `None` before the first.
    attempted: Option<Instant>,
    /// Whether the last attempt failed.
    failed: bool,
}

/// The keys in force at one moment.
pub(crate) struct KeysInForce(Arc<Keys>);

impl KeysInForce {
    /// The keys that may have signed a token of this algorithm and key id.
    pub(crate) fn find<'a>(
        &'a self,
        kid: Option<&'a str>,
        alg: Algorithm,
    ) -> impl Iterator<Item = &'a DecodingKey> {
        self.0.find(kid, alg)
    }
}

impl KeySet {
    pub(crate) fn new(source: JwksSource) -> Arc<Self> {
        let this = Arc::new(Self {
            source,
            state: RwLock::default(),
            generation: AtomicU64::new(0),
            refreshing: tokio::sync::Mutex::default(),
            keeper: OnceLock::new(),
            outage: OutageLog::new("loading the key set"),
        });
        // Outside of a runtime the first request starts it.
        if tokio::runtime::Handle::try_current().is_ok() {
            this.start_keeper();
        }
        this
    }

    /// The keys in force; `None` before the first success.
    pub(crate) fn current(&self) -> Option<KeysInForce> {
        self.state.read().keys.clone().map(KeysInForce)
    }

    /// Changes whenever the keys do.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the last refresh failed: what is in force may be outdated, or there is nothing.
    pub(crate) fn is_outdated(&self) -> bool {
        self.state.read().failed
    }

    /// The largest age of a set that verifies a token, unless refreshing fails.
    fn age_max(&self) -> Duration {
        match self.source {
            JwksSource::File(_) => FILE_AGE_MAX,
            JwksSource::Url(_) => URL_AGE_MAX,
        }
    }

    /// The least time between two refreshes out of turn.
    fn refresh_interval_min(&self) -> Duration {
        match (&self.source, self.state.read().keys.is_some()) {
            (JwksSource::Url(_), true) => URL_REFETCH_INTERVAL_MIN,
            (JwksSource::Url(_), false) | (JwksSource::File(_), _) => RETRY_INTERVAL_MIN,
        }
    }

    /// The time until the background task's next refresh.
    fn pause(&self) -> Duration {
        match (&self.source, self.is_outdated()) {
            (JwksSource::File(_), _) => FILE_READ_INTERVAL,
            (JwksSource::Url(_), false) => URL_FETCH_INTERVAL,
            (JwksSource::Url(_), true) => self.refresh_interval_min(),
        }
    }

    fn start_keeper(self: &Arc<Self>) {
        self.keeper.get_or_init(|| {
            let this = Arc::downgrade(self);
            BackgroundTask::spawn("key set", |stop| keep_fresh(this, stop))
        });
    }

    /// Makes sure that the keys in force are not older than documented. Waits only if the
    /// background task could not do its work.
    pub(crate) async fn ensure_fresh(self: &Arc<Self>) {
        self.start_keeper();
        if self.is_overdue() {
            let mut known = self.refreshing.lock().await;
            if self.is_overdue() {
                self.load(&mut known).await;
            }
        }
    }

    fn is_overdue(&self) -> bool {
        let state = self.state.read();
        !state.failed && state.attempted.is_some_and(|at| at.elapsed() >= self.age_max())
    }

    /// Refreshes because a request needs an unknown key; at most once per
    /// [`KeySet::refresh_interval_min`].
    pub(crate) async fn refresh(&self) {
        let mut known = self.refreshing.lock().await;
        let attempted = self.state.read().attempted;
        if attempted.is_none_or(|at| at.elapsed() >= self.refresh_interval_min()) {
            self.load(&mut known).await;
        }
    }

    async fn load(&self, known: &mut Option<ContentHash>) {
        let began = Instant::now();
        let loaded = load(&self.source).await.and_then(|bytes| {
            let hash: ContentHash = Sha256::digest(&bytes).into();
            if *known == Some(hash) {
                return Ok(None);
            }
            let keys = Keys::parse(&bytes).map_err(LoadError::Parse)?;
            if keys.len() == 0 {
                return Err(LoadError::NoUsableKey(keys.left_out));
            }
            Ok(Some((hash, keys)))
        });
        let mut state = self.state.write();
        state.attempted = Some(began);
        state.failed = loaded.is_err();
        let outcome = match loaded {
            Ok(None) => {
                self.outage.recovered();
                JwksRefresh::Unchanged
            }
            Ok(Some((hash, keys))) => {
                self.outage.recovered();
                tracing::info!(keys = keys.len(), left_out = keys.left_out, "key set loaded");
                gauge!(JWKS_KEYS).set(keys.len() as f64);
                *known = Some(hash);
                state.keys = Some(Arc::new(keys));
                self.generation.fetch_add(1, Ordering::Release);
                JwksRefresh::Changed
            }
            // The known keys stay in force.
            Err(error) => {
                self.outage.failed(&error);
                JwksRefresh::Failed
            }
        };
        counter!(JWKS_REFRESHES, "outcome" => outcome).increment(1);
    }
}

/// Loads the set at once and then in its interval, until its owner is gone.
async fn keep_fresh(key_set: Weak<KeySet>, stop: StopSignal) {
    loop {
        let Some(this) = key_set.upgrade() else { return };
        let work = async {
            let mut known = this.refreshing.lock().await;
            let attempted = this.state.read().attempted;
            if attempted.is_none_or(|at| at.elapsed() >= this.pause()) {
                this.load(&mut known).await;
            }
        };
        if stop.run_until_cancelled(work).await.is_none() {
            return;
        }
        let pause = tokio::time::sleep(this.pause());
        // Only users of the set keep it alive.
        drop(this);
        if stop.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}
