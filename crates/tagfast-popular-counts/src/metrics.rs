//! Metrics of this crate. The consumer runtime records the lag and the records of the
//! consumer group `analytics`.

use tagfast_resilience::define_metrics;

define_metrics! {
    /// Metrics of this crate.
    pub const METRICS;

    /// 1 while this process can write the leaderboards in the state Redis. 0: popular tags keep the
    /// age they have.
    pub(crate) gauge LEADERBOARDS_UP = "tagfast_popular_leaderboards_up";
}
