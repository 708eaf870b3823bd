//! Every outcome of a keyed write is remembered: a retry gets the first result, whatever happened
//! to the content since, and does nothing.
//!
//! The cases are chosen so that a store which decides a retry again decides it otherwise.

use tagfast_domain::limits::RECENT_WRITES;
use tagfast_domain::{Call, ContentKey, IdempotencyKey, Operation, Refusal, Version};

use super::harness::StoreHarness;
use super::history::History;
use super::support::{
    Fixture, Random, chain, names, refusal, run_concurrently, same_answer, scaled, seed, tags,
};
use crate::{ScanRequest, StoreError, WriteAnswer, WriteRequest};
use tagfast_sharding::LogicalShard;

/// What a caller is told.
#[derive(Debug, Clone)]
pub(super) enum WriteResult {
    Answered(WriteAnswer),
    Refused(Refusal),
}

impl WriteResult {
    pub(super) fn of(result: Result<WriteAnswer, StoreError>) -> Self {
        match result {
            Ok(answer) => Self::Answered(answer),
            Err(StoreError::Refused(refusal)) => Self::Refused(refusal),
            Err(error) => panic!("a write must be decided, but: {}", chain(&error)),
        }
    }

    /// Whether a retry was told the same, and that it is a retry.
    fn is_repeated_by(&self, retry: &Self) -> bool {
        match (self, retry) {
            (Self::Answered(first), Self::Answered(again)) => {
                again.repeated && same_answer(first, again)
            }
            (Self::Refused(first), Self::Refused(again)) => first == again,
            (Self::Answered(_), Self::Refused(_)) | (Self::Refused(_), Self::Answered(_)) => false,
        }
    }
}

/// A write that makes no version, and later writes after which it would be decided otherwise.
pub(super) struct Case {
    pub(super) what: String,
    pub(super) key: ContentKey,
    pub(super) request: WriteRequest,
    pub(super) later: Vec<WriteRequest>,
}

/// Sends a request as its call does.
pub(super) async fn send(fixture: &Fixture, request: &WriteRequest) -> WriteResult {
    if request.keyed.is_some_and(|key| key.call == Call::BatchItem) {
        let results = fixture.store.write_many(vec![request.clone()]).await;
        return WriteResult::of(results.into_iter().next().expect("a result per item"));
    }
    WriteResult::of(fixture.store.write(request.clone()).await)
}

/// The key of a request on its content alone.
pub(super) fn key_of(request: &WriteRequest, call: Call) -> IdempotencyKey {
    IdempotencyKey::of_write(request.write.id, call, &request.write.key.content)
}

pub(super) const CALLS: [Call; 5] =
    [Call::AddTag, Call::RemoveTag, Call::Patch, Call::Replace, Call::BatchItem];

/// The operation of a call that adds `add`, or removes `remove`.
pub(super) fn operation(fixture: &Fixture, call: Call, add: &str, remove: &str) -> Operation {
    let (limits, add, remove) = (&fixture.limits, tags(&[add]), names(&[remove]));
    match call {
        Call::AddTag => Operation::patch(add, Vec::new(), limits),
        Call::RemoveTag => Operation::patch(Vec::new(), remove, limits),
        Call::Patch | Call::BatchItem => Operation::patch(add, remove, limits),
        Call::Replace => Operation::replace(add, limits),
    }
    .expect("a valid operation")
}

pub(super) async fn cases(fixture: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    // The version of every content that is written once in this epoch.
    let first_version = fixture.add(&fixture.key("sibling"), &["a"]).await.version;
    for call in CALLS {
        let request = |key: &ContentKey, if_match| {
            let mut request = fixture.request(key, operation(fixture, call, "here", "gone"));
            request.keyed = Some(key_of(&request, call));
            request.write.if_match = if_match;
            request
        };

        let key = fixture.key(&format!("nothing changed, {call:?}"));
        fixture.add(&key, &["here", "gone"]).await;
        fixture.write(fixture.replace(&key, &["here"])).await;
        cases.push(Case {
            what: format!("{call:?}: nothing changed"),
            request: request(&key, None),
            later: vec![fixture.patch(&key, &["urgent", "gone"], &["here"])],
            key,
        });

        let key = fixture.key(&format!("another version, {call:?}"));
        let current = fixture.add(&key, &["gone"]).await.version;
        let next = Version::from_packed(current.packed() + 1).expect("a version");
        cases.push(Case {
            what: format!("{call:?}: another version, which the content has later"),
            request: request(&key, Some(next.into())),
            later: vec![fixture.patch(&key, &["urgent"], &[])],
            key,
        });

        let key = fixture.key(&format!("not there yet, {call:?}"));
        cases.push(Case {
            what: format!("{call:?}: another version of a content that does not exist yet"),
            request: request(&key, Some(first_version.into())),
            later: vec![fixture.patch(&key, &["urgent", "gone"], &[])],
            key,
        });

        if matches!(call, Call::AddTag | Call::BatchItem | Call::Patch) {
            let key = fixture.key(&format!("too many, {call:?}"));
            let full: Vec<String> =
                (0..fixture.limits.tags_per_content).map(|n| format!("t{n}")).collect();
            let full: Vec<&str> = full.iter().map(String::as_str).collect();
            fixture.add(&key, &full).await;
            cases.push(Case {
                what: format!("{call:?}: too many tags, for which there is room later"),
                request: request(&key, None),
                later: vec![fixture.patch(&key, &[], &["t0", "t1"])],
                key,
            });
        } else {
            let key = fixture.key(&format!("empty, {call:?}"));
            let mut empty = request(&key, None);
            if call == Call::Replace {
                let set = Operation::replace(Vec::new(), &fixture.limits);
                empty.write.operation = set.expect("an empty set");
            }
            cases.push(Case {
                what: format!("{call:?}: nothing to remove from a content that does not exist yet"),
                request: empty,
                later: vec![fixture.patch(&key, &["urgent", "gone"], &[])],
                key,
            });
        }
    }
    cases
}

/// Sends a retry; it must be told the first result and leave the content as it is.
pub(super) async fn retry(fixture: &Fixture, case: &Case, first: &WriteResult, when: &str) {
    let before = fixture.view(&case.key).await;
    let again = send(fixture, &case.request).await;
    assert!(
        first.is_repeated_by(&again),
        "{}, {when}: a retry must be told the first result {first:?}, not {again:?}",
        case.what
    );
    let after = fixture.view(&case.key).await;
    assert_eq!(
        (after.version, after.tags),
        (before.version, before.tags),
        "{}, {when}: a retry does nothing",
        case.what
    );
}

/// Every call, every outcome that makes no version: its retries are told it again, at once, after
/// the content changed, behind many other writes and after a restart.
pub async fn every_outcome_is_answered_again(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let mut done = Vec::new();
    for case in cases(&fixture).await {
        let published = fixture.events(h).await.len();
        let version = fixture.view(&case.key).await.version;
        let first = send(&fixture, &case.request).await;
        retry(&fixture, &case, &first, "at once").await;
        if fixture.view(&case.key).await.version == version {
            assert_eq!(
                fixture.events(h).await.len(),
                published,
                "{}: a write that makes no version publishes nothing",
                case.what
            );
        }
        for later in &case.later {
            fixture.write(later.clone()).await;
        }
        retry(&fixture, &case, &first, "after the content changed").await;
        for n in 0..RECENT_WRITES {
            let tag = format!("later{}", n / 2);
            fixture.write(fixture.patch(&case.key, &[&tag], &["unheard-of"])).await;
            fixture.write(fixture.patch(&case.key, &[], &[&tag])).await;
        }
        retry(&fixture, &case, &first, "behind many later writes").await;
        done.push((case, first));
    }
    let Some(fixture) = fixture.reopened(h).await else { return };
    for (case, first) in &done {
        retry(&fixture, case, first, "after a restart").await;
    }
}

/// A key is bound to its call: the same operation in a different call is refused, whatever the
/// first outcome was.
pub async fn a_known_id_in_another_call_is_refused(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    for case in cases(&fixture).await {
        let first = send(&fixture, &case.request).await;
        for later in &case.later {
            fixture.write(later.clone()).await;
        }
        // The document alone must tell them apart.
        let key = case.request.keyed.expect("a key");
        for call in CALLS.into_iter().filter(|call| *call != key.call) {
            let keyed = Some(IdempotencyKey { call, ..key });
            let request = WriteRequest { keyed, ..case.request.clone() };
            assert_eq!(
                refusal(fixture.store.write(request).await),
                Refusal::WriteIdReused,
                "{}: then by {call:?}",
                case.what
            );
        }
        retry(&fixture, &case, &first, "after refused reuses").await;
    }
}

/// What is remembered of a content that was never written makes it no content: scans, exports and
/// rebuilds do not see it.
pub async fn a_refused_content_is_not_scanned(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let (refused, written) = (fixture.key("refused"), fixture.key("written"));
    let version = fixture.add(&written, &["a"]).await.version;
    let mut request = fixture.patch(&refused, &["a"], &[]);
    request.write.if_match = Some(version.into());
    let first = refusal(fixture.store.write(request.clone()).await);
    assert_eq!(first, Refusal::VersionMismatch { current: Version::NONE });
    let mut found = Vec::new();
    for shard in [&refused, &written].map(LogicalShard::of) {
        let scan =
            ScanRequest { tenant: Some(&fixture.tenant), ..ScanRequest::of_all(shard, None, 1000) };
        let page = fixture.store.scan(scan).await.expect("a page");
        found.extend(page.items.into_iter().map(|(key, _)| key));
    }
    found.dedup();
    assert_eq!(found, [written], "only what was written is a content");
    fixture.add(&refused, &["b"]).await;
    assert_eq!(
        refusal(fixture.store.write(request).await),
        first,
        "and the retry is still refused"
    );
    assert_eq!(fixture.tags(&refused).await, ["b"]);
}

/// A random request on one of a few contents, whose outcome later writes often change.
fn random_request(fixture: &Fixture, random: &mut Random, keys: &[ContentKey]) -> WriteRequest {
    let key = random.pick(keys).clone();
    let call = *random.pick(&CALLS);
    let (add, remove) = (format!("t{}", random.below(4)), format!("u{}", random.below(4)));
    let mut request = fixture.request(&key, operation(fixture, call, &add, &remove));
    request.keyed = Some(key_of(&request, call));
    request
}

/// Random histories with retries, at once and much later: the first answer holds for ever.
pub async fn random_retries_get_their_first_answer(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let seed = seed();
    let mut random = Random::new(seed, 3);
    let keys: Vec<ContentKey> = (0..3).map(|n| fixture.key(&format!("page {n}"))).collect();
    let mut done: Vec<(WriteRequest, WriteResult)> = Vec::new();
    for step in 0..scaled(250) {
        let context = format!("seed {seed}, step {step}");
        if !done.is_empty() && random.chance(40) {
            let newest = done.len() - 1;
            let n = if random.chance(30) { newest } else { random.below(done.len()) };
            let (request, first) = &done[n];
            let before = fixture.view(&request.write.key).await;
            let again = send(&fixture, request).await;
            assert!(
                first.is_repeated_by(&again),
                "{context}: a retry of {request:?} must be told the first result {first:?}, \
                 not {again:?}"
            );
            let after = fixture.view(&request.write.key).await;
            assert_eq!((after.version, after.tags), (before.version, before.tags), "{context}");
            continue;
        }
        let mut request = random_request(&fixture, &mut random, &keys);
        if random.chance(30) {
            let current = fixture.view(&request.write.key).await.version.packed();
            let guess = current + random.below(3) as u64;
            request.write.if_match = Version::from_packed(guess).ok().map(Into::into);
        }
        let first = send(&fixture, &request).await;
        done.push((request, first));
    }
    History::new().check(&fixture, h).await;
}

/// Many clients send the same requests at the same time, among other writes: all of them are told
/// one result.
pub async fn racing_retries_get_one_answer(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let mut random = Random::new(seed(), 4);
    for round in 0..scaled(6) {
        let keys = [fixture.key(&format!("page {round}"))];
        let mut requests: Vec<WriteRequest> = (0..10)
            .map(|_| random_request(&fixture, &mut random, &keys))
            .flat_map(|request| std::iter::repeat_n(request, 4))
            .collect();
        for n in (1..requests.len()).rev() {
            requests.swap(n, random.below(n + 1));
        }
        let results = run_concurrently(requests.into_iter().map(|request| {
            let fixture = fixture.clone();
            async move { (request.write.id, send(&fixture, &request).await) }
        }))
        .await;
        for (id, result) in &results {
            for (_, other) in results.iter().filter(|(other, _)| other == id) {
                let is_same = match (result, other) {
                    (WriteResult::Answered(a), WriteResult::Answered(b)) => same_answer(a, b),
                    (WriteResult::Refused(a), WriteResult::Refused(b)) => a == b,
                    (WriteResult::Answered(_), WriteResult::Refused(_))
                    | (WriteResult::Refused(_), WriteResult::Answered(_)) => false,
                };
                assert!(is_same, "one write was told {result:?} and {other:?}");
            }
        }
    }
    History::new().check(&fixture, h).await;
}
