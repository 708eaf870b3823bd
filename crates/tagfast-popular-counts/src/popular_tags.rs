//! The popular port, answered from the files of this process.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use tagfast_domain::{TagName, TenantId, UnixMillis};
use tagfast_popular::{
    Leaderboard, LeaderboardSnapshot, PopularError, PopularTags, RecountReport, Suggestions,
    TagCount, Window,
};

use crate::counts::PopularCounts;
use crate::files::Files;
use crate::partition_file::{First, read_counts};
use crate::recount::recount;

/// Counts of a tag, summed over the partitions.
#[derive(Default)]
struct MergedTag {
    /// In the order of [`Window::ALL`].
    counts: [u64; 4],
    first: First,
}

/// Sums a tenant's counts over all files.
fn read_snapshot(files: &Files, tenant: &TenantId) -> rusqlite::Result<LeaderboardSnapshot> {
    let mut merged: HashMap<String, MergedTag> = HashMap::new();
    for file in files.all() {
        file.read(|conn| {
            let mut select = conn.prepare_cached(
                "SELECT tag, n0, n1, n2, n3, first_at, first_display
                 FROM pop_count WHERE tenant = ?1",
            )?;
            let mut rows = select.query([tenant.as_str()])?;
            while let Some(row) = rows.next()? {
                let tag = merged.entry(row.get(0)?).or_default();
                let (counts, first) = read_counts(row, 1)?;
                tag.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                if let Some(first) = first
                    && tag.first.as_ref().is_none_or(|known| first < *known)
                {
                    tag.first = Some(first);
                }
            }
            Ok(())
        })?;
    }
    let tags =
        merged.into_iter().map(|(tag, m)| (tag, m.first.map(|(_, display)| display), m.counts));
    Ok(LeaderboardSnapshot::rank(tags))
}

impl PopularCounts {
    async fn snapshot(
        &self,
        tenant: &TenantId,
    ) -> Result<(Arc<LeaderboardSnapshot>, UnixMillis), PopularError> {
        if self.files().all().is_empty() {
            return Err(PopularError::unavailable("the counts are being built"));
        }
        let current = Arc::clone(&self.files);
        let read = move |tenant: &TenantId| {
            // The cache cleared the tenant's dirty mark before: a later rebuild sets it again.
            let files = Arc::clone(&current.read());
            read_snapshot(&files, tenant)
        };
        self.leaderboards.get(tenant, read).await
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
        prefix: &str,
        limit: usize,
    ) -> Result<Suggestions, PopularError> {
        let (snapshot, as_of) = self.snapshot(tenant).await?;
        let tags = snapshot.suggest(prefix, limit);
        Ok(Suggestions { tags, approximate: snapshot.is_approximate(), as_of, stale: false })
    }

    async fn count(
        &self,
        tenant: &TenantId,
        tag: &TagName,
    ) -> Result<Option<TagCount>, PopularError> {
        let (snapshot, _) = self.snapshot(tenant).await?;
        Ok(snapshot.count(tag).cloned())
    }

    async fn displays(
        &self,
        tenant: &TenantId,
        tags: &[TagName],
    ) -> Result<Vec<Arc<str>>, PopularError> {
        let (snapshot, _) = self.snapshot(tenant).await?;
        Ok(snapshot.displays(tags))
    }

    async fn recount(
        &self,
        repair: bool,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<RecountReport, PopularError> {
        recount(self, repair, progress).await
    }
}
