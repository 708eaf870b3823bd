//! A correct history, and histories that are wrong in exactly one way.

use super::*;

fn set(tags: &[&str]) -> BTreeSet<String> {
    tags.iter().map(|t| (*t).to_owned()).collect()
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// An acknowledged write of client 1 to content `c` in epoch 1, from `began` for 10 ms.
fn write(began: u64, adds: &[&str], removes: &[&str], version: u64) -> WriteCall {
    WriteCall {
        client: 1,
        content: "c".to_owned(),
        began: at(began),
        ended: at(began + 10),
        adds: set(adds),
        removes: set(removes),
        outcome: Outcome::Acknowledged,
        changed: true,
        version,
        epoch: (0xA, 1),
    }
}

/// A read of client 1 with its token.
fn read(began: u64, tags: &[&str], version: u64) -> ReadCall {
    ReadCall {
        client: 1,
        content: "c".to_owned(),
        began: at(began),
        ended: at(began + 5),
        tags: set(tags),
        version,
        session: true,
        marked: false,
    }
}

fn history(writes: Vec<WriteCall>, reads: Vec<ReadCall>) -> History {
    History { writes, reads, limit: 3, ..History::default() }
}

fn final_state(version: u64, tags: &[&str]) -> BTreeMap<String, (u64, BTreeSet<String>)> {
    BTreeMap::from([("c".to_owned(), (version, set(tags)))])
}

/// Checks that there is exactly one fault; returns its name.
fn fault(history: &History, final_state: &BTreeMap<String, (u64, BTreeSet<String>)>) -> String {
    let verdict = history.check(final_state);
    assert_eq!(verdict.faults.len(), 1, "exactly one fault was planted: {:?}", verdict.faults);
    let text = format!("{:?}", verdict.faults[0]);
    text.split('(').next().unwrap_or_default().to_owned()
}

#[test]
fn a_correct_history_has_no_faults() {
    let unknown = WriteCall {
        outcome: Outcome::Unknown,
        changed: false,
        version: 0,
        ..write(60, &["u"], &[], 0)
    };
    let refused = WriteCall {
        outcome: Outcome::Refused,
        changed: false,
        version: 0,
        ..write(70, &["r"], &[], 0)
    };
    let no_op = WriteCall { changed: false, ..write(80, &["a"], &[], 2) };
    let history = history(
        vec![
            write(0, &["a"], &[], 1),
            write(20, &["b"], &[], 2),
            unknown,
            refused,
            no_op,
            write(100, &[], &["b"], 3),
        ],
        vec![read(15, &["a"], 1), read(40, &["a", "b"], 2), read(120, &["a"], 3)],
    );
    assert_eq!(history.check(&final_state(3, &["a"])), Verdict::default());
    // The write with the unknown outcome may have taken effect.
    let with = History { reads: history.reads[..2].to_vec(), ..history.clone() };
    assert_eq!(with.check(&final_state(4, &["a", "u"])), Verdict::default());
}

#[test]
fn concurrent_clients_may_see_either_order() {
    let other = WriteCall { client: 2, ..write(5, &[], &["a"], 2) };
    let racing = history(vec![write(0, &["a"], &[], 1), other.clone()], vec![]);
    assert_eq!(racing.check(&final_state(2, &[])), Verdict::default());
    assert_eq!(racing.check(&final_state(2, &["a"])), Verdict::default());
    // The token of one client does not cover a later write of another one.
    let later = WriteCall { began: at(20), ended: at(25), ..other };
    let stale = history(vec![write(0, &["a"], &[], 1), later], vec![read(40, &["a"], 1)]);
    assert_eq!(stale.check(&final_state(2, &[])), Verdict::default());
}

#[test]
fn a_lost_write_is_found() {
    let history = history(vec![write(0, &["a"], &[], 1)], vec![]);
    assert_eq!(fault(&history, &final_state(0, &[])), "Lost");
}

#[test]
fn a_loss_is_accepted_only_in_an_announced_period() {
    let mut history = history(vec![write(0, &["a"], &[], 1)], vec![]);
    history.may_lose = vec![(at(5), at(15))];
    assert_eq!(history.check(&final_state(0, &[])), Verdict { faults: vec![], lost: 1 });
    history.may_lose = vec![(at(11), at(15))];
    assert_eq!(fault(&history, &final_state(0, &[])), "Lost");
}

#[test]
fn a_resurrected_remove_is_found() {
    let history = history(vec![write(0, &["a"], &[], 1), write(20, &[], &["a"], 2)], vec![]);
    assert_eq!(fault(&history, &final_state(2, &["a"])), "Resurrected");
}

#[test]
fn a_read_that_misses_its_clients_own_write_is_found() {
    let history = history(
        vec![write(0, &["a"], &[], 1), write(20, &["b"], &[], 2)],
        vec![read(40, &["a"], 2)],
    );
    let verdict = history.check(&final_state(3, &["a", "b"]));
    assert!(matches!(verdict.faults[..], [Fault::ReadYourWrites(_)]), "{:?}", verdict.faults);
    let marked = History {
        reads: vec![ReadCall { marked: true, ..read(40, &["a"], 1) }],
        ..history.clone()
    };
    assert_eq!(marked.check(&final_state(2, &["a", "b"])).faults, [], "the answer was marked");
    let plain =
        History { reads: vec![ReadCall { session: false, ..read(40, &["a"], 1) }], ..history };
    assert_eq!(
        plain.check(&final_state(2, &["a", "b"])).faults,
        [],
        "without a token nothing is promised"
    );
}

#[test]
fn a_read_that_goes_back_is_found() {
    let other = WriteCall { client: 2, ..write(0, &["a"], &[], 1) };
    let later = WriteCall { client: 2, ..write(20, &["b"], &[], 2) };
    let history = history(vec![other, later], vec![read(40, &["a", "b"], 2), read(60, &["a"], 1)]);
    assert_eq!(fault(&history, &final_state(2, &["a", "b"])), "WentBack");
}

#[test]
fn a_state_that_no_client_wrote_is_found() {
    let good = history(vec![write(0, &["a"], &[], 1)], vec![]);
    assert_eq!(fault(&good, &final_state(1, &["a", "ghost"])), "Unexplained");
    let read = History { reads: vec![read(20, &["a", "ghost"], 9)], ..good };
    assert_eq!(fault(&read, &final_state(1, &["a"])), "Unexplained");
}

#[test]
fn more_tags_than_the_limit_are_found() {
    let history = history(vec![write(0, &["a", "b", "c", "d"], &[], 1)], vec![]);
    assert_eq!(fault(&history, &final_state(1, &["a", "b", "c", "d"])), "Limit");
}

#[test]
fn decreasing_versions_are_found() {
    let history = history(vec![write(0, &["a"], &[], 2), write(20, &["b"], &[], 1)], vec![]);
    assert_eq!(fault(&history, &final_state(2, &["a", "b"])), "VersionOrder");
}

#[test]
fn a_change_without_a_new_version_is_found() {
    let history = history(vec![write(0, &["a"], &[], 1), write(5, &["b"], &[], 1)], vec![]);
    assert_eq!(fault(&history, &final_state(2, &["a", "b"])), "OneVersionTwice");
}

#[test]
fn one_version_of_two_states_is_found() {
    let first = ReadCall { client: 2, ..read(12, &["a"], 1) };
    let second = ReadCall { client: 3, ..read(12, &[], 1) };
    let history = history(vec![write(0, &["a"], &[], 1)], vec![first, second]);
    assert_eq!(fault(&history, &final_state(1, &["a"])), "OneVersionTwice");
}

#[test]
fn two_epochs_with_one_ordinal_are_found() {
    let other = WriteCall { epoch: (0xB, 1), ..write(20, &["b"], &[], 2) };
    let history = history(vec![write(0, &["a"], &[], 1), other], vec![]);
    assert_eq!(fault(&history, &final_state(2, &["a", "b"])), "OneOrdinalTwice");
}

#[test]
fn an_acknowledgement_of_a_replaced_primary_is_found() {
    let mut history = history(vec![write(0, &["a"], &[], 1), write(60, &["b"], &[], 2)], vec![]);
    history.epochs =
        vec![EpochStart { id: 0xA, seen_at: at(0) }, EpochStart { id: 0xB, seen_at: at(50) }];
    assert_eq!(fault(&history, &final_state(2, &["a", "b"])), "AcknowledgedByReplaced");
    // Requested before, answered after: the commit may precede the next epoch.
    history.writes[1].began = at(45);
    assert_eq!(history.check(&final_state(2, &["a", "b"])).faults, []);
}
