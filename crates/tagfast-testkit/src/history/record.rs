//! What clients, watchers and consumers observed: the history that the checks judge.
//!
//! A recorder writes down what it saw and decides nothing. Times count from the start of the
//! history; log positions are PostgreSQL's. How it fails: what was not recorded is not checked;
//! each `Option` says which check it turns off.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::outcome::Outcome;

/// Where a write lies in the log of its epoch: its commit is after `inside` and not after
/// `flushed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRange {
    /// A position inside the transaction.
    pub inside: u64,
    /// A position at or after its commit.
    pub flushed: u64,
}

/// How many replicas had a write when it was acknowledged, as the answer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    /// The replicas that had it.
    pub had: usize,
    /// The replicas that streamed.
    pub of: usize,
}

/// What the service says about a past write.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum WriteVerdict {
    /// It is in the current history.
    Kept,
    /// A failover lost it, and a repair brought it back.
    Repaired,
    /// A failover lost it for good; the value is the reason.
    Lost(String),
    /// The service cannot tell; the value is the reason.
    Unknown(String),
}

/// An answer to the question what became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerdictAnswer {
    /// Time of the answer.
    pub at: Duration,
    /// Whether the repairs of all epochs were closed when it was asked.
    pub closed: bool,
    /// The answer.
    pub verdict: WriteVerdict,
}

/// A write, from its call to its answer. A retry of an acknowledged write is a call of its own with
/// the same id.
#[derive(Debug, Clone)]
pub struct WriteCall {
    /// The write id.
    pub id: u128,
    /// Number of the client that wrote.
    pub client: u32,
    /// Number of the process of the service that answered.
    pub node: u32,
    /// Key of the content.
    pub content: String,
    /// Time of the first attempt.
    pub began: Duration,
    /// Time of the answer.
    pub ended: Duration,
    /// Tags that the write makes present.
    pub adds: BTreeSet<String>,
    /// Tags that the write makes absent.
    pub removes: BTreeSet<String>,
    /// Whether it replaces the set: every tag that it does not add is absent after it.
    pub replaces: bool,
    /// The version that `If-Match` named; `None`: it was unconditional.
    pub if_match: Option<u64>,
    /// Outcome as the client knows it.
    pub outcome: Outcome,
    /// Whether the answer reported a change.
    pub changed: bool,
    /// Whether the answer said that the id is known.
    pub repeated: bool,
    /// Version in the answer.
    pub version: u64,
    /// Epoch in the answer: id and ordinal.
    pub epoch: (u128, u64),
    /// Its place in the epoch's log, from the receipt; `None`: the loss of this write is not
    /// measured.
    pub log: Option<LogRange>,
    /// The replicas that had it, if the write asked to be replicated.
    pub replicated: Option<Replicas>,
    /// What the service said about it later, in the order of the answers.
    pub verdicts: Vec<VerdictAnswer>,
}

impl WriteCall {
    /// Whether the client was told that the write is done.
    pub fn is_acknowledged(&self) -> bool {
        self.outcome == Outcome::Acknowledged
    }

    /// The last verdict that was asked for after the closing; `None`: there is none.
    pub fn final_verdict(&self) -> Option<&WriteVerdict> {
        self.verdicts.iter().rev().find(|a| a.closed).map(|a| &a.verdict)
    }
}

impl fmt::Display for WriteCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "write {:032x} of client {} at node {}, {:?} to {:?}, on {}:",
            self.id, self.client, self.node, self.began, self.ended, self.content
        )?;
        if self.replaces {
            write!(f, " replace by {:?}", self.adds)?;
        } else {
            self.adds.iter().try_for_each(|tag| write!(f, " +{tag}"))?;
            self.removes.iter().try_for_each(|tag| write!(f, " -{tag}"))?;
        }
        if let Some(version) = self.if_match {
            write!(f, " if {version}")?;
        }
        match self.outcome {
            Outcome::Acknowledged => {
                let how = match (self.repeated, self.changed) {
                    (true, _) => "repeated",
                    (false, true) => "changed",
                    (false, false) => "unchanged",
                };
                write!(f, ": {how}, version {} in epoch {}", self.version, self.epoch.1)?;
            }
            Outcome::Unknown => write!(f, ": outcome unknown")?,
            Outcome::Refused => write!(f, ": refused")?,
        }
        if let Some(LogRange { inside, flushed }) = self.log {
            write!(f, ", log {inside:x} to {flushed:x}")?;
        }
        if let Some(Replicas { had, of }) = self.replicated {
            write!(f, ", on {had} of {of} replicas")?;
        }
        match self.verdicts.last() {
            Some(answer) => write!(f, "; verdict at {:?}: {:?}", answer.at, answer.verdict),
            None => Ok(()),
        }
    }
}

/// A read and its answer.
#[derive(Debug, Clone)]
pub struct ReadCall {
    /// Number of the client that read.
    pub client: u32,
    /// Number of the process of the service that answered.
    pub node: u32,
    /// Key of the content.
    pub content: String,
    /// Time of the request.
    pub began: Duration,
    /// Time of the answer.
    pub ended: Duration,
    /// Tags in the answer.
    pub tags: BTreeSet<String>,
    /// Version in the answer.
    pub version: u64,
    /// The position that the answer claims to show: epoch and log position. `None`: whether it is
    /// of an ended epoch is not checked.
    pub position: Option<(u128, u64)>,
    /// Whether the request carried the client's token, so that the answer must cover the client's
    /// writes and earlier reads or be marked.
    pub session: bool,
    /// Whether the answer was marked as possibly incomplete.
    pub marked: bool,
}

impl fmt::Display for ReadCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let session = if self.session { " with its token" } else { "" };
        write!(
            f,
            "read of client {}{session} at node {}, {:?} to {:?}, of {}: {:?} at version {}",
            self.client, self.node, self.began, self.ended, self.content, self.tags, self.version
        )?;
        if let Some((epoch, position)) = self.position {
            write!(f, ", shown up to {position:x} of epoch {epoch:032x}")?;
        }
        Ok(())
    }
}

/// An epoch, as a watcher of Patroni's leader key and of the service's reports saw it.
#[derive(Debug, Clone, Default)]
pub struct EpochSeen {
    /// Id of the epoch, as in the receipts of its writes; 0: its term ended before it was minted.
    pub id: u128,
    /// Its ordinal; 0 as above.
    pub ordinal: u64,
    /// Time at which the watcher first saw the leader key of this epoch.
    pub seen_at: Duration,
    /// The log position up to which it is part of the current history. `None`: it is the current
    /// one, or unknown.
    pub end: Option<u64>,
    /// Whether its primary streamed from the one before until that one failed. A replica that was
    /// cut off before is no witness for replicated writes.
    pub was_streaming: bool,
    /// The processes of the service that reported their repair.
    pub reported: BTreeSet<u32>,
    /// When its repair was closed; `None`: it was not, or there was nothing to repair.
    pub closed_at: Option<Duration>,
}

impl fmt::Display for EpochSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {} ({:032x}), seen from {:?}", self.ordinal, self.id, self.seen_at)?;
        match self.end {
            Some(end) => write!(f, ", its log counts up to {end:x}"),
            None => Ok(()),
        }
    }
}

/// The state of a content on its primary, after everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FinalContent {
    /// Its version.
    pub version: u64,
    /// Its tags.
    pub tags: BTreeSet<String>,
    /// The recent writes of the document: id and version. Empty: they were not read.
    pub recent: Vec<(u128, u64)>,
}

/// Everything that clients, watchers and consumers observed.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// All writes.
    pub writes: Vec<WriteCall>,
    /// All reads.
    pub reads: Vec<ReadCall>,
    /// Epochs in their order.
    pub epochs: Vec<EpochSeen>,
    /// The contents on their primary, in the end.
    pub finals: BTreeMap<String, FinalContent>,
    /// Maximum number of tags of a content.
    pub limit: usize,
    /// How far apart two acknowledgements of one process may be that one failover lost, with the
    /// time that an answer takes. `None`: it is not bounded.
    pub max_loss: Option<Duration>,
    /// Periods whose acknowledged writes may be lost, by the time of the answer, because the test
    /// asks for no verdicts.
    pub may_lose: Vec<(Duration, Duration)>,
    /// The writes that the reports of failovers list. `None`: they were not read.
    pub listed: Option<BTreeMap<u128, WriteVerdict>>,
    /// The events of the topic, each partition in its order.
    pub topic: Vec<FeedEvent>,
    /// The outbox rows of the current history: content and version. `None`: they were not read.
    pub outbox: Option<Vec<(String, u64)>>,
    /// The documents of the index at rest: version and tags. `None`: there is no index.
    pub index: Option<BTreeMap<String, (u64, BTreeSet<String>)>>,
}

impl History {
    /// Adds the observations of another recorder.
    pub fn merge(&mut self, other: Self) {
        self.writes.extend(other.writes);
        self.reads.extend(other.reads);
    }

    /// All acknowledged writes.
    pub fn acknowledged(&self) -> impl Iterator<Item = &WriteCall> {
        self.writes.iter().filter(|w| w.is_acknowledged())
    }

    /// Whether any reader asked what became of the writes.
    pub(super) fn asks_for_verdicts(&self) -> bool {
        self.writes.iter().any(|w| !w.verdicts.is_empty())
    }

    pub(super) fn epoch(&self, id: u128) -> Option<&EpochSeen> {
        self.epochs.iter().find(|e| e.id == id)
    }

    /// Whether the write's commit may lie on either side of the end of its epoch.
    pub(super) fn is_across_end(&self, write: &WriteCall) -> bool {
        let end = self.epoch(write.epoch.0).and_then(|e| e.end);
        matches!((end, write.log), (Some(end), Some(log)) if log.inside < end && end < log.flushed)
    }

    /// Whether the write's commit lies beyond the end of its epoch. A write that changed nothing
    /// has no commit: both of its positions may be the end.
    pub(super) fn is_diverged(&self, write: &WriteCall) -> bool {
        let end = self.epoch(write.epoch.0).and_then(|e| e.end);
        let is_beyond = |end, log: LogRange| log.inside >= end && log.flushed > end;
        matches!((end, write.log), (Some(end), Some(log)) if is_beyond(end, log))
    }
}

/// One event, in the order in which its partition was consumed.
#[derive(Debug, Clone)]
pub struct FeedEvent {
    /// Number of the partition.
    pub partition: u32,
    /// Name of the cluster that the event comes from.
    pub cluster: String,
    /// Key of the content.
    pub content: String,
    /// Publisher epoch: the ordinal of the epoch whose relay published the event.
    pub emit: u64,
    /// Version of the content in the event.
    pub version: u64,
    /// Whether the consumer wrote this state to the index.
    pub applied: bool,
}

impl fmt::Display for FeedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, cluster, content, emit, version, applied } = self;
        let done = if *applied { "applied" } else { "not applied" };
        write!(
            f,
            "event of {cluster} in partition {partition}: {content} at version {version}, \
             published in epoch {emit}, {done}"
        )
    }
}
