//! Web pages of other sites: every route of the document is called as a page could call it.

use std::collections::BTreeSet;

use http::Method;
use serde_json::Value;
use tagfast_api::AllowedHosts;

use crate::support::{
    Answer, ApiLimits, AuthConfig, Fixture, build, encoded, fixture, jwt_fixture, keys,
};

/// A method and a path of the document, with examples for its parameters.
struct Route {
    method: String,
    path: String,
}

impl Route {
    fn changes(&self) -> bool {
        self.method != "GET"
    }

    async fn call(&self, fixture: &Fixture, headers: &[(&str, &str)]) -> Answer {
        let request = fixture.request(&self.method, &self.path);
        headers
            .iter()
            .fold(request, |request, (name, value)| request.header(name, value))
            .send()
            .await
    }
}

/// Every route of the document, and one that does not exist.
fn routes() -> Vec<Route> {
    let api = serde_json::to_value(tagfast_api::openapi()).unwrap();
    let mut routes = Vec::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let mut path = path.clone();
            for p in operation["parameters"].as_array().into_iter().flatten() {
                if p["in"] == "path" {
                    let name = format!("{{{}}}", p["name"].as_str().unwrap());
                    path = path.replace(&name, &encoded(p["example"].as_str().unwrap()));
                }
            }
            routes.push(Route { method: method.to_uppercase(), path });
        }
    }
    assert!(routes.len() > 25 && routes.iter().any(|r| r.method == "PATCH"));
    for method in ["GET", "POST"] {
        routes.push(Route { method: method.to_owned(), path: "/nowhere".to_owned() });
    }
    routes
}

const JSON: (&str, &str) = ("content-type", "application/json");
const HOST: (&str, &str) = ("host", "127.0.0.1:7070");

#[tokio::test]
async fn no_route_answers_a_foreign_host() {
    let fixture = fixture();
    for route in routes() {
        for host in ["evil.example", "evil.example:7070", "127.0.0.1.evil.example", "0.0.0.0", ""] {
            let answer = route.call(&fixture, &[("host", host), JSON]).await;
            answer.problem("host_not_allowed");
        }
        for host in ["127.0.0.1:7070", "localhost", "[::1]:7070"] {
            let answer = route.call(&fixture, &[("host", host), JSON]).await;
            assert_ne!(answer.status, 421, "{} {} for {host}", route.method, route.path);
        }
    }
}

#[tokio::test]
async fn no_route_changes_anything_for_a_foreign_page() {
    let fixture = fixture();
    fixture.tag("a/1", "x").await.ok();
    let foreign: [&[(&str, &str)]; 5] = [
        &[("origin", "https://evil.example")],
        &[("origin", "http://127.0.0.1:3000")],
        &[("origin", "null")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")],
    ];
    for route in routes() {
        for page in foreign {
            let headers = [&[HOST, JSON], page].concat();
            let answer = route.call(&fixture, &headers).await;
            if route.changes() {
                answer.problem("cross_site");
            } else {
                assert_ne!(answer.status, 403, "{}: a page cannot read it anyway", route.path);
            }
            assert_eq!(answer.header("access-control-allow-origin"), "", "{}", route.path);
        }
        let own = [HOST, JSON, ("origin", "http://127.0.0.1:7070")];
        assert_ne!(route.call(&fixture, &own).await.status, 403, "{}", route.path);
    }
}

#[tokio::test]
async fn no_post_is_accepted_unless_it_declares_json() {
    let fixture = fixture();
    let routes = routes();
    let posts = routes.iter().filter(|r| r.method == "POST" && r.path != "/nowhere");
    let mut count = 0;
    for route in posts {
        count += 1;
        // What a form or a script of a foreign page can send without being asked for permission.
        for simple in [
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "text/plain; application/json",
            "application/jsonx",
        ] {
            for body in ["", "{}"] {
                let request = fixture.request("POST", &route.path);
                let request = match simple {
                    "" => request.raw_without_type(body.as_bytes()),
                    simple => request.raw(simple, body.as_bytes()),
                };
                request.send().await.problem("unsupported_media_type");
            }
        }
    }
    assert!(count >= 8, "{count}");
    for method in ["PUT", "DELETE", "PATCH"] {
        let request = fixture.request(method, "/v1/content/a/1/tags/x");
        let answer = request.header("content-length", "3").raw("text/plain", b"add").send().await;
        assert_ne!(answer.status, 200, "{method}");
    }
    fixture.request("POST", "/v1/admin/reindex").raw("application/json", b"").send().await.ok();
    fixture
        .request("POST", "/v1/admin/reindex")
        .json(r#"{"x": 1}"#)
        .send()
        .await
        .problem("unknown_field");
}

#[tokio::test]
async fn a_preflight_permits_nothing() {
    let fixture = fixture();
    for route in routes() {
        let preflight = Route { method: "OPTIONS".to_owned(), path: route.path.clone() };
        let headers = [
            HOST,
            ("origin", "https://evil.example"),
            ("access-control-request-method", route.method.as_str()),
            ("access-control-request-headers", "content-type"),
        ];
        let answer = preflight.call(&fixture, &headers).await;
        assert!(answer.status.is_client_error(), "{}: {}", route.path, answer.status);
        let names = answer.headers.keys().filter(|n| n.as_str().starts_with("access-control"));
        assert_eq!(names.count(), 0, "{}", route.path);
    }
}

#[tokio::test]
async fn every_answer_protects_itself_in_a_browser() {
    let limits = ApiLimits::default();
    let fixture = build(AuthConfig::None, limits, |services| services.failovers = None);
    let mut statuses = BTreeSet::new();
    for route in routes() {
        let answer = route.call(&fixture, &[HOST, JSON]).await;
        statuses.insert(answer.status.as_u16());
        let path = &route.path;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin", "{path}");
        let is_page = !path.starts_with("/v1/");
        assert_eq!(answer.header("x-frame-options") == "DENY", is_page, "{path}");
        let policy = answer.header("content-security-policy");
        assert_eq!(policy.contains("frame-ancestors 'none'"), is_page, "{path}: {policy}");
        assert_eq!(policy.contains("default-src 'none'"), is_page, "{path}: {policy}");
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
    }
    assert!(statuses.len() >= 4, "{statuses:?}");
    // The only style of a page is the one that the policy names.
    let page = fixture.get("/docs").send().await;
    let html = String::from_utf8(page.body.clone()).unwrap();
    let (_, rest) = html.split_once("<style>").unwrap();
    let (style, _) = rest.split_once("</style>").unwrap();
    assert_eq!((html.matches("<style").count(), html.matches(" style=").count()), (1, 0));
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, style.as_bytes());
    let encode = |bytes: &[u8]| base64::Engine::encode(&base64::prelude::BASE64_STANDARD, bytes);
    let hash = format!("'sha256-{}'", encode(digest.as_ref()));
    assert!(page.header("content-security-policy").contains(&hash), "{hash}");
}

#[tokio::test]
async fn names_are_checked_with_tokens_only_when_some_are_configured() {
    let token = keys::user("acme");
    let get = async |fixture: &Fixture, host: &str| {
        fixture.get("/v1/content/a/1/tags").bearer(&token).header("host", host).send().await
    };
    get(&jwt_fixture(), "evil.example").await.ok();
    let jwt = build(crate::support::hs256(), ApiLimits::default(), |services| {
        services.allowed_hosts = AllowedHosts::new(["tags.example.com"], false).unwrap();
    });
    get(&jwt, "evil.example").await.problem("host_not_allowed");
    get(&jwt, "tags.example.com").await.ok();
    // A change that a page of a different origin asks for is refused in every mode, unless its name
    // is configured.
    let put = async |fixture: &Fixture, origin: &str| {
        let request = fixture.request("PUT", "/v1/content/a/1/tags/x").bearer(&token);
        request.header("host", "localhost").header("origin", origin).send().await
    };
    put(&jwt_fixture(), "https://evil.example").await.problem("cross_site");
    put(&jwt, "https://evil.example").await.problem("cross_site");
    put(&jwt, "https://tags.example.com").await.ok();
    let none = build(AuthConfig::None, ApiLimits::default(), |services| {
        services.allowed_hosts = AllowedHosts::new(["tags.example.com:8443"], false).unwrap();
    });
    get(&none, "tags.example.com:8443").await.ok();
    get(&none, "tags.example.com").await.problem("host_not_allowed");
}

#[tokio::test]
async fn a_refused_request_has_no_effect() {
    let fixture = fixture();
    let request = fixture.request(Method::PUT.as_str(), "/v1/content/a/1/tags/x");
    request.header("origin", "https://evil.example").send().await.problem("cross_site");
    let request = fixture.request("PUT", "/v1/content/a/1/tags/x").header("host", "evil.example");
    request.send().await.problem("host_not_allowed");
    let view: Value = fixture.get("/v1/content/a/1/tags").send().await.ok();
    assert_eq!(view["tags"], serde_json::json!([]));
}
