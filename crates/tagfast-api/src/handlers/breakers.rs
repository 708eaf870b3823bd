//! Circuit breakers of this process: their state, and overriding it.

use std::sync::Arc;

use axum::response::Response;

use crate::problem::{Code, Problem};
use crate::request::Admin;
use crate::wire::breakers::{
    AppliesTo, BreakerBody, BreakerEventBody, BreakersBody, ForceBreaker, ForcedBody,
};
use crate::wire::reason::check_reason;
use crate::wire::response::json;

/// The circuit breakers of this process
///
/// Each process has its own; ask each. A breaker's name says which dependency it guards.
#[utoipa::path(
    get,
    path = "/v1/breakers",
    operation_id = "listBreakers",
    tag = "operations",
    responses((status = 200, description = "The breakers", body = BreakersBody))
)]
pub(crate) async fn list(Admin(request, _): Admin) -> Result<Response, Problem> {
    let breakers = &request.services().breakers;
    Ok(json(&BreakersBody {
        items: breakers.snapshot().into_iter().map(BreakerBody::from).collect(),
        events: breakers.events().into_iter().rev().map(BreakerEventBody::from).collect(),
        next_cursor: None,
    }))
}

/// Forces a circuit breaker open or closed
///
/// Of this process only, until it is set to `auto` or the process ends. The log records who did it
/// and why.
#[utoipa::path(
    post,
    path = "/v1/breakers",
    operation_id = "setBreaker",
    tag = "operations",
    request_body = ForceBreaker,
    responses((status = 200, description = "The breaker's new state", body = ForcedBody))
)]
pub(crate) async fn force(Admin(mut request, _): Admin) -> Result<Response, Problem> {
    let command: ForceBreaker = request.json().await?;
    check_reason(&command.reason)?;
    let breaker = request.services().breakers.get(&command.name).ok_or_else(|| {
        Problem::new(Code::BreakerNotFound, "this process has no breaker of this name")
    })?;
    let caller = &request.caller;
    tracing::warn!(
        breaker = breaker.name(),
        to = command.state.as_str(),
        reason = command.reason,
        tenant = caller.tenant.as_str(),
        user = caller.user.as_str(),
        "an operator sets a breaker"
    );
    breaker.force(command.state.forced_open());
    let breaker = Arc::clone(&breaker).snapshot().into();
    Ok(json(&ForcedBody { breaker, applies_to: AppliesTo::Process }))
}
