//! The arrows between crates: who may use whom. Arrows point down only, and heavy dependencies stay
//! behind one crate.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::run::{cargo, output};

/// Each crate and the workspace crates it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("tagfast-domain", &[]),
    ("tagfast-sharding", &["tagfast-domain"]),
    ("tagfast-resilience", &[]),
    ("tagfast-store", &["tagfast-domain", "tagfast-sharding", "tagfast-resilience"]),
    ("tagfast-events", &["tagfast-domain", "tagfast-sharding", "tagfast-resilience"]),
    ("tagfast-failover", &["tagfast-domain"]),
    ("tagfast-redis", &["tagfast-resilience"]),
    (
        "tagfast-cache",
        &[
            "tagfast-domain",
            "tagfast-sharding",
            "tagfast-resilience",
            "tagfast-store",
            "tagfast-redis",
        ],
    ),
    (
        "tagfast-store-postgres",
        &[
            "tagfast-domain",
            "tagfast-sharding",
            "tagfast-failover",
            "tagfast-resilience",
            "tagfast-store",
            "tagfast-events",
        ],
    ),
    (
        "tagfast-store-embedded",
        &[
            "tagfast-domain",
            "tagfast-sharding",
            "tagfast-resilience",
            "tagfast-store",
            "tagfast-events",
        ],
    ),
    (
        "tagfast-search",
        &[
            "tagfast-domain",
            "tagfast-sharding",
            "tagfast-resilience",
            "tagfast-store",
            "tagfast-events",
        ],
    ),
    ("tagfast-events-kafka", &["tagfast-domain", "tagfast-sharding", "tagfast-events"]),
    (
        "tagfast-popular",
        &[
            "tagfast-domain",
            "tagfast-sharding",
            "tagfast-resilience",
            "tagfast-store",
            "tagfast-events",
            "tagfast-redis",
        ],
    ),
    (
        "tagfast-api",
        &[
            "tagfast-domain",
            "tagfast-sharding",
            "tagfast-resilience",
            "tagfast-store",
            "tagfast-events",
            "tagfast-search",
            "tagfast-popular",
        ],
    ),
    (
        "tagfast",
        &[
            "tagfast-domain",
            "tagfast-sharding",
            "tagfast-resilience",
            "tagfast-store",
            "tagfast-store-embedded",
            "tagfast-store-postgres",
            "tagfast-failover",
            "tagfast-events",
            "tagfast-events-kafka",
            "tagfast-search",
            "tagfast-popular",
            "tagfast-redis",
            "tagfast-cache",
            "tagfast-api",
        ],
    ),
    ("tagfast-testkit", &[]),
    ("xtask", &["tagfast-testkit"]),
];

/// Dependencies that only these crates may use, and why.
pub(super) const RESERVED: &[(&str, &[&str], &str)] = &[
    (
        "rusqlite",
        &["tagfast-store-embedded", "tagfast-popular"],
        "SQL stays behind the store and the counts",
    ),
    ("tokio-postgres", &["tagfast-store-postgres"], "PostgreSQL stays behind its store"),
    ("tantivy", &["tagfast-search"], "the index engine stays behind its port"),
    ("axum", &["tagfast-api", "tagfast"], "HTTP stays in the API and the program"),
    ("hyper", &["tagfast-api", "tagfast"], "HTTP stays in the API and the program"),
    (
        "reqwest",
        &["tagfast-api", "tagfast", "tagfast-store-postgres", "tagfast-search"],
        "only the edges speak HTTP",
    ),
    (
        "redis",
        &["tagfast-redis", "tagfast-cache", "tagfast-popular"],
        "Redis stays behind the cache and the counts",
    ),
    ("quick_cache", &["tagfast-cache"], "the cache's inside"),
    ("rdkafka", &["tagfast-events-kafka"], "Kafka stays behind the bus"),
    ("jsonwebtoken", &["tagfast-api", "tagfast"], "authentication is the API's"),
    ("clap", &["tagfast", "xtask"], "only programs have a command line"),
    ("toml", &["tagfast"], "only the program reads configuration"),
];

/// Crates that must stay pure: nothing of these may be among their direct dependencies.
const PURE: &[(&str, &[&str])] = &[
    ("tagfast-domain", &["tokio", "rusqlite", "metrics", "tracing"]),
    ("tagfast-sharding", &["tokio", "metrics", "tracing"]),
    ("tagfast-failover", &["tokio", "metrics", "tracing", "serde"]),
];

pub(crate) fn check() -> Result<()> {
    let metadata: Value = serde_json::from_str(&output(cargo().args([
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
    ]))?)?;
    let mut wrong = Vec::new();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(may) = allowed.get(name) else {
            wrong.push(format!("{name} is not in the table of arrows (xtask/src/arrows.rs)"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            let test_only = dependency["kind"].as_str() == Some("dev");
            let ours = allowed.contains_key(used);
            if ours && !test_only && !may.contains(&used) {
                wrong.push(format!("{name} may not use {used}: arrows point down only"));
            }
            if test_only {
                continue;
            }
            if let Some((_, users, why)) = RESERVED.iter().find(|(d, _, _)| *d == used)
                && !users.contains(&name)
            {
                wrong.push(format!("{name} may not link {used}: {why}"));
            }
            if PURE.iter().any(|(p, banned)| *p == name && banned.contains(&used)) {
                wrong.push(format!("{name} is pure and may not link {used}"));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}
