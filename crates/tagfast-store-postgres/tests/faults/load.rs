//! Writers and readers that note everything they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tagfast_domain::{ContentKey, EpochId, Limits, Operation, Tag, UserId, Version, Write, WriteId};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{
    Consistency, ConsistencyToken, Durability, ReadOptions, StoreError, TagReader, TagWriter, WriteRequest,
};
use tagfast_store_postgres::PostgresStore;

/// An acknowledged write.
#[derive(Debug, Clone)]
pub(crate) struct Acknowledged {
    pub(crate) at: Instant,
    pub(crate) epoch: EpochId,
    pub(crate) key: ContentKey,
    pub(crate) tag: String,
    pub(crate) version: Version,
}

/// Everything the clients of one cluster were told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) acknowledged: Vec<Acknowledged>,
    pub(crate) refused: Vec<(Instant, String, bool)>,
    /// Reads: when, how long, whether they were marked.
    pub(crate) reads: Vec<(Instant, Duration, bool)>,
    pub(crate) failed_reads: Vec<String>,
    /// Reads that did not show what their token covers and did not say so.
    pub(crate) went_back: Vec<String>,
}

/// Clients at work.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    told: [Arc<Mutex<Told>>; 2],
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

fn request(key: &ContentKey, tag: &str, id: WriteId) -> WriteRequest {
    let add = vec![Tag::parse(tag).expect("a tag")];
    let operation = Operation::patch(add, Vec::new(), &Limits::default()).expect("a patch");
    let write = Write { id, key: key.clone(), user: UserId::parse("load").expect("a user"), operation, if_match: None };
    WriteRequest { write, fresh: false, durability: Durability::Local, deadline: None, traceparent: None }
}

/// A content of the wanted cluster: two clusters share the shards in halves.
fn content(cluster: usize, name: &str) -> ContentKey {
    (0..)
        .map(|n| ContentKey::parse("load", "doc", &format!("{name}-{n}")).expect("a content"))
        .find(|key| usize::from(LogicalShard::of(key).number()) / 32 == cluster)
        .expect("half of all are")
}

impl Load {
    /// `clients` writers and readers for each cluster and store. `run` names contents, so that runs do not meet.
    pub(crate) fn start(stores: &[Arc<PostgresStore>], run: &str, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = [Arc::default(), Arc::default()];
        let mut tasks = Vec::new();
        for (s, store) in stores.iter().enumerate() {
            for (cluster, told) in told.iter().enumerate() {
                for client in 0..clients {
                    let name = format!("{run}-{s}-{cluster}-{client}");
                    tasks.push(tokio::spawn(work(
                        Arc::clone(store),
                        Arc::clone(&stop),
                        Arc::clone(told),
                        cluster,
                        name,
                    )));
                }
            }
        }
        Self { stop, told, tasks }
    }

    /// Waits until a cluster acknowledged something that was asked for after `since`.
    pub(crate) async fn acknowledged_after(&self, cluster: usize, since: Instant, within: Duration) -> Duration {
        tagfast_testkit::wait_for_condition_async("an acknowledgement", within, || async {
            let told = self.told[cluster].lock().expect("no panic under the lock");
            told.acknowledged.last().filter(|a| a.at > since).map(|a| a.at - since).ok_or("none yet")
        })
        .await
    }

    /// Ends the clients; what they were told, by cluster.
    pub(crate) async fn stop(self) -> [Told; 2] {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("no client panics");
        }
        self.told.map(|told| std::mem::take(&mut *told.lock().expect("no panic under the lock")))
    }
}

async fn work(store: Arc<PostgresStore>, stop: Arc<AtomicBool>, told: Arc<Mutex<Told>>, cluster: usize, name: String) {
    let mut token = ConsistencyToken::default();
    let mut round: u64 = 0;
    let mut key = content(cluster, &name);
    while !stop.load(Ordering::SeqCst) {
        if round.is_multiple_of(80) {
            key = content(cluster, &format!("{name}-{round}"));
        }
        let tag = format!("t{}", round % 80);
        let id = WriteId((u128::from(ContentHash::of(&key).0) << 64 | u128::from(round)).to_be_bytes());
        round += 1;
        // As a client does: what is unknown or refused for now is asked again with the same id.
        loop {
            match store.write(request(&key, &tag, id)).await {
                Ok(answer) => {
                    token.see(ContentHash::of(&key), answer.version, answer.receipt.position);
                    let epoch = answer.receipt.position.epoch;
                    let noted = Acknowledged {
                        at: Instant::now(),
                        epoch,
                        key: key.clone(),
                        tag: tag.clone(),
                        version: answer.version,
                    };
                    told.lock().expect("no panic under the lock").acknowledged.push(noted);
                    break;
                }
                Err(error) => {
                    let again = error.is_retryable() && !matches!(error, StoreError::Refused(_));
                    let noted = (Instant::now(), error.to_string(), again);
                    told.lock().expect("no panic under the lock").refused.push(noted);
                    if !again || stop.load(Ordering::SeqCst) {
                        break;
                    }
                }
            }
        }
        let options = ReadOptions { consistency: Consistency::Session, token: Some(&token), deadline: None };
        let began = Instant::now();
        let read = store.view(&key, &options).await;
        let mut told = told.lock().expect("no panic under the lock");
        match read {
            Err(error) => told.failed_reads.push(error.to_string()),
            Ok(view) => {
                told.reads.push((began, began.elapsed(), !view.degraded.is_empty()));
                let expected = token.version_of(ContentHash::of(&key)).unwrap_or(Version::NONE);
                if view.degraded.is_empty() && view.version < expected {
                    told.went_back.push(format!("{key}: {} after {expected} from {:?}", view.version, view.source));
                }
                token.see(ContentHash::of(&key), view.version, view.position);
            }
        }
    }
}

/// How many acknowledged writes are not there; checks versions on the way.
pub(crate) async fn lost(store: &PostgresStore, told: &Told) -> usize {
    let mut by_content: BTreeMap<Vec<u8>, (ContentKey, BTreeSet<&str>)> = BTreeMap::new();
    let mut versions: BTreeMap<Vec<u8>, Version> = BTreeMap::new();
    for write in &told.acknowledged {
        let bytes = write.key.to_bytes();
        by_content.entry(bytes.clone()).or_insert_with(|| (write.key.clone(), BTreeSet::new())).1.insert(&write.tag);
        let known = versions.entry(bytes).or_insert(write.version);
        assert!(write.version >= *known, "{}: version {} was told after {known}", write.key, write.version);
        *known = write.version;
    }
    let mut missing = 0;
    for (key, tags) in by_content.values() {
        let options = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
        let view = store.view(key, &options).await.expect("a strong read");
        let there: BTreeSet<&str> = view.tags.iter().map(|t| t.name.as_str()).collect();
        assert!(there.len() <= 100, "{key} has {} tags", there.len());
        missing += tags.difference(&there).count();
    }
    missing
}

/// Acknowledgements in an epoch after anybody was acknowledged in a later one.
pub(crate) fn acknowledged_by_replaced(told: &Told) -> usize {
    let mut order: Vec<&Acknowledged> = told.acknowledged.iter().collect();
    order.sort_by_key(|a| a.at);
    let mut first: Vec<EpochId> = Vec::new();
    let mut wrong = 0;
    for a in order {
        match first.iter().position(|e| *e == a.epoch) {
            None => first.push(a.epoch),
            Some(n) if n + 1 < first.len() => wrong += 1,
            Some(_) => {}
        }
    }
    wrong
}

/// The largest distance between two acknowledgements of a cluster that follow each other.
pub(crate) fn largest_gap(told: &Told) -> Duration {
    let mut at: Vec<Instant> = told.acknowledged.iter().map(|a| a.at).collect();
    at.sort();
    at.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default()
}

/// The 99th percentile of how long reads took.
pub(crate) fn read_p99(told: &Told) -> Duration {
    let mut took: Vec<Duration> = told.reads.iter().map(|(_, took, _)| *took).collect();
    took.sort();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}
