//! The load generator leaves a server as it found it.

use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tagfast_testkit::{ServerProcess, wait_for_condition};

use crate::support::{Contents, command, output_text, server, stored, tagfast};

const TEST_TIMEOUT: Duration = Duration::from_secs(30);
const SHORT: [&str; 8] =
    ["--duration", "300ms", "--warmup", "100ms", "--connections", "4", "--contents", "50"];

fn bench(running: &ServerProcess, more: &[&str]) -> Output {
    tagfast(&[&["bench", "--url", &running.url()], &SHORT[..], more].concat())
}

/// A server with a content of a person, whose tags look like those of a measurement.
fn with_one_content(dir: &std::path::Path) -> (ServerProcess, Contents) {
    let running = server(dir).start();
    running.wait_until_ready();
    let url = running.url();
    let tags = ["tag", "bench.item", "item-00000000", "bench-0", "bench-1", "--url", &url];
    assert!(tagfast(&tags).status.success());
    let before = stored(&mut running.client());
    assert_eq!(before.len(), 1);
    (running, before)
}

#[test]
fn a_measurement_writes_nothing_unless_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (running, before) = with_one_content(dir.path());
    let plain = bench(&running, &[]);
    assert!(plain.status.success(), "{plain:?}");
    for mix in ["tag=1", "view=9,batch_tag=1", "view=90,tag=10"] {
        let refused = bench(&running, &["--mix", mix]);
        assert_eq!(refused.status.code(), Some(2), "{mix}: {refused:?}");
        assert!(output_text(&refused).contains("--write"), "{mix}: {refused:?}");
    }
    let none = bench(&running, &["--mix", "view=9,tag=0"]);
    assert!(none.status.success(), "{none:?}");
    assert_eq!(stored(&mut running.client()), before);
}

#[test]
fn a_measurement_removes_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let (running, before) = with_one_content(dir.path());
    for mix in [&["--write"][..], &["--write", "--mix", "tag=1,batch_tag=1"]] {
        let output = bench(&running, mix);
        assert!(output.status.success(), "{mix:?}: {output:?}");
        assert!(output_text(&output).contains("are removed"), "{mix:?}: {output:?}");
        assert_eq!(stored(&mut running.client()), before, "{mix:?}");
    }
}

#[test]
fn a_measurement_that_is_interrupted_removes_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let (running, before) = with_one_content(dir.path());
    let url = running.url();
    for (signal, more) in [(Signal::INT, &["--rate", "200"][..]), (Signal::TERM, &["--json"])] {
        let line = ["bench", "--url", &url, "--write", "--mix", "tag=1", "--duration", "60s"];
        let mut process = command(&[&line[..], &["--contents", "50"], more].concat());
        let child = process.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for_condition("tags of the measurement", TEST_TIMEOUT, || {
            let now = stored(&mut running.client());
            if now.len() > 10 { Ok(()) } else { Err(format!("{} contents", now.len())) }
        });
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output_text(&output).contains("interrupted"), "{output:?}");
        assert_eq!(stored(&mut running.client()), before, "{output:?}");
    }
}
