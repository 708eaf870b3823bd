//! A model of logs that fork, against which every proof about a replica is checked: servers are
//! promoted with and without an epoch, receive, stop, follow a dead primary, restart and are
//! rewound, while the service learns of it late or not at all.

use tagfast_domain::EpochId;
use tagfast_failover::BootTime;

use crate::cluster::node::Node;
use crate::cluster::primary_positions::PrimaryPositions;
use crate::cluster::replica_states::{
    CurrentEpoch, LogFacts, ProbeAnswer, ReplicaFacts, ReplicaStates,
};

const SERVERS: usize = 4;

/// A record of a log; each is one byte long, so that a position is a number of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Record {
    /// A commit, numbered.
    Commit(u64),
    /// The row of an epoch, by its place in [`Model::epochs`].
    Epoch(usize),
}

#[derive(Debug, Clone, Default)]
struct Server {
    log: Vec<Record>,
    /// The timeline that it writes or would write to.
    timeline: u32,
    /// The largest timeline of which it has a history file.
    history_file: u32,
    /// From whom it receives.
    upstream: Option<usize>,
    primary: bool,
}

struct Epoch {
    leader: usize,
    timeline: u32,
    /// The log of its leader, for as long as that is a primary of this epoch.
    log: Vec<Record>,
    ended: bool,
}

struct Model {
    random: fastrand::Rng,
    now: u64,
    servers: Vec<Server>,
    epochs: Vec<Epoch>,
    /// Which of them the service knows.
    known: usize,
    /// Commits that were acknowledged: when, their number, and in which epoch.
    acknowledged: Vec<(u64, u64, usize)>,
    commits: u64,
    // What is tested.
    positions: PrimaryPositions,
    states: ReplicaStates,
    /// Proofs that were checked, and how many of them were of a server without a walreceiver.
    proofs: (usize, usize),
}

fn at(ms: u64) -> BootTime {
    BootTime(std::time::Duration::from_millis(ms))
}

fn id(epoch: usize) -> EpochId {
    EpochId((epoch as u128).to_be_bytes())
}

fn node(n: usize) -> Node {
    Node { name: format!("n{n}"), address: format!("h:{n}") }
}

impl Model {
    fn new(seed: u64) -> Self {
        let server = Server { timeline: 1, ..Server::default() };
        let mut model = Self {
            random: fastrand::Rng::with_seed(seed),
            now: 1_000,
            servers: vec![server; SERVERS],
            epochs: Vec::new(),
            known: 0,
            acknowledged: Vec::new(),
            commits: 0,
            positions: PrimaryPositions::default(),
            states: ReplicaStates::default(),
            proofs: (0, 0),
        };
        model.servers[0].primary = true;
        model.mint(0);
        model.learn();
        model
    }

    /// A leader term begins on a primary.
    fn mint(&mut self, leader: usize) {
        let (n, server) = (self.epochs.len(), &mut self.servers[leader]);
        server.log.push(Record::Epoch(n));
        let (timeline, log) = (server.timeline, server.log.clone());
        self.epochs.push(Epoch { leader, timeline, log, ended: false });
    }

    /// The service learns of the newest epoch.
    fn learn(&mut self) {
        if self.known != self.epochs.len() - 1 {
            self.positions.clear();
        }
        self.known = self.epochs.len() - 1;
    }

    fn current(&self) -> CurrentEpoch {
        Some((id(self.known), self.epochs[self.known].timeline))
    }

    /// The newest epoch in a server's table.
    fn epoch_row(&self, server: usize) -> Option<usize> {
        self.servers[server].log.iter().rev().find_map(|record| match record {
            Record::Epoch(n) => Some(*n),
            Record::Commit(_) => None,
        })
    }

    fn facts(&self, n: usize) -> LogFacts {
        let server = &self.servers[n];
        let receiving = server.upstream.map_or(0, |upstream| self.servers[upstream].timeline);
        let epoch = self.epoch_row(n).map(id);
        LogFacts { replayed: server.log.len() as u64, receiving, epoch }
    }

    /// One thing happens.
    fn step(&mut self) {
        self.now += self.random.u64(1..200);
        let n = self.random.usize(..SERVERS);
        let leader = self.epochs[self.epochs.len() - 1].leader;
        let other = self.random.usize(..SERVERS);
        match self.random.u8(..100) {
            // Every server that is no replica goes on writing; only the leader is believed.
            0..30 if self.servers[n].primary => {
                self.commits += 1;
                self.servers[n].log.push(Record::Commit(self.commits));
                if n == leader {
                    self.acknowledged.push((self.now, self.commits, self.epochs.len() - 1));
                }
            }
            0..45 => self.receive(n),
            45..60 => self.probe(),
            60..70 => self.sample(),
            70..75 if !self.servers[n].primary => self.servers[n].upstream = None,
            75..85 if !self.servers[n].primary => self.follow(n, other),
            85..87 if !self.servers[n].primary => self.promote(n, true),
            87..89 if !self.servers[n].primary => self.promote(n, false),
            // A primary that was replaced, or promoted by hand, comes back in recovery, as it is.
            89..92 if n != leader => {
                self.servers[n].primary = false;
                self.restart(n);
            }
            // Rewound or copied again, from whatever server.
            92..96 if n != leader && n != other => {
                let from = self.servers[other].clone();
                let kept = self.random.usize(..=from.log.len());
                let log = from.log[..kept].to_vec();
                self.servers[n] = Server { log, primary: false, upstream: None, ..from };
                self.restart(n);
            }
            96.. => self.learn(),
            _ => {}
        }
        for n in 0..self.epochs.len() {
            let leader = self.epochs[n].leader;
            let leads = self.servers[leader].primary && self.epoch_row(leader) == Some(n);
            let epoch = &mut self.epochs[n];
            epoch.ended |= !leads;
            if !epoch.ended {
                epoch.log.clone_from(&self.servers[leader].log);
            }
        }
    }

    /// The connections from and to it end; the next probe is missed, as a restart takes longer than
    /// a round.
    fn restart(&mut self, n: usize) {
        let to_it = self.servers.iter_mut().filter(|server| server.upstream == Some(n));
        to_it.for_each(|server| server.upstream = None);
        self.servers[n].upstream = None;
        let (node, current) = (node(n), self.current());
        self.states.record(&[(&node, ProbeAnswer::None)], false, current, at(self.now), |_| None);
    }

    /// A walreceiver starts. It streams only what continues its own log.
    fn follow(&mut self, n: usize, upstream: usize) {
        let (own, other) = (&self.servers[n].log, &self.servers[upstream].log);
        let continues = n != upstream && other.starts_with(own);
        let cycle = self.servers[upstream].upstream == Some(n);
        if continues && !cycle {
            let file = self.servers[upstream].history_file;
            let server = &mut self.servers[n];
            server.history_file = server.history_file.max(file);
            server.upstream = Some(upstream);
        }
    }

    fn receive(&mut self, n: usize) {
        let Some(upstream) = self.servers[n].upstream else { return };
        let from = self.servers[upstream].clone();
        let more = self.random.usize(1..6);
        let server = &mut self.servers[n];
        if !from.log.starts_with(&server.log) {
            server.upstream = None;
            return;
        }
        let end = from.log.len().min(server.log.len() + more);
        server.log = from.log[..end].to_vec();
        server.history_file = server.history_file.max(from.history_file);
        server.timeline = server.timeline.max(from.timeline);
    }

    /// A promotion; with an epoch it is a failover, without one an operator did it by hand.
    fn promote(&mut self, n: usize, with_epoch: bool) {
        let server = &mut self.servers[n];
        server.timeline = server.timeline.max(server.history_file).max(1) + 1;
        server.history_file = server.timeline;
        (server.primary, server.upstream) = (true, None);
        self.commits += 1;
        // The end of recovery, which is not what the other branch has there.
        server.log.push(Record::Commit(self.commits));
        if with_epoch {
            self.mint(n);
        }
    }

    fn probe(&mut self) {
        let nodes: Vec<Node> = (0..SERVERS).map(node).collect();
        let answers: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(n, node)| {
                let answer = if self.servers[n].primary {
                    ProbeAnswer::Promoted
                } else if self.random.u8(..8) == 0 {
                    ProbeAnswer::None
                } else {
                    let history_file = self.servers[n].history_file;
                    let log = self.facts(n);
                    ProbeAnswer::Replica(ReplicaFacts { log, history_file, replay_paused: false })
                };
                (node, answer)
            })
            .collect();
        let current = self.current();
        let prove = |position| self.positions.proven_through(position);
        self.states.record(&answers, false, current, at(self.now), prove);
    }

    /// The primary of the epoch that is known says its position; it counts while it is proven.
    fn sample(&mut self) {
        if self.known == self.epochs.len() - 1 {
            let leader = self.epochs[self.known].leader;
            self.positions.record(at(self.now), self.servers[leader].log.len() as u64);
        }
    }

    /// Whatever is claimed of a server must be true in the history that the service knows.
    fn check(&mut self, seed: u64) {
        let history = self.epochs[self.known].log.clone();
        let newest = self.epochs[self.epochs.len() - 1].log.clone();
        for n in 0..SERVERS {
            let log = self.facts(n);
            let proven = self.states.position(&node(n).address, &log, self.current());
            let Some(position) = proven.filter(|_| !self.servers[n].primary) else { continue };
            let own = &self.servers[n].log;
            let same = own.iter().zip(&history).take_while(|(a, b)| a == b).count() as u64;
            let at = format!("seed {seed} at {}: n{n} {log:?}", self.now);
            assert!(position <= same, "{at}: {position} is claimed, {same} are the same");
            self.proofs.0 += 1;
            self.proofs.1 += usize::from(log.receiving == 0);
            let Some(through) = self.positions.proven_through(position) else { continue };
            let missing = self.acknowledged.iter().find(|(when, commit, epoch)| {
                let record = Record::Commit(*commit);
                // What a failover lost may come back with a later one, which is not known yet.
                let later = *epoch > self.known && newest.contains(&record);
                u128::from(*when) < through.0.as_millis()
                    && (history.contains(&record) || later)
                    && !own.contains(&record)
            });
            assert_eq!(missing, None, "{at}: through {through:?}");
        }
    }
}

#[test]
fn nothing_false_is_proven_of_a_replica() {
    let mut proofs = (0, 0);
    for seed in 0..400 {
        let mut model = Model::new(seed);
        for _ in 0..400 {
            model.step();
            model.check(seed);
        }
        proofs = (proofs.0 + model.proofs.0, proofs.1 + model.proofs.1);
    }
    assert!(proofs.0 > 10_000 && proofs.1 > 1_000, "too little was proven: {proofs:?}");
}
