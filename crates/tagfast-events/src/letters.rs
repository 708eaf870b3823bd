//! The book of dead letters: what an operator asks about letters, and what is done with them.
//!
//! A letter is open until it was applied again, was found superseded, or was discarded for a
//! reason. A job marks the open letters of a filter; the process that runs the letters' consumer
//! applies those that are marked ([`crate::Clerk`]), so a job needs no lease: whoever has the
//! partition goes on with it. What is applied is judged by version alone, so a letter that is
//! applied twice changes nothing the second time.
//!
//! How it fails: while the book cannot be reached, letters are neither listed nor replayed;
//! consuming and parking go on. State that was lost with a database makes letters open again, which
//! does no harm for the same reason.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use tagfast_domain::{ContentKey, UnixMillis};

use crate::bus::{DeadLetter, Group, LetterClass, Partition};

/// Letters of one page at most.
pub const PAGE_LETTERS: usize = 500;
/// Ids a filter may name.
pub const FILTER_IDS: usize = 500;
/// Letters a second that a replay may apply in each process.
pub const MOST_RATE: u32 = 20_000;
/// Letters a second that a replay applies in each process unless told otherwise.
pub const RATE: u32 = 500;

/// What has become of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LetterState {
    /// Nobody has taken care of it.
    Open,
    /// It was applied.
    Replayed,
    /// A newer state of its content was applied before it.
    Superseded,
    /// Somebody gave it up.
    Discarded,
}

impl LetterState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Open, Self::Replayed, Self::Superseded, Self::Discarded];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Superseded => "superseded",
            Self::Discarded => "discarded",
        }
    }
}

/// The word is none of those that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an unknown word")]
pub struct UnknownWord;

impl FromStr for LetterState {
    type Err = UnknownWord;
    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|state| state.as_str() == word).ok_or(UnknownWord)
    }
}

/// A letter in the book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLetter {
    /// The letter.
    pub letter: DeadLetter,
    /// What has become of it.
    pub state: LetterState,
    /// Why it was discarded.
    pub reason: Option<String>,
    /// How often it was replayed and failed again.
    pub replays: u32,
}

/// The content a letter is about; none if its key is not that of one.
pub fn content_of(key: &[u8]) -> Option<ContentKey> {
    let text = std::str::from_utf8(key).ok()?;
    let separator = if text.contains('\0') { '\0' } else { '/' };
    let mut parts = text.splitn(3, separator);
    ContentKey::parse(parts.next()?, parts.next()?, parts.next()?).ok()
}

/// Which letters. Every condition that is there must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LetterFilter {
    /// These ids, at most [`FILTER_IDS`].
    pub ids: Vec<String>,
    /// Of this group.
    pub group: Option<Group>,
    /// In this state.
    pub state: Option<LetterState>,
    /// Parked for this reason.
    pub class: Option<LetterClass>,
    /// With this error code.
    pub code: Option<String>,
    /// Of this tenant; letters of no known content belong to none.
    pub tenant: Option<String>,
    /// Of this content type.
    pub content_type: Option<String>,
    /// Of contents whose id begins so.
    pub id_prefix: Option<String>,
    /// Last failed at or after this moment.
    pub from: Option<UnixMillis>,
    /// Last failed before this moment.
    pub until: Option<UnixMillis>,
    /// Due to be replayed by themselves.
    pub due: Option<Due>,
}

/// Letters whose cool-down is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// At this moment.
    pub at: UnixMillis,
    /// By this rule.
    pub cooldown: Cooldown,
}

/// A value in a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
}

/// One condition as SQL: its text, and the value that follows it.
pub type Condition = (String, Option<Value>);

impl LetterFilter {
    /// Whether it lets everything through.
    pub fn is_everything(&self) -> bool {
        *self == Self { state: self.state, ..Self::default() }
    }

    /// The conditions, for stores whose columns have these names. The ids are the store's to add.
    pub fn conditions(&self) -> Vec<Condition> {
        let text = |value: &str| Value::Text(value.to_owned());
        let mut all: Vec<Condition> = Vec::new();
        let words = [
            ("grp = ", self.group.map(|group| group.0)),
            ("state = ", self.state.map(LetterState::as_str)),
            ("class = ", self.class.map(LetterClass::as_str)),
            ("code = ", self.code.as_deref()),
            ("tenant = ", self.tenant.as_deref()),
            ("content_type = ", self.content_type.as_deref()),
        ];
        all.extend(
            words
                .into_iter()
                .filter_map(|(column, word)| Some((column.to_owned(), Some(text(word?))))),
        );
        if let Some(prefix) = &self.id_prefix {
            // Compared by bytes: nothing that begins with the prefix is above it with the last
            // character there is.
            all.push(("content_id >= ".to_owned(), Some(text(prefix))));
            all.push((
                "content_id <= ".to_owned(),
                Some(Value::Text(format!("{prefix}\u{10FFFF}"))),
            ));
        }
        let moments = [("last_failed_at >= ", self.from), ("last_failed_at < ", self.until)];
        all.extend(
            moments
                .into_iter()
                .filter_map(|(column, at)| Some((column.to_owned(), Some(Value::Number(at?))))),
        );
        if let Some(Due { at, cooldown }) = self.due {
            let due = |replays| {
                let failed_by = at.saturating_sub(cooldown.wait_ms(replays));
                format!("(replays = {replays} AND last_failed_at <= {failed_by})")
            };
            let any: Vec<String> = (0..cooldown.times).map(due).collect();
            let any = if any.is_empty() { "1 = 0".to_owned() } else { any.join(" OR ") };
            all.push((format!("class = 'exhausted' AND ({any})"), None));
        }
        all
    }
}

/// Behind which letter a page begins: newest failures first, then by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterCursor {
    /// When the last letter of the page before failed last.
    pub at: UnixMillis,
    /// Its id.
    pub id: String,
}

/// A page of letters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LetterPage {
    /// The letters.
    pub letters: Vec<StoredLetter>,
    /// Where the next page begins, if there is one.
    pub next: Option<LetterCursor>,
}

impl LetterPage {
    /// The page of letters of which one more than `limit` was looked for: whether it is there tells
    /// whether there is more.
    pub fn of(mut letters: Vec<StoredLetter>, limit: usize) -> Self {
        let more = letters.len() > limit;
        letters.truncate(limit);
        let last = letters.last().filter(|_| more);
        let next = last.map(|stored| LetterCursor {
            at: stored.letter.last_failed_at,
            id: stored.letter.id(),
        });
        Self { letters, next }
    }
}

/// What is to be done with the letters of a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Its id.
    pub id: String,
    /// Only say what would happen.
    pub dry_run: bool,
    /// Letters a second, in each process.
    pub rate: u32,
    /// When it was asked for.
    pub at: UnixMillis,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// Whether it only says what would happen.
    pub dry_run: bool,
    /// Letters a second, in each process.
    pub rate: u32,
    /// When it was asked for.
    pub at: UnixMillis,
    /// Letters it was given.
    pub letters: u64,
    /// Letters of the filter that are not open any more.
    pub closed: u64,
    /// Letters of the filter that another job has.
    pub busy: u64,
    /// Applied, or in a dry run: would be.
    pub applied: u64,
    /// A newer state was there already.
    pub superseded: u64,
    /// Failed again.
    pub failed: u64,
    /// Taken out of the job by somebody: discarded while it ran.
    pub dropped: u64,
}

impl Job {
    /// Letters that are still to be judged.
    pub fn left(&self) -> u64 {
        self.letters.saturating_sub(self.applied + self.superseded + self.failed + self.dropped)
    }
}

/// What became of one letter of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayOutcome {
    /// Applied; in a dry run: it would be.
    Applied,
    /// A newer state was there already.
    Superseded,
    /// It failed again.
    Failed {
        /// A stable error code.
        code: String,
        /// For people.
        message: String,
    },
    /// Its partition is another process's: nothing was done.
    NotHere,
}

/// A letter of a job and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The letter.
    pub id: String,
    /// Its outcome.
    pub outcome: ReplayOutcome,
}

/// Open letters of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLetters {
    /// The group.
    pub group: Group,
    /// Open ones.
    pub open: u64,
    /// Open ones that are not replayed by themselves (any more): a person has to look at them.
    pub need_a_person: u64,
    /// When the oldest open one failed first.
    pub oldest: Option<UnixMillis>,
}

/// Something that was done with letters, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// When.
    pub at: UnixMillis,
    /// Who: tenant and user, or the service itself.
    pub by: String,
    /// What: `replay`, `dry_run`, `discard`, `show`, `allow_storm`.
    pub action: String,
    /// To what, and why.
    pub detail: String,
    /// How many letters.
    pub letters: u64,
}

/// The book cannot be reached or read now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the book of dead letters is unavailable: {0}")]
pub struct BookError(pub String);

/// The book.
#[async_trait]
pub trait LetterBook: Send + Sync {
    /// Letters of a filter, newest failures first; at most `limit` and [`PAGE_LETTERS`].
    async fn list(
        &self,
        filter: &LetterFilter,
        after: Option<&LetterCursor>,
        limit: usize,
    ) -> Result<LetterPage, BookError>;

    /// The open letters of every group.
    async fn open_letters(&self, cooldown: Cooldown) -> Result<Vec<GroupLetters>, BookError>;

    /// Gives the open letters of a filter to a job.
    async fn begin(&self, job: &NewJob, filter: &LetterFilter) -> Result<Job, BookError>;

    /// A job; none if it is not known (any more).
    async fn job(&self, id: &str) -> Result<Option<Job>, BookError>;

    /// Letters of the oldest unfinished job, of these partitions of a group, in the order of their
    /// offsets.
    async fn take(
        &self,
        group: Group,
        partitions: &[Partition],
        limit: usize,
    ) -> Result<Option<(Job, Vec<StoredLetter>)>, BookError>;

    /// Writes down what became of letters of a job. A letter that is not in the job any more stays
    /// as it is.
    async fn settle(&self, job: &Job, settled: &[Settled], at: UnixMillis)
    -> Result<(), BookError>;

    /// Discards the open letters of a filter; how many they were.
    async fn discard(
        &self,
        filter: &LetterFilter,
        reason: &str,
        at: UnixMillis,
    ) -> Result<u64, BookError>;

    /// Remembers an act.
    async fn note(&self, act: &Act) -> Result<(), BookError>;

    /// Acts, newest first, at most `limit`, before a moment.
    async fn acts(&self, before: Option<UnixMillis>, limit: usize) -> Result<Vec<Act>, BookError>;

    /// Whether this process is the one that replays by itself and tells people. Nothing depends on
    /// it being the only one.
    async fn leads(&self) -> Result<bool, BookError>;

    /// Forgets closed letters, finished jobs and acts of before a moment.
    async fn forget(&self, before: UnixMillis) -> Result<(), BookError>;
}

/// When a letter is replayed by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cooldown {
    /// After its first failure, in milliseconds.
    pub first_ms: i64,
    /// How much longer each next wait is.
    pub factor: i64,
    /// How often at most.
    pub times: u32,
}

impl Default for Cooldown {
    fn default() -> Self {
        Self { first_ms: 300_000, factor: 5, times: 3 }
    }
}

impl Cooldown {
    /// When a letter that failed at `at` after `replays` replays is due. Poison is not: nothing
    /// about it changes by waiting.
    pub fn next(&self, class: LetterClass, replays: u32, at: UnixMillis) -> Option<UnixMillis> {
        if class == LetterClass::Poison || replays >= self.times {
            return None;
        }
        Some(at.saturating_add(self.wait_ms(replays)))
    }

    fn wait_ms(&self, replays: u32) -> i64 {
        self.first_ms.saturating_mul(self.factor.saturating_pow(replays))
    }
}

impl fmt::Display for LetterFilter {
    /// For the audit: only what is set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        match self.ids.as_slice() {
            [] => {}
            [id] => parts.push(format!("id={id}")),
            ids => parts.push(format!("{} ids", ids.len())),
        }
        let words = [
            ("group", self.group.map(|group| group.0)),
            ("class", self.class.map(LetterClass::as_str)),
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
    fn poison_is_never_replayed_by_itself_and_the_rest_a_few_times() {
        let cooldown = Cooldown::default();
        assert_eq!(cooldown.next(LetterClass::Poison, 0, 1), None);
        let due: Vec<_> = (0..4).map(|n| cooldown.next(LetterClass::Exhausted, n, 0)).collect();
        assert_eq!(due, [Some(300_000), Some(1_500_000), Some(7_500_000), None]);
    }

    #[test]
    fn the_content_of_a_letter_is_told_by_its_key() {
        let key = ContentKey::parse("t", "page", "a/b").unwrap();
        assert_eq!(content_of(&key.to_bytes()), Some(key.clone()));
        assert_eq!(content_of(b"t/page/a/b"), Some(key));
        for garbage in [&b"\xff\xfe"[..], b"", b"no", b"_hb/3", b"T/page/1"] {
            assert_eq!(content_of(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn a_filter_with_a_state_alone_is_everything() {
        assert!(
            LetterFilter { state: Some(LetterState::Open), ..LetterFilter::default() }
                .is_everything()
        );
        let filter =
            LetterFilter { code: Some("x".to_owned()), from: Some(0), ..LetterFilter::default() };
        assert!(!filter.is_everything());
        assert_eq!(filter.to_string(), "code=x from=1970-01-01T00:00:00.000Z");
        assert_eq!(LetterFilter::default().to_string(), "all");
    }
}
