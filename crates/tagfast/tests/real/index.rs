//! What an operator does to the search index while the program runs on real servers: it is named,
//! it ends, and nothing is lost or parked.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tagfast_testkit::stack::{Fault, Stack, StackOptions};
use tagfast_testkit::{Client, wait_for_condition};

use crate::events::bus_lock;
use crate::{TEST_TIMEOUT, serve, wait_until_ready};

const ALIAS: &str = "tagfast-content";
const THEIRS: &str = "theirs";
/// Contents that are written during each state.
const CONTENTS: u32 = 40;
/// A problem is named within this time.
const NAMED_WITHIN: Duration = Duration::from_secs(5);
/// A rebuild is answered within this time, whatever the index server does.
const ANSWERED_WITHIN: Duration = Duration::from_secs(15);

/// Requests to the index server that a person sends.
struct IndexServer(Client);

impl IndexServer {
    fn must(&mut self, method: &str, path: &str, body: Option<Value>) -> Value {
        let body = body.map(|body| body.to_string());
        self.0.send(method, path, body.as_deref()).expect(200).json()
    }

    fn name(&mut self) -> String {
        let all = self.must("GET", &format!("/_alias/{ALIAS}"), None);
        let names: Vec<&String> = all.as_object().expect("indices").keys().collect();
        names.into_iter().find(|name| *name != THEIRS).expect("our index").clone()
    }

    fn alias(&mut self, action: &str, index: &str) {
        let actions = json!({"actions": [{action: {"index": index, "alias": ALIAS}}]});
        self.must("POST", "/_aliases", Some(actions));
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    Deleted,
    AliasOnTwo,
    Closed,
    Recreated,
}

impl State {
    fn make(self, server: &mut IndexServer, name: &str) {
        match self {
            Self::Deleted => drop(server.must("DELETE", &format!("/{name}"), None)),
            Self::AliasOnTwo => {
                server.must("PUT", &format!("/{THEIRS}"), Some(json!({})));
                server.alias("add", THEIRS);
            }
            Self::Closed => drop(server.must("POST", &format!("/{name}/_close"), None)),
            Self::Recreated => {
                let known = server.must("GET", &format!("/{name}"), None);
                server.must("DELETE", &format!("/{name}"), None);
                let copy = json!({
                    "aliases": known[name]["aliases"], "mappings": known[name]["mappings"],
                });
                server.must("PUT", &format!("/{name}"), Some(copy));
            }
        }
    }

    fn cause(self) -> &'static str {
        match self {
            Self::Deleted => "there is no search index",
            Self::AliasOnTwo => "leads to several indices",
            Self::Closed => "is closed",
            Self::Recreated => "is not the one that was filled",
        }
    }
}

/// What names the search index in an answer.
fn named(degraded: &Value) -> String {
    let of_search = |entry: &&Value| entry["feature"] == "search";
    let all = degraded.as_array().into_iter().flatten().filter(of_search);
    all.map(|entry| entry["reason"].as_str().unwrap_or("").to_owned())
        .collect::<Vec<_>>()
        .join("; ")
}

fn found(client: &mut Client, tag: &str) -> Result<usize, String> {
    let answer = client.get(&format!("/v1/search?q={tag}&limit=100"));
    if answer.status != 200 {
        return Err(answer.text());
    }
    Ok(answer.json()["hits"].as_array().expect("hits").len())
}

fn dead_letters(client: &mut Client) -> u64 {
    let status = client.get("/v1/status").expect(200).json();
    let consumers = status["consumers"].as_array().expect("consumers");
    consumers.iter().map(|c| c["dead_letters"].as_u64().expect("a count")).sum()
}

#[test]
fn the_index_may_be_deleted_aliased_or_closed_and_nothing_is_lost() {
    let _lock = bus_lock();
    let dir = tempfile::tempdir().expect("a folder");
    let options = StackOptions {
        kafka: true,
        opensearch: true,
        ..StackOptions::clusters_only(1, dir.path())
    };
    let mut stack = Stack::up(&options, &|_| ()).expect("the stack comes up");
    let direct = stack.info().opensearch.as_ref().expect("OpenSearch").direct;
    let mut index_server = IndexServer(Client::new(direct).with_timeout(TEST_TIMEOUT));
    let server = serve(&stack);
    let mut client = server.client().with_timeout(TEST_TIMEOUT);
    wait_until_ready(&mut client);
    for (n, state) in
        [State::Deleted, State::AliasOnTwo, State::Closed, State::Recreated].into_iter().enumerate()
    {
        let name = index_server.name();
        state.make(&mut index_server, &name);
        for id in 0..CONTENTS {
            client.put(&format!("/v1/content/page/{id}/tags/during{n}")).expect(200);
        }
        wait_for_condition("readiness names it", NAMED_WITHIN, || {
            let text = named(&client.get("/readyz").json()["degraded"]);
            if text.contains(state.cause()) { Ok(()) } else { Err(text) }
        });
        // Until it is over, no search says that all is well.
        match found(&mut client, &format!("during{n}")) {
            Err(refused) => {
                let is_named = refused.contains("search_unavailable");
                assert!(is_named, "{state:?}: {refused}");
            }
            Ok(found) => assert_eq!(found, CONTENTS as usize, "{state:?}: rebuilt already"),
        }
        match state {
            State::Deleted | State::Recreated => {}
            State::AliasOnTwo => {
                let text = named(&client.get("/v1/status").expect(200).json()["degraded"]);
                assert!(text.contains(state.cause()), "{text}");
                let refused = client.get("/v1/search?q=x").expect(503).json();
                let detail = refused["detail"].as_str().expect("a detail").to_owned();
                assert!(detail.contains(state.cause()), "{detail}");
                index_server.alias("remove", THEIRS);
            }
            State::Closed => {
                let rebuilt = client.send("POST", "/v1/admin/reindex", None).expect(200).json();
                assert_eq!(rebuilt["contents"], CONTENTS);
            }
        }
        wait_for_condition("everything is found", TEST_TIMEOUT, || {
            let found = found(&mut client, &format!("during{n}"))?;
            if found == CONTENTS as usize { Ok(()) } else { Err(format!("{found}")) }
        });
        wait_for_condition("nothing is degraded", TEST_TIMEOUT, || {
            let text = named(&client.get("/readyz").json()["degraded"]);
            if text.is_empty() { Ok(()) } else { Err(text) }
        });
        assert_eq!(dead_letters(&mut client), 0, "{state:?} is no record's fault");
    }
    index_server.must("GET", &format!("/{THEIRS}"), None);

    // A rebuild serves before it has returned its lock.
    wait_for_condition("no rebuild runs", TEST_TIMEOUT, || {
        let running = client.get("/v1/status").expect(200).json()["running"].clone();
        if running == json!([]) { Ok(()) } else { Err(running.to_string()) }
    });
    // A server that refuses or hangs: a rebuild fails with the cause.
    for (fault, cause) in [(Fault::Refuse, "cannot be reached"), (Fault::Hang, "does not answer")] {
        stack.fault(fault, "opensearch").expect("the fault");
        let asked = Instant::now();
        let refused = client.send("POST", "/v1/admin/reindex", None);
        let detail = refused.text();
        assert!(refused.status >= 500 && detail.contains(cause), "{} {detail}", refused.status);
        assert!(asked.elapsed() < ANSWERED_WITHIN, "{:?}", asked.elapsed());
        wait_for_condition("readiness names it", NAMED_WITHIN, || {
            let text = named(&client.get("/readyz").json()["degraded"]);
            if text.contains(cause) { Ok(()) } else { Err(text) }
        });
        stack.fault(Fault::Heal, "opensearch").expect("healed");
        wait_for_condition("searches are answered", TEST_TIMEOUT, || {
            found(&mut client, "during0").map(drop)
        });
    }
}
