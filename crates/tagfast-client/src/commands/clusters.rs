//! `clusters`: shows the state of the clusters, the worst first, once or repeatedly.

use serde_json::Value;

use super::watch::{self, Shown};
use crate::args::ClustersArgs;
use crate::error::CommandResult;
use crate::http::Client;
use crate::json::{list, number, text, texts};
use crate::terminal::Terminal;

/// `clusters`. Watching ends with Ctrl-C.
pub(super) async fn clusters(args: &ClustersArgs, terminal: &Terminal) -> CommandResult {
    let shown = Shown { path: "/v1/clusters", text: clusters_text, line: clusters_line };
    watch::show(&Client::new(&args.client)?, &shown, &args.watch, terminal).await
}

/// How a cluster is, from the worst to the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    NoWrites,
    Refusing,
    Failing,
    Holding,
    Throttled,
    Repairing,
    Warning,
    Fine,
}

impl State {
    fn of(cluster: &Value) -> Self {
        let guard = cluster.get("guard").map(|guard| text(guard, "state")).unwrap_or_default();
        let is_some = |name: &str| !list(cluster, name).is_empty();
        let has_problem = |member: &Value| member.get("problem").is_some();
        if cluster.get("problem").is_some() {
            Self::NoWrites
        } else if guard == "refusing" {
            Self::Refusing
        } else if is_some("failing") {
            Self::Failing
        } else if guard == "holding" {
            Self::Holding
        } else if guard == "throttled" {
            Self::Throttled
        } else if cluster.get("repair_closed").and_then(Value::as_bool) == Some(false) {
            Self::Repairing
        } else if is_some("warnings")
            || is_some("long_transactions")
            || list(cluster, "members").iter().any(has_problem)
        {
            Self::Warning
        } else {
            Self::Fine
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::NoWrites => "no writes",
            Self::Refusing => "refuses writes",
            Self::Failing => "calls fail",
            Self::Holding => "holds writes",
            Self::Throttled => "throttled",
            Self::Repairing => "repairs",
            Self::Warning => "warning",
            Self::Fine => "ok",
        }
    }
}

/// The clusters with their states, the worst first.
fn by_state(answer: &Value) -> Vec<(State, &Value)> {
    let mut clusters: Vec<(State, &Value)> =
        list(answer, "items").iter().map(|cluster| (State::of(cluster), cluster)).collect();
    clusters.sort_by_key(|(state, _)| *state);
    clusters
}

/// A size for people.
fn bytes(value: &Value, name: &str) -> String {
    let bytes = value.get(name).and_then(Value::as_u64).unwrap_or(0) as f64;
    match bytes {
        b if b < 1024.0 => format!("{b:.0} B"),
        b if b < 1024.0 * 1024.0 => format!("{:.1} KiB", b / 1024.0),
        b if b < 1024.0 * 1024.0 * 1024.0 => format!("{:.1} MiB", b / 1024.0 / 1024.0),
        b => format!("{:.1} GiB", b / 1024.0 / 1024.0 / 1024.0),
    }
}

fn primary(cluster: &Value) -> String {
    let primary = cluster.get("epoch").map(|epoch| text(epoch, "primary")).unwrap_or_default();
    if primary.is_empty() { "none".to_owned() } else { primary }
}

fn queued(cluster: &Value) -> u64 {
    list(cluster, "lanes").iter().map(|lane| number(lane, "queued")).sum()
}

/// Replicas that stream, of all.
fn streaming(cluster: &Value) -> String {
    let replicas = || list(cluster, "members").iter().filter(|m| text(m, "role") == "replica");
    let streams = |m: &&Value| m.get("streaming").and_then(Value::as_bool) == Some(true);
    format!("{}/{}", replicas().filter(streams).count(), replicas().count())
}

fn proof_left(cluster: &Value) -> String {
    match cluster.get("proof_left_ms").and_then(Value::as_u64) {
        Some(ms) => format!("{:.1} s", ms as f64 / 1000.0),
        None => "none".to_owned(),
    }
}

fn cluster_row(state: State, cluster: &Value) -> Vec<String> {
    vec![
        text(cluster, "name"),
        state.words().to_owned(),
        primary(cluster),
        cluster.get("epoch").map(|epoch| text(epoch, "ordinal")).unwrap_or_default(),
        proof_left(cluster),
        format!("{} ms", number(&cluster["guard"], "exposure_ms")),
        streaming(cluster),
        queued(cluster).to_string(),
        bytes(&cluster["outbox"], "bytes"),
        bytes(&cluster["journal"], "bytes"),
        number(&cluster["journal"], "waiting_for_repair").to_string(),
    ]
}

fn member_row(cluster: &Value, member: &Value) -> Vec<String> {
    let yes_or_no = |name: &str| match member.get(name).and_then(Value::as_bool) {
        Some(true) => "yes".to_owned(),
        Some(false) => "no".to_owned(),
        None => String::new(),
    };
    let age = member.get("age_ms").and_then(Value::as_u64);
    vec![
        text(cluster, "name"),
        text(member, "name"),
        text(member, "role"),
        text(member, "address"),
        yes_or_no("streaming"),
        age.map(|age| format!("{age} ms")).unwrap_or_default(),
        text(member, "flushed_lsn"),
        text(member, "observed_at"),
    ]
}

/// What is wrong with a cluster, and what to do about it; the worst first.
fn problems(cluster: &Value) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let problem = text(cluster, "problem");
    if !problem.is_empty() {
        all.push(format!("no writes: {problem}"));
    }
    for failing in list(cluster, "failing") {
        let part = |name| text(failing, name);
        let mut words = format!(
            "{} fail, {} %, for {} s: {}; {}",
            part("calls"),
            part("share_percent"),
            number(failing, "lasts_ms") / 1000,
            part("problem"),
            part("remedy")
        );
        if !part("error").is_empty() {
            words.push_str(&format!("; the last error: {}", part("error")));
        }
        all.push(words);
    }
    let warnings = list(cluster, "warnings").iter();
    all.extend(warnings.map(|w| format!("{}: {}", text(w, "part"), text(w, "text"))));
    let members = list(cluster, "members").iter().map(|member| text(member, "problem"));
    all.extend(members.filter(|problem| !problem.is_empty()));
    all.extend(texts(cluster, "long_transactions"));
    all
}

fn clusters_text(answer: &Value, terminal: &Terminal) -> String {
    let clusters = by_state(answer);
    let rows: Vec<Vec<String>> =
        clusters.iter().map(|(state, cluster)| cluster_row(*state, cluster)).collect();
    let headings = [
        "cluster",
        "state",
        "primary",
        "epoch",
        "proof",
        "exposure",
        "streaming",
        "queued",
        "outbox",
        "journal",
        "to repair",
    ];
    let mut shown = terminal.table_text(&headings, &rows);
    for (_, cluster) in &clusters {
        for problem in problems(cluster) {
            shown.push_str(&format!("\n{}: {problem}", text(cluster, "name")));
        }
    }
    let members = |cluster: &Value| -> Vec<Vec<String>> {
        list(cluster, "members").iter().map(|member| member_row(cluster, member)).collect()
    };
    let rows: Vec<Vec<String>> =
        clusters.iter().flat_map(|(_, cluster)| members(cluster)).collect();
    let headings =
        ["cluster", "member", "role", "address", "streams", "behind", "flushed", "last answer"];
    if !rows.is_empty() {
        shown.push_str(&format!("\n\n{}", terminal.table_text(&headings, &rows)));
    }
    shown
}

/// The state on one line, for logs.
fn clusters_line(answer: &Value) -> String {
    let shown = by_state(answer).into_iter().map(|(state, cluster)| {
        format!(
            "{} {} (primary {}, exposure {} ms, streaming {}, queued {})",
            text(cluster, "name"),
            state.words(),
            primary(cluster),
            number(&cluster["guard"], "exposure_ms"),
            streaming(cluster),
            queued(cluster)
        )
    });
    shown.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster(name: &str) -> Value {
        json!({
            "name": name,
            "observed_at": "2026-01-01T00:00:05.000Z",
            "epoch": {"id": "0a", "ordinal": 7, "primary": format!("{name}-1")},
            "members": [
                {"name": format!("{name}-1"), "address": "h:1", "role": "primary",
                    "observed_at": "2026-01-01T00:00:05.000Z"},
                {"name": format!("{name}-2"), "address": "h:2", "role": "replica",
                    "streaming": true, "age_ms": 40, "flushed_lsn": "0/3000148",
                    "observed_at": "2026-01-01T00:00:05.000Z"},
                {"name": format!("{name}-3"), "address": "h:3", "role": "replica",
                    "streaming": false},
            ],
            "proof_left_ms": 17_400,
            "guard": {"state": "open", "exposure_ms": 12, "max_loss_ms": 1000},
            "lanes": [{"number": 0, "queued": 2, "queued_max": 10},
                {"number": 1, "queued": 3, "queued_max": 10}],
            "outbox": {"bytes": 98_304, "bytes_max": 1_000_000},
            "journal": {"bytes": 512, "bytes_max": 1_000_000, "contents": 2,
                "waiting_for_repair": 0, "forgotten_writes": 0},
            "repair_closed": true,
            "long_transactions": [], "failing": [], "warnings": [],
        })
    }

    fn with(name: &str, change: impl FnOnce(&mut Value)) -> Value {
        let mut cluster = cluster(name);
        change(&mut cluster);
        cluster
    }

    #[test]
    fn the_worst_cluster_comes_first() {
        let all = [
            cluster("fine"),
            with("warned", |c| {
                c["warnings"] = json!([{"part": "installation", "text": "x; do y"}])
            }),
            with("repairing", |c| c["repair_closed"] = json!(false)),
            with("throttled", |c| c["guard"]["state"] = json!("throttled")),
            with("holding", |c| c["guard"]["state"] = json!("holding")),
            with("failing", |c| c["failing"] = json!([{"calls": "writes"}])),
            with("refusing", |c| c["guard"]["state"] = json!("refusing")),
            with("down", |c| c["problem"] = json!("no leader")),
        ];
        let answer = json!({"items": all});
        let order: Vec<String> = by_state(&answer).iter().map(|(_, c)| text(c, "name")).collect();
        let expected =
            ["down", "refusing", "failing", "holding", "throttled", "repairing", "warned", "fine"];
        assert_eq!(order, expected);
    }

    #[test]
    fn the_table_has_states_remedies_and_members() {
        let (terminal, _) = Terminal::memory(false);
        let down = with("c1", |c| {
            c["problem"] = json!("no member leads; look at Patroni");
            c["epoch"].as_object_mut().unwrap().remove("primary");
            c["failing"] = json!([{"calls": "writes", "cause": "no_primary", "problem": "p",
                "remedy": "r", "lasts_ms": 3100, "share_percent": 80, "error": "e"}]);
            c["warnings"] = json!([{"part": "loss", "text": "w; do x"}]);
            c["members"][2]["problem"] = json!("replica c1-3 of c1 is 9 s behind");
            c["long_transactions"] = json!(["the transaction of pid 7: end it"]);
        });
        let shown = clusters_text(&json!({"items": [cluster("c0"), down]}), &terminal);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines[..2],
            [
                "c1  no writes  none  7  17.4 s  12 ms  1/2  5  96.0 KiB  512 B  0",
                "c0  ok         c0-1  7  17.4 s  12 ms  1/2  5  96.0 KiB  512 B  0",
            ]
        );
        assert_eq!(lines[2], "c1: no writes: no member leads; look at Patroni");
        assert_eq!(lines[3], "c1: writes fail, 80 %, for 3 s: p; r; the last error: e");
        assert_eq!(lines[4], "c1: loss: w; do x");
        assert_eq!(lines[5], "c1: replica c1-3 of c1 is 9 s behind");
        assert_eq!(lines[6], "c1: the transaction of pid 7: end it");
        assert!(shown.contains("c0  c0-2  replica  h:2  yes  40 ms  0/3000148"), "{shown}");
    }

    #[test]
    fn one_line_holds_all_clusters() {
        let answer = json!({"items": [cluster("c0"), with("c1", |c| c["problem"] = json!("x"))]});
        assert_eq!(
            clusters_line(&answer),
            "c1 no writes (primary c1-1, exposure 12 ms, streaming 1/2, queued 5); \
             c0 ok (primary c0-1, exposure 12 ms, streaming 1/2, queued 5)"
        );
    }
}
