//! The table of keys is complete, documented and read.

use std::path::Path;

use super::*;

#[test]
fn every_number_says_what_goes_wrong_in_both_directions() {
    for key in KEYS.iter().filter(|k| matches!(k.kind, Kind::Number(..) | Kind::Fraction(..))) {
        assert!(
            key.wrong.contains("Too high:") && key.wrong.contains("Too low:"),
            "{}",
            key.path()
        );
    }
}

#[test]
fn defaults_are_toml_of_the_key_s_type() {
    for key in KEYS.iter().filter(|k| !k.default.is_empty()) {
        let table: toml::Table = format!("v = {}", key.default)
            .parse()
            .unwrap_or_else(|e| panic!("{}: {e}", key.path()));
        assert!(key.kind.admits(&table["v"]), "{}: {}", key.path(), key.default);
    }
}

#[test]
fn the_fixed_keys_exist() {
    for (section, name) in [
        ("server", "listen"),
        ("server", "signing_key_file"),
        ("auth", "mode"),
        ("auth", "hs256_secret_file"),
        ("auth", "jwks"),
        ("store", "kind"),
        ("store", "data_dir"),
        ("cache", "redis_url"),
        ("state", "redis_url"),
        ("kafka", "brokers"),
        ("kafka", "partitions"),
        ("search", "opensearch_url"),
    ] {
        assert!(find(section, name).is_some(), "{section}.{name}");
    }
}

#[test]
fn slips_get_a_suggestion_and_other_words_do_not() {
    let names = || KEYS.iter().filter(|k| k.section == "server").map(|k| k.name);
    assert_eq!(suggest("lisen", names()), Some("listen"));
    assert_eq!(suggest("max_conections", names()), Some("max_connections"));
    assert_eq!(suggest("zebra", names()), None);
}

/// The production code below `dir`, without comments' and tests' files and without white space.
fn production_code(dir: &Path, code: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            // `config/` makes the settings; the others are no production code.
            if !["config", "tests", "benches", "examples", "target"].contains(&name.as_str()) {
                production_code(&path, code);
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            let text = std::fs::read_to_string(&path).unwrap();
            let production = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let lines = production.lines().filter(|line| !line.trim_start().starts_with("//"));
            code.extend(lines.flat_map(|line| line.chars()).filter(|c| !c.is_whitespace()));
        }
    }
}

#[test]
fn every_setting_is_read_by_code_outside_of_config() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut code = String::new();
    production_code(crates, &mut code);
    let is_read = |read_as: &str| {
        code.match_indices(read_as).any(|(at, _)| {
            let next = code[at + read_as.len()..].chars().next();
            !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
        })
    };
    let unread: Vec<String> = KEYS
        .iter()
        .filter(|key| !is_read(key.read_as))
        .map(|key| format!("{} (searched for: {})", key.path(), key.read_as))
        .collect();
    assert_eq!(unread, Vec::<String>::new(), "no code outside of config/ reads these settings");
}
