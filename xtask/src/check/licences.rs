//! Licences and bans over everything that is linked.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{cargo, output, root};

/// Licences we may ship.
pub(super) const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that must not come in, and why.
pub(super) const BANNED: &[(&str, &str)] = &[
    ("openssl-sys", "one TLS stack: rustls"),
    ("native-tls", "one TLS stack: rustls"),
    ("chrono", "times are Unix milliseconds; RFC 3339 is tagfast-domain's"),
    ("ahash", "its hashes are not stable; nothing stored may depend on one"),
];

/// Banned crates that a dependency of ours brings and we do not use ourselves; librdkafka knows
/// only OpenSSL.
const TOLERATED: &[&str] = &["ahash", "openssl-sys"];

pub(crate) fn check() -> Result<()> {
    let host = host()?;
    let metadata = output(cargo().args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--filter-platform",
        &host,
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let mut wrong = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        if let Some((_, why)) = BANNED.iter().find(|(n, _)| *n == name && !TOLERATED.contains(n)) {
            wrong.push(format!("{name} is banned: {why}"));
        }
        versions.entry(name).or_default().insert(package["version"].as_str().unwrap_or_default());
        let licence = package["license"].as_str().unwrap_or_default().replace('/', " OR ");
        if !allowed(&licence) {
            wrong.push(format!("{name} has the licence {licence:?}, which is not on the list"));
        }
    }
    for (name, versions) in versions.iter().filter(|(_, v)| v.len() > 1) {
        println!(
            "note: {name} comes in {} versions: {}",
            versions.len(),
            Vec::from_iter(versions.iter().copied()).join(", ")
        );
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

/// This system's target triple: what other systems would link is theirs to judge, and would have to
/// be downloaded first.
pub(super) fn host() -> Result<String> {
    let rustc = output(Command::new("rustc").arg("-vV").current_dir(root()))?;
    let host = rustc.lines().find_map(|l| l.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not name its host")
}

/// Evaluates an SPDX expression: AND binds tighter than OR.
fn allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let value = either(&words, &mut at);
    at == words.len() && value
}

fn either(words: &[&str], at: &mut usize) -> bool {
    let mut value = both(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        let right = both(words, at);
        value |= right;
    }
    value
}

fn both(words: &[&str], at: &mut usize) -> bool {
    let mut value = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        let right = one(words, at);
        value &= right;
    }
    value
}

fn one(words: &[&str], at: &mut usize) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let value = either(words, at);
        *at += usize::from(words.get(*at) == Some(&")"));
        return value;
    }
    if words.get(*at) == Some(&"WITH") {
        let with = format!("{word} WITH {}", words.get(*at + 1).copied().unwrap_or_default());
        *at += 2;
        return ALLOWED.contains(&with.as_str());
    }
    ALLOWED.contains(word)
}

#[cfg(test)]
mod tests {
    use super::allowed;

    #[test]
    fn expressions_are_evaluated_not_searched() {
        assert!(allowed("MIT OR GPL-3.0"));
        assert!(!allowed("MIT AND GPL-3.0"));
        assert!(allowed("(MIT OR GPL-3.0) AND ISC"));
        assert!(allowed("Apache-2.0 WITH LLVM-exception OR MIT"));
        assert!(!allowed("GPL-3.0 WITH MIT"));
        assert!(!allowed(""));
    }
}
