//! `receipts check`: prints the verdict of each receipt in a file.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::args::ClientArgs;
use crate::error::{CliError, CommandResult, Exit};
use crate::http::{Client, Problem};
use crate::input::open_lines;
use crate::json::list;
use crate::progress::Progress;
use crate::terminal::{Terminal, table};

/// Receipts in one request: the most that a server takes unless it is configured otherwise.
const RECEIPTS_PER_REQUEST: usize = 500;
/// Requests in flight at the same time.
const PARALLEL_REQUESTS: usize = 4;

/// A receipt with the number of its line.
type NumberedReceipt = (usize, String);
/// What one request asks for, or why the input cannot be read.
type Batch = Result<Vec<NumberedReceipt>, CliError>;

/// Checks every receipt of a file, one a line; blank lines and lines that begin with # are skipped.
/// The file is read as it is checked, and may be longer than the memory.
pub(super) async fn check(file: &Path, args: &ClientArgs, terminal: &Terminal) -> CommandResult {
    let client = &Client::new(args)?;
    let name = file.display().to_string();
    let progress = Progress::new(terminal, "receipts", None);
    let mut batches = read_in_a_thread(file.to_owned(), name.clone())?;
    let mut answers = stream::poll_fn(move |context| batches.poll_recv(context))
        .map(|batch| async move { verdicts_of(client, batch?).await })
        .buffered(PARALLEL_REQUESTS);
    let mut counts = BTreeMap::<String, u64>::new();
    let (mut rows, mut checked) = (Vec::new(), 0);
    while let Some(answer) = answers.next().await {
        for (line, verdict) in answer? {
            checked += 1;
            *counts.entry(verdict.word.clone()).or_default() += 1;
            if terminal.json {
                rows.push(verdict.into_json(line));
            } else {
                let Verdict { word, reason, .. } = verdict;
                let reason = reason.map(|r| format!("({r})")).unwrap_or_default();
                terminal.line(table(&[vec![format!("line {line}"), word, reason]]).trim_end())?;
            }
        }
        progress.set(checked);
    }
    progress.finish();
    if checked == 0 {
        return Err(CliError::new(format!("{name} holds no receipt"))
            .hint("get one with: tagfast tag TYPE ID TAG --receipt >> receipts.txt"));
    }
    let summary = counts.iter().map(|(v, n)| format!("{n} {v}")).collect::<Vec<_>>().join(", ");
    if terminal.json {
        terminal.value(&json!({"items": rows, "counts": counts}))?;
    } else {
        terminal.note(summary);
    }
    // A repaired write is there again.
    let fine = counts.keys().all(|v| v == "kept" || v == "repaired");
    Ok(if fine { Exit::Done } else { Exit::Partly })
}

/// Reads in a thread that is not joined: it may wait for a pipe. It ends with its channel or with
/// the process.
fn read_in_a_thread(file: PathBuf, name: String) -> Result<mpsc::Receiver<Batch>, CliError> {
    let (batches, incoming) = mpsc::channel(1);
    let read = move || {
        let all = match open_lines(&file) {
            Ok(lines) => Batches { lines, name, line: 0 },
            Err(error) => return drop(batches.blocking_send(Err(error))),
        };
        for batch in all {
            if batches.blocking_send(batch).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("tagfast-receipts".to_owned()).spawn(read)?;
    Ok(incoming)
}

/// The receipts of an input, as many at a time as one request takes.
struct Batches {
    lines: Box<dyn BufRead + Send>,
    name: String,
    /// The line that was read last.
    line: usize,
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Self::Item> {
        let mut batch = Vec::new();
        let mut text = String::new();
        while batch.len() < RECEIPTS_PER_REQUEST {
            text.clear();
            match self.lines.read_line(&mut text) {
                Ok(0) => break,
                Ok(_) => self.line += 1,
                Err(error) => {
                    let failed = CliError::new(format!("cannot read {}", self.name));
                    return Some(Err(failed.with_source(error)));
                }
            }
            let receipt = text.trim();
            if !receipt.is_empty() && !receipt.starts_with('#') {
                batch.push((self.line, receipt.to_owned()));
            }
        }
        (!batch.is_empty()).then_some(Ok(batch))
    }
}

/// What the server says of one receipt.
struct Verdict {
    word: String,
    /// `None` = there is nothing to add.
    reason: Option<String>,
    answer: Value,
}

impl Verdict {
    fn into_json(self, line: usize) -> Value {
        let Self { word, reason, answer } = self;
        json!({"line": line, "verdict": word, "reason": reason, "answer": answer})
    }

    /// Reads one result of a batch. A receipt that cannot be read, or whose cluster does not
    /// answer, has a verdict too: the others are not affected.
    fn of(result: &Value) -> Result<Self, CliError> {
        let text = |name: &str| result.get(name).and_then(Value::as_str).map(str::to_owned);
        if let Some(problem) = result.get("problem") {
            let problem = Problem::from_json(0, problem);
            let word = if problem.code == "bad_token" { "unreadable" } else { "unanswered" };
            let reason = Some(problem.detail);
            return Ok(Self { word: word.to_owned(), reason, answer: Value::Null });
        }
        let word = text("verdict").ok_or_else(|| CliError::new("the answer has no verdict"))?;
        let reason = text("reason");
        let mut answer = result.clone();
        if let Some(fields) = answer.as_object_mut() {
            fields.remove("ok");
        }
        Ok(Self { word, reason, answer })
    }
}

/// Asks for the verdicts on a batch.
async fn verdicts_of(
    client: &Client,
    batch: Vec<NumberedReceipt>,
) -> Result<Vec<(usize, Verdict)>, CliError> {
    let receipts: Vec<&str> = batch.iter().map(|(_, receipt)| receipt.as_str()).collect();
    let answer = client.post("/v1/receipts:check", &json!({"receipts": receipts}), None).await?;
    let results = list(&answer, "results");
    if results.len() != batch.len() {
        return Err(CliError::new("the answer does not have one result per receipt"));
    }
    let lines = batch.iter().map(|(line, _)| *line);
    lines.zip(results).map(|(line, result)| Ok((line, Verdict::of(result)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_a_verdict_and_what_is_no_answer_an_error() {
        let of = |result: Value| Verdict::of(&result).map(|v| (v.word, v.reason));
        let with_reason = json!({"ok": true, "verdict": "lost", "reason": "limit"});
        assert_eq!(of(with_reason).unwrap(), ("lost".into(), Some("limit".into())));
        let plain = json!({"ok": true, "verdict": "kept"});
        assert_eq!(of(plain).unwrap(), ("kept".into(), None));
        for (code, word) in [("bad_token", "unreadable"), ("unavailable", "unanswered")] {
            let failed = json!({"ok": false, "problem": {"code": code, "detail": "why"}});
            assert_eq!(of(failed).unwrap(), (word.into(), Some("why".into())));
        }
        assert!(of(json!({"ok": true})).is_err());
    }

    #[test]
    fn an_input_is_read_in_batches_with_the_numbers_of_its_lines() {
        let mut text = String::from("# kept by a client\n\n  r0  \n");
        (1..=RECEIPTS_PER_REQUEST).for_each(|n| text.push_str(&format!("r{n}\n")));
        let batches = |text: String| {
            let lines = Box::new(std::io::Cursor::new(text.into_bytes()));
            Batches { lines, name: "x".to_owned(), line: 0 }.map(Result::unwrap).collect::<Vec<_>>()
        };
        let read = batches(text);
        assert_eq!(read.iter().map(Vec::len).collect::<Vec<_>>(), [RECEIPTS_PER_REQUEST, 1]);
        assert_eq!(read[0][0], (3, "r0".to_owned()));
        let last = RECEIPTS_PER_REQUEST;
        assert_eq!(read[1][0], (last + 3, format!("r{last}")));
        assert!(batches("\n# none\n".to_owned()).is_empty());
    }
}
