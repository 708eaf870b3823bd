//! Reads the copy of a cluster's journal when the process starts.
//!
//! How it fails: it does not. A torn tail is cut off. A file of a different cluster or process, of
//! an unknown format, or damaged is set aside; what comes before the damage is kept. That something
//! could not be read is told, because no one knows what it was.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tagfast_domain::{EpochId, UnixMillis};
use tagfast_failover::{
    AcknowledgedGroup, DecodedFile, FileEnd, IncompleteRange, JournalRecord, JournalSegments,
    decode_file,
};
use tagfast_resilience::{ErrorChain, private_files};

/// The suffix of a segment.
const SUFFIX: &str = ".journal";
/// The suffix of a segment that could not be read.
const ASIDE_SUFFIX: &str = ".journal.aside";
/// A file that is larger is none of this program, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// A group that was acknowledged longer ago has no verdict any more, in ms.
const GROUP_AGE_MAX_MS: i64 = 7 * 24 * 3_600_000;

/// What was found.
#[derive(Debug)]
pub(crate) struct ReadBack {
    /// Acknowledged groups that may be needed, in the order of the files.
    pub(crate) groups: Vec<AcknowledgedGroup>,
    /// What the files do not hold.
    pub(crate) forgotten: Vec<IncompleteRange>,
    /// The files.
    pub(crate) segments: JournalSegments,
    /// Files that could not be read, each with why.
    pub(crate) set_aside: Vec<String>,
}

/// The path of a segment.
pub(crate) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}{SUFFIX}"))
}

/// The segments in a folder in their order, and the first number that no file has.
fn segments_in(dir: &Path) -> io::Result<(Vec<(u64, PathBuf)>, u64)> {
    let mut segments = Vec::new();
    let mut next = 1;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let digits = name.split('.').next().unwrap_or_default();
        let Ok(number) = digits.parse::<u64>() else { continue };
        next = next.max(number.saturating_add(1));
        if name.strip_prefix(digits) == Some(SUFFIX) {
            segments.push((number, path));
        }
    }
    segments.sort();
    Ok((segments, next))
}

/// Reads a file, if its size is one that a segment can have.
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let read = || {
        let bytes = std::fs::metadata(path)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("{bytes} bytes are more than a file may have")));
        }
        std::fs::read(path)
    };
    read().map_err(|error| ErrorChain(&error).to_string())
}

/// What is wrong with a file as a whole; `None`: nothing.
fn fault_of(file: &DecodedFile, scope: &str, process: &str) -> Option<String> {
    let header = file.header.as_ref()?;
    if header.scope != scope {
        return Some(format!("it is of the cluster {:?}", header.scope));
    }
    if header.process != process {
        return Some(format!("it is of the process {:?}", header.process));
    }
    None
}

/// Replaces a file by the readable part of it; the whole of it is set aside.
fn keep_readable(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let _ = std::fs::remove_file(&part);
    let mut file = private_files::create_file(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::hard_link(path, aside(path))?;
    std::fs::rename(&part, path)
}

/// The path to which a segment is set aside.
pub(crate) fn aside(path: &Path) -> PathBuf {
    path.with_extension(ASIDE_SUFFIX.trim_start_matches('.'))
}

/// Logs that a file is not used, and renames it so that it is not read again.
fn set_aside(path: &Path, why: &str) -> String {
    let renamed = std::fs::rename(path, aside(path));
    tracing::error!(
        file = %path.display(),
        why,
        renamed = renamed.is_ok(),
        "a file of the journal is not read: writes that only it holds are not repaired"
    );
    format!("{}: {why}", path.display())
}

/// Reads the copy of a cluster's journal in `dir`, which is made if it is not there. All files
/// together may take `bytes_max` bytes from now on.
pub(crate) fn read_back(
    dir: &Path,
    (scope, process): (&str, &str),
    bytes_max: u64,
    now: UnixMillis,
) -> io::Result<ReadBack> {
    private_files::create_dir(dir)?;
    let (files, next_number) = segments_in(dir)?;
    let mut segments = JournalSegments::new(bytes_max, next_number);
    let (mut groups, mut forgotten, mut aside) = (Vec::new(), Vec::new(), Vec::new());
    for (number, path) in files {
        let bytes = match read_file(&path) {
            Ok(bytes) => bytes,
            Err(why) => {
                aside.push(set_aside(&path, &why));
                continue;
            }
        };
        let file = match decode_file(&bytes) {
            Ok(file) => file,
            Err(error) => {
                aside.push(set_aside(&path, &error.to_string()));
                continue;
            }
        };
        if let Some(why) = fault_of(&file, scope, process) {
            aside.push(set_aside(&path, &why));
            continue;
        }
        let readable = &bytes[..file.readable_bytes];
        match file.end {
            FileEnd::Whole => {}
            FileEnd::Torn => cut(&path, readable.len()),
            FileEnd::Damaged(why) => {
                let why = format!("{why}, at byte {}", readable.len());
                if let Err(error) = keep_readable(&path, readable) {
                    let (file, error) = (path.display(), ErrorChain(&error));
                    tracing::warn!(%file, %error, "it cannot be set aside");
                }
                tracing::error!(
                    file = %path.display(),
                    why,
                    "a file of the journal is damaged: what comes after is not repaired"
                );
                aside.push(format!("{}: {why}", path.display()));
            }
        }
        segments.begin(number, readable.len() as u64);
        for record in file.records {
            segments.add(&record);
            match record {
                JournalRecord::Group(group) => groups.push(group),
                JournalRecord::Forgotten(range) => forgotten.push(range),
                JournalRecord::Covered { .. } => {}
            }
        }
    }
    groups.retain(|group| !segments.is_covered(group.at.epoch, group.at.flushed));
    forgotten.retain(|range: &IncompleteRange| !segments.is_covered(range.epoch, range.to));
    let expired = groups.extract_if(.., |group| is_expired(group, now));
    aside.extend(note_expired(expired));
    Ok(ReadBack { groups, forgotten, segments, set_aside: aside })
}

/// Whether the verdicts about all writes of a group are forgotten.
fn is_expired(group: &AcknowledgedGroup, now: UnixMillis) -> bool {
    group.newest_write_at().is_some_and(|newest| now.saturating_sub(newest) > GROUP_AGE_MAX_MS)
}

fn note_expired(groups: impl Iterator<Item = AcknowledgedGroup>) -> Option<String> {
    let mut writes: BTreeMap<EpochId, usize> = BTreeMap::new();
    for group in groups {
        *writes.entry(group.at.epoch).or_default() += group.writes();
    }
    if writes.is_empty() {
        return None;
    }
    let count: usize = writes.values().sum();
    tracing::error!(
        writes = count,
        epochs = ?writes.keys().map(EpochId::to_string).collect::<Vec<_>>(),
        "writes in the files of the journal are older than seven days, by this machine's clock: \
         they are not repaired"
    );
    Some(format!("{count} writes are older than seven days, by this machine's clock"))
}

/// Cuts off what was being written when the process ended.
fn cut(path: &Path, bytes: usize) {
    tracing::info!(file = %path.display(), bytes, "what was being written last is cut off");
    let cut = File::options().write(true).open(path).and_then(|file| file.set_len(bytes as u64));
    if let Err(error) = cut {
        // It is read as far again.
        tracing::warn!(file = %path.display(), error = %ErrorChain(&error), "it cannot be cut");
    }
}
