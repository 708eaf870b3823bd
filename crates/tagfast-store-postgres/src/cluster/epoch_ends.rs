//! Epoch ends: up to which log position each epoch is part of the current history.
//!
//! A failover forks the log: what a replaced primary wrote past the fork is lost. The end of an
//! epoch is the position up to which its log and the current one are the same. Each epoch has the
//! history of its timeline, and two logs are the same up to the first difference of their
//! histories. The order of the epochs would not tell: a promotion in which no epoch was minted lies
//! between two of them, and a server that comes back from a dead timeline has nothing of the epoch
//! before its own.
//!
//! Two servers that are promoted at the same position begin timelines of the same number, unless
//! the second one has seen the first one's. So an epoch is only part of the current history if the
//! log has its row: each epoch names the newest one that its primary's log had. Where that was not
//! recorded, the later epoch's timeline is the one that is alive: a promotion always begins one, so
//! epochs of one timeline with one member continue each other, and those with two members do not.
//!
//! How it fails: pessimistically. Without the history nothing is known of older epochs, and a fork
//! that could not be read ends all of them at 0.

use std::collections::{HashMap, HashSet};

use tagfast_domain::{EpochId, EpochOrdinal, UnixMillis};
use tagfast_failover::{EpochRecord, TimelineSwitch};

/// An earlier epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PastEnd {
    pub(crate) ordinal: EpochOrdinal,
    /// When it was minted, Unix ms.
    pub(crate) minted_at: UnixMillis,
    /// The log position up to which it is part of the current history.
    pub(crate) end: u64,
}

/// The ends of the epochs that this node knows. Replaced as a whole, so that no reader sees a new
/// epoch with an old end.
#[derive(Clone, Default)]
pub(crate) struct EpochEnds {
    /// `None`: no epoch was adopted yet.
    pub(crate) current: Option<EpochId>,
    /// Of every epoch in the history.
    by_id: HashMap<EpochId, u64>,
    /// Of earlier epochs, also of those that are no ancestors.
    pub(crate) past: Vec<PastEnd>,
    /// Of every epoch in the history.
    ordinals: HashMap<EpochId, EpochOrdinal>,
    /// The epoch before the current one, if nothing of it is part of the current history: a server
    /// was promoted that had not followed it.
    pub(crate) discarded: Option<EpochOrdinal>,
}

impl EpochEnds {
    /// The ends as of `current`; `None` for the history: it could not be read.
    pub(crate) fn new(history: Option<&[EpochRecord]>, current: &EpochRecord) -> Self {
        let records = history.unwrap_or_default();
        let mut by_id = match path_of(current) {
            Some(path) => ends_on_path(records, current, &path),
            None => ends_of_ancestors(records, current),
        };
        let end = |epoch: &EpochRecord| by_id.get(&epoch.id).copied().unwrap_or(0);
        let earlier = || history.unwrap_or_default().iter().filter(|epoch| epoch.id != current.id);
        let past = earlier().map(|epoch| PastEnd {
            ordinal: epoch.ordinal,
            minted_at: epoch.minted_at,
            end: end(epoch),
        });
        let past = past.collect();
        for epoch in earlier() {
            by_id.entry(epoch.id).or_insert(0);
        }
        let known = history.unwrap_or_default().iter().chain([current]);
        let ordinals = known.map(|epoch| (epoch.id, epoch.ordinal)).collect();
        let last = earlier().filter(|e| e.ordinal < current.ordinal).max_by_key(|e| e.ordinal);
        let is_discarded = |last: &&EpochRecord| match last.fork_lsn {
            Some(fork) => by_id.get(&last.id).is_none_or(|end| *end <= fork),
            None => last.timeline > current.timeline,
        };
        let discarded = last.filter(is_discarded).map(|last| last.ordinal);
        Self { current: Some(current.id), by_id, past, ordinals, discarded }
    }

    /// The ordinal of an epoch; `None`: the epoch is unknown.
    pub(crate) fn ordinal_of(&self, epoch: EpochId) -> Option<EpochOrdinal> {
        self.ordinals.get(&epoch).copied()
    }

    /// The id of the epoch with this ordinal; `None`: the epoch is unknown.
    pub(crate) fn id_of(&self, ordinal: EpochOrdinal) -> Option<EpochId> {
        let known = self.ordinals.iter().find(|(_, of)| **of == ordinal);
        known.map(|(id, _)| *id)
    }

    /// The end of an epoch: `u64::MAX` for the current one; `None`: the epoch is unknown.
    pub(crate) fn of(&self, epoch: EpochId) -> Option<u64> {
        // Nearly always, and every entry of a cache is checked.
        if self.current == Some(epoch) {
            return Some(u64::MAX);
        }
        self.by_id.get(&epoch).copied()
    }
}

/// The timelines of an epoch's log with the positions at which each was left, its own one last.
/// `None`: it is unknown.
fn path_of(epoch: &EpochRecord) -> Option<Vec<TimelineSwitch>> {
    let before = match (&epoch.timeline_history, epoch.timeline) {
        (Some(history), _) => history.clone(),
        (None, 1) => Vec::new(),
        (None, _) => return None,
    };
    let own = TimelineSwitch { timeline: epoch.timeline, at: u64::MAX };
    Some(before.into_iter().chain([own]).collect())
}

/// The epochs whose rows the current log has, and the ordinal from which on these are all. `None`:
/// it was not recorded.
fn ancestors(
    history: &[EpochRecord],
    current: &EpochRecord,
) -> Option<(HashSet<EpochId>, EpochOrdinal)> {
    let by_id: HashMap<EpochId, &EpochRecord> = history.iter().map(|e| (e.id, e)).collect();
    let mut ids = HashSet::from([current.id]);
    let mut epoch = current;
    while let Some(older) = epoch.continues.and_then(|id| by_id.get(&id))
        && ids.insert(older.id)
    {
        epoch = older;
    }
    Some((ids, epoch.ordinal)).filter(|(ids, _)| ids.len() > 1)
}

/// Where each epoch's log ends in the current history, by the histories of timelines.
fn ends_on_path(
    history: &[EpochRecord],
    current: &EpochRecord,
    path: &[TimelineSwitch],
) -> HashMap<EpochId, u64> {
    let known = || history.iter().filter(|epoch| epoch.ordinal <= current.ordinal);
    let ancestors = ancestors(history, current);
    let is_alive = |epoch: &EpochRecord| {
        let is_of_same_fork = |other: &&EpochRecord| {
            (other.timeline, other.fork_lsn) == (epoch.timeline, epoch.fork_lsn)
        };
        let newest = known().chain([current]).filter(is_of_same_fork).max_by_key(|e| e.ordinal);
        match &ancestors {
            Some((rows, from)) if epoch.ordinal >= *from => rows.contains(&epoch.id),
            Some(_) | None => newest.is_none_or(|newest| newest.member == epoch.member),
        }
    };
    let mut ends = HashMap::from([(current.id, u64::MAX)]);
    let mut dead = HashSet::new();
    let mut ordered: Vec<&EpochRecord> = known().filter(|epoch| epoch.id != current.id).collect();
    ordered.sort_by_key(|epoch| epoch.ordinal);
    for epoch in ordered {
        let is_alive = is_alive(epoch);
        let mut end = match path_of(epoch) {
            Some(own) => shared_end(&own, path, is_alive),
            // A program minted it that did not record its history.
            None => {
                let left = path.iter().find(|switch| switch.timeline == epoch.timeline);
                left.filter(|_| is_alive).map_or(0, |switch| switch.at)
            }
        };
        if !is_alive {
            // What it went on from may have the number of a timeline that is alive.
            if let Some(before) = epoch.continues.filter(|before| dead.contains(before)) {
                end = end.min(ends.get(&before).copied().unwrap_or(0));
            }
            dead.insert(epoch.id);
        }
        ends.insert(epoch.id, end);
    }
    ends
}

/// The position up to which two logs are the same. `is_alive`: the last timeline of `own` is the
/// one that `current` knows under its number.
fn shared_end(own: &[TimelineSwitch], current: &[TimelineSwitch], is_alive: bool) -> u64 {
    let mut shared = 0;
    for (n, (ours, theirs)) in own.iter().zip(current).enumerate() {
        let is_last = n + 1 == own.len();
        if ours.timeline != theirs.timeline || (is_last && !is_alive) {
            return shared;
        }
        shared = ours.at.min(theirs.at);
        if ours.at != theirs.at {
            return shared;
        }
    }
    shared
}

/// Where each ancestor's log ends in the current history, by the order of the epochs.
fn ends_of_ancestors(history: &[EpochRecord], current: &EpochRecord) -> HashMap<EpochId, u64> {
    let by_id: HashMap<EpochId, &EpochRecord> = history.iter().map(|e| (e.id, e)).collect();
    let mut ends = HashMap::from([(current.id, u64::MAX)]);
    let (mut child, mut end) = (current, u64::MAX);
    while let Some(parent) = child.parent_id.and_then(|id| by_id.get(&id)) {
        // On the same timeline nothing of the parent's log was left behind.
        if parent.timeline != child.timeline {
            end = end.min(child.fork_lsn.unwrap_or(0));
        }
        if ends.insert(parent.id, end).is_some() {
            break;
        }
        child = parent;
    }
    ends
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn epoch(
        n: u8,
        parent: Option<u8>,
        timeline: u32,
        fork_lsn: Option<u64>,
    ) -> EpochRecord {
        EpochRecord {
            id: EpochId([n; 16]),
            ordinal: EpochOrdinal(u64::from(n)),
            term: u64::from(n),
            member: "n".to_owned(),
            timeline,
            fork_lsn,
            timeline_history: None,
            continues: None,
            parent_id: parent.map(|p| EpochId([p; 16])),
            minted_at: 0,
            minted_by: "a".to_owned(),
        }
    }

    #[test]
    fn a_second_failover_may_lower_the_end_of_the_first() {
        let (one, two, three) = (
            epoch(1, None, 1, None),
            epoch(2, Some(1), 2, Some(500)),
            epoch(3, Some(2), 3, Some(400)),
        );
        let ends = ends_of_ancestors(&[one, two, three.clone()], &three);
        let of = |n| ends.get(&EpochId([n; 16])).copied().unwrap_or(0);
        assert_eq!((of(3), of(2), of(1), of(9)), (u64::MAX, 400, 400, 0));
    }

    /// The epoch `n` of a member, on the last of these timelines, each with the position at which
    /// it began.
    fn on(n: u8, member: &str, timelines: &[(u32, u64)]) -> EpochRecord {
        let switches = timelines.windows(2);
        let switches = switches.map(|two| TimelineSwitch { timeline: two[0].0, at: two[1].1 });
        let (timeline, began) = timelines[timelines.len() - 1];
        EpochRecord {
            member: member.to_owned(),
            timeline_history: Some(switches.collect()),
            ..epoch(n, n.checked_sub(1), timeline, Some(began).filter(|_| timeline > 1))
        }
    }

    fn ends_in(history: &[EpochRecord]) -> Vec<u64> {
        let current = history.last().expect("an epoch");
        let ends = EpochEnds::new(Some(history), current);
        history.iter().map(|epoch| ends.of(epoch.id).expect("it is known")).collect()
    }

    #[test]
    fn a_failover_ends_the_epochs_before_it_at_its_fork() {
        let history = [
            on(1, "a", &[(1, 0)]),
            on(2, "b", &[(1, 0), (2, 500)]),
            on(3, "b", &[(1, 0), (2, 500)]),
        ];
        assert_eq!(ends_in(&history[..2]), [500, u64::MAX]);
        assert_eq!(ends_in(&history), [500, u64::MAX, u64::MAX], "it was started again in place");
    }

    /// The primary of the second term died before any process minted its epoch.
    #[test]
    fn a_promotion_without_an_epoch_ends_the_epoch_before_it() {
        let history = [on(1, "a", &[(1, 0)]), on(2, "c", &[(1, 0), (2, 500), (3, 900)])];
        assert_eq!(ends_in(&history), [500, u64::MAX], "the first log was left at 500, not at 900");
    }

    /// Both replicas had received the same when the primary died.
    #[test]
    fn two_servers_that_were_promoted_at_the_same_position_have_different_logs() {
        let forked = [(1, 0), (2, 500)];
        let mut history = vec![on(1, "a", &[(1, 0)]), on(2, "b", &forked), on(3, "c", &forked)];
        assert_eq!(ends_in(&history), [500, 500, u64::MAX], "what b wrote is lost");
        history.push(on(4, "a", &[(1, 0), (2, 500), (3, 700)]));
        assert_eq!(ends_in(&history), [500, 500, 700, u64::MAX]);
    }

    /// Without Patroni's `check_timeline`.
    #[test]
    fn a_server_from_a_dead_timeline_has_nothing_of_the_epoch_before() {
        let (first, second) = (on(1, "a", &[(1, 0)]), on(2, "b", &[(1, 0), (2, 500)]));
        // The first primary had gone on up to 800, beside the second one.
        let promoted = [first.clone(), second.clone(), on(3, "a", &[(1, 0), (2, 800)])];
        assert_eq!(ends_in(&promoted), [800, 500, u64::MAX]);
        let promoted = [first.clone(), second.clone(), on(3, "a", &[(1, 0), (3, 800)])];
        assert_eq!(ends_in(&promoted), [800, 500, u64::MAX]);
        // It took the key again without a promotion.
        let taken_again = [first, second, on(3, "a", &[(1, 0)])];
        assert_eq!(ends_in(&taken_again), [u64::MAX, 500, u64::MAX]);
    }

    #[test]
    fn an_epoch_of_which_nothing_is_left_is_named() {
        let discarded = |history: &[EpochRecord]| {
            let current = history.last().expect("an epoch");
            EpochEnds::new(Some(history), current).discarded.map(|ordinal| ordinal.0)
        };
        let (first, second) = (on(1, "a", &[(1, 0)]), on(2, "b", &[(1, 0), (2, 500)]));
        assert_eq!(discarded(&[first.clone(), second.clone()]), None);
        let followed = on(3, "c", &[(1, 0), (2, 500), (3, 501)]);
        assert_eq!(discarded(&[first.clone(), second.clone(), followed]), None);
        for dead in [
            on(3, "a", &[(1, 0), (2, 800)]),
            on(3, "a", &[(1, 0)]),
            on(3, "c", &[(1, 0), (2, 500)]),
        ] {
            assert_eq!(discarded(&[first.clone(), second.clone(), dead]), Some(2));
        }
    }

    #[test]
    fn an_epoch_whose_history_was_not_recorded_ends_where_its_timeline_was_left() {
        let old = |n, timeline, fork| epoch(n, n.checked_sub(1), timeline, fork);
        let history =
            [old(1, 1, None), old(2, 2, Some(500)), on(3, "c", &[(1, 0), (2, 500), (3, 800)])];
        assert_eq!(ends_in(&history), [500, 800, u64::MAX]);
        let history = [old(1, 1, None), old(2, 2, Some(500)), on(3, "c", &[(1, 0), (3, 400)])];
        assert_eq!(ends_in(&history), [400, 0, u64::MAX]);
    }

    /// A server with its log: records, and the timelines with the positions at which they began.
    #[derive(Clone)]
    struct Server {
        /// Of records, and of the rows of epochs.
        log: Vec<(u32, Option<EpochId>)>,
        timelines: Vec<(u32, u64)>,
    }

    impl Server {
        fn newest_row(&self) -> Option<EpochId> {
            self.log.iter().rev().find_map(|(_, row)| *row)
        }

        /// How many records two logs share.
        fn shared(&self, other: &[(u32, Option<EpochId>)]) -> u64 {
            self.log.iter().zip(other).take_while(|(a, b)| a == b).count() as u64
        }
    }

    /// Whatever is written, copied and promoted: the end of each epoch is where its log and the
    /// current one differ first.
    #[test]
    fn ends_are_those_of_the_logs() {
        for seed in 0..3000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut history = vec![on(1, "0", &[(1, 0)])];
            let (mut primary, mut records) = (0, 1..);
            let row = (0, Some(history[0].id));
            let first = Server { log: vec![row], timelines: vec![(1, 0)] };
            let mut logs = vec![first.log.clone()];
            let mut servers = [first.clone(), first.clone(), first];
            let mut is_minted = true;
            for _ in 0..random.usize(1..60) {
                let other = (primary + random.usize(1..3)) % 3;
                match random.u8(0..8) {
                    // Nothing of ours is written before the row of the epoch.
                    0..=3 if !is_minted => {}
                    0..=3 => servers[primary].log.extend(records.next().map(|n| (n, None))),
                    // It follows what it lacks; one that has something else is copied.
                    4 | 5 => {
                        let source = servers[primary].clone();
                        let behind =
                            source.log.len() - source.log.len().min(servers[other].log.len());
                        let to = source.log.len() - random.usize(0..=behind);
                        let began = |(_, began): &(u32, u64)| *began <= to as u64;
                        let timelines = source.timelines.into_iter().filter(began).collect();
                        servers[other] = Server { log: source.log[..to].to_vec(), timelines };
                    }
                    6 => {
                        let server = &mut servers[other];
                        let timeline = server.timelines.last().map_or(1, |(number, _)| number + 1);
                        server.timelines.push((timeline, server.log.len() as u64));
                        (primary, is_minted) = (other, false);
                    }
                    _ if is_minted => {}
                    // A process mints its epoch, whose row is the first record in it.
                    _ => {
                        let (n, member) = (history.len() as u8 + 1, primary.to_string());
                        let server = &mut servers[primary];
                        let continues = server.newest_row();
                        let epoch = on(n, &member, &server.timelines);
                        history.push(EpochRecord { continues, ..epoch });
                        let id = history.last().map(|epoch| epoch.id);
                        server.log.extend(records.next().map(|n| (n, id)));
                        (is_minted, logs) = (true, [logs, vec![Vec::new()]].concat());
                    }
                }
                if is_minted && let Some(log) = logs.last_mut() {
                    log.clone_from(&servers[primary].log);
                }
            }
            if !is_minted {
                continue;
            }
            for ((epoch, log), end) in history.iter().zip(&logs).zip(ends_in(&history)) {
                let shared = servers[primary].shared(log);
                let timelines = &servers[primary].timelines;
                let what = format!("seed {seed}: {epoch:?} in {timelines:?} of {primary}");
                assert_eq!(end.min(log.len() as u64), shared, "{what}");
            }
        }
    }

    #[test]
    fn a_term_on_the_same_timeline_leaves_nothing_behind() {
        let (one, two) = (epoch(1, None, 1, None), epoch(2, Some(1), 1, None));
        let ends = ends_of_ancestors(&[one, two.clone()], &two);
        assert_eq!(ends[&EpochId([1; 16])], u64::MAX);
    }
}
