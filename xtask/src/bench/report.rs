//! The figures as a table on the terminal, as JSON, and in docs/measured/performance.md.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::figure::Figure;
use crate::run::{output, root, target_dir};

/// A part of docs/measured/performance.md that is written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    /// The embedded default.
    Embedded,
    /// PostgreSQL clusters.
    Clusters,
}

impl Section {
    fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Clusters => "clusters",
        }
    }

    fn markers(self) -> [String; 2] {
        let name = self.name();
        [
            format!("<!-- measured, {name}: begin, written by `cargo xtask bench` -->\n"),
            format!("<!-- measured, {name}: end -->\n"),
        ]
    }
}

/// What it was measured on.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
    };
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let memory: f64 =
        memory.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{cpus} x {}, {:.0} GB of memory, Linux {}",
        field(&read("/proc/cpuinfo"), "model name"),
        memory * 1024.0 / 1e9,
        kernel.trim()
    )
}

fn rounded(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (n, digit) in digits.chars().enumerate() {
                if n > 0 && (digits.len() - n).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
        v if v >= 10.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

fn row(figure: &Figure) -> Vec<String> {
    let times = |ratio: Option<f64>| ratio.map(|r| format!(" ({r:.2}x)")).unwrap_or_default();
    let measured = format!("{} {}{}", rounded(figure.value), figure.unit, times(figure.ratio()));
    let baseline = match (&figure.baseline, figure.baseline_value) {
        (Some(name), Some(value)) => format!("{name}: {}", rounded(value)),
        (Some(name), None) => name.clone(),
        (None, _) => String::new(),
    };
    let cpu = figure
        .cpu_us
        .map(|c| format!("{c:.0} us{}", times(figure.cpu_ratio())))
        .unwrap_or_default();
    let latency = figure
        .latency_us
        .map(|l| l.map(|us| format!("{:.1}", us / 1000.0)).join(" / "))
        .unwrap_or_default();
    let verdict = match figure.ok {
        Some(true) => "reached",
        Some(false) => "**missed**",
        None => "",
    };
    let target = figure.target.clone().unwrap_or_default();
    [figure.what.clone(), measured, baseline, cpu, latency, target, verdict.to_owned()].to_vec()
}

const TITLES: [&str; 7] = [
    "what",
    "measured",
    "baseline in the same run",
    "CPU per request",
    "p50 / p99 / p99.9 ms",
    "target",
    "",
];

fn markdown(figures: &[Figure]) -> String {
    let mut text = format!("\n| {} |\n|{}\n", TITLES.join(" | "), "---|".repeat(TITLES.len()));
    for figure in figures {
        let _ = writeln!(text, "| {} |", row(figure).join(" | "));
    }
    text
}

pub(crate) fn write(section: Section, figures: &[Figure], quick: bool) -> Result<()> {
    let commit =
        output(Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(root()))
            .unwrap_or_else(|_| "unknown".to_owned());
    let text = markdown(figures);
    println!("{text}");
    let path = target_dir().join("bench").join(format!("results-{}.json", section.name()));
    let results =
        json!({"machine": machine(), "commit": commit.trim(), "quick": quick, "figures": figures});
    std::fs::write(&path, serde_json::to_vec_pretty(&results)?)?;
    println!("written: {}", path.display());
    if quick {
        return Ok(());
    }
    let page = root().join("docs").join("measured").join("performance.md");
    let document = std::fs::read_to_string(&page)
        .with_context(|| format!("cannot read {}", page.display()))?;
    let [begin, end] = section.markers();
    let missing = || format!("docs/measured/performance.md lacks a marker of {section:?}");
    let (before, rest) = document.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    let head = format!("\n{}; `cargo xtask bench` at commit {}.\n", machine(), commit.trim());
    std::fs::write(&page, format!("{before}{begin}{head}{text}\n{end}{after}"))?;
    println!("written: {}", page.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(rounded(1_234_567.8), "1,234,568");
        assert_eq!(rounded(999.6), "1000");
        assert_eq!(rounded(12.34), "12");
        assert_eq!(rounded(1.234), "1.23");
    }

    #[test]
    fn a_row_has_as_many_cells_as_the_title() {
        let figure = Figure::new("x", 1.0, "s").target("<= 2 s", true);
        assert_eq!(row(&figure).len(), TITLES.len());
        assert!(markdown(&[figure]).contains("| x | 1.00 s |"));
    }
}
