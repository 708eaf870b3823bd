//! Many writers on few contents: the limit holds, the history of every content is one order, and
//! counts stay exact.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::{full, names, server, tags_path, wait_until_converged};

const WRITERS: u64 = 8;
const CONTENTS: u64 = 4;
/// More than the limit of 100, so that writers run into it.
const TAGS: u64 = 140;
const BATCH: u64 = 25;
const LIMIT: usize = 100;

/// A change in an answer: version, added, removed.
type Change = (u64, Vec<String>, Vec<String>);

fn list(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect()
}

#[test]
fn racing_writes_keep_the_limit_and_one_history() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(dir.path()).start();
    let writes: u64 = if full() { 1_000_000 } else { 10_000 };
    let changes: Mutex<BTreeMap<String, Vec<Change>>> = Mutex::default();
    let refused = Mutex::new(0u64);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let mut client = running.client();
            let (changes, refused) = (&changes, &refused);
            scope.spawn(move || {
                let mut rng = Rng::with_seed(writer + 1);
                for _ in 0..writes / WRITERS / BATCH {
                    let items: Vec<Value> = (0..BATCH)
                        .map(|_| {
                            let (id, tag) = (
                                format!("c{}", rng.u64(..CONTENTS)),
                                format!("t{}", rng.u64(..TAGS)),
                            );
                            let what = if rng.u64(..100) < 70 { "add" } else { "remove" };
                            json!({"type": "race", "id": id, what: [tag]})
                        })
                        .collect();
                    let answer = client
                        .post("/v1/content:batchTag", &json!({"items": items}))
                        .expect(200)
                        .json();
                    let results = answer["results"].as_array().unwrap();
                    assert_eq!(results.len() as u64, BATCH);
                    for result in results {
                        if result["ok"] == true {
                            if result["changed"] == true {
                                let id = result["content"]["id"].as_str().unwrap().to_owned();
                                let version = result["version"].as_str().unwrap().parse().unwrap();
                                let change =
                                    (version, list(&result["added"]), list(&result["removed"]));
                                changes.lock().entry(id).or_default().push(change);
                            }
                        } else {
                            assert_eq!(result["problem"]["code"], "too_many_tags", "{result}");
                            assert_eq!(result["problem"]["allowed"], LIMIT, "{result}");
                            *refused.lock() += 1;
                        }
                    }
                    let id = format!("c{}", rng.u64(..CONTENTS));
                    let seen = names(&client.get(&tags_path("race", &id)).expect(200).json());
                    assert!(seen.len() <= LIMIT, "{id} has {} tags", seen.len());
                }
            });
        }
    });
    assert!(*refused.lock() > 0, "the writers never ran into the limit: the test shows nothing");

    let mut client = running.client();
    for (id, mut changes) in changes.into_inner() {
        changes.sort();
        let mut state = BTreeSet::new();
        let mut last = 0;
        for (version, added, removed) in changes {
            assert!(version > last, "{id}: two changes have version {version}");
            last = version;
            for tag in added {
                assert!(state.insert(tag.clone()), "{id}: {tag} was added twice, at {version}");
            }
            for tag in removed {
                assert!(state.remove(&tag), "{id}: {tag} was removed twice, at {version}");
            }
            assert!(state.len() <= LIMIT, "{id}: {} tags at {version}", state.len());
        }
        let view = client.get(&tags_path("race", &id)).expect(200).json();
        assert_eq!(names(&view), state.into_iter().collect::<Vec<_>>(), "{id}");
        assert_eq!(view["version"], last.to_string());
    }
    wait_until_converged(&mut client);
}
