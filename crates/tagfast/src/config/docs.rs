//! `config docs` and `config print`, both made from the table of keys.

use super::key::Scope;
use super::keys::{KEYS, SECTIONS};
use super::values::{Source, Sources};

/// Widest line of the reference, in characters.
const LINE_CHARS_MAX: usize = 100;

/// The reference of all keys as Markdown: the content of `docs/reference/configuration.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         <!-- Made by `tagfast config docs`; change crates/tagfast/src/config/keys.rs instead. -->\n\n\
         `tagfast serve --config tagfast.toml` reads TOML. Each key can also be set in the\n\
         environment as `TAGFAST__SECTION__KEY`; flags of the command line win over the\n\
         environment, the environment over the file. Unknown keys are refused, in the file and in\n\
         the environment; a key that had a different name in an earlier version is refused with\n\
         its new name. An environment variable that is empty or blank counts as not set, for every\n\
         key and for `TAGFAST_CONFIG`, `TAGFAST_URL` and `TAGFAST_TOKEN`; an empty text in the file\n\
         or after a flag is refused.\n\n\
         Passwords, keys and secrets are read from files, or stand in URLs; no output shows them:\n\
         users, passwords and query values of URLs, and the path of a webhook, are printed as\n\
         `***`. A file with a secret should have mode 0600: one that other users can read is used\n\
         with a warning, because mounted secrets of containers cannot be narrower.\n\n\
         `tagfast config check --config F` finds what `tagfast serve` would refuse, files and\n\
         certificates among it, without starting anything,\n\
         `tagfast config print` shows the effective one with the source of each value.\n",
    );
    for (section, about) in SECTIONS {
        out.push_str(&format!("\n## [{section}]\n\n{}\n", wrapped(about)));
        for key in KEYS.iter().filter(|k| k.section == *section) {
            let default = if key.default.is_empty() {
                "not set".to_owned()
            } else {
                format!("`{}`", key.default)
            };
            let scope = match key.scope {
                Scope::Both => "",
                Scope::Embedded => " Only with `store.kind = \"embedded\"`.",
                Scope::Cluster => {
                    " Only with `store.kind = \"postgres\"`; no effect in embedded mode."
                }
            };
            let facts = format!(
                "{}, default {default}; in the environment `{}`.{scope}",
                key.kind.describe(),
                key.env_name(),
            );
            out.push_str(&format!(
                "\n### `{}`\n\n{}\n\n{}\n\n{}\n",
                key.path(),
                wrapped(&facts),
                wrapped(key.doc),
                wrapped(key.wrong),
            ));
        }
    }
    out
}

/// A paragraph in lines of at most [`LINE_CHARS_MAX`]; a longer word stays whole.
fn wrapped(paragraph: &str) -> String {
    let (mut text, mut width) = (String::new(), 0);
    for word in paragraph.split_whitespace() {
        let chars = word.chars().count();
        if width > 0 && width + 1 + chars > LINE_CHARS_MAX {
            text.push('\n');
            width = 0;
        }
        if width > 0 {
            text.push(' ');
            width += 1;
        }
        text.push_str(word);
        width += chars;
    }
    text
}

/// The effective configuration as TOML, each value with its source as a comment.
pub fn effective(sources: &Sources) -> String {
    let mut out = String::new();
    for (section, _) in SECTIONS {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("[{section}]\n"));
        for key in KEYS.iter().filter(|k| k.section == *section) {
            match sources.effective(key) {
                Some((value, source)) => {
                    let value = key.shown_value(value);
                    out.push_str(&format!("{} = {value} # {source}\n", key.name));
                }
                None => out.push_str(&format!("# {} is not set\n", key.name)),
            }
        }
    }
    out
}

/// The effective configuration as JSON: `{"section": {"key": {"value", "source"}}}`.
pub fn effective_json(sources: &Sources) -> serde_json::Value {
    let mut out = serde_json::Map::new();
    for (section, _) in SECTIONS {
        let mut table = serde_json::Map::new();
        for key in KEYS.iter().filter(|k| k.section == *section) {
            let (value, source) = match sources.effective(key) {
                Some((value, source)) => {
                    let value = key.shown_value(value);
                    (serde_json::to_value(value).unwrap_or_default(), source)
                }
                None => (serde_json::Value::Null, Source::Default),
            };
            table.insert(
                key.name.to_owned(),
                serde_json::json!({"value": value, "source": source.to_string()}),
            );
        }
        out.insert((*section).to_owned(), table.into());
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::config::keys::find;
    use crate::config::sources::gather;

    #[test]
    fn the_effective_configuration_is_a_configuration_and_hides_passwords() {
        let file =
            "[cache]\nredis_url = \"redis://me:geheim@host:1/0\"\n[kafka]\nbrokers = [\"a:1\"]\n";
        let sources = gather(Some((Path::new("t.toml"), file)), &BTreeMap::new(), &[]).unwrap();
        let text = effective(&sources);
        assert!(text.contains("redis_url = \"redis://***@host:1/0\" # file"), "{text}");
        assert!(
            !text.contains("geheim") && !effective_json(&sources).to_string().contains("geheim")
        );
        let again = gather(Some((Path::new("p.toml"), &text)), &BTreeMap::new(), &[]).unwrap();
        let value = |section, name| again.effective(find(section, name).unwrap()).unwrap().0;
        assert_eq!(value("kafka", "brokers").to_string(), "[\"a:1\"]");
        assert_eq!(value("server", "max_connections").to_string(), "10000");
    }

    #[test]
    fn the_reference_names_every_key() {
        let text = markdown();
        for key in KEYS {
            assert!(
                text.contains(&format!("### `{}`", key.path())) && text.contains(&key.env_name())
            );
        }
    }

    #[test]
    fn the_page_in_docs_is_this_reference() {
        crate::golden::assert_page("configuration.md", &markdown());
    }
}
