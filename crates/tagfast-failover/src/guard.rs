//! The guard of loss: how much acknowledged and unreplicated work a failover may find.
//!
//! The *exposure* is the age of the oldest acknowledged write that no replica has. Below half of
//! the largest loss that is accepted the guard does nothing; then writes are throttled; then a
//! commit is acknowledged only when a replica has it; and when that takes long, or no replica
//! streams, new writes are refused before they reach the database, until a replica has what was
//! acknowledged.
//!
//! How it fails: towards refusing. A poll of the replicas that fails leaves the old positions, so
//! the exposure grows. The guard is no fence: a replaced primary whose replica still follows it is
//! covered.

use std::time::Duration;

/// Kept back from the largest loss: a poll of the replicas, its way, and a group commit.
pub const GUARD_MARGIN: Duration = Duration::from_millis(60);
/// How long commits wait for a replica before new writes are refused.
pub const COVERAGE_WAIT_MAX: Duration = Duration::from_secs(2);
/// Replicas attach again after a failover: for this long their absence refuses nothing.
pub const EPOCH_SETTLE_TIME: Duration = Duration::from_secs(10);

/// What happens to writes that no replica has in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLag {
    /// They wait, then they are refused: the loss is bounded.
    #[default]
    Hold,
    /// They are acknowledged, and the answer says that no replica has them.
    Availability,
}

/// What the guard is asked to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardOptions {
    /// The span of acknowledged writes that one failover may lose.
    pub max_loss: Duration,
    /// What happens beyond it.
    pub on_lag: OnLag,
}

/// Everything the guard decides by.
#[derive(Debug, Clone, Copy)]
pub struct GuardFacts {
    /// The age of the oldest acknowledged write that no replica has.
    pub exposure: Duration,
    /// For how long the oldest commit has waited for a replica; zero: none waits.
    pub waiting: Duration,
    /// The replicas that stream now.
    pub streaming: usize,
    /// Whether the cluster has any member beside its primary; without one no failover can happen.
    pub has_members: bool,
    /// The age of the epoch.
    pub epoch_age: Duration,
}

/// What is done with writes now, from the least to the most careful.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum GuardState {
    /// Commits are acknowledged at once.
    #[default]
    Open,
    /// The same, with small groups, one at a time.
    Throttled,
    /// A commit is acknowledged only when a replica has it.
    Holding,
    /// As `Holding`, and new writes are refused before they reach the database.
    Refusing,
}

impl GuardState {
    /// The stable value in status, metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Throttled => "throttled",
            Self::Holding => "holding",
            Self::Refusing => "refusing",
        }
    }
}

/// Decides what is done with writes.
pub fn guard(options: &GuardOptions, facts: &GuardFacts) -> GuardState {
    if !facts.has_members || facts.exposure < options.max_loss / 2 {
        return GuardState::Open;
    }
    if facts.exposure < options.max_loss.saturating_sub(GUARD_MARGIN) {
        return GuardState::Throttled;
    }
    let settling = facts.epoch_age < EPOCH_SETTLE_TIME;
    // Whose callers were refused does not wait any more; its exposure still tells that a replica
    // which is listed as streaming takes nothing.
    let hopeless = facts.streaming == 0
        || facts.waiting > COVERAGE_WAIT_MAX
        || facts.exposure > options.max_loss + COVERAGE_WAIT_MAX;
    match options.on_lag {
        // Nothing waits; the throttle is all that is left of the bound.
        OnLag::Availability => GuardState::Throttled,
        OnLag::Hold if hopeless && !settling => GuardState::Refusing,
        OnLag::Hold => GuardState::Holding,
    }
}
