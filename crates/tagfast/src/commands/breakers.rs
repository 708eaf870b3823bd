//! `breakers`: the circuit breakers of a server's process.

use serde_json::{Value, json};

use super::status::event_text;
use crate::cli::{BreakersCommand, ClientArgs};
use crate::client::Client;
use crate::failure::{CommandResult, Exit};
use crate::term::{Term, table, visible};

/// Changes that are shown.
const EVENTS: usize = 10;

/// `breakers`
pub(super) async fn run(command: &BreakersCommand, term: &Term) -> CommandResult {
    match command {
        BreakersCommand::List { client } => {
            let listed = Client::new(client)?.get("/v1/breakers").await?;
            if term.json {
                term.value(&listed)?;
            } else {
                term.line(list_text(&listed))?;
            }
            Ok(Exit::Done)
        }
        BreakersCommand::Open(args) => {
            set(&args.name, "open", &args.reason, &args.client, term).await
        }
        BreakersCommand::Close(args) => {
            set(&args.name, "closed", &args.reason, &args.client, term).await
        }
        BreakersCommand::Auto { name, reason, client } => {
            set(name, "auto", reason, client, term).await
        }
    }
}

async fn set(
    name: &str,
    state: &str,
    reason: &str,
    client: &ClientArgs,
    term: &Term,
) -> CommandResult {
    let client = Client::new(client)?;
    let body = json!({"name": name, "state": state, "reason": reason});
    let answer = client.post("/v1/breakers", &body, None).await?;
    if term.json {
        term.value(&answer)?;
    } else {
        let is = answer.get("state").and_then(Value::as_str).unwrap_or_default();
        term.line(format_args!("{} is {}", visible(name), visible(is)))?;
        term.note(format_args!(
            "this is the breaker of the process at {}; other processes have their own",
            client.base()
        ));
    }
    Ok(Exit::Done)
}

fn list_text(listed: &Value) -> String {
    let list = |name: &str| {
        listed.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    };
    if list("items").is_empty() {
        return "this process has no circuit breakers".to_owned();
    }
    let text = |v: &Value, name: &str| {
        v.get(name).and_then(Value::as_str).map(visible).unwrap_or_default()
    };
    let row = |b: &Value| {
        let number = |name: &str| {
            b.get("window").and_then(|w| w.get(name)).and_then(Value::as_u64).unwrap_or(0)
        };
        let seconds = b.get("since_ms").and_then(Value::as_u64).unwrap_or(0) / 1000;
        vec![
            text(b, "name"),
            text(b, "state"),
            format!("for {seconds} s ({})", text(b, "reason")),
            format!(
                "{} ok, {} failed, {} slow in 10 s",
                number("ok"),
                number("failed"),
                number("slow")
            ),
        ]
    };
    let mut out = table(&list("items").iter().map(row).collect::<Vec<_>>());
    for event in list("events").iter().take(EVENTS) {
        out.push_str(&format!("\n{}  {}", event_text(event), text(event, "name")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_shows_states_windows_and_changes() {
        let listed = json!({"items": [{"name": "index", "state": "open", "reason": "failures", "since_ms": 2500,
                "generation": 1, "window": {"ok": 1, "failed": 2, "slow": 3}}],
            "events": [{"at": "2026-01-01T00:00:00.000Z", "name": "index", "from": "closed", "to": "open",
                "reason": "failures"}]});
        assert_eq!(
            list_text(&listed),
            "index  open  for 2 s (failures)  1 ok, 2 failed, 3 slow in 10 s\n\
             2026-01-01T00:00:00.000Z  closed -> open (failures)  index"
        );
        assert_eq!(list_text(&json!({"items": []})), "this process has no circuit breakers");
    }
}
