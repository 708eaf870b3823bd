//! The tags of a tenant from all files of this process: one by one in the order of canonical names,
//! or some by name.
//!
//! Every file keeps its tags in that order, so that merging needs one page of each file in memory,
//! however many tags there are. A page is a transaction of its own: a long walk does not keep other
//! readers of a file waiting, and each count is one that was true at some time during the walk.

use std::collections::{BTreeSet, VecDeque};

use rusqlite::params;
use tagfast_domain::{TagName, TenantId};
use tagfast_popular::{TagCount, Window};

use crate::files::Files;
use crate::partition_file::{First, PartitionFile, Tags, read_counts};

/// Counts of a tag, summed over the files.
#[derive(Debug, Default)]
pub(crate) struct MergedTag {
    /// Canonical name.
    pub(crate) tag: String,
    /// In the order of [`Window::ALL`].
    pub(crate) counts: [u64; 4],
    first: First,
}

impl MergedTag {
    fn join(&mut self, counts: [u64; 4], first: First) {
        self.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        if let Some(first) = first
            && self.first.as_ref().is_none_or(|known| first < *known)
        {
            self.first = Some(first);
        }
    }

    /// First spelling; `None` if it is unknown.
    pub(crate) fn display(&self) -> Option<&str> {
        self.first.as_ref().map(|(_, display)| display.as_str())
    }

    /// The tag with its count over all time; `None` if no content carries it.
    pub(crate) fn into_count(self) -> Option<TagCount> {
        let count = self.counts[Window::All.index()];
        let tag = TagName::from_canonical(&self.tag);
        let display = match self.first {
            Some((_, display)) if display != self.tag => display.into(),
            Some(_) | None => tag.shared(),
        };
        (count > 0).then_some(TagCount { tag, display, count })
    }
}

/// The tags of one file that are not merged yet.
struct FileTags {
    rows: VecDeque<(String, [u64; 4], First)>,
    /// The last tag that was read.
    after: String,
    ended: bool,
}

impl FileTags {
    fn read(
        &mut self,
        file: &PartitionFile,
        tenant: &TenantId,
        max: usize,
    ) -> rusqlite::Result<()> {
        file.read(|conn| {
            let mut select = conn.prepare_cached(
                "SELECT tag, n0, n1, n2, n3, first_at, first_display
                 FROM pop_count WHERE tenant = ?1 AND tag > ?2 ORDER BY tag LIMIT ?3",
            )?;
            let mut rows = select.query(params![tenant.as_str(), self.after, max as i64])?;
            while let Some(row) = rows.next()? {
                let (counts, first) = read_counts(row, 1)?;
                self.rows.push_back((row.get(0)?, counts, first));
            }
            Ok(())
        })?;
        self.ended = self.rows.len() < max;
        if let Some((last, ..)) = self.rows.back() {
            self.after.clone_from(last);
        }
        Ok(())
    }
}

/// Walks over all tags of a tenant.
pub(crate) struct MergedTags<'a> {
    files: &'a Files,
    tenant: &'a TenantId,
    /// Tags of each file in memory.
    page_max: usize,
    of_files: Vec<FileTags>,
}

impl<'a> MergedTags<'a> {
    /// Begins after a tag; `None` is the beginning.
    pub(crate) fn after(
        files: &'a Files,
        tenant: &'a TenantId,
        after: Option<&TagName>,
        page_max: usize,
    ) -> Self {
        // Every name is greater than the empty one.
        let after = after.map_or("", TagName::as_str);
        let of_file =
            |_: &_| FileTags { rows: VecDeque::new(), after: after.to_owned(), ended: false };
        let of_files = files.all().iter().map(of_file).collect();
        Self { files, tenant, page_max, of_files }
    }

    /// The next tag; `None` after the last one.
    pub(crate) fn next(&mut self) -> rusqlite::Result<Option<MergedTag>> {
        for (of_file, file) in self.of_files.iter_mut().zip(self.files.all()) {
            if of_file.rows.is_empty() && !of_file.ended {
                of_file.read(file, self.tenant, self.page_max)?;
            }
        }
        let heads = self.of_files.iter().filter_map(|of_file| of_file.rows.front());
        let Some(tag) = heads.map(|(tag, ..)| tag).min().cloned() else { return Ok(None) };
        let mut merged = MergedTag { tag, ..MergedTag::default() };
        for of_file in &mut self.of_files {
            if of_file.rows.front().is_some_and(|(tag, ..)| *tag == merged.tag)
                && let Some((_, counts, first)) = of_file.rows.pop_front()
            {
                merged.join(counts, first);
            }
        }
        Ok(Some(merged))
    }
}

/// The counts of tags by name, in the same order.
pub(crate) fn counts_of(
    files: &Files,
    tenant: &TenantId,
    tags: &[TagName],
) -> rusqlite::Result<Vec<MergedTag>> {
    let wanted: Tags = tags.iter().map(|t| (tenant.clone(), t.as_str().to_owned())).collect();
    let names: BTreeSet<&str> = tags.iter().map(TagName::as_str).collect();
    let mut sums: Vec<MergedTag> = names
        .iter()
        .map(|name| MergedTag { tag: (*name).to_owned(), ..MergedTag::default() })
        .collect();
    for file in files.all() {
        for counted in file.counts(&wanted)? {
            if let Ok(at) = sums.binary_search_by(|sum| sum.tag.cmp(&counted.tag)) {
                sums[at].join(counted.windows, counted.first);
            }
        }
    }
    let of = |tag: &TagName| {
        let at = sums.binary_search_by(|sum| sum.tag.as_str().cmp(tag.as_str())).ok()?;
        let MergedTag { tag, counts, first } = &sums[at];
        Some(MergedTag { tag: tag.clone(), counts: *counts, first: first.clone() })
    };
    Ok(tags.iter().filter_map(of).collect())
}
