//! What searches see between two commits: a searcher with its columns opened once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tagfast_domain::TagName;
use tantivy::columnar::{Column, StrColumn};
use tantivy::index::SegmentId;
use tantivy::{Searcher, SegmentReader};

use super::schema::{Fields, KEY, TAG, UPDATED_AT, VERSION};

/// The columns of a segment. A segment never changes, so they are shared between searchers.
pub(super) struct Columns {
    pub(super) updated_at: Column<i64>,
    pub(super) version: Column<u64>,
    pub(super) key: StrColumn,
    /// `None` in a segment of tombstones only.
    pub(super) tag: Option<StrColumn>,
    /// Global number of each tag ordinal, made when the first facets of this segment are asked for.
    numbers: OnceLock<Vec<u32>>,
}

/// Gives every `tenant 0 tag` a number, so that facets of several segments are added up without strings.
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
    fn number(&self, terms: impl Iterator<Item = Vec<u8>>) -> Vec<u32> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        terms
            .map(|term| match state.by_term.get(term.as_slice()) {
                Some(number) => *number,
                None => {
                    let number = u32::try_from(state.names.len()).unwrap_or(u32::MAX);
                    // The tenant is for telling terms apart; the name is what is shown.
                    let name = term.iter().position(|b| *b == 0).map_or(term.as_slice(), |at| &term[at + 1..]);
                    state.names.push(TagName::from_canonical(&String::from_utf8_lossy(name)));
                    state.by_term.insert(term.into_boxed_slice(), number);
                    number
                }
            })
            .collect()
    }

    /// The names of numbers.
    pub(super) fn names(&self, numbers: &[(u32, u64)]) -> Vec<(TagName, u64)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.iter().filter_map(|(n, count)| Some((state.names.get(*n as usize)?.clone(), *count))).collect()
    }

    /// How many numbers there are.
    pub(super) fn len(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).names.len()
    }
}

impl Columns {
    fn open(reader: &SegmentReader) -> tantivy::Result<Self> {
        let fast = reader.fast_fields();
        let missing = || tantivy::TantivyError::SchemaError("the key column is missing".to_owned());
        Ok(Self {
            updated_at: fast.i64(UPDATED_AT)?,
            version: fast.u64(VERSION)?,
            key: fast.str(KEY)?.ok_or_else(missing)?,
            tag: fast.str(TAG)?,
            numbers: OnceLock::new(),
        })
    }

    /// The global number of each tag ordinal of this segment.
    pub(super) fn numbers(&self, all: &TagNumbers) -> &[u32] {
        self.numbers.get_or_init(|| {
            let Some(tag) = &self.tag else { return Vec::new() };
            let mut terms = Vec::with_capacity(tag.num_terms());
            if let Ok(mut stream) = tag.dictionary().stream() {
                while stream.advance() {
                    terms.push(stream.key().to_vec());
                }
            }
            all.number(terms.into_iter())
        })
    }
}

/// A searcher and its columns.
pub(super) struct Live {
    pub(super) searcher: Searcher,
    pub(super) fields: Fields,
    pub(super) segments: Vec<Arc<Columns>>,
    pub(super) tags: Arc<TagNumbers>,
    by_id: HashMap<SegmentId, Arc<Columns>>,
}

impl Live {
    /// With the columns of `previous` where the segment is the same.
    pub(super) fn new(searcher: Searcher, fields: Fields, previous: Option<&Self>) -> tantivy::Result<Self> {
        let mut segments = Vec::with_capacity(searcher.segment_readers().len());
        let mut by_id = HashMap::new();
        for reader in searcher.segment_readers() {
            let known = previous.and_then(|p| p.by_id.get(&reader.segment_id()));
            let columns = match known {
                Some(columns) => Arc::clone(columns),
                None => Arc::new(Columns::open(reader)?),
            };
            by_id.insert(reader.segment_id(), Arc::clone(&columns));
            segments.push(columns);
        }
        let tags = previous.map_or_else(Arc::default, |p| Arc::clone(&p.tags));
        Ok(Self { searcher, fields, segments, tags, by_id })
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
