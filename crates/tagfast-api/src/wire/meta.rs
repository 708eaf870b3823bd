//! How an answer came about: its source, its age, and what it lacks.

use std::time::Duration;

use serde::Serialize;
use tagfast_domain::UnixMillis;
use tagfast_store::{Degraded, Source, View};
use utoipa::ToSchema;

use crate::time::{Rfc3339, age};

/// An index or a count that is older than this is stale, in milliseconds.
pub(crate) const STALE_AFTER_MS: i64 = 30_000;
/// The same as a duration.
pub(crate) const STALE_AFTER: Duration = Duration::from_millis(STALE_AFTER_MS as u64);

/// The source of an answer.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SourceName {
    /// A cache.
    Cache,
    /// The primary; in embedded mode the files.
    Primary,
    /// A replica that was proven fresh enough.
    Replica,
    /// The search index.
    Index,
    /// A last good answer in memory.
    Snapshot,
}

impl From<Source> for SourceName {
    fn from(source: Source) -> Self {
        match source {
            Source::Cache => Self::Cache,
            Source::Primary => Self::Primary,
            Source::Replica => Self::Replica,
            Source::Index => Self::Index,
            Source::Snapshot => Self::Snapshot,
        }
    }
}

/// How an answer came about.
#[derive(Serialize, ToSchema)]
pub(crate) struct Meta {
    /// The source of the answer.
    source: SourceName,
    /// Everything committed before this time is in the answer.
    #[schema(value_type = String, format = DateTime)]
    as_of: Rfc3339,
    /// The age of `as_of`, in milliseconds.
    age_ms: u64,
    /// The answer is older than the service promises.
    pub(crate) stale: bool,
    /// Features that are missing from this answer or incomplete.
    degraded: Vec<DegradedBody>,
}

/// A feature that is missing from an answer or incomplete.
#[derive(Serialize, ToSchema)]
#[schema(as = Degraded)]
pub(crate) struct DegradedBody {
    /// The feature, a stable word.
    pub(crate) feature: String,
    /// Why, a stable word.
    pub(crate) reason: String,
}

impl From<&Degraded> for DegradedBody {
    fn from(degraded: &Degraded) -> Self {
        Self { feature: degraded.feature.to_owned(), reason: degraded.reason.to_owned() }
    }
}

impl From<(String, String)> for DegradedBody {
    fn from((feature, reason): (String, String)) -> Self {
        Self { feature, reason }
    }
}

impl Meta {
    /// The meta of an answer from `source` that has everything committed before `as_of`.
    pub(crate) fn new(source: Source, as_of: UnixMillis, now: UnixMillis) -> Self {
        Self {
            source: source.into(),
            as_of: Rfc3339(as_of),
            age_ms: age(now, as_of).as_millis() as u64,
            stale: now.saturating_sub(as_of) > STALE_AFTER_MS,
            degraded: Vec::new(),
        }
    }

    /// The meta of a view.
    pub(crate) fn of_view(view: &View, now: UnixMillis) -> Self {
        let mut meta = Self::new(view.source, view.as_of, now);
        // The store decides: it knows which consistency the request requires, and an entry that is
        // proven current may be minutes old.
        meta.stale = view.stale;
        view.degraded.iter().for_each(|d| meta.degrade(d.feature, d.reason));
        meta
    }

    /// Whether the answer is stale or lacks a feature.
    pub(crate) fn is_degraded(&self) -> bool {
        self.stale || !self.degraded.is_empty()
    }

    /// Everything committed before this time is in the answer, Unix ms.
    pub(crate) fn as_of(&self) -> UnixMillis {
        self.as_of.0
    }

    /// Makes the answer at most as new as one of its parts.
    pub(crate) fn cap_as_of(&mut self, as_of: UnixMillis, now: UnixMillis) {
        if as_of < self.as_of.0 {
            self.as_of = Rfc3339(as_of);
            self.age_ms = age(now, as_of).as_millis() as u64;
            self.stale |= now.saturating_sub(as_of) > STALE_AFTER_MS;
        }
    }

    /// Names a feature that is missing or incomplete.
    pub(crate) fn degrade(&mut self, feature: &str, reason: &str) {
        self.degraded.push(DegradedBody { feature: feature.to_owned(), reason: reason.to_owned() });
    }
}

/// An answer made from derived data (index, counts), not from the store.
pub(crate) trait Derived: Serialize {
    /// How the answer came about.
    fn meta(&self) -> &Meta;
}
