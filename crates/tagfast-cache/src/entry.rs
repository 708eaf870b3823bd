//! A cache entry: the view of one content with its evidence of freshness, and its encoding in
//! Redis.
//!
//! Layout of format 1, integers big-endian, times in Unix ms:
//!
//! | bytes | content |
//! |---|---|
//! | 20 | version, zero-padded decimal digits: Redis compares it as text |
//! | 20 | `read_at`, likewise |
//! | 1 | format |
//! | 16 | id of the epoch |
//! | 8 | log position (LSN): upper bound of what the entry shows |
//! | 8 | `xmin` of the snapshot |
//! | 8 | newest transaction that the entry may show |
//! | 8 | `as_of` |
//! | 8 | `soft_until` |
//! | 8 | XXH3 of everything else |
//! | rest | the tags, encoded as a document |
//!
//! How it fails: an unknown format is a miss, because a newer program version may share the Redis.
//! A wrong checksum and tags that cannot be decoded are misses and are counted.

use std::time::Duration;

use tagfast_domain::{Document, EpochId, Tagging, UnixMillis, Version, codec};
use tagfast_store::{CacheUse, Position, Source, View};
use xxhash_rust::xxh3::Xxh3;

/// The format that this program writes.
const FORMAT: u8 = 1;
/// Decimal digits of a number that Redis compares as text.
const DIGITS: usize = 20;
/// Offset of the checksum.
const CHECKSUM_OFFSET: usize = 2 * DIGITS + 1 + 16 + 5 * 8;
/// Length of everything before the tags.
pub(crate) const HEADER_BYTES: usize = CHECKSUM_OFFSET + 8;

/// A cached view of one content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Version of the content.
    pub version: Version,
    /// Taggings that are present.
    pub tags: Vec<Tagging>,
    /// Position of the store when the view was read: the entry shows nothing beyond it.
    pub position: Position,
    /// The entry shows all writes of transactions with a smaller id; 0 when unknown.
    pub xmin: u64,
    /// The entry is proven to be at least as new as this time, Unix ms: its age counts from here,
    /// not from `read_at`, which is later when a replica was read that was behind.
    pub as_of: UnixMillis,
    /// Time at which it was read from the store, Unix ms.
    pub read_at: UnixMillis,
    /// Until when it answers as fresh, Unix ms.
    pub soft_until: UnixMillis,
}

/// Why bytes cannot be decoded as a cache entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryDecodeError {
    /// A different version of the program wrote it.
    #[error("the entry has an unknown format")]
    UnknownFormat,
    /// It is damaged.
    #[error("the entry is corrupted")]
    Corrupted,
}

impl Entry {
    /// An entry of a view that was read at `read_at` and is fresh until `soft_until`, Unix ms.
    pub(crate) fn of(view: &View, read_at: UnixMillis, soft_until: UnixMillis) -> Self {
        Self {
            version: view.version,
            tags: view.tags.clone(),
            position: view.position,
            xmin: view.xmin,
            as_of: view.as_of,
            read_at,
            soft_until,
        }
    }

    /// The view that this entry answers with.
    pub(crate) fn view(&self, cache: CacheUse) -> View {
        View {
            version: self.version,
            tags: self.tags.clone(),
            position: self.position,
            source: Source::Cache,
            as_of: self.as_of,
            degraded: Vec::new(),
            xmin: self.xmin,
            stale: matches!(cache, CacheUse::Stale(_)),
            cache,
        }
    }

    /// Whether it is newer than another entry of the same content: a newer version, or the same
    /// version read later.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        (self.version, self.read_at) > (other.version, other.read_at)
    }

    /// Its age in milliseconds.
    pub(crate) fn age_ms(&self, now: UnixMillis) -> u64 {
        now.saturating_sub(self.as_of).max(0).unsigned_abs()
    }

    /// How much longer it answers as fresh; `None`: not any more.
    pub(crate) fn fresh_for(&self, now: UnixMillis) -> Option<Duration> {
        let left = self.soft_until.saturating_sub(now);
        (left > 0).then(|| Duration::from_millis(left.unsigned_abs()))
    }

    /// Approximate memory use in bytes.
    pub(crate) fn weight(&self) -> u64 {
        let tag =
            |t: &Tagging| 96 + t.name.as_str().len() + t.display.len() + t.user.as_str().len();
        (128 + self.tags.iter().map(tag).sum::<usize>()) as u64
    }

    /// Encodes the entry.
    pub fn encode(&self) -> Vec<u8> {
        let document =
            Document { version: self.version, taggings: self.tags.clone(), ..Document::default() };
        let body = codec::encode(&document);
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend_from_slice(digits(self.version.packed()).as_bytes());
        bytes.extend_from_slice(digits(self.read_at.max(0).unsigned_abs()).as_bytes());
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.position.epoch.0);
        let times = [self.as_of, self.soft_until].map(|time| time.max(0).unsigned_abs());
        for number in [self.position.lsn, self.xmin, self.position.xid].into_iter().chain(times) {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        let checksum = checksum(&bytes, &body);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Decodes an entry.
    ///
    /// # Errors
    /// An [`EntryDecodeError`]; the caller must treat both kinds as a miss.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryDecodeError> {
        match bytes.get(2 * DIGITS) {
            None => return Err(EntryDecodeError::Corrupted),
            Some(&FORMAT) => {}
            Some(_) => return Err(EntryDecodeError::UnknownFormat),
        }
        Self::decode_format_1(bytes).ok_or(EntryDecodeError::Corrupted)
    }

    fn decode_format_1(bytes: &[u8]) -> Option<Self> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES)?;
        let (head, stored) = header.split_at(CHECKSUM_OFFSET);
        if checksum(head, body).to_be_bytes() != stored {
            return None;
        }
        let number = |n: usize| -> Option<u64> {
            let at = 2 * DIGITS + 1 + 16 + n * 8;
            Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?))
        };
        let text = |n: usize| {
            std::str::from_utf8(head.get(n * DIGITS..(n + 1) * DIGITS)?).ok()?.parse::<u64>().ok()
        };
        let epoch: [u8; 16] = head.get(2 * DIGITS + 1..2 * DIGITS + 17)?.try_into().ok()?;
        let document = codec::decode(body).ok()?;
        let version = Version::from_packed(text(0)?).ok()?;
        (document.version == version).then_some(())?;
        Some(Self {
            version,
            tags: document.taggings,
            position: Position { epoch: EpochId(epoch), lsn: number(0)?, xid: number(2)? },
            xmin: number(1)?,
            as_of: UnixMillis::try_from(number(3)?).ok()?,
            read_at: UnixMillis::try_from(text(1)?).ok()?,
            soft_until: UnixMillis::try_from(number(4)?).ok()?,
        })
    }
}

/// Formats a number so that Redis can compare it as text. Lua numbers are doubles, which cannot
/// tell two neighbouring versions apart.
pub(crate) fn digits(number: u64) -> String {
    format!("{number:020}")
}

fn checksum(head: &[u8], body: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(head);
    sum.update(body);
    sum.digest()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tagfast_domain::{TagName, UserId};

    use super::*;

    fn entry() -> Entry {
        let tag = |name: &str, display: &str, ord| Tagging {
            name: TagName::parse(name).unwrap(),
            display: Arc::from(display),
            user: UserId::parse("ana").unwrap(),
            at: 1_700_000_000_000,
            decided_at: Version::from_packed(ord).unwrap(),
            present: true,
        };
        Entry {
            version: Version::from_packed((1 << 53) + 1).unwrap(),
            tags: vec![tag("critical", "Critical", 1 << 53), tag("ui", "ui", 7)],
            position: Position { epoch: EpochId([0xe1; 16]), xid: 77, lsn: 0x0102_0304 },
            xmin: 70,
            as_of: 1_700_000_000_100,
            read_at: 1_700_000_000_123,
            soft_until: 1_700_000_060_123,
        }
    }

    /// Nodes of a different program version read this format.
    #[test]
    fn the_format_is_pinned() {
        assert_eq!(
            hex::encode(entry().encode()),
            include_str!("../tests/golden/entry-v1.hex").trim()
        );
    }

    #[test]
    fn an_encoded_entry_is_decoded() {
        let entry = entry();
        assert_eq!(Entry::decode(&entry.encode()), Ok(entry.clone()));
        let negative = Entry { tags: Vec::new(), version: Version::NONE, ..entry };
        assert_eq!(Entry::decode(&negative.encode()), Ok(negative));
    }

    #[test]
    fn an_unknown_format_is_refused() {
        let mut bytes = entry().encode();
        bytes[2 * DIGITS] = 2;
        assert_eq!(Entry::decode(&bytes), Err(EntryDecodeError::UnknownFormat));
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_detected(at in 0usize..120, flip in 1u8..) {
            let mut bytes = entry().encode();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert!(Entry::decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Entry::decode(&bytes);
        }

        #[test]
        fn digits_order_like_their_numbers(a in any::<u64>(), b in any::<u64>()) {
            prop_assert_eq!(digits(a).cmp(&digits(b)), a.cmp(&b));
            prop_assert_eq!(digits(a).len(), DIGITS);
        }
    }
}
