//! Commands for operators: state, rebuilding, counting, and what only the cluster mode has.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::{BreakersCommand, ClientArgs, FailoversArgs, RecountArgs, ReindexArgs, StatusArgs};
use crate::client::{Client, Options, encode};
use crate::failure::{CommandResult, Exit, Failure};
use crate::progress::Progress;
use crate::term::{Term, table};

/// How long a rebuild may take before the client gives up waiting; the server goes on.
const LONG: Duration = Duration::from_secs(24 * 3600);
const WATCH_EVERY: Duration = Duration::from_secs(2);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// `status`
pub(super) async fn status(args: &StatusArgs, term: &Term) -> CommandResult {
    let client = Client::new(&args.client)?;
    let clears = args.watch && term.bars && !term.json;
    loop {
        match client.get("/v1/status").await {
            Ok(answer) => {
                if clears {
                    term.bytes(b"\x1b[H\x1b[2J")?;
                }
                show_status(&answer, args.watch, term)?;
            }
            // Watching through a restart is what watching is for.
            Err(error) if args.watch && error.is_retryable() => term.note(Failure::from(error).message),
            Err(error) => return Err(error.into()),
        }
        if !args.watch {
            return Ok(Exit::Done);
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

fn show_status(answer: &Value, one_line: bool, term: &Term) -> Result<(), Failure> {
    if term.json {
        return if one_line { term.line(answer) } else { term.value(answer) };
    }
    term.line(status_text(answer))
}

fn status_text(answer: &Value) -> String {
    let text = |v: &Value, name: &str| match v.get(name) {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let list = |name: &str| answer.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut rows = vec![
        vec!["version".to_owned(), text(answer, "version")],
        vec!["mode".to_owned(), text(answer, "mode")],
        vec!["roles".to_owned(), text(answer, "roles")],
        vec!["epoch".to_owned(), text(answer, "epoch")],
        vec!["up".to_owned(), format!("{} s", text(answer, "uptime_seconds"))],
        vec!["contents in the index".to_owned(), text(answer, "indexed_contents")],
    ];
    for c in list("consumers") {
        let lag = c.get("lag_seconds").and_then(Value::as_f64).unwrap_or(0.0);
        let state = format!("{}, lag {lag:.2} s, {} dead letters", text(c, "state"), text(c, "dead_letters"));
        rows.push(vec![format!("consumer {}", text(c, "group")), state]);
    }
    for r in list("running") {
        rows.push(vec![format!("running {}", text(r, "operation")), format!("{} contents", text(r, "contents"))]);
    }
    for d in list("degraded") {
        rows.push(vec![format!("degraded {}", text(d, "feature")), text(d, "reason")]);
    }
    for p in list("not_ready") {
        rows.push(vec![format!("not ready {}", text(p, "part")), text(p, "problem")]);
    }
    table(&rows)
}

/// Waits for a long call while showing the progress that `/v1/status` tells of it.
async fn long_call(client: &Client, operation: &str, path: &str, body: &Value, term: &Term) -> Result<Value, Failure> {
    let mut progress = Progress::new(term, operation, None);
    let call = client.post(path, body, Some(LONG));
    tokio::pin!(call);
    let mut tick = tokio::time::interval(PROGRESS_EVERY);
    loop {
        tokio::select! {
            answer = &mut call => return Ok(answer?),
            _ = tick.tick() => {
                let Ok(status) = client.get("/v1/status").await else { continue };
                let running = status.get("running").and_then(Value::as_array);
                let mine = running.into_iter().flatten().find(|r| r.get("operation").and_then(Value::as_str) == Some(operation));
                if let Some(done) = mine.and_then(|r| r.get("contents")).and_then(Value::as_u64) {
                    if let Some(total) = status.get("indexed_contents").and_then(Value::as_u64).filter(|t| *t >= done) {
                        progress.set_total(total);
                    }
                    progress.set(done);
                }
            }
        }
    }
}

/// `reindex`
pub(super) async fn reindex(args: &ReindexArgs, term: &Term) -> CommandResult {
    let client = Client::new(&args.client)?;
    let answer = long_call(&client, "reindex", "/v1/admin/reindex", &json!({}), term).await?;
    if term.json {
        term.value(&answer)?;
    } else {
        let contents = answer.get("contents").and_then(Value::as_u64).unwrap_or(0);
        term.line(format_args!("the index was rebuilt from {contents} contents"))?;
    }
    Ok(Exit::Done)
}

/// `recount`: exit code 3 when drift was found and not repaired.
pub(super) async fn recount(args: &RecountArgs, term: &Term) -> CommandResult {
    let client = Client::new(&args.client)?;
    let body = json!({"repair": args.repair});
    let answer = long_call(&client, "recount", "/v1/admin/recount", &body, term).await?;
    let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    let drifted = number("drifted_contents") + number("drifted_counts") > 0;
    let repaired = answer.get("repaired").and_then(Value::as_bool).unwrap_or(false);
    if term.json {
        term.value(&answer)?;
    } else {
        term.line(recount_text(&answer, drifted, repaired))?;
        if drifted && !repaired {
            term.note("hint: `tagfast recount --repair` mends it while writes go on");
        }
    }
    Ok(if drifted && !repaired { Exit::Partly } else { Exit::Done })
}

fn recount_text(answer: &Value, drifted: bool, repaired: bool) -> String {
    let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    if !drifted {
        return format!("{} contents compared, no drift", number("contents"));
    }
    let mut text = format!(
        "{} contents compared: {} contents and {} counts had drifted{}",
        number("contents"),
        number("drifted_contents"),
        number("drifted_counts"),
        if repaired { "; repaired" } else { "" }
    );
    let rows: Vec<Vec<String>> = answer
        .get("rows")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|row| {
            let cell =
                |name: &str| row.get(name).map(|v| v.as_str().map_or_else(|| v.to_string(), crate::term::visible));
            let cell = |name| cell(name).unwrap_or_default();
            vec![cell("tag"), format!("counted {}", cell("counted")), format!("true {}", cell("true"))]
        })
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&table(&rows));
    }
    text
}

/// Calls and prints the answer as it is.
async fn plain(args: &ClientArgs, method: Method, path: &str, body: Option<Value>, term: &Term) -> CommandResult {
    let client = Client::new(args)?;
    let body = body.map(|b| b.to_string().into_bytes());
    let answer = client.call(method, path, Options { body, ..Options::default() }).await?;
    term.value(&answer)?;
    Ok(Exit::Done)
}

/// `failovers`
pub(super) async fn failovers(args: &FailoversArgs, term: &Term) -> CommandResult {
    plain(&args.client, Method::GET, "/v1/failovers", None, term).await
}

/// `breakers`
pub(super) async fn breakers(command: &BreakersCommand, term: &Term) -> CommandResult {
    let (client, change) = match command {
        BreakersCommand::List { client } => (client, None),
        BreakersCommand::Open { name, client } => (client, Some((name, "open"))),
        BreakersCommand::Close { name, client } => (client, Some((name, "close"))),
        BreakersCommand::Auto { name, client } => (client, Some((name, "auto"))),
    };
    // Which breakers there are is asked first: in a mode that has none, that is the answer.
    let listed = Client::new(client)?.get("/v1/breakers").await?;
    match change {
        None => {
            term.value(&listed)?;
            Ok(Exit::Done)
        }
        Some((name, to)) => {
            let path = format!("/v1/breakers/{}", encode(name));
            plain(client, Method::POST, &path, Some(json!({"state": to})), term).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_names_what_does_not_work() {
        let answer = json!({"version": "1", "mode": "embedded", "epoch": "ab", "uptime_seconds": 5, "indexed_contents": 7,
            "consumers": [{"group": "indexer", "state": "running", "lag_seconds": 0.25, "dead_letters": 0}],
            "running": [{"operation": "reindex", "contents": 3}],
            "degraded": [{"feature": "search", "reason": "rebuilding"}],
            "not_ready": [{"part": "search", "problem": "catching up"}]});
        let text = status_text(&answer);
        for part in ["lag 0.25 s", "running reindex", "degraded search", "not ready search", "catching up"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn recounts_list_the_drift() {
        let answer = json!({"contents": 10, "drifted_contents": 1, "drifted_counts": 2,
            "rows": [{"tenant": "default", "tag": "ui", "counted": 3, "true": 4}]});
        let text = recount_text(&answer, true, false);
        assert!(
            text.contains("1 contents and 2 counts had drifted") && text.contains("ui  counted 3  true 4"),
            "{text}"
        );
        assert_eq!(recount_text(&answer, false, false), "10 contents compared, no drift");
    }
}
