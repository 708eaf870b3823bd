//! The suite.

use tagfast_search::conformance as suite;

use crate::kit::Engine;

fn full() -> bool {
    std::env::var_os("TAGFAST_FULL").is_some()
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
    s1_newest_version_wins_in_every_order => newest_version_wins_in_every_order();
    s2_a_late_event_does_not_resurrect => a_late_event_does_not_resurrect();
    s3_every_spelling_finds_the_same => every_spelling_finds_the_same();
    s4_s8_random_queries_equal_the_model => random_queries_equal_the_model(if full() { 10_000 } else { 150 });
    s5_errors_have_the_parsers_positions => errors_have_the_parsers_positions();
    s6_equal_timestamps_are_paged_once => equal_timestamps_are_paged_once(10_001);
    s7_unmoved_contents_are_paged_once_under_writes => unmoved_contents_are_paged_once_under_writes();
    s9_tenants_are_isolated => tenants_are_isolated(if full() { 10_000 } else { 60 });
    hits_show_the_state => hits_show_the_state();
}
