//! One write that is retried through several nodes at the same time.

use std::sync::Arc;

use tagfast_domain::{Call, ContentKey, Limits, Operation, Refusal, Tag, Version, WriteId};
use tagfast_resilience::SystemClock;
use tagfast_store::{
    Consistency, ReadOptions, StoreError, TagReader, TagWriter, WriteAnswer, WriteRequest,
};
use tagfast_store_postgres::{NullSink, PostgresStore};

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
    write.keyed = Some(Call::Patch);
    write
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
        other.write.id = one.write.id;
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
