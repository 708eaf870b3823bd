//! One watcher a cluster: polls etcd every second, mints epochs, proves leadership by the lease,
//! keeps the topology current.
//!
//! A poll observes the leader key, which extends or ends what is proven before anything else is
//! done. It reads members and our epoch in the same answer, opens a connection to the leader and
//! checks on it that the server is a primary of that epoch. The probes of
//! [`member_probes`](crate::cluster::member_probes) run beside it; no other cluster waits for
//! either.
//!
//! How it fails: while etcd does not answer the topology stays, the lease proof expires, and the
//! member proof carries on. A leader that etcd does not list among the members is reached where it
//! was last. While it cannot be reached there is no primary, and writes wait.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use parking_lot::Mutex;
use tagfast_domain::{EpochId, EpochOrdinal};
use tagfast_failover::{
    Commit, ConnectionFacts, Decision, EpochRecord, MintDecision, MintFacts, PrimaryFacts,
    TimelineSwitch, WriteEligibility, check_eligibility, mint,
};
use tagfast_resilience::{Bounded, Clock, ErrorChain, OutageLog, counter, gauge, histogram};
use tokio::time::{Instant, timeout};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::boot_clock::boot_time;
use crate::cluster::etcd::cluster_state::ClusterState;
use crate::cluster::etcd::{Etcd, EtcdError};
use crate::cluster::preflight;
use crate::cluster::repair_window::read_repair_state;
use crate::cluster::roster::Roster;
use crate::cluster::topology::{Cluster, Node, Topology};
use crate::connect::{Connection, ConnectionFactory, PgError, within};
use crate::metric::{
    CLUSTER_DOWN, CLUSTER_HAS_PRIMARY, EPOCH_ORDINAL, EPOCHS, ETCD_FAILURES, FAILOVERS,
    INSTALLATION_WARNINGS, LEADER_LEASE_LEFT, WRITE_HOLD,
};
use crate::options::limit;
use crate::schema;
use crate::sql::{PRIMARY_FACTS, connection_facts, flush_position};

/// The shortest time between two polls, however often a refresh is requested.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(20);
/// Between two polls while there is no primary.
const POLL_INTERVAL_WITHOUT_PRIMARY: Duration = Duration::from_millis(100);
/// Between two questions for the versions of etcd's members.
const ETCD_VERSION_INTERVAL: Duration = Duration::from_secs(60);

/// The lines of a timeline's history file.
const TIMELINE_HISTORY: &str = "
SELECT split_part(line, E'\\t', 1)::int, (split_part(line, E'\\t', 2)::pg_lsn - '0/0')::bigint
FROM (SELECT regexp_split_to_table(trim(E'\\n ' from pg_read_file($1)), E'\\n') AS line) l
WHERE line ~ '^[0-9]+\\t' ORDER BY 1";

/// In a database that has nothing yet there is nothing to repair.
const INSERT_EPOCH: &str = "
INSERT INTO epoch (ordinal, id, parent_id, term, timeline, fork_lsn, minted_at, minted_by,
    repair_closed_at, verdicts_final_at)
SELECT $1, $2, $3, $4, $5, '0/0'::pg_lsn + $6::bigint, to_timestamp($7::bigint / 1000.0), $8,
    closed_at, closed_at
FROM (SELECT CASE WHEN NOT EXISTS (SELECT FROM epoch) AND NOT EXISTS (SELECT FROM content)
                  THEN clock_timestamp() END AS closed_at) new
ON CONFLICT DO NOTHING";

/// Everything a watcher runs with.
pub(crate) struct Watcher {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) etcd: Etcd,
    pub(crate) connections: ConnectionFactory,
    pub(crate) clock: Arc<dyn Clock>,
    /// The name of this node of the service.
    pub(crate) node: String,
    /// See [`crate::ClusterOptions::moved_from`].
    pub(crate) moved_from: Option<EpochOrdinal>,
    /// Since when there has been no primary; `None`: there is one.
    pub(crate) down_since: Mutex<Option<Instant>>,
}

/// The watcher's connection to the leader, and whether its schema was migrated.
#[derive(Default)]
struct LeaderConnection {
    /// The address and the connection; `None`: it is to be opened.
    open: Option<(String, Connection)>,
    migrated: bool,
}

/// What is known of etcd's versions.
#[derive(Default)]
struct EtcdVersions {
    /// When they were asked for; `None`: not yet.
    asked: Option<Instant>,
    /// The warning about old ones; `None`: none is needed.
    warning: Option<String>,
}

impl Watcher {
    /// Polls until the task is dropped.
    pub(crate) async fn run(self) {
        let mut leader = LeaderConnection::default();
        let mut versions = EtcdVersions::default();
        let mut lease = 0;
        let etcd_outage = OutageLog::of("reading etcd", self.cluster.name.clone());
        loop {
            let began = Instant::now();
            match self.etcd.read_state(&self.cluster.scope, lease).await {
                Ok(state) => {
                    lease = state.observation.key_lease;
                    self.observe(&state);
                    match &state.lease_error {
                        None => {
                            etcd_outage.recovered();
                            self.cluster.health.note_etcd(None);
                        }
                        Some(error) => self.note_etcd_failure(&etcd_outage, error),
                    }
                    let polled = self.poll(&state, &mut leader, &mut versions).await;
                    self.cluster.health.note_poll_end();
                    if let Err(problem) = polled {
                        leader.open = None;
                        self.publish_without_primary(&state, problem);
                    }
                }
                Err(error) => {
                    self.note_etcd_failure(&etcd_outage, &error);
                    self.without_etcd(&error);
                }
            }
            let left =
                self.cluster.acknowledger().deadline().map(|d| d.0.saturating_sub(boot_time().0));
            gauge!(LEADER_LEASE_LEFT, "cluster" => self.label())
                .set(left.unwrap_or_default().as_secs_f64());
            let hurry = self.cluster.topology.borrow().primary.is_none();
            let next =
                began + if hurry { POLL_INTERVAL_WITHOUT_PRIMARY } else { limit::POLL_INTERVAL };
            tokio::time::sleep_until(began + POLL_INTERVAL_MIN).await;
            let left = next.saturating_duration_since(Instant::now());
            let _ = timeout(left, self.cluster.refresh.notified()).await;
        }
    }

    fn label(&self) -> Bounded<String> {
        Bounded(self.cluster.name.clone())
    }

    fn note_etcd_failure(&self, outage: &OutageLog, error: &EtcdError) {
        outage.failed(error);
        self.cluster.health.note_etcd(Some(ErrorChain(error).to_string()));
        counter!(ETCD_FAILURES, "cluster" => self.label()).increment(1);
    }

    /// Extends or ends what is proven, by what etcd said of the leader key.
    fn observe(&self, state: &ClusterState) {
        if self.cluster.acknowledger().record_observation(&state.observation) {
            self.cluster.notify_proof();
        }
    }

    /// A cluster that was known goes on; one that was never known cannot begin.
    fn without_etcd(&self, error: &EtcdError) {
        if self.cluster.epoch().is_some() {
            return;
        }
        self.record_downtime(false);
        let problem = Some(format!("{}; look at store.etcd", ErrorChain(error)));
        // In place: the nodes that Patroni lists may be added at the same time.
        self.cluster.topology.send_if_modified(|known| {
            let changed = known.problem != problem;
            if changed {
                *known = Arc::new(Topology { problem, ..Topology::clone(known) });
            }
            changed
        });
    }

    /// Where the holder of the leader key is: where etcd says, or where it was last. Its member key
    /// expires before the leader key where its Patroni cannot write the one and renews the other.
    fn leader_node(&self, state: &ClusterState, name: &str) -> Result<Node, String> {
        let listed = state.members.iter().find(|member| member.name == name).cloned();
        let known = || self.cluster.topology.borrow().node(name).cloned();
        listed.or_else(known).ok_or_else(|| {
            format!(
                "{name} holds the leader key, is not among the members, and was not seen before"
            )
        })
    }

    /// One poll: prove leadership, mint an epoch if needed, check the primary and the installation.
    /// The error says why there is no primary.
    async fn poll(
        &self,
        state: &ClusterState,
        leader: &mut LeaderConnection,
        versions: &mut EtcdVersions,
    ) -> Result<(), String> {
        if !state.scope_exists {
            return Err(format!(
                "etcd has nothing below /service/{}/: is it Patroni's etcd, and is this the scope \
                 in its configuration?",
                self.cluster.scope
            ));
        }
        self.follow_roster(state).await;
        let key = state.leader().ok_or("no node holds the leader key")?;
        // The epoch of this very term is known: its proof need not wait for the checks below.
        if let Some((epoch, _)) =
            state.epoch.as_ref().filter(|(e, _)| e.term == key.create_revision)
        {
            self.adopt_epoch(epoch).await;
            self.observe(state);
        }
        let member = self.leader_node(state, &key.member)?;
        let unusable = |error: PgError| {
            self.cluster.health.note_primary(&error);
            format!("the primary {} cannot be used: {}", member.name, ErrorChain(&error))
        };
        let open = leader
            .open
            .take()
            .filter(|(address, c)| *address == member.address && !c.client.is_closed());
        let (_, server) = match open {
            Some(open) => leader.open.insert(open),
            None => {
                let fresh = self.connections.open(&member.address, "watch").await;
                leader.open.insert((member.address.clone(), fresh.map_err(unusable)?))
            }
        };
        let recovery = within(
            "asking for the role",
            limit::READ_TIMEOUT,
            server.client.query_one("SELECT pg_is_in_recovery()", &[]),
        );
        if recovery.await.map_err(unusable)?.get(0) {
            return Err(format!("{} holds the leader key and is still in recovery", member.name));
        }
        let known = state.epoch.as_ref().filter(|(epoch, _)| epoch.term == key.create_revision);
        self.cluster.repair.promote(known.map(|(epoch, _)| epoch.id), boot_time());
        if !leader.migrated {
            schema::migrate(server).await.map_err(|e| ErrorChain(&e).to_string())?;
        }
        let sent = boot_time();
        let row = server.client.query_one(PRIMARY_FACTS, &[]);
        let row = within("reading the epoch", limit::READ_TIMEOUT, row).await.map_err(unusable)?;
        let returned = boot_time();
        let facts = connection_facts(&row);
        let epoch = self.current_epoch(state, server, &facts).await?;
        leader.migrated = true;
        match check_eligibility(&facts, &epoch) {
            WriteEligibility::Eligible => {}
            WriteEligibility::InsertRow => {
                insert_epoch(server, &epoch).await.map_err(unusable)?;
            }
            WriteEligibility::Ineligible(why) => return Err(why.to_owned()),
        }
        self.adopt_epoch(&epoch).await;
        let asked = Commit { epoch: epoch.id, sent, returned };
        let decision = self.cluster.acknowledger().decide(&asked, boot_time());
        if let (Decision::Acknowledge, Some(position)) = (decision, flush_position(&row)) {
            self.cluster.record_primary_position(&asked, position);
        }
        let known = Arc::clone(&self.cluster.topology.borrow());
        if known.primary.as_ref().is_none_or(|(before, _)| before.id != epoch.id) {
            // Before the first read and the first write on it.
            let state = read_repair_state(server, epoch.id).await.map_err(unusable)?;
            self.cluster.repair.set_state(epoch.id, state);
        }
        self.cluster.repair.settle(epoch.id);
        let replicas = state.members.iter().filter(|m| m.name != member.name).cloned().collect();
        let primary = Some((Arc::new(epoch), member.clone()));
        let warnings = known.warnings.clone();
        let topology = Topology { primary, replicas, problem: None, warnings };
        // The primary first, then what is less urgent.
        self.publish(topology.clone());
        let checked =
            preflight::check(&self.cluster, server, state, self.connections.synchronous_commit());
        let (checked, ()) = join(checked, self.follow_etcd_versions(versions)).await;
        let mut warnings = checked.map_err(unusable)?;
        warnings.extend(versions.warning.clone());
        gauge!(INSTALLATION_WARNINGS, "cluster" => self.label()).set(warnings.len() as f64);
        for warning in warnings.iter().filter(|w| !known.warnings.contains(w)) {
            tracing::warn!(
                cluster = self.cluster.name,
                warning,
                "the installation is weaker than it should be"
            );
        }
        self.publish(Topology { warnings, ..topology });
        Ok(())
    }

    /// Asks the members of etcd for their versions now and then.
    async fn follow_etcd_versions(&self, versions: &mut EtcdVersions) {
        if versions.asked.is_none_or(|at| at.elapsed() >= ETCD_VERSION_INTERVAL) {
            versions.warning = self.etcd.version_warning().await;
            versions.asked = Some(Instant::now());
        }
    }

    /// Adds the members that are seen to the roster, here and in etcd. One that cannot be read is
    /// left as it is: what was read before counts, and the members that are seen now.
    async fn follow_roster(&self, state: &ClusterState) {
        let known = Roster::of_names(&self.cluster.roster());
        let read = state.roster.as_ref().unwrap_or(&known);
        let grown = read.with(&state.members);
        self.cluster.set_roster(&grown.as_ref().unwrap_or(read).names);
        if let (Some(grown), Some(_)) = (&grown, &state.roster) {
            // A process that was faster has added members as well: the next poll sees.
            if let Err(error) = self.etcd.put_roster(&self.cluster.scope, grown).await {
                tracing::warn!(
                    cluster = self.cluster.name,
                    error = %ErrorChain(&error),
                    "the roster of members cannot be written"
                );
            }
        }
        let mut acknowledger = self.cluster.acknowledger();
        if let Some(epoch) = acknowledger.epoch().cloned() {
            self.cluster.set_members(&mut acknowledger, &epoch);
        }
    }

    /// The epoch of the leader term in `state`: the one in etcd, or a new one.
    async fn current_epoch(
        &self,
        state: &ClusterState,
        server: &Connection,
        facts: &ConnectionFacts,
    ) -> Result<EpochRecord, String> {
        let mut new_id = [0; 16];
        getrandom::fill(&mut new_id).map_err(|e| format!("no random bits: {e}"))?;
        let timeline_history = read_timeline_history(server, facts.timeline).await;
        let known = self.cluster.acknowledger().epoch().map(|e| e.ordinal);
        let decision = mint(&MintFacts {
            leader: state.leader(),
            current: state.epoch.as_ref().map(|(epoch, revision)| (epoch, *revision)),
            primary: Some(PrimaryFacts {
                in_recovery: facts.in_recovery,
                timeline: facts.timeline,
                timeline_history,
                newest_row: facts.newest_row,
            }),
            known,
            above: self.moved_from,
            now: self.clock.now_ms(),
            new_id: EpochId(new_id),
            node: &self.node,
        });
        match decision {
            MintDecision::Keep => {
                state.epoch.clone().map(|(epoch, _)| epoch).ok_or_else(|| "no epoch".to_owned())
            }
            MintDecision::Mint(epoch, condition) => {
                let put = self.etcd.mint(&self.cluster.scope, &epoch, &condition).await;
                let put = put.map_err(|e| {
                    format!(
                        "the epoch cannot be written to etcd (write access to /tagfast/?): {}",
                        ErrorChain(&e)
                    )
                });
                if !put? {
                    self.cluster.refresh.notify_one();
                    return Err("another node mints the epoch, or the leader term has ended".into());
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

    /// Adopts an epoch together with the ends of the epochs before it.
    async fn adopt_epoch(&self, epoch: &EpochRecord) {
        let known = self.cluster.epoch();
        let later = known.is_none_or(|known| epoch.ordinal > known.ordinal);
        let history_missing =
            known.is_some_and(|known| known.id == epoch.id) && !self.cluster.knows_history();
        if !later && !history_missing {
            return;
        }
        // Before the epoch is adopted, so that no reader applies the old ends to it.
        let history = self.etcd.history(&self.cluster.scope).await;
        if let Err(error) = &history {
            // Reads with tokens of older epochs go to the primary, marked; the next poll retries.
            tracing::warn!(
                cluster = self.cluster.name,
                error = %ErrorChain(error),
                "the history of the epochs cannot be read"
            );
        }
        let (had_epoch, changed) = {
            let mut acknowledger = self.cluster.acknowledger();
            let had_epoch = acknowledger.epoch().is_some();
            let changed = acknowledger.adopt_epoch(epoch, boot_time());
            if changed {
                self.cluster.set_members(&mut acknowledger, epoch);
            }
            if changed || history.is_ok() {
                self.cluster.set_epoch_ends(history.as_deref().ok(), epoch);
            }
            (had_epoch, changed)
        };
        if changed && let Some(discarded) = self.cluster.discarded_epoch() {
            tracing::error!(
                cluster = self.cluster.name,
                epoch = epoch.ordinal.0,
                discarded = discarded.0,
                "the new primary has nothing of the last epoch: what was written in it is lost but \
                 for what the repair brings back"
            );
        }
        if had_epoch && changed {
            // The failures were those of a different node.
            self.cluster.primary_breaker.reset("new_epoch");
            counter!(FAILOVERS, "cluster" => self.label()).increment(1);
        }
        if changed {
            self.cluster.repair.begin(epoch.id, had_epoch);
            counter!(EPOCHS, "cluster" => self.label()).increment(1);
            gauge!(EPOCH_ORDINAL, "cluster" => self.label()).set(epoch.ordinal.0 as f64);
            // Commits of the older epoch that wait for a proof are unknown now.
            self.cluster.notify_proof();
        }
    }

    /// Measures how long writes are held while there is no primary.
    fn record_downtime(&self, has_primary: bool) {
        let mut since = self.down_since.lock();
        let down = match (has_primary, *since) {
            (true, None) => Duration::ZERO,
            // Down => Up
            (true, Some(began)) => {
                histogram!(WRITE_HOLD, "cluster" => self.label())
                    .record(began.elapsed().as_secs_f64());
                *since = None;
                Duration::ZERO
            }
            // Up | Down => Down
            (false, _) => since.get_or_insert_with(Instant::now).elapsed(),
        };
        gauge!(CLUSTER_DOWN, "cluster" => self.label()).set(down.as_secs_f64());
    }

    /// Publishes that there is no primary. Nodes that etcd no longer lists stay: when every Patroni
    /// is dead their PostgreSQL can still be read.
    fn publish_without_primary(&self, state: &ClusterState, problem: String) {
        let known = Arc::clone(&self.cluster.topology.borrow());
        let mut replicas: Vec<Node> = state.members.clone();
        for node in known.replicas.iter().chain(known.primary.as_ref().map(|(_, node)| node)) {
            if !replicas.iter().any(|r| r.name == node.name) {
                replicas.push(node.clone());
            }
        }
        let warnings = known.warnings.clone();
        self.publish(Topology { primary: None, replicas, problem: Some(problem), warnings });
    }

    fn publish(&self, topology: Topology) {
        gauge!(CLUSTER_HAS_PRIMARY, "cluster" => self.label())
            .set(f64::from(u8::from(topology.primary.is_some())));
        if topology.primary.is_none() {
            self.cluster.repair.hold(boot_time());
        }
        self.record_downtime(topology.primary.is_some());
        self.cluster.topology.send_if_modified(|known| {
            if **known == topology {
                return false;
            }
            let same = known.primary == topology.primary && known.problem == topology.problem;
            match (&topology.primary, &topology.problem) {
                _ if same => {}
                (Some((_, node)), _) => {
                    tracing::info!(
                        cluster = self.cluster.name,
                        primary = node.name,
                        "the cluster takes writes"
                    );
                }
                (None, Some(problem)) => {
                    tracing::warn!(cluster = self.cluster.name, problem, "no primary");
                }
                (None, None) => {}
            }
            *known = Arc::new(topology);
            true
        });
    }
}

/// The timelines before a timeline, each with the log position at which it was left; `None`: they
/// cannot be read.
async fn read_timeline_history(server: &Connection, timeline: u32) -> Option<Vec<TimelineSwitch>> {
    if timeline <= 1 {
        return Some(Vec::new());
    }
    let file = format!("pg_wal/{timeline:08X}.history");
    let parameters: [&(dyn ToSql + Sync); 1] = [&file];
    let rows = server.client.query(TIMELINE_HISTORY, &parameters);
    match within("reading the timeline's history", limit::READ_TIMEOUT, rows).await {
        Ok(rows) => {
            let switch = |row: &Row| TimelineSwitch {
                timeline: row.get::<_, i32>(0).cast_unsigned(),
                at: row.get::<_, i64>(1).cast_unsigned(),
            };
            Some(rows.iter().map(switch).collect())
        }
        Err(error) => {
            // Without it all older epochs end at 0: pessimistic, never wrong.
            tracing::warn!(
                error = %ErrorChain(&error),
                timeline,
                "the history of the timeline cannot be read; grant pg_read_server_files"
            );
            None
        }
    }
}

async fn insert_epoch(server: &Connection, epoch: &EpochRecord) -> Result<(), PgError> {
    let parent = epoch.parent_id.map(|id| id.0.to_vec());
    let (ordinal, term) = (epoch.ordinal.0.cast_signed(), epoch.term.cast_signed());
    let (timeline, fork) = (epoch.timeline.cast_signed(), epoch.fork_lsn.map(u64::cast_signed));
    let id = epoch.id.0.to_vec();
    let parameters: [&(dyn ToSql + Sync); 8] =
        [&ordinal, &id, &parent, &term, &timeline, &fork, &epoch.minted_at, &epoch.minted_by];
    let inserted = server.client.execute(INSERT_EPOCH, &parameters);
    within("writing the epoch", limit::COMMIT_TIMEOUT, inserted).await?;
    Ok(())
}
