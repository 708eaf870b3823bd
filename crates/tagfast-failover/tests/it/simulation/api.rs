//! The processes of the service: observing etcd, minting, writing and acknowledging.

use std::collections::BTreeSet;
use std::time::Duration;

use tagfast_domain::{
    ApplyContext, Document, Epoch, EpochId, EpochOrdinal, Outcome, RecentWrite, Tagging, Version,
    apply, codec,
};
use tagfast_failover::{
    AckDecision, Acknowledger, BootTime, Commit, Decision, EpochRecord, EpochRow, GuardOptions,
    JournaledCommit, JournaledContent, JournaledWrite, LeaderKey, LeaderObservation, LeaseAnswer,
    LogRange, MintDecision, MintFacts, OnLag, PrimaryFacts, WriteEligibility, check_eligibility,
    mint,
};

use super::cluster::{Cluster, Op, Request};
use super::database::RECORD_BYTES;
use super::rules::{Fence, TermName};
use super::step::{Api, Client, Db};
use crate::support::{bytes, epoch_id, write_id};

/// The guard has its own tests; here it never waits.
const UNGUARDED: GuardOptions =
    GuardOptions { max_loss: Duration::from_secs(86_400), on_lag: OnLag::Hold };
const JOURNAL_BYTES_MAX: usize = 1 << 20;
/// What is left of a lease that was just kept alive, in whole seconds.
const LEASE_LEFT_S: u64 = 19;
const KEY: &str = "acme/test.doc/1";

/// What a process read at one moment.
#[derive(Debug, Clone)]
struct Seen {
    sent: BootTime,
    revision: u64,
    leader: Option<LeaderKey>,
    epoch: Option<(EpochRecord, u64)>,
    primary: Option<PrimaryFacts>,
}

/// What it is for the proofs of leadership. `leader`: as the rules name its term.
fn observation(seen: &Seen, leader: Option<LeaderKey>) -> LeaderObservation {
    let lease = LeaseAnswer { id: 1, sent: seen.sent, remaining_s: LEASE_LEFT_S, raft_term: 1 };
    LeaderObservation {
        revision: seen.revision,
        raft_term: 1,
        key_lease: u64::from(leader.is_some()),
        lease: leader.is_some().then_some(lease),
        leader,
        paused: false,
    }
}

#[derive(Debug)]
pub(super) struct ApiNode {
    pub(super) is_up: bool,
    pub(super) is_registered: bool,
    pub(super) acknowledger: Acknowledger,
    pub(super) connection: Option<Db>,
    seen: Option<Seen>,
    known: Option<EpochOrdinal>,
    /// Epochs whose repair by this process has ended.
    pub(super) reported: BTreeSet<EpochOrdinal>,
    /// The writes that it listed as lost.
    pub(super) listed: BTreeSet<Client>,
}

impl ApiNode {
    pub(super) fn new() -> Self {
        Self {
            is_up: true,
            is_registered: true,
            acknowledger: Acknowledger::new(UNGUARDED, JOURNAL_BYTES_MAX),
            connection: None,
            seen: None,
            known: None,
            reported: BTreeSet::new(),
            listed: BTreeSet::new(),
        }
    }

    /// The simpler rule: whatever all nodes are past is dropped, of whatever epoch it is.
    pub(super) fn drop_reached(&mut self, position: u64) {
        let journal = self.acknowledger.journal_mut();
        let reached = |at: &LogRange| at.flushed <= position;
        let entries = journal.repair_entries(None, usize::MAX);
        for entry in entries.iter().filter(|entry| reached(&entry.at)) {
            journal.give_up(entry.id);
        }
        if let Some(epoch) = journal.epoch() {
            journal.cover(epoch, position, position);
        }
    }
}

/// How a transaction ended.
#[derive(Debug, Clone)]
pub(super) struct CommitResult {
    epoch: EpochId,
    at: LogRange,
    commit: Commit,
    document: Document,
    /// The version that the write made or found.
    version: Version,
    is_no_op: bool,
    is_repeated: bool,
    /// No node had taken the key since the node that committed it.
    is_of_newest_term: bool,
    /// A proof was seen when the result came (for the rule without a gate).
    was_proven: bool,
    journaled: Option<JournaledCommit>,
    has_returned: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Phase {
    Idle,
    Sent,
    Committed(Box<CommitResult>),
    Acknowledged,
    Unknown,
    Refused,
}

/// What an acknowledgement named.
#[derive(Debug, Clone, Copy)]
pub(super) struct Receipt {
    pub(super) at: LogRange,
    pub(super) api: Api,
}

#[derive(Debug)]
pub(super) struct ClientWrite {
    pub(super) request: Request,
    pub(super) if_match: Option<Version>,
    pub(super) api: Option<Api>,
    pub(super) phase: Phase,
    pub(super) attempts: u32,
    /// The writes that were acknowledged before it was sent.
    pub(super) after: BTreeSet<Client>,
    pub(super) receipt: Option<Receipt>,
    /// Its acknowledgement said that it changed the content.
    pub(super) changed: bool,
    /// A replaced primary committed it. If the cluster falls back to that primary's log, it is in
    /// the current history as of its epoch, whatever was acknowledged between.
    pub(super) is_of_replaced_primary: bool,
}

impl ClientWrite {
    pub(super) fn new(request: Request) -> Self {
        Self {
            request,
            if_match: None,
            api: None,
            phase: Phase::Idle,
            attempts: 0,
            after: BTreeSet::new(),
            receipt: None,
            changed: false,
            is_of_replaced_primary: false,
        }
    }
}

impl Cluster {
    pub(super) fn send(&mut self, client: Client, api: Api) {
        let Some(write) = self.clients.get(client) else { return };
        if !self.api(api).is_up || !matches!(write.phase, Phase::Idle | Phase::Unknown) {
            return;
        }
        let acknowledged = self.clients.iter().enumerate().filter(|(_, c)| c.receipt.is_some());
        let after = acknowledged.map(|(n, _)| n).collect();
        let seen = self.api(api).connection.map(|db| self.node(db).database().document.version);
        let write = &mut self.clients[client];
        if write.attempts == 0 {
            write.after = after;
            write.if_match = seen.filter(|_| write.request.is_conditional);
        }
        write.attempts += 1;
        (write.api, write.phase) = (Some(api), Phase::Sent);
    }

    pub(super) fn give_up(&mut self, client: Client) {
        let Some(write) = self.clients.get_mut(client) else { return };
        if matches!(write.phase, Phase::Sent | Phase::Committed(_)) {
            write.phase = Phase::Unknown;
        }
    }

    pub(super) fn commit(&mut self, client: Client) {
        let Some(write) = self.clients.get(client) else { return };
        let (Some(api), Phase::Sent) = (write.api, &write.phase) else { return };
        let Some((db, epoch)) = self.usable_connection(api) else { return };
        let request = self.write(client, write.request.op, write.if_match);
        let mut database = (*self.node(db).database()).clone();
        let before = database.document.clone();
        let current = Epoch { id: epoch.id, ordinal: epoch.ordinal };
        let context =
            ApplyContext { epoch: &current, now: self.now(), limits: &self.limits, call: None };
        let prior = database.applied.get(&request.id).cloned();
        let outcome = apply(&mut database.document, &request, prior.as_ref(), &context);
        let (mut is_no_op, mut is_repeated) = (false, false);
        let version = match outcome {
            Outcome::Written { version, effect, evicted } => {
                let is_stamp = effect.added.is_empty() && effect.removed.is_empty();
                if is_stamp && !self.rules.no_ops_stamp {
                    is_no_op = true;
                    database.document = before;
                    database.document.version
                } else {
                    if let Op::Replace(_) = write.request.op
                        && !self.rules.replace_decides_all
                    {
                        decide_listed_only(&mut database.document, &before);
                    }
                    let evicted = evicted.into_iter().map(|w: RecentWrite| (w.id, w));
                    database.applied.extend(evicted);
                    self.append(db, &epoch, Some(client), database.clone());
                    version
                }
            }
            Outcome::Unchanged { version } => {
                is_no_op = true;
                version
            }
            Outcome::Repeated { version, .. } => {
                is_repeated = true;
                version
            }
            Outcome::Refused(_) | Outcome::RefusedAgain(_) => {
                self.clients[client].phase = Phase::Refused;
                return;
            }
        };
        let flushed = self.node(db).end();
        let is_written = !is_no_op && !is_repeated;
        let inside = if is_written { flushed - RECORD_BYTES + 1 } else { flushed };
        let now = self.boot_time();
        let is_of_newest_term = self.newest_holder() == Some(db);
        self.clients[client].is_of_replaced_primary |= !is_of_newest_term;
        self.clients[client].phase = Phase::Committed(Box::new(CommitResult {
            epoch: epoch.id,
            at: LogRange { epoch: epoch.id, inside, flushed },
            commit: Commit { epoch: epoch.id, sent: now, returned: now },
            document: database.document,
            version,
            is_no_op,
            is_repeated,
            is_of_newest_term,
            was_proven: false,
            journaled: None,
            has_returned: false,
        }));
    }

    pub(super) fn return_result(&mut self, client: Client) {
        let now = self.boot_time();
        let rules = self.rules;
        let Some(write) = self.clients.get_mut(client) else { return };
        let (Some(api), Phase::Committed(result)) = (write.api, &mut write.phase) else { return };
        if result.has_returned {
            return;
        }
        let node = &mut self.apis[api as usize];
        result.has_returned = true;
        result.was_proven = node.acknowledger.decide(&result.commit, now) == Decision::Acknowledge;
        let is_journaled = (rules.no_ops_journaled || !result.is_no_op)
            && (rules.repeated_journaled || !result.is_repeated);
        let write = JournaledWrite { id: write_id(client as u64), version: result.version, at: 0 };
        let content = JournaledContent {
            key: bytes(KEY),
            document: codec::encode(&result.document).into(),
            version: result.document.version,
            writes: vec![write],
        };
        let contents = if is_journaled { vec![content] } else { Vec::new() };
        result.journaled = node.acknowledger.record(result.commit, result.at, contents);
    }

    pub(super) fn answer(&mut self, client: Client) {
        self.return_result(client);
        let now = self.boot_time();
        let Some(write) = self.clients.get(client) else { return };
        let (Some(api), Phase::Committed(result)) = (write.api, &write.phase) else { return };
        let result = result.clone();
        let no_other_primary = {
            let holder = self.leader();
            holder.is_none() || holder == self.api(api).connection
        };
        let (rules, node) = (self.rules, &mut self.apis[api as usize]);
        let is_in_epoch = node.acknowledger.epoch().is_some_and(|epoch| epoch.id == result.epoch);
        let is_acknowledged = match (rules.fence, rules.gate, result.journaled) {
            (Fence::Lease, true, Some(group)) => {
                let decision = node.acknowledger.decide_group(&group, now);
                if decision == AckDecision::Unknown {
                    self.clients[client].phase = Phase::Unknown;
                }
                matches!(decision, AckDecision::Acknowledge(_))
            }
            (Fence::Lease, true, None) => {
                self.clients[client].phase = Phase::Unknown;
                false
            }
            (Fence::Lease, false, _) => result.was_proven,
            (Fence::Absent, _, _) => is_in_epoch,
            (Fence::NoOtherPrimary, _, _) => is_in_epoch && no_other_primary,
        };
        if !is_acknowledged {
            return;
        }
        if let (Some(group), Fence::Absent | Fence::NoOtherPrimary) =
            (result.journaled, rules.fence)
        {
            node.acknowledger.journal_mut().acknowledge(group.group, now, 0);
        }
        if !result.is_of_newest_term {
            let text = format!("write {client} was acknowledged though it committed after the end");
            self.violations.push(text);
        }
        let write = &mut self.clients[client];
        write.phase = Phase::Acknowledged;
        write.changed = !result.is_no_op;
        write.receipt = Some(Receipt { at: result.at, api });
    }

    /// The node that took the key last.
    fn newest_holder(&self) -> Option<Db> {
        self.holders.last().copied()
    }

    pub(super) fn observe(&mut self, api: Api) {
        let leader = self.leader();
        let primary = leader.map(|db| self.node(db)).filter(|node| node.is_up);
        let seen = Seen {
            sent: self.boot_time(),
            revision: self.revision,
            leader: self.key.clone(),
            epoch: self.epoch.clone(),
            primary: primary.map(|node| node.primary_facts()),
        };
        let node = self.api_mut(api);
        if node.is_up {
            node.seen = Some(seen);
        }
    }

    pub(super) fn act(&mut self, api: Api) {
        let Some(seen) = self.api_mut(api).seen.take() else { return };
        if !self.api(api).is_up {
            return;
        }
        let Some(mut leader) = seen.leader.clone() else {
            let vacancy = observation(&seen, None);
            self.api_mut(api).acknowledger.record_observation(&vacancy);
            return;
        };
        let member = Db::ALL.into_iter().find(|db| db.name() == leader.member).expect("a node");
        let epoch = match self.epoch_by_timeline(member) {
            // The simpler rule: the newest row is of this timeline, so its epoch goes on.
            Some(epoch) if self.rules.term == TermName::Timeline => {
                leader.create_revision = epoch.term;
                Some(epoch)
            }
            _ => self.mint_epoch(api, &seen, &leader),
        };
        let Some(epoch) = epoch else { return };
        let server = self.node(member);
        if !server.writes() {
            return;
        }
        match check_eligibility(&server.connection_facts(), &epoch) {
            WriteEligibility::Eligible => {}
            WriteEligibility::InsertRow => {
                let mut database = (*server.database()).clone();
                let EpochRecord { id, ordinal, timeline, .. } = epoch;
                database.newest_row = Some(EpochRow { id, ordinal, timeline });
                self.append_row(member, &epoch, database);
            }
            WriteEligibility::Ineligible(_) => return,
        }
        let now = self.boot_time();
        let held = observation(&seen, Some(leader));
        let others: Vec<String> =
            Db::ALL.into_iter().filter(|db| *db != member).map(|db| db.name().to_owned()).collect();
        let node = self.api_mut(api);
        node.known = node.known.max(Some(epoch.ordinal));
        if node.acknowledger.adopt_epoch(&epoch, now) {
            node.acknowledger.set_members(&others, now);
        }
        if node.acknowledger.epoch().is_some_and(|known| known.id == epoch.id) {
            node.acknowledger.record_observation(&held);
            node.connection = Some(member);
        }
    }

    /// The epoch of a server's newest row, if it is of the server's timeline.
    fn epoch_by_timeline(&self, db: Db) -> Option<EpochRecord> {
        let server = self.node(db);
        let row = server.database().newest_row.filter(|row| row.timeline == server.timeline)?;
        self.minted.iter().find(|epoch| epoch.id == row.id).cloned()
    }

    /// The epoch of the term that was seen.
    fn mint_epoch(&mut self, api: Api, seen: &Seen, leader: &LeaderKey) -> Option<EpochRecord> {
        let facts = MintFacts {
            leader: Some(leader),
            current: seen.epoch.as_ref().map(|(epoch, revision)| (epoch, *revision)),
            primary: seen.primary.clone(),
            known: self.api(api).known,
            above: None,
            now: self.minting_clock(),
            new_id: epoch_id(1000 + self.minted.len() as u64),
            node: api.name(),
        };
        match mint(&facts) {
            MintDecision::Keep => seen.epoch.as_ref().map(|(epoch, _)| epoch.clone()),
            MintDecision::Mint(mut record, condition) => {
                if !self.rules.ordinal_from_etcd {
                    let row = seen.primary.as_ref().and_then(|primary| primary.newest_row);
                    record.ordinal = EpochOrdinal(row.map_or(0, |row| row.ordinal.0 + 1));
                }
                let holds = self.key.as_ref().is_some_and(|key| {
                    key.create_revision == condition.leader_create_revision
                        && key.member == condition.leader_member
                }) && self.epoch.as_ref().map_or(0, |(_, revision)| *revision)
                    == condition.epoch_mod_revision;
                if self.rules.conditional_mint && !holds {
                    return None;
                }
                if !holds {
                    self.violations.push("an epoch was minted for a term that is over".to_owned());
                }
                if self.minted.iter().any(|epoch| epoch.ordinal == record.ordinal) {
                    self.violations.push(format!("ordinal {} twice", record.ordinal.0));
                }
                self.revision += 1;
                self.epoch = Some((record.clone(), self.revision));
                self.minted.push(record.clone());
                Some(record)
            }
            MintDecision::Wait(_) | MintDecision::Refuse(_) => None,
        }
    }
}

/// The simpler rule: a replaced set decides what it changes and nothing else.
fn decide_listed_only(document: &mut Document, before: &Document) {
    let version = document.version;
    document.absent_since = before.absent_since;
    for old in &before.taggings {
        match document.taggings.iter_mut().find(|tagging| tagging.name == old.name) {
            Some(tagging) if old.present => tagging.decided_at = old.decided_at,
            Some(_) => {}
            None => {
                let decided_at = if old.present { version } else { old.decided_at };
                let tombstone = Tagging { present: false, decided_at, ..old.clone() };
                document.taggings.push(tombstone);
            }
        }
    }
    document.taggings.sort_by(|a, b| a.name.cmp(&b.name));
}
