//! Times in answers: RFC 3339 in UTC with milliseconds, as the domain writes them.

use std::time::Duration;

use serde::{Serialize, Serializer};
use tagfast_domain::UnixMillis;
use tagfast_domain::time::rfc3339_into;

/// A time that is written as RFC 3339: `2026-01-31T12:00:00.000Z`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rfc3339(pub(crate) UnixMillis);

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(rfc3339_into(self.0, &mut [0; 24]))
    }
}

/// Time since `then`; zero when `then` lies in the future, because clocks may step.
pub(crate) fn age(now: UnixMillis, then: UnixMillis) -> Duration {
    Duration::from_millis(u64::try_from(now.saturating_sub(then)).unwrap_or(0))
}
