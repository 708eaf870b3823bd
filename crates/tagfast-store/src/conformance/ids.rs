//! Write ids: a retry after a lost answer has no second effect and gets the first answer.

use tagfast_domain::limits::{RECENT_WRITES, WRITE_ID_MEMORY_MS};
use tagfast_domain::{Call, IdempotencyKey, Operation, Refusal};

use super::harness::StoreHarness;
use super::history::History;
use super::support::{Fixture, chain, names, refusal, run_concurrently, same_answer, scaled, tags};
use crate::{WriteAnswer, WriteRequest};

pub(super) async fn retry(
    fixture: &Fixture,
    request: &WriteRequest,
    first: &WriteAnswer,
    when: &str,
) {
    let again = fixture.write(request.clone()).await;
    assert!(again.repeated, "{when}: the retry of {:?} is known as one: {again:?}", request.write);
    assert!(
        same_answer(first, &again),
        "{when}: a retry gets the first answer {first:?}, not {again:?}"
    );
}

/// A retry gets the answer of its first attempt and changes nothing, regardless of later writes.
pub async fn a_repeated_write_gets_its_first_answer(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let add = fixture.patch(&key, &["a", "b"], &[]);
    let added = fixture.write(add.clone()).await;
    assert!(!added.repeated);
    retry(&fixture, &add, &added, "at once").await;
    fixture.remove(&key, &["a"]).await;
    retry(&fixture, &add, &added, "after the tag was removed").await;
    assert_eq!(
        fixture.tags(&key).await,
        ["b"],
        "a retry does not bring back what was removed since"
    );

    let replace = fixture.replace(&key, &["x"]);
    let replaced = fixture.write(replace.clone()).await;
    let mut conditional = fixture.replace(&key, &["y"]);
    conditional.write.if_match = Some(replaced.version.into());
    let matched = fixture.write(conditional.clone()).await;
    retry(&fixture, &replace, &replaced, "after a conditional write").await;
    retry(&fixture, &conditional, &matched, "though its version is not the current one any more")
        .await;
    assert_eq!(fixture.tags(&key).await, ["y"]);
    assert_eq!(fixture.events(h).await.len(), 4, "retries publish nothing");
}

/// A retry is recognised after a restart too.
pub async fn a_repeated_write_is_known_after_a_restart(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let mut done = Vec::new();
    for n in 0..3 * RECENT_WRITES {
        let request =
            fixture.patch(&fixture.key(&format!("page {}", n % 2)), &[&format!("t{n}")], &[]);
        done.push((request.clone(), fixture.write(request).await));
    }
    let Some(fixture) = fixture.reopened(h).await else { return };
    for (request, first) in &done {
        retry(&fixture, request, first, "after a restart").await;
    }
    assert_eq!(fixture.events(h).await.len(), done.len(), "retries publish nothing");
}

/// Ids are remembered behind any number of later writes of the same content.
pub async fn an_id_is_remembered_behind_many_others(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let mut done = Vec::new();
    for n in 0..scaled(5 * RECENT_WRITES) {
        let request = match n % 3 {
            0 => fixture.patch(&key, &[&format!("t{}", n % 50)], &[]),
            1 => fixture.patch(&key, &[], &[&format!("t{}", (n - 1) % 50)]),
            _ => fixture.replace(&key, &[&format!("r{n}"), "r"]),
        };
        done.push((request.clone(), fixture.write(request).await));
    }
    let before = fixture.view(&key).await;
    for (request, first) in &done {
        retry(&fixture, request, first, "behind many later writes").await;
    }
    let after = fixture.view(&key).await;
    assert_eq!(
        (after.version, after.tags),
        (before.version, before.tags),
        "no retry had an effect"
    );
    assert_eq!(fixture.events(h).await.len(), done.len(), "retries publish nothing");
}

/// Ids are remembered for at least 10 minutes. Needs a clock that the test can move.
pub async fn an_id_is_remembered_for_ten_minutes(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let mut done = Vec::new();
    for n in 0..3 * RECENT_WRITES {
        let request = fixture.patch(&key, &[&format!("t{n}")], &[]);
        done.push((request.clone(), fixture.write(request).await));
    }
    if !h.advance(WRITE_ID_MEMORY_MS - 60_000) {
        return;
    }
    // A store forgets ids during later writes.
    for n in 0..2 * RECENT_WRITES {
        fixture.add(&key, &[&format!("later{n}")]).await;
    }
    for (request, first) in &done {
        retry(&fixture, request, first, "after nine minutes").await;
    }
}

/// One id cannot identify two operations: the second is refused and has no effect.
pub async fn a_reused_id_with_another_operation_is_refused(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let first = fixture.patch(&key, &["a"], &[]);
    let answer = fixture.write(first.clone()).await;
    let reuse = async |when: &str| {
        for operation in [
            Operation::patch(tags(&["b"]), Vec::new(), &fixture.limits).expect("a patch"),
            Operation::patch(tags(&["a", "b"]), Vec::new(), &fixture.limits).expect("a patch"),
            Operation::patch(Vec::new(), names(&["a"]), &fixture.limits).expect("a patch"),
            Operation::replace(tags(&["a"]), &fixture.limits).expect("a replace"),
        ] {
            let mut request = first.clone();
            request.write.operation = operation;
            let what = format!("{when}: {:?}", request.write.operation);
            assert_eq!(
                refusal(fixture.store.write(request).await),
                Refusal::WriteIdReused,
                "{what}"
            );
        }
        let mut conditional = first.clone();
        conditional.write.if_match = Some(answer.version.into());
        assert_eq!(
            refusal(fixture.store.write(conditional).await),
            Refusal::WriteIdReused,
            "{when}: with If-Match"
        );
    };
    reuse("at once").await;
    assert_eq!(fixture.tags(&key).await, ["a"]);
    for n in 0..2 * RECENT_WRITES {
        fixture.add(&key, &[&format!("t{n}")]).await;
    }
    reuse("behind many later writes").await;
    retry(&fixture, &first, &answer, "after refused reuses").await;
}

/// An id belongs to one content: on a different content of the same batch it is a different write
/// with its own answer.
pub async fn an_id_belongs_to_one_content(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    // Enough contents that some share a file, for any number of files.
    let keys: Vec<_> = (0..20).map(|n| fixture.key(&format!("page {n}"))).collect();
    // Different numbers of earlier writes, so that the answers differ in their versions.
    let before = keys
        .iter()
        .enumerate()
        .flat_map(|(n, key)| (0..n).map(|m| fixture.patch(key, &[&format!("b{m}")], &[])));
    for answer in fixture.store.write_many(before.collect()).await {
        answer.unwrap_or_else(|e| panic!("an earlier write must happen, but: {}", chain(&e)));
    }
    let mut first = fixture.patch(&keys[0], &["a"], &[]);
    first.keyed = first.keyed.map(|key| IdempotencyKey { call: Call::BatchItem, ..key });
    let mut done = Vec::new();
    for key in &keys {
        let mut request = first.clone();
        request.write.key = key.clone();
        let answer = fixture.write(request.clone()).await;
        assert!(!answer.repeated, "the id was not used on {key} before");
        assert!(fixture.tags(key).await.contains(&"a".to_owned()), "the write on {key} happened");
        done.push((request, answer));
    }
    for n in 0..2 * RECENT_WRITES {
        let tag = format!("t{n}");
        let later = keys.iter().map(|key| fixture.patch(key, &[&tag], &["a"])).collect();
        for answer in fixture.store.write_many(later).await {
            answer.unwrap_or_else(|e| panic!("a later write must happen, but: {}", chain(&e)));
        }
    }
    for (request, first) in &done {
        retry(&fixture, request, first, "behind many later writes of each content").await;
    }
}

/// Retries that race each other and other writes have one effect and one answer.
pub async fn concurrent_retries_have_one_effect(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let history = History::new();
    for round in 0..scaled(4) {
        let key = fixture.key(&format!("page {round}"));
        let requests: Vec<_> = (0..6)
            .flat_map(|n| {
                let request = match n % 2 {
                    0 => fixture.patch(&key, &[&format!("t{n}")], &["other"]),
                    _ => fixture.patch(&key, &["other"], &[&format!("t{}", n - 1)]),
                };
                std::iter::repeat_n(request, 5)
            })
            .collect();
        let answers = run_concurrently(requests.into_iter().map(|request| {
            let (fixture, history) = (fixture.clone(), history.clone());
            async move { (request.write.id, history.write(&fixture, request).await.ok()) }
        }))
        .await;
        for (id, answer) in &answers {
            let answer = answer.as_ref().expect("every retry is answered");
            let mut same =
                answers.iter().filter(|(other, _)| other == id).filter_map(|(_, a)| a.as_ref());
            assert!(same.all(|a| same_answer(a, answer)), "all retries of a write get one answer");
        }
    }
    history.check(&fixture, h).await;
}
