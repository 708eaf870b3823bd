//! Joins two histories of one content: the document of the current history with one that a failover
//! lost.
//!
//! A document gives each tagging a decision: present or absent, and the version that decided it; a
//! tagging that it does not list is absent as of its `absent_since`. The join takes the later
//! decision of each tagging, with the version that it always had. So it is commutative, associative
//! and idempotent: every process may repair what it holds, in any order, twice. A join that gave
//! the decisions a version of its own would make the second of two lost writes look older than the
//! first. Two decisions of one version differ only where the limit dropped an add: what the current
//! history has made of it stands.
//!
//! A conditional write decides every tagging by what it saw. Of two that did not see each other one
//! is lost: the later one wins, unless the earlier one was brought back before.
//!
//! How it fails: it never does, but it may not bring back everything. Each write is told its
//! [`JoinFate`]; those that are lost for good are [`JoinFate::Limit`] and [`JoinFate::Conflict`].
//! Where a document no longer tells what a write decided, the fate is that of the whole document,
//! and in doubt a write counts as lost rather than as repaired.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::apply::{evict, find, prune};
use crate::limits::{RECENT_WRITES, WRITE_ID_MEMORY_MS};
use crate::{
    Document, Effect, Epoch, Limits, RecentWrite, RecordedOutcome, TagName, Tagging, UnixMillis,
    Version, WriteId,
};

/// The environment of [`join`].
#[derive(Debug, Clone, Copy)]
pub struct JoinContext<'a> {
    /// The epoch that the join commits in.
    pub epoch: &'a Epoch,
    /// The store's clock, Unix ms.
    pub now: UnixMillis,
    /// The limits in force.
    pub limits: &'a Limits,
}

/// What became of a lost write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JoinFate {
    /// The current history had it, or all that it stands for, before the join.
    Kept,
    /// The join brought it, or an earlier join did.
    Repaired,
    /// Everything that it decided was decided later: as if it had come first.
    Superseded,
    /// Lost for good: a tag that it added did not fit, or its decision was older than what a
    /// content remembers of removed tags.
    Limit,
    /// Lost for good: a conditional write (`If-Match`) of the current history did not see it, or
    /// it stands on a conditional one that did not see a write of the current history. Such a
    /// document is not joined.
    Conflict,
}

/// The result of a join.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Joined {
    /// Whether the document changed. If so it has a new version, and the store must persist it with
    /// an event and with the evicted write ids; if not it is as it was.
    pub changed: bool,
    /// Canonical names of the tags that are present now and were not, sorted.
    pub added: Vec<TagName>,
    /// Canonical names of the tags that were present and are not any more, sorted.
    pub removed: Vec<TagName>,
    /// What became of each write that was asked about, and of each other write whose id the join
    /// adds to the document. A fate that was recorded before stands: of an id that an earlier join
    /// added, a later one says `Kept`.
    pub fates: Vec<(WriteId, JoinFate)>,
    /// Write ids evicted from the document before they expired; the store must keep them in its
    /// `applied` table.
    pub evicted: Vec<RecentWrite>,
}

/// Joins `lost`, a document of an epoch that has ended, into the document of the current history.
/// `writes`: the writes that it stands for, with the version that each made or found.
///
/// An id that only the store's `applied` table has is `Kept`, too: the caller looks it up, and
/// takes it out of `lost.recent`, or a repeated join evicts it again under a new version.
pub fn join(
    current: &mut Document,
    lost: &Document,
    writes: &[(WriteId, Version)],
    ctx: &JoinContext<'_>,
) -> Joined {
    if Histories::new(current, lost, &[]).is_unjoinable() {
        let fates = writes.iter().map(|(id, _)| match current.recent_write(*id) {
            Some(_) => (*id, JoinFate::Kept),
            None => (*id, JoinFate::Conflict),
        });
        return Joined { fates: fates.collect(), ..Joined::default() };
    }
    let merged = merge(current, lost, ctx);
    let histories = Histories::new(current, lost, &merged.dropped);
    let is_fresh = |w: &RecentWrite| ctx.now.saturating_sub(w.at) < WRITE_ID_MEMORY_MS;
    // The id of a conflict stays unknown: its retry must be decided, not answered with success.
    let is_new = |w: &&RecentWrite| {
        let is_conflict = || is_success(w) && histories.fate(w.id, w.version) == JoinFate::Conflict;
        current.recent_write(w.id).is_none() && !is_conflict()
    };
    let new: Vec<RecentWrite> = lost.recent.iter().filter(is_new).cloned().collect();
    let fates = histories.fates(writes, &new, is_fresh);
    let changed = merged.taggings != current.taggings
        || lost.absent_since > current.absent_since
        || lost.last_conditional > current.last_conditional
        || new.iter().any(is_fresh);
    if !changed {
        return Joined { fates, ..Joined::default() };
    }

    let Effect { added, removed } = difference(&current.taggings, &merged.taggings);
    current.recent.extend(new);
    // Stable: writes that made no version stay in the order in which they were decided.
    current.recent.sort_by_key(|w| w.version);
    current.taggings = merged.taggings;
    current.absent_since = current.absent_since.max(lost.absent_since);
    current.last_conditional = current.last_conditional.max(lost.last_conditional);
    current.overflow_until = current.overflow_until.max(lost.overflow_until);
    current.version = current.version.max(lost.version).next(ctx.epoch);
    prune(current, ctx.now);
    let evicted = evict(current, ctx.now);
    Joined { changed, added, removed, fates, evicted }
}

/// When a tagging was decided last, and whether it is present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TagDecision {
    decided_at: Version,
    present: bool,
}

impl TagDecision {
    fn of(doc: &Document, name: &TagName) -> Self {
        match find(doc, name) {
            Ok(i) => {
                let Tagging { decided_at, present, .. } = doc.taggings[i];
                Self { decided_at, present }
            }
            Err(_) => Self { decided_at: doc.absent_since, present: false },
        }
    }

    fn overrules(self, other: Self) -> bool {
        self.decided_at > other.decided_at
    }
}

struct Merged {
    taggings: Vec<Tagging>,
    /// Adds that did not fit.
    dropped: Vec<TagName>,
}

/// The later decision of each tagging. Removes first, then adds in the order of their decisions, up
/// to the limit.
fn merge(current: &Document, lost: &Document, ctx: &JoinContext<'_>) -> Merged {
    let absent_since = current.absent_since.max(lost.absent_since);
    let listed = |doc: &Document, name| find(doc, name).ok().map(|i| doc.taggings[i].clone());
    let names: BTreeSet<&TagName> =
        current.taggings.iter().chain(&lost.taggings).map(|t| &t.name).collect();
    let (mut taggings, mut adds, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
    for name in names {
        let (before, after) = (TagDecision::of(current, name), TagDecision::of(lost, name));
        let (winner, decision) =
            if after.overrules(before) { (lost, after) } else { (current, before) };
        match listed(winner, name) {
            Some(tagging) if tagging.present && !before.present => adds.push(tagging),
            Some(tagging) => taggings.push(tagging),
            None if decision.decided_at == absent_since => {}
            // The other document has a later `absent_since` without having decided this tagging.
            None => {
                let other = if std::ptr::eq(winner, lost) { current } else { lost };
                taggings.extend(listed(other, name).map(|t| {
                    let decided_at = decision.decided_at;
                    tombstone(Tagging { decided_at, ..t }, ctx.now)
                }));
            }
        }
    }
    adds.sort_by(|a, b| (a.decided_at, &a.name).cmp(&(b.decided_at, &b.name)));
    let live = taggings.iter().filter(|t| t.present).count();
    let room = ctx.limits.tags_per_content.saturating_sub(live);
    for (n, tagging) in adds.into_iter().enumerate() {
        if n < room {
            taggings.push(tagging);
        } else {
            dropped.push(tagging.name.clone());
            taggings.push(tombstone(tagging, ctx.now));
        }
    }
    taggings.sort_by(|a, b| a.name.cmp(&b.name));
    Merged { taggings, dropped }
}

/// A tagging that is absent as of the same decision. Its age counts from now on: other processes
/// may have to learn of it yet.
fn tombstone(tagging: Tagging, now: UnixMillis) -> Tagging {
    Tagging { display: tagging.name.shared(), at: now, present: false, ..tagging }
}

fn difference(before: &[Tagging], after: &[Tagging]) -> Effect {
    let live = |taggings: &[Tagging]| -> BTreeSet<TagName> {
        taggings.iter().filter(|t| t.present).map(|t| t.name.clone()).collect()
    };
    let (before, after) = (live(before), live(after));
    Effect {
        added: after.difference(&before).cloned().collect(),
        removed: before.difference(&after).cloned().collect(),
    }
}

/// How a lost decision stands to the current history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It was decided later.
    Overruled,
    /// The current history has it.
    Contained,
    /// The join brings it.
    Brought,
    /// An add that did not fit.
    Dropped,
}

/// The two histories before the join, and what the join drops.
struct Histories<'a> {
    current: &'a Document,
    lost: &'a Document,
    dropped: &'a [TagName],
    /// `absent_since` of the current document rose because tombstones were dropped. Otherwise no
    /// listed decision is older: a write that decides every tagging makes them equal.
    is_pruned: bool,
}

impl<'a> Histories<'a> {
    fn new(current: &'a Document, lost: &'a Document, dropped: &'a [TagName]) -> Self {
        let is_pruned = current.taggings.iter().any(|t| t.decided_at < current.absent_since);
        Self { current, lost, dropped, is_pruned }
    }

    fn standing(&self, name: &TagName) -> Standing {
        let current = TagDecision::of(self.current, name);
        let lost = TagDecision::of(self.lost, name);
        // Of a repair that is lost itself.
        let is_dropped_there = || {
            let has_dropped =
                |w: &RecentWrite| w.version == lost.decided_at && w.effect.added.contains(name);
            !lost.present && self.lost.recent.iter().any(has_dropped)
        };
        let is_pruned = || self.is_pruned && find(self.current, name).is_err();
        let is_missing = lost.present && !current.present;
        match lost.decided_at.cmp(&current.decided_at) {
            Ordering::Less if is_missing && is_pruned() => Standing::Dropped,
            Ordering::Less => Standing::Overruled,
            Ordering::Equal if is_missing => Standing::Dropped,
            Ordering::Equal => Standing::Contained,
            Ordering::Greater if is_dropped_there() || self.dropped.contains(name) => {
                Standing::Dropped
            }
            Ordering::Greater => Standing::Brought,
        }
    }

    /// The standing of the taggings that the lost document does not list.
    fn unlisted(&self) -> Standing {
        match self.lost.absent_since.cmp(&self.current.absent_since) {
            Ordering::Less => Standing::Overruled,
            Ordering::Equal => Standing::Contained,
            Ordering::Greater => Standing::Brought,
        }
    }

    /// The standings of everything that the lost document decides.
    fn all(&self) -> Vec<Standing> {
        let listed = self.lost.taggings.iter().map(|t| self.standing(&t.name));
        listed.chain([self.unlisted()]).collect()
    }

    /// The standings of what a write decided; empty: the document does not tell any more.
    fn decided_by(&self, write: &RecentWrite) -> Vec<Standing> {
        let taggings = &self.lost.taggings;
        let decided = taggings.iter().filter(|t| t.decided_at == write.version).map(|t| &t.name);
        let Effect { added, removed } = &write.effect;
        let names: BTreeSet<&TagName> = decided.chain(added).chain(removed).collect();
        let unlisted = (self.lost.absent_since == write.version).then(|| self.unlisted());
        // Of a tag that it removed, a later add may have been dropped: that is not its loss.
        let standing = |name: &TagName| match self.standing(name) {
            Standing::Dropped if removed.contains(name) => Standing::Overruled,
            standing @ (Standing::Overruled
            | Standing::Contained
            | Standing::Brought
            | Standing::Dropped) => standing,
        };
        names.into_iter().map(standing).chain(unlisted).collect()
    }

    /// Whether a conditional write did not see this write, and overrules it all the same: one of
    /// the current history, or one of the lost document that does not remember this write. In one
    /// epoch each write has seen the ones before.
    fn is_overruled_unseen(&self, version: Version, is_remembered: bool) -> bool {
        let lost = Some(self.lost.last_conditional).filter(|_| !is_remembered);
        let overrules = |by: Version| by > version && !by.is_of_epoch_of(version);
        lost.into_iter().chain([self.current.last_conditional]).any(overrules)
    }

    /// Whether the lost document stands on a conditional write that did not see an earlier write of
    /// the current history, which an earlier join has brought. Its condition does not hold in this
    /// history, and it would take back what the other client was told.
    fn is_unjoinable(&self) -> bool {
        let conditional = self.lost.last_conditional;
        conditional > self.current.last_conditional
            && self.current.recent.iter().any(|w| self.did_not_see(w, conditional))
    }

    /// Whether the lost document, at this version, has not seen a write of the current history: it
    /// would remember it.
    fn did_not_see(&self, write: &RecentWrite, version: Version) -> bool {
        let lost = &self.lost.recent;
        let newest = lost.iter().map(|w| w.at).max().unwrap_or(0);
        let reaches_back = lost.len() < RECENT_WRITES
            || lost.first().is_some_and(|oldest| oldest.version < write.version);
        write.outcome == RecordedOutcome::Written
            && write.version < version
            && !write.version.is_of_epoch_of(version)
            && self.lost.recent_write(write.id).is_none()
            && reaches_back
            && newest.saturating_sub(write.at) < WRITE_ID_MEMORY_MS
    }

    /// The fates of the writes that are asked about, and of the others that are new.
    fn fates(
        &self,
        writes: &[(WriteId, Version)],
        new: &[RecentWrite],
        is_fresh: impl Fn(&RecentWrite) -> bool,
    ) -> Vec<(WriteId, JoinFate)> {
        let is_asked = |id: WriteId| writes.iter().any(|(asked, _)| *asked == id);
        let others = new.iter().filter(|w| is_fresh(w) && is_success(w) && !is_asked(w.id));
        let all = writes.iter().copied().chain(others.map(|w| (w.id, w.version)));
        all.map(|(id, version)| (id, self.fate(id, version))).collect()
    }

    fn fate(&self, id: WriteId, version: Version) -> JoinFate {
        if self.current.recent_write(id).is_some() {
            return JoinFate::Kept;
        }
        let record = self.lost.recent_write(id);
        if self.is_overruled_unseen(record.map_or(version, |w| w.version), record.is_some()) {
            return JoinFate::Conflict;
        }
        let written = record.filter(|w| w.outcome == RecordedOutcome::Written);
        let own = written.map(|w| self.decided_by(w)).filter(|standings| !standings.is_empty());
        let standings = own.unwrap_or_else(|| self.all());
        match standings.iter().max() {
            Some(Standing::Dropped) => JoinFate::Limit,
            Some(Standing::Brought) => JoinFate::Repaired,
            // It changed nothing itself, and all that it stands for was there or is decided later.
            Some(Standing::Contained) if written.is_none() => JoinFate::Kept,
            Some(Standing::Contained) => JoinFate::Repaired,
            Some(Standing::Overruled) | None => JoinFate::Superseded,
        }
    }
}

fn is_success(write: &RecentWrite) -> bool {
    match write.outcome {
        RecordedOutcome::Written | RecordedOutcome::Unchanged => true,
        RecordedOutcome::VersionMismatch | RecordedOutcome::TooManyTags { .. } => false,
    }
}
