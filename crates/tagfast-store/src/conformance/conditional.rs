//! `If-Match`: a write that is applied only at the version its client saw.

use tagfast_domain::{IfMatch, Refusal, Version};

use super::harness::StoreHarness;
use super::support::{Fixture, refusal, run_concurrently, scaled};

/// A write under the current version is applied.
pub async fn a_matching_version_is_written(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let mut version = fixture.add(&key, &["a", "b"]).await.version;
    for request in [fixture.replace(&key, &["b", "c"]), fixture.patch(&key, &["d"], &["b"])] {
        let mut request = request;
        request.write.if_match = Some(version.into());
        let answer = fixture.write(request).await;
        assert!(answer.changed && answer.version > version);
        assert_eq!(fixture.view(&key).await.version, answer.version);
        version = answer.version;
    }
    assert_eq!(fixture.tags(&key).await, ["c", "d"]);
}

/// A write under a different version is refused with the current version and has no effect.
pub async fn another_version_is_refused_and_reported(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let old = fixture.add(&key, &["a"]).await.version;
    let current = fixture.add(&key, &["b"]).await.version;
    let newer = Version::from_packed(current.packed() + 1).expect("a version");
    for expected in [old, newer, Version::NONE] {
        for mut request in [
            fixture.replace(&key, &["x"]),
            fixture.patch(&key, &["x"], &[]),
            fixture.patch(&key, &[], &["a"]),
        ] {
            request.write.if_match = Some(expected.into());
            let refused = refusal(fixture.store.write(request).await);
            assert_eq!(
                refused,
                Refusal::VersionMismatch { current },
                "If-Match {expected} at {current}"
            );
        }
    }
    let view = fixture.view(&key).await;
    assert_eq!((view.version, view.tags.len()), (current, 2), "refused writes leave no trace");
    assert_eq!(fixture.events(h).await.len(), 2, "refused writes publish nothing");
}

/// `Version::NONE` matches a content that was never written, and only that.
pub async fn never_written_is_a_version(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let mut first = fixture.replace(&key, &["a"]);
    first.write.if_match = Some(Version::NONE.into());
    let mut second = fixture.replace(&key, &["b"]);
    second.write.if_match = Some(Version::NONE.into());
    let made = fixture.write(first).await.version;
    assert_eq!(
        refusal(fixture.store.write(second).await),
        Refusal::VersionMismatch { current: made }
    );
    assert_eq!(fixture.tags(&key).await, ["a"]);
}

/// A condition with several versions holds for each of them and for no other; one with none never
/// holds.
pub async fn one_of_several_versions_is_enough(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let old = fixture.add(&key, &["a"]).await.version;
    let current = fixture.add(&key, &["b"]).await.version;
    for versions in [vec![], vec![old], vec![Version::NONE, old]] {
        let mut request = fixture.replace(&key, &["x"]);
        request.write.if_match = Some(IfMatch::any_of(versions));
        let refused = refusal(fixture.store.write(request).await);
        assert_eq!(refused, Refusal::VersionMismatch { current });
    }
    let mut request = fixture.replace(&key, &["y"]);
    request.write.if_match = Some(IfMatch::any_of(vec![current, Version::NONE, old]));
    assert!(fixture.write(request).await.changed);
    assert_eq!(fixture.tags(&key).await, ["y"]);
}

/// Of many writers that saw the same version, exactly one succeeds, and its set remains.
pub async fn one_of_many_conditional_writers_wins(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    for round in 0..scaled(5) {
        let key = fixture.key(&format!("round {round}"));
        let mut seen = Version::NONE;
        for step in 0..3 {
            let writers = (0..16).map(|n| {
                let (fixture, name) = (fixture.clone(), format!("w{step}-{n}"));
                let mut request = fixture.replace(&key, &[&name]);
                request.write.if_match = Some(seen.into());
                async move { fixture.store.write(request).await.map(|answer| (name, answer)) }
            });
            let (won, lost): (Vec<_>, Vec<_>) =
                run_concurrently(writers).await.into_iter().partition(Result::is_ok);
            let won: Vec<_> = won.into_iter().filter_map(Result::ok).collect();
            assert_eq!(won.len(), 1, "exactly one of 16 writers that saw {seen} wins: {won:?}");
            let (name, answer) = &won[0];
            for outcome in lost {
                assert_eq!(
                    refusal(outcome.map(|(_, a)| a)),
                    Refusal::VersionMismatch { current: answer.version }
                );
            }
            assert_eq!(fixture.tags(&key).await, [name.as_str()]);
            seen = answer.version;
        }
    }
}
