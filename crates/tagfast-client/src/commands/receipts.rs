//! `receipts check`: prints the verdict of each receipt in a file.

use std::path::Path;

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use crate::args::ClientArgs;
use crate::error::{CliError, CommandResult, Exit};
use crate::http::{Client, ClientError, encode};
use crate::input::open_lines;
use crate::terminal::{Terminal, table};

/// Requests in flight at the same time.
const PARALLEL_REQUESTS: usize = 16;

/// Checks every receipt of a file, one a line; blank lines and lines that begin with # are skipped.
pub(super) async fn check(file: &Path, args: &ClientArgs, terminal: &Terminal) -> CommandResult {
    let client = Client::new(args)?;
    let name = file.display();
    let mut receipts = Vec::new();
    for (index, line) in std::io::BufRead::lines(open_lines(file)?).enumerate() {
        let line = line.map_err(|e| CliError::new(format!("cannot read {name}")).with_source(e))?;
        let receipt = line.trim();
        if !receipt.is_empty() && !receipt.starts_with('#') {
            receipts.push((index + 1, receipt.to_owned()));
        }
    }
    if receipts.is_empty() {
        return Err(CliError::new(format!("{name} holds no receipt"))
            .hint("get one with: tagfast tag TYPE ID TAG --receipt >> receipts.txt"));
    }
    let client = &client;
    let mut answers = stream::iter(receipts)
        .map(|(line, receipt)| async move {
            (line, client.get(&format!("/v1/receipts/{}", encode(&receipt))).await)
        })
        .buffered(PARALLEL_REQUESTS);
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    let mut rows = Vec::new();
    while let Some((line, answer)) = answers.next().await {
        let (verdict, reason, answer) = verdict_of(answer)?;
        *counts.entry(verdict.clone()).or_default() += 1;
        if terminal.json {
            rows.push(
                json!({"line": line, "verdict": verdict, "reason": reason, "answer": answer}),
            );
        } else {
            let reason = reason.map(|r| format!("({r})")).unwrap_or_default();
            terminal.line(table(&[vec![format!("line {line}"), verdict, reason]]).trim_end())?;
        }
    }
    let summary = counts.iter().map(|(v, n)| format!("{n} {v}")).collect::<Vec<_>>().join(", ");
    if terminal.json {
        terminal.value(&json!({"items": rows, "counts": counts}))?;
    } else {
        terminal.note(summary);
    }
    // The server does not answer `repaired` yet; it will mean that the write is there again.
    let fine = counts.keys().all(|v| v == "kept" || v == "repaired");
    Ok(if fine { Exit::Done } else { Exit::Partly })
}

/// The verdict of one answer, with its reason. An unreadable receipt is a verdict too; a server
/// that cannot answer is an error.
fn verdict_of(
    answer: Result<Value, ClientError>,
) -> Result<(String, Option<String>, Value), CliError> {
    match answer {
        Ok(answer) => {
            let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
            let verdict =
                text("verdict").ok_or_else(|| CliError::new("the answer has no verdict"))?;
            Ok((verdict, text("reason"), answer))
        }
        Err(ClientError::Problem(problem)) if problem.code == "bad_token" => {
            Ok(("unreadable".to_owned(), Some(problem.detail), Value::Null))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Problem;

    #[test]
    fn unreadable_receipts_are_verdicts_and_outages_are_errors() {
        let (verdict, reason, _) =
            verdict_of(Ok(json!({"verdict": "unknown", "reason": "expired"}))).unwrap();
        assert_eq!((verdict.as_str(), reason.as_deref()), ("unknown", Some("expired")));
        let problem = |status, code: &str| {
            ClientError::Problem(Box::new(Problem {
                status,
                code: code.to_owned(),
                ..Problem::default()
            }))
        };
        assert_eq!(verdict_of(Err(problem(400, "bad_token"))).unwrap().0, "unreadable");
        assert!(verdict_of(Err(problem(503, "unavailable"))).is_err());
    }
}
