//! The run of an import: a thread packs lines, several requests are in flight, and every line ends
//! acknowledged or reported.
//!
//! An import that fails or is interrupted stores a checkpoint; the same command resumes there.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::checkpoint::{self, AckTracker, Checkpoint, FileFingerprint};
use super::reader::{PackOptions, ReadChunk, pack};
use super::upload::{SendSummary, Uploader};
use crate::args::ImportArgs;
use crate::error::{CliError, CommandResult, Exit};
use crate::http::Client;
use crate::input::open_counted;
use crate::progress::Progress;
use crate::terminal::{Terminal, visible};

/// Upper limit of bad lines listed by `--json`.
const BAD_LINES_MAX: usize = 10_000;
/// Shortest time between two stored checkpoints.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// How long requests in flight may take to end after an interruption.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long `--wait` waits for the search index.
const SEARCHABLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Time between two requests of `--wait`.
const SEARCHABLE_POLL_INTERVAL: Duration = Duration::from_millis(10);

struct ImportRun<'a> {
    terminal: &'a Terminal,
    progress: Progress,
    /// Where checkpoints are stored; `None` = nowhere.
    checkpoint_path: Option<PathBuf>,
    checkpoint: Checkpoint,
    saved_at: Instant,
    acks: AckTracker,
    total: SendSummary,
    bad_lines: Vec<Value>,
    started: Instant,
}

/// `import`; ends early, with a checkpoint, when `stop` becomes `true`.
///
/// # Errors
/// The input or the checkpoint cannot be used, the server keeps refusing, or the import was
/// interrupted; the hint names the last line imported.
pub async fn run(
    args: &ImportArgs,
    terminal: &Terminal,
    mut stop: watch::Receiver<bool>,
) -> CommandResult {
    let client = Client::new(&args.client)?;
    let fresh = Checkpoint {
        run: uuid::Uuid::now_v7().simple().to_string(),
        url: client.base().to_owned(),
        tenant: client.tenant(),
        file: FileFingerprint::of(&args.file)?,
        line: 0,
        bad: 0,
    };
    let size = fresh.file.as_ref().map(|f| f.size);
    let checkpoint_path = checkpoint::path_for(&args.file, args.state.as_deref());
    let checkpoint = checkpoint::load(checkpoint_path.as_deref(), args.restart, fresh)?;
    if checkpoint.line > 0 {
        terminal.note(format_args!("going on after line {}", checkpoint.line));
    }

    let read = Arc::new(AtomicU64::new(0));
    let input = open_counted(&args.file, &read)?;
    let options = PackOptions {
        skip: checkpoint.line,
        lines_max: args.batch as usize,
        tenant: client.tenant(),
        read,
    };
    let (chunks, mut incoming) = mpsc::channel(args.parallel as usize + 2);
    // Not joined: it may wait for standard input. It ends with its channel or with the process.
    std::thread::Builder::new()
        .name("tagfast-import".to_owned())
        .spawn(move || pack(input, &options, &chunks))?;

    let uploader = Uploader::new(client.clone(), &checkpoint.run, args.retries);
    let mut import = ImportRun {
        terminal,
        progress: Progress::new(terminal, "import", size),
        checkpoint_path,
        acks: AckTracker::after(checkpoint.line),
        checkpoint,
        saved_at: Instant::now(),
        total: SendSummary::default(),
        bad_lines: Vec::new(),
        started: Instant::now(),
    };
    let ended = import.pump(&uploader, &mut incoming, args.parallel as usize, &mut stop).await;
    import.progress.finish();
    if let Err(error) = ended {
        import.save()?;
        let line = import.acks.line();
        let next = match &import.checkpoint_path {
            Some(_) => format!(
                "everything up to line {line} is done; start the same command again to go on there"
            ),
            None => {
                format!("everything up to line {line} is done; importing lines twice is harmless")
            }
        };
        return Err(error.more_hint(&next));
    }
    let seconds = import.started.elapsed().as_secs_f64();
    if let Some(path) = &import.checkpoint_path {
        checkpoint::remove(path)?;
    }
    let searchable =
        if args.wait { Some(until_searchable(&client, terminal).await?) } else { None };
    import.summary(seconds, searchable)
}

impl ImportRun<'_> {
    /// Moves everything from the reader to the server. After an error it still waits for the
    /// requests in flight, up to [`DRAIN_TIMEOUT`].
    async fn pump(
        &mut self,
        uploader: &Uploader,
        incoming: &mut mpsc::Receiver<ReadChunk>,
        parallel: usize,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), CliError> {
        let mut in_flight = FuturesUnordered::new();
        let mut sequence = 0u64;
        let mut reading = true;
        let mut failed: Option<CliError> = None;
        let mut drain_until: Option<tokio::time::Instant> = None;
        while reading || !in_flight.is_empty() {
            tokio::select! {
                biased;
                Ok(_) = stop.wait_for(|stop| *stop), if reading => {
                    reading = false;
                    drain_until = Some(tokio::time::Instant::now() + DRAIN_TIMEOUT);
                    failed.get_or_insert_with(|| CliError::new("interrupted"));
                }
                () = until(drain_until), if drain_until.is_some() => break,
                Some((number, through, bytes, result)) = in_flight.next() => match result {
                    Ok(sent) => self.add(number, through, bytes, sent)?,
                    Err(error) => {
                        reading = false;
                        drain_until.get_or_insert(tokio::time::Instant::now() + DRAIN_TIMEOUT);
                        failed.get_or_insert(error);
                    }
                },
                chunk = incoming.recv(), if reading && in_flight.len() < parallel => match chunk {
                    Some(ReadChunk::Batch { entries, through, bytes }) => {
                        let (uploader, number) = (uploader.clone(), sequence);
                        sequence += 1;
                        in_flight.push(async move {
                            (number, through, bytes, uploader.send(entries).await)
                        });
                    }
                    Some(ReadChunk::Bad { line, reason }) => self.bad(line, &reason),
                    Some(ReadChunk::Broken { after, source }) => {
                        reading = false;
                        failed.get_or_insert_with(|| {
                            let message = format!("the input cannot be read: after line {after}");
                            CliError::new(message).with_source(source)
                        });
                    }
                    None => reading = false,
                },
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Adds up an answered batch.
    fn add(
        &mut self,
        number: u64,
        through: u64,
        bytes: u64,
        sent: SendSummary,
    ) -> Result<(), CliError> {
        self.total.contents += sent.contents;
        self.total.taggings += sent.taggings;
        self.total.added += sent.added;
        self.total.retries += sent.retries;
        for (line, reason) in &sent.bad {
            self.bad(*line, reason);
        }
        self.acks.acknowledge(number, through);
        let rate = self.total.taggings as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        let message = format!(
            "import {} contents, {} taggings, {rate:.0}/s",
            self.total.contents, self.total.taggings
        );
        self.progress.set_with(bytes, &message);
        if self.saved_at.elapsed() >= CHECKPOINT_INTERVAL {
            self.save()?;
        }
        Ok(())
    }

    fn bad(&mut self, line: u64, reason: &str) {
        self.checkpoint.bad += 1;
        let reason = visible(reason);
        if self.bad_lines.len() < BAD_LINES_MAX {
            self.bad_lines.push(json!({"line": line, "reason": reason}));
        }
        self.progress.note(self.terminal, &format!("line {line}: {reason}"));
    }

    fn save(&mut self) -> Result<(), CliError> {
        self.saved_at = Instant::now();
        self.checkpoint.line = self.acks.line();
        match &self.checkpoint_path {
            Some(path) => checkpoint::save(path, &self.checkpoint),
            None => Ok(()),
        }
    }

    fn summary(&self, seconds: f64, searchable: Option<Duration>) -> CommandResult {
        let SendSummary { contents, taggings, added, retries, .. } = self.total;
        let bad = self.checkpoint.bad;
        let rate = taggings as f64 / seconds.max(1e-9);
        if self.terminal.json {
            self.terminal.value(&json!({
                "contents": contents, "taggings": taggings, "added": added, "bad": bad,
                "bad_lines": self.bad_lines, "retries": retries, "seconds": seconds,
                "taggings_per_second": rate,
                "searchable_after_seconds": searchable.map(|d| d.as_secs_f64()),
            }))?;
        } else {
            let after = searchable
                .map(|d| format!("; searchable {:.2} s later", d.as_secs_f64()))
                .unwrap_or_default();
            let wrong = if bad > 0 { format!("; {bad} bad lines skipped") } else { String::new() };
            self.terminal.line(format_args!(
                "{contents} contents, {taggings} taggings ({added} new) in {seconds:.2} s, \
                 {rate:.0} taggings/s{after}{wrong}"
            ))?;
        }
        Ok(if bad > 0 { Exit::Partly } else { Exit::Done })
    }
}

async fn until(moment: Option<tokio::time::Instant>) {
    if let Some(moment) = moment {
        tokio::time::sleep_until(moment).await;
    }
}

/// Waits until a search is as new as the end of the import. An index age (by the server's clock)
/// below the time since the end means that everything is in the index, whatever this client's
/// clock says.
async fn until_searchable(client: &Client, terminal: &Terminal) -> Result<Duration, CliError> {
    let ended = Instant::now();
    let progress = Progress::new(terminal, "waiting for the index", None);
    let mut polls = 0;
    loop {
        let since = ended.elapsed();
        let answer = client.get("/v1/search?limit=1").await?;
        let age = answer.pointer("/meta/age_ms").and_then(Value::as_u64).map(Duration::from_millis);
        let age = age.ok_or_else(|| CliError::new("a search does not say how old it is"))?;
        // The server rounds the age to a millisecond.
        if age + Duration::from_millis(1) <= since {
            return Ok(since - age);
        }
        if since > SEARCHABLE_TIMEOUT {
            return Err(
                CliError::new("the index does not catch up").hint("look at: tagfast status")
            );
        }
        polls += 1;
        progress.set(polls);
        tokio::time::sleep(SEARCHABLE_POLL_INTERVAL).await;
    }
}
