//! Looks after dead letters: replays due ones, counts open ones, purges closed ones, and notifies
//! operators of those that need attention.
//!
//! One process leads at a time ([`DeadLetterStore::try_lead`]); correctness does not depend on it
//! being the only one.
//!
//! How it fails: while the store cannot be reached the supervisor waits, and does not lead. A
//! notifier that does not deliver holds nothing up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::UnixMillis;
use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tagfast_resilience::{Clock, OutageLog};
use tokio::sync::watch;
use tokio::time::Instant;

use super::model::{
    AuditEntry, DEAD_LETTERS_PAGE_MAX, DeadLetterFilter, DeadLetterState, Due, GroupDeadLetters,
    NewReplayJob, REPLAY_RATE_DEFAULT,
};
use super::policy::AutoReplayPolicy;
use super::store::{DeadLetterStore, DeadLetterStoreError};
use super::webhook::{DeadLetterNotice, DeadLetterNotifier, GroupNotice};
use crate::metric;

/// Between two rounds; the leader verifies that it still leads once a round.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Between two purges.
const PURGE_INTERVAL: Duration = Duration::from_secs(3600);
/// How long closed dead letters, finished jobs and audit entries are kept: 14 days, as long as
/// Kafka keeps dead letters.
const RETENTION_MS: i64 = 14 * 86_400_000;
/// Dead letters that a notice names per group.
const NOTICE_EXAMPLES_MAX: usize = 5;

/// How dead letters are looked after.
#[derive(Clone, Default)]
pub struct SupervisorOptions {
    /// When they are replayed automatically.
    pub auto_replay: AutoReplayPolicy,
    /// Delivers notices to operators; `None`: no notices are sent.
    pub notifier: Option<Arc<dyn DeadLetterNotifier>>,
}

/// What operators were notified of last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct NotifiedState {
    dead_letters: u64,
    /// `None` before the first notice.
    at: Option<Instant>,
}

struct Supervisor {
    store: Arc<dyn DeadLetterStore>,
    policy: AutoReplayPolicy,
    notifier: Option<Arc<dyn DeadLetterNotifier>>,
    clock: Arc<dyn Clock>,
    /// Read by the ingest.
    leads: watch::Sender<bool>,
    notified: NotifiedState,
    /// `None` before the first purge.
    purged_at: Option<Instant>,
    outage: OutageLog,
}

/// The running supervisor of a process.
pub struct DeadLetterSupervisor {
    task: BackgroundTask,
    /// Stopped with the supervisor.
    notifier: Option<Arc<dyn DeadLetterNotifier>>,
}

impl DeadLetterSupervisor {
    /// Starts looking after the dead letters of a store; publishes in `leads` whether this process
    /// leads.
    pub fn spawn(
        store: Arc<dyn DeadLetterStore>,
        options: SupervisorOptions,
        clock: Arc<dyn Clock>,
        leads: watch::Sender<bool>,
    ) -> Self {
        let notifier = options.notifier.clone();
        let mut supervisor = Supervisor {
            store,
            policy: options.auto_replay,
            notifier: options.notifier,
            clock,
            leads,
            notified: NotifiedState::default(),
            purged_at: None,
            outage: OutageLog::new("looking after dead letters"),
        };
        let task =
            BackgroundTask::spawn("dead-letter supervisor", async move |stop: StopSignal| {
                loop {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = supervisor.round() => {}
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(POLL_INTERVAL) => {}
                    }
                }
            });
        Self { task, notifier }
    }

    /// Ends the supervisor, then its notifier, and waits for both.
    pub async fn stop(&self) {
        // `stop` has logged a panic; nothing is left to do about it.
        let _ = self.task.stop().await;
        if let Some(notifier) = &self.notifier {
            notifier.stop().await;
        }
    }
}

impl Supervisor {
    async fn round(&mut self) {
        match self.supervise().await {
            Ok(()) => {
                self.outage.recovered();
            }
            Err(error) => {
                self.leads.send_if_modified(std::mem::take);
                self.outage.failed(&error);
            }
        }
    }

    async fn supervise(&mut self) -> Result<(), DeadLetterStoreError> {
        let leads = self.store.try_lead().await?;
        self.leads.send_if_modified(|known| std::mem::replace(known, leads) != leads);
        if !leads {
            return Ok(());
        }
        let now = self.clock.now_ms();
        self.replay_due(now).await?;
        let open = self.store.open_counts(self.policy).await?;
        for GroupDeadLetters { group, open, needs_attention, oldest } in &open {
            let age_seconds = oldest.map_or(0, |at| (now - at).max(0)) as f64 / 1000.0;
            metric::open_dead_letters(*group, *open, *needs_attention, age_seconds);
        }
        if let Some(notifier) = self.notifier.clone() {
            self.notify(notifier.as_ref(), &open, now).await?;
        }
        if self.purged_at.is_none_or(|at| at.elapsed() >= PURGE_INTERVAL) {
            self.store.purge_closed_before(now - RETENTION_MS).await?;
            self.purged_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Assigns due dead letters to a new job; the replay workers of the consumers do the rest.
    async fn replay_due(&self, now: UnixMillis) -> Result<(), DeadLetterStoreError> {
        let filter = DeadLetterFilter {
            state: Some(DeadLetterState::Open),
            due: Some(Due { at: now, policy: self.policy }),
            ..DeadLetterFilter::default()
        };
        // Dead letters of a running job match too; the new job then gets none.
        if self.store.list(&filter, None, 1).await?.dead_letters.is_empty() {
            return Ok(());
        }
        let job = NewReplayJob {
            id: uuid::Uuid::now_v7().to_string(),
            dry_run: false,
            rate: REPLAY_RATE_DEFAULT,
            at: now,
        };
        let dead_letters = self.store.create_job(&job, &filter).await?.dead_letters;
        if dead_letters == 0 {
            return Ok(());
        }
        tracing::info!(job = job.id, dead_letters, "replaying dead letters after their cool-down");
        let detail = format!("job={} {filter}", job.id);
        let (actor, action) = ("service".to_owned(), "replay".to_owned());
        self.store.audit(&AuditEntry { at: now, actor, action, detail, dead_letters }).await
    }

    /// Notifies operators when more dead letters need attention than they know of, and when none
    /// does any more.
    async fn notify(
        &mut self,
        notifier: &dyn DeadLetterNotifier,
        open: &[GroupDeadLetters],
        now: UnixMillis,
    ) -> Result<(), DeadLetterStoreError> {
        let dead_letters: u64 = open.iter().map(|of| of.needs_attention).sum();
        let interval = notifier.min_interval();
        let early = self.notified.at.is_some_and(|at| at.elapsed() < interval);
        let news = if dead_letters == 0 {
            self.notified.dead_letters > 0
        } else {
            dead_letters > self.notified.dead_letters && !early
        };
        if !news {
            // Fewer than notified: the next increase is news again.
            self.notified.dead_letters = self.notified.dead_letters.min(dead_letters);
            return Ok(());
        }
        let mut groups = Vec::new();
        for of in open.iter().filter(|of| of.needs_attention > 0) {
            groups.push(self.summarize(of).await?);
        }
        if notifier.notify(&DeadLetterNotice { at: now, dead_letters, groups }) {
            self.notified = NotifiedState { dead_letters, at: Some(Instant::now()) };
        }
        Ok(())
    }

    /// Error codes and examples from the newest page only: a storm is reported by its size.
    async fn summarize(&self, of: &GroupDeadLetters) -> Result<GroupNotice, DeadLetterStoreError> {
        let filter = DeadLetterFilter {
            group: Some(of.group),
            state: Some(DeadLetterState::Open),
            ..DeadLetterFilter::default()
        };
        let page = self.store.list(&filter, None, DEAD_LETTERS_PAGE_MAX).await?;
        let mut codes: BTreeMap<String, u64> = BTreeMap::new();
        let mut examples = Vec::new();
        for stored in &page.dead_letters {
            let dead_letter = &stored.dead_letter;
            if self.policy.needs_attention(dead_letter.class, stored.replays) {
                *codes.entry(dead_letter.code.clone()).or_default() += 1;
                if examples.len() < NOTICE_EXAMPLES_MAX {
                    examples.push(dead_letter.id());
                }
            }
        }
        let (group, dead_letters, oldest) = (of.group, of.needs_attention, of.oldest);
        Ok(GroupNotice { group, dead_letters, oldest, codes, examples })
    }
}
