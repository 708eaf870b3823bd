//! Windows of time as buckets: pure arithmetic.
//!
//! A tagging counts in a window while the bucket of its `added_at` is at or above the start of the
//! window. The stored start, not the clock, decides, so that a late event and the expiry can never
//! disagree about a bucket.

use tagfast_domain::UnixMillis;

use crate::port::Window;

/// Size of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BucketUnit {
    /// 60 s.
    Minute,
    /// 3,600 s.
    Hour,
}

impl BucketUnit {
    /// All sizes.
    pub const ALL: [Self; 2] = [Self::Minute, Self::Hour];

    /// Number of the size in stored buckets.
    pub fn code(self) -> i64 {
        match self {
            Self::Minute => 0,
            Self::Hour => 1,
        }
    }

    /// Number of the bucket that contains `at` (Unix ms).
    pub fn bucket(self, at: UnixMillis) -> i64 {
        match self {
            Self::Minute => at.div_euclid(60_000),
            Self::Hour => at.div_euclid(3_600_000),
        }
    }

    /// The window that needs a bucket of this size longest.
    pub fn longest(self) -> Window {
        match self {
            Self::Minute => Window::Hour,
            Self::Hour => Window::Week,
        }
    }
}

/// Windows whose buckets expire, with the size and number of their buckets.
pub const EXPIRING_WINDOWS: [(Window, BucketUnit, i64); 3] = [
    (Window::Hour, BucketUnit::Minute, 60),
    (Window::Day, BucketUnit::Hour, 24),
    (Window::Week, BucketUnit::Hour, 168),
];

/// The oldest bucket that counts, per expiring window, in the order of [`EXPIRING_WINDOWS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowStarts(pub [i64; 3]);

impl WindowStarts {
    /// Every bucket counts in every window.
    pub const UNBOUNDED: Self = Self([i64::MIN; 3]);

    /// Window starts at `now` (Unix ms): the bucket of `now` is the last one of each window.
    pub fn at(now: UnixMillis) -> Self {
        Self(EXPIRING_WINDOWS.map(|(_, unit, buckets)| unit.bucket(now) - buckets + 1))
    }

    /// The later start of each window: a clock that steps back brings no bucket back.
    pub fn max(self, other: Self) -> Self {
        let mut starts = self.0;
        starts.iter_mut().zip(other.0).for_each(|(a, b)| *a = (*a).max(b));
        Self(starts)
    }

    /// Windows in which a tagging of this time (Unix ms) counts; always includes `All`.
    pub fn windows(&self, added_at: UnixMillis) -> impl Iterator<Item = Window> + use<> {
        let starts = self.0;
        let expiring = EXPIRING_WINDOWS
            .into_iter()
            .zip(starts)
            .filter(move |((_, unit, _), start)| unit.bucket(added_at) >= *start)
            .map(|((window, _, _), _)| window);
        std::iter::once(Window::All).chain(expiring)
    }

    /// Start of a window; `All` starts at the smallest number.
    pub fn of(&self, window: Window) -> i64 {
        EXPIRING_WINDOWS
            .iter()
            .zip(self.0)
            .find(|((w, _, _), _)| *w == window)
            .map_or(i64::MIN, |(_, start)| start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_have_one_order() {
        for (n, window) in Window::ALL.into_iter().enumerate() {
            assert_eq!(window.index(), n);
            assert_eq!(window.as_str().parse::<Window>().ok(), Some(window));
        }
        assert!(Window::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        let expiring = EXPIRING_WINDOWS.map(|(window, _, _)| window.index());
        assert_eq!(expiring, [1, 2, 3], "`All` is the only window that does not expire");
    }
}
