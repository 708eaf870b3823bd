//! Idempotency keys: a key names one request, and a different one on a content beside it is refused
//! and does nothing.
//!
//! The contents of a test share a logical shard, so every store has them in one file or cluster.

use tagfast_domain::limits::WRITE_ID_MEMORY_MS;
use tagfast_domain::{Call, ContentKey, IdempotencyKey, Refusal};
use tagfast_sharding::LogicalShard;

use super::harness::StoreHarness;
use super::outcomes::{CALLS, Case, WriteResult, cases, key_of, operation, retry, send};
use super::support::{Fixture, Random, fresh_id, refusal, run_concurrently, scaled, seed, user};
use crate::{StoreError, WriteRequest};

/// `count` contents of the logical shard of `key`.
fn neighbours(fixture: &Fixture, key: &ContentKey, count: usize) -> Vec<ContentKey> {
    let shard = LogicalShard::of(key);
    let all = (0..).map(|n| fixture.key(&format!("neighbour {n}")));
    all.filter(|other| other != key && LogicalShard::of(other) == shard).take(count).collect()
}

/// The same key on a different content, in a call of its own.
fn reused(fixture: &Fixture, first: &WriteRequest, key: &ContentKey, call: Call) -> WriteRequest {
    let mut request = fixture.request(key, operation(fixture, call, "other", "gone"));
    request.write.id = first.write.id;
    let id = first.keyed.expect("a key").id;
    request.keyed = Some(IdempotencyKey { id, ..key_of(&request, call) });
    request
}

/// Whatever the first request did, the key is refused on a content beside it, in every call, at
/// once and after a restart; and the first request still gets its answer.
pub async fn a_key_names_one_request(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let mut done: Vec<(Case, WriteResult)> = Vec::new();
    let mut all = cases(&fixture).await;
    // Also writes that make a version.
    for call in CALLS {
        let key = fixture.key(&format!("written, {call:?}"));
        fixture.add(&key, &["gone"]).await;
        let mut request = fixture.request(&key, operation(&fixture, call, "new", "gone"));
        request.keyed = Some(key_of(&request, call));
        all.push(Case { what: format!("{call:?}: written"), key, request, later: Vec::new() });
    }
    for case in all {
        let first = send(&fixture, &case.request).await;
        done.push((case, first));
    }
    let published = fixture.events(h).await.len();
    refuse_elsewhere(&fixture, &done, "at once").await;
    assert_eq!(fixture.events(h).await.len(), published, "a refused reuse publishes nothing");
    let Some(fixture) = fixture.reopened(h).await else { return };
    refuse_elsewhere(&fixture, &done, "after a restart").await;
}

async fn refuse_elsewhere(fixture: &Fixture, done: &[(Case, WriteResult)], when: &str) {
    for (case, _) in done {
        let other = &neighbours(fixture, &case.key, 1)[0];
        for call in CALLS {
            let request = reused(fixture, &case.request, other, call);
            assert_eq!(
                refusal(fixture.store.write(request).await),
                Refusal::KeyReused,
                "{}, {when}: its key comes to another content by {call:?}",
                case.what
            );
        }
        assert_eq!(fixture.tags(other).await, [""; 0], "{}: a reuse does nothing", case.what);
    }
    for (case, first) in done {
        retry(fixture, case, first, when).await;
    }
}

/// A key is bound for at least ten minutes. Needs a clock that the test can move.
pub async fn a_key_names_one_request_for_ten_minutes(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let others = neighbours(&fixture, &key, 4);
    let mut first = fixture.patch(&key, &["a"], &[]);
    first.keyed = Some(key_of(&first, Call::Patch));
    fixture.write(first.clone()).await;
    for tenths in [1, 2, 3, 3] {
        if !h.advance(WRITE_ID_MEMORY_MS / 10 * tenths) {
            return;
        }
        for other in &others {
            // Keys of later writes do not push it out.
            fixture.add(other, &[&format!("later {tenths}")]).await;
            let request = reused(&fixture, &first, other, Call::Patch);
            assert_eq!(
                refusal(fixture.store.write(request).await),
                Refusal::KeyReused,
                "within ten minutes"
            );
        }
    }
}

/// A batch binds its key to all its contents: a part of them, or more, is another request, of which
/// nothing happens. The same batch again is answered again, in any order.
pub async fn a_key_of_a_batch_names_all_its_contents(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let first = fixture.key("first");
    let keys: Vec<ContentKey> =
        std::iter::once(first.clone()).chain(neighbours(&fixture, &first, 5)).collect();
    let (tenant, call) = (fixture.tenant.clone(), Call::BatchItem);
    // The contents share the key, and the id of the first item of each.
    let template = fixture.patch(&first, &["a"], &[]);
    let batch = |contents: &[ContentKey]| -> Vec<WriteRequest> {
        let named = contents
            .iter()
            .map(|key| (key.content.content_type.as_str(), key.content.content_id.as_str()));
        let keyed = IdempotencyKey::of_request(&tenant, &user("someone"), "k", call, named);
        let item = |key: &ContentKey| {
            let mut request = WriteRequest { keyed: Some(keyed), ..template.clone() };
            request.write.key = key.clone();
            request
        };
        contents.iter().map(item).collect()
    };
    let mut contents = keys[..4].to_vec();
    for answer in fixture.store.write_many(batch(&contents)).await {
        assert!(!answer.expect("every item is written").repeated);
    }
    for other in [&keys[..3], &keys[..5], &keys[3..], &keys[4..], &keys[..1]] {
        for result in fixture.store.write_many(batch(other)).await {
            assert_eq!(refusal(result), Refusal::KeyReused, "{} contents", other.len());
        }
    }
    assert_eq!(fixture.tags(&keys[4]).await, [""; 0], "nothing of it happened");
    contents.rotate_left(1);
    for answer in fixture.store.write_many(batch(&contents)).await {
        assert!(answer.expect("it is answered").repeated, "in another order");
    }
    let Some(fixture) = fixture.reopened(h).await else { return };
    for result in fixture.store.write_many(batch(&keys[3..])).await {
        assert_eq!(refusal(result), Refusal::KeyReused, "after a restart");
    }
    contents.rotate_left(1);
    for answer in fixture.store.write_many(batch(&contents)).await {
        assert!(answer.expect("it is answered").repeated, "after a restart, in another order");
    }
}

/// A write whose caller did not wait for it decides nothing: its key is free for the same request.
pub async fn an_undecided_write_leaves_its_key_free(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let mut request = fixture.patch(&fixture.key("page"), &["a"], &[]);
    request.keyed = Some(key_of(&request, Call::Patch));
    let mut late = request.clone();
    late.deadline = Some(tokio::time::Instant::now());
    let error = fixture.store.write(late).await.expect_err("its time is up");
    assert!(matches!(error, StoreError::Deadline { .. }), "{error}");
    assert!(fixture.write(request).await.changed);
}

/// Many clients use one key for different contents at the same time: one of the requests happens.
pub async fn racing_requests_share_no_key(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let mut random = Random::new(seed(), 5);
    for round in 0..scaled(8) {
        let first = fixture.key(&format!("page {round}"));
        let mut keys = neighbours(&fixture, &first, 5);
        keys.push(first);
        for key in &keys {
            fixture.add(key, &["here"]).await;
        }
        let id = fresh_id();
        let mut requests: Vec<WriteRequest> = keys
            .iter()
            .map(|key| {
                // Writes, and writes that change nothing: both bind the key.
                let tag = format!("t{round}");
                let tag = if random.chance(50) { &*tag } else { "here" };
                let mut request = fixture.patch(key, &[tag], &[]);
                request.write.id = id;
                request.keyed = Some(key_of(&request, Call::Patch));
                request
            })
            .flat_map(|request| std::iter::repeat_n(request, 3))
            .collect();
        for n in (1..requests.len()).rev() {
            requests.swap(n, random.below(n + 1));
        }
        let results = run_concurrently(requests.into_iter().map(|request| {
            let fixture = fixture.clone();
            async move {
                let key = request.write.key.clone();
                (key, WriteResult::of(fixture.store.write(request).await))
            }
        }))
        .await;
        let mut winners: Vec<&ContentKey> = results
            .iter()
            .filter(|(_, result)| match result {
                WriteResult::Answered(_) => true,
                WriteResult::Refused(refusal) => {
                    assert_eq!(*refusal, Refusal::KeyReused, "round {round}");
                    false
                }
            })
            .map(|(key, _)| key)
            .collect();
        assert_eq!(winners.len(), 3, "round {round}: all sendings of one request are answered");
        winners.dedup();
        assert_eq!(winners.len(), 1, "round {round}: one key, one request");
    }
}
