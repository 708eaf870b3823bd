//! What is wrong with an installation, and how far its replicas are behind.
//!
//! Asked once a second on the connection that the watcher has anyway. Nothing here stops a write:
//! what makes writing wrong (an old server, tables of somebody else, no right to mint) is found
//! where it is needed, and told as the cluster's problem. What is found here makes a promise
//! weaker, and is told as a warning in the status and in `tagfast_installation_warnings`.
//!
//! How it fails: a server that does not answer in time leaves the numbers of the last second; the
//! watcher notices by itself.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use tokio_postgres::Row;

use crate::cluster::Cluster;
use crate::connect::{Connection, PgError, within};
use crate::etcd::{Look, Member};
use crate::options::limit;

/// The primary's settings, what it sends to whom, and how much waits in its outbox.
const OBSERVE: &str = "
SELECT current_setting('synchronous_commit'), current_setting('fsync'), current_setting('full_page_writes'),
       s.name, s.state, s.behind, s.lag,
       pg_total_relation_size('outbox_0') + pg_total_relation_size('outbox_1') + pg_total_relation_size('outbox_2')
FROM (SELECT) one LEFT JOIN (
    SELECT application_name AS name, state, (pg_current_wal_flush_lsn() - replay_lsn)::bigint AS behind,
           (extract(epoch FROM replay_lag) * 1000)::bigint AS lag
    FROM pg_stat_replication) s ON true";

/// A stream of the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stream {
    name: String,
    state: String,
    bytes: u64,
    ms: u64,
}

/// What the primary said of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Observed {
    synchronous_commit: String,
    fsync: String,
    full_page_writes: String,
    streams: Vec<Stream>,
}

impl Observed {
    fn of(rows: &[Row]) -> Self {
        let Some(first) = rows.first() else { return Self::default() };
        let stream = |row: &Row| {
            let number =
                |column| u64::try_from(row.get::<_, Option<i64>>(column).unwrap_or(0)).unwrap_or(0);
            let state: Option<String> = row.get(4);
            Some(Stream {
                name: row.get::<_, Option<String>>(3)?,
                state: state.unwrap_or_default(),
                bytes: number(5),
                ms: number(6),
            })
        };
        Self {
            synchronous_commit: first.get(0),
            fsync: first.get(1),
            full_page_writes: first.get(2),
            streams: rows.iter().filter_map(stream).collect(),
        }
    }
}

/// Looks at the primary; the warnings, each a sentence that says what to do.
pub(crate) async fn observe(
    cluster: &Cluster,
    server: &Connection,
    look: &Look,
) -> Result<Vec<String>, PgError> {
    let rows =
        within("looking at the replicas", limit::READ, server.client.query(OBSERVE, &[])).await?;
    let observed = Observed::of(&rows);
    if let Some(row) = rows.first() {
        let waits = row.get::<_, i64>(7).unsigned_abs();
        cluster.outbox_bytes.store(waits, Ordering::Relaxed);
        metrics::gauge!("tagfast_outbox_bytes", "cluster" => cluster.name.clone())
            .set(waits as f64);
    }
    let primary = look.leader.as_ref().map_or("", |key| key.member.as_str());
    let replicas: Vec<&Member> = look.members.iter().filter(|m| m.name != primary).collect();
    for member in &look.members {
        let gauge = |metric: &'static str| metrics::gauge!(metric, "cluster" => cluster.name.clone(), "node" => member.name.clone());
        gauge("tagfast_node_is_primary").set(f64::from(u8::from(member.name == primary)));
        let stream =
            observed.streams.iter().find(|s| s.name == member.name && s.state == "streaming");
        if member.name != primary {
            gauge("tagfast_replica_streaming").set(f64::from(u8::from(stream.is_some())));
            // Of one that does not stream nothing is known: the last numbers stay, and the gauge
            // before says so.
            if let Some(stream) = stream {
                gauge("tagfast_replica_lag_bytes").set(stream.bytes as f64);
                // The time is that of the last flush, however long ago: with nothing to replay
                // there is no lag.
                let seconds = if stream.bytes == 0 { 0.0 } else { stream.ms as f64 / 1000.0 };
                gauge("tagfast_replica_lag_seconds").set(seconds);
            }
        }
    }
    let warnings = warnings(&observed, &replicas, look.check_timeline, look.paused);
    metrics::gauge!("tagfast_installation_warnings", "cluster" => cluster.name.clone())
        .set(warnings.len() as f64);
    Ok(warnings)
}

fn warnings(
    observed: &Observed,
    replicas: &[&Member],
    check_timeline: bool,
    paused: bool,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |wrong: bool, text: String| {
        if wrong {
            warnings.push(text);
        }
    };
    warn(
        !check_timeline,
        "Patroni's check_timeline is off: a node on a dead timeline can win an election; set it with `patronictl edit-config`"
            .to_owned(),
    );
    warn(
        paused,
        "Patroni is paused: nobody fails over, and writes are acknowledged only while every member answers; end it with \
         `patronictl resume`"
            .to_owned(),
    );
    warn(
        observed.synchronous_commit == "off",
        "synchronous_commit is off on our own connections (does a pooler drop their options?): acknowledged writes die with \
         the server"
            .to_owned(),
    );
    warn(
        observed.fsync == "off",
        "fsync is off: acknowledged writes die with the machine".to_owned(),
    );
    warn(
        observed.full_page_writes == "off",
        "full_page_writes is off: a crash of the machine can damage pages".to_owned(),
    );
    let names: BTreeSet<&str> = replicas.iter().map(|m| m.name.as_str()).collect();
    let strangers: Vec<&str> = observed
        .streams
        .iter()
        .filter(|s| s.state == "streaming" && !names.contains(s.name.as_str()))
        .map(|s| s.name.as_str())
        .collect();
    let unseen = replicas.iter().any(|m| !observed.streams.iter().any(|s| s.name == m.name));
    warn(
        unseen && !strangers.is_empty(),
        format!(
            "a replica streams under the application_name {strangers:?}, which is no member's name: how far it is behind \
             cannot be told; leave application_name in primary_conninfo to Patroni"
        ),
    );
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Observed {
        let stream = |name: &str| Stream {
            name: name.to_owned(),
            state: "streaming".to_owned(),
            bytes: 0,
            ms: 0,
        };
        Observed {
            synchronous_commit: "local".to_owned(),
            fsync: "on".to_owned(),
            full_page_writes: "on".to_owned(),
            streams: vec![stream("n1"), stream("n2")],
        }
    }

    fn of(observed: &Observed, check_timeline: bool, paused: bool) -> Vec<String> {
        let member = |name: &str| Member { name: name.to_owned(), postgres: "h:1".to_owned() };
        let (one, two) = (member("n1"), member("n2"));
        warnings(observed, &[&one, &two], check_timeline, paused)
    }

    #[test]
    fn a_good_installation_has_no_warnings() {
        assert_eq!(of(&good(), true, false), Vec::<String>::new());
        let backup = Stream { name: "pg_basebackup".to_owned(), ..good().streams[0].clone() };
        let streams = good().streams.into_iter().chain([backup]).collect();
        assert_eq!(
            of(&Observed { streams, ..good() }, true, false),
            Vec::<String>::new(),
            "a guest is no replica"
        );
    }

    #[test]
    fn each_weakness_is_named() {
        let one = |observed: &Observed, check_timeline, paused, word: &str| {
            let found = of(observed, check_timeline, paused);
            assert!(matches!(&found[..], [text] if text.contains(word)), "{word}: {found:?}");
        };
        one(&good(), false, false, "check_timeline");
        one(&good(), true, true, "paused");
        one(
            &Observed { synchronous_commit: "off".to_owned(), ..good() },
            true,
            false,
            "synchronous_commit",
        );
        one(&Observed { fsync: "off".to_owned(), ..good() }, true, false, "fsync");
        one(
            &Observed { full_page_writes: "off".to_owned(), ..good() },
            true,
            false,
            "full_page_writes",
        );
        let mut renamed = good();
        renamed.streams[1].name = "walreceiver".to_owned();
        one(&renamed, true, false, "application_name");
    }
}
