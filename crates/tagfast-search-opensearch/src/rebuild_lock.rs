//! Lock that allows one rebuild at a time among all processes: a document that is written with
//! compare-and-set and carries an expiry time.
//!
//! How it fails: a holder that does not renew the lock for a minute loses it; its rebuild notices
//! and ends without switching. The same happens when the lock's index is deleted, closed or made
//! read-only. If clocks differ by more than a minute, two rebuilds may run; one fails when its
//! index is gone. A lock that expires in a far future is taken over once it has not changed for a
//! minute of this process's time.

use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tagfast_domain::UnixMillis;
use tagfast_resilience::ErrorChain;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::RequestError;

/// How long the lock is valid without renewal.
const LOCK_TTL: Duration = Duration::from_secs(60);

/// OpenSearch's word for an index that exists already.
const ALREADY_EXISTS: &str = "resource_already_exists_exception";

/// The state of a lock that a different process holds, and when this process saw it first.
#[derive(Debug, Default)]
pub(crate) struct LockSeen(Mutex<Option<((u64, u64), Instant)>>);

impl LockSeen {
    /// Whether the lock has stayed as it is for longer than it is valid.
    fn is_stale(&self, sequence: (u64, u64)) -> bool {
        let mut seen = self.0.lock();
        match &*seen {
            Some((known, since)) if *known == sequence => since.elapsed() > LOCK_TTL,
            Some(_) | None => {
                *seen = Some((sequence, Instant::now()));
                false
            }
        }
    }
}

/// The lock, held by this process.
pub(crate) struct RebuildLock {
    path: String,
    owner: String,
    /// Sequence number and primary term of the document, which the next write compares.
    sequence: (u64, u64),
}

/// Why the lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another process holds it.
    #[error("another process rebuilds the index")]
    Busy,
    /// The request failed.
    #[error("the rebuild lock cannot be acquired; its index holds nothing else and may be deleted")]
    Request(#[from] RequestError),
}

fn sequence(response: &Value) -> Result<(u64, u64), RequestError> {
    response["_seq_no"]
        .as_u64()
        .zip(response["_primary_term"].as_u64())
        .ok_or_else(|| RequestError::BadResponse("a document without sequence number".to_owned()))
}

impl RebuildLock {
    fn document(owner: &str, now: UnixMillis) -> Value {
        json!({"owner": owner, "until": now + LOCK_TTL.as_millis() as i64})
    }

    /// Acquires the lock for `owner`, the unique name of this process; `now` is in Unix ms.
    pub(crate) async fn acquire(
        client: &Client,
        owner: &str,
        now: UnixMillis,
        seen: &LockSeen,
    ) -> Result<Self, LockError> {
        let index = format!("{}-lock", client.options.alias);
        let definition = json!({
            "settings": {"number_of_shards": 1},
            "mappings": {"dynamic": "strict", "properties": {
                "owner": {"type": "keyword"}, "until": {"type": "long"},
            }},
        });
        match client.write(Method::PUT, &index, Some(&definition)).await {
            Ok(_) => {}
            Err(RequestError::Rejected { kind, .. }) if kind == ALREADY_EXISTS => {}
            Err(error) => return Err(error.into()),
        }
        let path = format!("{index}/_doc/rebuild");
        let condition = match client.get(&path).await {
            Ok(known) => {
                let until = known["_source"]["until"].as_i64().unwrap_or(0);
                let (number, term) = sequence(&known)?;
                let is_held = until > now && known["_source"]["owner"] != owner;
                if is_held && !seen.is_stale((number, term)) {
                    return Err(LockError::Busy);
                }
                format!("if_seq_no={number}&if_primary_term={term}")
            }
            Err(error) if error.is(StatusCode::NOT_FOUND) => "op_type=create".to_owned(),
            Err(error) => return Err(error.into()),
        };
        let write = client
            .write(Method::PUT, &format!("{path}?{condition}"), Some(&Self::document(owner, now)))
            .await;
        match write {
            Ok(response) => {
                Ok(Self { path, owner: owner.to_owned(), sequence: sequence(&response)? })
            }
            Err(error) if error.is(StatusCode::CONFLICT) => Err(LockError::Busy),
            Err(error) => Err(error.into()),
        }
    }

    /// Extends the lock. An error may mean that another process holds it now.
    pub(crate) async fn renew(
        &mut self,
        client: &Client,
        now: UnixMillis,
    ) -> Result<(), RequestError> {
        let (number, term) = self.sequence;
        let path = format!("{}?if_seq_no={number}&if_primary_term={term}", self.path);
        let response =
            client.write(Method::PUT, &path, Some(&Self::document(&self.owner, now))).await?;
        self.sequence = sequence(&response)?;
        Ok(())
    }

    /// Releases the lock if this process still holds it. If the request fails, the lock expires.
    pub(crate) async fn release(self, client: &Client) {
        let (number, term) = self.sequence;
        let path = format!("{}?if_seq_no={number}&if_primary_term={term}", self.path);
        if let Err(error) = client.write(Method::DELETE, &path, None).await {
            let error = ErrorChain(&error);
            tracing::debug!(%error, "the rebuild lock was not released; it expires");
        }
    }
}
