//! Tokens: what is accepted, what is refused and why, rotation of key sets.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use proptest::prelude::*;
use serde_json::{Value, json};
use tagfast_api::{ApiLimits, AuthConfig, JwksSource};
use tagfast_resilience::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::keys::{self, claims, ec, ed, forged};
use crate::support::{Fixture, NOW, SECRET, fixture_with, jwt_fixture};

const URI: &str = "/v1/content/a/1/tags";
const SECONDS: i64 = NOW / 1000;

async fn refused(fixture: &Fixture, token: &str, words: &str) {
    let answer = fixture.get(URI).bearer(token).send().await;
    let problem = answer.problem("invalid_token");
    assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    assert!(answer.header("www-authenticate").contains("error=\"invalid_token\""));
}

fn with(change: impl FnOnce(&mut Value)) -> String {
    let mut all = claims("acme", "tags:read");
    change(&mut all);
    keys::hs256(&all)
}

pub(crate) fn file_fixture(path: &std::path::Path, hs256: bool) -> Fixture {
    let auth = AuthConfig::Jwt {
        hs256_secret: hs256.then(|| Secret::new(SECRET.to_vec()).into()),
        jwks: Some(JwksSource::File(path.to_owned())),
        audience: None,
        issuer: None,
        leeway: Duration::from_secs(30),
    };
    fixture_with(auth, ApiLimits::default())
}

#[tokio::test]
async fn without_authentication_every_caller_is_anonymous() {
    let fixture = fixture_with(AuthConfig::None, ApiLimits::default());
    fixture.get("/v1/status").send().await.ok();
    fixture.get("/v1/status").bearer("nonsense").send().await.ok();
}

#[tokio::test]
async fn a_token_is_needed() {
    let fixture = jwt_fixture();
    let answer = fixture.get(URI).send().await;
    answer.problem("unauthenticated");
    assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"tagfast\"");
    for value in ["Basic YTpi", "Bearer", "Bearer ", "token"] {
        fixture.get(URI).header("authorization", value).send().await.problem("unauthenticated");
    }
    fixture
        .get(URI)
        .header("authorization", &format!("bearer {}", keys::user("acme")))
        .send()
        .await
        .ok();
}

#[tokio::test]
async fn scopes_decide_and_admin_includes_the_others() {
    let fixture = jwt_fixture();
    let ask = |method: &'static str, uri: &'static str, scope: Value| {
        let mut all = claims("acme", "");
        all["scope"] = scope;
        fixture.request(method, uri).bearer(&keys::hs256(&all)).send()
    };
    let put = "/v1/content/a/1/tags/x";
    ask("GET", URI, json!("tags:read")).await.ok();
    ask("GET", URI, json!(["openid", "tags:read"])).await.ok();
    ask("PUT", put, json!("openid tags:write")).await.ok();
    ask("GET", URI, json!("admin")).await.ok();
    ask("PUT", put, json!("admin")).await.ok();
    ask("GET", "/v1/status", json!("admin")).await.ok();
    for (method, uri, scope) in [
        ("GET", URI, json!("tags:write")),
        ("PUT", put, json!("tags:read")),
        ("DELETE", put, json!("tags:read")),
        ("GET", "/v1/status", json!("tags:read tags:write")),
        ("GET", "/v1/failovers", json!("tags:write")),
        ("GET", "/v1/clusters", json!("tags:read tags:write")),
        ("POST", "/v1/admin/reindex", json!("tags:write")),
        ("GET", URI, json!("")),
        ("GET", URI, json!("tags:reader")),
    ] {
        let answer = ask(method, uri, scope).await;
        answer.problem("missing_scope");
        assert!(answer.header("www-authenticate").contains("insufficient_scope"));
    }
    let mut none = claims("acme", "");
    none.as_object_mut().unwrap().remove("scope");
    fixture.get(URI).bearer(&keys::hs256(&none)).send().await.problem("missing_scope");
}

#[tokio::test]
async fn times_are_checked_with_leeway() {
    let fixture = jwt_fixture();
    fixture.get(URI).bearer(&with(|c| c["exp"] = json!(SECONDS - 29))).send().await.ok();
    refused(&fixture, &with(|c| c["exp"] = json!(SECONDS - 30)), "expired").await;
    fixture.get(URI).bearer(&with(|c| c["nbf"] = json!(SECONDS + 30))).send().await.ok();
    refused(&fixture, &with(|c| c["nbf"] = json!(SECONDS + 31)), "not valid yet").await;
    refused(&fixture, &with(|c| drop(c.as_object_mut().unwrap().remove("exp"))), "exp is missing")
        .await;
    refused(&fixture, &with(|c| c["exp"] = json!("tomorrow")), "exp must be").await;
    fixture.get(URI).bearer(&with(|c| c["exp"] = json!(1e300))).send().await.ok();
}

#[tokio::test]
async fn a_remembered_token_still_expires() {
    let fixture = jwt_fixture();
    let token = with(|c| c["exp"] = json!(SECONDS + 60));
    fixture.get(URI).bearer(&token).send().await.ok();
    fixture.get(URI).bearer(&token).send().await.ok();
    fixture.clock.advance(89_999);
    fixture.get(URI).bearer(&token).send().await.ok();
    fixture.clock.advance(1);
    refused(&fixture, &token, "expired").await;
}

#[tokio::test]
async fn claims_must_name_a_tenant_and_a_user() {
    let fixture = jwt_fixture();
    for (claim, value) in [
        ("tenant", json!("_canary")),
        ("tenant", json!("ACME")),
        ("tenant", json!("")),
        ("tenant", json!(7)),
        ("sub", json!("")),
        ("sub", json!("x".repeat(129))),
        ("sub", json!("a\u{0}b")),
    ] {
        let token = with(|c| c[claim] = value.clone());
        fixture.get(URI).bearer(&token).send().await.problem("invalid_token");
    }
}

#[tokio::test]
async fn forged_and_confused_tokens_are_refused() {
    let signer = ec("ec-1");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), keys::set(&[&signer, &keys::RSA])).unwrap();
    let both = file_fixture(file.path(), true);
    let all = claims("acme", "admin");
    both.get(URI).bearer(&signer.sign(&all)).send().await.ok();
    both.get(URI).bearer(&keys::hs256(&all)).send().await.ok();

    for alg in ["none", "None", "HS384", "HS512", "RS512", "PS256", "ES384", ""] {
        let token = forged(&json!({"alg": alg, "typ": "JWT", "kid": "ec-1"}), &all, b"");
        both.get(URI).bearer(&token).send().await.problem("invalid_token");
    }
    // HS256 with a public key as the secret: the classic confusion.
    for public in
        [signer.public().to_string(), keys::RSA.public()["n"].as_str().unwrap().to_owned()]
    {
        let header = Header { kid: Some("ec-1".into()), ..Header::new(Algorithm::HS256) };
        let token = encode(&header, &all, &EncodingKey::from_secret(public.as_bytes())).unwrap();
        refused(&both, &token, "signature").await;
    }
    // The right key under another key's algorithm.
    let claimed_rsa = signer.sign(&all);
    let parts: Vec<&str> = claimed_rsa.split('.').collect();
    let header = forged(&json!({"alg": "RS256", "kid": "ec-1"}), &all, b"");
    let token = format!("{}.{}.{}", header.split('.').next().unwrap(), parts[1], parts[2]);
    refused(&both, &token, "key is not known").await;
    // A changed claim, a cut signature, a critical extension.
    let other = forged(&json!({"alg": "ES256", "kid": "ec-1"}), &claims("umbra", "admin"), b"x");
    let token = format!("{}.{}.{}", parts[0], other.split('.').nth(1).unwrap(), parts[2]);
    refused(&both, &token, "signature").await;
    both.get(URI)
        .bearer(&format!("{}.{}.", parts[0], parts[1]))
        .send()
        .await
        .problem("invalid_token");
    let critical = Header { crit: Some(vec!["b64".into()]), ..Header::new(Algorithm::HS256) };
    let token = encode(&critical, &all, &EncodingKey::from_secret(SECRET)).unwrap();
    refused(&both, &token, "critical").await;

    // Without the secret no HS256, without a key set nothing else.
    let public_only = file_fixture(file.path(), false);
    refused(&public_only, &keys::hs256(&all), "algorithm").await;
    refused(&jwt_fixture(), &signer.sign(&all), "algorithm").await;
}

#[tokio::test]
async fn a_symmetric_key_in_a_public_set_is_not_used() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let set = json!({"keys": [{"kty": "oct", "kid": "h", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY", "alg": "HS256"}, {"kty": "new"}]});
    std::fs::write(file.path(), set.to_string()).unwrap();
    let fixture = file_fixture(file.path(), false);
    refused(&fixture, &keys::hs256(&claims("acme", "admin")), "algorithm").await;
}

#[tokio::test]
async fn every_kind_of_key_works() {
    let (ec, ed) = (ec("ec-1"), ed("ed-1"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), keys::set(&[&ec, &ed, &keys::RSA])).unwrap();
    let fixture = file_fixture(file.path(), false);
    for signer in [&ec, &ed, &*keys::RSA] {
        fixture.get(URI).bearer(&signer.sign(&claims("acme", "tags:read"))).send().await.ok();
    }
}

#[tokio::test]
async fn audience_and_issuer_are_checked_when_configured() {
    let auth = AuthConfig::Jwt {
        hs256_secret: Some(Secret::new(SECRET.to_vec()).into()),
        jwks: None,
        audience: Some("tagfast".into()),
        issuer: Some("https://id.example".into()),
        leeway: Duration::ZERO,
    };
    let fixture = fixture_with(auth, ApiLimits::default());
    let token = |aud: Value, iss: Value| with(|c| (c["aud"], c["iss"]) = (aud, iss));
    fixture
        .get(URI)
        .bearer(&token(json!("tagfast"), json!("https://id.example")))
        .send()
        .await
        .ok();
    fixture
        .get(URI)
        .bearer(&token(json!(["x", "tagfast"]), json!("https://id.example")))
        .send()
        .await
        .ok();
    refused(&fixture, &token(json!("other"), json!("https://id.example")), "audience").await;
    refused(&fixture, &token(json!("tagfast"), json!("https://evil.example")), "issuer").await;
    refused(&fixture, &with(|c| c["iss"] = json!("https://id.example")), "audience").await;
    refused(&fixture, &with(|c| c["aud"] = json!("tagfast")), "issuer").await;
    // Not configured: a token that names an audience is fine.
    jwt_fixture().get(URI).bearer(&token(json!("other"), json!("x"))).send().await.ok();
}

#[tokio::test]
async fn a_url_is_fetched_and_an_unknown_key_asks_again_but_not_always() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let (known, stranger) = (ed("k-1"), ed("k-2"));
    let set = keys::set(&[&known]);
    let fetches = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&fetches);
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await.unwrap();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{set}",
                set.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let auth = AuthConfig::Jwt {
        hs256_secret: None,
        jwks: Some(JwksSource::Url(url)),
        audience: None,
        issuer: None,
        leeway: Duration::ZERO,
    };
    let fixture = fixture_with(auth, ApiLimits::default());
    for n in 0..5 {
        let mut all = claims("acme", "tags:read");
        all["n"] = json!(n);
        fixture.get(URI).bearer(&known.sign(&all)).send().await.ok();
        fixture.get(URI).bearer(&stranger.sign(&all)).send().await.problem("invalid_token");
    }
    assert_eq!(
        fetches.load(std::sync::atomic::Ordering::SeqCst),
        1,
        "strangers cannot make the service hammer the key server"
    );
    server.abort();
}

#[tokio::test]
async fn a_key_server_that_is_down_is_503_not_401() {
    let auth = AuthConfig::Jwt {
        hs256_secret: None,
        jwks: Some(JwksSource::Url("http://127.0.0.1:9/keys".into())),
        audience: None,
        issuer: None,
        leeway: Duration::ZERO,
    };
    let fixture = fixture_with(auth, ApiLimits::default());
    fixture
        .get(URI)
        .bearer(&ed("x").sign(&claims("acme", "tags:read")))
        .send()
        .await
        .problem("keys_unavailable");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_token_panics_or_passes(
        token in "[!-~]{0,80}|[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}",
        header in "[ -~]{0,60}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = jwt_fixture();
            let signed = forged(&json!({"alg": header}), &json!({"x": token}), header.as_bytes());
            for value in [format!("Bearer {token}"), header.clone(), format!("Bearer {signed}")] {
                let answer = fixture.get(URI).header("authorization", &value).send().await;
                prop_assert_eq!(answer.status.as_u16(), 401);
            }
            Ok(())
        })?;
    }
}
