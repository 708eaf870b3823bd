//! The program on real clusters, as a user runs it: the configuration that the stack writes, HTTP, a cluster that is down.

use std::time::Duration;

use tagfast_testkit::stack::{Fault, Stack, StackOptions};
use tagfast_testkit::{Client, ServerOptions, ServerProcess, wait_for_condition};

const PATIENCE: Duration = Duration::from_secs(60);

fn serve(stack: &Stack) -> ServerProcess {
    ServerOptions::other(env!("CARGO_BIN_EXE_tagfast"))
        .arg("--config")
        .arg(&stack.info().config)
        .env("TAGFAST__STORE__HOLD_MS", "6000")
        .serve()
        .start()
}

fn wait_until_ready(client: &mut Client) {
    wait_for_condition("ready", PATIENCE, || {
        let answer = client.get("/readyz");
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    });
}

/// Enough contents that both clusters hold some, whatever their hashes are.
fn ids() -> impl Iterator<Item = String> {
    (0..40).map(|n| format!("OPS-{n}"))
}

#[test]
fn a_cluster_that_is_down_stops_its_own_contents_only() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut stack = Stack::up(&StackOptions::clusters_only(2, dir.path()), &|_| ()).expect("the stack comes up");
    let server = serve(&stack);
    let mut client = server.client().with_timeout(Duration::from_secs(20));
    wait_until_ready(&mut client);
    for id in ids() {
        let answer = client.put(&format!("/v1/content/jira.issue/{id}/tags/first")).expect(200);
        assert_eq!(answer.json()["changed"], true);
        let view = client.get(&format!("/v1/content/jira.issue/{id}/tags")).expect(200).json();
        assert_eq!(view["tags"][0]["tag"], "first");
    }
    assert_eq!(client.get("/v1/search?q=first").expect(501).json()["code"], "not_in_this_mode");
    assert_eq!(client.get("/v1/tags/popular").expect(501).json()["code"], "not_in_this_mode");
    let mut replicated = server.client();
    let asked = replicated.request("PUT", "/v1/content/a/1/tags/x", &[("durability", "replicated")], None);
    assert_eq!(asked.expect("an answer").expect(501).json()["code"], "not_in_this_mode");

    // The primary of c0 dies: writes wait and go on, nobody sees an error.
    stack.fault(Fault::Kill, "c0").expect("killed");
    for id in ids() {
        client.put(&format!("/v1/content/jira.issue/{id}/tags/second")).expect(200);
    }
    let view = client.get("/v1/content/jira.issue/OPS-1/tags").expect(200).json();
    assert_eq!(view["tags"].as_array().map(Vec::len), Some(2), "{view}");
    drop(server);

    // A whole cluster is down while a node starts: it serves the other one and says so.
    for node in ["c1-n0", "c1-n1", "c1-n2"] {
        stack.fault(Fault::KillNode, node).expect("killed");
    }
    let server = serve(&stack);
    let mut client = server.client().with_timeout(Duration::from_secs(20));
    wait_for_condition("only c1 is missing", PATIENCE, || {
        let answer = client.get("/readyz");
        let text = answer.text();
        if answer.status == 503 && text.contains("c1: ") && !text.contains("c0: ") { Ok(()) } else { Err(text) }
    });
    let (mut served, mut refused) = (0, 0);
    for id in ids() {
        let answer = client.get(&format!("/v1/content/jira.issue/{id}/tags"));
        match answer.status {
            200 => served += 1,
            503 => {
                refused += 1;
                assert!(answer.header("retry-after").is_some(), "{}", answer.text());
            }
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert!(served > 5 && refused > 5, "{served} served, {refused} refused");
    for node in ["c1-n0", "c1-n1", "c1-n2"] {
        stack.fault(Fault::Restart, node).expect("started again");
    }
    wait_until_ready(&mut client);
    for id in ids() {
        let view = client.get(&format!("/v1/content/jira.issue/{id}/tags")).expect(200).json();
        assert_eq!(view["tags"].as_array().map(Vec::len), Some(2), "{id}: {view}");
    }
}
