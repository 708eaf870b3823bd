//! The reference of all calls.

use std::fmt::Write;

use serde_json::Value;

use super::example::Example;
use super::html::{escape, inline_markdown, markdown, page};
use super::outline::outline;
use super::problems::{link, table_row};
use crate::problem::PROBLEM_CODES;

const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];

/// One call of the OpenAPI document.
struct Call<'a> {
    path: &'a str,
    method: &'static str,
    operation: &'a Value,
}

impl Call<'_> {
    /// The anchor of the call: `get-v1-tags-tag` for `GET /v1/tags/{tag}`.
    fn anchor(&self) -> String {
        let words = self.path.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.fold(self.method.to_owned(), |anchor, word| format!("{anchor}-{word}"))
    }

    fn method(&self) -> String {
        self.method.to_uppercase()
    }
}

/// The page of all calls; `openapi` is the OpenAPI document as JSON.
pub(crate) fn reference_page(openapi: &[u8]) -> String {
    let api: Value = tagfast_json::from_slice(openapi).unwrap_or_default();
    let title = text(&api["info"]["title"]);
    let mut out = format!(
        "<h1>{} {}</h1>{}<p>Machine-readable: <a href=\"/openapi.json\">/openapi.json</a>. \
         With authentication, add <code>-H \"Authorization: Bearer $TOKEN\"</code> to the examples \
         that are not under <a href=\"#open\">open</a>. \
         <a href=\"#problems\">Problem codes</a>.</p>",
        escape(title),
        escape(text(&api["info"]["version"])),
        markdown(text(&api["info"]["description"])),
    );
    table_of_contents(&mut out, &api);
    for tag in api["tags"].as_array().into_iter().flatten() {
        let name = text(&tag["name"]);
        let _ = write!(
            out,
            "<h2 id=\"{0}\">{0}</h2><p>{1}</p>",
            escape(name),
            inline_markdown(text(&tag["description"]))
        );
        for call in calls(&api, name) {
            section(&mut out, &api, &call);
        }
    }
    out.push_str(
        "<h2 id=\"problems\">Problem codes</h2><table><tr><th>Code</th><th>Status</th>\
         <th>Meaning</th><th>What to do</th></tr>",
    );
    PROBLEM_CODES.iter().for_each(|row| out.push_str(&table_row(row)));
    out.push_str("</table>");
    page(title, &out)
}

/// The calls with this tag, by path and method.
fn calls<'a>(api: &'a Value, tag: &str) -> Vec<Call<'a>> {
    let mut calls = Vec::new();
    for (path, item) in api["paths"].as_object().into_iter().flatten() {
        for method in METHODS {
            let operation = &item[method];
            if operation["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == tag)) {
                calls.push(Call { path, method, operation });
            }
        }
    }
    calls
}

fn table_of_contents(out: &mut String, api: &Value) {
    out.push_str("<nav><ul>");
    for tag in api["tags"].as_array().into_iter().flatten() {
        for call in calls(api, text(&tag["name"])) {
            let _ = write!(
                out,
                "<li><a href=\"#{}\">{} {}</a></li>",
                call.anchor(),
                call.method(),
                escape(call.path)
            );
        }
    }
    out.push_str("<li><a href=\"#problems\">Problem codes</a></li></ul></nav>");
}

fn section(out: &mut String, api: &Value, call: &Call<'_>) {
    let operation = call.operation;
    let anchor = call.anchor();
    let _ = write!(
        out,
        "<section id=\"{anchor}\"><h3><a href=\"#{anchor}\">{} <code>{}</code></a></h3>\
         <p><strong>{}</strong></p>{}",
        call.method(),
        escape(call.path),
        inline_markdown(text(&operation["summary"])),
        markdown(text(&operation["description"])),
    );
    example(out, &Example::new(api, call.method, call.path, operation));
    out.push_str("<details><summary>Parameters, bodies and answers</summary>");
    parameters(out, operation);
    body(out, api, "Body", &operation["requestBody"]["content"]);
    answers(out, api, operation);
    out.push_str("</details>");
    problems(out, operation);
    out.push_str("</section>");
}

fn example(out: &mut String, example: &Example) {
    let media_type = example.media_type.as_ref();
    let media_type = media_type.map(|media| format!(" <code>{}</code>", escape(media)));
    let _ = write!(
        out,
        "<pre class=\"example\">{}</pre><p class=\"answer\">Answers {}{}.</p>",
        escape(&example.command),
        escape(&example.status),
        media_type.unwrap_or_default()
    );
}

fn parameters(out: &mut String, operation: &Value) {
    let Some(parameters) = operation["parameters"].as_array() else { return };
    out.push_str("<table><tr><th>Parameter</th><th>In</th><th>Meaning</th></tr>");
    for parameter in parameters {
        let _ = write!(
            out,
            "<tr><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
            escape(text(&parameter["name"])),
            escape(text(&parameter["in"])),
            inline_markdown(text(&parameter["description"]))
        );
    }
    out.push_str("</table>");
}

/// The outlines of the bodies of these media types.
fn body(out: &mut String, api: &Value, title: &str, content: &Value) {
    for (media_type, body) in content.as_object().into_iter().flatten() {
        let _ = write!(
            out,
            "<p>{} <code>{}</code></p><pre>{}</pre>",
            escape(title),
            escape(media_type),
            escape(&outline(api, &body["schema"]))
        );
    }
}

/// The answers that are no problems.
fn answers(out: &mut String, api: &Value, operation: &Value) {
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        if response["content"]["application/problem+json"].is_object() {
            continue;
        }
        let _ = write!(
            out,
            "<p>{}: {}</p>",
            escape(status),
            inline_markdown(text(&response["description"]))
        );
        body(out, api, "Answer", &response["content"]);
    }
}

/// The problem codes of a call by status, each with a link to its page.
fn problems(out: &mut String, operation: &Value) {
    out.push_str("<details class=\"problems\"><summary>Problem codes</summary><table>");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        if !response["content"]["application/problem+json"].is_object() {
            continue;
        }
        let codes: Vec<String> = PROBLEM_CODES
            .iter()
            .filter(|row| row.status.to_string() == *status)
            .map(link)
            .collect();
        let _ = write!(out, "<tr><td>{}</td><td>{}</td></tr>", escape(status), codes.join(" "));
    }
    out.push_str("</table></details>");
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
