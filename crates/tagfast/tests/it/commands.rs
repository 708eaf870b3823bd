//! The client commands against a running server: results on stdout, notes on stderr, exit codes.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tagfast_testkit::wait_for_condition;

use crate::support::{command, output_text, server, tagfast, tagfast_json};

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

#[test]
fn the_main_job_works_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(dir.path()).start();
    running.wait_until_ready();
    let url = running.url();
    let with = |args: &[&str]| -> Vec<String> {
        args.iter().copied().chain(["--url", &url, "--json"]).map(str::to_owned).collect()
    };
    let json = |args: &[&str]| {
        let args = with(args);
        tagfast_json(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let write = json(&["tag", "jira.issue", "PROJ-1", "Critical", "ui"]);
    assert_eq!(write["added"], serde_json::json!(["critical", "ui"]), "{write}");
    let view = json(&["view", "jira.issue", "PROJ-1"]);
    assert_eq!(view["tags"][0]["display"], "Critical", "{view}");
    json(&["untag", "jira.issue", "PROJ-1", "ui"]);
    assert_eq!(json(&["view", "jira.issue", "PROJ-1"])["tags"].as_array().unwrap().len(), 1);
    let hits = wait_for_condition("a hit", TEST_TIMEOUT, || {
        let page = json(&["search", "critical AND NOT ui"]);
        if page["hits"].as_array().is_some_and(|h| h.len() == 1) {
            Ok(page)
        } else {
            Err(page.to_string())
        }
    });
    assert_eq!(hits["hits"][0]["id"], "PROJ-1");
    wait_for_condition("a count", TEST_TIMEOUT, || {
        let popular = json(&["popular"]);
        if popular["tags"][0]["tag"] == "critical" { Ok(()) } else { Err(popular.to_string()) }
    });
    assert_eq!(json(&["suggest", "cri"])["tags"][0]["tag"], "critical");
    assert_eq!(json(&["suggest", "tical", "--type", "jira.issue"])["tags"][0]["count"], 1);
    let all = json(&["suggest"]);
    assert_eq!(all["tags"][0]["tag"], "critical", "{all}");
    assert!(all["next_cursor"].is_null(), "{all}");
    let nothing = tagfast(&["search", "critical and ui", "--url", &url]);
    let notes = String::from_utf8_lossy(&nothing.stderr);
    assert!(notes.contains("hint: \"and\" is a tag here"), "{notes}");
    assert_eq!(json(&["status"])["mode"], "embedded");
    assert_eq!(json(&["recount"])["drifted_contents"], 0);
    assert_eq!(json(&["reindex"])["contents"], 1);
}

#[test]
fn receipts_are_checked_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(&dir.path().join("data")).start();
    let url = running.url();
    let output = tagfast(&["tag", "jira.issue", "PROJ-1", "ui", "--receipt", "--url", &url]);
    assert!(output.status.success(), "{output:?}");
    let file = dir.path().join("receipts.txt");
    std::fs::write(&file, &output.stdout).unwrap();
    let file_arg = file.to_str().unwrap();
    let good = tagfast(&["receipts", "check", file_arg, "--url", &url]);
    assert_eq!(
        (good.status.code(), output_text(&good).contains("kept")),
        (Some(0), true),
        "{good:?}"
    );
    let mut lines = output.stdout.clone();
    lines.extend(b"nonsense\n");
    std::fs::write(&file, &lines).unwrap();
    let partly = tagfast(&["receipts", "check", file_arg, "--url", &url]);
    assert_eq!(partly.status.code(), Some(3), "{partly:?}");
}

#[test]
fn exit_codes_and_errors_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(dir.path()).start();
    // Until its first state is complete, the index answers no query, not even with a syntax error.
    running.wait_until_ready();
    let url = running.url();
    for (args, code, words) in [
        (&["frobnicate"][..], 2, &["frobnicate", "--help"][..]),
        (&["view"][..], 2, &["CONTENT_TYPE"][..]),
        (&["view", "a", "b", "--url", "http://127.0.0.1:1"][..], 1, &["127.0.0.1:1"][..]),
        (&["tag", "UPPER", "b", "c", "--url", &url][..], 1, &["content type"][..]),
        (&["search", "a AND (b", "--url", &url][..], 1, &["a AND (b\n", "^"][..]),
        (&["failovers", "--url", &url][..], 1, &["mode"][..]),
        (
            &["dead-letters", "show", "indexer/0/1", "--url", &url][..],
            1,
            &["dead_letter_not_found"][..],
        ),
        (&["serve", "--role", "relay"][..], 2, &["embedded"][..]),
        (&["breakers", "open", "index", "--url", &url][..], 2, &["--reason"][..]),
        (
            &["breakers", "open", "index", "--reason", "x", "--url", &url][..],
            1,
            &["breaker_not_found"][..],
        ),
        (&["breakers", "auto", "index", "--url", &url][..], 1, &["breaker_not_found"][..]),
        (&["breakers", "close", "index", "--reason", " ", "--url", &url][..], 1, &["empty"][..]),
        (&["status", "--interval", "5", "--url", &url][..], 2, &["--watch"][..]),
        (&["status", "--watch", "--interval", "0", "--url", &url][..], 2, &["--interval"][..]),
    ] {
        let output = tagfast(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        for word in words {
            assert!(
                output_text(&output).contains(word),
                "{args:?}: {word:?} is not in {:?}",
                output_text(&output)
            );
        }
        assert!(
            output.stdout.is_empty() || code == 0,
            "{args:?} wrote its failure to stdout: {output:?}"
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = tagfast(&["completions", shell]);
        assert!(output.status.success() && output.stdout.len() > 1000, "{shell}: {output:?}");
    }
    assert_eq!(tagfast_json(&["openapi"])["openapi"], "3.1.0");
}

#[test]
fn breakers_are_listed_though_embedded_mode_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(dir.path()).start();
    let url = running.url();
    let listed = tagfast_json(&["breakers", "list", "--json", "--url", &url]);
    assert_eq!(listed, serde_json::json!({"items": [], "events": [], "next_cursor": null}));
    let text = tagfast(&["breakers", "list", "--url", &url]);
    assert!(
        text.status.success() && output_text(&text).contains("no circuit breakers"),
        "{text:?}"
    );
}

#[test]
fn watching_writes_one_line_per_request_and_ends_with_ctrl_c() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(dir.path()).start();
    running.wait_until_ready();
    let url = running.url();
    for json in [false, true] {
        let mut watch = command(&["status", "--watch", "--url", &url]);
        if json {
            watch.arg("--json");
        }
        let mut child = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..2 {
            let line = lines.next().unwrap().unwrap();
            if json {
                let status: serde_json::Value = serde_json::from_str(&line).unwrap();
                assert_eq!(
                    (&status["mode"], &status["breakers"]),
                    (&"embedded".into(), &serde_json::json!([]))
                );
            } else {
                assert!(line.contains("degraded: none; breakers: none; limits: none"), "{line}");
                assert!(
                    line.contains("consumers: indexer running") && !line.contains('\u{1b}'),
                    "{line}"
                );
            }
        }
        kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), Signal::INT)
            .unwrap();
        let ended = child.wait_with_output().unwrap();
        assert_eq!(
            (ended.status.code(), ended.stderr.as_slice()),
            (Some(0), b"".as_slice()),
            "{ended:?}"
        );
    }
}
