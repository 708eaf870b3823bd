//! Sends batches: retries what can succeed later, halves what is refused as a whole, reports what
//! stays bad.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tagfast_resilience::{Backoff, chance};

use super::reader::Entry;
use super::state::hex;
use crate::client::{Client, ClientError, Options, Problem, problem_of};
use crate::failure::Failure;

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Sent {
    /// Contents written.
    pub contents: u64,
    /// Taggings that are acknowledged.
    pub taggings: u64,
    /// Of those, new ones.
    pub added: u64,
    /// Lines that the server refused, with its reasons.
    pub bad: Vec<(u64, String)>,
    /// Attempts beyond the first.
    pub retries: u64,
}

/// Sends batches of one import.
#[derive(Clone)]
pub struct Sender {
    client: Client,
    run: String,
    backoff: Backoff,
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

impl Sender {
    /// Of the import called `run`.
    pub fn new(client: Client, run: &str, retries: u32) -> Self {
        let backoff = Backoff {
            retries,
            base: Duration::from_millis(200),
            factor: 2,
            cap: Duration::from_secs(10),
        };
        Self { client, run: run.to_owned(), backoff }
    }

    /// Sends the lines until each is acknowledged or refused for good.
    pub async fn send(&self, entries: Vec<Entry>) -> Result<Sent, Failure> {
        let mut sent = Sent::default();
        let mut todo = vec![entries];
        while let Some(entries) = todo.pop() {
            if entries.is_empty() {
                continue;
            }
            match self.until_answered(&entries, &mut sent.retries).await? {
                Outcome::Answered(results) => count(&mut sent, &entries, &results),
                Outcome::Refused(problem) => match entries.as_slice() {
                    [one] => sent.bad.push((one.line, reason(&problem))),
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

    /// One body, sent until it is answered; with one key, so that an attempt whose answer was lost
    /// has no second effect.
    async fn until_answered(
        &self,
        entries: &[Entry],
        retries: &mut u64,
    ) -> Result<Outcome, Failure> {
        let body = body(entries);
        let key = format!("{}-{}", self.run, &hex(&Sha256::digest(&body))[..32]);
        for attempt in 0.. {
            let error = match self.attempt(body.clone(), &key).await {
                Ok(results) if results.len() == entries.len() => match first_retryable(&results) {
                    None => return Ok(Outcome::Answered(results)),
                    Some(problem) => ClientError::Problem(Box::new(problem)),
                },
                Ok(_) => {
                    return Err(Failure::new(
                        "the server answered with another number of results than items",
                    ));
                }
                Err(ClientError::Problem(problem)) if splits(&problem) => {
                    return Ok(Outcome::Refused(*problem));
                }
                Err(error) => error,
            };
            let delay = self.backoff.delay(attempt, chance()).filter(|_| error.is_retryable());
            let Some(delay) = delay else { return Err(error.into()) };
            *retries += 1;
            tokio::time::sleep(delay.max(error.retry_after().unwrap_or_default())).await;
        }
        Err(Failure::new("no attempts are left"))
    }

    async fn attempt(&self, body: Vec<u8>, key: &str) -> Result<Vec<ItemResult>, ClientError> {
        let options = Options {
            body: Some(body),
            headers: vec![("idempotency-key", key.to_owned())],
            timeout: None,
        };
        let response = self.client.send(Method::POST, "/v1/content:batchTag", options).await?;
        if !response.status().is_success() {
            return Err(problem_of(response).await);
        }
        let bytes = response.bytes().await.map_err(|e| self.client.error(&e))?;
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|e| {
            ClientError::Strange(format!("the answer to a batch cannot be read: {e}"))
        })?;
        Ok(answer.results)
    }
}

enum Outcome {
    Answered(Vec<ItemResult>),
    Refused(Problem),
}

fn body(entries: &[Entry]) -> Vec<u8> {
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

/// Whether a smaller batch may be taken where this one was not: something in it is wrong, or it is
/// too large.
fn splits(problem: &Problem) -> bool {
    matches!(problem.status, 400 | 413 | 422)
}

fn first_retryable(results: &[ItemResult]) -> Option<Problem> {
    let problem = |r: &ItemResult| {
        Some(Problem::from_json(0, r.problem.as_ref()?)).filter(Problem::is_retryable)
    };
    results.iter().find_map(problem)
}

fn count(sent: &mut Sent, entries: &[Entry], results: &[ItemResult]) {
    for (entry, result) in entries.iter().zip(results) {
        if result.ok {
            sent.contents += 1;
            sent.taggings += entry.tags as u64;
            sent.added += result.added.len() as u64;
        } else {
            let problem =
                result.problem.as_ref().map(|p| Problem::from_json(0, p)).unwrap_or_default();
            sent.bad.push((entry.line, reason(&problem)));
        }
    }
}

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

    fn entry(line: u64) -> Entry {
        Entry { line, item: format!("{{\"id\":{line}}}").into_bytes(), tags: 2 }
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
        let mut sent = Sent::default();
        count(&mut sent, &[entry(8), entry(9)], &results.results);
        assert_eq!((sent.contents, sent.taggings, sent.added), (1, 2, 1));
        assert_eq!(sent.bad, [(9, "tag is empty (empty)".to_owned())]);
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
