//! Reads the lines of an import and packs them into segments of batches. Runs in a thread of its
//! own, because reading blocks.
//!
//! A line that cannot be sent is reported and skipped. An input that cannot be read any further
//! ends the import, after the whole lines before it. Segments and batches depend on nothing but the
//! lines and the line after which an earlier run goes on, so that an import that resumes makes the
//! same requests.

use std::collections::HashMap;
use std::io::BufRead;
use std::sync::atomic::Ordering;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::ledger::{BadLine, Done};
use super::line::{LINE_BYTES_MAX, ParsedLine, parse};
use crate::input::Input;

/// Target size of a batch's items: half of the server's default body limit.
const BATCH_BYTES: usize = 512 * 1024;
/// Batches of a segment without two lines of one content. More: fewer requests for files with
/// several lines for each content, but a checkpoint only every so many lines.
const SEGMENT_BATCHES: usize = 4;

/// One line that can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImportEntry {
    /// Line number, from 1.
    pub(super) line: u64,
    /// The batch item, as JSON.
    pub(super) item: Vec<u8>,
    /// Number of tags it names.
    pub(super) tags: usize,
    /// Hash of its content.
    pub(super) content: u64,
}

/// Lines for one request, each of a different content.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    /// The lines.
    pub(super) entries: Vec<ImportEntry>,
    /// Number of the segment that they are from.
    pub(super) segment: u64,
}

impl Batch {
    /// Size of the items in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.entries.iter().map(|e| e.item.len()).sum()
    }
}

/// Consecutive lines.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// What can be sent. The lines of one content are in successive batches, in their order.
    pub(super) batches: Vec<Batch>,
    /// What cannot be sent.
    pub(super) bad: Vec<BadLine>,
    /// Number of blank lines.
    pub(super) blank: u64,
    /// Number of the last line.
    pub(super) through: u64,
    /// SHA-256 of all lines of the input so far, in hexadecimal digits.
    pub(super) digest: String,
    /// Bytes of the input read so far, before decompression.
    pub(super) bytes: u64,
}

/// What the reader passes on, in the order of the file.
#[derive(Debug)]
pub(super) enum ReadChunk {
    /// The next lines.
    Segment(Segment),
    /// The lines that an earlier run has done are not those of this input.
    Changed,
    /// The input cannot be read any further.
    Broken {
        /// Number of the last whole line.
        after: u64,
        /// The cause.
        source: std::io::Error,
    },
}

/// What to read and how to pack it.
pub(super) struct PackOptions {
    /// What an earlier run has done.
    pub(super) done: Done,
    /// Upper limit of lines in a batch.
    pub(super) lines_max: usize,
    /// The tenant that the import writes to; `None` = unknown to this client.
    pub(super) tenant: Option<String>,
}

/// Packs the whole input into segments; ends early when the receiver is gone.
pub(super) fn pack(mut input: Input, options: &PackOptions, chunks: &mpsc::Sender<ReadChunk>) {
    let mut lines = Lines { number: 0, line: Vec::new(), length: 0, digest: Sha256::new() };
    while lines.number < options.done.line {
        let end = match lines.next(&mut *input.lines) {
            Ok(true) if lines.number < options.done.line => continue,
            Ok(true) if lines.digest() == options.done.digest => continue,
            Ok(true | false) => ReadChunk::Changed,
            Err(source) => ReadChunk::Broken { after: lines.number, source },
        };
        let _ = chunks.blocking_send(end);
        return;
    }
    loop {
        let mut segment = Segment::default();
        let ended = fill(&mut segment, &mut lines, &mut *input.lines, options);
        segment.bytes = input.read.load(Ordering::Relaxed);
        if segment.through > 0 && chunks.blocking_send(ReadChunk::Segment(segment)).is_err() {
            return;
        }
        match ended {
            Ok(true) => return,
            Ok(false) => {}
            Err(source) => {
                let broken = ReadChunk::Broken { after: lines.number, source };
                let _ = chunks.blocking_send(broken);
                return;
            }
        }
    }
}

/// Reads the lines of one segment; `through` stays 0 if there is none. Returns whether the input
/// has ended.
fn fill(
    segment: &mut Segment,
    lines: &mut Lines,
    input: &mut dyn BufRead,
    options: &PackOptions,
) -> std::io::Result<bool> {
    let mut entries = Vec::new();
    let (mut count, mut size) = (0, 0);
    let ended = loop {
        if count >= options.lines_max * SEGMENT_BATCHES || size >= BATCH_BYTES * SEGMENT_BATCHES {
            break Ok(false);
        }
        match lines.next(input) {
            Ok(true) => {}
            Ok(false) => break Ok(true),
            Err(error) => break Err(error),
        }
        count += 1;
        let line = lines.number;
        match parse_line(&lines.line, lines.length, options) {
            Ok(Some(parsed)) => {
                size += parsed.item.len();
                let ParsedLine { item, tags, content } = parsed;
                entries.push(ImportEntry { line, item, tags, content });
            }
            Ok(None) => segment.blank += 1,
            Err(reason) => segment.bad.push(BadLine { line, reason }),
        }
    };
    if count > 0 {
        segment.through = lines.number;
        segment.digest = lines.digest();
        segment.batches = layered(entries, options.lines_max);
    }
    ended
}

/// Batches of at most `lines_max` lines and about [`BATCH_BYTES`]: first the first lines of all
/// contents, then their second ones, and so on.
pub(super) fn layered(entries: Vec<ImportEntry>, lines_max: usize) -> Vec<Batch> {
    let mut layers: Vec<Vec<ImportEntry>> = Vec::new();
    let mut lines_of: HashMap<u64, usize> = HashMap::new();
    for entry in entries {
        let layer = lines_of.entry(entry.content).or_insert(0);
        if *layer == layers.len() {
            layers.push(Vec::new());
        }
        layers[*layer].push(entry);
        *layer += 1;
    }
    let mut batches = Vec::new();
    for layer in layers {
        let (mut batch, mut size) = (Batch::default(), 0);
        for entry in layer {
            size += entry.item.len();
            batch.entries.push(entry);
            if batch.entries.len() >= lines_max || size >= BATCH_BYTES {
                batches.push(std::mem::take(&mut batch));
                size = 0;
            }
        }
        if !batch.entries.is_empty() {
            batches.push(batch);
        }
    }
    batches
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

/// The place in an input.
struct Lines {
    /// Number of the line, from 1; 0 = before the first one.
    number: u64,
    /// At most [`LINE_BYTES_MAX`] bytes of the line.
    line: Vec<u8>,
    /// The line's whole length in bytes, with its line feed.
    length: usize,
    /// Digest of all lines so far.
    digest: Sha256,
}

impl Lines {
    /// Reads the next line; `false` at the end of the input. After an error the place is still
    /// behind the last whole line.
    fn next(&mut self, input: &mut dyn BufRead) -> std::io::Result<bool> {
        self.line.clear();
        let mut digest = self.digest.clone();
        let mut length = 0;
        loop {
            let available = match input.fill_buf() {
                Ok(available) => available,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            let end = available.iter().position(|b| *b == b'\n').map(|i| i + 1);
            let taken = end.unwrap_or(available.len());
            let room = LINE_BYTES_MAX.saturating_sub(self.line.len()).min(taken);
            self.line.extend_from_slice(&available[..room]);
            digest.update(&available[..taken]);
            input.consume(taken);
            length += taken;
            if end.is_none() && taken > 0 {
                continue;
            }
            if length == 0 {
                return Ok(false);
            }
            if end.is_none() {
                // The last line has no line feed; it is the same line once it has one.
                digest.update(b"\n");
            }
            self.number += 1;
            self.length = length;
            self.digest = digest;
            return Ok(true);
        }
    }

    /// SHA-256 of all lines so far, in hexadecimal digits.
    fn digest(&self) -> String {
        hex::encode(self.digest.clone().finalize())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::input::tests::from_parts;

    fn chunks_of(input: Input, done: Done, lines_max: usize) -> Vec<ReadChunk> {
        let (sender, mut receiver) = mpsc::channel(1000);
        pack(input, &PackOptions { done, lines_max, tenant: None }, &sender);
        drop(sender);
        std::iter::from_fn(|| receiver.blocking_recv()).collect()
    }

    fn chunks(text: &[u8], lines_max: usize) -> Vec<ReadChunk> {
        chunks_of(from_parts(vec![Ok(text.to_vec())]), Done::default(), lines_max)
    }

    fn good(n: usize) -> String {
        (1..=n).map(|i| format!("{{\"type\":\"t\",\"id\":\"{i}\",\"tags\":[\"a\"]}}\n")).collect()
    }

    fn shape(chunks: &[ReadChunk]) -> Vec<String> {
        chunks
            .iter()
            .map(|p| match p {
                ReadChunk::Segment(segment) => {
                    let lines = |b: &Batch| b.entries.iter().map(|e| e.line).collect::<Vec<_>>();
                    let batches: Vec<_> = segment.batches.iter().map(lines).collect();
                    let bad: Vec<_> = segment.bad.iter().map(|b| b.line).collect();
                    let Segment { blank, through, .. } = segment;
                    format!("{batches:?} bad {bad:?} blank {blank} through {through}")
                }
                ReadChunk::Changed => "changed".to_owned(),
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
        let whole = chunks(text.as_bytes(), 2);
        assert_eq!(shape(&whole), ["[[1, 2], [6]] bad [5] blank 2 through 6"]);
        assert_eq!(shape(&chunks(b"", 2)), [""; 0]);
        assert_eq!(
            shape(&chunks(good(9).as_bytes(), 2)),
            [
                "[[1, 2], [3, 4], [5, 6], [7, 8]] bad [] blank 0 through 8",
                "[[9]] bad [] blank 0 through 9"
            ]
        );
    }

    #[test]
    fn lines_of_one_content_are_in_successive_batches() {
        let text = [good(2), good(3), good(1)].concat();
        assert_eq!(
            shape(&chunks(text.as_bytes(), 10)),
            ["[[1, 2, 5], [3, 4], [6]] bad [] blank 0 through 6"]
        );
    }

    #[test]
    fn an_import_goes_on_only_behind_the_lines_that_were_done() {
        let text = good(20);
        let whole = chunks(text.as_bytes(), 2);
        let ReadChunk::Segment(first) = &whole[0] else { panic!("{whole:?}") };
        let done = Done { line: 8, digest: first.digest.clone(), ..Done::default() };
        let again = |text: &str| {
            let input = from_parts(vec![Ok(text.as_bytes().to_vec())]);
            shape(&chunks_of(input, done.clone(), 2))
        };
        assert_eq!(again(&text), shape(&whole)[1..]);
        // What follows may have been repaired or appended; a missing last line feed is no change.
        let done_lines: String = text.lines().take(8).map(|l| format!("{l}\n")).collect();
        assert_eq!(again(&done_lines), [""; 0]);
        assert_eq!(again(done_lines.trim_end()), [""; 0]);
        assert_eq!(again(&format!("{done_lines}x")), ["[] bad [9] blank 0 through 9"]);
        assert_eq!(again(&text.replacen("\"7\"", "\"6\"", 1)), ["changed"]);
        assert_eq!(again(&good(7)), ["changed"]);
        assert_eq!(again(""), ["changed"]);
    }

    #[test]
    fn whole_lines_before_a_failure_are_handed_out_whatever_the_failure() {
        let text = good(7);
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zipped.write_all(text.as_bytes()).unwrap();
        let zipped = zipped.finish().unwrap();
        let eight = [zipped.as_slice(), &[0; 700]].concat();
        let failure = || std::io::Error::other("the disk is broken");
        let half_a_line = br#"{"type":"t","id":"8","tags":["a"]}"#.to_vec();
        for parts in [
            vec![Ok(text.clone().into_bytes()), Err(failure())],
            vec![Ok(text.clone().into_bytes()), Ok(half_a_line), Err(failure())],
            vec![Ok(zipped.clone()), Err(failure())],
            vec![Ok(zipped[..zipped.len() - 1].to_vec())],
            vec![Ok(zipped[..zipped.len() - 1].to_vec()), Err(failure())],
            vec![Ok([zipped.as_slice(), b"\0\0garbage"].concat())],
            vec![Ok(eight.clone()), Err(failure())],
        ] {
            let name = format!("{parts:?}");
            for lines_max in [1, 3, 500] {
                let parts = parts.iter().map(|p| match p {
                    Ok(bytes) => Ok(bytes.clone()),
                    Err(_) => Err(failure()),
                });
                let found = chunks_of(from_parts(parts.collect()), Done::default(), lines_max);
                let sent: Vec<u64> = found
                    .iter()
                    .filter_map(|c| match c {
                        ReadChunk::Segment(segment) => Some(&segment.batches),
                        ReadChunk::Changed | ReadChunk::Broken { .. } => None,
                    })
                    .flatten()
                    .flat_map(|b| b.entries.iter().map(|e| e.line))
                    .collect();
                assert_eq!(sent, (1..=7).collect::<Vec<_>>(), "{name}");
                assert!(matches!(found.last(), Some(ReadChunk::Broken { after: 7, .. })), "{name}");
            }
        }
        assert_eq!(shape(&chunks(&eight, 500)), shape(&chunks(text.as_bytes(), 500)));
    }

    #[test]
    fn endless_lines_are_bad_and_do_not_fill_the_memory() {
        let mut text = vec![b'x'; LINE_BYTES_MAX + 5];
        text.push(b'\n');
        text.extend_from_slice(good(1).as_bytes());
        assert_eq!(shape(&chunks(&text, 500)), ["[[2]] bad [1] blank 0 through 2"]);
    }

    #[test]
    fn batches_are_bounded_in_bytes() {
        let long = "y".repeat(200_000);
        let text: String = (0..14)
            .map(|i| format!("{{\"type\":\"t\",\"id\":\"{i}\",\"tags\":[\"{long}\"]}}\n"))
            .collect();
        assert_eq!(
            shape(&chunks(text.as_bytes(), 500)),
            [
                "[[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11]] bad [] blank 0 through 11",
                "[[12, 13, 14]] bad [] blank 0 through 14"
            ]
        );
    }
}
