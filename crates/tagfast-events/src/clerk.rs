//! Applies the letters of replay jobs, in the process that runs their consumer.
//!
//! It asks the book for letters of its partitions that are in a job, hands them to the consumer and
//! writes down what became of them. How it fails: while the book cannot be reached, or the consumer
//! waits for its sink or for the end of a storm, nothing is replayed and nothing is lost: letters
//! stay in their job. A crash after the sink took a letter applies it again, which finds
//! it superseded.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tagfast_resilience::{Background, Clock};
use tokio::time::Instant;

use crate::letters::{
    BookError, Job, LetterBook, LetterFilter, LetterState, PAGE_LETTERS, ReplayOutcome, Settled,
    StoredLetter,
};
use crate::runtime::{Consumer, ConsumerState, Stopped};

/// Letters taken from the book at once.
const TAKE: usize = 1000;
/// Between two looks into the book while there is nothing to do.
const IDLE: Duration = Duration::from_millis(500);
/// Between two counts of stale contents.
const COUNT_STALE: Duration = Duration::from_secs(60);
/// Pages of open letters that are looked through for it.
const STALE_PAGES: usize = 20;

/// Why a round ended early.
enum Ended {
    Book(BookError),
    Consumer,
}

impl From<BookError> for Ended {
    fn from(error: BookError) -> Self {
        Self::Book(error)
    }
}

impl From<Stopped> for Ended {
    fn from(_: Stopped) -> Self {
        Self::Consumer
    }
}

struct Desk {
    book: Arc<dyn LetterBook>,
    consumer: Arc<Consumer>,
    clock: Arc<dyn Clock>,
    counted_at: Option<Instant>,
    failing: bool,
}

/// A running clerk of one consumer.
pub struct Clerk(Background);

impl Clerk {
    /// Starts to look for letters of the consumer's group.
    pub fn spawn(
        book: Arc<dyn LetterBook>,
        consumer: Arc<Consumer>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mut desk = Desk { book, consumer, clock, counted_at: None, failing: false };
        Self(Background::spawn(async move |mut stopped: tagfast_resilience::Stopped| {
            loop {
                let worked = tokio::select! {
                    biased;
                    _ = stopped.wait_for(|stop| *stop) => return,
                    worked = desk.round() => worked,
                };
                let pause = if worked { Duration::ZERO } else { IDLE };
                tokio::select! {
                    _ = stopped.wait_for(|stop| *stop) => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }))
    }

    /// Ends; what it had in hand is taken up again later, here or elsewhere.
    pub async fn stop(&self) {
        if let Err(error) = self.0.stop().await {
            tracing::error!(%error, "a clerk of dead letters ended badly");
        }
    }
}

impl Desk {
    /// One look; true if there was something to do.
    async fn round(&mut self) -> bool {
        let status = self.consumer.status();
        if status.state != ConsumerState::Running || status.storm {
            return false;
        }
        let worked = match self.work().await {
            Ok(worked) => worked,
            Err(Ended::Consumer) => return false,
            Err(Ended::Book(error)) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(group = self.consumer.group().0, %error, "dead letters are not replayed for now");
                }
                return false;
            }
        };
        if std::mem::take(&mut self.failing) {
            tracing::info!(group = self.consumer.group().0, "dead letters can be replayed again");
        }
        worked
    }

    async fn work(&mut self) -> Result<bool, Ended> {
        let group = self.consumer.group();
        let taken = self.book.take(group, &self.consumer.partitions(), TAKE).await?;
        let worked = match taken {
            None => false,
            Some((job, letters)) => self.replay(&job, letters).await?,
        };
        if self.counted_at.is_none_or(|at| at.elapsed() >= COUNT_STALE) {
            self.counted_at = Some(Instant::now());
            let stale = self.count_stale().await?;
            metrics::gauge!("tagfast_stale_keys", "group" => group.0).set(stale as f64);
        }
        Ok(worked)
    }

    /// Replays letters of a job, not faster than it asks for; true if any was judged.
    async fn replay(&self, job: &Job, letters: Vec<StoredLetter>) -> Result<bool, Ended> {
        let group = self.consumer.group();
        let rate = job.rate.max(1);
        let piece = usize::try_from(rate / 4).unwrap_or(TAKE).clamp(1, TAKE);
        let mut judged = false;
        for letters in letters.chunks(piece) {
            let started = Instant::now();
            let records = letters.iter().map(|stored| stored.letter.record.clone()).collect();
            let outcomes = self.consumer.replay(records, job.dry_run).await?;
            let now = self.clock.now_ms();
            let mut settled = Vec::with_capacity(letters.len());
            for (stored, outcome) in letters.iter().zip(outcomes) {
                let word = match &outcome {
                    ReplayOutcome::NotHere => continue,
                    ReplayOutcome::Applied => "applied",
                    ReplayOutcome::Superseded => "superseded",
                    ReplayOutcome::Failed { .. } => "failed",
                };
                if !job.dry_run {
                    metrics::counter!("tagfast_dead_letter_replays_total", "group" => group.0, "outcome" => word)
                        .increment(1);
                }
                settled.push(Settled { id: stored.letter.id(), outcome });
            }
            judged |= !settled.is_empty();
            self.book.settle(job, &settled, now).await?;
            let at_rate = Duration::from_secs_f64(letters.len() as f64 / f64::from(rate));
            tokio::time::sleep_until(started + at_rate).await;
        }
        Ok(judged)
    }

    /// Contents whose open letters hold a newer state than the sink.
    async fn count_stale(&self) -> Result<usize, Ended> {
        let filter = LetterFilter {
            group: Some(self.consumer.group()),
            state: Some(LetterState::Open),
            ..LetterFilter::default()
        };
        let (mut stale, mut after) = (BTreeSet::new(), None);
        for _ in 0..STALE_PAGES {
            let page = self.book.list(&filter, after.as_ref(), PAGE_LETTERS).await?;
            let records: Vec<_> =
                page.letters.into_iter().map(|stored| stored.letter.record).collect();
            let outcomes = self.consumer.replay(records.clone(), true).await?;
            // Of what nobody can read nobody knows whether it is superseded.
            let counts = |outcome: &ReplayOutcome| match outcome {
                ReplayOutcome::Applied | ReplayOutcome::Failed { .. } => true,
                ReplayOutcome::Superseded | ReplayOutcome::NotHere => false,
            };
            stale.extend(
                records
                    .into_iter()
                    .zip(outcomes)
                    .filter(|(_, o)| counts(o))
                    .map(|(record, _)| record.key),
            );
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Ok(stale.len())
    }
}
