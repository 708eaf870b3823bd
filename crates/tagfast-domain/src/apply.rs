//! The one function that changes a document, and the memory of writes that changed nothing. Every
//! store calls them and nothing else does.
//!
//! The rules behind each branch (stamping of no-ops, conditional writes that decide every tagging,
//! pruning that raises `absent_since`) exist so that a repair after a failover can merge two
//! histories ([`crate::join`](mod@crate::join)); see the invariants in ARCHITECTURE.md. `apply` is
//! atomic: a refused write leaves the document unchanged. A write with an idempotency key that made
//! no version is remembered in the document all the same ([`remember`]): its retry must not be
//! decided again by a later state.

use crate::former;
use crate::limits::{RECENT_WRITES, TOMBSTONE_AGE_MS, TOMBSTONES, WRITE_ID_MEMORY_MS};
use crate::{
    Call, Document, Effect, Epoch, Limits, Operation, RecentWrite, RecordedOutcome, Tag, TagName,
    Tagging, UnixMillis, Version, Write,
};

/// The environment of [`apply`]: epoch, time, limits and the call.
#[derive(Debug, Clone, Copy)]
pub struct ApplyContext<'a> {
    /// The epoch the write commits in.
    pub epoch: &'a Epoch,
    /// The store's clock, Unix ms.
    pub now: UnixMillis,
    /// The limits in force.
    pub limits: &'a Limits,
    /// The call that brought the write, if it has an idempotency key: the key is bound to it.
    /// `None`: the write has an id of its own.
    pub call: Option<Call>,
}

/// The result of applying one write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The document has a new version; the store must persist it together with an event.
    Written {
        /// The new version.
        version: Version,
        /// What changed. Empty for a stamp: a no-op that had to be decided again in this epoch.
        effect: Effect,
        /// Write ids evicted from the document before they expired; the store must keep them in
        /// its `applied` table.
        evicted: Vec<RecentWrite>,
    },
    /// Nothing changed; the store must not write anything but what [`remember`] recorded.
    Unchanged {
        /// The document's current version.
        version: Version,
    },
    /// The write id is known; the caller gets the first answer again.
    Repeated {
        /// The version that the first attempt made, or found when it changed nothing.
        version: Version,
        /// What the first attempt changed.
        effect: Effect,
    },
    /// The write was refused; the document is unchanged.
    Refused(Refusal),
    /// The write id is known, and its first attempt was refused for this reason.
    RefusedAgain(Refusal),
}

/// Why a write was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The content would have more tags than the limit.
    TooManyTags {
        /// The limit.
        allowed: usize,
        /// The number of tags the content would have.
        given: usize,
    },
    /// `If-Match` names no version that is the content's current one.
    VersionMismatch {
        /// The content's current version.
        current: Version,
    },
    /// The write id was already used for a different operation.
    WriteIdReused,
    /// The idempotency key came first with a different request: a different call or different
    /// contents. A store decides this, before [`apply`].
    KeyReused,
}

/// Applies one write to a document. `prior` is the store's `applied` entry for the write's id; the
/// store must look it up when the document's `overflow_until` is in the future and the document
/// itself does not hold the id, and passes `None` otherwise.
pub fn apply(
    doc: &mut Document,
    write: &Write,
    prior: Option<&RecentWrite>,
    ctx: &ApplyContext<'_>,
) -> Outcome {
    if let Some(before) = doc.recent_write(write.id).or(prior) {
        return answer_again(before, write, ctx);
    }
    if let Some(condition) = &write.if_match
        && !condition.holds(doc.version)
    {
        return Outcome::Refused(Refusal::VersionMismatch { current: doc.version });
    }

    let write = &*former::resolve(doc, write);
    let effect = effect_of(doc, &write.operation);
    let live = doc.live().count() + effect.added.len() - effect.removed.len();
    if live > ctx.limits.tags_per_content && !effect.added.is_empty() {
        return Outcome::Refused(Refusal::TooManyTags {
            allowed: ctx.limits.tags_per_content,
            given: live,
        });
    }
    if effect == Effect::default() && decided_in_epoch(doc, write, ctx.epoch.first_version()) {
        return Outcome::Unchanged { version: doc.version };
    }

    let version = doc.version.next(ctx.epoch);
    apply_operation(doc, write, version, ctx.now);
    doc.version = version;
    prune(doc, ctx.now);
    let evicted = record(doc, write, RecordedOutcome::Written, effect.clone(), ctx);
    Outcome::Written { version, effect, evicted }
}

/// Records the outcome that [`apply`] decided for a write with an idempotency key, if the write
/// made no version: the document changes, its version does not. The store must persist the
/// document without an event, guarded against every other change of it, and the returned write ids
/// as those of [`Outcome::Written`]. `None`: there is nothing to remember.
pub fn remember(
    doc: &mut Document,
    write: &Write,
    outcome: &Outcome,
    ctx: &ApplyContext<'_>,
) -> Option<Vec<RecentWrite>> {
    ctx.call?;
    let recorded = match *outcome {
        Outcome::Unchanged { .. } => RecordedOutcome::Unchanged,
        Outcome::Refused(Refusal::VersionMismatch { .. }) => RecordedOutcome::VersionMismatch,
        Outcome::Refused(Refusal::TooManyTags { allowed, given }) => {
            RecordedOutcome::TooManyTags { allowed, given }
        }
        Outcome::Written { .. }
        | Outcome::Repeated { .. }
        | Outcome::RefusedAgain(_)
        | Outcome::Refused(Refusal::WriteIdReused | Refusal::KeyReused) => return None,
    };
    Some(record(doc, write, recorded, Effect::default(), ctx))
}

/// The first answer of a write id, if it comes with the same request again.
fn answer_again(before: &RecentWrite, write: &Write, ctx: &ApplyContext<'_>) -> Outcome {
    let fingerprint = |call| write.operation.fingerprint(write.if_match.as_ref(), call);
    // Without a call: a record of a program that did not bind keys to calls.
    if before.fingerprint != fingerprint(ctx.call) && before.fingerprint != fingerprint(None) {
        return Outcome::Refused(Refusal::WriteIdReused);
    }
    let version = before.version;
    match before.outcome {
        RecordedOutcome::Written | RecordedOutcome::Unchanged => {
            Outcome::Repeated { version, effect: before.effect.clone() }
        }
        RecordedOutcome::VersionMismatch => {
            Outcome::RefusedAgain(Refusal::VersionMismatch { current: version })
        }
        RecordedOutcome::TooManyTags { allowed, given } => {
            Outcome::RefusedAgain(Refusal::TooManyTags { allowed, given })
        }
    }
}

fn effect_of(doc: &Document, operation: &Operation) -> Effect {
    let present = |n: &TagName| find(doc, n).is_ok_and(|i| doc.taggings[i].present);
    let added =
        |tags: &[Tag]| tags.iter().filter(|t| !present(&t.name)).map(|t| t.name.clone()).collect();
    match operation {
        Operation::Patch { add, remove } => Effect {
            added: added(add),
            removed: remove.iter().filter(|n| present(n)).cloned().collect(),
        },
        Operation::Replace { tags } => Effect {
            added: added(tags),
            removed: doc
                .live()
                .filter(|t| !tags.iter().any(|n| n.name == t.name))
                .map(|t| t.name.clone())
                .collect(),
        },
    }
}

/// Whether every tagging that this no-op confirms was already decided in the current epoch. If not,
/// the no-op is written as a stamp.
fn decided_in_epoch(doc: &Document, write: &Write, first: Version) -> bool {
    let decided = |n: &TagName| {
        find(doc, n).map_or(doc.absent_since, |i| doc.taggings[i].decided_at) >= first
    };
    match &write.operation {
        Operation::Patch { add, remove } if write.if_match.is_none() => {
            add.iter().all(|t| decided(&t.name)) && remove.iter().all(decided)
        }
        Operation::Patch { .. } | Operation::Replace { .. } => {
            doc.absent_since >= first && doc.taggings.iter().all(|t| t.decided_at >= first)
        }
    }
}

fn apply_operation(doc: &mut Document, write: &Write, version: Version, now: UnixMillis) {
    match &write.operation {
        Operation::Patch { add, remove } => {
            add.iter().for_each(|tag| upsert_tagging(doc, tag, write, version, now));
            remove.iter().for_each(|name| tombstone(doc, name, write, version, now));
        }
        Operation::Replace { tags } => {
            tags.iter().for_each(|tag| upsert_tagging(doc, tag, write, version, now));
            doc.taggings.retain(|t| tags.iter().any(|n| n.name == t.name));
        }
    }
    let decides_all =
        write.if_match.is_some() || matches!(write.operation, Operation::Replace { .. });
    if decides_all {
        // `absent_since` at this version means "absent, decided now" for every tagging that is not
        // listed, so tombstones are redundant.
        doc.absent_since = version;
        doc.taggings.retain(|t| t.present);
        doc.taggings.iter_mut().for_each(|t| t.decided_at = version);
    }
    if write.if_match.is_some() {
        doc.last_conditional = version;
    }
}

fn upsert_tagging(doc: &mut Document, tag: &Tag, write: &Write, version: Version, now: UnixMillis) {
    let fresh = || Tagging {
        name: tag.name.clone(),
        display: tag.display.clone(),
        user: tag.origin.as_ref().map_or(&write.user, |o| &o.by).clone(),
        at: tag.origin.as_ref().map_or(now, |o| o.at),
        decided_at: version,
        present: true,
    };
    match find(doc, &tag.name) {
        Ok(i) if doc.taggings[i].present => doc.taggings[i].decided_at = version,
        Ok(i) => doc.taggings[i] = fresh(),
        Err(i) => doc.taggings.insert(i, fresh()),
    }
}

fn tombstone(doc: &mut Document, name: &TagName, write: &Write, version: Version, now: UnixMillis) {
    let tombstone = Tagging {
        name: name.clone(),
        display: name.shared(),
        user: write.user.clone(),
        at: now,
        decided_at: version,
        present: false,
    };
    match find(doc, name) {
        Ok(i) => doc.taggings[i] = tombstone,
        Err(i) => doc.taggings.insert(i, tombstone),
    }
}

pub(crate) fn find(doc: &Document, name: &TagName) -> Result<usize, usize> {
    doc.taggings.binary_search_by(|t| t.name.cmp(name))
}

/// Drops expired and excess tombstones, oldest decision first, and raises `absent_since` to the
/// newest decision that was dropped.
pub(crate) fn prune(doc: &mut Document, now: UnixMillis) {
    let mut tombstones: Vec<(Version, UnixMillis)> =
        doc.taggings.iter().filter(|t| !t.present).map(|t| (t.decided_at, t.at)).collect();
    tombstones.sort_unstable();
    let excess = tombstones.len().saturating_sub(TOMBSTONES);
    let raised = tombstones
        .iter()
        .enumerate()
        .take_while(|(i, (_, at))| *i < excess || now.saturating_sub(*at) > TOMBSTONE_AGE_MS)
        .map(|(_, (decided_at, _))| *decided_at)
        .last();
    if let Some(decided_at) = raised {
        doc.absent_since = doc.absent_since.max(decided_at);
        doc.taggings.retain(|t| t.present || t.decided_at > decided_at);
    }
}

/// Adds a write to the recent ones, and evicts as [`evict`] does. The newest write that made a
/// version stays: it tells when the document was committed.
fn record(
    doc: &mut Document,
    write: &Write,
    outcome: RecordedOutcome,
    effect: Effect,
    ctx: &ApplyContext<'_>,
) -> Vec<RecentWrite> {
    let now = ctx.now;
    let fingerprint = write.operation.fingerprint(write.if_match.as_ref(), ctx.call);
    let version = doc.version;
    doc.recent.push(RecentWrite { id: write.id, fingerprint, version, at: now, effect, outcome });
    evict(doc, now)
}

/// Evicts the expired and the excess of the recent writes, oldest first, but for the newest one
/// that made a version. Returns the excess, which the store must keep in its `applied` table.
pub(crate) fn evict(doc: &mut Document, now: UnixMillis) -> Vec<RecentWrite> {
    let newest_written = doc
        .recent
        .iter()
        .rposition(|w| w.outcome == RecordedOutcome::Written)
        .map(|n| doc.recent[n].id);
    let is_kept = |w: &RecentWrite| Some(w.id) == newest_written;
    doc.recent.retain(|w| now.saturating_sub(w.at) < WRITE_ID_MEMORY_MS || is_kept(w));
    let mut evicted = Vec::new();
    while doc.recent.len() > RECENT_WRITES {
        let oldest = doc.recent.iter().position(|w| !is_kept(w)).unwrap_or(0);
        evicted.push(doc.recent.remove(oldest));
    }
    // The maximum, not the last: after the clock stepped back, earlier ids must not be forgotten
    // too soon.
    if let Some(newest) = evicted.iter().map(|w| w.at).max() {
        doc.overflow_until = doc.overflow_until.max(newest.saturating_add(WRITE_ID_MEMORY_MS));
    }
    if doc.overflow_until <= now {
        doc.overflow_until = 0;
    }
    evicted
}
