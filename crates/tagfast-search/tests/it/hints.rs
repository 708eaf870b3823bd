//! Hints: no query finds nothing silently, and a query that finds something is left alone.

use std::collections::BTreeSet;

use async_trait::async_trait;
use proptest::prelude::*;
use tagfast_domain::{ContentType, TagName, TenantId, UnixMillis};
use tagfast_search::conformance::request;
use tagfast_search::hints::{HINTS_MAX, hints};
use tagfast_search::query::parse;
use tagfast_search::{
    Hint, HintCode, Query, RelatedTags, SearchError, SearchIndex, SearchPage, SearchRequest,
};

/// An index in which one content of the type `page` has these tags; `None` does not answer.
struct OneContent(Option<&'static [&'static str]>);

fn matches(query: &Query, tags: &[&str]) -> bool {
    match query {
        Query::Tag(name) => tags.contains(&name.as_str()),
        Query::Prefix(prefix) => tags.iter().any(|tag| tag.starts_with(prefix.as_str())),
        Query::Type(name) => name.as_str() == "page",
        Query::And(parts) => parts.iter().all(|part| matches(part, tags)),
        Query::Or(parts) => parts.iter().any(|part| matches(part, tags)),
        Query::Not(part) => !matches(part, tags),
    }
}

#[async_trait]
impl SearchIndex for OneContent {
    async fn search(&self, _: &TenantId, _: &SearchRequest) -> Result<SearchPage, SearchError> {
        Err(SearchError::unavailable("hints do not search"))
    }

    async fn related(&self, _: &TenantId, _: &TagName, _: usize) -> RelatedTags {
        Err(SearchError::unavailable("hints do not ask for related tags"))
    }

    async fn counts(
        &self,
        _: &TenantId,
        _: Option<&ContentType>,
        terms: &[Query],
    ) -> Result<Vec<u64>, SearchError> {
        let tags = self.0.ok_or_else(|| SearchError::unavailable("away"))?;
        Ok(terms.iter().map(|term| u64::from(matches(term, tags))).collect())
    }

    fn as_of(&self) -> UnixMillis {
        0
    }

    async fn documents(&self) -> Result<u64, SearchError> {
        Ok(1)
    }
}

async fn hints_of(tags: &'static [&'static str], request: &SearchRequest) -> Vec<Hint> {
    let query = parse(request.query.as_deref().unwrap_or_default()).expect("a valid query");
    let of_type = request.content_type.as_ref().is_none_or(|name| name.as_str() == "page");
    let found = of_type && query.is_none_or(|query| matches(&query, tags));
    let tenant = "t".parse().expect("a valid tenant");
    hints(&OneContent(Some(tags)), &tenant, request, !found).await
}

async fn codes(tags: &'static [&'static str], text: &str) -> Vec<HintCode> {
    hints_of(tags, &request(text)).await.into_iter().map(|hint| hint.code).collect()
}

#[tokio::test]
async fn a_word_that_means_syntax_elsewhere_gets_a_hint() {
    use HintCode::{
        Contradiction, LookAlike, OperatorSymbol, OperatorWord, QuotedSyntax, UnknownField,
        UnusedTerm, Wildcard,
    };
    for (text, code) in [
        ("ui and api", OperatorWord),
        ("ui Or api", OperatorWord),
        ("not api", OperatorWord),
        ("ui ＡＮＤ api", OperatorWord),
        ("ui OR (api and x)", OperatorWord),
        ("ui && api", OperatorSymbol),
        ("ui | api", OperatorSymbol),
        ("ui -api", OperatorSymbol),
        ("!api", OperatorSymbol),
        ("+ui +api", OperatorSymbol),
        ("ui&&api", OperatorSymbol),
        ("#ui", OperatorSymbol),
        ("（ui OR api）", LookAlike),
        ("“ui kit”", LookAlike),
        ("'ui kit'", LookAlike),
        ("「ui」", LookAlike),
        ("u＊", LookAlike),
        ("status:open", UnknownField),
        ("TAG:ui", UnknownField),
        ("status：open", UnknownField),
        ("status=open", UnknownField),
        ("type :page", UnknownField),
        ("status: open", UnknownField),
        ("u?", Wildcard),
        ("ui%", Wildcard),
        ("\"ui AND api\"", QuotedSyntax),
        ("\"NOT api\"", QuotedSyntax),
        ("\"type:page\"", QuotedSyntax),
        ("\"ui*\"", QuotedSyntax),
        ("type:page type:issue", Contradiction),
        ("ui NOT ui", Contradiction),
        ("uii", UnusedTerm),
        ("zz*", UnusedTerm),
        ("type:issue", UnusedTerm),
        ("NOT NOT zz", UnusedTerm),
    ] {
        let found = codes(&["ui"], text).await;
        assert!(found.contains(&code), "{text}: {found:?}");
    }
    let message = &hints_of(&["ui"], &request("日本 （ui）")).await[0].message;
    assert!(message.contains("'（' at position 3"), "{message}");
}

#[tokio::test]
async fn tags_that_contents_have_get_no_hint() {
    const TAGS: &[&str] =
        &["ui", "and", "status:open", "#1", "-x", "u?", "a-(b)", "type:page", "'til"];
    for text in [
        "ui",
        "and",
        "ui and",
        "status:open",
        "#1 -x",
        "u?",
        "\"type:page\"",
        "'til",
        "a-（b）",
        "NOT zz",
        "ui OR zz",
        "type:page",
        "",
        "NOT (status:shut)",
    ] {
        let found = codes(TAGS, text).await;
        assert!(found.is_empty() || text == "NOT (status:shut)", "{text}: {found:?}");
    }
}

#[tokio::test]
async fn the_type_parameter_counts_and_an_index_that_is_away_adds_nothing() {
    let mut of_type = request("type:page");
    of_type.content_type = Some("issue".parse().expect("a valid type"));
    let found = hints_of(&["ui"], &of_type).await;
    assert!(found.iter().any(|hint| hint.code == HintCode::Contradiction), "{found:?}");
    let mut only_type = request("");
    only_type.content_type = of_type.content_type;
    let found = hints_of(&["ui"], &only_type).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].code, HintCode::UnusedTerm);
    let tenant = "t".parse().expect("a valid tenant");
    let away = hints(&OneContent(None), &tenant, &request("ui and zz"), true).await;
    let codes: Vec<HintCode> = away.iter().map(|hint| hint.code).collect();
    assert_eq!(codes, [HintCode::OperatorWord]);
    assert_eq!(hints(&OneContent(None), &tenant, &request("ui and zz"), false).await, []);
}

#[test]
fn codes_are_distinct_words() {
    let words: BTreeSet<&str> = HintCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(words.len(), HintCode::ALL.len());
}

proptest! {
    /// Whatever is typed: an error, an answer, or a hint. Never nothing without a word, unless all
    /// words are tags that exist.
    #[test]
    fn no_query_finds_nothing_silently(
        text in "(ui|UI|api|and|not|NOT|AND|OR|type:|TYPE:|page|x|[:*?\"'()（）“”，&|!# -])( ?(ui|api|or|OR|type:page|[:*x'（）!])){0,5}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let Ok(query) = parse(&text) else { return Ok(()) };
        let found = runtime.block_on(hints_of(&["ui"], &request(&text)));
        prop_assert!(found.len() <= HINTS_MAX);
        prop_assert!(found.iter().all(|hint| !hint.message.is_empty()));
        let Some(query) = query else { return Ok(()) };
        // What needs no tag but `ui` may be empty for a good reason: NOT ui.
        let needs_only_ui = !text.replace("NOT", "").to_lowercase().contains(
            |c: char| !"ui ()".contains(c)
        );
        if !matches(&query, &["ui"]) && !needs_only_ui && !text.contains("NOT") {
            prop_assert!(!found.is_empty(), "{:?}", text);
        }
    }
}
