//! Versions and epochs: the total order of a content's states.
//!
//! A version packs (epoch ordinal, counter) into 63 bits, so that it fits a signed 64-bit column
//! and the external version of a search engine. The packed ordinal is a Unix time in milliseconds,
//! counted from 2024-01-01.

use crate::DomainError;

/// Milliseconds since 1970-01-01 UTC, taken from the store's clock; the domain never reads a clock.
pub type UnixMillis = i64;

/// 2024-01-01T00:00:00Z in Unix milliseconds: ordinal 0 of a packed version.
const ORDINAL_BASE_MS: u64 = 1_704_067_200_000;
const COUNTER_BITS: u32 = 22;
/// 41 bits of milliseconds reach the year 2093; a larger ordinal would spill into the sign.
const PACKED_ORDINAL_MAX: u64 = (1 << 41) - 1;

/// The order of epochs: Unix ms at minting time or a larger number; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochOrdinal(pub u64);

/// The identity of an epoch: 128 random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EpochId(pub [u8; 16]);

impl std::fmt::Display for EpochId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The period during which one primary leads a cluster; embedded: the life of a data directory
/// between two restores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    /// The identity.
    pub id: EpochId,
    /// The position in the order of epochs.
    pub ordinal: EpochOrdinal,
}

impl Epoch {
    /// The smallest version of this epoch (counter 1).
    pub fn first_version(&self) -> Version {
        Version(
            (self.ordinal.0.saturating_sub(ORDINAL_BASE_MS).min(PACKED_ORDINAL_MAX)
                << COUNTER_BITS)
                + 1,
        )
    }
}

/// The order of a content's states; 0 is "never written". Larger is newer, also across epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(u64);

impl Version {
    /// The version of a content that was never written.
    pub const NONE: Self = Self(0);

    /// Unpacks a stored version.
    ///
    /// # Errors
    ///
    /// [`DomainError::Undecodable`] when the number has more than 63 bits.
    pub fn from_packed(packed: u64) -> Result<Self, DomainError> {
        if packed > i64::MAX as u64 {
            return Err(DomainError::Undecodable { what: "version", reason: "more than 63 bits" });
        }
        Ok(Self(packed))
    }

    /// The packed form, 0 to 2^63-1.
    pub fn packed(self) -> u64 {
        self.0
    }

    /// The version that a write in `epoch` gives to a content whose version is `self`.
    #[must_use]
    pub fn next(self, epoch: &Epoch) -> Self {
        Self(self.0 + 1).max(epoch.first_version())
    }

    /// Whether both were made in the same epoch, and so in one log. More than four million versions
    /// of a content in one epoch carry into the ordinal: then it says false.
    pub(crate) fn is_of_epoch_of(self, other: Self) -> bool {
        self.0 >> COUNTER_BITS == other.0 >> COUNTER_BITS
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Version {
    type Err = DomainError;
    fn from_str(s: &str) -> Result<Self, DomainError> {
        let packed = s
            .parse()
            .map_err(|_| DomainError::Undecodable { what: "version", reason: "not a number" })?;
        Self::from_packed(packed)
    }
}
