//! The state machine behind each acknowledgement.

use proptest::prelude::*;
use tagfast_failover::guard::GUARD_MARGIN;
use tagfast_failover::{
    AckDecision, Acknowledger, BootTime, Commit, GuardOptions, GuardState, JournaledCommit, OnLag,
    ReplicaCount,
};

use crate::support::{at, cases, content, epoch, epoch_id, lease, range};

const MAX_LOSS_MS: u64 = 1000;
const OPTIONS: GuardOptions =
    GuardOptions { max_loss: std::time::Duration::from_millis(MAX_LOSS_MS), on_lag: OnLag::Hold };

/// In epoch 1, with two replicas, and a lease of 18 s.
fn in_epoch_1() -> Acknowledger {
    let mut node = Acknowledger::new(OPTIONS, 1 << 20);
    node.set_members(&["r1".to_owned(), "r2".to_owned()], at(0));
    assert!(node.adopt_epoch(&epoch(1, "p"), at(0)));
    assert!(node.record_observation(&lease(at(0), 1, "p")));
    node
}

fn committed(ms: u64, n: u64) -> Commit {
    Commit { epoch: epoch_id(n), sent: at(ms.saturating_sub(3)), returned: at(ms) }
}

fn record(node: &mut Acknowledger, flushed: u64, ms: u64) -> JournaledCommit {
    let contents = vec![content(&format!("k{flushed}"), flushed, &[flushed])];
    node.record(committed(ms, 1), range(1, flushed), contents).expect("the epoch is known")
}

fn replicas(node: &mut Acknowledger, r1: u64, r2: u64, now: BootTime) {
    node.record_replicas(epoch_id(1), &[("r1".to_owned(), r1), ("r2".to_owned(), r2)], now);
}

const BY_NO_REPLICA: AckDecision =
    AckDecision::Acknowledge(Some(ReplicaCount { replicas: 0, of: 0 }));

/// X2: a late acknowledgement after the process's own repair.
#[test]
fn what_is_acknowledged_late_would_be_in_no_repair() {
    let mut node = in_epoch_1();
    let late = record(&mut node, 10, 5);
    assert!(node.adopt_epoch(&epoch(2, "r1"), at(6)));
    assert!(node.record_observation(&lease(at(6), 2, "r1")));
    assert_eq!(node.journal().waiting_for_repair(), 0, "no caller was told of it");
    assert_eq!(node.decide_group(&late, at(7)), AckDecision::Unknown);
}

#[test]
fn a_commit_is_journaled_in_its_own_epoch_only() {
    let mut node = in_epoch_1();
    let contents = || vec![content("k", 1, &[1])];
    assert_eq!(node.record(committed(5, 2), range(1, 1), contents()), None);
    assert_eq!(node.record(committed(5, 1), range(2, 1), contents()), None);
    assert_eq!(node.journal().contents(), 0);
}

#[test]
fn the_guard_waits_for_a_replica_and_then_goes_on() {
    let mut node = in_epoch_1();
    replicas(&mut node, 5, 5, at(1));
    let first = record(&mut node, 10, 2);
    assert_eq!(
        node.decide_group(&first, at(10)),
        AckDecision::Acknowledge(Some(ReplicaCount { replicas: 0, of: 2 }))
    );
    let second = record(&mut node, 20, 900);
    assert_eq!(node.guard_state(at(900)), GuardState::Throttled);
    assert_eq!(node.guard_state(at(950)), GuardState::Holding);
    assert_eq!(node.decide_group(&second, at(950)), AckDecision::WaitForReplica);
    replicas(&mut node, 20, 5, at(960));
    assert_eq!(
        node.decide_group(&second, at(961)),
        AckDecision::Acknowledge(Some(ReplicaCount { replicas: 1, of: 2 }))
    );
    assert_eq!(node.guard_state(at(961)), GuardState::Open);
    assert_eq!(node.journal().contents(), 2, "r2 has neither");
    replicas(&mut node, 20, 20, at(970));
    assert_eq!((node.journal().contents(), node.journal().bytes()), (0, 0));
}

/// A process whose replicas have taken nothing since it acknowledged a group; the group after it
/// waits since 13 s.
fn waiting_for_replicas() -> (Acknowledger, JournaledCommit) {
    let mut node = in_epoch_1();
    let first = record(&mut node, 10, 12_000);
    assert_eq!(node.decide_group(&first, at(12_000)), BY_NO_REPLICA);
    replicas(&mut node, 5, 5, at(12_001));
    let second = record(&mut node, 20, 13_000);
    assert_eq!(node.decide_group(&second, at(13_000)), AckDecision::WaitForReplica);
    (node, second)
}

#[test]
fn a_group_that_waited_in_vain_refuses_only_until_a_replica_is_back() {
    let (mut node, _) = waiting_for_replicas();
    assert_eq!(node.guard_state(at(15_000)), GuardState::Holding);
    assert_eq!(node.guard_state(at(15_001)), GuardState::Refusing);
    // Its callers have gone without a word; the replicas come back.
    replicas(&mut node, 20, 20, at(15_500));
    let third = record(&mut node, 30, 15_600);
    assert!(matches!(node.decide_group(&third, at(15_600)), AckDecision::Acknowledge(_)));
    assert_eq!(node.guard_state(at(16_550)), GuardState::Holding, "the old wait is over");
}

/// Replicas that hang are listed as streaming for a while.
#[test]
fn refusing_does_not_alternate_with_holding_while_replicas_hang() {
    let (mut node, second) = waiting_for_replicas();
    assert_eq!(node.guard_state(at(15_001)), GuardState::Refusing);
    // Its callers are refused, and no other one waits.
    node.stop_waiting(&second);
    for now in (15_002..30_000).step_by(50) {
        replicas(&mut node, 5, 5, at(now));
        assert_eq!(node.guard_state(at(now)), GuardState::Refusing, "at {now} ms");
    }
    replicas(&mut node, 10, 5, at(30_000));
    assert_eq!(node.guard_state(at(30_000)), GuardState::Open, "what was acknowledged is covered");
}

#[test]
fn without_a_roster_the_guard_counts_on_a_failover() {
    let mut node = Acknowledger::new(OPTIONS, 1 << 20);
    node.adopt_epoch(&epoch(1, "p"), at(0));
    node.record_observation(&lease(at(0), 1, "p"));
    let first = record(&mut node, 10, 12_000);
    assert_eq!(node.decide_group(&first, at(12_000)), BY_NO_REPLICA);
    assert_eq!(node.guard_state(at(13_000)), GuardState::Refusing);
    node.set_members(&[], at(13_000));
    assert_eq!(node.guard_state(at(13_000)), GuardState::Open, "there is no other member");
}

proptest! {
    #![proptest_config(cases(400, 20))]

    /// However commits, polls and stalls of replicas interleave, and however small the journal is:
    /// what no replica had when it was acknowledged was acknowledged within the largest loss of the
    /// first such write.
    #[test]
    fn the_loss_is_bounded_at_every_moment(
        steps in prop::collection::vec((1..120u64, 0..6u8), 1..150), bytes_max in 0..3000usize,
    ) {
        let mut node = Acknowledger::new(OPTIONS, bytes_max);
        node.set_members(&["r1".to_owned(), "r2".to_owned()], at(0));
        node.adopt_epoch(&epoch(1, "p"), at(0));
        let (mut now, mut log, mut r1, mut r2) = (0, 0, 0, 0);
        let mut open: Vec<JournaledCommit> = Vec::new();
        // Acknowledged, with the time.
        let mut acknowledged: Vec<(u64, u64)> = Vec::new();
        for (gap, kind) in steps {
            now += gap;
            node.record_observation(&lease(at(now), 1, "p"));
            match kind {
                0..=2 => {
                    log += 10;
                    open.push(record(&mut node, log, now));
                }
                3 => r1 = r1.max(log.saturating_sub(10)),
                4 => r2 = r2.max(r1.saturating_sub(10)),
                _ => replicas(&mut node, r1, r2, at(now)),
            }
            open.retain(|group| match node.decide_group(group, at(now)) {
                AckDecision::Acknowledge(_) => {
                    acknowledged.push((group.flushed, now));
                    false
                }
                AckDecision::WaitForReplica => true,
                AckDecision::ProofAfter(_) | AckDecision::Unknown => panic!("it is proven"),
            });
            // The primary dies now, and the replica with more is promoted.
            let lost: Vec<u64> = acknowledged.iter()
                .filter(|(flushed, _)| *flushed > r1.max(r2))
                .map(|(_, at)| *at)
                .collect();
            let span = lost.iter().max().zip(lost.iter().min()).map_or(0, |(max, min)| max - min);
            prop_assert!(span < MAX_LOSS_MS - GUARD_MARGIN.as_millis() as u64, "{} ms", span);
        }
    }
}
