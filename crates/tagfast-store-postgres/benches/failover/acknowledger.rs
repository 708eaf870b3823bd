//! What the acknowledgement of a write costs beside its commit (journal, proof, guard, coverage),
//! and what the journal holds, driven as a lane drives it: documents of real size, each of a
//! content of its own. The time of the cluster is simulated; processor time and memory are real.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tagfast_domain::{
    ApplyContext, ContentKey, Document, Epoch, EpochId, EpochOrdinal, Limits, Operation, Tag,
    UserId, Version, Write, WriteId, apply, codec,
};
use tagfast_failover::{
    AckDecision, Acknowledger, BootTime, Commit, EpochRecord, GuardOptions, JournaledContent,
    JournaledWrite, LeaderKey, LeaderObservation, LeaseAnswer, LogRange, OnLag,
};

use crate::figure::Figure;

/// A cluster and its load.
struct Cluster {
    writes_per_s: u64,
    /// How far the replicas are behind, in ms.
    lag_ms: u64,
    group_writes: u64,
    /// Between two polls of the replicas: while writes are exposed, or while a group waits.
    poll_interval_us: u64,
    /// What the journal may hold.
    target_mb: Option<f64>,
}

const fn cluster(writes_per_s: u64, lag_ms: u64, group_writes: u64) -> Cluster {
    Cluster { writes_per_s, lag_ms, group_writes, poll_interval_us: 50_000, target_mb: None }
}

/// The larger groups first: memory that a run leaves behind would serve the next one.
const CLUSTERS: [Cluster; 4] = [
    Cluster { target_mb: Some(TARGET_MB), ..cluster(20_000, 100, 64) },
    Cluster { target_mb: Some(TARGET_MB), ..cluster(20_000, 100, 1) },
    cluster(50_000, 100, 50),
    Cluster { poll_interval_us: 5_000, ..cluster(50_000, 900, 1) },
];
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

/// The leader key of the epoch is held at this moment.
fn observation(epoch: &EpochRecord, now: BootTime) -> LeaderObservation {
    LeaderObservation {
        revision: epoch.term,
        raft_term: 1,
        leader: Some(LeaderKey { create_revision: epoch.term, member: epoch.member.clone() }),
        key_lease: 1,
        lease: Some(LeaseAnswer { id: 1, sent: now, remaining_s: 20, raft_term: 1 }),
        paused: false,
    }
}

fn leading(epoch: &EpochRecord) -> Acknowledger {
    let options = GuardOptions { max_loss: Duration::from_secs(1), on_lag: OnLag::Hold };
    let mut node = Acknowledger::new(options, 256 << 20);
    let now = BootTime::default();
    node.set_members(&["r1".to_owned(), "r2".to_owned()], now);
    node.adopt_epoch(epoch, now);
    node.record_observation(&observation(epoch, now));
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

/// What a run came to.
struct Outcome {
    /// What the journal held at most by its own account, in bytes.
    held: usize,
    /// By how much the process grew, in bytes.
    grown: usize,
    /// Processor time of a write, in nanoseconds.
    write_ns: f64,
}

fn run(cluster: &Cluster, document: &[u8]) -> Outcome {
    let epoch = epoch();
    let mut node = leading(&epoch);
    let group_us = cluster.group_writes * 1_000_000 / cluster.writes_per_s;
    let resident = resident_bytes();
    let (mut polled_us, mut number, mut held, mut grown) = (0, 0_u64, 0, 0);
    let mut spent = Duration::ZERO;
    // The log grows by one position a microsecond.
    for group in 1..=LENGTH_US / group_us {
        let now_us = group * group_us;
        let now = BootTime(Duration::from_micros(now_us));
        let contents = (0..cluster.group_writes).map(|_| {
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
        let began = Instant::now();
        let group = node.record(commit, at, contents).expect("its epoch lasts");
        let decision = node.decide_group(&group, now);
        spent += began.elapsed();
        assert!(matches!(decision, AckDecision::Acknowledge(_)), "{decision:?} at {now:?}");
        held = held.max(node.journal().bytes());
        if now_us - polled_us >= cluster.poll_interval_us {
            // Before anything is dropped.
            grown = grown.max(resident_bytes().saturating_sub(resident));
            polled_us = now_us;
            node.record_observation(&observation(&epoch, now));
            let flushed = now_us.saturating_sub(cluster.lag_ms * 1000);
            let positions = [("r1".to_owned(), flushed), ("r2".to_owned(), flushed)];
            let began = Instant::now();
            node.record_replicas(epoch.id, &positions, now);
            spent += began.elapsed();
        }
    }
    Outcome { held, grown, write_ns: spent.as_nanos() as f64 / number as f64 }
}

pub(crate) fn figures() -> Vec<Figure> {
    let document = document(&epoch());
    let figure = |cluster: &Cluster| {
        let Outcome { held, grown, write_ns } = run(cluster, &document);
        let what = format!(
            "journal at {} writes/s, replicas {} ms behind, documents of {} B, groups of {}",
            cluster.writes_per_s,
            cluster.lag_ms,
            document.len(),
            cluster.group_writes,
        );
        let beside = format!(
            "{:.1} MB counted; the process grew by {:.1} MB; {write_ns:.0} ns a write",
            held as f64 / 1e6,
            grown as f64 / 1e6,
        );
        // The larger of both: what the journal counts must not hide what it takes.
        let figure = Figure::new(what, held.max(grown) as f64 / 1e6, "MB").beside(beside);
        match cluster.target_mb {
            Some(target) => figure.at_most(target, "MB"),
            None => figure,
        }
    };
    CLUSTERS.iter().map(figure).collect()
}
