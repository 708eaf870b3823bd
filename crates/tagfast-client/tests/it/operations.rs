//! The commands for operators of clusters against a server that answers what a cluster would.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, http::StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use tagfast_client::args::{
    ClientArgs, ClientCommand, ClustersArgs, FailoversArgs, ReceiptsCommand, WatchArgs,
};
use tagfast_client::commands;
use tagfast_client::error::{CliError, Exit};
use tagfast_client::terminal::Terminal;

/// The sizes of the batches of receipts that were asked for.
type Batches = Arc<Mutex<Vec<usize>>>;

async fn check(State(batches): State<Batches>, Json(body): Json<Value>) -> Json<Value> {
    let receipts = body["receipts"].as_array().unwrap();
    batches.lock().push(receipts.len());
    let verdict = |receipt: &Value| match receipt.as_str().unwrap() {
        "lost" => json!({"ok": true, "verdict": "lost", "reason": "limit", "write_id": "w"}),
        "bad" => json!({"ok": false, "problem": {"code": "bad_token", "detail": "receipt: cut"}}),
        "down" => json!({"ok": false, "problem": {"code": "unavailable", "detail": "no primary"}}),
        _ => json!({"ok": true, "verdict": "kept", "write_id": "w"}),
    };
    Json(json!({"results": receipts.iter().map(verdict).collect::<Vec<_>>()}))
}

fn failover(n: u32) -> Value {
    json!({"at": format!("t{n}"), "cluster": "c0", "epoch": format!("e{n}"), "ordinal": n,
        "timeline": 1, "term": 1, "closed": true, "times": {}, "durations": {"outage_ms": 900},
        "primary": "c0-2", "previous_primary": "c0-1",
        "counts": {"kept": 1, "repaired": 0, "lost": n, "unknown": 0}})
}

/// Three failovers, two a page.
async fn failovers(Query(query): Query<HashMap<String, String>>) -> Json<Value> {
    assert!(query.contains_key("limit"));
    match query.get("cursor").map(String::as_str) {
        None => Json(json!({"items": [failover(3), failover(2)], "next_cursor": "c 1"})),
        Some("c 1") => Json(json!({"items": [failover(1)], "next_cursor": null})),
        Some(other) => panic!("cursor {other:?}"),
    }
}

async fn report(Path(epoch): Path<String>) -> (StatusCode, Json<Value>) {
    if epoch == "e3" {
        (StatusCode::OK, Json(failover(3)))
    } else {
        let problem = json!({"status": 404, "code": "failover_not_found", "detail": "none"});
        (StatusCode::NOT_FOUND, Json(problem))
    }
}

async fn writes(Query(query): Query<HashMap<String, String>>) -> Json<Value> {
    let write = |n: u32, verdict: &str, reason: Value| {
        json!({"write_id": format!("w{n}"), "tenant": "acme", "verdict": verdict, "version": "7",
            "content": {"type": "page", "id": format!("p,{n}")}, "reason": reason,
            "epoch": "e2", "at": "t"})
    };
    let all = [write(1, "repaired", Value::Null), write(2, "lost", json!("limit"))];
    let wanted = query.get("verdict");
    let items: Vec<_> =
        all.into_iter().filter(|w| wanted.is_none_or(|v| w["verdict"] == v.as_str())).collect();
    Json(json!({"items": items, "next_cursor": null}))
}

async fn clusters() -> Json<Value> {
    let cluster = |name: &str, state: &str| {
        json!({"name": name, "members": [], "lanes": [], "long_transactions": [], "failing": [],
            "warnings": [], "guard": {"state": state, "exposure_ms": 5, "max_loss_ms": 1000},
            "outbox": {"bytes": 0}, "journal": {"bytes": 0}})
    };
    Json(json!({"items": [cluster("a", "open"), cluster("b", "refusing")], "next_cursor": null}))
}

/// What a command did: how it ended, its stdout and its stderr.
struct Ran {
    result: Result<Exit, CliError>,
    out: String,
    err: String,
    batches: Vec<usize>,
}

/// Runs a command, which has a runtime of its own, against the server.
fn run(json: bool, command: impl FnOnce(ClientArgs) -> ClientCommand) -> Ran {
    let batches = Batches::default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let router = Router::new()
        .route("/v1/receipts:check", post(check))
        .route("/v1/failovers", get(failovers))
        .route("/v1/failovers/{epoch}", get(report))
        .route("/v1/failovers/{epoch}/writes", get(writes))
        .route("/v1/clusters", get(clusters))
        .with_state(Arc::clone(&batches));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    runtime.spawn(async move { axum::serve(listener, router).await });
    let (terminal, captured) = Terminal::memory(json);
    let result = commands::run(&command(ClientArgs { url, token: None, timeout: 10 }), &terminal);
    let batches = batches.lock().clone();
    Ran { result, out: captured.out(), err: captured.err(), batches }
}

fn check_file(text: &str, json: bool) -> Ran {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    run(json, |client| {
        ClientCommand::Receipts(ReceiptsCommand::Check { file: file.path().to_owned(), client })
    })
}

fn failovers_args(client: ClientArgs) -> FailoversArgs {
    FailoversArgs {
        epoch: None,
        verdict: None,
        tenant: None,
        csv: false,
        limit: 50,
        cursor: None,
        client,
    }
}

#[test]
fn receipts_are_checked_500_at_a_time_in_order() {
    let text: String = (0..1203).map(|n| format!("r{n}\n")).collect();
    let ran = check_file(&text, false);
    assert_eq!((ran.result.unwrap(), ran.batches.len()), (Exit::Done, 3));
    assert_eq!(ran.batches.iter().sum::<usize>(), 1203);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[1202]), (1203, "line 1  kept", "line 1203  kept"));
    assert!(ran.err.ends_with("1203 kept\n"), "{}", ran.err);
}

#[test]
fn what_is_not_kept_is_named_and_ends_with_exit_code_3() {
    let ran = check_file("# mine\nr1\n\nlost\nbad\ndown\n", false);
    assert_eq!(ran.result.unwrap(), Exit::Partly);
    let lines: Vec<&str> = ran.out.lines().collect();
    let expected = [
        "line 2  kept",
        "line 4  lost  (limit)",
        "line 5  unreadable  (receipt: cut)",
        "line 6  unanswered  (no primary)",
    ];
    assert_eq!(lines, expected);
    assert!(ran.err.ends_with("1 kept, 1 lost, 1 unanswered, 1 unreadable\n"), "{}", ran.err);
    let json: Value = serde_json::from_str(&check_file("r1\nlost\n", true).out).unwrap();
    assert_eq!(json["counts"], json!({"kept": 1, "lost": 1}));
    let lost = json!({"line": 2, "verdict": "lost", "reason": "limit",
        "answer": {"verdict": "lost", "reason": "limit", "write_id": "w"}});
    assert_eq!(json["items"][1], lost);
    let none = check_file("# nothing\n", false).result.unwrap_err();
    assert!(none.to_string().contains("holds no receipt"), "{none}");
}

#[test]
fn failovers_are_a_table_or_one_csv_of_all_pages() {
    let ran = run(false, |client| ClientCommand::Failovers(failovers_args(client)));
    assert_eq!(
        ran.out,
        "t3  c0  e3  c0-1 -> c0-2  900 ms  closed  3 lost, 1 kept\n\
         t2  c0  e2  c0-1 -> c0-2  900 ms  closed  2 lost, 1 kept\n"
    );
    assert_eq!(ran.err, "there are more: --cursor c 1\n");
    let csv = run(false, |client| {
        ClientCommand::Failovers(FailoversArgs { csv: true, ..failovers_args(client) })
    });
    let lines: Vec<&str> = csv.out.lines().collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[0].starts_with("at,cluster,epoch,ordinal,previous_primary,primary"));
    assert_eq!(lines[3], "t1,c0,e1,1,c0-1,c0-2,1,true,1,0,1,0,900,");
    let both = run(true, |client| {
        ClientCommand::Failovers(FailoversArgs { csv: true, ..failovers_args(client) })
    });
    assert_eq!(both.result.unwrap_err().exit, Exit::Usage);
}

#[test]
fn one_failover_is_shown_with_its_writes() {
    let show = |json, csv, verdict: Option<&str>, epoch: &str| {
        run(json, |client| {
            ClientCommand::Failovers(FailoversArgs {
                epoch: Some(epoch.to_owned()),
                verdict: verdict.map(str::to_owned),
                csv,
                ..failovers_args(client)
            })
        })
    };
    let ran = show(false, false, None, "e3");
    assert!(ran.out.contains("no write succeeded for  900 ms"), "{}", ran.out);
    let listed =
        "\n\nrepaired      acme  page/p,1  w1  7  t\nlost (limit)  acme  page/p,2  w2  7  t\n";
    assert!(ran.out.ends_with(listed), "{}", ran.out);
    let csv = show(false, true, Some("lost"), "e3");
    assert_eq!(
        csv.out,
        "write_id,tenant,content.type,content.id,verdict,reason,version,epoch,at\n\
         w2,acme,page,\"p,2\",lost,limit,7,e2,t\n"
    );
    let json: Value = serde_json::from_str(&show(true, false, None, "e3").out).unwrap();
    assert_eq!(
        (&json["epoch"], &json["writes"]["items"][1]["write_id"]),
        (&json!("e3"), &json!("w2"))
    );
    let none = show(false, false, None, "e9").result.unwrap_err();
    assert_eq!((none.code(), none.exit), ("failover_not_found", Exit::Failed));
}

#[test]
fn clusters_are_listed_the_worst_first() {
    let shown = |json| {
        run(json, |client| {
            let watch = WatchArgs { watch: false, interval: 1 };
            ClientCommand::Clusters(ClustersArgs { watch, client })
        })
    };
    let table = shown(false).out;
    assert!(table.starts_with("b  refuses writes  none"), "{table}");
    assert!(table.contains("\na  ok "), "{table}");
    let json: Value = serde_json::from_str(&shown(true).out).unwrap();
    assert_eq!(json["items"][0]["name"], "a");
}
