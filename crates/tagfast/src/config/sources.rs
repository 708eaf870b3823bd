//! File, environment and flags joined into one configuration, with the source of each value.
//!
//! Flags win over the environment, the environment over the file, the file over the defaults.
//! Errors name the file's line, the variable or the flag, and all of them are reported at once.

use std::collections::BTreeMap;
use std::path::Path;

use tagfast_resilience::secret::scrubbed;

use super::env;
use super::key::Key;
use super::keys::{KEYS, SECTIONS, SERVER, STORE, find, suggest};
use super::renamed;
use super::values::{Source, Sources};

/// A flag that sets a key.
#[derive(Debug, Clone)]
pub struct Override {
    key: Key,
    flag: &'static str,
    value: String,
}

impl Override {
    /// `--listen` sets `server.listen`.
    pub fn listen(value: String) -> Self {
        Self { key: SERVER.listen.0, flag: "--listen", value }
    }

    /// `--data-dir` sets `store.data_dir`.
    pub fn data_dir(value: String) -> Self {
        Self { key: STORE.data_dir.0, flag: "--data-dir", value }
    }
}

/// Joins all sources without checking ranges. `file` is the path (for messages) and its text.
///
/// # Errors
/// Unknown keys and values of a wrong type, one text each.
pub fn gather(
    file: Option<(&Path, &str)>,
    env: &BTreeMap<String, String>,
    flags: &[Override],
) -> Result<Sources, Vec<String>> {
    let mut sources = Sources::default();
    let mut errors = Vec::new();
    if let Some((path, text)) = file {
        read_file(path, text, &mut sources, &mut errors);
    }
    let (set, env_errors) = env::parse(env);
    errors.extend(env_errors);
    for (key, name, value) in set {
        sources.set(key, value, Source::Env(name));
    }
    for Override { key, flag, value } in flags {
        match env::value(key.kind, value) {
            Ok(_) if value.trim().is_empty() => {
                errors.push(format!("{flag} is empty; leave it out to use the default"));
            }
            Ok(value) => sources.set(key, value, Source::Flag((*flag).to_owned())),
            Err(given) => {
                errors.push(format!("{flag}: expected a {}, got {given:?}", key.kind.as_str()))
            }
        }
    }
    if errors.is_empty() {
        return Ok(sources);
    }
    // The name of an unknown key may be a URL that lost its own.
    Err(errors.iter().map(|error| scrubbed(error).into_owned()).collect())
}

fn read_file(path: &Path, text: &str, sources: &mut Sources, errors: &mut Vec<String>) {
    let at = |span: std::ops::Range<usize>| {
        let line = text.get(..span.start).map_or(0, |before| before.matches('\n').count()) + 1;
        format!("{}:{line}", path.display())
    };
    // Parsed twice: once for the places, once for plain values.
    let parsed = toml::de::DeTable::parse(text).and_then(|spans| Ok((spans, text.parse()?)));
    let (spans, values): (_, toml::Table) = match parsed {
        Ok((spans, values)) => (spans.into_inner(), values),
        Err(e) => {
            errors.push(format!("{}: {}", at(e.span().unwrap_or(0..0)), e.message()));
            return;
        }
    };
    for (section, value) in &spans {
        let section_name: &str = section.get_ref();
        if !SECTIONS.iter().any(|(s, _)| *s == section_name) {
            errors.push(format!("{}: {}", at(section.span()), unknown_section(section_name)));
            continue;
        }
        let Some(table) = value.get_ref().as_table() else {
            errors.push(format!(
                "{}: {section_name} is a section: write [{section_name}]",
                at(section.span())
            ));
            continue;
        };
        for (name, spanned) in table {
            let Some(key) = find(section_name, name.get_ref()) else {
                let message = unknown_key(section_name, name.get_ref());
                errors.push(format!("{}: {message}", at(name.span())));
                continue;
            };
            let Some(value) = values.get(key.section).and_then(|s| s.get(key.name)) else {
                continue;
            };
            if holds_empty(value) {
                errors.push(format!(
                    "{}: {} is empty; remove it to use the default",
                    at(spanned.span()),
                    key.path()
                ));
            } else if key.kind.admits(value) {
                sources.set(key, value.clone(), Source::File);
            } else {
                errors.push(format!(
                    "{}: {}: expected a {}, got {}",
                    at(spanned.span()),
                    key.path(),
                    key.kind.as_str(),
                    key.shown_value(value.clone())
                ));
            }
        }
    }
}

/// Whether a value is an empty text, or has one in its list.
fn holds_empty(value: &toml::Value) -> bool {
    let is_empty = |value: &toml::Value| value.as_str().is_some_and(|text| text.trim().is_empty());
    is_empty(value) || value.as_array().is_some_and(|items| items.iter().any(is_empty))
}

fn unknown_section(section: &str) -> String {
    if let Some(message) = renamed::section_message(section) {
        return message;
    }
    // A key at the top level is most often one that lost its section.
    if let Some(key) = KEYS.iter().find(|k| k.name == section) {
        return format!(
            "unknown key {section}; did you mean {} (below [{}])?",
            key.path(),
            key.section
        );
    }
    match suggest(section, SECTIONS.iter().map(|(s, _)| *s)) {
        Some(near) => format!("unknown section [{section}]; did you mean [{near}]?"),
        None => format!("unknown section [{section}]; `tagfast config docs` lists them"),
    }
}

fn unknown_key(section: &str, name: &str) -> String {
    if let Some(message) = renamed::key_message(section, name) {
        return message;
    }
    let here = suggest(name, KEYS.iter().filter(|k| k.section == section).map(|k| k.name));
    let near = here.map(|n| format!("{section}.{n}")).or_else(|| {
        let elsewhere = KEYS.iter().find(|k| k.name == name)?;
        Some(elsewhere.path())
    });
    match near {
        Some(near) => format!("unknown key {section}.{name}; did you mean {near}?"),
        None => format!("unknown key {section}.{name}; `tagfast config docs` lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather_text(
        text: &str,
        env: &[(&str, &str)],
        flags: &[Override],
    ) -> Result<Sources, Vec<String>> {
        let env: BTreeMap<String, String> =
            env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        gather(Some((Path::new("t.toml"), text)), &env, flags)
    }

    #[test]
    fn flags_win_over_environment_over_file_over_default() {
        let file = "[server]\nlisten = \"127.0.0.1:1\"\nmax_connections = 5\nmax_url_bytes = 6\n";
        let env =
            [("TAGFAST__SERVER__LISTEN", "127.0.0.1:2"), ("TAGFAST__SERVER__MAX_URL_BYTES", "7")];
        let flag = Override::listen("127.0.0.1:3".to_owned());
        let sources = gather_text(file, &env, &[flag]).unwrap();
        let effective = |name| sources.effective(find("server", name).unwrap()).unwrap();
        let text = |text: &str| toml::Value::String(text.to_owned());
        let (env, flag) = ("TAGFAST__SERVER__MAX_URL_BYTES".to_owned(), "--listen".to_owned());
        assert_eq!(effective("listen"), (text("127.0.0.1:3"), Source::Flag(flag)));
        assert_eq!(effective("max_url_bytes"), (toml::Value::Integer(7), Source::Env(env)));
        assert_eq!(effective("max_connections"), (toml::Value::Integer(5), Source::File));
        assert_eq!(effective("max_batch_items"), (toml::Value::Integer(500), Source::Default));
        assert!(!sources.is_set(find("server", "max_batch_items").unwrap()));
    }

    #[test]
    fn unknown_names_are_refused_with_their_line_and_a_suggestion() {
        let errors =
            gather_text("[server]\nlisten = \"x\"\nlisteen = 1\n[stroe]\nkind = 1\n", &[], &[])
                .unwrap_err();
        assert_eq!(
            errors,
            [
                "t.toml:3: unknown key server.listeen; did you mean server.listen?",
                "t.toml:4: unknown section [stroe]; did you mean [store]?",
            ]
        );
        let errors = gather_text("[server]\ndata_dir = \"x\"\n", &[], &[]).unwrap_err();
        assert_eq!(errors, ["t.toml:2: unknown key server.data_dir; did you mean store.data_dir?"]);
        let errors = gather_text("listen = \"x\"\n", &[], &[]).unwrap_err();
        assert!(errors[0].contains("did you mean server.listen (below [server])?"), "{errors:?}");
    }

    #[test]
    fn an_old_name_is_refused_with_its_line_and_the_new_one() {
        let errors =
            gather_text("[drills]\nenabled = true\n[store]\nlanes = 2\n", &[], &[]).unwrap_err();
        assert_eq!(
            errors,
            [
                "t.toml:1: drills.enabled is gone (no code read it); leave it out",
                "t.toml:4: store.lanes is now called store.writer_connections",
            ]
        );
    }

    #[test]
    fn wrong_types_and_broken_files_name_the_line() {
        let errors = gather_text("[server]\n\nmax_connections = \"many\"\n", &[], &[]).unwrap_err();
        assert!(errors[0].starts_with("t.toml:3: "), "{errors:?}");
        assert!(errors[0].contains("expected a whole number"), "{errors:?}");
        let errors = gather_text("[server]\nlisten = \n", &[], &[]).unwrap_err();
        assert!(errors[0].starts_with("t.toml:2: "), "{errors:?}");
        let errors = gather_text("server = 3\n", &[], &[]).unwrap_err();
        assert!(errors[0].contains("write [server]"), "{errors:?}");
    }
}
