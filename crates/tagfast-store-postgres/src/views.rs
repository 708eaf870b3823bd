//! A view: which node is asked, and whether what it answered is new enough.
//!
//! A replica first, where it is likely to be new enough; then the primary, whose answer is proven
//! like a write; then whatever a replica of this history has, marked. Each role is asked under its
//! breaker: a breaker that is open costs nothing but the look at it.
//!
//! How it fails: a replica that fails or is late is not asked first for two seconds. A node that
//! refuses because it has enough to do is no reason to ask all others: at most one replica and the
//! primary are asked then, and if both refuse the caller is told to come back later. Nodes that are
//! silent are asked again until the deadline; when all of them refuse, the caller is told at once.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tagfast_domain::{ContentKey, Document, TenantId, UnixMillis, codec};
use tagfast_failover::{Commit, EpochRecord};
use tagfast_resilience::{BulkheadFull, Criticality, Permit};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{
    CacheUse, Consistency, Degraded, Position, ReadOptions, Source, StoreError, TagReader, View,
};
use tokio::time::Instant;

use crate::cluster::{ClusterView, Node};
use crate::group::stored_key;
use crate::lane::unavailable;
use crate::options::limit;
use crate::query::ReadFacts;
use crate::reader::{Ask, Found, NodeReader, NotRead, ReaderOptions};
use crate::store::{PATIENCE, Parts, PostgresStore};

/// Most readers of a cluster before those of nodes that are gone are ended.
const READERS: usize = 16;

/// What asking a role came to.
enum Asked {
    Answered(Result<View, StoreError>),
    /// It has enough to do.
    Overloaded(Duration),
    /// Nobody answered, or nothing that can be proven.
    Nobody,
}

/// What is read, for whom, and what it must cover.
struct Look<'a> {
    parts: &'a Parts,
    view: &'a ClusterView,
    tenant: &'a TenantId,
    stored: &'a [u8],
    hash: ContentHash,
    consistency: Consistency,
    criticality: Criticality,
    /// What must be shown is not known: a replica that answers instead is marked.
    primary_first: bool,
    need: &'a Need,
    floor: Option<u64>,
    epoch: Option<&'a EpochRecord>,
    /// A primary's answer shows at least what was there when it was asked.
    asked: UnixMillis,
    until: Instant,
}

impl Look<'_> {
    fn ask(&self, permit: Permit, alone: bool, patience: Duration) -> Ask<'_> {
        let Self { tenant, stored: key, criticality, until, .. } = *self;
        Ask { tenant, key, criticality, permit, alone, until, patience }
    }

    /// Replicas in this content's order.
    fn replicas(&self) -> impl Iterator<Item = &Node> {
        let (all, first) = (&self.view.replicas, (self.hash.0 >> 8) as usize);
        (0..all.len()).map(move |n| &all[(first + n) % all.len()])
    }

    fn is_new_enough(&self, answer: &View) -> bool {
        self.need.version.is_none_or(|v| answer.version >= v)
    }
}

impl PostgresStore {
    /// The reader of a node, for reads that insist on the primary or for the others.
    fn reader(&self, parts: &Parts, node: &Node, strong: bool) -> NodeReader {
        let readers = if strong { &parts.strong } else { &parts.readers };
        let mut readers = readers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = readers.get(&node.address) {
            return reader.clone();
        }
        // Nodes that were removed take their readers with them.
        if readers.len() > READERS {
            let view = parts.cluster.view.borrow();
            readers.retain(|address, _| {
                view.replicas.iter().any(|n| n.address == *address)
                    || view.primary.as_ref().is_some_and(|(_, n)| n.address == *address)
            });
        }
        let options = match strong {
            false => self.reading.clone(),
            true => ReaderOptions {
                name: "strong",
                concurrency: limit::STRONG_QUERIES,
                per_second: 0,
                wait: limit::READ,
                ..self.reading.clone()
            },
        };
        let label = format!(
            "{}reads of {}/{}",
            if strong { "strong " } else { "" },
            parts.cluster.name,
            node.name
        );
        let reader = NodeReader::start(label, self.opener.clone(), node.address.clone(), options);
        readers.insert(node.address.clone(), reader.clone());
        reader
    }

    /// Reads on the primary and has the answer proven: a primary that was replaced answers too.
    async fn read_primary(&self, look: &Look<'_>, patience: Duration) -> Result<Found, NotRead> {
        let Look { parts, view, .. } = look;
        let Some((epoch, node)) = view.primary.as_ref() else { return Err(NotRead::Failed) };
        let strong = look.consistency == Consistency::Strong;
        let Some(permit) = self.primary_permit(look, strong).await else {
            return Err(NotRead::Failed);
        };
        let (document, facts) =
            match self.reader(parts, node, strong).read(look.ask(permit, true, patience)).await {
                Ok(found) => found,
                Err(why) => {
                    if matches!(why, NotRead::Failed) {
                        parts.cluster.suspect();
                    }
                    return Err(why);
                }
            };
        let reigns = !facts.in_recovery
            && facts.timeline == epoch.timeline
            && facts
                .epoch
                .is_some_and(|(id, timeline)| id == epoch.id && timeline == epoch.timeline);
        if !reigns {
            parts.cluster.suspect();
            return Err(NotRead::Failed);
        }
        let commit = Commit { epoch: epoch.id, sent: facts.sent, returned: facts.returned };
        let until = look.until.min(Instant::now() + patience);
        if parts.cluster.may_acknowledge(&commit, until).await {
            Ok((document, facts))
        } else {
            Err(NotRead::Failed)
        }
    }

    /// Leave to ask the primary. Who insists on it rides out a short opening; the others have
    /// replicas to turn to.
    async fn primary_permit(&self, look: &Look<'_>, waits: bool) -> Option<Permit> {
        let until = look.until.min(Instant::now() + limit::READ);
        loop {
            match look.parts.cluster.primary_breaker.acquire() {
                Ok(permit) => return Some(permit),
                Err(refused) => {
                    let next = Instant::now() + refused.retry_after.min(limit::PROBE_AGAIN);
                    if !waits || next >= until {
                        return None;
                    }
                    tokio::time::sleep_until(next).await;
                }
            }
        }
    }

    /// The primary's answer, marked where it cannot keep what a token promised.
    async fn view_primary(&self, look: &Look<'_>, patience: Duration) -> Asked {
        let found = match self.read_primary(look, patience).await {
            Ok(found) => found,
            Err(NotRead::Overloaded(retry_after)) => return Asked::Overloaded(retry_after),
            Err(NotRead::Failed | NotRead::Late) => return Asked::Nobody,
        };
        let Look { parts, need, .. } = look;
        // Nobody was ever told of a position that the primary itself has not reached.
        let ahead = look.floor.is_some_and(|floor| floor > found.1.seen);
        Asked::Answered(self.view_of(found, Source::Primary, look).map(|mut answer| {
            let kept = look.floor.is_some() && !ahead && look.is_new_enough(&answer);
            if need.promised && !kept {
                let known =
                    !ahead && need.position.is_none_or(|p| parts.cluster.fence(p.epoch) > 0);
                answer.degraded.push(if known { FAILOVER } else { TOKEN_UNKNOWN });
            }
            answer
        }))
    }

    /// The replica to ask, and whether no other one is well: the first that is well or whose time
    /// has come to be tried. While the breaker tries whether the role works again, the one
    /// whose time comes next is tried, too.
    fn choose(&self, look: &Look<'_>, probes: bool) -> Option<(NodeReader, bool)> {
        let readers: Vec<NodeReader> =
            look.replicas().map(|node| self.reader(look.parts, node, false)).collect();
        if let Some(n) = readers.iter().position(NodeReader::may_ask) {
            let alone =
                !readers.iter().enumerate().any(|(other, reader)| other != n && reader.is_well());
            return Some((readers[n].clone(), alone));
        }
        let next = readers.iter().min_by_key(|reader| reader.avoided_until()).filter(|_| probes);
        next.map(|reader| (reader.clone(), true))
    }

    /// A replica's answer if it is new enough, the answer of one that is not, or why there is none.
    async fn view_replica(&self, look: &Look<'_>) -> Result<Asked, View> {
        if look.view.replicas.is_empty() {
            return Ok(Asked::Nobody);
        }
        let Ok(permit) = look.parts.cluster.replica_breaker.acquire() else {
            return Ok(Asked::Nobody);
        };
        let Some((reader, alone)) = self.choose(look, permit.is_probe()) else {
            // All of them failed a moment ago: the role does not work.
            permit.failed();
            return Ok(Asked::Nobody);
        };
        let found = match reader.read(look.ask(permit, alone, limit::REPLICA_FIRST)).await {
            Ok(found) => found,
            Err(NotRead::Overloaded(retry_after)) => return Ok(Asked::Overloaded(retry_after)),
            Err(NotRead::Failed | NotRead::Late) => return Ok(Asked::Nobody),
        };
        if !is_of_history(look.parts, &found.1) {
            return Ok(Asked::Nobody);
        }
        let covered = look.floor.is_some_and(|floor| found.1.covered >= floor);
        match self.view_of(found, Source::Replica, look) {
            Err(damaged) => Ok(Asked::Answered(Err(damaged))),
            Ok(answer)
                if (covered || look.need.version.is_some()) && look.is_new_enough(&answer) =>
            {
                Ok(Asked::Answered(Ok(answer)))
            }
            Ok(answer) => Err(answer),
        }
    }

    /// No primary: whatever a replica of this history has, marked where it may lack something. At
    /// most `most` of them are asked, those that are well first.
    async fn view_any_replica(&self, look: &Look<'_>, most: usize, reason: Degraded) -> Asked {
        let former = look.view.primary.as_ref().map(|(_, node)| node);
        let readers =
            look.replicas().chain(former).map(|node| self.reader(look.parts, node, false));
        let (mut readers, avoided): (Vec<_>, Vec<_>) = readers.partition(NodeReader::is_well);
        readers.extend(avoided);
        for (n, reader) in readers.iter().enumerate().take(most) {
            let Ok(permit) = look.parts.cluster.replica_breaker.acquire() else {
                return Asked::Nobody;
            };
            let alone = !readers.iter().skip(n + 1).any(NodeReader::is_well);
            let found = match reader.read(look.ask(permit, alone, limit::READ)).await {
                Ok(found) => found,
                Err(NotRead::Overloaded(retry_after)) => return Asked::Overloaded(retry_after),
                Err(NotRead::Failed | NotRead::Late) => continue,
            };
            if !found.1.in_recovery {
                continue;
            }
            let covered = is_of_history(look.parts, &found.1)
                && look.floor.is_some_and(|floor| found.1.covered >= floor);
            return Asked::Answered(self.view_of(found, Source::Replica, look).map(
                |mut answer| {
                    let kept = covered && look.is_new_enough(&answer) && !look.primary_first;
                    if !kept && look.consistency == Consistency::Session {
                        answer.degraded.push(reason);
                    }
                    answer
                },
            ));
        }
        Asked::Nobody
    }

    /// Asks the nodes one after the other, the likeliest first.
    async fn ask_nodes(&self, look: &Look<'_>, stale_is_fine: bool) -> Asked {
        if look.consistency == Consistency::Strong {
            return self.view_primary(look, PATIENCE).await;
        }
        // A replica is asked first where it is likely to be new enough: nothing was promised, or it
        // is a token's.
        let replica_first = !look.primary_first
            && look.floor.is_some()
            && (look.need.position.is_none() || look.need.promised);
        let (mut overloaded, mut in_hand) = (None, None);
        if replica_first {
            match self.view_replica(look).await {
                Ok(Asked::Answered(answer)) => return Asked::Answered(answer),
                Ok(Asked::Overloaded(retry_after)) => overloaded = Some(retry_after),
                Ok(Asked::Nobody) => {}
                Err(too_old) => in_hand = Some(too_old),
            }
        }
        let replica_overloaded = overloaded.is_some();
        match self.view_primary(look, limit::READ).await {
            Asked::Answered(answer) => return Asked::Answered(answer),
            Asked::Overloaded(retry_after) => overloaded = Some(retry_after),
            Asked::Nobody => {}
        }
        let Some(retry_after) = overloaded else {
            return self.view_any_replica(look, usize::MAX, FAILOVER).await;
        };
        // What there is already is better than nothing, for whoever takes it; nobody is asked a
        // second time.
        match in_hand {
            Some(mut answer) if stale_is_fine => {
                answer.degraded.push(OVERLOADED);
                Asked::Answered(Ok(answer))
            }
            None if stale_is_fine && !replica_overloaded => {
                match self.view_any_replica(look, 1, OVERLOADED).await {
                    Asked::Answered(answer) => Asked::Answered(answer),
                    Asked::Overloaded(_) | Asked::Nobody => Asked::Overloaded(retry_after),
                }
            }
            Some(_) | None => Asked::Overloaded(retry_after),
        }
    }

    fn view_of(
        &self,
        (bytes, facts): Found,
        source: Source,
        look: &Look<'_>,
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
        let known = facts.epoch.map(|(id, _)| id).or(look.epoch.map(|e| e.id));
        let of = known.unwrap_or(tagfast_domain::EpochId([0; 16]));
        Ok(View {
            version: document.version,
            tags: document.live().cloned().collect(),
            position: Position { epoch: of, xid: facts.xmax.saturating_sub(1), lsn: facts.seen },
            source,
            as_of: if source == Source::Primary { look.asked } else { facts.as_of.unwrap_or(0) },
            degraded: Vec::new(),
            xmin: facts.xmin,
            stale: false,
            cache: CacheUse::Bypass,
        })
    }
}

/// What a session read must cover.
struct Need {
    position: Option<Position>,
    version: Option<tagfast_domain::Version>,
    /// From a token: a promise to this client, so a failure to keep it is told.
    promised: bool,
}

impl Need {
    fn of(
        parts: &Parts,
        shard: LogicalShard,
        hash: ContentHash,
        options: &ReadOptions<'_>,
    ) -> Self {
        let none = Self { position: None, version: None, promised: false };
        match (options.consistency, options.token) {
            (Consistency::Eventual | Consistency::Strong, _) => none,
            (Consistency::Session, Some(token)) => Self {
                position: token.floors.get(&shard).copied(),
                version: token.version_of(hash),
                promised: true,
            },
            (Consistency::Session, None) => {
                Self { position: parts.remembered.position(hash), ..none }
            }
        }
    }

    /// Whether a position is part of what a server that has everything of the current history
    /// shows. `None`: it lies past the fence of its epoch, nobody can show it.
    fn floor(&self, parts: &Parts) -> Option<u64> {
        match self.position {
            None => Some(0),
            // The last epoch known, also while it has lost its primary and no next one has begun.
            Some(p) if parts.cluster.reign().is_some_and(|(id, _)| id == p.epoch) => Some(p.lsn),
            // Below the fence: whoever is in the current epoch has it.
            Some(p) => (p.lsn <= parts.cluster.fence(p.epoch)).then_some(0),
        }
    }
}

/// Whether a replica is of the current history, or was read before anything was lost. One that
/// already follows a later timeline is neither until its epoch is known: its log positions count
/// records that are not ours.
fn is_of_history(parts: &Parts, facts: &ReadFacts) -> bool {
    let Some((id, _)) = facts.epoch else { return false };
    let of_epoch = match parts.cluster.reign() {
        None => true,
        Some((current, timeline)) => {
            current == id && (facts.timeline == 0 || facts.timeline == timeline)
        }
    };
    facts.in_recovery && (of_epoch || facts.covered <= parts.cluster.fence(id))
}

const FAILOVER: Degraded = Degraded { feature: "session", reason: "failover" };
const TOKEN_UNKNOWN: Degraded = Degraded { feature: "session", reason: "token_unknown" };
/// A replica answered, because the primary had enough to do.
const OVERLOADED: Degraded = Degraded { feature: "session", reason: "overloaded" };

/// The node, or the place in front of it, has enough to do.
fn overloaded(limit: usize, retry_after: Duration) -> StoreError {
    StoreError::Overloaded { queue: "reads of a database node", limit, retry_after }
}

#[async_trait]
impl TagReader for PostgresStore {
    async fn view(&self, key: &ContentKey, options: &ReadOptions<'_>) -> Result<View, StoreError> {
        let bytes = key.to_bytes();
        let hash = ContentHash::of_bytes(&bytes);
        let shard = LogicalShard::of_hash(hash);
        let parts = self.parts(shard);
        let stored = stored_key(shard, &bytes);
        let until = options.deadline.unwrap_or_else(|| Instant::now() + PATIENCE);
        let need = Need::of(parts, shard, hash, options);
        let strong = options.consistency == Consistency::Strong;
        let _place = if strong {
            let entered = tokio::time::timeout_at(until, parts.strong_reads.enter()).await;
            match entered.map_err(|_| deadline())? {
                Ok(place) => Some(place),
                Err(BulkheadFull::Queue { .. } | BulkheadFull::Wait { .. }) => {
                    return Err(overloaded(limit::STRONG_READS, tagfast_resilience::comes_back()));
                }
            }
        } else {
            None
        };
        loop {
            let began = Instant::now();
            let view = Arc::clone(&parts.cluster.view.borrow());
            let look = Look {
                parts,
                view: &view,
                tenant: &key.tenant,
                stored: &stored,
                hash,
                consistency: options.consistency,
                criticality: options.criticality,
                primary_first: options.primary_first,
                need: &need,
                floor: need.floor(parts),
                epoch: view.primary.as_ref().map(|(epoch, _)| epoch.as_ref()),
                asked: self.clock.now_ms(),
                until,
            };
            match self.ask_nodes(&look, options.max_stale != Some(Duration::ZERO)).await {
                Asked::Answered(answer) => return answer,
                Asked::Overloaded(retry_after) => {
                    return Err(overloaded(self.reading.concurrency, retry_after));
                }
                Asked::Nobody => {}
            }
            if Instant::now() >= until {
                return Err(deadline());
            }
            if strong {
                return Err(unavailable("the cluster has no primary", false));
            }
            // Who is silent may only be slow, as behind a lock; who refuses will not think better
            // of it.
            if began.elapsed() < limit::REPLICA_FIRST {
                return Err(unavailable("no node of the cluster answers", false));
            }
        }
    }

    async fn view_many(
        &self,
        keys: &[ContentKey],
        options: &ReadOptions<'_>,
    ) -> Vec<Result<View, StoreError>> {
        let mut answers = Vec::with_capacity(keys.len());
        // One call does not take all places of a queue.
        for some in keys.chunks(limit::AT_ONCE) {
            answers.extend(join_all(some.iter().map(|key| self.view(key, options))).await);
        }
        answers
    }
}

fn deadline() -> StoreError {
    StoreError::Deadline { waiting_for: "a node of the cluster", outcome_unknown: false }
}
