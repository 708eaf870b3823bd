//! Rules of the files themselves: module docs, sizes, words, paths.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::run::{output, root};

/// Lines from which a file smells.
const LONG_FILE: usize = 600;

/// Words of other tools for what we call primary and replica; files that quote such a tool are
/// listed.
const WORDS: &[&str] = &["master", "slave", "leader", "follower"];
const QUOTING: &[&str] = &[
    "xtask/src/tree.rs",
    "Cargo.lock",
    "CONTRIBUTING.md",
    "crates/tagfast-domain/src/content.rs",
    // Patroni's leader key, by which a reign is named.
    "ARCHITECTURE.md",
    "docs/failover.md",
    "crates/tagfast-failover/src/ack.rs",
    "crates/tagfast-failover/src/epoch.rs",
    "crates/tagfast-failover/src/fence.rs",
    "crates/tagfast-store-postgres/src/checks.rs",
    "crates/tagfast-store-postgres/src/etcd.rs",
    "crates/tagfast-store-postgres/src/options.rs",
    "crates/tagfast-store-postgres/src/watcher.rs",
    "crates/tagfast-store-postgres/tests/faults/reigns.rs",
    "crates/tagfast-testkit/src/stack/patroni.rs",
    // How Redis names its roles.
    "crates/tagfast-testkit/src/sentinel.rs",
    // An option of `ip link`.
    "crates/tagfast-testkit/src/stack/netns.rs",
    "crates/tagfast-redis/src/check.rs",
    "crates/tagfast-redis/src/place.rs",
    "crates/tagfast-store-postgres/src/silence.rs",
];

/// Beginnings of paths of one machine.
const MACHINE_PATHS: &[&str] = &["/root/", "/work/", "/farm/"];

pub(crate) fn check() -> Result<()> {
    let files = output(Command::new("git").args(["ls-files"]).current_dir(root()))?;
    let mut wrong = Vec::new();
    for file in files.lines() {
        let text_file =
            [".rs", ".md", ".toml", ".sh", ".json", ".yml"].iter().any(|e| file.ends_with(e))
                || file == ".ci/run";
        if !text_file || file == "Cargo.lock" {
            continue;
        }
        let path = root().join(file);
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        check_file(file, &text, &mut wrong);
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

fn check_file(file: &str, text: &str, wrong: &mut Vec<String>) {
    if file.ends_with(".rs") && !text.trim_start().starts_with("//!") && needs_module_doc(file) {
        wrong.push(format!("{file} has no module doc"));
    }
    let lines = text.lines().count();
    if file.ends_with(".rs") && lines > LONG_FILE {
        println!("note: {file} has {lines} lines");
    }
    if file != "xtask/src/tree.rs" && MACHINE_PATHS.iter().any(|p| text.contains(p)) {
        wrong.push(format!("{file} names a path of one machine"));
    }
    if file.ends_with(".rs") {
        check_source(file, text, wrong);
    }
    if file.starts_with("crates/")
        && file.ends_with("/Cargo.toml")
        && !text.contains("[lints]\nworkspace = true")
    {
        wrong.push(format!("{file} does not take the workspace's lints"));
    }
    if file.ends_with(".md") {
        for target in links(text).filter(|t| !root().join(file).with_file_name(t).exists()) {
            wrong.push(format!("{file} links {target}, which is not there"));
        }
    }
    if QUOTING.contains(&file) || file.starts_with("docs/") {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        let lower = line.to_ascii_lowercase();
        if let Some(word) = WORDS.iter().find(|w| has_word(&lower, w)) {
            wrong.push(format!("{file}:{}: {word:?}: say primary or replica", number + 1));
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

fn check_source(file: &str, text: &str, wrong: &mut Vec<String>) {
    // Documentation tests are not run: an example in a comment could rot unseen.
    for (number, line) in text.lines().enumerate() {
        let fence = line
            .trim_start()
            .strip_prefix("//")
            .and_then(|l| l.strip_prefix(['/', '!']))
            .map(str::trim);
        if fence.is_some_and(|f| f.starts_with("```") && f != "```" && f != "```text") {
            wrong.push(format!("{file}:{}: a fence in a comment must be ```text", number + 1));
        }
    }
    let library = file.strip_prefix("crates/").filter(|f| f.contains("/src/"));
    if library.is_some_and(|f| {
        !["tagfast/", "tagfast-testkit/"].iter().any(|own| f.starts_with(own))
            && !f.contains("/conformance/")
    }) {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        // Tests in a file of their own.
        let code = if file.ends_with("/tests.rs") { "" } else { code };
        if code.contains("env::var") {
            wrong.push(format!(
                "{file} reads the environment: only the program does, and hands on what it found"
            ));
        }
    }
}

fn needs_module_doc(file: &str) -> bool {
    Path::new(file).components().any(|c| c.as_os_str() == "src")
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric())
        .any(|w| w == word || w.strip_suffix('s') == Some(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_files_are_found() {
        let text = "see [a](docs/a.md), [b](https://example.org/b.md), [c](#c) and [d](d.md#e)";
        assert_eq!(links(text).collect::<Vec<_>>(), ["docs/a.md", "d.md"]);
    }

    #[test]
    fn words_are_whole_words() {
        assert!(has_word("the masters", "master"));
        assert!(
            !has_word("mastery of leadership", "master")
                && !has_word("mastery of leadership", "leader")
        );
    }
}
