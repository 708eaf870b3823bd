//! Plans a search, collects the hits of each segment and merges them.
//!
//! Each segment keeps its best hits by (sort value, key ordinal), which is the order of keys within
//! a segment; strings are compared only when hits of two segments tie. Counting and facets happen
//! in the same pass.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Bound;

use tagfast_domain::{ContentType, TagName, TenantId};
use tagfast_resilience::task::StopSignal;
use tagfast_search::port::{EXACT_TOTAL_MAX, FACETS_MAX, PAGE_HITS_MAX, PREFIX_TAGS_MAX};
use tagfast_search::{Hit, Query, SearchError, SearchPage, SearchRequest, Sort, SortKey, Total};
use tantivy::postings::TermInfo;
use tantivy::query::{
    BooleanQuery, EmptyQuery, EnableScoring, Occur, Query as TantivyQuery, TermQuery,
};
use tantivy::schema::{Field, IndexRecordOption, Value};
use tantivy::{
    DocAddress, DocId, DocSet, InvertedIndexReader, SegmentReader, TERMINATED, TantivyDocument,
    Term,
};

use crate::error::unavailable;
use crate::schema::{decode_hit, scoped};
use crate::search_snapshot::{SearchSnapshot, SegmentColumns};

/// Above this many numbered tags, facets are counted in a map instead of an array.
const DENSE_FACETS_MAX: usize = 1 << 16;

/// A compiled search with its bounds.
pub(crate) struct QueryPlan {
    query: Box<dyn TantivyQuery>,
    postings: u64,
    tenant: TenantId,
    sort: Sort,
    after: Option<SortKey>,
    limit: usize,
    facets: Option<usize>,
    total_exact: bool,
}

impl QueryPlan {
    /// Plans a request whose query is parsed; `query` is `None` for every content.
    pub(crate) fn new(
        snapshot: &SearchSnapshot,
        tenant: &TenantId,
        request: &SearchRequest,
        query: Option<&Query>,
        stop: &StopSignal,
    ) -> Result<Self, SearchError> {
        let builder = Builder { snapshot, tenant, stop };
        let mut parts = Vec::new();
        let mut postings = u64::MAX;
        if let Some(query) = query {
            let (query, estimate) = builder.build(query)?;
            postings = postings.min(estimate);
            parts.push((Occur::Must, query));
        }
        if let Some(content_type) = &request.content_type {
            let (query, estimate) = builder
                .term(snapshot.fields.content_type, &scoped(tenant, content_type.as_str()))?;
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
            limit: request.limit.clamp(1, PAGE_HITS_MAX),
            facets: request.facets.then_some(FACETS_MAX),
            total_exact: request.total_exact,
        })
    }

    /// Plans the facets of one tag, without hits.
    pub(crate) fn of_tag(
        snapshot: &SearchSnapshot,
        tenant: &TenantId,
        tag: &TagName,
    ) -> Result<Self, SearchError> {
        let (query, postings) = Builder { snapshot, tenant, stop: &StopSignal::new() }
            .term(snapshot.fields.tag, &scoped(tenant, tag.as_str()))?;
        Ok(Self {
            query,
            postings,
            tenant: tenant.clone(),
            sort: Sort::Id,
            after: None,
            limit: 0,
            facets: Some(FACETS_MAX + 1),
            total_exact: false,
        })
    }

    /// Estimated number of postings that the search reads.
    pub(crate) fn postings(&self) -> u64 {
        self.postings.saturating_mul(if self.facets.is_some() { 4 } else { 1 })
    }
}

struct Builder<'a> {
    snapshot: &'a SearchSnapshot,
    tenant: &'a TenantId,
    /// Ends the expansion of prefixes early.
    stop: &'a StopSignal,
}

/// A query of tantivy and its estimated number of postings.
type CompiledQuery = (Box<dyn TantivyQuery>, u64);

impl Builder<'_> {
    fn term(&self, field: Field, text: &str) -> Result<CompiledQuery, SearchError> {
        let term = Term::from_field_text(field, text);
        let estimate = self.snapshot.searcher.doc_freq(&term).map_err(unavailable)?;
        Ok((Box::new(TermQuery::new(term, IndexRecordOption::Basic)), estimate))
    }

    fn all(&self) -> Result<CompiledQuery, SearchError> {
        self.term(self.snapshot.fields.tenant, self.tenant.as_str())
    }

    fn build(&self, query: &Query) -> Result<CompiledQuery, SearchError> {
        match query {
            Query::Tag(name) => {
                self.term(self.snapshot.fields.tag, &scoped(self.tenant, name.as_str()))
            }
            Query::Type(name) => {
                self.term(self.snapshot.fields.content_type, &scoped(self.tenant, name.as_str()))
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

    fn and(&self, parts: &[Query]) -> Result<CompiledQuery, SearchError> {
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

    fn prefix(&self, prefix: &str) -> Result<CompiledQuery, SearchError> {
        let start = scoped(self.tenant, prefix).into_bytes();
        let mut terms = std::collections::BTreeSet::new();
        for reader in self.snapshot.searcher.segment_readers() {
            let index = reader.inverted_index(self.snapshot.fields.tag).map_err(unavailable)?;
            let mut stream = index.terms().range().ge(&start).into_stream().map_err(unavailable)?;
            while !self.stop.is_cancelled() && stream.advance() && stream.key().starts_with(&start)
            {
                // The dictionary keeps the terms of deleted documents until their segment is
                // merged: a tag that no content has must not count.
                if terms.contains(stream.key())
                    || !has_live_document(reader, &index, stream.value()).map_err(unavailable)?
                {
                    continue;
                }
                terms.insert(stream.key().to_vec());
                if terms.len() > PREFIX_TAGS_MAX {
                    return Err(SearchError::PrefixTooBroad {
                        prefix: prefix.to_owned(),
                        allowed: PREFIX_TAGS_MAX,
                    });
                }
            }
        }
        let any = terms.into_iter().map(|term| -> (Occur, Box<dyn TantivyQuery>) {
            let term =
                Term::from_field_text(self.snapshot.fields.tag, &String::from_utf8_lossy(&term));
            (Occur::Should, Box::new(TermQuery::new(term, IndexRecordOption::Basic)))
        });
        let any: Vec<_> = any.collect();
        if any.is_empty() {
            return Ok((Box::new(EmptyQuery), 0));
        }
        Ok((Box::new(BooleanQuery::new(any)), u64::MAX))
    }
}

/// Rank of a hit within its segment; a smaller rank comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Negated commit time (ms) under [`Sort::Updated`], 0 under [`Sort::Id`].
    primary: i64,
    key: u64,
    doc: DocId,
}

struct Candidate<'a> {
    primary: i64,
    address: DocAddress,
    columns: &'a SegmentColumns,
    key: u64,
}

impl Candidate<'_> {
    /// Text of the key; needed only for hits of different segments that tie.
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

/// Counts by tag number.
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

/// Counts the live contents that match each term.
pub(crate) fn counts(
    snapshot: &SearchSnapshot,
    tenant: &TenantId,
    content_type: Option<&ContentType>,
    terms: &[Query],
    stop: &StopSignal,
) -> Result<Vec<u64>, SearchError> {
    let builder = Builder { snapshot, tenant, stop };
    let count = |term: &Query| {
        let of_type = content_type.cloned().map(Query::Type);
        let all: Vec<Query> = std::iter::once(term.clone()).chain(of_type).collect();
        let (query, _) = builder.and(&all)?;
        let enabled = EnableScoring::disabled_from_searcher(&snapshot.searcher);
        let weight = query.weight(enabled).map_err(unavailable)?;
        let mut count = 0;
        for (_, reader, _) in snapshot.segments_with_columns() {
            weight
                .for_each_no_score(reader, &mut |docs| {
                    // What is left is cheap to skip.
                    if !stop.is_cancelled() {
                        count += docs.iter().filter(|doc| is_alive(reader, **doc)).count() as u64;
                    }
                })
                .map_err(unavailable)?;
        }
        Ok(count)
    };
    terms.iter().take_while(|_| !stop.is_cancelled()).map(count).collect()
}

/// Runs a plan; incomplete after the stop signal.
pub(crate) fn execute(
    snapshot: &SearchSnapshot,
    plan: &QueryPlan,
    stop: &StopSignal,
) -> tantivy::Result<SearchPage> {
    let weight = plan.query.weight(EnableScoring::disabled_from_searcher(&snapshot.searcher))?;
    let mut facets = plan.facets.map(|_| {
        let known = snapshot.tag_count;
        if known <= DENSE_FACETS_MAX {
            Facets::Dense(vec![0; known])
        } else {
            Facets::Sparse(HashMap::new())
        }
    });
    let mut total = 0;
    let mut candidates = Vec::new();
    for (segment, reader, columns) in snapshot.segments_with_columns() {
        let mut top_hits = TopHits::new(plan, columns)?;
        let alive = reader.alive_bitset();
        weight.for_each_no_score(reader, &mut |docs| {
            // No caller waits any more: what is left is cheap to skip.
            let docs = if stop.is_cancelled() { &[] } else { docs };
            for doc in docs {
                if alive.is_some_and(|a| !a.is_alive(*doc)) {
                    continue;
                }
                total += 1;
                top_hits.offer(*doc, columns);
                if let (Some(facets), Some(tag)) = (&mut facets, &columns.tag) {
                    for ord in tag.term_ords(*doc) {
                        if let Some(number) = columns.numbers.get(ord as usize) {
                            facets.add(*number);
                        }
                    }
                }
            }
        })?;
        candidates.extend(top_hits.heap.into_iter().map(|p| Candidate {
            primary: p.primary,
            address: DocAddress::new(segment, p.doc),
            columns,
            key: p.key,
        }));
    }
    candidates.sort_by(Candidate::order);
    let more = candidates.len() > plan.limit;
    candidates.truncate(plan.limit);
    let hits = candidates
        .iter()
        .map(|c| load(snapshot, c.address))
        .collect::<tantivy::Result<Vec<Hit>>>()?;
    let next = hits
        .last()
        .filter(|_| more)
        .map(|hit| SortKey { updated_at: hit.updated_at, content: hit.content.clone() });
    let total = if total <= EXACT_TOTAL_MAX || plan.total_exact {
        Total::Exactly(total)
    } else {
        Total::AtLeast(EXACT_TOTAL_MAX)
    };
    let facets = facets.map(|f| top_facets(snapshot, f, plan.facets.unwrap_or(FACETS_MAX)));
    Ok(SearchPage { hits, total, facets, facets_approximate: false, next, as_of: 0 })
}

fn top_facets(snapshot: &SearchSnapshot, facets: Facets, limit: usize) -> Vec<(TagName, u64)> {
    let mut counts = facets.counts();
    counts.sort_unstable_by_key(|(_, n)| std::cmp::Reverse(*n));
    // The name decides ties at the cut, so every tag that ties there needs its name.
    let cut = counts.get(limit.saturating_sub(1)).map_or(0, |(_, n)| *n);
    let named = counts.iter().take_while(|(_, n)| *n >= cut).count();
    let mut named = snapshot.tags.names(&counts[..named]);
    named.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    named.truncate(limit);
    named
}

/// Best hits of a segment.
struct TopHits {
    heap: BinaryHeap<Rank>,
    capacity: usize,
    sort: Sort,
    /// Hits before this rank were on earlier pages; `None` on the first page.
    first: Option<(i64, u64)>,
}

impl TopHits {
    fn new(plan: &QueryPlan, columns: &SegmentColumns) -> tantivy::Result<Self> {
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
        // One hit more than the page holds tells whether there is a next page.
        let capacity = if plan.limit == 0 { 0 } else { plan.limit + 1 };
        Ok(Self { heap: BinaryHeap::with_capacity(capacity + 1), capacity, sort: plan.sort, first })
    }

    fn offer(&mut self, doc: DocId, columns: &SegmentColumns) {
        if self.capacity == 0 {
            return;
        }
        let primary = match self.sort {
            Sort::Updated => -columns.updated_at.first(doc).unwrap_or(0),
            Sort::Id => 0,
        };
        if self.heap.len() == self.capacity
            && self.heap.peek().is_some_and(|worst| primary > worst.primary)
        {
            return;
        }
        let key = columns.key.ords().first(doc).unwrap_or(0);
        if self.first.is_some_and(|first| (primary, key) < first) {
            return;
        }
        let rank = Rank { primary, key, doc };
        if self.heap.len() < self.capacity {
            self.heap.push(rank);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && rank < *worst
        {
            *worst = rank;
        }
    }
}

fn load(snapshot: &SearchSnapshot, address: DocAddress) -> tantivy::Result<Hit> {
    let doc: TantivyDocument = snapshot.searcher.doc(address)?;
    doc.get_first(snapshot.fields.stored)
        .and_then(|v| v.as_bytes())
        .and_then(decode_hit)
        .ok_or_else(|| {
            tantivy::TantivyError::InternalError("a stored hit cannot be decoded".to_owned())
        })
}

/// Newest committed version of a key; `None` if no document of the key is committed.
pub(crate) fn indexed_version(
    snapshot: &SearchSnapshot,
    key: &str,
) -> tantivy::Result<Option<u64>> {
    let term = snapshot.fields.key_term(key);
    for (_, reader, columns) in snapshot.segments_with_columns() {
        let index = reader.inverted_index(snapshot.fields.key)?;
        let Some(mut postings) = index.read_postings(&term, IndexRecordOption::Basic)? else {
            continue;
        };
        while postings.doc() != TERMINATED {
            let doc = postings.doc();
            if is_alive(reader, doc) {
                return Ok(columns.version.first(doc));
            }
            postings.advance();
        }
    }
    Ok(None)
}

/// Whether a document with this term is not deleted.
fn has_live_document(
    reader: &SegmentReader,
    index: &InvertedIndexReader,
    term: &TermInfo,
) -> tantivy::Result<bool> {
    let Some(alive) = reader.alive_bitset() else { return Ok(true) };
    let mut postings = index.read_postings_from_terminfo(term, IndexRecordOption::Basic)?;
    while postings.doc() != TERMINATED {
        if alive.is_alive(postings.doc()) {
            return Ok(true);
        }
        postings.advance();
    }
    Ok(false)
}

fn is_alive(reader: &SegmentReader, doc: DocId) -> bool {
    reader.alive_bitset().is_none_or(|a| a.is_alive(doc))
}

/// Number of contents with tags, of all tenants.
pub(crate) fn count_live(snapshot: &SearchSnapshot) -> tantivy::Result<u64> {
    let mut count = 0;
    for (_, reader, _) in snapshot.segments_with_columns() {
        let index = reader.inverted_index(snapshot.fields.tenant)?;
        let mut tenants = index.terms().stream()?;
        while tenants.advance() {
            let term = Term::from_field_text(
                snapshot.fields.tenant,
                &String::from_utf8_lossy(tenants.key()),
            );
            let weight = TermQuery::new(term, IndexRecordOption::Basic)
                .weight(EnableScoring::disabled_from_searcher(&snapshot.searcher))?;
            count += u64::from(weight.count(reader)?);
        }
    }
    Ok(count)
}
