//! What searches see between two commits: a searcher with its columns opened once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tagfast_domain::TagName;
use tantivy::columnar::{Column, StrColumn};
use tantivy::index::SegmentId;
use tantivy::{Searcher, SegmentReader};

use super::schema::{Fields, KEY, TAG, UPDATED_AT, VERSION};

/// Tags numbered under one lock.
const NUMBERED_AT_ONCE: usize = 1000;
/// Below this many tags ever seen, the numbers of unused ones are not worth reclaiming.
const FORGOTTEN_TAGS: usize = 50_000;

/// The columns of a segment. A segment never changes, so they are shared between searchers.
pub(super) struct Columns {
    pub(super) updated_at: Column<i64>,
    pub(super) version: Column<u64>,
    pub(super) key: StrColumn,
    /// `None` in a segment of tombstones only.
    pub(super) tag: Option<StrColumn>,
    /// The number of each tag ordinal among all segments.
    pub(super) numbers: Vec<u32>,
}

/// Gives every `tenant 0 tag` a number, so that facets of several segments are added up without
/// strings.
#[derive(Default)]
pub(super) struct TagNumbers {
    state: Mutex<Numbers>,
}

#[derive(Default)]
struct Numbers {
    by_term: HashMap<Box<[u8]>, u32>,
    names: Vec<TagName>,
}

impl TagNumbers {
    /// Numbers of a segment's tags, by ordinal.
    fn of(&self, tag: &StrColumn) -> tantivy::Result<Vec<u32>> {
        let mut numbers = Vec::with_capacity(tag.num_terms());
        let mut terms = tag.dictionary().stream()?;
        let mut more = true;
        while more {
            // A few at a time: searches that name their facets wait for this lock.
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            for _ in 0..NUMBERED_AT_ONCE {
                more = terms.advance();
                if !more {
                    break;
                }
                numbers.push(state.number(terms.key()));
            }
        }
        Ok(numbers)
    }

    /// The names of numbers.
    pub(super) fn names(&self, numbers: &[(u32, u64)]) -> Vec<(TagName, u64)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        numbers
            .iter()
            .filter_map(|(n, count)| Some((state.names.get(*n as usize)?.clone(), *count)))
            .collect()
    }

    /// How many numbers there are.
    fn len(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).names.len()
    }
}

impl Numbers {
    fn number(&mut self, term: &[u8]) -> u32 {
        if let Some(number) = self.by_term.get(term) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        // The tenant is for telling terms apart; the name is what is shown.
        let name = term.iter().position(|b| *b == 0).map_or(term, |at| &term[at + 1..]);
        self.names.push(TagName::from_canonical(&String::from_utf8_lossy(name)));
        self.by_term.insert(term.into(), number);
        number
    }
}

impl Columns {
    fn open(reader: &SegmentReader, tags: &TagNumbers) -> tantivy::Result<Self> {
        let fast = reader.fast_fields();
        let missing = || tantivy::TantivyError::SchemaError("the key column is missing".to_owned());
        let tag = fast.str(TAG)?;
        Ok(Self {
            updated_at: fast.i64(UPDATED_AT)?,
            version: fast.u64(VERSION)?,
            key: fast.str(KEY)?.ok_or_else(missing)?,
            numbers: tag.as_ref().map_or(Ok(Vec::new()), |tag| tags.of(tag))?,
            tag,
        })
    }
}

/// A searcher and its columns.
pub(super) struct Live {
    pub(super) searcher: Searcher,
    pub(super) fields: Fields,
    pub(super) segments: Vec<Arc<Columns>>,
    pub(super) tags: Arc<TagNumbers>,
    /// How many numbers the segments of this searcher use at most.
    pub(super) tag_count: usize,
    by_id: HashMap<SegmentId, Arc<Columns>>,
}

impl Live {
    /// With the columns of `previous` where the segment is the same.
    pub(super) fn new(
        searcher: Searcher,
        fields: Fields,
        previous: Option<&Self>,
    ) -> tantivy::Result<Self> {
        let used = |p: &Self| p.segments.iter().map(|c| c.numbers.len()).sum::<usize>();
        // Numbers are never given back. When most are of tags that nobody uses any more, numbering
        // begins anew.
        let previous =
            previous.filter(|p| p.tag_count <= FORGOTTEN_TAGS || p.tag_count <= 2 * used(p));
        let tags = previous.map_or_else(Arc::default, |p| Arc::clone(&p.tags));
        let mut segments = Vec::with_capacity(searcher.segment_readers().len());
        let mut by_id = HashMap::new();
        for reader in searcher.segment_readers() {
            let known = previous.and_then(|p| p.by_id.get(&reader.segment_id()));
            let columns = match known {
                Some(columns) => Arc::clone(columns),
                None => Arc::new(Columns::open(reader, &tags)?),
            };
            by_id.insert(reader.segment_id(), Arc::clone(&columns));
            segments.push(columns);
        }
        let tag_count = tags.len();
        Ok(Self { searcher, fields, segments, tags, tag_count, by_id })
    }

    /// The segments with their columns.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u32, &SegmentReader, &Columns)> {
        self.searcher
            .segment_readers()
            .iter()
            .zip(&self.segments)
            .enumerate()
            .map(|(n, (reader, columns))| (n as u32, reader, columns.as_ref()))
    }
}
