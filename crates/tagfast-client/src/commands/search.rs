//! `search`, `popular`, `suggest`.

use serde_json::Value;

use super::answer_notes::{is_left_out, note_gaps};
use crate::args::{PopularArgs, SearchArgs, SortArg, SuggestArgs};
use crate::error::{CliError, CommandResult, Exit};
use crate::http::{Client, ClientError, caret, encode};
use crate::json::{self, number, text, texts};
use crate::terminal::{Terminal, table};

/// Hits per request of `--all`: the upper limit of the API.
const PAGE_HITS_MAX: u32 = 100;

/// Tags per request of `--all`: the upper limit of the API.
const LISTED_TAGS_MAX: u32 = 1000;

/// `search`
pub(super) async fn search(args: &SearchArgs, terminal: &Terminal) -> CommandResult {
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
    if let Some(limit) = args.limit.or(args.all.then_some(PAGE_HITS_MAX)) {
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
        show(&page, args, first, cursor.as_deref(), terminal)?;
        first = false;
        if !args.all || cursor.is_none() {
            return Ok(Exit::Done);
        }
    }
}

/// A syntax error shows the query with a caret below the position.
fn explain(query: &str, error: ClientError) -> CliError {
    if let ClientError::Problem(problem) = &error
        && let Some(position) = problem.position
    {
        let message = format!("{}\n{}", problem.detail, caret(query, position));
        let syntax_error = CliError::new(message);
        return match &problem.expected {
            Some(expected) => syntax_error.hint(format!("expected here: {expected}")),
            None => syntax_error,
        };
    }
    error.into()
}

fn show(
    page: &Value,
    args: &SearchArgs,
    first: bool,
    cursor: Option<&str>,
    terminal: &Terminal,
) -> Result<(), CliError> {
    let hits = json::list(page, "hits");
    if terminal.json {
        // Several pages are written as lines of hits, so that the reader of a pipe can begin before
        // the last page.
        if args.all {
            return Ok(hits.iter().try_for_each(|hit| terminal.line(hit))?);
        }
        return Ok(terminal.value(page)?);
    }
    let rows: Vec<Vec<String>> = hits
        .iter()
        .map(|hit| vec![text(hit, "type"), text(hit, "id"), texts(hit, "tags").join(" ")])
        .collect();
    if !rows.is_empty() && first {
        terminal.table(&["type", "id", "tags"], &rows)?;
    } else if !rows.is_empty() {
        terminal.line(table(&rows))?;
    }
    if first {
        let total = page.pointer("/total/value").and_then(Value::as_u64).unwrap_or(0);
        let is_lower_bound = page.pointer("/total/relation").and_then(Value::as_str) == Some("gte");
        terminal
            .note(format_args!("{}{total} found", if is_lower_bound { "at least " } else { "" }));
        note_gaps(page, terminal);
        note_hints(page, terminal);
        if let Some(facets) = page.get("facets").and_then(Value::as_array) {
            terminal.line("")?;
            show_counts(facets, terminal)?;
        }
    }
    if let Some(cursor) = cursor.filter(|_| !args.all) {
        terminal.note(format_args!("more with: --cursor {cursor}"));
    }
    Ok(())
}

/// Why the query probably does not find what was meant.
fn note_hints(page: &Value, terminal: &Terminal) {
    for hint in json::list(page, "hints") {
        terminal.note(format_args!("hint: {}", text(hint, "message")));
    }
}

/// Shows tags with their counts.
fn show_counts(tags: &[Value], terminal: &Terminal) -> std::io::Result<()> {
    terminal.table(&["   count", "tag", "display"], &count_rows(tags))
}

fn count_rows(tags: &[Value]) -> Vec<Vec<String>> {
    tags.iter()
        .map(|t| vec![format!("{:>8}", number(t, "count")), text(t, "tag"), text(t, "display")])
        .collect()
}

/// Fetches and shows tags with their counts; `nothing` is the note if there are none.
async fn tags(client: &Client, path: &str, nothing: &str, terminal: &Terminal) -> CommandResult {
    let answer = client.get(path).await?;
    if terminal.json {
        terminal.value(&answer)?;
        return Ok(Exit::Done);
    }
    note_gaps(&answer, terminal);
    match json::list(&answer, "tags") {
        // A part that was left out is not empty.
        [] if is_left_out(&answer) => {}
        [] => terminal.note(nothing),
        tags => show_counts(tags, terminal)?,
    }
    Ok(Exit::Done)
}

/// `popular`
pub(super) async fn popular(args: &PopularArgs, terminal: &Terminal) -> CommandResult {
    let client = Client::new(&args.client)?;
    let path = format!("/v1/tags/popular?window={}&limit={}", args.window.as_str(), args.limit);
    tags(&client, &path, "no tags in this window", terminal).await
}

/// `suggest`
pub(super) async fn suggest(args: &SuggestArgs, terminal: &Terminal) -> CommandResult {
    let client = Client::new(&args.client)?;
    let mut path =
        format!("/v1/tags?limit={}", if args.all { LISTED_TAGS_MAX } else { args.limit });
    if let Some(content_type) = &args.content_type {
        path.push_str(&format!("&type={}", encode(content_type)));
    }
    match &args.prefix {
        Some(prefix) => {
            path.push_str(&format!("&prefix={}", encode(prefix)));
            tags(&client, &path, "no tag begins like that", terminal).await
        }
        None => all_tags(&client, &path, args, terminal).await,
    }
}

/// Lists all tags: one page, or with `--all` every page.
async fn all_tags(
    client: &Client,
    base: &str,
    args: &SuggestArgs,
    terminal: &Terminal,
) -> CommandResult {
    let mut cursor = args.cursor.clone();
    let mut shown = 0;
    loop {
        let first = shown == 0;
        let at = cursor.map(|cursor| format!("&cursor={}", encode(&cursor))).unwrap_or_default();
        let page = client.get(&format!("{base}{at}")).await?;
        let tags = json::list(&page, "tags");
        shown += tags.len();
        if terminal.json && !args.all {
            terminal.value(&page)?;
            return Ok(Exit::Done);
        }
        if terminal.json {
            // Lines, so that the reader of a pipe can begin before the last page.
            tags.iter().try_for_each(|tag| terminal.line(tag))?;
        } else if !tags.is_empty() {
            match first {
                true => show_counts(tags, terminal)?,
                // The heading stands above the first page alone.
                false => terminal.line(table(&count_rows(tags)))?,
            }
        }
        cursor = page.get("next_cursor").and_then(Value::as_str).map(str::to_owned);
        match &cursor {
            Some(cursor) if !args.all => {
                terminal.note(format_args!("more with: --cursor {cursor}"));
                return Ok(Exit::Done);
            }
            Some(_) => {}
            None => {
                if shown == 0 && !terminal.json {
                    terminal.note("no tags");
                }
                return Ok(Exit::Done);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Problem;

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
        let error = explain("ui AND", ClientError::Problem(Box::new(problem)));
        assert_eq!(error.message, "the query ends where a tag was expected\n  ui AND\n        ^");
        assert_eq!(error.hint.as_deref(), Some("expected here: a tag"));
    }

    #[test]
    fn counts_are_a_table() {
        let tags = serde_json::json!([{"tag": "a", "display": "A", "count": 12}]);
        let (mut terminal, captured) = Terminal::memory(false);
        show_counts(tags.as_array().unwrap(), &terminal).unwrap();
        terminal.screen = true;
        show_counts(tags.as_array().unwrap(), &terminal).unwrap();
        assert_eq!(captured.out(), "      12  a  A\n   COUNT  TAG  DISPLAY\n      12  a    A\n");
    }
}
