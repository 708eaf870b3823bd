//! `tagfast export`: streams all contents into a file or to stdout.
//!
//! A regular file is replaced when the export is complete, anything else is written through (see
//! [`crate::output`]). After a broken stream the export resumes behind the last whole line: no line
//! is written twice or in part.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::Method;
use serde_json::{Value, json};

use tagfast_resilience::Backoff;
use tagfast_resilience::task::blocking;

use crate::args::ExportArgs;
use crate::error::{CliError, CommandResult, Exit};
use crate::http::{Client, ClientError, RequestOptions, encode, problem_of};
use crate::output::{OutputFile, is_stdout};
use crate::progress::Progress;
use crate::terminal::Terminal;

/// Waits between attempts that bring no new line.
const RETRY_BACKOFF: Backoff = Backoff {
    retries: 5,
    base: Duration::from_millis(400),
    factor: 2,
    cap: Duration::from_secs(10),
};
/// Upper limit of one stream.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Size of the buffer before a file, in bytes.
const WRITE_BUFFER_BYTES: usize = 64 * 1024;

enum Target {
    Stdout(Terminal),
    File { out: BufWriter<OutputFile>, path: PathBuf },
    Gzip { out: GzEncoder<BufWriter<OutputFile>>, path: PathBuf },
}

impl Target {
    /// Opens the file; waits for the reader of a pipe.
    async fn open(path: &Path, terminal: &Terminal) -> Result<Self, CliError> {
        let path = path.to_owned();
        if path.as_os_str() == "-" || is_stdout(&path) {
            return Ok(Self::Stdout(terminal.clone()));
        }
        let named = path.clone();
        let opened = blocking(move || OutputFile::open(&named)).await;
        let opened = opened.map_err(|e| CliError::new("the file was not opened").with_source(e))?;
        let out = opened.map_err(|e| write_failed(&path, e))?;
        let out = BufWriter::with_capacity(WRITE_BUFFER_BYTES, out);
        if path.extension().is_some_and(|e| e == "gz") {
            return Ok(Self::Gzip { out: GzEncoder::new(out, Compression::default()), path });
        }
        Ok(Self::File { out, path })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        match self {
            Self::Stdout(terminal) => Ok(terminal.bytes(bytes)?),
            Self::File { out, path } => out.write_all(bytes).map_err(|e| write_failed(path, e)),
            Self::Gzip { out, path } => out.write_all(bytes).map_err(|e| write_failed(path, e)),
        }
    }

    /// Completes the file. Returns whether there is one: nothing may follow the lines on stdout.
    fn finish(self) -> Result<bool, CliError> {
        let (out, path) = match self {
            Self::Stdout(_) => return Ok(false),
            Self::File { out, path } => (out, path),
            Self::Gzip { out, path } => (out.finish().map_err(|e| write_failed(&path, e))?, path),
        };
        let file = out.into_inner().map_err(|e| write_failed(&path, e.into_error()))?;
        file.finish().map_err(|e| write_failed(&path, e))?;
        Ok(true)
    }
}

fn write_failed(path: &Path, error: std::io::Error) -> CliError {
    CliError::new(format!("cannot write {}", path.display())).with_source(error)
}

/// `export`
///
/// # Errors
/// The file cannot be written, or the server refuses, or no retry is left.
pub async fn run(args: &ExportArgs, terminal: &Terminal) -> CommandResult {
    let client = Client::new(&args.client)?;
    let mut target = Target::open(&args.file, terminal).await?;
    let progress = Progress::new(terminal, "export", None);
    let mut download = Download::default();
    let mut failures = 0;
    loop {
        let before = download.lines;
        match download.stream(&client, &mut target, &progress).await? {
            None => break,
            Some(error) => {
                if download.lines > before {
                    failures = 0;
                }
                let delay =
                    RETRY_BACKOFF.delay(failures, fastrand::f64()).filter(|_| error.is_retryable());
                let Some(delay) = delay else { return Err(error.into()) };
                failures += 1;
                progress.note(terminal, "the stream broke off; taking it up again");
                tokio::time::sleep(error.retry_after().unwrap_or(delay)).await;
            }
        }
    }
    progress.finish();
    if target.finish()? {
        // JSON is text: a name that is no UTF-8 has replacement characters there.
        let file = args.file.display();
        if terminal.json {
            terminal.value(&json!({"contents": download.lines, "file": file.to_string()}))?;
        } else {
            terminal.line(format_args!("{} contents written to {file}", download.lines))?;
        }
    }
    Ok(Exit::Done)
}

/// The state of an export over all its requests.
#[derive(Default)]
struct Download {
    /// Whole lines written.
    lines: u64,
    /// The beginning of a line whose end has not arrived yet.
    tail: Vec<u8>,
    /// `type/id` of the last whole line; `None` = no line yet.
    last: Option<String>,
}

impl Download {
    /// Sends one request that continues where the previous one ended. `None` = the export is
    /// complete, `Some` = the stream broke off.
    async fn stream(
        &mut self,
        client: &Client,
        target: &mut Target,
        progress: &Progress,
    ) -> Result<Option<ClientError>, CliError> {
        self.tail.clear();
        let path = match &self.last {
            Some(last) => format!("/v1/export?after={}", encode(last)),
            None => "/v1/export".to_owned(),
        };
        let options = RequestOptions { timeout: Some(EXPORT_TIMEOUT), ..RequestOptions::default() };
        let mut response = match client.send(Method::GET, &path, options).await {
            Ok(response) if response.status().is_success() => response,
            Ok(response) => return Ok(Some(problem_of(response).await)),
            Err(error) => return Ok(Some(error)),
        };
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => self.write_lines(&chunk, target)?,
                Ok(None) if self.tail.is_empty() => return Ok(None),
                Ok(None) => return Ok(Some(ClientError::Truncated)),
                Err(error) => return Ok(Some(client.classify(error))),
            }
            progress.set(self.lines);
        }
    }

    /// Writes the whole lines of what has arrived.
    fn write_lines(&mut self, chunk: &[u8], target: &mut Target) -> Result<(), CliError> {
        self.tail.extend_from_slice(chunk);
        let Some(end) = self.tail.iter().rposition(|b| *b == b'\n') else { return Ok(()) };
        let whole = &self.tail[..=end];
        let last = whole[..end].rsplit(|b| *b == b'\n').next().unwrap_or_default();
        let value: Value = tagfast_json::from_slice(last)?;
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let (Some(content_type), Some(id)) = (text("type"), text("id")) else {
            return Err(CliError::new("a line of the export has no type or id"));
        };
        self.last = Some(format!("{content_type}/{id}"));
        self.lines += whole.iter().filter(|b| **b == b'\n').count() as u64;
        target.write(whole)?;
        self.tail.drain(..=end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_are_written_and_the_last_one_is_known() {
        let (terminal, captured) = Terminal::memory(false);
        let mut target = Target::Stdout(terminal);
        let mut download = Download::default();
        download
            .write_lines(b"{\"type\":\"t\",\"id\":\"1\"}\n{\"type\":\"t\",", &mut target)
            .unwrap();
        assert_eq!(captured.out(), "{\"type\":\"t\",\"id\":\"1\"}\n");
        assert_eq!((download.lines, download.last.as_deref()), (1, Some("t/1")));
        download.write_lines(b"\"id\":\"a/b\"}\n", &mut target).unwrap();
        assert_eq!(
            (download.lines, download.last.as_deref(), download.tail.len()),
            (2, Some("t/a/b"), 0)
        );
        assert!(download.write_lines(b"{\"x\":1}\n", &mut target).is_err());
    }

    #[tokio::test]
    async fn a_file_appears_only_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.ndjson.gz");
        let (terminal, _) = Terminal::memory(false);
        let mut target = Target::open(&path, &terminal).await.unwrap();
        target.write(b"line\n").unwrap();
        assert!(!path.exists());
        assert!(target.finish().unwrap());
        let mut text = String::new();
        let file = flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap());
        std::io::Read::read_to_string(&mut { file }, &mut text).unwrap();
        assert_eq!(text, "line\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
