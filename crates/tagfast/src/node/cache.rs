//! The cache layer of a cluster node, between the API and the databases: the two Redis servers and
//! the caches.
//!
//! How it fails: a Redis server that does not answer never fails the start; reads go to the
//! database, and `degraded` says so.

use std::sync::Arc;

use tagfast_cache::{CacheDependencies, CacheOptions, CachedStore};
use tagfast_client::error::CliError;
use tagfast_redis::{Redis, RedisOptions, RedisRole};
use tagfast_resilience::{Breakers, Clock};
use tagfast_store::SharedStore;
use tagfast_store_postgres::PostgresStore;

use super::roles::Roles;
use crate::config::login::PasswordFile;
use crate::config::{Config, PostgresConfig, RedisConfig};
use crate::credentials::CredentialFiles;

/// The caches of one process.
pub(crate) struct CacheLayer {
    /// The Redis of session positions and leaderboards; `None` if none is configured.
    pub(crate) state: Option<Arc<Redis>>,
    /// The Redis of cached views; `None` if none is configured or the process serves no API.
    views: Option<Arc<Redis>>,
    cached: Option<Arc<CachedStore>>,
}

impl CacheLayer {
    /// Connects to the configured Redis servers in the background, and puts caches in front of the
    /// store in a process that serves the API.
    pub(crate) fn start(
        config: &Config,
        postgres: &PostgresConfig,
        roles: Roles,
        store: &Arc<PostgresStore>,
        (clock, breakers): (&Arc<dyn Clock>, &Arc<Breakers>),
        credentials: &CredentialFiles,
    ) -> Result<Self, CliError> {
        let redis = |key: &str, redis: &Option<RedisConfig>, role| match redis {
            None => Ok(None),
            Some(redis) => Redis::start_with(options(redis, credentials)?, role, breakers)
                .map(Some)
                .map_err(|e| CliError::new(key).with_source(e)),
        };
        let state = redis("state.redis_url", &postgres.state_redis, RedisRole::State)?;
        if !roles.api {
            return Ok(Self { state, views: None, cached: None });
        }
        let views = redis("cache.redis_url", &config.cache.redis, RedisRole::Cache)?;
        let parts = CacheDependencies {
            store: Arc::clone(store) as SharedStore,
            history: Arc::clone(store) as _,
            views: views.clone(),
            positions: state.clone(),
            clock: Arc::clone(clock),
        };
        let options = CacheOptions {
            l1_bytes: config.cache.local_max_bytes,
            soft_ttl: config.cache.soft_ttl,
            stale_if_error: config.cache.stale_if_error,
            ..CacheOptions::default()
        };
        let cached = CachedStore::start(parts, options);
        Ok(Self { state, views, cached: Some(cached) })
    }

    /// Ends the caches, then the connections to the Redis servers, and waits for their tasks.
    pub(crate) async fn stop(&self) {
        if let Some(cached) = &self.cached {
            cached.stop().await;
        }
        for redis in self.views.iter().chain(&self.state) {
            redis.stop().await;
        }
    }

    /// The store as the API sees it: behind the caches if there are any.
    pub(crate) fn store(&self, store: &Arc<PostgresStore>) -> SharedStore {
        match &self.cached {
            Some(cached) => Arc::clone(cached) as SharedStore,
            None => Arc::clone(store) as SharedStore,
        }
    }

    /// The features that work worse than they should: (feature, reason).
    pub(crate) fn degraded(&self) -> Vec<(String, String)> {
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

/// How a Redis is reached; its passwords come from their files.
fn options(redis: &RedisConfig, credentials: &CredentialFiles) -> Result<RedisOptions, CliError> {
    let open =
        |file: Option<&PasswordFile>| credentials.open_some(file.map(PasswordFile::password));
    Ok(RedisOptions {
        url: redis.url.clone(),
        password: open(redis.password.as_ref())?,
        sentinel_user: redis.sentinel_user.clone(),
        sentinel_password: open(redis.sentinel_password.as_ref())?,
    })
}
