//! The conformance suite.

use tagfast_search::conformance as suite;

use crate::support::Engine;

/// Number of random queries: `default`, or 10,000 in a full run.
fn queries(default: usize) -> usize {
    if cfg!(feature = "full") { 10_000 } else { default }
}

macro_rules! promises {
    ($($test:ident => $promise:ident($($count:expr)?);)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                suite::$promise(&Engine::new().await $(, $count)?).await;
            }
        )*
    };
}

promises! {
    newest_version_wins_in_every_order => newest_version_wins_in_every_order();
    a_late_event_does_not_resurrect => a_late_event_does_not_resurrect();
    every_spelling_finds_the_same => every_spelling_finds_the_same();
    a_former_name_is_found => a_former_name_is_found();
    random_queries_equal_the_model => random_queries_equal_the_model(queries(150));
    errors_have_the_parsers_positions => errors_have_the_parsers_positions();
    equal_timestamps_are_paged_once => equal_timestamps_are_paged_once(10_001);
    unmoved_contents_are_paged_once_under_writes
        => unmoved_contents_are_paged_once_under_writes();
    tenants_are_isolated => tenants_are_isolated(queries(60));
    removed_tags_count_nowhere => removed_tags_count_nowhere();
    counts_of_terms_equal_the_model => counts_of_terms_equal_the_model();
    hits_show_the_state => hits_show_the_state();
}
