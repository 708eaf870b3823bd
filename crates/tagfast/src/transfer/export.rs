//! `tagfast export`: streams all contents into a file or to stdout.
//!
//! A file is written beside its final name and renamed when it is complete. A stream that breaks
//! off is taken up after the last whole line; a line is never written twice or in part.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::ExportArgs;
use crate::client::{Client, ClientError, Options, encode, problem_of};
use crate::failure::{CommandResult, Exit, Failure};
use crate::progress::Progress;
use crate::term::Term;

const ATTEMPTS: u32 = 6;
const LONG: Duration = Duration::from_secs(7 * 24 * 3600);

enum Target {
    Stdout(Term),
    File { out: BufWriter<File>, part: PathBuf, path: PathBuf },
    Gzip { out: GzEncoder<BufWriter<File>>, part: PathBuf, path: PathBuf },
}

impl Target {
    fn open(file: &str, term: &Term) -> Result<Self, Failure> {
        if file == "-" {
            return Ok(Self::Stdout(term.clone()));
        }
        let (path, part) = (PathBuf::from(file), PathBuf::from(format!("{file}.part")));
        let out = File::create(&part)
            .map_err(|e| Failure::new(format!("cannot write {}: {e}", part.display())))?;
        let out = BufWriter::new(out);
        if path.extension().is_some_and(|e| e == "gz") {
            return Ok(Self::Gzip { out: GzEncoder::new(out, Compression::default()), part, path });
        }
        Ok(Self::File { out, part, path })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout(term) => term.bytes(bytes),
            Self::File { out, part, .. } => {
                out.write_all(bytes).map_err(|e| write_failed(part, &e))
            }
            Self::Gzip { out, part, .. } => {
                out.write_all(bytes).map_err(|e| write_failed(part, &e))
            }
        }
    }

    fn finish(self) -> Result<(), Failure> {
        let (out, part, path) = match self {
            Self::Stdout(_) => return Ok(()),
            Self::File { out, part, path } => (out, part, path),
            Self::Gzip { out, part, path } => {
                (out.finish().map_err(|e| write_failed(&part, &e))?, part, path)
            }
        };
        let file = out.into_inner().map_err(|e| write_failed(&part, e.error()))?;
        file.sync_all()
            .and_then(|()| std::fs::rename(&part, &path))
            .map_err(|e| write_failed(&part, &e))
    }
}

fn write_failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot write {}: {error}", path.display()))
}

/// `export`
pub async fn run(args: &ExportArgs, term: &Term) -> CommandResult {
    let client = Client::new(&args.client)?;
    let mut target = Target::open(&args.file, term)?;
    let progress = Progress::new(term, "export", None);
    let mut walk = Walk { lines: 0, tail: Vec::new(), last: None };
    let mut attempts = 0;
    loop {
        let before = walk.lines;
        match walk.stream(&client, &mut target, &progress).await? {
            None => break,
            Some(error) => {
                attempts = if walk.lines > before { 1 } else { attempts + 1 };
                if !error.is_retryable() || attempts >= ATTEMPTS {
                    return Err(error.into());
                }
                let wait =
                    error.retry_after().unwrap_or(Duration::from_millis(200) * 2u32.pow(attempts));
                progress.note(term, "the stream broke off; taking it up again");
                tokio::time::sleep(wait).await;
            }
        }
    }
    progress.finish();
    target.finish()?;
    if args.file != "-" {
        if term.json {
            term.value(&json!({"contents": walk.lines, "file": args.file}))?;
        } else {
            term.line(format_args!("{} contents written to {}", walk.lines, args.file))?;
        }
    }
    Ok(Exit::Done)
}

struct Walk {
    lines: u64,
    /// The beginning of a line whose end has not come yet.
    tail: Vec<u8>,
    /// `type/id` of the last whole line.
    last: Option<String>,
}

impl Walk {
    /// One request from where the last one ended: `None` = complete, `Some` = it broke off.
    async fn stream(
        &mut self,
        client: &Client,
        target: &mut Target,
        progress: &Progress,
    ) -> Result<Option<ClientError>, Failure> {
        self.tail.clear();
        let path = match &self.last {
            Some(last) => format!("/v1/export?after={}", encode(last)),
            None => "/v1/export".to_owned(),
        };
        let options = Options { timeout: Some(LONG), ..Options::default() };
        let mut response = match client.send(Method::GET, &path, options).await {
            Ok(response) if response.status().is_success() => response,
            Ok(response) => return Ok(Some(problem_of(response).await)),
            Err(error) => return Ok(Some(error)),
        };
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => self.take(&chunk, target)?,
                Ok(None) if self.tail.is_empty() => return Ok(None),
                Ok(None) => {
                    return Ok(Some(ClientError::Interrupted(
                        "the last line is not whole".to_owned(),
                    )));
                }
                Err(error) => return Ok(Some(ClientError::Interrupted(error.to_string()))),
            }
            progress.set(self.lines);
        }
    }

    fn take(&mut self, chunk: &[u8], target: &mut Target) -> Result<(), Failure> {
        self.tail.extend_from_slice(chunk);
        let Some(end) = self.tail.iter().rposition(|b| *b == b'\n') else { return Ok(()) };
        let whole = &self.tail[..=end];
        let last = whole[..end].rsplit(|b| *b == b'\n').next().unwrap_or_default();
        let value: Value = serde_json::from_slice(last)?;
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let (Some(content_type), Some(id)) = (text("type"), text("id")) else {
            return Err(Failure::new("a line of the export has no type or id"));
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
        let (term, captured) = Term::memory(false);
        let mut target = Target::Stdout(term);
        let mut walk = Walk { lines: 0, tail: Vec::new(), last: None };
        walk.take(b"{\"type\":\"t\",\"id\":\"1\"}\n{\"type\":\"t\",", &mut target).unwrap();
        assert_eq!(captured.out(), "{\"type\":\"t\",\"id\":\"1\"}\n");
        assert_eq!((walk.lines, walk.last.as_deref()), (1, Some("t/1")));
        walk.take(b"\"id\":\"a/b\"}\n", &mut target).unwrap();
        assert_eq!((walk.lines, walk.last.as_deref(), walk.tail.len()), (2, Some("t/a/b"), 0));
        assert!(walk.take(b"{\"x\":1}\n", &mut target).is_err());
    }

    #[test]
    fn a_file_appears_only_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.ndjson.gz");
        let (term, _) = Term::memory(false);
        let mut target = Target::open(path.to_str().unwrap(), &term).unwrap();
        target.write(b"line\n").unwrap();
        assert!(!path.exists());
        target.finish().unwrap();
        let mut text = String::new();
        let file = flate2::read::GzDecoder::new(File::open(&path).unwrap());
        std::io::Read::read_to_string(&mut { file }, &mut text).unwrap();
        assert_eq!(text, "line\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
