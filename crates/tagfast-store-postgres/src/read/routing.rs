//! Routing of reads: which node is read, and whether its answer is fresh enough.
//!
//! A replica first, where it is likely to be fresh enough; then the primary, whose answer is proven
//! like a commit; then whatever a replica of this history has, the newest first, marked. Each role
//! is read under its breaker; an open one costs nothing but the look-up.
//!
//! How old the answer of a replica is follows from its log position, which says when the primary
//! had no more ([`Cluster::proven`](crate::cluster::topology::Cluster::proven)). A replica that is
//! older than `replica_age_max`, or not proven to be younger, is not read while the primary
//! answers.
//!
//! How it fails: a replica that fails or is slow is ejected for two seconds. An overloaded node is
//! no reason to load all others: at most one replica and the primary are read then, and if both
//! refuse, the caller learns when to come back. Nodes that do not answer are read again until the
//! deadline; if all of them refuse connections, the caller learns it at once.

mod tag_reader;

use std::sync::Arc;
use std::time::Duration;

use tagfast_domain::{Document, EpochId, TenantId, UnixMillis, codec};
use tagfast_failover::{BootTime, Commit, EpochRecord};
use tagfast_resilience::{Criticality, Permit};
use tagfast_sharding::ContentHash;
use tagfast_store::{
    CacheUse, Consistency, Degraded, Position, ReadOptions, Source, StoreError, View,
};
use tokio::time::Instant;

use crate::boot_clock::boot_time;
use crate::cluster::topology::{Node, Proven, Topology};
use crate::options::limit;
use crate::read::freshness::{FreshnessRequirement, log_facts};
use crate::read::node_reader::{NodeRead, NodeReader, ReaderOptions};
use crate::read::read_queue::{NodeReadError, NodeReadResult};
use crate::refusal::unavailable;
use crate::store::{ClusterHandle, PostgresStore};

/// Readers of a cluster from which those of removed nodes are dropped.
const READERS_MAX: usize = 16;

/// The names of the limits in [`StoreError::Overloaded`].
const NODE_READS: &str = "reads of a database node";

/// The feature that an answer without a promised write lacks.
const SESSION: &str = "session";
/// A replica answered for a primary that cannot be read.
const FAILOVER: Degraded = Degraded { feature: SESSION, reason: "failover" };
/// The token's position is unknown to the current history.
const TOKEN_UNKNOWN: Degraded = Degraded { feature: SESSION, reason: "token_unknown" };
/// A replica answered for a primary that is overloaded.
const OVERLOADED: Degraded = Degraded { feature: SESSION, reason: "overloaded" };
/// The replica that answered is older than a replica may be.
const REPLICA_BEHIND: Degraded = Degraded { feature: "replica", reason: "behind" };
/// How old the replica that answered is, is not known.
const REPLICA_UNPROVEN: Degraded = Degraded { feature: "replica", reason: "unproven" };

/// What reading from a role came to.
enum NodeOutcome {
    Answered(Result<View, StoreError>),
    /// Its limit is full; come back after this time.
    Overloaded(Duration),
    /// No node answered, or none whose answer can be used.
    NoAnswer,
}

impl NodeOutcome {
    /// The first answer of two, else the first refusal.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::NoAnswer, other) => other,
            (Self::Overloaded(_), answer @ Self::Answered(_)) => answer,
            (this, _) => this,
        }
    }
}

/// The role that was read.
enum ReadFrom {
    Primary,
    /// And what it is proven to show; `None`: that cannot be told.
    Replica(Option<Proven>),
}

/// Whether the answer may lack what the client must see.
fn lacks_session(view: &View) -> bool {
    view.degraded.iter().any(|degraded| degraded.feature == SESSION)
}

/// What is proven of the answer of a replica.
fn proven_of(plan: &ReadPlan<'_>, node: &Node, (_, facts): &NodeReadResult) -> Option<Proven> {
    let log = log_facts(facts);
    plan.handle.cluster.proven(&node.address, &log).filter(|_| facts.in_recovery)
}

/// What is read, for which caller, and what the answer must cover.
struct ReadPlan<'a> {
    handle: &'a ClusterHandle,
    topology: &'a Topology,
    tenant: &'a TenantId,
    stored: &'a [u8],
    hash: ContentHash,
    consistency: Consistency,
    criticality: Criticality,
    /// It is unknown what must be shown: an answer of a replica is marked.
    primary_first: bool,
    requirement: &'a FreshnessRequirement,
    /// See [`FreshnessRequirement::floor`].
    floor: Option<u64>,
    epoch: Option<&'a EpochRecord>,
    /// When the read began, in Unix ms: an answer of the primary is at least as new.
    began: UnixMillis,
    until: Instant,
}

impl ReadPlan<'_> {
    fn node_read(&self, permit: Permit, only_healthy: bool, timeout: Duration) -> NodeRead<'_> {
        let Self { tenant, stored: key, criticality, until, .. } = *self;
        NodeRead { tenant, key, criticality, permit, only_healthy, until, timeout }
    }

    /// Replicas in this content's order.
    fn replicas(&self) -> impl Iterator<Item = &Node> {
        let (all, first) = (&self.topology.replicas, (self.hash.0 >> 8) as usize);
        (0..all.len()).map(move |n| &all[(first + n) % all.len()])
    }

    fn has_version(&self, answer: &View) -> bool {
        self.requirement.version.is_none_or(|v| answer.version >= v)
    }
}

impl PostgresStore {
    /// The reader of a node, for strong reads or for the others.
    fn reader(&self, handle: &ClusterHandle, node: &Node, strong: bool) -> NodeReader {
        let readers = if strong { &handle.strong_readers } else { &handle.readers };
        let mut readers = readers.lock();
        if let Some(reader) = readers.get(&node.address) {
            return reader.clone();
        }
        if readers.len() > READERS_MAX {
            let topology = handle.cluster.topology.borrow();
            readers.retain(|address, _| {
                topology.replicas.iter().any(|n| n.address == *address)
                    || topology.primary.as_ref().is_some_and(|(_, n)| n.address == *address)
            });
        }
        let options = match strong {
            false => self.reading.clone(),
            true => ReaderOptions {
                name: "strong",
                concurrency: limit::STRONG_QUERIES_MAX,
                per_second: 0,
                wait: limit::READ_TIMEOUT,
                ..self.reading.clone()
            },
        };
        let label = format!(
            "{}reads of {}/{}",
            if strong { "strong " } else { "" },
            handle.cluster.name,
            node.name
        );
        let address = node.address.clone();
        let (cluster, connections) = (Arc::clone(&handle.cluster), self.connections.clone());
        let reader = NodeReader::start(label, cluster, connections, address.clone(), options);
        readers.insert(address, reader.clone());
        reader
    }

    /// Reads on the primary and has the answer proven: a replaced primary answers, too.
    async fn read_primary(
        &self,
        plan: &ReadPlan<'_>,
        timeout: Duration,
    ) -> Result<NodeReadResult, NodeReadError> {
        let ReadPlan { handle, topology, .. } = plan;
        let Some((epoch, node)) = topology.primary.as_ref() else {
            return Err(NodeReadError::Failed);
        };
        let strong = plan.consistency == Consistency::Strong;
        let Some(permit) = self.primary_permit(plan, strong).await else {
            return Err(NodeReadError::Failed);
        };
        let reader = self.reader(handle, node, strong);
        let result = reader.read(plan.node_read(permit, true, timeout)).await;
        let (document, facts) = result.inspect_err(|error| {
            if matches!(error, NodeReadError::Failed) {
                handle.cluster.report_failure();
            }
        })?;
        let leads = !facts.in_recovery
            && facts.timeline == epoch.timeline
            && facts
                .epoch
                .is_some_and(|(id, timeline)| id == epoch.id && timeline == epoch.timeline);
        if !leads {
            handle.cluster.report_failure();
            return Err(NodeReadError::Failed);
        }
        let commit = Commit { epoch: epoch.id, sent: facts.sent, returned: facts.returned };
        let until = plan.until.min(Instant::now() + timeout);
        if handle.cluster.may_acknowledge(&commit, until).await {
            handle.cluster.record_primary_position(&commit, facts.covered);
            Ok((document, facts))
        } else {
            Err(NodeReadError::Failed)
        }
    }

    /// A permit to read from the primary. Strong reads wait out a briefly open breaker (`waits`);
    /// others fall back to replicas.
    async fn primary_permit(&self, plan: &ReadPlan<'_>, waits: bool) -> Option<Permit> {
        let until = plan.until.min(Instant::now() + limit::READ_TIMEOUT);
        loop {
            match plan.handle.cluster.primary_breaker.acquire() {
                Ok(permit) => return Some(permit),
                Err(refused) => {
                    let delay = refused.retry_after.min(limit::BREAKER_RETRY_INTERVAL);
                    let next = Instant::now() + delay;
                    if !waits || next >= until {
                        return None;
                    }
                    tokio::time::sleep_until(next).await;
                }
            }
        }
    }

    /// The primary's answer, marked where it cannot keep what a token promised.
    async fn view_primary(&self, plan: &ReadPlan<'_>, timeout: Duration) -> NodeOutcome {
        let found = match self.read_primary(plan, timeout).await {
            Ok(found) => found,
            Err(NodeReadError::Overloaded(retry_after)) => {
                return NodeOutcome::Overloaded(retry_after);
            }
            Err(NodeReadError::Failed | NodeReadError::DeadlineExceeded) => {
                return NodeOutcome::NoAnswer;
            }
        };
        let ReadPlan { handle, requirement, .. } = plan;
        // No client was given a position that the primary itself has not reached.
        let ahead = plan.floor.is_some_and(|floor| floor > found.1.seen);
        NodeOutcome::Answered(self.view_of(found, ReadFrom::Primary, plan).map(|mut answer| {
            let kept = plan.floor.is_some() && !ahead && plan.has_version(&answer);
            if requirement.promised && !kept {
                let known = !ahead
                    && requirement.position.is_none_or(|p| handle.cluster.epoch_end(p.epoch) > 0);
                answer.degraded.push(if known { FAILOVER } else { TOKEN_UNKNOWN });
            }
            answer
        }))
    }

    /// Of these replicas the one to read, and whether no other one is healthy: the first that is
    /// healthy or due for a probe. While the role's breaker probes (`probes`), the one that is due
    /// next is read, too.
    fn choose_replica<'a>(
        &self,
        plan: &ReadPlan<'_>,
        replicas: &[&'a Node],
        probes: bool,
    ) -> Option<(&'a Node, NodeReader, bool)> {
        let readers: Vec<(&Node, NodeReader)> =
            replicas.iter().map(|node| (*node, self.reader(plan.handle, node, false))).collect();
        if let Some(n) = readers.iter().position(|(_, reader)| reader.try_probe()) {
            let others = readers.iter().enumerate().filter(|(other, _)| *other != n);
            let only_healthy = !others.into_iter().any(|(_, (_, reader))| reader.is_healthy());
            return Some((readers[n].0, readers[n].1.clone(), only_healthy));
        }
        let next = readers.iter().min_by_key(|(_, reader)| reader.ejected_until());
        next.filter(|_| probes).map(|(node, reader)| (*node, reader.clone(), true))
    }

    /// A replica's answer if it is fresh enough; as an error, the answer of one that is not.
    async fn view_replica(&self, plan: &ReadPlan<'_>) -> Result<NodeOutcome, View> {
        let cluster = &plan.handle.cluster;
        let recent = cluster.recent_replicas(plan.replicas());
        if recent.is_empty() {
            return Ok(NodeOutcome::NoAnswer);
        }
        let Ok(permit) = cluster.replica_breaker.acquire() else {
            return Ok(NodeOutcome::NoAnswer);
        };
        let Some((node, reader, only_healthy)) =
            self.choose_replica(plan, &recent, permit.is_probe())
        else {
            // All of them are ejected: the role does not work.
            permit.failed();
            return Ok(NodeOutcome::NoAnswer);
        };
        let read = plan.node_read(permit, only_healthy, limit::REPLICA_TIMEOUT);
        let found = match reader.read(read).await {
            Ok(found) => found,
            Err(NodeReadError::Overloaded(retry_after)) => {
                return Ok(NodeOutcome::Overloaded(retry_after));
            }
            Err(NodeReadError::Failed | NodeReadError::DeadlineExceeded) => {
                return Ok(NodeOutcome::NoAnswer);
            }
        };
        let Some(proven) = proven_of(plan, node, &found) else { return Ok(NodeOutcome::NoAnswer) };
        let covered = plan.floor.is_some_and(|floor| proven.position >= floor);
        match self.view_of(found, ReadFrom::Replica(Some(proven)), plan) {
            Err(damaged) => Ok(NodeOutcome::Answered(Err(damaged))),
            Ok(answer)
                if !answer.stale
                    && (covered || plan.requirement.version.is_some())
                    && plan.has_version(&answer) =>
            {
                Ok(NodeOutcome::Answered(Ok(answer)))
            }
            Ok(answer) => Err(answer),
        }
    }

    /// Without a primary: whatever a replica of this history has, the newest first, marked with
    /// `reason` where it may lack a write. At most `max` replicas are read, healthy ones first. One
    /// that is not of this history, as far as is known, answers only if no other one does.
    async fn view_any_replica(
        &self,
        plan: &ReadPlan<'_>,
        max: usize,
        reason: Degraded,
    ) -> NodeOutcome {
        let former = plan.topology.primary.as_ref().map(|(_, node)| node);
        let nodes: Vec<&Node> = plan.replicas().chain(former).collect();
        let nodes = plan.handle.cluster.newest_first(nodes);
        let readers = nodes.iter().map(|node| (*node, self.reader(plan.handle, node, false)));
        let (mut readers, ejected): (Vec<_>, Vec<_>) =
            readers.partition(|(_, reader)| reader.is_healthy());
        readers.extend(ejected);
        let mut last_resort = NodeOutcome::NoAnswer;
        for (n, (node, reader)) in readers.iter().enumerate().take(max) {
            let Ok(permit) = plan.handle.cluster.replica_breaker.acquire() else { break };
            let only_healthy = !readers.iter().skip(n + 1).any(|(_, reader)| reader.is_healthy());
            let read = plan.node_read(permit, only_healthy, limit::READ_TIMEOUT);
            let found = match reader.read(read).await {
                Ok(found) => found,
                Err(NodeReadError::Overloaded(retry_after)) => {
                    last_resort = last_resort.or(NodeOutcome::Overloaded(retry_after));
                    break;
                }
                Err(NodeReadError::Failed | NodeReadError::DeadlineExceeded) => continue,
            };
            if !found.1.in_recovery {
                continue;
            }
            let proven = proven_of(plan, node, &found);
            let covered = proven
                .is_some_and(|proven| plan.floor.is_some_and(|floor| proven.position >= floor));
            let answer = self.view_of(found, ReadFrom::Replica(proven), plan);
            let answer = NodeOutcome::Answered(answer.map(|mut answer| {
                let kept = covered && plan.has_version(&answer) && !plan.primary_first;
                if !kept && plan.consistency == Consistency::Session {
                    answer.degraded.push(reason);
                }
                answer
            }));
            if proven.is_some() {
                return answer;
            }
            last_resort = last_resort.or(answer);
        }
        last_resort
    }

    /// Reads from the nodes one after the other, the likeliest first. `accepts_stale`: the caller
    /// takes an answer that is marked as old.
    async fn read_nodes(&self, plan: &ReadPlan<'_>, accepts_stale: bool) -> NodeOutcome {
        if plan.consistency == Consistency::Strong {
            return self.view_primary(plan, limit::READ_DEADLINE_DEFAULT).await;
        }
        // A replica is read first where it is likely to be fresh enough: nothing is required, or
        // what a token requires.
        let replica_first = !plan.primary_first
            && plan.floor.is_some()
            && (plan.requirement.position.is_none() || plan.requirement.promised);
        let (mut overloaded, mut stale_answer) = (None, None);
        if replica_first {
            match self.view_replica(plan).await {
                Ok(NodeOutcome::Answered(answer)) => return NodeOutcome::Answered(answer),
                Ok(NodeOutcome::Overloaded(retry_after)) => overloaded = Some(retry_after),
                Ok(NodeOutcome::NoAnswer) => {}
                Err(too_old) => stale_answer = Some(too_old),
            }
        }
        let replica_overloaded = overloaded.is_some();
        // While no proof says that the primary leads, every replica grows old, and the primary's
        // answer would be waited for in vain.
        if replica_first && accepts_stale && !plan.handle.cluster.is_provable() {
            match self.view_any_replica(plan, usize::MAX, FAILOVER).await {
                NodeOutcome::Answered(Ok(answer)) if !lacks_session(&answer) => {
                    return NodeOutcome::Answered(Ok(answer));
                }
                NodeOutcome::Answered(_) | NodeOutcome::Overloaded(_) | NodeOutcome::NoAnswer => {}
            }
        }
        match self.view_primary(plan, limit::READ_TIMEOUT).await {
            NodeOutcome::Answered(answer) => return NodeOutcome::Answered(answer),
            NodeOutcome::Overloaded(retry_after) => overloaded = Some(retry_after),
            NodeOutcome::NoAnswer => {}
        }
        let Some(retry_after) = overloaded else {
            return self.view_any_replica(plan, usize::MAX, FAILOVER).await;
        };
        // A stale answer is better than none for a caller that accepts it; no node is read twice.
        match stale_answer {
            Some(mut answer) if accepts_stale => {
                answer.degraded.push(OVERLOADED);
                NodeOutcome::Answered(Ok(answer))
            }
            None if accepts_stale && !replica_overloaded => {
                match self.view_any_replica(plan, 1, OVERLOADED).await {
                    NodeOutcome::Answered(answer) => NodeOutcome::Answered(answer),
                    NodeOutcome::Overloaded(_) | NodeOutcome::NoAnswer => {
                        NodeOutcome::Overloaded(retry_after)
                    }
                }
            }
            Some(_) | None => NodeOutcome::Overloaded(retry_after),
        }
    }

    fn view_of(
        &self,
        (bytes, facts): NodeReadResult,
        from: ReadFrom,
        plan: &ReadPlan<'_>,
    ) -> Result<View, StoreError> {
        let document = match bytes.as_deref().map(codec::decode) {
            None => Document::default(),
            Some(Ok(document)) => document,
            Some(Err(error)) => {
                return Err(StoreError::Damaged {
                    what: "a document".to_owned(),
                    source: Some(error),
                });
            }
        };
        let cluster = &plan.handle.cluster;
        let shown = facts.epoch.map(|(id, _)| id);
        let epoch = shown.or(plan.epoch.map(|e| e.id)).unwrap_or(EpochId([0; 16]));
        let (source, as_of, mark) = match from {
            ReadFrom::Primary => (Source::Primary, plan.began, None),
            ReadFrom::Replica(proven) => {
                let through = proven.and_then(|proven| proven.through);
                let as_of = match through {
                    Some(through) => self.unix_time(through),
                    // Of what was acknowledged before the epoch was minted nothing is missing.
                    None => shown.and_then(|id| cluster.minted_at(id)).unwrap_or(0),
                };
                let mark = match through {
                    _ if cluster.is_recent(through) => None,
                    Some(_) => Some(REPLICA_BEHIND),
                    None => Some(REPLICA_UNPROVEN),
                };
                (Source::Replica, as_of, mark)
            }
        };
        Ok(View {
            version: document.version,
            tags: document.live().cloned().collect(),
            position: Position { epoch, xid: facts.xmax.saturating_sub(1), lsn: facts.seen },
            source,
            as_of,
            degraded: mark.into_iter().collect(),
            xmin: facts.xmin,
            stale: mark.is_some(),
            cache: CacheUse::Bypass,
        })
    }

    /// Refuses a stale view that is older than the caller accepts. Who sent a token and accepts no
    /// stale view gets one that covers the token all the same: it shows what was promised.
    fn within_max_stale(&self, view: View, options: &ReadOptions<'_>) -> Result<View, StoreError> {
        let covered = options.token.is_some() && !lacks_session(&view);
        match options.max_stale {
            Some(max) if max.is_zero() && covered => Ok(view),
            Some(max) if view.is_stale_beyond(max, self.clock.now_ms()) => {
                Err(unavailable("only a view that is too old is available", false))
            }
            Some(_) | None => Ok(view),
        }
    }

    /// A time since this machine's start as Unix ms: as long ago as it is, whatever the wall clock
    /// showed then.
    fn unix_time(&self, time: BootTime) -> UnixMillis {
        let ago = boot_time().0.saturating_sub(time.0);
        self.clock.now_ms().saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX))
    }
}
