//! One wave: all is well, its cells are broken, watched, ended, and all is well again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tagfast_testkit::stack::host::wait_until;

use crate::cells::{Cell, Place, Source, Step};
use crate::full;
use crate::judge::now;
use crate::load::{Load, Written, pause};
use crate::probes::{Probes, Seen};
use crate::servers::{Injected, Servers};

/// How long everything may take to be well before the fault.
const WELL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long all must be well at a stretch.
const WELL_FOR: Duration = Duration::from_millis(1_500);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Timeout of [`Step::Writes`].
const WRITES_TIMEOUT: Duration = Duration::from_secs(30);

/// The steps of a cell, each with what ends it.
type InjectedSteps = Vec<(Step, Option<Injected>)>;

/// How long a wave is watched at least. Bounds of half a minute show with `--full` only.
fn watch_min() -> Duration {
    Duration::from_secs(if full() { 45 } else { 9 })
}

/// What became of a cell.
pub(crate) struct CellResult {
    cell: &'static Cell,
    /// When its cause was named after the fault, in milliseconds, and how.
    named: Option<(u64, String)>,
    /// How long after its end all was well, in milliseconds.
    healed_ms: Option<u64>,
    pub(crate) failures: Vec<String>,
}

impl CellResult {
    fn new(cell: &'static Cell) -> Self {
        Self { cell, named: None, healed_ms: None, failures: Vec::new() }
    }

    fn fail(&mut self, text: impl Into<String>) {
        self.failures.push(text.into());
    }

    /// The result as lines of a table.
    pub(crate) fn line(&self) -> String {
        let Self { cell, named, healed_ms, failures } = self;
        let result = if failures.is_empty() { "ok" } else { "FAILED" };
        let mut line = format!("{result:7} {} ({})", cell.what, cell.way);
        if let Some((ms, entry)) = named {
            line.push_str(&format!("\n        named after {ms} ms: {entry}"));
        }
        if let Some(ms) = healed_ms {
            line.push_str(&format!("\n        well {ms} ms after its end"));
        }
        failures.iter().for_each(|failure| line.push_str(&format!("\n        - {failure}")));
        line
    }
}

/// Runs the cells of a wave at the same time.
pub(crate) fn run(
    servers: &mut Servers,
    number: usize,
    cells: &[&'static Cell],
) -> Vec<CellResult> {
    let mut results: Vec<CellResult> = cells.iter().copied().map(CellResult::new).collect();
    let mut ready = servers.wait_until_ready();
    if ready.is_err() {
        servers.restart_processes();
        ready = servers.wait_until_ready();
    }
    let written = Arc::new(Written::new(number));
    let load = Load::start(servers.address(Place::Writer), &written);
    let probes = Probes::start(|place| servers.address(place), &written);
    let done = ready.and_then(|()| break_and_end(servers, &written, &probes, &mut results));
    let logs = |servers: &Servers| servers.log_end(Place::Cached);
    if let Err(error) = done {
        let text = format!("not run: {error:#}\n{}", logs(servers));
        results.iter_mut().for_each(|result| result.fail(text.clone()));
    }
    load.stop();
    probes.stop();
    if results.iter().any(|result| result.healed_ms.is_none()) {
        // The next wave begins with what an operator would do in the end.
        servers.restart_processes();
        let rebuilt = servers.wait_until_ready().and_then(|()| servers.reindex());
        if let Err(error) = rebuilt {
            results.iter_mut().for_each(|r| r.fail(format!("nor after a restart: {error:#}")));
        }
    }
    results
}

/// Waits until all sources are clean for a while and have much to show.
fn wait_until_well(probes: &Probes, written: &Written, known: &BTreeSet<String>) -> Result<()> {
    let mut since = None;
    wait_until("all to be well", WELL_TIMEOUT, || {
        let wrong = probes.not_clean(known);
        if !wrong.is_empty() || written.count() < 40 {
            since = None;
            bail!("{} writes; {wrong:?}", written.count());
        }
        if since.get_or_insert_with(Instant::now).elapsed() < WELL_FOR {
            bail!("not for long");
        }
        Ok(())
    })
}

fn break_and_end(
    servers: &mut Servers,
    written: &Written,
    probes: &Probes,
    results: &mut [CellResult],
) -> Result<()> {
    // Warnings about the installation are always there.
    let known: BTreeSet<String> = wait_until("every process to answer", WELL_TIMEOUT, || {
        let silent = probes.not_clean(&probes.says());
        if silent.iter().any(|s| s.ends_with("does not answer")) {
            bail!("{silent:?}")
        }
        Ok(probes.says().into_iter().filter(|e| e.starts_with("installation of")).collect())
    })?;
    wait_until_well(probes, written, &known)?;
    for result in results.iter() {
        for step in result.cell.before {
            take(servers, written, *step)?;
        }
    }

    probes.reset();
    let mut ends: Vec<(usize, InjectedSteps, u64)> = Vec::new();
    for (n, result) in results.iter_mut().enumerate() {
        let mut begun = Vec::new();
        for step in result.cell.steps {
            match take(servers, written, *step) {
                Ok(injected) => begun.push((*step, injected)),
                Err(error) => result.fail(format!("the fault did not begin: {error:#}")),
            }
        }
        ends.push((n, begun, now()));
    }
    let began = Instant::now();
    loop {
        let mut waits = began.elapsed() < watch_min();
        for (n, _, at) in &ends {
            let result = &mut results[*n];
            if result.cell.named.is_empty() || result.named.is_some() {
                continue;
            }
            // It may be named while the fault is still beginning.
            let since = at.saturating_sub(10_000);
            if let Some((said, entry)) = probes.named_at(since, result.cell.named, &known) {
                result.named = Some((said.saturating_sub(*at), entry));
            }
            let bound = Duration::from_secs(result.cell.named_within_s + 1);
            waits |= result.named.is_none() && began.elapsed() < bound;
        }
        if !waits {
            break;
        }
        pause(POLL_INTERVAL);
    }
    for result in results.iter_mut().filter(|result| !result.cell.named.is_empty()) {
        let bound_ms = result.cell.named_within_s * 1_000;
        match &result.named {
            None => result.fail(format!("not named within {bound_ms} ms")),
            Some((ms, _)) if *ms > bound_ms => {
                result.fail(format!("named after {ms} ms, not within {bound_ms} ms"));
            }
            Some(_) => {}
        }
    }

    for (n, begun, _) in ends.iter().rev() {
        for (step, injected) in begun.iter().rev() {
            let ended = match (step, injected) {
                (Step::Freeze(place), _) => {
                    servers.thaw(*place);
                    Ok(())
                }
                (_, Some(injected)) => servers.end(injected),
                (_, None) => Ok(()),
            };
            if let Err(error) = ended {
                results[*n].fail(format!("the fault did not end: {error:#}"));
            }
        }
    }
    wait_until_healed(probes, &known, results);
    blame(results, &probes.seen());
    Ok(())
}

fn take(servers: &mut Servers, written: &Written, step: Step) -> Result<Option<Injected>> {
    if let Step::Writes(count) = step {
        let wanted = written.count() + count;
        wait_until("writes to go on", WRITES_TIMEOUT, || {
            let found = written.count();
            if found >= wanted { Ok(()) } else { bail!("{found} of {wanted}") }
        })?;
    }
    servers.begin(step).context("a step")
}

/// Waits until all is well again, and says which cells it is not for.
fn wait_until_healed(probes: &Probes, known: &BTreeSet<String>, results: &mut [CellResult]) {
    let ended = Instant::now();
    let bound = results.iter().map(|result| result.cell.healed_within_s).max().unwrap_or(0);
    let mut well_since = None;
    loop {
        let wrong = probes.not_clean(known);
        if wrong.is_empty() {
            let since = *well_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= WELL_FOR {
                let ms = since.duration_since(ended).as_millis() as u64;
                results.iter_mut().for_each(|result| result.healed_ms = Some(ms));
                return;
            }
        } else {
            well_since = None;
        }
        if ended.elapsed() >= Duration::from_secs(bound) + WELL_FOR {
            break;
        }
        pause(POLL_INTERVAL);
    }
    let wrong = probes.not_clean(known);
    let is_of = |cell: &Cell, text: &str| {
        let words = |group: &&[&str]| group.iter().all(|word| text.contains(word));
        // Related tags come from the index.
        let related = text.starts_with("related:") && cell.sources.contains(&Source::Search);
        let touched = cell.sources.iter().any(|source| source.name() == text);
        touched || related || cell.named.iter().any(words)
    };
    let anyone = |text: &String| results.iter().any(|result| is_of(result.cell, text));
    let of_no_one: BTreeSet<&String> = wrong.iter().filter(|text| !anyone(text)).collect();
    for result in results.iter_mut() {
        let of_this: Vec<&str> = wrong
            .iter()
            .filter(|text| is_of(result.cell, text) || of_no_one.contains(text))
            .map(String::as_str)
            .collect();
        if of_this.is_empty() {
            result.healed_ms = Some(bound * 1_000);
        } else {
            result.fail(format!("not well {bound} s after its end: {}", of_this.join("; ")));
        }
    }
}

/// Charges the lies of each source to the cells that touch it.
fn blame(results: &mut [CellResult], seen: &BTreeMap<Source, Seen>) {
    for (source, seen) in seen {
        // A lag is held against what another process shows some moments later, and processors that
        // are busy with everything make these moments long: only a full run fails for it.
        if *source == Source::Lag && !full() {
            continue;
        }
        let Some(lies) = seen.lies_text() else { continue };
        let touched = results.iter().any(|result| result.cell.sources.contains(source));
        for result in results.iter_mut() {
            if !touched || result.cell.sources.contains(source) {
                result.fail(format!("{}: {lies}", source.name()));
            }
        }
    }
}
