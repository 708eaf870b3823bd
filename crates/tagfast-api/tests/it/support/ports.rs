//! Fakes of search, popular tags, dead letters and operations, over the store in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tagfast_api::{
    LimitStatus, Operations, OperationsError, Readiness, RunningOperation, StatusReport,
};
use tagfast_domain::{ContentType, TagName, TenantId, UnixMillis};
use tagfast_events::dead_letters::content_of;
use tagfast_events::{
    AuditCursor, AuditEntry, AuditPage, AutoReplayPolicy, ConsumerGroup, DeadLetterCursor,
    DeadLetterFilter, DeadLetterPage, DeadLetterState, DeadLetterStore, DeadLetterStoreError,
    GroupDeadLetters, NewReplayJob, Partition, ReplayJob, ReplayResult, StoredDeadLetter,
};
use tagfast_popular::{
    Leaderboard, MatchPlace, PopularError, PopularTags, RecountProgress, RecountReport, Suggestion,
    Suggestions, TagCount, TagPage, TagUse, Window,
};
use tagfast_resilience::{Clock, Criticality, ManualClock};
use tagfast_search::{
    Hit, Query, RelatedTags, SearchError, SearchIndex, SearchPage, SearchRequest, SearchResult,
    Sort, SortKey, Total,
};
use tagfast_store::testing::MemoryStore;

/// A search that finds the contents that carry every word of the query.
pub(crate) struct FakeSearch {
    store: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
    pub(crate) fault: Mutex<Option<fn() -> SearchError>>,
    pub(crate) last: Mutex<Option<SearchRequest>>,
    /// Sheddable requests fail with this.
    pub(crate) limited: Mutex<Option<fn() -> SearchError>>,
    /// Sheddable requests hang.
    pub(crate) hang: AtomicBool,
    /// Totals are exact up to this number, unless the request asks for an exact one.
    pub(crate) exact_to: AtomicU64,
    /// Lag of the index, in milliseconds.
    pub(crate) lag_ms: AtomicI64,
}

impl FakeSearch {
    pub(crate) fn new(store: Arc<MemoryStore>, clock: Arc<ManualClock>) -> Arc<Self> {
        Arc::new(Self {
            store,
            clock,
            fault: Mutex::new(None),
            last: Mutex::default(),
            limited: Mutex::new(None),
            hang: AtomicBool::new(false),
            exact_to: AtomicU64::new(10_000),
            lag_ms: AtomicI64::new(1500),
        })
    }

    async fn check_sheddable(&self) -> Result<(), SearchError> {
        if self.hang.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        match *self.limited.lock() {
            Some(fault) => Err(fault()),
            None => Ok(()),
        }
    }

    fn check(&self) -> Result<(), SearchError> {
        match *self.fault.lock() {
            Some(fault) => Err(fault()),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl SearchIndex for FakeSearch {
    async fn search(
        &self,
        tenant: &TenantId,
        request: &SearchRequest,
    ) -> Result<SearchPage, SearchError> {
        *self.last.lock() = Some(request.clone());
        self.check()?;
        if request.criticality == Criticality::Sheddable {
            self.check_sheddable().await?;
        }
        let query = request.query.clone().unwrap_or_default();
        let words: Vec<&str> = query.split_whitespace().collect();
        let mut hits: Vec<Hit> = self
            .store
            .live_documents(tenant)
            .into_iter()
            .map(|(key, doc)| Hit {
                content: key.content.clone(),
                tags: doc.live().map(|t| t.name.clone()).collect(),
                updated_at: doc.taggings.iter().map(|t| t.at).max().unwrap_or(0),
                version: doc.version,
            })
            .filter(|hit| words.iter().all(|w| hit.tags.iter().any(|t| t.as_str() == *w)))
            .filter(|hit| {
                request.content_type.as_ref().is_none_or(|t| *t == hit.content.content_type)
            })
            .collect();
        if request.sort == Sort::Updated {
            hits.sort_by_key(|h| std::cmp::Reverse(h.updated_at));
        }
        let (found, exact_to) = (hits.len() as u64, self.exact_to.load(Ordering::SeqCst));
        let exactly = request.total_exact || found <= exact_to;
        let total = if exactly { Total::Exactly(found) } else { Total::AtLeast(exact_to) };
        let mut facets: BTreeMap<TagName, u64> = BTreeMap::new();
        hits.iter().flat_map(|h| &h.tags).for_each(|t| *facets.entry(t.clone()).or_default() += 1);
        let start = request.after.as_ref().map_or(0, |after| {
            hits.iter().position(|h| h.content == after.content).map_or(hits.len(), |at| at + 1)
        });
        let page: Vec<Hit> = hits.iter().skip(start).take(request.limit).cloned().collect();
        let next = (start + page.len() < hits.len())
            .then(|| {
                page.last()
                    .map(|h| SortKey { updated_at: h.updated_at, content: h.content.clone() })
            })
            .flatten();
        Ok(SearchPage {
            hits: page,
            total,
            facets: request.facets.then(|| facets.into_iter().collect()),
            facets_approximate: false,
            next,
            as_of: self.as_of(),
        })
    }

    async fn related(&self, tenant: &TenantId, tag: &TagName, limit: usize) -> RelatedTags {
        self.check()?;
        self.check_sheddable().await?;
        let mut counts: BTreeMap<TagName, u64> = BTreeMap::new();
        for (_, doc) in self.store.live_documents(tenant) {
            if doc.live().any(|t| t.name == *tag) {
                doc.live()
                    .filter(|t| t.name != *tag)
                    .for_each(|t| *counts.entry(t.name.clone()).or_default() += 1);
            }
        }
        Ok(counts.into_iter().take(limit).collect())
    }

    async fn counts(
        &self,
        tenant: &TenantId,
        content_type: Option<&ContentType>,
        terms: &[Query],
    ) -> SearchResult<Vec<u64>> {
        self.check()?;
        self.check_sheddable().await?;
        let documents = self.store.live_documents(tenant);
        let count = |term: &Query| {
            let of_type = documents
                .iter()
                .filter(|(key, _)| content_type.is_none_or(|t| *t == key.content.content_type));
            let matching = of_type.filter(|(key, doc)| match term {
                Query::Tag(name) => doc.live().any(|t| t.name == *name),
                Query::Type(name) => *name == key.content.content_type,
                Query::Prefix(prefix) => doc.live().any(|t| t.name.as_str().starts_with(prefix)),
                Query::And(_) | Query::Or(_) | Query::Not(_) => false,
            });
            matching.count() as u64
        };
        Ok(terms.iter().map(count).collect())
    }

    fn as_of(&self) -> UnixMillis {
        self.clock.now_ms() - self.lag_ms.load(Ordering::SeqCst)
    }

    async fn documents(&self) -> Result<u64, SearchError> {
        Ok(0)
    }
}

/// Popular tags that count the store's taggings in every call.
pub(crate) struct FakePopular {
    store: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
    pub(crate) fault: Mutex<Option<fn() -> PopularError>>,
    pub(crate) stale: AtomicBool,
}

impl FakePopular {
    pub(crate) fn new(store: Arc<MemoryStore>, clock: Arc<ManualClock>) -> Arc<Self> {
        Arc::new(Self { store, clock, fault: Mutex::new(None), stale: AtomicBool::new(false) })
    }

    fn counts(&self, tenant: &TenantId) -> Result<Vec<TagCount>, PopularError> {
        if let Some(fault) = *self.fault.lock() {
            return Err(fault());
        }
        let mut counts: BTreeMap<TagName, TagCount> = BTreeMap::new();
        for (_, doc) in self.store.live_documents(tenant) {
            for t in doc.live() {
                let fresh =
                    || TagCount { tag: t.name.clone(), display: t.display.clone(), count: 0 };
                counts.entry(t.name.clone()).or_insert_with(fresh).count += 1;
            }
        }
        let mut all: Vec<TagCount> = counts.into_values().collect();
        all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.tag.cmp(&b.tag)));
        Ok(all)
    }
}

#[async_trait]
impl PopularTags for FakePopular {
    async fn popular(
        &self,
        tenant: &TenantId,
        _: Window,
        limit: usize,
    ) -> Result<Leaderboard, PopularError> {
        let tags = self.counts(tenant)?.into_iter().take(limit).collect();
        Ok(Leaderboard {
            tags,
            as_of: self.clock.now_ms() - 1000,
            stale: self.stale.load(Ordering::Relaxed),
        })
    }

    async fn suggest(
        &self,
        tenant: &TenantId,
        prefix: &str,
        limit: usize,
    ) -> Result<Suggestions, PopularError> {
        let all = self.counts(tenant)?;
        let place = |name: &str| match name.find(prefix)? {
            0 => Some(MatchPlace::Start),
            _ => Some(MatchPlace::Inside),
        };
        let placed = all
            .into_iter()
            .filter_map(|tag| Some(Suggestion { place: place(tag.tag.as_str())?, tag }));
        let mut tags: Vec<Suggestion> = placed.collect();
        tags.sort_by_key(|found| found.place);
        tags.truncate(limit);
        let (as_of, stale) = (self.clock.now_ms() - 1000, self.stale.load(Ordering::Relaxed));
        Ok(Suggestions { tags, approximate: false, as_of, stale })
    }

    async fn list(
        &self,
        tenant: &TenantId,
        after: Option<&TagName>,
        limit: usize,
    ) -> Result<TagPage, PopularError> {
        let mut all = self.counts(tenant)?;
        all.sort_by(|a, b| a.tag.cmp(&b.tag));
        all.retain(|t| after.is_none_or(|after| t.tag > *after));
        let more = all.len() > limit;
        all.truncate(limit);
        let next = all.last().filter(|_| more).map(|t| t.tag.clone());
        Ok(TagPage { tags: all, next, as_of: self.clock.now_ms() - 1000 })
    }

    async fn count(&self, tenant: &TenantId, tag: &TagName) -> Result<TagUse, PopularError> {
        let tag = self.counts(tenant)?.into_iter().find(|t| t.tag == *tag);
        let (as_of, stale) = (self.clock.now_ms() - 1000, self.stale.load(Ordering::Relaxed));
        Ok(TagUse { tag, as_of, stale })
    }

    async fn displays(
        &self,
        tenant: &TenantId,
        tags: &[TagName],
    ) -> Result<Vec<Arc<str>>, PopularError> {
        let all = self.counts(tenant)?;
        let display = |name: &TagName| {
            all.iter().find(|t| t.tag == *name).map_or(name.shared(), |t| t.display.clone())
        };
        Ok(tags.iter().map(display).collect())
    }

    async fn recount(
        &self,
        _: bool,
        _: &(dyn Fn(RecountProgress) + Send + Sync),
    ) -> Result<RecountReport, PopularError> {
        Ok(RecountReport::default())
    }
}

/// A dead-letter store that holds what a test put in; replay jobs start and make no progress.
#[derive(Default)]
pub(crate) struct FakeDeadLetterStore {
    pub(crate) stored: Mutex<Vec<StoredDeadLetter>>,
    pub(crate) jobs: Mutex<Vec<ReplayJob>>,
    pub(crate) audit_log: Mutex<Vec<AuditEntry>>,
    pub(crate) down: AtomicBool,
}

impl FakeDeadLetterStore {
    fn check(&self) -> Result<(), DeadLetterStoreError> {
        if self.down.load(Ordering::Relaxed) {
            Err(DeadLetterStoreError::unavailable("no primary".to_owned()))
        } else {
            Ok(())
        }
    }

    fn matching(&self, filter: &DeadLetterFilter) -> Vec<StoredDeadLetter> {
        let fits = |stored: &&StoredDeadLetter| {
            let dead_letter = &stored.dead_letter;
            let tenant = content_of(&dead_letter.record.key).map(|key| key.tenant.to_string());
            (filter.ids.is_empty() || filter.ids.contains(&dead_letter.id()))
                && filter.group.is_none_or(|group| group == dead_letter.group)
                && filter.state.is_none_or(|state| state == stored.state)
                && filter.class.is_none_or(|class| class == dead_letter.class)
                && filter.tenant.as_ref().is_none_or(|wanted| tenant.as_ref() == Some(wanted))
        };
        self.stored.lock().iter().filter(fits).cloned().collect()
    }
}

#[async_trait]
impl DeadLetterStore for FakeDeadLetterStore {
    async fn list(
        &self,
        filter: &DeadLetterFilter,
        after: Option<&DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, DeadLetterStoreError> {
        self.check()?;
        let mut dead_letters = self.matching(filter);
        dead_letters
            .sort_by_key(|s| std::cmp::Reverse((s.dead_letter.last_failed_at, s.dead_letter.id())));
        dead_letters.retain(|s| {
            after.is_none_or(|a| {
                (s.dead_letter.last_failed_at, s.dead_letter.id()) < (a.at, a.id.clone())
            })
        });
        Ok(DeadLetterPage::of(dead_letters, limit))
    }

    async fn open_counts(
        &self,
        _: AutoReplayPolicy,
    ) -> Result<Vec<GroupDeadLetters>, DeadLetterStoreError> {
        self.check().map(|()| Vec::new())
    }

    async fn create_job(
        &self,
        job: &NewReplayJob,
        filter: &DeadLetterFilter,
    ) -> Result<ReplayJob, DeadLetterStoreError> {
        self.check()?;
        let dead_letters =
            self.matching(filter).iter().filter(|s| s.state == DeadLetterState::Open).count()
                as u64;
        let job = ReplayJob {
            id: job.id.clone(),
            dry_run: job.dry_run,
            rate: job.rate,
            at: job.at,
            dead_letters,
            ..ReplayJob::default()
        };
        self.jobs.lock().push(job.clone());
        Ok(job)
    }

    async fn job(&self, id: &str) -> Result<Option<ReplayJob>, DeadLetterStoreError> {
        self.check()?;
        Ok(self.jobs.lock().iter().find(|job| job.id == id).cloned())
    }

    async fn take_batch(
        &self,
        _: ConsumerGroup,
        _: &[Partition],
        _: usize,
    ) -> Result<Option<(ReplayJob, Vec<StoredDeadLetter>)>, DeadLetterStoreError> {
        self.check().map(|()| None)
    }

    async fn complete(
        &self,
        _: &ReplayJob,
        _: &[ReplayResult],
        _: UnixMillis,
    ) -> Result<(), DeadLetterStoreError> {
        self.check()
    }

    async fn discard(
        &self,
        filter: &DeadLetterFilter,
        reason: &str,
        _: UnixMillis,
    ) -> Result<u64, DeadLetterStoreError> {
        self.check()?;
        let wanted: Vec<String> =
            self.matching(filter).iter().map(|s| s.dead_letter.id()).collect();
        let mut discarded = 0;
        for stored in self.stored.lock().iter_mut() {
            if stored.state == DeadLetterState::Open && wanted.contains(&stored.dead_letter.id()) {
                (stored.state, stored.reason) =
                    (DeadLetterState::Discarded, Some(reason.to_owned()));
                discarded += 1;
            }
        }
        Ok(discarded)
    }

    async fn audit(&self, act: &AuditEntry) -> Result<(), DeadLetterStoreError> {
        self.check()?;
        self.audit_log.lock().insert(0, act.clone());
        Ok(())
    }

    async fn audit_log(
        &self,
        after: AuditCursor,
        limit: usize,
    ) -> Result<AuditPage, DeadLetterStoreError> {
        self.check()?;
        let log = self.audit_log.lock();
        let numbered = log.iter().enumerate().map(|(n, entry)| ((log.len() - n) as i64, entry));
        let behind = numbered.filter(|(id, entry)| (entry.at, *id) < (after.at, after.id));
        let page = behind.take(limit + 1).map(|(id, entry)| (id, entry.clone())).collect();
        Ok(AuditPage::of(page, limit))
    }

    async fn try_lead(&self) -> Result<bool, DeadLetterStoreError> {
        self.check().map(|()| true)
    }

    async fn purge_closed_before(&self, _: UnixMillis) -> Result<(), DeadLetterStoreError> {
        self.check()
    }
}

/// Operations that answer what a test put in.
#[derive(Default)]
pub(crate) struct FakeOperations {
    pub(crate) not_ready: Mutex<Option<String>>,
    pub(crate) fault: Mutex<Option<fn() -> OperationsError>>,
    /// A recount does not end by itself while this is set.
    pub(crate) recount_hangs: AtomicBool,
    /// Recounts under way.
    pub(crate) recounts: Arc<()>,
}

#[async_trait]
impl Operations for FakeOperations {
    async fn readiness(&self) -> Vec<Readiness> {
        vec![
            Readiness { part: "store", problem: None },
            Readiness { part: "search", problem: self.not_ready.lock().clone() },
        ]
    }

    async fn status(&self) -> StatusReport {
        StatusReport {
            mode: "embedded".into(),
            roles: "all".into(),
            version: "0.0.0".into(),
            epoch: "09".into(),
            running: vec![RunningOperation {
                operation: "reindex".into(),
                contents: 7,
                total: Some(9),
            }],
            degraded: vec![("facets".into(), "slow".into())],
            limits: vec![LimitStatus { name: "index".into(), limit: 32, in_flight: 1, shed: 5 }],
            ..StatusReport::default()
        }
    }

    async fn reindex(&self) -> Result<u64, OperationsError> {
        match *self.fault.lock() {
            Some(fault) => Err(fault()),
            None => Ok(3),
        }
    }

    async fn recount(&self, repair: bool) -> Result<RecountReport, OperationsError> {
        if let Some(fault) = *self.fault.lock() {
            return Err(fault());
        }
        let _running = Arc::clone(&self.recounts);
        if self.recount_hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let row = |tenant: &str| (tenant.to_owned(), "x".to_owned(), 1, 2);
        Ok(RecountReport {
            contents: 5,
            drifted_contents: 1,
            drifted_counts: 2,
            rows: vec![row("acme"), row("default"), row("umbra")],
            repaired: repair,
        })
    }

    fn allow_storm(&self, group: &str) -> Result<(), OperationsError> {
        if group == "indexer" {
            Ok(())
        } else {
            Err(OperationsError::Failed(format!("no group {group:?} runs here").into()))
        }
    }

    fn metrics(&self) -> String {
        "# HELP tagfast_up x\ntagfast_up 1\n".into()
    }
}
