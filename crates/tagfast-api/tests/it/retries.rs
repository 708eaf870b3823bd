//! Idempotency keys: every outcome of every call is answered again, and a key belongs to its
//! request.

use serde_json::{Value, json};

use crate::support::{Answer, ApiLimits, AuthConfig, Fixture, build, fixture};

const TAGS: &str = "/v1/content/jira.issue/PROJ-1/tags";
const BATCH: &str = "/v1/content:batchTag";

/// One call with a body and a condition.
#[derive(Debug, Clone)]
struct Call {
    method: &'static str,
    uri: String,
    body: Option<Value>,
    if_match: Option<String>,
}

impl Call {
    fn new(method: &'static str, uri: &str, body: Option<Value>) -> Self {
        Self { method, uri: uri.to_owned(), body, if_match: None }
    }

    async fn send(&self, fixture: &Fixture, key: Option<&str>) -> Answer {
        let mut request = fixture.request(self.method, &self.uri);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(version) = &self.if_match {
            request = request.header("if-match", &format!("\"{version}\""));
        }
        if let Some(body) = &self.body {
            request = request.json(&body.to_string());
        }
        request.send().await
    }
}

/// All calls that write, on one content, with the effect of adding `here` (or removing `gone`).
fn calls(id: &str) -> Vec<Call> {
    let tags = format!("/v1/content/t/{id}/tags");
    let patch = json!({"add": ["here"], "remove": ["gone"]});
    let item = json!({"items": [{"type": "t", "id": id, "add": ["here"], "remove": ["gone"]}]});
    vec![
        Call::new("PUT", &format!("{tags}/here"), None),
        Call::new("DELETE", &format!("{tags}/gone"), None),
        Call::new("PATCH", &tags, Some(patch)),
        Call::new("PUT", &tags, Some(json!({"tags": ["here"]}))),
        Call::new("POST", BATCH, Some(item)),
    ]
}

/// What a client compares: everything but the mark of a repetition, positions and the trace.
fn outcome(answer: &Answer) -> Value {
    let mut body = answer.json();
    let item = if body["results"].is_array() { &mut body["results"][0] } else { &mut body };
    for name in ["repeated", "receipt", "trace_id", "instance"] {
        item.as_object_mut().expect("an object").remove(name);
    }
    if let Some(problem) = item["problem"].as_object_mut() {
        problem.remove("trace_id");
    }
    json!({"status": answer.status.as_u16(), "body": body})
}

async fn tags(fixture: &Fixture, id: &str) -> (Value, Value) {
    let view = fixture.get(&format!("/v1/content/t/{id}/tags")).send().await.ok();
    (view["version"].clone(), view["tags"].clone())
}

/// Sends a call with a key, lets `later` change the content, and sends it again, twice.
async fn first_answer_again(fixture: &Fixture, id: &str, call: &Call, key: &str, later: &Call) {
    let first = call.send(fixture, Some(key)).await;
    later.send(fixture, None).await.ok();
    let before = tags(fixture, id).await;
    for _ in 0..2 {
        let again = call.send(fixture, Some(key)).await;
        assert_eq!(outcome(&again), outcome(&first), "{call:?} on {id}");
    }
    assert_eq!(tags(fixture, id).await, before, "{call:?} on {id}: a retry does nothing");
}

#[tokio::test]
async fn every_call_answers_every_outcome_again() {
    let fixture = fixture();
    let sibling = fixture.tag("t/sibling", "x").await.ok()["version"].clone();
    let sibling = sibling.as_str().expect("a version").to_owned();
    for n in 0..calls("").len() {
        let undo = |id: &str| {
            let body = json!({"add": ["urgent", "gone"], "remove": ["here"]});
            Call::new("PATCH", &format!("/v1/content/t/{id}/tags"), Some(body))
        };
        // The call changes something.
        let id = format!("changed-{n}");
        fixture.tag(&format!("t/{id}"), "gone").await.ok();
        first_answer_again(&fixture, &id, &calls(&id)[n], &id, &undo(&id)).await;

        // It changes nothing.
        let id = format!("unchanged-{n}");
        fixture.tag(&format!("t/{id}"), "gone").await.ok();
        calls(&id)[3].send(&fixture, None).await.ok();
        first_answer_again(&fixture, &id, &calls(&id)[n], &id, &undo(&id)).await;

        // The content does not exist yet.
        let id = format!("empty-{n}");
        first_answer_again(&fixture, &id, &calls(&id)[n], &id, &undo(&id)).await;

        if calls("")[n].uri == BATCH {
            continue;
        }
        // `If-Match` names the version that the content has after the next write.
        let id = format!("mismatch-{n}");
        let mut call = calls(&id)[n].clone();
        call.if_match = Some(sibling.clone());
        assert_eq!(call.send(&fixture, None).await.status, 412, "{call:?}");
        let key = format!("mismatch-{n}");
        first_answer_again(&fixture, &id, &call, &key, &undo(&id)).await;
    }
}

#[tokio::test]
async fn a_refused_add_stays_refused_when_there_is_room_later() {
    let fixture = fixture();
    let full: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
    for n in [0, 2, 4] {
        let id = format!("full-{n}");
        let uri = format!("/v1/content/t/{id}/tags");
        Call::new("PUT", &uri, Some(json!({"tags": full}))).send(&fixture, None).await.ok();
        let room = Call::new("PATCH", &uri, Some(json!({"remove": ["t1", "t2"]})));
        first_answer_again(&fixture, &id, &calls(&id)[n], &id, &room).await;
        let answer = calls(&id)[n].send(&fixture, Some(&format!("new-{n}"))).await.json();
        let item = if answer["results"].is_array() { &answer["results"][0] } else { &answer };
        assert_eq!(item["added"], json!(["here"]), "a new key is a new write: {answer}");
    }
}

#[tokio::test]
async fn a_key_belongs_to_its_call_and_contents() {
    let fixture = fixture();
    for (n, first) in calls("one").iter().enumerate() {
        let key = format!("k{n}");
        first.send(&fixture, Some(&key)).await.ok();
        for other in calls("one")
            .iter()
            .chain(&calls("two"))
            .filter(|c| c.uri != first.uri || c.method != first.method || c.body != first.body)
        {
            other.send(&fixture, Some(&key)).await.problem("idempotency_key_reused");
        }
        let again = first.send(&fixture, Some(&key)).await.json();
        let item = if again["results"].is_array() { &again["results"][0] } else { &again };
        assert_eq!(item["repeated"], true, "{again}");
    }
    assert_eq!(tags(&fixture, "two").await.0, "0", "no refused request did anything");

    // Another tag, another condition and another set on the same content: the store knows.
    let put = |body| Call::new("PUT", TAGS, Some(body));
    put(json!({"tags": ["a", "b"]})).send(&fixture, Some("set")).await.ok();
    put(json!({"tags": ["a"]})).send(&fixture, Some("set")).await.problem("idempotency_key_reused");
    let mut conditional = put(json!({"tags": ["a", "b"]}));
    conditional.if_match = Some("7".to_owned());
    conditional.send(&fixture, Some("set")).await.problem("idempotency_key_reused");
    // The same set in another order and spelling is the same request.
    for same in [json!(["b", "a"]), json!(["B", " A ", "b"])] {
        let again = put(json!({"tags": same})).send(&fixture, Some("set")).await.ok();
        assert_eq!(again["repeated"], true);
    }
}

/// What one process bound, a different one over the same store knows, and one that is started
/// later: every call, on every content, also as an item of a batch.
#[tokio::test]
async fn a_key_is_known_to_every_process_of_the_store() {
    let first = fixture();
    let process = || {
        build(AuthConfig::None, ApiLimits::default(), |services| {
            services.store = first.store.reopen();
        })
    };
    let second = process();
    for (n, call) in calls("one").iter().enumerate() {
        call.send(&first, Some(&format!("k{n}"))).await.ok();
    }
    for (when, process) in [("a second process", second), ("a later process", process())] {
        for (n, first) in calls("one").iter().enumerate() {
            let key = format!("k{n}");
            let others = calls("one")
                .into_iter()
                .chain(calls("two"))
                .filter(|c| c.uri != first.uri || c.method != first.method || c.body != first.body);
            for other in others {
                other.send(&process, Some(&key)).await.problem("idempotency_key_reused");
            }
            let again = first.send(&process, Some(&key)).await.json();
            let item = if again["results"].is_array() { &again["results"][0] } else { &again };
            assert_eq!(item["repeated"], true, "{when}: {again}");
        }
        assert_eq!(tags(&process, "two").await.0, "0", "{when}: no refused request did anything");
    }
}

#[tokio::test]
async fn a_batch_is_one_request() {
    let fixture = fixture();
    let batch = |ids: &[&str]| {
        let items: Vec<Value> =
            ids.iter().map(|id| json!({"type": "t", "id": id, "add": ["x"]})).collect();
        Call::new("POST", BATCH, Some(json!({"items": items})))
    };
    batch(&["1", "2"]).send(&fixture, Some("load")).await.ok();
    for other in [&["1"][..], &["1", "2", "3"], &["1", "3"], &["1", "2", "2"]] {
        batch(other).send(&fixture, Some("load")).await.problem("idempotency_key_reused");
    }
    assert_eq!(tags(&fixture, "3").await.0, "0");
    for again in [["1", "2"], ["2", "1"]] {
        let results = batch(&again).send(&fixture, Some("load")).await.ok()["results"].clone();
        assert_eq!(
            (&results[0]["repeated"], &results[1]["repeated"]),
            (&json!(true), &json!(true))
        );
    }
}

/// Whatever request brings a key to a content, the store sees the same id: it refuses a reuse that
/// this process does not remember.
#[tokio::test]
async fn a_key_is_one_id_on_each_content() {
    let mut ids = Vec::new();
    for call in calls("one") {
        let fixture = fixture();
        call.send(&fixture, Some("k")).await.ok();
        ids.push(fixture.store.faults().last_write().expect("a write").write.id);
    }
    let fixture = fixture();
    let items = json!({"items": [
        {"type": "t", "id": "two", "add": ["x"]}, {"type": "t", "id": "one", "add": ["x"]},
    ]});
    Call::new("POST", BATCH, Some(items)).send(&fixture, Some("k")).await.ok();
    ids.push(fixture.store.faults().last_write().expect("a write").write.id);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn an_invalid_request_does_not_use_up_its_key() {
    let fixture = fixture();
    let bad = json!({"tags": ["a,b"]});
    let answer = Call::new("PUT", TAGS, Some(bad)).send(&fixture, Some("k")).await;
    assert!(answer.status.is_client_error());
    // What only new data must not have: a control of the direction of text, a segment of dots.
    for (id, code) in [("%E2%80%AEx", "forbidden_character"), ("%2E%2E", "dot_segment")] {
        let path = format!("/v1/content/t/{id}/tags/x");
        let answer = fixture.request("PUT", &path).header("idempotency-key", "k").send().await;
        answer.problem(code);
    }
    fixture
        .request("PUT", "/v1/content/t/1/tags/x")
        .header("idempotency-key", "k")
        .send()
        .await
        .ok();
}
