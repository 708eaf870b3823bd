//! The handle of a running consumer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tagfast_resilience::Clock;
use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tokio::sync::{mpsc, oneshot};

use super::context::Context;
use super::engine::Engine;
use super::state::{
    ConsumerProblem, ConsumerSnapshot, ReplayOutcome, ReplayRequest, Request, RuntimeOptions,
    SharedState,
};
use crate::bus::{Bus, BusRecord, ConsumerGroup, Partition};
use crate::sink::Sink;

/// A running consumer. Dropping it ends its loop at the next step, without waiting for it.
pub struct Consumer {
    group: ConsumerGroup,
    shared: Arc<SharedState>,
    requests: mpsc::Sender<Request>,
    task: BackgroundTask,
}

/// The consumer ended before it replied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the consumer has stopped")]
pub struct ConsumerStopped;

impl Consumer {
    /// Starts consuming.
    pub fn spawn(
        bus: Arc<dyn Bus>,
        sink: Arc<dyn Sink>,
        options: RuntimeOptions,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let shared = Arc::new(SharedState::new(Arc::clone(&clock)));
        let (sender, requests) = mpsc::channel(1);
        let group = sink.group();
        let state = Arc::clone(&shared);
        let task = BackgroundTask::spawn("consumer", async move |stop: StopSignal| {
            let context = Context::new(bus, sink, options, clock, state, stop);
            Engine::new(context, requests).run().await;
        });
        Self { group, shared, requests: sender, task }
    }

    /// Its consumer group.
    pub fn group(&self) -> ConsumerGroup {
        self.group
    }

    /// Its observable state.
    pub fn status(&self) -> ConsumerSnapshot {
        self.shared.snapshot()
    }

    /// Why nothing newer becomes visible; `None` while all is well.
    pub fn problem(&self) -> Option<ConsumerProblem> {
        self.shared.problem()
    }

    /// Lets the dead letters of a storm be written for a minute: an operator has looked, and the
    /// records are to blame.
    pub fn allow_storm(&self) {
        self.shared.storm_allowed.store(true, Ordering::Relaxed);
    }

    /// Rebuilds the sink from the shards while it goes on serving; returns the contents copied.
    ///
    /// # Errors
    ///
    /// The consumer stopped first.
    pub async fn rebuild(&self) -> Result<u64, ConsumerStopped> {
        let (reply, done) = oneshot::channel();
        self.request(Request::Rebuild(reply)).await?;
        done.await.map_err(|_| ConsumerStopped)
    }

    /// The partitions assigned to it now.
    pub fn partitions(&self) -> Vec<Partition> {
        self.shared.partitions()
    }

    /// Applies the records of dead letters again, or with `dry_run` only predicts the result;
    /// returns one outcome per record, in order. Waits while the sink does not work.
    ///
    /// # Errors
    ///
    /// The consumer stopped first.
    pub async fn replay(
        &self,
        records: Vec<BusRecord>,
        dry_run: bool,
    ) -> Result<Vec<ReplayOutcome>, ConsumerStopped> {
        let (reply, done) = oneshot::channel();
        self.request(Request::Replay(ReplayRequest { records, dry_run, reply })).await?;
        done.await.map_err(|_| ConsumerStopped)
    }

    async fn request(&self, request: Request) -> Result<(), ConsumerStopped> {
        self.requests.send(request).await.map_err(|_| ConsumerStopped)
    }

    /// Finishes the current step, closes the sink and ends.
    pub async fn stop(&self) {
        // `stop` has logged a panic; nothing is left to do about it.
        let _ = self.task.stop().await;
    }
}
