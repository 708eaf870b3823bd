//! The search port, the query language, and two engines: tantivy and OpenSearch.
//!
//! Search is eventually consistent: it is fed by the bus and says how old it is. It never answers
//! an error as an empty page.

#[cfg(feature = "conformance")]
pub mod conformance;
mod entry;
mod guarded;
mod opensearch;
pub mod port;
pub mod query;
mod tantivy_index;

pub use guarded::{GuardLook, GuardOptions, GuardedIndex};
pub use opensearch::{OpenSearchError, OpenSearchIndex, OpenSearchOptions, SharedProgress};
pub use port::{Hit, SearchError, SearchIndex, SearchPage, SearchRequest, Sort, SortKey, Total};
pub use query::{Query, caret};
pub use tantivy_index::{TantivyIndex, TantivyOptions};

use tagfast_resilience::{LabelDef, MetricDef, MetricKind};

/// Metrics of this crate.
pub const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "tagfast_search_lag_seconds",
        kind: MetricKind::Gauge,
        labels: &[],
        help: "From commit to visible to a search. Above 5 s for a minute: search is behind.",
    },
    MetricDef {
        name: "tagfast_search_commit_seconds",
        kind: MetricKind::Histogram,
        labels: &[],
        help: "Time to commit and show a batch of changes.",
    },
    MetricDef {
        name: "tagfast_search_documents",
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Contents in the index, with those whose last tag went in the last 30 days.",
    },
    MetricDef {
        name: "tagfast_search_segments",
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Segments of the index; every search visits each. Above 30 for minutes: merging does not keep up.",
    },
    MetricDef {
        name: "tagfast_search_queries_total",
        kind: MetricKind::Counter,
        labels: &[LabelDef::bounded("outcome", "TO DO: values")],
        help: "Searches: answered, refused (the query breaks a rule) or unavailable (there is no index to ask).",
    },
    MetricDef {
        name: "tagfast_search_rebuilds_total",
        kind: MetricKind::Counter,
        labels: &[],
        help: "Rebuilds of the index that were completed.",
    },
    MetricDef {
        name: "tagfast_search_in_flight",
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Calls to the index that have not ended. At the limit of 32 everything further is refused.",
    },
    MetricDef {
        name: "tagfast_search_shed_total",
        kind: MetricKind::Counter,
        labels: &[
            LabelDef::bounded("criticality", "TO DO: values"),
            LabelDef::bounded("reason", "TO DO: values"),
        ],
        help: "Calls to the index that were not made: overloaded (too many at once) or breaker_open.",
    },
];

/// Counts how a search ended.
pub(crate) fn count_query<T>(result: &Result<T, SearchError>) {
    let outcome = match result {
        Ok(_) => "answered",
        Err(SearchError::Unavailable(_) | SearchError::Refused { .. }) => "unavailable",
        Err(
            SearchError::Syntax { .. }
            | SearchError::Limit { .. }
            | SearchError::PrefixTooBroad { .. },
        ) => "refused",
    };
    metrics::counter!("tagfast_search_queries_total", "outcome" => outcome).increment(1);
}
