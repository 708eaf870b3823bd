//! Popular tags: windows, counts, displays and typeahead.
//!
//! Counts are a function of the shards' current state, never of a stream of increments, so that they can be recounted,
//! repaired and proven.

pub mod port;

pub use port::{Board, PopularError, PopularTags, RecountReport, Suggestions, TagCount, Window};
