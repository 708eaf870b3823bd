//! The suite can fail: each broken promise of a store is found by named tests.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tagfast_store::conformance::{promise, run};
use tagfast_store::testing::BrokenPromise;

use crate::support::MemoryHarness;

/// The message of a failing promise; `None` when it passes.
fn failure(check: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(check)).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
}

macro_rules! found {
    ($($test:ident: $fault:ident => $($promise:ident says $part:literal),+;)+) => {$(
        #[test]
        fn $test() {
            $(
                let message = failure(|| run(promise::$promise(&MemoryHarness::broken(BrokenPromise::$fault))));
                let message = message.unwrap_or_else(|| panic!("{} must fail", stringify!($promise)));
                assert!($part.split('|').any(|p| message.contains(p)), "{} failed otherwise than meant: {message}", stringify!($promise));
            )+
        }
    )+};
}

found! {
    a_dropped_event_is_found: DropsEvents =>
        every_write_is_published_as_the_full_set says "one event per write",
        events_are_in_version_order says "it was|what the changes make",
        random_operations_match_the_model says "it was|what the changes make",
        concurrent_operations_leave_a_true_history says "it was|what the changes make";
    reordered_events_are_found: ReordersEvents =>
        every_write_is_published_as_the_full_set says "the event is the new state",
        events_are_in_version_order says "published after",
        concurrent_operations_leave_a_true_history says "published after";
    a_published_no_op_is_found: PublishesNoOps =>
        a_no_op_publishes_nothing says "no-ops publish nothing",
        concurrent_operations_leave_a_true_history says "published after";
    a_retry_applied_twice_is_found: AppliesRetries =>
        a_repeated_write_gets_its_first_answer says "the retry of",
        concurrent_retries_have_one_effect says "one answer",
        random_operations_match_the_model says "retry of";
    forgotten_no_ops_are_found: ForgetsNoOps =>
        every_outcome_is_answered_again says "the first result",
        a_known_id_in_another_call_is_refused says "must be refused",
        random_retries_get_their_first_answer says "the first result";
    forgotten_ids_are_found: ForgetsEvictedIds =>
        an_id_is_remembered_behind_many_others says "behind many later writes",
        an_id_is_remembered_for_ten_minutes says "after nine minutes",
        every_outcome_is_answered_again says "behind many later writes";
    ids_of_the_wrong_content_are_found: ConfusesContentsOfIds =>
        an_id_belongs_to_one_content says "behind many later writes of each content";
    forgotten_keys_are_found: ForgetsKeys =>
        a_key_names_one_request says "must be refused",
        a_key_names_one_request_for_ten_minutes says "must be refused",
        a_key_of_a_batch_names_all_its_contents says "must be refused",
        racing_requests_share_no_key says "all sendings of one request";
    keys_forgotten_at_a_restart_are_found: ForgetsKeysAtRestart =>
        a_key_names_one_request says "must be refused",
        a_key_of_a_batch_names_all_its_contents says "must be refused";
    one_tag_too_many_is_found: ExceedsTheLimit =>
        the_limit_is_exact says "must be refused",
        the_limit_is_exact_under_concurrency says "told they won|allowed: 101",
        random_operations_match_the_model says "must be refused|allowed: 101";
    lost_updates_are_found: LosesUpdates =>
        the_limit_is_exact_under_concurrency says "told they won",
        concurrent_operations_leave_a_true_history says "",
        one_of_many_conditional_writers_wins says "exactly one of 16",
        racing_spellings_make_one_tagging says "one of the racers";
    a_lost_identity_is_found: LosesIdentity =>
        every_spelling_is_one_tag says "which is there already",
        racing_spellings_make_one_tagging says "one of the racers",
        random_operations_match_the_model says "seed ";
    ignored_conditions_are_found: IgnoresConditions =>
        another_version_is_refused_and_reported says "must be refused",
        never_written_is_a_version says "must be refused",
        one_of_several_versions_is_enough says "must be refused",
        one_of_many_conditional_writers_wins says "exactly one of 16";
    a_write_lost_at_a_restart_is_found: LosesTheLastWriteAtRestart =>
        everything_survives_a_restart says "after a restart";
    a_stale_read_is_found: ReadsStale =>
        a_client_reads_its_own_writes says "then read";
    a_forgotten_time_is_found: ForgetsWho =>
        the_adders_spelling_is_kept says "the time of the add is kept",
        every_write_is_published_as_the_full_set says "the event is the new state";
    a_trusted_foreign_token_is_found: TrustsEveryToken =>
        a_token_of_an_unknown_epoch_is_reported says "is said so";
    a_scan_that_skips_is_found: ScanSkips =>
        a_scan_returns_every_content_once says "every content of the tenant",
        a_scan_misses_nothing_while_others_write says "is missing";
    a_scan_that_mixes_tenants_is_found: ScanMixesTenants =>
        a_scan_knows_its_tenant says "of the tenant asked for";
    a_standing_heartbeat_is_found: HeartbeatStops =>
        the_heartbeat_moves_on_an_idle_store says "waited";
    unordered_batch_answers_are_found: BatchAnswersUnordered =>
        a_batch_answers_in_request_order says "is about item";
    forgotten_receipts_are_found: ForgetsReceipts =>
        a_receipt_is_kept says "after a restart";
}
