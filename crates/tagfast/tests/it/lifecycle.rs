//! Starting and stopping: in-flight requests are finished, the configuration is checked before
//! anything starts.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use tagfast_testkit::wait_for_condition;

use crate::support::{output_text, server, tagfast, tags_path};

#[test]
fn sigterm_finishes_what_is_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = server(dir.path()).start();
    let body = r#"{"add": ["last", "words"]}"#;
    let (head, tail) = body.split_at(10);
    let mut slow = TcpStream::connect(running.address()).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(
        slow,
        "PATCH /v1/content/note/slow/tags HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         expect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    // The interim answer proves that the server works on the request before it gets the signal.
    let mut interim = [0; 25];
    slow.read_exact(&mut interim).unwrap();
    assert!(interim.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&interim));
    slow.write_all(head.as_bytes()).unwrap();
    running.terminate();
    wait_for_condition("no new connections", Duration::from_secs(30), || {
        match TcpStream::connect_timeout(&running.address(), Duration::from_secs(1)) {
            Err(_) => Ok(()),
            Ok(_) => Err("it still accepts"),
        }
    });
    slow.write_all(tail.as_bytes()).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let status = running.wait();
    assert!(status.success(), "{status}\n{}", running.log());

    let running = server(dir.path()).start();
    let view = running.client().get(&tags_path("note", "slow")).expect(200).json();
    assert_eq!(crate::support::names(&view), ["last", "words"]);
}

#[test]
fn a_clean_stop_leaves_nothing_to_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = server(dir.path()).start();
    running.wait_until_ready();
    running.client().put("/v1/content/note/n/tags/a").expect(200);
    running.stop();
    let mut again = server(dir.path()).start();
    again.wait_until_ready();
    assert!(!again.log().contains("rebuilding"), "{}", again.log());
    assert!(!again.log().contains("not clean"), "{}", again.log());
    again.stop();
}

#[test]
fn a_stopped_server_leaves_no_task_running() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = server(dir.path()).start();
    running.wait_until_ready();
    let mut client = running.client();
    client.put("/v1/content/note/n/tags/a").expect(200);
    client.get("/v1/search?q=a&facets=true").expect(200);
    client.get("/v1/tags/popular").expect(200);
    running.stop();
    let log = running.log();
    assert!(log.contains("stopped"), "{log}");
    assert!(!log.contains("a task still runs"), "{log}");
}

#[test]
fn a_frozen_server_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(dir.path()).start();
    let mut client = running.client();
    client.put("/v1/content/note/n/tags/a").expect(200);
    running.freeze();
    let mut impatient = running.client().with_timeout(Duration::from_millis(200));
    assert!(impatient.request("GET", "/healthz", &[], None).is_err(), "a frozen server answers");
    running.thaw();
    client.put("/v1/content/note/n/tags/b").expect(200);
    assert_eq!(
        crate::support::names(&client.get("/v1/content/note/n/tags").expect(200).json()),
        ["a", "b"]
    );
}

#[test]
fn a_wrong_configuration_is_refused_with_a_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tagfast.toml");
    let config = file.to_str().unwrap();
    for (text, words) in [
        ("[server]\nlisen = \"127.0.0.1:0\"\n", &["lisen", "listen"][..]),
        ("[server]\nlisten = \"0.0.0.0:0\"\n", &["server.listen", "auth"][..]),
        ("[store]\nkind = \"other\"\n", &["store.kind", "embedded", "postgres"][..]),
        (
            "[store]\nkind = \"postgres\"\n",
            &["store.clusters", "store.etcd", "store.password_file"][..],
        ),
        ("[limits]\ntags_per_content = \"many\"\n", &["tagfast.toml:2", "many"][..]),
        ("[server\n", &["tagfast.toml"][..]),
    ] {
        std::fs::write(&file, text).unwrap();
        for args in
            [&["serve", "--config", config][..], &["config", "check", "--config", config][..]]
        {
            let output = tagfast(args);
            assert_eq!(output.status.code(), Some(2), "{text:?}: {output:?}");
            for word in words {
                assert!(
                    output_text(&output).contains(word),
                    "{word:?} is not in {:?}",
                    output_text(&output)
                );
            }
        }
    }
    let missing = dir.path().join("none.toml");
    let output = tagfast(&["serve", "--config", missing.to_str().unwrap()]);
    assert_ne!(output.status.code(), Some(0));
    assert!(output_text(&output).contains("none.toml"), "{output:?}");
}

#[test]
fn a_port_in_use_is_refused_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = dir.path().join("data");
    let output = tagfast(&["serve", "--listen", &address, "--data-dir", data.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        output_text(&output).contains(&address) && output_text(&output).contains("--listen"),
        "{output:?}"
    );
}
