//! The stored form of a document: a versioned binary format.
//!
//! Byte 0 is the format. A format byte that this program does not know is refused, never guessed: during a rolling
//! upgrade the new program reads both formats and writes the old one until every node can read the new one. Golden
//! files hold one document per format.
//!
//! Format 1: varints are LEB128; versions and times are stored as the distance from the document's version and from
//! its newest time, users once in a table, because those repeat in every tagging.

use std::sync::Arc;

use crate::{Document, DomainError, Effect, RecentWrite, TagName, Tagging, UnixMillis, UserId, Version, WriteId};

/// The format this program writes.
pub const FORMAT: u8 = 1;

const PRESENT: u8 = 1;
const OWN_DISPLAY: u8 = 2;

/// Items to reserve memory for at once; a count in damaged bytes must not make us reserve more.
const RESERVED: usize = 256;

/// The bytes of a document.
pub fn encode(doc: &Document) -> Vec<u8> {
    let mut out = Vec::with_capacity(48 + doc.taggings.len() * 40 + doc.recent.len() * 40);
    let newest = doc.taggings.iter().map(|t| t.at).chain(doc.recent.iter().map(|w| w.at)).max().unwrap_or(0);
    let version = doc.version.packed();
    // Never negative in a document that `apply` made. Wrapping, here and in `decode`, loses nothing in any other.
    let before = |v: Version| version.wrapping_sub(v.packed());
    out.push(FORMAT);
    varint(&mut out, version);
    varint(&mut out, before(doc.floor));
    varint(&mut out, before(doc.cond));
    signed(&mut out, newest);
    signed(&mut out, doc.overflow_until);

    let mut users: Vec<&UserId> = Vec::new();
    let user_index: Vec<usize> = doc
        .taggings
        .iter()
        .map(|t| {
            users.iter().position(|u| *u == &t.user).unwrap_or_else(|| {
                users.push(&t.user);
                users.len() - 1
            })
        })
        .collect();
    varint(&mut out, users.len() as u64);
    users.iter().for_each(|u| text(&mut out, u.as_str()));

    varint(&mut out, doc.taggings.len() as u64);
    for (t, user) in doc.taggings.iter().zip(user_index) {
        let own_display = *t.display != *t.name.as_str();
        out.push(u8::from(t.present) * PRESENT + u8::from(own_display) * OWN_DISPLAY);
        text(&mut out, t.name.as_str());
        if own_display {
            text(&mut out, &t.display);
        }
        varint(&mut out, user as u64);
        varint(&mut out, newest.abs_diff(t.at));
        varint(&mut out, before(t.ord));
    }

    varint(&mut out, doc.recent.len() as u64);
    for w in &doc.recent {
        out.extend_from_slice(&w.id.0);
        out.extend_from_slice(&w.fingerprint.to_le_bytes());
        varint(&mut out, before(w.version));
        varint(&mut out, newest.abs_diff(w.at));
        put_effect(&mut out, &w.effect);
    }
    out
}

/// The bytes of an effect, for a store's `applied` table.
pub fn encode_effect(effect: &Effect) -> Vec<u8> {
    let mut out = Vec::new();
    put_effect(&mut out, effect);
    out
}

fn put_effect(out: &mut Vec<u8>, effect: &Effect) {
    for names in [&effect.added, &effect.removed] {
        varint(out, names.len() as u64);
        names.iter().for_each(|n| text(out, n.as_str()));
    }
}

/// The effect in `bytes`.
pub fn decode_effect(bytes: &[u8]) -> Result<Effect, DomainError> {
    let mut r = Reader { rest: bytes };
    let effect = r.effect(&[])?;
    r.end()?;
    Ok(effect)
}

/// The document in `bytes`. Refuses unknown formats, truncated and overlong input, and taggings out of order, which
/// every search in a document relies on.
pub fn decode(bytes: &[u8]) -> Result<Document, DomainError> {
    let mut r = Reader { rest: bytes };
    let version = r.header()?;
    let floor = r.version_before(version)?;
    let cond = r.version_before(version)?;
    let newest = r.signed()?;
    let overflow_until = r.signed()?;

    let users = r.list(UserId::parse_stored)?;
    let count = r.count()?;
    let mut taggings: Vec<Tagging> = Vec::with_capacity(count.min(RESERVED));
    for _ in 0..count {
        let flags = r.byte()?;
        if flags > PRESENT | OWN_DISPLAY {
            return Err(bad("unknown flags"));
        }
        let name = TagName::from_canonical(r.text()?);
        if taggings.last().is_some_and(|t| t.name >= name) {
            return Err(bad("taggings out of order"));
        }
        let display = if flags & OWN_DISPLAY != 0 { Arc::from(r.text()?) } else { name.shared() };
        let user = usize::try_from(r.varint()?).ok().and_then(|i| users.get(i)).ok_or(bad("user index"))?.clone();
        let at = r.time_before(newest)?;
        let ord = r.version_before(version)?;
        taggings.push(Tagging { name, display, user, at, ord, present: flags & PRESENT != 0 });
    }

    let count = r.count()?;
    let mut recent = Vec::with_capacity(count.min(RESERVED));
    for _ in 0..count {
        let id = WriteId(r.array()?);
        let fingerprint = u64::from_le_bytes(r.array()?);
        let written = r.version_before(version)?;
        let at = r.time_before(newest)?;
        recent.push(RecentWrite { id, fingerprint, version: written, at, effect: r.effect(&taggings)? });
    }
    r.end()?;
    Ok(Document { version, floor, cond, overflow_until, taggings, recent })
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

fn bad(reason: &'static str) -> DomainError {
    DomainError::Undecodable { what: "document", reason }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn header(&mut self) -> Result<Version, DomainError> {
        if self.byte()? != FORMAT {
            return Err(bad("unknown format byte; a newer program wrote it"));
        }
        Version::from_packed(self.varint()?)
    }

    fn byte(&mut self) -> Result<u8, DomainError> {
        let (first, rest) = self.rest.split_first().ok_or(bad("truncated"))?;
        self.rest = rest;
        Ok(*first)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], DomainError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(bad("truncated"))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DomainError> {
        self.take(N)?.try_into().map_err(|_| bad("truncated"))
    }

    fn varint(&mut self) -> Result<u64, DomainError> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(bad("varint too long"))
    }

    fn signed(&mut self) -> Result<i64, DomainError> {
        let n = self.varint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    fn text(&mut self) -> Result<&'a str, DomainError> {
        let len = usize::try_from(self.varint()?).map_err(|_| bad("length"))?;
        std::str::from_utf8(self.take(len)?).map_err(|_| bad("not UTF-8"))
    }

    /// A count of items, each at least one byte: an overlong count cannot make us reserve memory.
    fn count(&mut self) -> Result<usize, DomainError> {
        let n = usize::try_from(self.varint()?).map_err(|_| bad("count"))?;
        if n > self.rest.len() { Err(bad("count")) } else { Ok(n) }
    }

    /// Item names are looked up first: an effect is mostly about tags that the document lists, and shares their names.
    fn effect(&mut self, taggings: &[Tagging]) -> Result<Effect, DomainError> {
        let name = |s: &str| match taggings.binary_search_by(|t| t.name.as_str().cmp(s)) {
            Ok(i) => taggings[i].name.clone(),
            Err(_) => TagName::from_canonical(s),
        };
        Ok(Effect { added: self.list(name)?, removed: self.list(name)? })
    }

    fn list<T>(&mut self, item: impl Fn(&str) -> T) -> Result<Vec<T>, DomainError> {
        let count = self.count()?;
        (0..count).map(|_| self.text().map(&item)).collect()
    }

    fn version_before(&mut self, version: Version) -> Result<Version, DomainError> {
        Version::from_packed(version.packed().wrapping_sub(self.varint()?))
    }

    fn time_before(&mut self, newest: UnixMillis) -> Result<UnixMillis, DomainError> {
        newest.checked_sub_unsigned(self.varint()?).ok_or(bad("time distance"))
    }

    fn end(&self) -> Result<(), DomainError> {
        if self.rest.is_empty() { Ok(()) } else { Err(bad("bytes left over")) }
    }
}
