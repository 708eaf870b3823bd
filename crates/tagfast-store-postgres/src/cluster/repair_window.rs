//! The time between a failover and the closing of its repair, as this process sees it: what it saw
//! when, whether reads may still lack acknowledged writes, and whether an earlier attempt of a
//! write may still come back.
//!
//! How it fails: towards "may lack" and "may come back". A suspicion that turns out to be none is
//! forgotten with the next poll that finds the primary in place.

use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use tagfast_domain::EpochId;
use tagfast_failover::BootTime;
use tokio::sync::watch;
use tokio_postgres::types::ToSql;

use crate::connect::{Connection, PgError, within};
use crate::options::limit;

/// When this process saw the phases of a failover; `None`: it did not, or not yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PhaseTimes {
    /// A call to the primary failed, or its leader key was gone.
    pub(crate) suspected: Option<BootTime>,
    /// There was no primary that writes could go to.
    pub(crate) held: Option<BootTime>,
    /// The leader of a new term was seen out of recovery.
    pub(crate) promoted: Option<BootTime>,
    /// The first write was acknowledged.
    pub(crate) first_acknowledged: Option<BootTime>,
}

/// How far the repair of an epoch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum RepairState {
    /// The process has begun in this epoch, and its primary has not said. It has read nothing that
    /// could be missing.
    Unheard,
    /// Writes of earlier epochs may be joined.
    Open,
    /// None is joined any more, in the log of this primary.
    Closed,
    /// Nor in that of the next one: every streaming replica has the closing.
    Final,
}

#[derive(Debug, Default)]
struct Window {
    /// `None`: none was adopted.
    epoch: Option<EpochId>,
    /// Of the failover that began `epoch`.
    times: PhaseTimes,
    /// Of the failover that may be under way.
    next: PhaseTimes,
}

/// The window of one cluster.
#[derive(Debug, Default)]
pub(crate) struct RepairWindow {
    window: Mutex<Window>,
    /// A [`RepairState`]. Changed under the lock, and read without it: every read and every batch
    /// of writes asks.
    state: AtomicU8,
    /// The newest epoch in which a write was acknowledged.
    acknowledged: watch::Sender<Option<EpochId>>,
}

impl RepairWindow {
    /// Something of the primary failed.
    pub(crate) fn suspect(&self, now: BootTime) {
        self.window.lock().next.suspected.get_or_insert(now);
    }

    /// Writes wait for a primary.
    pub(crate) fn hold(&self, now: BootTime) {
        let mut window = self.window.lock();
        window.next.suspected.get_or_insert(now);
        window.next.held.get_or_insert(now);
    }

    /// The leader was seen out of recovery; `epoch`: that of its term, `None`: it has none yet.
    pub(crate) fn promote(&self, epoch: Option<EpochId>, now: BootTime) {
        let mut window = self.window.lock();
        let is_known = window.epoch.is_some() && window.epoch == epoch;
        let times = if is_known { &mut window.times } else { &mut window.next };
        times.promoted.get_or_insert(now);
    }

    /// The primary of the current epoch is in place.
    pub(crate) fn settle(&self, epoch: EpochId) {
        let mut window = self.window.lock();
        if window.epoch == Some(epoch) {
            window.next = PhaseTimes::default();
        }
    }

    /// An epoch was adopted. `after_another`: this process was in an earlier one, so it saw the
    /// failover, and what it read before may be missing.
    pub(crate) fn begin(&self, epoch: EpochId, after_another: bool) {
        let mut window = self.window.lock();
        let next = std::mem::take(&mut window.next);
        window.times = if after_another { next } else { PhaseTimes::default() };
        window.epoch = Some(epoch);
        let state = if after_another { RepairState::Open } else { RepairState::Unheard };
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// How far the repair of an epoch is, as its primary says.
    pub(crate) fn set_state(&self, epoch: EpochId, state: RepairState) {
        let window = self.window.lock();
        if window.epoch == Some(epoch) {
            self.state.store(state as u8, Ordering::Relaxed);
        }
    }

    fn is_in(&self, states: &[RepairState]) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        states.iter().any(|one| *one as u8 == state)
    }

    /// Whether reads may lack acknowledged writes of earlier epochs.
    pub(crate) fn is_open(&self) -> bool {
        self.is_in(&[RepairState::Open])
    }

    /// Whether a replica may lack acknowledged writes of earlier epochs: not all of them have the
    /// closing in their logs.
    pub(crate) fn is_open_on_replicas(&self) -> bool {
        self.is_in(&[RepairState::Open, RepairState::Closed])
    }

    /// Whether no write of an earlier epoch can come back any more: what a content decides about a
    /// retry is final.
    pub(crate) fn is_final(&self) -> bool {
        self.is_in(&[RepairState::Final])
    }

    /// A write was acknowledged.
    pub(crate) fn acknowledge(&self, epoch: EpochId, now: BootTime) {
        let mut window = self.window.lock();
        if window.epoch == Some(epoch) && window.times.first_acknowledged.is_none() {
            window.times.first_acknowledged = Some(now);
            self.acknowledged.send_replace(Some(epoch));
        }
    }

    /// Waits until a write of this epoch was acknowledged; for ever, if none ever is.
    pub(crate) async fn first_acknowledged(&self, epoch: EpochId) {
        let mut acknowledged = self.acknowledged.subscribe();
        // The sender lives as long as this window.
        let _ = acknowledged.wait_for(|newest| *newest == Some(epoch)).await;
    }

    /// The phases of the failover that began this epoch.
    pub(crate) fn times(&self, epoch: EpochId) -> PhaseTimes {
        let window = self.window.lock();
        if window.epoch == Some(epoch) { window.times } else { PhaseTimes::default() }
    }
}

const SELECT_STATE: &str = "
SELECT repair_closed_at IS NOT NULL, verdicts_final_at IS NOT NULL FROM epoch WHERE id = $1";

/// How far the repair of an epoch is in this primary's history. That of an epoch without a row is
/// open.
pub(crate) async fn read_repair_state(
    server: &Connection,
    epoch: EpochId,
) -> Result<RepairState, PgError> {
    let id: &[u8] = &epoch.0;
    let parameters: [&(dyn ToSql + Sync); 1] = [&id];
    let row = server.client.query_opt(SELECT_STATE, &parameters);
    let row = within("reading the closing", limit::READ_TIMEOUT, row).await?;
    Ok(match row.map(|row| (row.get(0), row.get(1))) {
        Some((true, true)) => RepairState::Final,
        Some((true, false)) => RepairState::Closed,
        Some((false, _)) | None => RepairState::Open,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    const ONE: EpochId = EpochId([1; 16]);
    const TWO: EpochId = EpochId([2; 16]);

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    #[test]
    fn the_phases_of_a_failover_belong_to_the_epoch_that_it_began() {
        let window = RepairWindow::default();
        window.begin(ONE, false);
        assert!(!window.is_open(), "a process that starts has read nothing that could be missing");
        // A call failed, and the primary was found in place.
        window.suspect(at(1));
        window.settle(ONE);
        window.suspect(at(10));
        window.suspect(at(11));
        window.hold(at(12));
        window.promote(None, at(13));
        window.begin(TWO, true);
        window.promote(Some(TWO), at(14));
        window.acknowledge(ONE, at(15));
        window.acknowledge(TWO, at(16));
        window.acknowledge(TWO, at(17));
        let expected = PhaseTimes {
            suspected: Some(at(10)),
            held: Some(at(12)),
            promoted: Some(at(13)),
            first_acknowledged: Some(at(16)),
        };
        assert_eq!(window.times(TWO), expected);
        assert_eq!(window.times(ONE), PhaseTimes::default());
    }

    #[test]
    fn only_an_acknowledgement_of_its_epoch_ends_the_wait() {
        let window = RepairWindow::default();
        window.begin(ONE, false);
        let waits = |epoch| window.first_acknowledged(epoch).now_or_never().is_none();
        assert!(waits(ONE));
        window.acknowledge(ONE, at(1));
        assert!(!waits(ONE), "also of one that came before the wait");
        window.begin(TWO, true);
        let mut two = std::pin::pin!(window.first_acknowledged(TWO));
        assert!(two.as_mut().now_or_never().is_none());
        window.acknowledge(ONE, at(2));
        assert!(two.as_mut().now_or_never().is_none(), "an epoch that has ended");
        window.acknowledge(TWO, at(3));
        assert!(two.now_or_never().is_some());
    }

    #[test]
    fn an_older_epoch_closes_nothing() {
        let window = RepairWindow::default();
        window.begin(ONE, false);
        window.set_state(ONE, RepairState::Open);
        assert!(window.is_open());
        window.begin(TWO, true);
        window.set_state(ONE, RepairState::Final);
        assert!(window.is_open());
        window.set_state(TWO, RepairState::Closed);
        assert!(!window.is_open());
    }

    #[test]
    fn writes_may_come_back_until_the_replicas_have_the_closing() {
        let window = RepairWindow::default();
        for (epoch, after_another) in [(ONE, false), (TWO, true)] {
            window.begin(epoch, after_another);
            assert!(!window.is_final(), "nothing was heard of the closing yet");
            window.set_state(epoch, RepairState::Closed);
            assert!(!window.is_final(), "the next primary may lack the closing");
            assert!(!window.is_open() && window.is_open_on_replicas(), "so may a replica");
            window.set_state(epoch, RepairState::Final);
            assert!(window.is_final() && !window.is_open_on_replicas());
        }
    }
}
