//! `config check` and `serve` judge a configuration alike, and every misspelt word is refused.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tagfast::config::key::{Key, Kind};
use tagfast::config::keys::KEYS;

use crate::support::{command, output_text, server};

/// Exit code of a wrong command line or configuration.
const USAGE: Option<i32> = Some(2);

/// What both commands say of one configuration.
struct Judged {
    check: Output,
    serve: Output,
}

fn judge(dir: &Path, text: &str, env: &[(String, &str)]) -> Judged {
    let file = dir.join("tagfast.toml");
    std::fs::write(&file, text).unwrap();
    let with = |mut command: Command| {
        command.current_dir(dir).arg("--config").arg(&file);
        command.envs(env.iter().map(|(name, value)| (name.as_str(), *value)));
        command.output().unwrap()
    };
    Judged {
        check: with(command(&["config", "check"])),
        // A port file in a directory that is none: a configuration that is accepted ends here.
        serve: with(command(&["serve", "--port-file", "/dev/null/port"])),
    }
}

/// Both commands refuse the configuration with exit code 2 and the same words.
#[track_caller]
fn refused(dir: &Path, text: &str, env: &[(String, &str)], words: &[&str]) {
    let judged = judge(dir, text, env);
    for (name, output) in [("config check", &judged.check), ("serve", &judged.serve)] {
        let said = output_text(output);
        assert_eq!(output.status.code(), USAGE, "{name} {text} {env:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{name} {text} {env:?}: {word} is not in {said}");
        }
    }
    let faults = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines().filter(|line| line.starts_with("  ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(faults(&judged.check), faults(&judged.serve), "{text} {env:?}");
}

/// Neither command refuses the configuration.
#[track_caller]
fn accepted(dir: &Path, text: &str, env: &[(String, &str)]) {
    let judged = judge(dir, text, env);
    assert_eq!(judged.check.status.code(), Some(0), "{text} {env:?}: {:?}", judged.check);
    let said = output_text(&judged.serve);
    assert!(said.contains("cannot write the port"), "{text} {env:?}: {said}");
}

fn closed_sets() -> impl Iterator<Item = (&'static Key, &'static [&'static str])> {
    KEYS.iter().filter_map(|key| match key.kind {
        Kind::Choice(words) => Some((key, words)),
        Kind::Flag => Some((key, &["true", "false"][..])),
        Kind::Text
        | Kind::Number(..)
        | Kind::Fraction(..)
        | Kind::List
        | Kind::Address
        | Kind::Addresses
        | Kind::Webhook => None,
    })
}

#[test]
fn a_misspelt_word_of_a_closed_set_is_refused_by_both_in_every_mode() {
    let dir = tempfile::tempdir().unwrap();
    let mut sets = 0;
    for (key, words) in closed_sets() {
        sets += 1;
        let word = words[words.len() - 1];
        let slips = [format!("{word}x"), word[..word.len() - 1].to_owned(), word.to_uppercase()];
        let quoted = |text: &str| format!("[{}]\n{} = {text:?}\n", key.section, key.name);
        for slip in slips.iter().filter(|slip| !words.contains(&slip.as_str())) {
            let path = key.path();
            if key.kind == Kind::Flag {
                refused(dir.path(), "", &[(key.env_name(), slip)], &[&key.env_name(), "true"]);
                continue;
            }
            let meant = format!("did you mean {word:?}");
            refused(dir.path(), &quoted(slip), &[], &[&path, &meant]);
        }
        refused(dir.path(), &quoted(""), &[], &[&key.path(), "empty"]);
        let env = (key.env_name(), "zebra");
        refused(dir.path(), "", &[env], &[words[0]]);
    }
    assert!(sets >= 6, "{sets} closed sets");
}

#[test]
fn a_misspelt_log_level_is_refused_by_both_and_an_empty_variable_is_none() {
    let dir = tempfile::tempdir().unwrap();
    for (level, words) in [
        ("warning", "did you mean \\\"warn\\\"?"),
        ("info,tagfast_api=debgu", "debug"),
        ("info,,warn", "commas"),
        ("info,tagfats_api=debug", "tagfast_api"),
    ] {
        let words = words.replace("\\\"", "\"");
        let text = format!("[log]\nlevel = {level:?}\n");
        refused(dir.path(), &text, &[], &["log.level", &words]);
        let env = ("TAGFAST__LOG__LEVEL".to_owned(), level);
        refused(dir.path(), "", &[env], &["log.level", &words]);
    }
    refused(dir.path(), "[log]\nlevel = \"\"\n", &[], &["log.level is empty"]);
    // Empty variables of all keys at once are as good as none.
    let empty: Vec<(String, &str)> = KEYS.iter().map(|key| (key.env_name(), " ")).collect();
    accepted(dir.path(), "", &empty);
    for name in ["TAGFAST_URL", "TAGFAST_TOKEN"] {
        let output = command(&["status", "--timeout", "1"]).env(name, "").output().unwrap();
        assert!(output_text(&output).contains("127.0.0.1:7070"), "{name}: {output:?}");
    }
    let checked = command(&["config", "check"]).env("TAGFAST_CONFIG", " ").output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    for flag in ["--listen", "--data-dir"] {
        let output = command(&["serve", flag, ""]).output().unwrap();
        let said = output_text(&output);
        assert!(output.status.code() == USAGE && said.contains(flag), "{flag}: {said}");
    }
}

#[test]
fn a_misspelt_word_of_a_flag_is_refused_with_what_was_meant() {
    for (call, meant) in [
        (&["serve", "--role", "relai"][..], "relay"),
        (&["dead-letters", "list", "--state", "opened"], "open"),
        (&["dead-letters", "list", "--class", "poisson"], "poison"),
        (&["dead-letters", "list", "--group", "indexr"], "indexer"),
        (&["search", "a", "--sort", "updatd"], "updated"),
        (&["completions", "bahs"], "bash"),
    ] {
        let output = command(call).output().unwrap();
        let said = output_text(&output);
        assert!(output.status.code() == USAGE && said.contains(meant), "{call:?}: {said}");
    }
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "s".repeat(40)).unwrap();
    let mut issue = command(&["token", "issue", "--tenant", "t", "--user", "u"]);
    let output = issue.arg("--secret-file").arg(&secret).args(["--scope", "tags:reed"]).output();
    let output = output.unwrap();
    let said = output_text(&output);
    assert!(output.status.code() == USAGE && said.contains("did you mean \"tags:read\""), "{said}");
}

#[test]
fn keys_without_effect_are_named_by_both() {
    let dir = tempfile::tempdir().unwrap();
    let env = [("TAGFAST__AUTH__ISSUER", "me"), ("TAGFAST__KAFKA__PARTITIONS", "8")];
    let data = dir.path().join("data");
    let mut check = command(&["config", "check", "--json"]);
    let output = check.envs(env).env("TAGFAST__STORE__DATA_DIR", &data).output().unwrap();
    let checked: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys = serde_json::json!(["auth.issuer", "kafka.partitions"]);
    assert_eq!(checked["without_effect"], keys);
    let mut server = env.iter().fold(server(&data), |s, (name, value)| s.env(name, value)).start();
    server.stop();
    let log = server.log();
    for key in ["auth.issuer", "kafka.partitions"] {
        assert!(log.contains(&format!("{key} has no effect")), "{log}");
    }
}

#[test]
fn a_list_of_levels_without_a_general_one_does_not_switch_the_log_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = server(dir.path()).env("TAGFAST__LOG__LEVEL", "tagfast_domain=debug").start();
    running.stop();
    assert!(running.log().contains("listening on"), "{}", running.log());
}

/// Files of a configuration with everything in it, and the configuration.
fn whole(dir: &Path) -> String {
    let write = |name: &str, content: &str| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("signing.key", &"ab".repeat(32));
    write("secret", &"s".repeat(40));
    write("keys.json", KEY_SET);
    write("webhook", "w");
    "[server]\nlisten = \"127.0.0.1:0\"\nsigning_key_file = [\"signing.key\"]\n\
     [auth]\nmode = \"jwt\"\nhs256_secret_file = \"secret\"\njwks = \"keys.json\"\n\
     [store]\ndata_dir = \"data\"\n\
     [dead_letters]\nwebhook_url = \"https://hooks.example/x\"\nwebhook_secret_file = \"webhook\"\n"
        .to_owned()
}

/// A key set with one Ed25519 key (RFC 8037, appendix A).
const KEY_SET: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a",
    "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

#[test]
fn check_and_serve_agree_on_every_broken_file_and_value() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { dir.path().join(name) };
    let good = whole(dir.path());
    accepted(dir.path(), &good, &[]);
    let files = [
        ("signing.key", "signing.key", &["", "abc", "é"][..]),
        ("secret", "secret", &["", "short"]),
        (
            "keys.json",
            "auth.jwks",
            &["", "{}", "[]", "{\"keys\":[]}", r#"{"keys":[{"kty":"oct","k":"AA"}]}"#],
        ),
        ("webhook", "dead_letters.webhook_secret_file", &["", "\n"]),
    ];
    for (name, word, contents) in files {
        let whole = std::fs::read(at(name)).unwrap();
        for content in contents {
            std::fs::write(at(name), content).unwrap();
            refused(dir.path(), &good, &[], &[word]);
        }
        std::fs::remove_file(at(name)).unwrap();
        refused(dir.path(), &good, &[], &[word]);
        std::fs::create_dir(at(name)).unwrap();
        refused(dir.path(), &good, &[], &[word]);
        std::fs::remove_dir(at(name)).unwrap();
        std::fs::write(at(name), whole).unwrap();
    }
    std::fs::write(at("a-file"), "").unwrap();
    std::fs::create_dir_all(at("kept")).unwrap();
    std::fs::write(at("kept/token.key"), "not a key").unwrap();
    for (from, to, word) in [
        ("\"127.0.0.1:0\"", "\"127.0.0.1\"", "server.listen"),
        ("\"127.0.0.1:0\"", "\"192.0.2.1:0\"", "server.listen"),
        ("\"data\"", "\"a-file\"", "store.data_dir"),
        ("\"data\"", "\"a-file/data\"", "store.data_dir"),
        ("signing_key_file = [\"signing.key\"]", "", "token.key"),
        ("webhook_url = \"https://hooks.example/x\"", "", "dead_letters.webhook_url"),
        ("https://hooks.example/x", "https://", "dead_letters.webhook_url"),
        ("hs256_secret_file = \"secret\"\njwks = \"keys.json\"", "", "auth.hs256_secret_file"),
        ("mode = \"jwt\"", "mode = \"jwt\"\nleeway_seconds = 99999999", "auth.leeway_seconds"),
        ("[store]", "[telemetry]\notlp_endpoint = \"http://\"\n[store]", "otlp_endpoint"),
        ("[store]", "[cache]\nredis_url = \"http://x\"\n[store]", "cache.redis_url"),
        ("[store]", "[kafka]\nsasl_mechanism = \"GSSAPI\"\n[store]", "kafka.sasl_mechanism"),
        ("[store]", "[kafka]\npartitions = 65\n[store]", "kafka.partitions"),
        ("[store]", "[store]\ntls = \"yes\"", "store.tls"),
    ] {
        let broken = good.replace(from, to);
        assert_ne!(broken, good, "{from}");
        let broken =
            if word == "token.key" { broken.replace("\"data\"", "\"kept\"") } else { broken };
        refused(dir.path(), &broken, &[], &[word]);
    }
}

#[cfg(feature = "kafka")]
#[test]
fn check_and_serve_agree_on_the_files_of_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { dir.path().join(name) };
    let cluster = whole(dir.path()).replace(
        "[store]\n",
        "[kafka]\nbrokers = [\"127.0.0.1:9\"]\ntls = true\ntls_ca_file = \"ca.pem\"\n\
         sasl_mechanism = \"PLAIN\"\nsasl_user = \"u\"\nsasl_password_file = \"sasl\"\n\
         [store]\nkind = \"postgres\"\nclusters = [\"c0=0-63\"]\netcd = [\"http://127.0.0.1:9\"]\n\
         password_file = \"password\"\ntls = \"verify-ca\"\ntls_ca_file = \"ca.pem\"\n",
    );
    for (name, content) in [("ca.pem", CERTIFICATE), ("sasl", "p"), ("password", "p\n")] {
        std::fs::write(at(name), content).unwrap();
    }
    let checked = judge(dir.path(), &cluster, &[]).check;
    assert!(checked.status.success(), "{checked:?}");
    for (name, words) in [
        ("ca.pem", &["store.tls_ca_file", "kafka.tls_ca_file"][..]),
        ("sasl", &["kafka.sasl_password_file"]),
        ("password", &["store.password_file"]),
    ] {
        let whole = std::fs::read_to_string(at(name)).unwrap();
        let half = if whole.len() > 10 { &whole[..whole.len() / 2] } else { "" };
        for content in ["", "\n", half] {
            std::fs::write(at(name), content).unwrap();
            refused(dir.path(), &cluster, &[], words);
        }
        std::fs::remove_file(at(name)).unwrap();
        refused(dir.path(), &cluster, &[], words);
        std::fs::write(at(name), whole).unwrap();
    }
    for (from, to, word) in [
        ("sasl_mechanism = \"PLAIN\"\n", "", "kafka.sasl_mechanism"),
        ("sasl_user = \"u\"\n", "", "kafka.sasl_user"),
        ("[\"127.0.0.1:9\"]\ntls", "[\"u:p@127.0.0.1:9\"]\ntls", "kafka.brokers"),
        ("http://127.0.0.1:9", "http://", "store.etcd"),
        ("c0=0-63", "c0=0-62", "store.clusters"),
        ("\ntls_ca_file = \"ca.pem\"\n[dead", "\n[dead", "store.tls"),
    ] {
        let broken = cluster.replace(from, to);
        if broken != cluster {
            refused(dir.path(), &broken, &[], &[word]);
        }
    }
}

/// A certificate of an authority with which nothing is signed.
#[cfg(feature = "kafka")]
const CERTIFICATE: &str = include_str!("ca.pem");
