//! The cache of last good answers: the last result of each optional feature, per tenant, for when
//! the feature fails.
//!
//! Bounded in entries and bytes. When the cache is full, the tenant that holds most bytes loses its
//! oldest answer, so that a busy tenant evicts its own answers and not those of others. Only
//! complete and fresh answers are cached.
//!
//! How it fails: an answer that was never cached, or was evicted, is not there; the feature is then
//! omitted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tagfast_domain::{ContentType, TagName, TenantId, UnixMillis};
use tagfast_popular::{TagCount, Window};
use tagfast_resilience::gauge;

use crate::metric::LAST_GOOD_BYTES;

/// Cached answers of all tenants. Documented in `docs/reference/limits.md`, as the other limits.
const ENTRIES_MAX: usize = 50_000;
/// Bytes of all cached answers.
const BYTES_MAX: usize = 64 << 20;
/// A larger answer is not cached.
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// A cached answer is replaced when the new one is at least this much newer, in milliseconds, so
/// that a frequent request does not copy its answer every time.
const REFRESH_AFTER_MS: i64 = 1000;
/// Memory of an entry beside its texts, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 200;
/// Memory of a tag beside its texts, in bytes.
const TAG_OVERHEAD_BYTES: usize = 48;

/// A feature with its parameters: the key of a cached answer within a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum FeatureKey {
    /// The most used tags of a window, and how many.
    Popular(Window, usize),
    /// Completions of a text among the tags of a type, and how many.
    Suggestions(String, usize, Option<ContentType>),
    /// All tags of a type after a tag, and how many.
    List(Option<TagName>, usize, Option<ContentType>),
    /// How many contents carry a tag.
    Count(TagName),
    /// The tags that occur together with a tag.
    Related(TagName),
    /// The tags of all contents that match a query and have a type.
    Facets(Option<String>, Option<ContentType>),
    /// How many contents match a query and have a type.
    Total(Option<String>, Option<ContentType>),
}

fn type_bytes(content_type: &Option<ContentType>) -> usize {
    content_type.as_ref().map_or(0, |name| name.as_str().len())
}

impl FeatureKey {
    fn bytes(&self) -> usize {
        match self {
            Self::Popular(..) => 0,
            Self::Suggestions(typed, _, content_type) => typed.len() + type_bytes(content_type),
            Self::List(after, _, content_type) => {
                after.as_ref().map_or(0, |tag| tag.as_str().len()) + type_bytes(content_type)
            }
            Self::Count(tag) | Self::Related(tag) => tag.as_str().len(),
            Self::Facets(query, content_type) | Self::Total(query, content_type) => {
                query.as_ref().map_or(0, String::len) + type_bytes(content_type)
            }
        }
    }
}

/// The result of a feature.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CachedAnswer {
    /// Tags with their counts, in the order of the answer.
    pub(crate) tags: Vec<TagCount>,
    /// Of a list: the tag after which the next page begins; `None` on the last page.
    pub(crate) next: Option<TagName>,
    /// Of a total: the number of contents.
    pub(crate) number: u64,
    /// Some tags may be missing, or counts too low.
    pub(crate) approximate: bool,
    /// The tenant's spellings were not available: canonical names stand for them. Such an answer
    /// is never cached.
    pub(crate) canonical_spellings: bool,
    /// The source itself gave a stale result. Such an answer is never cached.
    pub(crate) stale: bool,
    /// Everything committed before this time is in it, Unix ms.
    pub(crate) as_of: UnixMillis,
}

impl CachedAnswer {
    fn bytes(&self) -> usize {
        let bytes = |t: &TagCount| TAG_OVERHEAD_BYTES + t.tag.as_str().len() + t.display.len();
        self.tags.iter().map(bytes).sum()
    }
}

struct Entry {
    answer: Arc<CachedAnswer>,
    bytes: usize,
    /// Its number in the tenant's insertion order.
    sequence: u64,
}

/// The cached answers of one tenant.
#[derive(Default)]
struct TenantEntries {
    entries: HashMap<FeatureKey, Entry>,
    /// Keys by insertion, oldest first.
    order: BTreeMap<u64, FeatureKey>,
    bytes: usize,
}

#[derive(Default)]
struct Inner {
    tenants: HashMap<TenantId, TenantEntries>,
    /// Tenants by the bytes they hold.
    by_bytes: BTreeSet<(usize, TenantId)>,
    entries: usize,
    bytes: usize,
    /// Insertions since the start.
    insertions: u64,
}

/// The last good answers of all tenants.
pub(crate) struct LastGoodCache {
    inner: Mutex<Inner>,
    entries_max: usize,
    bytes_max: usize,
}

impl LastGoodCache {
    pub(crate) fn new() -> Self {
        Self::bounded(ENTRIES_MAX, BYTES_MAX)
    }

    fn bounded(entries_max: usize, bytes_max: usize) -> Self {
        Self { inner: Mutex::default(), entries_max, bytes_max }
    }

    /// The last good answer of this tenant; `None` when there is none.
    pub(crate) fn get(&self, tenant: &TenantId, key: &FeatureKey) -> Option<Arc<CachedAnswer>> {
        let inner = self.inner.lock();
        inner.tenants.get(tenant)?.entries.get(key).map(|entry| Arc::clone(&entry.answer))
    }

    /// Caches an answer, unless it is degraded, too large, or hardly newer than the cached one.
    pub(crate) fn put(&self, tenant: &TenantId, key: &FeatureKey, answer: &Arc<CachedAnswer>) {
        let bytes = ENTRY_OVERHEAD_BYTES + key.bytes() + answer.bytes();
        if answer.stale || answer.canonical_spellings || bytes > ENTRY_BYTES_MAX {
            return;
        }
        let mut inner = self.inner.lock();
        if let Some(cached) = inner.tenants.get(tenant).and_then(|t| t.entries.get(key))
            && answer.as_of < cached.answer.as_of.saturating_add(REFRESH_AFTER_MS)
        {
            return;
        }
        inner.remove(tenant, key);
        while !inner.by_bytes.is_empty()
            && (inner.entries >= self.entries_max || inner.bytes + bytes > self.bytes_max)
        {
            inner.evict();
        }
        inner.insert(tenant, key.clone(), Arc::clone(answer), bytes);
        gauge!(LAST_GOOD_BYTES).set(inner.bytes as f64);
    }
}

impl Inner {
    /// Evicts the oldest answer of the tenant that holds most bytes.
    fn evict(&mut self) {
        let Some((_, tenant)) = self.by_bytes.last().cloned() else { return };
        let oldest = self.tenants.get(&tenant).and_then(|held| held.order.first_key_value());
        if let Some(key) = oldest.map(|(_, key)| key.clone()) {
            self.remove(&tenant, &key);
        }
    }

    fn remove(&mut self, tenant: &TenantId, key: &FeatureKey) {
        let Some(held) = self.tenants.get_mut(tenant) else { return };
        let Some(entry) = held.entries.remove(key) else { return };
        held.order.remove(&entry.sequence);
        self.by_bytes.remove(&(held.bytes, tenant.clone()));
        held.bytes -= entry.bytes;
        self.bytes -= entry.bytes;
        self.entries -= 1;
        if held.entries.is_empty() {
            self.tenants.remove(tenant);
        } else {
            self.by_bytes.insert((held.bytes, tenant.clone()));
        }
    }

    fn insert(
        &mut self,
        tenant: &TenantId,
        key: FeatureKey,
        answer: Arc<CachedAnswer>,
        bytes: usize,
    ) {
        self.insertions += 1;
        let sequence = self.insertions;
        let held = self.tenants.entry(tenant.clone()).or_default();
        self.by_bytes.remove(&(held.bytes, tenant.clone()));
        held.bytes += bytes;
        self.by_bytes.insert((held.bytes, tenant.clone()));
        held.order.insert(sequence, key.clone());
        held.entries.insert(key, Entry { answer, bytes, sequence });
        self.bytes += bytes;
        self.entries += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::parse(name).unwrap()
    }

    fn answer(as_of: UnixMillis) -> Arc<CachedAnswer> {
        Arc::new(CachedAnswer { as_of, ..CachedAnswer::default() })
    }

    fn prefix(n: usize) -> FeatureKey {
        FeatureKey::Suggestions(format!("p{n:03}"), 10, None)
    }

    #[test]
    fn an_answer_belongs_to_one_tenant_and_one_key() {
        let cache = LastGoodCache::new();
        let key = FeatureKey::Popular(Window::Day, 20);
        cache.put(&tenant("acme"), &key, &answer(5));
        assert_eq!(cache.get(&tenant("acme"), &key).unwrap().as_of, 5);
        assert!(cache.get(&tenant("umbra"), &key).is_none(), "a different tenant");
        for other in
            [FeatureKey::Popular(Window::Day, 21), FeatureKey::Popular(Window::Hour, 20), prefix(1)]
        {
            assert!(cache.get(&tenant("acme"), &other).is_none(), "{other:?}");
        }
        let (related, count) =
            (FeatureKey::Related(TagName::parse("a").unwrap()), TagName::parse("a").unwrap());
        cache.put(&tenant("acme"), &related, &answer(6));
        assert!(cache.get(&tenant("acme"), &FeatureKey::Count(count)).is_none());
    }

    #[test]
    fn a_newer_answer_replaces_and_an_older_one_does_not() {
        let cache = LastGoodCache::new();
        let acme = tenant("acme");
        for (as_of, expect) in
            [(10_000, 10_000), (10_500, 10_000), (11_000, 11_000), (9000, 11_000)]
        {
            cache.put(&acme, &prefix(1), &answer(as_of));
            assert_eq!(cache.get(&acme, &prefix(1)).unwrap().as_of, expect);
        }
        assert_eq!(cache.inner.lock().entries, 1);
    }

    #[test]
    fn a_degraded_answer_is_never_cached() {
        let cache = LastGoodCache::new();
        let acme = tenant("acme");
        let good = CachedAnswer { as_of: 90_000, ..CachedAnswer::default() };
        let tag = TagCount {
            tag: TagName::parse("x").unwrap(),
            display: "x".repeat(ENTRY_BYTES_MAX).into(),
            count: 1,
        };
        for worse in [
            CachedAnswer { stale: true, ..good.clone() },
            CachedAnswer { canonical_spellings: true, ..good.clone() },
            CachedAnswer { tags: vec![tag], ..good.clone() },
        ] {
            cache.put(&acme, &prefix(1), &Arc::new(worse));
            assert!(cache.get(&acme, &prefix(1)).is_none());
        }
        cache.put(&acme, &prefix(1), &Arc::new(CachedAnswer { approximate: true, ..good }));
        assert!(cache.get(&acme, &prefix(1)).unwrap().approximate, "the mark is cached too");
    }

    #[test]
    fn a_busy_tenant_evicts_its_own_answers() {
        let cache = LastGoodCache::bounded(10, BYTES_MAX);
        for n in 0..3 {
            cache.put(&tenant("small"), &prefix(n), &answer(1));
        }
        for n in 0..100 {
            cache.put(&tenant("large"), &prefix(n), &answer(1));
        }
        assert!(
            (0..3).all(|n| cache.get(&tenant("small"), &prefix(n)).is_some()),
            "nothing of it was evicted"
        );
        let kept: Vec<usize> =
            (0..100).filter(|n| cache.get(&tenant("large"), &prefix(*n)).is_some()).collect();
        assert_eq!(kept, [93, 94, 95, 96, 97, 98, 99], "the newest stay");
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds(
            puts in prop::collection::vec(
                (0..4usize, 0..30usize, 0..300usize, 0..9i64),
                0..200,
            ),
        ) {
            let cache = LastGoodCache::bounded(12, 4000);
            for (who, what, size, at) in puts {
                let (tag, display) = (TagName::parse("x").unwrap(), "y".repeat(size).into());
                let tags = vec![TagCount { tag, display, count: 1 }];
                let answer = CachedAnswer { tags, as_of: at * 1000, ..CachedAnswer::default() };
                cache.put(&tenant(&format!("t{who}")), &prefix(what), &Arc::new(answer));
                let inner = cache.inner.lock();
                prop_assert!(inner.entries <= 12 && inner.bytes <= 4000);
                let tenants = inner.tenants.values();
                let (entries, bytes) =
                    tenants.fold((0, 0), |sum, s| (sum.0 + s.entries.len(), sum.1 + s.bytes));
                prop_assert_eq!((entries, bytes), (inner.entries, inner.bytes));
                let by_bytes: BTreeSet<_> =
                    inner.tenants.iter().map(|(t, s)| (s.bytes, t.clone())).collect();
                prop_assert_eq!(&by_bytes, &inner.by_bytes);
                let consistent =
                    |s: &TenantEntries| s.order.len() == s.entries.len() && !s.entries.is_empty();
                prop_assert!(inner.tenants.values().all(consistent));
            }
        }
    }
}
