//! A bounded queue that is fair by tenant: the data structure alone, without waiting.
//!
//! A batch takes of each waiting tenant in turn as many items as its weight says, one if nothing
//! else was said, so a tenant with a flood delays the others by at most their share. A tenant may
//! hold as much of the queue as is still free, times its weight: of weight 1 one alone half of it,
//! two a third each, so there is always room for a tenant that comes later. Within a tenant the
//! order is that of arrival.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tagfast_domain::TenantId;

/// What can be queued.
pub trait Queued {
    /// Whose it is.
    fn tenant(&self) -> &TenantId;
    /// How much room it takes, at least 1.
    fn units(&self) -> usize;
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// The queue is full.
    Full,
    /// The tenant holds its share.
    TenantShare,
}

/// How much tenants matter beside each other, 1 to 100; 1 for whoever is not named.
#[derive(Debug, Clone, Default)]
pub struct TenantWeights(Arc<HashMap<TenantId, u8>>);

impl TenantWeights {
    /// The largest weight.
    pub const MOST: u8 = 100;

    /// These weights, each brought between 1 and [`TenantWeights::MOST`].
    pub fn new(weights: impl IntoIterator<Item = (TenantId, u8)>) -> Self {
        let clamped =
            weights.into_iter().map(|(tenant, weight)| (tenant, weight.clamp(1, Self::MOST)));
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
    /// Items that it may still have in this turn.
    left: usize,
}

/// The queue.
pub struct FairQueue<T> {
    bound: usize,
    weights: TenantWeights,
    tenants: HashMap<TenantId, TenantQueue<T>>,
    /// Tenants that wait, next one first.
    turn: VecDeque<TenantId>,
    len: usize,
    units: usize,
}

impl<T: Queued> FairQueue<T> {
    /// An empty queue with room for `bound` units, for tenants that matter alike.
    pub fn new(bound: usize) -> Self {
        Self::weighted(bound, TenantWeights::default())
    }

    /// An empty queue with room for `bound` units.
    pub fn weighted(bound: usize, weights: TenantWeights) -> Self {
        Self { bound, weights, tenants: HashMap::new(), turn: VecDeque::new(), len: 0, units: 0 }
    }

    /// Has room for so many units from now on; what waits already stays.
    pub fn set_bound(&mut self, bound: usize) {
        self.bound = bound;
    }

    /// Takes an item in, or gives it back with the reason.
    pub fn push(&mut self, item: T) -> Result<(), (NoRoom, T)> {
        let cost = item.units();
        let mine = self.tenants.get(item.tenant()).map_or(0, |t| t.units);
        let free = self.bound.saturating_sub(self.units);
        if cost > free {
            return Err((NoRoom::Full, item));
        }
        let share = free.saturating_mul(self.weights.of(item.tenant()));
        if mine > 0 && mine + cost > share {
            return Err((NoRoom::TenantShare, item));
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
            self.turn.push_back(tenant.clone());
            let queue =
                TenantQueue { items: VecDeque::from([item]), units: cost, weight, left: weight };
            self.tenants.insert(tenant, queue);
        }
        self.units += cost;
        self.len += 1;
    }

    /// Takes out at most `most` items, and no more once `units` are reached.
    pub fn take(&mut self, most: usize, units: usize) -> Vec<T> {
        let mut taken = Vec::with_capacity(self.len.min(most));
        let mut cost = 0;
        while taken.len() < most && cost < units {
            let Some(tenant) = self.turn.pop_front() else { break };
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
                self.turn.push_back(tenant);
            } else {
                // A turn may go on in the next batch.
                self.turn.push_front(tenant);
            }
        }
        self.len -= taken.len();
        self.units -= cost;
        taken
    }

    /// Takes out what `gone` names, wherever it waits.
    pub fn take_if(&mut self, gone: impl Fn(&T) -> bool) -> Vec<T> {
        let all = self.take(usize::MAX, usize::MAX);
        let (out, stay): (Vec<T>, Vec<T>) = all.into_iter().partition(gone);
        stay.into_iter().for_each(|item| self.put(item));
        out
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
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

    /// Fills the queue as far as it takes items; how many it took.
    fn fill(queue: &mut FairQueue<Item>, name: &str) -> usize {
        (0..).find(|n| queue.push(Item(tenant(name), *n)).is_err()).expect("it is bounded")
    }

    /// Of each tenant how many items a batch has, in the order of the names.
    fn of<const N: usize>(batch: &[Item], names: [&str; N]) -> [usize; N] {
        names.map(|name| batch.iter().filter(|item| item.0.as_str() == name).count())
    }

    #[test]
    fn a_tenant_has_its_weight_of_a_turn_also_across_batches() {
        let weights = TenantWeights::new([(tenant("big"), 3)]);
        let mut queue = FairQueue::weighted(1000, weights);
        for n in 0..30 {
            for name in ["big", "small", "other"] {
                assert!(queue.push(Item(tenant(name), n)).is_ok());
            }
        }
        for round in 1..=5 {
            // Two batches are a turn; the cut lies within the turn of the big one.
            let mut taken = queue.take(2, usize::MAX);
            taken.extend(queue.take(3, usize::MAX));
            assert_eq!(of(&taken, ["big", "small", "other"]), [3, 1, 1], "turn {round}");
            let big: Vec<usize> =
                taken.iter().filter(|i| i.0.as_str() == "big").map(|i| i.1).collect();
            assert!(big.is_sorted(), "in the order of arrival: {big:?}");
        }
        assert_eq!(queue.len(), 65);
    }

    #[test]
    fn weights_share_the_room_and_leave_some_for_who_comes_later() {
        let mut queue = FairQueue::weighted(60, TenantWeights::new([(tenant("big"), 4)]));
        assert_eq!(fill(&mut queue, "big"), 48, "four fifths: of six places one is a newcomer's");
        assert!(queue.push(Item(tenant("late"), 0)).is_ok());
        assert!(matches!(queue.push(Item(tenant("big"), 0)), Err((NoRoom::TenantShare, _))));
        let mut alike = FairQueue::new(60);
        assert_eq!(
            (fill(&mut alike, "one"), fill(&mut alike, "two"), fill(&mut alike, "three")),
            (30, 15, 8)
        );
    }

    #[test]
    fn a_tenant_at_ten_times_its_share_starves_nobody() {
        let mut queue = FairQueue::new(256);
        let mut refused = [0; 3];
        let mut served = [0; 3];
        let names = ["flood", "a", "b"];
        // A turn serves 16; the flood offers 160 of them, the others 5 each: less than a third.
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
    fn weights_out_of_bounds_are_brought_into_them() {
        let weights = TenantWeights::new([(tenant("none"), 0), (tenant("all"), 255)]);
        assert_eq!(["none", "all", "unnamed"].map(|name| weights.of(&tenant(name))), [1, 100, 1]);
    }

    #[test]
    fn a_smaller_bound_lets_go_of_nothing() {
        let mut queue = FairQueue::new(8);
        assert_eq!(fill(&mut queue, "one"), 4);
        queue.set_bound(2);
        assert!(matches!(queue.push(Item(tenant("two"), 0)), Err((NoRoom::Full, _))));
        assert_eq!(queue.take(10, 10).len(), 4);
        assert!(queue.push(Item(tenant("two"), 0)).is_ok());
    }
}
