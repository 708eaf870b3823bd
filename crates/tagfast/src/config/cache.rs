//! The part of a configuration that sizes the caches, and the shares of tenants while the server
//! cannot answer everything.

use std::collections::BTreeMap;
use std::time::Duration;

use tagfast_domain::TenantId;
use tagfast_resilience::Address;
use tagfast_store::fair_queue::TenantWeights;

use super::key::TextKey;
use super::keys::{CACHE, LIMITS};
use super::login::{PasswordFile, password_file};
use super::values::Values;

/// The heaviest tenant.
const WEIGHT_MAX: u8 = TenantWeights::WEIGHT_MAX;

/// The caches in front of the databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// The Redis of cached views; `None` = every process caches views for itself.
    pub redis: Option<RedisConfig>,
    /// Memory of this process for its local cache (L1), in bytes; 0 = no local cache.
    pub local_max_bytes: u64,
    /// How long a cached view is served before it is refreshed.
    pub soft_ttl: Duration,
    /// Age of the oldest stale answer that is served; zero = none.
    pub stale_if_error: Duration,
}

/// One Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// Its address, with the user if it has one.
    pub url: Address,
    /// The file of its password; `None` = the URL's, if there is one.
    pub password: Option<PasswordFile>,
    /// The user of the Sentinels; `None` = the default user.
    pub sentinel_user: Option<String>,
    /// The file of the Sentinels' password; `None` = they ask for none.
    pub sentinel_password: Option<PasswordFile>,
}

/// A Redis; `None` without a URL.
pub(super) fn redis(
    values: &mut Values<'_>,
    url_key: &TextKey,
    password_key: &TextKey,
    sentinel: (&TextKey, &TextKey),
) -> Option<RedisConfig> {
    let (password, sentinel_user) = (password_file(values, password_key), values.text(sentinel.0));
    let sentinel_password = password_file(values, sentinel.1);
    if sentinel_user.is_some() && sentinel_password.is_none() {
        values.refuse(format!("{} needs {}", sentinel.0.0.path(), sentinel.1.0.path()));
    }
    let Some(url) = values.text(url_key) else {
        let set = [password_key, sentinel.0, sentinel.1];
        for key in set {
            if values.text(key).is_some() {
                values.refuse(format!("{} needs {}", key.0.path(), url_key.0.path()));
            }
        }
        return None;
    };
    Some(RedisConfig { url: url.into(), password, sentinel_user, sentinel_password })
}

pub(super) fn cache(values: &mut Values<'_>) -> CacheConfig {
    CacheConfig {
        redis: redis(
            values,
            &CACHE.redis_url,
            &CACHE.redis_password_file,
            (&CACHE.sentinel_user, &CACHE.sentinel_password_file),
        ),
        local_max_bytes: values.number(&CACHE.local_max_bytes),
        soft_ttl: values.seconds(&CACHE.soft_ttl_seconds),
        stale_if_error: values.seconds(&CACHE.stale_if_error_seconds),
    }
}

/// The tenants with a weight other than 1.
pub(super) fn tenant_weights(values: &mut Values<'_>) -> BTreeMap<TenantId, u8> {
    let mut weights = BTreeMap::new();
    for item in values.list(&LIMITS.tenant_weights) {
        let parsed = item.split_once('=').and_then(|(tenant, weight)| {
            let weight =
                weight.trim().parse().ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight))?;
            Some((TenantId::parse(tenant.trim()).ok()?, weight))
        });
        let Some((tenant, weight)) = parsed else {
            values.refuse(format!(
                "limits.tenant_weights holds {item:?}; write TENANT=WEIGHT with a weight of 1 to \
                 {WEIGHT_MAX}, for example \"acme=3\""
            ));
            continue;
        };
        if weights.insert(tenant, weight).is_some() {
            values.refuse(format!("limits.tenant_weights names the tenant of {item:?} twice"));
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::sources::gather;

    fn resolve_text(text: &str) -> (CacheConfig, BTreeMap<TenantId, u8>, Vec<String>) {
        let sources = gather(Some((Path::new("t.toml"), text)), &BTreeMap::new(), &[]).unwrap();
        let mut values = Values::new(&sources);
        let (cache, weights) = (cache(&mut values), tenant_weights(&mut values));
        (cache, weights, values.into_errors())
    }

    #[test]
    fn caches_can_be_sized_and_turned_off() {
        let (cache, weights, errors) = resolve_text("");
        assert_eq!(
            (cache.local_max_bytes, cache.soft_ttl.as_secs(), cache.stale_if_error.as_secs()),
            (64 << 20, 60, 3600)
        );
        assert_eq!((cache.redis, weights.len(), errors.len()), (None, 0, 0));
        let (cache, _, errors) = resolve_text(
            "[cache]\nredis_url = \"redis://r:6379\"\nlocal_max_bytes = 0\n\
             stale_if_error_seconds = 0\nsoft_ttl_seconds = 5",
        );
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(cache.redis.as_ref().map(|r| r.url.expose()), Some("redis://r:6379"));
        assert_eq!(
            (cache.local_max_bytes, cache.soft_ttl.as_secs(), cache.stale_if_error.as_secs()),
            (0, 5, 0)
        );
    }

    #[test]
    fn tenants_are_weighed() {
        let (_, weights, errors) =
            resolve_text("[limits]\ntenant_weights = [\"acme=3\", \" umbra = 100 \"]");
        assert_eq!(errors, Vec::<String>::new());
        let weights: Vec<_> =
            weights.iter().map(|(tenant, weight)| (tenant.as_str(), *weight)).collect();
        assert_eq!(weights, [("acme", 3), ("umbra", 100)]);
    }

    #[test]
    fn each_fault_names_its_key() {
        for (text, word) in [
            ("[cache]\nsoft_ttl_seconds = 0", "cache.soft_ttl_seconds"),
            ("[cache]\nstale_if_error_seconds = 99999999", "cache.stale_if_error_seconds"),
            ("[cache]\nlocal_max_bytes = 9999999999999999", "cache.local_max_bytes"),
            ("[cache]\nredis_password_file = \"p\"", "cache.redis_url"),
            (
                "[cache]\nredis_url = \"redis://r\"\nsentinel_user = \"u\"",
                "cache.sentinel_password_file",
            ),
            ("[limits]\ntenant_weights = [\"acme\"]", "limits.tenant_weights"),
            ("[limits]\ntenant_weights = [\"acme=0\"]", "limits.tenant_weights"),
            ("[limits]\ntenant_weights = [\"acme=101\"]", "limits.tenant_weights"),
            ("[limits]\ntenant_weights = [\"acme=-1\"]", "limits.tenant_weights"),
            ("[limits]\ntenant_weights = [\"_acme=2\"]", "limits.tenant_weights"),
            ("[limits]\ntenant_weights = [\"acme=2\", \"acme=3\"]", "twice"),
        ] {
            let (_, _, errors) = resolve_text(text);
            assert!(errors.iter().any(|e| e.contains(word)), "{text}: {errors:?}");
        }
    }
}
