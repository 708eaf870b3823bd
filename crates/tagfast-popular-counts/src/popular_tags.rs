//! The popular port, answered from the files of this process.
//!
//! Leaderboards and completion come from a snapshot; the count of a tag, displays and the list of
//! all tags are read from the files, so that they cost what they name and are exact however many
//! tags there are.

use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::{TagName, TenantId, UnixMillis};
use tagfast_popular::{
    Leaderboard, LeaderboardSnapshot, PopularError, PopularTags, RecountProgress, RecountReport,
    SnapshotBuilder, Suggestions, TagCount, TagPage, TagUse, Window,
};
use tagfast_resilience::task::{self, StopSignal};

use crate::counts::PopularCounts;
use crate::files::Files;
use crate::merged_tags::{MergedTags, counts_of};
use crate::recount::recount;

/// Tags of each file in memory while a snapshot is read.
const SNAPSHOT_PAGE_MAX: usize = 512;

/// Sums a tenant's counts over all files; incomplete after the stop signal.
fn read_snapshot(
    files: &Files,
    tenant: &TenantId,
    stop: &StopSignal,
) -> rusqlite::Result<LeaderboardSnapshot> {
    let mut tags = MergedTags::after(files, tenant, None, SNAPSHOT_PAGE_MAX);
    let mut builder = SnapshotBuilder::default();
    while !stop.is_cancelled()
        && let Some(tag) = tags.next()?
    {
        builder.add(&tag.tag, tag.display(), tag.counts);
    }
    if stop.is_cancelled() {
        return Ok(LeaderboardSnapshot::default());
    }
    Ok(builder.finish())
}

fn read_page(
    files: &Files,
    tenant: &TenantId,
    after: Option<&TagName>,
    limit: usize,
) -> rusqlite::Result<(Vec<TagCount>, Option<TagName>)> {
    let mut tags = MergedTags::after(files, tenant, after, limit + 1);
    let (mut page, mut last) = (Vec::with_capacity(limit), None);
    while let Some(tag) = tags.next()? {
        if page.len() == limit {
            return Ok((page, last));
        }
        last = Some(TagName::from_canonical(&tag.tag));
        page.extend(tag.into_count());
    }
    Ok((page, None))
}

impl PopularCounts {
    fn usable_files(&self) -> Result<Arc<Files>, PopularError> {
        let files = self.files();
        if files.all().is_empty() {
            return Err(PopularError::unavailable("the counts are being built"));
        }
        Ok(files)
    }

    async fn snapshot(
        &self,
        tenant: &TenantId,
    ) -> Result<(Arc<LeaderboardSnapshot>, UnixMillis), PopularError> {
        self.usable_files()?;
        let current = Arc::clone(&self.files);
        let read = move |tenant: &TenantId, stop: &StopSignal| {
            // The cache cleared the tenant's dirty mark before: a later rebuild sets it again.
            let files = Arc::clone(&current.read());
            read_snapshot(&files, tenant, stop)
        };
        self.leaderboards.get(tenant, read).await
    }

    /// Reads from the files on the blocking pool.
    async fn read_files<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Files) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, PopularError> {
        let files = self.usable_files()?;
        let read = task::blocking(move || read(&files)).await;
        read.map_err(PopularError::unavailable)?.map_err(PopularError::unavailable)
    }
}

#[async_trait]
impl PopularTags for PopularCounts {
    async fn popular(
        &self,
        tenant: &TenantId,
        window: Window,
        limit: usize,
    ) -> Result<Leaderboard, PopularError> {
        let (snapshot, as_of) = self.snapshot(tenant).await?;
        Ok(Leaderboard { tags: snapshot.leaderboard(window, limit), as_of, stale: false })
    }

    async fn suggest(
        &self,
        tenant: &TenantId,
        typed: &str,
        limit: usize,
    ) -> Result<Suggestions, PopularError> {
        let (snapshot, as_of) = self.snapshot(tenant).await?;
        let approximate = snapshot.is_approximate();
        let tags = snapshot.suggest(typed, limit).await?;
        Ok(Suggestions { tags, approximate, as_of, stale: false })
    }

    async fn list(
        &self,
        tenant: &TenantId,
        after: Option<&TagName>,
        limit: usize,
    ) -> Result<TagPage, PopularError> {
        // Before the counts, which can only be newer than it claims.
        let as_of = self.leaderboards.visible();
        let (tenant, after) = (tenant.clone(), after.cloned());
        let read = move |files: &Files| read_page(files, &tenant, after.as_ref(), limit);
        let (tags, next) = self.read_files(read).await?;
        Ok(TagPage { tags, next, as_of })
    }

    async fn count(&self, tenant: &TenantId, tag: &TagName) -> Result<TagUse, PopularError> {
        // Before the count, which can only be newer than it claims.
        let as_of = self.leaderboards.visible();
        let (tenant, tags) = (tenant.clone(), [tag.clone()]);
        let found = self.read_files(move |files| counts_of(files, &tenant, &tags)).await?;
        let tag = found.into_iter().find_map(|tag| tag.into_count());
        Ok(TagUse { tag, as_of, stale: false })
    }

    async fn displays(
        &self,
        tenant: &TenantId,
        tags: &[TagName],
    ) -> Result<Vec<Arc<str>>, PopularError> {
        let (tenant, tags) = (tenant.clone(), tags.to_vec());
        let read = move |files: &Files| {
            let shown = counts_of(files, &tenant, &tags)?.into_iter().zip(&tags);
            Ok(shown.map(|(tag, name)| tag.display().map_or(name.shared(), Into::into)).collect())
        };
        self.read_files(read).await
    }

    async fn recount(
        &self,
        repair: bool,
        progress: &(dyn Fn(RecountProgress) + Send + Sync),
    ) -> Result<RecountReport, PopularError> {
        recount(self, repair, progress).await
    }
}
