//! `config docs` and `config print`: both made from the table of keys.

use super::keys::{KEYS, Kind, SECTIONS, Scope};
use super::raw::{Source, Sources};

/// The reference of all keys as Markdown: the content of `docs/configuration.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         <!-- Made by `tagfast config docs`; change crates/tagfast/src/config/keys.rs instead. -->\n\n\
         `tagfast serve --config tagfast.toml` reads TOML. Each key can also be set in the environment as\n\
         `TAGFAST__SECTION__KEY`; flags of the command line win over the environment, the environment over the file.\n\
         Unknown keys are refused, in the file and in the environment. Secrets are only read from files.\n\n\
         `tagfast config check --config F` judges a configuration without starting anything, `tagfast config print`\n\
         shows the effective one with the source of each value.\n",
    );
    for (section, about) in SECTIONS {
        out.push_str(&format!("\n## [{section}]\n\n{about}\n"));
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
            out.push_str(&format!(
                "\n### `{}`\n\n{}, default {default}; in the environment `{}`.{scope}\n\n{}\n\n{}\n",
                key.path(),
                capitalised(key.kind),
                key.env_name(),
                key.doc,
                key.wrong,
            ));
        }
    }
    out
}

fn capitalised(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "Text",
        Kind::Number => "Whole number",
        Kind::Fraction => "Number",
        Kind::Flag => "`true` or `false`",
        Kind::List => "List of texts (in the environment separated by commas)",
    }
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
                    let value = if key.may_hold_secret() { redacted(value) } else { value };
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
                    let value = if key.may_hold_secret() { redacted(value) } else { value };
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

/// A URL without its password.
fn redacted(value: toml::Value) -> toml::Value {
    let Some(url) = value.as_str() else { return value };
    let Some((scheme, rest)) = url.split_once("://") else { return value };
    match rest.rsplit_once('@') {
        Some((_, host)) => toml::Value::String(format!("{scheme}://***@{host}")),
        None => value,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::config::raw::gather;

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
        assert_eq!(again.raw.kafka.brokers, Some(vec!["a:1".to_owned()]));
        assert_eq!(again.raw.server.max_connections, Some(10_000));
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
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap();
        assert!(
            page == markdown(),
            "docs/configuration.md is old: run this test with UPDATE_GOLDEN=1 and look at the difference"
        );
    }
}
