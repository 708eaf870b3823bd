//! Key sets: which keys count, how long a withdrawn one does, what a broken set changes; and the
//! claims of tokens, each missing and wrong.

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::sign;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use tagfast_api::{ApiLimits, AuthConfig, JwksSource, JwksSourceError};
use tagfast_resilience::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::keys::{self, Signer, claims, ec, ed};
use crate::support::{Answer, Fixture, NOW, SECRET, fixture_with};

const URI: &str = "/v1/content/a/1/tags";
const SECONDS: i64 = NOW / 1000;
/// Just longer than a set from a file may be old.
const OVER_A_SECOND: Duration = Duration::from_millis(1001);

fn fixture_of(source: JwksSource) -> Fixture {
    let auth = AuthConfig::Jwt {
        hs256_secret: Some(Secret::new(SECRET.to_vec()).into()),
        jwks: Some(source),
        audience: None,
        issuer: None,
        leeway: Duration::ZERO,
    };
    fixture_with(auth, ApiLimits::default())
}

fn file_fixture(path: &Path) -> Fixture {
    fixture_of(JwksSource::File(path.to_owned()))
}

async fn ask(fixture: &Fixture, token: &str) -> Answer {
    fixture.get(URI).bearer(token).send().await
}

fn token_of(signer: &Signer) -> String {
    signer.sign(&claims("acme", "tags:read"))
}

fn set_of(members: &[Value]) -> String {
    json!({ "keys": members }).to_string()
}

/// What `/readyz` and `/v1/status` say of authentication.
async fn is_degraded(fixture: &Fixture) -> bool {
    let ready = fixture.get("/readyz").send().await.json();
    let admin = keys::hs256(&claims("acme", "admin"));
    let status = fixture.get("/v1/status").bearer(&admin).send().await.json();
    let says = |body: &Value| {
        let all = body["degraded"].as_array().unwrap();
        all.contains(&json!({"feature": "auth", "reason": "unavailable"}))
    };
    assert_eq!(says(&ready), says(&status), "{ready} {status}");
    says(&ready)
}

/// Replaces the file's content and keeps its size and its time of modification.
fn replace_unseen(path: &Path, text: &str) {
    let before = std::fs::metadata(path).unwrap();
    let padded = format!("{text:width$}", width = before.len() as usize);
    std::fs::write(path, padded).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    let after = std::fs::metadata(path).unwrap();
    assert_eq!((after.len(), after.modified().ok()), (before.len(), before.modified().ok()));
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_key_is_refused_after_a_second_also_by_the_first_request() {
    let (old, new) = (ec("k-1"), ec("k-2"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{:2000}", keys::set(&[&old]))).unwrap();
    let fixture = file_fixture(file.path());
    let kept = token_of(&old);
    ask(&fixture, &kept).await.ok();
    ask(&fixture, &token_of(&new)).await.problem("invalid_token");

    replace_unseen(file.path(), &keys::set(&[&new]));
    tokio::time::advance(OVER_A_SECOND).await;
    // The same token as before: what was verified once is verified again.
    ask(&fixture, &kept).await.problem("invalid_token");
    ask(&fixture, &token_of(&new)).await.ok();

    // An hour without a request.
    replace_unseen(file.path(), &keys::set(&[&old]));
    tokio::time::advance(Duration::from_secs(3600)).await;
    ask(&fixture, &token_of(&new)).await.problem("invalid_token");
    ask(&fixture, &kept).await.ok();

    // A new file under the name, as configuration systems do it.
    let other = tempfile::NamedTempFile::new_in(file.path().parent().unwrap()).unwrap();
    std::fs::write(other.path(), keys::set(&[&new])).unwrap();
    std::fs::rename(other.path(), file.path()).unwrap();
    tokio::time::advance(OVER_A_SECOND).await;
    ask(&fixture, &kept).await.problem("invalid_token");
    ask(&fixture, &token_of(&new)).await.ok();
}

#[tokio::test(start_paused = true)]
async fn what_is_no_usable_set_replaces_nothing_and_is_said() {
    let signer = ec("k-1");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let fixture = file_fixture(&path);
    ask(&fixture, &token_of(&signer)).await.problem("keys_unavailable");
    assert!(is_degraded(&fixture).await, "nothing was loaded yet");
    let good = keys::set(&[&signer]);
    let mut encrypts = signer.public();
    encrypts["use"] = json!("enc");
    let oct = json!({"kty": "oct", "k": "AAAA", "alg": "HS256"});
    for bad in [
        String::new(),
        "{".to_owned(),
        good[..good.len() - 1].to_owned(),
        "<html></html>".to_owned(),
        "{}".to_owned(),
        "[[]]".to_owned(),
        json!([signer.public()]).to_string(),
        set_of(&[]),
        set_of(&[json!({"kty": "new"}), json!(7), oct]),
        set_of(&[encrypts]),
        format!("{good}{}", " ".repeat(1 << 20)),
    ] {
        std::fs::write(&path, &good).unwrap();
        tokio::time::advance(OVER_A_SECOND).await;
        let recovers = async {
            while is_degraded(&fixture).await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), recovers).await.expect("it recovers");
        ask(&fixture, &token_of(&signer)).await.ok();
        std::fs::write(&path, &bad).unwrap();
        tokio::time::advance(OVER_A_SECOND).await;
        let shown = &bad[..bad.len().min(40)];
        assert_eq!(ask(&fixture, &token_of(&signer)).await.status, 200, "{shown}");
        assert!(is_degraded(&fixture).await, "{shown}");
        ask(&fixture, &token_of(&ec("k-2"))).await.problem("invalid_token");
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    tokio::time::advance(OVER_A_SECOND).await;
    ask(&fixture, &token_of(&signer)).await.ok();
    assert!(is_degraded(&fixture).await);
}

#[tokio::test]
async fn a_key_counts_for_its_id_kind_and_use_alone() {
    let (one, two, empty, edwards) = (ec("k"), ec("k"), ec(""), ed("k"));
    let set = |members: &[Value]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), set_of(members)).unwrap();
        file
    };
    let with = |signer: &Signer, name: &str, value: Value| {
        let mut key = signer.public();
        key[name] = value;
        key
    };

    // Several keys of one id, also of different kinds: each verifies.
    let file = set(&[one.public(), edwards.public(), two.public()]);
    let fixture = file_fixture(file.path());
    for signer in [&one, &two, &edwards] {
        ask(&fixture, &token_of(signer)).await.ok();
    }
    // An empty id is an id like others, not "any".
    ask(&fixture, &token_of(&empty)).await.problem("invalid_token");
    let file = set(&[empty.public()]);
    let fixture = file_fixture(file.path());
    ask(&fixture, &token_of(&empty)).await.ok();
    ask(&fixture, &token_of(&one)).await.problem("invalid_token");

    for (key, counts) in [
        (with(&one, "use", json!("sig")), true),
        (with(&one, "use", json!("enc")), false),
        (with(&one, "alg", json!("ES256")), true),
        (with(&one, "alg", json!("ES384")), false),
        (with(&one, "alg", json!("RS256")), false),
        (with(&one, "alg", json!("ECDH-ES")), false),
        (with(&one, "key_ops", json!(["verify"])), true),
        (with(&one, "key_ops", json!(["sign", "verify"])), true),
        (with(&one, "key_ops", json!(["encrypt"])), false),
        (with(&one, "key_ops", json!([])), false),
        (with(&one, "kty", json!("RSA")), false),
        (with(&one, "kty", json!("oct")), false),
        (with(&one, "crv", json!("P-384")), false),
        (with(&one, "kid", json!("other")), false),
        (with(&one, "kid", json!(7)), false),
    ] {
        // A second key, so that the set itself is usable.
        let file = set(&[key.clone(), ec("spare").public()]);
        let fixture = file_fixture(file.path());
        let answer = ask(&fixture, &token_of(&one)).await;
        assert_eq!(answer.status, if counts { 200 } else { 401 }, "{key}");
    }
}

/// Answers of a key server that no set can come of, each before the first success.
#[tokio::test]
async fn a_key_server_that_misbehaves_is_503_in_bounded_time() {
    let signer = ed("k-1");
    let answers: [&[u8]; 8] = [
        b"",
        b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{\"keys\"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{\"keys\":[]}",
        b"SSH-2.0-OpenSSH_9\r\n",
        // The last one never answers.
        b"hang",
    ];
    let cases = answers.map(async |answer| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let server = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                if answer == b"hang" {
                    std::future::pending::<()>().await;
                }
                let _ = stream.write_all(answer).await;
            }
        };
        let fixture = fixture_of(url.parse().unwrap());
        let client = async {
            let token = token_of(&signer);
            let answer = ask(&fixture, &token);
            let answer = tokio::time::timeout(Duration::from_secs(15), answer).await;
            answer.expect("an answer").problem("keys_unavailable");
            assert!(is_degraded(&fixture).await);
            // A token that needs no key set is not held up.
            ask(&fixture, &keys::hs256(&claims("acme", "tags:read"))).await.ok();
        };
        tokio::select! { () = server => {}, () = client => {} }
    });
    futures_util::future::join_all(cases).await;
}

#[test]
fn keys_come_over_https_or_loopback_alone() {
    let parse = |text: &str| text.parse::<JwksSource>();
    for url in [
        "https://id.example/keys",
        "HTTPS://id.example:8443/keys?x=1",
        "http://127.0.0.1:9/keys",
        "http://127.9.9.9/keys",
        "http://[::1]:9/keys",
        "http://localhost:9/keys",
        "HTTP://LOCALHOST/keys",
    ] {
        assert!(matches!(parse(url), Ok(JwksSource::Url(kept)) if kept == url), "{url}");
    }
    for url in [
        "http://id.example/keys",
        "HTTP://id.example/keys",
        "http://localhost.example/keys",
        "http://localhost@id.example/keys",
        "http://127.0.0.1.example/keys",
        "http://10.0.0.1/keys",
        "http://[::2]/keys",
    ] {
        assert_eq!(parse(url).err(), Some(JwksSourceError::PlainHttp), "{url}");
    }
    for url in ["ftp://id.example/keys", "file:///etc/keys.json", "https://", "://x", "http s://x"]
    {
        assert_eq!(parse(url).err(), Some(JwksSourceError::UnknownScheme), "{url}");
    }
    for path in ["keys.json", "/etc/tagfast/keys.json", "C:\\keys.json", "http:keys"] {
        assert!(matches!(parse(path), Ok(JwksSource::File(kept)) if kept == Path::new(path)));
    }
}

fn strict_fixture() -> Fixture {
    let auth = AuthConfig::Jwt {
        hs256_secret: Some(Secret::new(SECRET.to_vec()).into()),
        jwks: None,
        audience: Some("tagfast".into()),
        issuer: Some("https://id.example".into()),
        leeway: Duration::ZERO,
    };
    fixture_with(auth, ApiLimits::default())
}

fn full_claims() -> Value {
    let mut all = claims("acme", "tags:read");
    all["iss"] = json!("https://id.example");
    all["aud"] = json!("tagfast");
    all
}

/// Each claim missing, `null`, of every wrong type and with wrong values.
#[tokio::test]
async fn a_missing_or_wrong_claim_is_named_and_never_shown() {
    let fixture = strict_fixture();
    ask(&fixture, &keys::hs256(&full_claims())).await.ok();
    let refused = async |all: &Value, claim: &str| {
        let answer = ask(&fixture, &keys::hs256(all)).await;
        let problem = answer.problem("invalid_token");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("claim {claim} ")), "{all}: {detail}");
        assert!(answer.header("www-authenticate").contains(detail), "{detail}");
        assert!(!problem.to_string().contains("canary"), "{problem}");
    };
    for claim in ["iss", "aud", "exp", "tenant", "sub"] {
        let mut all = full_claims();
        all.as_object_mut().unwrap().remove(claim);
        refused(&all, claim).await;
        all[claim] = json!(null);
        refused(&all, claim).await;
    }
    let wrong_types = [
        ("iss", vec![json!(7), json!(["https://id.example"]), json!({}), json!(true)]),
        ("aud", vec![json!(7), json!(["tagfast", 7]), json!({"tagfast": 1}), json!([["tagfast"]])]),
        ("exp", vec![json!("2099-01-01"), json!([SECONDS + 60]), json!(true), json!({})]),
        ("nbf", vec![json!("0"), json!([0])]),
        ("iat", vec![json!("now"), json!({})]),
        ("tenant", vec![json!(7), json!(["acme"]), json!({"acme": 1})]),
        ("sub", vec![json!(7), json!(["ada"])]),
        ("scope", vec![json!(7), json!({"tags:read": true}), json!(["tags:read", 7])]),
    ];
    let wrong_values = [
        ("iss", vec![json!("https://canary.example"), json!(""), json!("https://id.example/")]),
        ("aud", vec![json!("canary"), json!([]), json!(["canary", "Tagfast"]), json!("")]),
        ("exp", vec![json!(0), json!(-1), json!(SECONDS), json!(-1e300)]),
        ("nbf", vec![json!(SECONDS + 1), json!(1e300)]),
        ("tenant", vec![json!(""), json!("CANARY"), json!("_canary"), json!("a/b")]),
        ("sub", vec![json!(""), json!("canary\u{0}")]),
    ];
    for (claim, values) in wrong_types.into_iter().chain(wrong_values) {
        for value in values {
            let mut all = full_claims();
            all[claim] = value;
            refused(&all, claim).await;
        }
    }
    let mut without_scope = full_claims();
    without_scope.as_object_mut().unwrap().remove("scope");
    let problem = ask(&fixture, &keys::hs256(&without_scope)).await.problem("missing_scope");
    assert!(problem["detail"].as_str().unwrap().contains("claim scope"), "{problem}");
    for (claim, value) in [
        ("aud", json!(["x", "tagfast"])),
        ("exp", json!(SECONDS as f64 + 0.5)),
        ("iat", json!(SECONDS + 9)),
        ("scope", json!("openid  tags:read")),
    ] {
        let mut all = full_claims();
        all[claim] = value;
        ask(&fixture, &keys::hs256(&all)).await.ok();
    }
}

/// Claims that are no object, or have one claim twice, whatever the second one says.
#[tokio::test]
async fn claims_are_one_object_that_has_each_claim_once() {
    let fixture = strict_fixture();
    let sign = |claims: &str| {
        let parts = [r#"{"alg":"HS256"}"#, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        let (message, key) = (parts.join("."), EncodingKey::from_secret(SECRET));
        let signature = sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    };
    let whole = full_claims().to_string();
    ask(&fixture, &sign(&whole)).await.ok();
    let twice = |claim: &str| format!("{},{claim}}}", &whole[..whole.len() - 1]);
    let list = json!(["acme", "ada", "tags:read", SECONDS + 60, null, null, null, null]);
    for claims in [
        list.to_string(),
        "[]".to_owned(),
        "7".to_owned(),
        "\"acme\"".to_owned(),
        twice("\"tenant\":\"umbra\""),
        twice("\"tenant\":\"acme\""),
        twice("\"exp\":9e99"),
        twice("\"scope\":\"admin\""),
    ] {
        let problem = ask(&fixture, &sign(&claims)).await.problem("invalid_token");
        assert!(problem["detail"].as_str().unwrap().contains("claims"), "{claims}: {problem}");
    }
}
