//! How old answers are: an entry is as old as what it was filled from, and nothing stale is kept or
//! answered in place of something newer.

use std::time::Duration;

use tagfast_cache::CacheOptions;
use tagfast_domain::Version;
use tagfast_store::{CacheUse, Degraded, ReadOptions, Source, StoreError, TagWriter, View};

use crate::read_path::Fixture;
use crate::support::{NOW, add, key, overloaded};

const BEHIND: Degraded = Degraded { feature: "replica", reason: "behind" };

/// A replica that is two seconds behind, within its bound.
fn two_seconds_behind(_: &ReadOptions<'_>, view: &mut View) -> Result<(), StoreError> {
    (view.source, view.as_of) = (Source::Replica, view.as_of - 2_000);
    Ok(())
}

/// A replica that is a minute behind, while there is no primary.
fn a_minute_behind(_: &ReadOptions<'_>, view: &mut View) -> Result<(), StoreError> {
    (view.source, view.as_of) = (Source::Replica, view.as_of - 60_000);
    (view.stale, view.degraded) = (true, vec![BEHIND]);
    view.version = Version::NONE;
    view.tags.clear();
    Ok(())
}

fn within(seconds: u64) -> ReadOptions<'static> {
    ReadOptions { max_stale: Some(Duration::from_secs(seconds)), ..ReadOptions::default() }
}

#[tokio::test(start_paused = true)]
async fn an_entry_of_a_replica_is_as_old_as_the_replica_was() {
    // Entries answer until they are 2.4 to 3.6 s old.
    let options = CacheOptions { soft_ttl: Duration::from_secs(3), ..CacheOptions::default() };
    let fixture = Fixture::with(options);
    fixture.backend.write(add(&key("a"), "ui", "ana")).await.expect("a write");
    fixture.backend.faults().set_view_hook(Some(two_seconds_behind));
    assert_eq!(fixture.plain("a").await.as_of, NOW - 2_000);
    let cached = fixture.plain("a").await;
    assert_eq!((cached.cache, cached.as_of), (CacheUse::Hit("l1"), NOW - 2_000));
    // Now it is four seconds old, though it was read two seconds ago.
    fixture.age(2).await;
    let again = fixture.plain("a").await;
    assert_eq!((again.cache, again.as_of), (CacheUse::Miss { collapsed: false }, NOW));
    // As a stale answer, too, it is as old as it says.
    fixture.age(10).await;
    fixture.backend.faults().fail_with(overloaded);
    assert!(fixture.view("a", &within(11)).await.is_err(), "read 10 s ago, 12 s old");
    let stale = fixture.view("a", &within(12)).await.expect("a view");
    assert_eq!((stale.stale, stale.as_of), (true, NOW));
}

#[tokio::test(start_paused = true)]
async fn of_a_stale_replica_and_an_expired_entry_the_newer_one_answers() {
    let fixture = Fixture::with(CacheOptions::default());
    fixture.node.write(add(&key("cached"), "ui", "ana")).await.expect("a write");
    fixture.age(10).await;
    fixture.backend.faults().set_view_hook(Some(a_minute_behind));
    let view = fixture.plain("cached").await;
    assert_eq!((view.cache, view.as_of, view.tags.len()), (CacheUse::Stale("l1"), NOW, 1));
    assert!(view.stale);
    // Nothing newer is known of others: what the replica has is answered with its mark, each time.
    for _ in 0..2 {
        let view = fixture.plain("other").await;
        assert_eq!((view.stale, &view.degraded[..]), (true, &[BEHIND][..]));
        assert_eq!((view.as_of, view.cache), (NOW - 50_000, CacheUse::Miss { collapsed: false }));
    }
    // What is older than the client accepts is refused.
    for (id, seconds, accepted) in [
        ("cached", 9, false),
        ("cached", 10, true),
        ("other", 59, false),
        ("other", 60, true),
        ("other", 0, false),
    ] {
        let answer = fixture.view(id, &within(seconds)).await;
        assert_eq!(answer.is_ok(), accepted, "{id}, {seconds}: {answer:?}");
    }
}
