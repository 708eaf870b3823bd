//! Failovers: listed, shown, their writes filtered and paged; tenants apart.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::support::clusters::{epoch, report};
use crate::support::{ApiLimits, Fixture, build, fixture, hs256, jwt_fixture, keys};

/// The epoch that has writes.
const EPOCH: &str = "02020202020202020202020202020202";

fn filled(fixture: Fixture) -> Fixture {
    fixture.failovers.fill();
    fixture
}

fn texts<'a>(page: &'a Value, field: &str) -> Vec<&'a str> {
    page["items"].as_array().unwrap().iter().map(|item| item[field].as_str().unwrap()).collect()
}

/// The first bytes of the ids of the writes of a page.
fn writes(page: &Value) -> Vec<&str> {
    texts(page, "write_id").into_iter().map(|id| &id[..2]).collect()
}

fn admin() -> String {
    keys::hs256(&keys::claims("acme", "admin"))
}

#[tokio::test]
async fn failovers_are_paged_newest_first_also_with_equal_ordinals() {
    let fixture = filled(fixture());
    let get = async |uri: &str| fixture.get(uri).send().await.ok();
    let epochs = |page: &Value| {
        texts(page, "epoch").into_iter().map(|id| id[..2].to_owned()).collect::<Vec<_>>()
    };
    let all = get("/v1/failovers").await;
    assert_eq!(epochs(&all), ["06", "04", "02"]);
    assert_eq!(all.get("next_cursor"), Some(&Value::Null));
    let mut found = Vec::new();
    let mut uri = "/v1/failovers?limit=1".to_owned();
    loop {
        let page = get(&uri).await;
        found.extend(epochs(&page));
        let Some(next) = page["next_cursor"].as_str() else { break };
        uri = format!("/v1/failovers?limit=1&cursor={next}");
    }
    assert_eq!(found, ["06", "04", "02"]);
}

#[tokio::test]
async fn a_failover_has_its_phases_counts_and_gaps() {
    let fixture = filled(fixture());
    let shown = fixture.get(&format!("/v1/failovers/{EPOCH}")).send().await.ok();
    let counts = json!({"kept": 5, "repaired": 2, "lost": 1, "unknown": 0});
    let times = json!({
        "suspected_at": "2026-01-01T00:00:00.000Z", "promoted_at": "2026-01-01T00:00:01.900Z",
        "minted_at": "2026-01-01T00:00:02.000Z",
        "first_acknowledged_at": "2026-01-01T00:00:02.030Z",
        "repair_closed_at": "2026-01-01T00:00:03.000Z",
    });
    let expected = json!({
        "cluster": "c0", "epoch": EPOCH, "at": "2026-01-01T00:00:02.000Z", "ordinal": 100,
        "term": 77, "timeline": 3, "fork_lsn": "16/B374D848", "previous_epoch": "01".repeat(16),
        "closed": true, "times": times,
        "durations": {"outage_ms": 2030, "promotion_ms": 1900, "minting_ms": 100,
            "first_acknowledgement_ms": 30, "repair_ms": 1000},
        "primary": "c0-2", "previous_primary": "c0-1", "counts": counts,
        "missing_nodes": ["api-2"],
        "nodes": [{"node": "api-1", "counts": counts, "times": times,
            "began_at": "2026-01-01T00:00:02.010Z", "ended_at": "2026-01-01T00:00:02.500Z",
            "incomplete": [{"epoch": "01".repeat(16), "from_lsn": "0/1", "to_lsn": "0/FF",
                "writes": 9}]}],
    });
    assert_eq!(shown, expected);
    for unknown in ["0".repeat(32), "x".to_owned(), format!("{EPOCH}0"), "%20".to_owned()] {
        for path in [unknown.clone(), format!("{unknown}/writes")] {
            let answer = fixture.get(&format!("/v1/failovers/{path}")).send().await;
            answer.problem("failover_not_found");
        }
    }
}

#[tokio::test]
async fn the_writes_of_a_failover_are_filtered_and_paged() {
    let fixture = filled(jwt_fixture());
    let admin = admin();
    let uri = format!("/v1/failovers/{EPOCH}/writes");
    let ask = |query: &str| fixture.get(&format!("{uri}{query}")).bearer(&admin).send();
    let all = ask("").await.ok();
    assert_eq!(writes(&all), ["01", "02", "03", "04"]);
    let first = json!({
        "write_id": "01".repeat(16), "tenant": "acme", "content": {"type": "page", "id": "p1"},
        "verdict": "repaired", "version": "1", "epoch": "01".repeat(16),
        "at": "2026-01-01T00:00:02.400Z",
    });
    assert_eq!(all["items"][0], first);
    assert_eq!(all["items"][1]["reason"], "limit");
    assert_eq!(all["items"][3]["reason"], "superseded");
    for (query, expected) in [
        ("?verdict=lost", &["02", "03"][..]),
        ("?verdict=repaired", &["01", "04"]),
        ("?tenant=umbra", &["03"]),
        ("?tenant=umbra&verdict=repaired", &[]),
    ] {
        assert_eq!(writes(&ask(query).await.ok()), expected, "{query}");
    }
    let page = ask("?verdict=lost&limit=1").await.ok();
    assert_eq!(writes(&page), ["02"]);
    let next = page["next_cursor"].as_str().unwrap();
    let rest = ask(&format!("?verdict=lost&limit=1&cursor={next}")).await.ok();
    assert_eq!((writes(&rest), rest.get("next_cursor")), (vec!["03"], Some(&Value::Null)));
    for bad in ["verdict=kept", "verdict=", "limit=0", "limit=501"] {
        ask(&format!("?{bad}")).await.problem("bad_parameter");
    }
    ask("?state=open").await.problem("unknown_parameter");
    ask("?tenant=A").await.problem("forbidden_character");
    // Nothing is lost in a different failover.
    let none = fixture.get(&format!("/v1/failovers/{}/writes", "06".repeat(16)));
    assert_eq!(writes(&none.bearer(&admin).send().await.ok()), Vec::<&str>::new());
}

#[tokio::test]
async fn a_cursor_belongs_to_its_list_and_tenant() {
    let fixture = filled(crate::dead_letters::with_dead_letters(jwt_fixture()));
    let (admin, other) = (admin(), keys::hs256(&keys::claims("umbra", "admin")));
    let writes = format!("/v1/failovers/{EPOCH}/writes");
    let lists = [
        "/v1/failovers".to_owned(),
        format!("{writes}?"),
        format!("{writes}?verdict=lost"),
        format!("{writes}?tenant=acme"),
        "/v1/dead-letters".to_owned(),
    ];
    let with = |list: &str, rest: &str| {
        let and = if list.contains('?') { '&' } else { '?' };
        format!("{list}{and}{rest}")
    };
    for list in &lists {
        let page = fixture.get(&with(list, "limit=1")).bearer(&admin).send().await.ok();
        let cursor = page["next_cursor"].as_str().unwrap().to_owned();
        for target in &lists {
            let uri = with(target, &format!("cursor={cursor}"));
            let own = fixture.get(&uri).bearer(&admin).send().await;
            if target == list {
                own.ok();
            } else {
                own.problem("bad_cursor");
            }
            fixture.get(&uri).bearer(&other).send().await.problem("bad_cursor");
        }
    }
    for bad in ["x", "", "AAAA"] {
        let uri = format!("/v1/failovers?cursor={bad}");
        fixture.get(&uri).bearer(&admin).send().await.problem("bad_cursor");
    }
}

#[tokio::test]
async fn without_admin_only_the_own_tenant_s_writes_are_shown_and_no_machines() {
    let fixture = filled(jwt_fixture());
    let user = keys::user("acme");
    let get = |uri: String| fixture.get(&uri).bearer(&user).send();
    let uri = format!("/v1/failovers/{EPOCH}/writes");
    assert_eq!(writes(&get(uri.clone()).await.ok()), ["01", "02", "04"]);
    assert_eq!(writes(&get(format!("{uri}?tenant=acme")).await.ok()), ["01", "02", "04"]);
    get(format!("{uri}?tenant=umbra")).await.problem("missing_scope");
    for uri in ["/v1/failovers".to_owned(), format!("/v1/failovers/{EPOCH}")] {
        let answer = get(uri.clone()).await;
        let text = answer.ok().to_string();
        assert!(text.contains(EPOCH) && text.contains("\"closed\":true"), "{text}");
        for hidden in ["c0-1", "c0-2", "api-1", "api-2", "counts", "lost", "nodes"] {
            assert!(!text.contains(hidden), "{uri}: {hidden} in {text}");
        }
    }
    let writer = keys::hs256(&keys::claims("acme", "tags:write"));
    for uri in ["/v1/failovers".to_owned(), format!("/v1/failovers/{EPOCH}"), uri] {
        fixture.get(&uri).bearer(&writer).send().await.problem("missing_scope");
    }
}

#[tokio::test]
async fn a_failover_that_another_one_followed_names_it() {
    let fixture = fixture();
    let mut superseded = report("c0", 2, 100);
    superseded.superseded_by = Some(epoch(3));
    *fixture.failovers.reports.lock() = vec![superseded];
    let shown = fixture.get(&format!("/v1/failovers/{EPOCH}")).send().await.ok();
    assert_eq!(
        (&shown["closed"], &shown["superseded_by"]),
        (&json!(true), &json!("03".repeat(16)))
    );
}

#[tokio::test]
async fn what_is_not_over_has_no_time_yet() {
    let fixture = fixture();
    let mut pending = report("c0", 2, 100);
    pending.is_closed = false;
    (pending.previous, pending.previous_primary, pending.fork_lsn) = (None, None, None);
    pending.times.repair_closed_at = None;
    pending.times.suspected_at = None;
    pending.nodes[0].ended_at = None;
    *fixture.failovers.reports.lock() = vec![pending];
    let shown = fixture.get(&format!("/v1/failovers/{EPOCH}")).send().await.ok();
    assert_eq!(shown["closed"], false);
    for absent in ["previous_epoch", "previous_primary", "fork_lsn", "superseded_by"] {
        assert!(shown.get(absent).is_none(), "{absent}");
    }
    assert!(shown["times"].get("repair_closed_at").is_none());
    let durations = json!({"minting_ms": 100, "first_acknowledgement_ms": 30});
    assert_eq!(shown["durations"], durations);
    assert!(shown["nodes"][0].get("ended_at").is_none());
}

#[tokio::test]
async fn an_unreachable_etcd_is_503_and_a_mode_without_failovers_501() {
    let uris = ["/v1/failovers".to_owned(), format!("/v1/failovers/{EPOCH}"), writes_of(EPOCH)];
    let fixture = filled(fixture());
    fixture.failovers.down.store(true, Ordering::SeqCst);
    for uri in &uris {
        let problem = fixture.get(uri).send().await.problem("unavailable");
        assert!(problem.get("outcome_unknown").is_none(), "{problem}");
    }
    let without = build(hs256(), ApiLimits::default(), |services| services.failovers = None);
    for uri in &uris {
        without.get(uri).bearer(&admin()).send().await.problem("not_in_this_mode");
    }
}

fn writes_of(epoch: &str) -> String {
    format!("/v1/failovers/{epoch}/writes")
}
