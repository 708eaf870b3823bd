//! The main job on the demo data: tag, untag, view, search, popular; and the README's lines exactly
//! as printed.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tagfast_testkit::{Client, wait_for_condition};

use crate::support::{command, encode, names, output_text, server, tag_path, tags_path, texts};

const PACKAGES: u64 = 29_795;
const TAGGINGS: u64 = 109_908;

fn total(client: &mut Client, query: &str) -> Value {
    client.get(&format!("/v1/search?q={}&limit=1&total=exact", encode(query))).expect(200).json()["total"].clone()
}

fn exactly(count: u64) -> Value {
    json!({"value": count, "relation": "eq"})
}

/// The demo data, as the file has it.
fn sample() -> Vec<(String, BTreeSet<String>)> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/debtags.ndjson.gz");
    let mut text = String::new();
    let mut gzip = flate2::read::GzDecoder::new(std::fs::File::open(file).unwrap());
    std::io::Read::read_to_string(&mut gzip, &mut text).unwrap();
    text.lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let tags = texts(&line["tags"]);
            (line["id"].as_str().unwrap().to_owned(), tags)
        })
        .collect()
}

#[test]
fn the_demo_is_loaded_once_and_everything_agrees_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = server(dir.path()).arg("--demo").start();
    running.wait_until_ready();
    let mut client = running.client();
    let sample = sample();
    assert_eq!(sample.len() as u64, PACKAGES);
    assert_eq!(sample.iter().map(|(_, tags)| tags.len() as u64).sum::<u64>(), TAGGINGS);
    wait_for_condition("all of it is searchable", Duration::from_secs(60), || {
        let total = total(&mut client, "");
        if total == exactly(PACKAGES) { Ok(()) } else { Err(total.to_string()) }
    });
    for (id, tags) in sample.iter().step_by(997) {
        let view = client.get(&tags_path("debian.package", id)).expect(200).json();
        let shown = view["tags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["display"].as_str().unwrap().to_owned());
        assert_eq!(&shown.collect::<BTreeSet<_>>(), tags, "{id}");
    }

    // The file answers the same questions.
    let having = |want: &dyn Fn(&BTreeSet<String>) -> bool| {
        sample.iter().filter(|(_, t)| want(t)).count() as u64
    };
    let has = |t: &BTreeSet<String>, tag: &str| t.contains(tag);
    assert_eq!(
        total(
            &mut client,
            "role::program AND (interface::x11 OR interface::commandline) AND NOT use::gameplaying"
        ),
        exactly(having(&|t| {
            has(t, "role::program")
                && (has(t, "interface::x11") || has(t, "interface::commandline"))
                && !has(t, "use::gameplaying")
        }))
    );
    assert_eq!(
        total(&mut client, "implemented-in::c++ uitoolkit::qt"),
        exactly(having(&|t| has(t, "implemented-in::c++") && has(t, "uitoolkit::qt")))
    );
    let libraries = having(&|t| has(t, "devel::library"));
    wait_for_condition("the counts follow", Duration::from_secs(60), || {
        let leaderboard = client.get("/v1/tags/popular?window=all&limit=1").expect(200).json();
        let expected =
            json!([{"tag": "devel::library", "display": "devel::library", "count": libraries}]);
        if leaderboard["tags"] == expected { Ok(()) } else { Err(leaderboard.to_string()) }
    });
    let hour = client.get("/v1/tags/popular?window=1h&limit=1").expect(200).json();
    assert_eq!(
        hour["tags"][0]["count"], libraries,
        "just loaded, so the last hour has it all: {hour}"
    );

    let facets = client
        .get("/v1/search?q=role%3A%3Aprogram&limit=1&facets=true")
        .expect(200)
        .json()["facets"]
        .clone();
    let programs = having(&|t| has(t, "role::program"));
    let facet = facets.as_array().unwrap().iter().find(|f| f["tag"] == "role::program");
    assert_eq!(facet.map(|f| &f["count"]), Some(&json!(programs)), "{facets}");

    let mine = tag_path("debian.package", "0ad", "My Favourite");
    assert_eq!(client.put(&mine).expect(200).json()["added"], json!(["my-favourite"]));
    assert_eq!(client.put(&mine).expect(200).json()["changed"], false);
    // Read your writes: at once, without a token.
    let view = client.get(&tags_path("debian.package", "0ad")).expect(200).json();
    assert!(names(&view).contains(&"my-favourite".to_owned()));
    wait_for_condition("the new tag is found", Duration::from_secs(60), || {
        let total = total(&mut client, "my-favourite AND game::strategy");
        if total == exactly(1) { Ok(()) } else { Err(total.to_string()) }
    });
    client.delete(&mine).expect(200);
    wait_for_condition("the removed tag is not found", Duration::from_secs(60), || {
        let total = total(&mut client, "my-favourite");
        if total == exactly(0) { Ok(()) } else { Err(total.to_string()) }
    });
    let recount = client.send("POST", "/v1/admin/recount", Some("{}")).expect(200).json();
    assert_eq!(
        (&recount["contents"], &recount["drifted_counts"]),
        (&json!(PACKAGES), &json!(0)),
        "{recount}"
    );

    // Rebuilt while serving: no search in between finds less.
    std::thread::scope(|scope| {
        let rebuilt = scope.spawn(|| {
            running
                .client()
                .with_timeout(Duration::from_secs(120))
                .send("POST", "/v1/admin/reindex", None)
                .expect(200)
                .json()
        });
        while !rebuilt.is_finished() {
            assert_eq!(total(&mut client, ""), exactly(PACKAGES));
        }
        assert_eq!(rebuilt.join().unwrap()["contents"], PACKAGES);
    });
    running.stop();

    let again = server(dir.path()).arg("--demo").start();
    again.wait_until_ready();
    assert!(!again.log().contains("loading"), "{}", again.log());
    assert_eq!(total(&mut again.client(), ""), exactly(PACKAGES));
}

#[test]
fn the_readme_s_curl_lines_work_as_printed() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(&dir.path().join("data")).start();
    running.wait_until_ready();
    let small = dir.path().join("small.ndjson");
    let lines: Vec<String> = sample()
        .into_iter()
        .take(300)
        .map(|(id, tags)| json!({"type": "debian.package", "id": id, "tags": tags}).to_string())
        .collect();
    std::fs::write(&small, lines.join("\n")).unwrap();
    let loaded = command(&["import", small.to_str().unwrap(), "--wait", "--url", &running.url()])
        .output()
        .unwrap();
    assert!(loaded.status.success(), "{}", output_text(&loaded));
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    let curls: Vec<&str> = readme.lines().filter(|l| l.starts_with("curl ")).collect();
    assert_eq!(curls.len(), 5, "the README promises five lines");
    // What the README shows as the answer of its second line.
    let shown = readme.split("```json").nth(1).and_then(|rest| rest.split("```").next());
    let mut shown: Value = serde_json::from_str(shown.expect("an answer")).expect("JSON");
    for (number, line) in curls.into_iter().enumerate() {
        assert!(line.contains("127.0.0.1:7070"), "{line}");
        let line = line.replacen("curl ", "curl --silent --show-error --fail ", 1);
        let line = line.replace("127.0.0.1:7070", &running.address().to_string());
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", output_text(&output));
        let body: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{line}: {e}: {output:?}"));
        if number == 1 {
            for differs in ["version", "receipt"] {
                assert!(shown[differs].is_string(), "{shown}");
                shown[differs] = body[differs].clone();
            }
            assert_eq!(body, shown, "{line}");
        }
        let empty = ["hits", "tags", "added"]
            .iter()
            .any(|f| body[*f].as_array().is_some_and(Vec::is_empty));
        assert!(!empty, "{line} shows nothing: {body}");
    }
}
