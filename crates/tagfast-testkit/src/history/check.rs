//! Runs every check over a history, and counts what became of its writes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::record::{History, WriteVerdict};
use super::registers::Registers;
use super::verdicts::{self, LostSpan};
use super::violation::Violation;
use super::{epochs, feed, serial_order, sessions};

/// What became of the writes of a history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Acknowledged writes that are absent and not listed as lost. Must be 0.
    pub absent_unlisted: usize,
    /// Writes whose final verdict is that a repair brought them back.
    pub repaired: usize,
    /// Writes whose final verdict is that they are lost, by the reason.
    pub lost: BTreeMap<String, usize>,
    /// Tags whose last acknowledged write was lost in a period in which the test allows that.
    pub lost_in_allowed_periods: usize,
    /// Acknowledged writes without a final verdict, of those that any reader asked about.
    pub undecided: usize,
    /// What each failover lost of each process, repaired or not.
    pub lost_spans: Vec<LostSpan>,
    /// Of each epoch with a closed repair: its ordinal, and the time from its leader key to the
    /// closing.
    pub repair_times: Vec<(u64, Duration)>,
}

impl Counts {
    /// Adds the counts of another history.
    pub fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.absent_unlisted += other.absent_unlisted;
        self.repaired += other.repaired;
        for (reason, count) in &other.lost {
            *self.lost.entry(reason.clone()).or_default() += count;
        }
        self.lost_in_allowed_periods += other.lost_in_allowed_periods;
        self.undecided += other.undecided;
        self.lost_spans.extend(&other.lost_spans);
        self.repair_times.extend(&other.repair_times);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |d: Duration| format!("{:.0} ms", d.as_secs_f64() * 1000.0);
        write!(
            f,
            "{} acknowledged, {} absent and not listed, {} repaired, lost {:?}, {} undecided",
            self.acknowledged, self.absent_unlisted, self.repaired, self.lost, self.undecided
        )?;
        for span in &self.lost_spans {
            let length = ms(span.length());
            write!(f, "; beyond the fork, node {}: {} over {length}", span.node, span.writes)?;
        }
        for (_, took) in &self.repair_times {
            write!(f, "; repair closed after {}", ms(*took))?;
        }
        Ok(())
    }
}

/// The result of all checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Violated invariants.
    pub violations: Vec<Violation>,
    /// What became of the writes.
    pub counts: Counts,
}

impl History {
    /// Checks everything.
    pub fn check(&self) -> Findings {
        let registers = Registers::of(self);
        let finals = serial_order::final_states(self, &registers);
        let mut violations = finals.violations;
        violations.extend(serial_order::reads(self, &registers));
        violations.extend(serial_order::real_time(self));
        violations.extend(serial_order::conditional_writes(self));
        violations.extend(serial_order::tag_limit(self));
        violations.extend(serial_order::one_effect(self));
        violations.extend(epochs::unique_versions(self));
        violations.extend(epochs::unique_ordinals(self));
        violations.extend(epochs::committed_before_promotion(self));
        violations.extend(verdicts::final_verdicts(self));
        violations.extend(verdicts::lost_is_absent(self, &registers));
        violations.extend(verdicts::loss_bound(self));
        violations.extend(verdicts::replicated_survives(self));
        violations.extend(sessions::fresh_is_current(self));
        violations.extend(sessions::token_is_covered(self, &registers));
        violations.extend(feed::index_equals_primary(self));
        violations.extend(feed::index_goes_forward(self));
        violations.extend(feed::outbox_is_published(self));
        violations.sort();
        violations.dedup();
        let counts = Counts {
            absent_unlisted: finals.missing,
            lost_in_allowed_periods: finals.lost,
            ..self.counts()
        };
        Findings { violations, counts }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts { lost_spans: verdicts::lost_spans(self), ..Counts::default() };
        for write in self.acknowledged() {
            counts.acknowledged += 1;
            match write.final_verdict() {
                Some(WriteVerdict::Kept) => {}
                Some(WriteVerdict::Repaired) => counts.repaired += 1,
                Some(WriteVerdict::Lost(reason)) => {
                    *counts.lost.entry(reason.clone()).or_default() += 1;
                }
                Some(WriteVerdict::Unknown(_)) => counts.undecided += 1,
                None => counts.undecided += usize::from(self.asks_for_verdicts()),
            }
        }
        let closed = |e: &super::record::EpochSeen| {
            e.closed_at.map(|at| (e.ordinal, at.saturating_sub(e.seen_at)))
        };
        counts.repair_times = self.epochs.iter().filter_map(closed).collect();
        counts
    }
}
