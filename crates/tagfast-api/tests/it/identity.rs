//! Tags with invisible characters, and names of before they were dropped, over HTTP.

use serde_json::json;
use tagfast_domain::{ContentKey, Limits, Operation, Tag, TagName, UserId, Write, WriteId};
use tagfast_store::{TagWriter, WriteRequest};

use crate::support::{Fixture, fixture};

const TAGS: &str = "/v1/content/page/1/tags";
const FORMER: &str = "crit\u{200B}ical";
/// [`FORMER`] in a URL.
const FORMER_URL: &str = "crit%E2%80%8Bical";
/// A former name of which nothing is seen, in a URL: U+2800.
const BLANK_URL: &str = "%E2%A0%80";

/// Stores names as an earlier release did.
async fn store_former(fixture: &Fixture, id: &str, names: &[&str]) {
    let tags = names.iter().map(|name| {
        let name = TagName::from_canonical(name);
        Tag { display: name.shared(), name, origin: None }
    });
    let write = Write {
        id: WriteId([names.len() as u8; 16]),
        key: ContentKey::parse("default", "page", id).unwrap(),
        user: UserId::parse("old\u{202E}").unwrap(),
        operation: Operation::patch(tags.collect(), Vec::new(), &Limits::default()).unwrap(),
        if_match: None,
    };
    let request = WriteRequest { keyed: None, ..WriteRequest::new(write) };
    fixture.store.write(request).await.unwrap();
}

async fn names(fixture: &Fixture, path: &str) -> Vec<String> {
    let view = fixture.get(path).send().await.ok();
    let tags = view["tags"].as_array().unwrap();
    tags.iter().map(|t| t["tag"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn invisible_characters_make_no_tag() {
    let fixture = fixture();
    let added = fixture.tag("page/1", "Crit%E2%80%8Bi%C2%ADcal").await.ok();
    assert_eq!(added["added"], json!(["critical"]));
    assert_eq!(fixture.get(TAGS).send().await.ok()["tags"][0]["display"], "Critical");
    assert_eq!(fixture.tag("page/1", "%EF%BB%BFcritical").await.ok()["changed"], false);
    for (unseen, words) in [
        ("%E2%80%8B", "U+200B"),
        (BLANK_URL, "U+2800"),
        ("%EF%B8%8F", "U+FE0F"),
        ("%E3%85%A4", "U+3164"),
        ("a%F0%9D%85%99", "U+1D159"),
        ("a%E2%80%AEb", "U+202E"),
    ] {
        let answer = fixture.tag("page/1", unseen).await;
        assert_eq!(answer.status, 422, "{unseen}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(words), "{detail}");
    }
    assert_eq!(names(&fixture, TAGS).await, ["critical"]);
}

#[tokio::test]
async fn a_former_name_is_shown_counted_and_removed() {
    let fixture = fixture();
    store_former(&fixture, "1", &["\u{2800}", FORMER, "ui"]).await;
    assert_eq!(names(&fixture, TAGS).await, [FORMER, "ui", "\u{2800}"]);
    let one = fixture.get(&format!("/v1/tags/{FORMER_URL}")).send().await.ok();
    assert_eq!((&one["tag"], &one["count"]), (&json!(FORMER), &json!(1)));
    let one = fixture.get(&format!("/v1/tags/{BLANK_URL}")).send().await.ok();
    assert_eq!(one["count"], 1);
    // What nothing is stored under is the tag of today, or none.
    let one = fixture.get("/v1/tags/%C2%ADui").send().await.ok();
    assert_eq!((&one["tag"], &one["count"]), (&json!("ui"), &json!(1)));
    fixture.get("/v1/tags/%E2%80%8B").send().await.problem("empty");

    let removed = fixture.request("DELETE", &format!("{TAGS}/{FORMER_URL}")).send().await.ok();
    assert_eq!(removed["removed"], json!([FORMER]));
    let body = r#"{"items": [{"type": "page", "id": "1", "remove": ["\u2800"]}]}"#;
    let batch = fixture.request("POST", "/v1/content:batchTag").json(body).send().await.ok();
    assert_eq!(batch["results"][0]["removed"], json!(["\u{2800}"]));
    store_former(&fixture, "2", &[FORMER, "x"]).await;
    let path = "/v1/content/page/2/tags";
    let patched = fixture.request("PATCH", path).json(r#"{"remove": ["CRITICAL"]}"#).send().await;
    assert_eq!(patched.ok()["removed"], json!([FORMER]));
    assert_eq!(names(&fixture, path).await, ["x"]);
}

#[tokio::test]
async fn ids_with_controls_of_direction_take_no_new_tag_and_lose_old_ones() {
    let fixture = fixture();
    for (control, url) in [("\u{202E}", "%E2%80%AE"), ("\u{200F}", "%E2%80%8F")] {
        let path = format!("/v1/content/page/1{url}/tags");
        for add in [
            fixture.request("PUT", &format!("{path}/ui")),
            fixture.request("PUT", &path).json(r#"{"tags": ["ui"]}"#),
            fixture.request("PATCH", &path).json(r#"{"add": ["ui"]}"#),
        ] {
            let detail = add.send().await.problem("forbidden_character")["detail"].to_string();
            assert!(detail.contains("content id contains U+20"), "{detail}");
        }
        let item = json!({"type": "page", "id": format!("1{control}"), "add": ["ui"]});
        let user = json!({"type": "page", "id": "2", "add": [{"tag": "ui", "by": control}]});
        let body = json!({"items": [item, user]}).to_string();
        let batch = fixture.request("POST", "/v1/content:batchTag").json(&body).send().await.ok();
        for result in batch["results"].as_array().unwrap() {
            assert_eq!(result["problem"]["code"], "forbidden_character", "{result}");
        }
        store_former(&fixture, &format!("1{control}"), &["a", "b"]).await;
        assert_eq!(names(&fixture, &path).await, ["a", "b"]);
        fixture.request("DELETE", &format!("{path}/a")).send().await.ok();
        let emptied = fixture.request("PUT", &path).json(r#"{"tags": []}"#).send().await.ok();
        assert_eq!(emptied["removed"], json!(["b"]));
    }
}
