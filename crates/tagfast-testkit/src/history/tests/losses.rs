//! I4, I5, I6 and I11: verdicts and losses that are right, or wrong in exactly one way.

use super::*;

/// A closed failover at 50 ms: the log of epoch 1 counts up to 100.
fn failover(writes: Vec<WriteCall>, finally: (u64, &[&str])) -> History {
    let mut history = history(writes, vec![], finally);
    let epoch = |id, ordinal| EpochSeen { id, ordinal, ..EpochSeen::default() };
    history.epochs = vec![epoch(0xA, 1), epoch(0xB, 2)];
    history.epochs[0].end = Some(100);
    history.epochs[1].seen_at = at(50);
    history.epochs[1].was_streaming = true;
    history.epochs[1].reported = [0].into();
    history.epochs[1].closed_at = Some(at(70));
    history
}

/// A write whose receipt names this place in the log, with a verdict after the closing.
fn judged(write: WriteCall, inside: u64, verdict: WriteVerdict) -> WriteCall {
    let log = Some(LogRange { inside, flushed: inside + 5 });
    let verdicts = vec![VerdictAnswer { at: at(90), closed: true, verdict }];
    WriteCall { log, verdicts, ..write }
}

fn lost(reason: &str) -> WriteVerdict {
    WriteVerdict::Lost(reason.to_owned())
}

#[test]
fn kept_repaired_and_lost_writes_with_their_verdicts_are_accepted_and_counted() {
    let elsewhere = WriteCall { node: 1, ..write(30, &["c"], &[], 3) };
    let mut history = failover(
        vec![
            judged(write(0, &["a"], &[], 1), 80, WriteVerdict::Kept),
            judged(write(15, &["b"], &[], 2), 110, WriteVerdict::Repaired),
            judged(elsewhere, 120, lost("unreported")),
        ],
        (1000, &["a", "b"]),
    );
    history.listed = Some([(2, WriteVerdict::Repaired)].into());
    history.max_loss = Some(at(1));
    let found = history.check();
    assert_eq!(found.violations, []);
    let counts = found.counts;
    assert_eq!((counts.acknowledged, counts.repaired, counts.undecided), (3, 1, 0));
    assert_eq!(counts.lost, [("unreported".to_owned(), 1)].into());
    assert_eq!(counts.repair_times, [(2, at(20))]);
    let span = |node, at| LostSpan { epoch: 1, node, writes: 1, first: at, last: at };
    assert_eq!(counts.lost_spans, [span(0, at(25)), span(1, at(40))]);
}

#[test]
fn a_missing_final_verdict_is_found() {
    let judged = judged(write(0, &["a"], &[], 1), 80, WriteVerdict::Kept);
    let other = WriteCall { content: "d".to_owned(), ..write(0, &[], &[], 2) };
    let mut history = failover(vec![judged, other], (1, &["a"]));
    let text = violation(&history, Invariant::FinalVerdict);
    assert!(text.contains("write 00000000000000000000000000000002 has no verdict"), "{text}");
    // One that is given before the closing is not final; after it, `unknown` is not enough.
    let answer = |closed, verdict| VerdictAnswer { at: at(95), closed, verdict };
    history.writes[1].verdicts = vec![answer(false, WriteVerdict::Kept)];
    violation(&history, Invariant::FinalVerdict);
    history.writes[1].verdicts = vec![answer(true, WriteVerdict::Unknown("pending".to_owned()))];
    violation(&history, Invariant::FinalVerdict);
    history.writes[1].verdicts = vec![answer(true, WriteVerdict::Kept)];
    no_violations(&history);
}

#[test]
fn a_verdict_that_changes_after_the_closing_is_found() {
    let mut write = judged(write(0, &[], &["a"], 1), 80, WriteVerdict::Kept);
    let before = VerdictAnswer { at: at(60), closed: false, verdict: lost("unreported") };
    write.verdicts.insert(0, before);
    let mut history = failover(vec![write], (1, &[]));
    no_violations(&history);
    history.writes[0].verdicts[0].closed = true;
    violation(&history, Invariant::FinalVerdict);
}

#[test]
fn a_loss_that_its_reporting_process_should_have_repaired_is_found() {
    let write = judged(write(0, &["a"], &[], 1), 110, lost("unreported"));
    let mut history = failover(vec![write], (0, &[]));
    violation(&history, Invariant::FinalVerdict);
    history.epochs[1].reported = [7].into();
    no_violations(&history);
}

#[test]
fn a_commit_across_the_end_of_an_epoch_may_stay_unknown() {
    let unknown = WriteVerdict::Unknown("expired".to_owned());
    let across = |inside| judged(write(0, &["a"], &[], 1), inside, unknown.clone());
    let mut history = failover(vec![across(98)], (0, &[]));
    violation(&history, Invariant::FinalVerdict);
    // Its process is gone: no one knows on which side of the end the commit is.
    history.epochs[1].reported = [7].into();
    no_violations(&history);
    history.writes[0] = across(90);
    violation(&history, Invariant::FinalVerdict);
}

#[test]
fn a_write_that_the_reports_do_not_list_is_found() {
    let write = judged(write(0, &["a"], &[], 1), 110, WriteVerdict::Repaired);
    let mut history = failover(vec![write], (1000, &["a"]));
    history.listed = Some([].into());
    violation(&history, Invariant::FinalVerdict);
    history.listed = Some([(1, lost("late"))].into());
    violation(&history, Invariant::FinalVerdict);
}

#[test]
fn a_write_that_is_listed_as_lost_and_counts_is_found() {
    let mut history =
        failover(vec![judged(write(0, &["a"], &[], 1), 110, lost("late"))], (1000, &["a"]));
    violation(&history, Invariant::FinalVerdict);
    // What did fit beside a tag that did not was merged back.
    history.writes[0].verdicts[0].verdict = lost("limit");
    no_violations(&history);
}

#[test]
fn a_missing_write_that_is_listed_as_kept_is_found() {
    let write = judged(write(0, &["a"], &[], 1), 80, WriteVerdict::Kept);
    violation(&failover(vec![write], (0, &[])), Invariant::SerialOrder);
}

#[test]
fn a_loss_over_more_than_the_maximum_is_found() {
    let writes = vec![
        judged(write(0, &["a"], &[], 1), 110, WriteVerdict::Repaired),
        judged(write(30, &["b"], &[], 2), 120, WriteVerdict::Repaired),
    ];
    let mut history = failover(writes, (1000, &["a", "b"]));
    history.max_loss = Some(at(30));
    no_violations(&history);
    history.max_loss = Some(at(29));
    violation(&history, Invariant::LossBound);
    // Two processes have a bound each.
    history.writes[1].node = 1;
    no_violations(&history);
}

#[test]
fn a_replicated_write_that_is_lost_is_found() {
    let replicated = |had, of| WriteCall {
        replicated: Some(Replicas { had, of }),
        ..judged(write(0, &["a"], &[], 1), 110, WriteVerdict::Repaired)
    };
    let mut history = failover(vec![replicated(2, 2)], (1000, &["a"]));
    violation(&history, Invariant::ReplicatedSurvives);
    history.epochs[1].was_streaming = false;
    no_violations(&history);
    history.epochs[1].was_streaming = true;
    history.writes[0] = replicated(1, 2);
    no_violations(&history);
}

#[test]
fn a_client_that_is_not_told_of_its_lost_write_is_found() {
    let mut history =
        failover(vec![judged(write(0, &["a"], &[], 1), 110, lost("late"))], (1000, &[]));
    history.reads = vec![read(60, &[], 1000), read(80, &[], 1000)];
    history.writes.push(judged(
        WriteCall { client: 2, epoch: (0xB, 2), ..write(52, &[], &["z"], 1000) },
        20,
        WriteVerdict::Kept,
    ));
    assert_eq!(history.check().violations.len(), 2);
    // Once is enough.
    history.reads[0].marked = true;
    no_violations(&history);
    history.reads.remove(0);
    violation(&history, Invariant::TokenIsCovered);
    // A client without the token was promised nothing.
    history.reads[0].session = false;
    no_violations(&history);
}
