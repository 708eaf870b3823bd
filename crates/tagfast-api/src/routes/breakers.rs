//! Circuit breakers of this process: how they stand, and holding them by hand.

use std::sync::Arc;

use axum::response::Response;
use serde::{Deserialize, Serialize};
use tagfast_resilience::{BreakerEvent, BreakerLook};
use utoipa::ToSchema;

use crate::call::Admin;
use crate::problem::{Code, Problem};
use crate::time::Stamp;
use crate::wire;

/// Longest reason in characters.
const REASON: usize = 500;

/// The calls of the last ten seconds.
#[derive(Serialize, ToSchema)]
#[schema(as = BreakerWindow)]
struct WindowBody {
    /// Succeeded in time.
    ok: u32,
    /// Failed.
    failed: u32,
    /// Succeeded late.
    slow: u32,
}

/// A breaker.
#[derive(Serialize, ToSchema)]
#[schema(as = Breaker)]
pub(crate) struct BreakerBody {
    /// What it stands before.
    name: String,
    /// `closed` (calls pass), `open` (none does), `half_open` (a few are tried), `forced_open`,
    /// `forced_closed` (by hand).
    #[schema(value_type = String, pattern = "^(closed|open|half_open|forced_open|forced_closed)$")]
    state: &'static str,
    /// Why it came to that: a stable word; `start` before any change.
    #[schema(value_type = String)]
    reason: &'static str,
    /// For how long, in milliseconds.
    since_ms: u64,
    /// Counts the changes.
    generation: u64,
    window: WindowBody,
}

impl From<BreakerLook> for BreakerBody {
    fn from(look: BreakerLook) -> Self {
        Self {
            name: look.name,
            state: look.state.as_str(),
            reason: look.reason,
            since_ms: u64::try_from(look.since.as_millis()).unwrap_or(u64::MAX),
            generation: look.generation,
            window: WindowBody { ok: look.ok, failed: look.failed, slow: look.slow },
        }
    }
}

/// A change of a breaker.
#[derive(Serialize, ToSchema)]
#[schema(as = BreakerEvent)]
pub(crate) struct EventBody {
    #[schema(value_type = String, format = DateTime)]
    at: Stamp,
    name: String,
    /// The state before.
    #[schema(value_type = String)]
    from: &'static str,
    /// The state after.
    #[schema(value_type = String)]
    to: &'static str,
    /// Why: a stable word; `by_hand` when an operator did it.
    #[schema(value_type = String)]
    reason: &'static str,
}

impl From<BreakerEvent> for EventBody {
    fn from(event: BreakerEvent) -> Self {
        let change = event.transition;
        Self {
            at: Stamp(event.at),
            name: change.name,
            from: change.from.as_str(),
            to: change.to.as_str(),
            reason: change.reason,
        }
    }
}

/// The breakers of a process.
#[derive(Serialize, ToSchema)]
#[schema(as = Breakers)]
struct BreakersBody {
    items: Vec<BreakerBody>,
    /// What they did last, newest first; at most 200. The log has all of it.
    events: Vec<EventBody>,
    /// `null`: they are all there.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// The circuit breakers of this process
///
/// Every process has its own; ask each. Their names say what they stand before.
#[utoipa::path(
    get,
    path = "/v1/breakers",
    tag = "operations",
    responses((status = 200, description = "How they stand", body = BreakersBody))
)]
pub(crate) async fn list(Admin(call): Admin) -> Result<Response, Problem> {
    call.no_query()?;
    let breakers = &call.app.parts.breakers;
    Ok(wire::json(&BreakersBody {
        items: breakers.look().into_iter().map(BreakerBody::from).collect(),
        events: breakers.events().into_iter().rev().map(EventBody::from).collect(),
        next_cursor: None,
    }))
}

/// What a breaker is to do.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    /// Let no call through until somebody says otherwise.
    Open,
    /// Let every call through until somebody says otherwise.
    Closed,
    /// Decide by itself again.
    Auto,
}

/// What one breaker is to do, and why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForceBreaker {
    /// Its name, as `GET /v1/breakers` lists it.
    name: String,
    state: Wanted,
    /// Why; 1 to 500 characters. It is in the log.
    #[schema(min_length = 1, max_length = 500, pattern = "\\S")]
    reason: String,
}

/// A breaker after it was held by hand.
#[derive(Serialize, ToSchema)]
#[schema(as = ForcedBreaker)]
struct ForcedBody {
    #[serde(flatten)]
    breaker: BreakerBody,
    /// `process`: the other processes' breakers are as they were.
    #[schema(value_type = String, pattern = "^process$")]
    applies_to: &'static str,
}

/// Holds a circuit breaker open or closed
///
/// Of this process only, until it is set to `auto` or the process ends. The log has who did it and
/// why.
#[utoipa::path(
    post,
    path = "/v1/breakers",
    tag = "operations",
    request_body = ForceBreaker,
    responses((status = 200, description = "How it stands now", body = ForcedBody))
)]
pub(crate) async fn force(Admin(mut call): Admin) -> Result<Response, Problem> {
    call.no_query()?;
    let asked: ForceBreaker = call.json().await?;
    let given = asked.reason.chars().count();
    if asked.reason.trim().is_empty() {
        return Err(Problem::new(Code::Empty, "reason must say why"));
    }
    if given > REASON {
        let problem = Problem::new(
            Code::TooLong,
            format!("reason has {given} characters; at most {REASON} are allowed"),
        );
        return Err(problem.limit("reason_characters", REASON as u64, given as u64));
    }
    let unknown = || Problem::new(Code::UnknownBreaker, "this process has no breaker of that name");
    let breaker = call.app.parts.breakers.get(&asked.name).ok_or_else(unknown)?;
    let (open, word) = match asked.state {
        Wanted::Open => (Some(true), "open"),
        Wanted::Closed => (Some(false), "closed"),
        Wanted::Auto => (None, "auto"),
    };
    let who = &call.who;
    tracing::warn!(
        breaker = breaker.name(),
        to = word,
        reason = asked.reason,
        tenant = who.tenant.as_str(),
        user = who.user.as_str(),
        "a breaker is set by hand"
    );
    breaker.force(open);
    let breaker = Arc::clone(&breaker).look().into();
    Ok(wire::json(&ForcedBody { breaker, applies_to: "process" }))
}
