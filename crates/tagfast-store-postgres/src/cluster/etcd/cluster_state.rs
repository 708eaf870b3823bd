//! What etcd holds about a cluster, as one consistent answer with an observation of the leader
//! key.
//!
//! The lease is asked for first, then all keys are read in one transaction, which has a quorum.
//! Both answers name their raft term; what that proves is decided in
//! [`tagfast_failover::leadership`]. The lease is known from the poll before; in a new term it is
//! asked for once the key was read, and the keys are read again.
//!
//! How it fails: without the keys there is no answer. Without the lease there is one, which proves
//! nothing and may end what was proven. An epoch that cannot be read is an error: what a build does
//! not understand must not prove anything to it.

use serde_json::{Value, json};
use tagfast_failover::{EpochRecord, LeaderKey, LeaderObservation, LeaseAnswer};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::stored_epoch::from_json;
use super::{Etcd, EtcdError, KeyValue, epoch_key, key_values, number, prefix_end};
use crate::boot_clock::boot_time;
use crate::cluster::node::Node;
use crate::cluster::roster::Roster;

/// What etcd holds about a cluster.
#[derive(Debug)]
pub(crate) struct ClusterState {
    pub(crate) observation: LeaderObservation,
    /// Why etcd did not say how long the lease has left; `None`: it did, or no member leads.
    pub(crate) lease_error: Option<EtcdError>,
    /// The current epoch and its modification revision; `None`: none was minted yet.
    pub(crate) epoch: Option<(EpochRecord, u64)>,
    pub(crate) members: Vec<Node>,
    /// Every member ever seen; `None`: what etcd has cannot be read.
    pub(crate) roster: Option<Roster>,
    pub(crate) check_timeline: bool,
    /// Whether Patroni names synchronous standbys.
    pub(crate) synchronous_mode: bool,
    /// Whether Patroni has written any key below the scope.
    pub(crate) scope_exists: bool,
}

impl ClusterState {
    /// The leader key; `None`: no member leads.
    pub(crate) fn leader(&self) -> Option<&LeaderKey> {
        self.observation.leader.as_ref()
    }
}

/// The keys of a cluster as of one revision.
struct ClusterKeys {
    revision: u64,
    raft_term: u64,
    /// Below Patroni's scope.
    service: Vec<KeyValue>,
    epoch: Option<KeyValue>,
    roster: Option<KeyValue>,
}

impl ClusterKeys {
    fn service(&self, scope: &str, name: &str) -> Option<&KeyValue> {
        let key = format!("/service/{scope}/{name}");
        self.service.iter().find(|entry| entry.key == key)
    }

    fn leader(&self, scope: &str) -> Option<&KeyValue> {
        self.service(scope, "leader")
    }

    fn into_state(
        self,
        scope: &str,
        asked: Result<Option<LeaseAnswer>, EtcdError>,
    ) -> Result<ClusterState, EtcdError> {
        let config: Value = self
            .service(scope, "config")
            .and_then(|entry| tagfast_json::from_slice(&entry.value).ok())
            .unwrap_or_default();
        let leader = self.leader(scope);
        let key_lease = leader.map_or(0, |entry| entry.lease);
        let (lease, lease_error) = match asked {
            Ok(lease) => (lease, None),
            Err(error) => (None, Some(error)),
        };
        let observation = LeaderObservation {
            revision: self.revision,
            raft_term: self.raft_term,
            leader: leader.map(|entry| LeaderKey {
                create_revision: entry.create_revision,
                member: String::from_utf8_lossy(&entry.value).into_owned(),
            }),
            key_lease,
            lease,
            paused: config["pause"].as_bool().unwrap_or(false),
        };
        let epoch = match &self.epoch {
            Some(entry) => {
                let epoch = from_json(&entry.value).map_err(EtcdError::Unreadable)?;
                Some((epoch, entry.mod_revision))
            }
            None => None,
        };
        let roster = self.roster.as_ref().map(|entry| (entry.value.as_slice(), entry.mod_revision));
        let members_prefix = format!("/service/{scope}/members/");
        let members = self.service.iter().filter_map(|entry| {
            let name = entry.key.strip_prefix(&members_prefix)?.to_owned();
            let value: Value = tagfast_json::from_slice(&entry.value).ok()?;
            let address =
                value["conn_url"].as_str()?.strip_prefix("postgres://")?.split('/').next()?;
            Some(Node { name, address: address.rsplit('@').next()?.to_owned() })
        });
        Ok(ClusterState {
            lease_error,
            epoch,
            members: members.collect(),
            roster: Roster::read(roster),
            check_timeline: config["check_timeline"].as_bool().unwrap_or(false),
            synchronous_mode: synchronous_mode(&config),
            scope_exists: !self.service.is_empty(),
            observation,
        })
    }
}

/// Patroni takes a boolean, `on`, or `quorum`.
fn synchronous_mode(config: &Value) -> bool {
    let mode = &config["synchronous_mode"];
    mode.as_bool().or_else(|| mode.as_str().map(|mode| mode != "off")).unwrap_or(false)
}

impl Etcd {
    /// Reads the state of a cluster. `known_lease`: that of the leader key when it was read last;
    /// 0: it was not, or there was none.
    pub(crate) async fn read_state(
        &self,
        scope: &str,
        known_lease: u64,
    ) -> Result<ClusterState, EtcdError> {
        let mut asked = match known_lease {
            0 => Ok(None),
            lease => self.ask_lease(lease).await,
        };
        // Then no member would answer the read either.
        if let Err(error @ EtcdError::Unreachable { .. }) = asked {
            return Err(error);
        }
        let mut keys = self.read_keys(scope).await?;
        let key_lease = keys.leader(scope).map_or(0, |entry| entry.lease);
        if key_lease != 0 && key_lease != known_lease {
            asked = self.ask_lease(key_lease).await;
            keys = self.read_keys(scope).await?;
        }
        keys.into_state(scope, asked)
    }

    /// How long a lease has left; `None`: it has ended.
    async fn ask_lease(&self, lease: u64) -> Result<Option<LeaseAnswer>, EtcdError> {
        let sent = boot_time();
        let answer = self.call("/v3/lease/timetolive", &json!({"ID": lease.to_string()})).await?;
        let is_alive = answer["TTL"].as_str().is_some_and(|ttl| !ttl.starts_with('-'));
        Ok(is_alive.then(|| LeaseAnswer {
            id: lease,
            sent,
            remaining_s: number(&answer["TTL"]),
            raft_term: number(&answer["header"]["raft_term"]),
        }))
    }

    /// Reads Patroni's keys, the epoch and the roster in one transaction. Such a read waits until
    /// the member that answers it has a quorum's word that it lags behind no write.
    async fn read_keys(&self, scope: &str) -> Result<ClusterKeys, EtcdError> {
        let service = format!("/service/{scope}/");
        let range = |key: &str| json!({"request_range": {"key": STANDARD.encode(key)}});
        let service_range = json!({"request_range": {
            "key": STANDARD.encode(&service), "range_end": STANDARD.encode(prefix_end(&service)),
        }});
        let body = json!({"success": [
            service_range, range(&epoch_key(scope)), range(&Roster::key(scope)),
        ]});
        let answer = self.call("/v3/kv/txn", &body).await?;
        let Some([service, epoch, roster]) =
            answer["responses"].as_array().and_then(|all| all.first_chunk::<3>())
        else {
            return Err(EtcdError::Unreadable("the keys of a cluster"));
        };
        let first = |entries: &Value| {
            key_values(&entries["response_range"]).map(|entries| entries.into_iter().next())
        };
        Ok(ClusterKeys {
            revision: number(&answer["header"]["revision"]),
            raft_term: number(&answer["header"]["raft_term"]),
            service: key_values(&service["response_range"])?,
            epoch: first(epoch)?,
            roster: first(roster)?,
        })
    }
}

#[cfg(test)]
mod tests;
