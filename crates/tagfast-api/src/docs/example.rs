//! The example of a call: a `curl` command, made from the examples of its path and query parameters
//! and of its request body, and what it answers.

use std::borrow::Cow;
use std::fmt::Write;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::Value;

use super::outline::resolve;

/// Where the examples expect the service: the default of `server.listen`.
const BASE_URL: &str = "http://127.0.0.1:7070";
/// The status of a call whose answers are not described.
const OK: &str = "200";

/// What a path segment must not contain as it is; the other characters of the examples are their
/// own.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'/').add(b'?');

/// An example of a call.
pub(super) struct Example {
    /// The command, ready to copy into a shell.
    pub(super) command: String,
    /// The status of the answer.
    pub(super) status: String,
    /// The media type of the answer; `None`: it has no body.
    pub(super) media_type: Option<String>,
}

impl Example {
    /// The example of an operation of the OpenAPI document `api`.
    pub(super) fn new(api: &Value, method: &str, path: &str, operation: &Value) -> Self {
        let query = example_query(operation);
        let mut command = String::from("curl");
        if method != "get" {
            let _ = write!(command, " -X {}", method.to_uppercase());
        } else if !query.is_empty() {
            command.push_str(" -G");
        }
        let url = format!("{BASE_URL}{}", example_path(path, operation));
        let _ = write!(command, " {}", shell_word(&url));
        for pair in query {
            let _ = write!(command, " \\\n  --data-urlencode {}", shell_word(&pair));
        }
        if let Some(body) = example_body(api, operation) {
            let _ = write!(
                command,
                " \\\n  -H 'Content-Type: application/json' \\\n  -d {}",
                shell_quoted(&body)
            );
        }
        let responses = operation["responses"].as_object();
        let status = responses
            .and_then(|all| all.keys().find(|status| status.starts_with('2')))
            .map_or(OK, String::as_str);
        let content = operation["responses"][status]["content"].as_object();
        let media_type = content.and_then(|content| content.keys().next().cloned());
        Self { command, status: status.to_owned(), media_type }
    }
}

/// The path with the examples of its parameters.
fn example_path(path: &str, operation: &Value) -> String {
    let mut out = path.to_owned();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        if parameter["in"] == "path"
            && let (Some(name), Some(example)) =
                (parameter["name"].as_str(), parameter["example"].as_str())
        {
            let segment = utf8_percent_encode(example, ENCODED).to_string();
            out = out.replace(&format!("{{{name}}}"), &segment);
        }
    }
    out
}

/// The query parameters that have an example, as `name=value`; without times, which would have to
/// fit the data.
fn example_query(operation: &Value) -> Vec<String> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let pair = |parameter: &Value| {
        let is_time = parameter["schema"]["format"] == "date-time";
        if parameter["in"] != "query" || is_time {
            return None;
        }
        let (name, example) = (parameter["name"].as_str()?, parameter.get("example")?);
        let value = example.as_str().map_or_else(|| example.to_string(), str::to_owned);
        Some(format!("{name}={value}"))
    };
    parameters.filter_map(pair).collect()
}

/// The example of the request body; `None`: the call takes none.
fn example_body(api: &Value, operation: &Value) -> Option<String> {
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    let schema = resolve(api, schema).unwrap_or(schema);
    schema.get("example").map(Value::to_string)
}

/// A word of a shell command, quoted only if that is needed.
fn shell_word(text: &str) -> Cow<'_, str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/:.-_%+=,@".contains(&b);
    if text.bytes().all(plain) { Cow::Borrowed(text) } else { shell_quoted(text).into() }
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_command_has_the_examples_of_path_query_and_body() {
        let api = json!({"components": {"schemas": {"B": {"example": {"reason": "it's a test"}}}}});
        let operation = json!({
            "parameters": [{"in": "path", "name": "id", "example": "a/1"}],
            "requestBody": {"content": {"application/json": {
                "schema": {"$ref": "#/components/schemas/B"},
            }}},
            "responses": {"200": {"content": {"application/json": {}}}, "400": {}},
        });
        let example = Example::new(&api, "post", "/v1/x/{id}", &operation);
        assert_eq!(
            example.command,
            "curl -X POST http://127.0.0.1:7070/v1/x/a%2F1 \\\n  \
             -H 'Content-Type: application/json' \\\n  -d '{\"reason\":\"it'\\''s a test\"}'"
        );
        assert_eq!(example.status, "200");
        assert_eq!(example.media_type.as_deref(), Some("application/json"));
        let search = json!({"responses": {}, "parameters": [
            {"in": "query", "name": "q", "example": "a AND b"},
            {"in": "query", "name": "limit", "example": 20},
            {"in": "query", "name": "cursor"},
            {"in": "query", "name": "from", "example": "x", "schema": {"format": "date-time"}},
        ]});
        assert_eq!(
            Example::new(&api, "get", "/v1/search", &search).command,
            "curl -G http://127.0.0.1:7070/v1/search \\\n  --data-urlencode 'q=a AND b' \\\n  \
             --data-urlencode limit=20"
        );
    }
}
