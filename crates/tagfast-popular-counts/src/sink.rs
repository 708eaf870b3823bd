//! The counts as a sink of the bus: events in, rebuilds from the shards, expiry once a minute.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tagfast_domain::{ContentKey, EpochId, UnixMillis, Version};
use tagfast_events::{
    ConsumerGroup, Partition, Positions, RebuildRequest, RecordVerdict, Sink, SinkError,
    SinkRecord, Start, VisibleThrough,
};
use tagfast_resilience::{BoxError, generation, task};
use tagfast_sharding::LogicalShard;
use tagfast_store::ScanRequest;

use crate::counts::{PopularCounts, SCAN_PAGE_MAX};
use crate::files::{Files, stored_key};
use crate::partition_file::{PartitionFile, Replace, State};

/// The consumer group that counts.
pub const CONSUMER_GROUP: ConsumerGroup = ConsumerGroup::ANALYTICS;

/// Best number of records per call of [`Sink::apply`]. Each transaction writes the pages that it
/// changed, and tags lie on different pages: few large transactions write much less than many small
/// ones.
pub const APPLY_BATCH_MAX: usize = 8000;
/// Interval between writes of positions: more often only costs transactions.
const POSITION_INTERVAL: Duration = Duration::from_millis(200);
/// Interval between expiries of buckets, in ms.
const EXPIRE_INTERVAL_MS: i64 = 60_000;

/// The sink failed as a whole; no record is to blame.
fn systemic(error: impl Into<BoxError>) -> SinkError {
    SinkError::caused_by("popular_store", "the files of the counts cannot be used", error)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, SinkError> {
    task::blocking(work).await.map_err(systemic)?.map_err(systemic)
}

impl PopularCounts {
    /// Copies the contents of shards into files; reports the number copied so far.
    async fn copy(
        &self,
        files: &Arc<Files>,
        shards: impl Iterator<Item = LogicalShard> + Send,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SinkError> {
        let mut copied = 0;
        for shard in shards {
            let mut after = None;
            loop {
                let page = self
                    .scanner
                    .scan(ScanRequest::of_all(shard, after.as_ref(), SCAN_PAGE_MAX))
                    .await
                    .map_err(systemic)?;
                copied += page.items.len() as u64;
                let target = Arc::clone(files);
                after = blocking(move || {
                    target.copy_page(shard, &page.items)?;
                    Ok(page.next)
                })
                .await?;
                progress(copied);
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Rebuilds some partitions in their current files; meanwhile the leaderboards in Redis answer.
    async fn rebuild_in_place(&self, request: RebuildRequest<'_>) -> Result<(), SinkError> {
        let RebuildRequest { from, epoch, progress } = request;
        let (files, now) = (self.files(), self.clock.now_ms());
        let (target, partitions) = (Arc::clone(&files), from.keys().copied().collect::<Vec<_>>());
        blocking(move || {
            partitions
                .iter()
                .filter_map(|p| target.of_partition(*p))
                .try_for_each(|file| file.clear(now))
        })
        .await?;
        let wanted = |shard: &LogicalShard| from.contains_key(&files.partition_of(*shard));
        self.copy(&files, LogicalShard::all().filter(wanted), progress).await?;
        let (from, epoch, target) = (from.clone(), epoch.to_string(), Arc::clone(&files));
        let positions = from.clone();
        blocking(move || target.set_positions(Some(&epoch), &positions)).await?;
        self.schedule.lock().written.extend(from);
        Ok(())
    }

    /// Subtracts buckets that have left their windows, once a minute.
    async fn expire_if_due(&self, files: Arc<Files>) -> Result<(), SinkError> {
        let now = self.clock.now_ms();
        let minute = now.div_euclid(EXPIRE_INTERVAL_MS);
        if self.schedule.lock().expired_minute >= minute {
            return Ok(());
        }
        let expire = move || {
            let expire =
                |(n, file): (usize, &PartitionFile)| Ok((Partition(n as u16), file.expire(now)?));
            files.all().iter().enumerate().map(expire).collect::<rusqlite::Result<Vec<_>>>()
        };
        for (partition, tags) in blocking(expire).await? {
            self.mark_dirty(partition, tags);
        }
        self.schedule.lock().expired_minute = minute;
        Ok(())
    }
}

#[async_trait]
impl Sink for PopularCounts {
    fn group(&self) -> ConsumerGroup {
        CONSUMER_GROUP
    }

    async fn start(&self, epoch: EpochId, partitions: &[Partition]) -> Result<Start, SinkError> {
        let files = self.files();
        let epoch = epoch.to_string();
        if let Some(owned) = &self.owned {
            owned.begin(partitions);
            let partitions = partitions.to_vec();
            let positions = blocking(move || {
                let mut positions = Positions::new();
                for partition in partitions {
                    let found = files
                        .of_partition(partition)
                        .map(PartitionFile::position)
                        .transpose()?
                        .flatten();
                    // Of a partition that was empty there is no record to know it by.
                    if let Some((of, position)) = found
                        && of == epoch
                        && position.next > 0
                    {
                        positions.insert(partition, position);
                    }
                }
                Ok(positions)
            })
            .await?;
            self.schedule.lock().written.extend(positions.clone());
            return Ok(Start::From(positions));
        }
        let start = blocking(move || {
            if files.all().is_empty() {
                return Ok(Start::Rebuild("there are no counts"));
            }
            let mut positions = Positions::new();
            for (n, file) in files.all().iter().enumerate() {
                match file.position()? {
                    Some((of, position)) if of == epoch => {
                        positions.insert(Partition(n as u16), position)
                    }
                    Some(_) => return Ok(Start::Rebuild("the counts belong to a different epoch")),
                    None => return Ok(Start::Rebuild("the counts are incomplete")),
                };
            }
            Ok(Start::From(positions))
        })
        .await?;
        if let Start::From(positions) = &start {
            self.schedule.lock().written = positions.clone();
        }
        Ok(start)
    }

    async fn apply(&self, records: &[SinkRecord]) -> Result<Vec<RecordVerdict>, SinkError> {
        let files = self.files();
        let records = records.to_vec();
        let (verdicts, all_changed) = blocking(move || {
            let mut verdicts = vec![RecordVerdict::Superseded; records.len()];
            let mut all_changed = Vec::new();
            let mut by_partition: BTreeMap<Partition, Vec<usize>> = BTreeMap::new();
            for (n, record) in records.iter().enumerate() {
                by_partition.entry(record.partition).or_default().push(n);
            }
            for (partition, indices) in by_partition {
                let Some(file) = files.of_partition(partition) else {
                    let message = format!("partition {} has no file", partition.0);
                    for n in indices {
                        verdicts[n] = RecordVerdict::Poison {
                            code: "unknown_partition",
                            message: message.clone(),
                        };
                    }
                    continue;
                };
                let keys: Vec<Vec<u8>> =
                    indices.iter().map(|n| stored_key(&records[*n].event.key)).collect();
                let states: Vec<State<'_>> = indices
                    .iter()
                    .zip(&keys)
                    .map(|(n, k)| {
                        let event = &records[*n].event;
                        State {
                            k,
                            tenant: &event.key.tenant,
                            version: event.version,
                            at: event.at,
                            tags: &event.tags,
                        }
                    })
                    .collect();
                let (applied, changed) = file.apply(&states, Replace::IfNewer)?;
                all_changed.push((partition, changed));
                for (n, applied) in indices.into_iter().zip(applied) {
                    if applied {
                        verdicts[n] = RecordVerdict::Applied;
                    }
                }
            }
            Ok((verdicts, all_changed))
        })
        .await
        // Some files may have applied their part; on the next attempt they report no change.
        .inspect_err(|_| self.mark_all_dirty())?;
        for (partition, tags) in all_changed {
            self.mark_dirty(partition, tags);
        }
        Ok(verdicts)
    }

    /// Every call of `apply` is durable: each batch is a transaction.
    async fn flush(&self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn versions(&self, keys: &[ContentKey]) -> Result<Vec<Option<Version>>, SinkError> {
        let (files, keys) = (self.files(), keys.to_vec());
        blocking(move || {
            let version = |key: &ContentKey| match files.of_shard(LogicalShard::of(key)) {
                Some(file) => file.version(&stored_key(key)),
                None => Ok(None),
            };
            keys.iter().map(version).collect()
        })
        .await
    }

    async fn advance(&self, positions: &Positions) -> Result<Positions, SinkError> {
        let files = self.files();
        self.expire_if_due(Arc::clone(&files)).await?;
        let changed: Positions = {
            let schedule = self.schedule.lock();
            let due = schedule.written_at.is_none_or(|at| at.elapsed() >= POSITION_INTERVAL);
            if !due {
                return Ok(schedule.written.clone());
            }
            positions
                .iter()
                .filter(|(p, pos)| schedule.written.get(p) != Some(pos))
                .map(|(p, pos)| (*p, pos.clone()))
                .collect()
        };
        if !changed.is_empty() {
            let positions = changed.clone();
            blocking(move || files.set_positions(None, &positions)).await?;
        }
        let mut schedule = self.schedule.lock();
        if !changed.is_empty() {
            schedule.written_at = Some(Instant::now());
            schedule.written.extend(changed);
        }
        Ok(schedule.written.clone())
    }

    fn visible(&self, visible: &VisibleThrough) {
        if let Some(owned) = &self.owned {
            owned.observe(visible);
        }
        if let Some(at) = visible.oldest() {
            self.visible_through(at);
        }
    }

    fn shown(&self, durable: &BTreeMap<Partition, UnixMillis>) -> BTreeMap<Partition, UnixMillis> {
        self.owned.as_ref().map_or_else(|| durable.clone(), |owned| owned.shown(durable))
    }

    fn end(&self, partitions: &[Partition]) {
        if let Some(owned) = &self.owned {
            owned.end(partitions);
            let mut schedule = self.schedule.lock();
            schedule.written.retain(|partition, _| !partitions.contains(partition));
        }
    }

    fn rebuilds_in_parts(&self) -> bool {
        self.owned.is_some()
    }

    async fn rebuild(&self, request: RebuildRequest<'_>) -> Result<(), SinkError> {
        if self.owned.is_some() {
            return self.rebuild_in_place(request).await;
        }
        let RebuildRequest { from, epoch, progress } = request;
        let (root, now, partitions) = (self.dir.clone(), self.clock.now_ms(), from.len());
        let (path, files) = blocking(move || {
            let path = generation::create(&root)
                .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
            let files = Files::open(&path, partitions, now)?;
            Ok((path, files))
        })
        .await?;
        let files = Arc::new(files);
        self.copy(&files, LogicalShard::all(), progress).await?;
        let (from, epoch, target) = (from.clone(), epoch.to_string(), Arc::clone(&files));
        let (root, written) = (self.dir.clone(), from.clone());
        blocking(move || {
            target.set_positions(Some(&epoch), &from)?;
            target.all().iter().try_for_each(PartitionFile::checkpoint)?;
            generation::switch(&root, &path)
                .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
        })
        .await?;
        *self.files.write() = files;
        let mut schedule = self.schedule.lock();
        schedule.written = written;
        schedule.written_at = None;
        // The windows of the new files start at the time of their creation.
        schedule.expired_minute = 0;
        drop(schedule);
        self.leaderboards.mark_all_dirty();
        Ok(())
    }

    async fn close(&self) -> Result<(), SinkError> {
        self.leaderboards.wait_until_idle().await;
        let files = self.files();
        blocking(move || files.all().iter().try_for_each(PartitionFile::checkpoint)).await
    }
}
