//! `view`, `tag`, `untag`.

use reqwest::Method;
use serde_json::{Value, json};

use super::find::remarks;
use crate::cli::{ApplyArgs, ViewArgs};
use crate::client::{Client, ClientError, Options, Problem, encode};
use crate::failure::{CommandResult, Exit, Failure};
use crate::term::{Term, table, visible};

/// What `tag` and `untag` share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// `tag`
    Add,
    /// `untag`
    Remove,
}

/// Ids that URL libraries take for steps in the path, even when they are encoded; those go into a
/// batch.
fn is_dots(id: &str) -> bool {
    id == "." || id == ".."
}

fn path(content_type: &str, id: &str) -> String {
    format!("/v1/content/{}/{}/tags", encode(content_type), encode(id))
}

/// The one result of a batch of one.
fn only(mut answer: Value) -> Result<Value, ClientError> {
    let result = answer.get_mut("results").and_then(|r| r.get_mut(0)).map(Value::take);
    let result =
        result.ok_or_else(|| ClientError::Strange("the batch has no result".to_owned()))?;
    match result.get("problem") {
        Some(problem) => Err(ClientError::Problem(Box::new(Problem::from_json(0, problem)))),
        None => Ok(result),
    }
}

/// `view`
pub(super) async fn view(args: &ViewArgs, term: &Term) -> CommandResult {
    let client = Client::new(&args.client)?;
    let mut options = Options::default();
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
    if term.json {
        term.value(&answer)?;
        return Ok(Exit::Done);
    }
    remarks(&answer, term);
    let tags = answer.get("tags").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if tags.is_empty() {
        term.note("no tags");
        return Ok(Exit::Done);
    }
    let cell = |tag: &Value, name: &str| {
        visible(tag.get(name).and_then(Value::as_str).unwrap_or_default())
    };
    let rows: Vec<Vec<String>> = tags
        .iter()
        .map(|t| vec![cell(t, "tag"), cell(t, "display"), cell(t, "added_by"), cell(t, "added_at")])
        .collect();
    term.line(table(&rows))?;
    Ok(Exit::Done)
}

/// `tag` and `untag`
pub(super) async fn change(args: &ApplyArgs, change: Change, term: &Term) -> CommandResult {
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
                    Options { body, headers, timeout: None },
                )
                .await?,
        )?
    } else {
        let body = Some(json!({"add": add, "remove": remove}).to_string().into_bytes());
        let options = Options { body, headers, timeout: None };
        client.call(Method::PATCH, &path(&args.content_type, &args.content_id), options).await?
    };
    if args.receipt {
        let receipt = answer.get("receipt").and_then(Value::as_str);
        term.line(receipt.ok_or_else(|| Failure::new("the answer has no receipt"))?)?;
    } else if term.json {
        term.value(&answer)?;
    } else {
        term.line(summary(&answer))?;
    }
    Ok(Exit::Done)
}

fn summary(answer: &Value) -> String {
    let names = |field: &str| -> Vec<String> {
        let list =
            answer.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(visible).collect()
    };
    let parts: Vec<String> = [("added", names("added")), ("removed", names("removed"))]
        .into_iter()
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
