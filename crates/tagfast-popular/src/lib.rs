//! Popular tags: windows, counts, displays and typeahead.
//!
//! Counts are a function of the shards' current state, never of a stream of increments, so that
//! they can be recounted, repaired and proven.

mod assigned;
mod boards;
mod counts;
mod owner;
pub mod port;
mod recount;
pub mod state;
mod windows;

pub use counts::{BATCH, GROUP, PopularCounts};
pub use port::{Board, PopularError, PopularTags, RecountReport, Suggestions, TagCount, Window};
pub use state::{BoardWriter, StateBoards, StateError};

use tagfast_resilience::{MetricDef, MetricKind};

/// Metrics of this crate: the lag and the records of group `analytics` are the consumer runtime's.
pub const METRICS: &[MetricDef] = &[MetricDef {
    name: "tagfast_popular_boards_up",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "1 while the boards of the state Redis are written. 0: popular tags keep the age they have.",
}];
