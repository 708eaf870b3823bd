//! Checks what a consumer did with the events of a feed.
//!
//! Two rules. For each content, the version in the index must never decrease. An event with a
//! smaller publisher epoch (`emit`: the ordinal of the epoch whose relay published it) than the
//! largest one seen of its cluster in its partition must change nothing: a replaced primary
//! published it.

use std::collections::HashMap;

/// One event, in the order in which its partition was consumed.
#[derive(Debug, Clone)]
pub struct FeedEvent {
    /// Number of the partition.
    pub partition: u32,
    /// Name of the cluster that the event comes from.
    pub cluster: String,
    /// Key of the content.
    pub content: String,
    /// Publisher epoch: the ordinal of the epoch whose relay published the event.
    pub emit: u64,
    /// Version of the content in the event.
    pub version: u64,
    /// Whether the consumer wrote this state to the index.
    pub applied: bool,
}

/// A rule that the consumer violated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedFault {
    /// The index had a newer version before (I8).
    IndexWentBack {
        /// Key of the content.
        content: String,
        /// Version in the index before.
        from: u64,
        /// Version in the index after.
        to: u64,
    },
    /// An event of a replaced primary changed the index (I8).
    StaleEmit {
        /// Key of the content.
        content: String,
        /// Publisher epoch of the event.
        emit: u64,
        /// Largest publisher epoch seen before.
        largest: u64,
    },
}

/// All violations in how these events were consumed.
pub fn check_feed(events: &[FeedEvent]) -> Vec<FeedFault> {
    let mut largest: HashMap<(u32, &str), u64> = HashMap::new();
    let mut indexed: HashMap<&str, u64> = HashMap::new();
    let mut faults = Vec::new();
    for event in events {
        let seen = largest.entry((event.partition, &event.cluster)).or_insert(event.emit);
        if event.emit < *seen && event.applied {
            faults.push(FeedFault::StaleEmit {
                content: event.content.clone(),
                emit: event.emit,
                largest: *seen,
            });
        }
        *seen = event.emit.max(*seen);
        if event.applied {
            let before = indexed.insert(&event.content, event.version).unwrap_or(0);
            if event.version < before {
                let (content, to) = (event.content.clone(), event.version);
                faults.push(FeedFault::IndexWentBack { content, from: before, to });
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(content: &str, emit: u64, version: u64, applied: bool) -> FeedEvent {
        let (cluster, content) = ("c0".to_owned(), content.to_owned());
        FeedEvent { partition: 0, cluster, content, emit, version, applied }
    }

    #[test]
    fn a_duplicate_and_an_ignored_old_event_are_accepted() {
        let events = [
            event("a", 1, 10, true),
            event("a", 1, 10, true),
            event("a", 2, 20, true),
            event("a", 1, 30, false),
            event("a", 2, 11, false),
        ];
        assert_eq!(check_feed(&events), []);
    }

    #[test]
    fn an_index_that_goes_back_is_found() {
        let events = [event("a", 1, 10, true), event("b", 1, 5, true), event("a", 1, 9, true)];
        assert_eq!(
            check_feed(&events),
            [FeedFault::IndexWentBack { content: "a".to_owned(), from: 10, to: 9 }]
        );
    }

    #[test]
    fn an_event_of_a_replaced_primary_that_changes_something_is_found() {
        let events = [event("a", 2, 10, true), event("b", 1, 90, true)];
        assert_eq!(
            check_feed(&events),
            [FeedFault::StaleEmit { content: "b".to_owned(), emit: 1, largest: 2 }]
        );
    }

    #[test]
    fn publisher_epochs_are_compared_within_a_partition_and_cluster() {
        let other = FeedEvent { cluster: "c1".to_owned(), ..event("b", 1, 10, true) };
        let other_partition = FeedEvent { partition: 1, ..event("c", 1, 10, true) };
        assert_eq!(check_feed(&[event("a", 2, 10, true), other, other_partition]), []);
    }
}
