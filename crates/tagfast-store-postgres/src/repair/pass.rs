//! The repair of one cluster by this process: one pass an epoch over what the journal holds of
//! epochs that have ended.
//!
//! What lies before the end of its epoch needs no look at the database. Everything else is joined
//! into the documents of the new primary, several contents a transaction. New writes do not wait
//! for it: where some wait for the primary, the repair begins once the first of them is
//! acknowledged, and it pauses between its transactions. Then the process reports, also when it had
//! nothing to repair, so that the repair of the epoch can be closed.
//!
//! Waiting(epoch) => Repairing => Reporting => Open => Closed, and from each of them back to
//! Waiting when a later epoch begins: what is not repaired by then is still in the journal.
//!
//! How it fails. A connection that ends: the chunk is repaired again, which finds by the write ids
//! what was committed. A process that stood still: its epoch check fails, and if the repair was
//! closed meanwhile its writes are listed as late, not applied. etcd does not answer: the repair
//! goes on, and the report is sent when it does. A damaged document: it is left out, and named in
//! the log. A process that was started again with a copy of its journal on disk: what it had
//! reported stays in its report. A copy of a different cluster: its entries are refused, and named.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{Epoch, EpochId, EpochOrdinal, Limits, UnixMillis};
use tagfast_failover::{
    BootTime, EpochRecord, IncompleteRange, JournaledContent, LogRange, RepairEntry, RepairId,
};
use tagfast_resilience::{Bounded, Clock, ErrorChain, OutageLog, counter, gauge};
use tagfast_store::FailoverObserver;
use tagfast_store::failovers::VerdictCounts;
use tokio::time::{Instant, timeout};

use super::chunk::{CHUNK_CONTENTS_MAX, ChunkContext, RepairSession, repair_chunk};
use super::closer::{Closer, RETRY_INTERVAL, pause_since};
use super::published::PublishedRepair;
use super::resolution::{is_kept, writes_of};
use super::verdict_rows::add_counts;
use crate::boot_clock::{Moment, boot_time};
use crate::cluster::etcd::repair_keys::{
    StoredCounts, StoredIncomplete, StoredRepair, StoredTimes,
};
use crate::cluster::etcd::{Etcd, EtcdError};
use crate::cluster::node_registry::NodeRegistry;
use crate::cluster::repair_window::{PhaseTimes, RepairState, read_repair_state};
use crate::cluster::topology::{Cluster, Node};
use crate::connect::{Connection, ConnectionFactory, PgError};
use crate::metric::{REPAIR_LOST_WRITES, REPAIR_OPEN, REPAIRED_CONTENTS};
use crate::options::reconnect_delay;
use crate::write::lane::Lane;

/// The longest pause between two transactions, each of which is followed by one of its own length.
/// With it 10,000 contents are repaired within 5 s when a transaction takes 100 ms.
const CHUNK_PAUSE_MAX: Duration = Duration::from_millis(10);
/// How long a repair lets writes that wait go first. Their lanes connect at the same moment and
/// mostly commit within 0.2 s; what cannot be acknowledged keeps nothing from being repaired.
const FIRST_ACKNOWLEDGEMENT_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a repair waits for a primary before it looks at the topology again.
const PRIMARY_WAIT: Duration = Duration::from_secs(3600);

/// Everything the repair of a cluster runs with.
pub(crate) struct Repairer {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) connections: ConnectionFactory,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) etcd: Etcd,
    pub(crate) registry: Arc<NodeRegistry>,
    pub(crate) limits: Limits,
    /// The cluster's lanes, whose writes go first.
    pub(crate) lanes: Vec<Arc<Lane>>,
}

/// What was done in an epoch so far; it outlives connections.
struct Progress {
    epoch: EpochId,
    began_at: UnixMillis,
    counts: VerdictCounts,
    contents: usize,
}

/// Why a pass does not go on.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error("a later epoch has begun")]
    EpochEnded,
}

impl Repairer {
    /// The closer of the same cluster, which tells `observer` of what it closes.
    pub(crate) fn closer(&self, observer: Option<Arc<dyn FailoverObserver>>) -> Closer {
        Closer {
            cluster: Arc::clone(&self.cluster),
            connections: self.connections.clone(),
            clock: Arc::clone(&self.clock),
            etcd: self.etcd.clone(),
            registry: Arc::clone(&self.registry),
            published: PublishedRepair {
                cluster: Arc::clone(&self.cluster),
                connections: self.connections.clone(),
                clock: Arc::clone(&self.clock),
                limits: self.limits,
            },
            observer,
        }
    }

    /// Repairs and reports, epoch after epoch, until the task is dropped.
    pub(crate) async fn run(self) {
        let outage = OutageLog::of("repairing what a failover lost", self.cluster.name.clone());
        let mut topologies = self.cluster.topology.subscribe();
        let mut progress: Option<Progress> = None;
        let mut finished = None;
        let mut failures = 0;
        loop {
            let primary = self.cluster.primary(Instant::now() + PRIMARY_WAIT).await;
            let Some((epoch, node)) = primary else { continue };
            if finished == Some(epoch.id) {
                if topologies.changed().await.is_err() {
                    return;
                }
                continue;
            }
            topologies.mark_unchanged();
            let progress = match &mut progress {
                Some(known) if known.epoch == epoch.id => known,
                other => {
                    self.let_writes_go_first(epoch.id).await;
                    other.insert(Progress {
                        epoch: epoch.id,
                        began_at: self.clock.now_ms(),
                        counts: VerdictCounts::default(),
                        contents: 0,
                    })
                }
            };
            match self.run_epoch(&epoch, &node, progress).await {
                Ok(()) => {
                    outage.recovered();
                    (finished, failures) = (Some(epoch.id), 0);
                }
                // The primary of the next one is awaited.
                Err(PassError::EpochEnded) => tokio::time::sleep(RETRY_INTERVAL).await,
                Err(error) => {
                    outage.failed(&error);
                    tokio::time::sleep(reconnect_delay(failures)).await;
                    failures = (failures + 1).min(5);
                }
            }
        }
    }

    /// Waits until a write of the epoch is acknowledged, if any waits for its primary.
    async fn let_writes_go_first(&self, epoch: EpochId) {
        if self.lanes.iter().any(|lane| lane.len() > 0) {
            let acknowledged = self.cluster.repair.first_acknowledged(epoch);
            // Late: the repair does not wait any longer.
            let _ = timeout(FIRST_ACKNOWLEDGEMENT_WAIT_MAX, acknowledged).await;
        }
    }

    fn label(&self) -> Bounded<String> {
        Bounded(self.cluster.name.clone())
    }

    /// An error when a later epoch has begun.
    fn check_epoch(&self, epoch: &EpochRecord) -> Result<(), PassError> {
        let current = self.cluster.epoch().is_some_and(|now| now.id == epoch.id);
        if current { Ok(()) } else { Err(PassError::EpochEnded) }
    }

    async fn run_epoch(
        &self,
        epoch: &EpochRecord,
        node: &Node,
        progress: &mut Progress,
    ) -> Result<(), PassError> {
        // Without it nothing could be told to be kept.
        while !self.cluster.knows_history() {
            self.check_epoch(epoch)?;
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
        let connection = self.connections.open(&node.address, "repair").await?;
        let mut session = RepairSession::new(connection).await?;
        let was = read_repair_state(session.connection(), epoch.id).await?;
        self.repair(&mut session, epoch, progress).await?;
        let is_incomplete = !self.incomplete_before(epoch).is_empty();
        let is_new =
            progress.contents > 0 || progress.counts != VerdictCounts::default() || is_incomplete;
        // No one waits for a process that begins after the closing and has nothing to tell.
        if was >= RepairState::Closed && !is_new {
            return self.await_state(session.connection(), epoch, RepairState::Final).await;
        }
        let ended_at = self.clock.now_ms();
        if is_new {
            let VerdictCounts { kept, repaired, lost, unknown } = progress.counts;
            tracing::info!(
                cluster = self.cluster.name,
                epoch = epoch.ordinal.0,
                kept,
                repaired,
                lost,
                unknown,
                took_ms = ended_at - progress.began_at,
                "what failovers lost of this process's writes is repaired"
            );
        }
        self.report(epoch, progress, ended_at).await?;
        self.await_state(session.connection(), epoch, RepairState::Closed).await?;
        // Once more: by now the first write of the epoch has been acknowledged.
        self.report(epoch, progress, ended_at).await?;
        self.settle_incomplete(epoch);
        self.await_state(session.connection(), epoch, RepairState::Final).await
    }

    /// Forgets what the journal lacks before this epoch: it was reported.
    fn settle_incomplete(&self, epoch: &EpochRecord) {
        let ends = self.cluster.epoch_ends();
        let mut acknowledger = self.cluster.acknowledger();
        // Ends in a later history would be told of it alone.
        if ends.current == Some(epoch.id) && acknowledger.journal().epoch() == Some(epoch.id) {
            acknowledger.journal_mut().settle_incomplete(|id| ends.of(id).unwrap_or(0));
        }
    }

    /// The log ranges before this epoch for which writes were forgotten that it lacks.
    fn incomplete_before(&self, epoch: &EpochRecord) -> Vec<IncompleteRange> {
        let mut ranges = self.cluster.acknowledger().journal().incomplete().to_vec();
        // Of its own epoch nothing is lost yet, and what lies before an epoch's end is not.
        ranges.retain(|range| {
            range.epoch != epoch.id && range.to > self.cluster.epoch_end(range.epoch)
        });
        ranges
    }

    /// Takes everything from the journal that is of an ended epoch.
    async fn repair(
        &self,
        session: &mut RepairSession,
        epoch: &EpochRecord,
        progress: &mut Progress,
    ) -> Result<(), PassError> {
        self.refuse_foreign();
        let mut locks = false;
        loop {
            let mut after = None;
            let mut lost_races = 0;
            loop {
                self.check_epoch(epoch)?;
                let entries =
                    self.cluster.acknowledger().journal().repair_entries(after, CHUNK_CONTENTS_MAX);
                let Some(entries) = first_of_each_content(entries) else { break };
                after = entries.last().map(|entry| entry.id);
                let entries = self.put_back_kept(epoch, entries, progress)?;
                if !entries.is_empty() {
                    lost_races +=
                        self.repair_entries(session, epoch, &entries, locks, progress).await?;
                }
            }
            if lost_races == 0 {
                return Ok(());
            }
            // Contents that are written all the time are locked in the next attempt.
            locks = true;
        }
    }

    /// Refuses entries that were read back from disk and are of no epoch of this cluster.
    fn refuse_foreign(&self) {
        let is_known = |epoch| self.cluster.epoch_end_of(epoch).is_some();
        let refused = self.cluster.acknowledger().journal_mut().refuse_foreign(is_known);
        if refused.is_empty() {
            return;
        }
        let epochs: Vec<String> = refused.iter().map(EpochId::to_string).collect();
        tracing::error!(
            cluster = self.cluster.name,
            ?epochs,
            "files of the journal are of epochs that this cluster never had: they are not repaired, \
             and set aside"
        );
        let why = |epoch| format!("it is of epoch {epoch}, which this cluster never had");
        let files: Vec<String> = epochs.iter().map(why).collect();
        self.cluster.copy_health.note_set_aside(&files);
    }

    /// Puts the entries back that the current history has; returns the others.
    fn put_back_kept(
        &self,
        epoch: &EpochRecord,
        entries: Vec<RepairEntry>,
        progress: &mut Progress,
    ) -> Result<Vec<RepairEntry>, PassError> {
        let end_of = |id| self.cluster.epoch_end(id);
        let (kept, others): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| is_kept(entry, end_of));
        // Below its end a position of the earlier epoch is the same one in this epoch's log.
        let position = |bound: fn(&LogRange) -> u64| kept.iter().map(move |e| bound(&e.at));
        let (Some(inside), Some(flushed)) =
            (position(|at| at.inside).min(), position(|at| at.flushed).max())
        else {
            return Ok(others);
        };
        let at = LogRange { epoch: epoch.id, inside, flushed };
        let mut put_back = Vec::new();
        for entry in kept {
            let writes = writes_of(&entry);
            progress.counts.kept += writes.len() as u64;
            let RepairEntry { id, key, document, version, .. } = entry;
            put_back.push((id, JournaledContent { key, document, version, writes }));
        }
        self.update_journal(at, put_back, &[])?;
        Ok(others)
    }

    fn update_journal(
        &self,
        at: LogRange,
        put_back: Vec<(RepairId, JournaledContent)>,
        done: &[RepairId],
    ) -> Result<(), PassError> {
        let mut acknowledger = self.cluster.acknowledger();
        let journal = acknowledger.journal_mut();
        if !put_back.is_empty() && !journal.put_back(at, put_back, boot_time()) {
            return Err(PassError::EpochEnded);
        }
        for id in done {
            journal.give_up(*id);
        }
        Ok(())
    }

    /// Repairs entries in one transaction; returns how many documents were changed in between.
    async fn repair_entries(
        &self,
        session: &mut RepairSession,
        epoch: &EpochRecord,
        entries: &[RepairEntry],
        locks: bool,
        progress: &mut Progress,
    ) -> Result<usize, PassError> {
        let began = Instant::now();
        let current = Epoch { id: epoch.id, ordinal: epoch.ordinal };
        let context = ChunkContext {
            cluster: &self.cluster,
            epoch: &current,
            limits: &self.limits,
            now: self.clock.now_ms(),
            locks,
            by_event: false,
        };
        let outcome = repair_chunk(session, entries, &context).await?;
        self.update_journal(outcome.at, outcome.put_back, &outcome.done)?;
        add_counts(&mut progress.counts, &outcome.counts);
        progress.contents += outcome.written;
        counter!(REPAIRED_CONTENTS, "cluster" => self.label()).increment(outcome.written as u64);
        counter!(REPAIR_LOST_WRITES, "cluster" => self.label()).increment(outcome.counts.lost);
        self.cluster.committed.notify_one();
        tokio::time::sleep(began.elapsed().min(CHUNK_PAUSE_MAX)).await;
        Ok(outcome.lost_races)
    }

    /// Puts the report into etcd, as soon as etcd answers.
    async fn report(
        &self,
        epoch: &EpochRecord,
        progress: &Progress,
        ended_at: UnixMillis,
    ) -> Result<(), PassError> {
        let began = Instant::now();
        let scope = (self.cluster.scope.as_str(), epoch.ordinal);
        loop {
            self.check_epoch(epoch)?;
            let report = self.stored_report(epoch, progress, ended_at);
            match self.put_report(scope, report).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    let (cluster, error) = (&self.cluster.name, ErrorChain(&error));
                    tracing::debug!(cluster, %error, "etcd takes no report yet");
                }
            }
            pause_since(began).await;
        }
    }

    /// Adds to what an earlier process of this name has reported.
    async fn put_report(
        &self,
        scope: (&str, EpochOrdinal),
        report: StoredRepair,
    ) -> Result<(), EtcdError> {
        let process = &self.registry.process;
        let report = match self.registry.has_copy {
            false => report,
            true => {
                let earlier = self.etcd.repair(scope, process).await?;
                earlier.iter().fold(report, StoredRepair::with_earlier)
            }
        };
        self.etcd.put_repair(scope, process, &report).await
    }

    fn stored_report(
        &self,
        epoch: &EpochRecord,
        progress: &Progress,
        ended_at: UnixMillis,
    ) -> StoredRepair {
        let VerdictCounts { kept, repaired, lost, unknown } = progress.counts;
        let incomplete = self.incomplete_before(epoch).into_iter().map(|range| StoredIncomplete {
            epoch: range.epoch.to_string(),
            from: range.from,
            to: range.to,
            writes: range.writes,
        });
        StoredRepair {
            counts: StoredCounts { kept, repaired, lost, unknown },
            began_at: progress.began_at,
            ended_at: Some(ended_at),
            incomplete: incomplete.collect(),
            times: self.stored_times(&self.cluster.repair.times(epoch.id)),
        }
    }

    fn stored_times(&self, times: &PhaseTimes) -> StoredTimes {
        let now = Moment { boot: boot_time(), wall: self.clock.now_ms() };
        let unix = |time: BootTime| now.wall_time(time);
        StoredTimes {
            suspected_at: times.suspected.map(unix),
            held_at: times.held.map(unix),
            promoted_at: times.promoted.map(unix),
            first_acknowledged_at: times.first_acknowledged.map(unix),
        }
    }

    /// Waits until the repair of the epoch is as far as this. Once it is closed reads are whole
    /// again; once it is final no write of an earlier epoch can come back.
    async fn await_state(
        &self,
        server: &Connection,
        epoch: &EpochRecord,
        until: RepairState,
    ) -> Result<(), PassError> {
        let began = Instant::now();
        loop {
            let state = read_repair_state(server, epoch.id).await?;
            self.cluster.repair.set_state(epoch.id, state);
            let is_open = f64::from(u8::from(state == RepairState::Open));
            gauge!(REPAIR_OPEN, "cluster" => self.label()).set(is_open);
            if state >= until {
                return Ok(());
            }
            self.check_epoch(epoch)?;
            pause_since(began).await;
        }
    }
}

/// The entries up to the first content that comes a second time, because a transaction writes each
/// document once; `None`: there are none.
fn first_of_each_content(mut entries: Vec<RepairEntry>) -> Option<Vec<RepairEntry>> {
    let mut seen = HashSet::new();
    let second = entries.iter().position(|entry| !seen.insert(Arc::clone(&entry.key)));
    entries.truncate(second.unwrap_or(entries.len()));
    Some(entries).filter(|entries| !entries.is_empty())
}
