//! `tagfast dead-letters`: find, look at, replay and give up what consumers could not apply.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{DeadLettersCommand, LetterFilterArgs, ListLettersArgs};
use crate::client::{Client, encode};
use crate::failure::{CommandResult, Exit, Failure};
use crate::progress::Progress;
use crate::term::{Term, table, visible};

const PROGRESS_EVERY: Duration = Duration::from_millis(300);

/// Runs the command.
pub(super) async fn run(command: &DeadLettersCommand, term: &Term) -> CommandResult {
    match command {
        DeadLettersCommand::List(args) => list(args, term).await,
        DeadLettersCommand::Show { id, client } => show(&Client::new(client)?, id, term).await,
        DeadLettersCommand::Replay { ids, filter, all, dry_run, rate, client } => {
            let mut body =
                json!({"filter": filter_body(ids, filter), "all": all, "dry_run": dry_run});
            if let Some(rate) = rate {
                body["rate"] = json!(rate);
            }
            replay(&Client::new(client)?, &body, term).await
        }
        DeadLettersCommand::Discard { ids, filter, all, reason, client } => {
            let body = json!({"filter": filter_body(ids, filter), "all": all, "reason": reason});
            let answer = Client::new(client)?.post("/v1/dead-letters:discard", &body, None).await?;
            said(&answer, format!("{} letters were discarded", number(&answer, "discarded")), term)
        }
        DeadLettersCommand::Acts { limit, client } => {
            let answer =
                Client::new(client)?.get(&format!("/v1/dead-letter-acts?limit={limit}")).await?;
            let rows: Vec<Vec<String>> = items(&answer, "items")
                .map(|act| {
                    let cell = |name| visible(&text(act, name));
                    vec![cell("at"), cell("by"), cell("action"), cell("letters"), cell("detail")]
                })
                .collect();
            said(
                &answer,
                if rows.is_empty() { "nothing was done yet".to_owned() } else { table(&rows) },
                term,
            )
        }
        DeadLettersCommand::AllowStorm { group, reason, client } => {
            let body = json!({"group": group, "reason": reason});
            let answer =
                Client::new(client)?.post("/v1/dead-letters:allow-storm", &body, None).await?;
            let text = format!(
                "group {group} writes its letters for {} s",
                number(&answer, "allowed_seconds")
            );
            said(&answer, text, term)
        }
    }
}

fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn items<'a>(answer: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    answer.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn said(answer: &Value, text: String, term: &Term) -> CommandResult {
    if term.json {
        term.value(answer)?
    } else {
        term.line(text)?
    }
    Ok(Exit::Done)
}

/// Name and value of every condition that is set.
fn conditions(filter: &LetterFilterArgs) -> impl Iterator<Item = (&'static str, &String)> {
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

fn filter_body(ids: &[String], filter: &LetterFilterArgs) -> Value {
    let mut body: serde_json::Map<String, Value> =
        conditions(filter).map(|(name, value)| (name.to_owned(), json!(value))).collect();
    if !ids.is_empty() {
        body.insert("ids".to_owned(), json!(ids));
    }
    Value::Object(body)
}

async fn list(args: &ListLettersArgs, term: &Term) -> CommandResult {
    let client = Client::new(&args.client)?;
    let mut path = format!("/v1/dead-letters?limit={}&state={}", args.limit, encode(&args.state));
    for (name, value) in conditions(&args.filter) {
        path.push_str(&format!("&{name}={}", encode(value)));
    }
    if let Some(cursor) = &args.cursor {
        path.push_str(&format!("&cursor={}", encode(cursor)));
    }
    let answer = client.get(&path).await?;
    let rows: Vec<Vec<String>> = items(&answer, "items")
        .map(|letter| {
            let cell = |name| visible(&text(letter, name));
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
    let list =
        if rows.is_empty() { format!("no letters are {}", args.state) } else { table(&rows) };
    said(&answer, list, term)?;
    if let Some(next) = answer.get("next_cursor").and_then(Value::as_str).filter(|_| !term.json) {
        term.note(format_args!("there are more: --cursor {next}"));
    }
    Ok(Exit::Done)
}

async fn show(client: &Client, id: &str, term: &Term) -> CommandResult {
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
        .map(|(name, _)| vec![name.clone(), visible(&text(&answer, name))])
        .collect();
    rows.push(vec!["key".to_owned(), bytes(&answer["key"])]);
    for header in items(&answer, "headers") {
        rows.push(vec![
            format!("header {}", visible(&text(header, "name"))),
            bytes(&header["value"]),
        ]);
    }
    rows.push(vec!["payload".to_owned(), bytes(&answer["payload"])]);
    said(&answer, table(&rows), term)
}

/// Starts a replay and waits for its end. Interrupted, it goes on in the server.
async fn replay(client: &Client, body: &Value, term: &Term) -> CommandResult {
    let mut job = client.post("/v1/dead-letters:replay", body, None).await?;
    let id = text(&job, "id");
    let progress = Progress::new(term, "letters", Some(number(&job, "letters")));
    while number(&job, "left") > 0 {
        progress.set(number(&job, "letters") - number(&job, "left"));
        tokio::time::sleep(PROGRESS_EVERY).await;
        match client.get(&format!("/v1/dead-letter-jobs/{}", encode(&id))).await {
            Ok(now) => job = now,
            Err(error) if error.is_retryable() => {
                progress.note(term, &Failure::from(error).message)
            }
            Err(error) => return Err(error.into()),
        }
    }
    progress.set(number(&job, "letters"));
    progress.finish();
    said(&job, replay_text(&job), term)?;
    // What failed again is listed with its reason.
    Ok(if number(&job, "failed") > 0 { Exit::Partly } else { Exit::Done })
}

fn replay_text(job: &Value) -> String {
    let count = |name| number(job, name);
    let would =
        if job.get("dry_run").and_then(Value::as_bool) == Some(true) { "would be " } else { "" };
    let mut text = format!(
        "{} letters: {} {would}applied, {} superseded by newer states",
        count("letters"),
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
    fn what_became_of_letters_is_told() {
        let job = json!({"letters": 5, "applied": 1, "superseded": 2, "failed": 1, "dropped": 1, "closed": 0, "busy": 0});
        let text = replay_text(&job);
        assert!(
            text.starts_with("5 letters: 1 applied, 2 superseded by newer states, 1 failed again"),
            "{text}"
        );
        assert!(text.ends_with("1 discarded meanwhile"), "{text}");
        let dry = json!({"letters": 1, "applied": 1, "superseded": 0, "dry_run": true});
        assert_eq!(
            replay_text(&dry),
            "1 letters: 1 would be applied, 0 superseded by newer states"
        );
    }

    #[test]
    fn a_filter_holds_what_was_given() {
        let filter =
            LetterFilterArgs { group: Some("indexer".to_owned()), ..LetterFilterArgs::default() };
        assert_eq!(filter_body(&[], &filter), json!({"group": "indexer"}));
        assert_eq!(
            filter_body(&["a/1/2".to_owned()], &LetterFilterArgs::default()),
            json!({"ids": ["a/1/2"]})
        );
    }
}
