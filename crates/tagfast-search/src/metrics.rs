//! Metrics of the guard, and those that every engine publisher_epochs the same way.

use tagfast_resilience::{LabelDef, LabelValues, MetricDef, MetricKind, counter, label_enum};

use crate::port::SearchError;

label_enum! {
    /// How a search ended.
    pub enum QueryOutcome {
        /// With a page.
        Answered = "answered",
        /// The query breaks a rule.
        Refused = "refused",
        /// The index gave no answer.
        Unavailable = "unavailable",
    }
}

label_enum! {
    /// Why the guard shed a call.
    pub enum GuardRefusal {
        /// No permit was free.
        Overloaded = "overloaded",
        /// The breaker is open.
        BreakerOpen = "breaker_open",
    }
}

/// From commit to visible in search, in seconds.
pub const LAG_SECONDS: MetricDef = MetricDef {
    name: "tagfast_search_lag_seconds",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "From commit to visible to a search. Above 5 s for a minute: search is behind.",
};

/// Duration of a commit or refresh, in seconds.
pub const COMMIT_SECONDS: MetricDef = MetricDef {
    name: "tagfast_search_commit_seconds",
    kind: MetricKind::Histogram,
    labels: &[],
    help: "Time to commit and show a batch of changes.",
};

/// Searches by outcome.
pub const QUERIES_TOTAL: MetricDef = MetricDef {
    name: "tagfast_search_queries_total",
    kind: MetricKind::Counter,
    labels: &[LabelDef::of::<QueryOutcome>("outcome")],
    help: "Searches: answered, refused (the query breaks a rule) or unavailable (there is no index \
           to ask).",
};

/// Completed rebuilds.
pub const REBUILDS_TOTAL: MetricDef = MetricDef {
    name: "tagfast_search_rebuilds_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Rebuilds of the index that were completed.",
};

/// Calls in flight behind the guard.
pub const IN_FLIGHT: MetricDef = MetricDef {
    name: "tagfast_search_in_flight",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Calls to the index that have not ended. At the limit of 32 everything further is \
           refused.",
};

/// Calls that the guard shed.
pub const SHED_TOTAL: MetricDef = MetricDef {
    name: "tagfast_search_shed_total",
    kind: MetricKind::Counter,
    labels: &[
        LabelDef {
            name: "criticality",
            values: LabelValues::Closed(&["sheddable", "degradable", "critical"]),
        },
        LabelDef::of::<GuardRefusal>("reason"),
    ],
    help: "Calls to the index that were not made: overloaded (too many at once) or breaker_open.",
};

/// Metrics that do not depend on the engine.
pub const METRICS: &[MetricDef] =
    &[LAG_SECONDS, COMMIT_SECONDS, QUERIES_TOTAL, REBUILDS_TOTAL, IN_FLIGHT, SHED_TOTAL];

/// Counts a search by its outcome. Engines call it once per search.
pub fn count_query<T>(result: &Result<T, SearchError>) {
    let outcome = match result {
        Ok(_) => QueryOutcome::Answered,
        Err(SearchError::Unavailable(_) | SearchError::Refused { .. }) => QueryOutcome::Unavailable,
        Err(
            SearchError::Syntax { .. }
            | SearchError::Limit { .. }
            | SearchError::PrefixTooBroad { .. },
        ) => QueryOutcome::Refused,
    };
    counter!(QUERIES_TOTAL, "outcome" => outcome).increment(1);
}
