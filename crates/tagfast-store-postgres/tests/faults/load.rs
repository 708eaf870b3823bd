//! Clients that record every answer, and the check of that history.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tagfast_domain::ContentKey;
use tagfast_resilience::{Clock, SystemClock};
use tagfast_store::{Consistency, ConsistencyToken, ReadOptions, SharedStore, TagReader};
use tagfast_store_postgres::PostgresStore;
use tagfast_testkit::history::{EpochSeen, FinalContent, Findings, Outcome};
use tokio::runtime::Handle;

use crate::client::{Answers, Client, names};
use crate::terms::Terms;

/// Tags of a content at most: so few that racing writers reach the limit.
pub(crate) const LIMIT: usize = 30;

/// Clients at work.
pub(crate) struct Load {
    began: Instant,
    /// In Unix ms.
    began_ms: i64,
    stop: Arc<AtomicBool>,
    answers: [Arc<Mutex<Answers>>; 2],
    tasks: Vec<tokio::task::JoinHandle<()>>,
    terms: [Terms; 2],
}

/// What clients do.
#[derive(Debug, Clone)]
pub(crate) struct Work<'a> {
    /// Names contents, so that runs do not share any.
    pub(crate) run: &'a str,
    /// Writers of each cluster and process.
    pub(crate) clients: u32,
    /// How many clusters they write to.
    pub(crate) clusters: usize,
    /// Whether some writes ask to be replicated.
    pub(crate) replicates: bool,
}

impl Load {
    /// Starts the writers, and a reader for each cluster and process, on the processes' runtimes.
    pub(crate) fn start(processes: &[(SharedStore, Handle)], work: &Work<'_>) -> Self {
        let (began, began_ms) = (Instant::now(), SystemClock.now_ms());
        let stop = Arc::new(AtomicBool::new(false));
        let answers: [Arc<Mutex<Answers>>; 2] = [Arc::default(), Arc::default()];
        let mut tasks = Vec::new();
        let stores: Arc<[SharedStore]> =
            processes.iter().map(|(store, _)| Arc::clone(store)).collect();
        for (node, (store, runtime)) in (0..).zip(processes) {
            for (cluster, answers) in answers.iter().enumerate().take(work.clusters) {
                let client = |number| Client {
                    number,
                    node,
                    store: Arc::clone(store),
                    processes: Arc::clone(&stores),
                    answers: Arc::clone(answers),
                    cluster,
                    run: work.run.to_owned(),
                    began,
                    token: ConsistencyToken::default(),
                    replicates: work.replicates,
                };
                for n in 0..work.clients {
                    let writer = client(n + node * work.clients);
                    tasks.push(runtime.spawn(writer.work(Arc::clone(&stop))));
                }
                // Readers that do not wait for a writer.
                let reader = client(1000 + node);
                tasks.push(runtime.spawn(reader.watch(Arc::clone(&stop))));
            }
        }
        Self {
            began,
            began_ms,
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
        let mut clusters = self.collect(store).await.answers;
        clusters[0].history.may_lose = may_lose.to_vec();
        clusters.map(|answers| Checked { findings: answers.history.check(), answers })
    }

    /// Ends the clients and reads the epochs and the final state.
    pub(crate) async fn collect(self, store: &PostgresStore) -> Collected {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            if let Err(error) = task.await {
                // Those of a process that vanished are gone with it.
                assert!(error.is_cancelled(), "a client panicked: {error}");
            }
        }
        let mut clusters = Vec::new();
        for (answers, terms) in self.answers.iter().zip(self.terms) {
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
            for write in &mut history.writes {
                write.epoch.1 = ordinal(write.epoch.0);
            }
            for (name, key) in &answers.contents {
                history.finals.insert(name.clone(), final_content(store, key).await);
            }
            clusters.push(answers);
        }
        let answers = clusters.try_into().unwrap_or_else(|_| unreachable!("two clusters"));
        Collected { answers, began: self.began, began_ms: self.began_ms }
    }
}

/// What the clients of both clusters recorded.
pub(crate) struct Collected {
    pub(crate) answers: [Answers; 2],
    #[cfg_attr(not(feature = "full"), expect(dead_code, reason = "for the cells of failovers"))]
    pub(crate) began: Instant,
    /// In Unix ms.
    #[cfg_attr(not(feature = "full"), expect(dead_code, reason = "for the cells of failovers"))]
    pub(crate) began_ms: i64,
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
