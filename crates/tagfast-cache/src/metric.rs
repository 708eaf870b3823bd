//! The metrics of this crate.

use tagfast_resilience::{define_metrics, label_enum};

label_enum! {
    /// Who answered a read.
    pub(crate) enum AnsweredBy { L1 = "l1", Redis = "redis", Store = "store", Stale = "stale" }
}
label_enum! {
    /// Why an entry could not answer.
    pub(crate) enum Unproven {
        Expired = "expired", Diverged = "diverged", UnknownEpoch = "unknown_epoch",
        TooOld = "too_old",
    }
}
label_enum! {
    /// Result of a fill of the cache Redis.
    pub(crate) enum FillResult {
        Set = "set", Kept = "kept", Failed = "failed", Dropped = "dropped",
    }
}
label_enum! {
    /// Why a stored entry could not be decoded.
    pub(crate) enum Unreadable { UnknownFormat = "unknown_format", Corrupted = "corrupted" }
}
label_enum! {
    /// Kind of request that lacked session positions.
    pub(crate) enum RequestKind { Read = "read", Write = "write" }
}

define_metrics! {
    /// The metrics of this crate.
    pub const METRICS;

    /// Views by who answered: l1, redis, store, or stale (an old entry, because the store could not
    /// answer).
    pub(crate) counter READS = "tagfast_cache_reads_total" { answer: AnsweredBy };

    /// Cached entries that could not answer: expired, diverged (may show what a failover lost),
    /// unknown_epoch (this node has not learned of the epoch yet), too_old (the client has seen
    /// more).
    pub(crate) counter UNPROVEN = "tagfast_cache_unproven_total" { reason: Unproven };

    /// Fills of the cache Redis: set, kept (a newer entry was stored), failed, dropped (too many in
    /// flight).
    pub(crate) counter FILLS = "tagfast_cache_fills_total" { result: FillResult };

    /// Entries in Redis that could not be decoded: unknown_format (of a newer program), corrupted.
    /// Corrupted above 0: check the server.
    pub(crate) counter UNREADABLE = "tagfast_cache_unreadable_total" { reason: Unreadable };

    /// Gaps in the sequence of cache invalidations; each expires the L1 entries of one shard.
    pub(crate) counter INVALIDATION_GAPS = "tagfast_cache_invalidation_gaps_total";

    /// Reads and writes without a token whose user's session positions could not be read or stored.
    pub(crate) counter POSITIONS_UNKNOWN = "tagfast_cache_positions_unknown_total" {
        at: RequestKind,
    };

    /// Approximate size of the local cache (L1).
    pub(crate) gauge L1_BYTES = "tagfast_cache_l1_bytes";
}
