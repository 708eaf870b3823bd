//! An entry: the view of one content with what it proves, and its bytes in Redis.
//!
//! Layout, format 1: 20 decimal digits of the version and 20 of the time it was read, both zero
//! padded, which Redis compares as text; then the format's byte, and, big-endian, the epoch's id
//! (16), the upper bound of its log position, the xmin of its snapshot, the newest transaction it
//! may show, the time it is as new as, the time until it answers without being asked for again
//! (8 each), the XXH3 of all the rest (8), and the tags as the bytes of a document.
//!
//! How it fails: an unknown format is a miss, since a newer program may share the Redis; a checksum
//! that does not fit, or tags that cannot be read, are a miss and are counted.

use tagfast_domain::{Document, EpochId, Tagging, UnixMillis, Version, codec};
use tagfast_store::{CacheUse, Position, Source, View};
use xxhash_rust::xxh3::Xxh3;

/// The format that this program writes.
const FORMAT: u8 = 1;
/// Digits of a number that is compared as text.
const DIGITS: usize = 20;
/// Where the checksum lies.
const SUM: usize = 2 * DIGITS + 1 + 16 + 5 * 8;
/// Bytes before the tags.
pub(crate) const HEADER: usize = SUM + 8;

/// The view of one content, as a cache keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The version that was read.
    pub version: Version,
    /// The live taggings.
    pub tags: Vec<Tagging>,
    /// Where the store stood: nothing beyond it is in the entry.
    pub position: Position,
    /// Everything below this transaction is in it; 0: not known.
    pub xmin: u64,
    /// It is at least as new as this moment; of an idle replica that is long before it was read.
    pub as_of: UnixMillis,
    /// When it was read.
    pub read_at: UnixMillis,
    /// Until when it answers as good.
    pub soft_until: UnixMillis,
}

/// Why bytes are no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEntry {
    /// Another program wrote it.
    UnknownFormat,
    /// It was damaged.
    Corrupted,
}

impl Entry {
    /// What a view says, to be kept until `soft_until`.
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

    /// The answer that this entry gives.
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

    /// Whether it says more than another one of the same content: a newer state, or the same one
    /// seen later.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        (self.version, self.read_at) > (other.version, other.read_at)
    }

    /// About how much memory it takes, in bytes.
    pub(crate) fn weight(&self) -> u64 {
        let tag =
            |t: &Tagging| 96 + t.name.as_str().len() + t.display.len() + t.user.as_str().len();
        (128 + self.tags.iter().map(tag).sum::<usize>()) as u64
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let document =
            Document { version: self.version, taggings: self.tags.clone(), ..Document::default() };
        let body = codec::encode(&document);
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(digits(self.version.packed()).as_bytes());
        bytes.extend_from_slice(digits(self.read_at.max(0).unsigned_abs()).as_bytes());
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.position.epoch.0);
        let times = [self.as_of, self.soft_until].map(|time| time.max(0).unsigned_abs());
        for number in [self.position.lsn, self.xmin, self.position.xid].into_iter().chain(times) {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        let sum = sum(&bytes, &body);
        bytes.extend_from_slice(&sum.to_be_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// The entry in `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, NoEntry> {
        match bytes.get(2 * DIGITS) {
            None => return Err(NoEntry::Corrupted),
            Some(&FORMAT) => {}
            Some(_) => return Err(NoEntry::UnknownFormat),
        }
        Self::read(bytes).ok_or(NoEntry::Corrupted)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (header, body) = bytes.split_at_checked(HEADER)?;
        let (head, kept) = header.split_at(SUM);
        if sum(head, body).to_be_bytes() != kept {
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

/// A number that Redis compares as text. Its own numbers are doubles: two neighbouring versions are
/// the same to it.
pub(crate) fn digits(number: u64) -> String {
    format!("{number:020}")
}

fn sum(head: &[u8], body: &[u8]) -> u64 {
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
            ord: Version::from_packed(ord).unwrap(),
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

    /// What nodes of another version of the program read.
    #[test]
    fn the_format_is_pinned() {
        let hex: String = entry().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("../tests/golden/entry-v1.hex").trim());
    }

    #[test]
    fn what_is_written_is_read() {
        let entry = entry();
        assert_eq!(Entry::decode(&entry.encode()), Ok(entry.clone()));
        let negative = Entry { tags: Vec::new(), version: Version::NONE, ..entry };
        assert_eq!(Entry::decode(&negative.encode()), Ok(negative));
    }

    #[test]
    fn another_format_is_no_entry() {
        let mut bytes = entry().encode();
        bytes[2 * DIGITS] = 2;
        assert_eq!(Entry::decode(&bytes), Err(NoEntry::UnknownFormat));
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed(at in 0usize..120, flip in 1u8..) {
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
        fn digits_are_ordered_as_their_numbers(a in any::<u64>(), b in any::<u64>()) {
            prop_assert_eq!(digits(a).cmp(&digits(b)), a.cmp(&b));
            prop_assert_eq!(digits(a).len(), DIGITS);
        }
    }
}
