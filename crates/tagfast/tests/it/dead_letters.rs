//! Dead letters of the running program: listed, shown, replayed, discarded, and reported to the
//! webhook.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::Sha256;
use tagfast_testkit::wait_for_condition;

use crate::support::{output_text, server, tagfast, tagfast_json};

const TEST_TIMEOUT: Duration = Duration::from_secs(30);
const SECRET: &str = "a secret of the receiver";

/// A request as the webhook's receiver sees it.
#[derive(Debug, Clone)]
struct Message {
    headers: String,
    body: String,
}

impl Message {
    fn header(&self, name: &str) -> &str {
        let line =
            self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.headers))
    }
}

/// Answers the first request with 500 and the others with 204, and remembers all of them.
struct Receiver {
    url: String,
    messages: Arc<Mutex<Vec<Message>>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let messages = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&messages);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let message = receive(&mut stream);
                let mut seen = seen.lock();
                let answer =
                    if seen.is_empty() { "500 Internal Server Error" } else { "204 No Content" };
                seen.push(message);
                drop(seen);
                write!(
                    stream,
                    "HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )
                .unwrap();
            }
        });
        Self { url, messages }
    }

    /// The first message with this content: one that was sent while dead letters were still parked
    /// may name fewer.
    fn wait_for(&self, kind: &str, dead_letters: u64) -> Message {
        wait_for_condition(kind, TEST_TIMEOUT, || {
            let messages = self.messages.lock();
            let matches = |message: &&Message| {
                let body: Value = serde_json::from_str(&message.body).unwrap();
                body["type"] == kind && body["dead_letters"] == dead_letters
            };
            // The first attempt was refused: only accepted messages count.
            messages.iter().skip(1).find(matches).cloned().ok_or_else(|| format!("{messages:?}"))
        })
    }
}

fn receive(stream: &mut TcpStream) -> Message {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((headers, body)) = text.split_once("\r\n\r\n") {
            let headers = headers.to_lowercase();
            let length = headers
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if body.len() >= length.unwrap() {
                return Message { headers, body: body.to_owned() };
            }
        }
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the request broke off");
        bytes.extend_from_slice(&buffer[..read]);
    }
}

/// Events that this program cannot decode, as a damaged disk or a newer program would leave them.
fn spoil(dir: &Path, payloads: &[&str]) {
    let conn = rusqlite::Connection::open(dir.join("store-0.sqlite")).unwrap();
    for (n, payload) in payloads.iter().enumerate() {
        let key = format!("default\0page\0spoilt-{n}").into_bytes();
        let insert = "INSERT INTO bus_event (stripe, key, ver, at, emit, payload) VALUES (0, ?1, 1, 1, 1, ?2)";
        conn.execute(insert, rusqlite::params![key, payload.as_bytes()]).unwrap();
    }
}

#[test]
fn dead_letters_are_found_replayed_discarded_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = server(dir.path()).start();
    running.wait_until_ready();
    tagfast_json(&["tag", "page", "p1", "ui", "--url", &running.url(), "--json"]);
    running.stop();
    spoil(dir.path(), &["garbage", r#"{"specversion":"1.0","type":"tagfast.taggings.v9"}"#]);

    let receiver = Receiver::start();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let running = server(dir.path())
        .env("TAGFAST__DEAD_LETTERS__WEBHOOK_URL", &receiver.url)
        .env("TAGFAST__DEAD_LETTERS__WEBHOOK_SECRET_FILE", secret.to_str().unwrap())
        .env("TAGFAST__DEAD_LETTERS__WEBHOOK_INTERVAL_MIN_MS", "1000")
        .start();
    running.wait_until_ready();
    let url = running.url();
    let dead_letters =
        |args: &[&str]| tagfast(&[&["dead-letters"], args, &["--url", &url]].concat());
    let list = |args: &[&str]| {
        tagfast_json(&[&["dead-letters", "list", "--json", "--url", &url], args].concat())
    };
    let open = wait_for_condition("both groups park both", TEST_TIMEOUT, || {
        let found = list(&[]);
        if found["items"].as_array().unwrap().len() == 4 {
            Ok(found)
        } else {
            Err(found.to_string())
        }
    });
    assert_eq!(list(&["--group", "indexer"])["items"].as_array().unwrap().len(), 2);
    let unreadable = list(&["--code", "event_undecodable", "--group", "analytics"]);
    let dead_letter = &unreadable["items"][0];
    assert_eq!(
        (&dead_letter["class"], &dead_letter["content_id"]),
        (&json!("poison"), &json!("spoilt-0"))
    );
    let id = dead_letter["id"].as_str().unwrap();
    let shown = output_text(&dead_letters(&["show", id]));
    assert!(shown.contains("garbage") && shown.contains("event_undecodable"), "{shown}");

    // One message names all of them; the failed attempt was retried.
    let stay = receiver.wait_for("tagfast.dead_letters.stay", 4);
    let attempts = receiver.messages.lock()[..2].to_vec();
    assert_eq!(attempts[0].header("tagfast-delivery"), attempts[1].header("tagfast-delivery"));
    let report: Value = serde_json::from_str(&stay.body).unwrap();
    assert_eq!(
        report["groups"][0]["codes"],
        json!({"event_type_unknown": 1, "event_undecodable": 1})
    );
    let (at, hex) =
        stay.header("tagfast-signature").strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(format!("{at}.{}", stay.body).as_bytes());
    let expected: String =
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected);

    // An action on all must be confirmed; an undecodable event fails again and stays.
    let refused = dead_letters(&["replay"]);
    assert!(
        refused.status.code() == Some(2) && output_text(&refused).contains("--all"),
        "{refused:?}"
    );
    let dry = dead_letters(&["replay", "--all", "--dry-run"]);
    assert!(
        dry.status.code() == Some(3)
            && output_text(&dry).contains("4 dead letters: 0 would be applied"),
        "{dry:?}"
    );
    let replayed = dead_letters(&["replay", id]);
    assert!(
        replayed.status.code() == Some(3) && output_text(&replayed).contains("1 failed again"),
        "{replayed:?}"
    );
    let after = list(&["--code", "event_undecodable", "--group", "analytics"]);
    assert_eq!(
        (&after["items"][0]["replays"], &after["items"][0]["attempts"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(
        list(&[])["items"].as_array().unwrap().len(),
        open["items"].as_array().unwrap().len()
    );

    let discarded = dead_letters(&["discard", "--all", "--reason", "a test wrote them"]);
    assert!(
        discarded.status.success() && output_text(&discarded).contains("4 dead letters"),
        "{discarded:?}"
    );
    assert_eq!(list(&[])["items"], json!([]));
    assert_eq!(list(&["--state", "discarded"])["items"][0]["reason"], "a test wrote them");
    let acts = tagfast_json(&["dead-letters", "audit", "--json", "--url", &url]);
    let actions: Vec<_> = acts["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|act| act["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["discard", "replay", "dry_run", "show"]);
    receiver.wait_for("tagfast.dead_letters.resolved", 0);
    let status = tagfast_json(&["status", "--json", "--url", &url]);
    assert!(
        status["consumers"].as_array().unwrap().iter().all(|c| c["dead_letters"] == 0),
        "{status}"
    );
}
