//! Read consistency: eventual, session, strong, and tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tagfast_domain::{EpochId, Version};
use tagfast_sharding::ContentHash;

use super::harness::StoreHarness;
use super::support::{Fixture, chain, run_concurrently, scaled, wait_for};
use crate::{Consistency, ConsistencyToken, Position};

/// Every consistency eventually shows a write; on a settled store, session and strong reads need
/// nothing else.
pub async fn every_consistency_reads_a_settled_write(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let written = fixture.add(&key, &["a", "b"]).await;
    for consistency in [Consistency::Strong, Consistency::Session, Consistency::Eventual] {
        let view = wait_for(&format!("{consistency:?} shows the write"), async || {
            let view = fixture.try_view(&key, consistency, None).await;
            let view =
                view.unwrap_or_else(|e| panic!("{consistency:?} must answer, but: {}", chain(&e)));
            let late = view.version < written.version;
            assert!(
                !late || consistency != Consistency::Strong,
                "a strong read shows what was acknowledged before it"
            );
            (!late).then_some(view)
        })
        .await;
        assert_eq!((view.version, view.tags.len()), (written.version, 2), "{consistency:?}");
        assert_eq!(view.degraded, [], "{consistency:?} is not degraded on a healthy store");
    }
}

/// A client that sends its token back sees its own writes at once, and the store can always satisfy
/// the token.
pub async fn a_client_reads_its_own_writes(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let clients = (0..8).map(|client| {
        let fixture = fixture.clone();
        async move {
            let mut token = ConsistencyToken::default();
            for n in 0..scaled(15) {
                let key = fixture.key(&format!("page {}", (client + n) % 12));
                let hash = ContentHash::of(&key);
                let tag = format!("c{client}-{}", n % 5);
                let request = if n % 3 == 2 {
                    fixture.patch(&key, &[], &[&tag])
                } else {
                    fixture.patch(&key, &[&tag], &[])
                };
                let answer = fixture.write(request).await;
                token.observe(hash, answer.version, answer.receipt.position);
                let view = fixture.try_view(&key, Consistency::Session, Some(&token)).await;
                let view = view
                    .unwrap_or_else(|e| panic!("a session read must answer, but: {}", chain(&e)));
                assert!(
                    view.version >= answer.version,
                    "{key}: wrote {}, then read {}",
                    answer.version,
                    view.version
                );
                assert_eq!(view.degraded, [], "a token of this epoch is kept");
                // Only this client uses the tag: its presence is this client's last write.
                let present = view.tags.iter().any(|t| t.name.as_str() == tag);
                assert_eq!(
                    present,
                    n % 3 != 2,
                    "{key}: the client's own tag {tag} after its write {n}"
                );
                token.observe(hash, view.version, view.position);
            }
        }
    });
    run_concurrently(clients).await;
}

/// A token that this history cannot satisfy is answered, and `degraded` names the session.
pub async fn a_token_of_an_unknown_epoch_is_reported(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    fixture.add(&key, &["a"]).await;
    let epoch = EpochId([0xEE; 16]);
    let mut token = ConsistencyToken::default();
    let far = Version::from_packed(i64::MAX as u64).expect("a version");
    token.observe(ContentHash::of(&key), far, Position { epoch, xid: 1 << 40, lsn: 1 << 40 });
    let view = fixture.try_view(&key, Consistency::Session, Some(&token)).await;
    let view = view.unwrap_or_else(|e| panic!("an unknown token is no error, but: {}", chain(&e)));
    assert_eq!(view.tags.len(), 1, "the answer is what there is");
    assert!(
        view.degraded.iter().any(|d| d.feature == "session" && !d.reason.is_empty()),
        "a session that cannot be kept is said so: {:?}",
        view.degraded
    );
    let plain = fixture.try_view(&key, Consistency::Session, None).await.expect("a session read");
    assert_eq!(plain.degraded, [], "without that token nothing is degraded");
}

/// Strong reads, and session reads with a token, never go back to an older state.
pub async fn a_reader_never_goes_back(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|n| {
            let (fixture, key, done) = (fixture.clone(), key.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let (mut last, mut token) = (Version::NONE, ConsistencyToken::default());
                let mut reads = 0u32;
                while !done.load(Ordering::Acquire) || reads == 0 {
                    let consistency =
                        if n % 2 == 0 { Consistency::Strong } else { Consistency::Session };
                    let view = fixture.try_view(&key, consistency, Some(&token)).await;
                    let view = view.unwrap_or_else(|e| {
                        panic!("{consistency:?} must answer, but: {}", chain(&e))
                    });
                    assert!(
                        view.version >= last,
                        "{consistency:?} went back from {last} to {}",
                        view.version
                    );
                    last = view.version;
                    token.observe(ContentHash::of(&key), view.version, view.position);
                    reads += 1;
                    // A store in memory never waits: without this a failed test could not end the
                    // task.
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for n in 0..scaled(60) {
        fixture.add(&key, &[&format!("t{}", n % 40)]).await;
        fixture.remove(&key, &[&format!("t{}", n % 40)]).await;
    }
    done.store(true, Ordering::Release);
    for reader in readers {
        if let Err(e) = reader.await {
            std::panic::resume_unwind(e.into_panic());
        }
    }
}

/// A write whose deadline has passed may happen; an error with a known outcome means it did not.
/// Its retry succeeds and is applied once.
pub async fn a_passed_deadline_does_not_lie(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    for n in 0..scaled(10) {
        let key = fixture.key(&format!("page {n}"));
        let mut request = fixture.patch(&key, &["a"], &[]);
        request.deadline = Some(tokio::time::Instant::now());
        let outcome = fixture.store.write(request.clone()).await;
        match &outcome {
            Ok(_) => assert_eq!(fixture.tags(&key).await, ["a"]),
            Err(e) if e.is_outcome_unknown() => {}
            Err(e) => {
                assert_eq!(
                    fixture.view(&key).await.version,
                    Version::NONE,
                    "it was said not to have happened: {e}"
                );
                assert!(e.is_retryable(), "a passed deadline can be tried again: {e}");
            }
        }
        request.deadline = None;
        let answer = fixture.write(request).await;
        assert!(answer.changed, "the retry has the write's effect, or its first answer");
        assert_eq!(fixture.tags(&key).await, ["a"]);
    }
    let published = fixture.events(h).await.iter().map(|e| e.changes.len()).sum::<usize>();
    assert_eq!(published, scaled(10), "each write happened once");
}
