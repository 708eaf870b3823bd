//! Events as a consumer took them: what the index may do with each.
//!
//! Two rules. For each content the version that the index shows never falls. An event with a
//! smaller `emit` (the ordinal of the reign whose relay published it) than the largest seen of its
//! cluster in its partition changes nothing: it is of a primary that was replaced.

use std::collections::HashMap;

/// One event, in the order in which its partition was read.
#[derive(Debug, Clone)]
pub struct FeedEvent {
    /// The partition.
    pub partition: u32,
    /// The cluster it comes from.
    pub cluster: String,
    /// The content.
    pub content: String,
    /// The ordinal of the reign whose relay published it.
    pub emit: u64,
    /// The version of its state.
    pub version: u64,
    /// Whether the index shows this state now.
    pub applied: bool,
}

/// What a consumer did wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedFault {
    /// The index showed a newer version before (I8).
    IndexWentBack {
        /// The content.
        content: String,
        /// What it showed.
        from: u64,
        /// What it shows.
        to: u64,
    },
    /// An event of a replaced primary changed something (I8).
    StaleEmit {
        /// The content.
        content: String,
        /// The event's reign.
        emit: u64,
        /// The largest seen before.
        largest: u64,
    },
}

/// Everything wrong with how these events were taken.
pub fn check_feed(events: &[FeedEvent]) -> Vec<FeedFault> {
    let mut largest: HashMap<(u32, &str), u64> = HashMap::new();
    let mut shown: HashMap<&str, u64> = HashMap::new();
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
            let before = shown.insert(&event.content, event.version).unwrap_or(0);
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
    fn a_duplicate_and_an_ignored_old_event_are_fine() {
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
    fn partitions_and_clusters_have_reigns_of_their_own() {
        let other = FeedEvent { cluster: "c1".to_owned(), ..event("b", 1, 10, true) };
        let elsewhere = FeedEvent { partition: 1, ..event("c", 1, 10, true) };
        assert_eq!(check_feed(&[event("a", 2, 10, true), other, elsewhere]), []);
    }
}
