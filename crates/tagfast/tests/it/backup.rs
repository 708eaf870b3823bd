//! Backup while writing, and restore: writes acknowledged before the backup are there, later ones
//! are `unknown`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tagfast_testkit::{Client, wait_for_condition};

use crate::support::{
    output_text, server, tag_path, tagfast, tagfast_json, tags_path, wait_until_converged,
};

fn put(client: &mut Client, id: &str, tag: &str) -> Value {
    client.put(&tag_path("note", id, tag)).expect(200).json()
}

fn receipt(client: &mut Client, write: &Value) -> Value {
    client.get(&format!("/v1/receipts/{}", write["receipt"].as_str().unwrap())).expect(200).json()
}

#[test]
fn a_backup_while_writing_restores_into_a_new_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let (data, saved, back) =
        (dir.path().join("data"), dir.path().join("saved"), dir.path().join("back"));
    let [data_arg, saved_arg, back_arg] = [&data, &saved, &back].map(|p| p.to_str().unwrap());
    let mut running = server(&data).start();
    let mut client = running.client();
    let before: Vec<Value> =
        (0..40).map(|n| put(&mut client, &format!("before-{n}"), "early")).collect();

    // Writes go on while the backup runs, and are still going on after it.
    let (stop, during) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let mut client = running.client();
        let (stop, during) = (&stop, &during);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let n = during.fetch_add(1, Ordering::Relaxed);
                put(&mut client, &format!("during-{n}"), "middle");
            }
        });
        let enough = |more: usize| {
            let from = during.load(Ordering::Relaxed);
            wait_for_condition("writes go on", Duration::from_secs(30), || {
                let now = during.load(Ordering::Relaxed);
                if now >= from + more { Ok(()) } else { Err(format!("{now}")) }
            });
        };
        enough(20);
        let report = tagfast_json(&["backup", saved_arg, "--data-dir", data_arg, "--json"]);
        assert_eq!(report["files"], 8, "{report}");
        enough(5);
        stop.store(true, Ordering::Relaxed);
    });
    let after =
        client.request("PUT", &tag_path("note", "after", "late"), &[], None).unwrap().expect(200);
    let late_token = after.header("consistency-token").unwrap().to_owned();
    let epoch = client.get("/v1/status").expect(200).json()["epoch"].clone();
    running.stop();

    let refused = tagfast(&["restore", saved_arg, "--data-dir", data_arg]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(output_text(&refused).contains("empty"), "{refused:?}");
    tagfast_json(&["restore", saved_arg, "--data-dir", back_arg, "--json"]);

    let mut restored = server(&back).start();
    restored.wait_until_ready();
    let mut client = restored.client();
    assert_ne!(client.get("/v1/status").expect(200).json()["epoch"], epoch);
    for write in &before {
        assert_eq!(receipt(&mut client, write)["verdict"], "kept", "{write}");
    }
    let verdict = receipt(&mut client, &after.json());
    assert_eq!(
        (&verdict["verdict"], verdict["reason"].is_string()),
        (&"unknown".into(), true),
        "{verdict}"
    );
    // A read with a token from the lost time is answered, and says that it cannot keep the promise.
    let late = client
        .request("GET", &tags_path("note", "after"), &[("consistency-token", &late_token)], None)
        .unwrap();
    let view = late.expect(200).json();
    assert_eq!(view["tags"], serde_json::json!([]));
    assert_eq!(view["meta"]["degraded"][0]["reason"], "token_unknown", "{view}");

    let contents = wait_until_converged(&mut client);
    for n in 0..40 {
        assert!(contents.contains_key(&format!("note/before-{n}")));
    }
    assert!(!contents.contains_key("note/after"));
    // Versions go on upwards: a client that saw the lost time is never shown an older number as
    // news.
    let old: u64 = after.json()["version"].as_str().unwrap().parse().unwrap();
    let new: u64 = put(&mut client, "after", "again")["version"].as_str().unwrap().parse().unwrap();
    assert!(new > old, "{new} after {old}");
    restored.stop();
}

#[test]
fn an_interrupted_backup_is_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let (data, saved, back) =
        (dir.path().join("data"), dir.path().join("saved"), dir.path().join("back"));
    let [data_arg, saved_arg, back_arg] = [&data, &saved, &back].map(|p| p.to_str().unwrap());
    server(&data).start().stop();
    tagfast_json(&["backup", saved_arg, "--data-dir", data_arg, "--json"]);
    std::fs::remove_file(saved.join("store-4.sqlite")).unwrap();
    let refused = tagfast(&["restore", saved_arg, "--data-dir", back_arg]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(output_text(&refused).contains("store-4.sqlite"), "{refused:?}");
}

#[test]
fn a_backup_is_verified_byte_for_byte_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let (data, saved, back) =
        (dir.path().join("data"), dir.path().join("saved"), dir.path().join("back"));
    let [data_arg, saved_arg, back_arg] = [&data, &saved, &back].map(|p| p.to_str().unwrap());
    let mut running = server(&data).start();
    put(&mut running.client(), "page", "urgent");
    let made = tagfast_json(&["backup", saved_arg, "--data-dir", data_arg, "--json"]);
    running.stop();
    assert_eq!((&made["signing_key"], &made["checksums"]), (&true.into(), &true.into()), "{made}");
    let verified = tagfast_json(&["backup", "verify", saved_arg, "--json"]);
    assert_eq!(verified, made);
    let missing = tagfast(&["backup", "verify", back_arg]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    assert_eq!(tagfast(&["backup", "verify"]).status.code(), Some(2));
    assert_eq!(tagfast(&["backup"]).status.code(), Some(2));

    // One byte of a tag.
    let file = (0..8)
        .map(|n| saved.join(format!("store-{n}.sqlite")))
        .find(|path| std::fs::read(path).unwrap().windows(6).any(|bytes| bytes == b"urgent"))
        .unwrap();
    let whole = std::fs::read(&file).unwrap();
    let mut changed = whole.clone();
    let at = whole.windows(6).position(|bytes| bytes == b"urgent").unwrap();
    changed[at] = b'a';
    std::fs::write(&file, &changed).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    for call in [
        &["backup", "verify", saved_arg][..],
        &["backup", "verify", saved_arg, "--json"],
        &["restore", saved_arg, "--data-dir", back_arg],
    ] {
        let refused = tagfast(call);
        assert_eq!(refused.status.code(), Some(1), "{call:?}: {refused:?}");
        assert!(output_text(&refused).contains(name), "{call:?}: {refused:?}");
    }
    assert!(!back.exists(), "nothing is made");
    std::fs::write(&file, &whole).unwrap();

    // A backup without a signing key says so, each time.
    std::fs::remove_file(data.join("token.key")).unwrap();
    let without = dir.path().join("without");
    let without_arg = without.to_str().unwrap();
    for call in [
        &["backup", without_arg, "--data-dir", data_arg][..],
        &["backup", "verify", without_arg],
        &["restore", without_arg, "--data-dir", back_arg],
    ] {
        let done = tagfast(call);
        assert_eq!(done.status.code(), Some(0), "{call:?}: {done:?}");
        assert!(output_text(&done).contains("no signing key"), "{call:?}: {done:?}");
    }
    let mut running = server(&back).start();
    assert!(running.log().contains("the signing key token.key is missing"), "{}", running.log());
    running.stop();
}
