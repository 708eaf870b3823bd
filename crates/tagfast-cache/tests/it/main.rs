//! The caches without Redis: the local cache (L1), shared reads of the store, stale answers.

#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "only tests with Redis set versions")]
mod support;

mod ages;
mod read_path;
mod repair;

/// No cache: the decorator alone.
mod without_caches {
    tagfast_store::conformance_suite!(crate::harness::Harness::new(
        crate::harness::Layers::default(),
        None
    ));
}

/// The local cache alone.
mod with_local_cache {
    use crate::harness::{Harness, Layers};
    tagfast_store::conformance_suite!(Harness::new(
        Layers { local_cache: true, ..Layers::default() },
        None
    ));
}
