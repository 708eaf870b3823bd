//! Dead letters: records that a consumer could not apply. They are listed, shown, replayed and
//! discarded here; the audit log records every intervention.
//!
//! Dead letters hold tenants' data. Callers without the scope `admin` see only their own tenant's
//! dead letters and cannot change them.

use std::sync::Arc;

use axum::response::Response;
use serde::Deserialize;
use tagfast_domain::UnixMillis;
use tagfast_events::dead_letters::{REPLAY_RATE_DEFAULT, REPLAY_RATE_MAX};
use tagfast_events::{
    AuditCursor, AuditEntry, ConsumerGroup, DeadLetterCursor, DeadLetterFilter, DeadLetterState,
    DeadLetterStore, FailureClass, NewReplayJob,
};
use utoipa::{IntoParams, ToSchema};

use super::lists::{bad_cursor, open_cursor, seal_cursor, visible_tenant};
use crate::params::{PageItems, Timestamp};
use crate::problem::{Code, Problem, not_in_this_mode};
use crate::request::{Admin, ApiRequest, Read};
use crate::services::DeadLetters;
use crate::wire::dead_letters::{
    ActionName, AllowStorm, AuditEntryBody, AuditLogBody, ClassName, DeadLetterBody,
    DeadLetterDetailBody, DeadLettersBody, DiscardDeadLetters, DiscardedBody, GroupName,
    ReplayDeadLetters, StormBody,
};
use crate::wire::jobs::ReplayJobBody;
use crate::wire::reason::check_reason;
use crate::wire::response::json;

/// How long an allowed storm lasts, in seconds; the consumer enforces it.
const STORM_ALLOWED_SECONDS: u32 = 60;
/// First byte of what follows the time in a cursor of the audit log: no byte of UTF-8.
const AUDIT_CURSOR: u8 = 0xFF;

fn dead_letters(request: &ApiRequest) -> Result<&DeadLetters, Problem> {
    request.services().dead_letters.as_ref().ok_or_else(|| not_in_this_mode("dead letters"))
}

/// The dead-letter store; 501 in a mode without one.
pub(super) fn dead_letter_store(
    request: &ApiRequest,
) -> Result<&Arc<dyn DeadLetterStore>, Problem> {
    dead_letters(request).map(|dead_letters| &dead_letters.store)
}

pub(super) fn not_found(detail: &'static str) -> Problem {
    Problem::new(Code::DeadLetterNotFound, detail)
}

/// Records an intervention of the caller in the log and in the audit log.
async fn audit(
    request: &ApiRequest,
    action: ActionName,
    detail: String,
    dead_letters: u64,
) -> Result<(), Problem> {
    let at = request.now();
    let action = action.as_str();
    let actor = format!("{}/{}", request.tenant(), request.caller.user);
    tracing::info!(actor, action, detail, dead_letters, "dead letters");
    let entry = AuditEntry { at, actor, action: action.to_owned(), detail, dead_letters };
    Ok(dead_letter_store(request)?.audit(&entry).await?)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParams {
    /// The consumer group.
    #[param(value_type = GroupName, inline, required = false, example = "indexer")]
    group: Option<GroupName>,
    /// Their state; without it the open ones.
    #[param(value_type = StateParam, inline, required = false, example = "open")]
    state: Option<StateParam>,
    /// Why they were parked.
    #[param(value_type = ClassName, inline, required = false, example = "poison")]
    class: Option<ClassName>,
    /// The error code.
    #[param(required = false)]
    code: Option<String>,
    /// The tenant; a tenant other than the caller's needs the scope `admin`.
    #[param(required = false)]
    tenant: Option<String>,
    /// The content type.
    #[serde(rename = "type")]
    #[param(required = false)]
    content_type: Option<String>,
    /// The beginning of the content's id.
    #[param(required = false)]
    id_prefix: Option<String>,
    /// Last failed at or after this time.
    #[param(
        value_type = Option<String>,
        required = false,
        format = "date-time",
        example = "2026-01-31T12:00:00Z"
    )]
    from: Option<Timestamp>,
    /// Last failed before this time.
    #[param(
        value_type = Option<String>,
        required = false,
        format = "date-time",
        example = "2026-01-31T12:00:00Z"
    )]
    until: Option<Timestamp>,
    /// Largest number of dead letters.
    #[serde(default)]
    #[param(
        value_type = Option<u32>, required = false, minimum = 1, maximum = 500, example = 50
    )]
    limit: PageItems<50, 500>,
    /// `next_cursor` of the previous page.
    #[param(required = false)]
    cursor: Option<String>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum StateParam {
    Open,
    Replayed,
    Superseded,
    Discarded,
    All,
}

impl StateParam {
    /// `None`: any state.
    fn state(self) -> Option<DeadLetterState> {
        match self {
            Self::Open => Some(DeadLetterState::Open),
            Self::Replayed => Some(DeadLetterState::Replayed),
            Self::Superseded => Some(DeadLetterState::Superseded),
            Self::Discarded => Some(DeadLetterState::Discarded),
            Self::All => None,
        }
    }
}

/// Opens a cursor: a time (Unix ms) and what follows it in the list's order.
fn open_place(request: &ApiRequest, sealed: &str) -> Result<(UnixMillis, Vec<u8>), Problem> {
    let place = open_cursor(request, sealed)?;
    let (at, rest) = place.split_first_chunk::<8>().ok_or_else(bad_cursor)?;
    Ok((i64::from_be_bytes(*at), rest.to_vec()))
}

fn seal_place(request: &ApiRequest, at: UnixMillis, rest: &[u8]) -> String {
    seal_cursor(request, &[at.to_be_bytes().as_slice(), rest].concat())
}

/// The cursor of a list of dead letters: its second part is the id.
fn list_position(request: &ApiRequest, sealed: &str) -> Result<DeadLetterCursor, Problem> {
    let (at, id) = open_place(request, sealed)?;
    Ok(DeadLetterCursor { at, id: String::from_utf8(id).map_err(|_| bad_cursor())? })
}

/// The cursor of the audit log: its second part begins with a byte that no dead letter's id begins
/// with, so that neither list takes the cursor of the other.
fn audit_position(request: &ApiRequest, sealed: &str) -> Result<AuditCursor, Problem> {
    let (at, rest) = open_place(request, sealed)?;
    let id = rest.strip_prefix(&[AUDIT_CURSOR]).and_then(|id| id.try_into().ok());
    Ok(AuditCursor { at, id: i64::from_be_bytes(id.ok_or_else(bad_cursor)?) })
}

/// Events that a consumer could not apply
///
/// Newest failures first. Without the scope `admin` only those of the caller's tenant.
#[utoipa::path(
    get,
    path = "/v1/dead-letters",
    operation_id = "listDeadLetters",
    tag = "operations",
    params(ListParams),
    responses((status = 200, description = "A page of dead letters", body = DeadLettersBody))
)]
pub(crate) async fn list(Read(request, params): Read<ListParams>) -> Result<Response, Problem> {
    let DeadLetters { store, auto_replay } = dead_letters(&request)?;
    let limit = params.limit.checked()?;
    let after = params.cursor.map(|sealed| list_position(&request, &sealed)).transpose()?;
    let filter = DeadLetterFilter {
        ids: Vec::new(),
        group: params.group.map(ConsumerGroup::from),
        state: params.state.unwrap_or(StateParam::Open).state(),
        class: params.class.map(FailureClass::from),
        code: params.code,
        tenant: visible_tenant(&request, request.tenant().as_str().to_owned(), params.tenant)?,
        content_type: params.content_type,
        id_prefix: params.id_prefix,
        from: params.from.map(|from| from.0),
        until: params.until.map(|until| until.0),
        due: None,
    };
    let page = store.list(&filter, after.as_ref(), limit).await?;
    let body = |stored| DeadLetterBody::new(stored, *auto_replay);
    Ok(json(&DeadLettersBody {
        items: page.dead_letters.iter().map(body).collect(),
        next_cursor: page
            .next
            .as_ref()
            .map(|next| seal_place(&request, next.at, next.id.as_bytes())),
    }))
}

/// One dead letter with its record
#[utoipa::path(
    get,
    path = "/v1/dead-letters/{id}",
    operation_id = "getDeadLetter",
    tag = "operations",
    params((
        "id" = String, Path,
        description = "The dead letter's id, percent-encoded as one path segment (`/` is `%2F`).",
        pattern = "^[a-z]+/[0-9]+/[0-9]+$", min_length = 1, max_length = 64,
        example = "indexer/3/1207",
    )),
    responses((status = 200, description = "The dead letter", body = DeadLetterDetailBody))
)]
pub(crate) async fn show(Read(request, _): Read) -> Result<Response, Problem> {
    let id = request.path_segment(3)?.into_owned();
    let filter = DeadLetterFilter {
        ids: vec![id.clone()],
        tenant: visible_tenant(&request, request.tenant().as_str().to_owned(), None)?,
        ..DeadLetterFilter::default()
    };
    let DeadLetters { store, auto_replay } = dead_letters(&request)?;
    let mut page = store.list(&filter, None, 1).await?;
    let stored = page.dead_letters.pop().ok_or_else(|| {
        not_found("there is no such dead letter, or it belongs to a different tenant")
    })?;
    audit(&request, ActionName::Show, format!("id={id}"), 1).await?;
    Ok(json(&DeadLetterDetailBody::new(&stored, *auto_replay)))
}

/// Replays dead letters
///
/// Applies the open dead letters of a filter again, each only if nothing newer was applied since,
/// in the processes that own their partitions. The answer names the job; poll `GET /v1/jobs/{id}`
/// until nothing is left.
#[utoipa::path(
    post,
    path = "/v1/dead-letters:replay",
    operation_id = "replayDeadLetters",
    tag = "operations",
    request_body = ReplayDeadLetters,
    responses((status = 200, description = "The replay job has started", body = ReplayJobBody))
)]
pub(crate) async fn replay(Admin(mut request, _): Admin) -> Result<Response, Problem> {
    dead_letter_store(&request)?;
    let body: ReplayDeadLetters = request.json().await?;
    let rate = body.rate.unwrap_or(REPLAY_RATE_DEFAULT);
    if !(1..=REPLAY_RATE_MAX).contains(&rate) {
        let problem = Problem::new(
            Code::RateOutOfRange,
            format!("rate must be 1 to {REPLAY_RATE_MAX} dead letters per second"),
        );
        return Err(problem.limit("replay_rate", u64::from(REPLAY_RATE_MAX), u64::from(rate)));
    }
    let filter = body.filter.resolve(body.all)?;
    let id = uuid::Uuid::now_v7().to_string();
    let job = NewReplayJob { id, dry_run: body.dry_run, rate, at: request.now() };
    let started = dead_letter_store(&request)?.create_job(&job, &filter).await?;
    let action = if job.dry_run { ActionName::DryRun } else { ActionName::Replay };
    audit(&request, action, format!("job={} {filter}", job.id), started.dead_letters).await?;
    Ok(json(&ReplayJobBody::from(started)))
}

/// Discards dead letters
///
/// Closes the open dead letters of a filter for a reason; they are not replayed any more.
#[utoipa::path(
    post,
    path = "/v1/dead-letters:discard",
    operation_id = "discardDeadLetters",
    tag = "operations",
    request_body = DiscardDeadLetters,
    responses((status = 200, description = "They are closed", body = DiscardedBody))
)]
pub(crate) async fn discard(Admin(mut request, _): Admin) -> Result<Response, Problem> {
    dead_letter_store(&request)?;
    let body: DiscardDeadLetters = request.json().await?;
    check_reason(&body.reason)?;
    let filter = body.filter.resolve(body.all)?;
    let store = dead_letter_store(&request)?;
    let discarded = store.discard(&filter, &body.reason, request.now()).await?;
    audit(&request, ActionName::Discard, format!("{filter}: {}", body.reason), discarded).await?;
    Ok(json(&DiscardedBody { discarded }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditLogParams {
    /// Only entries before this time.
    #[param(
        value_type = Option<String>,
        required = false,
        format = "date-time",
        example = "2026-01-31T12:00:00Z"
    )]
    before: Option<Timestamp>,
    /// Largest number of entries.
    #[serde(default)]
    #[param(
        value_type = Option<u32>, required = false, minimum = 1, maximum = 500, example = 50
    )]
    limit: PageItems<50, 500>,
    /// `next_cursor` of the previous page; `before` is then not looked at.
    #[param(required = false)]
    cursor: Option<String>,
}

/// The audit log of dead letters
///
/// Every replay, discard, display and allowed storm, newest first.
#[utoipa::path(
    get,
    path = "/v1/dead-letters/audit",
    operation_id = "listDeadLetterAudit",
    tag = "operations",
    params(AuditLogParams),
    responses((status = 200, description = "The entries", body = AuditLogBody))
)]
pub(crate) async fn audit_log(
    Admin(request, params): Admin<AuditLogParams>,
) -> Result<Response, Problem> {
    let store = dead_letter_store(&request)?;
    let limit = params.limit.checked()?;
    let after = match (&params.cursor, params.before) {
        (Some(sealed), _) => audit_position(&request, sealed)?,
        (None, Some(before)) => AuditCursor::before(before.0),
        (None, None) => AuditCursor::NEWEST,
    };
    let page = store.audit_log(after, limit).await?;
    let sealed = |next: AuditCursor| {
        let rest = [[AUDIT_CURSOR].as_slice(), &next.id.to_be_bytes()].concat();
        seal_place(&request, next.at, &rest)
    };
    Ok(json(&AuditLogBody {
        items: page.entries.into_iter().map(AuditEntryBody::from).collect(),
        next_cursor: page.next.map(sealed),
    }))
}

/// Lets a consumer park records during a storm
///
/// When so many records fail that the records can hardly be at fault, a consumer stops parking them
/// and waits. If they are at fault after all, this call lets it park them, for one minute. Ask the
/// process that runs the consumer.
#[utoipa::path(
    post,
    path = "/v1/dead-letters:allow-storm",
    operation_id = "allowDeadLetterStorm",
    tag = "operations",
    request_body = AllowStorm,
    responses((status = 200, description = "The consumer parks records again", body = StormBody))
)]
pub(crate) async fn allow_storm(Admin(mut request, _): Admin) -> Result<Response, Problem> {
    let AllowStorm { group, reason } = request.json().await?;
    check_reason(&reason)?;
    let name = ConsumerGroup::from(group).0;
    request.services().operations.allow_storm(name)?;
    tracing::warn!(group = name, reason, "an operator allows a storm of dead letters");
    if request.services().dead_letters.is_some() {
        audit(&request, ActionName::AllowStorm, format!("group={name}: {reason}"), 0).await?;
    }
    Ok(json(&StormBody { group, allowed_seconds: STORM_ALLOWED_SECONDS }))
}
