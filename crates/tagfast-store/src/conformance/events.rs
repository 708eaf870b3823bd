//! The outbox: every effective write is published in order, with the full state.

use tagfast_domain::{ContentKey, Epoch, EpochOrdinal};

use super::harness::StoreHarness;
use super::history::History;
use super::support::{Fixture, refusal, run_concurrently, scaled, user, versions, wait_for};
use super::tags::odd_keys;

/// The event of a write carries the full set of tags as the view shows it, and the changes.
pub async fn every_write_is_published_as_the_full_set(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let mut published = 0;
    for key in odd_keys(&fixture) {
        for request in [
            fixture.patch(&key, &["One Tag", "two"], &[]),
            fixture.patch(&key, &["three"], &["two"]),
            fixture.replace(&key, &["four"]),
            fixture.replace(&key, &[]),
        ] {
            let (id, by) = (request.write.id, request.write.user.clone());
            let answer = fixture.write(request).await;
            let view = fixture.view(&key).await;
            let events = fixture.events(h).await;
            published += 1;
            assert_eq!(events.len(), published, "one event per write of a lone client");
            let event = &events[published - 1];
            assert_eq!(event.key, key);
            assert_eq!(
                (event.version, &event.tags),
                (view.version, &view.tags),
                "the event is the new state of {key}"
            );
            // The version was made in the publisher epoch; a store of several clusters has several.
            let epoch = |ordinal| Epoch {
                id: answer.receipt.position.epoch,
                ordinal: EpochOrdinal(ordinal),
            };
            let of_epoch = epoch(event.publisher_epoch.0).first_version()
                ..epoch(event.publisher_epoch.0 + 1).first_version();
            assert!(
                of_epoch.contains(&event.version),
                "the event names the epoch that publishes it: {event:?}"
            );
            assert_eq!(event.changes.len(), 1);
            let change = &event.changes[0];
            assert_eq!((change.write_id, &change.user, change.version), (id, &by, answer.version));
            assert_eq!((&change.added, &change.removed), (&answer.added, &answer.removed));
        }
    }
}

/// A no-op publishes nothing within an epoch.
pub async fn a_no_op_publishes_nothing(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    fixture.add(&key, &["a", "b"]).await;
    let version = fixture.remove(&key, &["b"]).await.version;
    for _ in 0..3 {
        for request in [
            fixture.patch(&key, &["a"], &[]),
            fixture.patch(&key, &[], &["b"]),
            fixture.patch(&key, &["a"], &["b"]),
        ] {
            let answer = fixture.write(request).await;
            assert!(!answer.changed && !answer.repeated);
            assert_eq!(answer.version, version, "a no-op makes no version");
        }
    }
    let replaced = fixture.write(fixture.replace(&key, &["a"])).await;
    let again = fixture.write(fixture.replace(&key, &["a"])).await;
    assert!(!replaced.changed && !again.changed);
    assert_eq!(
        again.version, replaced.version,
        "a replace by the same set that was decided already makes no version"
    );
    let events = fixture.events(h).await;
    assert!(events.len() <= 3, "no-ops publish nothing: {events:?}");
    assert_eq!(events.last().map(|e| e.version), Some(fixture.view(&key).await.version));
    // The first removal of a tag that never existed may be stamped; the second one is free.
    fixture.remove(&key, &["unheard-of"]).await;
    let published = fixture.events(h).await.len();
    fixture.remove(&key, &["unheard-of"]).await;
    assert_eq!(fixture.events(h).await.len(), published);
}

/// A refused write publishes nothing.
pub async fn a_refused_write_publishes_nothing(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let names: Vec<String> =
        (0..fixture.limits.tags_per_content).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let first = fixture.patch(&key, &names, &[]);
    let answer = fixture.write(first.clone()).await;
    refusal(fixture.store.write(fixture.patch(&key, &["more"], &[])).await);
    let mut mismatch = fixture.replace(&key, &["x"]);
    mismatch.write.if_match = Some(tagfast_domain::Version::NONE.into());
    refusal(fixture.store.write(mismatch).await);
    let mut reused = fixture.replace(&key, &["x"]);
    reused.write.id = first.write.id;
    refusal(fixture.store.write(reused).await);
    let events = fixture.events(h).await;
    assert_eq!(
        versions(&events.iter().collect::<Vec<_>>()),
        [answer.version],
        "only the accepted write is published"
    );
}

/// An event carries the writing user, the commit time, the trace, and the adders of all tags.
pub async fn an_event_says_who_and_when(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let mut first = fixture.patch(&key, &["First Tag"], &[]);
    first.write.user = user("ann@example");
    fixture.write(first).await;
    let before = h.clock().now_ms();
    let mut second = fixture.patch(&key, &["Second Tag"], &[]);
    second.write.user = user("ben@example");
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    second.traceparent = Some(trace.to_owned());
    fixture.write(second).await;
    let after = h.clock().now_ms();
    let events = fixture.events(h).await;
    let event = events.last().expect("an event");
    assert!((before..=after).contains(&event.at), "commit time {} in {before}..={after}", event.at);
    let change = event.changes.last().expect("a change");
    assert_eq!((change.user.as_str(), change.traceparent.as_deref()), ("ben@example", Some(trace)));
    let tags: Vec<_> =
        event.tags.iter().map(|t| (t.name.as_str(), &*t.display, t.user.as_str())).collect();
    assert_eq!(
        tags,
        [("first-tag", "First Tag", "ann@example"), ("second-tag", "Second Tag", "ben@example")],
        "the whole set with its adders"
    );
}

/// The events of a content are published in version order; none is missing.
pub async fn events_are_in_version_order(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let history = History::new();
    let keys: Vec<ContentKey> = (0..3).map(|n| fixture.key(&format!("page {n}"))).collect();
    let writers = (0..12).map(|writer| {
        let (fixture, history, keys) = (fixture.clone(), history.clone(), keys.clone());
        async move {
            for n in 0..scaled(12) {
                let key = &keys[(writer + n) % keys.len()];
                let tag = format!("w{writer}-{}", n % 3);
                let request = if n % 2 == 0 {
                    fixture.patch(key, &[&tag], &[])
                } else {
                    fixture.replace(key, &[&tag])
                };
                history
                    .write(&fixture, request)
                    .await
                    .expect("a write far below every limit succeeds");
            }
        }
    });
    run_concurrently(writers).await;
    history.check(&fixture, h).await;
}

/// The heartbeat follows the clock without any write, so that an idle store shows no lag.
pub async fn the_heartbeat_moves_on_an_idle_store(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    fixture.add(&fixture.key("page"), &["a"]).await;
    for _ in 0..3 {
        h.advance(5000);
        let now = h.clock().now_ms();
        wait_for("the heartbeat reaches the clock", async || {
            (h.complete_through().await >= now).then_some(())
        })
        .await;
        let beat = h.complete_through().await;
        assert!(beat <= h.clock().now_ms(), "the heartbeat does not run ahead of the clock");
    }
    assert_eq!(fixture.events(h).await.len(), 1, "an idle store publishes nothing");
}
