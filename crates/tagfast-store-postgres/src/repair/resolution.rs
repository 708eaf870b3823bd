//! What becomes of one entry of the journal: pure.
//!
//! How it fails: an entry whose document cannot be joined stays in the journal, and its writes are
//! reported as unknown.

use std::collections::{HashMap, HashSet};

use tagfast_domain::{
    Change, ContentKey, Document, EpochId, EpochOrdinal, JoinContext, JoinFate, Joined,
    RecentWrite, RecordedOutcome, TagName, TaggingsEvent, UserId, Version, WriteId, join,
};
use tagfast_failover::{JournaledWrite, LogRange, RepairEntry};
use tagfast_store::failovers::VerdictCounts;
use tagfast_store::{LostReason, Verdict};

/// What the database knows of the write ids of a chunk.
#[derive(Debug, Default)]
pub(super) struct KnownWrites {
    /// Verdicts that a repair has recorded.
    pub(super) recorded: HashMap<WriteId, Verdict>,
    /// Ids that a document has evicted.
    pub(super) evicted: HashSet<WriteId>,
}

/// A verdict to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VerdictRow {
    pub(super) id: WriteId,
    /// The epoch in which the write was acknowledged.
    pub(super) epoch: EpochId,
    pub(super) verdict: Verdict,
    pub(super) version: Version,
}

/// What becomes of an entry.
#[derive(Debug, Default)]
pub(super) struct Resolution {
    /// The join, if it changed the document.
    pub(super) joined: Option<Joined>,
    /// The ids that the join added to the document.
    pub(super) new_ids: Vec<RecentWrite>,
    /// Of the writes whose callers were told.
    pub(super) counts: VerdictCounts,
    pub(super) rows: Vec<VerdictRow>,
    /// The writes that the journal must still vouch for; empty: it can forget the entry.
    pub(super) vouched: Vec<JournaledWrite>,
}

impl Resolution {
    /// Says of everything that it repairs that an event brought it back.
    pub(super) fn mark_by_event(&mut self) {
        for row in &mut self.rows {
            if let Verdict::Repaired { by_event, .. } = &mut row.verdict {
                *by_event = true;
            }
        }
    }
}

/// Whether an entry, and every position that a receipt of it may name, is part of the current
/// history. `end_of`: up to where an epoch is.
pub(super) fn is_kept(entry: &RepairEntry, end_of: impl Fn(EpochId) -> u64) -> bool {
    let is_before_end = |at: &LogRange| at.flushed <= end_of(at.epoch);
    is_before_end(&entry.at) && entry.writes.iter().all(|(_, at)| is_before_end(at))
}

/// The writes of an entry, each id once.
pub(super) fn writes_of(entry: &RepairEntry) -> Vec<JournaledWrite> {
    let mut seen = HashSet::new();
    entry.writes.iter().map(|(write, _)| *write).filter(|write| seen.insert(write.id)).collect()
}

fn verdict_of(fate: JoinFate) -> Verdict {
    match fate {
        JoinFate::Kept => Verdict::Kept,
        JoinFate::Repaired => Verdict::Repaired { is_superseded: false, by_event: false },
        JoinFate::Superseded => Verdict::Repaired { is_superseded: true, by_event: false },
        JoinFate::Limit => Verdict::Lost(LostReason::Limit),
        JoinFate::Conflict => Verdict::Lost(LostReason::Conflict),
    }
}

/// Adds a verdict about an acknowledged write.
fn count(counts: &mut VerdictCounts, verdict: Verdict) {
    let n = match verdict {
        Verdict::Kept => &mut counts.kept,
        Verdict::Repaired { .. } => &mut counts.repaired,
        Verdict::Lost(_) => &mut counts.lost,
        Verdict::Unknown(_) => &mut counts.unknown,
    };
    *n += 1;
}

/// Everything that was recorded about a write: the newest verdict, and where it was answered.
struct AskedWrite {
    write: JournaledWrite,
    epoch: EpochId,
    /// A receipt may name a position that is not part of the current history.
    is_past_end: bool,
}

fn asked_writes(entry: &RepairEntry, end_of: impl Fn(EpochId) -> u64) -> Vec<AskedWrite> {
    let mut places: HashMap<WriteId, usize> = HashMap::new();
    let mut asked: Vec<AskedWrite> = Vec::with_capacity(entry.writes.len());
    for (write, at) in &entry.writes {
        let is_past_end = at.flushed > end_of(at.epoch);
        let place = *places.entry(write.id).or_insert(asked.len());
        match asked.get_mut(place) {
            Some(known) => known.is_past_end |= is_past_end,
            None => asked.push(AskedWrite { write: *write, epoch: at.epoch, is_past_end }),
        }
    }
    asked
}

/// Joins an entry into the document of the current history, unless its state is part of it or its
/// repair is over (`is_late`).
pub(super) fn resolve(
    entry: &RepairEntry,
    mut lost: Document,
    current: &mut Document,
    known: &KnownWrites,
    is_late: bool,
    end_of: impl Fn(EpochId) -> u64,
    ctx: &JoinContext<'_>,
) -> Resolution {
    let asked = asked_writes(entry, &end_of);
    let mut resolution = Resolution::default();
    let mut fates: HashMap<WriteId, Verdict> = HashMap::new();
    // Its write is in the document or was evicted from it. A retry that the document refused is no
    // write.
    let is_present = |doc: &Document, id| {
        let is_written = |write: &RecentWrite| {
            matches!(write.outcome, RecordedOutcome::Written | RecordedOutcome::Unchanged)
        };
        doc.recent_write(id).is_some_and(is_written) || known.evicted.contains(&id)
    };
    if entry.at.flushed <= end_of(entry.at.epoch) {
        fates.extend(asked.iter().map(|asked| (asked.write.id, Verdict::Kept)));
    } else if is_late {
        let verdict = |id| match is_present(current, id) {
            true => Verdict::Kept,
            false => Verdict::Lost(LostReason::Late),
        };
        fates.extend(asked.iter().map(|asked| (asked.write.id, verdict(asked.write.id))));
    } else {
        lost.recent.retain(|write| !known.evicted.contains(&write.id));
        let is_new = |write: &&RecentWrite| current.recent_write(write.id).is_none();
        let new_ids: Vec<RecentWrite> = lost.recent.iter().filter(is_new).cloned().collect();
        let ours = asked.iter().map(|asked| (asked.write.id, asked.write.version));
        // Of others, an id that is older than ids are remembered may only be forgotten here, unless
        // this history never reached its version.
        let is_missing = |write: &&RecentWrite| {
            write.version > current.version && write.outcome == RecordedOutcome::Written
        };
        let of_others = new_ids.iter().filter(is_missing).map(|write| (write.id, write.version));
        let writes: Vec<(WriteId, Version)> = ours.chain(of_others).collect();
        let joined = join(current, &lost, &writes, ctx);
        fates.extend(joined.fates.iter().map(|(id, fate)| (*id, verdict_of(*fate))));
        fates.extend(known.evicted.iter().map(|id| (*id, Verdict::Kept)));
        // Writes of other processes, which the document stood on. Whether their callers were told
        // is not known, so none of them is listed as lost.
        let of_others = new_ids.iter().filter_map(|write| {
            let verdict = *fates.get(&write.id)?;
            let is_ours = asked.iter().any(|asked| asked.write.id == write.id);
            // Also what is kept: a receipt past the end of its epoch must find it.
            let is_listed = matches!(verdict, Verdict::Repaired { .. } | Verdict::Kept)
                && !is_ours
                && !known.recorded.contains_key(&write.id);
            let epoch = entry.at.epoch;
            let row = VerdictRow { id: write.id, epoch, verdict, version: write.version };
            is_listed.then_some(row)
        });
        resolution.rows.extend(of_others);
        if joined.changed {
            resolution.joined = Some(joined);
            resolution.new_ids = new_ids;
        }
    }
    for AskedWrite { write, epoch, is_past_end } in asked {
        let recorded = known.recorded.get(&write.id);
        let fate = fates.get(&write.id).copied().unwrap_or(Verdict::Kept);
        let verdict = recorded.copied().unwrap_or(fate);
        // What an event brought back is counted as that: each write once in a report.
        if !matches!(recorded, Some(Verdict::Repaired { by_event: true, .. })) {
            count(&mut resolution.counts, verdict);
        }
        if !matches!(verdict, Verdict::Lost(_)) {
            resolution.vouched.push(write);
        }
        let is_listed = match verdict {
            // A receipt past the end of its epoch must find it.
            Verdict::Kept => is_past_end,
            Verdict::Repaired { .. } | Verdict::Lost(_) => true,
            Verdict::Unknown(_) => false,
        };
        if is_listed && recorded.is_none() {
            resolution.rows.push(VerdictRow {
                id: write.id,
                epoch,
                verdict,
                version: write.version,
            });
        }
    }
    resolution
}

/// The event of a join: one change for each write whose tags it brought or took. What a join
/// changed beyond the writes that are still remembered is the change of the newest one.
pub(super) fn event_of(
    key: ContentKey,
    document: &Document,
    joined: &Joined,
    new_ids: &[RecentWrite],
    (at, publisher_epoch): (i64, EpochOrdinal),
) -> TaggingsEvent {
    let mut added: HashSet<&TagName> = joined.added.iter().collect();
    let mut removed: HashSet<&TagName> = joined.removed.iter().collect();
    let mut changes: Vec<Change> = Vec::new();
    // The newest write of a tag decided it.
    for write in new_ids.iter().rev() {
        let (added, removed) =
            (take(&mut added, &write.effect.added), take(&mut removed, &write.effect.removed));
        let Some(user) = user_of(document, added.iter().chain(&removed)) else { continue };
        let (write_id, version) = (write.id, document.version);
        changes.push(Change { write_id, user, version, added, removed, traceparent: None });
    }
    changes.reverse();
    let sorted = |names: HashSet<&TagName>| {
        let mut names: Vec<TagName> = names.into_iter().cloned().collect();
        names.sort();
        names
    };
    let (added, removed) = (sorted(added), sorted(removed));
    if let (Some(newest), Some(user)) =
        (new_ids.last(), user_of(document, added.iter().chain(&removed)))
    {
        let (write_id, version) = (newest.id, document.version);
        changes.push(Change { write_id, user, version, added, removed, traceparent: None });
    }
    TaggingsEvent {
        key,
        version: document.version,
        at,
        publisher_epoch,
        tags: document.live().cloned().collect(),
        changes,
    }
}

/// Takes those of a write's names that are still in the set.
fn take(names: &mut HashSet<&TagName>, of: &[TagName]) -> Vec<TagName> {
    of.iter().filter(|name| names.remove(*name)).cloned().collect()
}

/// Who decided the first of these tags; `None`: there is none. A tag that is not listed any more
/// was removed by the user who decided the newest of those that are.
fn user_of<'a>(
    document: &Document,
    mut names: impl Iterator<Item = &'a TagName>,
) -> Option<UserId> {
    let first = names.next()?;
    let listed = document.taggings.iter().find(|tagging| tagging.name == *first);
    let newest = || document.taggings.iter().max_by_key(|tagging| tagging.decided_at);
    let user = listed.or_else(newest).map(|tagging| tagging.user.clone());
    Some(user.unwrap_or_else(|| UserId::from_stored("unknown")))
}

#[cfg(test)]
mod tests {
    use tagfast_domain::{
        ApplyContext, Epoch, Limits, Operation, Outcome, Tag, UserId, Write, apply, codec,
    };
    use tagfast_failover::{Journal, JournaledContent};

    use super::*;

    const ONE: Epoch = Epoch { id: EpochId([1; 16]), ordinal: EpochOrdinal(1_800_000_000_001) };
    const TWO: Epoch = Epoch { id: EpochId([2; 16]), ordinal: EpochOrdinal(1_800_000_000_002) };
    const LIMITS: Limits = Limits { tags_per_content: 2 };
    const NOW: i64 = 1_800_000_000_100;
    /// The log position at which epoch 1 ends in epoch 2.
    const END: u64 = 100;

    fn end_of(epoch: EpochId) -> u64 {
        if epoch == TWO.id { u64::MAX } else { END }
    }

    fn add(doc: &mut Document, n: u8, tag: &str, epoch: &Epoch) -> JournaledWrite {
        let operation = Operation::patch(vec![Tag::parse(tag).expect("a tag")], vec![], &LIMITS);
        let write = Write {
            id: WriteId([n; 16]),
            key: key(),
            user: UserId::parse("ann").expect("a user"),
            operation: operation.expect("a patch"),
            if_match: None,
        };
        let ctx = ApplyContext { epoch, now: NOW, limits: &LIMITS, call: None };
        let outcome = apply(doc, &write, None, &ctx);
        assert!(matches!(outcome, Outcome::Written { .. }), "{outcome:?}");
        JournaledWrite { id: write.id, version: doc.version, at: NOW }
    }

    fn key() -> ContentKey {
        ContentKey::parse("test", "doc", "1").expect("a content")
    }

    /// An entry of epoch 1 that was committed at this position, as a journal hands it out.
    fn entry(doc: &Document, at: u64, writes: &[(JournaledWrite, bool)]) -> RepairEntry {
        let mut journal = Journal::new(1 << 20);
        journal.begin_epoch(ONE.id);
        for (write, is_acknowledged) in writes {
            let content = JournaledContent {
                key: [[0].as_slice(), &key().to_bytes()].concat().into(),
                document: codec::encode(doc).into(),
                version: doc.version,
                writes: vec![*write],
            };
            let at = LogRange { epoch: ONE.id, inside: at - 1, flushed: at };
            let group = journal.record(at, vec![content]).expect("its epoch");
            if *is_acknowledged {
                assert!(journal.acknowledge(group, tagfast_failover::BootTime::default(), 0));
            }
        }
        journal.begin_epoch(TWO.id);
        journal.repair_entries(None, 1).pop().expect("an entry")
    }

    fn resolved(
        entry: &RepairEntry,
        current: &mut Document,
        known: &KnownWrites,
        is_late: bool,
    ) -> Resolution {
        let lost = codec::decode(&entry.document).expect("a document");
        let ctx = JoinContext { epoch: &TWO, now: NOW, limits: &LIMITS };
        resolve(entry, lost, current, known, is_late, end_of, &ctx)
    }

    fn verdicts(resolution: &Resolution) -> Vec<(u8, Verdict)> {
        resolution.rows.iter().map(|row| (row.id.0[0], row.verdict)).collect()
    }

    const REPAIRED: Verdict = Verdict::Repaired { is_superseded: false, by_event: false };

    #[test]
    fn a_lost_write_is_joined_listed_and_still_vouched_for() {
        let mut lost = Document::default();
        let write = add(&mut lost, 1, "a", &ONE);
        let entry = entry(&lost, END + 1, &[(write, true)]);
        assert!(!is_kept(&entry, end_of));
        let mut current = Document::default();
        let resolution = resolved(&entry, &mut current, &KnownWrites::default(), false);
        assert_eq!(verdicts(&resolution), [(1, REPAIRED)]);
        assert_eq!((resolution.counts.repaired, resolution.vouched), (1, vec![write]));
        let joined = resolution.joined.expect("it changed");
        let event = event_of(key(), &current, &joined, &resolution.new_ids, (NOW, TWO.ordinal));
        assert_eq!(event.tags.len(), 1);
        let [change] = event.changes.as_slice() else { panic!("{:?}", event.changes) };
        assert_eq!((change.write_id, change.user.as_str()), (write.id, "ann"));
        assert_eq!((change.added.len(), change.version), (1, current.version));
        // A second attempt finds its id in the document, and the verdict in the table.
        let mut known = KnownWrites::default();
        known.recorded.insert(write.id, REPAIRED);
        let again = resolved(&entry, &mut current, &known, false);
        assert!(again.joined.is_none() && again.rows.is_empty());
        assert_eq!(again.counts.repaired, 1);
    }

    #[test]
    fn a_state_before_the_end_is_kept_and_joins_nothing() {
        let mut doc = Document::default();
        let write = add(&mut doc, 1, "a", &ONE);
        let entry = entry(&doc, END, &[(write, true)]);
        assert!(is_kept(&entry, end_of));
        let mut current = Document::default();
        let resolution = resolved(&entry, &mut current, &KnownWrites::default(), false);
        assert_eq!((verdicts(&resolution), resolution.counts.kept), (vec![], 1));
        assert_eq!(current, Document::default());
    }

    #[test]
    fn a_receipt_past_the_end_of_a_kept_state_finds_its_verdict() {
        // The state is before the end; a write that found it unchanged was answered past it.
        let mut doc = Document::default();
        let written = add(&mut doc, 1, "a", &ONE);
        let mut entry = entry(&doc, END, &[(written, true)]);
        let unchanged = JournaledWrite { id: WriteId([2; 16]), ..written };
        let past = LogRange { epoch: ONE.id, inside: END + 5, flushed: END + 5 };
        entry.writes.push((unchanged, past));
        assert!(!is_kept(&entry, end_of));
        let resolution = resolved(&entry, &mut doc.clone(), &KnownWrites::default(), false);
        assert_eq!(verdicts(&resolution), [(2, Verdict::Kept)]);
        assert_eq!(resolution.counts.kept, 2);
    }

    #[test]
    fn what_comes_after_the_closing_is_listed_and_not_joined() {
        let mut lost = Document::default();
        let told = add(&mut lost, 1, "a", &ONE);
        let untold = add(&mut lost, 2, "b", &ONE);
        let entry = entry(&lost, END + 1, &[(told, true), (untold, false)]);
        let mut current = Document::default();
        let resolution = resolved(&entry, &mut current, &KnownWrites::default(), true);
        assert_eq!(verdicts(&resolution), [(1, Verdict::Lost(LostReason::Late))]);
        assert_eq!((resolution.counts.lost, resolution.counts.unknown), (1, 0));
        assert_eq!((current, resolution.vouched), (Document::default(), vec![]));
        // Its client has tried again meanwhile.
        let mut current = Document::default();
        add(&mut current, 1, "a", &TWO);
        let resolution = resolved(&entry, &mut current, &KnownWrites::default(), true);
        assert_eq!(verdicts(&resolution), [(1, Verdict::Kept)]);
        // And was refused.
        let refused = current.recent.last_mut().expect("its retry");
        refused.outcome = RecordedOutcome::VersionMismatch;
        let resolution = resolved(&entry, &mut current, &KnownWrites::default(), true);
        assert_eq!(verdicts(&resolution), [(1, Verdict::Lost(LostReason::Late))]);
    }

    #[test]
    fn a_loss_is_told_of_writes_that_were_told_to_have_succeeded() {
        let mut lost = Document::default();
        let writes = [add(&mut lost, 1, "a", &ONE), add(&mut lost, 2, "b", &ONE)];
        let entry = entry(&lost, END + 1, &[(writes[0], true), (writes[1], false)]);
        let mut current = Document::default();
        add(&mut current, 3, "c", &TWO);
        let resolution = resolved(&entry, &mut current, &KnownWrites::default(), false);
        // There is room for one.
        assert_eq!(verdicts(&resolution), [(1, REPAIRED)]);
        assert_eq!((resolution.counts.repaired, resolution.counts.unknown), (1, 0));
        assert_eq!(resolution.vouched, [writes[0]]);
    }

    #[test]
    fn a_write_of_a_different_process_comes_back_with_the_document_that_stood_on_it() {
        let mut lost = Document::default();
        add(&mut lost, 1, "a", &ONE);
        let ours = add(&mut lost, 2, "b", &ONE);
        let entry = entry(&lost, END + 1, &[(ours, true)]);
        let resolution = resolved(&entry, &mut Document::default(), &KnownWrites::default(), false);
        let mut rows = verdicts(&resolution);
        rows.sort_by_key(|(n, _)| *n);
        assert_eq!(rows, [(1, REPAIRED), (2, REPAIRED)]);
        assert_eq!(resolution.counts.repaired, 1, "of its own writes");
    }

    #[test]
    fn an_id_that_was_evicted_is_kept_and_is_not_evicted_again() {
        let mut lost = Document::default();
        let write = add(&mut lost, 1, "a", &ONE);
        let entry = entry(&lost, END + 1, &[(write, true)]);
        let known = KnownWrites { evicted: HashSet::from([write.id]), ..KnownWrites::default() };
        let mut current = Document::default();
        let resolution = resolved(&entry, &mut current, &known, false);
        assert_eq!(verdicts(&resolution), [(1, Verdict::Kept)]);
        assert!(resolution.new_ids.is_empty() && current.recent.is_empty());
    }

    /// A document that was published, as a repair gets it: whose writes were acknowledged is not
    /// known.
    fn published(doc: &Document) -> RepairEntry {
        RepairEntry {
            id: tagfast_failover::RepairId::default(),
            key: [[0].as_slice(), &key().to_bytes()].concat().into(),
            document: codec::encode(doc).into(),
            version: doc.version,
            at: LogRange { epoch: ONE.id, inside: END + 1, flushed: END + 1 },
            writes: Vec::new(),
        }
    }

    const BY_EVENT: Verdict = Verdict::Repaired { is_superseded: false, by_event: true };

    #[test]
    fn x19_an_event_brings_back_what_no_process_reports() {
        let mut lost = Document::default();
        let writes = [add(&mut lost, 1, "a", &ONE), add(&mut lost, 2, "b", &ONE)];
        let (entry, mut current) = (published(&lost), Document::default());
        let mut resolution = resolved(&entry, &mut current, &KnownWrites::default(), false);
        resolution.mark_by_event();
        assert_eq!(verdicts(&resolution), [(1, BY_EVENT), (2, BY_EVENT)]);
        assert_eq!(current.live().count(), 2);
        // No process counts them, and no journal vouches for them.
        assert_eq!(resolution.counts, VerdictCounts::default());
        assert!(resolution.vouched.is_empty());
        // The process that acknowledged one of them reports after all: it vouches from now on, and
        // the write is counted once.
        let mut known = KnownWrites::default();
        known.recorded.extend(writes.iter().map(|write| (write.id, BY_EVENT)));
        let journaled = super::tests::entry(&lost, END + 1, &[(writes[1], true)]);
        let reported = resolved(&journaled, &mut current, &known, false);
        assert_eq!(reported.counts, VerdictCounts::default());
        assert_eq!((reported.vouched.len(), reported.rows.len()), (1, 0));
    }

    /// The cluster had no primary for longer than ids are remembered.
    #[test]
    fn an_event_brings_back_what_is_older_than_ids_are_remembered() {
        let mut lost = Document::default();
        add(&mut lost, 1, "a", &ONE);
        let mut current = lost.clone();
        add(&mut lost, 2, "b", &ONE);
        let now = NOW + tagfast_domain::limits::WRITE_ID_MEMORY_MS;
        let ctx = JoinContext { epoch: &TWO, now, limits: &LIMITS };
        let (entry, known) = (published(&lost), KnownWrites::default());
        let resolution = resolve(&entry, lost, &mut current, &known, false, end_of, &ctx);
        assert_eq!(verdicts(&resolution), [(2, REPAIRED)]);
        assert_eq!(current.live().count(), 2);
    }

    #[test]
    fn an_event_of_a_closed_epoch_joins_nothing() {
        let mut lost = Document::default();
        add(&mut lost, 1, "a", &ONE);
        let mut current = Document::default();
        let resolution = resolved(&published(&lost), &mut current, &KnownWrites::default(), true);
        assert!(resolution.joined.is_none() && resolution.rows.is_empty());
        assert_eq!(current, Document::default());
    }

    /// Whether the callers of these writes were told is not known, and one that was not told may
    /// try again with success: nothing is listed as lost.
    #[test]
    fn what_an_event_cannot_bring_back_is_not_listed_as_lost() {
        // No room for both.
        let mut lost = Document::default();
        add(&mut lost, 1, "a", &ONE);
        add(&mut lost, 2, "b", &ONE);
        let mut current = Document::default();
        add(&mut current, 3, "c", &TWO);
        let entry = published(&lost);
        let resolution = resolved(&entry, &mut current, &KnownWrites::default(), false);
        assert_eq!(verdicts(&resolution), [(1, REPAIRED)]);
        assert_eq!(current.live().count(), LIMITS.tags_per_content);
        // A conditional write of the current history did not see it.
        let mut conditional = Document::default();
        add(&mut conditional, 3, "c", &TWO);
        conditional.last_conditional = conditional.version;
        conditional.absent_since = conditional.version;
        let before = conditional.live().count();
        let resolution = resolved(&entry, &mut conditional, &KnownWrites::default(), false);
        assert_eq!(verdicts(&resolution), []);
        assert_eq!(conditional.live().count(), before);
    }
}
