//! Import from and export to whatever a path can name: files, pipes, devices, links, descriptors,
//! folders that cannot be written.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{command, output_text, server, stored, tag_path, tagfast};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Lines of an input; its beginning is longer than any buffer of a reader that looks ahead.
const LINES: usize = 500;

/// Runs a script of bash in which `$T` is the program, `$U` the server and `$1` a path.
fn bash(script: &str, url: &str, path: &Path) -> Output {
    run_bash(Command::new("bash"), script, url, path)
}

fn run_bash(mut bash: Command, script: &str, url: &str, path: &Path) -> Output {
    bash.args(["-euc", script, "bash"]).arg(path);
    bash.env("T", env!("CARGO_BIN_EXE_tagfast")).env("U", url);
    for (name, _) in
        std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("TAGFAST_"))
    {
        bash.env_remove(name);
    }
    bash.output().unwrap()
}

fn lines(content_type: &str, count: usize) -> String {
    (0..count)
        .map(|n| {
            let id = format!("{n}-{}", "x".repeat(200));
            format!("{}\n", json!({"type": content_type, "id": id, "tags": ["a", "b"]}))
        })
        .collect()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(text.as_bytes()).unwrap();
    out.finish().unwrap()
}

fn entries(dir: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

/// Ways to hand an input over, and whether an interrupted import could go on.
const INPUTS: &[(&str, &str, bool)] = &[
    ("file", r#""$T" import "$1" --url "$U" --json"#, true),
    ("stdin", r#""$T" import - --url "$U" --json < "$1""#, false),
    ("pipe", r#"cat "$1" | "$T" import - --url "$U" --json"#, false),
    ("dev-stdin", r#""$T" import /dev/stdin --url "$U" --json < "$1""#, false),
    ("dev-stdin-pipe", r#"cat "$1" | "$T" import /dev/stdin --url "$U" --json"#, false),
    ("substitution", r#""$T" import <(cat "$1") --url "$U" --json"#, false),
    ("descriptor", r#""$T" import /dev/fd/7 --url "$U" --json 7< "$1""#, false),
    (
        "fifo",
        r#"mkfifo "$1.fifo"; cat "$1" > "$1.fifo" & "$T" import "$1.fifo" --url "$U" --json"#,
        false,
    ),
    (
        "first-byte-alone",
        r#"{ head -c1 "$1"; tail -c+2 "$1"; } | "$T" import - --url "$U" --json"#,
        false,
    ),
    ("link", r#"ln -s "$1" "$1.link"; "$T" import "$1.link" --url "$U" --json"#, true),
];

#[test]
fn every_line_is_imported_whatever_the_input_is() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(&dir.path().join("data")).start();
    let url = running.url();
    let mut client = running.client();
    for (name, script, lasting) in INPUTS {
        for zipped in [false, true] {
            let content_type = format!("{name}{}", if zipped { ".gz" } else { "" });
            let folder = dir.path().join(&content_type);
            std::fs::create_dir(&folder).unwrap();
            let file = folder.join("in");
            let text = lines(&content_type, LINES);
            assert!(text.len() > 100_000, "longer than a pipe and a read-ahead");
            std::fs::write(&file, if zipped { gzip(&text) } else { text.into_bytes() }).unwrap();
            let output = bash(script, &url, &file);
            assert!(output.status.success(), "{content_type}: {}", output_text(&output));
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["contents"], LINES, "{content_type}: {report}");
            let said = String::from_utf8_lossy(&output.stderr).contains("no file of its own");
            assert_eq!(said, !lasting, "{content_type}: {}", output_text(&output));
            let left: BTreeSet<String> =
                entries(&folder).into_iter().filter(|n| n.contains("tagfast-import")).collect();
            assert_eq!(left, BTreeSet::new(), "{content_type}: a checkpoint stays");
        }
    }
    let contents = stored(&mut client).len();
    assert_eq!(contents, INPUTS.len() * 2 * LINES);
    let unreadable = tagfast(&["import", "/proc/self/mem", "--url", &url]);
    assert_eq!(unreadable.status.code(), Some(1), "{unreadable:?}");
}

/// Ways to name a target; each leaves the lines in `$1.copy`.
const TARGETS: &[(&str, &str)] = &[
    ("file", r#""$T" export "$1.copy" --url "$U""#),
    ("stdout", r#""$T" export - --url "$U" > "$1.copy""#),
    ("dev-stdout", r#""$T" export /dev/stdout --url "$U" > "$1.copy""#),
    ("dev-stdout-pipe", r#""$T" export /dev/stdout --url "$U" | cat > "$1.copy""#),
    ("dev-fd-1", r#""$T" export /dev/fd/1 --url "$U" > "$1.copy""#),
    ("dev-stderr", r#""$T" export /dev/stderr --url "$U" 2> "$1.copy""#),
    ("descriptor", r#""$T" export /dev/fd/7 --url "$U" 7> "$1.copy""#),
    (
        "substitution",
        r#"exec 8> >(cat > "$1.copy"); c=$!; "$T" export /dev/fd/8 --url "$U"; exec 8>&-; wait $c"#,
    ),
    (
        "fifo",
        r#"mkfifo "$1"; cat "$1" > "$1.copy" & "$T" export "$1" --url "$U"; wait; test -p "$1""#,
    ),
    ("link", r#"touch "$1.copy"; ln -s "$1.copy" "$1"; "$T" export "$1" --url "$U"; test -L "$1""#),
    ("dangling-link", r#"ln -s "$1.copy" "$1"; "$T" export "$1" --url "$U"; test -L "$1""#),
    (
        "own-stdout",
        r#"ln -s /dev/stdout "$1"; "$T" export "$1" --url "$U" > "$1.copy"; test -L "$1""#,
    ),
];

#[test]
fn every_line_arrives_whatever_the_target_is_and_nothing_is_replaced_but_files() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(&dir.path().join("data")).start();
    let url = running.url();
    let text = lines("note", LINES);
    let file = dir.path().join("in");
    std::fs::write(&file, &text).unwrap();
    assert!(tagfast(&["import", file.to_str().unwrap(), "--url", &url]).status.success());
    for (name, script) in TARGETS {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let output = bash(script, &url, &folder.join("out"));
        assert!(output.status.success(), "{name}: {}", output_text(&output));
        let copy = std::fs::read_to_string(folder.join("out.copy")).unwrap();
        let ids: BTreeSet<String> = copy
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].to_string())
            .collect();
        assert_eq!(ids.len(), LINES, "{name}");
        let parts = entries(&folder).into_iter().filter(|n| n.ends_with(".part")).count();
        assert_eq!(parts, 0, "{name}");
    }
    // What stands before the lines on the same descriptor stays.
    let script = r#"{ echo first; "$T" export /dev/stdout --url "$U"; echo last; } > "$1""#;
    let path = dir.path().join("around");
    assert!(bash(script, &url, &path).status.success());
    let around = std::fs::read_to_string(&path).unwrap();
    assert!(around.starts_with("first\n{") && around.ends_with("}\nlast\n"), "{around:.80}");
    assert_eq!(around.lines().count(), LINES + 2);

    let null = dir.path().join("null");
    symlink("/dev/null", &null).unwrap();
    for path in ["/dev/null", null.to_str().unwrap()] {
        let output = tagfast(&["export", path, "--url", &url]);
        assert!(output.status.success(), "{path}: {output:?}");
        assert!(Path::new("/dev/null").metadata().unwrap().file_type().is_char_device());
    }
    assert!(null.is_symlink());

    let folder = dir.path().join("full");
    std::fs::create_dir(&folder).unwrap();
    let script = r#"echo old > "$1/out"; cat /dev/zero > "$1/ballast" 2> /dev/null || true
        if "$T" export "$1/out" --url "$U"; then exit 9; fi; cat "$1/out"; ls -A "$1""#;
    let output = on_a_disk(1 << 20, script, &url, &folder);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "old\nballast\nout\n", "{output:?}");

    // A new file gets what the umask leaves, an old one keeps its owner and mode.
    let new = dir.path().join("new");
    let script = r#"umask 027; "$T" export "$1" --url "$U""#;
    assert!(bash(script, &url, &new).status.success());
    assert_eq!(new.metadata().unwrap().mode() & 0o7777, 0o640);
    for (mode, umask) in [(0o600, "000"), (0o660, "077"), (0o604, "022")] {
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&new, Some(4242), Some(4243)).unwrap();
        }
        let before = new.metadata().unwrap();
        let script = format!(r#"umask {umask}; "$T" export "$1" --url "$U""#);
        assert!(bash(&script, &url, &new).status.success());
        let after = new.metadata().unwrap();
        assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
        assert_eq!(after.mode() & 0o7777, mode);
        assert_ne!(after.ino(), before.ino(), "a regular file is replaced at once");
    }
}

/// A server that sends one line of an export, says so through the channel, and sends no more.
fn stalled_server() -> (String, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sent, begun) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        assert!(connection.read(&mut request).unwrap() > 0);
        let line = "{\"type\":\"t\",\"id\":\"1\",\"tags\":[]}\n";
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        write!(connection, "{head}{:x}\r\n{line}\r\n", line.len()).unwrap();
        sent.send(()).unwrap();
        // Until the client goes away.
        assert_eq!(connection.read(&mut request).unwrap_or(0), 0);
    });
    (url, begun)
}

#[test]
fn an_export_that_ends_early_leaves_the_old_file_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.ndjson");
    for old in [None, Some("old")] {
        let expected: BTreeSet<String> = old.iter().map(|_| "out.ndjson".to_owned()).collect();
        if let Some(old) = old {
            std::fs::write(&path, old).unwrap();
        }
        let refused = tagfast(&["export", path.to_str().unwrap(), "--url", "http://127.0.0.1:1/x"]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert_eq!(entries(dir.path()), expected);
        for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
            let (url, begun) = stalled_server();
            let mut child = command(&["export", path.to_str().unwrap(), "--url", &url])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            begun.recv_timeout(TEST_TIMEOUT).unwrap();
            assert_eq!(entries(dir.path()).len(), expected.len() + 1, "the new content waits");
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, signal).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(1));
            assert_eq!(entries(dir.path()), expected);
        }
        assert_eq!(std::fs::read_to_string(&path).ok().as_deref(), old);
    }
}

/// Runs a script of bash with a folder of its own on a disk of `bytes`, in a mount namespace.
fn on_a_disk(bytes: u64, script: &str, url: &str, folder: &Path) -> Output {
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args(["--mount", "bash"]);
    let script = format!("mount -t tmpfs -o size={bytes} tmpfs \"$1\"; {script}");
    run_bash(unshare, &script, url, folder)
}

#[test]
fn an_import_from_where_nothing_can_be_written_is_done_and_says_so_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(&dir.path().join("data")).start();
    let url = running.url();
    let source: PathBuf = dir.path().join("source");
    std::fs::write(&source, lines("note", LINES)).unwrap();
    let source = source.to_str().unwrap();
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let import = r#""$T" import "$1/in" --url "$U" --json --batch 20"#;
    for (what, before) in [
        ("a disk that is read-only", r#"mount -o remount,ro "$1""#),
        ("a disk that is full", r#"cat /dev/zero > "$1/ballast" || true"#),
    ] {
        let script = format!("cp {source} \"$1/in\"; {before}; {import}");
        let output = on_a_disk(1 << 20, &script, &url, &folder);
        assert!(output.status.success(), "{what}: {}", output_text(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["contents"], LINES, "{what}: {report}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let notes: Vec<&str> = said.lines().filter(|l| l.starts_with("note:")).collect();
        assert!(notes.len() == 1 && notes[0].contains("no checkpoint can be kept"), "{said}");
    }
    assert_eq!(stored(&mut running.client()).len(), LINES);
}

#[test]
fn the_port_is_written_through_a_pipe_too() {
    let dir = tempfile::tempdir().unwrap();
    let running = server(&dir.path().join("data")).start();
    running.client().put(&tag_path("note", "1", "a")).expect(200);
    let script = r#"mkfifo "$1"; cat "$1" > "$1.copy" & c=$!
        "$T" serve --data-dir "$1.data" --listen 127.0.0.1:0 --port-file "$1" 2> /dev/null & s=$!
        wait $c; kill $s; wait $s || true; test -p "$1""#;
    let fifo = dir.path().join("port");
    let output = bash(script, "", &fifo);
    assert!(output.status.success(), "{}", output_text(&output));
    let port = std::fs::read_to_string(dir.path().join("port.copy")).unwrap();
    assert!(port.trim().parse::<u16>().is_ok_and(|port| port > 0), "{port:?}");
}
