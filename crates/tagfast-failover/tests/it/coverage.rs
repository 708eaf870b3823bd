//! Which commits the replicas have.

use tagfast_failover::coverage::ABSENT_AFTER;
use tagfast_failover::{BootTime, Coverage, ReplicaCount};

use crate::support::{at, epoch_id};

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn streaming(positions: &[(&str, u64)]) -> Vec<(String, u64)> {
    positions.iter().map(|(name, flushed)| ((*name).to_owned(), *flushed)).collect()
}

fn of_two_replicas() -> Coverage {
    let mut coverage = Coverage::default();
    coverage.set_members(&names(&["r1", "r2"]), at(0));
    coverage.begin_epoch(epoch_id(1), at(0));
    coverage
}

#[test]
fn one_replica_and_all_replicas_are_told_apart() {
    let mut coverage = of_two_replicas();
    assert_eq!((coverage.by_one(), coverage.by_all(at(1))), (0, 0));
    coverage.record(epoch_id(1), &streaming(&[("r1", 100)]), at(1));
    assert_eq!((coverage.by_one(), coverage.by_all(at(1))), (100, 0), "r2 was never heard of");
    coverage.record(epoch_id(1), &streaming(&[("r1", 100), ("r2", 40)]), at(2));
    assert_eq!((coverage.by_one(), coverage.by_all(at(2))), (100, 40));
    assert_eq!(coverage.count(50), ReplicaCount { replicas: 1, of: 2 });
}

#[test]
fn others_than_members_cover_nothing() {
    let mut coverage = of_two_replicas();
    coverage.record(epoch_id(1), &streaming(&[("pg_receivewal", 500)]), at(1));
    assert_eq!((coverage.by_one(), coverage.streaming()), (0, 0));
}

/// X12: two forks of a log have the same positions.
#[test]
fn positions_end_with_their_epoch_and_those_of_a_different_one_are_ignored() {
    let mut coverage = of_two_replicas();
    coverage.record(epoch_id(1), &streaming(&[("r1", 100), ("r2", 100)]), at(1));
    coverage.begin_epoch(epoch_id(2), at(2));
    assert_eq!((coverage.by_one(), coverage.by_all(at(2))), (0, 0));
    coverage.record(epoch_id(1), &streaming(&[("r1", 200), ("r2", 200)]), at(3));
    assert_eq!((coverage.by_one(), coverage.by_all(at(3))), (0, 0), "a late answer");
}

#[test]
fn what_a_replica_has_it_keeps_also_when_it_vanishes_or_is_listed_twice() {
    let mut coverage = of_two_replicas();
    coverage.record(epoch_id(1), &streaming(&[("r1", 100), ("r2", 80)]), at(1));
    coverage.record(epoch_id(1), &[], at(2));
    assert_eq!((coverage.by_one(), coverage.by_all(at(2)), coverage.streaming()), (100, 80, 0));
    coverage.record(epoch_id(1), &streaming(&[("r1", 90), ("r2", 60), ("r2", 95)]), at(3));
    assert_eq!((coverage.by_one(), coverage.by_all(at(3))), (100, 95));
    assert_eq!(coverage.count(92), ReplicaCount { replicas: 2, of: 2 });
}

#[test]
fn a_replica_that_is_gone_for_long_does_not_hold_the_journal() {
    let mut coverage = of_two_replicas();
    coverage.record(epoch_id(1), &streaming(&[("r1", 100), ("r2", 10)]), at(0));
    let late = BootTime(ABSENT_AFTER);
    coverage.record(epoch_id(1), &streaming(&[("r1", 200)]), late);
    assert_eq!(coverage.by_all(late), 10, "for ten minutes it counts");
    let later = BootTime(late.0 + at(1).0);
    coverage.record(epoch_id(1), &streaming(&[("r1", 200)]), later);
    assert_eq!(coverage.by_all(later), 200);
    coverage.record(epoch_id(1), &streaming(&[("r1", 300), ("r2", 50)]), later);
    assert_eq!(coverage.by_all(later), 50, "it is back");
    let never = BootTime(later.0 + ABSENT_AFTER * 2);
    assert_eq!(coverage.by_all(never), 0, "without any replica nothing is covered by all");
}

#[test]
fn members_that_are_not_known_yet_are_not_no_members() {
    let mut coverage = Coverage::default();
    assert!(coverage.has_members());
    coverage.set_members(&[], at(0));
    assert!(!coverage.has_members());
    coverage.set_members(&names(&["r1"]), at(0));
    assert!(coverage.has_members());
    assert_eq!(coverage.positions().collect::<Vec<_>>(), [("r1", None, false)]);
}
