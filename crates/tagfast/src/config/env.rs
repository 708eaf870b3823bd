//! The environment as a source of configuration: `TAGFAST__SECTION__KEY`.
//!
//! The environment comes in as a map, so that tests need not change the process. A variable with
//! our prefix that names no key is refused: a misspelt limit that silently has no effect would be
//! found during an outage. A variable of a key that is empty or blank counts as not set.

use std::collections::BTreeMap;

use super::key::{ENV_PREFIX, Key, Kind};
use super::keys::{KEYS, find, suggest};
use super::renamed;

/// The process's variables that are meant for the configuration.
pub fn of_process() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            name.starts_with(ENV_PREFIX).then(|| (name, value.to_string_lossy().into_owned()))
        })
        .collect()
}

/// The keys that `env` sets, as TOML values of the keys' types; all errors at once.
pub fn parse(
    env: &BTreeMap<String, String>,
) -> (Vec<(&'static Key, String, toml::Value)>, Vec<String>) {
    let (mut set, mut errors) = (Vec::new(), Vec::new());
    for (name, text) in env {
        let Some(path) = name.strip_prefix(ENV_PREFIX) else { continue };
        let path = path.to_lowercase();
        let (section, key_name) = path.split_once("__").unwrap_or((&path, ""));
        let Some(key) = find(section, key_name) else {
            errors.push(renamed::env_message(section, key_name).unwrap_or_else(|| unknown(name)));
            continue;
        };
        // One rule for all keys: an empty variable is as good as none.
        if text.trim().is_empty() {
            continue;
        }
        // What was not UTF-8 came in with this character in its place: another path, or another
        // password.
        if text.contains(char::REPLACEMENT_CHARACTER) {
            errors.push(format!("environment variable {name}: the value is not UTF-8"));
            continue;
        }
        match value(key.kind, text) {
            Ok(value) => set.push((key, name.clone(), value)),
            Err(given) => {
                errors.push(format!(
                    "environment variable {name}: expected a {}, got {:?}",
                    key.kind.as_str(),
                    key.shown(&given)
                ));
            }
        }
    }
    (set, errors)
}

fn unknown(name: &str) -> String {
    let names: Vec<String> = KEYS.iter().map(Key::env_name).collect();
    match suggest(name, names.iter().map(String::as_str)) {
        Some(near) => {
            format!("environment variable {name} is not a configuration key; did you mean {near}?")
        }
        None => format!(
            "environment variable {name} is not a configuration key; `tagfast config docs` lists them"
        ),
    }
}

/// A text as a TOML value of `kind`; `Err` returns the text.
pub fn value(kind: Kind, text: &str) -> Result<toml::Value, String> {
    let trimmed = text.trim();
    let given = || text.to_owned();
    match kind {
        Kind::Text | Kind::Choice(_) | Kind::Address | Kind::Webhook => {
            Ok(toml::Value::String(text.to_owned()))
        }
        Kind::Number(..) => {
            let number: i64 = trimmed.replace('_', "").parse().map_err(|_| given())?;
            if number < 0 { Err(given()) } else { Ok(toml::Value::Integer(number)) }
        }
        Kind::Fraction(..) => {
            let number: f64 = trimmed.parse().map_err(|_| given())?;
            if number.is_finite() { Ok(toml::Value::Float(number)) } else { Err(given()) }
        }
        Kind::Flag => trimmed.parse().map(toml::Value::Boolean).map_err(|_| given()),
        Kind::List | Kind::Addresses => {
            let items = trimmed.split(',').map(str::trim).filter(|s| !s.is_empty());
            Ok(toml::Value::Array(items.map(|s| toml::Value::String(s.to_owned())).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn values_take_the_key_s_type() {
        let (set, errors) = parse(&map(&[
            ("TAGFAST__SERVER__MAX_CONNECTIONS", "1_000"),
            ("TAGFAST__KAFKA__TLS", "true"),
            ("TAGFAST__KAFKA__BROKERS", "a:1, b:2"),
            ("TAGFAST__STORE__DATA_DIR", "/x y"),
            ("TAGFAST_URL", "not ours"),
        ]));
        assert_eq!(errors, Vec::<String>::new());
        let got: BTreeMap<String, String> =
            set.into_iter().map(|(k, _, v)| (k.path(), v.to_string())).collect();
        assert_eq!(got["server.max_connections"], "1000");
        assert_eq!(got["kafka.tls"], "true");
        assert_eq!(got["kafka.brokers"], "[\"a:1\", \"b:2\"]");
        assert_eq!(got["store.data_dir"], "\"/x y\"");
        assert_eq!(got.len(), 4);
    }

    #[test]
    fn unknown_names_and_wrong_types_are_all_reported() {
        let (set, errors) = parse(&map(&[
            ("TAGFAST__SERVER__LISTEM", "x"),
            ("TAGFAST__KAFKA__TLS", "maybe"),
            ("TAGFAST__SERVER__MAX_CONNECTIONS", "-1"),
        ]));
        assert!(set.is_empty());
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(
            errors.iter().any(|e| e.contains("did you mean TAGFAST__SERVER__LISTEN?")),
            "{errors:?}"
        );
        assert!(
            errors.iter().any(|e| e.contains("TAGFAST__KAFKA__TLS") && e.contains("true or false"))
        );
    }

    #[test]
    fn an_empty_variable_counts_as_not_set_for_every_key() {
        for key in KEYS {
            for empty in ["", " ", "\t\n"] {
                let found = parse(&map(&[(&key.env_name(), empty)]));
                assert!(found.0.is_empty() && found.1.is_empty(), "{}: {found:?}", key.path());
            }
        }
        let (_, errors) = parse(&map(&[("TAGFAST__SERVER__LISTEM", "")]));
        assert_eq!(errors.len(), 1, "a name that is no key is refused all the same");
    }

    #[test]
    fn an_old_name_is_refused_with_the_new_one() {
        let (set, errors) =
            parse(&map(&[("TAGFAST__STORE__LANES", "2"), ("TAGFAST__DRILLS__ENABLED", "true")]));
        assert!(set.is_empty());
        assert!(errors[0].contains("TAGFAST__DRILLS__ENABLED is gone"), "{errors:?}");
        assert!(errors[1].contains("now called TAGFAST__STORE__WRITER_CONNECTIONS"), "{errors:?}");
    }
}
