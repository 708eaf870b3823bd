//! Import and export: bad lines are reported by number, an interrupted import resumes, odd ids
//! survive the round trip.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tagfast_testkit::wait_for_condition;

use crate::support::{
    command, names, output_text, server, stored, tag_path, tagfast, tagfast_json, tags_path,
};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

#[test]
fn bad_lines_are_reported_by_number_and_the_others_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(&dir.path().join("data")).start();
    let file = dir.path().join("in.ndjson");
    let many: Vec<String> = (0..101).map(|n| format!("t{n}")).collect();
    let lines = [
        json!({"type": "note", "id": "1", "tags": ["a", "b"]}).to_string(),
        "{\"type\": \"note\", \"id\": \"2\", \"tags\": [".to_owned(),
        json!({"type": "NOTE", "id": "3", "tags": ["a"]}).to_string(),
        json!({"type": "note", "id": "4", "tags": ["a,b"]}).to_string(),
        json!({"type": "note", "id": "5", "tags": many}).to_string(),
        String::new(),
        json!({
            "type": "note", "id": "7",
            "tags": [{"tag": "C", "by": "ana", "at": "2020-01-31T12:00:00Z"}],
        })
        .to_string(),
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    let output = tagfast(&["import", file.to_str().unwrap(), "--url", &running.url(), "--json"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bad: Vec<u64> = report["bad_lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["line"].as_u64().unwrap())
        .collect();
    assert_eq!(bad, [2, 3, 4, 5], "{report}");
    let mut client = running.client();
    assert_eq!(stored(&mut client).into_keys().collect::<Vec<_>>(), ["note/1", "note/7"]);
    let tag = client.get(&tags_path("note", "7")).expect(200).json()["tags"][0].clone();
    assert_eq!((&tag["display"], &tag["added_by"]), (&json!("C"), &json!("ana")));
    assert!(tag["added_at"].as_str().unwrap().starts_with("2020-01-31T12:00:00"), "{tag}");
}

#[test]
fn a_killed_import_resumes_where_it_stopped() {
    const LINES: u64 = 6000;
    let dir = tempfile::tempdir().unwrap();
    let running = server(&dir.path().join("data")).start();
    let file = dir.path().join("in.ndjson");
    let lines: Vec<String> = (0..LINES)
        .map(|n| {
            json!({"type": "note", "id": format!("n{n}"), "tags": ["a", format!("m{}", n % 5)]})
                .to_string()
        })
        .collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let file_arg = file.to_str().unwrap();
    let url = running.url();
    // Small requests, one at a time, so that the import can be killed in the middle.
    let args = ["import", file_arg, "--url", &url, "--json", "--batch", "10", "--parallel", "1"];
    let mut child = command(&args)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let checkpoint = dir.path().join("in.ndjson.tagfast-import");
    let resume_line = wait_for_condition("a checkpoint", TEST_TIMEOUT, || {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the import ended with {status} before it could be killed");
        }
        let text = std::fs::read(&checkpoint).map_err(|e| e.to_string())?;
        let stored: Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        stored["done"]["line"].as_u64().filter(|l| *l > 0).ok_or_else(|| stored.to_string())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(resume_line < LINES, "the import was complete already");

    let report = tagfast_json(&["import", file_arg, "--url", &url, "--json", "--wait"]);
    let resumed_after = report["resumed_after_line"].as_u64().unwrap_or(0);
    assert!(resumed_after >= resume_line, "the import started over: {report}");
    assert_eq!((&report["contents"], &report["lines"]), (&json!(LINES), &json!(LINES)));
    assert!(!checkpoint.exists(), "the checkpoint stays although the import is complete");
    let mut client = running.client();
    assert_eq!(stored(&mut client).len() as u64, LINES);
    let total = client.get("/v1/search?q=m3&limit=1").expect(200).json()["total"].clone();
    assert_eq!(
        total,
        json!({"value": LINES / 5, "relation": "eq"}),
        "--wait promises that a search finds everything"
    );
}

#[test]
fn the_first_line_of_a_content_decides_whatever_is_in_flight() {
    const CONTENTS: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let running = server(&dir.path().join("data")).start();
    let file = dir.path().join("in.ndjson");
    // Each line writes the same tag in a spelling of its own.
    let spellings = ["critical", "CRITICAL", "Critical", "cRITICAL", "CRITical", "critICAL"];
    let line = |content: usize, n: usize| {
        let spelling = spellings[(content + n) % spellings.len()];
        json!({"type": "note", "id": content.to_string(), "tags": [spelling]}).to_string()
    };
    let lines: Vec<String> = (0..spellings.len())
        .flat_map(|n| (0..CONTENTS).map(move |content| (content, n)))
        .map(|(content, n)| line(content, n))
        .collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let mut args = vec!["import", file.to_str().unwrap(), "--json", "--batch", "3"];
    let url = running.url();
    args.extend(["--parallel", "32", "--url", &url]);
    let report = tagfast_json(&args);
    assert_eq!((&report["lines"], &report["added"]), (&json!(lines.len()), &json!(CONTENTS)));
    let mut client = running.client();
    for content in 0..CONTENTS {
        let view = client.get(&tags_path("note", &content.to_string())).expect(200).json();
        assert_eq!(view["tags"][0]["display"], spellings[content % spellings.len()], "{view}");
    }
}

/// Ids and tags that break naive URLs, files and terminals.
const ODD: &[(&str, &str)] = &[
    ("a/b/c", "implemented-in::c++"),
    ("a+b c", "100%"),
    ("%2F%25", "a/b"),
    ("...", "日本語"),
    (".a", "🦀🚀"),
    ("::", "مرحبا"),
    ("שלום/עולם", "::"),
    ("👩‍👩‍👧", "q?x=1&y=2#z"),
    ("a?b#c&d=e", "a;b"),
    ("quote\"back\\slash", "naïve"),
    ("'; DROP TABLE x --", "+"),
];

fn export(url: &str, file: &Path) -> Vec<String> {
    let output = tagfast(&["export", file.to_str().unwrap(), "--url", url]);
    assert!(output.status.success(), "{output:?}");
    let mut lines: Vec<String> =
        std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn odd_ids_and_tags_survive_urls_export_and_import() {
    let dir = tempfile::tempdir().unwrap();
    let first = server(&dir.path().join("first")).start();
    first.wait_until_ready();
    let mut client = first.client();
    for (id, tag) in ODD {
        let write = client.put(&tag_path("odd", id, tag)).expect(200).json();
        assert_eq!(write["content"]["id"], *id);
        let view = client.get(&tags_path("odd", id)).expect(200).json();
        assert_eq!(view["tags"][0]["display"], *tag, "{view}");
    }
    let lines = export(&first.url(), &dir.path().join("one.ndjson"));
    assert_eq!(lines.len(), ODD.len());

    let second = server(&dir.path().join("second")).start();
    second.wait_until_ready();
    let url = second.url();
    let file = dir.path().join("one.ndjson");
    let report =
        tagfast_json(&["import", file.to_str().unwrap(), "--url", &url, "--wait", "--json"]);
    assert_eq!(report["contents"], ODD.len(), "{report}");
    // Contents, spellings, authors and times are the same.
    assert_eq!(export(&url, &dir.path().join("two.ndjson")), lines);

    for (id, tag) in ODD {
        let found = tagfast_json(&["search", &format!("\"{tag}\""), "--url", &url, "--json"]);
        assert_eq!(found["hits"][0]["id"], *id, "{tag}: {found}");
        let removed = tagfast_json(&["untag", "--url", &url, "--json", "--", "odd", id, tag]);
        assert_eq!(removed["changed"], true, "{id} {tag}: {removed}");
    }
    let gone = tagfast_json(&["view", "odd", "a/b/c", "--url", &url, "--json"]);
    assert_eq!(names(&gone), Vec::<String>::new());
}

#[test]
fn a_gzipped_stream_goes_through_pipes() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(&dir.path().join("data")).start();
    let url = running.url();
    running.client().put(&tag_path("note", "1", "a")).expect(200);
    let file = dir.path().join("out.ndjson.gz");
    let output = tagfast(&["export", file.to_str().unwrap(), "--url", &url]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read(&file).unwrap()[..2], [0x1f, 0x8b]);
    let report = tagfast_json(&["import", file.to_str().unwrap(), "--url", &url, "--json"]);
    assert_eq!((&report["contents"], &report["added"]), (&json!(1), &json!(0)), "{report}");
    let stdout = tagfast(&["export", "-", "--url", &url]);
    assert_eq!(
        output_text(&stdout).lines().filter(|l| l.starts_with('{')).count(),
        1,
        "{stdout:?}"
    );
}
