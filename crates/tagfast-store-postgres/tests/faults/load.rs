//! Clients that record every answer, and the check of that history.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tagfast_domain::{ContentKey, Limits, Operation, Tag, TagName, UserId, Write, WriteId};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{
    Consistency, ConsistencyToken, ReadOptions, StoreError, TagReader, TagWriter, View,
    WriteRequest,
};
use tagfast_store_postgres::PostgresStore;
use tagfast_testkit::history::Outcome;
use tagfast_testkit::history::clients::{EpochStart, History, ReadCall, Verdict, WriteCall};

use crate::terms::Terms;

/// Tags of a content at most: so few that racing writers reach the limit.
pub(crate) const LIMIT: usize = 30;
/// Tags that a client adds to one content of its own before it goes on to the next.
const ROUNDS: u64 = 40;
/// Contents of a cluster that all clients write.
const SHARED: u64 = 3;

/// Every answer that the clients of one cluster received.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) history: History,
    pub(crate) contents: BTreeMap<String, ContentKey>,
    /// When, the error, whether it is retryable.
    pub(crate) refused: Vec<(Duration, String, bool)>,
    /// Reads: when they began, how long they took, whether they were marked.
    pub(crate) reads: Vec<(Duration, Duration, bool)>,
    pub(crate) failed_reads: Vec<String>,
}

/// Clients at work.
pub(crate) struct Load {
    began: Instant,
    stop: Arc<AtomicBool>,
    answers: [Arc<Mutex<Answers>>; 2],
    tasks: Vec<tokio::task::JoinHandle<()>>,
    terms: [Terms; 2],
}

/// A content of this cluster: each of the two has half of the shards.
fn content(cluster: usize, name: &str) -> ContentKey {
    (0..)
        .map(|n| ContentKey::parse("load", "doc", &format!("{name}-{n}")).expect("a content"))
        .find(|key| usize::from(LogicalShard::of(key).number()) / 32 == cluster)
        .expect("half of all are")
}

impl Load {
    /// `clients` writers and readers for each cluster and store. `run` names contents, so that runs
    /// do not share any.
    pub(crate) fn start(stores: &[Arc<PostgresStore>], run: &str, clients: u32) -> Self {
        let began = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let answers: [Arc<Mutex<Answers>>; 2] = [Arc::default(), Arc::default()];
        let mut tasks = Vec::new();
        for (s, store) in stores.iter().enumerate() {
            for (cluster, answers) in answers.iter().enumerate() {
                let client = |number| Client {
                    number,
                    store: Arc::clone(store),
                    answers: Arc::clone(answers),
                    cluster,
                    run: run.to_owned(),
                    began,
                    token: ConsistencyToken::default(),
                };
                for n in 0..clients {
                    let writer = client(n + s as u32 * clients);
                    tasks.push(tokio::spawn(writer.work(Arc::clone(&stop))));
                }
                // Readers that do not wait for a writer.
                let reader = client(1000 + s as u32);
                tasks.push(tokio::spawn(reader.watch(Arc::clone(&stop))));
            }
        }
        Self {
            began,
            stop,
            answers,
            tasks,
            terms: ["c0", "c1"].map(|scope| Terms::watch(scope, began)),
        }
    }

    /// Now, in the history's time.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits until a cluster acknowledged a write after `since`; returns how long after.
    pub(crate) async fn acknowledged_after(
        &self,
        cluster: usize,
        since: Duration,
        within: Duration,
    ) -> Duration {
        tagfast_testkit::wait_for_condition_async("an acknowledgement", within, || async {
            let answers = self.answers[cluster].lock();
            let acknowledged = answers.history.writes.iter().rev().take(500);
            let after = acknowledged
                .filter(|w| w.outcome == Outcome::Acknowledged && w.ended > since)
                .map(|w| w.ended);
            after.min().map(|at| at - since).ok_or("none yet")
        })
        .await
    }

    /// Waits until a later leader term of a cluster was seen; returns when.
    pub(crate) async fn next_term(
        &self,
        cluster: usize,
        since: Duration,
        within: Duration,
    ) -> Duration {
        tagfast_testkit::wait_for_condition_async("a new leader term", within, || async {
            self.terms[cluster].seen_after(since).ok_or("none yet")
        })
        .await
    }

    /// Ends the clients, reads the final state, and checks the history. `may_lose`: times in which
    /// acknowledged writes of the first cluster may be lost.
    pub(crate) async fn finish(
        self,
        store: &PostgresStore,
        may_lose: &[(Duration, Duration)],
    ) -> [Checked; 2] {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("no client panics");
        }
        let mut checked = Vec::new();
        for (cluster, (answers, terms)) in self.answers.iter().zip(self.terms).enumerate() {
            let mut answers = std::mem::take(&mut *answers.lock());
            let (seen, ordinals) = terms.end().await;
            answers.history.epochs =
                seen.iter().map(|(id, at)| EpochStart { id: *id, seen_at: *at }).collect();
            answers.history.limit = LIMIT;
            answers.history.may_lose = if cluster == 0 { may_lose.to_vec() } else { Vec::new() };
            for write in &mut answers.history.writes {
                write.epoch.1 = ordinals.get(&write.epoch.0).copied().unwrap_or(0);
            }
            let mut finally = BTreeMap::new();
            for (name, key) in &answers.contents {
                let options =
                    ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
                let view = store.view(key, &options).await.expect("a strong read");
                finally.insert(name.clone(), (view.version.packed(), names(&view)));
            }
            let verdict = answers.history.check(&finally);
            checked.push(Checked { answers, verdict });
        }
        checked.try_into().unwrap_or_else(|_| unreachable!("two clusters"))
    }
}

fn names(view: &View) -> BTreeSet<String> {
    view.tags.iter().map(|t| t.name.as_str().to_owned()).collect()
}

/// The answers of a cluster's clients, and the verdict over them.
pub(crate) struct Checked {
    pub(crate) answers: Answers,
    pub(crate) verdict: Verdict,
}

impl Checked {
    /// The longest time between two consecutive acknowledgements.
    pub(crate) fn largest_gap(&self) -> Duration {
        let writes =
            self.answers.history.writes.iter().filter(|w| w.outcome == Outcome::Acknowledged);
        let mut at: Vec<Duration> = writes.map(|w| w.ended).collect();
        at.sort();
        at.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default()
    }

    /// The 99th percentile of the reads that began within these times.
    pub(crate) fn read_p99(&self, from: Duration, to: Duration) -> Duration {
        let within = self.answers.reads.iter().filter(|(at, _, _)| *at >= from && *at <= to);
        let mut took: Vec<Duration> = within.map(|(_, took, _)| *took).collect();
        took.sort();
        took.get(took.len() * 99 / 100).copied().unwrap_or_default()
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.answers.history.writes.iter().filter(|w| w.outcome == Outcome::Acknowledged).count()
    }
}

struct Client {
    number: u32,
    store: Arc<PostgresStore>,
    answers: Arc<Mutex<Answers>>,
    cluster: usize,
    run: String,
    began: Instant,
    token: ConsistencyToken,
}

impl Client {
    async fn work(mut self, stop: Arc<AtomicBool>) {
        let mut round: u64 = 0;
        let mut own = self.content("0");
        while !stop.load(Ordering::SeqCst) {
            let step = round % ROUNDS;
            if step == 0 {
                own = self.content(&format!("{}-{}", self.number, round / ROUNDS));
            }
            // Own contents grow, and lose a tag now and then; all clients race on the shared ones.
            let (key, add, remove) = match round % 4 {
                3 => {
                    let shared = self.content(&format!("shared{}", round / 4 % SHARED));
                    // All clients add and remove the same tags, more than the limit allows.
                    let tag = format!(
                        "s{}",
                        (round * 7 + u64::from(self.number) * 13) % (LIMIT as u64 + 10)
                    );
                    if (round / 4 + u64::from(self.number)).is_multiple_of(3) {
                        (shared, None, Some(tag))
                    } else {
                        (shared, Some(tag), None)
                    }
                }
                2 if step > 4 => (own.clone(), None, Some(format!("t{}", step - 4))),
                _ => (own.clone(), Some(format!("t{step}")), None),
            };
            let id = u128::from(ContentHash::of(&key).0) << 64
                | u128::from(self.number) << 48
                | u128::from(round);
            self.write(&key, add, remove, WriteId(id.to_be_bytes()), &stop).await;
            self.read(&key).await;
            round += 1;
        }
    }

    /// Reads the shared contents, with its own token.
    async fn watch(mut self, stop: Arc<AtomicBool>) {
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

    /// Like a real client: retries with the same id after an unknown outcome or a refusal.
    async fn write(
        &mut self,
        key: &ContentKey,
        add: Option<String>,
        remove: Option<String>,
        id: WriteId,
        stop: &AtomicBool,
    ) {
        let adds = add.iter().map(|t| Tag::parse(t).expect("a tag")).collect();
        let removes = remove.iter().map(|t| TagName::parse(t).expect("a tag")).collect();
        let operation = Operation::patch(adds, removes, &Limits::default()).expect("a patch");
        let user = UserId::parse("load").expect("a user");
        let write = Write { id, key: key.clone(), user, operation, if_match: None };
        let request = WriteRequest::new(write);
        let mut call = WriteCall {
            client: self.number,
            content: key.to_string(),
            began: self.began.elapsed(),
            ended: Duration::ZERO,
            adds: add.into_iter().collect(),
            removes: remove.into_iter().collect(),
            outcome: Outcome::Refused,
            changed: false,
            version: 0,
            epoch: (0, 0),
        };
        let mut doubt = false;
        loop {
            let answer = self.store.write(request.clone()).await;
            call.ended = self.began.elapsed();
            let mut answers = self.answers.lock();
            match answer {
                Ok(answer) => {
                    self.token.observe(
                        ContentHash::of(key),
                        answer.version,
                        answer.receipt.position,
                    );
                    call.outcome = Outcome::Acknowledged;
                    call.changed = answer.changed;
                    call.version = answer.version.packed();
                    // The ordinal is filled in at the end, from etcd.
                    call.epoch = (u128::from_be_bytes(answer.receipt.position.epoch.0), 0);
                }
                // The limit: nothing was written, unless by an earlier attempt.
                Err(StoreError::Refused(_)) => {
                    call.outcome = if doubt { Outcome::Unknown } else { Outcome::Refused }
                }
                Err(error) => {
                    let again = error.is_retryable();
                    doubt = true;
                    answers.refused.push((call.ended, error.to_string(), again));
                    if again && !stop.load(Ordering::SeqCst) {
                        continue;
                    }
                    call.outcome = Outcome::Unknown;
                }
            }
            answers.history.writes.push(call);
            return;
        }
    }

    async fn read(&mut self, key: &ContentKey) {
        let options = ReadOptions { token: Some(&self.token), ..ReadOptions::default() };
        let began = self.began.elapsed();
        let read = self.store.view(key, &options).await;
        let ended = self.began.elapsed();
        let mut answers = self.answers.lock();
        let view = match read {
            Ok(view) => view,
            Err(error) => return answers.failed_reads.push(error.to_string()),
        };
        let marked = !view.degraded.is_empty();
        answers.reads.push((began, ended - began, marked));
        let call = ReadCall {
            client: self.number,
            content: key.to_string(),
            began,
            ended,
            tags: names(&view),
            version: view.version.packed(),
            session: true,
            marked,
        };
        answers.history.reads.push(call);
        self.token.observe(ContentHash::of(key), view.version, view.position);
    }
}
