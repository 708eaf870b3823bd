//! Times in answers: RFC 3339 in UTC with milliseconds, as the domain writes them.

use serde::{Serialize, Serializer};
use tagfast_domain::UnixMillis;
use tagfast_domain::time::rfc3339_into;

/// A time as answers show it: `2026-01-31T12:00:00.000Z`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp(pub(crate) UnixMillis);

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(rfc3339_into(self.0, &mut [0; 24]))
    }
}
