//! `view`, `tag` and `untag`.

use reqwest::Method;
use serde_json::{Value, json};

use super::answer_notes::note_gaps;
use crate::args::{ApplyArgs, ViewArgs};
use crate::error::{CliError, CommandResult, Exit};
use crate::http::{Client, ClientError, Problem, RequestOptions, encode};
use crate::json::{self, text, texts};
use crate::terminal::Terminal;

/// The difference between `tag` and `untag`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// `tag`
    Add,
    /// `untag`
    Remove,
}

/// Whether URL libraries treat the id as a path step even when it is encoded; such an id goes into
/// a batch.
fn is_dots(id: &str) -> bool {
    id == "." || id == ".."
}

fn path(content_type: &str, id: &str) -> String {
    format!("/v1/content/{}/{}/tags", encode(content_type), encode(id))
}

/// The result of a batch of one.
fn only(mut answer: Value) -> Result<Value, ClientError> {
    let result = answer.get_mut("results").and_then(|r| r.get_mut(0)).map(Value::take);
    let result = result.ok_or(ClientError::UnexpectedAnswer("the batch has no result"))?;
    match result.get("problem") {
        Some(problem) => Err(ClientError::Problem(Box::new(Problem::from_json(0, problem)))),
        None => Ok(result),
    }
}

/// `view`
pub(super) async fn view(args: &ViewArgs, terminal: &Terminal) -> CommandResult {
    let client = Client::new(&args.client)?;
    let mut options = RequestOptions::default();
    if args.strong {
        options.headers.push(("consistency", "strong".to_owned()));
    }
    if args.eventual {
        options.headers.push(("consistency", "eventual".to_owned()));
    }
    let answer = if is_dots(&args.content_id) || is_dots(&args.content_type) {
        let items = json!({"items": [{"type": args.content_type, "id": args.content_id}]});
        options.body = Some(items.to_string().into_bytes());
        only(client.call(Method::POST, "/v1/content:batchGet", options).await?)?
    } else {
        client.call(Method::GET, &path(&args.content_type, &args.content_id), options).await?
    };
    if terminal.json {
        terminal.value(&answer)?;
        return Ok(Exit::Done);
    }
    note_gaps(&answer, terminal);
    let tags = json::list(&answer, "tags");
    if tags.is_empty() {
        terminal.note("no tags");
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = tags
        .iter()
        .map(|t| ["tag", "display", "added_by", "added_at"].map(|name| text(t, name)).to_vec())
        .collect();
    terminal.table(&["tag", "display", "added by", "added at"], &rows)?;
    Ok(Exit::Done)
}

/// `tag` and `untag`
pub(super) async fn change(args: &ApplyArgs, change: Change, terminal: &Terminal) -> CommandResult {
    let client = Client::new(&args.client)?;
    let (add, remove): (&[String], &[String]) = match change {
        Change::Add => (&args.tags, &[]),
        Change::Remove => (&[], &args.tags),
    };
    let key = args.idempotency_key.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    let headers = vec![("idempotency-key", key)];
    let answer = if is_dots(&args.content_id) || is_dots(&args.content_type) {
        let item =
            json!({"type": args.content_type, "id": args.content_id, "add": add, "remove": remove});
        let body = Some(json!({"items": [item]}).to_string().into_bytes());
        only(
            client
                .call(
                    Method::POST,
                    "/v1/content:batchTag",
                    RequestOptions { body, headers, timeout: None },
                )
                .await?,
        )?
    } else {
        let body = Some(json!({"add": add, "remove": remove}).to_string().into_bytes());
        let options = RequestOptions { body, headers, timeout: None };
        client.call(Method::PATCH, &path(&args.content_type, &args.content_id), options).await?
    };
    if args.receipt {
        let receipt = answer.get("receipt").and_then(Value::as_str);
        terminal.line(receipt.ok_or_else(|| CliError::new("the answer has no receipt"))?)?;
    } else if terminal.json {
        terminal.value(&answer)?;
    } else {
        terminal.line(summary(&answer))?;
    }
    Ok(Exit::Done)
}

/// Names the tags that a write added and removed.
fn summary(answer: &Value) -> String {
    let parts: Vec<String> = ["added", "removed"]
        .into_iter()
        .map(|verb| (verb, texts(answer, verb)))
        .filter(|(_, names)| !names.is_empty())
        .map(|(verb, names)| format!("{verb} {}", names.join(", ")))
        .collect();
    if parts.is_empty() {
        "nothing changed: it was so already".to_owned()
    } else {
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_keep_every_id_apart() {
        assert_eq!(path("a.b", "x/y z+%"), "/v1/content/a.b/x%2Fy%20z%2B%25/tags");
        assert!(is_dots("..") && !is_dots("...") && !is_dots(".a"));
    }

    #[test]
    fn summaries_name_what_changed() {
        assert_eq!(
            summary(&json!({"added": ["a", "b"], "removed": ["c"]})),
            "added a, b; removed c"
        );
        assert_eq!(
            summary(&json!({"added": [], "removed": []})),
            "nothing changed: it was so already"
        );
    }

    #[test]
    fn a_batch_of_one_is_its_result_or_its_problem() {
        assert!(only(json!({"results": [{"ok": true, "changed": true}]})).is_ok());
        let problem =
            only(json!({"results": [{"ok": false, "problem": {"status": 422, "code": "empty"}}]}));
        assert!(
            matches!(problem, Err(ClientError::Problem(p)) if p.code == "empty" && p.status == 422)
        );
        assert!(only(json!({})).is_err());
    }
}
