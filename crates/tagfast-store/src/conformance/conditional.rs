//! `If-Match`: a write that happens only at the version its client saw.

use tagfast_domain::{Refusal, Version};

use super::StoreHarness;
use super::kit::{Kit, refusal, scaled, together};

/// A write under the current version happens.
pub async fn a_matching_version_is_written(h: &dyn StoreHarness) {
    let kit = Kit::new(h).await;
    let key = kit.key("page");
    let mut version = kit.add(&key, &["a", "b"]).await.version;
    for request in [kit.replace(&key, &["b", "c"]), kit.patch(&key, &["d"], &["b"])] {
        let mut request = request;
        request.write.if_match = Some(version);
        let answer = kit.write(request).await;
        assert!(answer.changed && answer.version > version);
        assert_eq!(kit.view(&key).await.version, answer.version);
        version = answer.version;
    }
    assert_eq!(kit.tags(&key).await, ["c", "d"]);
}

/// A write under another version is refused, told the current one, and leaves no trace.
pub async fn another_version_is_refused_and_told(h: &dyn StoreHarness) {
    let kit = Kit::new(h).await;
    let key = kit.key("page");
    let old = kit.add(&key, &["a"]).await.version;
    let current = kit.add(&key, &["b"]).await.version;
    let newer = Version::from_packed(current.packed() + 1).expect("a version");
    for expected in [old, newer, Version::NONE] {
        for mut request in
            [kit.replace(&key, &["x"]), kit.patch(&key, &["x"], &[]), kit.patch(&key, &[], &["a"])]
        {
            request.write.if_match = Some(expected);
            let told = refusal(kit.store.write(request).await);
            assert_eq!(
                told,
                Refusal::VersionMismatch { current },
                "If-Match {expected} at {current}"
            );
        }
    }
    let view = kit.view(&key).await;
    assert_eq!((view.version, view.tags.len()), (current, 2), "refused writes leave no trace");
    assert_eq!(kit.events(h).await.len(), 2, "refused writes publish nothing");
}

/// `Version::NONE` matches a content that was never written, and only that.
pub async fn never_written_is_a_version(h: &dyn StoreHarness) {
    let kit = Kit::new(h).await;
    let key = kit.key("page");
    let mut first = kit.replace(&key, &["a"]);
    first.write.if_match = Some(Version::NONE);
    let mut second = kit.replace(&key, &["b"]);
    second.write.if_match = Some(Version::NONE);
    let made = kit.write(first).await.version;
    assert_eq!(refusal(kit.store.write(second).await), Refusal::VersionMismatch { current: made });
    assert_eq!(kit.tags(&key).await, ["a"]);
}

/// Of many writers that saw the same version, exactly one succeeds, and its set is what stays.
pub async fn one_of_many_conditional_writers_wins(h: &dyn StoreHarness) {
    let kit = Kit::new(h).await;
    for round in 0..scaled(5) {
        let key = kit.key(&format!("round {round}"));
        let mut seen = Version::NONE;
        for step in 0..3 {
            let writers = (0..16).map(|n| {
                let (kit, name) = (kit.clone(), format!("w{step}-{n}"));
                let mut request = kit.replace(&key, &[&name]);
                request.write.if_match = Some(seen);
                async move { kit.store.write(request).await.map(|answer| (name, answer)) }
            });
            let (won, lost): (Vec<_>, Vec<_>) =
                together(writers).await.into_iter().partition(Result::is_ok);
            let won: Vec<_> = won.into_iter().filter_map(Result::ok).collect();
            assert_eq!(won.len(), 1, "exactly one of 16 writers that saw {seen} wins: {won:?}");
            let (name, answer) = &won[0];
            for outcome in lost {
                assert_eq!(
                    refusal(outcome.map(|(_, a)| a)),
                    Refusal::VersionMismatch { current: answer.version }
                );
            }
            assert_eq!(kit.tags(&key).await, [name.as_str()]);
            seen = answer.version;
        }
    }
}
