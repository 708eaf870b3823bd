//! Import and export against a server that fails in a scripted way.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tagfast_client::args::ExportArgs;
use tagfast_client::error::Exit;
use tagfast_client::terminal::Terminal;
use tagfast_client::{export, import};
use tokio::sync::watch;

use crate::support::{FakeServer, args, input, never, server, working};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_good_line_is_written_and_every_bad_one_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, client) = server(working()).await;
    let bad =
        [(3, "nonsense"), (57, r#"{"type":"t","id":"x","tags":["<"]}"#), (99, r#"{"type":"t"}"#)];
    let file = input(dir.path(), 100, &bad);
    let (terminal, captured) = Terminal::memory(true);
    assert_eq!(
        import::run(&args(file.clone(), client), &terminal, never()).await.unwrap(),
        Exit::Partly
    );
    let summary: Value = serde_json::from_str(&captured.out()).unwrap();
    assert_eq!((summary["contents"].as_u64(), summary["taggings"].as_u64()), (Some(97), Some(194)));
    let mut lines: Vec<u64> = summary["bad_lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["line"].as_u64().unwrap())
        .collect();
    lines.sort_unstable();
    assert_eq!(lines, [3, 57, 99]);
    assert!(captured.err().contains("line 57: no < (forbidden_character)"), "{}", captured.err());
    assert_eq!(fake.lock().contents.len(), 97);
    assert!(!Path::new(&format!("{file}.tagfast-import")).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passing_refusals_are_retried_with_the_same_key() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, client) = server(FakeServer { first: vec![503, 429, 507, 503], ..working() }).await;
    let (terminal, captured) = Terminal::memory(true);
    let mut args = args(input(dir.path(), 30, &[]), client);
    args.retries = 8;
    assert_eq!(import::run(&args, &terminal, never()).await.unwrap(), Exit::Done);
    let summary: Value = serde_json::from_str(&captured.out()).unwrap();
    assert_eq!(summary["retries"], 4);
    let fake = fake.lock();
    assert_eq!((fake.contents.len(), fake.keys.len(), fake.requests), (30, 3, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_too_large_is_halved_until_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!(r#"{{"type":"t","id":"long","tags":["{}"]}}"#, "x".repeat(400));
    let (fake, client) = server(FakeServer { body_bytes: 300, ..working() }).await;
    let (terminal, captured) = Terminal::memory(true);
    let file = input(dir.path(), 25, &[(7, &long)]);
    assert_eq!(import::run(&args(file, client), &terminal, never()).await.unwrap(), Exit::Partly);
    let summary: Value = serde_json::from_str(&captured.out()).unwrap();
    assert_eq!(summary["contents"], 24);
    assert_eq!(summary["bad_lines"][0]["line"], 7);
    assert_eq!(fake.lock().contents.len(), 24);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_import_resumes_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (stop, stopped) = watch::channel(false);
    let (fake, client) = server(FakeServer { stop_after: Some((5, stop)), ..working() }).await;
    let file = input(dir.path(), 500, &[(2, "bad")]);
    let (terminal, _) = Terminal::memory(true);
    let error =
        import::run(&args(file.clone(), client.clone()), &terminal, stopped).await.unwrap_err();
    assert!(error.message.contains("interrupted") && error.hint.unwrap().contains("go on"));
    let checkpoint = format!("{file}.tagfast-import");
    let stored: Value =
        serde_json::from_str(&std::fs::read_to_string(&checkpoint).unwrap()).unwrap();
    let line = stored["done"]["line"].as_u64().unwrap();
    let before = {
        let mut fake = fake.lock();
        fake.stop_after = None;
        fake.answers.clear();
        std::mem::take(&mut fake.contents).len() as u64
    };
    assert!((40..400).contains(&line), "{line}");
    assert!(before + 1 >= line, "{before} contents, checkpoint at line {line}");

    let (terminal, captured) = Terminal::memory(true);
    // The bad line is before the checkpoint; it still counts.
    assert_eq!(import::run(&args(file, client), &terminal, never()).await.unwrap(), Exit::Partly);
    let summary: Value = serde_json::from_str(&captured.out()).unwrap();
    assert_eq!(summary["bad"], 1);
    let again = fake.lock().contents.len() as u64;
    assert_eq!(again, 500 - line, "only the lines after the checkpoint are sent again");
    assert!(!Path::new(&checkpoint).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stays_away_ends_the_import_with_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (_, client) = server(FakeServer { first: vec![503; 100], ..working() }).await;
    let file = input(dir.path(), 20, &[]);
    let (terminal, _) = Terminal::memory(true);
    let mut args = args(file.clone(), client);
    args.retries = 1;
    let error = import::run(&args, &terminal, never()).await.unwrap_err();
    assert_eq!(error.exit, Exit::Failed);
    assert!(error.message.contains("not_now") && error.hint.unwrap().contains("line 0"));
    assert!(Path::new(&format!("{file}.tagfast-import")).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_breaks_off_resumes_after_the_last_whole_line() {
    let dir = tempfile::tempdir().unwrap();
    let contents = (0..100).map(|n| (format!("id {n:03}/ü"), BTreeSet::new())).collect();
    let (fake, client) = server(FakeServer { contents, break_after: 30, ..working() }).await;
    let file = dir.path().join("out.ndjson");
    let (terminal, _) = Terminal::memory(false);
    let args = ExportArgs { file: file.clone(), client };
    assert_eq!(export::run(&args, &terminal).await.unwrap(), Exit::Done);
    let text = std::fs::read_to_string(&file).unwrap();
    let ids: Vec<String> = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 100);
    assert!(ids.is_sorted());
    assert_eq!(fake.lock().requests, 4);
}
