//! The frame of a page, escaping, and Markdown.

use pulldown_cmark::{Event, Parser, Tag, TagEnd};

/// The style of every page.
pub(crate) const STYLE: &str = "\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#222;background:#fff}\
h1,h2,h3{line-height:1.2}\
code,pre{font:14px/1.4 ui-monospace,monospace;background:#f3f3f5;border-radius:4px}\
code{padding:.1em .3em}pre{padding:.8em;overflow:auto}pre code{padding:0}\
section{border-top:1px solid #ddd;padding:.2em 0 1em}section:target h3{background:#fff3c4}\
h3 a{color:inherit;text-decoration:none}h3 a:hover{text-decoration:underline}\
details{margin:.5em 0}summary{cursor:pointer}nav ul{columns:2;padding-left:1.2em}\
table{border-collapse:collapse;width:100%}\
td,th{border-bottom:1px solid #ddd;padding:.3em .5em;text-align:left;vertical-align:top}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#16161a}code,pre{background:#26262c}\
section,td,th{border-color:#444}section:target h3{background:#4a4220}a{color:#8ab4f8}}";

/// A whole page.
pub(super) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>{}</title><style>{STYLE}</style></head><body>{body}</body></html>",
        escape(title)
    )
}

/// Text as HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Markdown as HTML blocks. HTML in the text is escaped.
pub(super) fn markdown(text: &str) -> String {
    render(text, false)
}

/// Markdown as HTML without the paragraph around it, for a heading or a table cell. HTML in the
/// text is escaped.
pub(super) fn inline_markdown(text: &str) -> String {
    render(text, true)
}

fn render(text: &str, inline: bool) -> String {
    let is_paragraph = |event: &Event<'_>| {
        matches!(event, Event::Start(Tag::Paragraph) | Event::End(TagEnd::Paragraph))
    };
    let events = Parser::new(text).filter(|event| !(inline && is_paragraph(event)));
    let mut out = String::new();
    pulldown_cmark::html::push_html(&mut out, events.map(html_as_text));
    out
}

fn html_as_text(event: Event<'_>) -> Event<'_> {
    if let Event::Html(html) | Event::InlineHtml(html) = event { Event::Text(html) } else { event }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_is_rendered_and_html_is_escaped() {
        assert_eq!(markdown("a `b<c>`\n\nd"), "<p>a <code>b&lt;c&gt;</code></p>\n<p>d</p>\n");
        assert_eq!(inline_markdown("one `x_y` *z*"), "one <code>x_y</code> <em>z</em>");
        for raw in ["<script>x</script>", "<b>x</b> y", "a <img src=x> b"] {
            let html = markdown(raw);
            assert!(!html.contains("<script") && !html.contains("<b>") && !html.contains("<img"));
            assert!(html.contains("&lt;"), "{html}");
        }
    }

    #[test]
    fn a_title_cannot_break_out_of_its_element() {
        assert!(page("</title><script>", "").contains("&lt;/title&gt;&lt;script&gt;"));
    }
}
