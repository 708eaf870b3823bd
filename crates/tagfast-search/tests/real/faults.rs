//! A server that is away, slow or full of trouble; documents it refuses.

use std::time::{Duration, Instant};

use tagfast_domain::{TaggingsEvent, TenantId};
use tagfast_events::{RecordVerdict, Sink};
use tagfast_search::conformance::{NOW, event, request};
use tagfast_search::{SearchError, SearchIndex};
use tagfast_testkit::stack::Fault;
use tagfast_testkit::wait_for_condition_async;

use crate::kit::{self, Engine, PATIENCE};

async fn fault(fault: Fault) {
    tokio::task::spawn_blocking(move || kit::stack().fault(fault, "opensearch"))
        .await
        .expect("no panic")
        .expect("the fault");
}

/// Asks the server something that only a test asks.
async fn ask(method: reqwest::Method, path: &str, body: Option<&str>) -> reqwest::Response {
    let mut request =
        reqwest::Client::new().request(method, format!("{}/{path}", kit::url().await));
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_owned());
    }
    request.send().await.expect("an answer")
}

fn acme() -> TenantId {
    TenantId::parse("acme").expect("a tenant")
}

async fn search(engine: &Engine) -> Result<usize, SearchError> {
    engine.index.search(&acme(), &request("x")).await.map(|page| page.hits.len())
}

/// Neither a search nor a batch pretends while the server is away, and both work when it is back.
async fn through(breaking: &[Fault], healing: &[Fault]) {
    let _alone = kit::SERVER.write().await;
    let engine = Engine::unprotected().await;
    let before = engine.records(&[event("acme", "t", "1", 1, NOW, &["x"])]);
    engine.index.apply(&before).await.expect("applied");
    engine.shown().await;
    assert_eq!(search(&engine).await.expect("answered"), 1);
    for breaking in breaking {
        fault(*breaking).await;
    }
    let asked = Instant::now();
    let refused = search(&engine).await;
    assert!(matches!(refused, Err(SearchError::Unavailable(_))), "{refused:?}");
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    let records = engine.records(&[event("acme", "t", "2", 1, NOW, &["x"])]);
    let blamed = tokio::time::timeout(Duration::from_secs(40), engine.index.apply(&records)).await;
    let error =
        blamed.expect("a batch has a deadline").expect_err("the sink is to blame, no record");
    assert_eq!(error.code, "search_index");
    for healing in healing {
        fault(*healing).await;
    }
    wait_for_condition_async("it works again", Duration::from_secs(90), || async {
        engine.index.apply(&records).await.map_err(|e| e.to_string())
    })
    .await;
    engine.shown().await;
    assert_eq!(search(&engine).await.expect("answered"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_refuses_connections() {
    through(&[Fault::Refuse], &[Fault::Heal]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_stands_still() {
    through(&[Fault::Freeze], &[Fault::Thaw]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_killed_and_comes_back() {
    through(&[Fault::Freeze, Fault::Kill], &[Fault::Restart]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_answers_garbage() {
    through(&[Fault::Garbage], &[Fault::Heal]).await;
}

/// SE4: one document that the server refuses does not cost the others an attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn se4_one_poison_leaves_its_neighbours() {
    let engine = Engine::new().await;
    let mut events: Vec<TaggingsEvent> =
        (0..499).map(|n| event("acme", "t", &format!("{n}"), 1, NOW, &["x"])).collect();
    // Lucene refuses a term of more than 32,766 bytes: a tag that the domain would never let
    // through.
    let mut poison = event("acme", "t", "poison", 1, NOW, &["x"]);
    poison.tags[0].name = tagfast_domain::TagName::from_canonical(&"x".repeat(40_000));
    events.insert(250, poison);
    let started = Instant::now();
    let verdicts = engine.index.apply(&engine.records(&events)).await.expect("the sink works");
    assert!(started.elapsed() < PATIENCE);
    let refused: Vec<usize> =
        (0..verdicts.len()).filter(|n| verdicts[*n] != RecordVerdict::Applied).collect();
    assert_eq!(refused, [250]);
    assert!(
        matches!(&verdicts[250], RecordVerdict::Poison { code: "index_refused", .. }),
        "{:?}",
        verdicts[250]
    );
    engine.shown().await;
    assert_eq!(engine.index.documents().await.expect("a count"), 499);
}

/// An index that may not be written is nobody's fault but the server's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_index_is_systemic() {
    let engine = Engine::new().await;
    let path = format!("{}/_settings", engine.options.alias);
    let set = async |value: &str| {
        let body = format!(r#"{{"index.blocks.write": {value}}}"#);
        assert!(ask(reqwest::Method::PUT, &path, Some(&body)).await.status().is_success());
    };
    set("true").await;
    let records = engine.records(&[event("acme", "t", "1", 1, NOW, &["x"])]);
    engine.index.apply(&records).await.expect_err("the sink is to blame");
    set("null").await;
    assert_eq!(engine.index.apply(&records).await.expect("it works"), [RecordVerdict::Applied]);
}

/// What is not ours is refused, with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_index_is_refused() {
    let engine = Engine::new().await;
    let options = kit::options().await;
    let foreign = kit::open(
        &options,
        &engine.shards,
        &std::sync::Arc::new(tagfast_resilience::ManualClock::new(NOW)),
    );
    assert!(ask(reqwest::Method::PUT, &options.alias, Some("{}")).await.status().is_success());
    let refused = foreign.check().await.expect_err("an index in the alias's place").to_string();
    assert!(refused.contains("not our alias"), "{refused}");
    assert!(ask(reqwest::Method::DELETE, &options.alias, None).await.status().is_success());
    let named = format!("{}-theirs", options.alias);
    let newer = format!(
        r#"{{"aliases": {{"{}": {{}}}}, "mappings": {{"dynamic": "strict", "_meta": {{"tagfast": {{"format": 99}}}}}}}}"#,
        options.alias
    );
    assert!(ask(reqwest::Method::PUT, &named, Some(&newer)).await.status().is_success());
    let refused = foreign.check().await.expect_err("a newer format").to_string();
    assert!(refused.contains("format 99") && refused.contains("newer program"), "{refused}");
}
