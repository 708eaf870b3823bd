//! The cluster and its steps.

use std::collections::BTreeMap;
use std::rc::Rc;

use tagfast_domain::{
    Document, Epoch, IfMatch, Limits, Operation, Tag, TagName, UnixMillis, Version, Write,
};
use tagfast_failover::{BootTime, EpochRecord, LeaderKey};

use super::api::{ApiNode, ClientWrite, Phase};
use super::database::{Database, EpochLogs, Node, Record};
use super::rules::{Dropping, Rules};
use super::step::{Api, Db, Step};
use crate::support::{at, write_id};

/// 2027-01-15 in Unix milliseconds.
const NOW: UnixMillis = 1_800_000_000_000;
/// Patroni's ttl, in milliseconds.
const TTL_MS: u64 = 20_000;
const STEP_MS: u64 = 5;

/// What a client wants. Tags are named by bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Add(u8),
    Remove(u8),
    Replace(u8),
}

pub(super) const TAGS: [&str; 3] = ["t0", "t1", "t2"];

impl Op {
    pub(super) fn operation(self) -> Operation {
        let set = |bits: u8| TAGS.iter().enumerate().filter(move |(n, _)| bits & (1 << n) != 0);
        let tags = |bits| set(bits).map(|(_, name)| Tag::parse(name).expect("a tag")).collect();
        let names =
            |bits| set(bits).map(|(_, name)| TagName::parse(name).expect("a tag")).collect();
        match self {
            Self::Add(n) => Operation::Patch { add: tags(1 << n), remove: Vec::new() },
            Self::Remove(n) => Operation::Patch { add: Vec::new(), remove: names(1 << n) },
            Self::Replace(bits) => Operation::Replace { tags: tags(bits) },
        }
    }
}

/// A client's write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) op: Op,
    /// On condition that the content is as the process sees it when the client sends it.
    pub(super) is_conditional: bool,
}

pub(super) struct Cluster {
    pub(super) rules: Rules,
    pub(super) limits: Limits,
    now_ms: u64,
    pub(super) nodes: [Node; 3],
    pub(super) revision: u64,
    pub(super) key: Option<LeaderKey>,
    /// The nodes that took the key, in order.
    pub(super) holders: Vec<Db>,
    pub(super) epoch: Option<(EpochRecord, u64)>,
    /// Every epoch that was minted.
    pub(super) minted: Vec<EpochRecord>,
    pub(super) logs: EpochLogs,
    pub(super) apis: [ApiNode; 2],
    pub(super) clients: Vec<ClientWrite>,
    last_serial: u64,
    /// The state that each version of the content was given to.
    versions: BTreeMap<Version, Document>,
    pub(super) initial: u8,
    pub(super) violations: Vec<String>,
}

impl Cluster {
    pub(super) fn new(rules: Rules, initial: u8, tags_max: usize, requests: &[Request]) -> Self {
        let node = Node {
            log: Vec::new(),
            is_up: true,
            is_primary: false,
            timeline: 1,
            follows: Some(Db::P),
        };
        let mut cluster = Self {
            rules,
            limits: Limits { tags_per_content: tags_max },
            now_ms: 1000,
            nodes: [node.clone(), node.clone(), node],
            revision: 0,
            key: None,
            holders: Vec::new(),
            epoch: None,
            minted: Vec::new(),
            logs: EpochLogs::default(),
            apis: [ApiNode::new(), ApiNode::new()],
            clients: requests.iter().map(|request| ClientWrite::new(*request)).collect(),
            last_serial: 0,
            versions: BTreeMap::new(),
            initial,
            violations: Vec::new(),
        };
        cluster.step(Step::Promote(Db::P));
        cluster.nodes[0].timeline = 1;
        for api in Api::ALL {
            cluster.step(Step::Observe(api));
            cluster.step(Step::Act(api));
        }
        cluster.write_initial();
        for node in [Db::R1, Db::R2] {
            while cluster.ship(node) {}
        }
        cluster
    }

    /// The initial tags, as every history has them.
    fn write_initial(&mut self) {
        let epoch = self.epoch.as_ref().expect("it was minted").0.clone();
        let write = self.write(usize::MAX, Op::Replace(self.initial), None);
        let context = tagfast_domain::ApplyContext {
            epoch: &Epoch { id: epoch.id, ordinal: epoch.ordinal },
            now: self.now(),
            limits: &self.limits,
            call: None,
        };
        let mut database = (*self.node(Db::P).database()).clone();
        tagfast_domain::apply(&mut database.document, &write, None, &context);
        database.document.recent.clear();
        self.append(Db::P, &epoch, None, database);
    }

    pub(super) fn write(&self, number: usize, op: Op, if_match: Option<Version>) -> Write {
        use tagfast_domain::{ContentKey, UserId};
        Write {
            id: write_id(number as u64),
            key: ContentKey::parse("acme", "test.doc", "1").expect("a content"),
            user: UserId::parse("ann").expect("a user"),
            operation: op.operation(),
            if_match: if_match.map(IfMatch::from),
        }
    }

    pub(super) fn node(&self, db: Db) -> &Node {
        &self.nodes[db as usize]
    }

    pub(super) fn node_mut(&mut self, db: Db) -> &mut Node {
        &mut self.nodes[db as usize]
    }

    pub(super) fn api(&self, api: Api) -> &ApiNode {
        &self.apis[api as usize]
    }

    pub(super) fn api_mut(&mut self, api: Api) -> &mut ApiNode {
        &mut self.apis[api as usize]
    }

    pub(super) fn boot_time(&self) -> BootTime {
        at(self.now_ms)
    }

    pub(super) fn now(&self) -> UnixMillis {
        NOW + self.now_ms as i64
    }

    /// The wall clock of the process that mints: it stands still, so that ordinals count.
    pub(super) fn minting_clock(&self) -> UnixMillis {
        NOW
    }

    pub(super) fn leader(&self) -> Option<Db> {
        let key = self.key.as_ref()?;
        Db::ALL.into_iter().find(|db| db.name() == key.member)
    }

    /// Commits a transaction on a node.
    pub(super) fn append(
        &mut self,
        db: Db,
        epoch: &EpochRecord,
        client: Option<usize>,
        after: Database,
    ) {
        let document = after.document.clone();
        let known = self.versions.entry(document.version).or_insert_with(|| document.clone());
        if document.version != Version::NONE && *known != document {
            self.violations.push(format!("version {} names two states", document.version));
        }
        self.last_serial += 1;
        let record = Record { serial: self.last_serial, client, after: Rc::new(after) };
        self.node_mut(db).log.push(record);
        let node = self.node(db).clone();
        self.logs.note(epoch.id, &node);
    }

    /// Appends what does not change the document.
    pub(super) fn append_row(&mut self, db: Db, epoch: &EpochRecord, after: Database) {
        self.last_serial += 1;
        let record = Record { serial: self.last_serial, client: None, after: Rc::new(after) };
        self.node_mut(db).log.push(record);
        let node = self.node(db).clone();
        self.logs.note(epoch.id, &node);
    }

    pub(super) fn run(&mut self, steps: &[Step]) {
        steps.iter().for_each(|step| self.step(*step));
    }

    pub(super) fn step(&mut self, step: Step) {
        self.now_ms += STEP_MS;
        match step {
            Step::Send(client, api) => self.send(client, api),
            Step::Commit(client) => self.commit(client),
            Step::Return(client) => self.return_result(client),
            Step::Answer(client) => self.answer(client),
            Step::GiveUp(client) => self.give_up(client),
            Step::Ship(db) => {
                self.ship(db);
            }
            Step::Follow(db) => self.follow(db),
            Step::Poll(api) => self.poll(api),
            Step::Crash(db) => self.crash(db),
            Step::LoseKey => self.lose_key(),
            Step::Promote(db) => self.promote(db),
            Step::RetakeKey(db) => self.retake_key(db),
            Step::Rejoin(db) => self.rejoin(db),
            Step::Observe(api) => self.observe(api),
            Step::Act(api) => self.act(api),
            Step::Repair(api, n) => self.repair(api, n),
            Step::Close(api) => self.close(api),
            Step::CrashApi(api) => self.crash_api(api),
            Step::LoseRegistration(api) => self.api_mut(api).is_registered = false,
        }
    }

    /// True: a record was shipped.
    fn ship(&mut self, db: Db) -> bool {
        let node = self.node(db);
        let Some(source) = node.follows.filter(|_| node.is_up && !node.is_primary) else {
            return false;
        };
        let source = self.node(source);
        let common = source.common(node.log.iter().map(|record| record.serial));
        let is_behind = source.is_up && common == node.log.len() && common < source.log.len();
        if is_behind {
            let (record, timeline) = (source.log[common].clone(), source.timeline);
            let node = self.node_mut(db);
            node.log.push(record);
            node.timeline = timeline;
        }
        is_behind
    }

    fn follow(&mut self, db: Db) {
        let Some(leader) = self.leader().filter(|leader| *leader != db) else { return };
        let node = self.node(db);
        if !node.is_up || node.is_primary || !self.node(leader).is_up {
            return;
        }
        let common = self.node(leader).common(node.log.iter().map(|record| record.serial));
        let node = self.node_mut(db);
        node.log.truncate(common);
        node.follows = Some(leader);
    }

    fn crash(&mut self, db: Db) {
        if Db::ALL.iter().filter(|other| self.node(**other).is_up).count() < 2 {
            return;
        }
        let node = self.node_mut(db);
        (node.is_up, node.is_primary) = (false, false);
        if self.leader() == Some(db) {
            self.drop_key();
        }
    }

    fn lose_key(&mut self) {
        if self.key.is_some() {
            // No node can take the key before the lease has ended.
            self.now_ms += TTL_MS;
            self.drop_key();
        }
    }

    fn drop_key(&mut self) {
        self.key = None;
        self.revision += 1;
    }

    fn take_key(&mut self, db: Db) {
        self.revision += 1;
        self.holders.push(db);
        let key = LeaderKey { create_revision: self.revision, member: db.name().to_owned() };
        self.key = Some(key);
    }

    fn promote(&mut self, db: Db) {
        let node = self.node(db);
        if self.key.is_some() || !node.is_up || node.is_primary {
            return;
        }
        let node = self.node_mut(db);
        node.is_primary = true;
        node.follows = None;
        node.timeline += 1;
        self.take_key(db);
    }

    fn retake_key(&mut self, db: Db) {
        if self.key.is_none() && self.node(db).writes() {
            self.take_key(db);
        }
    }

    fn rejoin(&mut self, db: Db) {
        let node = self.node(db);
        if self.leader() == Some(db) || (node.is_up && !node.is_primary) {
            return;
        }
        let node = self.node_mut(db);
        (node.is_up, node.is_primary, node.follows) = (true, false, None);
    }

    /// The positions of the replicas that stream from a node.
    fn streaming(&self, primary: Db) -> Vec<(String, u64)> {
        let source = self.node(primary);
        let positions = Db::ALL.into_iter().filter(|db| *db != primary).filter_map(|db| {
            let node = self.node(db);
            let streams = node.is_up && !node.is_primary && node.follows == Some(primary);
            let common = source.common(node.log.iter().map(|record| record.serial));
            let is_prefix = common == node.log.len();
            (streams && is_prefix).then(|| (db.name().to_owned(), node.end()))
        });
        positions.collect()
    }

    fn poll(&mut self, api: Api) {
        let now = self.boot_time();
        let Some((primary, epoch)) = self.usable_connection(api) else { return };
        let mut positions = self.streaming(primary);
        match self.rules.dropping {
            Dropping::CoveredByAll => {}
            Dropping::CoveredByOne => {
                let most = positions.iter().map(|(_, flushed)| *flushed).max().unwrap_or(0);
                let others = Db::ALL.into_iter().filter(|db| *db != primary);
                positions = others.map(|db| (db.name().to_owned(), most)).collect();
            }
            Dropping::PositionReached => {
                let least = Db::ALL.iter().map(|db| self.node(*db).end()).min().unwrap_or(0);
                self.api_mut(api).drop_reached(least);
            }
        }
        self.api_mut(api).acknowledger.record_replicas(epoch.id, &positions, now);
    }

    /// The node that a process is connected to, if it writes in the process's epoch.
    pub(super) fn usable_connection(&self, api: Api) -> Option<(Db, EpochRecord)> {
        let node = self.api(api);
        let db = node.connection.filter(|_| node.is_up)?;
        let epoch = node.acknowledger.epoch()?.clone();
        let server = self.node(db);
        let is_checked = !self.rules.transaction_checks_epoch
            || tagfast_failover::check_eligibility(&server.connection_facts(), &epoch)
                == tagfast_failover::WriteEligibility::Eligible;
        (server.writes() && is_checked).then_some((db, epoch))
    }

    fn crash_api(&mut self, api: Api) {
        if self.apis.iter().filter(|node| node.is_up).count() < 2 {
            return;
        }
        self.api_mut(api).is_up = false;
        for client in self.clients.iter_mut().filter(|client| client.api == Some(api)) {
            if matches!(client.phase, Phase::Sent | Phase::Committed(_)) {
                client.phase = Phase::Unknown;
            }
        }
    }
}
