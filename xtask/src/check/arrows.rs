//! The arrows between crates: who may use whom. Arrows point down only, and heavy dependencies stay
//! behind one crate.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::run::{cargo, output, root};

/// Each crate and the workspace crates it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("tagfast-domain", &[]),
    // The one reader of JSON, below all that read some.
    ("tagfast-json", &[]),
    ("tagfast-sharding", &["tagfast-domain"]),
    ("tagfast-resilience", &[]),
    ("tagfast-store", &["tagfast-domain", "tagfast-sharding", "tagfast-resilience"]),
    (
        "tagfast-events",
        &["tagfast-domain", "tagfast-json", "tagfast-sharding", "tagfast-resilience"],
    ),
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
            "tagfast-json",
            "tagfast-domain",
            "tagfast-sharding",
            "tagfast-failover",
            "tagfast-resilience",
            "tagfast-store",
            "tagfast-events",
        ],
    ),
    ("tagfast-store-embedded", STORE_AND_EVENTS),
    ("tagfast-search", &["tagfast-domain", "tagfast-resilience", "tagfast-events"]),
    ("tagfast-search-tantivy", SEARCH_ENGINE),
    ("tagfast-search-opensearch", SEARCH_ENGINE),
    (
        "tagfast-events-kafka",
        &["tagfast-domain", "tagfast-sharding", "tagfast-resilience", "tagfast-events"],
    ),
    ("tagfast-popular", &["tagfast-domain", "tagfast-resilience"]),
    (
        "tagfast-popular-counts",
        &[
            "tagfast-domain",
            "tagfast-sharding",
            "tagfast-resilience",
            "tagfast-store",
            "tagfast-events",
            "tagfast-popular",
            "tagfast-redis",
        ],
    ),
    (
        "tagfast-api",
        &[
            "tagfast-json",
            "tagfast-domain",
            "tagfast-sharding",
            "tagfast-resilience",
            "tagfast-store",
            "tagfast-events",
            "tagfast-search",
            "tagfast-popular",
        ],
    ),
    ("tagfast-client", &["tagfast-domain", "tagfast-json", "tagfast-resilience"]),
    (
        "tagfast",
        &[
            "tagfast-json",
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
            "tagfast-search-tantivy",
            "tagfast-search-opensearch",
            "tagfast-popular",
            "tagfast-popular-counts",
            "tagfast-redis",
            "tagfast-cache",
            "tagfast-api",
            "tagfast-client",
        ],
    ),
    ("tagfast-testkit", &[]),
    ("xtask", &["tagfast-testkit"]),
];

/// The ports of stores and events, and what is below them.
const STORE_AND_EVENTS: &[&str] = &[
    "tagfast-json",
    "tagfast-domain",
    "tagfast-sharding",
    "tagfast-resilience",
    "tagfast-store",
    "tagfast-events",
];

/// What an engine of the search port may use.
const SEARCH_ENGINE: &[&str] = &[
    "tagfast-json",
    "tagfast-domain",
    "tagfast-sharding",
    "tagfast-resilience",
    "tagfast-store",
    "tagfast-events",
    "tagfast-search",
];

/// Dependencies that only these crates may use, and why.
pub(super) const RESERVED: &[(&str, &[&str], &str)] = &[
    (
        "rusqlite",
        &["tagfast-store-embedded", "tagfast-popular-counts"],
        "SQL stays behind the store and the counts",
    ),
    ("tokio-postgres", &["tagfast-store-postgres"], "PostgreSQL stays behind its store"),
    ("tantivy", &["tagfast-search-tantivy"], "the engine stays behind the port"),
    ("axum", &["tagfast-api", "tagfast"], "serving HTTP stays in the API and the program"),
    ("hyper", &["tagfast-api", "tagfast"], "serving HTTP stays in the API and the program"),
    (
        "reqwest",
        &[
            "tagfast-api",
            "tagfast",
            "tagfast-client",
            "tagfast-store-postgres",
            "tagfast-search-opensearch",
        ],
        "only the edges speak HTTP",
    ),
    (
        "redis",
        &["tagfast-redis", "tagfast-cache", "tagfast-popular-counts"],
        "Redis stays behind the cache and the counts",
    ),
    ("quick_cache", &["tagfast-cache"], "the inside of the local cache"),
    ("rdkafka", &["tagfast-events-kafka"], "Kafka stays behind the bus"),
    ("jsonwebtoken", &["tagfast-api", "tagfast"], "authentication is the API's"),
    ("pulldown-cmark", &["tagfast-api"], "it renders the reference page"),
    (
        "clap",
        &["tagfast", "tagfast-client", "xtask"],
        "only programs and the client's commands have a command line",
    ),
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
    let manifest = std::fs::read_to_string(root().join("Cargo.toml"))?;
    let mut wrong = Vec::new();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(may) = allowed.get(name) else {
            wrong.push(format!("{name} is not in the table of arrows (xtask/src/check/arrows.rs)"));
            continue;
        };
        // Without it a crate of ours is optimised with each change, as dependencies are once.
        let unoptimised = format!("{name} = {{ opt-level = 0 }}");
        if !manifest.lines().any(|line| line == unoptimised) {
            wrong.push(format!("Cargo.toml lacks `{unoptimised}` under [profile.dev.package]"));
        }
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
