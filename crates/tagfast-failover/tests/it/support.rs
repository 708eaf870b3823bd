//! Short forms of the values that the tests pass around.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::ProptestConfig;
use tagfast_domain::{EpochId, EpochOrdinal, Version, WriteId};
use tagfast_failover::{
    BootTime, EpochRecord, JournaledContent, JournaledWrite, LeaderKey, LeaderObservation,
    LeaseAnswer, LogRange,
};

/// Cases of a property, `factor` times as many with the feature `full`.
pub(crate) fn cases(count: u32, factor: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(feature = "full") { count * factor } else { count },
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Default::default()
    }
}

pub(crate) fn at(ms: u64) -> BootTime {
    BootTime(Duration::from_millis(ms))
}

pub(crate) fn epoch_id(n: u64) -> EpochId {
    EpochId(u128::from(n).to_be_bytes())
}

/// The epoch number `n`, of a term that began at revision 10 `n`.
pub(crate) fn epoch(n: u64, member: &str) -> EpochRecord {
    EpochRecord {
        id: epoch_id(n),
        ordinal: EpochOrdinal(n),
        term: n * 10,
        member: member.to_owned(),
        timeline: u32::try_from(n).expect("a small number"),
        fork_lsn: None,
        timeline_history: None,
        continues: None,
        parent_id: None,
        minted_at: 0,
        minted_by: "a".to_owned(),
    }
}

/// The leader key of the epoch number `n` is held, with a lease that has 19 s left.
pub(crate) fn lease(sent: BootTime, n: u64, member: &str) -> LeaderObservation {
    LeaderObservation {
        revision: n * 10,
        raft_term: 1,
        leader: Some(LeaderKey { create_revision: n * 10, member: member.to_owned() }),
        key_lease: 5,
        lease: Some(LeaseAnswer { id: 5, sent, remaining_s: 19, raft_term: 1 }),
        paused: false,
    }
}

pub(crate) fn range(epoch: u64, flushed: u64) -> LogRange {
    LogRange { epoch: epoch_id(epoch), inside: flushed.saturating_sub(1), flushed }
}

pub(crate) fn version(n: u64) -> Version {
    Version::from_packed(n).expect("63 bits")
}

pub(crate) fn write_id(n: u64) -> WriteId {
    WriteId(u128::from(n).to_be_bytes())
}

pub(crate) fn bytes(text: &str) -> Arc<[u8]> {
    Arc::from(text.as_bytes())
}

/// A content named `key` at a version, with these writes.
pub(crate) fn content(key: &str, made: u64, writes: &[u64]) -> JournaledContent {
    let write = |n: &u64| JournaledWrite { id: write_id(*n), version: version(made), at: 0 };
    JournaledContent {
        key: bytes(key),
        document: bytes(&format!("{key} at {made}")),
        version: version(made),
        writes: writes.iter().map(write).collect(),
    }
}
