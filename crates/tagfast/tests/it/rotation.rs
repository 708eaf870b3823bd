//! Secrets of one machine are rotated while the server runs: the secret of tokens and the signing
//! keys.

use std::path::Path;
use std::time::Duration;

use tagfast_testkit::{Client, ServerProcess, wait_for_condition};

use crate::support::{command, server, tags_path};

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

fn token(secret_file: &Path) -> String {
    let mut issue =
        command(&["token", "issue", "--tenant", "t", "--user", "u", "--scope", "admin"]);
    let output = issue.arg("--secret-file").arg(secret_file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A client with a token that the secret in this file signs.
fn client(running: &ServerProcess, secret_file: &Path) -> Client {
    running.client().with_token(token(secret_file))
}

fn degraded(client: &mut Client) -> String {
    client.get("/v1/status").expect(200).json()["degraded"].to_string()
}

#[test]
fn the_secret_of_tokens_is_read_again_and_a_bad_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (file, next) = (dir.path().join("secret"), dir.path().join("next"));
    std::fs::write(&file, "a".repeat(40)).unwrap();
    std::fs::write(&next, "b".repeat(40)).unwrap();
    let running = server(&dir.path().join("data"))
        .env("TAGFAST__AUTH__MODE", "jwt")
        .env("TAGFAST__AUTH__HS256_SECRET_FILE", file.to_str().unwrap())
        .start();
    running.wait_until_ready();
    let mut old = client(&running, &file);
    old.get("/v1/status").expect(200);
    // Empty, too short, missing: what it held before stays in force, and status names the file.
    let faults: [(&str, &dyn Fn()); 3] = [
        ("holds 0 bytes", &|| std::fs::write(&file, "").unwrap()),
        ("holds 5 bytes", &|| std::fs::write(&file, "short").unwrap()),
        ("No such file", &|| std::fs::remove_file(&file).unwrap()),
    ];
    for (words, fault) in faults {
        fault();
        wait_for_condition("the file is named", TEST_TIMEOUT, || {
            let degraded = degraded(&mut old);
            let named = degraded.contains("auth.hs256_secret_file") && degraded.contains(words);
            if named { Ok(()) } else { Err(degraded) }
        });
    }
    // A new secret: its tokens are good, those of the former one are not, also verified ones.
    std::fs::copy(&next, &file).unwrap();
    let mut new = client(&running, &next);
    wait_for_condition("tokens of the new secret are good", TEST_TIMEOUT, || {
        let answer = new.get("/v1/status");
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    });
    assert_eq!(degraded(&mut new), "[]");
    assert_eq!(old.get("/v1/status").expect(401).json()["code"], "invalid_token");
    let log = running.log();
    assert_eq!(log.matches("a credential has changed").count(), 1, "{log}");
    assert_eq!(log.matches("reading a credential's file fails").count(), 1, "{log}");
    assert_eq!(log.matches("reading a credential's file works again").count(), 1, "{log}");
}

#[test]
fn signing_keys_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let (a, b, c) = ("a1".repeat(32), "b2".repeat(32), "c3".repeat(32));
    std::fs::write(&first, &a).unwrap();
    std::fs::write(&second, &a).unwrap();
    let running = server(&dir.path().join("data"))
        .env(
            "TAGFAST__SERVER__SIGNING_KEY_FILE",
            &format!("{},{}", first.display(), second.display()),
        )
        .start();
    running.wait_until_ready();
    let mut client = running.client();
    let path = tags_path("note", "n");
    let sealed = |client: &mut Client| {
        let answer = client.put(&format!("{path}/ui")).expect(200);
        answer.header("consistency-token").unwrap().to_owned()
    };
    let opens = |client: &mut Client, token: &str| {
        let answer = client.request("GET", &path, &[("consistency-token", token)], None).unwrap();
        answer.status == 200
    };
    let of_a = sealed(&mut client);
    // The new key becomes the first one: the former stays accepted in the second file.
    std::fs::write(&first, &b).unwrap();
    let changed = || running.log().matches("a credential has changed").count();
    wait_for_condition("the new key signs", TEST_TIMEOUT, || {
        if changed() == 1 { Ok(()) } else { Err(running.log()) }
    });
    let of_b = sealed(&mut client);
    assert_ne!(of_a, of_b);
    assert!(opens(&mut client, &of_a) && opens(&mut client, &of_b));
    // A malformed file changes nothing; then the former key goes.
    std::fs::write(&second, "no key").unwrap();
    wait_for_condition("the file is named", TEST_TIMEOUT, || {
        let degraded = degraded(&mut client);
        if degraded.contains("64 hexadecimal digits") { Ok(()) } else { Err(degraded) }
    });
    assert!(opens(&mut client, &of_a) && opens(&mut client, &of_b));
    std::fs::write(&second, &c).unwrap();
    wait_for_condition("the former key is gone", TEST_TIMEOUT, || {
        if opens(&mut client, &of_a) { Err("it opens".to_owned()) } else { Ok(()) }
    });
    assert!(opens(&mut client, &of_b));
    assert_eq!(degraded(&mut client), "[]");
}
