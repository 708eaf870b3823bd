//! Interrupted imports: what they kept, where they go on, and what they count.

use std::io::Write as _;
use std::path::Path;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tagfast_client::error::Exit;
use tokio::sync::watch;

use crate::support::{FakeServer, args, input, run, run_until, server, working};

/// Seeds to try.
const SEEDS: u64 = if cfg!(feature = "full") { 100 } else { 15 };

fn content(id: usize) -> String {
    format!("{}\n", json!({"type": "t", "id": format!("{id:05}"), "tags": ["a", "b"]}))
}

fn gzip(text: &str) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(text.as_bytes()).unwrap();
    out.finish().unwrap()
}

/// However often an import is interrupted, the report of the last run counts each line of the file
/// once, and each tagging that was new once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_after_any_interruptions_count_each_line_once() {
    join_all((0..SEEDS).map(interrupted_counters)).await;
}

async fn interrupted_counters(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut bad, mut blank, mut taggings, mut text) = (Vec::new(), 0, 0, String::new());
    let mut distinct = std::collections::BTreeSet::new();
    let lines = 400;
    for line in 1..=lines {
        let id = random.usize(..150).to_string();
        match random.u8(..10) {
            0 => blank += 1,
            1 => bad.push((line, "nonsense".to_owned())),
            2 => {
                bad.push((line, json!({"type": "t", "id": id, "tags": ["<"]}).to_string()));
            }
            _ => {
                let tags: Vec<String> = (0..3).map(|_| format!("t{}", random.u8(..9))).collect();
                distinct.extend(tags.iter().map(|tag| (id.clone(), tag.clone())));
                taggings += tags.len();
                text.push_str(&json!({"type": "t", "id": id, "tags": tags}).to_string());
            }
        }
        if let Some((_, text_of)) = bad.last().filter(|(at, _)| *at == line) {
            text.push_str(text_of);
        }
        text.push('\n');
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("in.ndjson");
    std::fs::write(&file, text).unwrap();
    let trouble = Some(random.fork());
    let (fake, client) = server(FakeServer { trouble, ..working() }).await;
    let mut args = args(file.to_str().unwrap().to_owned(), client);
    args.batch = random.u32(1..20);
    args.parallel = random.u32(1..8);
    args.retries = 100;
    let mut interruptions = 0;
    let report = loop {
        let (stop, stopped) = watch::channel(false);
        {
            let mut fake = fake.lock();
            let requests = fake.requests + random.usize(2..12);
            fake.stop_after = (interruptions < 6).then_some((requests, stop.clone()));
        }
        match run_until(&args, stopped).await {
            (Ok(exit), report, _) => {
                assert_eq!(exit, Exit::Partly);
                break report;
            }
            (Err(error), _, _) => {
                assert!(error.message.contains("interrupted"), "{error:?}");
                interruptions += 1;
            }
        }
    };
    let number = |name: &str| report[name].as_u64().unwrap() as usize;
    assert_eq!(number("lines"), lines, "seed {seed}");
    assert_eq!((number("bad"), number("blank")), (bad.len(), blank), "seed {seed}");
    assert_eq!(number("contents"), lines - bad.len() - blank, "seed {seed}");
    assert_eq!(number("taggings"), taggings, "seed {seed}");
    assert_eq!(number("added"), distinct.len(), "seed {seed}, {interruptions} interruptions");
    let listed: Vec<usize> = report["bad_lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["line"].as_u64().unwrap() as usize)
        .collect();
    assert_eq!(listed, bad.iter().map(|(line, _)| *line).collect::<Vec<_>>(), "seed {seed}");
    assert!(interruptions > 0, "seed {seed} interrupts nothing");
}

/// Whatever breaks the input off: the whole lines before are on the server, and once the input is
/// repaired the import goes on behind them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_precedes_damage_is_imported_and_a_repaired_input_goes_on_behind_it() {
    let text = |lines: std::ops::Range<usize>| lines.map(content).collect::<String>();
    let (first, second) = (gzip(&text(0..70)), gzip(&text(70..100)));
    let whole = [&first[..], &second].concat();
    let mut wrong_checksum = first.clone();
    let place = first.len() - 8;
    wrong_checksum[place] ^= 1;
    let damaged = [
        ("a missing trailer", first[..first.len() - 8].to_vec()),
        ("a cut header of the second member", whole[..first.len() + 5].to_vec()),
        ("a wrong checksum", [&wrong_checksum[..], &second].concat()),
        ("garbage", [&first[..], b"garbage"].concat()),
        ("garbage behind padding", [&first[..], &[0; 4096], b"garbage"].concat()),
    ];
    for (what, bytes) in damaged {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("in.ndjson.gz");
        std::fs::write(&file, bytes).unwrap();
        let (fake, client) = server(working()).await;
        let args = args(file.to_str().unwrap().to_owned(), client);
        for _ in 0..2 {
            let error = run(&args).await.0.unwrap_err();
            assert!(error.message.contains("after line 70"), "{what}: {error:?}");
            assert!(error.hint.unwrap().contains("up to line 70 is done"), "{what}");
        }
        let requests = {
            let mut fake = fake.lock();
            assert_eq!(std::mem::take(&mut fake.contents).len(), 70, "{what}");
            fake.requests
        };
        assert_eq!(requests, 7, "{what}: nothing is sent twice");
        std::fs::write(&file, [&whole[..], &[0; 513]].concat()).unwrap();
        let (result, report, _) = run(&args).await;
        assert_eq!(result.unwrap(), Exit::Done, "{what}: padding is no damage");
        assert_eq!((&report["contents"], &report["resumed_after_line"]), (&json!(100), &json!(70)));
        assert_eq!(fake.lock().contents.len(), 30, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_input_that_changed_before_the_checkpoint_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (stop, stopped) = watch::channel(false);
    let (fake, client) = server(FakeServer { stop_after: Some((30, stop)), ..working() }).await;
    let file = input(dir.path(), 500, &[]);
    let args = args(file.clone(), client);
    assert!(run_until(&args, stopped).await.0.is_err());
    let requests = {
        let mut fake = fake.lock();
        fake.stop_after = None;
        fake.requests
    };
    let checkpoint = std::fs::read(format!("{file}.tagfast-import")).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    for changed in [text.replacen("00007", "70000", 1), text[..2000].to_owned(), String::new()] {
        std::fs::write(&file, changed).unwrap();
        let error = run(&args).await.0.unwrap_err();
        assert!(error.message.contains("has changed"), "{error:?}");
        assert!(error.hint.unwrap().contains("--restart"));
        assert_eq!(std::fs::read(format!("{file}.tagfast-import")).unwrap(), checkpoint);
    }
    assert_eq!(fake.lock().requests, requests, "a changed input is not sent");
    std::fs::write(&file, text + &content(777)).unwrap();
    let (result, report, said) = run(&args).await;
    assert_eq!((result.unwrap(), &report["lines"]), (Exit::Done, &json!(501)));
    assert!(said.contains("going on after line"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_was_asked_for_and_cannot_be_kept_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, client) = server(working()).await;
    let mut args = args(input(dir.path(), 20, &[]), client);
    let null = dir.path().join("null");
    std::os::unix::fs::symlink("/dev/null", &null).unwrap();
    let missing = dir.path().join("no such folder/state");
    for state in [missing.as_path(), Path::new("/dev/null"), &null, dir.path()] {
        args.state = Some(state.to_owned());
        let (result, report, _) = run(&args).await;
        assert!(result.is_err() && report == Value::Null, "{}", state.display());
    }
    assert!(null.is_symlink());
    assert_eq!(fake.lock().requests, 0);
}
