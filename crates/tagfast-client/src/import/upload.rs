//! Uploads batches: retries what can succeed later, halves a batch that the server refuses as a
//! whole, and reports the lines that stay bad.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tagfast_resilience::Backoff;

use super::ledger::{BadLine, SendSummary};
use super::reader::ImportEntry;
use crate::error::CliError;
use crate::http::{Client, ClientError, Problem, RequestOptions, problem_of};

/// Hexadecimal digits of a body's hash in its idempotency key.
const KEY_HASH_DIGITS: usize = 32;

/// Uploads the batches of one import.
#[derive(Clone)]
pub(super) struct Uploader {
    client: Client,
    run: String,
    backoff: Backoff,
    /// Attempts beyond the first of each request, of all batches.
    retries: Arc<AtomicU64>,
}

#[derive(Deserialize)]
struct Answer {
    results: Vec<ItemResult>,
}

#[derive(Deserialize)]
struct ItemResult {
    ok: bool,
    #[serde(default)]
    added: Vec<serde::de::IgnoredAny>,
    #[serde(default)]
    problem: Option<serde_json::Value>,
}

impl Uploader {
    /// An uploader of the import with the id `run`.
    pub(super) fn new(client: Client, run: &str, retries: u32) -> Self {
        let backoff = Backoff {
            retries,
            base: Duration::from_millis(200),
            factor: 2,
            cap: Duration::from_secs(10),
        };
        Self { client, run: run.to_owned(), backoff, retries: Arc::default() }
    }

    /// Attempts beyond the first of each request so far.
    pub(super) fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Sends the lines until each is acknowledged or finally refused.
    ///
    /// # Errors
    /// No retry is left, or the server's answer cannot be understood.
    pub(super) async fn send(&self, entries: Vec<ImportEntry>) -> Result<SendSummary, CliError> {
        let mut sent = SendSummary::default();
        let mut todo = vec![entries];
        while let Some(entries) = todo.pop() {
            if entries.is_empty() {
                continue;
            }
            match self.send_until_answered(&entries).await? {
                Outcome::Answered(results) => count(&mut sent, &entries, &results),
                Outcome::Refused(problem) => match entries.as_slice() {
                    [one] => sent.bad.push(BadLine { line: one.line, reason: reason(&problem) }),
                    _ => {
                        let (first, second) = entries.split_at(entries.len() / 2);
                        todo.push(second.to_vec());
                        todo.push(first.to_vec());
                    }
                },
            }
        }
        sent.bad.sort();
        Ok(sent)
    }

    /// Sends one body until it is answered. Every attempt carries the same idempotency key, so that
    /// repeating an attempt whose answer was lost has no second effect. An import that resumes
    /// makes the same bodies of the same lines, with the same keys. The first line is a part of
    /// the key: equal lines elsewhere in the file are writes of their own.
    async fn send_until_answered(&self, entries: &[ImportEntry]) -> Result<Outcome, CliError> {
        let body = body(entries);
        let first = entries.first().map_or(0, |e| e.line);
        let hash = &hex::encode(Sha256::digest(&body))[..KEY_HASH_DIGITS];
        let key = format!("{}-{first}-{hash}", self.run);
        for attempt in 0.. {
            let error = match self.attempt(body.clone(), &key).await {
                Ok(results) if results.len() == entries.len() => match first_retryable(&results) {
                    None => return Ok(Outcome::Answered(results)),
                    Some(problem) => ClientError::Problem(Box::new(problem)),
                },
                Ok(_) => {
                    return Err(CliError::new(
                        "the server's answer has a different number of results than the batch",
                    ));
                }
                Err(ClientError::Problem(problem)) if splits(&problem) => {
                    return Ok(Outcome::Refused(*problem));
                }
                Err(error) => error,
            };
            let delay =
                self.backoff.delay(attempt, fastrand::f64()).filter(|_| error.is_retryable());
            let Some(delay) = delay else { return Err(error.into()) };
            self.retries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(delay.max(error.retry_after().unwrap_or_default())).await;
        }
        Err(CliError::new("no attempts are left"))
    }

    async fn attempt(&self, body: Vec<u8>, key: &str) -> Result<Vec<ItemResult>, ClientError> {
        let options = RequestOptions {
            body: Some(body),
            headers: vec![("idempotency-key", key.to_owned())],
            timeout: None,
        };
        let response = self.client.send(Method::POST, "/v1/content:batchTag", options).await?;
        if !response.status().is_success() {
            return Err(problem_of(response).await);
        }
        let bytes = response.bytes().await.map_err(|e| self.client.classify(e))?;
        let answer: Answer = tagfast_json::from_slice(&bytes).map_err(|source| {
            ClientError::NotJson { context: "the answer to a batch cannot be read", source }
        })?;
        Ok(answer.results)
    }
}

enum Outcome {
    Answered(Vec<ItemResult>),
    Refused(Problem),
}

fn body(entries: &[ImportEntry]) -> Vec<u8> {
    let mut body = Vec::with_capacity(entries.iter().map(|e| e.item.len() + 1).sum::<usize>() + 16);
    body.extend_from_slice(b"{\"items\":[");
    for (i, entry) in entries.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&entry.item);
    }
    body.extend_from_slice(b"]}");
    body
}

/// Whether the server may accept a part of the batch: an item is wrong, or the body is too large.
fn splits(problem: &Problem) -> bool {
    matches!(problem.status, 400 | 413 | 422)
}

fn first_retryable(results: &[ItemResult]) -> Option<Problem> {
    let problem = |r: &ItemResult| {
        Some(Problem::from_json(0, r.problem.as_ref()?)).filter(Problem::is_retryable)
    };
    results.iter().find_map(problem)
}

fn count(sent: &mut SendSummary, entries: &[ImportEntry], results: &[ItemResult]) {
    for (entry, result) in entries.iter().zip(results) {
        if result.ok {
            sent.contents += 1;
            sent.taggings += entry.tags as u64;
            sent.added += result.added.len() as u64;
        } else {
            let problem =
                result.problem.as_ref().map(|p| Problem::from_json(0, p)).unwrap_or_default();
            sent.bad.push(BadLine { line: entry.line, reason: reason(&problem) });
        }
    }
}

/// Detail and code of a refusal; the trace id of a single line is left out.
fn reason(problem: &Problem) -> String {
    if problem.code.is_empty() {
        problem.detail.clone()
    } else {
        format!("{} ({})", problem.detail, problem.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(line: u64) -> ImportEntry {
        let item = format!("{{\"id\":{line}}}").into_bytes();
        ImportEntry { line, item, tags: 2, content: line }
    }

    #[test]
    fn bodies_are_json() {
        assert_eq!(body(&[entry(1), entry(2)]), br#"{"items":[{"id":1},{"id":2}]}"#);
    }

    #[test]
    fn results_are_counted_by_line() {
        let results: Answer = serde_json::from_str(
            r#"{"results":[{"ok":true,"added":["a"],"version":"1"},
                {"ok":false,"problem":{"status":422,"code":"empty","detail":"tag is empty"}}]}"#,
        )
        .unwrap();
        let mut sent = SendSummary::default();
        count(&mut sent, &[entry(8), entry(9)], &results.results);
        assert_eq!((sent.contents, sent.taggings, sent.added), (1, 2, 1));
        let reason = "tag is empty (empty)".to_owned();
        assert_eq!(sent.bad, [BadLine { line: 9, reason }]);
        assert!(first_retryable(&results.results).is_none());
    }

    #[test]
    fn an_item_that_can_succeed_later_makes_the_batch_repeat() {
        let results: Answer = serde_json::from_str(
            r#"{"results":[{"ok":false,"problem":{"status":503,"retry_after_ms":40}}]}"#,
        )
        .unwrap();
        assert_eq!(
            first_retryable(&results.results).unwrap().retry_after,
            Some(Duration::from_millis(40))
        );
    }
}
