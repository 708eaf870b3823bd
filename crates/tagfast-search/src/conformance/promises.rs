//! The promises.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use tagfast_domain::{ContentKey, ContentType, TagName, TenantId};

use super::fixture::{NOW, SearchHarness, event, request};
use crate::error::SearchError;
use crate::port::{Hit, PREFIX_TAGS_MAX, SearchPage, SearchRequest, Sort, SortKey, Total};
use crate::query::{self, Query};

fn tenant(name: &str) -> TenantId {
    TenantId::parse(name).expect("the suite's tenants are valid")
}

async fn search(h: &dyn SearchHarness, of: &str, request: &SearchRequest) -> SearchPage {
    h.index().search(&tenant(of), request).await.expect("the search has an answer")
}

async fn ids(h: &dyn SearchHarness, of: &str, query: &str) -> BTreeSet<String> {
    all_hits(h, of, &request(query))
        .await
        .iter()
        .map(|hit| hit.content.content_id.as_str().to_owned())
        .collect()
}

/// Collects the hits of all pages.
async fn all_hits(h: &dyn SearchHarness, of: &str, first: &SearchRequest) -> Vec<Hit> {
    let mut request = first.clone();
    let mut hits = Vec::new();
    loop {
        let page = search(h, of, &request).await;
        hits.extend(page.hits);
        match page.next {
            Some(next) => request.after = Some(next),
            None => return hits,
        }
    }
}

/// The newest version wins in every order of delivery, with duplicates and a deletion.
pub async fn newest_version_wins_in_every_order(h: &dyn SearchHarness) {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for (n, order) in orders.iter().enumerate() {
        for (deleted, of) in [(false, "newest-live"), (true, "newest-deleted")] {
            let id = format!("c{n}");
            let last: &[&str] = if deleted { &[] } else { &["third"] };
            let events = [
                event(of, "t", &id, 3, NOW + 1, &["first"]),
                event(of, "t", &id, 9, NOW + 2, last),
                event(of, "t", &id, 5, NOW + 3, &["second"]),
            ];
            for place in order {
                h.apply(std::slice::from_ref(&events[*place])).await;
                if place % 2 == 0 {
                    h.visible().await;
                }
            }
            h.apply(&events[order[0]..=order[0]]).await;
        }
    }
    h.visible().await;
    let everything: BTreeSet<String> = (0..orders.len()).map(|n| format!("c{n}")).collect();
    assert_eq!(
        ids(h, "newest-live", "third").await,
        everything,
        "every order ends with the newest state"
    );
    assert!(ids(h, "newest-live", "first OR second").await.is_empty(), "no older state is left");
    assert!(
        ids(h, "newest-deleted", "first OR second OR third").await.is_empty(),
        "the newest state has no tags"
    );
}

/// An event that arrives a day late does not bring a deleted content back.
pub async fn a_late_event_does_not_resurrect(h: &dyn SearchHarness) {
    h.apply(&[
        event("late", "t", "seen", 1, NOW, &["x"]),
        event("late", "t", "never", 20, NOW + 2, &[]),
    ])
    .await;
    h.visible().await;
    h.apply(&[event("late", "t", "seen", 20, NOW + 2, &[])]).await;
    h.visible().await;
    h.later(86_400_000).await;
    h.apply(&[
        event("late", "t", "seen", 15, NOW + 1, &["x"]),
        event("late", "t", "never", 15, NOW + 1, &["x"]),
    ])
    .await;
    h.visible().await;
    assert!(ids(h, "late", "x").await.is_empty(), "deleted contents stay deleted");
}

/// All spellings of one tag find the same contents.
pub async fn every_spelling_finds_the_same(h: &dyn SearchHarness) {
    h.apply(&[event("spellings", "t", "1", 1, 1, &["UI"])]).await;
    h.visible().await;
    for spelling in ["UI", "ui", "Ｕｉ", "\"uI\"", "u*", "U*"] {
        let short_prefix = spelling.ends_with('*');
        let found = h.index().search(&tenant("spellings"), &request(spelling)).await;
        if short_prefix {
            assert!(found.is_err(), "a prefix of one character is refused");
        } else {
            assert_eq!(found.expect("an answer").hits.len(), 1, "{spelling}");
        }
    }
}

/// A name that an earlier release stored with an invisible character is found by that spelling,
/// together with the tag that it is today.
pub async fn a_former_name_is_found(h: &dyn SearchHarness) {
    let mut former = event("former", "t", "former", 1, 1, &["critical", "old"]);
    former.tags[0].name = TagName::from_canonical("crit\u{200B}ical");
    let today = event("former", "t", "today", 1, 2, &["Crit\u{200B}ical", "new"]);
    h.apply(&[former, today]).await;
    h.visible().await;
    let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<String>>();
    for (query, found) in [
        ("crit\u{200B}ical", set(&["former", "today"])),
        ("\"CRIT\u{200B}ICAL\" old", set(&["former"])),
        ("critical", set(&["today"])),
        ("criti\u{AD}cal", set(&["today"])),
        ("old AND NOT crit\u{200B}ical", set(&[])),
    ] {
        assert_eq!(ids(h, "former", query).await, found, "{query:?}");
    }
}

fn matches(query: &Query, content_type: &str, tags: &BTreeSet<String>) -> bool {
    match query {
        Query::Tag(name) => tags.contains(name.as_str()),
        Query::Prefix(prefix) => tags.iter().any(|t| t.starts_with(prefix.as_str())),
        Query::Type(wanted) => wanted.as_str() == content_type,
        Query::And(parts) => parts.iter().all(|p| matches(p, content_type, tags)),
        Query::Or(parts) => parts.iter().any(|p| matches(p, content_type, tags)),
        Query::Not(inner) => !matches(inner, content_type, tags),
    }
}

const WORDS: [&str; 8] = ["alpha", "alps", "beta", "c++", "lang::rust", "日本語", "x-y", "zeta"];

fn random_query(rng: &mut Rng, depth: u32) -> Query {
    let tag =
        |n: u64| Query::Tag(TagName::parse(WORDS[n as usize % WORDS.len()]).expect("a valid tag"));
    match rng.u64(..if depth == 0 { 4 } else { 8 }) {
        0 | 1 => tag(rng.u64(..8)),
        2 => Query::Prefix(["al", "be", "lang::"][rng.u64(..3) as usize].to_owned()),
        3 => Query::Type(["page", "issue"][rng.u64(..2) as usize].parse().expect("a valid type")),
        4 | 5 => Query::And((0..2 + rng.u64(..2)).map(|_| random_query(rng, depth - 1)).collect()),
        6 => Query::Or((0..2 + rng.u64(..2)).map(|_| random_query(rng, depth - 1)).collect()),
        _ => Query::Not(Box::new(random_query(rng, depth - 1))),
    }
}

type Model = BTreeMap<(String, String), BTreeSet<String>>;

async fn random_contents(h: &dyn SearchHarness, of: &str, contents: u64, rng: &mut Rng) -> Model {
    let mut model = Model::new();
    let mut events = Vec::new();
    for n in 0..contents {
        let content_type = ["page", "issue"][rng.u64(..2) as usize];
        let id = format!("c{n:05}");
        let tags: BTreeSet<&str> =
            (0..1 + rng.u64(..5)).map(|_| WORDS[rng.u64(..8) as usize]).collect();
        let list: Vec<&str> = tags.iter().copied().collect();
        events.push(event(of, content_type, &id, 1 + n, 1000 + (n / 7) as i64, &list));
        model.insert((content_type.to_owned(), id), tags.into_iter().map(str::to_owned).collect());
    }
    for chunk in events.chunks(97) {
        h.apply(chunk).await;
        if rng.u64(..3) == 0 {
            h.visible().await;
        }
    }
    h.visible().await;
    model
}

/// Random query trees find the contents, total and facets that a naive evaluation finds.
pub async fn random_queries_equal_the_model(h: &dyn SearchHarness, queries: usize) {
    let mut rng = Rng::with_seed(4);
    let model = random_contents(h, "random", 300, &mut rng).await;
    for n in 0..queries {
        let tree = random_query(&mut rng, 3);
        let text = tree.to_string();
        let Ok(Some(parsed)) = query::parse(&text) else {
            // The tree exceeds a limit on prefixes or terms.
            continue;
        };
        let expected: BTreeSet<(String, String)> = model
            .iter()
            .filter(|((content_type, _), tags)| matches(&parsed, content_type, tags))
            .map(|(key, _)| key.clone())
            .collect();
        let mut wanted = request(&text);
        wanted.facets = true;
        wanted.sort = if n % 2 == 0 { Sort::Id } else { Sort::Updated };
        let page = search(h, "random", &wanted).await;
        assert_eq!(page.total, Total::Exactly(expected.len() as u64), "total of {text}");
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for key in &expected {
            model[key].iter().for_each(|t| *counts.entry(t).or_default() += 1);
        }
        let facets = page.facets.expect("the request asks for facets");
        let found: BTreeMap<&str, u64> = facets.iter().map(|(t, n)| (t.as_str(), *n)).collect();
        assert_eq!(found, counts, "facets of {text}");
        assert!(facets.windows(2).all(|w| w[0].1 >= w[1].1), "facets are ordered by use");
        let walked = all_hits(h, "random", &wanted).await;
        let order = |hit: &Hit| match wanted.sort {
            Sort::Updated => (-hit.updated_at, hit.content.clone()),
            Sort::Id => (0, hit.content.clone()),
        };
        assert!(
            walked.windows(2).all(|w| order(&w[0]) < order(&w[1])),
            "{text} is in order, each hit once"
        );
        let found: BTreeSet<(String, String)> = walked
            .iter()
            .map(|hit| {
                (
                    hit.content.content_type.as_str().to_owned(),
                    hit.content.content_id.as_str().to_owned(),
                )
            })
            .collect();
        assert_eq!(found, expected, "hits of {text}");
    }
}

/// Every engine refuses a query that breaks the grammar with the same error position.
pub async fn errors_have_the_parsers_positions(h: &dyn SearchHarness) {
    for (text, wanted) in [
        ("a AND", (5, 5)),
        ("(a OR b", (7, 7)),
        ("日本 (a", (5, 9)),
        ("x a*", (2, 2)),
        ("\u{e9} )", (2, 3)),
    ] {
        match h.index().search(&tenant("errors"), &request(text)).await {
            Err(SearchError::Syntax { position, byte, .. }) => {
                assert_eq!((position, byte), wanted, "{text}")
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let deep = format!("{}a{}", "(".repeat(17), ")".repeat(17));
    let refused = h.index().search(&tenant("errors"), &request(&deep)).await;
    assert!(matches!(refused, Err(SearchError::Limit { limit: "query_depth", .. })), "{refused:?}");
}

/// Paging returns contents that share one timestamp exactly once each, in order.
pub async fn equal_timestamps_are_paged_once(h: &dyn SearchHarness, contents: u64) {
    let events: Vec<_> = (0..contents)
        .map(|n| {
            event("timestamps", "t", &format!("{:06}", n * 7919 % contents), 1, 5000, &["same"])
        })
        .collect();
    for chunk in events.chunks(1000) {
        h.apply(chunk).await;
        h.visible().await;
    }
    for sort in [Sort::Updated, Sort::Id] {
        let mut first = request("same");
        first.sort = sort;
        first.limit = 97;
        let walked: Vec<String> = all_hits(h, "timestamps", &first)
            .await
            .iter()
            .map(|hit| hit.content.content_id.as_str().to_owned())
            .collect();
        let expected: Vec<String> = (0..contents).map(|n| format!("{n:06}")).collect();
        assert_eq!(walked, expected, "each hit once, ordered by id under {sort:?}");
    }
    let mut counted = request("same");
    counted.total_exact = false;
    let total = search(h, "timestamps", &counted).await.total;
    let expected =
        if contents > 10_000 { Total::AtLeast(10_000) } else { Total::Exactly(contents) };
    assert_eq!(total, expected, "totals are exact up to ten thousand");
}

/// Paging returns every content that does not change meanwhile exactly once, while others change.
pub async fn unmoved_contents_are_paged_once_under_writes(h: &dyn SearchHarness) {
    let id = |n: u64| format!("{n:04}");
    let events: Vec<_> =
        (0..200).map(|n| event("unmoved", "t", &id(n), 1, 1000 + n as i64 / 10, &["w"])).collect();
    h.apply(&events).await;
    h.visible().await;
    for sort in [Sort::Updated, Sort::Id] {
        let mut page = request("w");
        page.sort = sort;
        page.limit = 10;
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        let mut version = if sort == Sort::Updated { 10 } else { 1000 };
        loop {
            let answer = search(h, "unmoved", &page).await;
            for hit in &answer.hits {
                *seen.entry(hit.content.content_id.as_str().to_owned()).or_default() += 1;
            }
            // Two contents change between two pages.
            for moved in [3, 150] {
                version += 1;
                h.apply(&[event(
                    "unmoved",
                    "t",
                    &id(moved),
                    version,
                    9000 + version as i64,
                    &["w"],
                )])
                .await;
            }
            h.visible().await;
            match answer.next {
                Some(next) => page.after = Some(next),
                None => break,
            }
        }
        for n in 0..200 {
            let times = seen.get(&id(n)).copied().unwrap_or(0);
            let moved = n == 3 || n == 150;
            if sort == Sort::Id || !moved {
                assert_eq!(times, 1, "content {n} under {sort:?}");
            }
        }
    }
}

/// No query finds, counts or suggests a content of another tenant.
pub async fn tenants_are_isolated(h: &dyn SearchHarness, queries: usize) {
    let mut rng = Rng::with_seed(9);
    random_contents(h, "isolated-a", 60, &mut rng).await;
    h.apply(&[event("isolated-b", "page", "only", 1, 1, &["alpha", "secret"])]).await;
    h.visible().await;
    for _ in 0..queries {
        let text = random_query(&mut rng, 2).to_string();
        if !matches!(query::parse(&text), Ok(Some(_))) {
            continue;
        }
        let mut wanted = request(&text);
        wanted.facets = true;
        let a = search(h, "isolated-a", &wanted).await;
        let b = search(h, "isolated-b", &wanted).await;
        assert!(a.hits.iter().all(|hit| hit.content.content_id.as_str() != "only"), "{text}");
        assert!(a.facets.into_iter().flatten().all(|(t, _)| t.as_str() != "secret"), "{text}");
        assert!(b.hits.iter().all(|hit| hit.content.content_id.as_str() == "only"), "{text}");
        assert!(b.total == Total::Exactly(b.hits.len() as u64), "{text}");
    }
    let related = h
        .index()
        .related(&tenant("isolated-a"), &TagName::from_canonical("alpha"), 50)
        .await
        .expect("an answer");
    assert!(related.iter().all(|(t, _)| t.as_str() != "secret" && t.as_str() != "alpha"));
    // A cursor that points at another tenant's content must not reveal that content.
    let mut paged = request("alpha");
    let foreign = ContentKey::parse("isolated-b", "page", "only").expect("valid").content;
    paged.after = Some(SortKey { updated_at: i64::MAX, content: foreign });
    assert!(
        search(h, "isolated-a", &paged).await.hits.iter().all(|hit| hit
            .content
            .content_id
            .as_str()
            != "only")
    );
}

/// Counts of terms, of all contents or of one type, equal those that a naive evaluation finds.
pub async fn counts_of_terms_equal_the_model(h: &dyn SearchHarness) {
    let mut rng = Rng::with_seed(12);
    let of = "counts";
    let model = random_contents(h, of, 150, &mut rng).await;
    h.apply(&[event(of, "page", "gone", 900, NOW, &["alpha"])]).await;
    h.visible().await;
    h.apply(&[event(of, "page", "gone", 901, NOW, &[])]).await;
    h.visible().await;
    let terms: Vec<Query> = (0..40).map(|_| random_query(&mut rng, 0)).collect();
    for content_type in [None, Some("page"), Some("issue"), Some("unknown")] {
        let of_type: Option<ContentType> = content_type.map(|t| t.parse().expect("a valid type"));
        let counts = h.index().counts(&tenant(of), of_type.as_ref(), &terms).await;
        let expected = terms.iter().map(|term| {
            let matching = model.iter().filter(|((t, _), tags)| {
                content_type.is_none_or(|wanted| wanted == t) && matches(term, t, tags)
            });
            matching.count() as u64
        });
        assert_eq!(counts.expect("an answer"), expected.collect::<Vec<_>>(), "{content_type:?}");
    }
    assert_eq!(h.index().counts(&tenant(of), None, &[]).await.expect("an answer"), [] as [u64; 0]);
    let other = h.index().counts(&tenant("counts-of-none"), None, &terms).await;
    assert_eq!(other.expect("an answer"), vec![0; terms.len()]);
}

/// Tags that no content has any more count nowhere: not for the limit of a prefix, not in facets,
/// totals or related tags.
pub async fn removed_tags_count_nowhere(h: &dyn SearchHarness) {
    const PER_CONTENT: usize = 100;
    let of = "removed";
    let tag = |word: &str, n: usize| format!("{word}-{n:04}");
    let contents = PREFIX_TAGS_MAX / PER_CONTENT + 1;
    let state = |n: usize, version: u64, word: Option<&str>| {
        let own = (n * PER_CONTENT..(n + 1) * PER_CONTENT).take_while(|at| *at < PREFIX_TAGS_MAX);
        let mut tags: Vec<String> =
            word.map(|word| own.map(|at| tag(word, at)).collect()).unwrap_or_default();
        tags.push("kept".to_owned());
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        event(of, "t", &format!("c{n:03}"), version, NOW + version as i64, &tags)
    };
    // Two words with a common beginning, one after the other: together they are over the limit.
    for (version, word) in [(1, "old-a"), (2, "old-b"), (3, "old-c")] {
        let mut events: Vec<_> = (0..contents).map(|n| state(n, version, Some(word))).collect();
        // Never changes, so that no engine can drop the others with their whole segment.
        events.push(event(of, "t", &format!("unchanged-{version}"), 1, NOW, &["kept"]));
        h.apply(&events).await;
        h.visible().await;
    }
    let mut live = request("old*");
    live.facets = true;
    let page = search(h, of, &live).await;
    assert_eq!(page.total, Total::Exactly(contents as u64), "only the live tags of old* count");
    let facets = page.facets.expect("the request asks for facets");
    let is_live = |name: &TagName| name.as_str() == "kept" || name.as_str().starts_with("old-c");
    assert!(facets.iter().all(|(name, _)| is_live(name)), "{facets:?}");
    let kept = TagName::from_canonical("kept");
    let related = h.index().related(&tenant(of), &kept, 50).await.expect("an answer");
    assert!(!related.is_empty() && related.iter().all(|(name, _)| is_live(name)), "{related:?}");

    // One live tag more than the limit is refused, and allowed again when it is removed.
    h.apply(&[event(of, "t", "more", 1, NOW, &["old-d"])]).await;
    h.visible().await;
    let refused = h.index().search(&tenant(of), &live).await;
    assert!(matches!(refused, Err(SearchError::PrefixTooBroad { .. })), "{refused:?}");
    h.apply(&[event(of, "t", "more", 2, NOW + 1, &[])]).await;
    h.visible().await;
    assert_eq!(search(h, of, &live).await.total, Total::Exactly(contents as u64));

    let events: Vec<_> = (0..contents).map(|n| state(n, 4, None)).collect();
    h.apply(&events).await;
    h.visible().await;
    for query in ["old*", "old-c*", "old-a-0000 OR old-c-0000"] {
        let mut wanted = request(query);
        wanted.facets = true;
        let page = search(h, of, &wanted).await;
        assert_eq!((page.total, page.hits.len()), (Total::Exactly(0), 0), "{query}");
        assert_eq!(page.facets, Some(Vec::new()), "{query}");
    }
    let related = h.index().related(&tenant(of), &kept, 50).await.expect("an answer");
    assert_eq!(related, [], "nothing occurs together with it any more");
}

/// A hit carries the indexed state.
pub async fn hits_show_the_state(h: &dyn SearchHarness) {
    h.apply(&[event("hits", "jira.issue", "A/1 ü", 77, 1234, &["Zeta", "alpha"])]).await;
    h.visible().await;
    let page = search(h, "hits", &request("alpha AND type:jira.issue")).await;
    let [hit] = page.hits.as_slice() else { panic!("one hit expected, {:?}", page.hits) };
    let tags: Vec<&str> = hit.tags.iter().map(TagName::as_str).collect();
    assert_eq!((hit.content.content_id.as_str(), tags), ("A/1 ü", vec!["alpha", "zeta"]));
    assert_eq!((hit.updated_at, hit.version.packed()), (1234, 77));
    let mut typed = request("");
    typed.content_type = Some("other".parse().expect("valid"));
    assert!(search(h, "hits", &typed).await.hits.is_empty(), "the type filter holds");
}
