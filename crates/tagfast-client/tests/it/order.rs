//! The lines of one content are applied in the order of the file.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::json;
use tagfast_client::error::Exit;

use crate::support::{FakeServer, args, run, server, working};

/// Seeds to try.
const SEEDS: u64 = if cfg!(feature = "full") { 300 } else { 25 };

/// Whatever the requests in flight, the size of the batches, refusals, lost answers and a server
/// that applies the items of a batch in any order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_one_content_are_applied_in_the_order_of_the_file() {
    join_all((0..SEEDS).map(lines_keep_their_order)).await;
}

async fn lines_keep_their_order(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let contents = [1, 3, 20, 200][random.usize(..4)];
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut text = String::new();
    for line in 1..=random.usize(1..200) {
        let (id, tag) = (random.usize(..contents).to_string(), format!("line {line:03}"));
        text.push_str(&format!("{}\n", json!({"type": "t", "id": id, "tags": [tag]})));
        expected.entry(id).or_default().push(tag);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("in.ndjson");
    std::fs::write(&file, text).unwrap();
    let trouble = Some(random.fork());
    let (fake, client) = server(FakeServer { trouble, ..working() }).await;
    let mut args = args(file.to_str().unwrap().to_owned(), client);
    args.batch = random.u32(1..30);
    args.parallel = random.u32(1..16);
    args.retries = 100;
    let (result, report, _) = run(&args).await;
    assert_eq!(result.unwrap(), Exit::Done, "seed {seed}");
    let fake = fake.lock();
    assert_eq!(fake.applied, expected, "seed {seed}");
    let lines: usize = expected.values().map(Vec::len).sum();
    assert_eq!((&report["contents"], &report["added"]), (&json!(lines), &json!(lines)));
}
