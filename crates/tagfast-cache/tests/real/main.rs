//! Caches with real Redis servers: what several nodes share, and every way in which a Redis fails.

#[path = "../support/suite.rs"]
mod suite;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "a lost answer needs no Redis")]
mod support;

mod faults;
mod kit;
mod positions;
mod restored;
mod sentinel;
mod shared;

/// Views in Redis, no L1.
mod with_redis {
    tagfast_store::conformance_suite!(crate::kit::harness(false, true, false).await);
}

/// Views in this process and in Redis.
mod with_both {
    tagfast_store::conformance_suite!(crate::kit::harness(true, true, false).await);
}

/// Everything.
mod with_positions {
    tagfast_store::conformance_suite!(crate::kit::harness(true, true, true).await);
}
