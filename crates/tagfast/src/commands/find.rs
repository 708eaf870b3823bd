//! `search`, `popular`, `suggest`.

use serde_json::Value;

use crate::cli::{PopularArgs, SearchArgs, SortArg, SuggestArgs};
use crate::client::{Client, ClientError, caret, encode};
use crate::failure::{CommandResult, Exit, Failure};
use crate::term::{Term, table, visible};

/// Hits per request of `--all`: the most that the API gives.
const PAGE: u32 = 100;
/// An age of decades says that the part has never been complete.
const NEVER_MS: u64 = 20 * 365 * 86_400_000;

/// `search`
pub(super) async fn search(args: &SearchArgs, term: &Term) -> CommandResult {
    let client = Client::new(&args.client)?;
    let mut base = format!("/v1/search?q={}", encode(&args.query));
    if let Some(content_type) = &args.content_type {
        base.push_str(&format!("&type={}", encode(content_type)));
    }
    match args.sort {
        Some(SortArg::Updated) => base.push_str("&sort=updated"),
        Some(SortArg::Id) => base.push_str("&sort=id"),
        None => {}
    }
    if let Some(limit) = args.limit.or(args.all.then_some(PAGE)) {
        base.push_str(&format!("&limit={limit}"));
    }
    let mut cursor = args.cursor.clone();
    let mut first = true;
    loop {
        let mut path = base.clone();
        if first && args.facets {
            path.push_str("&facets=true");
        }
        if let Some(cursor) = &cursor {
            path.push_str(&format!("&cursor={}", encode(cursor)));
        }
        let page = client.get(&path).await.map_err(|e| explain(&args.query, e))?;
        cursor = page.get("next_cursor").and_then(Value::as_str).map(str::to_owned);
        show(&page, args, first, cursor.as_deref(), term)?;
        first = false;
        if !args.all || cursor.is_none() {
            return Ok(Exit::Done);
        }
    }
}

/// A syntax error with a caret below the place.
fn explain(query: &str, error: ClientError) -> Failure {
    if let ClientError::Problem(problem) = &error
        && let Some(position) = problem.position
    {
        let message = format!("{}\n{}", problem.detail, caret(query, position));
        let failure = Failure::new(message);
        return match &problem.expected {
            Some(expected) => failure.hint(format!("expected here: {expected}")),
            None => failure,
        };
    }
    error.into()
}

fn show(
    page: &Value,
    args: &SearchArgs,
    first: bool,
    cursor: Option<&str>,
    term: &Term,
) -> Result<(), Failure> {
    let hits = page.get("hits").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if term.json {
        // Many pages are written as lines of hits, so that a pipe can begin before the last one is
        // there.
        if args.all {
            return hits.iter().try_for_each(|hit| term.line(hit));
        }
        return term.value(page);
    }
    let rows: Vec<Vec<String>> = hits
        .iter()
        .map(|hit| {
            let text =
                |name: &str| visible(hit.get(name).and_then(Value::as_str).unwrap_or_default());
            let tags =
                hit.get("tags").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let tags: Vec<String> = tags.iter().filter_map(Value::as_str).map(visible).collect();
            vec![text("type"), text("id"), tags.join(" ")]
        })
        .collect();
    if !rows.is_empty() {
        term.line(table(&rows))?;
    }
    if first {
        let total = page.pointer("/total/value").and_then(Value::as_u64).unwrap_or(0);
        let least = page.pointer("/total/relation").and_then(Value::as_str) == Some("gte");
        term.note(format_args!("{}{total} found", if least { "at least " } else { "" }));
        remarks(page, term);
        if let Some(facets) = page.get("facets") {
            term.line("")?;
            term.line(counts(facets))?;
        }
    }
    if let Some(cursor) = cursor.filter(|_| !args.all) {
        term.note(format_args!("more with: --cursor {cursor}"));
    }
    Ok(())
}

/// Says what an answer could not give.
pub(super) fn remarks(page: &Value, term: &Term) {
    if page.pointer("/meta/stale").and_then(Value::as_bool) == Some(true) {
        let age = page.pointer("/meta/age_ms").and_then(Value::as_u64).unwrap_or(0);
        if age >= NEVER_MS {
            term.note(
                "incomplete: the server is still catching up with its store (see tagfast status)",
            );
        } else {
            term.note(format_args!("stale: the answer is {:.0} s old", age as f64 / 1000.0));
        }
    }
    for degraded in page.pointer("/meta/degraded").and_then(Value::as_array).into_iter().flatten() {
        let text = |name: &str| degraded.get(name).and_then(Value::as_str).unwrap_or("?");
        term.note(format_args!("degraded: {} ({})", text("feature"), text("reason")));
    }
}

fn counts(tags: &Value) -> String {
    let rows: Vec<Vec<String>> = tags
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .map(|t| {
            let text =
                |name: &str| visible(t.get(name).and_then(Value::as_str).unwrap_or_default());
            let count = t.get("count").and_then(Value::as_u64).unwrap_or(0);
            vec![format!("{count:>8}"), text("tag"), text("display")]
        })
        .collect();
    table(&rows)
}

async fn tags(client: &Client, path: &str, nothing: &str, term: &Term) -> CommandResult {
    let answer = client.get(path).await?;
    if term.json {
        term.value(&answer)?;
        return Ok(Exit::Done);
    }
    remarks(&answer, term);
    match answer.get("tags").filter(|t| t.as_array().is_some_and(|t| !t.is_empty())) {
        Some(tags) => term.line(counts(tags))?,
        // What was left out is not what there is none of.
        None if left_out(&answer) => {}
        None => term.note(nothing),
    }
    Ok(Exit::Done)
}

/// Whether the answer lacks what was asked for.
fn left_out(answer: &Value) -> bool {
    let degraded = answer.pointer("/meta/degraded").and_then(Value::as_array);
    degraded
        .into_iter()
        .flatten()
        .any(|d| d.get("reason").and_then(Value::as_str) == Some("features_limited"))
}

/// `popular`
pub(super) async fn popular(args: &PopularArgs, term: &Term) -> CommandResult {
    let client = Client::new(&args.client)?;
    let path = format!("/v1/tags/popular?window={}&limit={}", args.window.as_str(), args.limit);
    tags(&client, &path, "no tags in this window", term).await
}

/// `suggest`
pub(super) async fn suggest(args: &SuggestArgs, term: &Term) -> CommandResult {
    let client = Client::new(&args.client)?;
    let path = format!("/v1/tags?prefix={}&limit={}", encode(&args.prefix), args.limit);
    tags(&client, &path, "no tag begins like that", term).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Problem;

    #[test]
    fn syntax_errors_show_the_query_with_a_caret() {
        let problem = Problem {
            status: 400,
            code: "query_syntax".to_owned(),
            detail: "the query ends where a tag was expected".to_owned(),
            position: Some(6),
            expected: Some("a tag".to_owned()),
            ..Problem::default()
        };
        let failure = explain("ui AND", ClientError::Problem(Box::new(problem)));
        assert_eq!(failure.message, "the query ends where a tag was expected\n  ui AND\n        ^");
        assert_eq!(failure.hint.as_deref(), Some("expected here: a tag"));
    }

    #[test]
    fn what_is_left_out_is_told_apart_from_nothing() {
        let with = |reason: &str| serde_json::json!({"tags": [], "meta": {"degraded": [{"feature": "popular", "reason": reason}]}});
        assert!(left_out(&with("features_limited")) && !left_out(&with("approximate")));
        let (term, captured) = Term::memory(false);
        remarks(&with("features_limited"), &term);
        assert_eq!(captured.err(), "degraded: popular (features_limited)\n");
    }

    #[test]
    fn counts_are_a_table() {
        let tags = serde_json::json!([{"tag": "a", "display": "A", "count": 12}]);
        assert_eq!(counts(&tags), "      12  a  A");
    }
}
