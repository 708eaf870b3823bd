//! What a process knows of the epochs of a store.
//!
//! How it fails: it does not; what is not known is `None`, and [`RepairWatch`] in doubt says that
//! something may be missing.

use tagfast_domain::EpochId;
use tagfast_sharding::LogicalShard;

/// The epochs of a store's history. Asked for every cache entry, so it must answer from memory.
pub trait History: Send + Sync {
    /// The current epoch of a shard; `None` while it is unknown.
    fn current(&self, shard: LogicalShard) -> Option<EpochId>;

    /// The epoch end: the log position up to which `epoch` is part of the current history of a
    /// shard. `u64::MAX`: all of it (the current epoch); 0: nothing. `None`: this process does not
    /// know the epoch; it may be a newer one.
    fn epoch_end(&self, shard: LogicalShard, epoch: EpochId) -> Option<u64>;

    /// Whether views of a shard may lack acknowledged writes of before a failover, because their
    /// repair is not closed. Such views are marked with [`REPAIR_PENDING`](crate::REPAIR_PENDING).
    fn is_repair_open(&self, _shard: LogicalShard) -> bool {
        false
    }
}

/// What a process knew of a repair before it sent a read or a write.
///
/// A repair can be closed between the moment in which a primary answers and the one in which its
/// answer is looked at; what was read before it may lack what it brought back all the same.
#[derive(Debug, Clone, Copy)]
pub struct RepairWatch {
    was_open: bool,
    epoch: Option<EpochId>,
}

impl RepairWatch {
    /// Before the request is sent.
    pub fn begin(history: &dyn History, shard: LogicalShard) -> Self {
        Self { was_open: history.is_repair_open(shard), epoch: history.current(shard) }
    }

    /// Whether what was answered since, in this epoch, may lack acknowledged writes of before a
    /// failover.
    pub fn may_lack(self, history: &dyn History, shard: LogicalShard, epoch: EpochId) -> bool {
        // A repair of an epoch that began meanwhile may have been opened and closed.
        let has_failed_over = self.epoch.is_some_and(|before| before != epoch);
        self.was_open || has_failed_over || history.is_repair_open(shard)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

    use super::*;

    /// One shard: its epoch, and whether its repair is open.
    #[derive(Default)]
    struct Failovers {
        epoch: AtomicU8,
        is_open: AtomicBool,
    }

    impl History for Failovers {
        fn current(&self, _: LogicalShard) -> Option<EpochId> {
            let epoch = self.epoch.load(Ordering::SeqCst);
            (epoch > 0).then_some(EpochId([epoch; 16]))
        }

        fn epoch_end(&self, _: LogicalShard, _: EpochId) -> Option<u64> {
            None
        }

        fn is_repair_open(&self, _: LogicalShard) -> bool {
            self.is_open.load(Ordering::SeqCst)
        }
    }

    /// Every order of: the epoch begins with its repair, the repair is closed, the request is sent,
    /// the primary answers, the answer is looked at.
    #[test]
    fn only_what_was_answered_after_the_closing_lacks_nothing() {
        let shard = LogicalShard::from_number(0).expect("a shard");
        for sent in 0..3 {
            for answered in sent..3 {
                for seen in answered..3 {
                    // 0: before the failover, 1: the repair is open, 2: it is closed.
                    let history = Failovers::default();
                    let go_to = |stage: u8| {
                        history.epoch.store(1 + u8::from(stage > 0), Ordering::SeqCst);
                        history.is_open.store(stage == 1, Ordering::SeqCst);
                    };
                    go_to(sent);
                    let watch = RepairWatch::begin(&history, shard);
                    let epoch = EpochId([1 + u8::from(answered > 0); 16]);
                    go_to(seen);
                    let may_lack = watch.may_lack(&history, shard, epoch);
                    assert!(may_lack || answered != 1, "{sent} {answered} {seen}");
                    let is_settled = sent == seen && seen != 1;
                    assert!(!may_lack || !is_settled, "{sent} {answered} {seen}");
                }
            }
        }
    }

    #[test]
    fn a_process_that_starts_has_seen_no_failover() {
        let shard = LogicalShard::from_number(0).expect("a shard");
        let history = Failovers::default();
        let watch = RepairWatch::begin(&history, shard);
        assert!(!watch.may_lack(&history, shard, EpochId([1; 16])));
    }
}
