//! Dead letters in the store: states, filters, pages, replay jobs, audit entries.

use std::fmt;
use std::str::FromStr;

use tagfast_domain::{ContentKey, UnixMillis};

use super::policy::AutoReplayPolicy;
use crate::bus::{ConsumerGroup, DeadLetter, FailureClass};
use crate::consumer::state::ReplayOutcome;

/// Dead letters per page, at most.
pub const DEAD_LETTERS_PAGE_MAX: usize = 500;
/// Ids per filter, at most.
pub const FILTER_IDS_MAX: usize = 500;
/// Highest rate of a replay job: dead letters per second and process.
pub const REPLAY_RATE_MAX: u32 = 20_000;
/// Rate of a replay job that names none: dead letters per second and process.
pub const REPLAY_RATE_DEFAULT: u32 = 500;

/// State of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeadLetterState {
    /// Neither replayed nor given up.
    Open,
    /// A replay applied it.
    Replayed,
    /// A newer state of its content was applied first.
    Superseded,
    /// An operator gave it up.
    Discarded,
}

impl DeadLetterState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Open, Self::Replayed, Self::Superseded, Self::Discarded];

    /// The stable word in tables and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Superseded => "superseded",
            Self::Discarded => "discarded",
        }
    }
}

/// The word names no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a state of a dead letter")]
pub struct UnknownState;

impl FromStr for DeadLetterState {
    type Err = UnknownState;
    fn from_str(word: &str) -> Result<Self, UnknownState> {
        Self::ALL.into_iter().find(|state| state.as_str() == word).ok_or(UnknownState)
    }
}

/// A dead letter in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDeadLetter {
    /// The dead letter.
    pub dead_letter: DeadLetter,
    /// Its state.
    pub state: DeadLetterState,
    /// Why it was discarded; `None` in other states.
    pub reason: Option<String>,
    /// Number of failed replays.
    pub replays: u32,
}

/// The content of a record key; `None` if the key is not that of a content.
pub fn content_of(key: &[u8]) -> Option<ContentKey> {
    let text = std::str::from_utf8(key).ok()?;
    let separator = if text.contains('\0') { '\0' } else { '/' };
    let mut parts = text.splitn(3, separator);
    ContentKey::parse(parts.next()?, parts.next()?, parts.next()?).ok()
}

/// Selects dead letters. All conditions that are set must hold; `None` and empty match everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLetterFilter {
    /// One of these ids, at most [`FILTER_IDS_MAX`].
    pub ids: Vec<String>,
    /// Of this consumer group.
    pub group: Option<ConsumerGroup>,
    /// In this state.
    pub state: Option<DeadLetterState>,
    /// Parked for this reason.
    pub class: Option<FailureClass>,
    /// With this error code.
    pub code: Option<String>,
    /// Of this tenant; a dead letter without a content belongs to no tenant.
    pub tenant: Option<String>,
    /// Of this content type.
    pub content_type: Option<String>,
    /// Content id starts with this prefix.
    pub id_prefix: Option<String>,
    /// Last failed at or after this time, Unix ms.
    pub from: Option<UnixMillis>,
    /// Last failed before this time, Unix ms.
    pub until: Option<UnixMillis>,
    /// Due to be replayed automatically.
    pub due: Option<Due>,
}

/// Selects dead letters whose cool-down is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// At this time, Unix ms.
    pub at: UnixMillis,
    /// By this policy.
    pub policy: AutoReplayPolicy,
}

/// A property of a dead letter that a filter compares with a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterField {
    /// Consumer group.
    ConsumerGroup,
    /// State.
    State,
    /// Failure class.
    Class,
    /// Error code.
    Code,
    /// Tenant.
    Tenant,
    /// Content type.
    ContentType,
}

/// One condition of a filter, for stores to translate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Criterion<'a> {
    /// The property has this value.
    Equals(FilterField, &'a str),
    /// The content id lies between the prefix and the second text, compared by bytes, both
    /// included.
    ContentIdWithin(&'a str, String),
    /// Last failed at or after this time, Unix ms.
    FailedFrom(UnixMillis),
    /// Last failed before this time, Unix ms.
    FailedBefore(UnixMillis),
    /// Exhausted, and for one of these numbers of replays last failed at or before the time (Unix
    /// ms). Empty: nothing matches.
    Due(Vec<(u32, UnixMillis)>),
    /// One of these ids.
    Ids(&'a [String]),
}

impl DeadLetterFilter {
    /// Whether no condition but the state is set.
    pub fn is_everything(&self) -> bool {
        *self == Self { state: self.state, ..Self::default() }
    }

    /// The conditions that are set; the ids come last.
    pub fn criteria(&self) -> Vec<Criterion<'_>> {
        let words = [
            (FilterField::ConsumerGroup, self.group.map(|group| group.0)),
            (FilterField::State, self.state.map(DeadLetterState::as_str)),
            (FilterField::Class, self.class.map(FailureClass::as_str)),
            (FilterField::Code, self.code.as_deref()),
            (FilterField::Tenant, self.tenant.as_deref()),
            (FilterField::ContentType, self.content_type.as_deref()),
        ];
        let equals = words.into_iter().filter_map(|(field, w)| Some(Criterion::Equals(field, w?)));
        let mut all: Vec<Criterion<'_>> = equals.collect();
        // By bytes, no text that starts with the prefix is above the prefix with the last character
        // of Unicode.
        all.extend(
            self.id_prefix
                .as_deref()
                .map(|prefix| Criterion::ContentIdWithin(prefix, format!("{prefix}\u{10FFFF}"))),
        );
        all.extend(self.from.map(Criterion::FailedFrom));
        all.extend(self.until.map(Criterion::FailedBefore));
        all.extend(self.due.map(|due| Criterion::Due(due.policy.due_at(due.at))));
        if !self.ids.is_empty() {
            all.push(Criterion::Ids(&self.ids));
        }
        all
    }
}

/// Position behind a dead letter in a list: newest failures first, then by id, descending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterCursor {
    /// Last failure of the last dead letter of the page before, Unix ms.
    pub at: UnixMillis,
    /// Its id.
    pub id: String,
}

/// A page of dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLetterPage {
    /// The dead letters.
    pub dead_letters: Vec<StoredDeadLetter>,
    /// Where the next page begins; `None` on the last page.
    pub next: Option<DeadLetterCursor>,
}

impl DeadLetterPage {
    /// Makes a page from up to `limit + 1` dead letters: the extra one shows that a next page
    /// exists.
    pub fn of(mut dead_letters: Vec<StoredDeadLetter>, limit: usize) -> Self {
        let more = dead_letters.len() > limit;
        dead_letters.truncate(limit);
        let last = dead_letters.last().filter(|_| more);
        let next = last.map(|stored| DeadLetterCursor {
            at: stored.dead_letter.last_failed_at,
            id: stored.dead_letter.id(),
        });
        Self { dead_letters, next }
    }
}

/// A replay job to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReplayJob {
    /// Its id.
    pub id: String,
    /// Predict the outcomes only.
    pub dry_run: bool,
    /// Dead letters per second and process.
    pub rate: u32,
    /// When it was requested, Unix ms.
    pub at: UnixMillis,
}

/// A replay job and its progress.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplayJob {
    /// Its id.
    pub id: String,
    /// Whether it predicts the outcomes only.
    pub dry_run: bool,
    /// Dead letters per second and process.
    pub rate: u32,
    /// When it was requested, Unix ms.
    pub at: UnixMillis,
    /// Dead letters assigned to it.
    pub dead_letters: u64,
    /// Dead letters of the filter that were no longer open.
    pub closed: u64,
    /// Dead letters of the filter that a different job had.
    pub busy: u64,
    /// Applied; in a dry run they would be.
    pub applied: u64,
    /// Superseded by a newer state.
    pub superseded: u64,
    /// Failed again.
    pub failed: u64,
    /// Discarded while the job had them.
    pub dropped: u64,
}

impl ReplayJob {
    /// Dead letters without an outcome.
    pub fn left(&self) -> u64 {
        self.dead_letters
            .saturating_sub(self.applied + self.superseded + self.failed + self.dropped)
    }
}

/// The outcome of one dead letter of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayResult {
    /// Id of the dead letter.
    pub id: String,
    /// Its outcome.
    pub outcome: ReplayOutcome,
}

/// Open dead letters of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDeadLetters {
    /// The consumer group.
    pub group: ConsumerGroup,
    /// Number of open dead letters.
    pub open: u64,
    /// Open dead letters that are not replayed automatically (any more).
    pub needs_attention: u64,
    /// First failure of the oldest open dead letter, Unix ms; `None` without one.
    pub oldest: Option<UnixMillis>,
}

/// An entry of the audit log: an action on dead letters and its actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When, Unix ms.
    pub at: UnixMillis,
    /// The actor: `tenant/user`, or `service` for automatic replays.
    pub actor: String,
    /// `replay`, `dry_run`, `discard`, `show` or `allow_storm`.
    pub action: String,
    /// The filter and the reason.
    pub detail: String,
    /// Number of dead letters.
    pub dead_letters: u64,
}

/// Position behind an entry of the audit log: newest first, then by the order of storing,
/// descending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditCursor {
    /// Time of the last entry of the page before, Unix ms.
    pub at: UnixMillis,
    /// The store's number of that entry.
    pub id: i64,
}

impl AuditCursor {
    /// The newest entry.
    pub const NEWEST: Self = Self { at: i64::MAX, id: i64::MAX };

    /// The newest entry before a time (Unix ms).
    pub fn before(at: UnixMillis) -> Self {
        Self { at, id: i64::MIN }
    }
}

/// A page of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditPage {
    /// The entries, newest first.
    pub entries: Vec<AuditEntry>,
    /// Where the next page begins; `None` on the last page.
    pub next: Option<AuditCursor>,
}

impl AuditPage {
    /// Makes a page from up to `limit + 1` entries with their numbers: the extra one shows that a
    /// next page exists.
    pub fn of(mut numbered: Vec<(i64, AuditEntry)>, limit: usize) -> Self {
        let more = numbered.len() > limit;
        numbered.truncate(limit);
        let last = numbered.last().filter(|_| more);
        let next = last.map(|(id, entry)| AuditCursor { at: entry.at, id: *id });
        Self { entries: numbered.into_iter().map(|(_, entry)| entry).collect(), next }
    }
}

impl fmt::Display for DeadLetterFilter {
    /// For the audit log: only the conditions that are set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        match self.ids.as_slice() {
            [] => {}
            [id] => parts.push(format!("id={id}")),
            ids => parts.push(format!("{} ids", ids.len())),
        }
        let words = [
            ("group", self.group.map(|group| group.0)),
            ("class", self.class.map(FailureClass::as_str)),
            ("code", self.code.as_deref()),
            ("tenant", self.tenant.as_deref()),
            ("type", self.content_type.as_deref()),
            ("id_prefix", self.id_prefix.as_deref()),
        ];
        parts
            .extend(words.into_iter().filter_map(|(name, word)| Some(format!("{name}={}", word?))));
        for (name, at) in
            [("from", self.from), ("until", self.until), ("due", self.due.map(|due| due.at))]
        {
            parts.extend(at.map(|at| format!("{name}={}", tagfast_domain::time::rfc3339(at))));
        }
        write!(f, "{}", if parts.is_empty() { "all".to_owned() } else { parts.join(" ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_names_its_content_by_its_key() {
        let key = ContentKey::parse("t", "page", "a/b").unwrap();
        assert_eq!(content_of(&key.to_bytes()), Some(key.clone()));
        assert_eq!(content_of(b"t/page/a/b"), Some(key));
        for garbage in [&b"\xff\xfe"[..], b"", b"no", b"_hb/3", b"T/page/1"] {
            assert_eq!(content_of(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn a_filter_with_a_state_alone_is_everything() {
        let open =
            DeadLetterFilter { state: Some(DeadLetterState::Open), ..DeadLetterFilter::default() };
        assert!(open.is_everything());
        let filter = DeadLetterFilter {
            code: Some("x".to_owned()),
            from: Some(0),
            ..DeadLetterFilter::default()
        };
        assert!(!filter.is_everything());
        assert_eq!(filter.to_string(), "code=x from=1970-01-01T00:00:00.000Z");
        assert_eq!(DeadLetterFilter::default().to_string(), "all");
    }

    #[test]
    fn a_filter_has_one_criterion_per_condition() {
        assert_eq!(DeadLetterFilter::default().criteria(), []);
        let policy = AutoReplayPolicy { first_ms: 10, factor: 2, times: 0 };
        let filter = DeadLetterFilter {
            ids: vec!["indexer/0/1".to_owned()],
            class: Some(FailureClass::Poison),
            id_prefix: Some("p".to_owned()),
            due: Some(Due { at: 5, policy }),
            ..DeadLetterFilter::default()
        };
        let expected = [
            Criterion::Equals(FilterField::Class, "poison"),
            Criterion::ContentIdWithin("p", "p\u{10FFFF}".to_owned()),
            Criterion::Due(Vec::new()),
            Criterion::Ids(&filter.ids),
        ];
        assert_eq!(filter.criteria(), expected);
    }
}
