//! Decides when many failures become a dead-letter storm: then the records are not to blame.
//!
//! A release that misreads a field, or an index with a wrong mapping, makes every record poison.
//! Without this limit the whole stream would be parked a minute later. Pure: times come from the
//! caller.

use std::collections::VecDeque;

use tagfast_domain::UnixMillis;

/// Up to this many dead letters per window are never a storm.
const DEAD_LETTERS_MIN: u64 = 20;
/// Above one dead letter per this many records, parking stops.
const FAILED_SHARE_DIVISOR: u64 = 20;
/// Length of the window.
const WINDOW_MS: i64 = 10_000;
/// Length of a slot; times within a slot are counted together.
const SLOT_MS: i64 = 1000;
/// How long parking is unlimited after an operator allowed it.
const OVERRIDE_MS: i64 = 60_000;

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    number: i64,
    records: u64,
    dead_letters: u64,
}

/// Counts records and dead letters of one consumer.
#[derive(Debug, Default)]
pub(super) struct ParkingLimiter {
    slots: VecDeque<Slot>,
    override_until: UnixMillis,
}

impl ParkingLimiter {
    fn slot(&mut self, now: UnixMillis) -> &mut Slot {
        let number = now.div_euclid(SLOT_MS);
        while self.slots.front().is_some_and(|slot| slot.number <= number - WINDOW_MS / SLOT_MS) {
            self.slots.pop_front();
        }
        // A clock that steps back counts into the newest slot.
        if self.slots.back().is_none_or(|slot| slot.number < number) {
            self.slots.push_back(Slot { number, ..Slot::default() });
        }
        let last = self.slots.len() - 1;
        &mut self.slots[last]
    }

    /// Counts records that were applied or superseded.
    pub(super) fn record_done(&mut self, records: u64, now: UnixMillis) {
        self.slot(now).records += records;
    }

    /// Whether one more dead letter may be written; if so, counts it.
    pub(super) fn try_park(&mut self, now: UnixMillis) -> bool {
        self.slot(now);
        let dead_letters = 1 + self.slots.iter().map(|slot| slot.dead_letters).sum::<u64>();
        let records = 1 + self.slots.iter().map(|slot| slot.records).sum::<u64>();
        let storm =
            dead_letters > DEAD_LETTERS_MIN && dead_letters * FAILED_SHARE_DIVISOR > records;
        if storm && now >= self.override_until {
            return false;
        }
        let slot = self.slot(now);
        (slot.dead_letters, slot.records) = (slot.dead_letters + 1, slot.records + 1);
        true
    }

    /// An operator has looked and wants the dead letters written.
    pub(super) fn allow(&mut self, now: UnixMillis) {
        self.override_until = now + OVERRIDE_MS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_dead_letters_are_no_storm_and_twenty_one_of_few_are() {
        let mut limiter = ParkingLimiter::default();
        assert_eq!((0..30).filter(|_| limiter.try_park(5000)).count(), 20);
        assert!(!limiter.try_park(14_999), "the window has not passed");
        assert!(limiter.try_park(15_000), "it has");
    }

    #[test]
    fn a_dead_letter_in_a_hundred_records_never_is() {
        let mut limiter = ParkingLimiter::default();
        for n in 0..10_000 {
            limiter.record_done(99, n * 10);
            assert!(limiter.try_park(n * 10), "{n}");
        }
    }

    #[test]
    fn an_override_expires() {
        let mut limiter = ParkingLimiter::default();
        assert_eq!((0..500).filter(|_| limiter.try_park(0)).count(), 20);
        limiter.allow(100);
        assert_eq!((0..500).filter(|_| limiter.try_park(200)).count(), 500);
        let after = 100 + OVERRIDE_MS;
        assert_eq!(
            (0..500).filter(|_| limiter.try_park(after)).count(),
            20,
            "the next storm is one again"
        );
    }
}
