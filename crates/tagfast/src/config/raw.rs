//! The first stage: file, environment and flags joined into one [`RawConfig`], with the source of
//! each value.
//!
//! Flags win over the environment, the environment over the file, the file over the defaults.
//! Errors name the file's line, the variable or the flag, and all of them are reported at once.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::env;
use super::keys::{KEYS, Key, RawConfig, SECTIONS, find, suggest};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The table of keys.
    Default,
    /// The configuration file.
    File,
    /// This environment variable.
    Env(String),
    /// This flag of the command line.
    Flag(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A flag that sets a key.
#[derive(Debug, Clone)]
pub struct Override {
    /// Section and name.
    pub path: (&'static str, &'static str),
    /// The flag, as it is written.
    pub flag: &'static str,
    /// The value.
    pub value: String,
}

/// What the sources said, before it is judged.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Every key that something set.
    pub set: BTreeMap<(&'static str, &'static str), (toml::Value, Source)>,
    /// The same, typed.
    pub raw: RawConfig,
}

impl Sources {
    /// The effective value of a key with its source; `None` = unset and without a default.
    pub fn effective(&self, key: &Key) -> Option<(toml::Value, Source)> {
        if let Some((value, source)) = self.set.get(&(key.section, key.name)) {
            return Some((value.clone(), source.clone()));
        }
        let default: toml::Table = format!("v = {}", key.default).parse().ok()?;
        default.get("v").map(|v| (v.clone(), Source::Default))
    }
}

/// Reads all sources. `file` is the path (for messages) and its text.
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
        sources.set.insert((key.section, key.name), (value, Source::Env(name)));
    }
    for flag in flags {
        let key = find(flag.path.0, flag.path.1).expect("flags name keys of the table");
        match env::value(key.kind, &flag.value) {
            Ok(value) => {
                sources
                    .set
                    .insert((key.section, key.name), (value, Source::Flag(flag.flag.to_owned())));
            }
            Err(given) => errors.push(format!(
                "{}: expected a {}, got {given:?}",
                flag.flag,
                key.kind.as_str()
            )),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut table = toml::Table::new();
    for ((section, name), (value, _)) in &sources.set {
        let section =
            table.entry(*section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        if let Some(section) = section.as_table_mut() {
            section.insert((*name).to_owned(), value.clone());
        }
    }
    sources.raw = RawConfig::deserialize(table).map_err(|e| vec![e.to_string()])?;
    Ok(sources)
}

fn read_file(path: &Path, text: &str, sources: &mut Sources, errors: &mut Vec<String>) {
    let at = |span: std::ops::Range<usize>| {
        let line = text.get(..span.start).map_or(0, |before| before.matches('\n').count()) + 1;
        format!("{}:{line}", path.display())
    };
    let spanned = match toml::de::DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(e) => {
            errors.push(format!("{}: {}", at(e.span().unwrap_or(0..0)), e.message()));
            return;
        }
    };
    let before = errors.len();
    for (section, value) in &spanned {
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
        for (name, _) in table {
            if find(section_name, name.get_ref()).is_none() {
                errors.push(format!(
                    "{}: {}",
                    at(name.span()),
                    unknown_key(section_name, name.get_ref())
                ));
            }
        }
    }
    if errors.len() > before {
        return;
    }
    // The types are checked on the text, while positions are known.
    if let Err(e) = toml::from_str::<RawConfig>(text) {
        errors.push(format!("{}: {}", at(e.span().unwrap_or(0..0)), e.message()));
        return;
    }
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(e) => {
            errors.push(format!("{}: {e}", path.display()));
            return;
        }
    };
    for key in KEYS {
        if let Some(value) = table.get(key.section).and_then(|s| s.get(key.name)) {
            sources.set.insert((key.section, key.name), (value.clone(), Source::File));
        }
    }
}

fn unknown_section(section: &str) -> String {
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
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        gather(Some((Path::new("t.toml"), text)), &env, flags)
    }

    #[test]
    fn flags_win_over_environment_over_file_over_default() {
        let file = "[server]\nlisten = \"127.0.0.1:1\"\nmax_connections = 5\nmax_url_bytes = 6\n";
        let env =
            [("TAGFAST__SERVER__LISTEN", "127.0.0.1:2"), ("TAGFAST__SERVER__MAX_URL_BYTES", "7")];
        let flag = Override {
            path: ("server", "listen"),
            flag: "--listen",
            value: "127.0.0.1:3".to_owned(),
        };
        let sources = gather_text(file, &env, &[flag]).unwrap();
        let source = |name| sources.effective(find("server", name).unwrap()).unwrap();
        assert_eq!(source("listen").1, Source::Flag("--listen".to_owned()));
        assert_eq!(sources.raw.server.listen.as_deref(), Some("127.0.0.1:3"));
        assert_eq!(
            source("max_url_bytes").1,
            Source::Env("TAGFAST__SERVER__MAX_URL_BYTES".to_owned())
        );
        assert_eq!(sources.raw.server.max_url_bytes, Some(7));
        assert_eq!(source("max_connections"), (toml::Value::Integer(5), Source::File));
        assert_eq!(source("max_batch_items"), (toml::Value::Integer(500), Source::Default));
        assert_eq!(sources.raw.server.max_batch_items, None);
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
    fn wrong_types_and_broken_files_name_the_line() {
        let errors = gather_text("[server]\n\nmax_connections = \"many\"\n", &[], &[]).unwrap_err();
        assert!(errors[0].starts_with("t.toml:3: "), "{errors:?}");
        let errors = gather_text("[server]\nlisten = \n", &[], &[]).unwrap_err();
        assert!(errors[0].starts_with("t.toml:2: "), "{errors:?}");
        let errors = gather_text("server = 3\n", &[], &[]).unwrap_err();
        assert!(errors[0].contains("write [server]"), "{errors:?}");
    }
}
