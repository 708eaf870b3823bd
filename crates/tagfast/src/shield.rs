//! What stands between the API and the databases of a cluster: the two Redis servers and the
//! caches.

use std::sync::Arc;

use tagfast_cache::{CacheOptions, CacheParts, CachedStore};
use tagfast_redis::{Redis, Use};
use tagfast_resilience::{Breakers, Clock};
use tagfast_store::SharedStore;
use tagfast_store_postgres::PostgresStore;

use crate::config::{Config, PostgresConfig};
use crate::failure::Failure;
use crate::roles::Roles;

/// The shield of one process.
pub struct Shield {
    /// Positions and boards.
    pub state: Option<Arc<Redis>>,
    cached: Option<Arc<CachedStore>>,
}

impl Shield {
    /// Connects to what is configured, in the background, and puts caches in front of the store of
    /// a process that serves the API.
    pub fn start(
        config: &Config,
        postgres: &PostgresConfig,
        roles: Roles,
        store: &Arc<PostgresStore>,
        clock: &Arc<dyn Clock>,
        breakers: &Arc<Breakers>,
    ) -> Result<Self, Failure> {
        let redis = |key: &str, url: &Option<String>, used_as| match url {
            None => Ok(None),
            Some(url) => Redis::start(url, used_as, breakers)
                .map(Some)
                .map_err(|e| Failure::new(format!("{key}: {e}"))),
        };
        let state = redis("state.redis_url", &postgres.state_redis, Use::State)?;
        if !roles.api {
            return Ok(Self { state, cached: None });
        }
        let parts = CacheParts {
            store: Arc::clone(store) as SharedStore,
            history: Arc::clone(store) as _,
            views: redis("cache.redis_url", &config.cache.redis_url, Use::Cache)?,
            positions: state.clone(),
            clock: Arc::clone(clock),
        };
        let options = CacheOptions {
            l1_bytes: config.cache.l1_max_bytes as u64,
            soft_ttl: config.cache.soft_ttl,
            stale_if_error: config.cache.stale_if_error,
            ..CacheOptions::default()
        };
        let cached = CachedStore::start(parts, options);
        Ok(Self { state, cached: Some(cached) })
    }

    /// The store as the API sees it.
    pub fn store(&self, store: &Arc<PostgresStore>) -> SharedStore {
        match &self.cached {
            Some(cached) => Arc::clone(cached) as SharedStore,
            None => Arc::clone(store) as SharedStore,
        }
    }

    /// What works worse than it should: (feature, reason).
    pub fn degraded(&self) -> Vec<(String, String)> {
        let mut degraded: Vec<(String, String)> = Vec::new();
        if let Some(problem) = self.state.as_ref().and_then(|redis| redis.problem()) {
            degraded.push(("popular".to_owned(), problem));
        }
        if let Some(cached) = &self.cached {
            degraded.extend(
                cached
                    .status()
                    .degraded
                    .into_iter()
                    .map(|(feature, reason)| (feature.to_owned(), reason)),
            );
        }
        degraded
    }
}
