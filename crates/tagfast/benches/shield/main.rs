//! The shield at full read load, before, during and after each fault of Redis, of the database and
//! of clients; and what a hit costs beside a bare HTTP server with the same body.
//!
//! `cargo bench -p tagfast --bench shield [-- --only hits|killed,frozen,... --seconds N --capacity
//! N --share PERCENT --svg DIR]`: a cluster with two
//! replicas, two Redis servers, Kafka, one process with all roles that carries the load and one
//! with the API only. The load is an open loop, and its latencies count from the moment a request
//! was due. Beside it clients write through one process and look for their write through the other
//! one. Everything shares this machine's processors. Without `--only` everything is measured, which
//! takes about half an hour; `--list` names the faults.
#![expect(clippy::print_stdout, reason = "a benchmark speaks to its terminal")]
#![expect(clippy::disallowed_methods, reason = "the load runs in real time")]

// The bare server uses the program's allocator, so that only the services are compared.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

mod drive;
mod harness;
mod hits;
mod plot;
mod scenarios;

use std::path::PathBuf;

use serde_json::json;
use tagfast_testkit::ReadYourWritesReport;

use drive::{Phase, Timeline};
use harness::Harness;
use scenarios::{SCENARIOS, Scenario};

/// Time between two repeated actions of a scenario.
const REPEAT_INTERVAL_SECONDS: u64 = 2;

/// The options of the command line.
struct Options {
    only: Vec<String>,
    seconds: u64,
    capacity: u64,
    share: u64,
    svg: Option<PathBuf>,
}

/// Reads the options; `None` after `--list`.
fn options() -> Option<Options> {
    let mut options =
        Options { only: Vec::new(), seconds: 20, capacity: 300, share: 25, svg: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).expect("a number");
        match arg.as_str() {
            "--seconds" => options.seconds = number(),
            "--share" => options.share = number(),
            "--capacity" => options.capacity = number(),
            "--only" => {
                let names = args.next().expect("names");
                options.only = names.split(',').map(str::to_owned).collect();
            }
            "--list" => {
                SCENARIOS.iter().for_each(|s| println!("{:18}{}", s.name, s.what));
                return None;
            }
            "--svg" => options.svg = args.next().map(PathBuf::from),
            // Cargo adds this argument.
            "--bench" => {}
            other => panic!("{other} is not known"),
        }
    }
    Some(options)
}

fn main() {
    let Some(options) = options() else { return };
    let known =
        |name: &str| name == "hits" || SCENARIOS.iter().any(|scenario| scenario.name == name);
    options
        .only
        .iter()
        .for_each(|name| assert!(known(name), "{name} is not known; --list names them"));
    let wanted =
        |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let mut harness = Harness::start(options.capacity);
    if wanted("hits") {
        hits::measure(&harness);
    }
    let scenarios: Vec<&Scenario> = SCENARIOS.iter().filter(|s| wanted(s.name)).collect();
    if scenarios.is_empty() {
        return;
    }
    if wanted("stampede") {
        // Before the load starts, so that its own statements can be counted.
        harness.stampede("Consistency: eventual\r\n");
        harness.stampede("");
        harness.notes.drain(..).for_each(|note| println!("without a load: {note}"));
    }
    let carried = harness.carried();
    // A view that no cache answers costs several times the processor time, and the database works
    // on the same processors.
    let rate = carried * options.share / 100;
    println!("it carries {carried} requests/s with its caches; the load is {rate}/s");
    let capacity = options.capacity * 3;
    let (mut table, mut missed) = (Vec::new(), 0);
    for scenario in scenarios {
        let (timeline, own) = run(&mut harness, scenario, rate, options.seconds);
        report(scenario, &timeline, rate, capacity);
        table.push(row(scenario, &timeline, &own, capacity));
        harness.notes.drain(..).for_each(|note| println!("{note}"));
        own.violations.iter().take(3).for_each(|violation| println!("MISSED: {violation}"));
        missed += own.violations.len();
        if let Some(dir) = &options.svg {
            let path = dir.join(format!("degradation-{}.svg", scenario.name));
            std::fs::write(&path, plot::svg(scenario.what, &timeline, capacity))
                .expect("a picture");
        }
    }
    println!(
        "\n| | statements in any second: before, with it, after | views answered, stale | their p99, ms: before, with it, after \
         | sheddable answered, stale or limited | their p99, ms | own writes: checked, refused, missed |"
    );
    println!("|---|---|---|---|---|---|---|");
    table.iter().for_each(|row| println!("{row}"));
    assert_eq!(missed, 0, "a user missed their own write");
}

fn run(
    harness: &mut Harness,
    scenario: &Scenario,
    rate: u64,
    seconds: u64,
) -> (Timeline, ReadYourWritesReport) {
    harness.warm(rate);
    let own = harness.own_writes();
    let load = harness.load(rate, seconds, Some(scenario));
    load.until(seconds);
    harness.begin(scenario.faults);
    (scenario.begin)(harness);
    if let Some(repeat) = scenario.repeat {
        while load.second() + (REPEAT_INTERVAL_SECONDS as f64) < (seconds * 2) as f64 {
            load.until(load.second() as u64 + REPEAT_INTERVAL_SECONDS);
            repeat(harness);
        }
    }
    load.until(seconds * 2);
    harness.end(scenario.faults);
    (scenario.end)(harness);
    let timeline = load.finish();
    (timeline, own.stop())
}

/// One line for all of them.
fn row(
    scenario: &Scenario,
    timeline: &Timeline,
    own: &ReadYourWritesReport,
    capacity: u64,
) -> String {
    let phases = [Phase::Before, Phase::During, Phase::After];
    let most = phases.map(|phase| format!("{:.0}", timeline.statements(phase).1)).join(", ");
    let share = timeline.statements(Phase::During).1 / capacity as f64;
    let p99 = phases.map(|phase| format!("{:.1}", timeline.of(phase, true).at(0.99))).join(", ");
    let (views, shed) = (timeline.of(Phase::During, true), timeline.of(Phase::During, false));
    let part = |second: &drive::Second| {
        format!(
            "{:.2} %, {:.1} %",
            second.answered_share() * 100.0,
            second.degraded_share() * 100.0
        )
    };
    format!(
        "| {}: {} | {most} ({share:.2}x) | {} | {p99} | {} | {:.1} | {}, {}, {} |",
        scenario.name,
        scenario.what,
        part(&views),
        part(&shed),
        shed.at(0.99),
        own.checked,
        own.unanswered,
        own.violations.len()
    )
}

fn report(scenario: &Scenario, timeline: &Timeline, rate: u64, capacity: u64) {
    println!("\n## {}: {}", scenario.name, scenario.what);
    println!("| | before | during | after, from the 10th second on |");
    println!("|---|---|---|---|");
    let phases = [Phase::Before, Phase::During, Phase::After];
    let row = |name: &str, cell: &dyn Fn(Phase) -> String| {
        println!("| {name} | {} |", phases.map(cell).join(" | "));
    };
    row("critical views answered", &|phase| {
        format!("{:.3} %", timeline.of(phase, true).answered_share() * 100.0)
    });
    row("of these stale or marked", &|phase| {
        format!("{:.1} %", timeline.of(phase, true).degraded_share() * 100.0)
    });
    row("p50 / p99 / max of views, ms", &|phase| timeline.of(phase, true).latencies());
    row("sheddable calls answered", &|phase| {
        format!("{:.3} %", timeline.of(phase, false).answered_share() * 100.0)
    });
    row("of these stale or limited", &|phase| {
        format!("{:.1} %", timeline.of(phase, false).degraded_share() * 100.0)
    });
    row("p50 / p99 / max of sheddable, ms", &|phase| timeline.of(phase, false).latencies());
    row("times a view was sent", &|phase| format!("{:.3}", timeline.of(phase, true).attempts()));
    row("read statements/s: mean, most in a second", &|phase| {
        let (mean, most) = timeline.statements(phase);
        format!("{mean:.0}, {most:.0}")
    });
    let value = |phase| {
        let (views, shed) = (timeline.of(phase, true), timeline.of(phase, false));
        let (mean, most) = timeline.statements(phase);
        json!({
            "views": views.json(), "sheddable": shed.json(),
            "statements_mean": mean, "statements_most": most,
        })
    };
    let recovery = timeline.recovery();
    println!("p99 of views within 1.5x of before, {recovery} s after the end of the fault");
    for line in &timeline.transitions {
        println!("{line}");
    }
    let json = json!({
        "scenario": scenario.name, "rate": rate, "capacity": capacity, "recovered_after_s": recovery,
        "before": value(Phase::Before), "during": value(Phase::During), "after": value(Phase::After),
        "transitions": timeline.transitions,
    });
    println!("{json}");
}
