//! Tenants over real tokens: no tenant can read, count, suggest, page into or follow up the data of
//! another tenant.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tagfast_testkit::{Client, ServerProcess, wait_for_condition};

use crate::support::{
    found, names, output_text, popular, server, stored, tag_path, tagfast, tags_path,
};

fn start(dir: &Path) -> ServerProcess {
    let secret = dir.join("secret");
    std::fs::write(&secret, "a secret of at least thirty-two bytes, for tests only\n").unwrap();
    server(&dir.join("data"))
        .env("TAGFAST__AUTH__MODE", "jwt")
        .env("TAGFAST__AUTH__HS256_SECRET_FILE", secret.to_str().unwrap())
        .start()
}

fn token(dir: &Path, tenant: &str, scope: &str) -> String {
    let secret = dir.join("secret");
    let output = tagfast(&[
        "token",
        "issue",
        "--secret-file",
        secret.to_str().unwrap(),
        "--tenant",
        tenant,
        "--user",
        "ana",
        "--scope",
        scope,
    ]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn client(running: &ServerProcess, dir: &Path, tenant: &str) -> Client {
    running.client().with_token(token(dir, tenant, "tags:read tags:write admin"))
}

#[test]
fn one_tenant_sees_nothing_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path());
    running.wait_until_ready();
    let (mut acme, mut globex) =
        (client(&running, dir.path(), "acme"), client(&running, dir.path(), "globex"));
    let mut receipt = String::new();
    let mut seen = String::new();
    for n in 0..5 {
        let write = acme.put(&tag_path("note", &format!("n{n}"), "plan-x")).expect(200);
        receipt = write.json()["receipt"].as_str().unwrap().to_owned();
        seen = write.header("consistency-token").unwrap().to_owned();
    }
    globex.put(&tag_path("note", "n0", "lunch")).expect(200);
    wait_for_condition("both tenants are indexed and counted", Duration::from_secs(60), || {
        let done = (
            found(&mut acme, "").len(),
            found(&mut globex, "").len(),
            popular(&mut acme).get("plan-x").copied(),
        );
        if done == (5, 1, Some(5)) { Ok(()) } else { Err(format!("{done:?}")) }
    });

    assert_eq!(names(&globex.get(&tags_path("note", "n0")).expect(200).json()), ["lunch"]);
    let batch = globex
        .post("/v1/content:batchGet", &json!({"items": [{"type": "note", "id": "n1"}]}))
        .expect(200)
        .json();
    assert_eq!(batch["results"][0]["tags"], json!([]), "{batch}");
    assert!(found(&mut globex, "plan-x").is_empty());
    assert!(found(&mut globex, "NOT lunch").is_empty());
    assert_eq!(popular(&mut globex).into_iter().collect::<Vec<_>>(), [("lunch".to_owned(), 1)]);
    assert_eq!(globex.get("/v1/tags?prefix=plan").expect(200).json()["tags"], json!([]));
    let tag = globex.get("/v1/tags/plan-x").json();
    assert!(tag["count"] == 0 || tag["status"] == 404, "{tag}");
    assert_eq!(stored(&mut globex).into_keys().collect::<Vec<_>>(), ["note/n0"]);

    let page = acme.get("/v1/search?q=plan-x&limit=2").expect(200).json();
    let cursor = page["next_cursor"].as_str().unwrap();
    assert_eq!(
        globex.get(&format!("/v1/search?q=plan-x&limit=2&cursor={cursor}")).expect(400).json()["code"],
        "bad_cursor"
    );
    assert_eq!(
        globex.get(&format!("/v1/receipts/{receipt}")).expect(400).json()["code"],
        "bad_token"
    );
    let refused = globex
        .request("GET", &tags_path("note", "n0"), &[("consistency-token", &seen)], None)
        .unwrap();
    assert_eq!(refused.expect(400).json()["code"], "bad_token");
    let report = globex.send("POST", "/v1/admin/recount", Some("{}")).expect(200).text();
    assert!(!report.contains("plan-x"), "{report}");
}

#[test]
fn scopes_and_bad_tokens_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path());
    let path = tag_path("note", "n", "a");
    let mut anonymous = running.client();
    let refused = anonymous.put(&path).expect(401);
    assert!(
        refused.header("www-authenticate").is_some_and(|v| v.starts_with("Bearer")),
        "{refused:?}"
    );
    assert_eq!(refused.json()["code"], "unauthenticated");
    let mut reader = running.client().with_token(token(dir.path(), "acme", "tags:read"));
    assert_eq!(reader.put(&path).expect(403).json()["code"], "missing_scope");
    reader.get("/v1/content/note/n/tags").expect(200);
    assert_eq!(reader.get("/v1/status").expect(403).json()["code"], "missing_scope");
    let good = token(dir.path(), "acme", "tags:read");
    let (head, signature) = good.rsplit_once('.').unwrap();
    let last = if signature.starts_with('A') { 'B' } else { 'A' };
    for bad in [
        format!("{head}."),
        format!("{head}.{last}{}", &signature[1..]),
        "x".to_owned(),
        format!("{good}.x"),
    ] {
        let answer = running.client().with_token(bad.clone()).get("/v1/content/note/n/tags");
        assert_eq!(
            (answer.status, answer.json()["code"].clone()),
            (401, json!("invalid_token")),
            "{bad}"
        );
    }
    let reserved = tagfast(&[
        "token",
        "issue",
        "--secret-file",
        dir.path().join("secret").to_str().unwrap(),
        "--tenant",
        "_system",
        "--user",
        "u",
    ]);
    assert!(!reserved.status.success(), "{}", output_text(&reserved));
    // Calls that need no caller stay open.
    assert_eq!(anonymous.get("/healthz").status, 200);
}
