//! What every search engine must do, as functions over a harness.
//!
//! Engines differ in how they store and count; a caller must not see the difference. Each function
//! is one promise and panics when the engine breaks it. Each promise uses tenants of its own, so
//! all promises can share one index.

mod fixture;
mod promises;

pub use fixture::{NOW, SearchHarness, event, request};
pub use promises::{
    a_former_name_is_found, a_late_event_does_not_resurrect, counts_of_terms_equal_the_model,
    equal_timestamps_are_paged_once, errors_have_the_parsers_positions,
    every_spelling_finds_the_same, hits_show_the_state, newest_version_wins_in_every_order,
    random_queries_equal_the_model, removed_tags_count_nowhere, tenants_are_isolated,
    unmoved_contents_are_paged_once_under_writes,
};
