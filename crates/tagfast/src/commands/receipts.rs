//! `receipts check`: what became of past writes.

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use crate::cli::ClientArgs;
use crate::client::{Client, ClientError, encode};
use crate::failure::{CommandResult, Exit, Failure};
use crate::term::{Term, table};
use crate::transfer::open_lines;

/// Questions at the same time.
const PARALLEL: usize = 16;

/// Checks every receipt of a file, one a line; blank lines and lines that begin with # are skipped.
pub(super) async fn check(file: &str, args: &ClientArgs, term: &Term) -> CommandResult {
    let client = Client::new(args)?;
    let mut receipts = Vec::new();
    for (index, line) in std::io::BufRead::lines(open_lines(file)?).enumerate() {
        let line = line.map_err(|e| Failure::new(format!("cannot read {file}: {e}")))?;
        let receipt = line.trim();
        if !receipt.is_empty() && !receipt.starts_with('#') {
            receipts.push((index + 1, receipt.to_owned()));
        }
    }
    if receipts.is_empty() {
        return Err(Failure::new(format!("{file} holds no receipt"))
            .hint("get one with: tagfast tag TYPE ID TAG --receipt >> receipts.txt"));
    }
    let client = &client;
    let mut answers = stream::iter(receipts)
        .map(|(line, receipt)| async move {
            (line, client.get(&format!("/v1/receipts/{}", encode(&receipt))).await)
        })
        .buffered(PARALLEL);
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    let mut rows = Vec::new();
    while let Some((line, answer)) = answers.next().await {
        let (verdict, reason, answer) = judge(answer)?;
        *counts.entry(verdict.clone()).or_default() += 1;
        if term.json {
            rows.push(
                json!({"line": line, "verdict": verdict, "reason": reason, "answer": answer}),
            );
        } else {
            let reason = reason.map(|r| format!("({r})")).unwrap_or_default();
            term.line(table(&[vec![format!("line {line}"), verdict, reason]]).trim_end())?;
        }
    }
    let summary = counts.iter().map(|(v, n)| format!("{n} {v}")).collect::<Vec<_>>().join(", ");
    if term.json {
        term.value(&json!({"items": rows, "counts": counts}))?;
    } else {
        term.note(summary);
    }
    let fine = counts.keys().all(|v| v == "kept" || v == "repaired");
    Ok(if fine { Exit::Done } else { Exit::Partly })
}

/// The verdict of one answer; a receipt that is none is a verdict too, a server that cannot answer
/// is not.
fn judge(answer: Result<Value, ClientError>) -> Result<(String, Option<String>, Value), Failure> {
    match answer {
        Ok(answer) => {
            let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
            let verdict =
                text("verdict").ok_or_else(|| Failure::new("the answer has no verdict"))?;
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
    use crate::client::Problem;

    #[test]
    fn verdicts_and_unreadable_receipts_are_answers_outages_are_not() {
        let (verdict, reason, _) =
            judge(Ok(json!({"verdict": "unknown", "reason": "expired"}))).unwrap();
        assert_eq!((verdict.as_str(), reason.as_deref()), ("unknown", Some("expired")));
        let problem = |status, code: &str| {
            ClientError::Problem(Box::new(Problem {
                status,
                code: code.to_owned(),
                ..Problem::default()
            }))
        };
        assert_eq!(judge(Err(problem(400, "bad_token"))).unwrap().0, "unreadable");
        assert!(judge(Err(problem(503, "unavailable"))).is_err());
    }
}
