//! Rules of the files themselves: module docs, sizes, widths, links, paths, one way to do a thing.

use std::path::Path;

use anyhow::{Result, bail};

use crate::files::{TextFile, text_files};
use crate::run::root;

/// Longest source file, in lines.
const FILE_LINES_MAX: usize = 600;
/// Widest line of prose, in characters.
const PROSE_WIDTH_MAX: usize = 100;

/// Beginnings of paths of one machine.
const MACHINE_PATHS: &[&str] = &["/root/", "/work/", "/farm/"];

/// What code of the service must not contain, and the one way to do it instead. Tests, benchmarks
/// and tools are free.
const ONE_WAY: &[(&str, &str)] = &[
    ("tokio::spawn(", "tagfast_resilience::task: a task has an owner, who joins it at shutdown"),
    ("std::thread::spawn(", "std::thread::Builder: a thread has a name, and its owner joins it"),
    ("task::spawn_blocking(", "tagfast_resilience::task::blocking"),
    ("PoisonError", "parking_lot, whose locks are not poisoned"),
    ("std::sync::Mutex", "parking_lot::Mutex"),
    ("std::sync::RwLock", "parking_lot::RwLock"),
    ("serde_json::from_", "tagfast_json: an array never stands for an object"),
    ("serde_json::Deserializer", "tagfast_json: an array never stands for an object"),
    (".json::<", "tagfast_json: an array never stands for an object"),
    ("MetricDef {", "tagfast_resilience::define_metrics!, which lists the metric too"),
    ("metrics::counter!", "tagfast_resilience::counter! with a MetricDef"),
    ("metrics::gauge!", "tagfast_resilience::gauge! with a MetricDef"),
    ("metrics::histogram!", "tagfast_resilience::histogram! with a MetricDef"),
];

/// How many lines above its use an error may have been turned into an `ErrorChain` under its
/// name.
const ERROR_CHAIN_LINES: usize = 12;

/// Where the one way itself is, and code that is not part of the service.
const ONE_WAY_EXEMPT: &[&str] = &[
    "crates/tagfast-json/",
    "crates/tagfast-resilience/",
    "crates/tagfast-testkit/",
    "xtask/",
    // Its lock decides how many writes a commit holds; the file says why.
    "crates/tagfast-store-embedded/src/queue.rs",
];

pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    text_files()?.iter().for_each(|file| check_file(file, &mut wrong));
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

fn check_file(file: &TextFile, wrong: &mut Vec<String>) {
    let TextFile { path, text } = file;
    if path != "xtask/src/check/sources.rs" && MACHINE_PATHS.iter().any(|p| text.contains(p)) {
        wrong.push(format!("{path} names a path of one machine"));
    }
    if path.ends_with(".rs") {
        check_source(path, text, wrong);
    }
    if path.starts_with("crates/")
        && path.ends_with("/Cargo.toml")
        && !text.contains("[lints]\nworkspace = true")
    {
        wrong.push(format!("{path} does not take the workspace's lints"));
    }
    if path.ends_with(".md") {
        check_page(path, text, wrong);
    }
}

fn check_page(path: &str, text: &str, wrong: &mut Vec<String>) {
    for target in links(text).filter(|t| !root().join(path).with_file_name(t).exists()) {
        wrong.push(format!("{path} links {target}, which is not there"));
    }
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        // Rows of tables cannot be wrapped, nor can what a program printed, nor a lone link.
        let free = fenced || line.trim_start().starts_with('|') || !line.trim().contains(' ');
        if !free && line.chars().count() > PROSE_WIDTH_MAX && !line.contains("](") {
            wrong.push(format!("{path}:{}: wider than {PROSE_WIDTH_MAX}", number + 1));
        }
    }
}

/// Files that a page links; addresses and places within the page are left out.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| {
        let target =
            rest.split(')').next().unwrap_or_default().split('#').next().unwrap_or_default();
        (!target.is_empty() && !target.contains(':')).then_some(target)
    })
}

fn check_source(path: &str, text: &str, wrong: &mut Vec<String>) {
    if !text.trim_start().starts_with("//!") && is_in_src(path) {
        wrong.push(format!("{path} has no module doc"));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        wrong.push(format!("{path} has {lines} lines, {FILE_LINES_MAX} are the limit"));
    }
    for (number, line) in text.lines().enumerate() {
        let Some(comment) = line.trim_start().strip_prefix("//") else { continue };
        let comment = comment.strip_prefix(['/', '!']).unwrap_or(comment).trim();
        // Documentation tests are not run: an example in a comment could rot unseen.
        if comment.starts_with("```") && comment != "```" && comment != "```text" {
            wrong.push(format!("{path}:{}: a fence in a comment must be ```text", number + 1));
        }
        let free = comment.starts_with('|') || !comment.contains(' ');
        if !free && line.chars().count() > PROSE_WIDTH_MAX {
            wrong.push(format!("{path}:{}: wider than {PROSE_WIDTH_MAX}", number + 1));
        }
    }
    if is_in_src(path) && !ONE_WAY_EXEMPT.iter().any(|exempt| path.starts_with(exempt)) {
        check_service(path, code(path, text), wrong);
    }
}

/// Rules for what runs in the service.
fn check_service(path: &str, code: &str, wrong: &mut Vec<String>) {
    for (number, line) in code.lines().enumerate() {
        if let Some((_, instead)) = ONE_WAY.iter().find(|(pattern, _)| line.contains(pattern)) {
            wrong.push(format!("{path}:{}: {}: use {instead}", number + 1, line.trim()));
        }
    }
    let lines: Vec<&str> = code.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let above = &lines[at.saturating_sub(ERROR_CHAIN_LINES)..at];
        if ["%error,", "%error)"].iter().any(|field| line.contains(field))
            && !above.iter().any(|line| line.contains("ErrorChain("))
        {
            let line = line.trim();
            wrong.push(format!("{path}:{}: {line}: use %ErrorChain(&error)", at + 1));
        }
    }
    let program = ["crates/tagfast/", "crates/tagfast-client/"].iter().any(|p| path.starts_with(p));
    if !program && code.contains("env::var") {
        wrong.push(format!("{path} reads the environment: only the program does, and hands it on"));
    }
}

/// A source file without its tests.
fn code<'a>(path: &str, text: &'a str) -> &'a str {
    let tests = ["/tests.rs", "_tests.rs", "/testing.rs"].iter().any(|end| path.ends_with(end))
        || ["/testing/", "/conformance/"].iter().any(|folder| path.contains(folder))
        || path.contains("/tests/");
    if tests { "" } else { text.split("#[cfg(test)]").next().unwrap_or_default() }
}

fn is_in_src(path: &str) -> bool {
    Path::new(path).components().any(|c| c.as_os_str() == "src")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        check_file(&TextFile { path: path.to_owned(), text: text.to_owned() }, &mut wrong);
        wrong
    }

    #[test]
    fn links_to_files_are_found() {
        let text = "see [a](docs/a.md), [b](https://example.org/b.md), [c](#c) and [d](d.md#e)";
        assert_eq!(links(text).collect::<Vec<_>>(), ["docs/a.md", "d.md"]);
    }

    #[test]
    fn prose_has_a_width_and_tables_have_none() {
        let wide = "word ".repeat(30);
        assert_eq!(complaints("docs/x.md", &wide).len(), 1);
        assert_eq!(complaints("docs/x.md", &format!("| {wide} |")).len(), 0);
        assert_eq!(complaints("crates/x/src/a.rs", &format!("//! {wide}")).len(), 1);
        assert_eq!(complaints("crates/x/src/a.rs", &format!("//! A.\n// | {wide} |")).len(), 0);
    }

    #[test]
    fn the_one_way_holds_for_the_service_and_not_for_its_tests() {
        let spawn = "//! A.\nfn f() { tokio::spawn(g()); }\n";
        assert_eq!(complaints("crates/x/src/a.rs", spawn).len(), 1);
        assert_eq!(complaints("crates/x/tests/it/a.rs", spawn).len(), 0);
        assert_eq!(complaints("crates/tagfast-testkit/src/a.rs", spawn).len(), 0);
        let tested = format!("//! A.\n#[cfg(test)]\nmod tests {{\n{spawn}}}\n");
        assert_eq!(complaints("crates/x/src/a.rs", &tested).len(), 0);
    }

    #[test]
    fn a_long_file_is_refused() {
        let text = format!("//! A.\n{}", "fn f() {}\n".repeat(FILE_LINES_MAX));
        assert_eq!(complaints("crates/x/src/a.rs", &text).len(), 1);
    }
}
