//! Every test that `docs/promises.md` names must exist, and so must every file.
//!
//! The page maps a promise to the code that enforces it and to the tests that would fail without
//! it. A test is written as `` `path/to/file.rs::name_of_the_test` ``, a file as ``
//! `path/to/file.rs` ``.

use anyhow::{Result, bail};

use crate::run::root;

const PAGE: &str = "docs/promises.md";

pub(crate) fn check() -> Result<()> {
    let page = std::fs::read_to_string(root().join(PAGE))?;
    let names: Vec<&str> = quoted(&page).filter(|name| name.contains(".rs")).collect();
    let mut wrong = Vec::new();
    for name in &names {
        let (file, test) = name.split_once("::").unwrap_or((name, ""));
        match std::fs::read_to_string(root().join(file)) {
            Err(_) => wrong.push(format!("{PAGE} names {file}, which is not there")),
            Ok(text) if !test.is_empty() && !has_test(&text, test) => {
                wrong.push(format!("{PAGE} names the test {test}, which {file} does not have"));
            }
            Ok(_) => {}
        }
    }
    let tests = names.iter().filter(|name| name.contains("::")).count();
    if tests < 30 {
        wrong.push(format!("{PAGE} names {tests} tests only"));
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

/// What stands between backticks.
fn quoted(page: &str) -> impl Iterator<Item = &str> {
    page.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Whether a file has a function of that name: a test, or a promise of a conformance suite.
fn has_test(text: &str, name: &str) -> bool {
    text.contains(&format!("fn {name}(")) || text.contains(&format!("fn {name}<"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_stands_between_backticks() {
        let page = "| a `x.rs` | `y.rs::z`, `w` |\nnone";
        assert_eq!(quoted(page).collect::<Vec<_>>(), ["x.rs", "y.rs::z", "w"]);
    }

    #[test]
    fn a_test_is_a_function_of_exactly_that_name() {
        let text = "#[test]\nfn a_removed_tag_is_gone() {}";
        assert!(has_test(text, "a_removed_tag_is_gone"));
        assert!(!has_test(text, "a_removed_tag"));
    }
}
