//! Probes of a cluster's members: the leadership proof that is left while etcd does not answer, and
//! how old each replica is.
//!
//! Every half second every member reports whether it is in recovery and where its log stands, and
//! the primary whether it still passes the epoch check and its log position. The watcher does not
//! wait for it, nor it for the watcher. Without a primary the members are probed all the same:
//! which replica is the newest must be known then.
//!
//! How it fails: a member that does not answer within [`limit::MEMBER_PROBE_TIMEOUT`] breaks the
//! chain of proofs; leadership is then proven by the lease alone. A replica that does not answer
//! ages. A position of the primary whose leadership is not proven proves nothing.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::{join, join_all, join3};
use tagfast_domain::EpochId;
use tagfast_failover::{
    Commit, Decision, EpochRecord, MemberAnswer, ProbeRound, WriteEligibility, check_eligibility,
};
use tagfast_resilience::{Bounded, gauge};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Statement;

use crate::boot_clock::boot_time;
use crate::cluster::replica_states::{LogFacts, ProbeAnswer, ReplicaAge, ReplicaFacts};
use crate::cluster::topology::{Cluster, Node};
use crate::connect::{Connection, ConnectionFactory, PgError, within};
use crate::metric::{REPLICA_AGE_NEWEST, REPLICA_AGE_OLDEST};
use crate::options::limit;
use crate::sql::{PRIMARY_FACTS, connection_facts, flush_position, newest_epoch};

/// Whether a member is in recovery, and the timeline that it receives.
const MEMBER_FACTS: &str =
    "SELECT pg_is_in_recovery(), (SELECT received_tli FROM pg_stat_wal_receiver)";

/// Where the log of a replica stands: its position first, so that what follows is not older. A
/// server that has followed a later timeline keeps that timeline's history file.
const REPLICA_FACTS: &str = concat!(
    "SELECT (pg_last_wal_replay_lsn() - '0/0')::bigint,
       coalesce((SELECT received_tli FROM pg_stat_wal_receiver), 0),
       coalesce((SELECT max(('x' || left(name, 8))::bit(32)::int) FROM pg_ls_waldir()
                 WHERE name ~ '^[0-9A-F]{8}\\.history$'), 0),
       CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
       e.id
FROM (SELECT) one LEFT JOIN LATERAL ",
    newest_epoch!(),
    " e ON true"
);

/// Positions of the primary that wait for a proof.
const UNPROVEN_POSITIONS_MAX: usize = 8;

/// A connection to a member, with its statements.
pub(crate) struct ProbeSession {
    connection: Connection,
    member_facts: Statement,
    /// `None`: the tables are not there yet.
    replica_facts: Option<Statement>,
    primary_facts: Option<Statement>,
}

impl ProbeSession {
    async fn open(connections: &ConnectionFactory, address: &str) -> Result<Self, PgError> {
        let connection = connections.open(address, "probe").await?;
        let client = &connection.client;
        let prepared = join3(
            client.prepare(MEMBER_FACTS),
            client.prepare(REPLICA_FACTS),
            client.prepare(PRIMARY_FACTS),
        );
        let (member, replica, primary) = prepared.await;
        let (replica_facts, primary_facts) = (replica.ok(), primary.ok());
        Ok(Self { member_facts: member?, replica_facts, primary_facts, connection })
    }

    /// Whether it can be used for another round.
    fn is_complete(&self) -> bool {
        let prepared = self.replica_facts.is_some() && self.primary_facts.is_some();
        prepared && !self.connection.client.is_closed()
    }

    /// Where the log of this server stands; `None`: it did not say.
    async fn replica_facts(&self) -> Option<ReplicaFacts> {
        let statement = self.replica_facts.as_ref()?;
        let row = self.connection.client.query_one(statement, &[]).await.ok()?;
        let id: Option<&[u8]> = row.get(4);
        let number = |column| row.get::<_, i32>(column).cast_unsigned();
        Some(ReplicaFacts {
            log: LogFacts {
                replayed: row.get::<_, Option<i64>>(0)?.cast_unsigned(),
                receiving: number(1),
                epoch: id.and_then(|id| id.try_into().ok()).map(EpochId),
            },
            history_file: number(2),
            replay_paused: row.get(3),
        })
    }
}

/// What a probe of one member brought.
pub(crate) struct Probe {
    address: String,
    /// `None`: the member did not answer.
    pub(crate) answer: Option<MemberAnswer>,
    replica: ProbeAnswer,
    /// The connection, for the next round.
    session: Option<ProbeSession>,
}

/// Probes the members of a cluster in rounds, until the task is dropped.
pub(crate) async fn probe_members(cluster: Arc<Cluster>, connections: ConnectionFactory) {
    let mut open: HashMap<String, ProbeSession> = HashMap::new();
    let mut unproven: Vec<(Commit, u64)> = Vec::new();
    let mut behind = BehindLog::default();
    loop {
        let began = Instant::now();
        let topology = Arc::clone(&cluster.topology.borrow());
        let sent = boot_time();
        let primary = topology.primary.as_ref();
        let nodes = primary.map(|(_, node)| node).into_iter().chain(&topology.replicas);
        let probes: Vec<_> = nodes
            .clone()
            .map(|node| probe_member(&connections, node, open.remove(&node.address)))
            .collect();
        let mut probes = join_all(probes).await;
        if let Some((epoch, _)) = primary {
            let primary_checked = match probes.first() {
                Some(Probe { session: Some(session), answer: Some(answer), .. })
                    if !answer.in_recovery =>
                {
                    let position = leads_epoch(session, epoch).await;
                    unproven.extend(position);
                    position.is_some()
                }
                Some(_) | None => false,
            };
            let answers: Vec<_> = nodes
                .clone()
                .zip(&probes)
                .skip(1)
                .map(|(n, p)| (n.name.as_str(), p.answer))
                .collect();
            let members = answers_of_roster(&cluster.roster(), &epoch.member, &answers);
            let round = ProbeRound { sent, primary_checked, members };
            cluster.acknowledger().record_round(epoch.id, &round);
            cluster.notify_proof();
        }
        record_proven(&cluster, &mut unproven);
        let replicas = usize::from(primary.is_some());
        let answers: Vec<_> =
            nodes.zip(&probes).skip(replicas).map(|(node, probe)| (node, probe.replica)).collect();
        cluster.record_replicas(&answers, primary.is_some());
        report_ages(&cluster, &mut behind);
        // Connections of nodes that are gone close.
        open.clear();
        for probe in probes.drain(..) {
            if let Some(session) = probe.session.filter(ProbeSession::is_complete) {
                open.insert(probe.address, session);
            }
        }
        tokio::time::sleep_until(began + limit::PROBE_ROUND_INTERVAL).await;
    }
}

/// The answers of every member beside the primary that was ever seen. One that etcd lists no more,
/// or that was never found, did not answer; and an unknown roster proves nothing.
fn answers_of_roster(
    roster: &[String],
    primary: &str,
    answers: &[(&str, Option<MemberAnswer>)],
) -> Vec<Option<MemberAnswer>> {
    let answer_of = |name: &str| answers.iter().find(|(n, _)| *n == name).and_then(|(_, a)| *a);
    let rostered = roster.iter().filter(|name| *name != primary).map(|name| answer_of(name));
    // A member that is not in the roster yet may be promoted as well.
    let new = answers.iter().filter(|(n, _)| !roster.iter().any(|known| known == n));
    let members: Vec<_> = rostered.chain(new.map(|(_, answer)| *answer)).collect();
    if members.is_empty() { vec![None] } else { members }
}

/// Probes one member, on its open connection or a new one.
pub(crate) async fn probe_member(
    connections: &ConnectionFactory,
    node: &Node,
    open: Option<ProbeSession>,
) -> Probe {
    let mut probe = Probe {
        address: node.address.clone(),
        answer: None,
        replica: ProbeAnswer::None,
        session: None,
    };
    let until = Instant::now() + limit::MEMBER_PROBE_TIMEOUT;
    let session = match open {
        Some(session) => Ok(Ok(session)),
        None => timeout_at(until, ProbeSession::open(connections, &node.address)).await,
    };
    let Ok(Ok(session)) = session else { return probe };
    let member = async {
        let row = session.connection.client.query_one(&session.member_facts, &[]).await.ok()?;
        let received: Option<i32> = row.get(1);
        Some(MemberAnswer {
            in_recovery: row.get(0),
            received_timeline: received.map(i32::cast_unsigned),
        })
    };
    // The second one waits for more than the first, and must not cost the cluster its proof.
    let (member, replica) =
        join(timeout_at(until, member), timeout_at(until, session.replica_facts())).await;
    probe.answer = member.ok().flatten();
    probe.replica = match (&probe.answer, &replica) {
        (Some(answer), _) if !answer.in_recovery => ProbeAnswer::Promoted,
        (Some(_), Ok(Some(facts))) => ProbeAnswer::Replica(*facts),
        _ => ProbeAnswer::None,
    };
    // A statement that is still running would hold up the next round.
    probe.session = Some(session).filter(|_| probe.answer.is_some() && replica.is_ok());
    probe
}

/// The log position of the primary if it passes the epoch check, and the question that it answered.
async fn leads_epoch(session: &ProbeSession, epoch: &EpochRecord) -> Option<(Commit, u64)> {
    let statement = session.primary_facts.as_ref()?;
    let sent = boot_time();
    let facts = session.connection.client.query_one(statement, &[]);
    let row = within("checking the epoch", limit::MEMBER_PROBE_TIMEOUT, facts).await.ok()?;
    let eligible = check_eligibility(&connection_facts(&row), epoch) == WriteEligibility::Eligible;
    let asked = Commit { epoch: epoch.id, sent, returned: boot_time() };
    flush_position(&row).filter(|_| eligible).map(|position| (asked, position))
}

/// Records the positions whose primary is proven by now.
fn record_proven(cluster: &Cluster, unproven: &mut Vec<(Commit, u64)>) {
    unproven.retain(|(asked, position)| {
        let decision = cluster.acknowledger().decide(asked, boot_time());
        match decision {
            Decision::Acknowledge => {
                cluster.record_primary_position(asked, *position);
                false
            }
            // The next rounds may prove it.
            Decision::ProofAfter(_) => true,
            Decision::Unknown => false,
        }
    });
    // Later ones prove more.
    let old = unproven.len().saturating_sub(UNPROVEN_POSITIONS_MAX);
    unproven.drain(..old);
}

/// The replicas that the log has named as behind.
#[derive(Default)]
struct BehindLog(HashMap<String, Instant>);

/// Reports how old the replicas are: as metrics, and in the log when one falls behind and when it
/// has caught up.
fn report_ages(cluster: &Cluster, log: &mut BehindLog) {
    let label = || Bounded(cluster.name.clone());
    let ages = cluster.replica_ages();
    let seconds = |age: Option<&ReplicaAge>| age.map_or(0.0, |replica| replica.age.as_secs_f64());
    let newest = ages.iter().min_by_key(|replica| replica.age);
    let oldest = ages.iter().max_by_key(|replica| replica.age);
    gauge!(REPLICA_AGE_NEWEST, "cluster" => label()).set(seconds(newest));
    gauge!(REPLICA_AGE_OLDEST, "cluster" => label()).set(seconds(oldest));
    let has_primary = cluster.topology.borrow().primary.is_some();
    let behind: Vec<&ReplicaAge> =
        ages.iter().filter(|replica| replica.age > cluster.replica_age_max).collect();
    for replica in &behind {
        log.0.entry(replica.name.clone()).or_insert_with(|| {
            let what = replica.text(&cluster.name, has_primary);
            tracing::warn!(cluster = cluster.name, replica = replica.name, "{what}");
            Instant::now()
        });
    }
    log.0.retain(|name, since| {
        let still = behind.iter().any(|replica| replica.name == *name);
        if !still {
            let lasted = since.elapsed();
            tracing::info!(cluster = cluster.name, replica = name, ?lasted, "not behind any more");
        }
        still
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_was_ever_seen_must_answer() {
        let follows = Some(MemberAnswer { in_recovery: true, received_timeline: Some(1) });
        let roster: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        let of = |roster: &[String], answers: &[(&str, Option<MemberAnswer>)]| {
            answers_of_roster(roster, "a", answers)
        };
        assert_eq!(of(&roster, &[("b", follows), ("c", follows)]), [follows, follows]);
        // Patroni's key of c has expired: it is listed nowhere, and may have been promoted.
        assert_eq!(of(&roster, &[("b", follows)]), [follows, None]);
        assert_eq!(of(&roster, &[("b", follows), ("c", None)]), [follows, None]);
        // d was just added.
        let joined = [("b", follows), ("c", follows), ("d", None)];
        assert_eq!(of(&roster, &joined), [follows, follows, None]);
        assert_eq!(of(&[], &[]), [None], "an unknown roster proves nothing");
        assert_eq!(of(&roster[..1], &[]), [None], "nor does the primary alone");
    }

    #[test]
    fn no_clock_of_a_database_node_is_asked() {
        for sql in [MEMBER_FACTS, REPLICA_FACTS, PRIMARY_FACTS] {
            assert!(
                !["timestamp", "now(", "clock", "lag"].iter().any(|w| sql.contains(w)),
                "{sql}"
            );
        }
    }
}
