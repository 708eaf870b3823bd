//! The counterexamples of the protocol's search, X1 to X14, as schedules: the real rules survive
//! each of them, and the simpler rule that it is about does not. X15 to X20 are about the relay and
//! its consumers and concern none of these machines.

use super::check::check;
use super::cluster::{Op, Request};
use super::rules::{Dropping, Fence, REAL, Rules, TermName};
use super::step::Api::{A, B};
use super::step::Db::{P, R1, R2};
use super::step::{Api, Client, Step};
use Op::{Add, Remove, Replace};
use Step::{
    Act, Answer, Commit, Crash, CrashApi, Follow, GiveUp, LoseKey, Observe, Poll, Promote, Rejoin,
    Repair, RetakeKey, Return, Send, Ship,
};

fn write(client: Client, api: Api) -> Vec<Step> {
    vec![Send(client, api), Commit(client), Answer(client)]
}

fn learn(api: Api) -> Vec<Step> {
    vec![Observe(api), Act(api)]
}

fn schedule(parts: &[Vec<Step>]) -> Vec<Step> {
    parts.concat()
}

/// Checks that the real rules survive a schedule, and that the simpler one is caught by it. Returns
/// what was wrong.
fn needs(simpler: Rules, initial: u8, ops: &[Op], steps: &[Step]) -> String {
    let requests: Vec<Request> =
        ops.iter().map(|op| Request { op: *op, is_conditional: false }).collect();
    assert_eq!(check(REAL, initial, 100, &requests, steps), Ok(()), "under the real rules");
    check(simpler, initial, 100, &requests, steps).expect_err("the simpler rule is caught")
}

#[test]
fn x1_an_answer_is_no_proof_of_being_the_primary() {
    let steps = schedule(&[
        vec![LoseKey, Promote(R1)],
        // A writes on the replaced primary and is answered; B has moved on.
        learn(B),
        write(0, A),
        write(1, B),
    ]);
    let simpler = Rules { fence: Fence::Absent, ..REAL };
    let wrong = needs(simpler, 0, &[Add(0), Remove(0)], &steps);
    assert_eq!(wrong, "write 0 was acknowledged though it committed after the end");
}

#[test]
fn x2_an_answer_after_the_own_repair_is_in_no_repair() {
    let steps = schedule(&[
        vec![Send(0, A), Commit(0), Return(0), Crash(P), Promote(R1)],
        learn(A),
        vec![Repair(A, 0), Answer(0)],
    ]);
    let simpler = Rules { gate: false, ..REAL };
    let wrong = needs(simpler, 0, &[Add(0)], &steps);
    assert_eq!(wrong, "write 0 is lost, and its process has not listed it");
}

#[test]
fn x3_a_repair_keeps_the_versions_of_what_it_brings() {
    let steps = schedule(&[
        write(0, A),
        write(1, B),
        vec![Crash(P), Promote(R1)],
        learn(A),
        learn(B),
        vec![Repair(A, 0), Repair(B, 0)],
    ]);
    let simpler = Rules { join_keeps_versions: false, ..REAL };
    let wrong = needs(simpler, 0, &[Add(0), Remove(0)], &steps);
    assert!(wrong.starts_with("tags 001"), "{wrong}");
}

#[test]
fn x4_a_free_key_is_no_proof() {
    let steps = schedule(&[
        vec![LoseKey, Promote(R1)],
        learn(A),
        write(0, A),
        // B commits on the replaced primary, R1 dies, and no node is primary.
        vec![Send(1, B), Commit(1), Crash(R1), Answer(1)],
    ]);
    let simpler = Rules { fence: Fence::NoOtherPrimary, ..REAL };
    let wrong = needs(simpler, 0, &[Add(0), Remove(0)], &steps);
    assert_eq!(wrong, "write 1 was acknowledged though it committed after the end");
}

#[test]
fn x5_an_ordinal_that_is_lost_with_its_row_is_not_minted_again() {
    let steps = schedule(&[
        vec![Crash(P), Promote(R1)],
        learn(A),
        vec![Crash(R1), Rejoin(P), Promote(R2)],
        learn(B),
    ]);
    let simpler = Rules { ordinal_from_etcd: false, ..REAL };
    let wrong = needs(simpler, 0, &[], &steps);
    assert!(wrong.starts_with("ordinal "), "{wrong}");
}

#[test]
fn x6_a_process_that_slept_through_two_failovers_writes_nothing() {
    let steps = schedule(&[
        vec![Crash(P), Promote(R1)],
        learn(A),
        write(0, A),
        vec![Rejoin(P), Follow(P), Ship(P), Ship(P)],
        write(2, A),
        vec![Crash(R1), Promote(P)],
        learn(A),
        // B still is in the first epoch, and its connection leads to P again.
        write(1, B),
    ]);
    let simpler = Rules { transaction_checks_epoch: false, fence: Fence::NoOtherPrimary, ..REAL };
    let wrong = needs(simpler, 0, &[Add(0), Remove(0), Add(1)], &steps);
    assert!(wrong.ends_with("names two states"), "{wrong}");
}

#[test]
fn x7_a_key_that_is_taken_again_is_a_new_term() {
    let steps = schedule(&[
        vec![LoseKey, Promote(R1)],
        learn(A),
        write(0, A),
        // P has the key again without a promotion: same node, same timeline, same newest row.
        vec![Crash(R1), RetakeKey(P)],
        learn(B),
        write(1, B),
        learn(A),
        vec![Repair(A, 0)],
    ]);
    let simpler = Rules { term: TermName::Timeline, ..REAL };
    let wrong = needs(simpler, 0, &[Add(0), Add(1)], &steps);
    // The first epoch goes on below the one that A knows, so A repairs nothing.
    assert!(wrong.starts_with("tags 010"), "{wrong}");
}

#[test]
fn x8_a_late_process_does_not_mint_for_a_term_that_is_over() {
    let steps = schedule(&[
        // A has seen R1 with the key, and stalls before it mints.
        vec![Crash(P), Promote(R1), Observe(A), LoseKey, Promote(R2)],
        learn(B),
        vec![Act(A)],
    ]);
    let simpler = Rules { conditional_mint: false, ..REAL };
    let wrong = needs(simpler, 0, &[], &steps);
    assert_eq!(wrong, "an epoch was minted for a term that is over");
}

#[test]
fn x9_an_answer_that_nothing_changed_vouches_for_what_may_be_lost() {
    let steps = schedule(&[
        vec![Send(0, A), Commit(0)],
        write(1, B),
        vec![CrashApi(A), Crash(P), Promote(R1)],
    ]);
    let simpler = Rules { no_ops_journaled: false, ..REAL };
    let wrong = needs(simpler, 0, &[Add(0), Add(0)], &steps);
    assert_eq!(wrong, "write 1 is lost, and its process has not listed it");
}

#[test]
fn x10_the_answer_to_a_retry_vouches_for_the_first_attempt() {
    let steps = schedule(&[
        vec![Send(0, A), Commit(0), CrashApi(A)],
        write(0, B),
        vec![Crash(P), Promote(R1)],
    ]);
    let simpler = Rules { repeated_journaled: false, ..REAL };
    let wrong = needs(simpler, 0, &[Add(0)], &steps);
    assert_eq!(wrong, "write 0 is lost, and its process has not listed it");
}

#[test]
fn x11_a_write_that_changes_nothing_decides_again_in_a_new_epoch() {
    let steps = schedule(&[
        write(0, A),
        vec![Crash(P), Promote(R1)],
        learn(B),
        write(1, B),
        learn(A),
        vec![Repair(A, 0)],
    ]);
    let simpler = Rules { no_ops_stamp: false, ..REAL };
    let wrong = needs(simpler, 0b1, &[Remove(0), Add(0)], &steps);
    assert!(wrong.starts_with("tags 000"), "{wrong}");
}

#[test]
fn x12_an_entry_stays_while_one_replica_lacks_it() {
    let steps = schedule(&[write(0, A), vec![Ship(R1), Poll(A), Crash(P), Promote(R2)], learn(A)]);
    let simpler = Rules { dropping: Dropping::CoveredByOne, ..REAL };
    let wrong = needs(simpler, 0, &[Add(0)], &steps);
    assert_eq!(wrong, "write 0 is lost, and its process has not listed it");
}

#[test]
fn x12_positions_of_a_different_log_say_nothing() {
    let steps = schedule(&[
        write(0, A),
        vec![Ship(R1), Crash(P), Promote(R2)],
        // The records of the new log reach the position of the lost one.
        learn(A),
        learn(B),
        write(1, B),
        vec![Poll(A), Repair(A, 0)],
    ]);
    let simpler = Rules { dropping: Dropping::PositionReached, ..REAL };
    let wrong = needs(simpler, 0, &[Add(0), Add(1)], &steps);
    assert_eq!(wrong, "write 0 is lost, and its process has not listed it");
}

#[test]
fn x13_a_replaced_set_decides_the_tags_that_it_does_not_list() {
    let steps = schedule(&[
        // The lost add of t0 would come back into the set that was replaced after it.
        write(0, A),
        vec![Crash(P), Promote(R1)],
        learn(B),
        write(1, B),
        learn(A),
        vec![Repair(A, 0)],
    ]);
    let simpler = Rules { replace_decides_all: false, ..REAL };
    let wrong = needs(simpler, 0, &[Add(0), Replace(0b10)], &steps);
    assert!(wrong.starts_with("tags 011"), "{wrong}");
}

#[test]
fn x13_a_set_stands_on_the_removes_that_it_did_not_have_to_make() {
    let steps = schedule(&[
        // The remove of t0 is lost, and so is A; B's set does not list t0 either.
        write(0, A),
        write(1, B),
        vec![CrashApi(A), Crash(P), Promote(R1)],
    ]);
    let requests: Vec<Request> =
        [Remove(0), Replace(0b10)].map(|op| Request { op, is_conditional: false }).to_vec();
    assert_eq!(check(REAL, 0b1, 100, &requests, &steps), Ok(()));
}

#[test]
fn x14_a_repair_that_is_lost_is_repaired_again() {
    let steps = schedule(&[
        write(0, A),
        vec![Crash(P), Promote(R1)],
        learn(A),
        vec![Repair(A, 0), Crash(R1), Rejoin(P), Promote(R2)],
        learn(A),
    ]);
    let simpler = Rules { repaired_stays: false, ..REAL };
    let wrong = needs(simpler, 0, &[Add(0)], &steps);
    assert_eq!(wrong, "write 0 is lost, and its process has not listed it");
}

/// Found by the random schedules: what a replaced primary committed, and no caller was told of,
/// must not be joined, because it may have been sent after the next epoch had acknowledged a write.
#[test]
fn what_a_replaced_primary_committed_unheard_is_not_repaired() {
    let steps = schedule(&[
        write(0, A),
        vec![LoseKey, Promote(R1)],
        learn(B),
        write(1, B),
        vec![Send(2, A), Commit(2), Answer(2)],
        learn(A),
        vec![Repair(A, 0)],
    ]);
    let requests: Vec<Request> =
        [Add(1), Add(0), Replace(0)].map(|op| Request { op, is_conditional: false }).to_vec();
    assert_eq!(check(REAL, 0, 100, &requests, &steps), Ok(()));
}

/// Found by the random schedules: the limit dropped an add in a history that was lost itself; the
/// current history has it.
#[test]
fn what_a_lost_repair_dropped_stays_where_it_was_kept() {
    let steps = schedule(&[
        write(0, B),
        vec![LoseKey, Promote(R2)],
        learn(B),
        write(1, B),
        vec![Repair(B, 0), Crash(R1), Crash(R2), RetakeKey(P)],
    ]);
    let requests: Vec<Request> =
        [Add(1), Add(2)].map(|op| Request { op, is_conditional: false }).to_vec();
    assert_eq!(check(REAL, 0b1, 2, &requests, &steps), Ok(()));
}

/// A client that gave up and comes again gets one effect, whatever happened between.
#[test]
fn a_retry_across_a_failover_takes_effect_once() {
    let steps = schedule(&[
        vec![Send(0, A), Commit(0), GiveUp(0), Crash(P), Promote(R1)],
        learn(B),
        write(0, B),
        learn(A),
        vec![Repair(A, 0)],
    ]);
    let requests = [Request { op: Add(0), is_conditional: false }];
    assert_eq!(check(REAL, 0, 100, &requests, &steps), Ok(()));
}
