//! Names in the docs must exist: metrics, configuration keys, problem codes' routes, source files.
//!
//! The references that are made from the code (`docs/reference`) say which exist. A page that names
//! a metric or a key that was renamed fails here, not in front of an operator.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::files::{TextFile, text_files};
use crate::run::root;

pub(crate) fn check() -> Result<()> {
    let read = |page: &str| std::fs::read_to_string(root().join("docs/reference").join(page));
    let known = KnownNames {
        metrics: words(&read("metrics.md")?, "`tagfast_", "`"),
        keys: words(&read("configuration.md")?, "### `", "`"),
    };
    let mut wrong = Vec::new();
    for file in text_files()?.iter().filter(|file| file.path.ends_with(".md")) {
        known.check_page(file, &mut wrong);
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

struct KnownNames {
    /// Names of metrics without their prefix `tagfast_`.
    metrics: BTreeSet<String>,
    /// Configuration keys, `section.key`.
    keys: BTreeSet<String>,
}

impl KnownNames {
    fn check_page(&self, file: &TextFile, wrong: &mut Vec<String>) {
        let sections: BTreeSet<&str> =
            self.keys.iter().filter_map(|key| key.split('.').next()).collect();
        for (number, line) in file.text.lines().enumerate() {
            let mut complain = |name: &str, what: &str| {
                wrong.push(format!("{}:{}: there is no {what} {name}", file.path, number + 1));
            };
            for name in line.split('`').skip(1).step_by(2) {
                if let Some(metric) = metric(name)
                    && !self.metrics.contains(metric)
                    && !is_crate(name)
                {
                    complain(name, "metric");
                }
                if let Some((section, key)) = name.split_once('.')
                    && sections.contains(section)
                    && is_key(key)
                    && !self.keys.contains(name)
                {
                    complain(name, "configuration key");
                }
                if name.contains("/src/") && name.ends_with(".rs") && !is_source(name) {
                    complain(name, "file");
                }
            }
        }
    }
}

/// A metric's name without prefix and labels; `None` when it is no metric.
fn metric(name: &str) -> Option<&str> {
    let name = name.strip_prefix("tagfast_")?;
    let end = name.find(|c: char| !(c.is_ascii_lowercase() || c == '_')).unwrap_or(name.len());
    (name[end..].is_empty() || name[end..].starts_with([' ', '{'])).then_some(&name[..end])
}

/// Crates are written with `_` in code, and so is the schema of the control tables.
fn is_crate(name: &str) -> bool {
    let folder = name.split(' ').next().unwrap_or_default().replace('_', "-");
    name == "tagfast_control" || root().join("crates").join(folder).is_dir()
}

fn is_key(key: &str) -> bool {
    !key.is_empty()
        && !["rs", "md", "json"].contains(&key)
        && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

fn is_source(name: &str) -> bool {
    ["", "crates"].iter().any(|folder| root().join(folder).join(name).is_file())
}

/// What stands between `before` and `after` wherever `before` is found.
fn words(page: &str, before: &str, after: &str) -> BTreeSet<String> {
    let found = page.split(before).skip(1);
    found.filter_map(|rest| rest.split(after).next()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_metrics_and_keys_are_found() {
        let known = KnownNames {
            metrics: words("| `tagfast_reads_total` |", "`tagfast_", "`"),
            keys: words("### `store.primary_wait_ms`\n", "### `", "`"),
        };
        let complaints = |text: &str| {
            let mut wrong = Vec::new();
            let file = TextFile { path: "docs/x.md".to_owned(), text: text.to_owned() };
            known.check_page(&file, &mut wrong);
            wrong.len()
        };
        assert_eq!(
            complaints("`tagfast_reads_total{a=\"b\"}` and `store.primary_wait_ms`, `tokio.rs`"),
            0
        );
        assert_eq!(complaints("`tagfast_reads_total == 1`, `tagfast_domain`, `store.rs:1`"), 0);
        assert_eq!(complaints("`tagfast_read_total`"), 1);
        assert_eq!(complaints("`store.max_lost_ms`"), 1);
        assert_eq!(complaints("`tagfast-domain/src/nothing.rs`"), 1);
    }
}
