//! One figure: what was measured, beside what, and whether it is enough.

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// A row of docs/measured/performance.md.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: String,
    pub(crate) baseline: Option<String>,
    pub(crate) baseline_value: Option<f64>,
    /// CPU of the server per request, microseconds; of the baseline.
    pub(crate) cpu_us: Option<f64>,
    pub(crate) baseline_cpu_us: Option<f64>,
    /// Latency in microseconds: p50, p99, p99.9.
    pub(crate) latency_us: Option<[f64; 3]>,
    pub(crate) target: Option<String>,
    pub(crate) ok: Option<bool>,
}

#[derive(Deserialize)]
struct Printed {
    figures: Vec<Figure>,
}

/// The figures that a crate's benchmark printed.
pub(crate) fn from_bench(line: &str) -> Result<Vec<Figure>> {
    Ok(serde_json::from_str::<Printed>(line)?.figures)
}

impl Figure {
    pub(crate) fn new(what: impl Into<String>, value: f64, unit: &str) -> Self {
        Self { what: what.into(), value, unit: unit.to_owned(), ..Self::default() }
    }

    #[must_use]
    pub(crate) fn target(mut self, target: &str, ok: bool) -> Self {
        self.target = Some(target.to_owned());
        self.ok = Some(ok);
        self
    }

    /// How many times the baseline.
    pub(crate) fn ratio(&self) -> Option<f64> {
        self.baseline_value.filter(|b| *b > 0.0).map(|b| self.value / b)
    }

    /// How many times the baseline's CPU.
    pub(crate) fn cpu_ratio(&self) -> Option<f64> {
        self.baseline_cpu_us.filter(|b| *b > 0.0).zip(self.cpu_us).map(|(b, own)| own / b)
    }
}

/// The middle value; 0 for none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bench_may_leave_out_what_it_has_not() {
        let line = r#"{"figures": [{"what": "views", "value": 10, "unit": "/s", "baseline": null, "baseline_value": 4}]}"#;
        let figures = from_bench(line).unwrap();
        assert_eq!(
            (figures[0].ratio(), figures[0].cpu_ratio(), figures[0].ok),
            (Some(2.5), None, None)
        );
        assert!(from_bench("{}").is_err());
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
