//! Metrics of this crate: definitions and how each is recorded.

use tagfast_resilience::{Bounded, LabelEnum, counter, define_metrics, gauge, label_enum};

use crate::bus::{ConsumerGroup, FailureClass, Partition};

label_enum! {
    /// Outcome of a record, as a label.
    pub(crate) enum RecordOutcome {
        Applied = "applied", Superseded = "superseded", Dropped = "dropped", Retried = "retried",
    }
}

label_enum! {
    /// Outcome of a replayed dead letter, as a label.
    pub(crate) enum ReplayLabel {
        Applied = "applied", Superseded = "superseded", Failed = "failed",
    }
}

impl LabelEnum for FailureClass {
    const VALUES: &'static [&'static str] =
        &[FailureClass::Poison.as_str(), FailureClass::Exhausted.as_str()];

    fn as_str(self) -> &'static str {
        FailureClass::as_str(self)
    }
}

/// What bounds the label `group`.
const GROUPS: &str = "consumer groups";

define_metrics! {
    /// All of them.
    pub const METRICS;

    /// Seconds from commit to durable and visible. Above 5 s for a minute: the consumer is too slow
    /// or paused.
    gauge CONSUMER_LAG_SECONDS = "tagfast_consumer_lag_seconds" {
        group in GROUPS,
        partition in "partitions of the bus",
    };

    /// 1 while nothing newer can be proven about what the group feeds: its bus, its sink, or the
    /// heartbeats of a cluster fail. `tagfast status` names the cause.
    gauge CONSUMER_FEED_BROKEN = "tagfast_consumer_feed_broken" { group in GROUPS };

    /// Records by outcome: applied, superseded by a newer state, dropped (a replaced epoch
    /// published them) or retried.
    counter CONSUMER_RECORDS = "tagfast_consumer_records_total" {
        group in GROUPS,
        outcome: RecordOutcome,
    };

    /// Waits because the sink or the bus failed as a whole.
    counter CONSUMER_PAUSES = "tagfast_consumer_pauses_total" { group in GROUPS };

    /// 1 while the breaker between the consumer and its sink is open or probing.
    gauge CONSUMER_BREAKER_OPEN = "tagfast_consumer_breaker_open" { group in GROUPS };

    /// Open dead letters: neither replayed nor discarded. Reported by the leading process.
    gauge DEAD_LETTERS_OPEN = "tagfast_dead_letters_open" { group in GROUPS };

    /// Open dead letters that are no longer replayed automatically. Above 0: `tagfast dead-letters
    /// list`.
    gauge DEAD_LETTERS_NEEDS_ATTENTION = "tagfast_dead_letters_needs_attention" { group in GROUPS };

    /// Age of the oldest open dead letter in seconds; 0 without one. Kafka keeps dead letters for
    /// 14 days.
    gauge DEAD_LETTER_OLDEST_SECONDS = "tagfast_dead_letter_oldest_seconds" { group in GROUPS };

    /// Dead letters replayed: applied, superseded or failed again.
    counter DEAD_LETTER_REPLAYS = "tagfast_dead_letter_replays_total" {
        group in GROUPS,
        outcome: ReplayLabel,
    };

    /// Contents of this process's partitions whose newest state is in a dead letter: answers about
    /// them are out of date.
    gauge STALE_KEYS = "tagfast_stale_keys" { group in GROUPS };

    /// 1 while so many records fail that no more are parked and their partitions wait. `tagfast
    /// status` names the reason; check the newest release and the group's sink.
    gauge DEAD_LETTER_STORM = "tagfast_dead_letter_storm" { group in GROUPS };

    /// Dead letters that could not be written: the group's position waits at their records. Does
    /// the dead-letter topic exist?
    counter DEAD_LETTER_WRITE_FAILURES = "tagfast_dead_letter_write_failures_total" {
        group in GROUPS,
    };

    /// Records parked: poison or exhausted. Any increase needs attention.
    counter DEAD_LETTERS = "tagfast_dead_letters_total" { group in GROUPS, class: FailureClass };
}

fn group_label(group: ConsumerGroup) -> Bounded<&'static str> {
    Bounded(group.0)
}

pub(crate) fn lag(group: ConsumerGroup, partition: Partition, seconds: f64) {
    let partition = Bounded(partition.0.to_string());
    gauge!(CONSUMER_LAG_SECONDS, "group" => group_label(group), "partition" => partition)
        .set(seconds);
}

pub(crate) fn feed_broken(group: ConsumerGroup, broken: bool) {
    gauge!(CONSUMER_FEED_BROKEN, "group" => group_label(group)).set(f64::from(u8::from(broken)));
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
