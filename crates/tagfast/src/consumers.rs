//! The consumers of a running process and the search index and counts they feed, in both modes.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_api::services::{ConsumerStatus, RunningOperation};
use tagfast_api::{OperationsError, Readiness, StatusReport};
use tagfast_domain::time::rfc3339;
use tagfast_events::{
    AutoReplayPolicy, Bus, ConsumerDependencies, ConsumerProblem, ConsumerSnapshot, ConsumerState,
    DeadLetterStore, GroupDeadLetters, RuntimeOptions, Sink, SupervisedConsumer,
};
use tagfast_popular::{PopularTags, RecountProgress, RecountReport};
use tagfast_resilience::{BoxError, Clock, ErrorChain};
use tagfast_search::SearchIndex;

use crate::telemetry::traced_sink::TracedSink;

/// The status of a group during a dead-letter storm.
const STORM_REASON: &str = "dead_letter_storm: so many records fail that they cannot be to blame; their \
    partitions wait. Check the newest release and the group's sink, or let the dead letters be \
    written: tagfast dead-letters allow-storm";
/// How long the status waits for one of its parts: an operator asks for it when parts do not work.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

/// Holds an operation's flag; dropping it lets the next operation start.
struct Running<'a>(&'a AtomicBool);

impl<'a> Running<'a> {
    fn take(flag: &'a AtomicBool, name: &'static str) -> Result<Self, OperationsError> {
        if flag.swap(true, Ordering::AcqRel) {
            Err(OperationsError::AlreadyRunning(name))
        } else {
            Ok(Self(flag))
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What consumers are started with.
pub(crate) struct ConsumerDeps<'a> {
    /// The bus they read.
    pub bus: &'a Arc<dyn Bus>,
    /// The store of their dead letters.
    pub dead_letters: &'a Arc<dyn DeadLetterStore>,
    /// Wall time.
    pub clock: &'a Arc<dyn Clock>,
    /// Whether traces are exported.
    pub traced: bool,
}

impl ConsumerDeps<'_> {
    fn start(&self, sink: Arc<dyn Sink>, options: RuntimeOptions) -> SupervisedConsumer {
        let sink = if self.traced { Arc::new(TracedSink(sink)) } else { sink };
        let dependencies = ConsumerDependencies {
            bus: Arc::clone(self.bus),
            dead_letters: Arc::clone(self.dead_letters),
            clock: Arc::clone(self.clock),
        };
        SupervisedConsumer::start(&dependencies, sink, options)
    }
}

/// The consumers of a process.
pub(crate) struct Consumers {
    dead_letters: Arc<dyn DeadLetterStore>,
    /// `None` in a process without this role.
    indexer: Option<(SupervisedConsumer, Arc<dyn SearchIndex>)>,
    /// `None` in a process without this role.
    analytics: Option<(SupervisedConsumer, Arc<dyn PopularTags>)>,
    reindexing: AtomicBool,
    recounting: AtomicBool,
    recounted: Mutex<RecountProgress>,
}

/// The answer of a part, or why there is none within [`STATUS_TIMEOUT`].
async fn with_timeout<T, E: Error + 'static>(
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(STATUS_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|error| ErrorChain(&error).to_string()),
        Err(_) => Err(format!("no answer within {} ms", STATUS_TIMEOUT.as_millis())),
    }
}

fn consumer_status(supervised: &SupervisedConsumer, open: &[GroupDeadLetters]) -> ConsumerStatus {
    let ConsumerSnapshot { state, lag_seconds, .. } = supervised.consumer().status();
    let group = supervised.consumer().group();
    ConsumerStatus {
        group: group.0.to_owned(),
        state: state.as_str().to_owned(),
        lag_seconds,
        dead_letters: open.iter().find(|of| of.group == group).map_or(0, |of| of.open),
    }
}

fn failed(error: impl Into<BoxError>) -> OperationsError {
    OperationsError::Failed(error.into())
}

fn missing(what: &str) -> OperationsError {
    failed(format!("this process has no {what}"))
}

impl Consumers {
    /// Starts a consumer for each given sink.
    pub(crate) fn start<I, P>(
        deps: &ConsumerDeps<'_>,
        index: Option<Arc<I>>,
        popular: Option<Arc<P>>,
    ) -> Self
    where
        I: SearchIndex + Sink + 'static,
        P: PopularTags + Sink + 'static,
    {
        let index = index.map(|index| {
            let consumer = deps.start(Arc::clone(&index) as _, RuntimeOptions::default());
            (consumer, index as Arc<dyn SearchIndex>)
        });
        let popular = popular.map(|popular| {
            let options = RuntimeOptions {
                batch: tagfast_popular_counts::APPLY_BATCH_MAX,
                ..RuntimeOptions::default()
            };
            let consumer = deps.start(Arc::clone(&popular) as _, options);
            (consumer, popular as Arc<dyn PopularTags>)
        });
        Self {
            dead_letters: Arc::clone(deps.dead_letters),
            indexer: index,
            analytics: popular,
            reindexing: AtomicBool::new(false),
            recounting: AtomicBool::new(false),
            recounted: Mutex::default(),
        }
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, &SupervisedConsumer)> {
        let indexer = self.indexer.iter().map(|(supervised, _)| ("search", supervised));
        indexer.chain(self.analytics.iter().map(|(supervised, _)| ("popular", supervised)))
    }

    /// The readiness of each.
    pub(crate) fn readiness(&self) -> impl Iterator<Item = Readiness> {
        self.all()
            .map(|(part, supervised)| Readiness { part, problem: supervised.readiness_problem() })
    }

    /// Why what they feed does not get nearer to what is written: (feature, reason).
    pub(crate) fn problems(&self) -> Vec<(String, String)> {
        let problem = |(feature, supervised): (&str, &SupervisedConsumer)| {
            let ConsumerProblem { since, text } = supervised.consumer().problem()?;
            Some((feature.to_owned(), format!("since {}: {text}", rfc3339(since))))
        };
        self.all().filter_map(problem).collect()
    }

    /// Adds their state to a status report.
    pub(crate) async fn report(&self, report: &mut StatusReport) {
        let documents = async {
            match &self.indexer {
                Some((_, index)) => with_timeout(index.documents()).await,
                None => Ok(0),
            }
        };
        let (open, documents) = tokio::join!(
            with_timeout(self.dead_letters.open_counts(AutoReplayPolicy::default())),
            documents
        );
        let open = open.unwrap_or_else(|error| {
            report.degraded.push(("dead letters".to_owned(), error));
            Vec::new()
        });
        for (feature, supervised) in self.all() {
            let ConsumerSnapshot { state, storm, .. } = supervised.consumer().status();
            if state != ConsumerState::Running {
                report.degraded.push((feature.to_owned(), state.as_str().to_owned()));
            }
            if storm {
                report.degraded.push((feature.to_owned(), STORM_REASON.to_owned()));
            }
            report.consumers.push(consumer_status(supervised, &open));
        }
        if let Some((supervised, _)) = &self.indexer
            && self.reindexing.load(Ordering::Acquire)
        {
            report.running.push(RunningOperation {
                operation: "reindex".to_owned(),
                contents: supervised.consumer().status().rebuilt,
                total: None,
            });
        }
        report.indexed_contents = documents.unwrap_or_else(|error| {
            report.degraded.push(("search".to_owned(), error));
            0
        });
        if self.recounting.load(Ordering::Acquire) {
            let RecountProgress { done, total } = *self.recounted.lock();
            report.running.push(RunningOperation {
                operation: "recount".to_owned(),
                contents: done,
                total: Some(total),
            });
        }
    }

    /// Rebuilds the search index while it serves; returns the contents copied.
    ///
    /// # Errors
    ///
    /// This process has no index, a rebuild is running already, or the consumer stopped.
    pub(crate) async fn reindex(&self) -> Result<u64, OperationsError> {
        let (supervised, _) = self.indexer.as_ref().ok_or_else(|| missing("search index"))?;
        let _running = Running::take(&self.reindexing, "reindex")?;
        // Records that it was ready, if it was: the old index goes on serving.
        let _ = supervised.readiness_problem();
        supervised.consumer().rebuild().await.map_err(failed)
    }

    /// Compares the counts with the shards; with `repair` corrects them.
    ///
    /// # Errors
    ///
    /// This process has no counts, a recount is running already, or the recount failed.
    pub(crate) async fn recount(&self, repair: bool) -> Result<RecountReport, OperationsError> {
        let (_, popular) = self.analytics.as_ref().ok_or_else(|| missing("counts"))?;
        let _running = Running::take(&self.recounting, "recount")?;
        *self.recounted.lock() = RecountProgress::default();
        let progress = |progress| *self.recounted.lock() = progress;
        popular.recount(repair, &progress).await.map_err(failed)
    }

    /// Lets a group write the dead letters of a storm.
    ///
    /// # Errors
    ///
    /// No consumer of the group runs in this process.
    pub(crate) fn allow_storm(&self, group: &str) -> Result<(), OperationsError> {
        let found = self.all().find(|(_, supervised)| supervised.consumer().group().0 == group);
        let (_, supervised) = found.ok_or_else(|| {
            let known: Vec<&str> =
                self.all().map(|(_, supervised)| supervised.consumer().group().0).collect();
            failed(format!("no group {group:?} runs here; there are: {}", known.join(", ")))
        })?;
        supervised.consumer().allow_storm();
        Ok(())
    }

    /// Stops all consumers; each finishes its current step and makes its state durable.
    pub(crate) async fn stop(&self) {
        futures_util::future::join_all(self.all().map(|(_, supervised)| supervised.stop())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_status_does_not_wait_for_a_part_that_hangs() {
        let began = tokio::time::Instant::now();
        let hangs = std::future::pending::<Result<u64, std::io::Error>>();
        assert_eq!(with_timeout(hangs).await.unwrap_err(), "no answer within 500 ms");
        assert_eq!(began.elapsed(), STATUS_TIMEOUT);
        let down = async { Err::<u64, _>(std::io::Error::other("down")) };
        assert_eq!(with_timeout(down).await.unwrap_err(), "down");
        assert_eq!(with_timeout(async { Ok::<_, std::io::Error>(7) }).await, Ok(7));
    }

    #[test]
    fn one_operation_of_a_kind_runs_at_a_time() {
        let flag = AtomicBool::new(false);
        let running = Running::take(&flag, "recount").unwrap();
        assert!(matches!(
            Running::take(&flag, "recount"),
            Err(OperationsError::AlreadyRunning("recount"))
        ));
        drop(running);
        assert!(Running::take(&flag, "recount").is_ok());
    }
}
