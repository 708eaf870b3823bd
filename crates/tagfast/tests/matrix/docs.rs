//! `docs/operate/what-is-noticed.md` has the table of cells and of bounds; this keeps it true.

use std::fmt::Write as _;

use crate::cells::{CELLS, Cell, Source};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operate/what-is-noticed.md");
const BEGIN: &str = "<!-- cells: made from the test, see crates/tagfast/tests/matrix/docs.rs -->\n";
const END: &str = "<!-- end of cells -->\n";

fn row(cell: &Cell) -> String {
    let sources: Vec<&str> = cell.sources.iter().map(|source| source.name()).collect();
    let sources = if sources.is_empty() { "writes".to_owned() } else { sources.join(", ") };
    let named =
        if cell.named.is_empty() { "-".to_owned() } else { format!("{} s", cell.named_within_s) };
    let run = if cell.quick.is_some() { "every run" } else { "`--full`" };
    let (way, what, healed) = (cell.way, cell.what, cell.healed_within_s);
    format!("| {way} | {what} | {sources} | {named} | {healed} s | {run} |")
}

fn tables() -> String {
    let mut text = String::from(
        "\n| source | asked by | an unmarked answer lacks nothing older than |\n|---|---|---|\n",
    );
    for source in Source::ALL {
        let bound = match source.bound_ms() {
            0 => "its own question".to_owned(),
            ms => format!("{} s", ms / 1_000),
        };
        let _ = writeln!(text, "| {} | {} | {bound} |", source.name(), source.call());
    }
    text.push_str(
        "\n| feed is | because | touches | named within | well again within | tested in |\n\
         |---|---|---|---|---|---|\n",
    );
    let mut rows: Vec<&Cell> = CELLS.iter().collect();
    rows.sort_by_key(|cell| cell.way);
    for cell in rows {
        text.push_str(&row(cell));
        text.push('\n');
    }
    text.push('\n');
    text
}

#[test]
fn the_table_of_cells_is_documented() {
    let page = std::fs::read_to_string(PAGE).expect("the page");
    let (before, rest) = page.split_once(BEGIN).expect("the page has the begin of the table");
    let (written, after) = rest.split_once(END).expect("the page has the end of the table");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(PAGE, format!("{before}{BEGIN}{}{END}{after}", tables())).expect("written");
        return;
    }
    assert_eq!(
        written,
        tables(),
        "docs/operate/what-is-noticed.md is old: run this test with UPDATE_GOLDEN=1 and look at \
         the difference"
    );
}
