//! What the tests share: the program, its client commands, and the comparison of search and counts
//! with the store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tagfast_testkit::{Client, ServerOptions, wait_for_condition};

/// How long search and counts may take to follow; far above what they need, because tests share few
/// processors.
const CONVERGENCE: Duration = Duration::from_secs(60);

/// Whether the tests run with their big counts.
pub(crate) fn full() -> bool {
    cfg!(feature = "full")
}

/// How to start a server over this data directory.
pub(crate) fn server(data_dir: &Path) -> ServerOptions {
    ServerOptions::new(env!("CARGO_BIN_EXE_tagfast"), data_dir).env("TAGFAST__LOG__LEVEL", "info")
}

/// A command of the program, without configuration from the test's environment.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tagfast"));
    for (name, _) in
        std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("TAGFAST_"))
    {
        command.env_remove(name);
    }
    command.args(args);
    command
}

/// Runs a command of the program to its end.
pub(crate) fn tagfast(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// Runs a command that must succeed; its results as JSON.
#[track_caller]
pub(crate) fn tagfast_json(args: &[&str]) -> Value {
    let output = tagfast(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {output:?}"))
}

/// Both outputs as text.
pub(crate) fn output_text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// One path segment or query value.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// The path of a content's tags.
pub(crate) fn tags_path(content_type: &str, id: &str) -> String {
    format!("/v1/content/{}/{}/tags", encode(content_type), encode(id))
}

/// The path of one tag of a content.
pub(crate) fn tag_path(content_type: &str, id: &str, tag: &str) -> String {
    format!("{}/{}", tags_path(content_type, id), encode(tag))
}

/// The canonical names in a view.
pub(crate) fn names(view: &Value) -> Vec<String> {
    let tags = view["tags"].as_array().unwrap_or_else(|| panic!("no tags in {view}"));
    tags.iter().map(|t| t["tag"].as_str().unwrap_or_default().to_owned()).collect()
}

/// All contents as the store has them: `type/id` with its canonical names.
pub(crate) type Contents = BTreeMap<String, BTreeSet<String>>;

/// Everything in the store, read through the export.
pub(crate) fn stored(client: &mut Client) -> Contents {
    let answer = client.get("/v1/export").expect(200);
    let mut contents = Contents::new();
    for line in answer.text().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let key = format!("{}/{}", line["type"].as_str().unwrap(), line["id"].as_str().unwrap());
        // The export has spellings; the tests that use this write canonical ones.
        let tags = names(&line).into_iter().collect();
        assert!(contents.insert(key, tags).is_none(), "a content is exported twice: {line}");
    }
    contents
}

/// All contents that a query finds, page by page.
pub(crate) fn found(client: &mut Client, query: &str) -> Contents {
    let mut contents = Contents::new();
    let mut cursor = String::new();
    loop {
        let page = client
            .get(&format!("/v1/search?q={}&limit=100{cursor}", encode(query)))
            .expect(200)
            .json();
        for hit in page["hits"].as_array().unwrap() {
            let key = format!("{}/{}", hit["type"].as_str().unwrap(), hit["id"].as_str().unwrap());
            let tags = hit["tags"]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t.as_str().unwrap().to_owned())
                .collect();
            assert!(contents.insert(key, tags).is_none(), "a content is found twice: {hit}");
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={}", encode(next)),
            None => return contents,
        }
    }
}

/// The counts of all tags.
pub(crate) fn popular(client: &mut Client) -> BTreeMap<String, u64> {
    let leaderboard = client.get("/v1/tags/popular?window=all&limit=1000").expect(200).json();
    let tags = leaderboard["tags"].as_array().unwrap();
    tags.iter()
        .map(|t| (t["tag"].as_str().unwrap().to_owned(), t["count"].as_u64().unwrap()))
        .collect()
}

/// How often each tag is used.
pub(crate) fn counted(contents: &Contents) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for tag in contents.values().flatten() {
        *counts.entry(tag.clone()).or_insert(0) += 1;
    }
    counts
}

/// Waits until search and counts say what the store says, without a manual step; then a recount
/// must find no drift. The store must have at most 1,000 tags and no writers.
pub(crate) fn wait_until_converged(client: &mut Client) -> Contents {
    let truth = stored(client);
    wait_for_condition("search follows the store", CONVERGENCE, || {
        let found = found(client, "");
        if found == truth { Ok(()) } else { Err(difference(&found, &truth)) }
    });
    let counts = counted(&truth);
    assert!(counts.len() <= 1000, "{} tags are more than a leaderboard shows", counts.len());
    wait_for_condition("the counts follow the store", CONVERGENCE, || {
        let found = popular(client);
        if found == counts { Ok(()) } else { Err(difference(&found, &counts)) }
    });
    let report = client.send("POST", "/v1/admin/recount", Some("{}")).expect(200).json();
    assert_eq!(
        (&report["drifted_contents"], &report["drifted_counts"]),
        (&0.into(), &0.into()),
        "{report}"
    );
    truth
}

fn difference<V: PartialEq + std::fmt::Debug>(
    found: &BTreeMap<String, V>,
    truth: &BTreeMap<String, V>,
) -> String {
    let first = truth
        .iter()
        .find(|(k, v)| found.get(*k) != Some(v))
        .map(|(k, v)| format!("{k} should be {v:?} and is {:?}", found.get(k)))
        .or_else(|| {
            found
                .keys()
                .find(|k| !truth.contains_key(*k))
                .map(|k| format!("{k} should not be there"))
        });
    format!("{} of {} there; {}", found.len(), truth.len(), first.unwrap_or_default())
}
