//! Results on stdout, everything else on stderr; a test can capture both.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use unicode_width::UnicodeWidthStr as _;

use crate::color::ColorChoice;

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[1;31m";
const CYAN: &str = "\x1b[36m";
const RESET: &str = "\x1b[0m";

/// Where a command writes.
#[derive(Clone)]
pub struct Terminal {
    out: Arc<Mutex<Box<dyn Write + Send>>>,
    err: Arc<Mutex<Box<dyn Write + Send>>>,
    /// Results are JSON.
    pub json: bool,
    /// stderr is a terminal: progress may be a bar.
    pub bars: bool,
    /// stdout is a terminal: tables have headings, and changing output may be drawn in place.
    pub screen: bool,
    /// stdout is coloured.
    pub out_color: bool,
    /// stderr is coloured.
    pub err_color: bool,
}

impl Terminal {
    /// stdout and stderr of this process.
    pub fn process(json: bool, color: ColorChoice) -> Self {
        let (screen, bars) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        Self {
            out: Arc::new(Mutex::new(Box::new(std::io::stdout()))),
            err: Arc::new(Mutex::new(Box::new(std::io::stderr()))),
            json,
            bars,
            screen,
            out_color: color.is_on(screen),
            err_color: color.is_on(bars),
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
            out_color: false,
            err_color: false,
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

    /// Writes a table of the result. A terminal shows the headings; a pipe or a file gets the rows
    /// alone, so that a script counts and cuts what it asked for.
    ///
    /// # Errors
    /// As [`Terminal::line`].
    pub fn table(&self, headings: &[&str], rows: &[Vec<String>]) -> std::io::Result<()> {
        self.line(self.table_text(headings, rows))
    }

    /// What [`Terminal::table`] writes.
    pub fn table_text(&self, headings: &[&str], rows: &[Vec<String>]) -> String {
        if !self.screen {
            return table(rows);
        }
        let head = headings.iter().map(|heading| heading.to_uppercase()).collect();
        let all: Vec<Vec<String>> = std::iter::once(head).chain(rows.iter().cloned()).collect();
        let text = table(&all);
        match text.split_once('\n') {
            Some((head, rows)) if self.out_color => format!("{BOLD}{head}{RESET}\n{rows}"),
            Some(_) | None => text,
        }
    }

    /// Writes an error to stderr, as text.
    pub fn error(&self, text: &str) {
        self.labelled("error", RED, text);
    }

    /// Writes what to do about an error to stderr, as text.
    pub fn hint(&self, text: &str) {
        self.labelled("hint", CYAN, text);
    }

    /// A server's words may be part of the text.
    fn labelled(&self, label: &str, color: &str, text: &str) {
        let lines: Vec<String> = text.split('\n').map(visible).collect();
        let text = lines.join("\n");
        if self.err_color {
            self.note(format_args!("{color}{label}:{RESET} {text}"));
        } else {
            self.note(format_args!("{label}: {text}"));
        }
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

/// The columns that a text takes on a terminal: two for a wide character and for an emoji whatever
/// it is made of, none for a combining mark.
pub fn width(text: &str) -> usize {
    text.width()
}

/// Aligns rows into columns by their width on a terminal; the last column is not padded.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let of_column =
        |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| width(s)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(of_column).collect();
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        for (c, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if c + 1 < row.len() {
                let pad = widths[c].saturating_sub(width(cell)) + 2;
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

    /// Text with its width on a terminal.
    const WIDTHS: &[(&str, usize)] = &[
        ("a", 1),
        ("日本語", 6),
        ("ｶﾀｶﾅ", 4),
        ("한글", 4),
        ("e\u{301}", 1),
        ("👍", 2),
        ("👍🏽", 2),
        ("👩‍👩‍👧‍👦", 2),
        ("❤\u{fe0f}", 2),
        ("🇩🇪", 2),
        ("नमस्ते", 4),
        ("a\u{200b}b", 2),
    ];

    #[test]
    fn tables_align_by_the_width_on_a_terminal() {
        for (text, columns) in WIDTHS {
            assert_eq!(width(text), *columns, "{text}");
        }
        let row = |text: &str| vec![text.to_owned(), "|".to_owned()];
        let rows: Vec<_> = WIDTHS.iter().map(|(text, _)| row(text)).collect();
        for (line, (text, _)) in table(&rows).lines().zip(WIDTHS) {
            let before = line.strip_suffix('|').unwrap();
            assert_eq!(width(before), 8, "{text}");
        }
    }

    #[test]
    fn headings_are_for_people() {
        let (mut terminal, captured) = Terminal::memory(false);
        let rows = [vec!["日本".to_owned(), "1".to_owned()]];
        terminal.table(&["tag", "count"], &rows).unwrap();
        assert_eq!(captured.out(), "日本  1\n");
        terminal.screen = true;
        assert_eq!(terminal.table_text(&["tag", "count"], &rows), "TAG   COUNT\n日本  1");
        terminal.out_color = true;
        assert_eq!(
            terminal.table_text(&["tag", "count"], &rows),
            "\x1b[1mTAG   COUNT\x1b[0m\n日本  1"
        );
    }

    #[test]
    fn an_error_cannot_control_the_terminal() {
        let (mut terminal, captured) = Terminal::memory(false);
        terminal.error("a\u{1b}[2J\n  b");
        terminal.err_color = true;
        terminal.hint("c");
        assert_eq!(captured.err(), "error: a\\u{1b}[2J\n  b\n\x1b[36mhint:\x1b[0m c\n");
    }

    #[test]
    fn foreign_text_cannot_control_the_terminal() {
        assert_eq!(visible("a\u{1b}[2Jb\u{202E}"), "a\\u{1b}[2Jb\\u{202e}");
        assert_eq!(visible("日本語"), "日本語");
    }
}
