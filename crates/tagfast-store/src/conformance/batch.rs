//! Batches: order of the answers, and items that fail alone.

use tagfast_domain::{Refusal, Version};

use super::harness::StoreHarness;
use super::support::{Fixture, chain, refusal, scaled};
use crate::{Consistency, ReadOptions};

fn strong() -> ReadOptions<'static> {
    ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() }
}

/// Maximum batch of a client; a store's queues need not accept more at once.
const LARGEST: usize = 500;

/// Item `n` of the answer is about item `n` of the request.
pub async fn a_batch_answers_in_request_order(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    for size in [0, 1, 2, scaled(250).min(LARGEST)] {
        let keys: Vec<_> = (0..size).map(|n| fixture.key(&format!("{size}/{n}"))).collect();
        let requests: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(n, key)| fixture.patch(key, &[&format!("t{n}"), "all"], &[]))
            .collect();
        let ids: Vec<_> = requests.iter().map(|r| r.write.id).collect();
        let answers = fixture.store.write_many(requests).await;
        assert_eq!(answers.len(), size, "as many answers as items");
        for (n, (answer, id)) in answers.into_iter().zip(ids).enumerate() {
            let answer =
                answer.unwrap_or_else(|e| panic!("item {n} must be written, but: {}", chain(&e)));
            assert_eq!(answer.receipt.write_id, id, "answer {n} is about item {n}");
            assert_eq!(answer.added[0].as_str(), format!("t{n}"), "answer {n} is about item {n}");
        }
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(fixture.tags(key).await, ["all".to_owned(), format!("t{n}")]);
        }
    }
}

/// Items of one content are applied in request order.
pub async fn a_batch_keeps_the_order_within_a_content(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let (one, two) = (fixture.key("one"), fixture.key("two"));
    let mut requests = Vec::new();
    for n in 0..20 {
        let tag = format!("t{n}");
        requests.push(fixture.patch(&one, &[&tag], &[]));
        requests.push(fixture.replace(&two, &[&tag]));
        requests.push(fixture.patch(&one, &[], &[&tag]));
    }
    requests.push(fixture.patch(&one, &["end"], &[]));
    let answers = fixture.store.write_many(requests).await;
    let mut last = [Version::NONE; 2];
    for (n, answer) in answers.into_iter().enumerate() {
        let answer =
            answer.unwrap_or_else(|e| panic!("item {n} must be written, but: {}", chain(&e)));
        assert!(answer.changed, "item {n} finds what the items before it left: {answer:?}");
        let last = &mut last[usize::from(n % 3 == 1)];
        assert!(answer.version > *last, "item {n} comes after the items before it");
        *last = answer.version;
    }
    assert_eq!(fixture.tags(&one).await, ["end"]);
    assert_eq!(fixture.tags(&two).await, ["t19"]);
}

/// A refused item has no effect and does not affect other items, also of the same content.
pub async fn a_failing_item_leaves_the_others(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let (page, other) = (fixture.key("page"), fixture.key("other"));
    let mut mismatch = fixture.replace(&page, &["never"]);
    mismatch.write.if_match = Some(Version::from_packed(7).expect("a version").into());
    let first = fixture.patch(&page, &["a"], &[]);
    let mut reused = fixture.patch(&page, &["reused"], &[]);
    reused.write.id = first.write.id;
    let many: Vec<String> = (0..fixture.limits.tags_per_content).map(|n| format!("n{n}")).collect();
    let too_many = fixture.patch(&page, &many.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    let repeated = first.clone();
    let mut answers = fixture
        .store
        .write_many(vec![
            first,
            mismatch,
            fixture.patch(&other, &["o"], &[]),
            reused,
            too_many,
            repeated,
            fixture.patch(&page, &["b"], &[]),
        ])
        .await
        .into_iter();
    let mut next = || answers.next().expect("as many answers as items");
    let first = next().expect("the first item is written");
    assert_eq!(refusal(next()), Refusal::VersionMismatch { current: first.version });
    assert!(next().expect("the item on another content is written").changed);
    assert_eq!(refusal(next()), Refusal::WriteIdReused);
    assert!(matches!(refusal(next()), Refusal::TooManyTags { .. }));
    let repeated = next().expect("the repeated item is answered");
    assert!(
        repeated.repeated && repeated.version == first.version,
        "a repeat within a batch is one: {repeated:?}"
    );
    assert!(next().expect("the last item is written").changed);
    assert_eq!(fixture.tags(&page).await, ["a", "b"]);
    assert_eq!(fixture.tags(&other).await, ["o"]);
}

/// View `n` is the view of key `n`: unknown contents are empty, a content requested twice is
/// returned twice.
pub async fn views_come_in_request_order(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let written: Vec<_> = (0..40).map(|n| fixture.key(&format!("page {n}"))).collect();
    for (n, key) in written.iter().enumerate() {
        fixture.add(key, &[&format!("t{n}")]).await;
    }
    let requested: Vec<_> = (0..scaled(100).min(LARGEST))
        .map(|n| match n % 3 {
            0 => (n * 7 % 40, written[n * 7 % 40].clone()),
            1 => (n % 5, written[n % 5].clone()),
            _ => (usize::MAX, fixture.key(&format!("never tagged {n}"))),
        })
        .collect();
    let keys: Vec<_> = requested.iter().map(|(_, key)| key.clone()).collect();
    assert!(fixture.store.view_many(&[], &strong()).await.is_empty());
    let views = fixture.store.view_many(&keys, &strong()).await;
    assert_eq!(views.len(), keys.len(), "as many views as keys");
    for ((n, key), view) in requested.iter().zip(views) {
        let view = view.unwrap_or_else(|e| panic!("{key} must be readable, but: {}", chain(&e)));
        let seen: Vec<_> = view.tags.iter().map(|t| t.name.to_string()).collect();
        let expected = if *n == usize::MAX { vec![] } else { vec![format!("t{n}")] };
        assert_eq!(seen, expected, "the view of {key}");
        assert_eq!(view.version == Version::NONE, *n == usize::MAX);
    }
}
