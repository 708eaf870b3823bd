//! A client of the service: it writes in every way that there is, reads what it wrote, and records
//! every answer. It talks to one process, and retries at each of them in turn, with the key of its
//! first attempt.
//!
//! A write is recorded before its first attempt, with an unknown outcome: what a client or a
//! process that crashes never learned is in the history all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tagfast_domain::{
    ContentKey, IfMatch, Limits, Operation, Tag, TagName, UserId, Version, Write, WriteId,
};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{
    ConsistencyToken, Durability, ReadOptions, Receipt, SharedStore, StoreError, View, WriteAnswer,
    WriteRequest,
};
use tagfast_testkit::history::{History, LogRange, Outcome, ReadCall, Replicas, WriteCall};
use tokio::time::timeout;

use crate::load::LIMIT;

/// Rounds in which a client writes one content of its own before it goes on to the next.
const ROUNDS: u64 = 40;
/// How long a client waits that was refused.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// How long a client waits for an answer: longer than a write is held. A process that has vanished
/// gives none.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Contents of a cluster that all clients write.
pub(crate) const SHARED: u64 = 3;
/// Contents of a cluster over which batches are spread, before their names begin again.
const SPREAD: u64 = 100;

/// Every answer that the clients of one cluster received.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) history: History,
    /// The receipts of the acknowledged writes, by their places in the history.
    pub(crate) receipts: BTreeMap<usize, Receipt>,
    pub(crate) contents: BTreeMap<String, ContentKey>,
    /// When, the error, whether it is retryable.
    pub(crate) refused: Vec<(Duration, String, bool)>,
    /// Reads: when they began, how long they took, whether they were marked.
    pub(crate) reads: Vec<(Duration, Duration, bool)>,
    pub(crate) failed_reads: Vec<String>,
}

/// A content of this cluster: each of the two has half of the shards.
fn content(cluster: usize, name: &str) -> ContentKey {
    (0..)
        .map(|n| ContentKey::parse("load", "doc", &format!("{name}-{n}")).expect("a content"))
        .find(|key| usize::from(LogicalShard::of(key).number()) / 32 == cluster)
        .expect("half of all are")
}

pub(crate) fn names(view: &View) -> BTreeSet<String> {
    view.tags.iter().map(|t| t.name.as_str().to_owned()).collect()
}

/// What a client does to a content.
#[derive(Debug, Clone, Default)]
struct Change {
    adds: BTreeSet<String>,
    removes: BTreeSet<String>,
    replaces: bool,
    if_match: Option<Version>,
}

impl Change {
    fn add(tag: String) -> Self {
        Self { adds: [tag].into(), ..Self::default() }
    }

    fn remove(tag: String) -> Self {
        Self { removes: [tag].into(), ..Self::default() }
    }

    fn operation(&self) -> Operation {
        let adds = self.adds.iter().map(|t| Tag::parse(t).expect("a tag")).collect();
        let limits = Limits::default();
        if self.replaces {
            return Operation::replace(adds, &limits).expect("a set");
        }
        let removes = self.removes.iter().map(|t| TagName::parse(t).expect("a tag")).collect();
        Operation::patch(adds, removes, &limits).expect("a patch")
    }
}

pub(crate) struct Client {
    pub(crate) number: u32,
    /// The number of the process that it talks to.
    pub(crate) node: u32,
    pub(crate) store: SharedStore,
    /// All processes, by their numbers.
    pub(crate) processes: Arc<[SharedStore]>,
    pub(crate) answers: Arc<Mutex<Answers>>,
    pub(crate) cluster: usize,
    pub(crate) run: String,
    pub(crate) began: Instant,
    pub(crate) token: ConsistencyToken,
    /// Whether some of its writes ask to be replicated.
    pub(crate) replicates: bool,
}

impl Client {
    pub(crate) async fn work(mut self, stop: Arc<AtomicBool>) {
        let mut own = self.content("0");
        let set = self.content(&format!("set-{}", self.number));
        let mut known = Version::NONE;
        let mut last = None;
        for round in 0_u64.. {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            let step = round % ROUNDS;
            if step == 0 {
                own = self.content(&format!("{}-{}", self.number, round / ROUNDS));
                known = Version::NONE;
            }
            if round % 12 == 11 {
                self.write_batch(round, &stop).await;
                continue;
            }
            if let Some((request, change)) = last.take_if(|_| round % 12 == 9) {
                // A retry of a write that was answered: it must change nothing any more.
                self.write(request, &change, &stop).await;
                continue;
            }
            let (key, change) = match round % 12 {
                3 | 7 => (self.content(&format!("shared{}", round / 4 % SHARED)), self.race(round)),
                2 if step > 4 => (own.clone(), Change::remove(format!("t{}", step - 4))),
                5 if step > 5 => {
                    let removes = [format!("t{}", step - 5)].into();
                    (own.clone(), Change { removes, ..Change::add(format!("t{step}")) })
                }
                6 => {
                    let adds = [format!("r{round}"), "base".to_owned()].into();
                    (set.clone(), Change { adds, replaces: true, ..Change::default() })
                }
                8 => {
                    let if_match = Some(known);
                    (own.clone(), Change { if_match, ..Change::add(format!("t{step}")) })
                }
                _ => (own.clone(), Change::add(format!("t{step}"))),
            };
            let request = self.request(&key, self.id(&key, round), &change);
            self.write(request.clone(), &change, &stop).await;
            last = Some((request, change));
            let version = self.read(&key).await;
            if key == own {
                known = version.unwrap_or(known);
            }
        }
    }

    /// All clients add and remove the same tags, more than the limit allows.
    fn race(&self, round: u64) -> Change {
        let tag = format!("s{}", (round * 7 + u64::from(self.number) * 13) % (LIMIT as u64 + 10));
        if (round / 4 + u64::from(self.number)).is_multiple_of(3) {
            Change::remove(tag)
        } else {
            Change::add(tag)
        }
    }

    fn id(&self, key: &ContentKey, round: u64) -> WriteId {
        let id = u128::from(ContentHash::of(key).0) << 64
            | u128::from(self.number) << 48
            | u128::from(round);
        WriteId(id.to_be_bytes())
    }

    /// Reads the shared contents, with its own token.
    pub(crate) async fn watch(mut self, stop: Arc<AtomicBool>) {
        let contents: Vec<ContentKey> =
            (0..SHARED).map(|n| self.content(&format!("shared{n}"))).collect();
        for key in contents.iter().cycle() {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            self.read(key).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn content(&self, name: &str) -> ContentKey {
        let key = content(self.cluster, &format!("{}-{name}", self.run));
        let mut answers = self.answers.lock();
        answers.contents.entry(key.to_string()).or_insert_with(|| key.clone());
        key
    }

    fn request(&self, key: &ContentKey, id: WriteId, change: &Change) -> WriteRequest {
        let user = UserId::parse("load").expect("a user");
        let if_match = change.if_match.map(IfMatch::from);
        let write = Write { id, key: key.clone(), user, operation: change.operation(), if_match };
        let mut request = WriteRequest::new(write);
        if self.replicates && u128::from_be_bytes(id.0).is_multiple_of(8) {
            request.durability = Durability::Replicated;
        }
        request
    }

    /// Adds a tag of its own to three contents at once.
    async fn write_batch(&mut self, round: u64, stop: &AtomicBool) {
        let number = u64::from(self.number);
        let name = |n: u64| {
            let place = round / 12 * 3 + n + number * 17;
            format!("spread{}-{}", place % SPREAD, place / SPREAD / 4)
        };
        let change = Change::add(format!("b{number}-{round}"));
        let keys: Vec<ContentKey> = (0..3).map(|n| self.content(&name(n))).collect();
        let requests: Vec<WriteRequest> =
            keys.iter().map(|key| self.request(key, self.id(key, round), &change)).collect();
        let places: Vec<usize> = requests.iter().map(|r| self.begin(r, &change)).collect();
        let answers = self.store.write_many(requests.clone()).await;
        let mut failed = Vec::new();
        for ((request, place), answer) in requests.into_iter().zip(places).zip(answers) {
            if !self.record(place, &request, self.node, answer, stop) {
                failed.push((request, place));
            }
        }
        for (request, place) in failed {
            self.write_until_settled(request, place, 1, stop).await;
        }
    }

    /// Records the call; returns its place.
    fn begin(&self, request: &WriteRequest, change: &Change) -> usize {
        let mut answers = self.answers.lock();
        let writes = &mut answers.history.writes;
        let began = self.began.elapsed();
        writes.push(WriteCall {
            id: u128::from_be_bytes(request.write.id.0),
            client: self.number,
            node: self.node,
            content: request.write.key.to_string(),
            began,
            ended: began,
            adds: change.adds.clone(),
            removes: change.removes.clone(),
            replaces: change.replaces,
            if_match: change.if_match.map(Version::packed),
            outcome: Outcome::Unknown,
            changed: false,
            repeated: false,
            version: 0,
            epoch: (0, 0),
            log: None,
            replicated: None,
            verdicts: Vec::new(),
        });
        writes.len() - 1
    }

    /// Like a real client: retries with the same id after an unknown outcome or a refusal.
    async fn write(&mut self, request: WriteRequest, change: &Change, stop: &AtomicBool) {
        let place = self.begin(&request, change);
        self.write_until_settled(request, place, 0, stop).await;
    }

    /// `attempts`: how often it was tried before.
    async fn write_until_settled(
        &mut self,
        request: WriteRequest,
        place: usize,
        mut attempts: usize,
        stop: &AtomicBool,
    ) {
        loop {
            let number = (self.node as usize + attempts) % self.processes.len();
            let answer = timeout(ANSWER_TIMEOUT, self.processes[number].write(request.clone()));
            let answer = answer.await.unwrap_or_else(|_| {
                let waiting_for = "an answer";
                Err(StoreError::Deadline { waiting_for, outcome_unknown: true })
            });
            if self.record(place, &request, number as u32, answer, stop) {
                return;
            }
            attempts += 1;
            // While writes are refused a client that comes back at once would do nothing else.
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// Records an answer of a process; whether the write is settled.
    fn record(
        &mut self,
        place: usize,
        request: &WriteRequest,
        node: u32,
        answer: Result<WriteAnswer, StoreError>,
        stop: &AtomicBool,
    ) -> bool {
        let mut answers = self.answers.lock();
        let Answers { history, receipts, refused, .. } = &mut *answers;
        let call = &mut history.writes[place];
        (call.node, call.ended) = (node, self.began.elapsed());
        match answer {
            Ok(answer) => {
                let Receipt { position, inside_lsn: inside, .. } = answer.receipt;
                self.token.observe(ContentHash::of(&request.write.key), answer.version, position);
                call.outcome = Outcome::Acknowledged;
                call.changed = answer.changed;
                call.repeated = answer.repeated;
                call.version = answer.version.packed();
                // The ordinal is filled in at the end, from etcd.
                call.epoch = (u128::from_be_bytes(position.epoch.0), 0);
                call.log = Some(LogRange { inside, flushed: position.lsn });
                call.replicated = answer
                    .replicated
                    .filter(|_| request.durability == Durability::Replicated)
                    .map(|count| Replicas { had: count.replicas, of: count.of });
                receipts.insert(place, answer.receipt);
                true
            }
            // A rule, for example the limit: no attempt wrote anything, and none will.
            Err(StoreError::Refused(_)) => {
                call.outcome = Outcome::Refused;
                true
            }
            Err(error) => {
                let again = error.is_retryable();
                refused.push((call.ended, error.to_string(), again));
                !again || stop.load(Ordering::SeqCst)
            }
        }
    }

    /// Reads with the client's token; returns the version.
    async fn read(&mut self, key: &ContentKey) -> Option<Version> {
        let options = ReadOptions { token: Some(&self.token), ..ReadOptions::default() };
        let began = self.began.elapsed();
        let read = self.store.view(key, &options).await;
        let ended = self.began.elapsed();
        let mut answers = self.answers.lock();
        let view = match read {
            Ok(view) => view,
            Err(error) => {
                answers.failed_reads.push(error.to_string());
                return None;
            }
        };
        let marked = !view.degraded.is_empty();
        answers.reads.push((began, ended - began, marked));
        answers.history.reads.push(ReadCall {
            client: self.number,
            node: self.node,
            content: key.to_string(),
            began,
            ended,
            tags: names(&view),
            version: view.version.packed(),
            position: Some((u128::from_be_bytes(view.position.epoch.0), view.position.lsn)),
            session: true,
            marked,
        });
        self.token.observe(ContentHash::of(key), view.version, view.position);
        Some(view.version)
    }
}
