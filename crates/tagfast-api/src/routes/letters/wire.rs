//! Dead letters as they are asked for and shown.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tagfast_domain::UnixMillis;
use tagfast_domain::time::parse_rfc3339;
use tagfast_events::letters::{FILTER_IDS, content_of};
use tagfast_events::{Job, LetterClass, LetterFilter, LetterState, StoredLetter};
use utoipa::ToSchema;

use crate::call::Call;
use crate::problem::{Code, Problem};
use crate::routes::operations::GroupName;
use crate::time::Stamp;

/// Why a record was parked.
#[derive(Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClassName {
    /// It can never be applied.
    Poison,
    /// Its retries were used up.
    Exhausted,
}

impl From<ClassName> for LetterClass {
    fn from(class: ClassName) -> Self {
        match class {
            ClassName::Poison => Self::Poison,
            ClassName::Exhausted => Self::Exhausted,
        }
    }
}

/// Which letters. Every condition that is there must hold.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LetterFilter)]
pub(crate) struct FilterBody {
    /// These ids.
    #[serde(default)]
    #[schema(max_items = 500)]
    ids: Vec<String>,
    /// The consumer group.
    #[serde(default)]
    group: Option<GroupName>,
    /// Why they were parked.
    #[serde(default)]
    class: Option<ClassName>,
    /// The error code.
    #[serde(default)]
    code: Option<String>,
    /// The tenant.
    #[serde(default)]
    tenant: Option<String>,
    /// The content type.
    #[serde(default, rename = "type")]
    content_type: Option<String>,
    /// The beginning of the content's id.
    #[serde(default)]
    id_prefix: Option<String>,
    /// Last failed at or after this time (RFC 3339).
    #[serde(default)]
    from: Option<String>,
    /// Last failed before this time (RFC 3339).
    #[serde(default)]
    until: Option<String>,
}

pub(super) fn moment(name: &str, text: Option<String>) -> Result<Option<UnixMillis>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let bad = || {
        Problem::new(
            Code::BadTime,
            format!("{name} is not an RFC 3339 time like 2026-01-31T12:00:00Z"),
        )
    };
    parse_rfc3339(&text).map(Some).ok_or_else(bad)
}

impl FilterBody {
    /// The filter; one that lets everything through must be meant.
    pub(super) fn resolved(self, all: bool) -> Result<LetterFilter, Problem> {
        if self.ids.len() > FILTER_IDS {
            let given = self.ids.len() as u64;
            let problem = Problem::new(
                Code::TooLong,
                format!("{given} ids; at most {FILTER_IDS} are allowed"),
            );
            return Err(problem.limit("filter_ids", FILTER_IDS as u64, given));
        }
        let filter = LetterFilter {
            ids: self.ids,
            group: self.group.map(GroupName::group),
            state: None,
            class: self.class.map(LetterClass::from),
            code: self.code,
            tenant: self.tenant,
            content_type: self.content_type,
            id_prefix: self.id_prefix,
            from: moment("from", self.from)?,
            until: moment("until", self.until)?,
            due: None,
        };
        if filter.is_everything() && !all {
            let detail = "the filter matches every letter; say \"all\": true if that is meant";
            return Err(Problem::new(Code::AllNotMeant, detail));
        }
        Ok(filter)
    }
}

/// A dead letter.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub(super) struct LetterBody {
    /// `group/partition/offset` of the record.
    id: String,
    group: String,
    /// `open`, `replayed`, `superseded` or `discarded`.
    state: &'static str,
    /// `poison` or `exhausted`.
    class: &'static str,
    /// A stable error code.
    code: String,
    /// What happened.
    message: String,
    /// How often it was tried in all.
    attempts: u32,
    /// How often it was replayed and failed again.
    replays: u32,
    /// The content's tenant; missing if the record does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_id: Option<String>,
    /// The version of the state it holds; `0` if it does not tell.
    version: String,
    #[schema(value_type = String)]
    first_failed_at: Stamp,
    #[schema(value_type = String)]
    last_failed_at: Stamp,
    /// When it is replayed by itself; missing: never (again).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    next_replay_at: Option<Stamp>,
    /// Why it was discarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl LetterBody {
    pub(super) fn new(call: &Call, stored: &StoredLetter) -> Self {
        let letter = &stored.letter;
        let (tenant, content_type, content_id) = match content_of(&letter.record.key) {
            Some(key) => (
                Some(key.tenant.to_string()),
                Some(key.content.content_type.to_string()),
                Some(key.content.content_id.to_string()),
            ),
            None => (None, None, None),
        };
        let cooldown =
            call.app.parts.letters.as_ref().map(|letters| letters.cooldown).unwrap_or_default();
        let due = cooldown.next(letter.class, stored.replays, letter.last_failed_at);
        Self {
            id: letter.id(),
            group: letter.group.0.to_owned(),
            state: stored.state.as_str(),
            class: letter.class.as_str(),
            code: letter.code.clone(),
            message: letter.message.clone(),
            attempts: letter.attempts,
            replays: stored.replays,
            tenant,
            content_type,
            content_id,
            version: letter.record.version.packed().to_string(),
            first_failed_at: Stamp(letter.first_failed_at),
            last_failed_at: Stamp(letter.last_failed_at),
            next_replay_at: due.filter(|_| stored.state == LetterState::Open).map(Stamp),
            reason: stored.reason.clone(),
        }
    }
}

/// Bytes as text if they are, else in base64.
#[derive(Serialize, ToSchema)]
#[schema(as = Bytes)]
pub(super) struct BytesBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl BytesBody {
    pub(super) fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self { text: Some(text.to_owned()), base64: None },
            Err(_) => Self { text: None, base64: Some(STANDARD.encode(bytes)) },
        }
    }
}

/// A header of a record.
#[derive(Serialize, ToSchema)]
#[schema(as = RecordHeader)]
pub(super) struct HeaderBody {
    pub(super) name: String,
    pub(super) value: BytesBody,
}

/// A dead letter with all that is in it.
#[derive(Serialize, ToSchema)]
#[schema(as = WholeDeadLetter)]
pub(super) struct WholeBody {
    #[serde(flatten)]
    pub(super) letter: LetterBody,
    /// Where the record was.
    pub(super) partition: u16,
    /// Its place there.
    pub(super) offset: u64,
    /// The record's key.
    pub(super) key: BytesBody,
    /// The record's headers, as they were.
    pub(super) headers: Vec<HeaderBody>,
    /// The record's value, as it was.
    pub(super) payload: BytesBody,
}

/// A replay and how far it is.
#[derive(Serialize, ToSchema)]
#[schema(as = ReplayJob)]
pub(super) struct JobBody {
    id: String,
    dry_run: bool,
    rate: u32,
    #[schema(value_type = String)]
    created_at: Stamp,
    /// Letters it was given: the open ones of its filter.
    letters: u64,
    /// Letters of the filter that are not open any more.
    closed: u64,
    /// Letters of the filter that another replay has.
    busy: u64,
    /// Applied; in a dry run: would be.
    applied: u64,
    /// A newer state was there already.
    superseded: u64,
    /// Failed again; they stay open.
    failed: u64,
    /// Discarded meanwhile.
    dropped: u64,
    /// Still to be judged.
    left: u64,
}

impl JobBody {
    pub(super) fn new(job: Job) -> Self {
        Self {
            left: job.left(),
            id: job.id,
            dry_run: job.dry_run,
            rate: job.rate,
            created_at: Stamp(job.at),
            letters: job.letters,
            closed: job.closed,
            busy: job.busy,
            applied: job.applied,
            superseded: job.superseded,
            failed: job.failed,
            dropped: job.dropped,
        }
    }
}
