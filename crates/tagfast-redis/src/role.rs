//! What a Redis server is used for.

use tagfast_resilience::metric::LabelEnum;

tagfast_resilience::label_enum! {
    /// What a Redis server is used for. The role decides which eviction policy it must have, and is
    /// the label of breakers and metrics.
    pub enum RedisRole {
        /// Cached views; the server may evict them at any time.
        Cache = "cache",
        /// Session positions and leaderboards; the server must not evict anything.
        State = "state",
    }
}

impl std::fmt::Display for RedisRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(LabelEnum::as_str(*self))
    }
}
