//! One write that is retried through several nodes at the same time.

use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::limits::WRITE_ID_MEMORY_MS;
use tagfast_domain::{
    Call, ContentKey, IdempotencyKey, Limits, Operation, Refusal, Tag, Version, WriteId,
};
use tagfast_resilience::{Clock, ManualClock, SystemClock};
use tagfast_store::{
    Consistency, ReadOptions, StoreError, TagReader, TagWriter, WriteAnswer, WriteRequest,
};
use tagfast_store_postgres::{NullSink, PostgresStore};
use tagfast_testkit::wait_for_condition_async;

use crate::support;
use crate::writes::{key_of, put, request};

/// Contents on which two nodes race.
const ROUNDS: usize = 40;

/// What a caller is told, without what says when.
type Told = Result<(Version, Vec<String>, Vec<String>), Refusal>;

fn told(result: Result<WriteAnswer, StoreError>) -> Told {
    let names = |names: &[tagfast_domain::TagName]| names.iter().map(ToString::to_string).collect();
    match result {
        Ok(answer) => Ok((answer.version, names(&answer.added), names(&answer.removed))),
        Err(StoreError::Refused(refusal)) => Err(refusal),
        Err(error) => panic!("a write must be decided: {error}"),
    }
}

fn keyed(key: &ContentKey, operation: Operation) -> WriteRequest {
    let mut write = request(key, "x");
    write.write.operation = operation;
    WriteRequest::new(write.write)
}

fn add(tag: &str) -> Operation {
    let tags = vec![Tag::parse(tag).expect("a tag")];
    Operation::patch(tags, Vec::new(), &Limits::default()).expect("a patch")
}

fn remove(tag: &str) -> Operation {
    let tag = Tag::parse(tag).expect("a tag").name;
    Operation::patch(Vec::new(), vec![tag], &Limits::default()).expect("a patch")
}

async fn two_nodes() -> [Arc<PostgresStore>; 2] {
    let options = support::options(Arc::new(SystemClock)).await;
    let first = support::open(options.clone(), Arc::new(NullSink)).await;
    [first, support::open(options, Arc::new(NullSink)).await]
}

/// The outcome of a write that changes nothing is remembered without a new version: only the
/// revision of the row keeps two nodes from remembering two outcomes.
#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_tell_one_result_whatever_it_is() {
    let nodes = two_nodes().await;
    for round in 0..ROUNDS {
        let key = key_of(0, &format!("race-{round}"));
        let version = put(&nodes[0], &key, "here").await.expect("written").version;
        let next = Version::from_packed(version.packed() + 1).expect("a version");
        let mut mismatch = keyed(&key, add("z"));
        mismatch.write.if_match = Some(next.into());
        let requests = [keyed(&key, add("here")), keyed(&key, remove("here")), mismatch];
        let send = |node: usize, request: &WriteRequest| {
            let (node, request) = (Arc::clone(&nodes[node]), request.clone());
            async move { (request.write.id, told(node.write(request).await)) }
        };
        let all = requests.iter().flat_map(|r| [send(0, r), send(1, r), send(1, r), send(0, r)]);
        let results: Vec<(WriteId, Told)> = futures_util::future::join_all(all).await;
        for (id, first) in &results {
            for (_, other) in results.iter().filter(|(other, _)| other == id) {
                assert_eq!(first, other, "round {round}");
            }
        }
        for (n, request) in requests.iter().enumerate() {
            let first = results.iter().find(|(id, _)| *id == request.write.id);
            let (_, again) = send(n % 2, request).await;
            assert_eq!(Some(&again), first.map(|(_, told)| told), "round {round}, later");
        }
    }
}

/// One id with two operations, through two nodes at the same time: one of them is refused, also
/// where none of them changes anything.
#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_do_not_take_one_id_for_two_operations() {
    let nodes = two_nodes().await;
    for round in 0..ROUNDS {
        let key = key_of(0, &format!("reuse-{round}"));
        for tag in ["a", "b"] {
            put(&nodes[0], &key, tag).await.expect("written");
        }
        let (one, mut other) = (keyed(&key, add("a")), keyed(&key, add("b")));
        (other.write.id, other.keyed) = (one.write.id, one.keyed);
        let (one, other) = tokio::join!(nodes[0].write(one), nodes[1].write(other));
        let reused = [told(one), told(other)]
            .into_iter()
            .filter(|told| *told == Err(Refusal::WriteIdReused))
            .count();
        assert_eq!(reused, 1, "round {round}: one of two operations was first");
        let strong = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
        assert_eq!(nodes[1].view(&key, &strong).await.expect("read").tags.len(), 2);
    }
}

/// The same key on a different content of the same cluster.
fn reused(first: &WriteRequest, key: &ContentKey) -> WriteRequest {
    let mut write = keyed(key, first.write.operation.clone());
    write.write.id = first.write.id;
    let id = first.keyed.expect("a key").id;
    write.keyed = write.keyed.map(|key| IdempotencyKey { id, ..key });
    write
}

/// A node that never saw the key refuses it on another content of the cluster, whatever its first
/// request did; through the node that has it all retries get the first answer. So does a node that
/// is started later.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_one_node_bound_is_known_to_all() {
    let options = support::options(Arc::new(SystemClock)).await;
    let first = support::open(options.clone(), Arc::new(NullSink)).await;
    let second = support::open(options.clone(), Arc::new(NullSink)).await;
    let mut done = Vec::new();
    for cluster in [0, 1] {
        let key = key_of(cluster, "bound");
        let version = put(&first, &key, "here").await.expect("written").version;
        let next = Version::from_packed(version.packed() + 1).expect("a version");
        let mut mismatch = keyed(&key, add("z"));
        mismatch.write.if_match = Some(next.into());
        let new = keyed(&key_of(cluster, "new"), add("a"));
        for request in [new, keyed(&key, add("here")), keyed(&key, remove("z")), mismatch] {
            let result = told(first.write(request.clone()).await);
            done.push((request, key_of(cluster, "other"), result));
        }
    }
    let third = support::open(options, Arc::new(NullSink)).await;
    for (n, node) in [&second, &third, &first].into_iter().enumerate() {
        for (request, other, result) in &done {
            let reuse = told(node.write(reused(request, other)).await);
            assert_eq!(reuse, Err(Refusal::KeyReused), "node {n}: {:?}", request.write);
            assert_eq!(&told(node.write(request.clone()).await), result, "node {n}");
            // In a batch, with a write that is none of its business.
            let batch = vec![reused(request, other), keyed(other, add(&format!("n{n}")))];
            let mut results = node.write_many(batch).await.into_iter();
            assert_eq!(results.next().map(told), Some(Err(Refusal::KeyReused)));
            assert!(results.next().expect("two results").is_ok());
        }
    }
}

/// One key for two contents, through two nodes at the same time, alone and among the items of
/// batches: one of the requests happens, and no batch waits for another one in a circle.
#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_do_not_take_one_key_for_two_requests() {
    let nodes = two_nodes().await;
    for round in 0..ROUNDS {
        let contents = [0, 1, 2, 3].map(|n| key_of(0, &format!("key-{round}-{n}")));
        let one: Vec<WriteRequest> =
            contents.iter().map(|content| keyed(content, add("x"))).collect();
        // The other node has the same keys, for other contents and in another order.
        let other: Vec<WriteRequest> = (0..one.len())
            .rev()
            .map(|n| reused(&one[n], &contents[(n + 1) % contents.len()]))
            .collect();
        let (mine, theirs) =
            tokio::join!(nodes[0].write_many(one.clone()), nodes[1].write_many(other.clone()));
        let mut theirs: Vec<Told> = theirs.into_iter().map(told).collect();
        theirs.reverse();
        for (n, pair) in mine.into_iter().map(told).zip(&theirs).enumerate() {
            let refused =
                [&pair.0, pair.1].into_iter().filter(|t| **t == Err(Refusal::KeyReused)).count();
            assert_eq!(refused, 1, "round {round}, key {n}: one of two requests was first");
        }
    }
}

/// A batch whose items share a key, over all lanes of a cluster: every item is written once, in
/// order, and the same batch through the other node is repeated.
#[tokio::test(flavor = "multi_thread")]
async fn the_items_of_a_batch_share_its_key() {
    let nodes = two_nodes().await;
    let contents: Vec<ContentKey> = (0..40).map(|n| key_of(n % 2, &format!("batch-{n}"))).collect();
    let named = contents
        .iter()
        .map(|key| (key.content.content_type.as_str(), key.content.content_id.as_str()));
    let user = tagfast_domain::UserId::parse("user").expect("a user");
    let tenant = &contents[0].tenant;
    let key = IdempotencyKey::of_request(tenant, &user, "k", Call::BatchItem, named);
    let item = |content: &ContentKey| {
        let mut write = keyed(content, add("x"));
        write.write.id = WriteId::derived(tenant, &user, "k", 0);
        write.keyed = Some(key);
        write
    };
    let batch: Vec<WriteRequest> = contents.iter().map(item).collect();
    let send = |node: usize| {
        let (node, batch) = (Arc::clone(&nodes[node]), batch.clone());
        async move { node.write_many(batch).await }
    };
    // Both nodes at once: each item is decided once.
    let (one, two) = tokio::join!(send(0), send(1));
    for ((content, one), two) in contents.iter().zip(one).zip(two) {
        let (one, two) = (one.expect("written"), two.expect("written"));
        assert_eq!(one.receipt.write_id, two.receipt.write_id);
        assert_eq!(usize::from(one.repeated) + usize::from(two.repeated), 1, "{content}");
        assert_eq!((one.version, &one.added), (two.version, &two.added), "{content}");
    }
    for answer in send(1).await {
        assert!(answer.expect("answered").repeated);
    }
}

/// Keys and never-written rows leave in bounded work: a key is known over one rotation of the
/// tables, through a session that was idle meanwhile, and forgotten after two; a row that only
/// remembered a refusal is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn keys_outlive_a_rotation_of_their_table_and_are_forgotten_later() {
    let clock = Arc::new(ManualClock::new(SystemClock.now_ms()));
    let options = support::options(Arc::clone(&clock) as _).await;
    let database = options.database.clone();
    let number = async |query: &str| support::number(0, &database, query).await;
    let wait = async |what: &str, query: &str, is_good: fn(i32, i32) -> bool, than: i32| {
        wait_for_condition_async(what, Duration::from_secs(60), || async {
            let now = support::number(0, &database, query).await;
            if is_good(now, than) { Ok(()) } else { Err(now) }
        })
        .await;
    };
    let store = support::open(options.clone(), Arc::new(NullSink)).await;
    let first = keyed(&key_of(0, "bound"), add("a"));
    store.write(first.clone()).await.expect("written");
    let mut refused = keyed(&key_of(0, "refused"), add("a"));
    refused.write.if_match = Version::from_packed(7).ok().map(Into::into);
    let never_written = "SELECT count(*)::int FROM content WHERE ver = 0";
    let refusal = Err(Refusal::VersionMismatch { current: Version::NONE });
    assert_eq!(told(store.write(refused.clone()).await), refusal);
    assert_eq!(number(never_written).await, 1);
    for (rotations, known) in [(1, true), (2, false)] {
        let active = number("SELECT applied FROM rotation").await;
        let age = "UPDATE rotation SET applied_since = applied_since - interval '12 minutes'";
        support::execute(0, &database, age).await;
        wait("a rotation", "SELECT applied FROM rotation", |a, b| a != b, active).await;
        // A process of its own: the first one remembers the key by itself.
        let other = support::open(options.clone(), Arc::new(NullSink)).await;
        let reuse = told(other.write(reused(&first, &key_of(0, "other"))).await);
        assert_eq!(reuse == Err(Refusal::KeyReused), known, "rotation {rotations}: {reuse:?}");
        // The session of the first process wrote the table before: its keys go into the new one.
        let next = keyed(&key_of(0, &format!("next-{rotations}")), add("a"));
        store.write(next.clone()).await.expect("written");
        let active = number("SELECT applied FROM rotation").await;
        let bound = format!(
            "SELECT count(*)::int FROM idempotency_key_{active} WHERE id = '\\x{}'",
            hex::encode(next.keyed.expect("a key").id)
        );
        assert_eq!(number(&bound).await, 1, "rotation {rotations}");
        other.close().await;
    }
    assert_eq!(number(never_written).await, 1, "not yet");
    clock.advance(WRITE_ID_MEMORY_MS);
    wait("a sweep", never_written, |a, b| a == b, 0).await;
    assert!(put(&store, &refused.write.key, "b").await.expect("written").changed);
}
