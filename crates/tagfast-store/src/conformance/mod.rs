//! The conformance suite: the promises of a store, each a named test that every adapter must pass.
//!
//! An adapter implements [`StoreHarness`] and writes one line in its tests:
//!
//! ```text
//! tagfast_store::conformance_suite!(MyHarness::start().await);
//! ```
//!
//! which expands to one `#[test]` per promise. Every promise uses a tenant of its own, so a harness
//! may share one database. Counts are moderate; with the feature `full` they are
//! 20 times as large. Random choices come from one seed, which a failing test prints;
//! `TAGFAST_SEED=n` sets it.
//!
//! How it fails: a broken promise panics with the promise and the observation.

mod batch;
mod conditional;
mod consistency;
mod events;
mod harness;
mod history;
mod ids;
mod keys;
mod limit;
mod model;
mod outcomes;
mod scan;
mod support;
mod tags;

pub use harness::{StoreHarness, run};

macro_rules! promises {
    ($d:tt $($module:ident: $($name:ident),+;)+) => {
        /// The promises by name: what [`crate::conformance_suite`] runs.
        pub mod promise {
            $($(pub use super::$module::$name;)+)+
        }

        /// The names of all promises.
        pub const PROMISES: &[&str] = &[$($(stringify!($name)),+),+];

        /// Expands to one `#[test]` per promise. The expression makes a
        /// [`StoreHarness`](crate::conformance::StoreHarness); it is evaluated once per test,
        /// inside the runtime, and may await.
        #[macro_export]
        macro_rules! conformance_suite {
            ($d harness:expr) => {
                $($(
                    #[test]
                    fn $name() {
                        $d crate::conformance::run(async {
                            let harness = $d harness;
                            $d crate::conformance::promise::$name(&harness).await;
                        });
                    }
                )+)+
            };
        }
    };
}

promises! { $
    tags:
        an_untagged_content_is_an_empty_view,
        an_added_tag_is_seen,
        a_removed_tag_is_gone,
        every_spelling_is_one_tag,
        a_former_name_is_kept_and_removed,
        the_adders_spelling_is_kept,
        an_import_keeps_who_and_when,
        a_write_answer_says_what_changed,
        a_patch_is_atomic,
        a_replace_makes_the_set_exact,
        versions_go_on_after_the_last_tag_is_gone,
        odd_contents_stay_distinct,
        tenants_are_isolated,
        a_receipt_is_kept,
        a_refused_durability_has_no_effect,
        everything_survives_a_restart;
    conditional:
        a_matching_version_is_written,
        another_version_is_refused_and_reported,
        never_written_is_a_version,
        one_of_several_versions_is_enough,
        one_of_many_conditional_writers_wins;
    ids:
        a_repeated_write_gets_its_first_answer,
        a_repeated_write_is_known_after_a_restart,
        an_id_is_remembered_behind_many_others,
        an_id_is_remembered_for_ten_minutes,
        a_reused_id_with_another_operation_is_refused,
        an_id_belongs_to_one_content,
        concurrent_retries_have_one_effect;
    outcomes:
        every_outcome_is_answered_again,
        a_known_id_in_another_call_is_refused,
        a_refused_content_is_not_scanned,
        random_retries_get_their_first_answer,
        racing_retries_get_one_answer;
    keys:
        a_key_names_one_request,
        a_key_names_one_request_for_ten_minutes,
        a_key_of_a_batch_names_all_its_contents,
        an_undecided_write_leaves_its_key_free,
        racing_requests_share_no_key;
    limit:
        the_limit_is_exact,
        the_limit_is_exact_under_concurrency,
        racing_spellings_make_one_tagging;
    batch:
        a_batch_answers_in_request_order,
        a_batch_keeps_the_order_within_a_content,
        a_failing_item_leaves_the_others,
        views_come_in_request_order;
    consistency:
        every_consistency_reads_a_settled_write,
        a_client_reads_its_own_writes,
        a_token_of_an_unknown_epoch_is_reported,
        a_reader_never_goes_back,
        a_passed_deadline_does_not_lie;
    events:
        every_write_is_published_as_the_full_set,
        a_no_op_publishes_nothing,
        a_refused_write_publishes_nothing,
        an_event_says_who_and_when,
        events_are_in_version_order,
        the_heartbeat_moves_on_an_idle_store;
    scan:
        a_scan_returns_every_content_once,
        a_scan_knows_its_tenant,
        a_scan_misses_nothing_while_others_write;
    model:
        random_operations_match_the_model,
        concurrent_operations_leave_a_true_history;
}
