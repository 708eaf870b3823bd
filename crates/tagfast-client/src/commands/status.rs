//! `status`: shows the state of a server, once or repeatedly.

use serde_json::Value;

use super::watch::{self, Shown};
use crate::args::StatusArgs;
use crate::error::CommandResult;
use crate::http::Client;
use crate::json::{list, number, text};
use crate::terminal::{Terminal, table};

/// Number of breaker changes listed.
const EVENTS_SHOWN: usize = 5;

/// `status`. Watching ends with Ctrl-C.
pub(super) async fn status(args: &StatusArgs, terminal: &Terminal) -> CommandResult {
    let shown =
        Shown { path: "/v1/status", text: |answer, _| status_text(answer), line: status_line };
    watch::show(&Client::new(&args.client)?, &shown, &args.watch, terminal).await
}

/// How long a breaker has been in its state.
fn since(breaker: &Value) -> String {
    let ms = number(breaker, "since_ms");
    if ms < 60_000 {
        format!("{:.1} s", ms as f64 / 1000.0)
    } else {
        format!("{} min", ms / 60_000)
    }
}

/// The lag of a consumer; the server does not know it before the first proof.
fn lag(consumer: &Value) -> String {
    let lag = consumer.get("lag_seconds").and_then(Value::as_f64);
    lag.map_or_else(|| "unknown".to_owned(), |lag| format!("{lag:.2} s"))
}

fn status_text(answer: &Value) -> String {
    let mut rows = vec![
        vec!["version".to_owned(), text(answer, "version")],
        vec!["mode".to_owned(), text(answer, "mode")],
        vec!["roles".to_owned(), text(answer, "roles")],
        vec!["epoch".to_owned(), text(answer, "epoch")],
        vec!["up".to_owned(), format!("{} s", text(answer, "uptime_seconds"))],
        vec!["contents in the index".to_owned(), text(answer, "indexed_contents")],
    ];
    for c in list(answer, "consumers") {
        let state = format!(
            "{}, lag {}, {} dead letters",
            text(c, "state"),
            lag(c),
            text(c, "dead_letters")
        );
        rows.push(vec![format!("consumer {}", text(c, "group")), state]);
    }
    for l in list(answer, "limits") {
        let state = format!(
            "{} of {} at once, {} shed",
            text(l, "in_flight"),
            text(l, "limit"),
            text(l, "shed")
        );
        rows.push(vec![format!("limit {}", text(l, "name")), state]);
    }
    for r in list(answer, "running") {
        rows.push(vec![
            format!("running {}", text(r, "operation")),
            format!("{} contents", text(r, "contents")),
        ]);
    }
    for d in list(answer, "degraded") {
        rows.push(vec![format!("degraded {}", text(d, "feature")), text(d, "reason")]);
    }
    for b in list(answer, "breakers") {
        let state = format!("{} for {} ({})", text(b, "state"), since(b), text(b, "reason"));
        rows.push(vec![format!("breaker {}", text(b, "name")), state]);
    }
    for e in list(answer, "breaker_events").iter().take(EVENTS_SHOWN) {
        rows.push(vec![format!("breaker {}", text(e, "name")), event_text(e)]);
    }
    for p in list(answer, "not_ready") {
        rows.push(vec![format!("not ready {}", text(p, "part")), text(p, "problem")]);
    }
    table(&rows)
}

/// One change of a breaker.
pub(super) fn event_text(event: &Value) -> String {
    let part = |name| text(event, name);
    format!("{}  {} -> {} ({})", part("at"), part("from"), part("to"), part("reason"))
}

/// The state on one line, for logs.
fn status_line(answer: &Value) -> String {
    let several = |name: &str, show: &dyn Fn(&Value) -> String| {
        let all: Vec<String> = list(answer, name).iter().map(show).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    };
    let both = |value: &Value, a: &str, b: &str| format!("{} ({})", text(value, a), text(value, b));
    format!(
        "up {} s; degraded: {}; breakers: {}; limits: {}; consumers: {}; not ready: {}",
        text(answer, "uptime_seconds"),
        several("degraded", &|d| both(d, "feature", "reason")),
        several("breakers", &|b| format!("{} {}", text(b, "name"), text(b, "state"))),
        several("limits", &|l| format!(
            "{} {}/{} shed {}",
            text(l, "name"),
            text(l, "in_flight"),
            text(l, "limit"),
            text(l, "shed")
        )),
        several("consumers", &|c| format!(
            "{} {} lag {}",
            text(c, "group"),
            text(c, "state"),
            lag(c)
        )),
        several("not_ready", &|p| both(p, "part", "problem")),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> Value {
        json!({"version": "1", "mode": "embedded", "epoch": "ab", "uptime_seconds": 5,
            "indexed_contents": 7,
            "consumers": [{"group": "indexer", "state": "running", "lag_seconds": 0.25,
                "dead_letters": 0}],
            "running": [{"operation": "reindex", "contents": 3}],
            "degraded": [{"feature": "search", "reason": "rebuilding"}],
            "limits": [{"name": "index", "limit": 32, "in_flight": 3, "shed": 9}],
            "breakers": [{"name": "index", "state": "open", "since_ms": 1500,
                "reason": "failures"}],
            "breaker_events": [{"at": "2026-01-01T00:00:00.000Z", "name": "index",
                "from": "closed", "to": "open", "reason": "failures"}],
            "not_ready": [{"part": "search", "problem": "catching up"}]})
    }

    #[test]
    fn status_lists_failing_parts() {
        let text = status_text(&answer());
        for part in [
            "lag 0.25 s",
            "running reindex",
            "degraded search",
            "not ready search",
            "catching up",
            "open for 1.5 s (failures)",
            "3 of 32 at once, 9 shed",
            "2026-01-01T00:00:00.000Z  closed -> open (failures)",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn one_line_holds_the_whole_state_also_of_an_older_server() {
        assert_eq!(
            status_line(&answer()),
            "up 5 s; degraded: search (rebuilding); breakers: index open; limits: index 3/32 shed \
                9; \
             consumers: indexer running lag 0.25 s; not ready: search (catching up)"
        );
        let old = json!({"uptime_seconds": 1, "degraded": []});
        assert_eq!(
            status_line(&old),
            "up 1 s; degraded: none; breakers: none; limits: none; consumers: none; not ready: none"
        );
    }
}
