//! What an operator may do to the index: each state pauses the indexer, is named within five
//! seconds, and is over by itself, by hand or by a rebuild. Nothing is parked, nothing is lost, and
//! no search pretends that all is well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tagfast_domain::TenantId;
use tagfast_events::{RecordVerdict, Sink, SinkRecord};
use tagfast_resilience::ErrorChain;
use tagfast_search::conformance::{NOW, event, request};
use tagfast_search::{SearchEffect, SearchError, SearchIndex};
use tagfast_search_opensearch::{OpenSearchIndex, ReindexError};
use tagfast_testkit::wait_for_condition_async;

use crate::support::{Engine, NAMED_WITHIN, TEST_TIMEOUT, delete_shards, must, send};

/// Contents before and during the state.
const BEFORE: u32 = 5;
const DURING: u32 = 20;

/// One index under test, for the requests of faults and healings.
pub(crate) struct Place {
    alias: String,
    /// Index that was served at first.
    index: String,
    /// Its definition, as the server gives it.
    definition: Value,
}

impl Place {
    async fn of(engine: &Engine) -> Self {
        let alias = engine.options.alias.clone();
        let all = must("GET", &alias, None).await;
        let (index, definition) =
            all.as_object().and_then(|all| all.iter().next()).expect("one index");
        Self { alias, index: index.clone(), definition: definition.clone() }
    }

    fn theirs(&self) -> String {
        format!("{}-theirs", self.alias)
    }

    async fn actions(&self, actions: Value) {
        must("POST", "_aliases", Some(json!({"actions": actions}))).await;
    }

    async fn set(&self, settings: Value) {
        must("PUT", &format!("{}/_settings", self.index), Some(settings)).await;
    }

    async fn map(&self, mapping: Value) {
        must("PUT", &format!("{}/_mapping", self.index), Some(mapping)).await;
    }

    async fn delete(&self) {
        must("DELETE", &self.index, None).await;
    }

    /// Makes an index of a different owner, which the alias may lead to.
    async fn make_theirs(&self, alias: Value) {
        let aliases = if alias.is_null() { json!({}) } else { json!({&self.alias: alias}) };
        must("PUT", &self.theirs(), Some(json!({"aliases": aliases}))).await;
        must("PUT", &format!("{}/_doc/1", self.theirs()), Some(json!({"their": "document"}))).await;
    }
}

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Deleted,
    EverythingDeleted,
    AliasRemoved,
    AliasOnTwo,
    AliasOnTwoTheirsForWrites,
    AliasOnTheirs,
    NameTaken,
    Closed,
    Block(&'static str),
    Red,
    ForcedEmptyShard,
    DynamicMapping,
    ChangedField,
    Pipeline,
    RecreatedWithItsMapping,
    RecreatedWithoutMapping,
    Emptied,
    OlderFormat,
    NewerFormat,
}

/// What ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heal {
    Itself,
    ByHand,
    Reindex,
}

impl Fault {
    async fn make(self, at: &Place) {
        let (alias, index) = (&at.alias, &at.index);
        match self {
            Self::Deleted => at.delete().await,
            Self::EverythingDeleted => {
                at.delete().await;
                must("DELETE", &format!("{alias}-lock"), None).await;
            }
            Self::AliasRemoved => {
                at.actions(json!([{"remove": {"index": index, "alias": alias}}])).await;
            }
            Self::AliasOnTwo => at.make_theirs(json!({})).await,
            Self::AliasOnTwoTheirsForWrites => {
                at.make_theirs(json!({"is_write_index": true})).await;
            }
            Self::AliasOnTheirs => {
                at.make_theirs(Value::Null).await;
                at.actions(json!([
                    {"remove": {"index": index, "alias": alias}},
                    {"add": {"index": at.theirs(), "alias": alias}},
                ]))
                .await;
            }
            Self::NameTaken => {
                at.delete().await;
                must("PUT", alias, None).await;
            }
            Self::Closed => drop(must("POST", &format!("{index}/_close"), None).await),
            Self::Block(block) => at.set(json!({format!("index.blocks.{block}"): true})).await,
            Self::Red => delete_shards(index).await,
            Self::ForcedEmptyShard => {
                delete_shards(index).await;
                let nodes = must("GET", "_nodes/_local/none", None).await;
                let node = nodes["nodes"].as_object().and_then(|all| all.keys().next().cloned());
                let command = |shard: u32| {
                    json!({"allocate_empty_primary": {
                        "index": index, "shard": shard, "node": node, "accept_data_loss": true,
                    }})
                };
                let commands = json!({"commands": [command(0), command(1)]});
                // The server first finds out that the shards are gone.
                wait_for_condition_async("the shards are forced", TEST_TIMEOUT, || async {
                    let forced = send("POST", "_cluster/reroute", Some(commands.clone())).await;
                    if forced.0 == 200 { Ok(()) } else { Err(forced.1.to_string()) }
                })
                .await;
            }
            Self::DynamicMapping => at.map(json!({"dynamic": "true"})).await,
            Self::ChangedField => {
                let tags = json!({"type": "keyword", "ignore_above": 1});
                at.map(json!({"properties": {"tags": tags}})).await;
            }
            Self::Pipeline => at.set(json!({"index.default_pipeline": "not-there"})).await,
            Self::RecreatedWithItsMapping => {
                at.delete().await;
                let copy = json!({
                    "mappings": at.definition["mappings"], "aliases": at.definition["aliases"],
                    "settings": {"number_of_shards": 2},
                });
                must("PUT", index, Some(copy)).await;
            }
            Self::RecreatedWithoutMapping => {
                at.delete().await;
                must("PUT", index, Some(json!({"aliases": {alias: {}}}))).await;
            }
            Self::Emptied => {
                let all = must("GET", &format!("{index}/_search?size=1000"), None).await;
                let hits = all["hits"]["hits"].as_array().expect("hits");
                assert!(hits.len() as u32 > BEFORE, "the canary as well: {all}");
                let delete = |hit: &Value| json!({"delete": {"_id": hit["_id"]}});
                let lines: Vec<Value> = hits.iter().map(delete).collect();
                must("POST", &format!("{index}/_bulk?refresh=true"), Some(lines.into())).await;
            }
            Self::OlderFormat => at.map(json!({"_meta": {"tagfast": {"format": 1}}})).await,
            Self::NewerFormat => at.map(json!({"_meta": {"tagfast": {"format": 99}}})).await,
        }
    }

    /// Words for it, one of which must be shown.
    fn codes(self) -> &'static [&'static str] {
        match self {
            Self::Deleted | Self::EverythingDeleted => &["missing"],
            Self::AliasRemoved => &["alias_missing"],
            Self::AliasOnTwo | Self::AliasOnTwoTheirsForWrites => &["alias_ambiguous"],
            Self::AliasOnTheirs => &["foreign"],
            Self::NameTaken => &["name_taken"],
            Self::Closed => &["closed"],
            Self::Block("metadata") => &["forbidden"],
            Self::Block(_) => &["blocked"],
            Self::Red => &["red"],
            Self::ForcedEmptyShard => &["history"],
            Self::DynamicMapping | Self::ChangedField | Self::Pipeline => &["altered"],
            Self::RecreatedWithItsMapping | Self::RecreatedWithoutMapping => &["recreated"],
            Self::Emptied => &["emptied"],
            Self::OlderFormat => &["older_format"],
            Self::NewerFormat => &["newer_format"],
        }
    }

    async fn undo(self, at: &Place) {
        let (alias, index) = (&at.alias, &at.index);
        match self {
            Self::AliasOnTwo | Self::AliasOnTwoTheirsForWrites => {
                at.actions(json!([{"remove": {"index": at.theirs(), "alias": alias}}])).await;
            }
            Self::AliasOnTheirs => {
                at.actions(json!([
                    {"remove": {"index": at.theirs(), "alias": alias}},
                    {"add": {"index": index, "alias": alias}},
                ]))
                .await;
            }
            Self::NameTaken => drop(must("DELETE", alias, None).await),
            Self::Closed => drop(must("POST", &format!("{index}/_open"), None).await),
            Self::Block(block) => at.set(json!({format!("index.blocks.{block}"): null})).await,
            Self::NewerFormat => {
                at.map(json!({"_meta": at.definition["mappings"]["_meta"]})).await;
            }
            Self::Deleted
            | Self::EverythingDeleted
            | Self::AliasRemoved
            | Self::Red
            | Self::ForcedEmptyShard
            | Self::DynamicMapping
            | Self::ChangedField
            | Self::Pipeline
            | Self::RecreatedWithItsMapping
            | Self::RecreatedWithoutMapping
            | Self::Emptied
            | Self::OlderFormat => panic!("{self:?} is not undone"),
        }
    }

    /// Whether OpenSearch takes writes all the same: until the next check, the indexer writes.
    fn takes_writes(self) -> bool {
        matches!(self, Self::NewerFormat | Self::Block("read" | "metadata"))
    }

    fn leaves_theirs(self) -> bool {
        matches!(self, Self::AliasOnTwo | Self::AliasOnTwoTheirsForWrites | Self::AliasOnTheirs)
    }
}

fn acme() -> TenantId {
    TenantId::parse("acme").expect("a tenant")
}

/// Applies records as the consumer runtime does: again and again while the sink fails.
async fn consume(index: Arc<OpenSearchIndex>, records: Vec<SinkRecord>) -> Vec<RecordVerdict> {
    loop {
        match index.apply(&records).await {
            Ok(verdicts) => return verdicts,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn records(engine: &Engine, ids: std::ops::Range<u32>) -> Vec<SinkRecord> {
    let events: Vec<_> = ids.map(|n| event("acme", "t", &format!("{n}"), 1, NOW, &["x"])).collect();
    events.iter().for_each(|event| engine.shards.store_event(event));
    engine.records(&events)
}

async fn through(fault: Fault, heal: Heal) {
    let engine = Engine::new().await;
    let keeper = engine.index.keep();
    engine.index.apply(&records(&engine, 0..BEFORE)).await.expect("applied");
    engine.until_visible().await;
    let at = Place::of(&engine).await;
    fault.make(&at).await;

    let during = records(&engine, BEFORE..BEFORE + DURING);
    let consumer = tokio::spawn(consume(Arc::clone(&engine.index), during));
    let is_over_by_itself = heal == Heal::Itself;
    let answers = AtomicBool::new(false);
    wait_for_condition_async("the problem is named", NAMED_WITHIN, || async {
        let problem = engine.index.problem().ok_or("no problem")?;
        answers.store(problem.searches == SearchEffect::Answered, Ordering::SeqCst);
        if fault.codes().contains(&problem.code) { Ok(()) } else { Err(problem.full_text()) }
    })
    .await;
    let is_answered = answers.load(Ordering::SeqCst);
    let answered = engine.index.search(&acme(), &request("x")).await;
    let counted = engine.index.documents().await;
    match (&answered, &counted, is_answered) {
        // The index is read-only, and its answers are those of before.
        (Ok(page), Ok(_), true) => assert_eq!(page.hits.len() as u32, BEFORE),
        (Err(SearchError::Unusable(_)), Err(SearchError::Unusable(_)), _) => {}
        // It was rebuilt meanwhile, from shards that have everything.
        (Ok(page), _, _) if is_over_by_itself => {
            assert_eq!(page.hits.len() as u32, BEFORE + DURING);
        }
        (Err(SearchError::Unusable(_)), _, _) if is_over_by_itself => {}
        (Err(SearchError::Unavailable(_)), _, _) => {}
        other => panic!("{fault:?}: {other:?}"),
    }
    match heal {
        Heal::Itself => {}
        Heal::ByHand => {
            assert!(
                fault.takes_writes() || !consumer.is_finished(),
                "{fault:?}: the indexer waits"
            );
            fault.undo(&at).await;
        }
        Heal::Reindex => {
            assert!(
                fault.takes_writes() || !consumer.is_finished(),
                "{fault:?}: the indexer waits"
            );
            let copied = engine.index.reindex().await;
            let copied = copied.unwrap_or_else(|e| panic!("{fault:?}: {}", ErrorChain(&e)));
            assert_eq!(copied, u64::from(BEFORE + DURING));
        }
    }
    let verdicts = tokio::time::timeout(TEST_TIMEOUT, consumer).await;
    let verdicts = verdicts.unwrap_or_else(|_| {
        panic!("{fault:?}, {heal:?} is not over: {:?}", engine.index.problem())
    });
    for verdict in verdicts.expect("no panic") {
        let is_done = matches!(verdict, RecordVerdict::Applied | RecordVerdict::Superseded);
        assert!(is_done, "{fault:?}: {verdict:?}");
    }
    engine.until_visible().await;
    let page = engine.index.search(&acme(), &request("x")).await.expect("answered");
    assert_eq!(page.hits.len() as u32, BEFORE + DURING, "{fault:?}");
    assert_eq!(engine.index.check().await, None);
    if fault.leaves_theirs() {
        let theirs = must("GET", &format!("{}/_doc/1", at.theirs()), None).await;
        assert_eq!(theirs["_source"]["their"], "document", "a foreign index is never deleted");
    }
    keeper.stop().await;
}

macro_rules! states {
    ($(fn $test:ident() => $fault:expr, [$($heal:ident),+];)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                // Each state with one way out; with `full`, with all of them.
                let ways = if cfg!(feature = "full") { usize::MAX } else { 1 };
                for heal in [$(Heal::$heal),+].into_iter().take(ways) {
                    through($fault, heal).await;
                }
            }
        )*
    };
}

states! {
    fn the_index_is_deleted() => Fault::Deleted, [Itself];
    fn the_index_and_the_lock_are_deleted() => Fault::EverythingDeleted, [Itself];
    fn the_alias_is_removed() => Fault::AliasRemoved, [Itself];
    fn the_alias_leads_to_two_indices() => Fault::AliasOnTwo, [ByHand, Reindex];
    fn the_alias_leads_to_two_and_writes_to_theirs()
        => Fault::AliasOnTwoTheirsForWrites, [ByHand, Reindex];
    fn the_alias_leads_to_a_foreign_index() => Fault::AliasOnTheirs, [ByHand, Reindex];
    fn an_index_has_the_alias_name() => Fault::NameTaken, [ByHand];
    fn the_index_is_closed() => Fault::Closed, [ByHand, Reindex];
    fn the_index_is_blocked_for_writes() => Fault::Block("write"), [ByHand, Reindex];
    fn the_index_is_read_only() => Fault::Block("read_only"), [ByHand, Reindex];
    fn the_disk_is_full() => Fault::Block("read_only_allow_delete"), [ByHand, Reindex];
    fn the_index_is_blocked_for_reads() => Fault::Block("read"), [ByHand, Reindex];
    fn the_metadata_is_blocked() => Fault::Block("metadata"), [ByHand];
    fn the_index_is_red() => Fault::Red, [Reindex];
    fn a_shard_is_forced_to_be_empty() => Fault::ForcedEmptyShard, [Itself];
    fn the_mapping_becomes_dynamic() => Fault::DynamicMapping, [Itself];
    fn a_field_is_changed() => Fault::ChangedField, [Itself];
    fn a_pipeline_is_set() => Fault::Pipeline, [Itself];
    fn the_index_is_created_again_with_its_mapping() => Fault::RecreatedWithItsMapping, [Itself];
    fn the_index_is_created_again_without_mapping() => Fault::RecreatedWithoutMapping, [Itself];
    fn the_index_is_emptied() => Fault::Emptied, [Itself];
    fn the_format_is_older() => Fault::OlderFormat, [Itself];
    fn the_format_is_newer() => Fault::NewerFormat, [ByHand];
}

/// A consumer that waits for its partitions is not held up: it is told to rebuild when it has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_without_partitions_does_not_wait_for_the_index() {
    let engine = Engine::new().await;
    Place::of(&engine).await.delete().await;
    let none = tagfast_events::Positions::new();
    assert_eq!(engine.index.advance(&none).await.expect("nothing to do"), none);
    let started = engine.index.start(crate::support::EPOCH, &[]).await.expect("it starts");
    assert_eq!(started, tagfast_events::Start::Rebuild("there is no index yet"));
}

/// A rebuild that cannot help says so at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_cannot_help_says_why() {
    for (fault, cause) in [
        (Fault::NameTaken, "is an index, not the alias"),
        (Fault::NewerFormat, "too new"),
        (Fault::Block("metadata"), "403"),
    ] {
        let engine = Engine::new().await;
        let at = Place::of(&engine).await;
        fault.make(&at).await;
        let asked = tokio::time::timeout(NAMED_WITHIN, engine.index.reindex()).await;
        match asked.expect("an answer") {
            Err(ReindexError::Impossible(why)) => assert!(why.contains(cause), "{why}"),
            other => panic!("{fault:?}: {other:?}"),
        }
        fault.undo(&at).await;
    }
}

/// A lock that a different process holds, or that cannot be had, is named; the rebuild does not
/// wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_cannot_be_had_is_named() {
    let engine = Engine::new().await;
    let lock = format!("{}-lock", engine.options.alias);
    let held = json!({"owner": "another", "until": NOW + 3_600_000});
    must("PUT", &format!("{lock}/_doc/rebuild?refresh=true"), Some(held)).await;
    let chain = async || {
        let asked = tokio::time::timeout(NAMED_WITHIN, engine.index.reindex()).await;
        ErrorChain(&asked.expect("an answer").expect_err("no lock")).to_string()
    };
    let held = chain().await;
    assert!(held.contains("another process rebuilds the index"), "{held}");
    must("POST", &format!("{lock}/_close"), None).await;
    let closed = chain().await;
    assert!(closed.contains("may be deleted") && closed.contains("closed"), "{closed}");
    // As the message says.
    must("DELETE", &lock, None).await;
    engine.index.reindex().await.expect("rebuilt");
}

/// What is behind the `-next` alias stops neither the indexer nor a rebuild, and what is not ours
/// stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_behind_the_next_alias_stops_nothing() {
    for left in ["theirs", "ours", "ours, closed", "ours, read-only", "both"] {
        let engine = Engine::new().await;
        let at = Place::of(&engine).await;
        let next = format!("{}-next", at.alias);
        let ours = format!("{}-v7", at.alias);
        if left != "theirs" {
            let mut mappings = at.definition["mappings"].clone();
            mappings["_meta"] = json!({"tagfast": {"format": 2}});
            let ours_too = json!({"mappings": mappings, "aliases": {&next: {}}});
            must("PUT", &ours, Some(ours_too)).await;
        }
        if left == "theirs" || left == "both" {
            at.make_theirs(Value::Null).await;
            at.actions(json!([{"add": {"index": at.theirs(), "alias": next}}])).await;
        }
        if left == "ours, closed" {
            must("POST", &format!("{ours}/_close"), None).await;
        }
        if left == "ours, read-only" {
            let block = json!({"index.blocks.write": true});
            must("PUT", &format!("{ours}/_settings"), Some(block)).await;
        }
        engine.index.apply(&records(&engine, 0..BEFORE)).await.expect(left);
        assert_eq!(engine.index.reindex().await.expect(left), u64::from(BEFORE));
        let page = engine.index.search(&acme(), &request("x")).await.expect("answered");
        assert_eq!(page.hits.len() as u32, BEFORE, "{left}");
        let (known, _) = send("HEAD", &ours, None).await;
        assert_eq!(known, 404, "{left}: what an interrupted rebuild left is deleted");
        if left == "theirs" || left == "both" {
            must("GET", &format!("{}/_doc/1", at.theirs()), None).await;
        }
    }
}
