//! What the parts of a consumer's loop share: the sink behind its breaker, the progress, and
//! waiting that ends when the owner stops the consumer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::UnixMillis;
use tagfast_resilience::task::StopSignal;
use tagfast_resilience::{
    Backoff, Breaker, BreakerOptions, BreakerState, Clock, ErrorChain, Transition,
};
use tokio::time::Instant;

use super::progress::Progress;
use super::state::{ConsumerState, RuntimeOptions, SharedState, StopRequested};
use crate::bus::{Bus, ConsumerGroup, Partition};
use crate::metric;
use crate::sink::{Sink, SinkError, VisibleThrough};

/// Backoff of the bus; its cap is [`RuntimeOptions::pause_cap`].
const PAUSE_BASE: Duration = Duration::from_millis(100);
/// How often the lag metric is refreshed while the consumer waits.
const LAG_REFRESH_INTERVAL: Duration = Duration::from_millis(500);

/// What the parts of one consumer's loop share.
pub(super) struct Context {
    pub(super) bus: Arc<dyn Bus>,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) options: RuntimeOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) shared: Arc<SharedState>,
    pub(super) stop: StopSignal,
    pub(super) progress: Progress,
    /// Between the consumer and its sink.
    breaker: Arc<Breaker>,
}

impl Context {
    pub(super) fn new(
        bus: Arc<dyn Bus>,
        sink: Arc<dyn Sink>,
        options: RuntimeOptions,
        clock: Arc<dyn Clock>,
        shared: Arc<SharedState>,
        stop: StopSignal,
    ) -> Self {
        let breaker = breaker(sink.group(), &options);
        let progress = Progress::default();
        Self { bus, sink, options, clock, shared, stop, progress, breaker }
    }

    pub(super) fn group(&self) -> ConsumerGroup {
        self.sink.group()
    }

    /// Repeats a call to the sink until it succeeds: its failures are systemic. The breaker decides
    /// when; while the breaker probes, a canary goes ahead of the call.
    pub(super) async fn retry_until_ok<T, F: Future<Output = Result<T, SinkError>>>(
        &mut self,
        call: impl Fn() -> F,
    ) -> Result<T, StopRequested> {
        let before = *self.shared.state.lock();
        loop {
            let permit = match self.breaker.acquire() {
                Ok(permit) => permit,
                Err(refused) => {
                    self.shared.set(ConsumerState::Paused);
                    self.wait(refused.retry_after).await?;
                    continue;
                }
            };
            let canary = if permit.is_probe() { self.sink.canary().await } else { Ok(()) };
            let result = match canary {
                Ok(()) => call().await,
                Err(error) => Err(error),
            };
            match result {
                Ok(value) => {
                    permit.ok();
                    self.shared.set(before);
                    return Ok(value);
                }
                Err(error) => {
                    permit.failed();
                    let group = self.group();
                    let error = ErrorChain(&error);
                    tracing::warn!(group = group.0, %error, "sink failed; the consumer waits");
                    self.shared.set_problem(Some(format!("waiting for its sink: {error}")));
                    metric::paused(group);
                }
            }
        }
    }

    /// Waits before attempt `attempt + 1`; ends early when the owner stops the consumer.
    pub(super) async fn pause(
        &mut self,
        error: &(dyn std::error::Error + Send + Sync + 'static),
        attempt: u32,
    ) -> Result<(), StopRequested> {
        let group = self.group();
        tracing::warn!(
            group = group.0,
            error = %ErrorChain(error),
            attempt,
            "the consumer pauses and tries again"
        );
        metric::paused(group);
        self.shared.set(ConsumerState::Paused);
        self.shared.set_problem(Some(format!("waiting: {}", ErrorChain(error))));
        let backoff =
            Backoff { retries: u32::MAX, base: PAUSE_BASE, factor: 2, cap: self.options.pause_cap };
        // A jitter of one half is the nominal delay; a single consumer needs no spread.
        let delay = backoff.delay(attempt, 0.5).unwrap_or(self.options.pause_cap);
        self.wait(delay).await
    }

    /// Lets time pass while the lag metric stays true; ends early when the owner stops the
    /// consumer.
    pub(super) async fn wait(&mut self, delay: Duration) -> Result<(), StopRequested> {
        let until = Instant::now() + delay;
        while Instant::now() < until {
            self.report(&self.progress.known_visible());
            let slice = until.min(Instant::now() + LAG_REFRESH_INTERVAL);
            tokio::select! {
                () = self.stop.cancelled() => return Err(StopRequested),
                () = tokio::time::sleep_until(slice) => {}
            }
        }
        Ok(())
    }

    /// Publishes the lag of each partition and reports to the sink how far it is visible.
    pub(super) fn report(&self, visible: &BTreeMap<Partition, UnixMillis>) {
        let now = self.clock.now_ms();
        metric::feed_broken(self.group(), self.shared.problem().is_some());
        // A partition without a known time may hold anything: no age is shown before every assigned
        // partition has one.
        let through = |partitions: BTreeMap<Partition, UnixMillis>| {
            let complete = partitions.len() == self.progress.len() && !partitions.is_empty();
            VisibleThrough { partitions, complete }
        };
        self.sink.visible(&through(visible.clone()));
        let shown = through(self.sink.shown(visible));
        for (partition, at) in &shown.partitions {
            metric::lag(self.group(), *partition, (now - at).max(0) as f64 / 1000.0);
        }
        if let Some(oldest) = shown.oldest() {
            self.shared.set_visible(oldest);
        }
    }
}

/// The breaker between a consumer and its sink: a systemic failure opens it at once, a slow sink
/// never does.
fn breaker(group: ConsumerGroup, options: &RuntimeOptions) -> Arc<Breaker> {
    let started = Instant::now();
    let behaviour = BreakerOptions {
        min_calls: 1,
        failed_share: 0.0,
        failed_or_slow_share: f64::INFINITY,
        slow_after: Duration::from_secs(60),
        stalled_calls: 0,
        open_first: Duration::from_millis(200),
        open_cap: options.pause_cap,
        reset_after: Duration::from_secs(30),
    };
    let on_transition = move |transition: &Transition| {
        let (from, to, reason) =
            (transition.from.as_str(), transition.to.as_str(), transition.reason);
        tracing::info!(breaker = transition.name, from, to, reason, "a breaker changed its state");
        metric::breaker_open(group, transition.to != BreakerState::Closed);
    };
    Breaker::new(
        format!("sink {}", group.0),
        behaviour,
        Arc::new(move || started.elapsed()),
        Arc::new(on_transition),
        0x5eed,
    )
}
