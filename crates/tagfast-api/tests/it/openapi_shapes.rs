//! What clients are generated from: rules over the whole OpenAPI document, so that no call that is
//! added later can break them. That tools accept the document, and that the clients work, is the
//! client stage of `cargo xtask test`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// What the calls of an operation id may begin with.
const VERBS: &[&str] = &[
    "add", "allow", "batchGet", "batchTag", "change", "check", "discard", "export", "get", "list",
    "rebuild", "recount", "remove", "replace", "replay", "search", "set",
];

fn document() -> Value {
    serde_json::to_value(tagfast_api::openapi()).unwrap()
}

/// Every operation with its name for messages: `GET /v1/tags`.
fn operations(api: &Value) -> Vec<(String, &Value)> {
    let paths = api["paths"].as_object().unwrap();
    let of_path = |(path, item): (&String, _)| {
        let methods: &serde_json::Map<String, Value> = Value::as_object(item).unwrap();
        let name = |method: &String| format!("{} {path}", method.to_uppercase());
        methods.iter().map(|(method, operation)| (name(method), operation)).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of_path).collect()
}

/// The schema itself, behind any reference.
fn resolved<'a>(api: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(place) => {
            let target = api.pointer(place.strip_prefix('#').unwrap());
            resolved(api, target.unwrap_or_else(|| panic!("{place} is not there")))
        }
        None => schema,
    }
}

/// The properties of a schema and of all parts that it is made of, with the names of the required
/// ones.
fn properties<'a>(
    api: &'a Value,
    schema: &'a Value,
) -> (BTreeMap<&'a str, &'a Value>, Vec<&'a str>) {
    let schema = resolved(api, schema);
    let own = schema["properties"].as_object().into_iter().flatten();
    let mut all: BTreeMap<&str, &Value> = own.map(|(name, value)| (name.as_str(), value)).collect();
    let required = schema["required"].as_array().into_iter().flatten();
    let mut required: Vec<&str> = required.map(|name| name.as_str().unwrap()).collect();
    for part in schema["allOf"].as_array().into_iter().flatten() {
        let (of_part, required_of_part) = properties(api, part);
        all.extend(of_part);
        required.extend(required_of_part);
    }
    (all, required)
}

/// Calls `look` with every object of the document and its place.
fn walk<'a>(value: &'a Value, at: &str, look: &mut impl FnMut(&str, &'a Value)) {
    match value {
        Value::Object(map) => {
            look(at, value);
            map.iter().for_each(|(name, inner)| walk(inner, &format!("{at}/{name}"), look));
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(n, inner)| walk(inner, &format!("{at}/{n}"), look));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Every schema that answers are made of, with its place.
fn answer_schemas(api: &Value) -> Vec<(String, &Value)> {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    let mut next: Vec<(String, &Value)> = Vec::new();
    for (name, operation) in operations(api) {
        next.push((format!("{name} answer"), &operation["responses"]));
    }
    while let Some((place, value)) = next.pop() {
        walk(value, &place, &mut |at, schema| {
            if let Some(target) = schema["$ref"].as_str()
                && seen.insert(target.to_owned())
            {
                next.push((target.to_owned(), resolved(api, schema)));
            }
            found.push((at.to_owned(), schema));
        });
    }
    found
}

fn is_nullable(schema: &Value) -> bool {
    let is_null = |kind: &Value| *kind == "null";
    let parts = schema["oneOf"].as_array().into_iter().flatten();
    schema["type"].as_array().is_some_and(|types| types.iter().any(is_null))
        || is_null(&schema["type"])
        || parts.into_iter().any(|part| is_null(&part["type"]))
}

/// The words of a pattern that only lists words: `^(a|b)$` or `^a$`.
fn listed_words(pattern: &str) -> Option<Vec<&str>> {
    let inner = pattern.strip_prefix('^')?.strip_suffix('$')?;
    let inner = inner.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(inner);
    let words: Vec<&str> = inner.split('|').collect();
    let plain = |word: &&str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
    };
    words.iter().all(plain).then_some(words)
}

/// Whether a description only lists values: `` `a`, `b` or `c`. ``.
fn lists_values(description: &str) -> bool {
    let sentence = description.split(['.', ';', ':']).next().unwrap_or_default();
    let parts: Vec<&str> = sentence.split('`').collect();
    // Even parts are outside of the backticks.
    parts.len() > 3
        && parts.iter().step_by(2).all(|outside| ["", ",", "or", "and"].contains(&outside.trim()))
}

#[test]
fn operation_ids_are_unique_verbs_with_a_noun() {
    let api = document();
    let mut seen: BTreeMap<&str, String> = BTreeMap::new();
    for (name, operation) in operations(&api) {
        let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{name} has no id"));
        let noun = VERBS.iter().filter_map(|verb| id.strip_prefix(verb)).min_by_key(|s| s.len());
        let noun = noun.unwrap_or_else(|| panic!("{name}: {id} begins with no verb of the list"));
        assert!(
            noun.starts_with(|c: char| c.is_ascii_uppercase())
                && noun.chars().all(|c| c.is_ascii_alphanumeric()),
            "{name}: {id} is not verbNoun"
        );
        let reads = ["get", "list", "search", "export"].iter().any(|verb| id.starts_with(verb));
        assert_eq!(reads, name.starts_with("GET "), "{name}: {id}");
        // Generators write file names, which some file systems compare without case.
        let other = seen.insert(id, name.clone());
        assert_eq!(other, None, "{id} names {name} too");
    }
    let lower: BTreeSet<String> = seen.keys().map(|id| id.to_lowercase()).collect();
    assert_eq!(lower.len(), seen.len());
}

#[test]
fn closed_sets_are_enums() {
    let api = document();
    walk(&api, "#", &mut |at, schema| {
        if let Some(words) = schema["pattern"].as_str().and_then(listed_words) {
            panic!("{at}: the pattern lists {words:?}: write an enum");
        }
        // A parameter has its description beside its schema.
        let values = if schema["in"].is_string() { &schema["schema"] } else { schema };
        let is_text = values["type"] == "string" || values["type"] == json!(["string", "null"]);
        let description = schema["description"].as_str().unwrap_or_default();
        assert!(
            !is_text || !lists_values(description) || values["enum"].is_array(),
            "{at}: the description lists the values: write an enum"
        );
    });
    let field = |name: &str, field: &str| {
        resolved(&api, &api["components"]["schemas"][name]["properties"][field])["enum"].clone()
    };
    assert_eq!(
        field("Meta", "source"),
        json!(["cache", "primary", "replica", "index", "snapshot"])
    );
    assert_eq!(
        field("Breaker", "state"),
        json!(["closed", "open", "half_open", "forced_open", "forced_closed"])
    );
    assert_eq!(field("Total", "relation"), json!(["eq", "gte"]));
}

#[test]
fn lists_of_values_are_found() {
    for pattern in ["^(a|b_c)$", "^a$", "^(1h|24h)$"] {
        assert!(listed_words(pattern).is_some(), "{pattern}");
    }
    for pattern in ["^[a-z]+$", "\\S", "^(no-cache|max-stale(=[0-9]+)?)$"] {
        assert!(listed_words(pattern).is_none(), "{pattern}");
    }
    assert!(lists_values("`open`, `replayed` or `discarded`; some more."));
    assert!(!lists_values("`null` on the last page."));
    assert!(!lists_values("A `a` or `b` of something."));
}

#[test]
fn every_call_has_a_success_with_a_schema() {
    let api = document();
    for (name, operation) in operations(&api) {
        let responses = operation["responses"].as_object().unwrap();
        let successes: Vec<_> = responses.iter().filter(|(s, _)| s.starts_with('2')).collect();
        assert!(!successes.is_empty(), "{name} has no success");
        for (status, response) in successes {
            let content = response["content"].as_object();
            let content = content.unwrap_or_else(|| panic!("{name} {status} has no content"));
            for (media, body) in content {
                let schema = resolved(&api, &body["schema"]);
                let says = ["type", "oneOf", "allOf"].iter().any(|key| !schema[key].is_null());
                assert!(says, "{name} {status} {media} has no schema");
            }
        }
    }
}

#[test]
fn a_list_always_has_its_next_cursor() {
    let api = document();
    let (mut lists, mut paged) = (0, BTreeSet::new());
    for (name, operation) in operations(&api) {
        let id = operation["operationId"].as_str().unwrap();
        let has_cursor = operation["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|parameter| parameter["in"] == "query" && parameter["name"] == "cursor");
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        let (fields, required) = properties(&api, schema);
        let next = fields.get("next_cursor");
        if has_cursor {
            paged.insert(id);
        }
        let is_list = ["list", "search"].iter().any(|verb| id.starts_with(verb));
        if !is_list && !has_cursor {
            continue;
        }
        lists += 1;
        let next = next.unwrap_or_else(|| panic!("{name} has no next_cursor"));
        assert_eq!(next["type"], json!(["string", "null"]), "{name}");
        assert!(required.contains(&"next_cursor"), "{name} may leave next_cursor out");
    }
    assert!(lists >= 5 && paged.len() >= 3, "{lists} {paged:?}");
}

#[test]
fn a_field_of_an_answer_is_absent_or_null_but_never_both() {
    let api = document();
    let mut nullable = 0;
    for (at, schema) in answer_schemas(&api) {
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let is_required = required.iter().any(|r| r == name.as_str());
            assert!(is_required || !is_nullable(property), "{at}: {name} is absent or null");
            nullable += usize::from(is_nullable(property));
        }
    }
    assert!(nullable > 0, "next_cursor is nullable");
    for (name, operation) in operations(&api) {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(!is_nullable(&parameter["schema"]), "{name}: {} is null", parameter["name"]);
        }
    }
}

#[test]
fn the_alternatives_of_an_answer_are_told_apart_by_a_constant() {
    let api = document();
    let mut unions = 0;
    for (at, schema) in answer_schemas(&api) {
        let Some(options) = schema["oneOf"].as_array() else { continue };
        let objects: Vec<_> = options.iter().filter(|o| o["type"] != "null").collect();
        if objects.len() < 2 {
            continue;
        }
        unions += 1;
        let constants: Vec<BTreeSet<String>> = objects
            .iter()
            .map(|option| {
                let (fields, required) = properties(&api, option);
                let constant = |(name, field): (&&str, &&Value)| {
                    let value = resolved(&api, field).get("const")?.to_string();
                    required.contains(name).then(|| format!("{name}={value}"))
                };
                fields.iter().filter_map(constant).collect()
            })
            .collect();
        for (n, one) in constants.iter().enumerate() {
            assert!(!one.is_empty(), "{at}: alternative {n} has no required constant");
            assert!(constants[n + 1..].iter().all(|other| one != other), "{at}: two are alike");
        }
    }
    assert!(unions >= 2, "the items of both batches");
}

#[test]
fn lines_of_json_are_text_with_the_schema_of_a_line() {
    let api = document();
    let mut found = 0;
    walk(&api, "#", &mut |at, object| {
        let body = &object["application/x-ndjson"];
        if body.is_null() {
            return;
        }
        found += 1;
        let text = resolved(&api, &body["schema"]);
        assert_eq!(text["type"], "string", "{at}");
        assert_eq!(text["contentMediaType"], "application/x-ndjson", "{at}");
        let (fields, required) = properties(&api, &text["contentSchema"]);
        assert!(!fields.is_empty() && !required.is_empty(), "{at}: a line has no schema");
    });
    assert!(found > 0);
}

#[test]
fn the_problem_codes_are_listed_but_not_closed() {
    let api = document();
    let code = &api["components"]["schemas"]["Problem"]["properties"]["code"];
    assert_eq!((&code["type"], &code["enum"]), (&json!("string"), &Value::Null));
    let listed: Vec<&str> =
        code["examples"].as_array().unwrap().iter().map(|code| code.as_str().unwrap()).collect();
    let all: Vec<&str> = tagfast_api::PROBLEM_CODES.iter().map(|row| row.code).collect();
    assert_eq!(listed, all);
}

/// A generated class has a variable for each field and one for itself, in lower case.
#[test]
fn no_schema_has_a_field_of_its_own_name() {
    let api = document();
    for (name, schema) in api["components"]["schemas"].as_object().unwrap() {
        let plain = |name: &str| name.replace('_', "").to_lowercase();
        for (field, of_field) in properties(&api, schema).0 {
            let is_class = of_field["$ref"].is_string();
            assert!(!is_class || plain(field) != plain(name), "{name}.{field}");
        }
    }
}

#[test]
fn times_have_their_format() {
    let api = document();
    for (at, schema) in answer_schemas(&api) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let is_time = *name == "at" || *name == "as_of" || name.ends_with("_at");
            if is_time {
                assert_eq!(property["format"], "date-time", "{at}: {name}");
            }
        }
    }
}

#[test]
fn licence_servers_and_security_are_complete() {
    let api = document();
    assert_eq!(api["openapi"].as_str().unwrap().rsplit_once('.').unwrap().0, "3.1");
    assert_eq!(api["info"]["license"]["identifier"], "MIT OR Apache-2.0");
    assert_eq!(api["servers"][0]["url"], "/");
    let schemes = api["components"]["securitySchemes"].as_object().unwrap();
    for (name, operation) in operations(&api) {
        let security = operation["security"].as_array();
        let security = security.unwrap_or_else(|| panic!("{name} says nothing about security"));
        let open = operation["tags"] == json!(["open"]);
        assert_eq!(security.is_empty(), open, "{name}");
        for scheme in security.iter().flat_map(|one| one.as_object().unwrap().keys()) {
            assert!(schemes.contains_key(scheme), "{name}: {scheme}");
        }
    }
}

#[test]
fn every_reference_leads_to_a_schema_and_every_schema_is_used() {
    let api = document();
    let mut used = BTreeSet::new();
    walk(&api, "#", &mut |_, object| {
        if let Some(place) = object["$ref"].as_str() {
            assert!(resolved(&api, object).is_object(), "{place}");
            used.insert(place.rsplit('/').next().unwrap());
        }
    });
    for name in api["components"]["schemas"].as_object().unwrap().keys() {
        assert!(used.contains(name.as_str()), "{name} is used by no call");
    }
}
