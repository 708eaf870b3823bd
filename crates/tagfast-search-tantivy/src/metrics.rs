//! Metrics that only this engine records.

use tagfast_resilience::define_metrics;

define_metrics! {
    /// Metrics of this crate, beside those of `tagfast-search`.
    pub const METRICS;

    /// Contents in the index, with those whose last tag went in the last 30 days.
    pub(crate) gauge DOCUMENTS = "tagfast_search_documents";

    /// Segments of the index; every search visits each. Above 30 for minutes: merging does not keep
    /// up.
    pub(crate) gauge SEGMENTS = "tagfast_search_segments";
}
