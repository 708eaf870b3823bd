//! The store's own benchmark prints one JSON object a line; here its lines become figures with
//! their baselines.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::figure::Figure;

/// The lines of a run.
pub(crate) struct Lines(Vec<Value>);

impl Lines {
    pub(crate) fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect())
    }

    /// The line with this `what` and these fields.
    fn line(&self, what: &str, fields: &[(&str, u64)]) -> Result<&Value> {
        let fits = |line: &&Value| {
            line["what"] == what && fields.iter().all(|(name, value)| line[*name] == *value)
        };
        self.0
            .iter()
            .find(fits)
            .with_context(|| format!("the store's benchmark has no line {what} {fields:?}"))
    }
}

fn number(line: &Value, field: &str) -> f64 {
    line[field].as_f64().unwrap_or_default()
}

fn figure(what: impl Into<String>, line: &Value) -> Figure {
    Figure {
        cpu_us: Some(number(line, "cpu_us_per_op")),
        latency_us: Some(["p50_us", "p99_us", "p999_us"].map(|f| number(line, f))),
        ..Figure::new(what, number(line, "per_second"), "/s")
    }
}

fn beside(mut figure: Figure, name: &str, baseline: &Value) -> Figure {
    figure.baseline = Some(name.to_owned());
    figure.baseline_value = Some(number(baseline, "per_second"));
    figure.baseline_cpu_us = Some(number(baseline, "cpu_us_per_op"));
    figure
}

/// The usual run: 20,000 contents.
pub(crate) fn usual(lines: &Lines) -> Result<Vec<Figure>> {
    let writes = lines.line("writes_durable", &[("files", 8)])?;
    let one_file = lines.line("writes_durable", &[("files", 1)])?;
    let plain = lines.line("plain_sqlite_row_per_transaction", &[])?;
    let views = lines.line("views", &[("files", 8)])?;
    let row_by_key = lines.line("plain_sqlite_row_by_key", &[])?;

    let durable = beside(
        figure("single-tag writes, durable, 256 callers, store level", writes),
        "plain SQLite, one row per durable transaction",
        plain,
    );
    let five_times = durable.ratio().is_some_and(|r| r >= 5.0);
    let files = beside(figure("the same, 8 files", writes), "1 file", one_file);
    let files_help = files.ratio().is_some_and(|r| r >= 1.7);
    let views = beside(
        figure("views, 2 threads, store level", views),
        "plain SQLite, one row by its key, not decoded",
        row_by_key,
    );
    let fast = views.value >= 250_000.0 && views.cpu_us.is_some_and(|c| c <= 8.0);
    Ok(vec![
        durable.target(">= 5x plain", five_times),
        files.target(">= 1.7x one file", files_help),
        views.target(">= 250,000/s, CPU <= 8 us", fast),
    ])
}

/// The large run: 2,000,000 contents with 5 tags each, beside 20,000.
pub(crate) fn large(lines: &Lines) -> Result<Vec<Figure>> {
    const HOT: u64 = 20_000;
    let mut figures = Vec::new();
    for (what, words) in [("views", "views"), ("writes_durable", "durable writes")] {
        let small = lines.line(what, &[("contents", HOT), ("hot", HOT)])?;
        let all: Vec<&Value> =
            lines.0.iter().filter(|l| l["what"] == what && l["contents"] != HOT).collect();
        let [hot, cold] = all[..] else {
            bail!("the store's benchmark has {} large lines of {what}", all.len())
        };
        let title = format!("{words}, 10 million taggings, 20,000 contents hot");
        let figure_hot = beside(figure(title, hot), "100,000 taggings", small);
        let near = figure_hot.ratio().is_some_and(|r| r >= 1.0 / 1.3);
        figures.push(figure_hot.target("within 1.3x", near));
        let title = format!("{words}, 10 million taggings, all contents hot");
        figures.push(beside(figure(title, cold), "100,000 taggings", small));
    }
    let size = lines.line("size", &[])?;
    let documents = number(size, "bytes_per_tagging_documents");
    figures.push(Figure::new("size on disk, documents and keys only", documents, "B/tagging"));
    let all = number(size, "bytes_per_tagging_with_events");
    figures.push(Figure::new("size on disk, with an hour of events", all, "B/tagging"));
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_lines_become_figures_and_a_missing_one_is_named() {
        let text = r#"
            {"what": "plain_sqlite_row_per_transaction", "per_second": 1000}
            {"what": "writes_durable", "files": 1, "per_second": 4000}
            {"what": "writes_durable", "files": 8, "per_second": 8000}
            {"what": "views", "files": 8, "per_second": 300000, "cpu_us_per_op": 6.5}
            {"what": "plain_sqlite_row_by_key", "per_second": 600000}
        "#;
        let figures = usual(&Lines::parse(text)).unwrap();
        assert!(figures.iter().all(|f| f.ok == Some(true)), "{figures:?}");
        assert_eq!(figures[0].ratio(), Some(8.0));
        let error = usual(&Lines::parse(&text.replace("\"views\"", "\"others\""))).unwrap_err();
        assert!(error.to_string().contains("views"), "{error}");
    }
}
