//! The run of an import: a thread packs lines, several requests are in flight, and every line ends
//! acknowledged or reported.
//!
//! An import that fails or is interrupted stores a checkpoint; the same command resumes there.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use tagfast_resilience::task::blocking;
use tokio::sync::{mpsc, watch};

use super::checkpoint::{self, Checkpoint};
use super::keeper::Keeper;
use super::ledger::{BadLine, Done, Ledger, SendSummary, Totals};
use super::order::BatchQueue;
use super::reader::{PackOptions, ReadChunk, Segment, pack};
use super::upload::Uploader;
use crate::args::ImportArgs;
use crate::error::{CliError, CommandResult, Exit};
use crate::http::Client;
use crate::input::{self, Input};
use crate::progress::Progress;
use crate::terminal::{Terminal, visible};

/// Upper limit of the lines that are read and not answered, in bytes. Lower: fewer requests in
/// flight when a few contents hold up the others. Higher: memory.
const UNANSWERED_BYTES_MAX: usize = 32 << 20;
/// How long requests in flight may take to end after an interruption.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long `--wait` waits for the search index.
const SEARCHABLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Time between two requests of `--wait`.
const SEARCHABLE_POLL_INTERVAL: Duration = Duration::from_millis(10);

struct ImportRun<'a> {
    terminal: &'a Terminal,
    progress: Progress,
    parallel: usize,
    keeper: Keeper,
    queue: BatchQueue,
    ledger: Ledger,
    /// What earlier runs had done.
    before: Totals,
    /// The line after which this run goes on; 0 = it started with the first one.
    resumed_after: u64,
    /// The input does not begin with the lines that earlier runs had done.
    changed: bool,
    retries: u64,
    /// Bytes of the input read so far.
    bytes: u64,
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
        done: Done::default(),
    };
    let file = args.file.clone();
    // A pipe is opened when its writer comes.
    let opened = tokio::select! {
        opened = blocking(move || input::open(&file)) => opened,
        _ = stop.wait_for(|stop| *stop) => return Err(CliError::new("interrupted")),
    };
    let input = opened.map_err(|e| CliError::new("the input was not opened").with_source(e))??;
    let kept = checkpoint::file_for(&args.file, &input, args.state.as_deref());
    let checkpoint = match &kept {
        Some(kept) => checkpoint::load(&kept.path, args.restart, fresh)?,
        None => fresh,
    };
    let done = checkpoint.done.clone();
    let keeper = Keeper::start(kept, checkpoint, terminal)?;
    if done.line > 0 {
        terminal.note(format_args!("going on after line {}", done.line));
    }

    let uploader = Uploader::new(client.clone(), keeper.run(), args.retries);
    let mut import = ImportRun {
        terminal,
        progress: Progress::new(terminal, "import", input.size.filter(|size| *size > 0)),
        parallel: args.parallel as usize,
        keeper,
        queue: BatchQueue::default(),
        before: done.totals,
        resumed_after: done.line,
        ledger: Ledger::after(done.clone()),
        changed: false,
        retries: 0,
        bytes: 0,
        started: Instant::now(),
    };
    let options = PackOptions { done, lines_max: args.batch as usize, tenant: client.tenant() };
    let mut incoming = read_in_a_thread(input, options)?;
    let ended = import.pump(&uploader, &mut incoming, &mut stop).await;
    import.progress.finish();
    import.retries = uploader.retries();
    if let Err(error) = ended {
        if import.changed {
            return Err(error);
        }
        let hint = import.keeper.hint_after_failure(import.ledger.done(), terminal);
        return Err(error.more_hint(&hint));
    }
    let seconds = import.started.elapsed().as_secs_f64();
    import.keeper.remove(terminal);
    let searchable =
        if args.wait { Some(until_searchable(&client, terminal).await?) } else { None };
    import.summary(seconds, searchable)
}

/// Packs the input in a thread that is not joined: it may wait for a pipe. It ends with its channel
/// or with the process.
fn read_in_a_thread(
    input: Input,
    options: PackOptions,
) -> Result<mpsc::Receiver<ReadChunk>, CliError> {
    let (chunks, incoming) = mpsc::channel(1);
    std::thread::Builder::new()
        .name("tagfast-import".to_owned())
        .spawn(move || pack(input, &options, &chunks))?;
    Ok(incoming)
}

impl ImportRun<'_> {
    /// Moves everything from the reader to the server. When the input breaks off, what was read is
    /// still sent; after any other failure only the requests in flight are waited for, up to
    /// [`DRAIN_TIMEOUT`].
    async fn pump(
        &mut self,
        uploader: &Uploader,
        incoming: &mut mpsc::Receiver<ReadChunk>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), CliError> {
        let mut in_flight = FuturesUnordered::new();
        let mut reading = true;
        let mut broken: Option<CliError> = None;
        let mut failed: Option<CliError> = None;
        let mut drain_until: Option<tokio::time::Instant> = None;
        loop {
            while failed.is_none()
                && in_flight.len() < self.parallel
                && let Some((id, batch)) = self.queue.take()
            {
                let (segment, bytes) = (batch.segment, batch.bytes());
                in_flight
                    .push(async move { (id, segment, bytes, uploader.send(batch.entries).await) });
            }
            let ended = !reading && self.queue.is_empty();
            if in_flight.is_empty() && (ended || failed.is_some()) {
                break;
            }
            tokio::select! {
                biased;
                Ok(_) = stop.wait_for(|stop| *stop), if failed.is_none() && !ended => {
                    drain_until = Some(tokio::time::Instant::now() + DRAIN_TIMEOUT);
                    failed = Some(CliError::new("interrupted"));
                }
                () = until(drain_until), if drain_until.is_some() => break,
                Some((id, segment, bytes, result)) = in_flight.next() => {
                    self.queue.finish(id, bytes);
                    match result {
                        Ok(sent) => self.add(segment, sent),
                        Err(error) => {
                            drain_until
                                .get_or_insert(tokio::time::Instant::now() + DRAIN_TIMEOUT);
                            failed.get_or_insert(error);
                        }
                    }
                },
                chunk = incoming.recv(), if reading && failed.is_none() && self.has_room() => {
                    match chunk {
                        Some(ReadChunk::Segment(segment)) => self.open(segment),
                        Some(ReadChunk::Changed) => {
                            reading = false;
                            self.changed = true;
                            failed = Some(self.keeper.changed(self.resumed_after));
                        }
                        Some(ReadChunk::Broken { after, source }) => {
                            reading = false;
                            let message =
                                format!("the input cannot be read: after line {after}");
                            broken = Some(CliError::new(message).with_source(source));
                        }
                        None => reading = false,
                    }
                },
            }
        }
        failed.or(broken).map_or(Ok(()), Err)
    }

    /// Whether more may be read.
    fn has_room(&self) -> bool {
        self.ledger.open_segments() <= self.parallel && self.queue.bytes() < UNANSWERED_BYTES_MAX
    }

    /// Takes what was read.
    fn open(&mut self, segment: Segment) {
        let Segment { batches, bad, blank, through, digest, bytes } = segment;
        self.report(&bad);
        self.bytes = bytes;
        let number = self.ledger.open(through, digest, batches.len(), blank, bad);
        for mut batch in batches {
            batch.segment = number;
            self.queue.push(batch);
        }
        self.keeper.save_if_due(self.ledger.done(), self.terminal);
    }

    /// Takes the answers to a batch.
    fn add(&mut self, segment: u64, sent: SendSummary) {
        self.report(&sent.bad);
        self.ledger.settle(segment, sent);
        let so_far = self.ledger.so_far();
        let rate =
            self.taggings_of_this_run() as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        let message = format!(
            "import {} contents, {} taggings, {rate:.0}/s",
            so_far.contents, so_far.taggings
        );
        self.progress.set_with(self.bytes, &message);
        self.keeper.save_if_due(self.ledger.done(), self.terminal);
    }

    fn report(&self, bad_lines: &[BadLine]) {
        for BadLine { line, reason } in bad_lines {
            self.progress.note(self.terminal, &format!("line {line}: {}", visible(reason)));
        }
    }

    fn taggings_of_this_run(&self) -> u64 {
        self.ledger.so_far().taggings.saturating_sub(self.before.taggings)
    }

    fn summary(&self, seconds: f64, searchable: Option<Duration>) -> CommandResult {
        let Done { line, totals, bad_lines, .. } = self.ledger.done();
        let Totals { contents, taggings, added, bad, blank } = *totals;
        let rate = self.taggings_of_this_run() as f64 / seconds.max(1e-9);
        if self.terminal.json {
            let bad_lines: Vec<Value> = bad_lines
                .iter()
                .map(|b| json!({"line": b.line, "reason": visible(&b.reason)}))
                .collect();
            self.terminal.value(&json!({
                "lines": line, "contents": contents, "taggings": taggings, "added": added,
                "bad": bad, "blank": blank, "bad_lines": bad_lines,
                "resumed_after_line": Some(self.resumed_after).filter(|line| *line > 0),
                "retries": self.retries, "seconds": seconds, "taggings_per_second": rate,
                "searchable_after_seconds": searchable.map(|d| d.as_secs_f64()),
            }))?;
        } else {
            let after = searchable
                .map(|d| format!("; searchable {:.2} s later", d.as_secs_f64()))
                .unwrap_or_default();
            let wrong = if bad > 0 { format!("; {bad} bad lines skipped") } else { String::new() };
            let resumed = match self.resumed_after {
                0 => String::new(),
                line => format!("; the first {line} lines in earlier runs"),
            };
            self.terminal.line(format_args!(
                "{contents} contents, {taggings} taggings ({added} new) in {seconds:.2} s, \
                 {rate:.0} taggings/s{after}{wrong}{resumed}"
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
