//! Caches without servers: L1 alone, what is read once for many, and stale answers.

#[path = "../support/suite.rs"]
mod suite;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "versions are set for the format in Redis")]
mod support;

mod shield;

/// Nothing is kept: the decorator alone.
mod without_layers {
    tagfast_store::conformance_suite!(crate::suite::Harness::new(
        crate::suite::Layers::default(),
        None
    ));
}

/// Views in this process.
mod with_level1 {
    use crate::suite::{Harness, Layers};
    tagfast_store::conformance_suite!(Harness::new(
        Layers { level1: true, ..Layers::default() },
        None
    ));
}
