//! The outline of a JSON body: its fields with their types and the first line of their
//! descriptions.

use std::fmt::Write;

use serde_json::Value;

/// Deepest nesting that is shown; the rest becomes an ellipsis.
const DEPTH_MAX: usize = 6;

/// The outline of what a schema describes; `api` is the document that has the named schemas.
pub(super) fn outline(api: &Value, schema: &Value) -> String {
    let mut out = String::new();
    write_outline(&mut out, api, schema, 0);
    out
}

fn write_outline(out: &mut String, api: &Value, schema: &Value, depth: usize) {
    let pad = "  ".repeat(depth + 1);
    if depth > DEPTH_MAX {
        out.push('…');
    } else if let Some(target) = resolve(api, schema) {
        write_outline(out, api, target, depth);
    } else if let Some(options) = schema["oneOf"].as_array().or_else(|| schema["allOf"].as_array())
    {
        for (i, option) in options.iter().enumerate() {
            out.push_str(if i > 0 { " | " } else { "" });
            write_outline(out, api, option, depth);
        }
    } else if let Some(properties) = schema["properties"].as_object() {
        out.push_str("{\n");
        for (name, property) in properties {
            let _ = write!(out, "{pad}\"{name}\": ");
            write_outline(out, api, property, depth + 1);
            if let Some(description) = property["description"].as_str() {
                let _ = write!(out, "  // {}", description.lines().next().unwrap_or_default());
            }
            out.push('\n');
        }
        let _ = write!(out, "{}}}", "  ".repeat(depth));
    } else if !schema["items"].is_null() {
        out.push('[');
        write_outline(out, api, &schema["items"], depth);
        out.push_str(", …]");
    } else {
        match schema["type"].as_array() {
            Some(types) => {
                let types: Vec<&str> = types.iter().filter_map(Value::as_str).collect();
                out.push_str(&types.join(" | "));
            }
            None => out.push_str(schema["type"].as_str().unwrap_or("any")),
        }
    }
}

/// The schema that a `$ref` names; `None`: this is no reference.
pub(super) fn resolve<'a>(api: &'a Value, schema: &Value) -> Option<&'a Value> {
    let name = schema["$ref"].as_str()?.rsplit('/').next()?;
    Some(&api["components"]["schemas"][name])
}
