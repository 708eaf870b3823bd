//! Small writes for tests of other things.

use tagfast_domain::{ContentKey, Limits, Operation, Tag, UserId, Write, WriteId};
use tagfast_sharding::LogicalShard;
use tagfast_store::{StoreError, TagWriter, WriteAnswer, WriteRequest};
use tagfast_store_postgres::PostgresStore;

/// A content of this cluster: each of the two has half of the shards.
pub(crate) fn key_of(cluster: usize, name: &str) -> ContentKey {
    (0..)
        .map(|n| ContentKey::parse("test", "doc", &format!("{name}-{n}")).expect("a content"))
        .find(|key| usize::from(LogicalShard::of(key).number()) / 32 == cluster)
        .expect("half of all are")
}

/// The write that adds a tag.
pub(crate) fn request(key: &ContentKey, tag: &str) -> WriteRequest {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("random bits");
    let operation =
        Operation::patch(vec![Tag::parse(tag).expect("a tag")], Vec::new(), &Limits::default());
    let user = UserId::parse("user").expect("a user");
    let write = Write {
        id: WriteId(id),
        key: key.clone(),
        user,
        operation: operation.expect("a patch"),
        if_match: None,
    };
    WriteRequest { keyed: None, ..WriteRequest::new(write) }
}

/// Adds a tag.
pub(crate) async fn put(
    store: &PostgresStore,
    key: &ContentKey,
    tag: &str,
) -> Result<WriteAnswer, StoreError> {
    store.write(request(key, tag)).await
}
