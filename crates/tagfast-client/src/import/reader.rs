//! Packs the lines of an import into batches. Runs in a thread of its own, because reading blocks.
//!
//! A line that cannot be sent is reported and skipped; an unreadable input ends the import.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::line::{LINE_BYTES_MAX, ParsedLine, parse};

/// Target size of a batch's items: half of the server's default body limit.
const BATCH_BYTES: usize = 512 * 1024;

/// One line that can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImportEntry {
    /// Line number, from 1.
    pub(super) line: u64,
    /// The batch item, as JSON.
    pub(super) item: Vec<u8>,
    /// Number of tags it names.
    pub(super) tags: usize,
}

/// What the reader passes on, in the order of the file.
#[derive(Debug)]
pub(super) enum ReadChunk {
    /// Lines to send.
    Batch {
        /// The lines.
        entries: Vec<ImportEntry>,
        /// Number of the last line read, bad and blank lines included.
        through: u64,
        /// Bytes of the file read so far.
        bytes: u64,
    },
    /// A line that cannot be sent.
    Bad {
        /// Line number, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The input cannot be read any further.
    Broken {
        /// Number of the last line read.
        after: u64,
        /// The cause.
        source: std::io::Error,
    },
}

/// What to read and how to pack it.
pub(super) struct PackOptions {
    /// Lines to skip: an earlier run imported them.
    pub(super) skip: u64,
    /// Upper limit of lines in a batch.
    pub(super) lines_max: usize,
    /// The tenant that the import writes to; `None` = unknown to this client.
    pub(super) tenant: Option<String>,
    /// Bytes read from the file, see [`crate::input::open_counted`].
    pub(super) read: Arc<AtomicU64>,
}

/// Packs the whole input into chunks; ends early when the receiver is gone.
pub(super) fn pack(
    mut input: Box<dyn BufRead + Send>,
    options: &PackOptions,
    chunks: &mpsc::Sender<ReadChunk>,
) {
    let mut entries = Vec::new();
    let mut size = 0;
    let mut number = 0;
    let mut line = Vec::new();
    loop {
        let length = match bounded_line(&mut input, &mut line) {
            Ok(length) => length,
            Err(source) => {
                let _ = chunks.blocking_send(ReadChunk::Broken { after: number, source });
                return;
            }
        };
        let ended = length == 0;
        let mut bad = None;
        if !ended {
            number += 1;
            if number > options.skip {
                match parse_line(&line, length, options) {
                    Ok(Some(parsed)) => {
                        size += parsed.item.len();
                        entries.push(ImportEntry {
                            line: number,
                            item: parsed.item,
                            tags: parsed.tags,
                        });
                    }
                    Ok(None) => {}
                    Err(reason) => bad = Some(reason),
                }
            }
        }
        if let Some(reason) = bad
            && chunks.blocking_send(ReadChunk::Bad { line: number, reason }).is_err()
        {
            return;
        }
        if ended || entries.len() >= options.lines_max || size >= BATCH_BYTES {
            let bytes = options.read.load(Ordering::Relaxed);
            let batch =
                ReadChunk::Batch { entries: std::mem::take(&mut entries), through: number, bytes };
            size = 0;
            if chunks.blocking_send(batch).is_err() || ended {
                return;
            }
        }
    }
}

/// The batch item of a line; `None` = a blank line.
fn parse_line(
    line: &[u8],
    length: usize,
    options: &PackOptions,
) -> Result<Option<ParsedLine>, String> {
    if length > LINE_BYTES_MAX {
        return Err(format!("it is longer than {LINE_BYTES_MAX} bytes"));
    }
    let text = line.trim_ascii();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    if text.is_empty() {
        return Ok(None);
    }
    parse(text, options.tenant.as_deref()).map(Some)
}

/// Reads one line into `line`, at most [`LINE_BYTES_MAX`] of it. Returns the whole length in bytes
/// with the line feed; 0 at the end of the input.
fn bounded_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> std::io::Result<usize> {
    line.clear();
    let mut length = 0;
    loop {
        let available = match input.fill_buf() {
            Ok(available) => available,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if available.is_empty() {
            return Ok(length);
        }
        let end = available.iter().position(|b| *b == b'\n').map(|i| i + 1);
        let taken = end.unwrap_or(available.len());
        let room = LINE_BYTES_MAX.saturating_sub(line.len()).min(taken);
        line.extend_from_slice(&available[..room]);
        input.consume(taken);
        length += taken;
        if end.is_some() {
            return Ok(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::input::open_counted;

    fn chunks(text: &[u8], skip: u64, lines_max: usize) -> Vec<ReadChunk> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        std::fs::write(&path, text).unwrap();
        let read = Arc::new(AtomicU64::new(0));
        let input = open_counted(path.to_str().unwrap(), &read).unwrap();
        let (sender, mut receiver) = mpsc::channel(1000);
        pack(input, &PackOptions { skip, lines_max, tenant: None, read }, &sender);
        drop(sender);
        std::iter::from_fn(|| receiver.blocking_recv()).collect()
    }

    fn good(n: usize) -> String {
        (1..=n).map(|i| format!("{{\"type\":\"t\",\"id\":\"{i}\",\"tags\":[\"a\"]}}\n")).collect()
    }

    fn shape(chunks: &[ReadChunk]) -> Vec<String> {
        chunks
            .iter()
            .map(|p| match p {
                ReadChunk::Batch { entries, through, .. } => {
                    format!(
                        "{:?} through {through}",
                        entries.iter().map(|e| e.line).collect::<Vec<_>>()
                    )
                }
                ReadChunk::Bad { line, .. } => format!("bad {line}"),
                ReadChunk::Broken { after, .. } => format!("broken after {after}"),
            })
            .collect()
    }

    #[test]
    fn lines_are_numbered_and_packed() {
        let text = format!(
            "\u{feff}{}\n\nnonsense\r\n{{\"type\":\"t\",\"id\":\"x\",\"tags\":[\"a\"]}}",
            good(2)
        );
        assert_eq!(
            shape(&chunks(text.as_bytes(), 0, 2)),
            ["[1, 2] through 2", "bad 5", "[6] through 6"]
        );
        assert_eq!(shape(&chunks(text.as_bytes(), 5, 2)), ["[6] through 6"]);
        assert_eq!(shape(&chunks(b"", 0, 2)), ["[] through 0"]);
    }

    #[test]
    fn gzip_is_recognised_and_a_cut_file_is_broken() {
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zipped.write_all(good(3).as_bytes()).unwrap();
        let bytes = zipped.finish().unwrap();
        assert_eq!(shape(&chunks(&bytes, 0, 500)), ["[1, 2, 3] through 3"]);
        let cut = chunks(&bytes[..bytes.len() - 6], 0, 500);
        assert!(matches!(cut.last(), Some(ReadChunk::Broken { .. })), "{cut:?}");
    }

    #[test]
    fn endless_lines_are_bad_and_do_not_fill_the_memory() {
        let mut text = vec![b'x'; LINE_BYTES_MAX + 5];
        text.push(b'\n');
        text.extend_from_slice(good(1).as_bytes());
        assert_eq!(shape(&chunks(&text, 0, 500)), ["bad 1", "[2] through 2"]);
    }

    #[test]
    fn batches_are_bounded_in_bytes() {
        let long = "y".repeat(200_000);
        let text: String = (0..5)
            .map(|i| format!("{{\"type\":\"t\",\"id\":\"{i}\",\"tags\":[\"{long}\"]}}\n"))
            .collect();
        assert_eq!(
            shape(&chunks(text.as_bytes(), 0, 500)),
            ["[1, 2, 3] through 3", "[4, 5] through 5"]
        );
    }
}
