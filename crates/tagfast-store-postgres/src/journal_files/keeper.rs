//! The copy of a cluster's journal on disk: read back at the start, then kept by a task.
//!
//! How it fails: what the disk does not take is kept in memory, up to an eighth of the journal's
//! size, and tried again every second; beyond it the copy lacks the oldest, and says so. A disk
//! that hangs holds this task and one blocking thread, and no write. The end of the store waits for
//! it for a while only.

use std::sync::Arc;
use std::time::Duration;

use tagfast_failover::{AcknowledgedGroup, BootTime, UnsavedBatch};
use tagfast_resilience::task::{BackgroundTask, StopSignal, blocking};
use tagfast_resilience::{Bounded, ErrorChain, OutageLog, counter, gauge};
use tokio::time::timeout;

use super::folder::{JournalFolder, JournalFolderError};
use super::read_back::{ReadBack, read_back};
use super::segment_writer::SegmentWriter;
use crate::boot_clock::{Moment, boot_time};
use crate::cluster::topology::Cluster;
use crate::metric::{JOURNAL_DISK_BYTES, JOURNAL_DISK_FAILURES};
use crate::options::{PostgresOptions, limit};

/// Between two saves: what was acknowledged since the last one is lost with the process.
const SAVE_INTERVAL: Duration = Duration::from_millis(100);
/// What is kept in memory for a disk that does not take it, as a part of the journal's size.
const UNSAVED_PART: usize = 8;
/// After a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

fn open_copy(
    folder: &Arc<JournalFolder>,
    cluster: &Cluster,
    options: &PostgresOptions,
) -> Result<SegmentWriter, JournalFolderError> {
    let dir = folder.of_cluster(&cluster.scope);
    let of = (cluster.scope.as_str(), folder.process.as_str());
    let bytes_max = options.journal_bytes_max;
    let now = Moment { boot: boot_time(), wall: options.clock.now_ms() };
    let found = read_back(&dir, of, bytes_max as u64, now.wall);
    let found = found.map_err(|source| JournalFolderError::Io { doing: "read", path: dir, source });
    let ReadBack { groups, forgotten, segments, set_aside } = found?;
    if !groups.is_empty() {
        tracing::info!(
            cluster = cluster.name,
            groups = groups.len(),
            writes = groups.iter().map(AcknowledgedGroup::writes).sum::<usize>(),
            "the journal of an earlier process is read back"
        );
    }
    cluster.copy_health.note_set_aside(&set_aside);
    let groups = groups.into_iter().map(|group| {
        let acknowledged = acknowledged_at(&group, now);
        (group, acknowledged)
    });
    let (groups, has_unread) = (groups.collect(), !set_aside.is_empty());
    let mut acknowledger = cluster.acknowledger();
    acknowledger.journal_mut().restore(groups, &forgotten, has_unread, bytes_max / UNSAVED_PART);
    drop(acknowledger);
    Ok(SegmentWriter::new(Arc::clone(folder), &cluster.scope, segments))
}

/// When a group was acknowledged, by the time since this machine's start. A wall clock that was set
/// makes it older, and the guard stricter until replicas have it, or younger, but never younger
/// than now.
fn acknowledged_at(group: &AcknowledgedGroup, now: Moment) -> BootTime {
    let at = group.newest_write_at().unwrap_or(now.wall);
    let age = u64::try_from(now.wall.saturating_sub(at)).unwrap_or(0);
    BootTime(now.boot.0.saturating_sub(Duration::from_millis(age)))
}

/// Reads the copy of a cluster's journal back and starts the task that keeps it. The cluster must
/// not have adopted an epoch yet.
///
/// # Errors
///
/// The folder cannot be listed or made. What cannot be read in it is no error.
pub(crate) fn start_copy(
    folder: &Arc<JournalFolder>,
    cluster: &Arc<Cluster>,
    options: &PostgresOptions,
) -> Result<BackgroundTask, JournalFolderError> {
    let writer = open_copy(folder, cluster, options)?;
    let cluster = Arc::clone(cluster);
    Ok(BackgroundTask::spawn("journal copy", |stop| keep_copy(cluster, writer, stop)))
}

/// Keeps the copy until it is stopped, then saves once more.
async fn keep_copy(cluster: Arc<Cluster>, writer: SegmentWriter, stop: StopSignal) {
    let outage = OutageLog::of("copying the journal to disk", cluster.name.clone());
    let mut writer = Some(writer);
    let mut interval = SAVE_INTERVAL;
    loop {
        let is_last = timeout(interval, stop.cancelled()).await.is_ok();
        let save = save(&cluster, &mut writer, &outage);
        let is_saved = match is_last {
            false => save.await,
            true => timeout(limit::CLOSE_TIMEOUT, save).await.unwrap_or(false),
        };
        // A panic, or the runtime ends.
        if is_last || writer.is_none() {
            return;
        }
        interval = if is_saved { SAVE_INTERVAL } else { RETRY_INTERVAL };
    }
}

/// Saves what the copy lacks. False: the disk did not take it.
async fn save(cluster: &Cluster, writer: &mut Option<SegmentWriter>, outage: &OutageLog) -> bool {
    let label = || Bounded(cluster.name.clone());
    let Some(batch) = cluster.acknowledger().journal_mut().take_unsaved() else { return true };
    let Some(mut taken) = writer.take() else { return false };
    if !taken.is_news(&batch) {
        *writer = Some(taken);
        return true;
    }
    let lost = writes_lost(&batch);
    cluster.copy_health.note_begin();
    let saved = blocking(move || {
        let saved = taken.save(&batch);
        (taken, batch, saved)
    });
    let Ok((taken, batch, saved)) = saved.await else { return false };
    gauge!(JOURNAL_DISK_BYTES, "cluster" => label()).set(taken.bytes() as f64);
    *writer = Some(taken);
    match saved {
        Ok(given_up) => {
            outage.recovered();
            cluster.copy_health.note_saved(lost + given_up);
            true
        }
        Err(error) => {
            outage.failed(&error);
            cluster.copy_health.note_failure(ErrorChain(&error).to_string());
            counter!(JOURNAL_DISK_FAILURES, "cluster" => label()).increment(1);
            cluster.acknowledger().journal_mut().put_back_unsaved(batch);
            false
        }
    }
}

fn writes_lost(batch: &UnsavedBatch) -> u64 {
    batch.forgotten.iter().map(|range| range.writes).sum()
}

#[cfg(test)]
mod tests {
    use tagfast_domain::{Version, WriteId};
    use tagfast_failover::{EpochRecord, JournaledContent, JournaledWrite, LogRange};
    use tagfast_resilience::{Breakers, Clock as _, SystemClock};
    use tagfast_testkit::wait_for_condition_async;

    use super::*;
    use crate::cluster::epoch_ends::tests::epoch;
    use crate::cluster::topology::ClusterBounds;

    const COPY_TIMEOUT: Duration = Duration::from_secs(30);

    fn content(at: i64) -> JournaledContent {
        let write = JournaledWrite { id: WriteId([1; 16]), version: Version::NONE, at };
        let key = at.to_be_bytes().as_slice().into();
        let document = Vec::new().into();
        JournaledContent { key, document, version: Version::NONE, writes: vec![write] }
    }

    #[test]
    fn a_clock_that_was_set_makes_no_write_younger_than_now() {
        let now = Moment { boot: BootTime(Duration::from_secs(100)), wall: 1_800_000_000_000 };
        let acknowledged = |at| {
            let range = LogRange { epoch: epoch(1, None, 1, None).id, inside: 1, flushed: 2 };
            let group = AcknowledgedGroup { at: range, contents: vec![content(at)] };
            acknowledged_at(&group, now).0
        };
        assert_eq!(acknowledged(now.wall - 1500), Duration::from_millis(98_500));
        assert_eq!(acknowledged(now.wall + 3_600_000), now.boot.0, "it was set back");
        assert_eq!(acknowledged(0), Duration::ZERO, "it was set forward");
    }

    /// A process that begins in an epoch.
    fn started(folder: &Arc<JournalFolder>, epoch: &EpochRecord) -> (Arc<Cluster>, BackgroundTask) {
        let breakers = Breakers::new(Arc::new(SystemClock));
        let cluster = Cluster::new(0, ("c0", "c0"), ClusterBounds::default(), &breakers);
        let cluster = Arc::new(cluster);
        let text = String::new;
        let options = PostgresOptions::new(Vec::new(), Vec::new(), text(), text(), text());
        let task = start_copy(folder, &cluster, &options).expect("a copy");
        assert!(cluster.acknowledger().adopt_epoch(epoch, boot_time()));
        (cluster, task)
    }

    fn acknowledge(cluster: &Cluster, epoch: &EpochRecord, flushed: u64, now: i64) {
        let at = LogRange { epoch: epoch.id, inside: flushed - 1, flushed };
        let mut acknowledger = cluster.acknowledger();
        let journal = acknowledger.journal_mut();
        let group = journal.record(at, vec![content(now + flushed as i64)]).expect("its epoch");
        assert!(journal.acknowledge(group, boot_time(), 0));
    }

    async fn warned(cluster: &Cluster, is_warned: bool) {
        wait_for_condition_async("the copy to fare so", COPY_TIMEOUT, || async {
            let warnings = cluster.copy_health.warnings();
            let is_so = warnings.is_empty() != is_warned;
            if is_so { Ok(()) } else { Err(format!("{warnings:?}")) }
        })
        .await;
    }

    #[tokio::test]
    async fn a_disk_that_fails_is_named_and_gets_everything_when_it_works_again() {
        let root = tempfile::tempdir().expect("a directory");
        let folder = Arc::new(JournalFolder::open(root.path(), "p").expect("a folder"));
        let (one, two) = (epoch(1, None, 1, None), epoch(2, Some(1), 2, Some(15)));
        let (cluster, task) = started(&folder, &one);
        let dir = folder.of_cluster("c0");
        std::fs::remove_dir(&dir).expect("it is empty");
        std::fs::write(&dir, "in its place").expect("written");
        let now = SystemClock.now_ms();
        acknowledge(&cluster, &one, 10, now);
        warned(&cluster, true).await;
        acknowledge(&cluster, &one, 20, now);
        std::fs::remove_file(&dir).expect("it is there");
        warned(&cluster, false).await;
        // What came last is saved when the store closes.
        acknowledge(&cluster, &one, 30, now);
        task.stop().await.expect("no panic");
        for (current, in_journal, for_repair) in [(&one, 3, 0), (&two, 3, 3)] {
            let (cluster, task) = started(&folder, current);
            let journal = {
                let acknowledger = cluster.acknowledger();
                let journal = acknowledger.journal();
                (journal.contents(), journal.waiting_for_repair())
            };
            assert_eq!(journal, (in_journal, for_repair));
            task.stop().await.expect("no panic");
        }
    }
}
