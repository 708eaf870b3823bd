//! `tagfast import`: a reader thread packs lines, several requests are in flight, every line ends
//! acknowledged or reported. An interrupted import notes how far it came.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::reader::{Packing, Piece, open_counted, pack};
use super::send::{Sender, Sent};
use super::state::{self, Acknowledged, FileMark, Noted};
use crate::cli::ImportArgs;
use crate::client::Client;
use crate::failure::{CommandResult, Exit, Failure};
use crate::progress::Progress;
use crate::term::{Term, visible};

/// Bad lines kept for `--json`.
const LISTED: usize = 10_000;
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// How long requests in flight may take to end after an interruption.
const LAST_ANSWERS: Duration = Duration::from_secs(10);
/// How long `--wait` waits for the index.
const SEARCHABLE_WITHIN: Duration = Duration::from_secs(600);

struct Import<'a> {
    term: &'a Term,
    progress: Progress,
    note: Option<PathBuf>,
    noted: Noted,
    noted_at: Instant,
    acknowledged: Acknowledged,
    total: Sent,
    listed: Vec<Value>,
    started: Instant,
}

/// `import`
pub async fn run(args: &ImportArgs, term: &Term, mut stop: watch::Receiver<bool>) -> CommandResult {
    let client = Client::new(&args.client)?;
    let fresh = Noted {
        run: uuid::Uuid::now_v7().simple().to_string(),
        url: client.base().to_owned(),
        tenant: client.tenant(),
        file: FileMark::of(&args.file)?,
        line: 0,
        bad: 0,
    };
    let size = fresh.file.as_ref().map(|f| f.size);
    let note = state::path_for(&args.file, args.state.as_deref());
    let noted = state::begin(note.as_deref(), args.restart, fresh)?;
    if noted.line > 0 {
        term.note(format_args!("going on after line {}", noted.line));
    }

    let read = Arc::new(AtomicU64::new(0));
    let input = open_counted(&args.file, &read)?;
    let packing =
        Packing { skip: noted.line, lines: args.batch as usize, tenant: client.tenant(), read };
    let (pieces, mut incoming) = mpsc::channel(args.parallel as usize + 2);
    std::thread::Builder::new()
        .name("tagfast-import".to_owned())
        .spawn(move || pack(input, &packing, &pieces))?;

    let sender = Sender::new(client.clone(), &noted.run, args.retries);
    let mut import = Import {
        term,
        progress: Progress::new(term, "import", size),
        note,
        acknowledged: Acknowledged::after(noted.line),
        noted,
        noted_at: Instant::now(),
        total: Sent::default(),
        listed: Vec::new(),
        started: Instant::now(),
    };
    let ended = import.pump(&sender, &mut incoming, args.parallel as usize, &mut stop).await;
    import.progress.finish();
    if let Err(failure) = ended {
        import.save()?;
        let line = import.acknowledged.line();
        let next = match &import.note {
            Some(_) => format!(
                "everything up to line {line} is done; start the same command again to go on there"
            ),
            None => {
                format!("everything up to line {line} is done; importing lines twice is harmless")
            }
        };
        let hint =
            failure.hint.map_or_else(|| next.clone(), |hint| format!("{hint}\n      {next}"));
        return Err(Failure { exit: failure.exit, message: failure.message, hint: Some(hint) });
    }
    let seconds = import.started.elapsed().as_secs_f64();
    if let Some(path) = &import.note {
        state::remove(path)?;
    }
    let searchable = if args.wait { Some(until_searchable(&client, term).await?) } else { None };
    import.summary(seconds, searchable)
}

impl Import<'_> {
    /// Moves everything from the reader to the server. On an error what is in flight is still
    /// waited for.
    async fn pump(
        &mut self,
        sender: &Sender,
        incoming: &mut mpsc::Receiver<Piece>,
        parallel: usize,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let mut flight = FuturesUnordered::new();
        let mut sequence = 0u64;
        let mut reading = true;
        let mut failed: Option<Failure> = None;
        let mut give_up: Option<tokio::time::Instant> = None;
        while reading || !flight.is_empty() {
            tokio::select! {
                biased;
                Ok(_) = stop.wait_for(|stop| *stop), if reading => {
                    reading = false;
                    give_up = Some(tokio::time::Instant::now() + LAST_ANSWERS);
                    failed.get_or_insert_with(|| Failure::new("interrupted"));
                }
                () = until(give_up), if give_up.is_some() => break,
                Some((number, through, bytes, result)) = flight.next() => match result {
                    Ok(sent) => self.take(number, through, bytes, sent)?,
                    Err(failure) => {
                        reading = false;
                        give_up.get_or_insert(tokio::time::Instant::now() + LAST_ANSWERS);
                        failed.get_or_insert(failure);
                    }
                },
                piece = incoming.recv(), if reading && flight.len() < parallel => match piece {
                    Some(Piece::Batch { entries, through, bytes }) => {
                        let (sender, number) = (sender.clone(), sequence);
                        sequence += 1;
                        flight.push(async move { (number, through, bytes, sender.send(entries).await) });
                    }
                    Some(Piece::Bad { line, reason }) => self.bad(line, &reason),
                    Some(Piece::Broken(reason)) => {
                        reading = false;
                        failed.get_or_insert(Failure::new(format!("the input cannot be read: {reason}")));
                    }
                    None => reading = false,
                },
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn take(&mut self, number: u64, through: u64, bytes: u64, sent: Sent) -> Result<(), Failure> {
        self.total.contents += sent.contents;
        self.total.taggings += sent.taggings;
        self.total.added += sent.added;
        self.total.retries += sent.retries;
        for (line, reason) in &sent.bad {
            self.bad(*line, reason);
        }
        self.acknowledged.done(number, through);
        let rate = self.total.taggings as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        let message = format!(
            "import {} contents, {} taggings, {rate:.0}/s",
            self.total.contents, self.total.taggings
        );
        self.progress.set_with(bytes, &message);
        if self.noted_at.elapsed() >= NOTE_EVERY {
            self.save()?;
        }
        Ok(())
    }

    fn bad(&mut self, line: u64, reason: &str) {
        self.noted.bad += 1;
        let reason = visible(reason);
        if self.listed.len() < LISTED {
            self.listed.push(json!({"line": line, "reason": reason}));
        }
        self.progress.note(self.term, &format!("line {line}: {reason}"));
    }

    fn save(&mut self) -> Result<(), Failure> {
        self.noted_at = Instant::now();
        self.noted.line = self.acknowledged.line();
        match &self.note {
            Some(path) => state::save(path, &self.noted),
            None => Ok(()),
        }
    }

    fn summary(&self, seconds: f64, searchable: Option<Duration>) -> CommandResult {
        let Sent { contents, taggings, added, retries, .. } = self.total;
        let bad = self.noted.bad;
        let rate = taggings as f64 / seconds.max(1e-9);
        if self.term.json {
            self.term.value(&json!({
                "contents": contents, "taggings": taggings, "added": added, "bad": bad, "bad_lines": self.listed,
                "retries": retries, "seconds": seconds, "taggings_per_second": rate,
                "searchable_after_seconds": searchable.map(|d| d.as_secs_f64()),
            }))?;
        } else {
            let after = searchable
                .map(|d| format!("; searchable {:.2} s later", d.as_secs_f64()))
                .unwrap_or_default();
            let wrong = if bad > 0 { format!("; {bad} bad lines skipped") } else { String::new() };
            self.term.line(format_args!(
                "{contents} contents, {taggings} taggings ({added} new) in {seconds:.2} s, {rate:.0} taggings/s{after}{wrong}"
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

/// Waits until a search is as new as the end of the import. The index says how old it is by the
/// server's clock; an age smaller than the time since the end means that everything is in it,
/// whatever our clock says.
async fn until_searchable(client: &Client, term: &Term) -> Result<Duration, Failure> {
    let ended = Instant::now();
    let progress = Progress::new(term, "waiting for the index", None);
    let mut asked = 0;
    loop {
        let since = ended.elapsed();
        let answer = client.get("/v1/search?limit=1").await?;
        let age = answer.pointer("/meta/age_ms").and_then(Value::as_u64).map(Duration::from_millis);
        let age = age.ok_or_else(|| Failure::new("a search does not say how old it is"))?;
        // A millisecond for the rounding of the age.
        if age + Duration::from_millis(1) <= since {
            return Ok(since - age);
        }
        if since > SEARCHABLE_WITHIN {
            return Err(Failure::new("the index does not catch up").hint("look at: tagfast status"));
        }
        asked += 1;
        progress.set(asked);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
