//! Views that were read while the repair after a failover was open: no cache answers with them once
//! it is closed, and no answer that may lack what the repair brought back is unmarked.

use std::sync::Arc;

use tagfast_cache::CacheOptions;
use tagfast_store::{
    CacheUse, Consistency, REPAIR_PENDING, ReadOptions, TagReader, TagWriter, View,
};

use crate::read_path::Fixture;
use crate::support::{add, key};

fn names(view: &View) -> Vec<&str> {
    view.tags.iter().map(|tag| tag.name.as_str()).collect()
}

fn is_marked(view: &View) -> bool {
    view.degraded.contains(&REPAIR_PENDING)
}

/// A repair writes in the store, and no cache is told.
async fn repair(fixture: &Fixture, tag: &str) {
    fixture.backend.write(add(&key("a"), tag, "ana")).await.expect("a write");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_while_a_repair_was_open_is_read_again_after_it() {
    for consistency in [Consistency::Session, Consistency::Eventual] {
        let fixture = Fixture::with(CacheOptions::default());
        let options = ReadOptions { consistency, ..ReadOptions::default() };
        repair(&fixture, "old").await;
        fixture.backend.faults().set_repair_open(true);
        for _ in 0..2 {
            let view = fixture.view("a", &options).await.expect("a view");
            assert!(is_marked(&view) && names(&view) == ["old"], "{view:?}");
        }
        repair(&fixture, "repaired").await;
        fixture.backend.faults().set_repair_open(false);
        let view = fixture.view("a", &options).await.expect("a view");
        assert!(!is_marked(&view) && names(&view) == ["old", "repaired"], "{view:?}");
        let cached = fixture.view("a", &options).await.expect("a view");
        assert_eq!(cached.cache, CacheUse::Hit("l1"), "closed: it is cached again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_view_that_was_written_while_a_repair_was_open_is_read_again_after_it() {
    let fixture = Fixture::with(CacheOptions::default());
    fixture.backend.faults().set_repair_open(true);
    fixture.node.write(add(&key("a"), "one", "ana")).await.expect("a write");
    let many = fixture.node.write_many(vec![add(&key("a"), "two", "ana")]).await;
    assert!(many.iter().all(Result::is_ok));
    repair(&fixture, "repaired").await;
    fixture.backend.faults().set_repair_open(false);
    let view = fixture.plain("a").await;
    assert!(!is_marked(&view) && names(&view) == ["one", "repaired", "two"], "{view:?}");
}

/// The primary answered before the repair wrote, and the answer arrives after the closing. All who
/// share the read are told.
#[tokio::test(start_paused = true)]
async fn an_answer_from_before_the_closing_is_marked_after_it() {
    let fixture = Fixture::with(CacheOptions::default());
    repair(&fixture, "old").await;
    fixture.backend.faults().set_repair_open(true);
    fixture.backend.faults().pause_reads();
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let node = Arc::clone(&fixture.node);
            tokio::spawn(async move { node.view(&key("a"), &ReadOptions::default()).await })
        })
        .collect();
    // With paused time, sleeping means that every reader waits.
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    repair(&fixture, "repaired").await;
    fixture.backend.faults().set_repair_open(false);
    fixture.backend.faults().heal();
    for reader in readers {
        let view = reader.await.expect("no panic").expect("a view");
        assert!(is_marked(&view) || names(&view) == ["old", "repaired"], "{view:?}");
    }
    let view = fixture.plain("a").await;
    assert!(!is_marked(&view) && names(&view) == ["old", "repaired"], "{view:?}");
}

/// What was cached before the failover is as old as it says; it is marked while the repair is open.
#[tokio::test(start_paused = true)]
async fn a_cached_view_of_before_the_failover_is_marked_while_the_repair_is_open() {
    let fixture = Fixture::with(CacheOptions::default());
    repair(&fixture, "old").await;
    fixture.plain("a").await;
    fixture.backend.faults().set_repair_open(true);
    let view = fixture.plain("a").await;
    assert!(is_marked(&view) && view.cache == CacheUse::Hit("l1"), "{view:?}");
    fixture.backend.faults().set_repair_open(false);
    assert!(!is_marked(&fixture.plain("a").await));
}
