//! Input of lines: a file or stdin, gzipped or not.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::CliError;

/// Size of a read buffer, compressed and plain, in bytes.
const READ_BUFFER_BYTES: usize = 256 * 1024;
/// First bytes of every gzip stream.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Opens a file, or stdin for `-`; gzip is recognised by its first bytes.
///
/// # Errors
/// The file cannot be opened or read.
pub(crate) fn open_lines(file: &str) -> Result<Box<dyn BufRead + Send>, CliError> {
    open_counted(file, &Arc::default())
}

/// As [`open_lines`]; `read` counts the bytes taken from the file, before decompression.
pub(crate) fn open_counted(
    file: &str,
    read: &Arc<AtomicU64>,
) -> Result<Box<dyn BufRead + Send>, CliError> {
    let source: Box<dyn Read + Send> = if file == "-" {
        Box::new(std::io::stdin())
    } else {
        let opened = File::open(file);
        Box::new(opened.map_err(|e| CliError::new(format!("cannot open {file}")).with_source(e))?)
    };
    let counting = CountingReader { source, read: Arc::clone(read) };
    let mut counted = BufReader::with_capacity(READ_BUFFER_BYTES, counting);
    let gzipped = counted
        .fill_buf()
        .map_err(|e| CliError::new(format!("cannot read {file}")).with_source(e))?
        .starts_with(&GZIP_MAGIC);
    if gzipped {
        let plain = flate2::bufread::MultiGzDecoder::new(counted);
        return Ok(Box::new(BufReader::with_capacity(READ_BUFFER_BYTES, plain)));
    }
    Ok(Box::new(counted))
}

struct CountingReader {
    source: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for CountingReader {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = self.source.read(into)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}
