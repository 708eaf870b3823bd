//! The last good answers: what a tenant was told last, for when it cannot be told anew.
//!
//! Bounded in entries and bytes. When it is full, the tenant that holds most gives up its oldest
//! answer: whoever asks much takes from itself and not from others. Only whole and fresh answers
//! are kept.
//!
//! How it fails: what was never asked, or was given up, is not there; the feature is left out of
//! the answer then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tagfast_domain::{ContentType, TagName, TenantId, UnixMillis};
use tagfast_popular::{TagCount, Window};

/// Most answers that are kept. Documented in `docs/limits.md`, as the others.
const ENTRIES: usize = 50_000;
/// Most bytes of all of them.
const BYTES: usize = 64 << 20;
/// An answer that takes more of them is not kept.
const ENTRY_BYTES: usize = 1 << 20;
/// An answer is replaced when it is older than this, in milliseconds: what is asked all the time
/// need not be copied all the time.
const REPLACE_MS: i64 = 1000;
/// What an entry costs beside its text.
const OVERHEAD: usize = 200;
/// What a tag costs beside its text.
const TAG_OVERHEAD: usize = 48;

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Question {
    /// So many most used tags of a window.
    Popular(Window, usize),
    /// So many tags with a prefix.
    Suggestions(String, usize),
    /// How many contents carry a tag.
    Count(TagName),
    /// The tags beside a tag.
    Related(TagName),
    /// The tags of all contents that match a query and have a type.
    Facets(Option<String>, Option<ContentType>),
    /// How many contents match.
    Total(Option<String>, Option<ContentType>),
}

impl Question {
    fn bytes(&self) -> usize {
        match self {
            Self::Popular(..) => 0,
            Self::Suggestions(prefix, _) => prefix.len(),
            Self::Count(tag) | Self::Related(tag) => tag.as_str().len(),
            Self::Facets(query, of_type) | Self::Total(query, of_type) => {
                query.as_ref().map_or(0, String::len)
                    + of_type.as_ref().map_or(0, |t| t.as_str().len())
            }
        }
    }
}

/// What was answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Tags with their counts, in the answer's order.
    pub(crate) tags: Vec<TagCount>,
    /// Of a total: the number.
    pub(crate) number: u64,
    /// Some may be missing, or counts too low.
    pub(crate) approximate: bool,
    /// Spellings could not be had: canonical names stand for them. Such an answer is not kept.
    pub(crate) plain: bool,
    /// It was not read anew: its source knew no better. Such an answer is not kept.
    pub(crate) stale: bool,
    /// Everything committed before this moment is in it.
    pub(crate) as_of: UnixMillis,
}

impl Known {
    fn bytes(&self) -> usize {
        self.tags.iter().map(|t| TAG_OVERHEAD + t.tag.as_str().len() + t.display.len()).sum()
    }
}

struct Entry {
    known: Arc<Known>,
    bytes: usize,
    /// Its place in the shelf's order.
    at: u64,
}

/// What one tenant was answered.
#[derive(Default)]
struct Shelf {
    entries: HashMap<Question, Entry>,
    /// Oldest first.
    order: BTreeMap<u64, Question>,
    bytes: usize,
}

#[derive(Default)]
struct Inner {
    shelves: HashMap<TenantId, Shelf>,
    /// Tenants by what they hold.
    weights: BTreeSet<(usize, TenantId)>,
    entries: usize,
    bytes: usize,
    puts: u64,
}

/// The last good answers of all tenants.
pub(crate) struct Snapshots {
    inner: Mutex<Inner>,
    entries: usize,
    bytes: usize,
}

impl Snapshots {
    pub(crate) fn new() -> Self {
        Self::bounded(ENTRIES, BYTES)
    }

    fn bounded(entries: usize, bytes: usize) -> Self {
        Self { inner: Mutex::default(), entries, bytes }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this tenant was answered last.
    pub(crate) fn get(&self, tenant: &TenantId, question: &Question) -> Option<Arc<Known>> {
        let inner = self.lock();
        inner.shelves.get(tenant)?.entries.get(question).map(|entry| Arc::clone(&entry.known))
    }

    /// Keeps an answer, unless it is worse than what the service usually gives or the kept one is
    /// as good.
    pub(crate) fn put(&self, tenant: &TenantId, question: &Question, known: &Arc<Known>) {
        let bytes = OVERHEAD + question.bytes() + known.bytes();
        if known.stale || known.plain || bytes > ENTRY_BYTES {
            return;
        }
        let mut inner = self.lock();
        if let Some(kept) = inner.shelves.get(tenant).and_then(|shelf| shelf.entries.get(question))
            && known.as_of < kept.known.as_of.saturating_add(REPLACE_MS)
        {
            return;
        }
        inner.remove(tenant, question);
        while !inner.weights.is_empty()
            && (inner.entries >= self.entries || inner.bytes + bytes > self.bytes)
        {
            inner.give_up();
        }
        inner.insert(tenant, question.clone(), Arc::clone(known), bytes);
        metrics::gauge!("tagfast_last_good_bytes").set(inner.bytes as f64);
    }
}

impl Inner {
    /// The tenant that holds most gives up its oldest answer.
    fn give_up(&mut self) {
        let Some((_, tenant)) = self.weights.last().cloned() else { return };
        let oldest = self.shelves.get(&tenant).and_then(|shelf| shelf.order.first_key_value());
        if let Some(question) = oldest.map(|(_, question)| question.clone()) {
            self.remove(&tenant, &question);
        }
    }

    fn remove(&mut self, tenant: &TenantId, question: &Question) {
        let Some(shelf) = self.shelves.get_mut(tenant) else { return };
        let Some(entry) = shelf.entries.remove(question) else { return };
        shelf.order.remove(&entry.at);
        self.weights.remove(&(shelf.bytes, tenant.clone()));
        shelf.bytes -= entry.bytes;
        self.bytes -= entry.bytes;
        self.entries -= 1;
        if shelf.entries.is_empty() {
            self.shelves.remove(tenant);
        } else {
            self.weights.insert((shelf.bytes, tenant.clone()));
        }
    }

    fn insert(&mut self, tenant: &TenantId, question: Question, known: Arc<Known>, bytes: usize) {
        self.puts += 1;
        let at = self.puts;
        let shelf = self.shelves.entry(tenant.clone()).or_default();
        self.weights.remove(&(shelf.bytes, tenant.clone()));
        shelf.bytes += bytes;
        self.weights.insert((shelf.bytes, tenant.clone()));
        shelf.order.insert(at, question.clone());
        shelf.entries.insert(question, Entry { known, bytes, at });
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

    fn known(as_of: UnixMillis) -> Arc<Known> {
        Arc::new(Known { as_of, ..Known::default() })
    }

    fn prefix(n: usize) -> Question {
        Question::Suggestions(format!("p{n:03}"), 10)
    }

    #[test]
    fn an_answer_is_of_one_tenant_and_one_question() {
        let all = Snapshots::new();
        let asked = Question::Popular(Window::Day, 20);
        all.put(&tenant("acme"), &asked, &known(5));
        assert_eq!(all.get(&tenant("acme"), &asked).unwrap().as_of, 5);
        assert!(all.get(&tenant("umbra"), &asked).is_none(), "another tenant");
        for other in
            [Question::Popular(Window::Day, 21), Question::Popular(Window::Hour, 20), prefix(1)]
        {
            assert!(all.get(&tenant("acme"), &other).is_none(), "{other:?}");
        }
        let (related, count) =
            (Question::Related(TagName::parse("a").unwrap()), TagName::parse("a").unwrap());
        all.put(&tenant("acme"), &related, &known(6));
        assert!(all.get(&tenant("acme"), &Question::Count(count)).is_none());
    }

    #[test]
    fn a_newer_answer_replaces_and_an_older_one_does_not() {
        let all = Snapshots::new();
        let acme = tenant("acme");
        for (as_of, expect) in
            [(10_000, 10_000), (10_500, 10_000), (11_000, 11_000), (9000, 11_000)]
        {
            all.put(&acme, &prefix(1), &known(as_of));
            assert_eq!(all.get(&acme, &prefix(1)).unwrap().as_of, expect);
        }
        assert_eq!(all.lock().entries, 1);
    }

    #[test]
    fn what_is_worse_than_usual_is_never_kept() {
        let all = Snapshots::new();
        let acme = tenant("acme");
        let good = Known { as_of: 90_000, ..Known::default() };
        let tag = TagCount {
            tag: TagName::parse("x").unwrap(),
            display: "x".repeat(ENTRY_BYTES).into(),
            count: 1,
        };
        for worse in [
            Known { stale: true, ..good.clone() },
            Known { plain: true, ..good.clone() },
            Known { tags: vec![tag], ..good.clone() },
        ] {
            all.put(&acme, &prefix(1), &Arc::new(worse));
            assert!(all.get(&acme, &prefix(1)).is_none());
        }
        all.put(&acme, &prefix(1), &Arc::new(Known { approximate: true, ..good }));
        assert!(all.get(&acme, &prefix(1)).unwrap().approximate, "it says so again");
    }

    #[test]
    fn who_asks_much_takes_from_itself() {
        let all = Snapshots::bounded(10, BYTES);
        for n in 0..3 {
            all.put(&tenant("small"), &prefix(n), &known(1));
        }
        for n in 0..100 {
            all.put(&tenant("large"), &prefix(n), &known(1));
        }
        assert!(
            (0..3).all(|n| all.get(&tenant("small"), &prefix(n)).is_some()),
            "nothing was taken from it"
        );
        let kept: Vec<usize> =
            (0..100).filter(|n| all.get(&tenant("large"), &prefix(*n)).is_some()).collect();
        assert_eq!(kept, [93, 94, 95, 96, 97, 98, 99], "the newest stay");
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds(puts in prop::collection::vec((0..4usize, 0..30usize, 0..300usize, 0..9i64), 0..200)) {
            let all = Snapshots::bounded(12, 4000);
            for (who, what, size, at) in puts {
                let tag = TagCount { tag: TagName::parse("x").unwrap(), display: "y".repeat(size).into(), count: 1 };
                let known = Known { tags: vec![tag], as_of: at * 1000, ..Known::default() };
                all.put(&tenant(&format!("t{who}")), &prefix(what), &Arc::new(known));
                let inner = all.lock();
                prop_assert!(inner.entries <= 12 && inner.bytes <= 4000);
                let shelves = inner.shelves.values();
                let (entries, bytes) = shelves.fold((0, 0), |sum, s| (sum.0 + s.entries.len(), sum.1 + s.bytes));
                prop_assert_eq!((entries, bytes), (inner.entries, inner.bytes));
                let weights: BTreeSet<_> = inner.shelves.iter().map(|(t, s)| (s.bytes, t.clone())).collect();
                prop_assert_eq!(&weights, &inner.weights);
                prop_assert!(inner.shelves.values().all(|s| s.order.len() == s.entries.len() && !s.entries.is_empty()));
            }
        }
    }
}
