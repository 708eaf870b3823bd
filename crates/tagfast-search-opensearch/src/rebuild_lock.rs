//! Lock that allows one rebuild at a time among all processes: a document that is written with
//! compare-and-set and carries an expiry time.
//!
//! How it fails: a holder that does not renew the lock for a minute loses it; its rebuild notices
//! and ends without switching. If clocks differ by more than a minute, two rebuilds may run; one
//! fails when its index is gone.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tagfast_domain::UnixMillis;
use tagfast_resilience::ErrorChain;

use crate::client::Client;
use crate::error::RequestError;

/// How long the lock is valid without renewal, in ms.
const LOCK_TTL_MS: i64 = 60_000;

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
    #[error("another process rebuilds the index; this one waits for its turn")]
    Busy,
    /// The request failed.
    #[error("the rebuild lock cannot be acquired")]
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
        json!({"owner": owner, "until": now + LOCK_TTL_MS})
    }

    /// Acquires the lock for `owner`, the unique name of this process; `now` is in Unix ms.
    pub(crate) async fn acquire(
        client: &Client,
        owner: &str,
        now: UnixMillis,
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
            // The index exists already.
            Err(error) if error.is(StatusCode::BAD_REQUEST) => {}
            Err(error) => return Err(error.into()),
        }
        let path = format!("{index}/_doc/rebuild");
        let condition = match client.get(&path).await {
            Ok(known) => {
                let until = known["_source"]["until"].as_i64().unwrap_or(0);
                if until > now && known["_source"]["owner"] != owner {
                    return Err(LockError::Busy);
                }
                let (number, term) = sequence(&known)?;
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
