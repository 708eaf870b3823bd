//! What is known of each replica: how much of the history it shows, and since when that is old.
//!
//! Nothing that a replica says of its own times is believed. Its position in the log is, where its
//! log is known to be the cluster's: it has the row of the current epoch, and it receives that
//! epoch's timeline, or a probe has seen that it has no history file of a later one. The
//! [`PrimaryPositions`](crate::cluster::primary_positions::PrimaryPositions) turn the position into
//! a time.
//!
//! How it fails: towards older, and towards "not proven". Such a replica is not read while the
//! primary answers, what it answers is marked, and the status names it.

use std::time::Duration;

use tagfast_domain::EpochId;
use tagfast_failover::BootTime;

use crate::cluster::node::Node;

/// What a server in recovery reports of its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogFacts {
    /// Everything up to this log position was replayed.
    pub(crate) replayed: u64,
    /// The timeline that it receives; 0 while it receives none.
    pub(crate) receiving: u32,
    /// The newest epoch in its table; `None`: the table is empty.
    pub(crate) epoch: Option<EpochId>,
}

/// The epoch that the service is in, and its timeline; `None`: it knows of none.
pub(crate) type CurrentEpoch = Option<(EpochId, u32)>;

/// What a probe of a server in recovery found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplicaFacts {
    pub(crate) log: LogFacts,
    /// The largest timeline of which it has a history file; 0: none.
    pub(crate) history_file: u32,
    pub(crate) replay_paused: bool,
}

/// Whether a replica's log is the cluster's, as of the last probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    /// It was not probed yet, did not answer, or is changing its timeline.
    Unknown,
    /// It is not.
    Left { timeline: u32 },
    /// It is, up to this position, in this epoch.
    Verified { epoch: EpochId, position: u64 },
}

impl Branch {
    /// Judges a probe.
    fn of(facts: &ReplicaFacts, current: CurrentEpoch) -> Self {
        let Some((epoch, timeline)) = current else { return Self::Unknown };
        let newest = facts.history_file.max(facts.log.receiving);
        if newest > timeline {
            return Self::Left { timeline: newest };
        }
        match facts.log.epoch {
            Some(id) if id == epoch => Self::Verified { epoch, position: facts.log.replayed },
            // It has not replayed the beginning of the epoch, or never will.
            Some(_) | None => Self::Unknown,
        }
    }

    /// Up to which position of the history a server shows everything; `None`: that is not known, or
    /// it shows what is not part of the history.
    fn position(self, log: &LogFacts, current: CurrentEpoch) -> Option<u64> {
        let (epoch, timeline) = current?;
        log.epoch.filter(|id| *id == epoch)?;
        match self {
            Self::Left { .. } => None,
            Self::Unknown | Self::Verified { .. } if log.receiving == timeline => {
                Some(log.replayed)
            }
            // Without a walreceiver the timeline of the rest is not known.
            Self::Verified { epoch: verified, position }
                if verified == epoch && log.receiving == 0 =>
            {
                Some(position.min(log.replayed))
            }
            Self::Unknown | Self::Verified { .. } => None,
        }
    }
}

/// Why a replica is as old as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    NoAnswer,
    Promoted,
    NoReceiver,
    ReplayPaused,
    Left { timeline: u32 },
    Follows,
}

impl Finding {
    /// What to say of it.
    fn text(self) -> String {
        match self {
            Self::NoAnswer => "it does not answer".to_owned(),
            Self::Promoted => "it is not in recovery: was it promoted by hand?".to_owned(),
            Self::NoReceiver => "its walreceiver does not run".to_owned(),
            Self::ReplayPaused => "its replay is paused (`pg_wal_replay_resume()`)".to_owned(),
            Self::Left { timeline } => format!(
                "its log is not the cluster's any more (timeline {timeline}); `patronictl reinit` \
                 makes it a copy again"
            ),
            Self::Follows => "nothing newer reaches it, or it does not replay it".to_owned(),
        }
    }
}

/// What is known of one replica.
#[derive(Debug, Clone)]
struct ReplicaState {
    node: Node,
    /// When it last answered a probe; `None`: it has not.
    answered: Option<BootTime>,
    /// The last time of which it was proven to show everything; before, when it was first known.
    since: BootTime,
    branch: Branch,
    /// The position of the history that it had reached; `None`: unknown.
    position: Option<u64>,
    /// It shows everything acknowledged before this time; `None`: not proven.
    through: Option<BootTime>,
    finding: Finding,
}

impl ReplicaState {
    fn new(node: Node, now: BootTime) -> Self {
        Self {
            node,
            answered: None,
            since: now,
            branch: Branch::Unknown,
            position: None,
            through: None,
            finding: Finding::NoAnswer,
        }
    }

    fn record(
        &mut self,
        answer: &ProbeAnswer,
        current: CurrentEpoch,
        now: BootTime,
        prove: impl Fn(u64) -> Option<BootTime>,
    ) {
        if *answer != ProbeAnswer::None {
            self.answered = Some(now);
        }
        let facts = match answer {
            // What it had shown, it has; the rest is to be proven again.
            ProbeAnswer::None => {
                (self.branch, self.finding) = (Branch::Unknown, Finding::NoAnswer);
                return;
            }
            ProbeAnswer::Promoted => {
                (self.branch, self.finding) = (Branch::Unknown, Finding::Promoted);
                (self.position, self.through) = (None, None);
                return;
            }
            ProbeAnswer::Replica(facts) => facts,
        };
        self.branch = Branch::of(facts, current);
        self.finding = match self.branch {
            Branch::Left { timeline } => Finding::Left { timeline },
            Branch::Unknown | Branch::Verified { .. } if facts.log.receiving == 0 => {
                Finding::NoReceiver
            }
            Branch::Unknown | Branch::Verified { .. } if facts.replay_paused => {
                Finding::ReplayPaused
            }
            Branch::Unknown | Branch::Verified { .. } => Finding::Follows,
        };
        match self.branch {
            Branch::Left { .. } => (self.position, self.through) = (None, None),
            Branch::Unknown => {}
            Branch::Verified { .. } => {
                self.position = self.branch.position(&facts.log, current);
                self.through = self.position.and_then(prove);
            }
        }
        self.since = self.through.unwrap_or(self.since);
    }
}

/// How old a replica is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplicaAge {
    pub(crate) name: String,
    /// How long ago it had everything; at least this long where that is not proven.
    pub(crate) age: Duration,
    /// When it last answered a probe; `None`: it has not.
    pub(crate) answered: Option<BootTime>,
    proven: bool,
    finding: Finding,
}

impl ReplicaAge {
    /// A sentence for people.
    pub(crate) fn text(&self, cluster: &str, has_primary: bool) -> String {
        let Self { name, age, proven, finding, .. } = self;
        let at_least = if *proven { "" } else { "at least " };
        let why = finding.text();
        let then = if has_primary {
            "it is not read while the primary answers"
        } else {
            "the cluster has no primary, and what it answers is marked as stale"
        };
        format!(
            "replica {name} of {cluster} is {at_least}{} s behind: {why}; {then}",
            age.as_secs()
        )
    }
}

/// What a member answered to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeAnswer {
    /// Nothing in time, or nothing of its log.
    None,
    /// It is not in recovery.
    Promoted,
    /// It is.
    Replica(ReplicaFacts),
}

/// The replicas of a cluster.
#[derive(Debug, Default)]
pub(crate) struct ReplicaStates(Vec<ReplicaState>);

impl ReplicaStates {
    /// Takes the answers of a round of probes. `has_primary`: these are all the replicas; without a
    /// primary, nodes that do not answer or are not in recovery may be no replicas. `prove` turns a
    /// position into a time.
    pub(crate) fn record(
        &mut self,
        answers: &[(&Node, ProbeAnswer)],
        has_primary: bool,
        current: CurrentEpoch,
        now: BootTime,
        prove: impl Fn(u64) -> Option<BootTime>,
    ) {
        if has_primary {
            self.0.retain(|known| answers.iter().any(|(node, _)| known.node == **node));
        }
        for (node, answer) in answers {
            let known = self.0.iter().position(|known| known.node.address == node.address);
            let is_replica = has_primary || matches!(answer, ProbeAnswer::Replica(_));
            if known.is_none() && is_replica {
                self.0.push(ReplicaState::new((*node).clone(), now));
            }
            let known = known.unwrap_or(self.0.len().saturating_sub(1));
            if let Some(known) = self.0.get_mut(known).filter(|known| known.node == **node) {
                known.record(answer, current, now, &prove);
            }
        }
    }

    fn of(&self, address: &str) -> Option<&ReplicaState> {
        self.0.iter().find(|known| known.node.address == address)
    }

    /// Up to which position of the history a server shows everything; see [`Branch::position`].
    pub(crate) fn position(
        &self,
        address: &str,
        log: &LogFacts,
        current: CurrentEpoch,
    ) -> Option<u64> {
        self.of(address).map_or(Branch::Unknown, |known| known.branch).position(log, current)
    }

    /// Whether it was proven not to be older than `age_max`.
    pub(crate) fn is_current(&self, address: &str, age_max: Duration, now: BootTime) -> bool {
        let through = self.of(address).and_then(|known| known.through);
        through.is_some_and(|through| age(through, now) <= age_max)
    }

    /// The newer, the larger: the time that is proven, else the position.
    pub(crate) fn rank(&self, address: &str) -> (Option<BootTime>, Option<u64>) {
        match self.of(address) {
            None => (None, None),
            // Those that are equally old share the reads.
            Some(ReplicaState { through: Some(through), .. }) => (Some(*through), None),
            Some(known) => (None, known.position),
        }
    }

    /// How old each replica is.
    pub(crate) fn ages(&self, now: BootTime) -> Vec<ReplicaAge> {
        let of = |known: &ReplicaState| ReplicaAge {
            name: known.node.name.clone(),
            age: age(known.through.unwrap_or(known.since), now),
            answered: known.answered,
            proven: known.through.is_some(),
            finding: known.finding,
        };
        self.0.iter().map(of).collect()
    }
}

/// How long ago `through` was.
pub(crate) fn age(through: BootTime, now: BootTime) -> Duration {
    now.0.saturating_sub(through.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: EpochId = EpochId([2; 16]);
    const OLDER: EpochId = EpochId([1; 16]);
    const MAX: Duration = Duration::from_secs(3);

    fn at(seconds: u64) -> BootTime {
        BootTime(Duration::from_secs(seconds))
    }

    fn node(n: u8) -> Node {
        Node { name: format!("n{n}"), address: format!("h:{n}") }
    }

    fn log(replayed: u64, receiving: u32, epoch: Option<EpochId>) -> LogFacts {
        LogFacts { replayed, receiving, epoch }
    }

    /// The states after one probe of `n1`; what it shows is proven for a second for each 10 bytes.
    fn probed(states: &mut ReplicaStates, seconds: u64, answer: ProbeAnswer) {
        let prove = |position: u64| position.checked_div(10).filter(|s| *s > 0).map(at);
        states.record(&[(&node(1), answer)], true, Some((EPOCH, 7)), at(seconds), prove);
    }

    fn replica(log: LogFacts, history_file: u32) -> ProbeAnswer {
        ProbeAnswer::Replica(ReplicaFacts { log, history_file, replay_paused: false })
    }

    #[test]
    fn a_position_counts_only_on_the_timeline_of_the_current_epoch() {
        let seen = |probe: Option<ProbeAnswer>, read: LogFacts| {
            let mut states = ReplicaStates::default();
            probe.into_iter().for_each(|answer| probed(&mut states, 100, answer));
            states.position("h:1", &read, Some((EPOCH, 7)))
        };
        let streams = Some(replica(log(50, 7, Some(EPOCH)), 7));
        assert_eq!(seen(streams, log(60, 7, Some(EPOCH))), Some(60));
        assert_eq!(seen(None, log(60, 7, Some(EPOCH))), Some(60), "not probed yet");
        // Without a walreceiver: what the probe has seen.
        assert_eq!(seen(streams, log(60, 0, Some(EPOCH))), Some(50));
        assert_eq!(
            seen(Some(replica(log(50, 0, Some(EPOCH)), 7)), log(60, 0, Some(EPOCH))),
            Some(50)
        );
        assert_eq!(seen(None, log(60, 0, Some(EPOCH))), None);
        assert_eq!(seen(Some(ProbeAnswer::None), log(60, 0, Some(EPOCH))), None);
        // On a different timeline, now or as far as the probe has seen.
        assert_eq!(seen(streams, log(60, 8, Some(EPOCH))), None);
        assert_eq!(seen(Some(replica(log(50, 0, Some(EPOCH)), 8)), log(60, 0, Some(EPOCH))), None);
        assert_eq!(seen(Some(replica(log(50, 8, Some(EPOCH)), 7)), log(60, 7, Some(EPOCH))), None);
        // It has not replayed the beginning of the epoch, or nothing at all.
        assert_eq!(seen(Some(replica(log(50, 7, Some(OLDER)), 7)), log(60, 7, Some(OLDER))), None);
        assert_eq!(seen(streams, log(60, 7, None)), None);
        let mut states = ReplicaStates::default();
        probed(&mut states, 100, replica(log(50, 7, Some(EPOCH)), 7));
        assert_eq!(
            states.position("h:1", &log(60, 7, Some(EPOCH)), None),
            None,
            "no epoch is known"
        );
    }

    #[test]
    fn a_replica_ages_whatever_stops_it_and_is_recent_again_when_it_follows() {
        let faults = [
            (ProbeAnswer::None, "does not answer"),
            (ProbeAnswer::Promoted, "not in recovery"),
            (replica(log(1000, 0, Some(EPOCH)), 7), "walreceiver does not run"),
            (replica(log(1000, 7, Some(EPOCH)), 7), "nothing newer"),
            (replica(log(1000, 0, Some(EPOCH)), 8), "timeline 8"),
            (
                ProbeAnswer::Replica(ReplicaFacts {
                    log: log(1000, 7, Some(EPOCH)),
                    history_file: 7,
                    replay_paused: true,
                }),
                "replay is paused",
            ),
        ];
        for (fault, why) in faults {
            let mut states = ReplicaStates::default();
            assert!(!states.is_current("h:1", MAX, at(100)), "{why}: nothing is known");
            probed(&mut states, 101, replica(log(1000, 7, Some(EPOCH)), 7));
            assert!(states.is_current("h:1", MAX, at(103)), "{why}: everything before second 100");
            assert!(!states.is_current("h:1", MAX, at(104)), "{why}: nothing is known since");
            probed(&mut states, 180, fault);
            assert!(!states.is_current("h:1", MAX, at(180)), "{why}");
            let ages = states.ages(at(180));
            assert_eq!(ages[0].age, Duration::from_secs(80), "{why}");
            let text = ages[0].text("c0", true);
            let named = text.starts_with("replica n1 of c0 is ") && text.contains("80 s behind");
            assert!(named && text.contains(why), "{text}");
            probed(&mut states, 181, replica(log(1800, 7, Some(EPOCH)), 7));
            assert!(states.is_current("h:1", MAX, at(182)), "{why}: it follows again");
        }
    }

    #[test]
    fn a_new_process_names_a_replica_that_it_cannot_prove_when_it_may_be_too_old() {
        let mut states = ReplicaStates::default();
        probed(&mut states, 100, replica(log(5, 7, Some(EPOCH)), 7));
        assert_eq!(states.ages(at(100))[0].age, Duration::ZERO);
        let text = states.ages(at(105))[0].text("c0", true);
        assert!(text.starts_with("replica n1 of c0 is at least 5 s behind"), "{text}");
    }

    #[test]
    fn the_newest_replica_comes_first_and_a_primary_that_died_is_none() {
        let mut states = ReplicaStates::default();
        let prove = |position: u64| position.checked_div(10).filter(|s| *s > 0).map(at);
        let on = |position| replica(log(position, 0, Some(EPOCH)), 7);
        let (one, two, three, four) = (node(1), node(2), node(3), node(4));
        let answers =
            [(&one, on(105)), (&two, on(305)), (&three, on(109)), (&four, ProbeAnswer::None)];
        states.record(&answers, false, Some((EPOCH, 7)), at(100), prove);
        let mut nodes = [&four, &three, &one, &two];
        nodes.sort_by_cached_key(|node| std::cmp::Reverse(states.rank(&node.address)));
        assert_eq!(nodes.map(|node| node.name.as_str()), ["n2", "n3", "n1", "n4"]);
        let named = states.ages(at(100)).into_iter().map(|replica| replica.name);
        assert_eq!(named.collect::<Vec<_>>(), ["n1", "n2", "n3"]);
        // With a primary all that are listed are replicas, and no others.
        states.record(&[(&four, ProbeAnswer::None)], true, Some((EPOCH, 7)), at(100), prove);
        assert_eq!(states.ages(at(100)).len(), 1);
    }
}
