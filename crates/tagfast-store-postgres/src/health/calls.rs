//! The outcomes of a cluster's calls, and which cause fails them now.
//!
//! Every write and read counts its outcome here, and so do the canaries of writer lanes that have
//! nothing to write. A task looks at the counts four times a second: it logs when a cause begins
//! and when it ends, keeps the gauge, and publishes what readiness and status show.
//!
//! How it fails: it does not; a count that comes late is seen a quarter of a second later.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_resilience::{
    Bounded, CauseChange, ErrorChain, FailureWatch, LabelEnum, OngoingCause, OutcomeCounts,
    OutcomeTotals, counter, gauge,
};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::connect::PgError;
use crate::health::cause::{CallKind, FailureCause};
use crate::metric::{CALLS_FAILED, CALLS_FAILING};

/// How often the counts are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// No cause, where a cause's number is stored.
const NO_CAUSE: usize = usize::MAX;

/// Calls that fail now, for one cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailingCalls {
    /// Which calls.
    pub calls: CallKind,
    /// Why.
    pub cause: FailureCause,
    /// For how long.
    pub lasts: Duration,
    /// The share of the calls of the last seconds that failed, for whatever cause, in percent.
    pub share_percent: u64,
    /// The last error's own words; empty when there were none.
    pub error: String,
}

/// The calls of one kind.
struct Calls {
    kind: CallKind,
    counts: OutcomeCounts,
    /// The cause of the last failure; [`NO_CAUSE`] after a success.
    recent: AtomicUsize,
    /// The last error's own words, and its cause; `None`: there was none yet.
    error: Mutex<Option<(FailureCause, String)>>,
    watch: Mutex<FailureWatch>,
}

/// The calls of one cluster.
pub(crate) struct CallHealth {
    cluster: String,
    began: Instant,
    writes: Calls,
    reads: Calls,
    /// Why the last poll could not use the primary; [`NO_CAUSE`]: it could, or there is none.
    primary: AtomicUsize,
    /// The same of the poll that runs.
    polled: AtomicUsize,
    /// Since when etcd does not answer, and why; `None`: it does.
    etcd: Mutex<Option<(Instant, String)>>,
}

impl Calls {
    fn new(kind: CallKind) -> Self {
        let counts = OutcomeCounts::new(FailureCause::ALL.len());
        let watch = Mutex::new(FailureWatch::new(Duration::ZERO, counts.totals()));
        let (recent, error) = (AtomicUsize::new(NO_CAUSE), Mutex::default());
        Self { kind, counts, recent, error, watch }
    }

    fn succeeded(&self, calls: u64) {
        self.counts.succeeded(calls);
        // Calls of all threads come here: the line is written to only when it changes.
        if self.recent.load(Ordering::Relaxed) != NO_CAUSE {
            self.recent.store(NO_CAUSE, Ordering::Relaxed);
        }
    }

    fn failed(&self, cause: FailureCause, calls: u64) {
        self.counts.failed(cause as usize, calls);
        self.recent.store(cause as usize, Ordering::Relaxed);
    }

    /// The cause of the last failure if nothing has succeeded since.
    fn recent(&self) -> Option<FailureCause> {
        FailureCause::ALL.get(self.recent.load(Ordering::Relaxed)).copied()
    }

    /// Counts calls that an error of PostgreSQL failed.
    fn failed_with(&self, error: &PgError, calls: u64) {
        let cause = FailureCause::of(error);
        *self.error.lock() = Some((cause, ErrorChain(error).to_string()));
        self.failed(cause, calls);
    }

    /// The last error's own words if it had this cause, else nothing.
    fn error_of(&self, cause: FailureCause) -> String {
        let error = self.error.lock();
        error.as_ref().filter(|(of, _)| *of == cause).map(|(_, e)| e.clone()).unwrap_or_default()
    }

    fn failing(&self, now: Duration) -> Vec<FailingCalls> {
        let watch = self.watch.lock();
        let (failures, all) = watch.share();
        let share_percent = (failures * 100).checked_div(all).unwrap_or(100);
        let failing = |ongoing: OngoingCause| {
            let cause = FailureCause::ALL[ongoing.cause];
            FailingCalls {
                calls: self.kind,
                cause,
                lasts: now.saturating_sub(ongoing.began),
                share_percent,
                error: self.error_of(cause),
            }
        };
        watch.ongoing().map(failing).collect()
    }
}

impl CallHealth {
    /// No call yet.
    pub(crate) fn new(cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            began: Instant::now(),
            writes: Calls::new(CallKind::Writes),
            reads: Calls::new(CallKind::Reads),
            primary: AtomicUsize::new(NO_CAUSE),
            polled: AtomicUsize::new(NO_CAUSE),
            etcd: Mutex::default(),
        }
    }

    /// Counts acknowledged writes, or a canary.
    pub(crate) fn writes_succeeded(&self, calls: usize) {
        self.writes.succeeded(calls as u64);
    }

    /// Counts writes, or attempts at them, that failed.
    pub(crate) fn writes_failed(&self, cause: FailureCause, calls: usize) {
        self.writes.failed(cause, calls as u64);
    }

    /// Counts writes that an error of PostgreSQL failed; a canary is one call.
    pub(crate) fn writes_failed_with(&self, error: &PgError, calls: usize) {
        self.writes.failed_with(error, calls.max(1) as u64);
    }

    /// Why writes fail: the cause of the last failure if none has succeeded since.
    pub(crate) fn recent_write_failure(&self) -> Option<FailureCause> {
        self.writes.recent()
    }

    /// Counts a read that was answered.
    pub(crate) fn read_succeeded(&self) {
        self.reads.succeeded(1);
    }

    /// Counts a read that got no answer.
    pub(crate) fn read_failed(&self, cause: FailureCause) {
        self.reads.failed(cause, 1);
    }

    /// Why reads fail: the cause of the last query that failed if no read was answered since.
    pub(crate) fn recent_read_failure(&self) -> Option<FailureCause> {
        self.reads.recent()
    }

    /// Notes why a query of a node failed. The reads in it may still be answered by a different
    /// node.
    pub(crate) fn note_query_failure(&self, error: &PgError) {
        self.reads.failed_with(error, 0);
    }

    /// Notes why the poll that runs cannot use the primary.
    pub(crate) fn note_primary(&self, error: &PgError) {
        self.polled.store(FailureCause::of(error) as usize, Ordering::Relaxed);
    }

    /// Notes that a poll has ended.
    pub(crate) fn note_poll_end(&self) {
        self.primary.store(self.polled.swap(NO_CAUSE, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Why there is no primary that calls can use.
    pub(crate) fn without_primary(&self) -> FailureCause {
        let cause = FailureCause::ALL.get(self.primary.load(Ordering::Relaxed)).copied();
        cause.unwrap_or(FailureCause::NoPrimary)
    }

    /// Notes whether etcd answers; `problem` says why not.
    pub(crate) fn note_etcd(&self, problem: Option<String>) {
        let mut known = self.etcd.lock();
        let since = known.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *known = problem.map(|problem| (since, problem));
    }

    /// Why etcd does not answer, and for how long; `None`: it does.
    pub(crate) fn etcd_problem(&self) -> Option<(Duration, String)> {
        self.etcd.lock().as_ref().map(|(since, problem)| (since.elapsed(), problem.clone()))
    }

    /// What fails now.
    pub(crate) fn failing(&self) -> Vec<FailingCalls> {
        let now = self.began.elapsed();
        let mut failing = self.writes.failing(now);
        failing.extend(self.reads.failing(now));
        failing
    }

    /// Compares the counts, until the task is dropped.
    pub(crate) async fn watch(&self) {
        let mut ticks = interval(WATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut counted = [self.writes.counts.totals(), self.reads.counts.totals()];
        loop {
            ticks.tick().await;
            for (calls, counted) in [&self.writes, &self.reads].into_iter().zip(&mut counted) {
                self.observe(calls, counted);
            }
        }
    }

    fn observe(&self, calls: &Calls, counted: &mut OutcomeTotals) {
        let totals = calls.counts.totals();
        for (n, cause) in FailureCause::ALL.iter().enumerate() {
            let more = totals.failed[n] - counted.failed[n];
            if more > 0 {
                counter!(CALLS_FAILED, "cluster" => self.label(), "calls" => calls.kind,
                    "cause" => *cause)
                .increment(more);
            }
        }
        counted.clone_from(&totals);
        let now = self.began.elapsed();
        let changes = calls.watch.lock().observe(now, totals);
        for change in changes {
            self.tell(calls, change, now);
        }
    }

    /// Logs that a cause begins or ends.
    fn tell(&self, calls: &Calls, change: CauseChange, now: Duration) {
        let (cluster, kind) = (self.cluster.as_str(), calls.kind.as_str());
        let (CauseChange::Began(ongoing) | CauseChange::Ended(ongoing)) = change;
        let known = FailureCause::ALL[ongoing.cause];
        let (cause, failures) = (known.as_str(), ongoing.failures);
        let begins = matches!(change, CauseChange::Began(_));
        gauge!(CALLS_FAILING, "cluster" => self.label(), "calls" => calls.kind, "cause" => known)
            .set(f64::from(u8::from(begins)));
        if begins {
            let (sentence, remedy) = (known.sentence(), known.remedy());
            let error = calls.error_of(known);
            tracing::warn!(
                cluster,
                cause,
                failures,
                error,
                remedy,
                "{kind} of {cluster} fail: {sentence}"
            );
        } else {
            let lasted = now.saturating_sub(ongoing.began);
            tracing::info!(
                cluster,
                cause,
                failures,
                ?lasted,
                "{kind} of {cluster} no longer fail because of {cause}"
            );
        }
    }

    fn label(&self) -> Bounded<String> {
        Bounded(self.cluster.clone())
    }
}
