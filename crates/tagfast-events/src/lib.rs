//! The event envelope, the bus port, the consumer runtime and the dead letters.
//!
//! An event leaves the store only through the outbox. Consumers read a bus, apply newer states and
//! store their position beside the state they applied, so that a crash at any point repeats work
//! and loses none.

pub mod bus;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod consumer;
pub mod dead_letters;
mod diverged;
pub mod envelope;
pub mod error;
mod metric;
pub mod sink;

pub use bus::{
    Anchor, Bus, BusConsumer, BusError, BusPosition, BusRecord, ClusterName, ConsumerGroup,
    Continuity, DeadLetter, FailureClass, Partition, PartitionFacts, PollResult, Positions,
    PublisherEpochs, RecordKind, Watermark,
};
pub use consumer::{
    Consumer, ConsumerDependencies, ConsumerProblem, ConsumerSnapshot, ConsumerState,
    ReplayOutcome, RuntimeOptions, SupervisedConsumer,
};
pub use dead_letters::{
    AuditCursor, AuditEntry, AuditPage, AutoReplayPolicy, DeadLetterCursor, DeadLetterFilter,
    DeadLetterPage, DeadLetterState, DeadLetterStore, DeadLetterStoreError, Due, GroupDeadLetters,
    NewReplayJob, ReplayJob, ReplayResult, ReplayWorker, StoredDeadLetter,
};
pub use diverged::{
    DivergedContent, DivergedContents, DivergedEvent, EndedEpoch, PublishedDocument,
};
pub use envelope::{EnvelopeError, decode, decode_record, encode};
pub use error::BoxError;
pub use metric::METRICS;
pub use sink::{RebuildRequest, RecordVerdict, Sink, SinkError, SinkRecord, Start, VisibleThrough};
