//! The partitions that the group gave to this process, and what of them is still to be pushed to
//! the boards.
//!
//! Only bookkeeping: who pushes asks here what, and gives back what could not be pushed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tagfast_domain::UnixMillis;
use tagfast_events::{Partition, Visible};

use crate::owner::Tags;

/// Tags of a partition that wait for a push; with more of them everything is pushed.
const MOST_TAGS: usize = 100_000;

/// A partition of ours.
#[derive(Debug, Default)]
struct Owned {
    /// Everything committed before this is counted; none: it is being counted anew.
    visible: Option<UnixMillis>,
    /// What proves to the state Redis that we own it.
    claim: Option<String>,
    /// Everything is to be pushed.
    everything: bool,
    tags: Tags,
}

/// What is to be pushed of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Push {
    pub(crate) partition: Partition,
    /// None: it must be claimed first, and everything pushed.
    pub(crate) claim: Option<String>,
    pub(crate) everything: bool,
    pub(crate) tags: Tags,
    /// Read before the counts are.
    pub(crate) visible: UnixMillis,
}

/// The partitions of this process.
#[derive(Debug, Default)]
pub(crate) struct Assigned(Mutex<BTreeMap<Partition, Owned>>);

impl Assigned {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Partition, Owned>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are ours from now on; nothing is pushed of them before it is known how far they are.
    pub(crate) fn begin(&self, partitions: &[Partition]) {
        let mut owned = self.lock();
        for partition in partitions {
            owned.insert(*partition, Owned { everything: true, ..Owned::default() });
        }
    }

    pub(crate) fn end(&self, partitions: &[Partition]) {
        self.lock().retain(|partition, _| !partitions.contains(partition));
    }

    pub(crate) fn partitions(&self) -> Vec<Partition> {
        self.lock().keys().copied().collect()
    }

    /// Counts of these tags moved.
    pub(crate) fn mark(&self, partition: Partition, tags: Tags) {
        if let Some(owned) = self.lock().get_mut(&partition) {
            owned.tags.extend(tags);
            if owned.tags.len() > MOST_TAGS {
                owned.tags.clear();
                owned.everything = true;
            }
        }
    }

    /// Counts of any tag may have moved.
    pub(crate) fn mark_everything(&self) {
        self.lock().values_mut().for_each(|owned| owned.everything = true);
    }

    pub(crate) fn see(&self, visible: &Visible) {
        let mut owned = self.lock();
        for (partition, at) in &visible.partitions {
            if let Some(owned) = owned.get_mut(partition) {
                owned.visible = owned.visible.max(Some(*at));
            }
        }
    }

    /// Takes out what is to be pushed of each partition that is far enough to be shown.
    pub(crate) fn take(&self) -> Vec<Push> {
        let mut owned = self.lock();
        let push = |(partition, owned): (&Partition, &mut Owned)| {
            let visible = owned.visible?;
            Some(Push {
                partition: *partition,
                claim: owned.claim.clone(),
                everything: std::mem::take(&mut owned.everything) || owned.claim.is_none(),
                tags: std::mem::take(&mut owned.tags),
                visible,
            })
        };
        owned.iter_mut().filter_map(push).collect()
    }

    /// A push that was not done is to be done later.
    pub(crate) fn give_back(&self, push: &Push) {
        if let Some(owned) = self.lock().get_mut(&push.partition) {
            owned.everything |= push.everything;
            owned.tags.extend(push.tags.iter().cloned());
        }
    }

    pub(crate) fn claimed(&self, partition: Partition, claim: &str) {
        if let Some(owned) = self.lock().get_mut(&partition) {
            owned.claim = Some(claim.to_owned());
        }
    }

    /// Somebody else claimed it, or nobody knows of our claim any more.
    pub(crate) fn unclaimed(&self, partition: Partition) {
        if let Some(owned) = self.lock().get_mut(&partition) {
            owned.claim = None;
        }
    }

    /// The state Redis is another one: all claims are worth nothing.
    pub(crate) fn unclaim_all(&self) {
        self.lock().values_mut().for_each(|owned| owned.claim = None);
    }

    /// Our claim of a partition.
    pub(crate) fn claim(&self, partition: Partition) -> Option<String> {
        self.lock().get(&partition)?.claim.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visible(partition: u16, at: UnixMillis) -> Visible {
        Visible { partitions: BTreeMap::from([(Partition(partition), at)]), complete: false }
    }

    fn tag(name: &str) -> Tags {
        Tags::from([("t".parse().unwrap(), name.to_owned())])
    }

    #[test]
    fn nothing_is_pushed_before_it_is_known_how_far_it_is() {
        let assigned = Assigned::default();
        assigned.begin(&[Partition(1), Partition(2)]);
        assert_eq!(assigned.take(), []);
        assigned.see(&visible(2, 7));
        let pushes = assigned.take();
        assert_eq!(
            (pushes.len(), pushes[0].partition, pushes[0].everything),
            (1, Partition(2), true)
        );
    }

    #[test]
    fn what_was_not_pushed_is_pushed_later() {
        let assigned = Assigned::default();
        assigned.begin(&[Partition(1)]);
        assigned.see(&visible(1, 7));
        assigned.take();
        assigned.claimed(Partition(1), "c");
        assigned.mark(Partition(1), tag("a"));
        let push = assigned.take().remove(0);
        assert_eq!((push.everything, &push.tags), (false, &tag("a")));
        assigned.give_back(&push);
        assigned.mark(Partition(1), tag("b"));
        assert_eq!(assigned.take().remove(0).tags.len(), 2);
        assigned.unclaimed(Partition(1));
        assert!(
            assigned.take().remove(0).everything,
            "a lost claim means that anything may be there"
        );
        assigned.end(&[Partition(1)]);
        assigned.mark(Partition(1), tag("c"));
        assert_eq!(assigned.take(), []);
    }
}
