//! Writes: fairness and deadlines in the queue.

use std::time::Duration;

use tagfast_store::{Durability, StoreError, TagWriter};
use tokio::time::Instant;

use crate::support::{Fixture, add, events, key, names, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_tenant_does_not_starve_another() {
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.files = 1;
    let store = tagfast_store_embedded::EmbeddedStore::open(options).expect("a store");
    let flood =
        store.write_many((0..6000).map(|n| add(&key("flood", &n.to_string()), &["a"])).collect());
    let small = store.write(add(&key("small", "one"), &["a"]));
    let mut flood = std::pin::pin!(flood);
    tokio::select! {
        biased;
        _ = &mut flood => panic!("the small tenant waited behind the whole flood"),
        answer = small => assert!(answer.expect("it is written").changed),
    }
    assert!(flood.await.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_by_name_and_limit_and_takes_writes_again() {
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.files = 1;
    let store = tagfast_store_embedded::EmbeddedStore::open(options).expect("a store");
    // A different connection writes to the file: the store's writer waits and the queue fills.
    let other = rusqlite::Connection::open(fixture.dir().join("store-0.sqlite")).expect("the file");
    other.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let mut many =
        Box::pin(store.write_many((0..12_000).map(|_| add(&key("t", "hot"), &["a"])).collect()));
    assert!(futures_poll_once(&mut many).await, "all are queued or refused, none is written");
    other.execute_batch("ROLLBACK").expect("unlocked");
    let answers = many.await;
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty(), "12,000 writes at once are more than one tenant's share");
    for error in refused {
        assert!(matches!(error, StoreError::Overloaded { limit: 16_384, .. }), "{error}");
        assert!(error.is_retryable() && error.retry_after().is_some());
    }
    assert!(!write(&store, add(&key("t", "hot"), &["a"])).await.changed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_deadline_passed_in_the_queue_never_happens() {
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.files = 1;
    let store = tagfast_store_embedded::EmbeddedStore::open(options).expect("a store");
    let page = key("t", "page");
    // The queue is long, so that the deadline passes in it for most, in a batch for some.
    let requests = (0..4000).map(|n| {
        let mut request = add(&key("t", &format!("{n}")), &["a"]);
        request.deadline = Some(Instant::now() + Duration::from_micros(200 * (n % 100)));
        request
    });
    let requests: Vec<_> = requests.collect();
    let keys: Vec<_> = requests.iter().map(|r| r.write.key.clone()).collect();
    let answers = store.write_many(requests).await;
    // Whatever was in a batch at its deadline is finished before this one is answered.
    write(&store, add(&page, &["end"])).await;
    let (mut kept, mut late) = (0, 0);
    for (key, answer) in keys.iter().zip(answers) {
        let there = !names(&store, key).await.is_empty();
        match answer {
            Ok(_) => {
                kept += 1;
                assert!(there, "an acknowledged write is there");
            }
            Err(StoreError::Deadline { outcome_unknown: false, .. }) => {
                late += 1;
                assert!(!there, "the write was reported as not done");
            }
            Err(StoreError::Deadline { outcome_unknown: true, .. }) => {}
            Err(other) => panic!("only deadlines: {other}"),
        }
    }
    assert!(late > 0, "{kept} were written in time, none was late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_does_not_take_its_write_back() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let page = key("t", "page");
    {
        let mut leaving = Box::pin(store.write(add(&page, &["kept"])));
        assert!(futures_poll_once(&mut leaving).await);
    }
    let answer = write(&store, add(&page, &["later"])).await;
    assert_eq!(answer.added.len(), 1);
    assert_eq!(names(&store, &page).await, ["kept", "later"]);
}

/// Polls once; true: it is not ready.
async fn futures_poll_once<T>(future: &mut (impl Future<Output = T> + Unpin)) -> bool {
    std::future::poll_fn(|context| {
        let pending = std::pin::Pin::new(&mut *future).poll(context).is_pending();
        std::task::Poll::Ready(pending)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_makes_one_event_per_content_that_lists_each_write() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let page = key("t", "page");
    let answers =
        store.write_many((0..40).map(|n| add(&page, &[&format!("t{n:02}")])).collect()).await;
    assert!(answers.iter().all(Result::is_ok));
    let events = events(&store).await;
    assert!(events.len() < 40, "group commits join writes of a content");
    let listed: Vec<_> =
        events.iter().flat_map(|e| &e.changes).map(|c| c.added[0].to_string()).collect();
    assert_eq!(listed, (0..40).map(|n| format!("t{n:02}")).collect::<Vec<_>>());
    let last = events.last().expect("an event");
    assert_eq!(
        (last.tags.len(), last.version),
        (40, last.changes.last().expect("a change").version)
    );
}

#[tokio::test]
async fn replicated_durability_belongs_to_the_other_mode() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let mut request = add(&key("t", "page"), &["a"]);
    request.durability = Durability::Replicated;
    assert!(matches!(
        store.write(request).await,
        Err(StoreError::NotInThisMode("durability replicated"))
    ));
}

#[tokio::test]
async fn after_close_writes_are_refused_and_nothing_is_lost() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let page = key("t", "page");
    write(&store, add(&page, &["a"])).await;
    store.close();
    let error = store.write(add(&page, &["b"])).await.expect_err("the store is closed");
    assert!(!error.is_outcome_unknown() && error.is_retryable(), "{error}");
    drop(store);
    assert_eq!(names(&fixture.open(), &page).await, ["a"]);
}
