//! Clients that record every answer, and the check of that history.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tagfast_domain::ContentKey;
use tagfast_store::{Consistency, ConsistencyToken, ReadOptions, TagReader};
use tagfast_store_postgres::PostgresStore;
use tagfast_testkit::history::{EpochSeen, FinalContent, Findings, Outcome};

use crate::client::{Answers, Client, names};
use crate::terms::Terms;

/// Tags of a content at most: so few that racing writers reach the limit.
pub(crate) const LIMIT: usize = 30;

/// Clients at work.
pub(crate) struct Load {
    began: Instant,
    stop: Arc<AtomicBool>,
    answers: [Arc<Mutex<Answers>>; 2],
    tasks: Vec<tokio::task::JoinHandle<()>>,
    terms: [Terms; 2],
}

impl Load {
    /// `clients` writers and a reader for each cluster and store. `run` names contents, so that
    /// runs do not share any.
    pub(crate) fn start(stores: &[Arc<PostgresStore>], run: &str, clients: u32) -> Self {
        let began = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let answers: [Arc<Mutex<Answers>>; 2] = [Arc::default(), Arc::default()];
        let mut tasks = Vec::new();
        for (node, store) in (0..).zip(stores) {
            for (cluster, answers) in answers.iter().enumerate() {
                let client = |number| Client {
                    number,
                    node,
                    store: Arc::clone(store),
                    answers: Arc::clone(answers),
                    cluster,
                    run: run.to_owned(),
                    began,
                    token: ConsistencyToken::default(),
                    replicates: false,
                };
                for n in 0..clients {
                    let writer = client(n + node * clients);
                    tasks.push(tokio::spawn(writer.work(Arc::clone(&stop))));
                }
                // Readers that do not wait for a writer.
                let reader = client(1000 + node);
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
            let ordinal = |id: u128| ordinals.get(&id).copied().unwrap_or(0);
            let epoch = |(id, seen_at): &(u128, Duration)| EpochSeen {
                id: *id,
                ordinal: ordinal(*id),
                seen_at: *seen_at,
                ..EpochSeen::default()
            };
            let history = &mut answers.history;
            history.epochs = seen.iter().map(epoch).collect();
            history.limit = LIMIT;
            history.may_lose = if cluster == 0 { may_lose.to_vec() } else { Vec::new() };
            for write in &mut history.writes {
                write.epoch.1 = ordinal(write.epoch.0);
            }
            for (name, key) in &answers.contents {
                history.finals.insert(name.clone(), final_content(store, key).await);
            }
            let findings = history.check();
            checked.push(Checked { answers, findings });
        }
        checked.try_into().unwrap_or_else(|_| unreachable!("two clusters"))
    }
}

/// The state of a content on its primary.
async fn final_content(store: &PostgresStore, key: &ContentKey) -> FinalContent {
    let options = ReadOptions { consistency: Consistency::Strong, ..ReadOptions::default() };
    let view = store.view(key, &options).await.expect("a strong read");
    // What the document remembers of its writes is not part of a view.
    FinalContent { version: view.version.packed(), tags: names(&view), recent: Vec::new() }
}

/// The answers of a cluster's clients, and what the check of them found.
pub(crate) struct Checked {
    pub(crate) answers: Answers,
    pub(crate) findings: Findings,
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
