//! One rebuild at a time, whoever runs it: a document that is written by comparison, with a time at
//! which it is nobody's any more.
//!
//! How it fails: who holds it and says nothing for a minute has lost it; a rebuild that finds out
//! ends without switching. Clocks that differ by more than that make two rebuilds possible, of
//! which one fails when its index is gone.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tagfast_domain::UnixMillis;

use super::client::{Client, Failure};

/// How long it is held without a word.
const HELD_MS: i64 = 60_000;

/// The lock, held.
pub(super) struct Lock {
    path: String,
    owner: String,
    /// The document's place in the order of writes: the next write compares it.
    sequence: (u64, u64),
}

/// Why it was not taken.
pub(super) enum NotTaken {
    /// Somebody else rebuilds.
    Busy,
    /// Nobody could be asked.
    Failed(Failure),
}

impl From<Failure> for NotTaken {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn is(failure: &Failure, status: StatusCode) -> bool {
    failure.status() == Some(status)
}

fn sequence(answer: &Value) -> Result<(u64, u64), Failure> {
    answer["_seq_no"]
        .as_u64()
        .zip(answer["_primary_term"].as_u64())
        .ok_or_else(|| Failure::Odd("a document without a place".to_owned()))
}

impl Lock {
    fn document(owner: &str, now: UnixMillis) -> Value {
        json!({"owner": owner, "until": now + HELD_MS})
    }

    /// Takes it for this owner, a name that nobody else has.
    pub(super) async fn take(
        client: &Client,
        owner: &str,
        now: UnixMillis,
    ) -> Result<Self, NotTaken> {
        let index = format!("{}-lock", client.options.alias);
        let definition = json!({
            "settings": {"number_of_shards": 1},
            "mappings": {"dynamic": "strict", "properties": {"owner": {"type": "keyword"}, "until": {"type": "long"}}},
        });
        match client.change(Method::PUT, &index, Some(&definition)).await {
            Ok(_) => {}
            // It is there.
            Err(failure) if is(&failure, StatusCode::BAD_REQUEST) => {}
            Err(failure) => return Err(failure.into()),
        }
        let path = format!("{index}/_doc/rebuild");
        let condition = match client.get(&path).await {
            Ok(known) => {
                let until = known["_source"]["until"].as_i64().unwrap_or(0);
                if until > now && known["_source"]["owner"] != owner {
                    return Err(NotTaken::Busy);
                }
                let (number, term) = sequence(&known)?;
                format!("if_seq_no={number}&if_primary_term={term}")
            }
            Err(failure) if is(&failure, StatusCode::NOT_FOUND) => "op_type=create".to_owned(),
            Err(failure) => return Err(failure.into()),
        };
        let write = client
            .change(Method::PUT, &format!("{path}?{condition}"), Some(&Self::document(owner, now)))
            .await;
        match write {
            Ok(answer) => Ok(Self { path, owner: owner.to_owned(), sequence: sequence(&answer)? }),
            Err(failure) if is(&failure, StatusCode::CONFLICT) => Err(NotTaken::Busy),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Holds it for longer. A failure may mean that it is somebody else's.
    pub(super) async fn renew(&mut self, client: &Client, now: UnixMillis) -> Result<(), Failure> {
        let (number, term) = self.sequence;
        let path = format!("{}?if_seq_no={number}&if_primary_term={term}", self.path);
        let answer =
            client.change(Method::PUT, &path, Some(&Self::document(&self.owner, now))).await?;
        self.sequence = sequence(&answer)?;
        Ok(())
    }

    /// Lets it go, if it is still ours. If nobody hears it, it runs out.
    pub(super) async fn release(self, client: &Client) {
        let (number, term) = self.sequence;
        let path = format!("{}?if_seq_no={number}&if_primary_term={term}", self.path);
        if let Err(error) = client.change(Method::DELETE, &path, None).await {
            tracing::debug!(%error, "the lock of rebuilds runs out by itself");
        }
    }
}
