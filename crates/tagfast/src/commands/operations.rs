//! Commands for operators: rebuilding, counting, and what only the cluster mode has.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::{ClientArgs, FailoversArgs, RecountArgs, ReindexArgs};
use crate::client::{Client, Options};
use crate::failure::{CommandResult, Exit, Failure};
use crate::progress::Progress;
use crate::term::{Term, table};

/// How long a rebuild may take before the client gives up waiting; the server goes on.
const LONG: Duration = Duration::from_secs(24 * 3600);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Waits for a long call while showing the progress that `/v1/status` tells of it.
async fn long_call(
    client: &Client,
    operation: &str,
    path: &str,
    body: &Value,
    term: &Term,
) -> Result<Value, Failure> {
    let mut progress = Progress::new(term, operation, None);
    let call = client.post(path, body, Some(LONG));
    tokio::pin!(call);
    let mut tick = tokio::time::interval(PROGRESS_EVERY);
    loop {
        tokio::select! {
            answer = &mut call => return Ok(answer?),
            _ = tick.tick() => {
                let Ok(status) = client.get("/v1/status").await else { continue };
                let running = status.get("running").and_then(Value::as_array);
                let mine = running.into_iter().flatten().find(|r| r.get("operation").and_then(Value::as_str) == Some(operation));
                if let Some(done) = mine.and_then(|r| r.get("contents")).and_then(Value::as_u64) {
                    if let Some(total) = status.get("indexed_contents").and_then(Value::as_u64).filter(|t| *t >= done) {
                        progress.set_total(total);
                    }
                    progress.set(done);
                }
            }
        }
    }
}

/// `reindex`
pub(super) async fn reindex(args: &ReindexArgs, term: &Term) -> CommandResult {
    let client = Client::new(&args.client)?;
    let answer = long_call(&client, "reindex", "/v1/admin/reindex", &json!({}), term).await?;
    if term.json {
        term.value(&answer)?;
    } else {
        let contents = answer.get("contents").and_then(Value::as_u64).unwrap_or(0);
        term.line(format_args!("the index was rebuilt from {contents} contents"))?;
    }
    Ok(Exit::Done)
}

/// `recount`: exit code 3 when drift was found and not repaired.
pub(super) async fn recount(args: &RecountArgs, term: &Term) -> CommandResult {
    let client = Client::new(&args.client)?;
    let body = json!({"repair": args.repair});
    let answer = long_call(&client, "recount", "/v1/admin/recount", &body, term).await?;
    let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    let drifted = number("drifted_contents") + number("drifted_counts") > 0;
    let repaired = answer.get("repaired").and_then(Value::as_bool).unwrap_or(false);
    if term.json {
        term.value(&answer)?;
    } else {
        term.line(recount_text(&answer, drifted, repaired))?;
        if drifted && !repaired {
            term.note("hint: `tagfast recount --repair` mends it while writes go on");
        }
    }
    Ok(if drifted && !repaired { Exit::Partly } else { Exit::Done })
}

fn recount_text(answer: &Value, drifted: bool, repaired: bool) -> String {
    let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    if !drifted {
        return format!("{} contents compared, no drift", number("contents"));
    }
    let mut text = format!(
        "{} contents compared: {} contents and {} counts had drifted{}",
        number("contents"),
        number("drifted_contents"),
        number("drifted_counts"),
        if repaired { "; repaired" } else { "" }
    );
    let rows: Vec<Vec<String>> = answer
        .get("rows")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|row| {
            let cell = |name: &str| {
                row.get(name)
                    .map(|v| v.as_str().map_or_else(|| v.to_string(), crate::term::visible))
            };
            let cell = |name| cell(name).unwrap_or_default();
            vec![
                cell("tag"),
                format!("counted {}", cell("counted")),
                format!("true {}", cell("true")),
            ]
        })
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&table(&rows));
    }
    text
}

/// Calls and prints the answer as it is.
async fn plain(
    args: &ClientArgs,
    method: Method,
    path: &str,
    body: Option<Value>,
    term: &Term,
) -> CommandResult {
    let client = Client::new(args)?;
    let body = body.map(|b| b.to_string().into_bytes());
    let answer = client.call(method, path, Options { body, ..Options::default() }).await?;
    term.value(&answer)?;
    Ok(Exit::Done)
}

/// `failovers`
pub(super) async fn failovers(args: &FailoversArgs, term: &Term) -> CommandResult {
    plain(&args.client, Method::GET, "/v1/failovers", None, term).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recounts_list_the_drift() {
        let answer = json!({"contents": 10, "drifted_contents": 1, "drifted_counts": 2,
            "rows": [{"tenant": "default", "tag": "ui", "counted": 3, "true": 4}]});
        let text = recount_text(&answer, true, false);
        assert!(
            text.contains("1 contents and 2 counts had drifted")
                && text.contains("ui  counted 3  true 4"),
            "{text}"
        );
        assert_eq!(recount_text(&answer, false, false), "10 contents compared, no drift");
    }
}
