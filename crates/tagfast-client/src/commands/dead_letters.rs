//! `dead-letters`: lists, shows, replays and discards the records that consumers could not apply.

use std::time::Duration;

use serde_json::{Value, json};

use crate::args::{
    DeadLetterFilterArgs, DeadLetterSelectionArgs, DeadLettersCommand, ListDeadLettersArgs,
};
use crate::error::{CliError, CommandResult, Exit};
use crate::http::{Client, encode};
use crate::json::{list, number, text};
use crate::progress::Progress;
use crate::terminal::{Terminal, table, visible};

/// Time between two requests for the progress of a replay.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(300);

/// Runs the command.
pub(super) async fn run(command: &DeadLettersCommand, terminal: &Terminal) -> CommandResult {
    match command {
        DeadLettersCommand::List(args) => list_page(args, terminal).await,
        DeadLettersCommand::Show { id, client } => show(&Client::new(client)?, id, terminal).await,
        DeadLettersCommand::Replay { selection, dry_run, rate, client } => {
            let mut body = selection_body(selection)?;
            body["dry_run"] = json!(dry_run);
            if let Some(rate) = rate {
                body["rate"] = json!(rate);
            }
            replay(&Client::new(client)?, &body, terminal).await
        }
        DeadLettersCommand::Discard { selection, reason, client } => {
            let mut body = selection_body(selection)?;
            body["reason"] = json!(reason);
            let answer = Client::new(client)?.post("/v1/dead-letters:discard", &body, None).await?;
            let shown = format!("{} dead letters were discarded", number(&answer, "discarded"));
            render_answer(&answer, shown, terminal)
        }
        DeadLettersCommand::Audit { limit, cursor, client } => {
            let mut path = format!("/v1/dead-letters/audit?limit={limit}");
            if let Some(cursor) = cursor {
                path.push_str(&format!("&cursor={}", encode(cursor)));
            }
            let answer = Client::new(client)?.get(&path).await?;
            let columns = ["at", "actor", "action", "dead_letters", "detail"];
            let headings = columns.map(|name| name.replace('_', " "));
            let headings = headings.each_ref().map(String::as_str);
            let rows: Vec<Vec<String>> = list(&answer, "items")
                .iter()
                .map(|entry| columns.map(|name| text(entry, name)).to_vec())
                .collect();
            let shown = if rows.is_empty() {
                "nothing was done yet".to_owned()
            } else {
                terminal.table_text(&headings, &rows)
            };
            render_answer(&answer, shown, terminal)?;
            note_more(&answer, terminal);
            Ok(Exit::Done)
        }
        DeadLettersCommand::AllowStorm { group, reason, client } => {
            let body = json!({"group": group, "reason": reason});
            let answer =
                Client::new(client)?.post("/v1/dead-letters:allow-storm", &body, None).await?;
            let text = format!(
                "group {group} writes its dead letters for {} s",
                number(&answer, "allowed_seconds")
            );
            render_answer(&answer, text, terminal)
        }
    }
}

/// Writes the answer as JSON, or `text` for people.
fn render_answer(answer: &Value, text: String, terminal: &Terminal) -> CommandResult {
    if terminal.json {
        terminal.value(answer)?
    } else {
        terminal.line(text)?
    }
    Ok(Exit::Done)
}

/// Name and value of every condition given.
fn conditions(filter: &DeadLetterFilterArgs) -> impl Iterator<Item = (&'static str, &String)> {
    let all = [
        ("group", &filter.group),
        ("class", &filter.class),
        ("code", &filter.code),
        ("tenant", &filter.tenant),
        ("type", &filter.content_type),
        ("id_prefix", &filter.id_prefix),
        ("from", &filter.from),
        ("until", &filter.until),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)))
}

/// The part of a request that names the dead letters. The server refuses a selection of all of
/// them by accident too; here it is told in the words of the command line.
fn selection_body(selection: &DeadLetterSelectionArgs) -> Result<Value, CliError> {
    let DeadLetterSelectionArgs { ids, filter, all } = selection;
    if ids.is_empty() && conditions(filter).next().is_none() && !all {
        return Err(CliError::usage("no dead letter is named: every open one would be meant")
            .hint("give ids, a condition such as --group, or --all for every open one"));
    }
    Ok(json!({"filter": filter_body(ids, filter), "all": all}))
}

fn filter_body(ids: &[String], filter: &DeadLetterFilterArgs) -> Value {
    let mut body: serde_json::Map<String, Value> =
        conditions(filter).map(|(name, value)| (name.to_owned(), json!(value))).collect();
    if !ids.is_empty() {
        body.insert("ids".to_owned(), json!(ids));
    }
    Value::Object(body)
}

/// `dead-letters list`
async fn list_page(args: &ListDeadLettersArgs, terminal: &Terminal) -> CommandResult {
    let client = Client::new(&args.client)?;
    let mut path = format!("/v1/dead-letters?limit={}&state={}", args.limit, encode(&args.state));
    for (name, value) in conditions(&args.filter) {
        path.push_str(&format!("&{name}={}", encode(value)));
    }
    if let Some(cursor) = &args.cursor {
        path.push_str(&format!("&cursor={}", encode(cursor)));
    }
    let answer = client.get(&path).await?;
    let rows: Vec<Vec<String>> = list(&answer, "items")
        .iter()
        .map(|dead_letter| {
            let cell = |name| text(dead_letter, name);
            let content = format!("{}/{}/{}", cell("tenant"), cell("type"), cell("content_id"));
            let content = if content == "//" { "unknown content".to_owned() } else { content };
            vec![
                cell("id"),
                cell("state"),
                cell("class"),
                cell("code"),
                cell("last_failed_at"),
                content,
            ]
        })
        .collect();
    let headings = ["id", "state", "class", "code", "last failed at", "content"];
    let shown = if rows.is_empty() {
        format!("no dead letters are {}", args.state)
    } else {
        terminal.table_text(&headings, &rows)
    };
    render_answer(&answer, shown, terminal)?;
    note_more(&answer, terminal);
    Ok(Exit::Done)
}

/// Says how to get the next page of a list.
fn note_more(answer: &Value, terminal: &Terminal) {
    if let Some(next) = answer.get("next_cursor").and_then(Value::as_str).filter(|_| !terminal.json)
    {
        terminal.note(format_args!("there are more: --cursor {next}"));
    }
}

/// `dead-letters show`
async fn show(client: &Client, id: &str, terminal: &Terminal) -> CommandResult {
    let answer = client.get(&format!("/v1/dead-letters/{}", encode(id))).await?;
    let bytes = |value: &Value| match (value.get("text"), value.get("base64")) {
        (Some(Value::String(text)), _) => visible(text),
        (_, Some(Value::String(base64))) => format!("base64:{base64}"),
        _ => String::new(),
    };
    let mut rows: Vec<Vec<String>> = answer
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_object() && !value.is_array())
        .map(|(name, _)| vec![name.clone(), text(&answer, name)])
        .collect();
    rows.push(vec!["key".to_owned(), bytes(&answer["key"])]);
    for header in list(&answer, "headers") {
        rows.push(vec![format!("header {}", text(header, "name")), bytes(&header["value"])]);
    }
    rows.push(vec!["payload".to_owned(), bytes(&answer["payload"])]);
    render_answer(&answer, table(&rows), terminal)
}

/// Starts a replay and waits for its end. After Ctrl-C the replay goes on in the server.
async fn replay(client: &Client, body: &Value, terminal: &Terminal) -> CommandResult {
    let mut job = client.post("/v1/dead-letters:replay", body, None).await?;
    let id = text(&job, "id");
    let progress = Progress::new(terminal, "dead letters", Some(number(&job, "dead_letters")));
    while number(&job, "left") > 0 {
        progress.set(number(&job, "dead_letters") - number(&job, "left"));
        tokio::time::sleep(PROGRESS_INTERVAL).await;
        match client.get(&format!("/v1/jobs/{}", encode(&id))).await {
            Ok(now) => job = now,
            Err(error) if error.is_retryable() => {
                progress.note(terminal, &CliError::from(error).full_message())
            }
            Err(error) => return Err(error.into()),
        }
    }
    progress.set(number(&job, "dead_letters"));
    progress.finish();
    render_answer(&job, replay_text(&job), terminal)?;
    // The failed ones stay open; the list names their reasons.
    Ok(if number(&job, "failed") > 0 { Exit::Partly } else { Exit::Done })
}

fn replay_text(job: &Value) -> String {
    let count = |name| number(job, name);
    let would =
        if job.get("dry_run").and_then(Value::as_bool) == Some(true) { "would be " } else { "" };
    let mut text = format!(
        "{} dead letters: {} {would}applied, {} superseded by newer states",
        count("dead_letters"),
        count("applied"),
        count("superseded")
    );
    for (name, words) in [
        ("failed", "failed again (tagfast dead-letters list says why)"),
        ("dropped", "discarded meanwhile"),
        ("closed", "had been closed before"),
        ("busy", "are in another replay"),
    ] {
        if count(name) > 0 {
            text.push_str(&format!(", {} {words}", count(name)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_is_summarised() {
        let job = json!({
            "dead_letters": 5, "applied": 1, "superseded": 2, "failed": 1, "dropped": 1, "closed": 0,
            "busy": 0,
        });
        let text = replay_text(&job);
        let start = "5 dead letters: 1 applied, 2 superseded by newer states, 1 failed again";
        assert!(text.starts_with(start), "{text}");
        assert!(text.ends_with("1 discarded meanwhile"), "{text}");
        let dry = json!({"dead_letters": 1, "applied": 1, "superseded": 0, "dry_run": true});
        assert_eq!(
            replay_text(&dry),
            "1 dead letters: 1 would be applied, 0 superseded by newer states"
        );
    }

    #[test]
    fn a_filter_holds_the_given_conditions() {
        let filter = DeadLetterFilterArgs {
            group: Some("indexer".to_owned()),
            ..DeadLetterFilterArgs::default()
        };
        assert_eq!(filter_body(&[], &filter), json!({"group": "indexer"}));
        assert_eq!(
            filter_body(&["a/1/2".to_owned()], &DeadLetterFilterArgs::default()),
            json!({"ids": ["a/1/2"]})
        );
    }
}
