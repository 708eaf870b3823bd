//! The form in which etcd keeps an epoch.
//!
//! How it fails: what cannot be read is an error that names the field.

use serde::{Deserialize, Serialize};
use serde_json::json;
use tagfast_domain::{EpochId, EpochOrdinal};
use tagfast_failover::{EpochRecord, TimelineSwitch};

/// An epoch as JSON in etcd.
#[derive(Serialize, Deserialize)]
struct StoredEpoch {
    id: String,
    ordinal: u64,
    /// Written as `reign` by builds before the first release.
    #[serde(alias = "reign")]
    term: u64,
    member: String,
    timeline: u32,
    fork_lsn: Option<u64>,
    /// Timelines, each with the position at which it was left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeline_history: Option<Vec<(u32, u64)>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    continues: Option<String>,
    parent_id: Option<String>,
    minted_at: i64,
    minted_by: String,
}

pub(crate) fn parse_id(text: &str) -> Option<EpochId> {
    let mut bytes = [0; 16];
    hex::decode_to_slice(text, &mut bytes).ok().map(|()| EpochId(bytes))
}

pub(super) fn to_json(epoch: &EpochRecord) -> String {
    let history = epoch.timeline_history.as_ref().map(|history| history.iter());
    let stored = StoredEpoch {
        id: epoch.id.to_string(),
        ordinal: epoch.ordinal.0,
        term: epoch.term,
        member: epoch.member.clone(),
        timeline: epoch.timeline,
        fork_lsn: epoch.fork_lsn,
        timeline_history: history.map(|all| all.map(|s| (s.timeline, s.at)).collect()),
        continues: epoch.continues.map(|id| id.to_string()),
        parent_id: epoch.parent_id.map(|id| id.to_string()),
        minted_at: epoch.minted_at,
        minted_by: epoch.minted_by.clone(),
    };
    json!(stored).to_string()
}

pub(super) fn from_json(text: &[u8]) -> Result<EpochRecord, &'static str> {
    let stored: StoredEpoch = tagfast_json::from_slice(text).map_err(|_| "the epoch")?;
    let id = |text: &str| parse_id(text).ok_or("the epoch's id");
    let switch = |(timeline, at)| TimelineSwitch { timeline, at };
    Ok(EpochRecord {
        id: id(&stored.id)?,
        ordinal: EpochOrdinal(stored.ordinal),
        term: stored.term,
        member: stored.member,
        timeline: stored.timeline,
        fork_lsn: stored.fork_lsn,
        timeline_history: stored.timeline_history.map(|all| all.into_iter().map(switch).collect()),
        continues: stored.continues.as_deref().map(id).transpose()?,
        parent_id: stored.parent_id.as_deref().map(id).transpose()?,
        minted_at: stored.minted_at,
        minted_by: stored.minted_by,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_survives_json() {
        let epoch = EpochRecord {
            id: EpochId([0xA1; 16]),
            ordinal: EpochOrdinal(1_800_000_000_000),
            term: 42,
            member: "c0-n1".to_owned(),
            timeline: 3,
            fork_lsn: Some(0x42_DEE9_0000),
            timeline_history: Some(vec![
                TimelineSwitch { timeline: 1, at: 0x300 },
                TimelineSwitch { timeline: 2, at: 0x42_DEE9_0000 },
            ]),
            continues: Some(EpochId([6; 16])),
            parent_id: Some(EpochId([7; 16])),
            minted_at: 1_800_000_000_001,
            minted_by: "api-1".to_owned(),
        };
        assert_eq!(from_json(to_json(&epoch).as_bytes()).expect("readable"), epoch);
        let text = to_json(&epoch);
        for array in tagfast_json::testing::arrays_for_objects(&text) {
            assert!(from_json(array.as_bytes()).is_err(), "{array}");
        }
        assert!(from_json(b"{}").is_err());
        assert_eq!(parse_id("zz"), None);
        // An epoch that an earlier build minted is read, too.
        let earlier = to_json(&epoch).replace("\"term\"", "\"reign\"");
        assert_eq!(from_json(earlier.as_bytes()).expect("readable"), epoch);
        let short = EpochRecord { timeline_history: None, continues: None, ..epoch };
        let words = ["history", "continues"].map(|word| to_json(&short).contains(word));
        assert_eq!(words, [false; 2], "as a build wrote it that knew no more");
        assert_eq!(from_json(to_json(&short).as_bytes()).expect("readable"), short);
    }
}
