//! etcd over its JSON gateway: the leader key, its lease, the members, our epoch keys.
//!
//! How it fails: every call has a deadline; the next URL is tried after a failure. Nothing is
//! cached here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tagfast_domain::{EpochId, EpochOrdinal};
use tagfast_failover::{Compare, EpochRecord, LeaderKey, LeaseAnswer};

use crate::boot_time;
use crate::options::limit;

/// etcd could not be asked, or said something that cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EtcdError {
    #[error("etcd does not answer")]
    Unreachable(#[from] reqwest::Error),
    #[error("etcd refused: {0}")]
    Refused(String),
    #[error("etcd's answer cannot be read: {0}")]
    Unreadable(&'static str),
}

/// A member as Patroni keeps it in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    /// `host:port` of its PostgreSQL.
    pub(crate) postgres: String,
}

/// What one look at a cluster found.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) leader: Option<LeaderKey>,
    /// Present with a leader whose lease lives.
    pub(crate) lease: Option<LeaseAnswer>,
    pub(crate) epoch: Option<(EpochRecord, u64)>,
    pub(crate) members: Vec<Member>,
    pub(crate) check_timeline: bool,
    pub(crate) paused: bool,
    /// Patroni has written anything at all below the scope.
    pub(crate) scope_exists: bool,
}

/// The client.
#[derive(Clone)]
pub(crate) struct Etcd {
    http: reqwest::Client,
    urls: Vec<String>,
}

/// An epoch as JSON in etcd.
#[derive(Serialize, Deserialize)]
struct StoredEpoch {
    id: String,
    ordinal: u64,
    reign: u64,
    member: String,
    timeline: u32,
    fork_lsn: Option<u64>,
    parent_id: Option<String>,
    minted_at: i64,
    minted_by: String,
}

fn id_of(text: &str) -> Option<EpochId> {
    let mut bytes = [0; 16];
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[n * 2..n * 2 + 2], 16).ok()?;
    }
    Some(EpochId(bytes))
}

fn to_json(epoch: &EpochRecord) -> String {
    let stored = StoredEpoch {
        id: epoch.id.to_string(),
        ordinal: epoch.ordinal.0,
        reign: epoch.reign,
        member: epoch.member.clone(),
        timeline: epoch.timeline,
        fork_lsn: epoch.fork_lsn,
        parent_id: epoch.parent_id.map(|id| id.to_string()),
        minted_at: epoch.minted_at,
        minted_by: epoch.minted_by.clone(),
    };
    json!(stored).to_string()
}

fn from_json(text: &[u8]) -> Result<EpochRecord, EtcdError> {
    let stored: StoredEpoch =
        serde_json::from_slice(text).map_err(|_| EtcdError::Unreadable("the epoch"))?;
    let id = |text: &str| id_of(text).ok_or(EtcdError::Unreadable("the epoch's id"));
    Ok(EpochRecord {
        id: id(&stored.id)?,
        ordinal: EpochOrdinal(stored.ordinal),
        reign: stored.reign,
        member: stored.member,
        timeline: stored.timeline,
        fork_lsn: stored.fork_lsn,
        parent_id: stored.parent_id.as_deref().map(id).transpose()?,
        minted_at: stored.minted_at,
        minted_by: stored.minted_by,
    })
}

fn epoch_key(scope: &str) -> String {
    format!("/tagfast/v1/{scope}/epoch")
}

fn history_key(scope: &str, ordinal: EpochOrdinal) -> String {
    format!("/tagfast/v1/{scope}/epochs/{:016}", ordinal.0)
}

fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).or_else(|| value.as_u64()).unwrap_or(0)
}

/// A key and value of a range answer.
struct Entry {
    key: String,
    value: Vec<u8>,
    create_revision: u64,
    mod_revision: u64,
    lease: u64,
}

fn entries(answer: &Value) -> Result<Vec<Entry>, EtcdError> {
    let bytes = |value: &Value| {
        STANDARD
            .decode(value.as_str().unwrap_or_default())
            .map_err(|_| EtcdError::Unreadable("base64"))
    };
    answer["kvs"]
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .map(|kv| {
            Ok(Entry {
                key: String::from_utf8_lossy(&bytes(&kv["key"])?).into_owned(),
                value: bytes(&kv["value"])?,
                create_revision: number(&kv["create_revision"]),
                mod_revision: number(&kv["mod_revision"]),
                lease: number(&kv["lease"]),
            })
        })
        .collect()
}

impl Etcd {
    pub(crate) fn new(urls: &[String]) -> Result<Self, EtcdError> {
        let http = reqwest::Client::builder().timeout(limit::ETCD).no_proxy().build()?;
        Ok(Self { http, urls: urls.iter().map(|u| u.trim_end_matches('/').to_owned()).collect() })
    }

    async fn call(&self, path: &str, body: &Value) -> Result<Value, EtcdError> {
        let mut failure = EtcdError::Unreadable("no etcd URL is configured");
        for url in &self.urls {
            match self.http.post(format!("{url}{path}")).json(body).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer.json().await?),
                Ok(answer) => failure = EtcdError::Refused(answer.text().await.unwrap_or_default()),
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }

    async fn prefix(&self, prefix: &str) -> Result<Vec<Entry>, EtcdError> {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let body = json!({"key": STANDARD.encode(prefix), "range_end": STANDARD.encode(end)});
        entries(&self.call("/v3/kv/range", &body).await?)
    }

    /// Reads everything that decides about a cluster; the leader key first, its lease after it.
    pub(crate) async fn look(&self, scope: &str) -> Result<Look, EtcdError> {
        let sent = boot_time();
        let service = self.prefix(&format!("/service/{scope}/")).await?;
        let named =
            |name: &str| service.iter().find(|e| e.key == format!("/service/{scope}/{name}"));
        let config: Value =
            named("config").and_then(|e| serde_json::from_slice(&e.value).ok()).unwrap_or_default();
        let paused = config["pause"].as_bool().unwrap_or(false);
        let leader = named("leader").map(|e| {
            let member = String::from_utf8_lossy(&e.value).into_owned();
            (LeaderKey { create_revision: e.create_revision, member }, e.lease)
        });
        let lease = match &leader {
            Some((key, lease)) if *lease != 0 => {
                let answer =
                    self.call("/v3/lease/timetolive", &json!({"ID": lease.to_string()})).await?;
                let alive = answer["TTL"].as_str().is_some_and(|ttl| !ttl.starts_with('-'));
                alive.then(|| LeaseAnswer {
                    sent,
                    leader: key.clone(),
                    remaining_s: number(&answer["TTL"]),
                    paused,
                })
            }
            _ => None,
        };
        let epoch = match self
            .prefix(&epoch_key(scope))
            .await?
            .into_iter()
            .find(|e| e.key == epoch_key(scope))
        {
            Some(entry) => Some((from_json(&entry.value)?, entry.mod_revision)),
            None => None,
        };
        let members_at = format!("/service/{scope}/members/");
        let members = service.iter().filter_map(|e| {
            let name = e.key.strip_prefix(&members_at)?.to_owned();
            let value: Value = serde_json::from_slice(&e.value).ok()?;
            let address =
                value["conn_url"].as_str()?.strip_prefix("postgres://")?.split('/').next()?;
            Some(Member { name, postgres: address.rsplit('@').next()?.to_owned() })
        });
        Ok(Look {
            leader: leader.map(|(key, _)| key),
            lease,
            epoch,
            members: members.collect(),
            check_timeline: config["check_timeline"].as_bool().unwrap_or(false),
            paused,
            scope_exists: !service.is_empty(),
        })
    }

    /// The epochs of a cluster, oldest first.
    pub(crate) async fn history(&self, scope: &str) -> Result<Vec<EpochRecord>, EtcdError> {
        let entries = self.prefix(&format!("/tagfast/v1/{scope}/epochs/")).await?;
        entries.iter().map(|e| from_json(&e.value)).collect()
    }

    /// Puts a new epoch if the comparison holds. False: somebody else was faster, or the reign is
    /// over.
    pub(crate) async fn mint(
        &self,
        scope: &str,
        epoch: &EpochRecord,
        if_: &Compare,
    ) -> Result<bool, EtcdError> {
        let leader = STANDARD.encode(format!("/service/{scope}/leader"));
        let value = STANDARD.encode(to_json(epoch));
        let key = STANDARD.encode(epoch_key(scope));
        let body = json!({
            "compare": [
                {"target": "CREATE", "result": "EQUAL", "key": leader,
                 "create_revision": if_.leader_create_revision.to_string()},
                {"target": "VALUE", "result": "EQUAL", "key": leader, "value": STANDARD.encode(&if_.leader_member)},
                {"target": "MOD", "result": "EQUAL", "key": key, "mod_revision": if_.epoch_mod_revision.to_string()},
            ],
            "success": [
                {"request_put": {"key": key, "value": value}},
                {"request_put": {"key": STANDARD.encode(history_key(scope, epoch.ordinal)), "value": value}},
            ],
        });
        Ok(self.call("/v3/kv/txn", &body).await?["succeeded"].as_bool().unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_comes_back_from_json() {
        let epoch = EpochRecord {
            id: EpochId([0xA1; 16]),
            ordinal: EpochOrdinal(1_800_000_000_000),
            reign: 42,
            member: "c0-n1".to_owned(),
            timeline: 3,
            fork_lsn: Some(0x42_DEE9_0000),
            parent_id: Some(EpochId([7; 16])),
            minted_at: 1_800_000_000_001,
            minted_by: "api-1".to_owned(),
        };
        assert_eq!(from_json(to_json(&epoch).as_bytes()).expect("readable"), epoch);
        assert!(from_json(b"{}").is_err());
        assert_eq!(id_of("zz"), None);
    }
}
