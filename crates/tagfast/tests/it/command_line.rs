//! Every command of the command line, found by walking its description: errors as JSON, colours,
//! file names that are not UTF-8, completion of files, columns on a terminal.

use std::ffi::{OsStr, OsString};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use clap::{Arg, Command, ValueHint};
use serde_json::Value;
use unicode_width::UnicodeWidthStr as _;

use crate::support::{command, output_text, server, tagfast, tagfast_json};

/// Nothing listens there.
const NO_SERVER: &str = "http://127.0.0.1:1";
/// A file name that is no UTF-8.
const FOREIGN_NAME: &[u8] = b"f\xffl\xe9";

/// A command without further commands below it.
struct Leaf {
    /// The words that call it.
    words: Vec<String>,
    command: Command,
}

impl Leaf {
    fn name(&self) -> String {
        self.words.join(" ")
    }

    fn talks_to_a_server(&self) -> bool {
        self.command.get_arguments().any(|argument| argument.get_id() == "url")
    }
}

/// Every leaf of the command line.
fn leaves() -> Vec<Leaf> {
    fn below(command: &Command, words: &[String], all: &mut Vec<Leaf>) {
        let mut inner = command.get_subcommands().filter(|c| c.get_name() != "help").peekable();
        if inner.peek().is_none() {
            all.push(Leaf { words: words.to_vec(), command: command.clone() });
        }
        for one in inner {
            below(one, &[words, &[one.get_name().to_owned()]].concat(), all);
        }
    }
    let mut root = tagfast::command_line();
    root.build();
    let mut all = Vec::new();
    below(&root, &[], &mut all);
    assert!(all.len() > 25, "{} leaves", all.len());
    all
}

/// What an argument takes: a word of its closed set, a path that is not there, or any text.
fn sample(argument: &Arg, missing: &Path) -> OsString {
    match argument.get_possible_values().first() {
        Some(word) => word.get_name().into(),
        None if is_path(argument) => missing.into(),
        None => "x".into(),
    }
}

fn is_path(argument: &Arg) -> bool {
    matches!(argument.get_value_hint(), ValueHint::FilePath | ValueHint::DirPath)
}

/// The command with all arguments that it requires.
fn required(leaf: &Leaf, missing: &Path) -> Vec<OsString> {
    let mut line: Vec<OsString> = leaf.words.iter().map(Into::into).collect();
    for argument in leaf.command.get_arguments().filter(|argument| argument.is_required_set()) {
        if let Some(long) = argument.get_long() {
            line.push(format!("--{long}").into());
        }
        line.push(sample(argument, missing));
    }
    line
}

fn run(line: &[OsString]) -> Output {
    command(&[]).args(line).output().unwrap()
}

/// The error of a command that was run with `--json`: the last line of stderr, and nothing on
/// stdout.
#[track_caller]
fn json_error(line: &[OsString], output: &Output) -> Value {
    assert!(output.stdout.is_empty(), "{line:?}: {output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let last = text.lines().last().unwrap_or_else(|| panic!("{line:?} said nothing"));
    let error: Value =
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{line:?}: {e}: {text}"));
    let error = error["error"].clone();
    assert_eq!(error["exit_code"].as_i64(), output.status.code().map(i64::from), "{line:?}");
    for field in ["code", "message"] {
        assert!(error[field].as_str().is_some_and(|t| !t.is_empty()), "{line:?}: {error}");
    }
    error
}

#[test]
fn a_wrong_command_line_is_an_error_in_json_and_in_the_right_colours() {
    for leaf in leaves() {
        let mut line: Vec<OsString> = leaf.words.iter().map(Into::into).collect();
        line.push("--no-such-flag".into());
        let json: Vec<OsString> = [line.clone(), vec!["--json".into()]].concat();
        let error = json_error(&json, &run(&json));
        assert_eq!((&error["code"], &error["exit_code"]), (&"usage".into(), &2.into()), "{json:?}");
        for (flag, environment, colored) in [
            (None, &[][..], false),
            (None, &[("CLICOLOR_FORCE", "1")], true),
            (None, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false),
            (Some("--color=never"), &[("CLICOLOR_FORCE", "1")], false),
            (Some("--color=always"), &[("NO_COLOR", "1")], true),
        ] {
            let mut process = command(&[]);
            process.args(&line).args(flag).env_remove("NO_COLOR").envs(environment.to_vec());
            let output = process.output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{line:?}");
            let found = output.stderr.contains(&0x1b);
            assert_eq!(found, colored, "{} {flag:?} {environment:?}", leaf.name());
        }
    }
}

#[test]
fn a_server_that_is_not_there_is_an_error_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines");
    let line = "{\"type\": \"a\", \"id\": \"1\", \"tags\": [\"x\"]}\n";
    std::fs::write(&file, line).unwrap();
    for leaf in leaves().iter().filter(|leaf| leaf.talks_to_a_server()) {
        let mut line = required(leaf, &file);
        let more: &[&str] = match leaf.name().as_str() {
            "bench" => &["--duration", "100ms", "--warmup", "0s", "--connections", "1"],
            "import" => &["--retries", "0"],
            name if name.starts_with("dead-letters") && has_flag(leaf, "all") => &["--all"],
            _ => &[],
        };
        line.extend(more.iter().chain(&["--json", "--url", NO_SERVER]).map(Into::into));
        let output = command(&[]).args(&line).env_remove("HTTP_PROXY").output().unwrap();
        if leaf.name() == "bench" {
            // A measurement of nothing is a result too.
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            continue;
        }
        let error = json_error(&line, &output);
        assert_eq!(error["exit_code"], 1, "{line:?}: {error}");
        let words = ["127.0.0.1:1", "refused"];
        let message = error["message"].as_str().unwrap();
        assert!(words.iter().any(|word| message.contains(word)), "{line:?}: {error}");
    }
}

fn has_flag(leaf: &Leaf, long: &str) -> bool {
    leaf.command.get_arguments().any(|argument| argument.get_long() == Some(long))
}

/// Paths that a command makes: they need not be there.
const MADE: &[(&str, &str)] = &[
    ("export", "file"),
    ("import", "state"),
    ("serve", "data_dir"),
    ("serve", "port_file"),
    ("backup", "dir"),
    ("restore", "data_dir"),
];

#[test]
fn a_file_that_is_not_there_is_an_error_in_json_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no-such-file");
    let mut tried = 0;
    for leaf in leaves() {
        let name = leaf.name();
        let is_made = |argument: &Arg| MADE.contains(&(&name, argument.get_id().as_str()));
        let arguments = leaf.command.get_arguments();
        for argument in arguments.filter(|argument| is_path(argument) && !is_made(argument)) {
            let mut line = required(&leaf, &missing);
            if !argument.is_required_set() {
                line.extend(argument.get_long().map(|long| format!("--{long}").into()));
                line.push(missing.clone().into());
            }
            if name == "debug decode" && argument.get_id() == "data_dir" {
                line.extend(["--content", "a", "1"].map(Into::into));
            }
            line.push("--json".into());
            let error = json_error(&line, &run(&line));
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("no-such-file"), "{line:?}: {error}");
            tried += 1;
        }
    }
    assert!(tried >= 10, "{tried} arguments");
}

#[test]
fn shells_complete_files_where_a_file_is_taken() {
    let file_names = ["FILE", "DIR", "PATH"];
    let mut found = 0;
    for leaf in leaves() {
        for argument in leaf.command.get_arguments() {
            let names = argument.get_value_names().unwrap_or_default();
            let named = names.iter().any(|name| file_names.contains(&name.as_str()));
            let is_file = named && argument.get_id() != "path";
            let of_type =
                argument.get_value_parser().type_id() == std::any::TypeId::of::<PathBuf>();
            if is_file || of_type {
                assert!(is_path(argument), "{}: {}", leaf.name(), argument.get_id());
                found += 1;
            }
        }
    }
    assert!(found >= 12, "{found} arguments");
    let bash = output_text(&tagfast(&["completions", "bash"]));
    assert!(bash.contains("compgen -f"), "{bash}");
}

#[test]
fn file_names_need_not_be_utf8() {
    let dir = tempfile::tempdir().unwrap();
    let named = |name: &str| {
        let name = [name.as_bytes(), FOREIGN_NAME].concat();
        dir.path().join(OsStr::from_bytes(&name))
    };
    let done = |line: &[&OsStr]| {
        let line: Vec<OsString> = line.iter().map(Into::into).collect();
        let output = run(&line);
        assert!(output.status.success(), "{line:?}: {output:?}");
        output
    };
    let (data, port) = (named("data"), named("port"));
    let running = server(&data).arg("--port-file").arg(&port).start();
    running.wait_until_ready();
    assert!(data.join("store-0.sqlite").is_file(), "the data directory has its name");
    assert!(std::fs::read_to_string(&port).is_ok());
    let url = running.url();
    let url: [&OsStr; 2] = ["--url".as_ref(), url.as_ref()];
    let tag: Vec<&OsStr> = ["tag", "a", "1", "x", "--receipt"].map(OsStr::new).to_vec();
    let receipt = done(&[&tag[..], &url].concat()).stdout;
    let receipts = named("receipts");
    std::fs::write(&receipts, receipt).unwrap();
    done(&[&["receipts".as_ref(), "check".as_ref(), receipts.as_os_str()][..], &url].concat());
    for name in ["out", "out.gz"] {
        // The ending decides, also behind bytes that are no text.
        let out = named("").with_extension(name);
        done(&[&["export".as_ref(), out.as_os_str()][..], &url].concat());
        assert!(out.is_file());
        done(&[&["import".as_ref(), out.as_os_str()][..], &url].concat());
    }
    let ids = named("ids");
    std::fs::write(&ids, "{\"type\": \"a\", \"id\": \"1\"}\n").unwrap();
    let bench =
        ["bench", "--duration", "50ms", "--warmup", "0s", "--connections", "1", "--ids-from"];
    let bench: Vec<&OsStr> = bench.iter().map(OsStr::new).collect();
    done(&[&bench[..], &[ids.as_os_str()], &url].concat());

    let (backup, restored) = (named("backup"), named("restored"));
    let from = |dir: &'static str| OsStr::new(dir);
    done(&[from("backup"), backup.as_os_str(), from("--data-dir"), data.as_os_str()]);
    done(&[from("restore"), backup.as_os_str(), from("--data-dir"), restored.as_os_str()]);
    assert!(restored.join("store-0.sqlite").is_file());
    let config = named("config");
    std::fs::write(&config, "[server]\nlisten = \"127.0.0.1:0\"\n").unwrap();
    done(&[from("config"), from("check"), from("--config"), config.as_os_str()]);
    done(&[from("config"), from("print"), from("--config"), config.as_os_str()]);
    // A value of the configuration is text: it is refused rather than changed.
    let mut check = command(&["config", "check"]);
    let refused = check.env("TAGFAST__STORE__DATA_DIR", &data).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(output_text(&refused).contains("DATA_DIR: the value is not UTF-8"), "{refused:?}");
}

#[test]
fn columns_line_up_whatever_the_tags_are_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(dir.path()).start();
    running.wait_until_ready();
    let url = running.url();
    let tags = ["plain", "日本語", "e\u{301}clair", "👍", "👩‍👩‍👧‍👦", "한글"];
    tagfast_json(&[&["tag", "a", "1"], &tags[..], &["--json", "--url", &url]].concat());
    let view = tagfast(&["view", "a", "1", "--url", &url]);
    let text = String::from_utf8(view.stdout).unwrap();
    assert_eq!(text.lines().count(), tags.len(), "{text}");
    let places: Vec<usize> = text
        .lines()
        .map(|line| line.split_once("anonymous").unwrap_or_else(|| panic!("{line}")).0.width())
        .collect();
    assert!(places.iter().all(|place| *place == places[0]), "{places:?}\n{text}");

    let query = "日本語 👩‍👩‍👧‍👦 AND";
    let search = tagfast(&["search", query, "--url", &url]);
    let text = String::from_utf8(search.stderr).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines.iter().position(|line| line.trim() == query).unwrap();
    // The error is at the end of the query.
    assert_eq!(lines[shown + 1].width(), lines[shown].width() + 1, "{text}");
}

#[test]
fn a_proxy_is_named_when_it_is_the_fault() {
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = proxy.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = proxy.accept().unwrap();
        let mut request = [0; 1024];
        let length = stream.read(&mut request).unwrap();
        let body = "<html>no such host</html>";
        let answer =
            format!("HTTP/1.1 502 Bad Gateway\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).unwrap();
        length
    });
    let secret = format!("http://ana:secret@{address}");
    let status = |proxy: &str| {
        let mut process = command(&["status", "--url", "http://tags.invalid:7070"]);
        for variable in ["NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "http_proxy"] {
            process.env_remove(variable);
        }
        process.env("HTTP_PROXY", proxy).output().unwrap()
    };
    for (output, words) in [(status(&secret), "502"), (status("http://127.0.0.1:1"), "refused")] {
        let text = output_text(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        for word in [words, "through the proxy http://127.0.0.1:", "HTTP_PROXY", "NO_PROXY"] {
            assert!(text.contains(word), "{word:?} is not in {text}");
        }
        assert!(!text.contains("secret"), "{text}");
    }
    assert!(answering.join().unwrap() > 0);
}
