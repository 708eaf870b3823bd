//! `breakers`: lists and overrides the circuit breakers of one server process.

use serde_json::{Value, json};

use super::status::event_text;
use crate::args::{BreakersCommand, ClientArgs};
use crate::error::{CommandResult, Exit};
use crate::http::Client;
use crate::json::{self, number, text};
use crate::terminal::{Terminal, visible};

/// Number of changes listed.
const EVENTS_SHOWN: usize = 10;

/// `breakers`
pub(super) async fn run(command: &BreakersCommand, terminal: &Terminal) -> CommandResult {
    match command {
        BreakersCommand::List { client } => {
            let listed = Client::new(client)?.get("/v1/breakers").await?;
            if terminal.json {
                terminal.value(&listed)?;
            } else {
                terminal.line(list_text(&listed, terminal))?;
            }
            Ok(Exit::Done)
        }
        BreakersCommand::Open(args) => {
            set(&args.name, "open", &args.reason, &args.client, terminal).await
        }
        BreakersCommand::Close(args) => {
            set(&args.name, "closed", &args.reason, &args.client, terminal).await
        }
        BreakersCommand::Auto { name, reason, client } => {
            set(name, "auto", reason, client, terminal).await
        }
    }
}

/// Sets the state of one breaker.
async fn set(
    name: &str,
    state: &str,
    reason: &str,
    client: &ClientArgs,
    terminal: &Terminal,
) -> CommandResult {
    let client = Client::new(client)?;
    let body = json!({"name": name, "state": state, "reason": reason});
    let answer = client.post("/v1/breakers", &body, None).await?;
    if terminal.json {
        terminal.value(&answer)?;
    } else {
        terminal.line(format_args!("{} is {}", visible(name), text(&answer, "state")))?;
        terminal.note(format_args!(
            "this is the breaker of the process at {}; other processes have their own",
            client.base()
        ));
    }
    Ok(Exit::Done)
}

/// The breakers and their last changes, for people.
fn list_text(listed: &Value, terminal: &Terminal) -> String {
    let items = json::list(listed, "items");
    if items.is_empty() {
        return "this process has no circuit breakers".to_owned();
    }
    let row = |b: &Value| {
        let window = |name: &str| b.get("window").map_or(0, |window| number(window, name));
        let seconds = number(b, "since_ms") / 1000;
        vec![
            text(b, "name"),
            text(b, "state"),
            format!("for {seconds} s ({})", text(b, "reason")),
            format!(
                "{} ok, {} failed, {} slow in 10 s",
                window("ok"),
                window("failed"),
                window("slow")
            ),
        ]
    };
    let headings = ["breaker", "state", "since", "calls"];
    let mut out = terminal.table_text(&headings, &items.iter().map(row).collect::<Vec<_>>());
    for event in json::list(listed, "events").iter().take(EVENTS_SHOWN) {
        out.push_str(&format!("\n{}  {}", event_text(event), text(event, "name")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_shows_states_windows_and_changes() {
        let (terminal, _) = Terminal::memory(false);
        let listed = json!({
            "items": [{"name": "index", "state": "open", "reason": "failures", "since_ms": 2500,
                "generation": 1, "window": {"ok": 1, "failed": 2, "slow": 3}}],
            "events": [{"at": "2026-01-01T00:00:00.000Z", "name": "index", "from": "closed",
                "to": "open", "reason": "failures"}],
        });
        assert_eq!(
            list_text(&listed, &terminal),
            "index  open  for 2 s (failures)  1 ok, 2 failed, 3 slow in 10 s\n\
             2026-01-01T00:00:00.000Z  closed -> open (failures)  index"
        );
        assert_eq!(
            list_text(&json!({"items": []}), &terminal),
            "this process has no circuit breakers"
        );
    }
}
