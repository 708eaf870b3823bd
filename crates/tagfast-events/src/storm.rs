//! When many records fail, the records are not to blame.
//!
//! A release that reads a field wrongly, or an index with the wrong mapping, makes every record
//! poison. Without this the whole stream would lie in the dead letters a minute later, in good
//! order. Pure: times come from the caller.

use std::collections::VecDeque;

use tagfast_domain::UnixMillis;

/// Letters within the window that are nobody's business yet.
const LETTERS: u64 = 20;
/// One letter in so many records is not.
const SHARE: u64 = 20;
/// The window.
const WINDOW_MS: i64 = 10_000;
/// Times within a slot of this length are counted together.
const SLOT_MS: i64 = 1000;
/// How long letters are written freely after somebody allowed it.
const ALLOWED_MS: i64 = 60_000;

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    number: i64,
    records: u64,
    letters: u64,
}

/// Counts records and letters of one consumer.
#[derive(Debug, Default)]
pub(crate) struct Storm {
    slots: VecDeque<Slot>,
    allowed_until: UnixMillis,
}

impl Storm {
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

    /// Records that came to a good end.
    pub(crate) fn done(&mut self, records: u64, now: UnixMillis) {
        self.slot(now).records += records;
    }

    /// Whether one more letter may be written; if so, it is counted.
    pub(crate) fn may_write(&mut self, now: UnixMillis) -> bool {
        self.slot(now);
        let letters = 1 + self.slots.iter().map(|slot| slot.letters).sum::<u64>();
        let records = 1 + self.slots.iter().map(|slot| slot.records).sum::<u64>();
        if letters > LETTERS && letters * SHARE > records && now >= self.allowed_until {
            return false;
        }
        let slot = self.slot(now);
        (slot.letters, slot.records) = (slot.letters + 1, slot.records + 1);
        true
    }

    /// Somebody looked, and wants the letters written.
    pub(crate) fn allow(&mut self, now: UnixMillis) {
        self.allowed_until = now + ALLOWED_MS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_letters_are_no_storm_and_twenty_one_of_few_are() {
        let mut storm = Storm::default();
        assert_eq!((0..30).filter(|_| storm.may_write(5000)).count(), 20);
        assert!(!storm.may_write(14_999), "the window has not passed");
        assert!(storm.may_write(15_000), "it has");
    }

    #[test]
    fn a_letter_in_a_hundred_records_never_is() {
        let mut storm = Storm::default();
        for n in 0..10_000 {
            storm.done(99, n * 10);
            assert!(storm.may_write(n * 10), "{n}");
        }
    }

    #[test]
    fn what_is_allowed_ends_by_itself() {
        let mut storm = Storm::default();
        assert_eq!((0..500).filter(|_| storm.may_write(0)).count(), 20);
        storm.allow(100);
        assert_eq!((0..500).filter(|_| storm.may_write(200)).count(), 500);
        let after = 100 + ALLOWED_MS;
        assert_eq!(
            (0..500).filter(|_| storm.may_write(after)).count(),
            20,
            "the next storm is one again"
        );
    }
}
