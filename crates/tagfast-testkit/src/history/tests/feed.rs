//! I7, I8 and I9: feeds and indexes that are right, or wrong in exactly one way.

use super::*;

fn event(content: &str, emit: u64, version: u64, applied: bool) -> FeedEvent {
    let (cluster, content) = ("c0".to_owned(), content.to_owned());
    FeedEvent { partition: 0, cluster, content, emit, version, applied }
}

fn topic(events: &[FeedEvent]) -> History {
    History { topic: events.to_vec(), limit: 3, ..History::default() }
}

#[test]
fn a_duplicate_and_an_ignored_old_event_are_accepted() {
    no_violations(&topic(&[
        event("a", 1, 10, true),
        event("a", 1, 10, true),
        event("a", 2, 20, true),
        event("a", 1, 30, false),
        event("a", 2, 11, false),
    ]));
}

#[test]
fn an_index_that_goes_back_is_found() {
    let events = [event("a", 1, 10, true), event("b", 1, 5, true), event("a", 1, 9, true)];
    let text = violation(&topic(&events), Invariant::IndexGoesForward);
    assert!(text.contains("from version 10 back to 9"), "{text}");
}

#[test]
fn an_event_of_a_replaced_primary_that_changes_something_is_found() {
    let events = [event("a", 2, 10, true), event("b", 1, 90, true)];
    let text = violation(&topic(&events), Invariant::IndexGoesForward);
    assert!(text.contains("replaced relay of epoch 1 changed b"), "{text}");
}

#[test]
fn publisher_epochs_are_compared_within_a_partition_and_cluster() {
    let other = FeedEvent { cluster: "c1".to_owned(), ..event("b", 1, 10, true) };
    let other_partition = FeedEvent { partition: 1, ..event("c", 1, 10, true) };
    no_violations(&topic(&[event("a", 2, 10, true), other, other_partition]));
}

#[test]
fn an_index_that_differs_from_the_primary_is_found() {
    let mut history = history(vec![write(0, &["a"], &[], 1)], vec![], (1, &["a"]));
    history.topic = vec![event("c", 1, 1, true)];
    let index = |version, tags: &[&str]| Some([("c".to_owned(), (version, set(tags)))].into());
    history.index = index(1, &["a"]);
    no_violations(&history);
    for wrong in [index(1, &[]), index(2, &["a"]), Some([].into())] {
        history.index = wrong;
        violation(&history, Invariant::IndexEqualsPrimary);
    }
    // A content that only a lost write had is still in the index.
    history.index = index(1, &["a"]);
    history.index.as_mut().expect("it is set").insert("lost".to_owned(), (9, set(&["x"])));
    violation(&history, Invariant::IndexEqualsPrimary);
}

#[test]
fn a_row_that_was_never_published_is_found() {
    let mut history = history(vec![write(0, &["a"], &[], 1)], vec![], (1, &["a"]));
    history.outbox = Some(vec![("c".to_owned(), 1)]);
    let text = violation(&history, Invariant::OutboxIsPublished);
    assert!(text.contains("write 00000000000000000000000000000001"), "{text}");
    history.topic = vec![event("c", 1, 1, true), event("c", 1, 1, true)];
    no_violations(&history);
}
