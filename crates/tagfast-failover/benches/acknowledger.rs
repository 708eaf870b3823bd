//! What the acknowledgement of a write costs beside its commit: journal, proof, guard and coverage,
//! at the rate and the replication lag of a busy cluster. Prints nanoseconds a write, and what the
//! journal holds at most.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tagfast_domain::{EpochId, EpochOrdinal, Version, WriteId};
use tagfast_failover::{
    AckDecision, Acknowledger, BootTime, Commit, EpochRecord, GuardOptions, JournaledContent,
    JournaledWrite, LeaderKey, LeaseAnswer, LogRange, OnLag,
};

/// Contents that are written, so that some are written again while the journal holds them.
const CONTENTS: u64 = 100_000;
const DOCUMENT_BYTES: usize = 400;
/// Microseconds between two polls of the replicas while a group waits.
const POLL_INTERVAL_US: u64 = 5_000;

fn in_epoch(epoch: &EpochRecord) -> Acknowledger {
    let options = GuardOptions { max_loss: Duration::from_secs(1), on_lag: OnLag::Hold };
    let mut node = Acknowledger::new(options, 256 << 20);
    let now = BootTime::default();
    node.set_members(&["r1".to_owned(), "r2".to_owned()], now);
    node.adopt_epoch(epoch, now);
    let leader = LeaderKey { create_revision: epoch.term, member: epoch.member.clone() };
    node.record_lease(&LeaseAnswer { sent: now, leader, remaining_s: 3600, paused: false });
    node
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
fn measure(writes_per_s: u64, lag: Duration, group_writes: u64) {
    let epoch = EpochRecord {
        id: EpochId([1; 16]),
        ordinal: EpochOrdinal(1),
        term: 10,
        member: "p".to_owned(),
        timeline: 1,
        fork_lsn: None,
        timeline_history: None,
        continues: None,
        parent_id: None,
        minted_at: 0,
        minted_by: "bench".to_owned(),
    };
    let mut node = in_epoch(&epoch);
    let document: Arc<[u8]> = Arc::from(vec![7; DOCUMENT_BYTES]);
    let keys: Vec<Arc<[u8]>> =
        (0..CONTENTS).map(|n| Arc::from(format!("acme/test.doc/{n}").as_bytes())).collect();
    let group_us = group_writes * 1_000_000 / writes_per_s;
    let groups = 5_000_000 / group_us;
    let (mut now_us, mut polled_us, mut number, mut bytes_max) = (0, 0, 0u64, 0);
    // The log grows by one position a microsecond.
    let began = Instant::now();
    for _ in 0..groups {
        now_us += group_us;
        let now = BootTime(Duration::from_micros(now_us));
        let contents = (0..group_writes).map(|_| {
            number += 1;
            let id = WriteId(u128::from(number).to_be_bytes());
            let version = Version::from_packed(number).unwrap_or_default();
            JournaledContent {
                key: Arc::clone(&keys[(number * 7919 % CONTENTS) as usize]),
                document: Arc::clone(&document),
                version,
                writes: vec![JournaledWrite { id, version, at: 0 }],
            }
        });
        let contents = contents.collect();
        let at = LogRange { epoch: epoch.id, inside: now_us - 1, flushed: now_us };
        let commit = Commit { epoch: epoch.id, sent: now, returned: now };
        let Some(group) = node.record(commit, at, contents) else { return };
        let decision = node.decide_group(&group, now);
        assert!(matches!(decision, AckDecision::Acknowledge(_)), "{decision:?} at {now:?}");
        bytes_max = bytes_max.max(node.journal().bytes());
        if now_us - polled_us >= POLL_INTERVAL_US {
            polled_us = now_us;
            let flushed = now_us.saturating_sub(lag.as_micros() as u64);
            let positions = [("r1".to_owned(), flushed), ("r2".to_owned(), flushed)];
            node.record_replicas(epoch.id, &positions, now);
        }
    }
    let each_ns = began.elapsed().as_nanos() / u128::from(number);
    println!(
        "{writes_per_s:>6} writes/s, lag {:>4} ms, {group_writes:>3} a group: {each_ns:>5} ns a \
         write, journal at most {:>6} kB",
        lag.as_millis(),
        bytes_max / 1000
    );
}

fn main() {
    for (writes_per_s, lag_ms, group_writes) in
        [(20_000, 100, 1), (20_000, 100, 20), (50_000, 100, 50), (50_000, 900, 1)]
    {
        measure(writes_per_s, Duration::from_millis(lag_ms), group_writes);
    }
}
