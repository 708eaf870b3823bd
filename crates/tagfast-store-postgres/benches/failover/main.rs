//! What surviving failovers costs, and what it gives: journal and guard beside none, the journal's
//! memory, `Durability: replicated` beside local, the repair of many contents beside full load,
//! verdicts, what became of every acknowledged write, and the span of acknowledgements that a
//! partition loses.
//!
//! `cargo bench -p tagfast-store-postgres --bench failover [-- --only WORD,... --json --quick
//! --rounds N --seconds N --failovers N --writes N --list]`: one cluster of three nodes under
//! Patroni, callers, fault proxy and servers on the same processors. Some ten minutes. What is
//! compared is measured in turns in the same run, and the median of the rounds' ratios counts. The
//! partition needs root, for a network namespace of each node; without it that figure is left out,
//! and said so. The figures are printed as a table of Markdown and, with `--json`, as one line of
//! JSON.
//!
//! How it fails: with a panic that names what the servers answered. A figure that misses its target
//! is printed as missed and is no failure.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod acknowledger;
mod copy;
mod cost;
mod counted;
mod cpu;
mod durability;
mod figure;
mod fixture;
mod load;
mod partition;
mod repair;
mod rounds;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use crate::figure::Figure;
use crate::fixture::Fixture;

/// A group of figures, and what it measures.
type Part = (&'static str, &'static str);

const PARTS: [Part; 7] = [
    ("memory", "what an acknowledgement costs beside its commit, and what the journal holds"),
    ("cost", "writes with journal and guard, and without"),
    ("copy", "writes with a copy of the journal on disk, and without"),
    ("durability", "replicated durability beside local durability, at half load"),
    ("repair", "failovers that lose 10,000 contents beside full load; verdicts"),
    ("counted", "every acknowledged write is accounted for across failovers"),
    ("partition", "acknowledgements that a partition of the primary loses; needs root"),
];

/// The options of the command line.
#[derive(Clone)]
pub(crate) struct Options {
    /// Names of parts; empty: all.
    only: Vec<String>,
    json: bool,
    /// Shows that everything runs; the figures mean little.
    is_quick: bool,
    /// Rounds of what is compared in turns.
    rounds: usize,
    /// The length of each measurement.
    window: Duration,
    /// Failovers with a repair, and as many without; those across which writes are counted.
    failovers: usize,
    /// Writes that are counted.
    writes: u64,
}

impl Options {
    /// Reads the options; `None` after `--list`.
    fn parse() -> Option<Self> {
        let mut options = Self {
            only: Vec::new(),
            json: false,
            is_quick: false,
            rounds: 8,
            window: Duration::from_secs(2),
            failovers: 3,
            writes: 100_000,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--json" => options.json = true,
                "--quick" => {
                    options.is_quick = true;
                    (options.rounds, options.failovers) = (2, 1);
                    options.window = Duration::from_millis(500);
                    options.writes = 5_000;
                }
                "--rounds" => options.rounds = number(&arg, args.next()) as usize,
                "--failovers" => options.failovers = number(&arg, args.next()) as usize,
                "--writes" => options.writes = number(&arg, args.next()) as u64,
                "--seconds" => {
                    options.window = Duration::from_secs_f64(number(&arg, args.next()));
                }
                "--only" => {
                    let names = args.next().unwrap_or_default();
                    options.only = names.split(',').map(str::to_owned).collect();
                }
                "--list" => {
                    PARTS.iter().for_each(|(name, what)| println!("{name:12}{what}"));
                    return None;
                }
                // Cargo adds this argument.
                "--bench" => {}
                other => panic!("{other} is not known; see the head of main.rs"),
            }
        }
        for name in &options.only {
            let is_known = PARTS.iter().any(|(known, _)| known == name);
            assert!(is_known, "no part is named {name:?}; --list names them");
        }
        Some(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == part)
    }
}

fn number(option: &str, value: Option<String>) -> f64 {
    let number = value.as_deref().and_then(|value| value.parse().ok());
    number.filter(|n| *n > 0.0).unwrap_or_else(|| panic!("{option} needs a number above 0"))
}

fn main() {
    let Some(options) = Options::parse() else { return };
    let mut figures: Vec<Figure> = Vec::new();
    // Each part shows its figures when it ends: the next one may not come to an end.
    let mut add = |part: Vec<Figure>| {
        progress(figure::rows(&part).trim_end());
        figures.extend(part);
    };
    // First: nothing else has used memory yet.
    if options.wants("memory") {
        add(acknowledger::figures());
    }
    if PARTS.iter().any(|(part, _)| *part != "memory" && options.wants(part)) {
        let mut fixture = Fixture::start();
        if ["cost", "copy", "durability"].iter().any(|part| options.wants(part)) {
            let store = fixture.open("cost", Duration::from_secs(1));
            // What the machine carries decides what half load is.
            let carried = cost::carried(&fixture, &store, &options);
            if options.wants("cost") {
                add(cost::figures(&fixture, &store, carried, &options));
            }
            if options.wants("durability") {
                add(durability::figures(&fixture, &store, carried, &options));
            }
            fixture.close(store);
            if options.wants("copy") {
                add(copy::figures(&fixture, carried, &options));
            }
        }
        if options.wants("repair") {
            add(repair::figures(&mut fixture, &options));
        }
        if options.wants("counted") {
            add(counted::figures(&mut fixture, &options));
        }
        if options.wants("partition") {
            match fixture.has_namespaces() {
                true => add(partition::figures(&fixture, &options)),
                false => progress("partition: left out, network namespaces need root"),
            }
        }
    }
    print!("\n{}", figure::markdown(&figures));
    if options.json {
        println!("{}", serde_json::json!({"figures": figures}));
    }
}

/// Tells what is measured now.
#[expect(clippy::print_stderr, reason = "progress")]
pub(crate) fn progress(what: &str) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    eprintln!("{what} (load average {load})");
}
