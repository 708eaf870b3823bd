//! Cargo features that the tasks turn on.

/// The event bus of clusters, which the default build leaves out.
pub(crate) const KAFKA: &str = "tagfast/kafka";

/// Big counts, long loops and the whole fault matrix, in every crate that has them.
const FULL_CRATES: &[&str] = &[
    "tagfast",
    "tagfast-cache",
    "tagfast-client",
    "tagfast-domain",
    "tagfast-events",
    "tagfast-failover",
    "tagfast-popular-counts",
    "tagfast-resilience",
    "tagfast-search-opensearch",
    "tagfast-search-tantivy",
    "tagfast-store",
    "tagfast-store-embedded",
    "tagfast-store-postgres",
];

/// The value of `--features` for tests.
pub(crate) fn tests(full: bool) -> String {
    let full = FULL_CRATES.iter().filter(|_| full).map(|name| format!("{name}/full"));
    full.chain([KAFKA.to_owned()]).collect::<Vec<_>>().join(",")
}
