//! Input of lines: a file, a pipe, a device or stdin, gzipped or not.
//!
//! An input is opened once and read from its beginning to its end, because the bytes of what is not
//! a regular file are there once only: nothing is opened again, sought or read ahead on a second
//! handle. What was read before a failure is handed out first, then the error.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::CliError;
use crate::gzip::GzipReader;
use crate::output::names_descriptor;

/// Size of a read buffer, in bytes.
const READ_BUFFER_BYTES: usize = 256 * 1024;
/// First bytes of every gzip stream.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Wait between two attempts to read a descriptor that its owner has made non-blocking.
const NOT_READY_WAIT: Duration = Duration::from_millis(5);
/// Names of stdin. `/dev/stdin` is not opened: that fails for a socket, and begins a file that
/// stdin has partly read again.
const STDIN_NAMES: &[&str] = &["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];

/// An open input.
pub(crate) struct Input {
    /// Its plain text.
    pub(crate) lines: Box<dyn BufRead + Send>,
    /// Size in bytes, before decompression; `None` = not a regular file.
    pub(crate) size: Option<u64>,
    /// Bytes read so far, before decompression.
    pub(crate) read: Arc<AtomicU64>,
}

/// Opens a file, or stdin for `-`, and recognises gzip by its first bytes. Waits for the first
/// bytes of a pipe.
///
/// # Errors
/// The file cannot be opened or read.
pub(crate) fn open(file: &Path) -> Result<Input, CliError> {
    if STDIN_NAMES.iter().any(|name| file.as_os_str() == *name) {
        return from_source(Box::new(std::io::stdin()), None)
            .map_err(|e| CliError::new("cannot read stdin").with_source(e));
    }
    let opened = File::open(file)
        .map_err(|e| CliError::new(format!("cannot open {}", file.display())).with_source(e))?;
    let size = opened.metadata().ok().filter(std::fs::Metadata::is_file).map(|m| m.len());
    from_source(Box::new(opened), size)
        .map_err(|e| CliError::new(format!("cannot read {}", file.display())).with_source(e))
}

/// As [`open`], the text alone.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_lines(file: &Path) -> Result<Box<dyn BufRead + Send>, CliError> {
    open(file).map(|input| input.lines)
}

/// The file beside which something about the input may be kept: only a regular file that a path of
/// the file system names can be found again.
pub(crate) fn lasting_path(path: &Path, input: &Input) -> Option<PathBuf> {
    let lasting = input.size.is_some() && !names_descriptor(path);
    lasting.then(|| path.to_owned())
}

fn from_source(source: Box<dyn Read + Send>, size: Option<u64>) -> std::io::Result<Input> {
    let read = Arc::new(AtomicU64::new(0));
    let mut source = CountingReader { source, read: Arc::clone(&read) };
    // A pipe may hand out its first byte alone.
    let mut first = Vec::with_capacity(GZIP_MAGIC.len());
    source.by_ref().take(GZIP_MAGIC.len() as u64).read_to_end(&mut first)?;
    let gzipped = first == GZIP_MAGIC;
    let whole = BufReader::with_capacity(READ_BUFFER_BYTES, Cursor::new(first).chain(source));
    let lines: Box<dyn BufRead + Send> =
        if gzipped { Box::new(GzipReader::new(whole)) } else { Box::new(whole) };
    Ok(Input { lines, size, read })
}

/// Counts bytes, and waits where the source asks to come again.
struct CountingReader {
    source: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for CountingReader {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.source.read(into) {
                Ok(n) => {
                    self.read.fetch_add(n as u64, Ordering::Relaxed);
                    return Ok(n);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    std::thread::park_timeout(NOT_READY_WAIT);
                }
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A source that hands out its parts one by one, like a pipe.
    pub(crate) struct Parts(pub(crate) VecDeque<std::io::Result<Vec<u8>>>);

    impl Read for Parts {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            match self.0.pop_front() {
                None => Ok(0),
                Some(Err(error)) => Err(error),
                Some(Ok(mut part)) => {
                    let n = part.len().min(into.len());
                    into[..n].copy_from_slice(&part[..n]);
                    if n < part.len() {
                        self.0.push_front(Ok(part.split_off(n)));
                    }
                    Ok(n)
                }
            }
        }
    }

    /// The input that these parts make.
    pub(crate) fn from_parts(parts: Vec<std::io::Result<Vec<u8>>>) -> Input {
        from_source(Box::new(Parts(parts.into())), None).unwrap()
    }

    fn text(mut input: Input) -> String {
        let mut text = String::new();
        input.lines.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn every_byte_is_read_however_the_source_hands_it_out() {
        use std::io::Write as _;
        let plain: String = (0..2000).map(|n| format!("line {n}\n")).collect();
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zipped.write_all(plain.as_bytes()).unwrap();
        let zipped = zipped.finish().unwrap();
        for bytes in [plain.as_bytes(), &zipped] {
            for size in [1, 2, 3, 700, bytes.len()] {
                let mut parts = Vec::new();
                for (n, part) in bytes.chunks(size).enumerate() {
                    if n % 700 == 1 {
                        parts.push(Err(ErrorKind::Interrupted.into()));
                        parts.push(Err(ErrorKind::WouldBlock.into()));
                    }
                    parts.push(Ok(part.to_vec()));
                }
                let input = from_parts(parts);
                let read = Arc::clone(&input.read);
                assert_eq!(text(input), plain, "in parts of {size} bytes");
                assert_eq!(read.load(Ordering::Relaxed), bytes.len() as u64);
            }
        }
        for short in ["", "\u{1f}", "x"] {
            assert_eq!(text(from_parts(vec![Ok(short.as_bytes().to_vec())])), short);
        }
    }

    #[test]
    fn only_regular_files_with_a_name_of_their_own_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        std::fs::write(&path, "x").unwrap();
        assert_eq!(lasting_path(&path, &open(&path).unwrap()), Some(path.clone()));
        let null = Path::new("/dev/null");
        assert_eq!(lasting_path(null, &open(null).unwrap()), None);
        assert_eq!(lasting_path(Path::new("/dev/fd/63"), &open(&path).unwrap()), None);
        assert!(open(dir.path()).is_err(), "a folder holds no lines");
    }
}
