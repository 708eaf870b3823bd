//! Checks of an installation: what weakens a promise, how far the replicas lag, and which long
//! transactions hold the relay.
//!
//! Runs once a second on the watcher's connection. Nothing here stops a write: what makes writing
//! wrong (an old server, tables of a different application, no right to mint) is found where it is
//! needed and reported as the cluster's problem. What is found here, the watcher reports as a
//! warning in the status and in `tagfast_installation_warnings`.
//!
//! How it fails: a server that does not answer in time leaves the figures of the last second; the
//! watcher then reports the connection as failed.

use std::collections::BTreeSet;

use tagfast_domain::EpochOrdinal;
use tagfast_resilience::{Bounded, gauge};
use tokio_postgres::Row;

use crate::cluster::etcd::cluster_state::ClusterState;
use crate::cluster::topology::{Cluster, Node};
use crate::connect::{Connection, PgError, within};
use crate::metric::{
    NODE_IS_PRIMARY, OUTBOX_BYTES, RELAY_HELD, REPLICA_LAG_BYTES, REPLICA_LAG_SECONDS,
    REPLICA_STREAMING,
};
use crate::options::{SynchronousCommit, limit};

/// The primary's settings, its replication streams, and the size of its outbox.
const READ_SETTINGS: &str = "
SELECT current_setting('synchronous_commit'), current_setting('fsync'),
       current_setting('full_page_writes'), s.name, s.state, s.behind, s.lag,
       pg_total_relation_size('outbox_0') + pg_total_relation_size('outbox_1')
           + pg_total_relation_size('outbox_2'),
       s.sync_state, current_setting('synchronous_standby_names'),
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
       EXISTS (SELECT FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event = 'SyncRep'
                 AND query_start < clock_timestamp() - interval '1 second')
FROM (SELECT) one LEFT JOIN (
    SELECT application_name AS name, state, sync_state,
           (pg_current_wal_flush_lsn() - replay_lsn)::bigint AS behind,
           (extract(epoch FROM replay_lag) * 1000)::bigint AS lag
    FROM pg_stat_replication) s ON true";

const UNREADABLE_ROSTER: &str = "the roster of members in etcd is not a JSON list of names: members \
    that join are not remembered; write it again as docs/operate/runbooks/replication-lag.md says";

/// A replication stream of the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ReplicationStream {
    name: String,
    state: String,
    lag_bytes: u64,
    lag_ms: u64,
    /// Whether commits wait for it: PostgreSQL's `sync_state` is `sync` or `quorum`.
    is_synchronous: bool,
}

/// The settings and streams of a primary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct PrimarySettings {
    synchronous_commit: String,
    fsync: String,
    full_page_writes: String,
    streams: Vec<ReplicationStream>,
    synchronous_standby_names: String,
    /// Whether our role sees what other roles' sessions do.
    reads_all_stats: bool,
    /// Whether a commit has waited for a standby for more than a second.
    commits_wait: bool,
}

/// What is configured outside of PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Configured {
    check_timeline: bool,
    paused: bool,
    synchronous_mode: bool,
    synchronous_commit: SynchronousCommit,
}

impl PrimarySettings {
    fn of(rows: &[Row]) -> Self {
        let Some(first) = rows.first() else { return Self::default() };
        let stream = |row: &Row| {
            let number =
                |column| u64::try_from(row.get::<_, Option<i64>>(column).unwrap_or(0)).unwrap_or(0);
            let state: Option<String> = row.get(4);
            Some(ReplicationStream {
                name: row.get::<_, Option<String>>(3)?,
                state: state.unwrap_or_default(),
                lag_bytes: number(5),
                lag_ms: number(6),
                is_synchronous: matches!(row.get(8), Some("sync" | "quorum")),
            })
        };
        Self {
            synchronous_commit: first.get(0),
            fsync: first.get(1),
            full_page_writes: first.get(2),
            streams: rows.iter().filter_map(stream).collect(),
            synchronous_standby_names: first.get(9),
            reads_all_stats: first.get(10),
            commits_wait: first.get(11),
        }
    }
}

/// Checks the primary; returns the warnings, each a sentence that says what to do.
pub(crate) async fn check(
    cluster: &Cluster,
    server: &Connection,
    state: &ClusterState,
    synchronous_commit: SynchronousCommit,
) -> Result<Vec<String>, PgError> {
    let rows = server.client.query(READ_SETTINGS, &[]);
    let rows = within("reading the settings", limit::READ_TIMEOUT, rows).await?;
    let settings = PrimarySettings::of(&rows);
    let label = || Bounded(cluster.name.clone());
    if let Some(row) = rows.first() {
        let bytes = row.get::<_, i64>(7).unsigned_abs();
        cluster.record_check(bytes);
        gauge!(OUTBOX_BYTES, "cluster" => label()).set(bytes as f64);
    }
    let primary = state.leader().map_or("", |key| key.member.as_str());
    let replicas: Vec<&Node> = state.members.iter().filter(|m| m.name != primary).collect();
    for member in &state.members {
        let node = || Bounded(member.name.clone());
        let is_primary = member.name == primary;
        gauge!(NODE_IS_PRIMARY, "cluster" => label(), "node" => node())
            .set(f64::from(u8::from(is_primary)));
        if is_primary {
            continue;
        }
        let stream =
            settings.streams.iter().find(|s| s.name == member.name && s.state == "streaming");
        gauge!(REPLICA_STREAMING, "cluster" => label(), "node" => node())
            .set(f64::from(u8::from(stream.is_some())));
        // The lag of a replica that does not stream is unknown: the last figures stay, and the
        // gauge above says so.
        if let Some(stream) = stream {
            gauge!(REPLICA_LAG_BYTES, "cluster" => label(), "node" => node())
                .set(stream.lag_bytes as f64);
            // The time is that of the last flush, however long ago: with nothing to replay there
            // is no lag.
            let seconds = if stream.lag_bytes == 0 { 0.0 } else { stream.lag_ms as f64 / 1000.0 };
            gauge!(REPLICA_LAG_SECONDS, "cluster" => label(), "node" => node()).set(seconds);
        }
    }
    let held = cluster.long_transactions.poll(&cluster.name, server).await?;
    gauge!(RELAY_HELD, "cluster" => label()).set(held.as_secs_f64());
    let configured = Configured {
        check_timeline: state.check_timeline,
        paused: state.observation.paused,
        synchronous_mode: state.synchronous_mode,
        synchronous_commit,
    };
    let mut warnings = warnings(&settings, &replicas, configured);
    if state.roster.is_none() {
        warnings.push(UNREADABLE_ROSTER.to_owned());
    }
    warnings.extend(cluster.discarded_epoch().map(discarded_warning));
    Ok(warnings)
}

fn discarded_warning(epoch: EpochOrdinal) -> String {
    format!(
        "the primary has nothing of epoch {}, the last one: a node that had not followed it was \
         promoted, and what was written in that epoch is lost but for what the repair brings \
         back; see `tagfast failovers`, and set Patroni's check_timeline with `patronictl \
         edit-config`",
        epoch.0
    )
}

fn warnings(settings: &PrimarySettings, replicas: &[&Node], configured: Configured) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |wrong: bool, text: &str| {
        if wrong {
            warnings.push(text.to_owned());
        }
    };
    warn(
        !configured.check_timeline,
        "Patroni's check_timeline is off: a node on a dead timeline can win an election; set it \
         with `patronictl edit-config`",
    );
    warn(
        configured.paused,
        "Patroni is paused: it does not fail over, and writes are acknowledged only while every \
         member answers; end it with `patronictl resume`",
    );
    warn(
        settings.synchronous_commit == "off",
        "synchronous_commit is off on our own connections (does a pooler drop their options?): \
         acknowledged writes are lost when the server crashes",
    );
    let waits = configured.synchronous_commit == SynchronousCommit::On;
    let has_names = !settings.synchronous_standby_names.trim().is_empty();
    let has_standby = settings.streams.iter().any(|s| s.is_synchronous && s.state == "streaming");
    warn(
        !waits && (configured.synchronous_mode || has_names),
        "the cluster has synchronous standbys and store.synchronous_commit is `local`: writes are \
         acknowledged before a standby has them, and a failover can lose them; set it to `on`",
    );
    warn(
        waits && !has_names,
        "store.synchronous_commit is `on` and PostgreSQL names no synchronous standby: writes are \
         acknowledged when the primary alone has them; start the replicas, or set synchronous_mode \
         with `patronictl edit-config`",
    );
    warn(
        waits && has_names && !has_standby,
        "no synchronous standby streams: writes wait for one, and their callers are told that \
         the outcome is unknown; start the replicas",
    );
    warn(
        waits && has_names && has_standby && settings.commits_wait,
        "commits have waited for the synchronous standby for more than a second: look at its disk \
         and at the network",
    );
    warn(
        !settings.reads_all_stats,
        "the role of store.user lacks pg_monitor: which writes the replicas have is unknown, so \
         that writes are held; a transaction of a different database holds the relay for as long \
         as it lasts, and a long transaction is not named; GRANT pg_monitor",
    );
    warn(
        settings.fsync == "off",
        "fsync is off: acknowledged writes are lost when the machine crashes",
    );
    warn(
        settings.full_page_writes == "off",
        "full_page_writes is off: a crash of the machine can damage pages",
    );
    let names: BTreeSet<&str> = replicas.iter().map(|m| m.name.as_str()).collect();
    let unknown: Vec<&str> = settings
        .streams
        .iter()
        .filter(|s| s.state == "streaming" && !names.contains(s.name.as_str()))
        .map(|s| s.name.as_str())
        .collect();
    let missing = replicas.iter().any(|m| !settings.streams.iter().any(|s| s.name == m.name));
    warn(
        missing && !unknown.is_empty(),
        &format!(
            "a replica streams under the application_name {unknown:?}, which is no member's name: \
             its lag is unknown and it covers no write; leave application_name in \
             primary_conninfo to Patroni"
        ),
    );
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> PrimarySettings {
        let stream = |name: &str| ReplicationStream {
            name: name.to_owned(),
            state: "streaming".to_owned(),
            lag_bytes: 0,
            lag_ms: 0,
            is_synchronous: false,
        };
        PrimarySettings {
            synchronous_commit: "local".to_owned(),
            fsync: "on".to_owned(),
            full_page_writes: "on".to_owned(),
            streams: vec![stream("n1"), stream("n2")],
            synchronous_standby_names: String::new(),
            reads_all_stats: true,
            commits_wait: false,
        }
    }

    fn of(settings: &PrimarySettings, check_timeline: bool, paused: bool) -> Vec<String> {
        let configured = Configured {
            check_timeline,
            paused,
            synchronous_mode: false,
            synchronous_commit: SynchronousCommit::Local,
        };
        of_configured(settings, configured)
    }

    fn of_configured(settings: &PrimarySettings, configured: Configured) -> Vec<String> {
        let member = |name: &str| Node { name: name.to_owned(), address: "h:1".to_owned() };
        let (one, two) = (member("n1"), member("n2"));
        warnings(settings, &[&one, &two], configured)
    }

    /// Every combination of what Patroni, PostgreSQL and we are told about synchronous standbys:
    /// one sentence says what an acknowledgement is worth where it is worth less than it seems.
    #[test]
    fn what_an_acknowledgement_waits_for_is_told() {
        use SynchronousCommit::{Local, On};
        let cases = [
            // (Patroni's mode, names, a standby streams, commits wait, ours) => the word.
            (false, "", false, false, Local, None),
            (true, "", false, false, Local, Some("`local`")),
            (true, "n1", true, false, Local, Some("`local`")),
            (false, "n1", true, false, Local, Some("`local`")),
            (true, "n1", true, false, On, None),
            (false, "*", true, false, On, None),
            (true, "", false, false, On, Some("the primary alone")),
            (false, " ", false, false, On, Some("the primary alone")),
            (true, "*", false, false, On, Some("no synchronous standby streams")),
            (true, "*", false, true, On, Some("no synchronous standby streams")),
            (true, "n1", true, true, On, Some("more than a second")),
        ];
        for (synchronous_mode, names, streams, commits_wait, synchronous_commit, word) in cases {
            let mut settings = PrimarySettings {
                synchronous_standby_names: names.to_owned(),
                commits_wait,
                ..good()
            };
            settings.streams[0].is_synchronous = streams;
            let configured = Configured {
                check_timeline: true,
                paused: false,
                synchronous_mode,
                synchronous_commit,
            };
            let found = of_configured(&settings, configured);
            let told = match word {
                None => found.is_empty(),
                Some(word) => matches!(&found[..], [text] if text.contains(word)),
            };
            assert!(told, "{word:?} of {names:?} and {configured:?}: {found:?}");
        }
    }

    #[test]
    fn a_good_installation_has_no_warnings() {
        assert_eq!(of(&good(), true, false), Vec::<String>::new());
        let backup =
            ReplicationStream { name: "pg_basebackup".to_owned(), ..good().streams[0].clone() };
        let streams = good().streams.into_iter().chain([backup]).collect();
        assert_eq!(
            of(&PrimarySettings { streams, ..good() }, true, false),
            Vec::<String>::new(),
            "a backup is no replica"
        );
    }

    #[test]
    fn each_weakness_is_named() {
        let one = |settings: &PrimarySettings, check_timeline, paused, word: &str| {
            let found = of(settings, check_timeline, paused);
            assert!(matches!(&found[..], [text] if text.contains(word)), "{word}: {found:?}");
        };
        one(&good(), false, false, "check_timeline");
        one(&good(), true, true, "paused");
        one(
            &PrimarySettings { synchronous_commit: "off".to_owned(), ..good() },
            true,
            false,
            "synchronous_commit",
        );
        one(&PrimarySettings { fsync: "off".to_owned(), ..good() }, true, false, "fsync");
        one(
            &PrimarySettings { full_page_writes: "off".to_owned(), ..good() },
            true,
            false,
            "full_page_writes",
        );
        one(&PrimarySettings { reads_all_stats: false, ..good() }, true, false, "pg_monitor");
        let mut renamed = good();
        renamed.streams[1].name = "walreceiver".to_owned();
        one(&renamed, true, false, "application_name");
    }
}
