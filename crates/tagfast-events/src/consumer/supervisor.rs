//! A running consumer with its replay worker, and when it is ready to serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tagfast_resilience::Clock;

use super::runtime::Consumer;
use super::state::{ConsumerState, RuntimeOptions};
use crate::bus::Bus;
use crate::dead_letters::replay_worker::ReplayWorker;
use crate::dead_letters::store::DeadLetterStore;
use crate::sink::Sink;

/// What consumers are started with.
#[derive(Clone)]
pub struct ConsumerDependencies {
    /// The bus they read.
    pub bus: Arc<dyn Bus>,
    /// The store whose replay jobs they apply.
    pub dead_letters: Arc<dyn DeadLetterStore>,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
}

/// A consumer and the worker that replays its dead letters.
pub struct SupervisedConsumer {
    consumer: Arc<Consumer>,
    replay_worker: ReplayWorker,
    was_ready: AtomicBool,
}

impl SupervisedConsumer {
    /// Starts both.
    pub fn start(
        dependencies: &ConsumerDependencies,
        sink: Arc<dyn Sink>,
        options: RuntimeOptions,
    ) -> Self {
        let ConsumerDependencies { bus, dead_letters, clock } = dependencies.clone();
        let consumer = Arc::new(Consumer::spawn(bus, sink, options, Arc::clone(&clock)));
        let replay_worker = ReplayWorker::spawn(dead_letters, Arc::clone(&consumer), clock);
        Self { consumer, replay_worker, was_ready: AtomicBool::new(false) }
    }

    /// The consumer.
    pub fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// Why it is not ready; `None` if it is. It is ready once everything on the bus was applied. A
    /// rebuild on request does not take that back, because the old state goes on serving and
    /// answers say how old they are.
    pub fn readiness_problem(&self) -> Option<String> {
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
            ConsumerState::Paused => "waiting for its bus or its sink to work again".to_owned(),
            ConsumerState::Starting | ConsumerState::Running | ConsumerState::Stopped => {
                format!("catching up, {} events applied", status.applied)
            }
        })
    }

    /// Stops the worker, then the consumer, which finishes its current step.
    pub async fn stop(&self) {
        self.replay_worker.stop().await;
        self.consumer.stop().await;
    }
}
