//! The stored form of a journal: what a file of its copy on disk holds, as bytes. Pure.
//!
//! A file is eight bytes (the magic and the format), then frames. The payload of the first frame is
//! the [`FileHeader`], each other one is a [`JournalRecord`]. A frame is, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | the length of the payload |
//! | 4 | the check of these 16 bytes without itself: half of their XXH3 |
//! | 8 | XXH3 of the payload |
//! | as told | the payload: its kind, then its fields |
//!
//! The length has a check of its own, so that a damaged length is not taken for a file that ends in
//! the middle of a frame.
//!
//! How it fails: decoding never panics, never reserves more than the input justifies, and never
//! returns a record that was not written. What was being written when the machine stopped is a
//! *torn tail*: a frame that the file does not hold to its end, or nothing but zeros. Everything
//! else is damage, which is named with its place. What comes before either is whole.

use std::sync::Arc;

use tagfast_domain::{EpochId, Version, WriteId};
use xxhash_rust::xxh3::xxh3_64;

use crate::journaled::{
    AcknowledgedGroup, IncompleteRange, JournaledContent, JournaledWrite, LogRange,
};

/// How a file begins.
const MAGIC: &[u8; 7] = b"TFJRNL\n";
/// The format that this program writes and reads.
pub const JOURNAL_FORMAT: u8 = 1;
/// The bytes of a frame before its payload.
const FRAME_HEAD_BYTES: usize = 16;

const HEADER: u8 = 1;
const GROUP: u8 = 2;
const COVERED: u8 = 3;
const FORGOTTEN: u8 = 4;

/// What a file is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHeader {
    /// Its place in the order of the files.
    pub number: u64,
    /// The scope of the cluster. That the epochs in it are the cluster's is checked with them.
    pub scope: String,
    /// The process that wrote it.
    pub process: String,
}

/// What a file says after its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalRecord {
    /// Callers were told that these writes succeeded.
    Group(AcknowledgedGroup),
    /// Nothing of an epoch up to this position is needed any more.
    Covered {
        /// The epoch.
        epoch: EpochId,
        /// The log position; `u64::MAX`: nothing of the epoch is needed.
        up_to: u64,
    },
    /// The files do not hold what was acknowledged in this range.
    Forgotten(IncompleteRange),
}

/// How the readable part of a file ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileEnd {
    /// With the file.
    Whole,
    /// With a frame that was being written.
    Torn,
    /// With bytes that are no frame.
    Damaged(&'static str),
}

/// A file as far as it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedFile {
    /// What it is of; `None`: it ends before its header does.
    pub header: Option<FileHeader>,
    /// The records in their order.
    pub records: Vec<JournalRecord>,
    /// The length of the readable part, in bytes.
    pub readable_bytes: usize,
    /// Why it ends there.
    pub end: FileEnd,
}

/// Why nothing of a file can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileError {
    /// It does not begin like a journal.
    NotAJournal,
    /// A different program wrote it, in this format.
    UnknownFormat(u8),
    /// Its header is damaged.
    DamagedHeader(&'static str),
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAJournal => f.write_str("it is not a file of a journal"),
            Self::UnknownFormat(format) => {
                write!(f, "it has format {format}, this program knows {JOURNAL_FORMAT}")
            }
            Self::DamagedHeader(why) => write!(f, "its header is damaged: {why}"),
        }
    }
}

impl std::error::Error for FileError {}

/// The first bytes of a file.
pub fn encode_header(header: &FileHeader) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(JOURNAL_FORMAT);
    put_frame(&mut out, |out| {
        out.push(HEADER);
        put_u64(out, header.number);
        put_bytes(out, header.scope.as_bytes());
        put_bytes(out, header.process.as_bytes());
    });
    out
}

/// Appends a record.
pub fn encode_record(out: &mut Vec<u8>, record: &JournalRecord) {
    match record {
        JournalRecord::Group(group) => encode_group(out, group),
        JournalRecord::Covered { epoch, up_to } => put_frame(out, |out| {
            out.push(COVERED);
            out.extend_from_slice(&epoch.0);
            put_u64(out, *up_to);
        }),
        JournalRecord::Forgotten(IncompleteRange { epoch, from, to, writes }) => {
            put_frame(out, |out| {
                out.push(FORGOTTEN);
                out.extend_from_slice(&epoch.0);
                [from, to, writes].into_iter().for_each(|n| put_u64(out, *n));
            });
        }
    }
}

/// Appends the record of a group.
pub fn encode_group(out: &mut Vec<u8>, group: &AcknowledgedGroup) {
    put_frame(out, |out| {
        out.push(GROUP);
        out.extend_from_slice(&group.at.epoch.0);
        put_u64(out, group.at.inside);
        put_u64(out, group.at.flushed);
        put_u32(out, group.contents.len());
        for JournaledContent { key, document, version, writes } in &group.contents {
            put_bytes(out, key);
            put_bytes(out, document);
            put_u64(out, version.packed());
            put_u32(out, writes.len());
            for JournaledWrite { id, version, at } in writes {
                out.extend_from_slice(&id.0);
                put_u64(out, version.packed());
                put_u64(out, at.cast_unsigned());
            }
        }
    });
}

/// Puts a frame around what `payload` appends.
fn put_frame(out: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) {
    let head = out.len();
    out.resize(head + FRAME_HEAD_BYTES, 0);
    payload(out);
    let payload = &out[head + FRAME_HEAD_BYTES..];
    // A group has at most 512 contents of some kilobytes.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    let hash = xxh3_64(payload).to_le_bytes();
    let check = head_check(length, hash);
    out[head..head + 4].copy_from_slice(&length);
    out[head + 4..head + 8].copy_from_slice(&check);
    out[head + 8..head + FRAME_HEAD_BYTES].copy_from_slice(&hash);
}

fn head_check(length: [u8; 4], hash: [u8; 8]) -> [u8; 4] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&length);
    bytes[4..].copy_from_slice(&hash);
    // Never zero for the zeros of a file that was made longer and not written.
    let [a, b, c, d, ..] = (xxh3_64(&bytes) | 1).to_le_bytes();
    [a, b, c, d]
}

fn put_u64(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_le_bytes());
}

fn put_u32(out: &mut Vec<u8>, n: usize) {
    out.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Reads a file.
///
/// # Errors
///
/// Nothing of it can be read.
pub fn decode_file(bytes: &[u8]) -> Result<DecodedFile, FileError> {
    let mut file =
        DecodedFile { header: None, records: Vec::new(), readable_bytes: 0, end: FileEnd::Torn };
    let Some((magic, rest)) = bytes.split_at_checked(MAGIC.len()) else {
        let is_prefix = MAGIC.starts_with(bytes) || is_zeros(bytes);
        return if is_prefix { Ok(file) } else { Err(FileError::NotAJournal) };
    };
    if is_zeros(bytes) {
        return Ok(file);
    }
    if magic != MAGIC {
        return Err(FileError::NotAJournal);
    }
    let Some((&format, mut rest)) = rest.split_first() else { return Ok(file) };
    if format != JOURNAL_FORMAT {
        return Err(FileError::UnknownFormat(format));
    }
    match next_frame(rest) {
        Ok((payload, after)) => {
            let header = header_of(payload);
            file.header = Some(header.ok_or(FileError::DamagedHeader("its fields are no header"))?);
            rest = after;
        }
        Err(FileEnd::Damaged(why)) => return Err(FileError::DamagedHeader(why)),
        Err(FileEnd::Whole | FileEnd::Torn) => return Ok(file),
    }
    loop {
        file.readable_bytes = bytes.len() - rest.len();
        match next_frame(rest) {
            Ok((payload, after)) => {
                let Some(record) = record_of(payload) else {
                    file.end = FileEnd::Damaged("a record of an unknown kind or form");
                    return Ok(file);
                };
                file.records.push(record);
                rest = after;
            }
            Err(end) => {
                file.end = end;
                return Ok(file);
            }
        }
    }
}

fn is_zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The payload of the first frame, and what comes after it.
fn next_frame(bytes: &[u8]) -> Result<(&[u8], &[u8]), FileEnd> {
    if bytes.is_empty() {
        return Err(FileEnd::Whole);
    }
    if is_zeros(bytes) {
        return Err(FileEnd::Torn);
    }
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(FileEnd::Torn)?;
    let (check, rest) = rest.split_first_chunk::<4>().ok_or(FileEnd::Torn)?;
    let (hash, rest) = rest.split_first_chunk::<8>().ok_or(FileEnd::Torn)?;
    if head_check(*length, *hash) != *check {
        return Err(FileEnd::Damaged("the head of a record does not match its check"));
    }
    let Some((payload, rest)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else {
        return Err(FileEnd::Torn);
    };
    if xxh3_64(payload).to_le_bytes() != *hash {
        return Err(FileEnd::Damaged("a record does not match its check"));
    }
    Ok((payload, rest))
}

/// Reads the fields of a payload, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u32(&mut self) -> Option<usize> {
        self.array().map(u32::from_le_bytes).and_then(|n| usize::try_from(n).ok())
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<String> {
        self.bytes().and_then(|bytes| std::str::from_utf8(bytes).ok()).map(str::to_owned)
    }

    fn version(&mut self) -> Option<Version> {
        self.u64().and_then(|packed| Version::from_packed(packed).ok())
    }

    /// The value, if nothing is left.
    fn end<T>(&self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

fn header_of(payload: &[u8]) -> Option<FileHeader> {
    let mut fields = Fields(payload);
    if fields.array()? != [HEADER] {
        return None;
    }
    let header =
        FileHeader { number: fields.u64()?, scope: fields.text()?, process: fields.text()? };
    fields.end(header)
}

fn record_of(payload: &[u8]) -> Option<JournalRecord> {
    let mut fields = Fields(payload);
    let [kind] = fields.array()?;
    let epoch = EpochId(fields.array()?);
    let record = match kind {
        GROUP => JournalRecord::Group(group_of(epoch, &mut fields)?),
        COVERED => JournalRecord::Covered { epoch, up_to: fields.u64()? },
        FORGOTTEN => JournalRecord::Forgotten(IncompleteRange {
            epoch,
            from: fields.u64()?,
            to: fields.u64()?,
            writes: fields.u64()?,
        }),
        _ => return None,
    };
    fields.end(record)
}

fn group_of(epoch: EpochId, fields: &mut Fields<'_>) -> Option<AcknowledgedGroup> {
    let at = LogRange { epoch, inside: fields.u64()?, flushed: fields.u64()? };
    let mut contents = Vec::new();
    for _ in 0..fields.u32()? {
        let (key, document) = (Arc::from(fields.bytes()?), Arc::from(fields.bytes()?));
        let version = fields.version()?;
        let mut writes = Vec::new();
        for _ in 0..fields.u32()? {
            writes.push(JournaledWrite {
                id: WriteId(fields.array()?),
                version: fields.version()?,
                at: fields.u64()?.cast_signed(),
            });
        }
        contents.push(JournaledContent { key, document, version, writes });
    }
    Some(AcknowledgedGroup { at, contents })
}
