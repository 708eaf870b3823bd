//! What must hold when a schedule has come to rest.

use std::collections::{BTreeSet, HashSet};

use tagfast_failover::WriteVerdict;

use super::api::Phase;
use super::cluster::{Cluster, Op, Request, TAGS};
use super::rules::Rules;
use super::step::{Api, Client, Db, Step};

/// How a write takes part in the order that explains the final state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// It must be in it.
    Promised,
    /// It may be in it: no caller was told its outcome, or it is listed as lost.
    Possible,
    /// It may be in it with some of what it adds: it is listed as lost.
    Listed,
}

/// Runs a schedule, brings the cluster to rest, and says what is wrong with it.
pub(super) fn check(
    rules: Rules,
    initial: u8,
    tags_max: usize,
    requests: &[Request],
    steps: &[Step],
) -> Result<(), String> {
    let mut cluster = Cluster::new(rules, initial, tags_max, requests);
    cluster.run(steps);
    cluster.come_to_rest()?;
    cluster.verify()
}

impl Cluster {
    /// The processes that are left go on until nothing is left to do.
    fn come_to_rest(&mut self) -> Result<(), String> {
        if self.leader().is_none() {
            for db in Db::ALL {
                self.step(Step::Promote(db));
            }
            for db in Db::ALL {
                self.step(Step::RetakeKey(db));
            }
        }
        let leader = self.leader().ok_or("no node leads")?;
        if !self.node(leader).is_up {
            return Err("the leader is down".to_owned());
        }
        for node in self.apis.iter_mut().filter(|node| node.is_up) {
            node.is_registered = true;
        }
        for _ in 0..3 {
            for api in Api::ALL {
                self.step(Step::Observe(api));
                self.step(Step::Act(api));
            }
        }
        for api in Api::ALL {
            let mut left = 40;
            while self.api(api).is_up
                && self.api(api).acknowledger.journal().waiting_for_repair() > 0
            {
                self.step(Step::Repair(api, 0));
                left -= 1;
                if left == 0 {
                    return Err(format!("{} cannot end its repair", api.name()));
                }
            }
        }
        self.report();
        for api in Api::ALL {
            self.step(Step::Close(api));
        }
        Ok(())
    }

    fn tags(&self, leader: Db) -> u8 {
        let database = self.node(leader).database();
        let has = |name: &str| database.document.live().any(|t| t.name.as_str() == name);
        TAGS.iter().enumerate().filter(|(_, name)| has(name)).map(|(n, _)| 1 << n).sum()
    }

    fn verify(&self) -> Result<(), String> {
        if let Some(violation) = self.violations.first() {
            return Err(violation.clone());
        }
        let leader = self.leader().ok_or("no node leads")?;
        let database = self.node(leader).database();
        if database.document.live().count() > self.limits.tags_per_content {
            return Err("more tags than the limit".to_owned());
        }
        for client in 0..self.clients.len() {
            let is_it = |c: &Option<Client>| *c == Some(client);
            let effects = self.node(leader).log.iter().filter(|r| is_it(&r.client)).count();
            if effects > 1 {
                return Err(format!("write {client} took effect {effects} times"));
            }
        }
        let parts = self.parts(leader)?;
        self.one_condition_each(&parts)?;
        let tags = self.tags(leader);
        let possible = Orders::new(self, &parts).results();
        if possible.contains(&tags) {
            return Ok(());
        }
        Err(format!("tags {tags:03b}, explained would be {possible:?}; {parts:?}"))
    }

    fn parts(&self, leader: Db) -> Result<Vec<Option<Part>>, String> {
        let database = self.node(leader).database();
        let mut parts = Vec::with_capacity(self.clients.len());
        for (n, client) in self.clients.iter().enumerate() {
            let Some(receipt) = &client.receipt else {
                let is_possible = match client.phase {
                    Phase::Idle => false,
                    // An earlier attempt may have taken effect.
                    Phase::Refused => client.attempts > 1,
                    Phase::Sent | Phase::Committed(_) | Phase::Unknown | Phase::Acknowledged => {
                        true
                    }
                };
                parts.push(is_possible.then_some(Part::Possible));
                continue;
            };
            let id = crate::support::write_id(n as u64);
            let node = self.api(receipt.api);
            let is_listed = database.verdicts.contains_key(&id) || node.listed.contains(&n);
            let part = match self.verdict(n, receipt, leader) {
                WriteVerdict::Kept | WriteVerdict::Repaired => Part::Promised,
                WriteVerdict::Lost if node.is_up && !is_listed => {
                    return Err(format!("write {n} is lost, and its process has not listed it"));
                }
                WriteVerdict::Lost => Part::Listed,
                other @ (WriteVerdict::Pending | WriteVerdict::Expired) => {
                    return Err(format!("write {n} has no final verdict: {other:?}"));
                }
            };
            parts.push(Some(part));
        }
        Ok(parts)
    }

    /// Of the conditional writes on one version at most one was promised.
    fn one_condition_each(&self, parts: &[Option<Part>]) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (n, client) in self.clients.iter().enumerate() {
            let is_change = client.changed;
            let Some(version) = client.if_match.filter(|_| is_change) else { continue };
            if parts[n] == Some(Part::Promised) && !seen.insert(version) {
                return Err(format!("two writes were told that they changed version {version}"));
            }
        }
        Ok(())
    }
}

/// The tag sets that some order of the writes explains.
struct Orders<'a> {
    cluster: &'a Cluster,
    parts: &'a [Option<Part>],
    seen: HashSet<(u32, u32, u8)>,
    results: BTreeSet<u8>,
}

impl<'a> Orders<'a> {
    fn new(cluster: &'a Cluster, parts: &'a [Option<Part>]) -> Self {
        Self { cluster, parts, seen: HashSet::new(), results: BTreeSet::new() }
    }

    fn results(mut self) -> BTreeSet<u8> {
        self.go(0, 0, self.cluster.initial);
        self.results
    }

    /// `done` are in the order; `skipped` can no longer be, because one that came after them is.
    fn go(&mut self, done: u32, skipped: u32, tags: u8) {
        if !self.seen.insert((done, skipped, tags)) {
            return;
        }
        let promised = |n: usize| self.parts[n] == Some(Part::Promised);
        if (0..self.parts.len()).all(|n| !promised(n) || done & (1 << n) != 0) {
            self.results.insert(tags);
        }
        for n in 0..self.parts.len() {
            let Some(part) = self.parts[n].filter(|_| (done | skipped) & (1 << n) == 0) else {
                continue;
            };
            let client = &self.cluster.clients[n];
            let is_placed = part == Part::Promised || !client.is_of_replaced_primary;
            let before = client.after.iter().filter(|m| is_placed && done & (1 << **m) == 0);
            let missing: u32 = before.clone().map(|m| 1 << *m).sum();
            if before.copied().any(|m| self.parts[m] == Some(Part::Promised)) {
                continue;
            }
            for tags in outcomes(self.cluster.clients[n].request.op, tags, part) {
                self.go(done | (1 << n), skipped | missing, tags);
            }
        }
    }
}

/// The tags after a write. Of one that is listed as lost some of the added tags may be missing.
fn outcomes(op: Op, tags: u8, part: Part) -> BTreeSet<u8> {
    let (added, removed) = match op {
        Op::Add(n) => (1 << n, 0),
        Op::Remove(n) => (0, 1 << n),
        Op::Replace(set) => (set, !set),
    };
    let some = (0..=added).filter(|subset| subset & !added == 0 && part == Part::Listed);
    some.chain([added]).map(|added| (tags & !removed) | added).collect()
}
