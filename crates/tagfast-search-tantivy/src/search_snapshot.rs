//! What searches read between two commits: a searcher with the columns of its segments.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tagfast_domain::TagName;
use tantivy::columnar::{Column, StrColumn};
use tantivy::index::SegmentId;
use tantivy::{Searcher, SegmentReader};

use crate::schema::{Fields, KEY, TAG, UPDATED_AT, VERSION};

/// Maximum number of tags numbered per lock acquisition.
const NUMBER_BATCH_MAX: usize = 1000;
/// Up to this many numbered tags, numbers of unused tags are not reclaimed.
const TAG_CACHE_MAX: usize = 50_000;

/// Columns of a segment. A segment never changes, so snapshots share them.
pub(crate) struct SegmentColumns {
    pub(crate) updated_at: Column<i64>,
    pub(crate) version: Column<u64>,
    pub(crate) key: StrColumn,
    /// `None` in a segment of tombstones only.
    pub(crate) tag: Option<StrColumn>,
    /// Number of each tag, by tag ordinal; the same across all segments.
    pub(crate) numbers: Vec<u32>,
}

/// Numbers every `tenant 0 tag`, so that facets of several segments are summed without strings.
#[derive(Default)]
pub(crate) struct TagNumbers {
    state: Mutex<TagNumberTable>,
}

#[derive(Default)]
struct TagNumberTable {
    by_term: HashMap<Box<[u8]>, u32>,
    names: Vec<TagName>,
}

impl TagNumbers {
    /// Returns the numbers of a segment's tags, by tag ordinal.
    fn number_segment(&self, tag: &StrColumn) -> tantivy::Result<Vec<u32>> {
        let mut numbers = Vec::with_capacity(tag.num_terms());
        let mut terms = tag.dictionary().stream()?;
        let mut more = true;
        while more {
            // In batches: searches that name their facets wait for this lock.
            let mut state = self.state.lock();
            for _ in 0..NUMBER_BATCH_MAX {
                more = terms.advance();
                if !more {
                    break;
                }
                numbers.push(state.number(terms.key()));
            }
        }
        Ok(numbers)
    }

    /// Replaces numbers by tag names.
    pub(crate) fn names(&self, numbers: &[(u32, u64)]) -> Vec<(TagName, u64)> {
        let state = self.state.lock();
        numbers
            .iter()
            .filter_map(|(n, count)| Some((state.names.get(*n as usize)?.clone(), *count)))
            .collect()
    }

    /// Number of numbered tags.
    fn len(&self) -> usize {
        self.state.lock().names.len()
    }
}

impl TagNumberTable {
    fn number(&mut self, term: &[u8]) -> u32 {
        if let Some(number) = self.by_term.get(term) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        // The tenant only distinguishes terms; facets show the tag name.
        let name = term.iter().position(|b| *b == 0).map_or(term, |at| &term[at + 1..]);
        self.names.push(TagName::from_canonical(&String::from_utf8_lossy(name)));
        self.by_term.insert(term.into(), number);
        number
    }
}

impl SegmentColumns {
    fn open(reader: &SegmentReader, tags: &TagNumbers) -> tantivy::Result<Self> {
        let fast = reader.fast_fields();
        let missing = || tantivy::TantivyError::SchemaError("the key column is missing".to_owned());
        let tag = fast.str(TAG)?;
        Ok(Self {
            updated_at: fast.i64(UPDATED_AT)?,
            version: fast.u64(VERSION)?,
            key: fast.str(KEY)?.ok_or_else(missing)?,
            numbers: tag.as_ref().map_or(Ok(Vec::new()), |tag| tags.number_segment(tag))?,
            tag,
        })
    }
}

/// A searcher and its columns.
pub(crate) struct SearchSnapshot {
    pub(crate) searcher: Searcher,
    pub(crate) fields: Fields,
    pub(crate) segments: Vec<Arc<SegmentColumns>>,
    pub(crate) tags: Arc<TagNumbers>,
    /// Upper bound of the tag numbers that the segments of this searcher use.
    pub(crate) tag_count: usize,
    by_id: HashMap<SegmentId, Arc<SegmentColumns>>,
}

impl SearchSnapshot {
    /// Opens the columns of the searcher's segments; reuses those of `previous`.
    pub(crate) fn new(
        searcher: Searcher,
        fields: Fields,
        previous: Option<&Self>,
    ) -> tantivy::Result<Self> {
        let used = |p: &Self| p.segments.iter().map(|c| c.numbers.len()).sum::<usize>();
        // Numbers are never reclaimed. If most belong to tags that no segment uses any more, the
        // numbering restarts.
        let previous =
            previous.filter(|p| p.tag_count <= TAG_CACHE_MAX || p.tag_count <= 2 * used(p));
        let tags = previous.map_or_else(Arc::default, |p| Arc::clone(&p.tags));
        let mut segments = Vec::with_capacity(searcher.segment_readers().len());
        let mut by_id = HashMap::new();
        for reader in searcher.segment_readers() {
            let known = previous.and_then(|p| p.by_id.get(&reader.segment_id()));
            let columns = match known {
                Some(columns) => Arc::clone(columns),
                None => Arc::new(SegmentColumns::open(reader, &tags)?),
            };
            by_id.insert(reader.segment_id(), Arc::clone(&columns));
            segments.push(columns);
        }
        let tag_count = tags.len();
        Ok(Self { searcher, fields, segments, tags, tag_count, by_id })
    }

    /// Iterates over segment ordinals, segments and their columns.
    pub(crate) fn segments_with_columns(
        &self,
    ) -> impl Iterator<Item = (u32, &SegmentReader, &SegmentColumns)> {
        self.searcher
            .segment_readers()
            .iter()
            .zip(&self.segments)
            .enumerate()
            .map(|(n, (reader, columns))| (n as u32, reader, columns.as_ref()))
    }
}
