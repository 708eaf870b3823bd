//! Dead letters: what could not be applied, found, shown, replayed and given up. Everything that is
//! done is remembered.
//!
//! Letters hold tenants' data: who is no admin sees those of the own tenant only, and changes none.

mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use serde::{Deserialize, Serialize};
use tagfast_events::letters::{MOST_RATE, PAGE_LETTERS, RATE};
use tagfast_events::{
    Act, BookError, Group, LetterBook, LetterClass, LetterCursor, LetterFilter, LetterState, NewJob,
};
use tagfast_store::SealKind;
use utoipa::{IntoParams, ToSchema};

use self::wire::{BytesBody, FilterBody, HeaderBody, JobBody, LetterBody, WholeBody, moment};
use super::operations::GroupName;
use crate::auth::Scope;
use crate::call::{Admin, Call, Read};
use crate::encoding::bad_parameter;
use crate::problem::{Code, Problem, not_in_this_mode};
use crate::time::Stamp;
use crate::wire as answer;

/// Longest reason in characters.
const REASON: usize = 1000;

impl From<BookError> for Problem {
    fn from(error: BookError) -> Self {
        tracing::warn!(%error, "dead letters are unavailable");
        Self::new(Code::LettersUnavailable, "the book of dead letters cannot be reached now")
            .retry_after(Duration::from_secs(1))
    }
}

fn book(call: &Call) -> Result<&Arc<dyn LetterBook>, Problem> {
    call.app
        .parts
        .letters
        .as_ref()
        .map(|letters| &letters.book)
        .ok_or_else(|| not_in_this_mode("dead letters"))
}

/// Who asks, in what is remembered.
fn caller(call: &Call) -> String {
    format!("{}/{}", call.tenant(), call.who.user)
}

async fn note(call: &Call, action: &str, detail: String, letters: u64) -> Result<(), Problem> {
    let (at, by) = (call.app.parts.clock.now_ms(), caller(call));
    tracing::info!(by, action, detail, letters, "dead letters");
    Ok(book(call)?.note(&Act { at, by, action: action.to_owned(), detail, letters }).await?)
}

/// Checks a reason that is remembered.
pub(super) fn check_reason(reason: &str) -> Result<(), Problem> {
    match reason.chars().count() {
        0 => Err(Problem::new(Code::Empty, "reason is empty: say why")),
        1..=REASON => Ok(()),
        given => {
            let detail = format!("reason has {given} characters; at most {REASON} are allowed");
            Err(Problem::new(Code::TooLong, detail).limit(
                "reason_characters",
                REASON as u64,
                given as u64,
            ))
        }
    }
}

/// A page of dead letters.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadLetters)]
struct LettersBody {
    items: Vec<LetterBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query to the OpenAPI document")]
struct ListParameters {
    /// The consumer group.
    #[param(required = false, pattern = "^(indexer|analytics)$", example = "indexer")]
    group: Option<String>,
    /// What has become of them; without it the open ones.
    #[param(
        required = false,
        pattern = "^(open|replayed|superseded|discarded|all)$",
        example = "open"
    )]
    state: Option<String>,
    /// Why they were parked.
    #[param(required = false, pattern = "^(poison|exhausted)$", example = "poison")]
    class: Option<String>,
    /// The error code.
    #[param(required = false)]
    code: Option<String>,
    /// The tenant; another than the own one needs the scope `admin`.
    #[param(required = false)]
    tenant: Option<String>,
    /// The content type.
    #[param(rename = "type", required = false)]
    content_type: Option<String>,
    /// The beginning of the content's id.
    #[param(required = false)]
    id_prefix: Option<String>,
    /// Last failed at or after this time.
    #[param(required = false, format = "date-time", example = "2026-01-31T12:00:00Z")]
    from: Option<String>,
    /// Last failed before this time.
    #[param(required = false, format = "date-time", example = "2026-01-31T12:00:00Z")]
    until: Option<String>,
    /// Most letters.
    #[param(required = false, minimum = 1, maximum = 500, example = 50)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[param(required = false)]
    cursor: Option<String>,
}

const LIST_PARAMETERS: &[&str] = &[
    "group",
    "state",
    "class",
    "code",
    "tenant",
    "type",
    "id_prefix",
    "from",
    "until",
    "limit",
    "cursor",
];

fn word<T>(
    name: &str,
    text: Option<String>,
    known: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Problem> {
    let Some(text) = text else { return Ok(None) };
    known(&text).map(Some).ok_or_else(|| bad_parameter(name, "it is none of its words"))
}

/// Whose letters a caller may see; none: everybody's.
fn visible_tenant(call: &Call, asked: Option<String>) -> Result<Option<String>, Problem> {
    let own = call.tenant().as_str();
    if call.who.may(Scope::Admin) {
        return Ok(asked);
    }
    if asked.as_deref().is_some_and(|asked| asked != own) {
        call.need(Scope::Admin)?;
    }
    Ok(Some(own.to_owned()))
}

fn open_cursor(call: &Call, sealed: &str) -> Result<LetterCursor, Problem> {
    let bad =
        || Problem::new(Code::BadCursor, "cursor: it is not one that this service made for you");
    let body = call
        .app
        .parts
        .sealer
        .open(SealKind::ListCursor, call.tenant(), sealed)
        .map_err(|_| bad())?;
    let (at, id) = body.split_first_chunk::<8>().ok_or_else(bad)?;
    let id = String::from_utf8(id.to_vec()).map_err(|_| bad())?;
    Ok(LetterCursor { at: i64::from_be_bytes(*at), id })
}

fn seal_cursor(call: &Call, cursor: &LetterCursor) -> String {
    let body = [cursor.at.to_be_bytes().as_slice(), cursor.id.as_bytes()].concat();
    call.app.parts.sealer.seal(SealKind::ListCursor, call.tenant(), &body)
}

/// Events that a consumer could not apply
///
/// Newest failures first. Without the scope `admin` those of the own tenant.
#[utoipa::path(
    get,
    path = "/v1/dead-letters",
    tag = "operations",
    params(ListParameters),
    responses((status = 200, description = "A page of letters", body = LettersBody))
)]
pub(crate) async fn list(Read(call): Read) -> Result<Response, Problem> {
    let book = book(&call)?;
    let mut query = call.query(LIST_PARAMETERS)?;
    let state = query.take("state");
    let limit = query.number("limit", 50, PAGE_LETTERS)?;
    let after = query.take("cursor").map(|sealed| open_cursor(&call, &sealed)).transpose()?;
    let time = |name: &'static str, text: Option<String>| {
        moment(name, text).map_err(|_| {
            bad_parameter(name, "it is not an RFC 3339 time like 2026-01-31T12:00:00Z")
        })
    };
    let filter = LetterFilter {
        ids: Vec::new(),
        group: word("group", query.take("group"), Group::named)?,
        state: match state.as_deref() {
            Some("all") => None,
            None => Some(LetterState::Open),
            Some(_) => word("state", state, |text| text.parse().ok())?,
        },
        class: word("class", query.take("class"), LetterClass::named)?,
        code: query.take("code"),
        tenant: visible_tenant(&call, query.take("tenant"))?,
        content_type: query.take("type"),
        id_prefix: query.take("id_prefix"),
        from: time("from", query.take("from"))?,
        until: time("until", query.take("until"))?,
        due: None,
    };
    let page = book.list(&filter, after.as_ref(), limit).await?;
    let items = page.letters.iter().map(|stored| LetterBody::new(&call, stored)).collect();
    Ok(answer::json(&LettersBody {
        items,
        next_cursor: page.next.as_ref().map(|next| seal_cursor(&call, next)),
    }))
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes the path to the OpenAPI document")]
struct LetterPath {
    /// The letter's id, with its slashes encoded.
    #[param(
        pattern = "^[a-z]+%2F[0-9]+%2F[0-9]+$",
        min_length = 1,
        max_length = 64,
        example = "indexer%2F3%2F1207"
    )]
    id: String,
}

fn unknown(what: &'static str) -> Problem {
    Problem::new(Code::UnknownLetter, what)
}

/// One dead letter, whole
#[utoipa::path(
    get,
    path = "/v1/dead-letters/{id}",
    tag = "operations",
    params(LetterPath),
    responses((status = 200, description = "The letter", body = WholeBody))
)]
pub(crate) async fn show(Read(call): Read) -> Result<Response, Problem> {
    call.no_query()?;
    let id = call.segment(3)?.into_owned();
    let filter = LetterFilter {
        ids: vec![id.clone()],
        tenant: visible_tenant(&call, None)?,
        ..LetterFilter::default()
    };
    let mut page = book(&call)?.list(&filter, None, 1).await?;
    let stored = page
        .letters
        .pop()
        .ok_or_else(|| unknown("there is no such letter, or it is another tenant's"))?;
    note(&call, "show", format!("id={id}"), 1).await?;
    let record = &stored.letter.record;
    let headers = record.headers.iter();
    Ok(answer::json(&WholeBody {
        letter: LetterBody::new(&call, &stored),
        partition: record.partition.0,
        offset: record.offset,
        key: BytesBody::new(&record.key),
        headers: headers
            .map(|(name, value)| HeaderBody { name: name.clone(), value: BytesBody::new(value) })
            .collect(),
        payload: BytesBody::new(&record.payload),
    }))
}

/// What to replay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplayLetters {
    /// Which open letters.
    #[serde(default)]
    filter: FilterBody,
    /// Every open letter is meant: needed with a filter that has no condition.
    #[serde(default)]
    all: bool,
    /// Only count what would be applied and what a newer state has superseded.
    #[serde(default)]
    dry_run: bool,
    /// Letters a second in each process; 1 to 20,000, by default 500.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 20_000)]
    rate: Option<u32>,
}

/// Replays dead letters
///
/// Applies the open letters of a filter again, each only if nothing newer was applied since, in the
/// processes that have their partitions. The answer names the job; ask for it until nothing is
/// left.
#[utoipa::path(
    post,
    path = "/v1/dead-letters:replay",
    tag = "operations",
    request_body = ReplayLetters,
    responses((status = 200, description = "It has begun", body = JobBody))
)]
pub(crate) async fn replay(Admin(mut call): Admin) -> Result<Response, Problem> {
    call.no_query()?;
    book(&call)?;
    let asked: ReplayLetters = call.json().await?;
    let rate = asked.rate.unwrap_or(RATE);
    if !(1..=MOST_RATE).contains(&rate) {
        let problem = Problem::new(
            Code::RateOutOfRange,
            format!("rate must be 1 to {MOST_RATE} letters a second"),
        );
        return Err(problem.limit("replay_rate", u64::from(MOST_RATE), u64::from(rate)));
    }
    let filter = asked.filter.resolved(asked.all)?;
    let id = uuid::Uuid::now_v7().to_string();
    let job = NewJob { id, dry_run: asked.dry_run, rate, at: call.app.parts.clock.now_ms() };
    let begun = book(&call)?.begin(&job, &filter).await?;
    let action = if job.dry_run { "dry_run" } else { "replay" };
    note(&call, action, format!("job={} {filter}", job.id), begun.letters).await?;
    Ok(answer::json(&JobBody::new(begun)))
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes the path to the OpenAPI document")]
struct JobPath {
    /// The replay's `id`.
    #[param(pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)]
    job: String,
}

/// How far a replay is
#[utoipa::path(
    get,
    path = "/v1/dead-letter-jobs/{job}",
    tag = "operations",
    params(JobPath),
    responses((status = 200, description = "The replay", body = JobBody))
)]
pub(crate) async fn job(Admin(call): Admin) -> Result<Response, Problem> {
    call.no_query()?;
    let found = book(&call)?.job(&call.segment(3)?).await?;
    Ok(answer::json(&JobBody::new(found.ok_or_else(|| unknown("there is no such replay"))?)))
}

/// What to give up.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiscardLetters {
    /// Which open letters.
    #[serde(default)]
    filter: FilterBody,
    /// Every open letter is meant: needed with a filter that has no condition.
    #[serde(default)]
    all: bool,
    /// Why; 1 to 1,000 characters.
    reason: String,
}

/// What was given up.
#[derive(Serialize, ToSchema)]
#[schema(as = DiscardedLetters)]
struct DiscardedBody {
    discarded: u64,
}

/// Discards dead letters
///
/// The open letters of a filter are closed for a reason and are not replayed any more.
#[utoipa::path(
    post,
    path = "/v1/dead-letters:discard",
    tag = "operations",
    request_body = DiscardLetters,
    responses((status = 200, description = "They are closed", body = DiscardedBody))
)]
pub(crate) async fn discard(Admin(mut call): Admin) -> Result<Response, Problem> {
    call.no_query()?;
    book(&call)?;
    let asked: DiscardLetters = call.json().await?;
    check_reason(&asked.reason)?;
    let filter = asked.filter.resolved(asked.all)?;
    let discarded =
        book(&call)?.discard(&filter, &asked.reason, call.app.parts.clock.now_ms()).await?;
    note(&call, "discard", format!("{filter}: {}", asked.reason), discarded).await?;
    Ok(answer::json(&DiscardedBody { discarded }))
}

/// Something that was done with letters.
#[derive(Serialize, ToSchema)]
#[schema(as = LetterAct)]
struct ActBody {
    #[schema(value_type = String)]
    at: Stamp,
    /// Tenant and user, or `service`.
    by: String,
    /// `replay`, `dry_run`, `discard`, `show` or `allow_storm`.
    action: String,
    /// To which letters, and why.
    detail: String,
    /// How many they were.
    letters: u64,
}

/// What was done with letters, newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = LetterActs)]
struct ActsBody {
    items: Vec<ActBody>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query to the OpenAPI document")]
struct ActsParameters {
    /// Only what was done before this time.
    #[param(required = false, format = "date-time", example = "2026-01-31T12:00:00Z")]
    before: Option<String>,
    /// Most acts.
    #[param(required = false, minimum = 1, maximum = 500, example = 50)]
    limit: Option<u32>,
}

/// Who did what with dead letters
#[utoipa::path(
    get,
    path = "/v1/dead-letter-acts",
    tag = "operations",
    params(ActsParameters),
    responses((status = 200, description = "The acts", body = ActsBody))
)]
pub(crate) async fn acts(Admin(call): Admin) -> Result<Response, Problem> {
    let mut query = call.query(&["before", "limit"])?;
    let limit = query.number("limit", 50, PAGE_LETTERS)?;
    let before = moment("before", query.take("before")).map_err(|_| {
        bad_parameter("before", "it is not an RFC 3339 time like 2026-01-31T12:00:00Z")
    })?;
    let acts = book(&call)?.acts(before, limit).await?;
    let items = acts.into_iter().map(|Act { at, by, action, detail, letters }| ActBody {
        at: Stamp(at),
        by,
        action,
        detail,
        letters,
    });
    Ok(answer::json(&ActsBody { items: items.collect() }))
}

/// A storm to let through.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AllowStorm {
    /// The consumer group.
    group: GroupName,
    /// Why the records are to blame and not what they are applied with; 1 to 1,000 characters.
    reason: String,
}

/// A storm that is let through.
#[derive(Serialize, ToSchema)]
#[schema(as = AllowedStorm)]
struct StormBody {
    group: GroupName,
    allowed_seconds: u32,
}

/// Lets dead letters of a storm be written
///
/// When so many records fail that they cannot be to blame, a consumer parks no more of them and
/// waits. If they are to blame after all, this lets it write them, for a minute. Ask the process
/// that runs the consumer.
#[utoipa::path(
    post,
    path = "/v1/dead-letters:allow-storm",
    tag = "operations",
    request_body = AllowStorm,
    responses((status = 200, description = "They are written from now on", body = StormBody))
)]
pub(crate) async fn allow_storm(Admin(mut call): Admin) -> Result<Response, Problem> {
    call.no_query()?;
    let asked: AllowStorm = call.json().await?;
    check_reason(&asked.reason)?;
    let group = asked.group.group().0;
    call.app.parts.operations.allow_storm(group)?;
    tracing::warn!(group, reason = asked.reason, "the storm of dead letters was allowed");
    if call.app.parts.letters.is_some() {
        note(&call, "allow_storm", format!("group={group}: {}", asked.reason), 0).await?;
    }
    Ok(answer::json(&StormBody { group: asked.group, allowed_seconds: 60 }))
}
