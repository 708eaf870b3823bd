//! Answering one search: plan, collect, join.
//!
//! Each segment keeps the best hits by (sort value, ordinal of the key), which is the order of keys
//! within a segment; strings are only compared when hits of two segments tie. Counting and facets
//! happen in the same pass.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Bound;

use tagfast_domain::{TagName, TenantId};
use tantivy::query::{
    BooleanQuery, EmptyQuery, EnableScoring, Occur, Query as TantivyQuery, TermQuery,
};
use tantivy::schema::{Field, IndexRecordOption, Value};
use tantivy::{DocAddress, DocId, SegmentReader, TantivyDocument, Term};

use super::live::{Columns, Live};
use super::schema::{hit, scoped};
use super::unavailable;
use crate::port::Total;
use crate::query::Query;
use crate::{Hit, SearchError, SearchPage, SearchRequest, Sort, SortKey};

/// Totals are exact up to here unless asked for.
const TOTAL_EXACT: u64 = 10_000;
/// Tags in an answer's facets.
const FACETS: usize = 50;
/// Most tags a prefix may stand for.
const PREFIX_TAGS: usize = 1024;
/// Most hits of a page.
const PAGE: usize = 200;
/// Above this many known tags, facets are counted in a map instead of an array.
const DENSE_TAGS: usize = 1 << 16;

/// What to do, worked out before anything is read.
pub(super) struct Plan {
    query: Box<dyn TantivyQuery>,
    postings: u64,
    tenant: TenantId,
    sort: Sort,
    after: Option<SortKey>,
    limit: usize,
    facets: Option<usize>,
    total_exact: bool,
}

impl Plan {
    /// For a request whose query was parsed.
    pub(super) fn new(
        live: &Live,
        tenant: &TenantId,
        request: &SearchRequest,
        query: Option<&Query>,
    ) -> Result<Self, SearchError> {
        let builder = Builder { live, tenant };
        let mut parts = Vec::new();
        let mut postings = u64::MAX;
        if let Some(query) = query {
            let (query, estimate) = builder.build(query)?;
            postings = postings.min(estimate);
            parts.push((Occur::Must, query));
        }
        if let Some(content_type) = &request.content_type {
            let (query, estimate) =
                builder.term(live.fields.content_type, &scoped(tenant, content_type.as_str()))?;
            postings = postings.min(estimate);
            parts.push((Occur::Must, query));
        }
        if parts.is_empty() {
            let (query, estimate) = builder.all()?;
            postings = estimate;
            parts.push((Occur::Must, query));
        }
        let query = match parts.pop() {
            Some((_, only)) if parts.is_empty() => only,
            last => Box::new(BooleanQuery::new(parts.into_iter().chain(last).collect())),
        };
        Ok(Self {
            query,
            postings,
            tenant: tenant.clone(),
            sort: request.sort,
            after: request.after.clone(),
            limit: request.limit.clamp(1, PAGE),
            facets: request.facets.then_some(FACETS),
            total_exact: request.total_exact,
        })
    }

    /// No hits, only the facets of one tag.
    pub(super) fn of_tag(
        live: &Live,
        tenant: &TenantId,
        tag: &TagName,
    ) -> Result<Self, SearchError> {
        let (query, postings) =
            Builder { live, tenant }.term(live.fields.tag, &scoped(tenant, tag.as_str()))?;
        Ok(Self {
            query,
            postings,
            tenant: tenant.clone(),
            sort: Sort::Id,
            after: None,
            limit: 0,
            facets: Some(FACETS + 1),
            total_exact: false,
        })
    }

    /// Postings that will be read, about.
    pub(super) fn postings(&self) -> u64 {
        self.postings.saturating_mul(if self.facets.is_some() { 4 } else { 1 })
    }
}

struct Builder<'a> {
    live: &'a Live,
    tenant: &'a TenantId,
}

type Built = (Box<dyn TantivyQuery>, u64);

impl Builder<'_> {
    fn term(&self, field: Field, text: &str) -> Result<Built, SearchError> {
        let term = Term::from_field_text(field, text);
        let estimate = self.live.searcher.doc_freq(&term).map_err(unavailable)?;
        Ok((Box::new(TermQuery::new(term, IndexRecordOption::Basic)), estimate))
    }

    fn all(&self) -> Result<Built, SearchError> {
        self.term(self.live.fields.tenant, self.tenant.as_str())
    }

    fn build(&self, query: &Query) -> Result<Built, SearchError> {
        match query {
            Query::Tag(name) => {
                self.term(self.live.fields.tag, &scoped(self.tenant, name.as_str()))
            }
            Query::Type(name) => {
                self.term(self.live.fields.content_type, &scoped(self.tenant, name.as_str()))
            }
            Query::Prefix(prefix) => self.prefix(prefix),
            Query::Not(_) => self.and(std::slice::from_ref(query)),
            Query::And(parts) => self.and(parts),
            Query::Or(parts) => {
                let mut all = Vec::with_capacity(parts.len());
                let mut estimate = 0u64;
                for part in parts {
                    let (query, n) = self.build(part)?;
                    estimate = estimate.saturating_add(n);
                    all.push((Occur::Should, query));
                }
                Ok((Box::new(BooleanQuery::new(all)), estimate))
            }
        }
    }

    fn and(&self, parts: &[Query]) -> Result<Built, SearchError> {
        let mut all = Vec::with_capacity(parts.len() + 1);
        let mut estimate = u64::MAX;
        for part in parts {
            if let Query::Not(inner) = part {
                all.push((Occur::MustNot, self.build(inner)?.0));
            } else {
                let (query, n) = self.build(part)?;
                estimate = estimate.min(n);
                all.push((Occur::Must, query));
            }
        }
        if !all.iter().any(|(occur, _)| *occur == Occur::Must) {
            let (query, n) = self.all()?;
            estimate = n;
            all.push((Occur::Must, query));
        }
        Ok((Box::new(BooleanQuery::new(all)), estimate))
    }

    fn prefix(&self, prefix: &str) -> Result<Built, SearchError> {
        let start = scoped(self.tenant, prefix).into_bytes();
        let mut terms = std::collections::BTreeSet::new();
        for reader in self.live.searcher.segment_readers() {
            let index = reader.inverted_index(self.live.fields.tag).map_err(unavailable)?;
            let mut stream = index.terms().range().ge(&start).into_stream().map_err(unavailable)?;
            while stream.advance() && stream.key().starts_with(&start) {
                terms.insert(stream.key().to_vec());
                if terms.len() > PREFIX_TAGS {
                    return Err(SearchError::PrefixTooBroad {
                        prefix: prefix.to_owned(),
                        allowed: PREFIX_TAGS,
                    });
                }
            }
        }
        let any = terms.into_iter().map(|term| -> (Occur, Box<dyn TantivyQuery>) {
            let term = Term::from_field_text(self.live.fields.tag, &String::from_utf8_lossy(&term));
            (Occur::Should, Box::new(TermQuery::new(term, IndexRecordOption::Basic)))
        });
        let any: Vec<_> = any.collect();
        if any.is_empty() {
            return Ok((Box::new(EmptyQuery), 0));
        }
        Ok((Box::new(BooleanQuery::new(any)), u64::MAX))
    }
}

/// A hit within its segment: the smaller, the earlier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Negated time under [`Sort::Updated`], 0 under [`Sort::Id`].
    primary: i64,
    key: u64,
    doc: DocId,
}

struct Candidate<'a> {
    primary: i64,
    address: DocAddress,
    columns: &'a Columns,
    key: u64,
}

impl Candidate<'_> {
    /// The key's text: only for hits of different segments that tie.
    fn key_text(&self) -> String {
        let mut text = String::new();
        let _ = self.columns.key.ord_to_str(self.key, &mut text);
        text
    }

    fn order(&self, other: &Self) -> Ordering {
        self.primary.cmp(&other.primary).then_with(|| {
            if self.address.segment_ord == other.address.segment_ord {
                self.key.cmp(&other.key)
            } else {
                self.key_text().cmp(&other.key_text())
            }
        })
    }
}

/// Counts of tags by number.
enum Facets {
    Dense(Vec<u64>),
    Sparse(HashMap<u32, u64>),
}

impl Facets {
    fn add(&mut self, number: u32) {
        match self {
            Self::Dense(counts) => {
                if let Some(n) = counts.get_mut(number as usize) {
                    *n += 1;
                }
            }
            Self::Sparse(counts) => *counts.entry(number).or_default() += 1,
        }
    }

    fn counts(self) -> Vec<(u32, u64)> {
        match self {
            Self::Dense(counts) => (0..).zip(counts).filter(|(_, n)| *n > 0).collect(),
            Self::Sparse(counts) => counts.into_iter().collect(),
        }
    }
}

/// Runs a plan.
pub(super) fn execute(live: &Live, plan: &Plan) -> tantivy::Result<SearchPage> {
    let weight = plan.query.weight(EnableScoring::disabled_from_searcher(&live.searcher))?;
    let mut facets = plan.facets.map(|_| {
        let known = live.tag_count;
        if known <= DENSE_TAGS {
            Facets::Dense(vec![0; known])
        } else {
            Facets::Sparse(HashMap::new())
        }
    });
    let mut total = 0;
    let mut candidates = Vec::new();
    for (segment, reader, columns) in live.parts() {
        let mut places = Places::new(plan, columns)?;
        let alive = reader.alive_bitset();
        weight.for_each_no_score(reader, &mut |docs| {
            for doc in docs {
                if alive.is_some_and(|a| !a.is_alive(*doc)) {
                    continue;
                }
                total += 1;
                places.offer(*doc, columns);
                if let (Some(facets), Some(tag)) = (&mut facets, &columns.tag) {
                    for ord in tag.term_ords(*doc) {
                        if let Some(number) = columns.numbers.get(ord as usize) {
                            facets.add(*number);
                        }
                    }
                }
            }
        })?;
        candidates.extend(places.heap.into_iter().map(|p| Candidate {
            primary: p.primary,
            address: DocAddress::new(segment, p.doc),
            columns,
            key: p.key,
        }));
    }
    candidates.sort_by(Candidate::order);
    let more = candidates.len() > plan.limit;
    candidates.truncate(plan.limit);
    let hits =
        candidates.iter().map(|c| load(live, c.address)).collect::<tantivy::Result<Vec<Hit>>>()?;
    let next = hits
        .last()
        .filter(|_| more)
        .map(|hit| SortKey { updated_at: hit.updated_at, content: hit.content.clone() });
    let total = if total <= TOTAL_EXACT || plan.total_exact {
        Total::Exactly(total)
    } else {
        Total::AtLeast(TOTAL_EXACT)
    };
    let facets = facets.map(|f| top(live, f, plan.facets.unwrap_or(FACETS)));
    Ok(SearchPage { hits, total, facets, facets_approximate: false, next, as_of: 0 })
}

fn top(live: &Live, facets: Facets, limit: usize) -> Vec<(TagName, u64)> {
    let mut counts = facets.counts();
    counts.sort_unstable_by_key(|(_, n)| std::cmp::Reverse(*n));
    // Ties at the cut are decided by name, so all of them are named.
    let cut = counts.get(limit.saturating_sub(1)).map_or(0, |(_, n)| *n);
    let named = counts.iter().take_while(|(_, n)| *n >= cut).count();
    let mut named = live.tags.names(&counts[..named]);
    named.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    named.truncate(limit);
    named
}

/// The best places of a segment.
struct Places {
    heap: BinaryHeap<Place>,
    room: usize,
    sort: Sort,
    /// Places before this one were on earlier pages.
    first: Option<(i64, u64)>,
}

impl Places {
    fn new(plan: &Plan, columns: &Columns) -> tantivy::Result<Self> {
        let first = match &plan.after {
            None => None,
            Some(after) => {
                let key = scoped(&plan.tenant, after.content.content_type.as_str());
                let key = [key.as_str(), "\0", after.content.content_id.as_str()].concat();
                let (from, _) = columns
                    .key
                    .dictionary()
                    .term_bounds_to_ord(Bound::Excluded(key), Bound::Unbounded)?;
                let ord = match from {
                    Bound::Included(ord) => ord,
                    Bound::Excluded(ord) => ord + 1,
                    Bound::Unbounded => 0,
                };
                let primary = match plan.sort {
                    Sort::Updated => -after.updated_at,
                    Sort::Id => 0,
                };
                Some((primary, ord))
            }
        };
        // One more than the page, to know whether there is a next one.
        let room = if plan.limit == 0 { 0 } else { plan.limit + 1 };
        Ok(Self { heap: BinaryHeap::with_capacity(room + 1), room, sort: plan.sort, first })
    }

    fn offer(&mut self, doc: DocId, columns: &Columns) {
        if self.room == 0 {
            return;
        }
        let primary = match self.sort {
            Sort::Updated => -columns.updated_at.first(doc).unwrap_or(0),
            Sort::Id => 0,
        };
        if self.heap.len() == self.room
            && self.heap.peek().is_some_and(|worst| primary > worst.primary)
        {
            return;
        }
        let key = columns.key.ords().first(doc).unwrap_or(0);
        if self.first.is_some_and(|first| (primary, key) < first) {
            return;
        }
        let place = Place { primary, key, doc };
        if self.heap.len() < self.room {
            self.heap.push(place);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && place < *worst
        {
            *worst = place;
        }
    }
}

fn load(live: &Live, address: DocAddress) -> tantivy::Result<Hit> {
    let doc: TantivyDocument = live.searcher.doc(address)?;
    doc.get_first(live.fields.stored).and_then(|v| v.as_bytes()).and_then(hit).ok_or_else(|| {
        tantivy::TantivyError::InternalError("a stored hit cannot be decoded".to_owned())
    })
}

/// The newest indexed version of a key, among committed documents.
pub(super) fn indexed_version(live: &Live, key: &str) -> tantivy::Result<Option<u64>> {
    use tantivy::DocSet;
    let term = live.fields.key_term(key);
    for (_, reader, columns) in live.parts() {
        let index = reader.inverted_index(live.fields.key)?;
        let Some(mut postings) = index.read_postings(&term, IndexRecordOption::Basic)? else {
            continue;
        };
        while postings.doc() != tantivy::TERMINATED {
            let doc = postings.doc();
            if is_alive(reader, doc) {
                return Ok(columns.version.first(doc));
            }
            postings.advance();
        }
    }
    Ok(None)
}

fn is_alive(reader: &SegmentReader, doc: DocId) -> bool {
    reader.alive_bitset().is_none_or(|a| a.is_alive(doc))
}

/// Contents with tags, of all tenants.
pub(super) fn count_live(live: &Live) -> tantivy::Result<u64> {
    let mut count = 0;
    for (_, reader, _) in live.parts() {
        let index = reader.inverted_index(live.fields.tenant)?;
        let mut tenants = index.terms().stream()?;
        while tenants.advance() {
            let term =
                Term::from_field_text(live.fields.tenant, &String::from_utf8_lossy(tenants.key()));
            let weight = TermQuery::new(term, IndexRecordOption::Basic)
                .weight(EnableScoring::disabled_from_searcher(&live.searcher))?;
            count += u64::from(weight.count(reader)?);
        }
    }
    Ok(count)
}
