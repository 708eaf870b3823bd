//! The shield at full read load, before, during and after: Redis killed, Redis frozen, one database node slow; and what a hit costs
//! beside a bare HTTP server with the same body.
//!
//! `cargo bench -p tagfast --bench shield [-- --only hits|killed|frozen|slow --seconds N --capacity N --svg DIR]`: a cluster with two
//! replicas, two Redis servers, Kafka, and one process with all roles; the load is an open loop, and its latencies count from the
//! moment a request was due. Everything shares this machine's processors.
#![expect(clippy::print_stdout, reason = "a benchmark speaks to its terminal")]
#![expect(clippy::disallowed_methods, reason = "the load runs in real time")]

mod drive;
mod hits;
mod plot;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tagfast_testkit::stack::Fault;

use drive::{Phase, Timeline};
use world::World;

/// What was asked for.
struct Options {
    only: Option<String>,
    seconds: u64,
    capacity: u64,
    svg: Option<PathBuf>,
}

fn options() -> Options {
    let mut options = Options { only: None, seconds: 20, capacity: 300, svg: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).expect("a number");
        match arg.as_str() {
            "--seconds" => options.seconds = number(),
            "--capacity" => options.capacity = number(),
            "--only" => options.only = args.next(),
            "--svg" => options.svg = args.next().map(PathBuf::from),
            // What cargo adds.
            "--bench" => {}
            other => panic!("{other} is not known"),
        }
    }
    options
}

/// A fault that begins and ends.
struct Scenario {
    name: &'static str,
    what: &'static str,
    begin: (&'static str, Fault),
    end: Fault,
}

const SCENARIOS: [Scenario; 3] = [
    Scenario {
        name: "killed",
        what: "the cache Redis is killed, and comes back empty",
        begin: ("redis", Fault::Kill),
        end: Fault::Restart,
    },
    Scenario {
        name: "frozen",
        what: "the cache Redis is frozen: connections stay, nothing answers",
        begin: ("redis", Fault::Freeze),
        end: Fault::Thaw,
    },
    Scenario {
        name: "slow",
        what: "every statement of one database node takes half a second longer",
        begin: ("replica", Fault::Slow { ms: 500 }),
        end: Fault::Heal,
    },
];

fn main() {
    let options = options();
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    let mut world = World::start(options.capacity);
    if wanted("hits") {
        hits::measure(&world);
    }
    let scenarios: Vec<&Scenario> = SCENARIOS.iter().filter(|s| wanted(s.name)).collect();
    if scenarios.is_empty() {
        return;
    }
    let carried = world.carried();
    // Under what it carries at its best: what is left is for the fault.
    let rate = carried * 6 / 10;
    println!("it carries {carried} requests/s with its caches; the load is {rate}/s");
    for scenario in scenarios {
        let timeline = run(&mut world, scenario, rate, options.seconds);
        report(scenario, &timeline, rate, options.capacity * 3);
        if let Some(dir) = &options.svg {
            let path = dir.join(format!("degradation-{}.svg", scenario.name));
            std::fs::write(&path, plot::svg(scenario.what, &timeline, options.capacity * 3)).expect("a picture");
        }
    }
}

fn run(world: &mut World, scenario: &Scenario, rate: u64, seconds: u64) -> Timeline {
    world.warm(rate);
    let (target, begin) = scenario.begin;
    let target = if target == "replica" { world.replica() } else { target.to_owned() };
    let load = world.load(rate, Duration::from_secs(seconds * 3));
    load.until(seconds);
    world.fault(begin, &target);
    load.until(seconds * 2);
    world.fault(scenario.end, &target);
    load.finish(seconds)
}

fn report(scenario: &Scenario, timeline: &Timeline, rate: u64, capacity: u64) {
    println!("\n## {}: {}", scenario.name, scenario.what);
    println!("| | before | during | after, from the 10th second on |");
    println!("|---|---|---|---|");
    let phases = [Phase::Before, Phase::During, Phase::After];
    let row = |name: &str, cell: &dyn Fn(Phase) -> String| {
        println!("| {name} | {} |", phases.map(cell).join(" | "));
    };
    row("critical views answered", &|phase| format!("{:.3} %", timeline.of(phase, true).answered_share() * 100.0));
    row("of these stale or marked", &|phase| format!("{:.1} %", timeline.of(phase, true).degraded_share() * 100.0));
    row("p50 / p99 / max of views, ms", &|phase| timeline.of(phase, true).latencies());
    row("sheddable calls answered", &|phase| format!("{:.3} %", timeline.of(phase, false).answered_share() * 100.0));
    row("of these stale or limited", &|phase| format!("{:.1} %", timeline.of(phase, false).degraded_share() * 100.0));
    row("p50 / p99 / max of sheddable, ms", &|phase| timeline.of(phase, false).latencies());
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
