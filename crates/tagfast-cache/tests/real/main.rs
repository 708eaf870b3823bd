//! The caches with real Redis servers: what nodes share, and every way in which a Redis fails.

#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/nodes.rs"]
mod nodes;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "only tests without Redis have a store that lags")]
mod support;

mod faults;
mod positions;
mod restored;
mod sentinel;
mod shared;

/// The cache Redis alone.
mod with_redis {
    tagfast_store::conformance_suite!(crate::nodes::harness(false, true, false).await);
}

/// The local cache and the cache Redis.
mod with_both {
    tagfast_store::conformance_suite!(crate::nodes::harness(true, true, false).await);
}

/// All layers.
mod with_positions {
    tagfast_store::conformance_suite!(crate::nodes::harness(true, true, true).await);
}
