//! Copies dead letters from the bus into the dead-letter store, in the process that leads.
//!
//! The bus is the source of truth. The store keeps how far it has read, in the transaction that
//! ingests the dead letters.
//!
//! How it fails: a bus or a store that cannot be reached is tried again every second; no dead
//! letter is skipped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tagfast_resilience::OutageLog;
use tagfast_resilience::task::{BackgroundTask, StopSignal};
use tokio::sync::watch;

use super::store::DeadLetterStoreError;
use crate::bus::{BusError, ConsumerGroup, DeadLetter, Partition};

/// Dead letters ingested at once.
const INGEST_BATCH_MAX: usize = 500;
/// How long a read waits for the first dead letter.
const INGEST_POLL_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two attempts after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// First offset of each partition that is not read yet; a partition that was never read is missing.
pub type ReadOffsets = BTreeMap<Partition, u64>;

/// Where dead letters are read from.
#[async_trait]
pub trait DeadLetterSource: Send + Sync {
    /// Opens a reader of a group's dead letters at these offsets; a partition that is missing, or
    /// whose offset is gone, starts at its beginning.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if the reader cannot be created.
    async fn reader(
        &self,
        group: ConsumerGroup,
        from: ReadOffsets,
    ) -> Result<Box<dyn DeadLetterReader>, BusError>;
}

/// Reads dead letters of one group, oldest first.
#[async_trait]
pub trait DeadLetterReader: Send {
    /// Up to `max` dead letters; waits at most `wait` for the first.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`]; the same dead letters can be read again by a new reader.
    async fn read(&mut self, max: usize, wait: Duration) -> Result<Vec<DeadLetter>, BusError>;

    /// How far it has read.
    fn offsets(&self) -> &ReadOffsets;
}

/// The store that dead letters are copied into.
#[async_trait]
pub trait IngestTarget: Send + Sync {
    /// How far a group's dead letters are ingested.
    ///
    /// # Errors
    ///
    /// [`DeadLetterStoreError::Unavailable`].
    async fn ingested_through(
        &self,
        group: ConsumerGroup,
    ) -> Result<ReadOffsets, DeadLetterStoreError>;

    /// Stores dead letters of a group and how far it was read, atomically. A dead letter that is
    /// already stored stays as it is.
    ///
    /// # Errors
    ///
    /// [`DeadLetterStoreError::Unavailable`]: nothing is stored, or everything.
    async fn ingest(
        &self,
        group: ConsumerGroup,
        dead_letters: &[DeadLetter],
        offsets: &ReadOffsets,
    ) -> Result<(), DeadLetterStoreError>;
}

/// The running ingest of all groups.
pub struct DeadLetterIngest(Vec<BackgroundTask>);

impl DeadLetterIngest {
    /// Ingests while this process leads.
    pub fn spawn<S: DeadLetterSource + 'static, T: IngestTarget + 'static>(
        source: &Arc<S>,
        target: &Arc<T>,
        leads: &watch::Receiver<bool>,
    ) -> Self {
        let spawn = |group: ConsumerGroup| {
            let ingest = GroupIngest {
                source: Arc::clone(source) as Arc<dyn DeadLetterSource>,
                target: Arc::clone(target) as Arc<dyn IngestTarget>,
                group,
                leads: leads.clone(),
                outage: OutageLog::of("ingesting dead letters", group.0),
            };
            BackgroundTask::spawn("dead-letter ingest", async move |stop: StopSignal| {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = ingest.run() => {}
                }
            })
        };
        Self(ConsumerGroup::ALL.map(spawn).into())
    }

    /// Ends; dead letters that were read but not stored are read again.
    pub async fn stop(&self) {
        for task in &self.0 {
            // `stop` has logged a panic; nothing is left to do about it.
            let _ = task.stop().await;
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum IngestError {
    #[error("the dead letters cannot be read")]
    Read(#[source] BusError),
    #[error("the dead letters cannot be stored")]
    Store(#[source] DeadLetterStoreError),
}

struct GroupIngest {
    source: Arc<dyn DeadLetterSource>,
    target: Arc<dyn IngestTarget>,
    group: ConsumerGroup,
    leads: watch::Receiver<bool>,
    outage: OutageLog,
}

impl GroupIngest {
    /// Runs until the supervisor is gone.
    async fn run(mut self) {
        while self.leads.wait_for(|leads| *leads).await.is_ok() {
            if let Err(error) = self.ingest().await {
                self.outage.failed(&error);
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }

    /// Ingests until this process no longer leads.
    async fn ingest(&self) -> Result<(), IngestError> {
        let from = self.target.ingested_through(self.group).await.map_err(IngestError::Store)?;
        let mut reader = self.source.reader(self.group, from).await.map_err(IngestError::Read)?;
        while *self.leads.borrow() {
            let dead_letters = reader
                .read(INGEST_BATCH_MAX, INGEST_POLL_TIMEOUT)
                .await
                .map_err(IngestError::Read)?;
            if !dead_letters.is_empty() {
                let stored = self.target.ingest(self.group, &dead_letters, reader.offsets()).await;
                stored.map_err(IngestError::Store)?;
            }
            self.outage.recovered();
        }
        Ok(())
    }
}
