//! The page of one problem code.

use super::html::{escape, inline_markdown, page};
use crate::problem::ProblemCode;

/// The page of this code.
pub(crate) fn problem_page(row: &ProblemCode) -> String {
    let body = format!(
        "<h1>{}</h1><p><code>{}</code>, status {}</p><h2>When</h2><p>{}</p>\
         <h2>What to do</h2><p>{}</p><p><a href=\"/docs#problems\">All codes</a></p>",
        escape(row.title),
        row.code,
        row.status,
        inline_markdown(row.meaning),
        inline_markdown(row.action)
    );
    page(row.code, &body)
}

/// The row of a code in the table of all codes, with links to its page.
pub(super) fn table_row(row: &ProblemCode) -> String {
    format!(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        link(row),
        row.status,
        inline_markdown(row.meaning),
        inline_markdown(row.action)
    )
}

/// The code as a link to its page.
pub(super) fn link(row: &ProblemCode) -> String {
    format!("<a href=\"/docs/problems/{0}\"><code>{0}</code></a>", row.code)
}
