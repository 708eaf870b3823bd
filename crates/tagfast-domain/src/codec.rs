//! The stored forms of a document and of an outbox event: versioned binary formats.
//!
//! Byte 0 is the format. An unknown format byte is refused, never guessed: during a rolling upgrade
//! the new program reads both formats and writes the old one until every node can read the new one.
//! Golden files hold one document per format.
//!
//! Format 1: varints are LEB128. Versions and times are stored as distances from the document's
//! version and from its newest time, and each user once in a table, because they repeat in every
//! tagging.
//!
//! Format 2 is format 1 with the outcome of each remembered write. It is written only for a
//! document that remembers a write that made no version, so that every other document stays
//! readable by a program that knows format 1 alone.
//!
//! How it fails: decoding returns [`DomainError::Undecodable`] for truncated, overlong or unordered
//! input; it never panics and never allocates more than the input justifies.

use std::sync::Arc;

use crate::{
    Change, ContentKey, Document, DomainError, Effect, EpochOrdinal, RecentWrite, RecordedOutcome,
    TagName, Tagging, TaggingsEvent, UnixMillis, UserId, Version, WriteId,
};

/// The format of documents whose remembered writes all made a version.
pub const FORMAT: u8 = 1;
/// The format of documents that remember a write that made no version.
pub const FORMAT_WITH_OUTCOMES: u8 = 2;
/// The format of events that this program writes.
pub const EVENT_FORMAT: u8 = 1;

const WRITTEN: u8 = 0;
const UNCHANGED: u8 = 1;
const VERSION_MISMATCH: u8 = 2;
const TOO_MANY_TAGS: u8 = 3;

const PRESENT: u8 = 1;
const OWN_DISPLAY: u8 = 2;

/// Items to reserve memory for up front: a damaged count must not cause a large allocation.
const RESERVED_ITEMS_MAX: usize = 256;

/// Encodes a document.
pub fn encode(doc: &Document) -> Vec<u8> {
    let mut out = Vec::with_capacity(48 + doc.taggings.len() * 40 + doc.recent.len() * 40);
    let newest =
        doc.taggings.iter().map(|t| t.at).chain(doc.recent.iter().map(|w| w.at)).max().unwrap_or(0);
    let version = doc.version.packed();
    // Never negative in a document made by `apply`. Wrapping here and in `decode` keeps every other
    // document lossless too.
    let before = |v: Version| version.wrapping_sub(v.packed());
    let has_outcomes = doc.recent.iter().any(|w| w.outcome != RecordedOutcome::Written);
    out.push(if has_outcomes { FORMAT_WITH_OUTCOMES } else { FORMAT });
    varint(&mut out, version);
    varint(&mut out, before(doc.absent_since));
    varint(&mut out, before(doc.last_conditional));
    signed(&mut out, newest);
    signed(&mut out, doc.overflow_until);

    put_taggings(&mut out, &doc.taggings, newest, before);
    varint(&mut out, doc.recent.len() as u64);
    for w in &doc.recent {
        out.extend_from_slice(&w.id.0);
        out.extend_from_slice(&w.fingerprint.to_le_bytes());
        varint(&mut out, before(w.version));
        varint(&mut out, newest.abs_diff(w.at));
        put_effect(&mut out, &w.effect);
        if has_outcomes {
            put_outcome(&mut out, w.outcome);
        }
    }
    out
}

fn put_outcome(out: &mut Vec<u8>, outcome: RecordedOutcome) {
    match outcome {
        RecordedOutcome::Written => out.push(WRITTEN),
        RecordedOutcome::Unchanged => out.push(UNCHANGED),
        RecordedOutcome::VersionMismatch => out.push(VERSION_MISMATCH),
        RecordedOutcome::TooManyTags { allowed, given } => {
            out.push(TOO_MANY_TAGS);
            varint(out, allowed as u64);
            varint(out, given as u64);
        }
    }
}

fn put_taggings(
    out: &mut Vec<u8>,
    taggings: &[Tagging],
    newest: UnixMillis,
    before: impl Fn(Version) -> u64,
) {
    let mut users: Vec<&UserId> = Vec::new();
    let user_index: Vec<usize> = taggings
        .iter()
        .map(|t| {
            users.iter().position(|u| *u == &t.user).unwrap_or_else(|| {
                users.push(&t.user);
                users.len() - 1
            })
        })
        .collect();
    varint(out, users.len() as u64);
    users.iter().for_each(|u| text(out, u.as_str()));

    varint(out, taggings.len() as u64);
    for (t, user) in taggings.iter().zip(user_index) {
        let own_display = *t.display != *t.name.as_str();
        out.push(u8::from(t.present) * PRESENT + u8::from(own_display) * OWN_DISPLAY);
        text(out, t.name.as_str());
        if own_display {
            text(out, &t.display);
        }
        varint(out, user as u64);
        varint(out, newest.abs_diff(t.at));
        varint(out, before(t.decided_at));
    }
}

/// Encodes an event without its content key, which an outbox row holds in its own column. About a
/// quarter of the size of the published envelope; stores replicate these bytes to every replica.
pub fn encode_event(event: &TaggingsEvent) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + event.tags.len() * 32 + event.changes.len() * 64);
    let newest = event.tags.iter().map(|t| t.at).fold(event.at, i64::max);
    let version = event.version.packed();
    let before = |v: Version| version.wrapping_sub(v.packed());
    out.push(EVENT_FORMAT);
    varint(&mut out, version);
    varint(&mut out, event.publisher_epoch.0);
    signed(&mut out, newest);
    varint(&mut out, newest.abs_diff(event.at));
    put_taggings(&mut out, &event.tags, newest, before);
    varint(&mut out, event.changes.len() as u64);
    for change in &event.changes {
        out.extend_from_slice(&change.write_id.0);
        text(&mut out, change.user.as_str());
        varint(&mut out, before(change.version));
        for names in [&change.added, &change.removed] {
            varint(&mut out, names.len() as u64);
            names.iter().for_each(|n| text(&mut out, n.as_str()));
        }
        text(&mut out, change.traceparent.as_deref().unwrap_or_default());
    }
    out
}

/// Decodes the event of `key`.
///
/// # Errors
///
/// [`DomainError::Undecodable`], for the same reasons as [`decode`].
pub fn decode_event(key: ContentKey, bytes: &[u8]) -> Result<TaggingsEvent, DomainError> {
    let bad = |reason| DomainError::Undecodable { what: "event", reason };
    Reader { rest: bytes }.event(key).map_err(bad)
}

/// Encodes the effect and the outcome of a past write, for a store's `applied` table. The outcome
/// of a write that made a version is left out: these rows are as they always were.
pub fn encode_result(write: &RecentWrite) -> Vec<u8> {
    let mut out = Vec::new();
    put_effect(&mut out, &write.effect);
    if write.outcome != RecordedOutcome::Written {
        put_outcome(&mut out, write.outcome);
    }
    out
}

fn put_effect(out: &mut Vec<u8>, effect: &Effect) {
    for names in [&effect.added, &effect.removed] {
        varint(out, names.len() as u64);
        names.iter().for_each(|n| text(out, n.as_str()));
    }
}

/// Decodes what [`encode_result`] encoded.
///
/// # Errors
///
/// [`DomainError::Undecodable`] for truncated or overlong input.
pub fn decode_result(bytes: &[u8]) -> Result<(Effect, RecordedOutcome), DomainError> {
    Reader { rest: bytes }.result().map_err(bad)
}

/// Decodes a document.
///
/// # Errors
///
/// [`DomainError::Undecodable`] for an unknown format, for truncated or overlong input, and for
/// taggings that are out of order (lookups in a document rely on the order).
pub fn decode(bytes: &[u8]) -> Result<Document, DomainError> {
    Reader { rest: bytes }.document().map_err(bad)
}

fn bad(reason: &'static str) -> DomainError {
    DomainError::Undecodable { what: "document", reason }
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n as u8) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn signed(out: &mut Vec<u8>, n: i64) {
    varint(out, ((n << 1) ^ (n >> 63)) as u64);
}

fn text(out: &mut Vec<u8>, s: &str) {
    varint(out, s.len() as u64);
    out.extend_from_slice(s.as_bytes());
}

fn stored_version(packed: u64) -> Read<Version> {
    Version::from_packed(packed).map_err(|_| "a version of more than 63 bits")
}

/// The error is only the reason: a large error type in every step would be half of the cost of
/// decoding.
type Read<T> = Result<T, &'static str>;

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn document(mut self) -> Read<Document> {
        let has_outcomes = match self.byte()? {
            FORMAT => false,
            FORMAT_WITH_OUTCOMES => true,
            _ => return Err("unknown format byte; a newer program wrote it"),
        };
        let version = stored_version(self.varint()?)?;
        let absent_since = self.version_before(version)?;
        let last_conditional = self.version_before(version)?;
        let newest = self.signed()?;
        let overflow_until = self.signed()?;
        let users = self.list(UserId::from_stored)?;
        let taggings = self.taggings(version, newest, &users)?;
        let recent = self.recent(version, newest, &taggings, has_outcomes)?;
        self.end()?;
        Ok(Document { version, absent_since, last_conditional, overflow_until, taggings, recent })
    }

    fn event(mut self, key: ContentKey) -> Read<TaggingsEvent> {
        if self.byte()? != EVENT_FORMAT {
            return Err("unknown format byte; a newer program wrote it");
        }
        let version = stored_version(self.varint()?)?;
        let publisher_epoch = EpochOrdinal(self.varint()?);
        let newest = self.signed()?;
        let at = self.time_before(newest)?;
        let users = self.list(UserId::from_stored)?;
        let tags = self.taggings(version, newest, &users)?;
        let count = self.count()?;
        let mut changes = Vec::with_capacity(count.min(RESERVED_ITEMS_MAX));
        for _ in 0..count {
            let write_id = WriteId(self.array()?);
            let user = UserId::from_stored(self.text()?);
            let made = self.version_before(version)?;
            let Effect { added, removed } = self.effect(&tags)?;
            let traceparent = Some(self.text()?).filter(|t| !t.is_empty()).map(str::to_owned);
            changes.push(Change { write_id, user, version: made, added, removed, traceparent });
        }
        self.end()?;
        Ok(TaggingsEvent { key, version, at, publisher_epoch, tags, changes })
    }

    fn taggings(
        &mut self,
        version: Version,
        newest: UnixMillis,
        users: &[UserId],
    ) -> Read<Vec<Tagging>> {
        let count = self.count()?;
        let mut taggings: Vec<Tagging> = Vec::with_capacity(count.min(RESERVED_ITEMS_MAX));
        for _ in 0..count {
            let flags = self.byte()?;
            if flags > PRESENT | OWN_DISPLAY {
                return Err("unknown flags");
            }
            let name = self.text()?;
            if taggings.last().is_some_and(|t| t.name.as_str() >= name) {
                return Err("taggings out of order");
            }
            let name = TagName::from_canonical(name);
            let display =
                if flags & OWN_DISPLAY != 0 { Arc::from(self.text()?) } else { name.shared() };
            let user = usize::try_from(self.varint()?)
                .ok()
                .and_then(|i| users.get(i))
                .ok_or("user index")?
                .clone();
            let at = self.time_before(newest)?;
            let decided_at = self.version_before(version)?;
            let present = flags & PRESENT != 0;
            taggings.push(Tagging { name, display, user, at, decided_at, present });
        }
        Ok(taggings)
    }

    fn recent(
        &mut self,
        version: Version,
        newest: UnixMillis,
        taggings: &[Tagging],
        has_outcomes: bool,
    ) -> Read<Vec<RecentWrite>> {
        let count = self.count()?;
        let mut recent = Vec::with_capacity(count.min(RESERVED_ITEMS_MAX));
        for _ in 0..count {
            let id = WriteId(self.array()?);
            let fingerprint = u64::from_le_bytes(self.array()?);
            let written = self.version_before(version)?;
            let at = self.time_before(newest)?;
            let effect = self.effect(taggings)?;
            let outcome = if has_outcomes { self.outcome()? } else { RecordedOutcome::Written };
            recent.push(RecentWrite { id, fingerprint, version: written, at, effect, outcome });
        }
        Ok(recent)
    }

    fn outcome(&mut self) -> Read<RecordedOutcome> {
        Ok(match self.byte()? {
            WRITTEN => RecordedOutcome::Written,
            UNCHANGED => RecordedOutcome::Unchanged,
            VERSION_MISMATCH => RecordedOutcome::VersionMismatch,
            TOO_MANY_TAGS => {
                let (allowed, given) = (self.number()?, self.number()?);
                RecordedOutcome::TooManyTags { allowed, given }
            }
            _ => return Err("unknown outcome"),
        })
    }

    fn result(mut self) -> Read<(Effect, RecordedOutcome)> {
        let effect = self.effect(&[])?;
        let is_written = self.rest.is_empty();
        let outcome = if is_written { RecordedOutcome::Written } else { self.outcome()? };
        self.end()?;
        Ok((effect, outcome))
    }

    fn byte(&mut self) -> Read<u8> {
        let (first, rest) = self.rest.split_first().ok_or("truncated")?;
        self.rest = rest;
        Ok(*first)
    }

    fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or("truncated")?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "truncated")
    }

    fn varint(&mut self) -> Read<u64> {
        // Fast path: nearly all numbers in a document are smaller than 128.
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let mut n = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err("varint too long")
    }

    fn number(&mut self) -> Read<usize> {
        usize::try_from(self.varint()?).map_err(|_| "number")
    }

    fn signed(&mut self) -> Read<i64> {
        let n = self.varint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    fn text(&mut self) -> Read<&'a str> {
        let len = usize::try_from(self.varint()?).map_err(|_| "length")?;
        std::str::from_utf8(self.take(len)?).map_err(|_| "not UTF-8")
    }

    /// A count of items of at least one byte each, so a count beyond the remaining input is
    /// refused before memory is reserved.
    fn count(&mut self) -> Read<usize> {
        let n = usize::try_from(self.varint()?).map_err(|_| "count")?;
        if n > self.rest.len() { Err("count") } else { Ok(n) }
    }

    /// Shares the names of listed taggings: an effect mostly names tags that the document lists.
    fn effect(&mut self, taggings: &[Tagging]) -> Read<Effect> {
        let name = |s: &str| match taggings.binary_search_by(|t| t.name.as_str().cmp(s)) {
            Ok(i) => taggings[i].name.clone(),
            Err(_) => TagName::from_canonical(s),
        };
        Ok(Effect { added: self.list(name)?, removed: self.list(name)? })
    }

    fn list<T>(&mut self, item: impl Fn(&str) -> T) -> Read<Vec<T>> {
        let count = self.count()?;
        (0..count).map(|_| self.text().map(&item)).collect()
    }

    fn version_before(&mut self, version: Version) -> Read<Version> {
        stored_version(version.packed().wrapping_sub(self.varint()?))
    }

    fn time_before(&mut self, newest: UnixMillis) -> Read<UnixMillis> {
        newest.checked_sub_unsigned(self.varint()?).ok_or("time distance")
    }

    fn end(&self) -> Read<()> {
        if self.rest.is_empty() { Ok(()) } else { Err("bytes left over") }
    }
}
