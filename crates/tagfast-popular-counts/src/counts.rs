//! The counts of a process: their files, and how far they count.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use tagfast_domain::UnixMillis;
use tagfast_events::{Partition, Positions};
use tagfast_popular::{LeaderboardCache, PopularError};
use tagfast_resilience::{Clock, generation};
use tagfast_sharding::LogicalShard;
use tagfast_store::ShardScanner;

use crate::files::{CurrentFiles, Files};
use crate::owned_partitions::OwnedPartitions;
use crate::partition_file::Tags;

/// Maximum number of contents on a page that a rebuild or recount reads from a shard.
pub(crate) const SCAN_PAGE_MAX: usize = 1000;

/// When positions were written and buckets expired.
#[derive(Default)]
pub(crate) struct ExpirySchedule {
    /// Durable positions.
    pub(crate) written: Positions,
    /// When positions were written last; `None` before the first time.
    pub(crate) written_at: Option<Instant>,
    /// Minute (Unix time / 60 s) of the last expiry.
    pub(crate) expired_minute: i64,
}

/// Popular tags, counted from events and kept in SQLite files.
pub struct PopularCounts {
    pub(crate) dir: PathBuf,
    pub(crate) files: CurrentFiles,
    pub(crate) leaderboards: Arc<LeaderboardCache>,
    pub(crate) scanner: Arc<dyn ShardScanner>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) schedule: Mutex<ExpirySchedule>,
    /// Every write committed before this time (Unix ms) is counted.
    pub(crate) visible: AtomicI64,
    /// Held during a recount.
    pub(crate) recounting: tokio::sync::Mutex<()>,
    /// Partitions that the consumer group assigned to this process; `None` if this process counts
    /// all partitions.
    pub(crate) owned: Option<OwnedPartitions>,
}

impl PopularCounts {
    /// Opens the counts of a process that counts all partitions. The consumer rebuilds missing or
    /// damaged files.
    ///
    /// # Errors
    ///
    /// [`PopularError::Unavailable`] if the directory cannot be created.
    pub fn open(
        dir: PathBuf,
        scanner: Arc<dyn ShardScanner>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, PopularError> {
        std::fs::create_dir_all(&dir).map_err(PopularError::unavailable)?;
        let files = Files::open_usable(&dir, clock.now_ms()).unwrap_or_else(Files::none);
        Ok(Self::new(dir, files, None, scanner, clock))
    }

    /// Opens the counts of a process that counts the partitions its consumer group assigns to it,
    /// for leaderboards that all processes read ([`crate::LeaderboardPublisher`]). Damaged files
    /// are replaced by empty ones, which the consumer rebuilds.
    ///
    /// # Errors
    ///
    /// [`PopularError::Unavailable`] if the directory or the files cannot be created.
    pub fn open_shared(
        dir: PathBuf,
        partitions: u16,
        scanner: Arc<dyn ShardScanner>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, PopularError> {
        std::fs::create_dir_all(&dir).map_err(PopularError::unavailable)?;
        let (now, wanted) = (clock.now_ms(), usize::from(partitions));
        let usable = Files::open_usable(&dir, now).filter(|files| files.all().len() == wanted);
        let files = match usable {
            Some(files) => files,
            None => {
                let path = generation::create(&dir).map_err(PopularError::unavailable)?;
                let files = Files::open(&path, wanted, now).map_err(PopularError::unavailable)?;
                generation::switch(&dir, &path).map_err(PopularError::unavailable)?;
                files
            }
        };
        Ok(Self::new(dir, files, Some(OwnedPartitions::default()), scanner, clock))
    }

    fn new(
        dir: PathBuf,
        files: Files,
        owned: Option<OwnedPartitions>,
        scanner: Arc<dyn ShardScanner>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        Arc::new(Self {
            dir,
            files: Arc::new(RwLock::new(Arc::new(files))),
            leaderboards: LeaderboardCache::new(),
            scanner,
            clock,
            schedule: Mutex::default(),
            visible: AtomicI64::new(0),
            recounting: tokio::sync::Mutex::new(()),
            owned,
        })
    }

    pub(crate) fn files(&self) -> Arc<Files> {
        Arc::clone(&self.files.read())
    }

    /// Notes that counts of these tags changed.
    pub(crate) fn mark_dirty(&self, partition: Partition, tags: Tags) {
        match &self.owned {
            Some(owned) => owned.mark_dirty(partition, tags),
            None => {
                let tenants = tags.into_iter().map(|(tenant, _)| tenant).collect();
                self.leaderboards.mark_dirty(&tenants);
            }
        }
    }

    /// Notes that counts of any tag may have changed.
    pub(crate) fn mark_all_dirty(&self) {
        match &self.owned {
            Some(owned) => owned.mark_all_dirty(),
            None => self.leaderboards.mark_all_dirty(),
        }
    }

    /// Notes that every write committed before `at` (Unix ms) is counted. An earlier time than
    /// before means that the one before said too much.
    pub(crate) fn visible_through(&self, at: UnixMillis) {
        self.visible.store(at, std::sync::atomic::Ordering::Release);
        self.leaderboards.visible_through(at);
    }

    /// Shards whose contents this process counts.
    pub(crate) fn shards(&self) -> Vec<LogicalShard> {
        let files = self.files();
        match &self.owned {
            None => LogicalShard::all().collect(),
            Some(owned) => {
                let owned = owned.partitions();
                LogicalShard::all()
                    .filter(|shard| owned.contains(&files.partition_of(*shard)))
                    .collect()
            }
        }
    }
}
