//! The journal: what one process has acknowledged on one cluster and what a failover could still
//! lose.
//!
//! An entry is the newest acknowledged document of a content with the ids of the writes that the
//! document stands for. It holds the document, not the operations: the document also carries what a
//! write stood on, for example the remove of a different process that has crashed since. Writes are
//! kept in *groups*, one for each group commit, because the log position of a group is what
//! replicas confirm. An entry is dropped when every replica has flushed its position, never by age.
//!
//! A document of which no caller was told is kept until it is acknowledged, and forgotten when its
//! epoch ends: a replaced primary may have committed it after the next epoch had acknowledged a
//! write that it should have seen.
//!
//! When an epoch begins, the entries of the epochs before are set apart: the repair joins them into
//! the documents of the new primary, and puts them back with the position of the repair, because a
//! second failover can lose the repair. New writes do not wait for it.
//!
//! How it fails: beyond its size the journal forgets its oldest group, and names the log range in
//! which a repair may lack writes ([`Journal::incomplete`]). That is a loss which no report could
//! list one by one. What it forgets stays exposed. Entries that wait for a repair are never
//! forgotten: that is what they are kept for. Of what it could not read back at the start of the
//! process the range is unknown, see [`IncompleteRange::is_unknown`].
//!
//! A copy on disk gets what was acknowledged ([`Journal::take_unsaved`]); a process that is started
//! again begins with it ([`Journal::restore`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tagfast_domain::{EpochId, Version};

use crate::exposure::Exposure;
use crate::journaled::{
    AcknowledgedGroup, IncompleteRange, JournaledContent, JournaledWrite, LogRange, note_incomplete,
};
use crate::leadership::BootTime;
use crate::unsaved::{Unsaved, UnsavedBatch};

/// What a group takes beside its contents, in bytes.
const GROUP_OVERHEAD_BYTES: usize = 160;
/// What an entry takes beside its document and key, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 160;
/// What a write takes, in bytes.
const WRITE_OVERHEAD_BYTES: usize = 96;

/// Names a group in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupId {
    epoch: EpochId,
    number: u64,
    flushed: u64,
}

impl GroupId {
    /// Its place in the order in which groups were recorded.
    pub fn number(self) -> u64 {
        self.number
    }
}

/// Names an entry that waits for a repair; the default is the name of none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepairId(u64);

/// An entry of an epoch that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairEntry {
    /// Its name, for [`Journal::put_back`].
    pub id: RepairId,
    /// The storage key of the content.
    pub key: Arc<[u8]>,
    /// The encoded document.
    pub document: Arc<[u8]>,
    /// The document's version.
    pub version: Version,
    /// Where the document was committed.
    pub at: LogRange,
    /// The acknowledged writes that it stands for, each with its own position.
    pub writes: Vec<(JournaledWrite, LogRange)>,
}

#[derive(Debug)]
struct Group {
    at: LogRange,
    is_acknowledged: bool,
    contents: Vec<GroupContent>,
}

#[derive(Debug)]
struct GroupContent {
    key: Arc<[u8]>,
    /// `None`: it was acknowledged, and an entry has the document.
    document: Option<(Arc<[u8]>, Version)>,
    writes: Vec<JournaledWrite>,
}

impl Group {
    fn writes(&self) -> usize {
        self.contents.iter().map(|content| content.writes.len()).sum()
    }

    fn bytes(&self) -> usize {
        let of_document = |content: &GroupContent| {
            let document = content.document.as_ref();
            document.map_or(0, |(document, _)| entry_bytes(&content.key, document))
        };
        GROUP_OVERHEAD_BYTES
            + self.writes() * WRITE_OVERHEAD_BYTES
            + self.contents.iter().map(of_document).sum::<usize>()
    }
}

#[derive(Debug)]
struct Entry {
    document: Arc<[u8]>,
    version: Version,
    /// Where the document was committed.
    at: LogRange,
    /// How many groups vouch for it.
    groups: usize,
}

impl Entry {
    fn bytes(&self, key: &[u8]) -> usize {
        entry_bytes(key, &self.document)
    }
}

fn entry_bytes(key: &[u8], document: &[u8]) -> usize {
    ENTRY_OVERHEAD_BYTES + key.len() + document.len()
}

impl RepairEntry {
    fn bytes(&self) -> usize {
        entry_bytes(&self.key, &self.document) + self.writes.len() * WRITE_OVERHEAD_BYTES
    }
}

/// The journal of one process for one cluster.
#[derive(Debug)]
pub struct Journal {
    bytes_max: usize,
    bytes: usize,
    /// Of groups and of repairs.
    last_number: u64,
    /// The epoch of the groups; `None`: none was adopted yet.
    epoch: Option<EpochId>,
    /// By their numbers, which is the order in which they were recorded.
    groups: BTreeMap<u64, Group>,
    /// The groups in the order of their positions.
    by_position: BTreeSet<(u64, u64)>,
    entries: HashMap<Arc<[u8]>, Entry>,
    exposure: Exposure,
    /// Entries of epochs that have ended and that were not repaired yet.
    older: BTreeMap<RepairId, RepairEntry>,
    incomplete: Vec<IncompleteRange>,
    /// The position of the newest group that all replicas have.
    covered: u64,
    /// `None`: there is no copy on disk.
    unsaved: Option<Unsaved>,
    /// Not everything could be read back, and no epoch has been adopted since.
    has_unread: bool,
    /// The epochs of what was read back.
    restored: BTreeSet<EpochId>,
    /// Epochs that were read back and are none of this cluster, since the last batch.
    refused: Vec<EpochId>,
}

impl Journal {
    /// An empty journal that holds at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            last_number: 0,
            epoch: None,
            groups: BTreeMap::new(),
            by_position: BTreeSet::new(),
            entries: HashMap::new(),
            exposure: Exposure::default(),
            older: BTreeMap::new(),
            incomplete: Vec::new(),
            covered: 0,
            unsaved: None,
            has_unread: false,
            restored: BTreeSet::new(),
            refused: Vec::new(),
        }
    }

    /// Begins with what an earlier process had acknowledged, each group with the time of its
    /// acknowledgement, in the order of the files; from now on there is a copy on disk, for which
    /// at most `unsaved_bytes_max` bytes are kept. `has_unread`: files could not be read.
    pub fn restore(
        &mut self,
        groups: Vec<(AcknowledgedGroup, BootTime)>,
        forgotten: &[IncompleteRange],
        has_unread: bool,
        unsaved_bytes_max: usize,
    ) {
        for (AcknowledgedGroup { at, contents }, acknowledged) in groups {
            self.restored.insert(at.epoch);
            // Whether it has ended is known when an epoch is adopted.
            self.begin_epoch(at.epoch);
            self.exposure.add(at.flushed, acknowledged);
            let number = self.insert_group(at, contents);
            self.acknowledge_group(number);
            self.make_room(number);
        }
        forgotten.iter().for_each(|range| note_incomplete(&mut self.incomplete, *range));
        self.has_unread = has_unread;
        self.unsaved = Some(Unsaved::new(unsaved_bytes_max));
    }

    /// Takes what the copy on disk lacks; `None`: there is no copy.
    pub fn take_unsaved(&mut self) -> Option<UnsavedBatch> {
        let (groups, forgotten) = self.unsaved.as_mut()?.take();
        let is_needed = |at: &LogRange| Some(at.epoch) != self.epoch || at.flushed > self.covered;
        Some(UnsavedBatch {
            groups: groups.into_iter().filter(|group| is_needed(&group.at)).collect(),
            forgotten,
            covered: self.epoch.map(|epoch| (epoch, self.covered)),
            has_older: !self.older.is_empty(),
            refused: std::mem::take(&mut self.refused),
        })
    }

    /// Forgets entries that were read back and wait for a repair, of epochs that this cluster never
    /// had: they are of a different cluster. Returns those epochs.
    pub fn refuse_foreign(&mut self, is_known: impl Fn(EpochId) -> bool) -> Vec<EpochId> {
        let is_foreign = |entry: &RepairEntry| {
            self.restored.contains(&entry.at.epoch) && !is_known(entry.at.epoch)
        };
        let foreign: Vec<RepairEntry> =
            self.older.extract_if(.., |_, entry| is_foreign(entry)).map(|(_, e)| e).collect();
        let mut epochs = BTreeSet::new();
        for entry in foreign {
            self.bytes -= entry.bytes();
            epochs.insert(entry.at.epoch);
            let range = IncompleteRange::of(entry.at, entry.writes.len());
            note_incomplete(&mut self.incomplete, range);
        }
        self.refused.extend(&epochs);
        epochs.into_iter().collect()
    }

    /// Takes back what could not be saved.
    pub fn put_back_unsaved(&mut self, batch: UnsavedBatch) {
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.put_back(batch.groups, &batch.forgotten);
        }
    }

    /// The epoch whose commits it records; `None`: none was adopted yet.
    pub fn epoch(&self) -> Option<EpochId> {
        self.epoch
    }

    /// What it holds, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The most that it may hold, in bytes.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// How many contents it holds, those that wait for a repair included.
    pub fn contents(&self) -> usize {
        self.entries.len() + self.older.len()
    }

    /// How many entries wait for a repair.
    pub fn waiting_for_repair(&self) -> usize {
        self.older.len()
    }

    /// The log ranges for which it has forgotten writes that a failover could still lose.
    pub fn incomplete(&self) -> &[IncompleteRange] {
        &self.incomplete
    }

    /// The ranges of earlier epochs are in a report of the journal's epoch: forgets what lies past
    /// the end of its epoch, which no failover can lose again. What lies before it is in the log
    /// of this epoch at the same positions, and stays until every replica has it.
    pub fn settle_incomplete(&mut self, end_of: impl Fn(EpochId) -> u64) {
        let Some(current) = self.epoch else { return };
        for mut range in std::mem::take(&mut self.incomplete) {
            if range.epoch != current {
                range.to = range.to.min(end_of(range.epoch));
                range.epoch = current;
            }
            if range.from < range.to {
                note_incomplete(&mut self.incomplete, range);
            }
        }
    }

    /// Records a group commit before its callers are told of it. `None`: it is not of the
    /// journal's epoch, and they must not be told.
    pub fn record(&mut self, at: LogRange, contents: Vec<JournaledContent>) -> Option<GroupId> {
        if self.epoch != Some(at.epoch) {
            return None;
        }
        // Everything that was acknowledged before this process began lies before its first group.
        let unknown = self.incomplete.iter_mut().find(|r| r.epoch == at.epoch && r.is_unknown());
        if let Some(range) = unknown {
            range.to = at.flushed;
        }
        let number = self.insert_group(at, contents);
        self.make_room(number);
        Some(GroupId { epoch: at.epoch, number, flushed: at.flushed })
    }

    fn insert_group(&mut self, at: LogRange, contents: Vec<JournaledContent>) -> u64 {
        self.last_number += 1;
        let number = self.last_number;
        let contents = contents.into_iter().map(|content| {
            let JournaledContent { key, document, version, writes } = content;
            GroupContent { key, document: Some((document, version)), writes }
        });
        let group = Group { at, is_acknowledged: false, contents: contents.collect() };
        self.bytes += group.bytes();
        self.groups.insert(number, group);
        self.by_position.insert((at.flushed, number));
        number
    }

    /// Makes the documents of a group the ones that a repair joins.
    fn acknowledge_group(&mut self, number: u64) {
        // Otherwise all replicas have it, or the journal had to forget it.
        let Some(mut group) = self.groups.remove(&number) else { return };
        self.bytes -= group.bytes();
        group.is_acknowledged = true;
        let mut saved = Vec::new();
        for GroupContent { key, document, writes } in &mut group.contents {
            if let Some((document, version)) = document.take() {
                if self.unsaved.is_some() {
                    saved.push(JournaledContent {
                        key: Arc::clone(key),
                        document: Arc::clone(&document),
                        version,
                        writes: writes.clone(),
                    });
                }
                self.put_entry(key, document, version, group.at);
            }
        }
        if let Some(unsaved) = self.unsaved.as_mut().filter(|_| !saved.is_empty()) {
            unsaved.push(AcknowledgedGroup { at: group.at, contents: saved });
        }
        self.bytes += group.bytes();
        self.groups.insert(number, group);
    }

    /// Keeps the newest document of a content, until the last group that vouches for it is gone.
    fn put_entry(&mut self, key: &Arc<[u8]>, document: Arc<[u8]>, version: Version, at: LogRange) {
        match self.entries.get_mut(key) {
            Some(known) => {
                known.groups += 1;
                // A newer document stands for these writes, too: a content's writes are serial.
                if known.version < version {
                    self.bytes = self.bytes + document.len() - known.document.len();
                    *known = Entry { document, version, at, groups: known.groups };
                }
            }
            None => {
                let entry = Entry { document, version, at, groups: 1 };
                self.bytes += entry.bytes(key);
                self.entries.insert(Arc::clone(key), entry);
            }
        }
    }

    /// Notes that the callers of a group are told of it. `covered`: the position up to which a
    /// replica has everything. False: its epoch has ended, and they must not be told.
    pub fn acknowledge(&mut self, id: GroupId, now: BootTime, covered: u64) -> bool {
        if self.epoch != Some(id.epoch) {
            return false;
        }
        self.acknowledge_group(id.number);
        if id.flushed > covered {
            self.exposure.add(id.flushed, now);
        }
        true
    }

    /// Drops what all replicas have, and notes what one has. Both are positions in the log of the
    /// journal's epoch.
    pub fn cover(&mut self, epoch: EpochId, by_one: u64, by_all: u64) {
        if self.epoch != Some(epoch) {
            return;
        }
        self.exposure.cover(by_one);
        while let Some(&(flushed, number)) = self.by_position.first()
            && flushed <= by_all
        {
            self.covered = self.covered.max(flushed);
            self.drop_group(number);
        }
        self.incomplete.retain(|range| range.epoch != epoch || range.to > by_all);
    }

    fn drop_group(&mut self, number: u64) -> Option<Group> {
        let group = self.groups.remove(&number)?;
        self.by_position.remove(&(group.at.flushed, number));
        self.bytes -= group.bytes();
        for GroupContent { key, .. } in group.contents.iter().filter(|c| c.document.is_none()) {
            let Some(entry) = self.entries.get_mut(key) else { continue };
            entry.groups -= 1;
            if entry.groups == 0 {
                self.bytes -= entry.bytes(key);
                self.entries.remove(key);
            }
        }
        Some(group)
    }

    /// Forgets the oldest groups beyond the size, never `newest`.
    fn make_room(&mut self, newest: u64) {
        while self.bytes > self.bytes_max {
            let Some((&number, _)) = self.groups.first_key_value().filter(|(n, _)| **n != newest)
            else {
                return;
            };
            let Some(group) = self.drop_group(number) else { return };
            let range = IncompleteRange::of(group.at, group.writes());
            note_incomplete(&mut self.incomplete, range);
        }
    }

    /// The acknowledgement of the oldest group that no replica has; `None`: a replica has all.
    pub fn oldest_exposed(&self) -> Option<BootTime> {
        self.exposure.oldest()
    }

    /// Whether nothing of it waits for replicas.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Begins an epoch: what was recorded before waits for a repair.
    pub fn begin_epoch(&mut self, epoch: EpochId) {
        if std::mem::take(&mut self.has_unread) {
            // It may have been of this epoch or of an earlier one.
            let unknown = [IncompleteRange::UNKNOWN_EPOCH, epoch].map(IncompleteRange::unknown);
            unknown.into_iter().for_each(|range| note_incomplete(&mut self.incomplete, range));
        }
        if self.epoch == Some(epoch) {
            return;
        }
        let mut writes: HashMap<Arc<[u8]>, Vec<(JournaledWrite, LogRange)>> = HashMap::new();
        for group in std::mem::take(&mut self.groups).into_values() {
            if !group.is_acknowledged {
                self.bytes -= group.bytes();
                continue;
            }
            self.bytes -= GROUP_OVERHEAD_BYTES;
            for GroupContent { key, writes: told, .. } in group.contents {
                let told = told.into_iter().map(|write| (write, group.at));
                writes.entry(key).or_default().extend(told);
            }
        }
        for (key, Entry { document, version, at, .. }) in std::mem::take(&mut self.entries) {
            self.last_number += 1;
            let id = RepairId(self.last_number);
            let writes = writes.remove(&key).unwrap_or_default();
            self.older.insert(id, RepairEntry { id, key, document, version, at, writes });
        }
        self.by_position.clear();
        self.exposure.clear();
        self.covered = 0;
        self.epoch = Some(epoch);
    }

    /// Up to `max` entries that wait for a repair and come after `after`, in order.
    pub fn repair_entries(&self, after: Option<RepairId>, max: usize) -> Vec<RepairEntry> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let entries = self.older.range((from, std::ops::Bound::Unbounded));
        entries.take(max).map(|(_, entry)| entry.clone()).collect()
    }

    /// Puts entries that were joined, or found to be kept, back behind their new position, with the
    /// document that is in the log there. False: that epoch has ended, too, and the entries still
    /// wait for a repair.
    pub fn put_back(
        &mut self,
        at: LogRange,
        entries: Vec<(RepairId, JournaledContent)>,
        now: BootTime,
    ) -> bool {
        if self.epoch != Some(at.epoch) {
            return false;
        }
        let mut contents = Vec::with_capacity(entries.len());
        for (id, content) in entries {
            if self.take_older(id) {
                contents.push(content);
            }
        }
        if contents.is_empty() {
            return true;
        }
        // What is acknowledged already counts as exposed until a replica has the repair, but not
        // from its old acknowledgement on: the guard bounds what this epoch can lose.
        self.exposure.add(at.flushed, now);
        let number = self.insert_group(at, contents);
        self.acknowledge_group(number);
        self.make_room(number);
        true
    }

    /// Forgets an entry that needs no repair any more: it is listed as lost, or it stands
    /// for no write.
    pub fn give_up(&mut self, id: RepairId) {
        self.take_older(id);
    }

    /// False: none has this name.
    fn take_older(&mut self, id: RepairId) -> bool {
        let Some(old) = self.older.remove(&id) else { return false };
        self.bytes -= old.bytes();
        true
    }
}
