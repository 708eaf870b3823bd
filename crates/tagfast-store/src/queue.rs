//! A bounded queue that is fair by tenant: the data structure alone, without waiting.
//!
//! A batch takes one item of each waiting tenant in turn, so a tenant with a flood delays the others by at most their share
//! of a batch. A tenant may hold as much of the queue as is still free: one alone half of it, two a third each, so there is
//! always room for a tenant that comes later. Within a tenant the order is that of arrival.

use std::collections::{HashMap, VecDeque};

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

struct TenantQueue<T> {
    items: VecDeque<T>,
    units: usize,
}

/// The queue.
pub struct FairQueue<T> {
    bound: usize,
    tenants: HashMap<TenantId, TenantQueue<T>>,
    /// Tenants that wait, next one first.
    turn: VecDeque<TenantId>,
    len: usize,
    units: usize,
}

impl<T: Queued> FairQueue<T> {
    /// An empty queue with room for `bound` units.
    pub fn new(bound: usize) -> Self {
        Self { bound, tenants: HashMap::new(), turn: VecDeque::new(), len: 0, units: 0 }
    }

    /// Takes an item in, or gives it back with the reason.
    pub fn push(&mut self, item: T) -> Result<(), (NoRoom, T)> {
        let cost = item.units();
        let mine = self.tenants.get(item.tenant()).map_or(0, |t| t.units);
        let free = self.bound.saturating_sub(self.units);
        if cost > free {
            return Err((NoRoom::Full, item));
        }
        if mine > 0 && mine + cost > free {
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
            self.turn.push_back(tenant.clone());
            self.tenants.insert(tenant, TenantQueue { items: VecDeque::from([item]), units: cost });
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
                cost += item.units();
                taken.push(item);
            }
            if queue.items.is_empty() {
                self.tenants.remove(&tenant);
            } else {
                self.turn.push_back(tenant);
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
