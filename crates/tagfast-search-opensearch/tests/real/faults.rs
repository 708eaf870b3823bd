//! A server that is away, frozen or broken, and documents that it refuses.

use std::time::{Duration, Instant};

use tagfast_domain::{TaggingsEvent, TenantId};
use tagfast_events::{RecordVerdict, Sink};
use tagfast_search::conformance::{NOW, event, request};
use tagfast_search::{SearchError, SearchIndex};
use tagfast_testkit::stack::Fault;
use tagfast_testkit::wait_for_condition_async;

use crate::support::{self, Engine, TEST_TIMEOUT};

async fn fault(fault: Fault) {
    tokio::task::spawn_blocking(move || support::stack().fault(fault, "opensearch"))
        .await
        .expect("no panic")
        .expect("the fault");
}

fn acme() -> TenantId {
    TenantId::parse("acme").expect("a tenant")
}

async fn search(engine: &Engine) -> Result<usize, SearchError> {
    engine.index.search(&acme(), &request("x")).await.map(|page| page.hits.len())
}

/// While the server is away, searches and batches fail; when it is back, both work.
async fn through(breaking: &[Fault], healing: &[Fault]) {
    let _alone = support::SERVER.write().await;
    let engine = Engine::unprotected().await;
    let before = engine.records(&[event("acme", "t", "1", 1, NOW, &["x"])]);
    engine.index.apply(&before).await.expect("applied");
    engine.until_visible().await;
    assert_eq!(search(&engine).await.expect("answered"), 1);
    for breaking in breaking {
        fault(*breaking).await;
    }
    let started = Instant::now();
    let refused = search(&engine).await;
    assert!(matches!(refused, Err(SearchError::Unavailable(_))), "{refused:?}");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    let records = engine.records(&[event("acme", "t", "2", 1, NOW, &["x"])]);
    let applied = tokio::time::timeout(Duration::from_secs(40), engine.index.apply(&records)).await;
    let error =
        applied.expect("a batch has a timeout").expect_err("the sink is to blame, no record");
    assert_eq!(error.code, "search_index");
    for healing in healing {
        fault(*healing).await;
    }
    wait_for_condition_async("it works again", Duration::from_secs(90), || async {
        engine.index.apply(&records).await.map_err(|e| e.to_string())
    })
    .await;
    engine.until_visible().await;
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

/// A document that the server refuses does not cost its neighbours an attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_poison_record_does_not_affect_its_neighbours() {
    let engine = Engine::new().await;
    let mut events: Vec<TaggingsEvent> =
        (0..499).map(|n| event("acme", "t", &format!("{n}"), 1, NOW, &["x"])).collect();
    // Lucene refuses a term of more than 32,766 bytes; the domain never accepts such a tag.
    let mut poison = event("acme", "t", "poison", 1, NOW, &["x"]);
    poison.tags[0].name = tagfast_domain::TagName::from_canonical(&"x".repeat(40_000));
    events.insert(250, poison);
    let started = Instant::now();
    let verdicts = engine.index.apply(&engine.records(&events)).await.expect("the sink works");
    assert!(started.elapsed() < TEST_TIMEOUT);
    let refused: Vec<usize> =
        (0..verdicts.len()).filter(|n| verdicts[*n] != RecordVerdict::Applied).collect();
    assert_eq!(refused, [250]);
    assert!(
        matches!(&verdicts[250], RecordVerdict::Poison { code: "index_refused", .. }),
        "{:?}",
        verdicts[250]
    );
    engine.until_visible().await;
    assert_eq!(engine.index.documents().await.expect("a count"), 499);
}
