//! Metrics of this crate: definitions and how each is recorded.

use tagfast_resilience::{
    Bounded, LabelDef, LabelEnum, MetricDef, MetricKind, counter, gauge, label_enum,
};

use crate::bus::{ConsumerGroup, FailureClass, Partition};

label_enum! {
    /// Outcome of a record, as a label.
    pub(crate) enum RecordOutcome {
        Applied = "applied",
        Superseded = "superseded",
        Dropped = "dropped",
        Retried = "retried",
    }
}

label_enum! {
    /// Outcome of a replayed dead letter, as a label.
    pub(crate) enum ReplayLabel {
        Applied = "applied",
        Superseded = "superseded",
        Failed = "failed",
    }
}

impl LabelEnum for FailureClass {
    const VALUES: &'static [&'static str] =
        &[FailureClass::Poison.as_str(), FailureClass::Exhausted.as_str()];

    fn as_str(self) -> &'static str {
        FailureClass::as_str(self)
    }
}

const GROUP: LabelDef = LabelDef::bounded("group", "consumer groups");

const CONSUMER_LAG_SECONDS: MetricDef = MetricDef {
    name: "tagfast_consumer_lag_seconds",
    kind: MetricKind::Gauge,
    labels: &[GROUP, LabelDef::bounded("partition", "partitions of the bus")],
    help: "Seconds from commit to durable and visible. Above 5 s for a minute: the consumer \
           is too slow or paused.",
};
const CONSUMER_RECORDS: MetricDef = MetricDef {
    name: "tagfast_consumer_records_total",
    kind: MetricKind::Counter,
    labels: &[GROUP, LabelDef::of::<RecordOutcome>("outcome")],
    help: "Records by outcome: applied, superseded by a newer state, dropped (a replaced \
           epoch published them) or retried.",
};
const CONSUMER_PAUSES: MetricDef = MetricDef {
    name: "tagfast_consumer_pauses_total",
    kind: MetricKind::Counter,
    labels: &[GROUP],
    help: "Waits because the sink or the bus failed as a whole.",
};
const CONSUMER_BREAKER_OPEN: MetricDef = MetricDef {
    name: "tagfast_consumer_breaker_open",
    kind: MetricKind::Gauge,
    labels: &[GROUP],
    help: "1 while the breaker between the consumer and its sink is open or probing.",
};
const DEAD_LETTERS_OPEN: MetricDef = MetricDef {
    name: "tagfast_dead_letters_open",
    kind: MetricKind::Gauge,
    labels: &[GROUP],
    help: "Open dead letters: neither replayed nor discarded. Reported by the leading \
           process.",
};
const DEAD_LETTERS_NEEDS_ATTENTION: MetricDef = MetricDef {
    name: "tagfast_dead_letters_needs_attention",
    kind: MetricKind::Gauge,
    labels: &[GROUP],
    help: "Open dead letters that are no longer replayed automatically. Above 0: `tagfast \
           dead-letters list`.",
};
const DEAD_LETTER_OLDEST_SECONDS: MetricDef = MetricDef {
    name: "tagfast_dead_letter_oldest_seconds",
    kind: MetricKind::Gauge,
    labels: &[GROUP],
    help: "Age of the oldest open dead letter in seconds; 0 without one. Kafka keeps dead \
           letters for 14 days.",
};
const DEAD_LETTER_REPLAYS: MetricDef = MetricDef {
    name: "tagfast_dead_letter_replays_total",
    kind: MetricKind::Counter,
    labels: &[GROUP, LabelDef::of::<ReplayLabel>("outcome")],
    help: "Dead letters replayed: applied, superseded or failed again.",
};
const STALE_KEYS: MetricDef = MetricDef {
    name: "tagfast_stale_keys",
    kind: MetricKind::Gauge,
    labels: &[GROUP],
    help: "Contents of this process's partitions whose newest state is in a dead letter: \
           answers about them are out of date.",
};
const DEAD_LETTER_STORM: MetricDef = MetricDef {
    name: "tagfast_dead_letter_storm",
    kind: MetricKind::Gauge,
    labels: &[GROUP],
    help: "1 while so many records fail that no more are parked and their partitions wait. \
           `tagfast status` names the reason; check the newest release and the group's \
           sink.",
};
const DEAD_LETTER_WRITE_FAILURES: MetricDef = MetricDef {
    name: "tagfast_dead_letter_write_failures_total",
    kind: MetricKind::Counter,
    labels: &[GROUP],
    help: "Dead letters that could not be written: the group's position waits at their \
           records. Does the dead-letter topic exist?",
};
const DEAD_LETTERS: MetricDef = MetricDef {
    name: "tagfast_dead_letters_total",
    kind: MetricKind::Counter,
    labels: &[GROUP, LabelDef::of::<FailureClass>("class")],
    help: "Records parked: poison or exhausted. Any increase needs attention.",
};

/// All of them.
pub const METRICS: &[MetricDef] = &[
    CONSUMER_LAG_SECONDS,
    CONSUMER_RECORDS,
    CONSUMER_PAUSES,
    CONSUMER_BREAKER_OPEN,
    DEAD_LETTERS_OPEN,
    DEAD_LETTERS_NEEDS_ATTENTION,
    DEAD_LETTER_OLDEST_SECONDS,
    DEAD_LETTER_REPLAYS,
    STALE_KEYS,
    DEAD_LETTER_STORM,
    DEAD_LETTER_WRITE_FAILURES,
    DEAD_LETTERS,
];

fn group_label(group: ConsumerGroup) -> Bounded<&'static str> {
    Bounded(group.0)
}

pub(crate) fn lag(group: ConsumerGroup, partition: Partition, seconds: f64) {
    let partition = Bounded(partition.0.to_string());
    gauge!(CONSUMER_LAG_SECONDS, "group" => group_label(group), "partition" => partition)
        .set(seconds);
}

pub(crate) fn records(group: ConsumerGroup, outcome: RecordOutcome, count: u64) {
    counter!(CONSUMER_RECORDS, "group" => group_label(group), "outcome" => outcome)
        .increment(count);
}

pub(crate) fn paused(group: ConsumerGroup) {
    counter!(CONSUMER_PAUSES, "group" => group_label(group)).increment(1);
}

pub(crate) fn breaker_open(group: ConsumerGroup, open: bool) {
    gauge!(CONSUMER_BREAKER_OPEN, "group" => group_label(group)).set(f64::from(u8::from(open)));
}

pub(crate) fn open_dead_letters(
    group: ConsumerGroup,
    open: u64,
    needs_attention: u64,
    oldest_seconds: f64,
) {
    gauge!(DEAD_LETTERS_OPEN, "group" => group_label(group)).set(open as f64);
    gauge!(DEAD_LETTERS_NEEDS_ATTENTION, "group" => group_label(group)).set(needs_attention as f64);
    gauge!(DEAD_LETTER_OLDEST_SECONDS, "group" => group_label(group)).set(oldest_seconds);
}

pub(crate) fn replayed(group: ConsumerGroup, outcome: ReplayLabel) {
    counter!(DEAD_LETTER_REPLAYS, "group" => group_label(group), "outcome" => outcome).increment(1);
}

pub(crate) fn stale_keys(group: ConsumerGroup, count: usize) {
    gauge!(STALE_KEYS, "group" => group_label(group)).set(count as f64);
}

pub(crate) fn storm(group: ConsumerGroup, active: bool) {
    gauge!(DEAD_LETTER_STORM, "group" => group_label(group)).set(f64::from(u8::from(active)));
}

pub(crate) fn dead_letter_write_failed(group: ConsumerGroup) {
    counter!(DEAD_LETTER_WRITE_FAILURES, "group" => group_label(group)).increment(1);
}

pub(crate) fn parked(group: ConsumerGroup, class: FailureClass) {
    counter!(DEAD_LETTERS, "group" => group_label(group), "class" => class).increment(1);
}
