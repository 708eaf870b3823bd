//! Bodies of circuit breakers.

use serde::{Deserialize, Serialize};
use tagfast_resilience::{BreakerEvent, BreakerSnapshot, BreakerState};
use utoipa::ToSchema;

use crate::time::Rfc3339;

/// The state of a circuit breaker.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BreakerStateName {
    /// Calls pass.
    Closed,
    /// No call passes.
    Open,
    /// A few calls probe.
    HalfOpen,
    /// An operator holds it open.
    ForcedOpen,
    /// An operator holds it closed.
    ForcedClosed,
}

impl From<BreakerState> for BreakerStateName {
    fn from(state: BreakerState) -> Self {
        match state {
            BreakerState::Closed => Self::Closed,
            BreakerState::Open => Self::Open,
            BreakerState::HalfOpen => Self::HalfOpen,
            BreakerState::ForcedOpen => Self::ForcedOpen,
            BreakerState::ForcedClosed => Self::ForcedClosed,
        }
    }
}

/// The calls of the last ten seconds.
#[derive(Serialize, ToSchema)]
#[schema(as = BreakerWindow)]
struct WindowBody {
    /// Calls that succeeded in time.
    ok: u32,
    /// Calls that failed.
    failed: u32,
    /// Calls that succeeded late.
    slow: u32,
}

/// A circuit breaker.
#[derive(Serialize, ToSchema)]
#[schema(as = Breaker)]
pub(crate) struct BreakerBody {
    /// The dependency that it guards.
    name: String,
    /// `closed` (calls pass), `open` (no call passes), `half_open` (a few calls probe),
    /// `forced_open`, `forced_closed` (by an operator).
    state: BreakerStateName,
    /// Why it has this state, a stable word; `start` before any change.
    #[schema(value_type = String)]
    reason: &'static str,
    /// Milliseconds in this state.
    since_ms: u64,
    /// Number of changes since the start.
    generation: u64,
    window: WindowBody,
}

impl From<BreakerSnapshot> for BreakerBody {
    fn from(snapshot: BreakerSnapshot) -> Self {
        Self {
            name: snapshot.name,
            state: snapshot.state.into(),
            reason: snapshot.reason,
            since_ms: u64::try_from(snapshot.since.as_millis()).unwrap_or(u64::MAX),
            generation: snapshot.generation,
            window: WindowBody { ok: snapshot.ok, failed: snapshot.failed, slow: snapshot.slow },
        }
    }
}

/// A change of a circuit breaker.
#[derive(Serialize, ToSchema)]
#[schema(as = BreakerEvent)]
pub(crate) struct BreakerEventBody {
    #[schema(value_type = String, format = DateTime)]
    at: Rfc3339,
    name: String,
    /// The state before.
    from: BreakerStateName,
    /// The state after.
    to: BreakerStateName,
    /// Why, a stable word; `by_hand` when an operator did it.
    #[schema(value_type = String)]
    reason: &'static str,
}

impl From<BreakerEvent> for BreakerEventBody {
    fn from(event: BreakerEvent) -> Self {
        let change = event.transition;
        Self {
            at: Rfc3339(event.at),
            name: change.name,
            from: change.from.into(),
            to: change.to.into(),
            reason: change.reason,
        }
    }
}

/// The circuit breakers of a process.
#[derive(Serialize, ToSchema)]
#[schema(as = Breakers)]
pub(crate) struct BreakersBody {
    pub(crate) items: Vec<BreakerBody>,
    /// Their last changes, newest first; at most 200. The log has all of them.
    pub(crate) events: Vec<BreakerEventBody>,
    /// Always `null`: the list is complete.
    #[schema(required = true)]
    pub(crate) next_cursor: Option<String>,
}

/// The state to set.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BreakerCommand {
    /// Let no call through until an operator changes it.
    Open,
    /// Let every call through until an operator changes it.
    Closed,
    /// Decide automatically again.
    Auto,
}

impl BreakerCommand {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Auto => "auto",
        }
    }

    /// `Some(true)`: forced open; `Some(false)`: forced closed; `None`: automatic.
    pub(crate) fn forced_open(self) -> Option<bool> {
        match self {
            Self::Open => Some(true),
            Self::Closed => Some(false),
            Self::Auto => None,
        }
    }
}

/// The state to set on a circuit breaker, and why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "index", "state": "open", "reason": "its host is moved"}))]
pub(crate) struct ForceBreaker {
    /// The breaker's name, as `GET /v1/breakers` lists it.
    pub(crate) name: String,
    pub(crate) state: BreakerCommand,
    /// Why; 1 to 1,000 characters. The log keeps it.
    #[schema(min_length = 1, max_length = 1000, pattern = "\\S")]
    pub(crate) reason: String,
}

/// A circuit breaker after its state was set.
#[derive(Serialize, ToSchema)]
#[schema(as = ForcedBreaker)]
pub(crate) struct ForcedBody {
    #[serde(flatten)]
    pub(crate) breaker: BreakerBody,
    /// The breakers of other processes did not change.
    pub(crate) applies_to: AppliesTo,
}

/// What a forced state applies to.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AppliesTo {
    /// The process that answered.
    Process,
}
