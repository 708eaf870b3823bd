//! The faults of the store in memory.

use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{ContentKey, Limits, Operation, Tag, UserId, Version, Write, WriteId};
use tagfast_resilience::ManualClock;
use tagfast_sharding::LogicalShard;
use tagfast_store::testing::MemoryStore;
use tagfast_store::{
    History, ReadOptions, ReceiptReader, ScanRequest, ShardScanner, StoreError, TagReader,
    TagWriter, Verdict, WriteRequest,
};
use tokio::time::Instant;

fn key() -> ContentKey {
    ContentKey::parse("acme", "test.doc", "1").expect("a content")
}

fn add(id: u8, tag: &str) -> WriteRequest {
    let tags = vec![Tag::parse(tag).expect("a tag")];
    WriteRequest {
        keyed: None,
        ..WriteRequest::new(Write {
            id: WriteId([id; 16]),
            key: key(),
            user: UserId::parse("ann").expect("a user"),
            operation: Operation::patch(tags, Vec::new(), &Limits::default()).expect("a patch"),
            if_match: None,
        })
    }
}

fn store() -> Arc<MemoryStore> {
    MemoryStore::new(Arc::new(ManualClock::new(1_800_000_000_000)))
}

#[tokio::test]
async fn calls_are_counted_and_fail_on_request() {
    let store = store();
    store.write(add(1, "a")).await.expect("written");
    store.faults().fail_with(|| StoreError::DiskFull);
    assert!(matches!(store.write(add(2, "b")).await, Err(StoreError::DiskFull)));
    let options = ReadOptions::default();
    assert!(matches!(store.view(&key(), &options).await, Err(StoreError::DiskFull)));
    store.faults().heal();
    assert_eq!(store.view(&key(), &options).await.expect("a view").tags.len(), 1);
    assert_eq!((store.faults().reads(), store.faults().writes()), (2, 2));
    assert_eq!(store.faults().last_write().map(|r| r.write.id), Some(WriteId([2; 16])));
    assert_eq!(store.faults().last_read().and_then(|read| read.user), None);
    store.faults().set_view_hook(Some(|_, view| {
        view.stale = true;
        Ok(())
    }));
    assert!(store.view(&key(), &options).await.expect("a view").stale);
}

#[tokio::test(start_paused = true)]
async fn a_paused_read_shows_the_state_of_its_call() {
    let store = store();
    store.faults().pause();
    let reading = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.view(&key(), &ReadOptions::default()).await }
    });
    tokio::task::yield_now().await;
    store.set_version(&key(), Version::from_packed(7).expect("63 bits"));
    let deadline = Some(Instant::now() + Duration::from_millis(10));
    let late = store.view(&key(), &ReadOptions { deadline, ..ReadOptions::default() }).await;
    assert!(matches!(late, Err(StoreError::Deadline { outcome_unknown: false, .. })));
    store.faults().heal();
    assert_eq!(reading.await.expect("no panic").expect("a view").version, Version::NONE);
}

#[tokio::test(start_paused = true)]
async fn a_delay_passes_in_virtual_time_and_a_lost_answer_is_applied() {
    let store = store();
    store.faults().delay(Duration::from_secs(1));
    let began = Instant::now();
    store.faults().lose_next_answer();
    let lost = store.write(add(1, "a")).await;
    assert!(lost.is_err_and(|error| error.is_outcome_unknown()));
    assert_eq!(began.elapsed(), Duration::from_secs(1));
    let again = store.write(add(1, "a")).await.expect("a retry");
    assert!(again.repeated && again.changed);
}

#[tokio::test]
async fn a_failover_loses_what_lies_past_the_epoch_end() {
    let store = store();
    let kept = store.write(add(1, "a")).await.expect("written");
    let lost = store.write(add(2, "b")).await.expect("written");
    let old = store.epoch().await.expect("an epoch").id;
    store.fail_over(kept.receipt.position.lsn, &key());
    let shard = LogicalShard::of(&key());
    assert_eq!(store.epoch_end(shard, old), Some(1));
    assert_ne!(store.current(shard), Some(old));
    assert_eq!(store.verdict(&kept.receipt).await.expect("a verdict"), Verdict::Kept);
    let verdict = store.verdict(&lost.receipt).await.expect("a verdict");
    assert_eq!(verdict, Verdict::Unknown("restored"));
    assert!(store.live_documents(&key().tenant).is_empty());
    let next = store.write(add(3, "c")).await.expect("written");
    assert!(next.version > lost.version, "versions increase across epochs");
}

#[tokio::test(start_paused = true)]
async fn writes_go_on_while_reads_are_paused() {
    let store = store();
    store.faults().pause_reads();
    let before = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.view(&key(), &ReadOptions::default()).await }
    });
    tokio::task::yield_now().await;
    let written = store.write(add(1, "a")).await.expect("written");
    store.faults().heal();
    assert_eq!(before.await.expect("no panic").expect("a view").version, Version::NONE);
    let after = store.view(&key(), &ReadOptions::default()).await.expect("a view");
    assert_eq!(after.version, written.version);
}

#[tokio::test]
async fn an_event_stores_its_state_unless_a_newer_one_is_stored() {
    let (source, store) = (store(), store());
    for (id, tag) in [(1, "a"), (2, "b")] {
        source.write(add(id, tag)).await.expect("written");
    }
    let events = source.events();
    events.iter().rev().for_each(|event| store.store_event(event));
    let documents = store.documents(&key().tenant);
    let [(content, document)] = documents.as_slice() else { panic!("{documents:?}") };
    assert_eq!((content, document.version), (&key(), events[1].version));
    assert_eq!((&document.taggings, document.recent[0].at), (&events[1].tags, events[1].at));
    assert_eq!(store.live_documents(&key().tenant), documents);
    let page = store
        .scan(ScanRequest { shard: LogicalShard::of(&key()), tenant: None, after: None, limit: 10 })
        .await
        .expect("a page");
    assert_eq!(page.items, documents);
    assert!(store.events().is_empty(), "no event is published");
}
