//! The limit of tags per content is exact, also under races.

use std::collections::BTreeSet;

use tagfast_domain::Refusal;

use super::harness::StoreHarness;
use super::history::History;
use super::support::{Fixture, refusal, run_concurrently, scaled};

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("t{n:04}")).collect()
}

fn as_str(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// The limit can be reached but not exceeded; the refusal names it; a removal makes room, also
/// within one patch.
pub async fn the_limit_is_exact(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let limit = fixture.limits.tags_per_content;
    let full = numbered(0..limit);
    fixture.add(&key, &as_str(&full[1..])).await;
    fixture.add(&key, &[&full[0]]).await;
    let too_many = Refusal::TooManyTags { allowed: limit, given: limit + 1 };
    assert_eq!(
        refusal(fixture.store.write(fixture.patch(&key, &["one-more"], &[])).await),
        too_many
    );
    assert_eq!(
        refusal(fixture.store.write(fixture.patch(&key, &["x", "y"], &[&full[0]])).await),
        too_many
    );
    assert_eq!(fixture.tags(&key).await, full, "exactly {limit} tags fit");

    assert!(!fixture.add(&key, &[&full[5]]).await.changed, "adding what is there needs no room");
    fixture.write(fixture.patch(&key, &["one-more"], &[&full[0]])).await;
    assert_eq!(fixture.tags(&key).await.len(), limit, "a tag can be swapped at the limit");
    fixture.remove(&key, &[&full[1]]).await;
    fixture.add(&key, &["another"]).await;
    assert_eq!(fixture.tags(&key).await.len(), limit, "a remove makes room");
    let others: Vec<String> = (0..limit).map(|n| format!("other{n}")).collect();
    fixture.write(fixture.replace(&key, &as_str(&others))).await;
    assert_eq!(fixture.tags(&key).await.len(), limit, "a replace may use all the room");
}

/// Racing adds fill a content exactly up to the limit: as many succeed as there was room for.
pub async fn the_limit_is_exact_under_concurrency(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let limit = fixture.limits.tags_per_content;
    let history = History::new();
    for round in 0..scaled(2) {
        let key = fixture.key(&format!("page {round}"));
        let room = 10.min(limit);
        fixture.add(&key, &as_str(&numbered(0..limit - room))).await;
        let racers = (0..room + 30).map(|n| {
            let (fixture, history, key) = (fixture.clone(), history.clone(), key.clone());
            async move {
                history.write(&fixture, fixture.patch(&key, &[&format!("racer{n:03}")], &[])).await
            }
        });
        let (won, lost): (Vec<_>, Vec<_>) =
            run_concurrently(racers).await.into_iter().partition(Result::is_ok);
        for outcome in lost {
            assert_eq!(refusal(outcome), Refusal::TooManyTags { allowed: limit, given: limit + 1 });
        }
        let seen = fixture.tags(&key).await;
        assert_eq!(
            seen.len(),
            limit,
            "{} racers were told they won; the content has {}",
            won.len(),
            seen.len()
        );
        assert_eq!(won.len(), room, "there was room for {room}");
    }
    assert!(
        fixture.events(h).await.iter().all(|e| e.tags.len() <= limit),
        "no state beyond the limit was published"
    );
}

/// Racing adds of one tag in different spellings make one tagging, and exactly one of them is
/// answered as the adder.
pub async fn racing_spellings_make_one_tagging(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let spellings = ["straße", "STRASSE", "Strasse", "Straẞe", "ＳＴＲＡＳＳＥ", "strasse"];
    for round in 0..scaled(5) {
        let key = fixture.key(&format!("page {round}"));
        let racers = (0..24).map(|n| {
            let (fixture, key) = (fixture.clone(), key.clone());
            async move { fixture.add(&key, &[spellings[n % spellings.len()]]).await }
        });
        let answers = run_concurrently(racers).await;
        let adders: Vec<_> = answers.iter().filter(|a| a.changed).collect();
        assert_eq!(adders.len(), 1, "one of the racers added the tag: {adders:?}");
        let view = fixture.view(&key).await;
        assert_eq!(view.tags.len(), 1, "one tagging, whatever the spellings: {:?}", view.tags);
        let shown: BTreeSet<&str> = spellings.iter().copied().chain(["ＳＴＲＡＳＳＥ"]).collect();
        assert!(shown.contains(&*view.tags[0].display), "the display is one of the spellings");
    }
}
