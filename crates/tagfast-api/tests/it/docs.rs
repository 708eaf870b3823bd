//! The index and the reference page: what a browser and a tool get at `/`, and that every call has
//! an anchor, an example that works, and its problem codes.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tagfast_domain::EpochId;
use tagfast_events::ReplayJob;
use tagfast_resilience::BreakerOptions;
use tagfast_store::FailoverReport;

use crate::dead_letters::{stored, with_dead_letters};
use crate::support::clusters::report;
use crate::support::{Answer, Fixture, fixture, jwt_fixture};

/// The id in the example of `GET /v1/jobs/{id}`.
const JOB_ID: &str = "0190a5c2-7a0b-7c3e-9d5f-2b6c1e8f4a70";
/// The epoch in the examples of failovers.
const EPOCH: &str = "9ec37e1a5c0b4f6d8a21d3e4f5061728";
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

async fn reference_page(fixture: &Fixture) -> String {
    let page = fixture.get("/docs").send().await;
    assert_eq!(
        (page.status.as_u16(), page.header("content-type")),
        (200, "text/html; charset=utf-8")
    );
    String::from_utf8(page.body).unwrap()
}

/// The text between two marks.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(begin).unwrap_or_else(|| panic!("no {begin:?} in {text}"));
    rest.split_once(end).unwrap_or_else(|| panic!("no {end:?} after {begin:?} in {text}")).0
}

fn unescaped(html: &str) -> String {
    html.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// A call of the OpenAPI document with its section of the page.
struct Section {
    method: String,
    path: String,
    html: String,
}

fn sections(page: &str) -> Vec<Section> {
    let api = serde_json::to_value(tagfast_api::openapi()).unwrap();
    let mut all = Vec::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let heading = format!("\">{method} <code>{path}</code></a></h3>");
            let at =
                page.find(&heading).unwrap_or_else(|| panic!("{method} {path} has no section"));
            let start = page[..at].rfind("<section").unwrap();
            let html = page[start..].split_once("</section>").unwrap().0.to_owned();
            all.push(Section { method, path: path.clone(), html });
        }
    }
    all
}

/// A fixture in which everything exists that the examples name.
async fn fixture_for_examples() -> Fixture {
    let fixture = with_dead_letters(fixture());
    fixture.dead_letters.stored.lock().push(stored("default", 1207));
    let job = ReplayJob { id: JOB_ID.to_owned(), ..ReplayJob::default() };
    fixture.dead_letters.jobs.lock().push(job);
    fixture.breakers.make("index", BreakerOptions::default());
    fixture.tag("jira.issue/PROJ-1", "critical").await.ok();
    let epoch = hex::decode(EPOCH).unwrap().try_into().unwrap();
    let failover = FailoverReport { epoch: EpochId(epoch), ..report("c0", 2, 100) };
    fixture.failovers.reports.lock().push(failover);
    fixture
}

/// Runs a `curl` command of the page.
async fn run(fixture: &Fixture, command: &str, method: &str) -> Answer {
    let (head, body) = match command.split_once(" -d ") {
        Some((head, body)) => (head, Some(body)),
        None => (command, None),
    };
    let given = if head.contains(" -X ") { between(head, " -X ", " ") } else { "GET" };
    assert_eq!(given, method, "{command}");
    let url = head.split_whitespace().find(|word| word.contains("http://")).unwrap();
    let path = url.trim_matches('\'').strip_prefix("http://127.0.0.1:7070").unwrap();
    let mut query = Vec::new();
    for pair in head.split(" --data-urlencode ").skip(1) {
        let pair = pair.trim_end_matches([' ', '\\', '\n']).trim_matches('\'');
        let (name, value) = pair.split_once('=').unwrap();
        query.push(format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
    }
    assert_eq!(head.contains(" -G "), !query.is_empty(), "{command}");
    let uri =
        if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
    let request = fixture.request(method, &uri);
    match body {
        Some(body) => {
            assert!(head.contains("-H 'Content-Type: application/json'"), "{command}");
            let body = body.strip_prefix('\'').unwrap().strip_suffix('\'').unwrap();
            request.json(&body.replace(r"'\''", "'")).send().await
        }
        None => request.send().await,
    }
}

#[tokio::test]
async fn a_browser_is_sent_to_the_docs_and_a_tool_gets_an_index() {
    let fixture = jwt_fixture();
    let browser = fixture.get("/").header("accept", BROWSER).send().await;
    assert_eq!((browser.status.as_u16(), browser.header("location")), (303, "/docs"));
    assert_eq!((browser.body.len(), browser.header("vary")), (0, "accept"));
    for accept in [None, Some("*/*"), Some("application/json"), Some("text/html;q=0.5, */*")] {
        let request = fixture.get("/");
        let request = accept.into_iter().fold(request, |r, accept| r.header("accept", accept));
        let answer = request.send().await;
        let links = json!({
            "docs": "/docs", "openapi": "/openapi.json", "health": "/healthz", "ready": "/readyz",
            "metrics": "/metrics", "status": "/v1/status",
        });
        let expect =
            json!({"name": "tagfast", "version": env!("CARGO_PKG_VERSION"), "links": links});
        assert_eq!((answer.ok(), answer.header("vary")), (expect, "accept"), "{accept:?}");
    }
    let head = fixture.request("HEAD", "/").send().await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    let head = fixture.request("HEAD", "/").header("accept", BROWSER).send().await;
    assert_eq!((head.status.as_u16(), head.header("location")), (303, "/docs"));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        fixture.request(method, "/").send().await.problem("method_not_allowed");
    }
}

#[tokio::test]
async fn every_link_of_the_index_works() {
    let fixture = fixture();
    let index = fixture.get("/").send().await.ok();
    for (name, path) in index["links"].as_object().unwrap() {
        assert_eq!(fixture.get(path.as_str().unwrap()).send().await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn every_call_has_an_anchor_an_example_and_its_problem_codes() {
    let page = reference_page(&fixture()).await;
    let api = serde_json::to_value(tagfast_api::openapi()).unwrap();
    let mut anchors = std::collections::BTreeSet::new();
    for section in sections(&page) {
        let Section { method, path, html } = &section;
        let anchor = between(html, "<section id=\"", "\"");
        assert!(anchors.insert(anchor.to_owned()), "{method} {path}: {anchor} is not unique");
        assert!(
            page.contains(&format!("<li><a href=\"#{anchor}\">{method} {path}</a></li>")),
            "{method} {path} is not in the table of contents"
        );
        let command = unescaped(between(html, "<pre class=\"example\">", "</pre>"));
        assert!(command.starts_with("curl") && !command.contains('{') || command.contains(" -d "));
        let operation = &api["paths"][path][method.to_lowercase()];
        assert_eq!(operation["requestBody"].is_object(), command.contains(" -d "), "{command}");
        for (status, response) in operation["responses"].as_object().unwrap() {
            if response["content"]["application/problem+json"] == Value::Null {
                continue;
            }
            let of_status =
                tagfast_api::PROBLEM_CODES.iter().filter(|r| r.status.to_string() == *status);
            for row in of_status {
                let link = format!("<a href=\"/docs/problems/{0}\"><code>{0}</code></a>", row.code);
                assert!(html.contains(&link), "{method} {path} lacks {}", row.code);
            }
        }
    }
    assert_eq!(anchors.len(), 37);
}

#[tokio::test]
async fn every_example_answers_what_the_page_says() {
    let page = reference_page(&fixture()).await;
    for Section { method, path, html } in sections(&page) {
        let command = unescaped(between(&html, "<pre class=\"example\">", "</pre>"));
        let answer = run(&fixture_for_examples().await, &command, &method).await;
        let promised = between(&html, "<p class=\"answer\">Answers ", ".</p>");
        let (status, media_type) = match promised.split_once(' ') {
            Some((status, code)) => (status, Some(between(code, "<code>", "</code>"))),
            None => (promised, None),
        };
        let body = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status.as_str(), status, "{method} {path}: {command}\n{body}");
        if let Some(media_type) = media_type {
            let given = answer.header("content-type").split(';').next().unwrap();
            assert_eq!(given, media_type, "{method} {path}: {command}");
        }
    }
}

/// The page without what stands in `<pre>`, `<code>` and `<style>`.
fn prose(page: &str) -> String {
    let mut text = page.to_owned();
    for (begin, end) in [("<pre", "</pre>"), ("<code", "</code>"), ("<style", "</style>")] {
        while let Some(start) = text.find(begin) {
            let stop = text[start..].find(end).expect("a closed element") + start + end.len();
            text.replace_range(start..stop, "");
        }
    }
    text
}

#[tokio::test]
async fn markdown_is_rendered_and_nothing_is_loaded_from_elsewhere() {
    let fixture = fixture();
    let mut pages = vec![reference_page(&fixture).await];
    for row in tagfast_api::PROBLEM_CODES {
        let page = fixture.get(&format!("/docs/problems/{}", row.code)).send().await;
        pages.push(String::from_utf8(page.body).unwrap());
    }
    for page in pages {
        let prose = prose(&page);
        assert!(!prose.contains('`'), "a backtick is left in {prose}");
        for forbidden in ["<script", "src=", "<link", "@import", "url(", "http://", "https://"] {
            assert!(!prose.contains(forbidden), "{forbidden} in {prose}");
        }
        assert!(page.contains("<code>"));
    }
}
