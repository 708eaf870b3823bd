//! The keys of repairs in etcd: which processes may hold a journal, what each has repaired, and
//! when a repair was closed.
//!
//! | key | value | kept |
//! |---|---|---|
//! | `/tagfast/v1/nodes/<process>` | [`StoredNode`] | while its lease lives |
//! | `/tagfast/v1/<scope>/repairs/<ordinal>/<process>` | [`StoredRepair`] | for ever |
//! | `/tagfast/v1/<scope>/closings/<ordinal>` | [`StoredClosing`] | for ever |
//!
//! How it fails: as every call to etcd. A value that cannot be read is an error that names its
//! kind: a newer program may have written it.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tagfast_domain::{EpochOrdinal, UnixMillis};

use super::{Etcd, EtcdError, KeyValue, number};

/// Where processes register.
const NODES_PREFIX: &str = "/tagfast/v1/nodes/";

fn repairs_prefix(scope: &str, ordinal: EpochOrdinal) -> String {
    format!("/tagfast/v1/{scope}/repairs/{:016}/", ordinal.0)
}

fn closings_prefix(scope: &str) -> String {
    format!("/tagfast/v1/{scope}/closings/")
}

fn closing_key(scope: &str, ordinal: EpochOrdinal) -> String {
    format!("{}{:016}", closings_prefix(scope), ordinal.0)
}

/// A registered process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredNode {
    /// When it registered, Unix ms.
    pub(crate) registered_at: UnixMillis,
    /// It ends, and every replica has what it acknowledged: no one waits for its reports.
    #[serde(default)]
    pub(crate) is_leaving: bool,
}

/// How many writes had which verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredCounts {
    pub(crate) kept: u64,
    pub(crate) repaired: u64,
    pub(crate) lost: u64,
    pub(crate) unknown: u64,
}

/// A log range for which a process had forgotten its writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredIncomplete {
    /// The epoch's id, in hexadecimal digits.
    pub(crate) epoch: String,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) writes: u64,
}

/// When a process saw each phase of a failover, Unix ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredTimes {
    pub(crate) suspected_at: Option<UnixMillis>,
    pub(crate) held_at: Option<UnixMillis>,
    pub(crate) promoted_at: Option<UnixMillis>,
    pub(crate) first_acknowledged_at: Option<UnixMillis>,
}

/// What a process repaired in an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredRepair {
    pub(crate) counts: StoredCounts,
    pub(crate) began_at: UnixMillis,
    /// `None`: it goes on.
    pub(crate) ended_at: Option<UnixMillis>,
    pub(crate) incomplete: Vec<StoredIncomplete>,
    pub(crate) times: StoredTimes,
}

impl StoredRepair {
    /// With what an earlier process of the same name has reported about the epoch. That one knew
    /// all that the copy of its journal has, and more: each count is the larger one.
    pub(crate) fn with_earlier(self, earlier: &Self) -> Self {
        let (mine, other) = (self.counts, earlier.counts);
        let is_new = |range: &&StoredIncomplete| {
            self.incomplete.iter().all(|known| known.epoch != range.epoch)
        };
        let more: Vec<StoredIncomplete> =
            earlier.incomplete.iter().filter(is_new).cloned().collect();
        let first = |of: fn(&StoredTimes) -> Option<UnixMillis>| {
            [&self.times, &earlier.times].into_iter().filter_map(of).min()
        };
        Self {
            counts: StoredCounts {
                kept: mine.kept.max(other.kept),
                repaired: mine.repaired.max(other.repaired),
                lost: mine.lost.max(other.lost),
                unknown: mine.unknown.max(other.unknown),
            },
            began_at: self.began_at.min(earlier.began_at),
            ended_at: self.ended_at.or(earlier.ended_at),
            times: StoredTimes {
                suspected_at: first(|times| times.suspected_at),
                held_at: first(|times| times.held_at),
                promoted_at: first(|times| times.promoted_at),
                first_acknowledged_at: first(|times| times.first_acknowledged_at),
            },
            incomplete: [self.incomplete, more].concat(),
        }
    }
}

/// That the repair of an epoch is closed, and every streaming replica has the closing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredClosing {
    pub(crate) closed_at: UnixMillis,
    /// Processes that were registered and had not reported.
    pub(crate) missing: Vec<String>,
    /// The id of the later epoch whose repair ended this one's, in hexadecimal digits; `None`: its
    /// own did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) superseded_by: Option<String>,
}

fn value_of<T: DeserializeOwned>(entry: &KeyValue, what: &'static str) -> Result<T, EtcdError> {
    tagfast_json::from_slice(&entry.value).map_err(|_| EtcdError::Unreadable(what))
}

/// The values below a prefix, with the rest of their keys.
fn below<T: DeserializeOwned>(
    entries: &[KeyValue],
    prefix: &str,
    what: &'static str,
) -> Result<Vec<(String, T)>, EtcdError> {
    let named = |entry: &KeyValue| {
        let name = entry.key.strip_prefix(prefix)?.to_owned();
        Some(value_of(entry, what).map(|value| (name, value)))
    };
    entries.iter().filter_map(named).collect()
}

impl Etcd {
    /// Asks for a lease of this time; returns its id.
    pub(crate) async fn grant_lease(&self, ttl: Duration) -> Result<u64, EtcdError> {
        let body = json!({"TTL": ttl.as_secs().to_string()});
        match number(&self.call("/v3/lease/grant", &body).await?["ID"]) {
            0 => Err(EtcdError::Unreadable("a lease")),
            id => Ok(id),
        }
    }

    /// Renews a lease. False: it has expired.
    pub(crate) async fn keep_lease(&self, lease: u64) -> Result<bool, EtcdError> {
        let answer = self.call("/v3/lease/keepalive", &json!({"ID": lease.to_string()})).await?;
        Ok(number(&answer["result"]["TTL"]) > 0)
    }

    async fn put(&self, key: &str, value: &impl Serialize, lease: u64) -> Result<(), EtcdError> {
        let body = json!({
            "key": STANDARD.encode(key),
            "value": STANDARD.encode(json!(value).to_string()),
            "lease": lease.to_string(),
        });
        self.call("/v3/kv/put", &body).await.map(drop)
    }

    /// Registers a process while the lease lives.
    pub(crate) async fn put_node(
        &self,
        process: &str,
        node: &StoredNode,
        lease: u64,
    ) -> Result<(), EtcdError> {
        self.put(&format!("{NODES_PREFIX}{process}"), node, lease).await
    }

    /// The processes that are registered now.
    pub(crate) async fn nodes(&self) -> Result<Vec<(String, StoredNode)>, EtcdError> {
        below(&self.prefix(NODES_PREFIX).await?, NODES_PREFIX, "a registration")
    }

    /// Reports what a process repaired in an epoch.
    pub(crate) async fn put_repair(
        &self,
        (scope, ordinal): (&str, EpochOrdinal),
        process: &str,
        repair: &StoredRepair,
    ) -> Result<(), EtcdError> {
        let key = format!("{}{process}", repairs_prefix(scope, ordinal));
        self.put(&key, repair, 0).await
    }

    /// What a process of this name has reported about an epoch; `None`: nothing.
    pub(crate) async fn repair(
        &self,
        (scope, ordinal): (&str, EpochOrdinal),
        process: &str,
    ) -> Result<Option<StoredRepair>, EtcdError> {
        let key = format!("{}{process}", repairs_prefix(scope, ordinal));
        let entries = self.prefix(&key).await?;
        let entry = entries.iter().find(|entry| entry.key == key);
        entry.map(|entry| value_of(entry, "a repair's report")).transpose()
    }

    /// What the processes have reported about an epoch, by their names.
    pub(crate) async fn repairs(
        &self,
        scope: &str,
        ordinal: EpochOrdinal,
    ) -> Result<Vec<(String, StoredRepair)>, EtcdError> {
        let prefix = repairs_prefix(scope, ordinal);
        below(&self.prefix(&prefix).await?, &prefix, "a repair's report")
    }

    /// Reports that the repair of an epoch is closed.
    pub(crate) async fn put_closing(
        &self,
        (scope, ordinal): (&str, EpochOrdinal),
        closing: &StoredClosing,
    ) -> Result<(), EtcdError> {
        self.put(&closing_key(scope, ordinal), closing, 0).await
    }

    /// The epochs whose repairs are closed.
    pub(crate) async fn closed_epochs(
        &self,
        scope: &str,
    ) -> Result<BTreeSet<EpochOrdinal>, EtcdError> {
        let prefix = closings_prefix(scope);
        let entries = self.prefix(&prefix).await?;
        let ordinal = |entry: &KeyValue| entry.key.strip_prefix(&prefix)?.parse().ok();
        Ok(entries.iter().filter_map(ordinal).map(EpochOrdinal).collect())
    }

    /// The closing of an epoch's repair; `None`: it is open.
    pub(crate) async fn closing(
        &self,
        scope: &str,
        ordinal: EpochOrdinal,
    ) -> Result<Option<StoredClosing>, EtcdError> {
        let key = closing_key(scope, ordinal);
        let entries = self.prefix(&key).await?;
        let entry = entries.iter().find(|entry| entry.key == key);
        entry.map(|entry| value_of(entry, "a closing")).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            create_revision: 1,
            mod_revision: 1,
            lease: 0,
        }
    }

    #[test]
    fn keys_are_in_the_order_of_ordinals() {
        let of = |ordinal| closing_key("c0", EpochOrdinal(ordinal));
        assert_eq!(of(7), "/tagfast/v1/c0/closings/0000000000000007");
        assert!(of(9) < of(10) && of(999) < of(1_800_000_000_000));
        assert!(repairs_prefix("c0", EpochOrdinal(7)).ends_with("/repairs/0000000000000007/"));
    }

    #[test]
    fn a_report_survives_json_and_a_damaged_one_is_an_error() {
        let repair = StoredRepair {
            counts: StoredCounts { kept: 1, repaired: 2, lost: 3, unknown: 4 },
            began_at: 5,
            ended_at: None,
            incomplete: vec![StoredIncomplete {
                epoch: "ab".to_owned(),
                from: 1,
                to: 2,
                writes: 3,
            }],
            times: StoredTimes { held_at: Some(6), ..StoredTimes::default() },
        };
        let text = json!(repair).to_string();
        let found = below::<StoredRepair>(&[entry("p/a.1", &text)], "p/", "it").expect("readable");
        assert_eq!(found, [("a.1".to_owned(), repair)]);
        for array in tagfast_json::testing::arrays_for_objects(&text) {
            let refused = below::<StoredRepair>(&[entry("p/a", &array)], "p/", "it");
            assert!(matches!(refused, Err(EtcdError::Unreadable("it"))), "{array}");
        }
        assert!(below::<StoredClosing>(&[entry("p/a", "{}")], "p/", "it").is_err());
        let plain = value_of(&entry("p/a", r#"{"closed_at":7,"missing":[]}"#), "it");
        let closing = StoredClosing { closed_at: 7, missing: Vec::new(), superseded_by: None };
        assert_eq!(plain.ok(), Some(closing), "as a program wrote it that knew no more");
    }

    /// The process repaired 100 writes, reported them, and was started again when most of them had
    /// left the copy of its journal.
    #[test]
    fn a_second_report_of_a_process_keeps_what_the_first_one_told() {
        let report = |repaired, began_at, held_at, epoch: &str| StoredRepair {
            counts: StoredCounts { repaired, ..StoredCounts::default() },
            began_at,
            ended_at: Some(began_at + 1),
            incomplete: vec![StoredIncomplete {
                epoch: epoch.to_owned(),
                from: 1,
                to: 2,
                writes: 3,
            }],
            times: StoredTimes { held_at, ..StoredTimes::default() },
        };
        let second = report(7, 50, None, "b").with_earlier(&report(100, 10, Some(4), "a"));
        assert_eq!((second.counts.repaired, second.began_at, second.ended_at), (100, 10, Some(51)));
        assert_eq!(second.times.held_at, Some(4));
        let epochs: Vec<&str> = second.incomplete.iter().map(|r| r.epoch.as_str()).collect();
        assert_eq!(epochs, ["b", "a"]);
        assert_eq!(second.clone().with_earlier(&second), second, "a report that is sent again");
    }

    #[test]
    fn a_registration_of_a_program_that_says_less_is_one_that_stays() {
        let node: StoredNode = value_of(&entry("a", r#"{"registered_at":1}"#), "it").expect("one");
        assert_eq!(node, StoredNode { registered_at: 1, is_leaving: false });
    }
}
