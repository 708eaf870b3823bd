//! A bounded queue with weighted fairness by tenant: the data structure only, without waiting.
//! Backpressure begins here.
//!
//! A batch visits the waiting tenants round-robin and takes as many items from each as its weight
//! (default 1), so a flooding tenant delays the others by at most its share. A tenant may hold as
//! much of the queue as is still free, times its weight: with weight 1, one tenant alone gets half
//! and two get a third each, so there is always room for a tenant that arrives later. Items of one
//! tenant keep their order.
//!
//! How it fails: a full queue returns the item with [`QueueFull`]; it never blocks or drops.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tagfast_domain::TenantId;

/// An item of a [`FairQueue`].
pub trait Queued {
    /// The owning tenant.
    fn tenant(&self) -> &TenantId;
    /// Units of the queue's capacity that it takes, at least 1.
    fn units(&self) -> usize;
}

/// Why an item was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueFull {
    /// The whole queue is full.
    Full,
    /// The tenant has used its share of the queue.
    TenantShare,
}

/// Relative weights of tenants, 1 to 100; a tenant that is not listed has weight 1.
#[derive(Debug, Clone, Default)]
pub struct TenantWeights(Arc<HashMap<TenantId, u8>>);

impl TenantWeights {
    /// The largest weight.
    pub const WEIGHT_MAX: u8 = 100;

    /// These weights, each brought between 1 and [`TenantWeights::WEIGHT_MAX`].
    pub fn new(weights: impl IntoIterator<Item = (TenantId, u8)>) -> Self {
        let clamped =
            weights.into_iter().map(|(tenant, weight)| (tenant, weight.clamp(1, Self::WEIGHT_MAX)));
        Self(Arc::new(clamped.collect()))
    }

    /// The weight of a tenant.
    pub fn of(&self, tenant: &TenantId) -> usize {
        self.0.get(tenant).copied().map_or(1, usize::from)
    }
}

struct TenantQueue<T> {
    items: VecDeque<T>,
    units: usize,
    weight: usize,
    /// Items that may still be taken in this round.
    left: usize,
}

/// A bounded queue with weighted round-robin by tenant.
pub struct FairQueue<T> {
    bound: usize,
    weights: TenantWeights,
    tenants: HashMap<TenantId, TenantQueue<T>>,
    /// Waiting tenants, the next one first.
    rotation: VecDeque<TenantId>,
    len: usize,
    units: usize,
}

impl<T: Queued> FairQueue<T> {
    /// An empty queue of `bound` units with equal weights.
    pub fn new(bound: usize) -> Self {
        Self::weighted(bound, TenantWeights::default())
    }

    /// An empty queue of `bound` units.
    pub fn weighted(bound: usize, weights: TenantWeights) -> Self {
        Self {
            bound,
            weights,
            tenants: HashMap::new(),
            rotation: VecDeque::new(),
            len: 0,
            units: 0,
        }
    }

    /// Changes the capacity to `bound` units; queued items stay even beyond it.
    pub fn set_bound(&mut self, bound: usize) {
        self.bound = bound;
    }

    /// Queues an item.
    ///
    /// # Errors
    ///
    /// The item with [`QueueFull`] when it does not fit.
    pub fn push(&mut self, item: T) -> Result<(), (QueueFull, T)> {
        let cost = item.units();
        let mine = self.tenants.get(item.tenant()).map_or(0, |t| t.units);
        let free = self.bound.saturating_sub(self.units);
        if cost > free {
            return Err((QueueFull::Full, item));
        }
        let share = free.saturating_mul(self.weights.of(item.tenant()));
        if mine > 0 && mine + cost > share {
            return Err((QueueFull::TenantShare, item));
        }
        self.put(item);
        Ok(())
    }

    fn put(&mut self, item: T) {
        let cost = item.units();
        if let Some(queue) = self.tenants.get_mut(item.tenant()) {
            queue.units += cost;
            queue.items.push_back(item);
        } else {
            let tenant = item.tenant().clone();
            let weight = self.weights.of(&tenant);
            self.rotation.push_back(tenant.clone());
            let queue =
                TenantQueue { items: VecDeque::from([item]), units: cost, weight, left: weight };
            self.tenants.insert(tenant, queue);
        }
        self.units += cost;
        self.len += 1;
    }

    /// Dequeues up to `max` items, and stops once `units` units are reached.
    pub fn take(&mut self, max: usize, units: usize) -> Vec<T> {
        let mut taken = Vec::with_capacity(self.len.min(max));
        let mut cost = 0;
        while taken.len() < max && cost < units {
            let Some(tenant) = self.rotation.pop_front() else { break };
            let Some(queue) = self.tenants.get_mut(&tenant) else { continue };
            if let Some(item) = queue.items.pop_front() {
                queue.units -= item.units();
                queue.left -= 1;
                cost += item.units();
                taken.push(item);
            }
            if queue.items.is_empty() {
                self.tenants.remove(&tenant);
            } else if queue.left == 0 {
                queue.left = queue.weight;
                self.rotation.push_back(tenant);
            } else {
                // The tenant's round continues in the next batch.
                self.rotation.push_front(tenant);
            }
        }
        self.len -= taken.len();
        self.units -= cost;
        taken
    }

    /// Dequeues every item for which `remove` is true, at any place of the queue.
    pub fn take_if(&mut self, remove: impl Fn(&T) -> bool) -> Vec<T> {
        let all = self.take(usize::MAX, usize::MAX);
        let (out, stay): (Vec<T>, Vec<T>) = all.into_iter().partition(remove);
        stay.into_iter().for_each(|item| self.put(item));
        out
    }

    /// Number of queued items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Item(TenantId, usize);

    impl Queued for Item {
        fn tenant(&self) -> &TenantId {
            &self.0
        }

        fn units(&self) -> usize {
            1
        }
    }

    fn tenant(name: &str) -> TenantId {
        TenantId::parse(name).expect("a tenant")
    }

    /// Queues items until one is refused; returns how many were accepted.
    fn fill(queue: &mut FairQueue<Item>, name: &str) -> usize {
        (0..).find(|n| queue.push(Item(tenant(name), *n)).is_err()).expect("it is bounded")
    }

    /// The number of items per tenant in a batch, in the order of `names`.
    fn of<const N: usize>(batch: &[Item], names: [&str; N]) -> [usize; N] {
        names.map(|name| batch.iter().filter(|item| item.0.as_str() == name).count())
    }

    #[test]
    fn a_tenant_gets_its_weight_of_each_round_also_across_batches() {
        let weights = TenantWeights::new([(tenant("big"), 3)]);
        let mut queue = FairQueue::weighted(1000, weights);
        for n in 0..30 {
            for name in ["big", "small", "other"] {
                assert!(queue.push(Item(tenant(name), n)).is_ok());
            }
        }
        for round in 1..=5 {
            // Two batches are one round; the cut lies within the share of the big tenant.
            let mut taken = queue.take(2, usize::MAX);
            taken.extend(queue.take(3, usize::MAX));
            assert_eq!(of(&taken, ["big", "small", "other"]), [3, 1, 1], "round {round}");
            let big: Vec<usize> =
                taken.iter().filter(|i| i.0.as_str() == "big").map(|i| i.1).collect();
            assert!(big.is_sorted(), "in order of arrival: {big:?}");
        }
        assert_eq!(queue.len(), 65);
    }

    #[test]
    fn weights_share_the_capacity_and_leave_room_for_a_late_tenant() {
        let mut queue = FairQueue::weighted(60, TenantWeights::new([(tenant("big"), 4)]));
        assert_eq!(fill(&mut queue, "big"), 48, "four fifths: of six places one is a newcomer's");
        assert!(queue.push(Item(tenant("late"), 0)).is_ok());
        assert!(matches!(queue.push(Item(tenant("big"), 0)), Err((QueueFull::TenantShare, _))));
        let mut alike = FairQueue::new(60);
        assert_eq!(
            (fill(&mut alike, "one"), fill(&mut alike, "two"), fill(&mut alike, "three")),
            (30, 15, 8)
        );
    }

    #[test]
    fn a_tenant_at_ten_times_its_share_starves_no_other() {
        let mut queue = FairQueue::new(256);
        let mut refused = [0; 3];
        let mut served = [0; 3];
        let names = ["flood", "a", "b"];
        // A round serves 16; the flood offers 160, the others 5 each: less than a third.
        for round in 0..200 {
            for (n, offered) in [160, 5, 5].into_iter().enumerate() {
                for k in 0..offered {
                    refused[n] +=
                        usize::from(queue.push(Item(tenant(names[n]), round * 1000 + k)).is_err());
                }
            }
            let batch = queue.take(16, usize::MAX);
            of(&batch, names).into_iter().zip(&mut served).for_each(|(n, sum)| *sum += n);
        }
        assert_eq!(refused[1..], [0, 0], "{refused:?}");
        assert!(served[1] >= 990 && served[2] >= 990 && served[0] >= 1000, "{served:?}");
    }

    #[test]
    fn weights_out_of_range_are_clamped() {
        let weights = TenantWeights::new([(tenant("none"), 0), (tenant("all"), 255)]);
        assert_eq!(["none", "all", "unnamed"].map(|name| weights.of(&tenant(name))), [1, 100, 1]);
    }

    #[test]
    fn a_smaller_bound_drops_nothing() {
        let mut queue = FairQueue::new(8);
        assert_eq!(fill(&mut queue, "one"), 4);
        queue.set_bound(2);
        assert!(matches!(queue.push(Item(tenant("two"), 0)), Err((QueueFull::Full, _))));
        assert_eq!(queue.take(10, 10).len(), 4);
        assert!(queue.push(Item(tenant("two"), 0)).is_ok());
    }
}
