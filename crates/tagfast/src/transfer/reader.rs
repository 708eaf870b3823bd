//! Reads lines from a file or stdin, gzipped or not, and packs them into batches. Runs in a thread
//! of its own.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::line::{LINE_BYTES, parse};
use crate::failure::Failure;

/// Most bytes of items in a batch: half of the server's default limit.
const BATCH_BYTES: usize = 512 * 1024;
const BUFFER: usize = 256 * 1024;

/// Opens a file, or stdin for `-`; gzip is recognised by its first bytes.
pub fn open_lines(file: &str) -> Result<Box<dyn BufRead + Send>, Failure> {
    open_counted(file, &Arc::default())
}

/// As [`open_lines`]; `read` counts the bytes taken from the file, compressed as they are.
pub fn open_counted(file: &str, read: &Arc<AtomicU64>) -> Result<Box<dyn BufRead + Send>, Failure> {
    let source: Box<dyn Read + Send> = if file == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(file).map_err(|e| Failure::new(format!("cannot open {file}: {e}")))?)
    };
    let mut counted = BufReader::with_capacity(BUFFER, Counted { source, read: Arc::clone(read) });
    let gzipped = counted
        .fill_buf()
        .map_err(|e| Failure::new(format!("cannot read {file}: {e}")))?
        .starts_with(&[0x1f, 0x8b]);
    if gzipped {
        let plain = flate2::bufread::MultiGzDecoder::new(counted);
        return Ok(Box::new(BufReader::with_capacity(BUFFER, plain)));
    }
    Ok(Box::new(counted))
}

struct Counted {
    source: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = self.source.read(into)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// One line that can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1.
    pub line: u64,
    /// The batch item, as JSON.
    pub item: Vec<u8>,
    /// Tags it names.
    pub tags: usize,
}

/// What the reader hands over, in the order of the file.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Lines to send.
    Batch {
        /// The lines.
        entries: Vec<Entry>,
        /// The last line that was read, bad and blank ones included.
        through: u64,
        /// Bytes of the file read so far.
        bytes: u64,
    },
    /// A line that cannot be sent.
    Bad {
        /// Its number.
        line: u64,
        /// Why.
        reason: String,
    },
    /// The input cannot be read any further.
    Broken(String),
}

/// What to read and how to pack it.
pub struct Packing {
    /// Lines that were imported before.
    pub skip: u64,
    /// Most lines in a batch.
    pub lines: usize,
    /// The tenant that is written to, where we know it.
    pub tenant: Option<String>,
    /// Bytes read, see [`open_counted`].
    pub read: Arc<AtomicU64>,
}

/// Packs everything into pieces; ends early when nobody takes them any more.
pub fn pack(mut input: Box<dyn BufRead + Send>, packing: &Packing, pieces: &mpsc::Sender<Piece>) {
    let mut entries = Vec::new();
    let mut size = 0;
    let mut number = 0;
    let mut line = Vec::new();
    loop {
        let length = match bounded_line(&mut input, &mut line) {
            Ok(length) => length,
            Err(e) => {
                let _ = pieces.blocking_send(Piece::Broken(format!("after line {number}: {e}")));
                return;
            }
        };
        let ended = length == 0;
        let mut bad = None;
        if !ended {
            number += 1;
            if number > packing.skip {
                match judge(&line, length, packing) {
                    Ok(Some(parsed)) => {
                        size += parsed.item.len();
                        entries.push(Entry { line: number, item: parsed.item, tags: parsed.tags });
                    }
                    Ok(None) => {}
                    Err(reason) => bad = Some(reason),
                }
            }
        }
        if let Some(reason) = bad
            && pieces.blocking_send(Piece::Bad { line: number, reason }).is_err()
        {
            return;
        }
        if ended || entries.len() >= packing.lines || size >= BATCH_BYTES {
            let bytes = packing.read.load(Ordering::Relaxed);
            let batch =
                Piece::Batch { entries: std::mem::take(&mut entries), through: number, bytes };
            size = 0;
            if pieces.blocking_send(batch).is_err() || ended {
                return;
            }
        }
    }
}

fn judge(
    line: &[u8],
    length: usize,
    packing: &Packing,
) -> Result<Option<super::line::Parsed>, String> {
    if length > LINE_BYTES {
        return Err(format!("it is longer than {LINE_BYTES} bytes"));
    }
    let text = line.trim_ascii();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    if text.is_empty() {
        return Ok(None);
    }
    parse(text, packing.tenant.as_deref()).map(Some)
}

/// Reads one line into `line`, at most [`LINE_BYTES`] of it; gives its whole length with the line
/// feed, 0 at the end.
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
        let room = LINE_BYTES.saturating_sub(line.len()).min(taken);
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

    fn pieces(text: &[u8], skip: u64, lines: usize) -> Vec<Piece> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        std::fs::write(&path, text).unwrap();
        let read = Arc::new(AtomicU64::new(0));
        let input = open_counted(path.to_str().unwrap(), &read).unwrap();
        let (sender, mut receiver) = mpsc::channel(1000);
        pack(input, &Packing { skip, lines, tenant: None, read }, &sender);
        drop(sender);
        std::iter::from_fn(|| receiver.blocking_recv()).collect()
    }

    fn good(n: usize) -> String {
        (1..=n).map(|i| format!("{{\"type\":\"t\",\"id\":\"{i}\",\"tags\":[\"a\"]}}\n")).collect()
    }

    fn shape(pieces: &[Piece]) -> Vec<String> {
        pieces
            .iter()
            .map(|p| match p {
                Piece::Batch { entries, through, .. } => {
                    format!(
                        "{:?} through {through}",
                        entries.iter().map(|e| e.line).collect::<Vec<_>>()
                    )
                }
                Piece::Bad { line, .. } => format!("bad {line}"),
                Piece::Broken(why) => format!("broken {why}"),
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
            shape(&pieces(text.as_bytes(), 0, 2)),
            ["[1, 2] through 2", "bad 5", "[6] through 6"]
        );
        assert_eq!(shape(&pieces(text.as_bytes(), 5, 2)), ["[6] through 6"]);
        assert_eq!(shape(&pieces(b"", 0, 2)), ["[] through 0"]);
    }

    #[test]
    fn gzip_is_recognised_and_a_cut_file_is_broken() {
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zipped.write_all(good(3).as_bytes()).unwrap();
        let bytes = zipped.finish().unwrap();
        assert_eq!(shape(&pieces(&bytes, 0, 500)), ["[1, 2, 3] through 3"]);
        let cut = pieces(&bytes[..bytes.len() - 6], 0, 500);
        assert!(matches!(cut.last(), Some(Piece::Broken(_))), "{cut:?}");
    }

    #[test]
    fn endless_lines_are_bad_and_do_not_fill_the_memory() {
        let mut text = vec![b'x'; LINE_BYTES + 5];
        text.push(b'\n');
        text.extend_from_slice(good(1).as_bytes());
        assert_eq!(shape(&pieces(&text, 0, 500)), ["bad 1", "[2] through 2"]);
    }

    #[test]
    fn batches_are_bounded_in_bytes() {
        let long = "y".repeat(200_000);
        let text: String = (0..5)
            .map(|i| format!("{{\"type\":\"t\",\"id\":\"{i}\",\"tags\":[\"{long}\"]}}\n"))
            .collect();
        assert_eq!(
            shape(&pieces(text.as_bytes(), 0, 500)),
            ["[1, 2, 3] through 3", "[4, 5] through 5"]
        );
    }
}
