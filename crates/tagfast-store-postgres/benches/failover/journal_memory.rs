//! What the journal holds, driven as a lane drives it: 20,000 writes a second, replicas 100 ms
//! behind, documents of real size, each of a content of its own. Time is simulated, memory is real.

use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{
    ApplyContext, ContentKey, Document, Epoch, EpochId, EpochOrdinal, Limits, Operation, Tag,
    UserId, Version, Write, WriteId, apply, codec,
};
use tagfast_failover::{
    AckDecision, Acknowledger, BootTime, Commit, EpochRecord, GuardOptions, JournaledContent,
    JournaledWrite, LeaderKey, LeaseAnswer, LogRange, OnLag,
};

use crate::figure::Figure;

const WRITES_PER_S: u64 = 20_000;
/// How far the replicas are behind, in microseconds.
const LAG_US: u64 = 100_000;
/// Between two polls of the replicas while writes are exposed, in microseconds.
const POLL_INTERVAL_US: u64 = 50_000;
/// How long it goes on, in microseconds.
const LENGTH_US: u64 = 10_000_000;
const TARGET_MB: f64 = 16.0;

fn epoch() -> EpochRecord {
    EpochRecord {
        id: EpochId([1; 16]),
        ordinal: EpochOrdinal(1_800_000_000_000),
        term: 10,
        member: "p".to_owned(),
        timeline: 1,
        fork_lsn: None,
        timeline_history: None,
        continues: None,
        parent_id: None,
        minted_at: 0,
        minted_by: "bench".to_owned(),
    }
}

fn leading(epoch: &EpochRecord) -> Acknowledger {
    let options = GuardOptions { max_loss: Duration::from_secs(1), on_lag: OnLag::Hold };
    let mut node = Acknowledger::new(options, 256 << 20);
    let now = BootTime::default();
    node.set_members(&["r1".to_owned(), "r2".to_owned()], now);
    node.adopt_epoch(epoch, now);
    let leader = LeaderKey { create_revision: epoch.term, member: epoch.member.clone() };
    node.record_lease(&LeaseAnswer { sent: now, leader, remaining_s: 3600, paused: false });
    node
}

/// The encoded document of a content with five tags, each added by its own write.
fn document(epoch: &EpochRecord) -> Vec<u8> {
    let (mut document, limits) = (Document::default(), Limits::default());
    let epoch = Epoch { id: epoch.id, ordinal: epoch.ordinal };
    for n in 0..5_u8 {
        let tag = Tag::parse(&format!("some-tag-{n}")).expect("a tag");
        let write = Write {
            id: WriteId([n + 1; 16]),
            key: ContentKey::parse("bench", "doc", "content-1").expect("a content"),
            user: UserId::parse("bench").expect("a user"),
            operation: Operation::patch(vec![tag], Vec::new(), &limits).expect("a patch"),
            if_match: None,
        };
        let now = 1_800_000_000_000 + i64::from(n) * 120_000;
        let context = ApplyContext { epoch: &epoch, now, limits: &limits, call: None };
        apply(&mut document, &write, None, &context);
    }
    codec::encode(&document)
}

/// Memory of this process, in bytes.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("this process has a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib = line.split_whitespace().next().and_then(|n| n.parse::<usize>().ok());
    kib.expect("a number") * 1024
}

/// What the journal held at most by its own account, and by how much the process grew, in bytes.
fn most_held(group_writes: u64, document: &[u8]) -> [usize; 2] {
    let epoch = epoch();
    let mut node = leading(&epoch);
    let group_us = group_writes * 1_000_000 / WRITES_PER_S;
    let resident = resident_bytes();
    let (mut polled_us, mut number, mut held, mut grown) = (0, 0_u64, 0, 0);
    // The log grows by one position a microsecond.
    for group in 1..=LENGTH_US / group_us {
        let now_us = group * group_us;
        let now = BootTime(Duration::from_micros(now_us));
        let contents = (0..group_writes).map(|_| {
            number += 1;
            let id = WriteId(u128::from(number).to_be_bytes());
            let version = Version::from_packed(number).expect("a version");
            JournaledContent {
                key: Arc::from(format!("bench/doc/content-{number}").as_bytes()),
                document: Arc::from(document),
                version,
                writes: vec![JournaledWrite { id, version, at: 0 }],
            }
        });
        let contents = contents.collect();
        let at = LogRange { epoch: epoch.id, inside: now_us - 1, flushed: now_us };
        let commit = Commit { epoch: epoch.id, sent: now, returned: now };
        let group = node.record(commit, at, contents).expect("its epoch lasts");
        let decision = node.decide_group(&group, now);
        assert!(matches!(decision, AckDecision::Acknowledge(_)), "{decision:?} at {now:?}");
        held = held.max(node.journal().bytes());
        if now_us - polled_us >= POLL_INTERVAL_US {
            // Before anything is dropped.
            grown = grown.max(resident_bytes().saturating_sub(resident));
            polled_us = now_us;
            let flushed = now_us.saturating_sub(LAG_US);
            let positions = [("r1".to_owned(), flushed), ("r2".to_owned(), flushed)];
            node.record_replicas(epoch.id, &positions, now);
        }
    }
    [held, grown]
}

pub(crate) fn figures() -> Vec<Figure> {
    let document = document(&epoch());
    let figure = |group_writes: u64| {
        let [held, grown] = most_held(group_writes, &document);
        let what = format!(
            "journal at 20,000 writes/s, replicas 100 ms behind, documents of {} B, groups of \
             {group_writes}",
            document.len()
        );
        let beside = format!("the process grew by {:.1} MB", grown as f64 / 1e6);
        // The larger of both: what the journal counts must not hide what it takes.
        let figure = Figure::new(what, held.max(grown) as f64 / 1e6, "MB");
        figure
            .beside(format!("{:.1} MB counted; {beside}", held as f64 / 1e6))
            .at_most(TARGET_MB, "MB")
    };
    // The larger group first: memory that a run leaves behind would serve the next one.
    vec![figure(64), figure(1)]
}
