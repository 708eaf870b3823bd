//! What lists of the service's own affairs share: cursors that are sealed for a tenant, pages that
//! know whether more follows, and whose items a caller may see.
//!
//! How it fails: a cursor that does not fit is `bad_cursor`; the client starts again without one.

use tagfast_store::SealKind;

use crate::auth::Scope;
use crate::problem::{Code, Problem};
use crate::request::ApiRequest;

/// The answer to a cursor that does not fit.
pub(super) fn bad_cursor() -> Problem {
    Problem::new(Code::BadCursor, "cursor: it is not one that this service issued to you")
}

/// Seals a place in a list.
pub(super) fn seal_cursor(request: &ApiRequest, place: &[u8]) -> String {
    request.services().sealer.seal(SealKind::ListCursor, request.tenant(), place)
}

/// The place that a cursor names.
pub(super) fn open_cursor(request: &ApiRequest, sealed: &str) -> Result<Vec<u8>, Problem> {
    let sealer = &request.services().sealer;
    sealer.open(SealKind::ListCursor, request.tenant(), sealed).map_err(|_| bad_cursor())
}

/// Cuts a list that was read with one item more than the page has. Returns the last item of the
/// page; `None`: nothing follows it.
pub(super) fn cut_page<T>(items: &mut Vec<T>, limit: usize) -> Option<&T> {
    let has_more = items.len() > limit;
    items.truncate(limit);
    items.last().filter(|_| has_more)
}

/// The tenant whose items the caller may see; `None`: all tenants. `own`: that of the caller.
pub(super) fn visible_tenant<T: PartialEq>(
    request: &ApiRequest,
    own: T,
    wanted: Option<T>,
) -> Result<Option<T>, Problem> {
    if request.caller.may(Scope::Admin) {
        return Ok(wanted);
    }
    if wanted.is_some_and(|wanted| wanted != own) {
        request.require(Scope::Admin)?;
    }
    Ok(Some(own))
}
