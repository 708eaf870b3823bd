//! Pages for people, rendered from the OpenAPI document: nothing is loaded from elsewhere, nothing
//! runs in the browser.

use std::fmt::Write;

use serde_json::Value;

use crate::problem::{PROBLEM_CODES, ProblemCode};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
h1,h2,h3{line-height:1.2}code,pre{font:14px/1.4 ui-monospace,monospace;background:#f3f3f5;border-radius:4px}\
code{padding:.1em .3em}pre{padding:.8em;overflow:auto}details{border:1px solid #ddd;border-radius:6px;margin:.5em 0;padding:.5em .8em}\
summary{cursor:pointer}table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.3em .5em;text-align:left;vertical-align:top}\
.m{display:inline-block;min-width:4.5em;font-weight:700}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#16161a}code,pre{background:#26262c}details,td,th{border-color:#444}a{color:#8ab4f8}}";

/// The page of all routes.
pub(crate) fn page(openapi: &[u8]) -> String {
    let api: Value = serde_json::from_slice(openapi).unwrap_or_default();
    let mut out = head(text(&api["info"]["title"]));
    let _ = write!(
        out,
        "<h1>{} {}</h1><p>{}</p><p>Machine readable: <a href=\"/openapi.json\">/openapi.json</a>. <a href=\"#problems\">Problem codes</a>.</p>",
        escape(text(&api["info"]["title"])),
        escape(text(&api["info"]["version"])),
        escape(text(&api["info"]["description"])),
    );
    for tag in api["tags"].as_array().into_iter().flatten() {
        let name = text(&tag["name"]);
        let _ =
            write!(out, "<h2>{}</h2><p>{}</p>", escape(name), escape(text(&tag["description"])));
        for (path, item) in api["paths"].as_object().into_iter().flatten() {
            for method in ["get", "put", "post", "patch", "delete"] {
                let operation = &item[method];
                if operation["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == name)) {
                    route(&mut out, &api, path, method, operation);
                }
            }
        }
    }
    out.push_str("<h2 id=\"problems\">Problem codes</h2><table><tr><th>Code</th><th>Status</th><th>Meaning</th><th>What to do</th></tr>");
    for row in PROBLEM_CODES {
        let _ = write!(
            out,
            "<tr><td><a href=\"/docs/problems/{0}\"><code>{0}</code></a></td><td>{1}</td><td>{2}</td><td>{3}</td></tr>",
            row.code,
            row.status,
            escape(row.meaning),
            escape(row.action)
        );
    }
    out.push_str("</table></body></html>");
    out
}

/// The page of one problem code.
pub(crate) fn problem(row: &ProblemCode) -> String {
    let mut out = head(row.code);
    let _ = write!(
        out,
        "<h1>{}</h1><p><code>{}</code>, status {}</p><h2>When</h2><p>{}</p><h2>What to do</h2><p>{}</p>\
         <p><a href=\"/docs#problems\">All codes</a></p></body></html>",
        escape(row.title),
        row.code,
        row.status,
        escape(row.meaning),
        escape(row.action)
    );
    out
}

fn head(title: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{}</title><style>{STYLE}</style></head><body>",
        escape(title)
    )
}

fn route(out: &mut String, api: &Value, path: &str, method: &str, operation: &Value) {
    let _ = write!(
        out,
        "<details><summary><span class=\"m\">{}</span> <code>{}</code> {}</summary><p>{}</p>",
        method.to_uppercase(),
        escape(path),
        escape(text(&operation["summary"])),
        escape(text(&operation["description"])),
    );
    if let Some(parameters) = operation["parameters"].as_array() {
        out.push_str("<table><tr><th>Parameter</th><th>In</th><th>Meaning</th></tr>");
        for p in parameters {
            let _ = write!(
                out,
                "<tr><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
                escape(text(&p["name"])),
                escape(text(&p["in"])),
                escape(text(&p["description"]))
            );
        }
        out.push_str("</table>");
    }
    schema(out, api, "Body", &operation["requestBody"]["content"]);
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        if status.starts_with('2') {
            schema(out, api, &format!("Answer {status}"), &response["content"]);
        }
    }
    out.push_str("<table><tr><th>Status</th><th>Meaning</th></tr>");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td></tr>",
            escape(status),
            escape(text(&response["description"]))
        );
    }
    out.push_str("</table></details>");
}

/// A media type's schema as an example-like outline.
fn schema(out: &mut String, api: &Value, title: &str, content: &Value) {
    for (media, body) in content.as_object().into_iter().flatten() {
        let mut shape = String::new();
        outline(&mut shape, api, &body["schema"], 0);
        let _ = write!(
            out,
            "<p>{} <code>{}</code></p><pre>{}</pre>",
            escape(title),
            escape(media),
            escape(&shape)
        );
    }
}

fn outline(out: &mut String, api: &Value, schema: &Value, depth: usize) {
    let pad = "  ".repeat(depth + 1);
    if depth > 6 {
        out.push('…');
    } else if let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
        outline(out, api, &api["components"]["schemas"][name], depth);
    } else if let Some(options) = schema["oneOf"].as_array().or_else(|| schema["allOf"].as_array())
    {
        for (i, option) in options.iter().enumerate() {
            out.push_str(if i > 0 { " | " } else { "" });
            outline(out, api, option, depth);
        }
    } else if let Some(properties) = schema["properties"].as_object() {
        out.push_str("{\n");
        for (name, property) in properties {
            let _ = write!(out, "{pad}\"{name}\": ");
            outline(out, api, property, depth + 1);
            if let Some(description) = property["description"].as_str() {
                let _ = write!(out, "  // {}", description.lines().next().unwrap_or_default());
            }
            out.push('\n');
        }
        let _ = write!(out, "{}}}", "  ".repeat(depth));
    } else if !schema["items"].is_null() {
        out.push('[');
        outline(out, api, &schema["items"], depth);
        out.push_str(", …]");
    } else {
        match schema["type"].as_array() {
            Some(types) => out.push_str(&types.iter().map(text).collect::<Vec<_>>().join(" | ")),
            None => out.push_str(schema["type"].as_str().unwrap_or("any")),
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
