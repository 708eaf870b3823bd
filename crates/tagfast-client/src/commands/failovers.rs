//! `failovers`: lists past failovers, and shows what one did to acknowledged writes.

use serde_json::Value;

use super::csv;
use crate::args::FailoversArgs;
use crate::error::{CliError, CommandResult, Exit};
use crate::http::{Client, encode};
use crate::json::{list, number, text, texts};
use crate::terminal::{Terminal, table};

/// Items in one request where all of a list are asked for.
const ITEMS_PER_REQUEST: u32 = 500;
/// Where a log range ends of which nothing is known.
const UNKNOWN_LSN: &str = "FFFFFFFF/FFFFFFFF";

/// The fields of a failover in CSV. The ones with a dot are in an object.
const FAILOVER_FIELDS: &[&str] = &[
    "at",
    "cluster",
    "epoch",
    "ordinal",
    "previous_primary",
    "primary",
    "timeline",
    "closed",
    "counts.kept",
    "counts.repaired",
    "counts.lost",
    "counts.unknown",
    "durations.outage_ms",
    "durations.repair_ms",
];
/// The same of a write.
const WRITE_FIELDS: &[&str] = &[
    "write_id",
    "tenant",
    "content.type",
    "content.id",
    "verdict",
    "reason",
    "version",
    "epoch",
    "at",
];

/// Phases of a failover, in their order.
const PHASES: &[(&str, &str)] = &[
    ("suspected_at", "suspected"),
    ("held_at", "writes held"),
    ("promoted_at", "promoted"),
    ("minted_at", "epoch minted"),
    ("first_acknowledged_at", "first write acknowledged"),
    ("repair_closed_at", "repair closed"),
];
/// How long parts of a failover took.
const DURATIONS: &[(&str, &str)] = &[
    ("outage_ms", "no write succeeded for"),
    ("promotion_ms", "promotion took"),
    ("first_acknowledgement_ms", "epoch to first write"),
    ("repair_ms", "epoch to closed repair"),
];

/// `failovers`
pub(super) async fn failovers(args: &FailoversArgs, terminal: &Terminal) -> CommandResult {
    if args.csv && terminal.json {
        return Err(CliError::usage("--csv and --json are two forms of the result; give one"));
    }
    let client = Client::new(&args.client)?;
    match &args.epoch {
        None => list_all(&client, args, terminal).await,
        Some(epoch) => show(&client, epoch, args, terminal).await,
    }
}

async fn list_all(client: &Client, args: &FailoversArgs, terminal: &Terminal) -> CommandResult {
    let path = "/v1/failovers?";
    if args.csv {
        return write_csv(client, path, FAILOVER_FIELDS, terminal).await;
    }
    let answer = client.get(&page(path, args)).await?;
    if terminal.json {
        terminal.value(&answer)?;
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = list(&answer, "items").iter().map(failover_row).collect();
    if rows.is_empty() {
        terminal.line("no failover is known")?;
    } else {
        let headings = ["at", "cluster", "epoch", "primary", "outage", "repair", "verdicts"];
        terminal.table(&headings, &rows)?;
    }
    note_more(&answer, terminal);
    Ok(Exit::Done)
}

async fn show(
    client: &Client,
    epoch: &str,
    args: &FailoversArgs,
    terminal: &Terminal,
) -> CommandResult {
    let failover = format!("/v1/failovers/{}", encode(epoch));
    let mut path = format!("{failover}/writes?");
    for (name, value) in [("verdict", &args.verdict), ("tenant", &args.tenant)] {
        if let Some(value) = value {
            path.push_str(&format!("{name}={}&", encode(value)));
        }
    }
    if args.csv {
        return write_csv(client, &path, WRITE_FIELDS, terminal).await;
    }
    let mut report = client.get(&failover).await?;
    let writes = client.get(&page(&path, args)).await?;
    if terminal.json {
        if let Some(report) = report.as_object_mut() {
            report.insert("writes".to_owned(), writes);
        }
        terminal.value(&report)?;
        return Ok(Exit::Done);
    }
    terminal.line(report_text(&report, terminal))?;
    let rows: Vec<Vec<String>> = list(&writes, "items").iter().map(write_row).collect();
    if rows.is_empty() {
        let which = args.verdict.as_deref().unwrap_or("lost or repaired");
        terminal.note(format_args!("no write is listed as {which}"));
    } else {
        let headings = ["verdict", "tenant", "content", "write id", "version", "at"];
        terminal.line(format_args!("\n{}", terminal.table_text(&headings, &rows)))?;
    }
    note_more(&writes, terminal);
    Ok(Exit::Done)
}

/// The path of the page that the arguments ask for.
fn page(path: &str, args: &FailoversArgs) -> String {
    let mut path = format!("{path}limit={}", args.limit);
    if let Some(cursor) = &args.cursor {
        path.push_str(&format!("&cursor={}", encode(cursor)));
    }
    path
}

/// Says how to get the next page of a list.
fn note_more(answer: &Value, terminal: &Terminal) {
    if let Some(next) = answer.get("next_cursor").and_then(Value::as_str) {
        terminal.note(format_args!("there are more: --cursor {next}"));
    }
}

/// Writes all items of a list, page by page.
async fn write_csv(
    client: &Client,
    path: &str,
    fields: &[&str],
    terminal: &Terminal,
) -> CommandResult {
    let mut cursor = String::new();
    let mut has_headings = false;
    loop {
        let answer = client.get(&format!("{path}limit={ITEMS_PER_REQUEST}{cursor}")).await?;
        if !has_headings {
            terminal.line(csv::row(fields.iter().copied()))?;
            has_headings = true;
        }
        for item in list(&answer, "items") {
            let values: Vec<String> = fields.iter().map(|field| raw(item, field)).collect();
            terminal.line(csv::row(values.iter().map(String::as_str)))?;
        }
        match answer.get("next_cursor").and_then(Value::as_str) {
            Some(next) => cursor = format!("&cursor={}", encode(next)),
            None => return Ok(Exit::Done),
        }
    }
}

/// A field as it is; empty if it is absent.
fn raw(item: &Value, field: &str) -> String {
    let found = field.split('.').try_fold(item, |value, name| value.get(name));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// Milliseconds for people; empty if the field is absent.
fn duration(value: &Value, name: &str) -> String {
    let Some(ms) = value.get(name).and_then(Value::as_u64) else { return String::new() };
    if ms < 10_000 { format!("{ms} ms") } else { format!("{:.1} s", ms as f64 / 1000.0) }
}

/// How many writes had which verdict; empty if the caller may not know.
fn counts_text(counts: Option<&Value>) -> String {
    let Some(counts) = counts else { return String::new() };
    let words = ["lost", "repaired", "unknown", "kept"].into_iter();
    let numbers = words.map(|word| (number(counts, word), word)).filter(|(n, _)| *n > 0);
    let shown: Vec<String> = numbers.map(|(n, word)| format!("{n} {word}")).collect();
    if shown.is_empty() { "nothing was at risk".to_owned() } else { shown.join(", ") }
}

fn primaries(failover: &Value) -> String {
    let (before, now) = (text(failover, "previous_primary"), text(failover, "primary"));
    if before.is_empty() { now } else { format!("{before} -> {now}") }
}

fn repair_text(failover: &Value) -> String {
    match failover.get("closed").and_then(Value::as_bool) {
        Some(true) if !text(failover, "superseded_by").is_empty() => "superseded".to_owned(),
        Some(true) => "closed".to_owned(),
        Some(false) => "pending".to_owned(),
        None => String::new(),
    }
}

fn failover_row(failover: &Value) -> Vec<String> {
    vec![
        text(failover, "at"),
        text(failover, "cluster"),
        text(failover, "epoch"),
        primaries(failover),
        duration(&failover["durations"], "outage_ms"),
        repair_text(failover),
        counts_text(failover.get("counts")),
    ]
}

fn write_row(write: &Value) -> Vec<String> {
    let content = &write["content"];
    let reason = text(write, "reason");
    let verdict = text(write, "verdict");
    vec![
        if reason.is_empty() { verdict } else { format!("{verdict} ({reason})") },
        text(write, "tenant"),
        format!("{}/{}", text(content, "type"), text(content, "id")),
        text(write, "write_id"),
        text(write, "version"),
        text(write, "at"),
    ]
}

/// A failover with its phases and what each process reported.
fn report_text(report: &Value, terminal: &Terminal) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut put = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![name.to_owned(), value]);
        }
    };
    put("cluster", text(report, "cluster"));
    put("epoch", text(report, "epoch"));
    put("previous epoch", text(report, "previous_epoch"));
    put("primary", primaries(report));
    put("ordinal", text(report, "ordinal"));
    put("term", text(report, "term"));
    put("timeline", text(report, "timeline"));
    put("fork at", text(report, "fork_lsn"));
    for (name, words) in PHASES {
        put(words, text(&report["times"], name));
    }
    for (name, words) in DURATIONS {
        put(words, duration(&report["durations"], name));
    }
    put("repair", repair_text(report));
    put("verdicts", counts_text(report.get("counts")));
    let missing = texts(report, "missing_nodes");
    put("did not report", missing.join(", "));
    let nodes = list(report, "nodes");
    for node in nodes {
        for log in list(node, "incomplete") {
            let field = |name| text(log, name);
            let (from, to, epoch) = (field("from_lsn"), field("to_lsn"), field("epoch"));
            let writes = field("writes");
            let node = text(node, "node");
            let words = match to.as_str() {
                UNKNOWN_LSN => format!("{node} could not read back what it had acknowledged"),
                to => format!("{node} forgot {writes} writes in {from} to {to} of {epoch}"),
            };
            put("incomplete", words);
        }
    }
    let mut shown = table(&rows);
    if !nodes.is_empty() {
        let rows: Vec<Vec<String>> = nodes.iter().map(node_row).collect();
        let headings = ["process", "repair began", "repair ended", "verdicts"];
        shown.push_str(&format!("\n\n{}", terminal.table_text(&headings, &rows)));
    }
    shown
}

fn node_row(node: &Value) -> Vec<String> {
    let ended = text(node, "ended_at");
    vec![
        text(node, "node"),
        text(node, "began_at"),
        if ended.is_empty() { "it goes on".to_owned() } else { ended },
        counts_text(node.get("counts")),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report() -> Value {
        json!({
            "cluster": "c0", "epoch": "0a".repeat(16), "at": "2026-01-01T00:00:02.000Z",
            "ordinal": 7, "term": 9, "timeline": 3, "fork_lsn": "0/3000148", "closed": true,
            "primary": "c0-2", "previous_primary": "c0-1",
            "times": {"suspected_at": "2026-01-01T00:00:00.000Z",
                "minted_at": "2026-01-01T00:00:02.000Z"},
            "durations": {"outage_ms": 2100, "repair_ms": 12_345},
            "counts": {"kept": 40, "repaired": 9, "lost": 1, "unknown": 0},
            "missing_nodes": ["b-2"],
            "nodes": [{"node": "a-1", "began_at": "2026-01-01T00:00:02.100Z",
                "counts": {"kept": 40, "repaired": 9, "lost": 1, "unknown": 0}, "times": {},
                "incomplete": [{"epoch": "09", "from_lsn": "0/1", "to_lsn": "0/2", "writes": 5},
                    {"epoch": "00", "from_lsn": "0/0", "to_lsn": UNKNOWN_LSN, "writes": 0}]}],
        })
    }

    #[test]
    fn a_failover_is_a_row_with_the_worst_verdict_first() {
        assert_eq!(
            failover_row(&report()).join(" | "),
            format!(
                "2026-01-01T00:00:02.000Z | c0 | {} | c0-1 -> c0-2 | 2100 ms | closed | \
                 1 lost, 9 repaired, 40 kept",
                "0a".repeat(16)
            )
        );
        let mut superseded = report();
        superseded["superseded_by"] = json!("0b".repeat(16));
        assert_eq!(failover_row(&superseded)[5], "superseded");
        // What a caller without the scope `admin` gets.
        let short = json!({"at": "x", "cluster": "c0", "epoch": "e", "closed": false,
            "durations": {}});
        assert_eq!(failover_row(&short), ["x", "c0", "e", "", "", "pending", ""]);
        let none = json!({"kept": 0, "repaired": 0, "lost": 0, "unknown": 0});
        assert_eq!(counts_text(Some(&none)), "nothing was at risk");
    }

    #[test]
    fn a_report_names_phases_gaps_and_who_is_missing() {
        let (terminal, _) = Terminal::memory(false);
        let shown = report_text(&report(), &terminal);
        for words in [
            "no write succeeded for  2100 ms",
            "epoch to closed repair  12.3 s",
            "did not report          b-2",
            "incomplete              a-1 forgot 5 writes in 0/1 to 0/2 of 09",
            "incomplete              a-1 could not read back what it had acknowledged",
            "a-1  2026-01-01T00:00:02.100Z  it goes on  1 lost, 9 repaired, 40 kept",
        ] {
            assert!(shown.contains(words), "{words:?} in {shown}");
        }
    }

    #[test]
    fn csv_has_one_field_per_heading_also_of_what_is_missing() {
        let write = json!({"write_id": "w", "tenant": "acme", "version": "7", "epoch": "e",
            "content": {"type": "page", "id": "a,b"}, "verdict": "lost", "at": "t"});
        let values: Vec<String> = WRITE_FIELDS.iter().map(|field| raw(&write, field)).collect();
        let row = csv::row(values.iter().map(String::as_str));
        assert_eq!(row, "w,acme,page,\"a,b\",lost,,7,e,t");
        let values = FAILOVER_FIELDS.iter().map(|field| raw(&report(), field));
        assert_eq!(values.filter(String::is_empty).count(), 0);
    }
}
