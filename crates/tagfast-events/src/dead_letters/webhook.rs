//! Notifications about dead letters that need attention, and the port that delivers them.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tagfast_domain::UnixMillis;
use tagfast_domain::time::rfc3339;

use crate::bus::ConsumerGroup;

/// Delivers notices, for example to a webhook.
#[async_trait]
pub trait DeadLetterNotifier: Send + Sync {
    /// Shortest time between two notices about growing numbers.
    fn min_interval(&self) -> Duration;

    /// Accepts a notice for delivery; returns false while an earlier one is being delivered.
    fn notify(&self, notice: &DeadLetterNotice) -> bool;

    /// Ends the delivery; a notice that is not delivered yet is lost.
    async fn stop(&self) {}
}

/// A notice: how many dead letters need attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterNotice {
    /// When it was made, Unix ms.
    pub at: UnixMillis,
    /// Dead letters that need attention; 0: resolved.
    pub dead_letters: u64,
    /// The groups that have some.
    pub groups: Vec<GroupNotice>,
}

/// Dead letters of one group that need attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupNotice {
    /// The consumer group.
    pub group: ConsumerGroup,
    /// How many need attention.
    pub dead_letters: u64,
    /// First failure of the oldest open one, Unix ms; `None` if unknown.
    pub oldest: Option<UnixMillis>,
    /// Error codes of the newest page and how often each occurs there.
    pub codes: BTreeMap<String, u64>,
    /// Ids of some of them.
    pub examples: Vec<String>,
}

impl DeadLetterNotice {
    /// The JSON document of the notice.
    pub fn to_json(&self) -> Value {
        let kind = if self.dead_letters == 0 {
            "tagfast.dead_letters.resolved"
        } else {
            "tagfast.dead_letters.stay"
        };
        let group = |of: &GroupNotice| {
            json!({
                "group": of.group.0,
                "dead_letters": of.dead_letters,
                "oldest": of.oldest.map(rfc3339),
                "codes": of.codes,
                "examples": of.examples,
            })
        };
        json!({
            "type": kind,
            "at": rfc3339(self.at),
            "dead_letters": self.dead_letters,
            "groups": self.groups.iter().map(group).collect::<Vec<_>>(),
        })
    }
}
