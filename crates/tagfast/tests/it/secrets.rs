//! A secret of the configuration is in no output: one is planted in every key that may hold one,
//! and all that the program writes is searched for it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tagfast::config::key::{Key, Kind};
use tagfast::config::keys::KEYS;
use tagfast_testkit::{ServerOptions, wait_for_condition};

use crate::support::{command, output_text, server};

/// Begins every planted secret, as it is and in base64 at each of the three offsets.
const MARK: &str = "zzplantedzz";
const MARKS: &[&str] = &[MARK, "enpwbGFudGVken", "p6cGxhbnRlZHp6", "6enBsYW50ZWR6"];

/// Texts and lists that hold no secret. A new key belongs here, or its kind says that it may hold
/// one.
const WITHOUT_SECRETS: &[&str] = &[
    "server.listen",
    "server.allowed_hosts",
    "auth.audience",
    "auth.issuer",
    "limits.tenant_weights",
    "store.clusters",
    "store.etcd_user",
    "store.database",
    "store.user",
    "store.tls_ca_file",
    "store.epoch_floors",
    "store.data_dir",
    "store.journal_dir",
    "cache.sentinel_user",
    "state.sentinel_user",
    "kafka.tls_ca_file",
    "kafka.sasl_user",
    "search.opensearch_user",
    "log.level",
    "telemetry.service_name",
];

/// Files whose content is a secret, with such a content.
const SECRET_FILES: &[(&str, &str)] = &[
    ("server.signing_key_file", "7a7a706c616e7465647a7a000000000000000000000000000000000000000000"),
    ("auth.hs256_secret_file", "zzplantedzz-hs256-0123456789abcdefgh"),
    ("store.etcd_password_file", "zzplantedzz-etcd"),
    ("store.password_file", "zzplantedzz-store"),
    ("cache.redis_password_file", "zzplantedzz-cache"),
    ("cache.sentinel_password_file", "zzplantedzz-cache-sentinel"),
    ("state.redis_password_file", "zzplantedzz-state"),
    ("state.sentinel_password_file", "zzplantedzz-state-sentinel"),
    ("search.opensearch_password_file", "zzplantedzz-search"),
    ("kafka.sasl_password_file", "zzplantedzz-sasl"),
    ("dead_letters.webhook_secret_file", "zzplantedzz-webhook"),
];

#[test]
fn every_key_says_whether_it_may_hold_a_secret() {
    for key in KEYS.iter().filter(|key| matches!(key.kind, Kind::Text | Kind::List)) {
        let path = key.path();
        let known = WITHOUT_SECRETS.contains(&path.as_str())
            || SECRET_FILES.iter().any(|(file, _)| *file == path);
        assert!(known, "may {path} hold a secret? Give it a kind that says so, or list it here");
    }
    for (path, _) in SECRET_FILES {
        assert!(KEYS.iter().any(|key| key.path() == *path), "{path} is no key");
    }
}

/// Fails if a secret is in `output`.
#[track_caller]
fn assert_clean(output: &str, what: &str) {
    // The signing key is hexadecimal.
    let marks = MARKS.iter().copied().chain(["7a7a706c616e7465647a7a"]);
    for mark in marks {
        if let Some(at) = output.find(mark) {
            let from = output.floor_char_boundary(at.saturating_sub(300));
            let to = output.ceil_char_boundary((at + 100).min(output.len()));
            panic!("{what} shows a secret: ...{}...", &output[from..to]);
        }
    }
}

/// The ways in which an address can hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// In the user information, the query and, of a webhook, the path.
    Proper,
    /// The same without a user, whose password alone is the secret.
    PasswordAlone,
    /// An address within an address.
    Nested,
    /// With characters that should have been escaped.
    Unescaped,
    /// Without a scheme.
    NoScheme,
    /// With a scheme that is none of this key's.
    OtherScheme,
    /// A text where a list is wanted, and the other way round.
    OtherType,
}

const FORMS: &[Form] = &[
    Form::Proper,
    Form::PasswordAlone,
    Form::Nested,
    Form::Unescaped,
    Form::NoScheme,
    Form::OtherScheme,
    Form::OtherType,
];

/// The texts of a key's value with secrets in them.
fn planted(key: &Key, form: Form, at: SocketAddr) -> String {
    let path = key.path();
    let secret = format!("{MARK}-{}", key.name.replace('_', "-"));
    let (scheme, rest) = match path.as_str() {
        "cache.redis_url" | "state.redis_url" => ("redis", "/0".to_owned()),
        "dead_letters.webhook_url" => ("http", format!("/{secret}/x?k={secret}")),
        "store.etcd" | "store.patroni" | "kafka.brokers" => ("http", String::new()),
        "search.opensearch_url" | "telemetry.otlp_endpoint" | "auth.jwks" => {
            ("http", format!("/x?k={secret}"))
        }
        _ => panic!("how does {path} hold a secret? Plant one here"),
    };
    let text = match form {
        // Kafka's brokers have no place for one.
        Form::Proper if path == "kafka.brokers" => at.to_string(),
        Form::Proper | Form::OtherType => format!("{scheme}://user:{secret}@{at}{rest}"),
        Form::PasswordAlone => format!("{scheme}://:{secret}@{at}{rest}"),
        Form::Nested => format!("{scheme}://{at}/?to={scheme}://u:{secret}@{at}/"),
        Form::Unescaped => format!("{scheme}://user:{secret}/?#@{secret}@{at}{rest}"),
        Form::NoScheme => format!("user:{secret}@{at}"),
        Form::OtherScheme => format!("gopher://user:{secret}@{at}"),
    };
    if path == "store.patroni" { format!("c0={text}") } else { text }
}

/// A configuration of a cluster in which everything that may hold a secret holds one.
fn configuration(dir: &Path, form: Form, address: impl Fn(&Key) -> SocketAddr) -> String {
    let mut text = String::new();
    let mut section = "";
    for key in KEYS {
        let file = SECRET_FILES.iter().find(|(path, _)| *path == key.path());
        let value = if let Some((_, content)) = file {
            // Two sections have files of these names.
            let path = match key.section {
                "cache" | "state" => dir.join(format!("{}-{}", key.section, key.name)),
                _ => dir.join(key.name),
            };
            std::fs::write(&path, format!("{content}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path.to_str().unwrap().to_owned()
        } else if key.may_hold_secret() {
            planted(key, form, address(key))
        } else {
            match key.path().as_str() {
                "store.kind" => "postgres".to_owned(),
                "store.clusters" => "c0=0-63".to_owned(),
                "auth.mode" => "jwt".to_owned(),
                "kafka.sasl_mechanism" => "PLAIN".to_owned(),
                "kafka.sasl_user" | "store.etcd_user" | "search.opensearch_user" => {
                    "tagfast".to_owned()
                }
                _ => continue,
            }
        };
        if section != key.section {
            section = key.section;
            text.push_str(&format!("[{section}]\n"));
        }
        let is_list = matches!(key.kind, Kind::List | Kind::Addresses);
        let other = form == Form::OtherType && key.may_hold_secret();
        if is_list != other {
            text.push_str(&format!("{} = [{value:?}]\n", key.name));
        } else {
            text.push_str(&format!("{} = {value:?}\n", key.name));
        }
    }
    text
}

#[test]
fn the_commands_show_no_secret_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tagfast.toml");
    let at: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let calls: &[&[&str]] =
        &[&["config", "print"], &["config", "print", "--json"], &["config", "check"]];
    for form in FORMS {
        let text = configuration(dir.path(), *form, |_| at);
        std::fs::write(&file, &text).unwrap();
        for call in calls {
            let output = command(call).arg("--config").arg(&file).output().unwrap();
            assert_clean(&output_text(&output), &format!("{call:?} {form:?}"));
            if call[1] == "check" {
                let usable = matches!(form, Form::Proper);
                assert_eq!(output.status.success(), usable, "{form:?}: {output:?}");
            }
            // The same values from the environment.
            let mut from_env = command(call);
            for key in KEYS.iter().filter(|key| key.may_hold_secret()) {
                from_env.env(key.env_name(), planted(key, *form, at));
            }
            let output = from_env.output().unwrap();
            assert_clean(&output_text(&output), &format!("{call:?} {form:?}, environment"));
        }
        if *form != Form::Proper {
            let output = command(&["serve", "--config"]).arg(&file).output().unwrap();
            assert_clean(&output_text(&output), &format!("serve {form:?}"));
        }
    }
}

#[test]
fn the_client_shows_no_secret() {
    let url = format!("http://user:{MARK}@127.0.0.1:9");
    for json in [&[][..], &["--json"]] {
        for call in [
            &["status", "--url", &url][..],
            &["status", "--url", &format!("gopher://user:{MARK}@127.0.0.1:9")],
            &["status", "--url", &format!("user:{MARK}@127.0.0.1:9")],
            &["status", "--token", &format!("{MARK}\n")],
            &["bench", "--url", &url, "--duration", "1s"],
            &["search", "a", "--url", &format!("{url}/?k={MARK}")],
        ] {
            let output = command(call).args(json).output().unwrap();
            assert!(!output.status.success(), "{call:?}");
            assert_clean(&output_text(&output), &format!("{call:?}"));
        }
    }
    let mut help = command(&["status", "--help"]);
    let help = help.env("TAGFAST_URL", &url).env("TAGFAST_TOKEN", MARK).output().unwrap();
    assert_clean(&output_text(&help), "the help");
}

/// What a server does that is not the one that was configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stranger {
    /// Nothing listens.
    Absent,
    /// It accepts connections and never answers.
    Silent,
    /// It refuses every request and repeats it in its answer.
    Echo,
}

impl Stranger {
    fn start(self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        match self {
            Self::Absent => drop(listener),
            Self::Silent | Self::Echo => {
                std::thread::spawn(move || {
                    let mut held = Vec::new();
                    for stream in listener.incoming() {
                        let Ok(mut stream) = stream else { continue };
                        if self == Self::Silent {
                            held.push(stream);
                            continue;
                        }
                        std::thread::spawn(move || {
                            let mut request = vec![0; 16 << 10];
                            while let Ok(read @ 1..) = stream.read(&mut request) {
                                let body = String::from_utf8_lossy(&request[..read]);
                                let head = format!(
                                    "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\n\
                                     content-length: {}\r\n\r\n",
                                    body.len()
                                );
                                if stream.write_all(format!("{head}{body}").as_bytes()).is_err() {
                                    return;
                                }
                            }
                        });
                    }
                });
            }
        }
        address
    }
}

/// Starts a cluster's process in front of strangers, with the most talkative log, and searches its
/// log and all that it answers.
fn serve_in_front_of(stranger: Stranger) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tagfast.toml");
    std::fs::write(&file, configuration(dir.path(), Form::Proper, |_| stranger.start())).unwrap();
    let mut server = ServerOptions::other(env!("CARGO_BIN_EXE_tagfast"))
        .arg("--config")
        .arg(&file)
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .env("TAGFAST__LOG__LEVEL", "trace")
        .env("TAGFAST__TELEMETRY__TRACE_RATIO", "1")
        .serve()
        .start();
    let token = command(&["token", "issue", "--tenant", "t", "--user", "u", "--scope", "admin"])
        .arg("--secret-file")
        .arg(dir.path().join("hs256_secret_file"))
        .output()
        .unwrap();
    let token = String::from_utf8(token.stdout).unwrap();
    let mut client = server.client().with_token(token.trim()).with_timeout(Duration::from_secs(30));
    // A key id that is in no set makes the server fetch the set.
    let foreign = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngiLCJ0eXAiOiJKV1QifQ.e30.AA";
    let headers = [("authorization", format!("Bearer {foreign}"))];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let answer = server.client().request("GET", "/v1/status", &headers, None).unwrap();
    assert_clean(&answer.text(), "the answer to a token of an unknown key");
    for path in [
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/status",
        "/v1/breakers",
        "/v1/search?q=ui",
        "/v1/tags/popular",
        "/v1/content/t/1/tags",
        "/v1/dead-letters",
    ] {
        let answer = client.get(path);
        assert_clean(&answer.text(), &format!("{path} in front of {stranger:?} servers"));
    }
    wait_for_condition("the log names the servers", Duration::from_secs(30), || {
        let log = server.log();
        let named = ["etcd", "Redis", "Kafka", "OpenSearch"].iter().find(|n| !log.contains(**n));
        named.map_or(Ok(()), |name| Err(format!("{name} is not in the log")))
    });
    server.stop();
    assert_clean(&server.log(), &format!("the log in front of {stranger:?} servers"));
    let cmdline = std::fs::read_to_string(&file).unwrap();
    assert!(MARKS[..1].iter().all(|mark| cmdline.contains(mark)), "secrets were planted");
}

#[test]
fn a_server_in_front_of_absent_servers_shows_no_secret() {
    serve_in_front_of(Stranger::Absent);
}

#[test]
fn a_server_in_front_of_silent_servers_shows_no_secret() {
    serve_in_front_of(Stranger::Silent);
}

#[test]
fn a_server_in_front_of_echoing_servers_shows_no_secret() {
    serve_in_front_of(Stranger::Echo);
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn assert_private(dir: &Path) {
    let mut open = vec![dir.to_owned()];
    let mut files = 0;
    while let Some(path) = open.pop() {
        // Files of a log and of merged segments come and go.
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        let mode = meta.permissions().mode() & 0o7777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        files += 1;
        if let Ok(entries) = std::fs::read_dir(&path) {
            open.extend(entries.map(|entry| entry.unwrap().path()));
        }
    }
    assert!(files > 10, "only {files} files");
}

#[test]
fn whatever_the_server_makes_is_its_owners_alone_and_wider_modes_are_narrowed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut running = server(&data).start();
    running.wait_until_ready();
    running.client().put("/v1/content/t/1/tags/ui").expect(200);
    assert_private(&data);
    assert!(running.log().contains("other users could use the data directory"));
    running.stop();
    // As an earlier version left it.
    let mut open = vec![data.clone()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let wide = if path.is_dir() { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(wide)).unwrap();
    }
    let mut running = server(&data).start();
    running.wait_until_ready();
    assert_private(&data);
    let log = running.log();
    assert!(log.contains("other users could use the data directory"), "{log}");
    running.stop();
    // A directory that is there for all users is refused and stays as it is.
    let shared = dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).unwrap();
    let Err((status, log)) = server(&shared).try_start() else { panic!("a shared directory") };
    assert!(status.code() == Some(2) && log.contains("store.data_dir"), "{status}: {log}");
    assert_eq!(mode(&shared), 0o1777);
}

#[test]
fn a_secret_file_that_others_can_read_is_used_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "s".repeat(40)).unwrap();
    for (bits, warned) in [(0o644, true), (0o640, true), (0o604, true), (0o600, false)] {
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(bits)).unwrap();
        let mut check = command(&["config", "check"]);
        check.env("TAGFAST__AUTH__MODE", "jwt").env("TAGFAST__AUTH__HS256_SECRET_FILE", &secret);
        check.env("TAGFAST__STORE__DATA_DIR", dir.path().join("data"));
        let output = check.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output_text(&output).contains("auth.hs256_secret_file"), warned, "{bits:o}");
    }
}
