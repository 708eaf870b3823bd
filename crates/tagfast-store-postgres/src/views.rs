//! A view: which node is asked, and whether what it answered is new enough.
//!
//! A replica first, where it is likely to be new enough; then the primary, whose answer is proven like a write; then whatever a replica of
//! this history has, marked.
//!
//! How it fails: a node that fails or is late is not asked first for two seconds. Nodes that are silent are asked again until the
//! deadline; when all of them refuse, the caller is told at once.

use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use futures_util::future::join_all;
use tagfast_domain::{ContentKey, Document, UnixMillis, codec};
use tagfast_failover::{Commit, EpochRecord};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{CacheUse, Consistency, Degraded, Position, ReadOptions, Source, StoreError, TagReader, View};
use tokio::time::Instant;

use crate::cluster::{ClusterView, Node};
use crate::group::stored_key;
use crate::lane::unavailable;
use crate::options::limit;
use crate::reader::{NodeReader, NotRead, ReadFacts};
use crate::store::{PATIENCE, Parts, PostgresStore};

impl PostgresStore {
    fn reader(&self, parts: &Parts, node: &Node) -> NodeReader {
        let mut readers = parts.readers.lock().unwrap_or_else(PoisonError::into_inner);
        // Nodes that were removed take their readers with them.
        if readers.len() > 16 {
            let view = parts.cluster.view.borrow();
            readers.retain(|address, _| {
                view.replicas.iter().any(|n| n.address == *address)
                    || view.primary.as_ref().is_some_and(|(_, n)| n.address == *address)
            });
        }
        readers
            .entry(node.address.clone())
            .or_insert_with(|| NodeReader::start(self.opener.clone(), node.address.clone()))
            .clone()
    }

    /// Reads at a node, not longer than `until`.
    async fn read_at(reader: &NodeReader, key: &[u8], until: Instant) -> Result<(Option<Vec<u8>>, ReadFacts), NotRead> {
        match tokio::time::timeout_at(until, reader.read(key.to_vec())).await {
            Ok(result) => result,
            Err(_) => {
                reader.avoid();
                Err(NotRead::Failed)
            }
        }
    }

    /// Reads on the primary and has the answer proven: a primary that was replaced answers too.
    async fn read_primary(
        &self,
        parts: &Parts,
        epoch: &EpochRecord,
        node: &Node,
        key: &[u8],
        until: Instant,
    ) -> Option<(Option<Vec<u8>>, ReadFacts)> {
        let (document, facts) = match Self::read_at(&self.reader(parts, node), key, until).await {
            Ok(found) => found,
            // The node is well, only busy.
            Err(NotRead::Overloaded) => return None,
            Err(NotRead::Failed) => {
                parts.cluster.suspect();
                return None;
            }
        };
        let reigns = !facts.in_recovery
            && facts.timeline == epoch.timeline
            && facts.epoch.is_some_and(|(id, timeline)| id == epoch.id && timeline == epoch.timeline);
        if !reigns {
            parts.cluster.suspect();
            return None;
        }
        let commit = Commit { epoch: epoch.id, sent: facts.sent, returned: facts.returned };
        parts.cluster.may_acknowledge(&commit, until).await.then_some((document, facts))
    }

    /// The primary's answer, marked where it cannot keep what a token promised. `None`: there is none that could be proven.
    async fn view_primary(&self, look: &Look<'_>, until: Instant) -> Option<Result<View, StoreError>> {
        let Look { parts, need, .. } = look;
        let (epoch, node) = look.view.primary.as_ref()?;
        let found = self.read_primary(parts, epoch, node, look.stored, until).await?;
        // Nobody was ever told of a position that the primary itself has not reached.
        let ahead = look.floor.is_some_and(|floor| floor > found.1.seen);
        let view = self.view_of(found, Source::Primary, Some(epoch.as_ref()), look.asked);
        Some(view.map(|mut answer| {
            let kept = look.floor.is_some() && !ahead && need.version.is_none_or(|v| answer.version >= v);
            if need.promised && !kept {
                let known = !ahead && need.position.is_none_or(|p| parts.cluster.fence(p.epoch) > 0);
                answer.degraded.push(if known { FAILOVER } else { TOKEN_UNKNOWN });
            }
            answer
        }))
    }

    /// Asks the nodes one after the other, the likeliest first. `None`: nobody answered.
    async fn ask_nodes(
        &self,
        parts: &Parts,
        stored: &[u8],
        hash: ContentHash,
        need: &Need,
        consistency: Consistency,
        until: Instant,
    ) -> Option<Result<View, StoreError>> {
        // A primary's answer shows at least what was there when it was asked.
        let asked = self.clock.now_ms();
        let view = Arc::clone(&parts.cluster.view.borrow());
        let epoch = view.primary.as_ref().map(|(epoch, _)| Arc::clone(epoch));
        let floor = need.floor(parts);
        let first = (hash.0 >> 8) as usize;
        let replicas = || (0..view.replicas.len()).map(|n| &view.replicas[(first + n) % view.replicas.len()]);

        // Whoever insists on the primary waits for it; the others have replicas to turn to.
        let patience = if consistency == Consistency::Strong { PATIENCE } else { limit::READ };

        // A replica is asked first where it is likely to be new enough: nothing was promised, or it is a token's.
        if consistency != Consistency::Strong
            && let Some(floor) = floor
            && (need.position.is_none() || need.promised)
            && let Some(reader) = replicas().map(|node| self.reader(parts, node)).find(|reader| !reader.is_avoided())
            && let Ok(found) = Self::read_at(&reader, stored, until.min(Instant::now() + limit::REPLICA_FIRST)).await
            && is_of_history(parts, &found.1)
        {
            let covered = found.1.covered >= floor;
            match self.view_of(found, Source::Replica, epoch.as_deref(), asked) {
                Err(damaged) => return Some(Err(damaged)),
                Ok(answer) => {
                    let newer = need.version.is_none_or(|v| answer.version >= v);
                    if (covered || need.version.is_some()) && newer {
                        return Some(Ok(answer));
                    }
                }
            }
        }
        let look = Look { parts, view: &view, stored, need, floor, asked };
        // A primary that failed a moment ago is asked last, so that reads do not queue up in front of one that hangs.
        let avoided = consistency != Consistency::Strong
            && view.primary.as_ref().is_some_and(|(_, node)| self.reader(parts, node).is_avoided());
        if !avoided && let Some(answer) = self.view_primary(&look, until.min(Instant::now() + patience)).await {
            return Some(answer);
        }
        if consistency == Consistency::Strong {
            return None;
        }
        // No primary: whatever a replica of this history has, marked where it may lack something.
        for node in replicas().chain(view.primary.as_ref().map(|(_, node)| node)) {
            let reader = self.reader(parts, node);
            let Ok(found) = Self::read_at(&reader, stored, until.min(Instant::now() + limit::READ)).await else {
                continue;
            };
            if !found.1.in_recovery {
                continue;
            }
            let covered = is_of_history(parts, &found.1) && floor.is_some_and(|floor| found.1.covered >= floor);
            return Some(self.view_of(found, Source::Replica, epoch.as_deref(), asked).map(|mut answer| {
                let kept = covered && need.version.is_none_or(|v| answer.version >= v);
                if !kept && consistency == Consistency::Session {
                    answer.degraded.push(FAILOVER);
                }
                answer
            }));
        }
        if avoided && let Some(answer) = self.view_primary(&look, until.min(Instant::now() + patience)).await {
            return Some(answer);
        }
        None
    }

    fn view_of(
        &self,
        (bytes, facts): (Option<Vec<u8>>, ReadFacts),
        source: Source,
        epoch: Option<&EpochRecord>,
        asked: UnixMillis,
    ) -> Result<View, StoreError> {
        let document = match bytes.as_deref().map(codec::decode) {
            None => Document::default(),
            Some(Ok(document)) => document,
            Some(Err(error)) => {
                return Err(StoreError::Damaged { what: "a document".to_owned(), source: Some(error) });
            }
        };
        let of = facts.epoch.map(|(id, _)| id).or(epoch.map(|e| e.id)).unwrap_or(tagfast_domain::EpochId([0; 16]));
        Ok(View {
            version: document.version,
            tags: document.live().cloned().collect(),
            position: Position { epoch: of, xid: facts.xmax.saturating_sub(1), lsn: facts.seen },
            source,
            as_of: if source == Source::Primary { asked } else { facts.as_of.unwrap_or(0) },
            degraded: Vec::new(),
            xmin: facts.xmin,
            stale: false,
            cache: CacheUse::Bypass,
        })
    }
}

/// A read under way.
struct Look<'a> {
    parts: &'a Parts,
    view: &'a ClusterView,
    stored: &'a [u8],
    need: &'a Need,
    floor: Option<u64>,
    asked: UnixMillis,
}

/// What a session read must cover.
struct Need {
    position: Option<Position>,
    version: Option<tagfast_domain::Version>,
    /// From a token: a promise to this client, so a failure to keep it is told.
    promised: bool,
}

impl Need {
    fn of(parts: &Parts, shard: LogicalShard, hash: ContentHash, options: &ReadOptions<'_>) -> Self {
        let none = Self { position: None, version: None, promised: false };
        match (options.consistency, options.token) {
            (Consistency::Eventual | Consistency::Strong, _) => none,
            (Consistency::Session, Some(token)) => {
                Self { position: token.floors.get(&shard).copied(), version: token.version_of(hash), promised: true }
            }
            (Consistency::Session, None) => Self { position: parts.remembered.position(hash), ..none },
        }
    }

    /// Whether a position is part of what a server that has everything of the current history shows. `None`: it lies past
    /// the fence of its epoch, nobody can show it.
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

/// Whether a replica is of the current history, or was read before anything was lost. One that already follows a later timeline
/// is neither until its epoch is known: its log positions count records that are not ours.
fn is_of_history(parts: &Parts, facts: &ReadFacts) -> bool {
    let Some((id, _)) = facts.epoch else { return false };
    let of_epoch = match parts.cluster.reign() {
        None => true,
        Some((current, timeline)) => current == id && (facts.timeline == 0 || facts.timeline == timeline),
    };
    facts.in_recovery && (of_epoch || facts.covered <= parts.cluster.fence(id))
}

const FAILOVER: Degraded = Degraded { feature: "session", reason: "failover" };
const TOKEN_UNKNOWN: Degraded = Degraded { feature: "session", reason: "token_unknown" };

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
        loop {
            let began = Instant::now();
            if let Some(answer) = self.ask_nodes(parts, &stored, hash, &need, options.consistency, until).await {
                return answer;
            }
            if Instant::now() >= until {
                return Err(StoreError::Deadline { waiting_for: "a node of the cluster", outcome_unknown: false });
            }
            if options.consistency == Consistency::Strong {
                return Err(unavailable("the cluster has no primary", false));
            }
            // Who is silent may only be slow, as behind a lock; who refuses will not think better of it.
            if began.elapsed() < limit::REPLICA_FIRST {
                return Err(unavailable("no node of the cluster answers", false));
            }
        }
    }

    async fn view_many(&self, keys: &[ContentKey], options: &ReadOptions<'_>) -> Vec<Result<View, StoreError>> {
        join_all(keys.iter().map(|key| self.view(key, options))).await
    }
}
