//! The group-commit fold that every store shares: write requests in; documents, events and answers
//! out.
//!
//! A group commit runs in four steps. The store loads each touched document once
//! ([`WriteBatch::load`]), folds the requests in order ([`WriteBatch::apply`]), persists the
//! slots to store in one transaction ([`WriteBatch::slots_to_store_mut`]), and passes the positions
//! that the commit returned to [`WriteBatch::finish`], which completes the answers. The fold is
//! pure: it reads no clock, no connection and no document that the store did not load.
//!
//! A slot is stored for one of two reasons. Its document has a new version: then an event belongs
//! to it. Or a keyed write that changed nothing was remembered in it: then the version is the old
//! one and there is no event. A version alone is therefore no guard of an optimistic commit: the
//! store must also notice that the document was stored again under the same version.
//!
//! An answer carries [`WriteAnswer::view`] if and only if the write made a new version. That
//! includes a stamp (a no-op confirmed in a new epoch): it changes no tag, but a cache that kept
//! the older version would have to ask the store again. A repeated or unchanged write carries none:
//! its content was not read for it, so the view could be older than the caller's own later writes.
//!
//! An idempotency key names one request. The store says which request a key is bound to
//! ([`WriteBatch::bind_key`]); a write whose key is bound to a different one is refused before its
//! document is looked at. Every write that is decided binds its key, also one that is refused by
//! its content or changes nothing; what fails undecided need not.
//!
//! How it fails: a refused write leaves its document unchanged and disturbs no other write; a
//! document that cannot be decoded fails the writes of its content only; a content whose stored
//! version changed between load and commit answers [`ItemResult::Retry`] for all of its writes.

use std::collections::HashMap;
use std::sync::Arc;

use tagfast_domain::{
    ApplyContext, Change, ContentKey, Document, DomainError, Effect, Epoch, EpochOrdinal,
    IdempotencyKey, IfMatch, Limits, Outcome, RecentWrite, Refusal, TaggingsEvent, UnixMillis,
    Version, Write, WriteId, apply, remember,
};
use tagfast_sharding::LogicalShard;

use crate::{CacheUse, Position, Receipt, Source, StoreError, View, WriteAnswer, WriteRequest};

/// The storage key of a content: the shard's byte, then [`ContentKey::to_bytes`], so that a shard
/// is a contiguous range.
pub fn stored_key(shard: LogicalShard, key_bytes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key_bytes.len() + 1);
    bytes.push(shard.number());
    bytes.extend_from_slice(key_bytes);
    bytes
}

/// The environment of one group commit.
#[derive(Debug, Clone, Copy)]
pub struct CommitContext<'a> {
    /// The cluster number in receipts; embedded: 0.
    pub cluster: u16,
    /// The epoch the batch commits in.
    pub epoch: &'a Epoch,
    /// The limits in force.
    pub limits: &'a Limits,
    /// The commit time, Unix ms.
    pub now: UnixMillis,
}

/// One content that the batch touches.
#[derive(Debug)]
pub struct Slot {
    /// The content.
    pub key: ContentKey,
    /// Its storage key, see [`stored_key`].
    pub stored_key: Vec<u8>,
    /// The version that was loaded: with the revision, the guard of an optimistic commit.
    pub loaded_version: Version,
    /// How often the stored row was written, as it was loaded; 0 for a new row, and in a store
    /// whose transactions exclude each other.
    pub loaded_revision: u64,
    /// The document, with the batch's writes applied.
    pub document: Document,
    /// Write ids that the document evicted; the store must insert them into its `applied` table.
    pub evicted: Vec<RecentWrite>,
    changes: Vec<Change>,
    /// A write that made no version was remembered in the document.
    has_remembered: bool,
}

impl Slot {
    fn new(key: ContentKey, stored_key: Vec<u8>, document: Document, loaded_revision: u64) -> Self {
        Self {
            key,
            stored_key,
            loaded_version: document.version,
            loaded_revision,
            document,
            evicted: Vec::new(),
            changes: Vec::new(),
            has_remembered: false,
        }
    }

    /// Whether the document has a new version and must be stored together with an event.
    pub fn is_changed(&self) -> bool {
        self.document.version != self.loaded_version
    }

    /// Whether the document must be stored, with or without an event.
    pub fn must_be_stored(&self) -> bool {
        self.is_changed() || self.has_remembered
    }

    /// Gives the document a version of `epoch` although no tag changes, unless it has one already.
    pub fn force_version(&mut self, epoch: &Epoch) {
        if self.document.version < epoch.first_version() {
            self.document.version = self.document.version.next(epoch);
        }
    }

    /// The event of this commit; `None` when the document has no new version. Takes the list of
    /// changes, so it must be called once per commit.
    pub fn take_event(
        &mut self,
        now: UnixMillis,
        publisher_epoch: EpochOrdinal,
    ) -> Option<TaggingsEvent> {
        self.is_changed().then(|| TaggingsEvent {
            key: self.key.clone(),
            version: self.document.version,
            at: now,
            publisher_epoch,
            tags: self.document.live().cloned().collect(),
            changes: std::mem::take(&mut self.changes),
        })
    }

    fn shard(&self) -> LogicalShard {
        let number = self.stored_key.first().copied();
        number.and_then(LogicalShard::from_number).unwrap_or_else(|| LogicalShard::of(&self.key))
    }

    fn view(&self, commit: &CommitPosition, now: UnixMillis) -> View {
        View {
            version: self.document.version,
            tags: self.document.live().cloned().collect(),
            position: commit.position,
            source: Source::Primary,
            as_of: now,
            degraded: Vec::new(),
            xmin: commit.xmin,
            stale: false,
            cache: CacheUse::Bypass,
        }
    }
}

/// Where the commit put a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitPosition {
    /// The log position inside the transaction; embedded: as `position.lsn`.
    pub inside_lsn: u64,
    /// The position at or after the commit.
    pub position: Position,
    /// Every transaction below this id had ended when the slot was written; 0: unknown.
    pub xmin: u64,
}

/// What the commit did with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotCommit {
    /// The slot was committed, or had nothing to commit.
    Committed(CommitPosition),
    /// The stored version or revision was no longer the loaded one: nothing of this slot was
    /// written.
    LostRace,
}

/// The result of one write of the batch.
#[derive(Debug)]
pub enum ItemResult {
    /// The answer to the caller.
    Done(Result<WriteAnswer, StoreError>),
    /// The content changed between load and commit: the store must fold the write again.
    Retry,
    /// The content refuses it, and a repair may bring back an earlier attempt of it: the store must
    /// fold it again when none can. Only for writes of [`WriteBatch::apply_undecided`].
    Undecided,
}

/// A folded write, without the positions that only the commit knows.
struct Folded {
    /// `None` when the document does not matter: it was never loaded, or the key was refused.
    slot: Option<usize>,
    result: FoldedResult,
    made_version: bool,
}

/// `None`: undecided.
type FoldedResult = Option<Result<WriteAnswer, StoreError>>;

/// A batch of writes, folded over the documents they touch.
pub struct WriteBatch<'a> {
    context: CommitContext<'a>,
    index: HashMap<&'a ContentKey, usize>,
    slots: Vec<Result<Slot, DomainError>>,
    folded: Vec<Folded>,
    /// The request that each key of the batch is bound to.
    keys: HashMap<[u8; 16], u64>,
}

impl std::fmt::Debug for WriteBatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteBatch")
            .field("slots", &self.slots.len())
            .field("writes", &self.folded.len())
            .finish_non_exhaustive()
    }
}

impl<'a> WriteBatch<'a> {
    /// An empty batch with room for `writes` writes.
    pub fn new(context: CommitContext<'a>, writes: usize) -> Self {
        Self {
            context,
            index: HashMap::with_capacity(writes),
            slots: Vec::with_capacity(writes),
            folded: Vec::with_capacity(writes),
            keys: HashMap::new(),
        }
    }

    /// Whether the document of `key` was loaded.
    pub fn is_loaded(&self, key: &ContentKey) -> bool {
        self.index.contains_key(key)
    }

    /// Adds the stored document of `key`: `Document::default()` for a content never written, `Err`
    /// for one that cannot be decoded. The first load of a key counts; a second one is ignored.
    pub fn load(
        &mut self,
        key: &'a ContentKey,
        stored_key: Vec<u8>,
        document: Result<Document, DomainError>,
    ) {
        self.load_revision(key, stored_key, 0, document);
    }

    /// [`WriteBatch::load`] for a store that counts how often each row was written.
    pub fn load_revision(
        &mut self,
        key: &'a ContentKey,
        stored_key: Vec<u8>,
        revision: u64,
        document: Result<Document, DomainError>,
    ) {
        if self.is_loaded(key) {
            return;
        }
        self.index.insert(key, self.slots.len());
        let slot = |document| Slot::new(key.clone(), stored_key, document, revision);
        self.slots.push(document.map(slot));
    }

    /// The slot of `write` when the store must look up the write's id in its `applied` table before
    /// [`WriteBatch::apply`]; `None` when the batch can decide without the table.
    pub fn needs_prior(&self, write: &Write) -> Option<&Slot> {
        let slot = self.slots.get(*self.index.get(&write.key)?)?.as_ref().ok()?;
        let may_be_in_table = slot.document.overflow_until > self.context.now
            && slot.document.recent_write(write.id).is_none()
            && !slot.evicted.iter().any(|evicted| evicted.id == write.id);
        may_be_in_table.then_some(slot)
    }

    /// The key of `request` if the batch does not know yet which request it is bound to: the store
    /// must look it up, and bind it, before [`WriteBatch::apply`]. `None`: there is no key, or it
    /// is known.
    pub fn needs_key(&self, request: &WriteRequest) -> Option<IdempotencyKey> {
        request.keyed.filter(|key| !self.keys.contains_key(&key.id))
    }

    /// Tells the batch the request that a key is bound to. The first call for a key counts.
    pub fn bind_key(&mut self, id: [u8; 16], request: u64) {
        self.keys.entry(id).or_insert(request);
    }

    /// Folds one write. `prior` is the unexpired `applied` entry of its id, `None` when there is
    /// none. Results keep the order of the calls.
    pub fn apply(&mut self, request: &WriteRequest, prior: Option<&RecentWrite>) {
        self.fold(request, prior, false);
    }

    /// As [`WriteBatch::apply`], for a write of which an attempt of an earlier epoch may be brought
    /// back by a repair. Where its content may refuse it only because a failover lost that attempt,
    /// or what that attempt stood on, nothing is decided, and nothing remembered under its id.
    pub fn apply_undecided(&mut self, request: &WriteRequest, prior: Option<&RecentWrite>) {
        self.fold(request, prior, true);
    }

    fn fold(&mut self, request: &WriteRequest, prior: Option<&RecentWrite>, may_come_back: bool) {
        let bound = request.keyed.and_then(|key| self.keys.get(&key.id));
        if request.keyed.is_some_and(|key| bound.is_some_and(|bound| *bound != key.request)) {
            let result = Some(Err(StoreError::Refused(Refusal::KeyReused)));
            self.folded.push(Folded { slot: None, result, made_version: false });
            return;
        }
        let index = self.index.get(&request.write.key).copied();
        let slot = index.and_then(|index| self.slots.get_mut(index));
        let (result, made_version) = match slot {
            Some(Ok(slot)) => apply_to(slot, request, prior, &self.context, may_come_back),
            Some(Err(source)) => {
                let what = format!("content {}", request.write.key);
                (Some(Err(StoreError::Damaged { what, source: Some(source.clone()) })), false)
            }
            None => (Some(Err(StoreError::Internal("a write without its document".into()))), false),
        };
        self.folded.push(Folded { slot: index, result, made_version });
    }

    /// All readable slots with their numbers, in load order.
    pub fn slots(&self) -> impl Iterator<Item = (usize, &Slot)> {
        self.slots.iter().enumerate().filter_map(|(n, slot)| Some((n, slot.as_ref().ok()?)))
    }

    /// All readable slots with their numbers, in load order, for [`Slot::force_version`].
    pub fn slots_mut(&mut self) -> impl Iterator<Item = (usize, &mut Slot)> {
        self.slots.iter_mut().enumerate().filter_map(|(n, slot)| Some((n, slot.as_mut().ok()?)))
    }

    /// The slots that must be stored, with their numbers, in load order.
    pub fn slots_to_store_mut(&mut self) -> impl Iterator<Item = (usize, &mut Slot)> {
        self.slots.iter_mut().enumerate().filter_map(|(n, slot)| match slot {
            Ok(slot) if slot.must_be_stored() => Some((n, slot)),
            Ok(_) | Err(_) => None,
        })
    }

    /// The number of a content's slot; `None`: it was never loaded.
    pub fn slot_number(&self, key: &ContentKey) -> Option<usize> {
        self.index.get(key).copied()
    }

    /// The writes so far that succeed if their slots are committed: the number of the slot, the
    /// write's id, and the version that it made, or found when it changed nothing.
    pub fn successes(&self) -> impl Iterator<Item = (usize, WriteId, Version)> {
        self.folded.iter().filter_map(|folded| {
            let answer = folded.result.as_ref()?.as_ref().ok()?;
            Some((folded.slot?, answer.receipt.write_id, answer.version))
        })
    }

    /// Number of slots, readable or not.
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Completes the answers, in the order of the [`WriteBatch::apply`] calls. `commit_of` tells
    /// what the commit did with slot `n`.
    pub fn finish(self, commit_of: impl Fn(usize) -> SlotCommit) -> Vec<ItemResult> {
        let now = self.context.now;
        let commits: Vec<SlotCommit> = (0..self.slots.len()).map(commit_of).collect();
        let mut views: Vec<Option<Arc<View>>> = vec![None; self.slots.len()];
        let complete = |folded: Folded| {
            let Some(result) = folded.result else {
                return match folded.slot.map(|slot| commits[slot]) {
                    Some(SlotCommit::LostRace) => ItemResult::Retry,
                    Some(SlotCommit::Committed(_)) | None => ItemResult::Undecided,
                };
            };
            let Some(slot) = folded.slot else { return ItemResult::Done(result) };
            let commit = match commits[slot] {
                SlotCommit::Committed(commit) => commit,
                SlotCommit::LostRace => return ItemResult::Retry,
            };
            ItemResult::Done(result.map(|mut answer| {
                answer.receipt.inside_lsn = commit.inside_lsn;
                answer.receipt.position = commit.position;
                if let (true, Ok(slot_ref)) = (folded.made_version, &self.slots[slot]) {
                    let view =
                        views[slot].get_or_insert_with(|| Arc::new(slot_ref.view(&commit, now)));
                    answer.view = Some(Arc::clone(view));
                }
                answer
            }))
        };
        self.folded.into_iter().map(complete).collect()
    }
}

/// Whether a write that its content refuses now could have been taken in an earlier epoch. A
/// condition on versions of this epoch alone was made in this epoch.
fn could_hold_earlier(refusal: &Refusal, write: &Write, epoch: &Epoch) -> bool {
    match refusal {
        Refusal::TooManyTags { .. } => true,
        Refusal::VersionMismatch { .. } => {
            let versions = write.if_match.iter().flat_map(IfMatch::versions);
            versions.into_iter().any(|version| *version < epoch.first_version())
        }
        Refusal::WriteIdReused | Refusal::KeyReused => false,
    }
}

/// Applies one write to its slot. Returns the answer, still without positions, and whether the
/// write made a new version.
fn apply_to(
    slot: &mut Slot,
    request: &WriteRequest,
    prior: Option<&RecentWrite>,
    context: &CommitContext<'_>,
    may_come_back: bool,
) -> (FoldedResult, bool) {
    let write = &request.write;
    let evicted = slot.evicted.iter().find(|evicted| evicted.id == write.id).cloned();
    let prior = evicted.as_ref().or(prior);
    let domain = ApplyContext {
        epoch: context.epoch,
        now: context.now,
        limits: context.limits,
        call: request.keyed.map(|key| key.call),
    };
    let outcome = apply(&mut slot.document, write, prior, &domain);
    if let Outcome::Refused(refusal) = &outcome
        && may_come_back
        && could_hold_earlier(refusal, write, context.epoch)
    {
        return (None, false);
    }
    if let Some(evicted) = remember(&mut slot.document, write, &outcome, &domain) {
        slot.has_remembered = true;
        slot.evicted.extend(evicted);
    }
    let refused = |refusal: Refusal| (Some(Err(StoreError::Refused(refusal))), false);
    let mut made_version = false;
    let (version, effect, repeated) = match outcome {
        Outcome::Refused(refusal) | Outcome::RefusedAgain(refusal) => return refused(refusal),
        Outcome::Unchanged { version } => (version, Effect::default(), false),
        Outcome::Repeated { version, effect } => (version, effect, true),
        Outcome::Written { version, effect, evicted } => {
            made_version = true;
            slot.evicted.extend(evicted);
            slot.changes.push(Change {
                write_id: write.id,
                user: write.user.clone(),
                version,
                added: effect.added.clone(),
                removed: effect.removed.clone(),
                traceparent: request.traceparent.clone(),
            });
            (version, effect, false)
        }
    };
    let position = Position { epoch: context.epoch.id, xid: 0, lsn: 0 };
    let answer = WriteAnswer {
        version,
        changed: effect != Effect::default(),
        added: effect.added,
        removed: effect.removed,
        repeated,
        receipt: Receipt {
            cluster: context.cluster,
            shard: slot.shard(),
            inside_lsn: 0,
            position,
            write_id: write.id,
        },
        view: None,
        replicated: None,
        degraded: Vec::new(),
    };
    (Some(Ok(answer)), made_version)
}
