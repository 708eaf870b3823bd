//! The consumers of a running process and what they feed, the same in both ways to run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tagfast_api::parts::ConsumerStatus;
use tagfast_api::{OperationsError, Readiness, StatusReport};
use tagfast_events::runtime::{Consumer, ConsumerSnapshot, ConsumerState, RuntimeOptions};
use tagfast_events::{Bus, Clerk, Cooldown, GroupLetters, LetterBook, Sink};
use tagfast_popular::{PopularTags, RecountReport};
use tagfast_resilience::Clock;
use tagfast_search::SearchIndex;

use crate::telemetry::applied::Traced;

/// What is said while so many records fail that no more are parked.
const STORM: &str = "dead_letter_storm: so many records fail that they cannot be to blame; their partitions wait. Look at the \
                     newest release and at what the group feeds, or let them through: tagfast dead-letters allow-storm";

/// A consumer with who replays its letters, and whether it has ever been ready.
struct Watched {
    consumer: Arc<Consumer>,
    clerk: Clerk,
    was_ready: AtomicBool,
}

impl Watched {
    fn start(feed: &Feed<'_>, sink: Arc<dyn Sink>, options: RuntimeOptions) -> Self {
        let sink = if feed.traced { Arc::new(Traced(sink)) } else { sink };
        let (bus, clock) = (Arc::clone(feed.bus), Arc::clone(feed.clock));
        let consumer = Arc::new(Consumer::spawn(bus, sink, options, clock));
        let clerk =
            Clerk::spawn(Arc::clone(feed.letters), Arc::clone(&consumer), Arc::clone(feed.clock));
        Self { consumer, clerk, was_ready: AtomicBool::new(false) }
    }

    /// Ready from the first time everything is applied. A rebuild on request does not take it back,
    /// because the old state goes on serving; answers say how old they are.
    fn problem(&self) -> Option<String> {
        let status = self.consumer.status();
        if status.state == ConsumerState::Stopped {
            return Some("its consumer has stopped".to_owned());
        }
        if status.caught_up && status.state != ConsumerState::Rebuilding {
            self.was_ready.store(true, Ordering::Relaxed);
        }
        if self.was_ready.load(Ordering::Relaxed) {
            return None;
        }
        Some(match status.state {
            ConsumerState::Rebuilding => {
                format!("rebuilding from the store, {} contents copied", status.rebuilt)
            }
            ConsumerState::Paused => "waiting for what it reads or feeds to work again".to_owned(),
            ConsumerState::Starting | ConsumerState::Running | ConsumerState::Stopped => {
                format!("catching up, {} events applied", status.applied)
            }
        })
    }

    fn status(&self, open: &[GroupLetters]) -> ConsumerStatus {
        let ConsumerSnapshot { state, lag_seconds, .. } = self.consumer.status();
        let group = self.consumer.group();
        ConsumerStatus {
            group: group.0.to_owned(),
            state: state.as_str().to_owned(),
            lag_seconds,
            dead_letters: open.iter().find(|of| of.group == group).map_or(0, |of| of.open),
        }
    }

    async fn stop(&self) {
        self.clerk.stop().await;
        self.consumer.stop().await;
    }
}

/// Holds an operation's flag; dropping it lets the next one start.
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
pub struct Feed<'a> {
    /// What they read.
    pub bus: &'a Arc<dyn Bus>,
    /// Where their letters are found again.
    pub letters: &'a Arc<dyn LetterBook>,
    /// The date.
    pub clock: &'a Arc<dyn Clock>,
    /// Whether traces are exported.
    pub traced: bool,
}

/// What feeds on the bus. Parts that a process does not have are missing.
pub struct Consumers {
    letters: Arc<dyn LetterBook>,
    indexer: Option<(Watched, Arc<dyn SearchIndex>)>,
    analytics: Option<(Watched, Arc<dyn PopularTags>)>,
    reindexing: AtomicBool,
    recounting: AtomicBool,
    recounted: AtomicU64,
}

/// How long the status waits for one of its parts: it is asked for when they do not work.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a part tells of itself in time.
async fn told<T, E: std::fmt::Display>(
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} ms", PATIENCE.as_millis())),
    }
}

fn missing(what: &str) -> OperationsError {
    OperationsError::Failed(format!("this process has no {what}"))
}

impl Consumers {
    /// Starts consuming into what is given.
    pub fn start<I, P>(feed: &Feed<'_>, index: Option<Arc<I>>, popular: Option<Arc<P>>) -> Self
    where
        I: SearchIndex + Sink + 'static,
        P: PopularTags + Sink + 'static,
    {
        Self {
            letters: Arc::clone(feed.letters),
            indexer: index.map(|index| {
                (
                    Watched::start(feed, Arc::clone(&index) as _, RuntimeOptions::default()),
                    index as _,
                )
            }),
            analytics: popular.map(|popular| {
                let options =
                    RuntimeOptions { batch: tagfast_popular::BATCH, ..RuntimeOptions::default() };
                (Watched::start(feed, Arc::clone(&popular) as _, options), popular as _)
            }),
            reindexing: AtomicBool::new(false),
            recounting: AtomicBool::new(false),
            recounted: AtomicU64::new(0),
        }
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, &Watched)> {
        let indexer = self.indexer.iter().map(|(watched, _)| ("search", watched));
        indexer.chain(self.analytics.iter().map(|(watched, _)| ("popular", watched)))
    }

    /// Which of them are ready.
    pub fn readiness(&self) -> impl Iterator<Item = Readiness> {
        self.all().map(|(part, watched)| Readiness { part, problem: watched.problem() })
    }

    /// Adds what is to be said of them.
    pub async fn report(&self, report: &mut StatusReport) {
        let documents = async {
            match &self.indexer {
                Some((_, index)) => told(index.documents()).await,
                None => Ok(0),
            }
        };
        let (open, documents) =
            tokio::join!(told(self.letters.open_letters(Cooldown::default())), documents);
        let open = open.unwrap_or_else(|error| {
            report.degraded.push(("dead letters".to_owned(), error));
            Vec::new()
        });
        for (feature, watched) in self.all() {
            let ConsumerSnapshot { state, storm, .. } = watched.consumer.status();
            if state != ConsumerState::Running {
                report.degraded.push((feature.to_owned(), state.as_str().to_owned()));
            }
            if storm {
                report.degraded.push((feature.to_owned(), STORM.to_owned()));
            }
            report.consumers.push(watched.status(&open));
        }
        if let Some((watched, _)) = &self.indexer
            && self.reindexing.load(Ordering::Acquire)
        {
            report.running.push(("reindex".to_owned(), watched.consumer.status().rebuilt));
        }
        report.indexed_contents = documents.unwrap_or_else(|error| {
            report.degraded.push(("search".to_owned(), error));
            0
        });
        if self.recounting.load(Ordering::Acquire) {
            report.running.push(("recount".to_owned(), self.recounted.load(Ordering::Relaxed)));
        }
    }

    /// Rebuilds the search index while it serves; how many contents were copied.
    pub async fn reindex(&self) -> Result<u64, OperationsError> {
        let (watched, _) = self.indexer.as_ref().ok_or_else(|| missing("search index"))?;
        let _running = Running::take(&self.reindexing, "reindex")?;
        // Notes that it was ready, if it was: the old index goes on serving.
        let _ = watched.problem();
        watched.consumer.rebuild().await.map_err(|e| OperationsError::Failed(e.to_string()))
    }

    /// Compares the counts with the shards.
    pub async fn recount(&self, repair: bool) -> Result<RecountReport, OperationsError> {
        let (_, popular) = self.analytics.as_ref().ok_or_else(|| missing("counts"))?;
        let _running = Running::take(&self.recounting, "recount")?;
        self.recounted.store(0, Ordering::Relaxed);
        let progress = |done| self.recounted.store(done, Ordering::Relaxed);
        popular.recount(repair, &progress).await.map_err(|e| OperationsError::Failed(e.to_string()))
    }

    /// Lets a group write the dead letters of a storm.
    pub fn allow_storm(&self, group: &str) -> Result<(), OperationsError> {
        let found = self.all().find(|(_, watched)| watched.consumer.group().0 == group);
        let (_, watched) = found.ok_or_else(|| {
            let known: Vec<&str> =
                self.all().map(|(_, watched)| watched.consumer.group().0).collect();
            OperationsError::Failed(format!(
                "no group {group:?} runs here; there are: {}",
                known.join(", ")
            ))
        })?;
        watched.consumer.allow_storm();
        Ok(())
    }

    /// Finishes what is in work and makes it durable.
    pub async fn stop(&self) {
        futures_util::future::join_all(self.all().map(|(_, watched)| watched.stop())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_status_does_not_wait_for_what_hangs() {
        let began = tokio::time::Instant::now();
        let hangs = std::future::pending::<Result<u64, String>>();
        assert_eq!(told(hangs).await.unwrap_err(), "no answer within 500 ms");
        assert_eq!(began.elapsed(), PATIENCE);
        assert_eq!(told(async { Err::<u64, _>("down") }).await.unwrap_err(), "down");
        assert_eq!(told(async { Ok::<_, String>(7) }).await, Ok(7));
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
