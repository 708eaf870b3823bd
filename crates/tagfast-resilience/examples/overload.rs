//! Draws an overload with and without each mechanism, and prints the table of
//! docs/concepts/degradation.md.
//!
//! `cargo run -p tagfast-resilience --release --example overload --
//! docs/measured/overload-simulation.svg [seeds]`

#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::fmt::Write as _;

#[path = "../tests/it/retry_budget.rs"]
mod retry_budget;
#[path = "../tests/it/simulation.rs"]
mod simulation;

use simulation::{ALL, BUCKETS, LOST_AT, NONE, Plan, Protections, RESTORED_AT, Run, run_all};

/// 45 s after the return of the cache, and one more.
const SECONDS: f64 = 61.0;
const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
/// Top and height of the two panels.
const GOODPUT: (f64, f64) = (124.0, 230.0);
const LOAD: (f64, f64) = (436.0, 230.0);
const HEIGHT: f64 = 716.0;
/// The range of the logarithmic load axis.
const LOAD_AXIS_MIN: f64 = 0.03;
const LOAD_AXIS_MAX: f64 = 40.0;

/// A curve: its name, the protections, colour and dashes.
struct Curve {
    name: &'static str,
    protections: Protections,
    colour: &'static str,
    dash: &'static str,
}

fn curves() -> [Curve; 7] {
    let curve = |name, protections, colour, dash| Curve { name, protections, colour, dash };
    [
        curve("as shipped", ALL, "#16a34a", ""),
        curve("without limiter", Protections { limiter: false, ..ALL }, "#dc2626", ""),
        curve("without single-flight", Protections { single_flight: false, ..ALL }, "#9333ea", ""),
        curve("without batching", Protections { batching: false, ..ALL }, "#d97706", ""),
        curve("without retry budget", Protections { budget: false, ..ALL }, "#2563eb", ""),
        curve(
            "batching and budget only",
            Protections { batching: true, budget: true, ..NONE },
            "#db2777",
            "7 4",
        ),
        curve("timeouts and retries only", NONE, "#78716c", "3 3"),
    ]
}

fn x(at: f64) -> f64 {
    LEFT + at / SECONDS * (WIDTH - LEFT - RIGHT)
}

fn goodput_y(share: f64) -> f64 {
    GOODPUT.0 + GOODPUT.1 * (1.0 - share)
}

fn load_y(load: f64) -> f64 {
    let share = (load.clamp(LOAD_AXIS_MIN, LOAD_AXIS_MAX) / LOAD_AXIS_MIN).ln()
        / (LOAD_AXIS_MAX / LOAD_AXIS_MIN).ln();
    LOAD.0 + LOAD.1 * (1.0 - share)
}

/// A line through the means of half a second each.
fn line(svg: &mut String, curve: &Curve, y: impl Fn(f64, f64) -> f64) -> std::fmt::Result {
    let points: Vec<String> = (2..(SECONDS * 2.0) as u32)
        .map(|half| f64::from(half) / 2.0)
        .map(|from| format!("{:.1},{:.1}", x(from + 0.25), y(from, from + 0.5)))
        .collect();
    let (width, dash) = (if curve.name == "as shipped" { 3.0 } else { 1.6 }, curve.dash);
    let (points, colour) = (points.join(" "), curve.colour);
    writeln!(
        svg,
        r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}" stroke-linejoin="round"/>"#
    )
}

fn frame(
    svg: &mut String,
    (top, height): (f64, f64),
    title: &str,
    ticks: &[(f64, String)],
) -> std::fmt::Result {
    let (bottom, right) = (top + height, WIDTH - RIGHT);
    let (from, to) = (x(LOST_AT), x(RESTORED_AT));
    writeln!(svg, r#"<text x="{LEFT}" y="{:.1}" class="title">{title}</text>"#, top - 26.0)?;
    writeln!(
        svg,
        r#"<rect x="{from:.1}" y="{top}" width="{:.1}" height="{height}" class="gone"/>"#,
        to - from
    )?;
    let middle = (from + to) / 2.0;
    writeln!(
        svg,
        r#"<text x="{middle:.1}" y="{:.1}" text-anchor="middle">cache gone</text>"#,
        top - 6.0
    )?;
    writeln!(svg, r#"<text x="{:.1}" y="{:.1}">back, but empty</text>"#, to + 4.0, top - 6.0)?;
    for (y, label) in ticks {
        writeln!(svg, r#"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" class="grid"/>"#)?;
        writeln!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#,
            LEFT - 8.0,
            y + 4.0
        )?;
    }
    for second in (0..=SECONDS as u32).step_by(5) {
        let x = x(f64::from(second));
        writeln!(
            svg,
            r#"<line x1="{x:.1}" y1="{bottom}" x2="{x:.1}" y2="{:.1}" class="axis"/>"#,
            bottom + 4.0
        )?;
        writeln!(
            svg,
            r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{second}</text>"#,
            bottom + 18.0
        )?;
    }
    writeln!(svg, r#"<line x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}" class="axis"/>"#)?;
    let middle = (LEFT + right) / 2.0;
    writeln!(
        svg,
        r#"<text x="{middle:.1}" y="{:.1}" text-anchor="middle">seconds</text>"#,
        bottom + 36.0
    )
}

fn draw(runs: &[(Curve, Run)]) -> Result<String, std::fmt::Error> {
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Goodput and database load while the cache is gone and after it is back empty">
<style>
text {{ font: 13px system-ui, sans-serif; fill: #1f2937 }}
.title {{ font-weight: 600; font-size: 14px }}
.grid {{ stroke: #9ca3af; stroke-opacity: 0.35 }}
.axis {{ stroke: #6b7280 }}
.gone {{ fill: #6b7280; fill-opacity: 0.13 }}
.bound {{ stroke: #6b7280; stroke-dasharray: 6 4 }}
.paper {{ fill: #ffffff }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e5e7eb }}
.paper {{ fill: #16181d }}
}}
</style>
<rect width="{WIDTH}" height="{HEIGHT}" class="paper"/>
"#
    );
    for (n, (curve, _)) in runs.iter().enumerate() {
        let (column, row) = ((n % 4) as f64, (n / 4) as f64);
        let (x, y) = (LEFT + column * 222.0, 28.0 + row * 24.0);
        let (name, colour, dash) = (curve.name, curve.colour, curve.dash);
        writeln!(
            svg,
            r#"<line x1="{x}" y1="{y}" x2="{:.1}" y2="{y}" stroke="{colour}" stroke-width="3" stroke-dasharray="{dash}"/><text x="{:.1}" y="{:.1}">{name}</text>"#,
            x + 28.0,
            x + 36.0,
            y + 4.5,
        )?;
    }
    let percents: Vec<_> =
        (0..=4u32).map(|n| (goodput_y(f64::from(n) / 4.0), format!("{} %", n * 25))).collect();
    frame(&mut svg, GOODPUT, "Reads answered in time, of those begun", &percents)?;
    let loads = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0].map(|load| (load_y(load), format!("{load}x")));
    frame(
        &mut svg,
        LOAD,
        "Work given to the database, in multiples of what it can do (logarithmic)",
        &loads,
    )?;
    let (bound, right) = (load_y(1.2), WIDTH - RIGHT);
    writeln!(
        svg,
        r#"<line x1="{LEFT}" y1="{bound:.1}" x2="{right}" y2="{bound:.1}" class="bound"/>"#
    )?;
    writeln!(
        svg,
        r#"<text x="{right}" y="{:.1}" text-anchor="end">bound: 1.2x</text>"#,
        bound - 5.0
    )?;
    for (curve, run) in runs.iter().rev() {
        line(&mut svg, curve, |from, to| goodput_y(run.goodput(from, to)))?;
        line(&mut svg, curve, |from, to| load_y(run.load(from, to)))?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// A row of the table: the worst of the runs of one curve.
fn row(curve: &Curve, runs: &[Run]) -> String {
    let min_over_runs =
        |of: &dyn Fn(&Run) -> f64| runs.iter().map(of).fold(f64::INFINITY, f64::min);
    let peak = -min_over_runs(&|run| -run.peak());
    let outage = min_over_runs(&|run| run.goodput(LOST_AT, RESTORED_AT));
    let after = min_over_runs(&|run| run.goodput(RESTORED_AT + 10.0, RESTORED_AT + 20.0));
    let end = min_over_runs(&|run| run.goodput(RESTORED_AT + 40.0, RESTORED_AT + 45.0));
    let never = runs.iter().any(|run| run.recovery().is_none());
    let recovery = -min_over_runs(&|run| -run.recovery().unwrap_or_default());
    let recovery = if never { "never".to_owned() } else { format!("{recovery:.0} s") };
    let percent = |share: f64| format!("{:.0} %", (share * 100.0).floor());
    format!(
        "| {} | {peak:.2}x | {} | {} | {} | {recovery} |",
        curve.name,
        percent(outage),
        percent(after),
        percent(end)
    )
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: overload FILE.svg [seeds]")?;
    let seeds: u64 = args.next().map_or(Ok(5), |seeds| seeds.parse())?;
    let (mut drawn, mut rows) = (Vec::new(), Vec::new());
    for curve in curves() {
        let plan = |seed| Plan { protections: curve.protections, seed, seconds: SECONDS, scale: 1 };
        let plans: Vec<_> = (1..=seeds.max(1)).map(plan).collect();
        let mut runs = run_all(&plans);
        rows.push(row(&curve, &runs));
        drawn.push((curve, runs.swap_remove(0)));
    }
    let seconds = drawn.iter().map(|(_, run)| run.seconds()).min().unwrap_or_default();
    assert!(seconds * BUCKETS >= SECONDS as usize * BUCKETS, "each run is whole");
    std::fs::write(&path, draw(&drawn)?)?;
    println!("The worst of {seeds} seeds each:\n");
    println!(
        "| parts | most work for the database in a second | answered while the cache is gone | 10-20 s after its return | 40-45 s after | at least 99 % again after |"
    );
    println!("|---|---|---|---|---|---|");
    rows.iter().for_each(|row| println!("{row}"));
    Ok(())
}
