//! Results on stdout, everything else on stderr; a test can capture both.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use parking_lot::Mutex;

/// Where a command writes.
#[derive(Clone)]
pub struct Terminal {
    out: Arc<Mutex<Box<dyn Write + Send>>>,
    err: Arc<Mutex<Box<dyn Write + Send>>>,
    /// Results are JSON.
    pub json: bool,
    /// stderr is a terminal: progress may be a bar.
    pub bars: bool,
    /// stdout is a terminal: changing output may be drawn in place.
    pub screen: bool,
}

impl Terminal {
    /// stdout and stderr of this process.
    pub fn process(json: bool) -> Self {
        Self {
            out: Arc::new(Mutex::new(Box::new(std::io::stdout()))),
            err: Arc::new(Mutex::new(Box::new(std::io::stderr()))),
            json,
            bars: std::io::stderr().is_terminal(),
            screen: std::io::stdout().is_terminal(),
        }
    }

    /// Captures both outputs in memory, for tests.
    pub fn memory(json: bool) -> (Self, Captured) {
        let (out, err) = (Captured::buffer(), Captured::buffer());
        let terminal = Self {
            out: Arc::new(Mutex::new(Box::new(out.clone()))),
            err: Arc::new(Mutex::new(Box::new(err.clone()))),
            json,
            bars: false,
            screen: false,
        };
        (terminal, Captured { out, err })
    }

    /// Writes a line of the result.
    ///
    /// # Errors
    /// stdout cannot be written; a closed pipe ends a command as done.
    pub fn line(&self, text: impl std::fmt::Display) -> std::io::Result<()> {
        let mut out = self.out.lock();
        writeln!(out, "{text}").and_then(|()| out.flush())
    }

    /// Writes bytes of the result, as they are.
    ///
    /// # Errors
    /// As [`Terminal::line`].
    pub fn bytes(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = self.out.lock();
        out.write_all(bytes).and_then(|()| out.flush())
    }

    /// Writes a JSON result, indented.
    ///
    /// # Errors
    /// As [`Terminal::line`].
    pub fn value(&self, value: &serde_json::Value) -> std::io::Result<()> {
        self.line(serde_json::to_string_pretty(value)?)
    }

    /// Writes a note to stderr. A failure is ignored: no reader is left.
    pub fn note(&self, text: impl std::fmt::Display) {
        let mut err = self.err.lock();
        let _ = writeln!(err, "{text}");
    }
}

/// The outputs of a [`Terminal::memory`].
pub struct Captured {
    out: Buffer,
    err: Buffer,
}

impl Captured {
    fn buffer() -> Buffer {
        Buffer::default()
    }

    /// stdout so far.
    pub fn out(&self) -> String {
        self.out.text()
    }

    /// stderr so far.
    pub fn err(&self) -> String {
        self.err.text()
    }
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Aligns rows into columns; the last column is not padded. Widths count characters.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        for (c, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if c + 1 < row.len() {
                let pad = widths[c].saturating_sub(cell.chars().count()) + 2;
                out.extend(std::iter::repeat_n(' ', pad));
            }
        }
    }
    out
}

/// Makes foreign text safe for a terminal: control and bidi characters become visible escapes.
pub fn visible(text: &str) -> String {
    let hidden =
        |c: char| c.is_control() || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    if !text.contains(hidden) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| if hidden(c) { format!("\\u{{{:x}}}", u32::from(c)) } else { c.to_string() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_by_characters() {
        let rows =
            vec![vec!["日本語".to_owned(), "1".to_owned()], vec!["a".to_owned(), "22".to_owned()]];
        assert_eq!(table(&rows), "日本語  1\na    22");
    }

    #[test]
    fn foreign_text_cannot_control_the_terminal() {
        assert_eq!(visible("a\u{1b}[2Jb\u{202E}"), "a\\u{1b}[2Jb\\u{202e}");
        assert_eq!(visible("日本語"), "日本語");
    }
}
