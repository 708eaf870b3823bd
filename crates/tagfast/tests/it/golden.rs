//! Documents that are made from the code: the list of problem codes in docs/reference/api.md.

use std::fmt::Write as _;

const BEGIN: &str =
    "<!-- problem codes: made from the code, see crates/tagfast/tests/it/golden.rs -->\n";
const END: &str = "<!-- end of problem codes -->\n";

fn table() -> String {
    let mut text = String::from("\n| status | code | when | what to do |\n|---|---|---|---|\n");
    for row in tagfast_api::PROBLEM_CODES {
        let _ = writeln!(
            text,
            "| {} | `{}` | {} | {} |",
            row.status, row.code, row.meaning, row.action
        );
    }
    text.push('\n');
    text
}

#[test]
fn the_problem_codes_are_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/api.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (before, rest) = document
        .split_once(BEGIN)
        .unwrap_or_else(|| panic!("docs/reference/api.md lacks {BEGIN:?}"));
    let (written, after) =
        rest.split_once(END).unwrap_or_else(|| panic!("docs/reference/api.md lacks {END:?}"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", table())).unwrap();
        return;
    }
    assert_eq!(
        written,
        table(),
        "docs/reference/api.md is old: run this test with UPDATE_GOLDEN=1 and look at the difference"
    );
}
