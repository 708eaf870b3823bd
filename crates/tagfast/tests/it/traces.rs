//! Traces reach a collector, and the consumers' work on a write is in the trace of the write.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_testkit::wait_for_condition;

use crate::support::server;

/// A collector that keeps the exported bytes.
fn collector() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, all) = (stream.unwrap(), Arc::clone(&all));
            std::thread::spawn(move || {
                let mut buffer = [0; 65_536];
                while let Ok(read) = stream.read(&mut buffer) {
                    if read == 0 {
                        return;
                    }
                    all.lock().extend_from_slice(&buffer[..read]);
                    // One answer to any part of a request: the exporter reads the status only.
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
                }
            });
        }
    });
    (url, seen)
}

/// Whether a trace's id, as its bytes are exported, comes with both spans.
fn count(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).filter(|window| *window == needle).count()
}

#[test]
fn an_apply_is_in_the_trace_of_its_write() {
    let (url, seen) = collector();
    let dir = tempfile::tempdir().unwrap();
    let mut running = server(dir.path())
        .env("TAGFAST__TELEMETRY__OTLP_ENDPOINT", &url)
        .env("TAGFAST__TELEMETRY__TRACE_RATIO", "0")
        .env("OTEL_BSP_SCHEDULE_DELAY", "200")
        .start();
    running.wait_until_ready();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let mut client = running.client();
    let answer =
        client.request("PUT", "/v1/content/page/1/tags/ui", &[("traceparent", &parent)], None);
    answer.unwrap().expect(200);
    client.put("/v1/content/page/2/tags/ui").expect(200);
    let id: Vec<u8> =
        (0..16).map(|n| u8::from_str_radix(&trace[2 * n..2 * n + 2], 16).unwrap()).collect();
    wait_for_condition(
        "the spans of the request and of both consumers",
        Duration::from_secs(20),
        || {
            let seen = seen.lock();
            let spans = count(&seen, &id);
            let named = ["apply indexer", "apply analytics"]
                .iter()
                .all(|name| count(&seen, name.as_bytes()) == 1);
            if spans == 3 && named { Ok(()) } else { Err(format!("{spans} spans of the trace")) }
        },
    );
    running.stop();
}
