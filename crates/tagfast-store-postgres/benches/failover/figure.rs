//! One figure, and the table of all of them as docs/measured has it.

use std::fmt::Write as _;

use serde::Serialize;

/// A row; the JSON is what `cargo xtask bench` reads.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
    /// What was measured beside it in the same run.
    baseline: Option<String>,
    /// Microseconds: p50, p99, p99.9.
    latency_us: Option<[f64; 3]>,
    target: Option<String>,
    ok: Option<bool>,
}

impl Figure {
    pub(crate) fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        let what = what.into();
        Self { what, value, unit, baseline: None, latency_us: None, target: None, ok: None }
    }

    #[must_use]
    pub(crate) fn beside(self, baseline: impl Into<String>) -> Self {
        Self { baseline: Some(baseline.into()), ..self }
    }

    #[must_use]
    pub(crate) fn latency(self, [p50, p99, p999]: [f64; 3]) -> Self {
        Self { latency_us: Some([p50 * 1000.0, p99 * 1000.0, p999 * 1000.0]), ..self }
    }

    #[must_use]
    pub(crate) fn at_most(self, limit: f64, unit: &str) -> Self {
        let ok = self.value <= limit;
        self.target(format!("<= {limit} {unit}"), ok)
    }

    #[must_use]
    pub(crate) fn at_least(self, limit: f64, unit: &str) -> Self {
        let ok = self.value >= limit;
        self.target(format!(">= {limit} {unit}"), ok)
    }

    #[must_use]
    pub(crate) fn target(self, target: impl Into<String>, ok: bool) -> Self {
        Self { target: Some(target.into()), ok: Some(ok), ..self }
    }
}

fn rounded(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The figures as a table of Markdown.
pub(crate) fn markdown(figures: &[Figure]) -> String {
    let titles =
        ["what", "measured", "beside it, in the same run", "p50 / p99 / p99.9 ms", "target", ""];
    format!("| {} |\n|{}\n{}", titles.join(" | "), "---|".repeat(titles.len()), rows(figures))
}

/// The rows of that table.
pub(crate) fn rows(figures: &[Figure]) -> String {
    let mut text = String::new();
    for figure in figures {
        let latency = figure.latency_us.map(|l| l.map(|us| format!("{:.1}", us / 1000.0)));
        let verdict = match figure.ok {
            Some(true) => "reached",
            Some(false) => "**missed**",
            None => "",
        };
        let _ = writeln!(
            text,
            "| {} | {} {} | {} | {} | {} | {verdict} |",
            figure.what,
            rounded(figure.value),
            figure.unit,
            figure.baseline.as_deref().unwrap_or_default(),
            latency.map(|latency| latency.join(" / ")).unwrap_or_default(),
            figure.target.as_deref().unwrap_or_default(),
        );
    }
    text
}

/// The middle value.
///
/// # Panics
///
/// There is none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    // Of an even number the mean of the two in the middle: the larger one would favour a side.
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}

/// The values from the smallest to the largest, for the reader to see how they scatter.
pub(crate) fn spread(values: impl IntoIterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let texts = [values.first(), values.last()].map(|v| v.map_or(String::new(), |v| rounded(*v)));
    texts.join(" to ")
}
