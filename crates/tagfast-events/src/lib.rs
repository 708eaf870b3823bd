//! The event envelope, the bus port and the consumer runtime.
//!
//! A write's event leaves only through the outbox. Consumers read a bus, apply what is newer and
//! keep their own position beside what they applied, so that a crash at any point repeats work and
//! loses none.

pub mod bus;
mod clerk;
#[cfg(feature = "conformance")]
pub mod conformance;
mod engine;
pub mod envelope;
pub mod letters;
mod progress;
pub mod runtime;
pub mod sink;
mod storm;
mod waiting;

pub use bus::{
    Bus, BusConsumer, BusError, BusPosition, BusRecord, ClusterName, DeadLetter, Emits, Frontier,
    Group, LetterClass, Partition, Polled, Positions, RecordKind,
};
pub use clerk::Clerk;
pub use envelope::{EnvelopeError, decode, decode_record, encode};
pub use letters::{
    Act, BookError, Cooldown, Due, GroupLetters, Job, LetterBook, LetterCursor, LetterFilter,
    LetterPage, LetterState, NewJob, ReplayOutcome, Settled, StoredLetter,
};
pub use runtime::{Consumer, ConsumerSnapshot, ConsumerState, RuntimeOptions};
pub use sink::{RecordVerdict, Sink, SinkError, SinkRecord, Start, Visible};

use tagfast_resilience::{LabelDef, MetricDef, MetricKind};

/// Metrics of this crate.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "tagfast_consumer_lag_seconds",
        kind: MetricKind::Gauge,
        labels: &[
            LabelDef::bounded("group", "TO DO: values"),
            LabelDef::bounded("partition", "TO DO: values"),
        ],
        help: "From commit to durable and visible. Above 5 s for a minute: the consumer does not keep up or is paused.",
    },
    MetricDef {
        name: "tagfast_consumer_records_total",
        kind: MetricKind::Counter,
        labels: &[
            LabelDef::bounded("group", "TO DO: values"),
            LabelDef::bounded("outcome", "TO DO: values"),
        ],
        help: "Records by outcome: applied, superseded, dropped (a replaced epoch's) or retried.",
    },
    MetricDef {
        name: "tagfast_consumer_pauses_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("group", "TO DO: values")],
        help: "Waits because the sink or the bus failed as a whole.",
    },
    MetricDef {
        name: "tagfast_consumer_breaker_open",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("group", "TO DO: values")],
        help: "1 while the consumer waits for what it feeds, or finds out whether it works again.",
    },
    MetricDef {
        name: "tagfast_dead_letters_open",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("group", "TO DO: values")],
        help: "Parked records that nobody has replayed or discarded yet, as of the process that leads.",
    },
    MetricDef {
        name: "tagfast_dead_letters_need_a_person",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("group", "TO DO: values")],
        help: "Open dead letters that are not replayed by themselves any more. Above 0: `tagfast dead-letters list`.",
    },
    MetricDef {
        name: "tagfast_dead_letter_oldest_seconds",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("group", "TO DO: values")],
        help: "Age of the oldest open dead letter; 0 without any. Kafka keeps letters for 14 days.",
    },
    MetricDef {
        name: "tagfast_dead_letter_replays_total",
        kind: MetricKind::Counter,
        labels: &[
            LabelDef::bounded("group", "TO DO: values"),
            LabelDef::bounded("outcome", "TO DO: values"),
        ],
        help: "Letters replayed: applied, superseded or failed again.",
    },
    MetricDef {
        name: "tagfast_stale_keys",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("group", "TO DO: values")],
        help: "Contents of this process's partitions whose newest state lies in a dead letter: what is served of them is old.",
    },
    MetricDef {
        name: "tagfast_dead_letter_storm",
        kind: MetricKind::Gauge,
        labels: &[LabelDef::bounded("group", "TO DO: values")],
        help: "1 while so many records fail that no more are parked: partitions wait. `tagfast status` names the reason; look at the newest release and at what the group feeds.",
    },
    MetricDef {
        name: "tagfast_dead_letter_write_failures_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("group", "TO DO: values")],
        help: "Letters that could not be written: the position of the group waits at their records. Is the dead-letter topic there?",
    },
    MetricDef {
        name: "tagfast_dead_letters_total",
        kind: MetricKind::Counter,
        labels: &[
            LabelDef::bounded("group", "TO DO: values"),
            LabelDef::bounded("class", "TO DO: values"),
        ],
        help: "Records parked: poison or exhausted. Any increase needs a person.",
    },
];
