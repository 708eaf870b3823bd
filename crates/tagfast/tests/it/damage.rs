//! Damaged files and a directory in use: refused with a sentence that says what to do, or repaired
//! automatically.

use std::fs::OpenOptions;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{found, server, stored, wait_until_converged};

const CONTENTS: usize = 400;

/// A directory with contents in every file, closed cleanly.
fn filled(dir: &Path) {
    let mut running = server(dir).start();
    let mut client = running.client();
    let items: Vec<Value> = (0..CONTENTS)
        .map(|n| json!({"type": "doc", "id": format!("d{n}"), "add": ["one", format!("m{}", n % 7)]}))
        .collect();
    let answer = client.post("/v1/content:batchTag", &json!({"items": items})).expect(200).json();
    assert!(answer["results"].as_array().unwrap().iter().all(|r| r["ok"] == true), "{answer}");
    running.wait_until_ready();
    wait_until_converged(&mut client);
    running.stop();
}

/// Writes garbage over a file from `start` on; its length stays.
fn spoil(file: &Path, start: u64) {
    let length = std::fs::metadata(file).unwrap().len();
    let mut out = OpenOptions::new().write(true).open(file).unwrap();
    out.seek(SeekFrom::Start(start)).unwrap();
    out.write_all(&vec![0xa5; usize::try_from(length.saturating_sub(start)).unwrap()]).unwrap();
}

#[track_caller]
fn refused(dir: &Path, words: &[&str]) {
    let Err((status, log)) = server(dir).try_start() else { panic!("it started") };
    assert_eq!(status.code(), Some(1), "{log}");
    for word in words {
        assert!(log.contains(word), "{word:?} is not in:\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_truncated_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let file = dir.path().join("store-3.sqlite");
    let length = std::fs::metadata(&file).unwrap().len();
    OpenOptions::new().write(true).open(&file).unwrap().set_len(length / 2).unwrap();
    refused(dir.path(), &["store-3.sqlite", "damaged", "tagfast restore"]);
    std::fs::remove_file(&file).unwrap();
    refused(dir.path(), &["store-3.sqlite", "missing"]);
}

#[test]
fn a_file_that_is_no_database_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    spoil(&dir.path().join("store-5.sqlite"), 0);
    refused(dir.path(), &["store-5.sqlite", "damaged", "tagfast restore"]);
}

#[test]
fn damage_inside_a_file_is_found_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    server(dir.path()).start().kill();
    spoil(&dir.path().join("store-2.sqlite"), 4096);
    refused(dir.path(), &["store-2.sqlite", "damaged", "tagfast restore"]);
}

#[test]
fn a_directory_of_a_newer_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    // Bytes 60 to 63 of an SQLite file are its user version, which is our schema version.
    let mut file = OpenOptions::new().write(true).open(dir.path().join("store-0.sqlite")).unwrap();
    file.seek(SeekFrom::Start(60)).unwrap();
    file.write_all(&9999u32.to_be_bytes()).unwrap();
    drop(file);
    refused(dir.path(), &["store-0.sqlite", "9999", "newer"]);
}

#[test]
fn a_directory_in_use_is_refused_with_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = server(dir.path()).start();
    refused(dir.path(), &["in use", &first.pid().to_string()]);
    assert_eq!(first.client().get("/healthz").status, 200);
    first.kill();
    // A lock dies with its process: no file to remove by hand.
    server(dir.path()).start().stop();
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all
}

#[test]
fn damaged_search_and_counts_are_rebuilt_without_a_hand() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    for part in ["search", "popular"] {
        let files = files(&dir.path().join(part));
        assert!(!files.is_empty());
        files.iter().for_each(|f| spoil(f, 0));
    }
    let mut running = server(dir.path()).start();
    running.wait_until_ready();
    let mut client = running.client();
    let contents = wait_until_converged(&mut client);
    assert_eq!(contents.len(), CONTENTS);
    assert_eq!(
        found(&mut client, "one AND m3").len(),
        (0..CONTENTS).filter(|n| n % 7 == 3).count()
    );
    running.stop();

    for part in ["search", "popular"] {
        std::fs::remove_dir_all(dir.path().join(part)).unwrap();
    }
    let running = server(dir.path()).start();
    running.wait_until_ready();
    let mut client = running.client();
    assert_eq!(wait_until_converged(&mut client), stored(&mut client));
}
