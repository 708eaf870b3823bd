//! Repair, closing and verdicts on the nodes of the simulation, by the rules of the store.

use std::collections::BTreeSet;
use std::time::Duration;

use tagfast_domain::{
    Document, Epoch, JoinContext, JoinFate, RecentWrite, RecordedOutcome, Version, WriteId, codec,
    join,
};
use tagfast_failover::{
    Closing, JournaledContent, JournaledWrite, LogRange, RecordedVerdict, RepairEntry,
    VerdictFacts, WriteVerdict, closing, verdict,
};

use super::api::Receipt;
use super::cluster::Cluster;
use super::database::{Node, RECORD_BYTES};
use super::step::{Api, Client, Db};
use crate::support::write_id;

impl Cluster {
    pub(super) fn repair(&mut self, api: Api, n: usize) {
        let Some((db, epoch)) = self.usable_connection(api) else { return };
        let waiting = self.api(api).acknowledger.journal().repair_entries(None, usize::MAX);
        let Some(entry) = waiting.into_iter().nth(n) else { return };
        let node = self.node(db).clone();
        let mut database = (*node.database()).clone();
        let end_of = |at: &LogRange| self.end_of(at, &node);
        let is_past_end = |at: &LogRange| at.flushed > end_of(at);
        if !is_past_end(&entry.at) && entry.writes.iter().all(|(_, at)| !is_past_end(at)) {
            let at = LogRange { epoch: epoch.id, ..entry.at };
            let told = writes_of(&entry);
            self.put_back(api, at, &entry, entry.document.to_vec(), entry.version, told);
            return;
        }
        if database.closed.contains(&epoch.ordinal) {
            let late = entry.writes.iter().map(|(write, _)| client_of(write.id));
            let late: Vec<Client> = late.collect();
            let node = self.api_mut(api);
            node.listed.extend(late);
            node.acknowledger.journal_mut().give_up(entry.id);
            return;
        }
        let mut lost = codec::decode(&entry.document).expect("a document");
        lost.recent.retain(|w| !database.applied.contains_key(&w.id));
        let asked: Vec<(WriteId, Version)> = entry
            .writes
            .iter()
            .filter(|(_, at)| is_past_end(at))
            .map(|(write, _)| (write.id, write.version))
            .collect();
        let before = database.document.clone();
        let current = Epoch { id: epoch.id, ordinal: epoch.ordinal };
        let context = JoinContext { epoch: &current, now: self.now(), limits: &self.limits };
        let joined = join(&mut database.document, &lost, &asked, &context);
        if joined.changed && !self.rules.join_keeps_versions {
            restamp(&mut database.document, &before);
        }
        let evicted = joined.evicted.into_iter().map(|w: RecentWrite| (w.id, w));
        database.applied.extend(evicted);
        let rows = database.verdicts.len();
        for (id, fate) in joined.fates {
            let is_present = fate == JoinFate::Kept
                && (before.recent_write(id).is_some() || database.applied.contains_key(&id));
            if !is_present {
                database.verdicts.entry(id).or_insert(recorded(fate));
            }
        }
        let rows_changed = database.verdicts.len() != rows;
        let (document, version) = (codec::encode(&database.document), database.document.version);
        if joined.changed {
            self.append(db, &epoch, None, database);
        } else if rows_changed {
            self.append_row(db, &epoch, database);
        }
        // What is listed as lost needs no repair again.
        let is_lost = |write: &JournaledWrite| {
            self.node(db).database().verdicts.get(&write.id) == Some(&RecordedVerdict::Lost)
        };
        let (lost, told): (Vec<_>, Vec<_>) = writes_of(&entry).into_iter().partition(is_lost);
        self.api_mut(api).listed.extend(lost.iter().map(|write| client_of(write.id)));
        let flushed = self.node(db).end();
        let at = LogRange { epoch: epoch.id, inside: flushed - RECORD_BYTES + 1, flushed };
        self.put_back(api, at, &entry, document, version, told);
    }

    fn put_back(
        &mut self,
        api: Api,
        at: LogRange,
        entry: &RepairEntry,
        document: Vec<u8>,
        version: Version,
        writes: Vec<JournaledWrite>,
    ) {
        let (now, stays) = (self.boot_time(), self.rules.repaired_stays);
        let journal = self.api_mut(api).acknowledger.journal_mut();
        if !stays || writes.is_empty() {
            journal.give_up(entry.id);
            return;
        }
        let key = entry.key.clone();
        let content = JournaledContent { key, document: document.into(), version, writes };
        journal.put_back(at, vec![(entry.id, content)], now);
    }

    /// Up to where the epoch of a position is part of a node's log.
    fn end_of(&self, at: &LogRange, node: &Node) -> u64 {
        self.logs.end_in(at.epoch, node).unwrap_or(0)
    }

    pub(super) fn report(&mut self) {
        for node in &mut self.apis {
            let Some(epoch) = node.acknowledger.epoch().filter(|_| node.is_up) else { continue };
            if node.acknowledger.journal().waiting_for_repair() == 0 {
                node.reported.insert(epoch.ordinal);
            }
        }
    }

    pub(super) fn close(&mut self, api: Api) {
        self.report();
        let Some((db, epoch)) = self.usable_connection(api) else { return };
        let names = |has: &dyn Fn(Api) -> bool| -> BTreeSet<String> {
            let all = Api::ALL.into_iter().filter(|api| has(*api));
            all.map(|api| api.name().to_owned()).collect()
        };
        let registered = names(&|api| self.api(api).is_up && self.api(api).is_registered);
        let reported = names(&|api| self.api(api).reported.contains(&epoch.ordinal));
        let is_closing = closing(&registered, &reported, Duration::ZERO);
        if !matches!(is_closing, Closing::Close(_)) {
            return;
        }
        let mut database = (*self.node(db).database()).clone();
        if database.closed.insert(epoch.ordinal) {
            self.append_row(db, &epoch, database);
        }
    }

    /// What a receipt is told about its write.
    pub(super) fn verdict(&self, client: Client, receipt: &Receipt, leader: Db) -> WriteVerdict {
        let node = self.node(leader);
        let database = node.database();
        let id = write_id(client as u64);
        let current = self.epoch.as_ref().map(|(epoch, _)| epoch.id);
        let end = if current == Some(receipt.at.epoch) {
            Some(u64::MAX)
        } else {
            self.logs.end_in(receipt.at.epoch, node)
        };
        let ordinal_of = |id| self.minted.iter().find(|e| e.id == id).map(|e| e.ordinal);
        let ordinal = ordinal_of(receipt.at.epoch);
        verdict(&VerdictFacts {
            recorded: database.verdicts.get(&id).copied(),
            is_known: knows(&database.document, id) || database.applied.contains_key(&id),
            epoch_end: end,
            inside: receipt.at.inside,
            flushed: receipt.at.flushed,
            is_closed: database.closed.iter().any(|closed| Some(*closed) > ordinal),
        })
    }
}

fn knows(document: &Document, id: WriteId) -> bool {
    document.recent_write(id).is_some_and(|w| match w.outcome {
        RecordedOutcome::Written | RecordedOutcome::Unchanged => true,
        RecordedOutcome::VersionMismatch | RecordedOutcome::TooManyTags { .. } => false,
    })
}

fn writes_of(entry: &RepairEntry) -> Vec<JournaledWrite> {
    entry.writes.iter().map(|(write, _)| *write).collect()
}

pub(super) fn client_of(id: WriteId) -> Client {
    u128::from_be_bytes(id.0) as Client
}

fn recorded(fate: JoinFate) -> RecordedVerdict {
    match fate {
        JoinFate::Kept => RecordedVerdict::Kept,
        JoinFate::Repaired | JoinFate::Superseded => RecordedVerdict::Repaired,
        JoinFate::Limit | JoinFate::Conflict => RecordedVerdict::Lost,
    }
}

/// The simpler rule: what a repair brings is decided by the repair.
fn restamp(document: &mut Document, before: &Document) {
    let version = document.version;
    for tagging in &mut document.taggings {
        let known = before.taggings.iter().find(|old| old.name == tagging.name);
        let decided_at = known.map_or(before.absent_since, |old| old.decided_at);
        if decided_at != tagging.decided_at {
            tagging.decided_at = version;
        }
    }
    if document.absent_since != before.absent_since {
        document.absent_since = version;
    }
}
