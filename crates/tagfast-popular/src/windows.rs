//! Windows as buckets: pure arithmetic.
//!
//! A tagging counts in a window while the bucket of its `added_at` is at or above the window's
//! `low` marker. The marker, not the clock, decides, so that a late event and the expiry can never
//! disagree about a bucket.

use tagfast_domain::UnixMillis;

use crate::Window;

/// The size of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Unit {
    Minute,
    Hour,
}

impl Unit {
    pub(crate) const ALL: [Self; 2] = [Self::Minute, Self::Hour];

    pub(crate) fn code(self) -> i64 {
        match self {
            Self::Minute => 0,
            Self::Hour => 1,
        }
    }

    pub(crate) fn bucket(self, at: UnixMillis) -> i64 {
        match self {
            Self::Minute => at.div_euclid(60_000),
            Self::Hour => at.div_euclid(3_600_000),
        }
    }

    /// The window that needs a bucket of this unit longest.
    pub(crate) fn longest(self) -> Window {
        match self {
            Self::Minute => Window::Hour,
            Self::Hour => Window::Week,
        }
    }
}

/// The windows that expire, with their unit and number of buckets.
pub(crate) const EXPIRING: [(Window, Unit, i64); 3] = [
    (Window::Hour, Unit::Minute, 60),
    (Window::Day, Unit::Hour, 24),
    (Window::Week, Unit::Hour, 168),
];

/// The number of a window in the tables.
pub(crate) fn code(window: Window) -> i64 {
    match window {
        Window::All => 0,
        Window::Hour => 1,
        Window::Day => 2,
        Window::Week => 3,
    }
}

/// The oldest bucket that counts, per expiring window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lows(pub(crate) [i64; 3]);

impl Lows {
    /// Where they stand at a moment: the bucket of `now` is the last of the window.
    pub(crate) fn at(now: UnixMillis) -> Self {
        Self(EXPIRING.map(|(_, unit, buckets)| unit.bucket(now) - buckets + 1))
    }

    /// The later of both: a clock that steps back brings nothing back.
    pub(crate) fn max(self, other: Self) -> Self {
        let mut lows = self.0;
        lows.iter_mut().zip(other.0).for_each(|(a, b)| *a = (*a).max(b));
        Self(lows)
    }

    /// The windows a tagging of this moment counts in; `All` always does.
    pub(crate) fn windows(&self, added_at: UnixMillis) -> impl Iterator<Item = Window> + use<> {
        let lows = self.0;
        let expiring = EXPIRING
            .into_iter()
            .zip(lows)
            .filter(move |((_, unit, _), low)| unit.bucket(added_at) >= *low)
            .map(|((window, _, _), _)| window);
        std::iter::once(Window::All).chain(expiring)
    }

    /// The low marker of a window's buckets.
    pub(crate) fn of(&self, window: Window) -> i64 {
        EXPIRING
            .iter()
            .zip(self.0)
            .find(|((w, _, _), _)| *w == window)
            .map_or(i64::MIN, |(_, low)| low)
    }
}
