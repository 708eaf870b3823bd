//! The part of a configuration that says what is kept in memory to protect the databases, and who
//! comes first when not everything can be answered.

use std::collections::BTreeMap;
use std::time::Duration;

use tagfast_domain::TenantId;
use tagfast_store::queue::TenantWeights;

use super::keys::RawConfig;
use super::resolved::{number, text};

/// The heaviest tenant.
const MOST_WEIGHT: u8 = TenantWeights::MOST;

/// The cache shield.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// The cache Redis; `None`: views are kept in no other process.
    pub redis_url: Option<String>,
    /// Memory of this process for views, in bytes; 0: none are kept. Too high: memory that
    /// requests need. Too low: more reads go to Redis and the database.
    pub l1_max_bytes: usize,
    /// How long an entry answers before it is asked for anew. Too long: a change of which a node
    /// was not told is shown late. Too short: what is read often is read from the database
    /// often.
    pub soft_ttl: Duration,
    /// The oldest stale answer that is given; zero: none. Too long: people see a state of long
    /// ago. Too short: more of them see an error.
    pub stale_if_error: Duration,
}

pub(super) fn cache(raw: &RawConfig, errors: &mut Vec<String>) -> CacheConfig {
    let cache = &raw.cache;
    let mut seconds = |given, default, name: &str, from| {
        Duration::from_secs(number(given, default, name, from..=30 * 86_400, errors) as u64)
    };
    let soft_ttl = seconds(cache.soft_ttl_seconds, 60, "cache.soft_ttl_seconds", 1);
    let stale_if_error =
        seconds(cache.stale_if_error_seconds, 3600, "cache.stale_if_error_seconds", 0);
    CacheConfig {
        redis_url: text(cache.redis_url.as_ref()),
        l1_max_bytes: number(
            cache.l1_max_bytes,
            64 << 20,
            "cache.l1_max_bytes",
            0..=1 << 40,
            errors,
        ),
        soft_ttl,
        stale_if_error,
    }
}

/// The tenants that have another weight than 1.
pub(super) fn tenant_weights(raw: &RawConfig, errors: &mut Vec<String>) -> BTreeMap<TenantId, u8> {
    let mut weights = BTreeMap::new();
    for item in raw.limits.tenant_weights.iter().flatten() {
        let parsed = item.split_once('=').and_then(|(tenant, weight)| {
            let weight =
                weight.trim().parse().ok().filter(|weight| (1..=MOST_WEIGHT).contains(weight))?;
            Some((TenantId::parse(tenant.trim()).ok()?, weight))
        });
        match parsed {
            None => errors.push(format!(
                "limits.tenant_weights holds {item:?}; write TENANT=WEIGHT with a weight of 1 to {MOST_WEIGHT}, for example \"acme=3\""
            )),
            Some((tenant, weight)) => {
                if weights.insert(tenant, weight).is_some() {
                    errors.push(format!("limits.tenant_weights names the tenant of {item:?} twice"));
                }
            }
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str) -> (CacheConfig, BTreeMap<TenantId, u8>, Vec<String>) {
        let (raw, mut errors) = (toml::from_str(text).unwrap(), Vec::new());
        let (cache, weights) = (cache(&raw, &mut errors), tenant_weights(&raw, &mut errors));
        (cache, weights, errors)
    }

    #[test]
    fn caches_can_be_sized_and_turned_off() {
        let (cache, weights, errors) = judged("");
        assert_eq!(
            (cache.l1_max_bytes, cache.soft_ttl.as_secs(), cache.stale_if_error.as_secs()),
            (64 << 20, 60, 3600)
        );
        assert_eq!((cache.redis_url, weights.len(), errors.len()), (None, 0, 0));
        let (cache, _, errors) = judged(
            "[cache]\nredis_url = \"redis://r:6379\"\nl1_max_bytes = 0\nstale_if_error_seconds = 0\nsoft_ttl_seconds = 5",
        );
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(cache.redis_url.as_deref(), Some("redis://r:6379"));
        assert_eq!(
            (cache.l1_max_bytes, cache.soft_ttl.as_secs(), cache.stale_if_error.as_secs()),
            (0, 5, 0)
        );
    }

    #[test]
    fn tenants_are_weighed() {
        let (_, weights, errors) =
            judged("[limits]\ntenant_weights = [\"acme=3\", \" umbra = 100 \"]");
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
            ("[cache]\nl1_max_bytes = 9999999999999999", "cache.l1_max_bytes"),
            ("[limits]\ntenant_weights = [\"acme\"]", "limits.tenant_weights"),
            ("[limits]\ntenant_weights = [\"acme=0\"]", "limits.tenant_weights"),
            ("[limits]\ntenant_weights = [\"acme=101\"]", "limits.tenant_weights"),
            ("[limits]\ntenant_weights = [\"acme=-1\"]", "limits.tenant_weights"),
            ("[limits]\ntenant_weights = [\"_acme=2\"]", "limits.tenant_weights"),
            ("[limits]\ntenant_weights = [\"acme=2\", \"acme=3\"]", "twice"),
        ] {
            let (_, _, errors) = judged(text);
            assert!(errors.iter().any(|e| e.contains(word)), "{text}: {errors:?}");
        }
    }
}
