//! Popular tags: windows, counts, displays and typeahead.
//!
//! Counts are a function of the shards' current state, never of a stream of increments, so that they can be recounted,
//! repaired and proven.

mod boards;
mod counts;
mod owner;
pub mod port;
mod recount;
mod windows;

pub use counts::{GROUP, PopularCounts};
pub use port::{Board, PopularError, PopularTags, RecountReport, Suggestions, TagCount, Window};

use tagfast_resilience::MetricDef;

/// Metrics of this crate: the lag and the records of group `analytics` are the consumer runtime's.
pub const METRICS: &[MetricDef] = &[];
