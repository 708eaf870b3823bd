//! I1, I2, I3, I10 to I13: correct histories, and histories that are wrong in exactly one way.

use super::*;

#[test]
fn a_correct_history_has_no_violations() {
    let unknown = WriteCall {
        id: 100,
        outcome: Outcome::Unknown,
        changed: false,
        version: 0,
        ..write(60, &["u"], &[], 0)
    };
    let refused = WriteCall {
        id: 101,
        outcome: Outcome::Refused,
        changed: false,
        version: 0,
        ..write(70, &["r"], &[], 0)
    };
    let no_op = WriteCall { id: 102, changed: false, ..write(80, &["a"], &[], 2) };
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
        (3, &["a"]),
    );
    let counts = Counts { acknowledged: 4, ..Counts::default() };
    assert_eq!(history.check(), Findings { violations: Vec::new(), counts });
    // The write with the unknown outcome may have taken effect.
    let mut with = History { reads: history.reads[..2].to_vec(), ..history };
    with.finals = super::history(vec![], vec![], (4, &["a", "u"])).finals;
    no_violations(&with);
}

#[test]
fn versions_order_concurrent_clients() {
    let other = WriteCall { client: 2, ..write(5, &[], &["a"], 2) };
    let racing = vec![write(0, &["a"], &[], 1), other.clone()];
    no_violations(&history(racing.clone(), vec![], (2, &[])));
    violation(&history(racing, vec![], (2, &["a"])), Invariant::SerialOrder);
    // The token of one client does not cover a later write of another one.
    let later = WriteCall { began: at(20), ended: at(25), ..other };
    let stale = vec![write(0, &["a"], &[], 1), later];
    no_violations(&history(stale, vec![read(40, &["a"], 1)], (2, &[])));
}

#[test]
fn a_lost_write_is_found() {
    let history = history(vec![write(0, &["a"], &[], 1)], vec![], (0, &[]));
    let text = violation(&history, Invariant::SerialOrder);
    assert_eq!(
        text,
        "I3 SerialOrder: a of write 00000000000000000000000000000001 is missing in the end\n    \
         write 00000000000000000000000000000001 of client 1 at node 0, 0ns to 10ms, on c: +a: \
         changed, version 1 in epoch 1\n    \
         in the end c has {} at version 0"
    );
    assert_eq!(history.check().counts.absent_unlisted, 1);
}

#[test]
fn a_loss_is_accepted_only_in_an_announced_period() {
    let mut history = history(vec![write(0, &["a"], &[], 1)], vec![], (0, &[]));
    history.may_lose = vec![(at(5), at(15))];
    no_violations(&history);
    assert_eq!(history.check().counts.lost_in_allowed_periods, 1);
    history.may_lose = vec![(at(11), at(15))];
    violation(&history, Invariant::SerialOrder);
}

#[test]
fn a_resurrected_remove_is_found() {
    let writes = vec![write(0, &["a"], &[], 1), write(20, &[], &["a"], 2)];
    violation(&history(writes, vec![], (2, &["a"])), Invariant::SerialOrder);
}

#[test]
fn a_replaced_set_decides_every_tag() {
    let replace = WriteCall { replaces: true, ..write(20, &["b"], &[], 2) };
    let writes = vec![write(0, &["a"], &[], 1), replace];
    no_violations(&history(writes.clone(), vec![], (2, &["b"])));
    violation(&history(writes.clone(), vec![], (2, &["a", "b"])), Invariant::SerialOrder);
    violation(&history(writes, vec![], (2, &[])), Invariant::SerialOrder);
}

#[test]
fn a_conditional_write_that_does_not_follow_its_version_is_found() {
    let conditional = WriteCall { if_match: Some(1), ..write(40, &["b"], &[], 3) };
    let mut writes = vec![write(0, &["a"], &[], 1), write(20, &["x"], &[], 2), conditional];
    let text =
        violation(&history(writes.clone(), vec![], (3, &["a", "b", "x"])), Invariant::SerialOrder);
    assert!(text.contains("conditional write 00000000000000000000000000000003"), "{text}");
    // A failover lost what its first answer was about, and its retry is made again. That is a
    // second effect of it, unless it was lost, but not a different write in between.
    let first = WriteCall { if_match: Some(1), ..write(20, &["b"], &[], 2) };
    let again = WriteCall { id: first.id, ..writes[2].clone() };
    let mut retried = vec![writes[0].clone(), first, again];
    violation(&history(retried.clone(), vec![], (3, &["a", "b"])), Invariant::OneEffect);
    retried.insert(1, WriteCall { id: 9, ..write(10, &["x"], &[], 2) });
    retried[2].version = 3;
    retried[3].version = 4;
    let checked = history(retried, vec![], (4, &["a", "b", "x"])).check();
    let text = checked.violations.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert!(text.contains("named version 1, and 2 came between"), "{text}");
    writes[2].if_match = Some(2);
    no_violations(&history(writes, vec![], (3, &["a", "b", "x"])));
}

#[test]
fn a_read_that_misses_a_write_of_its_version_is_found() {
    let writes = vec![write(0, &["a"], &[], 1), write(20, &["b"], &[], 2)];
    let shown = |read: ReadCall| history(writes.clone(), vec![read], (2, &["a", "b"]));
    let other_state = history(writes.clone(), vec![read(40, &["a"], 2)], (3, &["a", "b"]));
    violation(&other_state, Invariant::SerialOrder);
    no_violations(&shown(ReadCall { marked: true, ..read(40, &["a"], 1) }));
    no_violations(&shown(ReadCall { session: false, ..read(40, &["a"], 1) }));
    violation(&shown(read(40, &["a"], 1)), Invariant::TokenIsCovered);
}

#[test]
fn a_read_that_goes_back_is_found() {
    let other = WriteCall { client: 2, ..write(0, &["a"], &[], 1) };
    let later = WriteCall { client: 2, ..write(20, &["b"], &[], 2) };
    let reads = vec![read(40, &["a", "b"], 2), read(60, &["a"], 1)];
    let history = history(vec![other, later], reads, (2, &["a", "b"]));
    violation(&history, Invariant::TokenIsCovered);
}

#[test]
fn a_state_that_no_client_wrote_is_found() {
    let ghost = history(vec![write(0, &["a"], &[], 1)], vec![], (1, &["a", "ghost"]));
    violation(&ghost, Invariant::SerialOrder);
    let reads = vec![read(20, &["a", "ghost"], 9)];
    let ghost = history(vec![write(0, &["a"], &[], 1)], reads, (1, &["a"]));
    violation(&ghost, Invariant::SerialOrder);
}

#[test]
fn more_tags_than_the_limit_are_found() {
    let tags = ["a", "b", "c", "d"];
    let history = history(vec![write(0, &tags, &[], 1)], vec![], (1, &tags));
    violation(&history, Invariant::TagLimit);
}

#[test]
fn decreasing_versions_are_found() {
    let writes = vec![write(0, &["a"], &[], 2), write(20, &["b"], &[], 1)];
    violation(&history(writes, vec![], (2, &["a", "b"])), Invariant::SerialOrder);
}

#[test]
fn one_version_of_two_changes_is_found() {
    let second = WriteCall { id: 2, ..write(5, &["b"], &[], 1) };
    let writes = vec![write(0, &["a"], &[], 1), second];
    violation(&history(writes, vec![], (2, &["a", "b"])), Invariant::UniqueVersions);
}

#[test]
fn one_version_of_two_states_is_found() {
    let unknown = WriteCall {
        id: 7,
        outcome: Outcome::Unknown,
        changed: false,
        version: 0,
        ..write(0, &[], &["a"], 0)
    };
    let first = ReadCall { client: 2, ..read(12, &["a"], 1) };
    let second = ReadCall { client: 3, ..read(12, &[], 1) };
    let writes = vec![write(0, &["a"], &[], 1), unknown];
    let history = history(writes, vec![first, second], (2, &["a"]));
    violation(&history, Invariant::UniqueVersions);
}

#[test]
fn two_epochs_with_one_ordinal_are_found() {
    let other = WriteCall { epoch: (0xB, 1), ..write(20, &["b"], &[], 2) };
    let writes = vec![write(0, &["a"], &[], 1), other];
    let mut history = history(writes, vec![], (2, &["a", "b"]));
    violation(&history, Invariant::UniqueVersions);
    history.writes[1].epoch.1 = 2;
    no_violations(&history);
    let epoch = |id| EpochSeen { id, ordinal: 3, seen_at: at(90), ..EpochSeen::default() };
    history.epochs = vec![epoch(0xC), epoch(0xD)];
    violation(&history, Invariant::UniqueVersions);
}

#[test]
fn an_acknowledgement_of_a_replaced_primary_is_found() {
    let writes = vec![write(0, &["a"], &[], 1), write(60, &["b"], &[], 2)];
    let mut history = history(writes, vec![], (2, &["a", "b"]));
    let epoch = |id, ms| EpochSeen { id, seen_at: at(ms), ..EpochSeen::default() };
    history.epochs = vec![epoch(0xA, 0), epoch(0xB, 50)];
    violation(&history, Invariant::CommittedBeforePromotion);
    // Requested before, answered after: the commit may precede the next epoch.
    history.writes[1].began = at(45);
    no_violations(&history);
}

#[test]
fn a_write_that_is_applied_twice_is_found() {
    let again = WriteCall { id: 1, ..write(40, &["a"], &[], 3) };
    let writes = vec![write(0, &["a"], &[], 1), write(20, &[], &["a"], 2), again];
    let mut twice = history(writes, vec![], (3, &["a"]));
    violation(&twice, Invariant::OneEffect);
    // The right answer to the retry repeats the first one.
    twice.writes[2] = WriteCall { repeated: true, version: 1, ..twice.writes[2].clone() };
    twice.finals = history(vec![], vec![], (2, &[])).finals;
    no_violations(&twice);
    // If the first application was lost, the second one is the only one.
    let lost = LogRange { inside: 100, flushed: 110 };
    let first = WriteCall { log: Some(lost), ..write(0, &["a"], &[], 1) };
    let second = WriteCall { id: 1, epoch: (0xB, 2), ..write(90, &["a"], &[], 1000) };
    let mut after = history(vec![first, second], vec![], (1000, &["a"]));
    let epoch = |id, end| EpochSeen { id, end, ..EpochSeen::default() };
    after.epochs = vec![epoch(0xA, Some(90)), epoch(0xB, None)];
    after.epochs[1].seen_at = at(50);
    no_violations(&after);
    after.finals.get_mut("c").expect("a content").recent = vec![(1, 1), (1, 1000)];
    violation(&after, Invariant::OneEffect);
}

#[test]
fn an_answer_from_beyond_the_end_of_an_epoch_is_found() {
    let later = WriteCall { epoch: (0xB, 2), ..write(60, &["b"], &[], 1000) };
    let old = ReadCall { position: Some((0xA, 95)), client: 9, ..read(80, &["a"], 1) };
    let writes = vec![write(0, &["a"], &[], 1), later];
    let mut history = history(writes, vec![old], (1000, &["a", "b"]));
    let epoch = |id, end| EpochSeen { id, end, ..EpochSeen::default() };
    history.epochs = vec![epoch(0xA, Some(90)), epoch(0xB, None)];
    history.epochs[1].seen_at = at(50);
    violation(&history, Invariant::FreshIsCurrent);
    // Marked, below the end, of a process that may not know yet, or known in time.
    for (position, node, began, marked) in
        [(95, 0, 80, true), (90, 0, 80, false), (95, 1, 80, false), (95, 0, 65, false)]
    {
        let position = Some((0xA, position));
        history.reads[0] = ReadCall { position, node, marked, client: 9, ..read(began, &["a"], 1) };
        no_violations(&history);
    }
}
