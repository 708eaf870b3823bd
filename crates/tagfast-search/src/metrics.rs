//! Metrics of the guard, and those that every engine records the same way.

use tagfast_resilience::{Criticality, counter, define_metrics, label_enum};

use crate::error::SearchError;
use crate::port::SearchResult;

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

define_metrics! {
    /// Metrics that do not depend on the engine.
    pub const METRICS;

    /// From commit to visible to a search. Above 5 s for a minute: search is behind.
    pub gauge LAG_SECONDS = "tagfast_search_lag_seconds";

    /// Time to commit and show a batch of changes.
    pub histogram COMMIT_SECONDS = "tagfast_search_commit_seconds";

    /// Searches: answered, refused (the query breaks a rule) or unavailable (there is no index to
    /// ask).
    pub counter QUERIES_TOTAL = "tagfast_search_queries_total" { outcome: QueryOutcome };

    /// Rebuilds of the index that were completed.
    pub counter REBUILDS_TOTAL = "tagfast_search_rebuilds_total";

    /// 1 while the index is in a state in which it cannot be written or asked. Above 0 for a
    /// minute: `tagfast status` says what is wrong and what ends it.
    pub gauge INDEX_PROBLEM = "tagfast_search_index_problem" {
        problem in "states of the index server",
    };

    /// Calls to the index that have not ended. At the limit of 32 everything further is refused.
    pub gauge IN_FLIGHT = "tagfast_search_in_flight";

    /// Calls to the index that were not made: overloaded (too many at once) or breaker_open.
    pub counter SHED_TOTAL = "tagfast_search_shed_total" {
        criticality: Criticality,
        reason: GuardRefusal,
    };
}

/// Counts a search by its outcome and returns its result. Engines call it once per search.
pub fn count_query<T>(result: SearchResult<T>) -> SearchResult<T> {
    let outcome = match &result {
        Ok(_) => QueryOutcome::Answered,
        Err(
            SearchError::Unavailable(_) | SearchError::Unusable(_) | SearchError::Refused { .. },
        ) => QueryOutcome::Unavailable,
        Err(
            SearchError::Syntax { .. }
            | SearchError::Limit { .. }
            | SearchError::PrefixTooBroad { .. },
        ) => QueryOutcome::Refused,
    };
    counter!(QUERIES_TOTAL, "outcome" => outcome).increment(1);
    result
}
