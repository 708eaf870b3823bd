//! The state machine of a dead letter: which action is allowed in which state, and its effect.
//!
//! Pure: stores make their statements from this table, and a property test runs it.
//!
//! ```text
//!                Assign            Apply ──────> Replayed
//!  (parked) ──> Open ──> Open in a job ─ Supersede ─> Superseded
//!                ^  │        │  │
//!                │  │        │  └ Unassign (dry run), FailAgain (counts) ─> Open
//!                │  └────────┴── Discard ──────> Discarded
//! ```
//!
//! Replayed, superseded and discarded are final: a closed dead letter is only ever purged.

use tagfast_domain::UnixMillis;

use super::model::DeadLetterState;
use crate::consumer::state::ReplayOutcome;

/// An action on a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A replay job takes it.
    Assign,
    /// A dry run predicted its outcome: it leaves the job unchanged.
    Unassign,
    /// A replay applied it.
    Apply,
    /// A replay found a newer state.
    Supersede,
    /// A replay failed.
    FailAgain,
    /// An operator gave it up.
    Discard,
}

/// Whether an action requires that a job has the dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobRequirement {
    /// No job may have it.
    Unassigned,
    /// The acting job must have it.
    ActingJob,
    /// Allowed with and without a job.
    Any,
}

/// One row of the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// The state that the action requires.
    pub from: DeadLetterState,
    /// The job that the action requires.
    pub requires: JobRequirement,
    /// The state after it.
    pub to: DeadLetterState,
    /// Whether the acting job has the dead letter afterwards; otherwise no job has it.
    pub joins_job: bool,
    /// Whether it counts as a failed replay and attempt, with a new failure time, code and
    /// message.
    pub counts_failure: bool,
}

impl Transition {
    /// Whether the dead letter is closed afterwards.
    pub const fn closes(&self) -> bool {
        !matches!(self.to, DeadLetterState::Open)
    }
}

impl Action {
    /// All actions.
    pub const ALL: [Self; 6] = [
        Self::Assign,
        Self::Unassign,
        Self::Apply,
        Self::Supersede,
        Self::FailAgain,
        Self::Discard,
    ];

    /// The row of this action: the only states in which it is allowed, and its effect.
    pub const fn transition(self) -> Transition {
        let from = DeadLetterState::Open;
        let leaves_job = Transition {
            from,
            requires: JobRequirement::ActingJob,
            to: DeadLetterState::Open,
            joins_job: false,
            counts_failure: false,
        };
        match self {
            Self::Assign => {
                Transition { requires: JobRequirement::Unassigned, joins_job: true, ..leaves_job }
            }
            Self::Unassign => leaves_job,
            Self::Apply => Transition { to: DeadLetterState::Replayed, ..leaves_job },
            Self::Supersede => Transition { to: DeadLetterState::Superseded, ..leaves_job },
            Self::FailAgain => Transition { counts_failure: true, ..leaves_job },
            Self::Discard => Transition {
                requires: JobRequirement::Any,
                to: DeadLetterState::Discarded,
                ..leaves_job
            },
        }
    }

    /// The action of a job's replay outcome; `None` if nothing was done.
    pub fn of_outcome(outcome: &ReplayOutcome, dry_run: bool) -> Option<Self> {
        match outcome {
            ReplayOutcome::NotHere => None,
            _ if dry_run => Some(Self::Unassign),
            ReplayOutcome::Applied => Some(Self::Apply),
            ReplayOutcome::Superseded => Some(Self::Supersede),
            ReplayOutcome::Failed { .. } => Some(Self::FailAgain),
        }
    }
}

/// The counter of a replay job that the outcome of a dead letter adds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobCounter {
    /// Applied; in a dry run it would be.
    Applied,
    /// A newer state existed.
    Superseded,
    /// Failed again.
    Failed,
}

impl JobCounter {
    /// All counters, in the order of a job's columns.
    pub const ALL: [Self; 3] = [Self::Applied, Self::Superseded, Self::Failed];

    /// The counter of an outcome; `None` if nothing was done.
    pub fn of_outcome(outcome: &ReplayOutcome) -> Option<Self> {
        match outcome {
            ReplayOutcome::NotHere => None,
            ReplayOutcome::Applied => Some(Self::Applied),
            ReplayOutcome::Superseded => Some(Self::Superseded),
            ReplayOutcome::Failed { .. } => Some(Self::Failed),
        }
    }
}

/// The part of a stored dead letter that actions change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterStatus {
    /// Its state.
    pub state: DeadLetterState,
    /// The job that has it; `None` if no job has it.
    pub job: Option<String>,
    /// Failed replays.
    pub replays: u32,
    /// Failed attempts, those before parking included.
    pub attempts: u32,
    /// Last failure, Unix ms.
    pub last_failed_at: UnixMillis,
    /// When it was closed, Unix ms; `None` while open.
    pub closed_at: Option<UnixMillis>,
}

impl DeadLetterStatus {
    /// A dead letter that was just parked.
    pub fn parked(attempts: u32, last_failed_at: UnixMillis) -> Self {
        Self {
            state: DeadLetterState::Open,
            job: None,
            replays: 0,
            attempts,
            last_failed_at,
            closed_at: None,
        }
    }

    /// The status after an action at `at`; `None` if the action is not allowed, in which case
    /// nothing changes. `job` is the acting job, `None` for an operator.
    #[must_use]
    pub fn after(&self, action: Action, job: Option<&str>, at: UnixMillis) -> Option<Self> {
        let transition = action.transition();
        let job_fits = match transition.requires {
            JobRequirement::Unassigned => self.job.is_none(),
            JobRequirement::ActingJob => job.is_some() && self.job.as_deref() == job,
            JobRequirement::Any => true,
        };
        if self.state != transition.from || !job_fits {
            return None;
        }
        let failures = u32::from(transition.counts_failure);
        Some(Self {
            state: transition.to,
            job: job.filter(|_| transition.joins_job).map(str::to_owned),
            replays: self.replays + failures,
            attempts: self.attempts + failures,
            last_failed_at: if transition.counts_failure { at } else { self.last_failed_at },
            closed_at: transition.closes().then_some(at),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JOBS: [&str; 2] = ["one", "other"];

    proptest! {
        /// Whatever jobs and operators do, in whatever order: a closed dead letter never changes, a
        /// job has open ones only, and each failed replay is counted once.
        #[test]
        fn no_sequence_of_actions_breaks_an_invariant(
            steps in prop::collection::vec((0..Action::ALL.len(), 0..JOBS.len()), 0..60),
        ) {
            let mut status = DeadLetterStatus::parked(4, 0);
            let mut failures = 0;
            for (at, (action, job)) in (1..).zip(steps) {
                let (action, job) = (Action::ALL[action], JOBS[job]);
                let before = status.clone();
                let Some(after) = status.after(action, Some(job), at) else { continue };
                prop_assert_eq!(before.state, DeadLetterState::Open, "closed is final");
                failures += u32::from(action == Action::FailAgain);
                prop_assert_eq!(after.replays, failures);
                prop_assert_eq!(after.attempts, 4 + failures);
                prop_assert_eq!(after.closed_at.is_some(), after.state != DeadLetterState::Open);
                prop_assert!(after.job.is_none() || after.state == DeadLetterState::Open);
                prop_assert!(after.last_failed_at >= before.last_failed_at);
                // What an action did cannot be done a second time by the same job.
                if action != Action::Discard && action != Action::Assign {
                    prop_assert_eq!(before.job.as_deref(), Some(job));
                    prop_assert_eq!(after.after(action, Some(job), at), None);
                }
                status = after;
            }
        }
    }

    #[test]
    fn a_dry_run_and_a_partition_elsewhere_change_nothing() {
        let failed = ReplayOutcome::Failed { code: String::new(), message: String::new() };
        for outcome in [ReplayOutcome::Applied, ReplayOutcome::Superseded, failed] {
            assert_eq!(Action::of_outcome(&outcome, true), Some(Action::Unassign));
            assert!(JobCounter::of_outcome(&outcome).is_some(), "a dry run counts");
        }
        assert_eq!(Action::of_outcome(&ReplayOutcome::NotHere, false), None);
        let open = DeadLetterStatus::parked(1, 5);
        let assigned = open.after(Action::Assign, Some("job"), 6).expect("allowed");
        assert_eq!(assigned.after(Action::Unassign, Some("job"), 7), Some(open));
    }

    #[test]
    fn only_the_job_that_has_it_can_close_it() {
        let assigned = DeadLetterStatus::parked(1, 5).after(Action::Assign, Some("a"), 6);
        let assigned = assigned.expect("allowed");
        assert_eq!(assigned.after(Action::Assign, Some("b"), 7), None);
        assert_eq!(assigned.after(Action::Apply, Some("b"), 7), None);
        assert_eq!(assigned.after(Action::Apply, None, 7), None);
        let closed = assigned.after(Action::Apply, Some("a"), 7).expect("allowed");
        assert_eq!((closed.state, closed.closed_at), (DeadLetterState::Replayed, Some(7)));
    }
}
