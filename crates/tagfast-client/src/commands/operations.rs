//! Commands for operators: `reindex` and `recount`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::args::{RecountArgs, ReindexArgs};
use crate::error::{CliError, CommandResult, Exit};
use crate::http::Client;
use crate::json::{self, number, text};
use crate::progress::Progress;
use crate::terminal::{Terminal, table};

/// How long the client waits for a rebuild; the server goes on after it.
const REBUILD_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Time between two requests for the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Waits for a long call while showing its progress from `/v1/status`.
async fn long_call(
    client: &Client,
    operation: &str,
    path: &str,
    body: &Value,
    terminal: &Terminal,
) -> Result<Value, CliError> {
    let mut progress = Progress::new(terminal, operation, None);
    let call = client.post(path, body, Some(REBUILD_TIMEOUT));
    tokio::pin!(call);
    let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
    loop {
        tokio::select! {
            answer = &mut call => return Ok(answer?),
            _ = tick.tick() => {
                let Ok(status) = client.get("/v1/status").await else { continue };
                if let Some((done, total)) = progress_of(&status, operation) {
                    let indexed = status.get("indexed_contents").and_then(Value::as_u64);
                    if let Some(total) = total.or(indexed).filter(|total| *total >= done) {
                        progress.set_total(total);
                    }
                    progress.set(done);
                }
            }
        }
    }
}

/// Contents that a running operation has done, and of how many if it says so; `None` = it does not
/// run.
fn progress_of(status: &Value, operation: &str) -> Option<(u64, Option<u64>)> {
    let mut running = json::list(status, "running").iter();
    let running = running.find(|r| text(r, "operation") == operation)?;
    let done = running.get("contents")?.as_u64()?;
    Some((done, running.get("total").and_then(Value::as_u64)))
}

/// `reindex`
pub(super) async fn reindex(args: &ReindexArgs, terminal: &Terminal) -> CommandResult {
    let client = Client::new(&args.client)?;
    let answer = long_call(&client, "reindex", "/v1/admin/reindex", &json!({}), terminal).await?;
    if terminal.json {
        terminal.value(&answer)?;
    } else {
        let contents = number(&answer, "contents");
        terminal.line(format_args!("the index was rebuilt from {contents} contents"))?;
    }
    Ok(Exit::Done)
}

/// `recount`: exit code 3 when drift was found and not repaired.
pub(super) async fn recount(args: &RecountArgs, terminal: &Terminal) -> CommandResult {
    let client = Client::new(&args.client)?;
    let body = json!({"repair": args.repair});
    let answer = long_call(&client, "recount", "/v1/admin/recount", &body, terminal).await?;
    let drifted = number(&answer, "drifted_contents") + number(&answer, "drifted_counts") > 0;
    let repaired = answer.get("repaired").and_then(Value::as_bool).unwrap_or(false);
    if terminal.json {
        terminal.value(&answer)?;
    } else {
        terminal.line(recount_text(&answer, drifted, repaired))?;
        if drifted && !repaired {
            terminal.note("hint: `tagfast recount --repair` repairs them while writes go on");
        }
    }
    Ok(if drifted && !repaired { Exit::Partly } else { Exit::Done })
}

fn recount_text(answer: &Value, drifted: bool, repaired: bool) -> String {
    let number = |name: &str| number(answer, name);
    if !drifted {
        return format!("{} contents compared, no drift", number("contents"));
    }
    let mut shown = format!(
        "{} contents compared: {} contents and {} counts had drifted{}",
        number("contents"),
        number("drifted_contents"),
        number("drifted_counts"),
        if repaired { "; repaired" } else { "" }
    );
    let rows: Vec<Vec<String>> = json::list(answer, "rows")
        .iter()
        .map(|row| {
            let cell = |name: &str| text(row, name);
            let (counted, correct) = (cell("counted"), cell("true"));
            vec![cell("tag"), format!("counted {counted}"), format!("true {correct}")]
        })
        .collect();
    if !rows.is_empty() {
        shown.push('\n');
        shown.push_str(&table(&rows));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_of_an_operation_has_its_own_total() {
        let status = json!({"indexed_contents": 9, "running": [
            {"operation": "reindex", "contents": 3},
            {"operation": "recount", "contents": 5, "total": 7}]});
        assert_eq!(progress_of(&status, "reindex"), Some((3, None)));
        assert_eq!(progress_of(&status, "recount"), Some((5, Some(7))));
        assert_eq!(progress_of(&json!({"running": []}), "recount"), None);
    }

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
