//! The list of all tags, completion by type, and hints of a search.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{ApiLimits, AuthConfig, Fixture, build, fixture};

fn names(page: &Value) -> Vec<String> {
    let tags = page["tags"].as_array().unwrap();
    tags.iter().map(|tag| tag["tag"].as_str().unwrap().to_owned()).collect()
}

/// Walks over all pages; `between` runs after each.
async fn walk(fixture: &Fixture, uri: &str, mut between: impl AsyncFnMut(usize)) -> Vec<String> {
    let (mut all, mut cursor) = (Vec::new(), None::<String>);
    for page in 0.. {
        let uri = match &cursor {
            None => uri.to_owned(),
            Some(cursor) => format!("{uri}&cursor={cursor}"),
        };
        let body = fixture.get(&uri).send().await.ok();
        all.extend(names(&body));
        cursor = body["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
        between(page).await;
    }
    all
}

async fn filled() -> Fixture {
    let fixture = fixture();
    for n in 0..23 {
        fixture.tag(&format!("page/{n}"), &format!("Stays%20{n:02}")).await.ok();
        fixture.tag(&format!("page/{n}"), "everywhere").await.ok();
    }
    fixture.tag("issue/1", "everywhere").await.ok();
    fixture.tag("issue/1", "interface::commandline").await.ok();
    fixture
}

#[tokio::test]
async fn all_tags_are_listed_in_order_and_none_twice_while_others_change() {
    let fixture = filled().await;
    let first = fixture.get("/v1/tags").send().await.ok();
    assert_eq!(names(&first).len(), 20, "the default limit");
    assert_eq!(
        first["tags"][0],
        json!({"tag": "everywhere", "display": "everywhere", "count": 24})
    );
    assert_eq!(first["tags"][2], json!({"tag": "stays-00", "display": "Stays 00", "count": 1}));
    for limit in [1, 4, 24, 25, 26, 1000] {
        let all = walk(&fixture, &format!("/v1/tags?limit={limit}"), async |_| {}).await;
        assert_eq!(all.len(), 25, "{limit}");
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
    }
    let all = walk(&fixture, "/v1/tags?limit=3", async |page| {
        fixture.tag("page/moving", &format!("aaa{page}")).await.ok();
        fixture.tag("page/moving", &format!("stays-05-{page}")).await.ok();
        let gone = format!("/v1/content/page/moving/tags/aaa{page}");
        fixture.request("DELETE", &gone).send().await.ok();
    })
    .await;
    assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
    assert_eq!(all.iter().filter(|tag| tag.len() == "stays-00".len()).count(), 23);
}

#[tokio::test]
async fn a_cursor_of_the_list_fits_its_list_only() {
    let fixture = filled().await;
    let page = fixture.get("/v1/tags?limit=3").send().await.ok();
    let cursor = page["next_cursor"].as_str().unwrap();
    fixture.get(&format!("/v1/tags?limit=5&cursor={cursor}")).send().await.ok();
    for (uri, code) in [
        (format!("/v1/tags?type=page&cursor={cursor}"), "bad_cursor"),
        (format!("/v1/search?cursor={cursor}"), "bad_cursor"),
        (format!("/v1/tags?prefix=a&cursor={cursor}"), "bad_parameter"),
        ("/v1/tags?cursor=x".to_owned(), "bad_cursor"),
        ("/v1/tags?cursor=".to_owned(), "bad_cursor"),
        ("/v1/tags?limit=1001".to_owned(), "bad_parameter"),
        ("/v1/tags?type=BAD".to_owned(), "forbidden_character"),
    ] {
        fixture.get(&uri).send().await.problem(code);
    }
    fixture.clock.advance(86_400_001);
    fixture.get(&format!("/v1/tags?cursor={cursor}")).send().await.problem("bad_cursor");
}

#[tokio::test]
async fn a_type_restricts_the_list_and_completions_to_its_contents() {
    let fixture = filled().await;
    let pages = walk(&fixture, "/v1/tags?type=page&limit=7", async |_| {}).await;
    assert_eq!(pages.len(), 24);
    assert!(!pages.contains(&"interface::commandline".to_owned()));
    assert!(pages.windows(2).all(|pair| pair[0] < pair[1]));
    let issues = fixture.get("/v1/tags?type=issue").send().await.ok();
    assert_eq!(names(&issues), ["everywhere", "interface::commandline"]);
    assert_eq!(issues["tags"][0]["count"], 1, "the count is that of the type");
    assert_eq!(issues["next_cursor"], Value::Null);
    let none = fixture.get("/v1/tags?type=unknown").send().await.ok();
    assert_eq!((names(&none), &none["next_cursor"]), (vec![], &Value::Null));

    let found = fixture.get("/v1/tags?prefix=commandline").send().await.ok();
    assert_eq!(names(&found), ["interface::commandline"]);
    assert_eq!(found["next_cursor"], Value::Null);
    let of_page = fixture.get("/v1/tags?prefix=commandline&type=page").send().await.ok();
    assert_eq!(names(&of_page), Vec::<String>::new());
    let every = fixture.get("/v1/tags?prefix=ever&type=issue").send().await.ok();
    assert_eq!(every["tags"][0]["count"], 1);
    let most_used = fixture.get("/v1/tags?prefix=&limit=1").send().await.ok();
    assert_eq!(names(&most_used), ["everywhere"], "nothing typed: the most used tags");

    let without_index = build(AuthConfig::None, ApiLimits::default(), |s| s.search = None);
    without_index.get("/v1/tags?type=page").send().await.problem("not_in_this_mode");
    without_index.get("/v1/tags").send().await.ok();
}

/// With a type, a request looks at so many tags and no more: the walk goes on over empty pages.
#[tokio::test]
async fn the_work_of_a_page_is_bounded() {
    let fixture = fixture();
    for n in 0..1203 {
        fixture.tag(&format!("page/{}", n / 90), &format!("tag-{n:04}")).await.ok();
    }
    fixture.tag("issue/1", "tag-1202").await.ok();
    let (mut uri, mut pages, mut found) = ("/v1/tags?type=issue".to_owned(), 0, Vec::new());
    loop {
        let page = fixture.get(&uri).send().await.ok();
        pages += 1;
        found.extend(names(&page));
        match page["next_cursor"].as_str() {
            Some(cursor) => uri = format!("/v1/tags?type=issue&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!((pages, found), (3, vec!["tag-1202".to_owned()]));
}

#[tokio::test]
async fn a_list_without_its_source_is_an_error_not_an_end() {
    let fixture = filled().await;
    *fixture.popular.fault.lock() = Some(|| tagfast_popular::PopularError::unavailable("down"));
    let problem = fixture.get("/v1/tags").send().await.problem("popular_unavailable");
    assert_eq!(problem["status"], 503);
    *fixture.popular.fault.lock() = None;
    let fresh = fixture.get("/v1/tags").header("cache-control", "no-cache").send().await;
    assert_eq!(names(&fresh.ok()).len(), 20, "a second is no lag");
}

#[tokio::test]
async fn a_search_that_finds_nothing_says_why() {
    let fixture = filled().await;
    let hints = async |query: &str| {
        let body = fixture.get(&format!("/v1/search?q={query}")).send().await.ok();
        let hints = body["hints"].as_array().cloned().unwrap_or_default();
        assert!(hints.iter().all(|hint| hint["message"].as_str().is_some_and(|m| !m.is_empty())));
        let code = |hint: &Value| hint["code"].as_str().unwrap().to_owned();
        hints.iter().map(code).collect::<BTreeSet<_>>()
    };
    assert!(hints("everywhere+and+stays-00").await.contains("operator_word"));
    assert!(hints("status:open").await.contains("unknown_field"));
    assert!(hints("nowhere").await.contains("unused_term"));
    assert!(hints("%EF%BC%88everywhere%EF%BC%89").await.contains("look_alike"));
    assert_eq!(hints("everywhere").await, BTreeSet::new());
    let found = fixture.get("/v1/search?q=everywhere").send().await.ok();
    assert!(found.get("hints").is_none());
    let of_type = fixture.get("/v1/search?type=unknown").send().await.ok();
    assert_eq!(of_type["hints"][0]["code"], "unused_term");
}
