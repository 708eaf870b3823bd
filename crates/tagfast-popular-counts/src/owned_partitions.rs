//! The partitions that the consumer group assigned to this process, and their counts that are not
//! pushed to the leaderboards yet.
//!
//! Bookkeeping only: the publisher takes pending pushes from here and requeues those that failed.

use std::collections::BTreeMap;

use parking_lot::{Mutex, MutexGuard};
use tagfast_domain::UnixMillis;
use tagfast_events::{Partition, VisibleThrough};

use crate::partition_file::Tags;

/// Maximum number of dirty tags per partition; with more, the whole partition is pushed.
const DIRTY_TAGS_MAX: usize = 100_000;

/// A partition of this process.
#[derive(Debug, Default)]
struct OwnedPartition {
    /// Every write committed before this time (Unix ms) is counted; `None` while the partition is
    /// rebuilt.
    visible: Option<UnixMillis>,
    /// Every write committed before this time (Unix ms) is on the leaderboards that this process
    /// merges; `None` before the first push.
    shown: Option<UnixMillis>,
    /// Fencing token that proves ownership to the state Redis; `None` if this process must claim
    /// the partition first.
    claim: Option<String>,
    /// Whether every tag must be pushed.
    all_dirty: bool,
    dirty_tags: Tags,
}

/// Counts of a partition that must be pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingPush {
    pub(crate) partition: Partition,
    /// `None` if the partition must be claimed first; then every tag is pushed.
    pub(crate) claim: Option<String>,
    pub(crate) all_dirty: bool,
    pub(crate) tags: Tags,
    /// Every write committed before this time (Unix ms) is counted; read before the counts.
    pub(crate) visible: UnixMillis,
}

/// The partitions of this process.
#[derive(Debug, Default)]
pub(crate) struct OwnedPartitions(Mutex<BTreeMap<Partition, OwnedPartition>>);

impl OwnedPartitions {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Partition, OwnedPartition>> {
        self.0.lock()
    }

    /// Adds partitions. None of their counts is pushed before it is known how far they count.
    pub(crate) fn begin(&self, partitions: &[Partition]) {
        let mut owned = self.lock();
        for partition in partitions {
            owned.insert(
                *partition,
                OwnedPartition { all_dirty: true, ..OwnedPartition::default() },
            );
        }
    }

    /// Removes partitions, which other processes own from now on.
    pub(crate) fn end(&self, partitions: &[Partition]) {
        self.lock().retain(|partition, _| !partitions.contains(partition));
    }

    pub(crate) fn partitions(&self) -> Vec<Partition> {
        self.lock().keys().copied().collect()
    }

    /// Notes that counts of these tags changed.
    pub(crate) fn mark_dirty(&self, partition: Partition, tags: Tags) {
        if let Some(owned) = self.lock().get_mut(&partition) {
            owned.dirty_tags.extend(tags);
            if owned.dirty_tags.len() > DIRTY_TAGS_MAX {
                owned.dirty_tags.clear();
                owned.all_dirty = true;
            }
        }
    }

    /// Notes that counts of any tag may have changed.
    pub(crate) fn mark_all_dirty(&self) {
        self.lock().values_mut().for_each(|owned| owned.all_dirty = true);
    }

    /// Notes how far the partitions count.
    pub(crate) fn observe(&self, visible: &VisibleThrough) {
        let mut owned = self.lock();
        for (partition, at) in &visible.partitions {
            if let Some(owned) = owned.get_mut(partition) {
                owned.visible = Some(*at);
            }
        }
    }

    /// Takes the pending push of each partition whose rebuild is complete.
    pub(crate) fn take_pushes(&self) -> Vec<PendingPush> {
        let mut owned = self.lock();
        let push = |(partition, owned): (&Partition, &mut OwnedPartition)| {
            let visible = owned.visible?;
            Some(PendingPush {
                partition: *partition,
                claim: owned.claim.clone(),
                all_dirty: std::mem::take(&mut owned.all_dirty) || owned.claim.is_none(),
                tags: std::mem::take(&mut owned.dirty_tags),
                visible,
            })
        };
        owned.iter_mut().filter_map(push).collect()
    }

    /// Notes that these pushes are merged.
    pub(crate) fn published(&self, pushes: &[PendingPush]) {
        let mut owned = self.lock();
        for push in pushes {
            if let Some(owned) = owned.get_mut(&push.partition).filter(|o| o.claim.is_some()) {
                owned.shown = Some(push.visible);
            }
        }
    }

    /// How far each partition is on the leaderboards, given how far it is counted.
    pub(crate) fn shown(
        &self,
        counted: &BTreeMap<Partition, UnixMillis>,
    ) -> BTreeMap<Partition, UnixMillis> {
        let owned = self.lock();
        let shown = |(partition, at): (&Partition, &UnixMillis)| {
            Some((*partition, owned.get(partition)?.shown?.min(*at)))
        };
        counted.iter().filter_map(shown).collect()
    }

    /// Requeues a push that failed.
    pub(crate) fn requeue_push(&self, push: &PendingPush) {
        if let Some(owned) = self.lock().get_mut(&push.partition) {
            owned.all_dirty |= push.all_dirty;
            owned.dirty_tags.extend(push.tags.iter().cloned());
        }
    }

    /// Notes that this process claimed a partition.
    pub(crate) fn claimed(&self, partition: Partition, claim: &str) {
        if let Some(owned) = self.lock().get_mut(&partition) {
            owned.claim = Some(claim.to_owned());
        }
    }

    /// Drops the claim of a partition: another process claimed it, or Redis lost it.
    pub(crate) fn unclaim(&self, partition: Partition) {
        if let Some(owned) = self.lock().get_mut(&partition) {
            owned.claim = None;
        }
    }

    /// Drops all claims: the state Redis is a different server or lost its data.
    pub(crate) fn unclaim_all(&self) {
        self.lock().values_mut().for_each(|owned| owned.claim = None);
    }

    /// Claim of a partition; `None` if this process has none.
    pub(crate) fn claim(&self, partition: Partition) -> Option<String> {
        self.lock().get(&partition)?.claim.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visible(partition: u16, at: UnixMillis) -> VisibleThrough {
        VisibleThrough { partitions: BTreeMap::from([(Partition(partition), at)]), complete: false }
    }

    fn tag(name: &str) -> Tags {
        Tags::from([("t".parse().unwrap(), name.to_owned())])
    }

    #[test]
    fn a_partition_is_not_pushed_before_it_is_known_how_far_it_counts() {
        let owned = OwnedPartitions::default();
        owned.begin(&[Partition(1), Partition(2)]);
        assert_eq!(owned.take_pushes(), []);
        owned.observe(&visible(2, 7));
        let pushes = owned.take_pushes();
        assert_eq!(
            (pushes.len(), pushes[0].partition, pushes[0].all_dirty),
            (1, Partition(2), true)
        );
    }

    #[test]
    fn a_partition_is_shown_as_far_as_its_counts_are_published() {
        let owned = OwnedPartitions::default();
        owned.begin(&[Partition(1), Partition(2)]);
        let counted = BTreeMap::from([(Partition(1), 9), (Partition(2), 5)]);
        owned.observe(&VisibleThrough {
            partitions: BTreeMap::from([(Partition(1), 7), (Partition(2), 6)]),
            complete: true,
        });
        assert_eq!(owned.shown(&counted), BTreeMap::new(), "nothing is published");
        let pushes = owned.take_pushes();
        owned.claimed(Partition(1), "c");
        owned.claimed(Partition(2), "c");
        owned.published(&pushes[..1]);
        assert_eq!(owned.shown(&counted), BTreeMap::from([(Partition(1), 7)]));
        owned.published(&pushes);
        let both = BTreeMap::from([(Partition(1), 7), (Partition(2), 5)]);
        assert_eq!(owned.shown(&counted), both, "never more than is counted");
        // A different process, or an emptied Redis, has the leaderboards.
        owned.unclaim(Partition(1));
        owned.published(&[PendingPush { visible: 8, ..pushes[0].clone() }]);
        assert_eq!(owned.shown(&counted)[&Partition(1)], 7, "a push that was fenced off");
        owned.end(&[Partition(1), Partition(2)]);
        assert_eq!(owned.shown(&counted), BTreeMap::new());
    }

    #[test]
    fn a_failed_push_is_requeued() {
        let owned = OwnedPartitions::default();
        owned.begin(&[Partition(1)]);
        owned.observe(&visible(1, 7));
        owned.take_pushes();
        owned.claimed(Partition(1), "c");
        owned.mark_dirty(Partition(1), tag("a"));
        let push = owned.take_pushes().remove(0);
        assert_eq!((push.all_dirty, &push.tags), (false, &tag("a")));
        owned.requeue_push(&push);
        owned.mark_dirty(Partition(1), tag("b"));
        assert_eq!(owned.take_pushes().remove(0).tags.len(), 2);
        owned.unclaim(Partition(1));
        assert!(
            owned.take_pushes().remove(0).all_dirty,
            "after a lost claim Redis may hold anything"
        );
        owned.end(&[Partition(1)]);
        owned.mark_dirty(Partition(1), tag("c"));
        assert_eq!(owned.take_pushes(), []);
    }
}
