//! A full disk: writes are refused with 507, no write is half done, and the service recovers
//! without help once there is space.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tagfast_testkit::{Outcome, SetHistory, wait_for_condition};

use crate::support::{server, stored, tag_path, tags_path, wait_until_converged};

const DISK: u64 = 96 << 20;
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Fills the rest of the file system.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    let mut piece = vec![0xa5; 1 << 20];
    while !piece.is_empty() {
        match file.write(&piece) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::StorageFull => piece.truncate(piece.len() / 2),
            Err(e) => panic!("cannot fill {}: {e}", path.display()),
        }
    }
}

#[test]
fn a_full_disk_refuses_writes_and_recovers_when_space_returns() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut running = server(&data).on_small_disk(dir.path(), DISK).start();
    running.wait_until_ready();
    let mut client = running.client();
    let mut history = SetHistory::default();
    let mut write = |client: &mut tagfast_testkit::Client, n: usize| -> (u16, Value) {
        // Long ids fill pages quickly.
        let id = format!("{n:05}-{}", "x".repeat(200));
        let answer = client.send("PUT", &tag_path("disk", &id, "kept"), None);
        let body = answer.json();
        let outcome = match answer.status {
            200 => Outcome::Acknowledged,
            _ if body["outcome_unknown"] == true => Outcome::Unknown,
            _ => Outcome::Refused,
        };
        history.record(format!("disk/{id}"), outcome);
        (answer.status, body)
    };
    for n in 0..50 {
        assert_eq!(write(&mut client, n).0, 200);
    }

    let ballast = running.inside(&dir.path().join("ballast"));
    fill(&ballast);
    let mut n = 50;
    let problem = wait_for_condition("507", TEST_TIMEOUT, || {
        n += 1;
        // Pages that the files already have are used up first.
        let (status, body) = write(&mut client, n);
        if status == 507 { Ok(body) } else { Err(format!("{status} {body}")) }
    });
    assert_eq!(
        (&problem["code"], &problem["status"]),
        (&json!("disk_full"), &json!(507)),
        "{problem}"
    );
    // Reading goes on.
    let first = format!("{:05}-{}", 0, "x".repeat(200));
    let view = client.get(&tags_path("disk", &first)).expect(200).json();
    assert_eq!(view["tags"][0]["tag"], "kept");
    assert_eq!(client.get("/healthz").status, 200);

    std::fs::remove_file(&ballast).unwrap();
    wait_for_condition("writes are taken again", TEST_TIMEOUT, || {
        n += 1;
        let (status, body) = write(&mut client, n);
        if status == 200 { Ok(()) } else { Err(format!("{status} {body}")) }
    });
    for _ in 0..20 {
        n += 1;
        assert_eq!(write(&mut client, n).0, 200);
    }
    let contents = wait_until_converged(&mut client);
    assert_eq!(history.check(contents.keys().map(String::as_str)), Vec::<String>::new());
    assert!(contents.values().all(|tags| tags.iter().eq(["kept"])), "half written: {contents:?}");
    assert_eq!(stored(&mut client), contents);
    running.stop();
}
