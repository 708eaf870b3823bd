//! Builds the test binaries and runs them: those that measure how soon something happens alone, the
//! others two at a time.
//!
//! Binaries that start servers wait for most of their time (for elections, time limits, consumer
//! groups), and the tests of one share a stack; so two binaries side by side use what one leaves
//! idle. What a binary prints is shown as a whole when it has ended.
//!
//! How it fails: a binary that ends without its result line (a signal, an abort) counts as one
//! failure, and the others run on.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::run::{cargo, root};
use crate::totals::Totals;

/// How many binaries run at the same time. Each may have a whole stack of servers, some 3 GiB.
const BINARIES_AT_ONCE: usize = 2;

/// The binaries that run alone: their bounds are seconds, and a second binary on two processors
/// would be what they measure.
const ALONE: [(&str, &str); 3] =
    [("tagfast", "real"), ("tagfast-store-postgres", "faults"), ("tagfast", "matrix")];

/// The others that take longest, the longest first: they begin first, so that no long one is left
/// at the end. Any other order is slower and nothing else.
const LONGEST: [(&str, &str); 5] = [
    ("tagfast-store-postgres", "real"),
    ("tagfast-search-opensearch", "real"),
    ("tagfast-testkit", "real"),
    ("tagfast-events-kafka", "real"),
    ("tagfast-cache", "real"),
];

/// A built test binary.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TestBinary {
    package: String,
    /// The name of its target: `it`, `real`, the crate's name for its own unit tests.
    target: String,
    executable: PathBuf,
    /// The package's directory, in which it runs.
    directory: PathBuf,
}

impl TestBinary {
    /// Reads a message of cargo; `None`: it is about something else.
    fn parse(message: &str) -> Result<Option<Self>> {
        let message: Value = serde_json::from_str(message).context("cargo printed no JSON")?;
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return Ok(None);
        }
        let Some(executable) = message["executable"].as_str() else { return Ok(None) };
        let manifest = message["manifest_path"].as_str().context("an artifact has no manifest")?;
        let directory = Path::new(manifest).parent().context("a manifest has no directory")?;
        let package = directory.file_name().context("a package has no directory")?;
        let target = message["target"]["name"].as_str().context("an artifact has no target")?;
        Ok(Some(Self {
            package: package.to_string_lossy().into_owned(),
            target: target.to_owned(),
            executable: executable.into(),
            directory: directory.to_owned(),
        }))
    }

    /// Whether it runs alone.
    fn is_alone(&self) -> bool {
        ALONE.contains(&(&self.package, &self.target))
    }

    /// The place in the order in which binaries begin.
    fn place(&self) -> usize {
        let place = LONGEST.iter().position(|of| *of == (&*self.package, &*self.target));
        place.unwrap_or(LONGEST.len())
    }

    /// Runs it and returns what it printed, and its totals.
    fn run(&self, filter: &[String]) -> Result<(Vec<u8>, Totals)> {
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        let mut command = Command::new(&self.executable);
        command.args(filter).current_dir(&self.directory).stdin(Stdio::null());
        // As cargo does it.
        command.env("CARGO_MANIFEST_DIR", &self.directory);
        command.stdout(writer.try_clone().context("cannot copy a pipe")?).stderr(writer);
        let shown = self.executable.display();
        let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        // It holds the writing ends of the pipe, which must be closed for the reading to end.
        drop(command);
        let mut printed = Vec::new();
        let mut totals = Totals::default();
        let mut has_result = false;
        let mut reader = BufReader::new(reader);
        loop {
            let begin = printed.len();
            if reader.read_until(b'\n', &mut printed)? == 0 {
                break;
            }
            let line = String::from_utf8_lossy(&printed[begin..]);
            if let Some(result) = line.strip_prefix("test result: ") {
                totals.add(Totals::parse(result));
                has_result = true;
            }
        }
        let status = child.wait()?;
        if !has_result || (!status.success() && totals.failed == 0) {
            writeln!(printed, "\n{shown} ended with {status} before all its tests had run")?;
            totals.failed += 1;
        }
        Ok((printed, totals))
    }
}

/// Builds with these arguments of `cargo test`.
pub(crate) fn build(arguments: &[String]) -> Result<Vec<TestBinary>> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-run"]).args(arguments);
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo test")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    let mut binaries = Vec::new();
    for line in BufReader::new(stdout).lines() {
        binaries.extend(TestBinary::parse(&line?)?);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("cargo test --no-run failed ({status})");
    }
    ensure!(!binaries.is_empty(), "cargo test --no-run built no test");
    Ok(binaries)
}

/// Runs the binaries and adds up what they say. `filter`: arguments for each of them.
pub(crate) fn run_all(binaries: Vec<TestBinary>, filter: &[String]) -> Result<Totals> {
    let (alone, mut others): (Vec<_>, Vec<_>) =
        binaries.into_iter().partition(TestBinary::is_alone);
    others.sort_by_key(TestBinary::place);
    let mut totals = run_side_by_side(1, &alone, filter)?;
    totals.add(run_side_by_side(BINARIES_AT_ONCE, &others, filter)?);
    Ok(totals)
}

/// Runs so many of the binaries at a time.
fn run_side_by_side(at_once: usize, binaries: &[TestBinary], filter: &[String]) -> Result<Totals> {
    let waiting = Mutex::new(binaries.iter());
    let printing = Mutex::new(Totals::default());
    let run_until_none_waits = || -> Result<()> {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(binary) = next else { return Ok(()) };
            let TestBinary { package, target, .. } = binary;
            eprintln!("xtask: {package} {target} begins");
            let began = Instant::now();
            let (printed, of_binary) = binary.run(filter)?;
            let mut totals = printing.lock().unwrap_or_else(PoisonError::into_inner);
            totals.add(of_binary);
            let executable = binary.executable.strip_prefix(root()).unwrap_or(&binary.executable);
            let (printed, seconds) = (String::from_utf8_lossy(&printed), began.elapsed().as_secs());
            println!("\n     Running {package} {target} ({})", executable.display());
            println!("{printed}     {package} {target} took {seconds} s");
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(run_until_none_waits)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        anyhow::Ok(())
    })?;
    Ok(printing.into_inner().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(test: bool, executable: &str) -> String {
        serde_json::json!({
            "reason": "compiler-artifact",
            "manifest_path": "/house/crates/tagfast-cache/Cargo.toml",
            "target": {"name": "real", "kind": ["test"]},
            "profile": {"test": test},
            "executable": (!executable.is_empty()).then_some(executable),
        })
        .to_string()
    }

    /// A shell in a directory whose file `script` is this.
    fn script(number: usize, text: &str) -> TestBinary {
        let name = format!("xtask-tests-{}-{number}", std::process::id());
        let directory = crate::run::target_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a directory");
        std::fs::write(directory.join("script"), text).expect("written");
        let (package, target) = ("tagfast-cache".to_owned(), "it".to_owned());
        TestBinary { package, target, executable: "/bin/sh".into(), directory }
    }

    #[test]
    fn only_test_binaries_are_taken_the_longest_begin_first_and_some_run_alone() {
        assert_eq!(TestBinary::parse(&artifact(false, "/t/tagfast")).expect("parsed"), None);
        assert_eq!(TestBinary::parse(&artifact(true, "")).expect("parsed"), None);
        let real = TestBinary::parse(&artifact(true, "/t/real-1")).expect("parsed").expect("one");
        assert_eq!((&*real.package, &*real.target), ("tagfast-cache", "real"));
        let place = real.place();
        assert_eq!(real.directory, Path::new("/house/crates/tagfast-cache"));
        let other = TestBinary { target: "it".to_owned(), ..real };
        assert_eq!((LONGEST.len() - 1, LONGEST.len()), (place, other.place()));
        let matrix = TestBinary { package: "tagfast".into(), target: "matrix".into(), ..other };
        assert!(matrix.is_alone());
        assert!(!TestBinary { target: "it".to_owned(), ..matrix }.is_alone());
        assert!(TestBinary::parse("no JSON").is_err());
    }

    #[test]
    fn a_binary_that_dies_counts_as_failed_and_the_others_run() {
        let result = "echo 'test result: ok. 3 passed; 0 failed; 0 ignored;'";
        let failing = format!("{result}; exit 101");
        let scripts = ["kill -9 $$", result, &failing, "exit 0"];
        let binaries: Vec<_> = (0..).zip(scripts).map(|(n, text)| script(n, text)).collect();
        let directories: Vec<_> = binaries.iter().map(|one| one.directory.clone()).collect();
        let totals = run_all(binaries, &["script".to_owned()]).expect("run");
        assert_eq!((totals.passed, totals.failed), (6, 3));
        for directory in &directories {
            std::fs::remove_dir_all(directory).expect("removed");
        }
    }
}
