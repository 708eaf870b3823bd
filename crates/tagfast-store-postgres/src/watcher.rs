//! One watcher a cluster: reads etcd every second, mints epochs, proves reigns, keeps the view of
//! who is what.
//!
//! Two loops. The first looks at etcd: leader key, lease, members, our epoch; it opens a connection
//! to the leader and checks on it that it is a primary of that epoch. The second asks every member
//! each half second whether it is in recovery: the proof that is left when etcd falls silent.
//! Neither waits for the other, and no other cluster waits for them.
//!
//! How it fails: etcd away: the view stays, the lease's proof runs out, the members' proof carries
//! on. A leader that cannot be reached: no primary, writes wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tagfast_domain::{EpochId, EpochOrdinal};
use tagfast_failover::{
    ConnectionFacts, EpochRecord, EpochRow, MemberAnswer, MintDecision, MintFacts, PrimaryFacts,
    Round, Usable, mint, usable,
};
use tagfast_resilience::Clock;
use tokio::time::{Instant, timeout};
use tokio_postgres::Row;

use crate::boot_time;
use crate::checks;
use crate::cluster::{Cluster, ClusterView, Node};
use crate::connect::{Connection, Opener, PgError, within};
use crate::etcd::{Etcd, Look, Member};
use crate::options::limit;
use crate::schema;

/// What a server says of itself and of the newest epoch it has.
const FACTS: &str = "
SELECT r.recovery,
       CASE WHEN r.recovery THEN 0
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END,
       e.id, e.ordinal, e.timeline
FROM (SELECT pg_is_in_recovery() AS recovery) r
LEFT JOIN LATERAL (SELECT id, ordinal, timeline FROM epoch ORDER BY ordinal DESC LIMIT 1) e ON true";

/// Where a timeline left its parent: the last line of its history file.
const FORK: &str = "
SELECT (split_part(line, E'\\t', 2)::pg_lsn - '0/0')::bigint
FROM (SELECT regexp_split_to_table(trim(E'\\n ' from pg_read_file($1)), E'\\n') AS line) l
WHERE line ~ '^[0-9]+\\t' ORDER BY split_part(line, E'\\t', 1)::int DESC LIMIT 1";

const MEMBER: &str = "SELECT pg_is_in_recovery(), (SELECT received_tli FROM pg_stat_wal_receiver)";

/// Everything a watcher needs.
pub(crate) struct Watcher {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) etcd: Etcd,
    pub(crate) opener: Opener,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) node: String,
    pub(crate) moved_from: Option<EpochOrdinal>,
    /// Since when there is no primary.
    pub(crate) held_since: Mutex<Option<Instant>>,
}

impl Watcher {
    /// Looks until the task is dropped.
    pub(crate) async fn run(self) {
        let mut leader: Option<(String, Connection)> = None;
        let mut migrated: Option<EpochId> = None;
        loop {
            let began = Instant::now();
            match self.etcd.look(&self.cluster.scope).await {
                Ok(look) => {
                    if let Err(problem) = self.seen(&look, &mut leader, &mut migrated).await {
                        leader = None;
                        self.no_primary(&look, problem);
                    }
                }
                Err(error) => {
                    metrics::counter!("tagfast_etcd_failures_total", "cluster" => self.cluster.name.clone())
                        .increment(1);
                    tracing::warn!(cluster = self.cluster.name, %error, "etcd was not read");
                    // Who was known before goes on; who was never known cannot begin.
                    if self.cluster.epoch().is_none() {
                        self.held(false);
                        let problem = Some(format!("{error}; look at store.etcd"));
                        // In place: somebody else may be adding the nodes that Patroni names.
                        self.cluster.view.send_if_modified(|known| {
                            let news = known.problem != problem;
                            if news {
                                *known =
                                    Arc::new(ClusterView { problem, ..ClusterView::clone(known) });
                            }
                            news
                        });
                    }
                }
            }
            let left =
                self.cluster.acknowledger().deadline().map(|d| d.0.saturating_sub(boot_time().0));
            metrics::gauge!("tagfast_fence_left_seconds", "cluster" => self.cluster.name.clone())
                .set(left.unwrap_or_default().as_secs_f64());
            // Without a primary every moment counts; a nudge is not answered more often than every
            // 20 ms.
            let hurry = self.cluster.view.borrow().primary.is_none();
            let next = began + if hurry { Duration::from_millis(100) } else { limit::LOOK };
            tokio::time::sleep_until(began + Duration::from_millis(20)).await;
            let _ = timeout(
                next.saturating_duration_since(Instant::now()),
                self.cluster.look_now.notified(),
            )
            .await;
        }
    }

    /// Takes a look in: proves, mints, checks. The error says why there is no primary.
    async fn seen(
        &self,
        look: &Look,
        connection: &mut Option<(String, Connection)>,
        migrated: &mut Option<EpochId>,
    ) -> Result<(), String> {
        if !look.scope_exists {
            return Err(format!(
                "etcd has nothing below /service/{}/: is it Patroni's etcd, and is this the scope in its configuration?",
                self.cluster.scope
            ));
        }
        let key = look.leader.as_ref().ok_or("no node holds the leader key")?;
        let member = look
            .members
            .iter()
            .find(|m| m.name == key.member)
            .ok_or("the leader is not among the members")?;
        // A known epoch of this very reign: its proof does not wait for anything.
        if let Some((epoch, _)) =
            look.epoch.as_ref().filter(|(e, _)| e.reign == key.create_revision)
        {
            self.learn(epoch).await;
            if let Some(lease) = &look.lease
                && self.cluster.acknowledger().lease(lease)
            {
                self.cluster.proved();
            }
        }
        let text = |error: PgError| format!("the primary {} cannot be used: {error}", member.name);
        if connection
            .as_ref()
            .is_none_or(|(address, c)| *address != member.postgres || c.client.is_closed())
        {
            let fresh = self.opener.open(&member.postgres, "watch").await.map_err(text)?;
            *connection = Some((member.postgres.clone(), fresh));
        }
        let Some((_, server)) = connection.as_ref() else { return Err("not connected".to_owned()) };
        let recovery = within(
            "asking for the role",
            limit::READ,
            server.client.query_one("SELECT pg_is_in_recovery()", &[]),
        );
        if recovery.await.map_err(text)?.get(0) {
            return Err(format!("{} holds the leader key and is still in recovery", member.name));
        }
        if migrated.is_none() {
            schema::migrate(server).await.map_err(|e| e.to_string())?;
        }
        let facts = facts(
            &within("reading the epoch", limit::READ, server.client.query_one(FACTS, &[]))
                .await
                .map_err(text)?,
        );
        let epoch = self.epoch(look, server, &facts).await?;
        *migrated = Some(epoch.id);
        match usable(&facts, &epoch) {
            Usable::Yes => {}
            Usable::InsertRow => insert_row(server, &epoch).await.map_err(text)?,
            Usable::No(why) => return Err(why.to_owned()),
        }
        self.learn(&epoch).await;
        let known = Arc::clone(&self.cluster.view.borrow());
        let replicas =
            look.members.iter().filter(|m| m.name != member.name).map(Node::from).collect();
        let primary = Some((Arc::new(epoch), Node::from(member)));
        // First who reigns, then what is less urgent.
        let view =
            ClusterView { primary, replicas, problem: None, warnings: known.warnings.clone() };
        self.publish(view.clone());
        let warnings = checks::observe(&self.cluster, server, look).await.map_err(text)?;
        for warning in warnings.iter().filter(|w| !known.warnings.contains(w)) {
            tracing::warn!(
                cluster = self.cluster.name,
                warning,
                "the installation is weaker than it should be"
            );
        }
        self.publish(ClusterView { warnings, ..view });
        Ok(())
    }

    /// The epoch of the reign in `look`: the one in etcd, or a new one.
    async fn epoch(
        &self,
        look: &Look,
        server: &Connection,
        facts: &ConnectionFacts,
    ) -> Result<EpochRecord, String> {
        let mut new_id = [0; 16];
        getrandom::fill(&mut new_id).map_err(|e| format!("no random bits: {e}"))?;
        let fork_lsn = fork_of(server, facts.timeline).await;
        let known = self.cluster.acknowledger().epoch().map(|e| e.ordinal);
        let decision = mint(&MintFacts {
            leader: look.leader.as_ref(),
            current: look.epoch.as_ref().map(|(epoch, revision)| (epoch, *revision)),
            primary: Some(PrimaryFacts {
                in_recovery: facts.in_recovery,
                timeline: facts.timeline,
                fork_lsn,
                newest_row: facts.newest_row.map(|row| row.ordinal),
            }),
            known,
            above: self.moved_from,
            now: self.clock.now_ms(),
            new_id: EpochId(new_id),
            node: &self.node,
        });
        match decision {
            MintDecision::Keep => {
                look.epoch.clone().map(|(epoch, _)| epoch).ok_or_else(|| "no epoch".to_owned())
            }
            MintDecision::Mint(epoch, compare) => {
                let put = self.etcd.mint(&self.cluster.scope, &epoch, &compare).await;
                if !put.map_err(|e| {
                    format!("the epoch cannot be written to etcd (write access to /tagfast/?): {e}")
                })? {
                    self.cluster.look_now.notify_one();
                    return Err("another node mints the epoch, or the reign is over".to_owned());
                }
                tracing::info!(
                    cluster = self.cluster.name,
                    epoch = %epoch.id,
                    ordinal = epoch.ordinal.0,
                    primary = epoch.member,
                    timeline = epoch.timeline,
                    "a new epoch"
                );
                Ok(epoch)
            }
            MintDecision::Wait(why) | MintDecision::Refuse(why) => Err(why.to_owned()),
        }
    }

    async fn learn(&self, epoch: &EpochRecord) {
        let known = self.cluster.epoch();
        let news = known.is_none_or(|known| epoch.ordinal > known.ordinal);
        let missing =
            known.is_some_and(|known| known.id == epoch.id) && !self.cluster.knows_history();
        if !news && !missing {
            return;
        }
        // Before the epoch is learned, so that nothing of it is judged by the fences of the last
        // one.
        let history = self.etcd.history(&self.cluster.scope).await;
        if let Err(error) = &history {
            // Tokens of older epochs are answered from the primary, marked; the next look tries
            // again.
            tracing::warn!(cluster = self.cluster.name, %error, "the epochs' history was not read");
        }
        let (before, changed) = {
            let mut acknowledger = self.cluster.acknowledger();
            let before = acknowledger.epoch().is_some();
            let changed = acknowledger.learn(epoch);
            if changed || history.is_ok() {
                self.cluster.set_fences(history.as_deref().ok(), epoch);
            }
            (before, changed)
        };
        if before && changed {
            // What failed was another node.
            self.cluster.primary_breaker.begin_anew("new_epoch");
            metrics::counter!("tagfast_failovers_total", "cluster" => self.cluster.name.clone())
                .increment(1);
        }
        if changed {
            metrics::counter!("tagfast_epochs_total", "cluster" => self.cluster.name.clone())
                .increment(1);
            metrics::gauge!("tagfast_epoch_ordinal", "cluster" => self.cluster.name.clone())
                .set(epoch.ordinal.0 as f64);
            // Whoever waits with a commit of the older epoch learns that its gate is closed.
            self.cluster.proved();
        }
    }

    /// Measures how long writes are held while there is no primary.
    fn held(&self, has_primary: bool) {
        let mut since = self.held_since.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match (has_primary, *since) {
            (true, None) => Duration::ZERO,
            (true, Some(began)) => {
                metrics::histogram!("tagfast_hold_seconds", "cluster" => self.cluster.name.clone())
                    .record(began.elapsed().as_secs_f64());
                *since = None;
                Duration::ZERO
            }
            (false, _) => since.get_or_insert_with(Instant::now).elapsed(),
        };
        metrics::gauge!("tagfast_cluster_down_seconds", "cluster" => self.cluster.name.clone())
            .set(now.as_secs_f64());
    }

    /// Keeps nodes that etcd has forgotten: when every Patroni is dead their PostgreSQL can still
    /// be read.
    fn no_primary(&self, look: &Look, problem: String) {
        let known = Arc::clone(&self.cluster.view.borrow());
        let mut replicas: Vec<Node> = look.members.iter().map(Node::from).collect();
        for node in known.replicas.iter().chain(known.primary.as_ref().map(|(_, node)| node)) {
            if !replicas.iter().any(|r| r.name == node.name) {
                replicas.push(node.clone());
            }
        }
        let warnings = known.warnings.clone();
        self.publish(ClusterView { primary: None, replicas, problem: Some(problem), warnings });
    }

    fn publish(&self, view: ClusterView) {
        metrics::gauge!("tagfast_cluster_has_primary", "cluster" => self.cluster.name.clone())
            .set(f64::from(u8::from(view.primary.is_some())));
        self.held(view.primary.is_some());
        self.cluster.view.send_if_modified(|known| {
            if **known == view {
                return false;
            }
            let same = known.primary == view.primary && known.problem == view.problem;
            match (&view.primary, &view.problem) {
                _ if same => {}
                (Some((_, node)), _) => {
                    tracing::info!(
                        cluster = self.cluster.name,
                        primary = node.name,
                        "the cluster takes writes"
                    );
                }
                (None, Some(problem)) => {
                    tracing::warn!(cluster = self.cluster.name, problem, "no primary")
                }
                (None, None) => {}
            }
            *known = Arc::new(view);
            true
        });
    }
}

fn facts(row: &Row) -> ConnectionFacts {
    let id: Option<Vec<u8>> = row.get(2);
    let newest_row = id.and_then(|id| id.try_into().ok()).map(|id| EpochRow {
        id: EpochId(id),
        ordinal: EpochOrdinal(row.get::<_, i64>(3).unsigned_abs()),
        timeline: row.get::<_, i32>(4).unsigned_abs(),
    });
    ConnectionFacts {
        in_recovery: row.get(0),
        timeline: row.get::<_, i32>(1).cast_unsigned(),
        newest_row,
    }
}

async fn fork_of(server: &Connection, timeline: u32) -> Option<u64> {
    if timeline <= 1 {
        return None;
    }
    let file = format!("pg_wal/{timeline:08X}.history");
    let row =
        within("reading the fork", limit::READ, server.client.query_one(FORK, &[&file])).await;
    match row {
        Ok(row) => Some(row.get::<_, i64>(0).cast_unsigned()),
        Err(error) => {
            // Without it the fence of all older epochs is 0: pessimistic, never wrong.
            tracing::warn!(%error, timeline, "the fork of the timeline cannot be read; grant pg_read_server_files");
            None
        }
    }
}

async fn insert_row(server: &Connection, epoch: &EpochRecord) -> Result<(), PgError> {
    let statement = "INSERT INTO epoch (ordinal, id, parent_id, reign, timeline, fork_lsn, minted_at, minted_by)
         VALUES ($1, $2, $3, $4, $5, '0/0'::pg_lsn + $6::bigint, to_timestamp($7::bigint / 1000.0), $8) ON CONFLICT DO NOTHING";
    let parent = epoch.parent_id.map(|id| id.0.to_vec());
    let (ordinal, reign) = (epoch.ordinal.0.cast_signed(), epoch.reign.cast_signed());
    let (timeline, fork) = (epoch.timeline.cast_signed(), epoch.fork_lsn.map(u64::cast_signed));
    let id = epoch.id.0.to_vec();
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 8] =
        [&ordinal, &id, &parent, &reign, &timeline, &fork, &epoch.minted_at, &epoch.minted_by];
    within("writing the epoch", limit::WRITE, server.client.execute(statement, &parameters))
        .await?;
    Ok(())
}

/// Asks the members of a cluster in rounds whether they are in recovery.
pub(crate) async fn rounds(cluster: Arc<Cluster>, opener: Opener) {
    let mut connections: std::collections::HashMap<String, Connection> =
        std::collections::HashMap::new();
    loop {
        let began = Instant::now();
        let view = Arc::clone(&cluster.view.borrow());
        if let Some((epoch, primary)) = &view.primary {
            let sent = boot_time();
            let mut asked = Vec::new();
            for node in std::iter::once(primary).chain(&view.replicas) {
                asked.push((node.clone(), connections.remove(&node.address)));
            }
            let answers = futures_util::future::join_all(
                asked.into_iter().map(|(node, open)| ask(&opener, node, open)),
            );
            let mut answers = answers.await.into_iter();
            let first = answers.next();
            let primary_checked = match &first {
                Some((_, Some(server), Some(answer))) => {
                    !answer.in_recovery && still_reigns(server, epoch).await
                }
                _ => false,
            };
            let rest: Vec<_> = answers.collect();
            let round = Round {
                sent,
                primary_checked,
                members: rest.iter().map(|(_, _, answer)| *answer).collect(),
            };
            cluster.acknowledger().round(epoch.id, &round);
            cluster.proved();
            for (address, connection, _) in first.into_iter().chain(rest) {
                if let Some(connection) = connection {
                    connections.insert(address, connection);
                }
            }
        }
        tokio::time::sleep_until(began + limit::ROUND).await;
    }
}

pub(crate) async fn ask(
    opener: &Opener,
    node: Node,
    open: Option<Connection>,
) -> (String, Option<Connection>, Option<MemberAnswer>) {
    let work = async {
        let server = match open.filter(|c| !c.client.is_closed()) {
            Some(server) => server,
            None => opener.open(&node.address, "round").await.ok()?,
        };
        let row = server.client.query_one(MEMBER, &[]).await.ok()?;
        let received: Option<i32> = row.get(1);
        let answer = MemberAnswer {
            in_recovery: row.get(0),
            received_timeline: received.map(i32::cast_unsigned),
        };
        Some((server, answer))
    };
    match timeout(limit::MEMBER, work).await {
        Ok(Some((server, answer))) => (node.address, Some(server), Some(answer)),
        _ => (node.address, None, None),
    }
}

async fn still_reigns(server: &Connection, epoch: &EpochRecord) -> bool {
    let row =
        within("checking the reign", limit::MEMBER, server.client.query_one(FACTS, &[])).await;
    row.is_ok_and(|row| usable(&facts(&row), epoch) == Usable::Yes)
}

/// Finds a cluster's nodes through Patroni while etcd has not answered yet.
pub(crate) async fn nodes_from_patroni(http: &reqwest::Client, urls: &[String]) -> Vec<Member> {
    for url in urls {
        let Ok(answer) = http.get(format!("{}/cluster", url.trim_end_matches('/'))).send().await
        else {
            continue;
        };
        let Ok(value) = answer.json::<serde_json::Value>().await else { continue };
        let members = value["members"].as_array().into_iter().flatten().filter_map(|m| {
            let (host, port) = (m["host"].as_str()?, m["port"].as_u64()?);
            Some(Member {
                name: m["name"].as_str()?.to_owned(),
                postgres: format!("{host}:{port}"),
            })
        });
        let members: Vec<Member> = members.collect();
        if !members.is_empty() {
            return members;
        }
    }
    Vec::new()
}
