//! Bodies of dead letters: filters, listings, details, the audit log.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tagfast_domain::UnixMillis;
use tagfast_domain::time::parse_rfc3339;
use tagfast_events::dead_letters::{FILTER_IDS_MAX, content_of};
use tagfast_events::{
    AuditEntry, AutoReplayPolicy, ConsumerGroup, DeadLetterFilter, DeadLetterState, FailureClass,
    StoredDeadLetter,
};
use utoipa::ToSchema;

use crate::problem::{Code, Problem};
use crate::time::Rfc3339;

/// A consumer group.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GroupName {
    /// Feeds the search index.
    Indexer,
    /// Counts popular tags.
    Analytics,
}

impl From<GroupName> for ConsumerGroup {
    fn from(name: GroupName) -> Self {
        match name {
            GroupName::Indexer => Self::INDEXER,
            GroupName::Analytics => Self::ANALYTICS,
        }
    }
}

/// Why a record was parked.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClassName {
    /// It can never be applied.
    Poison,
    /// Its retries were exhausted.
    Exhausted,
}

impl From<FailureClass> for ClassName {
    fn from(class: FailureClass) -> Self {
        match class {
            FailureClass::Poison => Self::Poison,
            FailureClass::Exhausted => Self::Exhausted,
        }
    }
}

/// The state of a dead letter.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StateName {
    /// Neither replayed nor given up.
    Open,
    /// A replay applied it.
    Replayed,
    /// A newer state of its content was applied first.
    Superseded,
    /// An operator gave it up.
    Discarded,
}

impl From<DeadLetterState> for StateName {
    fn from(state: DeadLetterState) -> Self {
        match state {
            DeadLetterState::Open => Self::Open,
            DeadLetterState::Replayed => Self::Replayed,
            DeadLetterState::Superseded => Self::Superseded,
            DeadLetterState::Discarded => Self::Discarded,
        }
    }
}

/// What was done with dead letters.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ActionName {
    /// A replay job was started.
    Replay,
    /// A replay was tried without applying anything.
    DryRun,
    /// Dead letters were given up.
    Discard,
    /// A dead letter was shown with its record.
    Show,
    /// A consumer was allowed to park records during a storm.
    AllowStorm,
}

impl ActionName {
    /// The word in the audit log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::DryRun => "dry_run",
            Self::Discard => "discard",
            Self::Show => "show",
            Self::AllowStorm => "allow_storm",
        }
    }
}

impl From<ClassName> for FailureClass {
    fn from(class: ClassName) -> Self {
        match class {
            ClassName::Poison => Self::Poison,
            ClassName::Exhausted => Self::Exhausted,
        }
    }
}

/// Which dead letters. All conditions that are present must hold.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DeadLetterFilter, example = json!({"group": "indexer", "class": "exhausted"}))]
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

fn parse_time(name: &str, text: Option<String>) -> Result<Option<UnixMillis>, Problem> {
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
    /// The filter. One without any condition needs `all` as confirmation.
    pub(crate) fn resolve(self, all: bool) -> Result<DeadLetterFilter, Problem> {
        if self.ids.len() > FILTER_IDS_MAX {
            let given = self.ids.len() as u64;
            let problem = Problem::new(
                Code::TooLong,
                format!("{given} ids; at most {FILTER_IDS_MAX} are allowed"),
            );
            return Err(problem.limit("filter_ids", FILTER_IDS_MAX as u64, given));
        }
        let filter = DeadLetterFilter {
            ids: self.ids,
            group: self.group.map(ConsumerGroup::from),
            state: None,
            class: self.class.map(FailureClass::from),
            code: self.code,
            tenant: self.tenant,
            content_type: self.content_type,
            id_prefix: self.id_prefix,
            from: parse_time("from", self.from)?,
            until: parse_time("until", self.until)?,
            due: None,
        };
        if filter.is_everything() && !all {
            let detail = "the filter matches every dead letter; send \"all\": true to confirm";
            return Err(Problem::new(Code::ConfirmationRequired, detail));
        }
        Ok(filter)
    }
}

/// A page of dead letters.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadLetters)]
pub(crate) struct DeadLettersBody {
    pub(crate) items: Vec<DeadLetterBody>,
    /// Where the next page starts; `null` on the last one.
    #[schema(required = true)]
    pub(crate) next_cursor: Option<String>,
}

/// A dead letter.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub(crate) struct DeadLetterBody {
    /// `group/partition/offset` of the record.
    id: String,
    /// The consumer group that could not apply it.
    #[schema(value_type = GroupName)]
    group: &'static str,
    state: StateName,
    /// Why it was parked.
    class: ClassName,
    /// A stable error code.
    code: String,
    /// What happened.
    message: String,
    /// Number of attempts before it was parked.
    attempts: u32,
    /// Number of replays that failed again.
    replays: u32,
    /// The content's tenant; missing if the record does not name one.
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_id: Option<String>,
    /// The version of the state in the record; `0` if the record has none.
    version: String,
    #[schema(value_type = String, format = DateTime)]
    first_failed_at: Rfc3339,
    #[schema(value_type = String, format = DateTime)]
    last_failed_at: Rfc3339,
    /// Time of the next automatic replay; missing: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    next_replay_at: Option<Rfc3339>,
    /// Why it was discarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl DeadLetterBody {
    /// The body of a stored dead letter; `auto_replay` says when it is replayed automatically.
    pub(crate) fn new(stored: &StoredDeadLetter, auto_replay: AutoReplayPolicy) -> Self {
        let dead_letter = &stored.dead_letter;
        let (tenant, content_type, content_id) = match content_of(&dead_letter.record.key) {
            Some(key) => (
                Some(key.tenant.to_string()),
                Some(key.content.content_type.to_string()),
                Some(key.content.content_id.to_string()),
            ),
            None => (None, None, None),
        };
        let due = auto_replay.next_replay_at(
            dead_letter.class,
            stored.replays,
            dead_letter.last_failed_at,
        );
        Self {
            id: dead_letter.id(),
            group: dead_letter.group.0,
            state: stored.state.into(),
            class: dead_letter.class.into(),
            code: dead_letter.code.clone(),
            message: dead_letter.message.clone(),
            attempts: dead_letter.attempts,
            replays: stored.replays,
            tenant,
            content_type,
            content_id,
            version: dead_letter.record.version.packed().to_string(),
            first_failed_at: Rfc3339(dead_letter.first_failed_at),
            last_failed_at: Rfc3339(dead_letter.last_failed_at),
            next_replay_at: due.filter(|_| stored.state == DeadLetterState::Open).map(Rfc3339),
            reason: stored.reason.clone(),
        }
    }
}

/// Bytes: as text if they are UTF-8, else in base64.
#[derive(Serialize, ToSchema)]
#[schema(as = Bytes)]
struct BytesBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl BytesBody {
    fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self { text: Some(text.to_owned()), base64: None },
            Err(_) => Self { text: None, base64: Some(STANDARD.encode(bytes)) },
        }
    }
}

/// A header of a record.
#[derive(Serialize, ToSchema)]
#[schema(as = RecordHeader)]
struct HeaderBody {
    name: String,
    value: BytesBody,
}

/// A dead letter with its whole record.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadLetterDetail)]
pub(crate) struct DeadLetterDetailBody {
    #[serde(flatten)]
    dead_letter: DeadLetterBody,
    /// The record's partition.
    partition: u16,
    /// The record's offset in the partition.
    offset: u64,
    /// The record's key.
    key: BytesBody,
    /// The record's headers, unchanged.
    headers: Vec<HeaderBody>,
    /// The record's value, unchanged.
    payload: BytesBody,
}

impl DeadLetterDetailBody {
    /// As [`DeadLetterBody::new`], with the record.
    pub(crate) fn new(stored: &StoredDeadLetter, auto_replay: AutoReplayPolicy) -> Self {
        let record = &stored.dead_letter.record;
        Self {
            dead_letter: DeadLetterBody::new(stored, auto_replay),
            partition: record.partition.0,
            offset: record.offset,
            key: BytesBody::new(&record.key),
            headers: record
                .headers
                .iter()
                .map(|(name, value)| HeaderBody {
                    name: name.clone(),
                    value: BytesBody::new(value),
                })
                .collect(),
            payload: BytesBody::new(&record.payload),
        }
    }
}

/// Which dead letters to replay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"filter": {"group": "indexer", "class": "exhausted"}, "dry_run": true}))]
pub(crate) struct ReplayDeadLetters {
    /// Which open dead letters.
    #[serde(default)]
    pub(crate) filter: FilterBody,
    /// Confirms a filter without any condition, which matches every open dead letter.
    #[serde(default)]
    pub(crate) all: bool,
    /// Only count what would be applied and what a newer state has superseded.
    #[serde(default)]
    pub(crate) dry_run: bool,
    /// Dead letters per second in each process; 1 to 20,000, by default 500.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 20_000)]
    pub(crate) rate: Option<u32>,
}

/// Which dead letters to discard.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "filter": {"ids": ["indexer/3/1207"]},
    "reason": "test data of a load test",
}))]
pub(crate) struct DiscardDeadLetters {
    /// Which open dead letters.
    #[serde(default)]
    pub(crate) filter: FilterBody,
    /// Confirms a filter without any condition, which matches every open dead letter.
    #[serde(default)]
    pub(crate) all: bool,
    /// Why; 1 to 1,000 characters.
    #[schema(min_length = 1, max_length = 1000, pattern = "\\S")]
    pub(crate) reason: String,
}

/// How many dead letters were discarded.
#[derive(Serialize, ToSchema)]
#[schema(as = DiscardedDeadLetters)]
pub(crate) struct DiscardedBody {
    pub(crate) discarded: u64,
}

/// An entry of the audit log of dead letters.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditEntry)]
pub(crate) struct AuditEntryBody {
    #[schema(value_type = String, format = DateTime)]
    at: Rfc3339,
    /// Tenant and user, or `service`.
    actor: String,
    #[schema(value_type = ActionName)]
    action: String,
    /// Which dead letters, and why.
    detail: String,
    /// The number of dead letters.
    dead_letters: u64,
}

impl From<AuditEntry> for AuditEntryBody {
    fn from(entry: AuditEntry) -> Self {
        Self {
            at: Rfc3339(entry.at),
            actor: entry.actor,
            action: entry.action,
            detail: entry.detail,
            dead_letters: entry.dead_letters,
        }
    }
}

/// The audit log of dead letters, newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditLog)]
pub(crate) struct AuditLogBody {
    pub(crate) items: Vec<AuditEntryBody>,
    /// Where the next page starts; `null` on the last one.
    #[schema(required = true)]
    pub(crate) next_cursor: Option<String>,
}

/// The consumer group whose storm to allow, and why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "group": "indexer",
    "reason": "a broken client wrote these records",
}))]
pub(crate) struct AllowStorm {
    /// The consumer group.
    pub(crate) group: GroupName,
    /// Why the records themselves are at fault and not the index or the counts; 1 to 1,000
    /// characters.
    #[schema(min_length = 1, max_length = 1000, pattern = "\\S")]
    pub(crate) reason: String,
}

/// A storm that is allowed.
#[derive(Serialize, ToSchema)]
#[schema(as = AllowedStorm)]
pub(crate) struct StormBody {
    pub(crate) group: GroupName,
    pub(crate) allowed_seconds: u32,
}
