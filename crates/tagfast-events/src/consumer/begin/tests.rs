//! The decision against a model of a partition, over generated sequences of faults: whatever
//! happened, what the sink has after it has read to the end is everything that was published.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::bus::Anchor;

/// What happens to a partition and to the group that reads it.
#[derive(Debug, Clone)]
enum Step {
    Publish(u8),
    /// The consumer reads so many records; the sink and the group have the position.
    Read(u8),
    /// Retention, or `kafka-delete-records`.
    DeleteOldest(u8),
    /// `kafka-delete-records` to the end.
    Empty,
    /// The topic is deleted and made again; Kafka deletes the group's offsets with it.
    Recreate,
    /// As above by name only: a tool restored the group's offsets.
    RecreateAndKeepOffsets,
    /// The broker comes back with an older log: some records that were read are gone.
    Cut(u8),
    /// `kafka-consumer-groups --delete-offsets`.
    DeleteOffsets,
    /// `kafka-consumer-groups --reset-offsets`: the metadata is lost.
    ResetOffsets(u8),
    /// The sink's state comes back from a copy that is older.
    RewindSink,
    /// The sink's state is lost.
    LoseSink,
    /// The process starts again, or gets the partition from a different one.
    Begin,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..20u8).prop_map(Step::Publish),
        6 => (1..20u8).prop_map(Step::Read),
        1 => (1..20u8).prop_map(Step::DeleteOldest),
        1 => Just(Step::Empty),
        1 => Just(Step::Recreate),
        1 => Just(Step::RecreateAndKeepOffsets),
        1 => (1..10u8).prop_map(Step::Cut),
        1 => Just(Step::DeleteOffsets),
        1 => any::<u8>().prop_map(Step::ResetOffsets),
        1 => Just(Step::RewindSink),
        1 => Just(Step::LoseSink),
        4 => Just(Step::Begin),
    ];
    prop::collection::vec(step, 1..60)
}

/// A sink with what it has applied: the numbers of events.
#[derive(Debug, Clone, Default)]
struct ModelSink {
    position: Option<BusPosition>,
    applied: BTreeSet<u64>,
}

struct Model {
    /// Whether the sink keeps its own positions.
    own_positions: bool,
    /// The events ever published, each with a number of its own.
    published: u64,
    /// The present log; the offset is the index.
    log: Vec<u64>,
    first: u64,
    committed: Option<BusPosition>,
    sink: ModelSink,
    copy: ModelSink,
    /// Whether something happened since the last read that may cost a rebuild.
    disturbed: bool,
    rebuilds: u32,
}

impl Model {
    fn new(own_positions: bool) -> Self {
        Self {
            own_positions,
            published: 0,
            log: Vec::new(),
            first: 0,
            committed: None,
            sink: ModelSink::default(),
            copy: ModelSink::default(),
            disturbed: true,
            rebuilds: 0,
        }
    }

    fn end(&self) -> u64 {
        self.log.len() as u64
    }

    fn anchor_below(&self, next: u64) -> Option<Anchor> {
        let offset = next.checked_sub(1).filter(|offset| *offset >= self.first)?;
        Some(Anchor { offset, fingerprint: self.log[offset as usize] })
    }

    /// What the bus says about a position.
    fn facts(&self, position: Option<&BusPosition>) -> PartitionFacts {
        let continuity = match position.and_then(|position| position.anchor) {
            None => Continuity::Unknown,
            Some(anchor) if anchor.offset >= self.end() => Continuity::Broken,
            Some(anchor) if anchor.offset < self.first => Continuity::Unknown,
            Some(anchor) if self.log[anchor.offset as usize] == anchor.fingerprint => {
                Continuity::Proven
            }
            Some(_) => Continuity::Broken,
        };
        let committed = self.committed.clone();
        PartitionFacts { first: self.first, end: self.end(), committed, continuity }
    }

    fn position(&self, next: u64) -> BusPosition {
        BusPosition { next, anchor: self.anchor_below(next), ..BusPosition::default() }
    }

    fn reached(&mut self, position: BusPosition) {
        self.committed = Some(position.clone());
        self.sink.position = Some(position);
    }

    fn read_from(&mut self, next: u64, count: u64) {
        let until = (next + count).min(self.end());
        self.sink.applied.extend(&self.log[next as usize..until as usize]);
        let position = self.position(until);
        self.reached(position);
    }

    /// A start: decides, rebuilds if it must, and reads to the end.
    fn begin(&mut self) {
        let claim = match self.own_positions {
            true => Claim::Sink(self.sink.position.clone().filter(|position| position.next > 0)),
            // An index that is gone is rebuilt, whatever the group has committed.
            false if self.sink.position.is_none() => Claim::Sink(None),
            false => Claim::Committed,
        };
        let asked = match &claim {
            Claim::Sink(position) => position.clone(),
            Claim::Committed => self.committed.clone(),
            Claim::Rebuilt(position) => Some(position.clone()),
        };
        let next = match decide(&claim, Some(&self.facts(asked.as_ref()))) {
            Decision::From(position) => position.next,
            Decision::Wait => panic!("the bus answers"),
            Decision::Rebuild(reason) => {
                assert!(self.disturbed, "needless rebuild: {reason}");
                self.rebuilds += 1;
                let end = self.position(self.end());
                self.sink.applied = (0..self.published).collect();
                let facts = self.facts(Some(&end));
                match decide(&Claim::Rebuilt(end), Some(&facts)) {
                    Decision::From(position) => position.next,
                    other @ (Decision::Rebuild(_) | Decision::Wait) => {
                        panic!("after a rebuild: {other:?}")
                    }
                }
            }
        };
        self.read_from(next, u64::MAX / 2);
        self.disturbed = self.end() == 0 || self.first == self.end();
        let missing: Vec<u64> =
            (0..self.published).filter(|n| !self.sink.applied.contains(n)).collect();
        assert!(missing.is_empty(), "skipped in silence: {missing:?}");
    }

    fn step(&mut self, step: &Step) {
        let read = self.sink.position.as_ref().map_or(0, |position| position.next);
        let behind = read < self.first || read > self.end();
        match step {
            Step::Publish(count) => {
                let count = u64::from(*count);
                if count.is_multiple_of(5) {
                    self.copy = self.sink.clone();
                }
                self.log.extend(self.published..self.published + count);
                self.published += count;
            }
            // A running consumer reads on from where it is; what it meets is the start's matter.
            Step::Read(_) if self.disturbed || behind || self.sink.position.is_none() => {}
            Step::Read(count) => self.read_from(read, u64::from(*count)),
            Step::DeleteOldest(count) => {
                self.first = (self.first + u64::from(*count)).min(self.end());
                self.disturbed = true;
            }
            Step::Empty => {
                self.first = self.end();
                self.disturbed = true;
            }
            Step::Recreate | Step::RecreateAndKeepOffsets => {
                (self.log, self.first) = (Vec::new(), 0);
                if matches!(step, Step::Recreate) {
                    self.committed = None;
                }
                self.disturbed = true;
            }
            Step::Cut(count) => {
                // What was never read and no broker has is beyond any reader's proof.
                let cut = self.end().saturating_sub(u64::from(*count));
                if cut >= self.first && self.end() <= read {
                    self.log.truncate(cut as usize);
                    // Nor what a copy of the sink does not have either.
                    self.copy = self.sink.clone();
                    self.disturbed = true;
                }
            }
            Step::DeleteOffsets => {
                self.committed = None;
                self.disturbed = true;
            }
            Step::ResetOffsets(to) => {
                let next = u64::from(*to).min(self.end());
                self.committed = Some(BusPosition { next, ..BusPosition::default() });
                self.disturbed = true;
            }
            Step::RewindSink => {
                self.sink = self.copy.clone();
                // Where the group keeps the position, an older sink cannot be told from a newer
                // one: a restore makes it empty.
                if !self.own_positions {
                    self.sink = ModelSink::default();
                }
                self.disturbed = true;
            }
            Step::LoseSink => {
                self.sink = ModelSink::default();
                self.disturbed = true;
            }
            Step::Begin => self.begin(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_sequence_of_faults_makes_a_start_skip_in_silence(
        steps in steps(),
        own_positions in any::<bool>(),
    ) {
        let mut model = Model::new(own_positions);
        steps.iter().for_each(|step| model.step(step));
        model.begin();
    }
}

#[test]
fn an_undisturbed_restart_costs_no_rebuild() {
    for own_positions in [true, false] {
        let mut model = Model::new(own_positions);
        for step in [Step::Publish(5), Step::Begin, Step::Publish(5), Step::Read(3), Step::Begin] {
            model.step(&step);
        }
        assert_eq!(model.rebuilds, 1, "only the first start");
    }
}

/// The matrix of single faults: what each start decides.
#[test]
fn each_fault_has_its_decision() {
    let anchor = Some(Anchor { offset: 9, fingerprint: 1 });
    let at = |next, anchor| BusPosition { next, anchor, ..BusPosition::default() };
    let facts = |first, end, continuity| PartitionFacts {
        first,
        end,
        committed: Some(at(10, anchor)),
        continuity,
    };
    let held = at(10, anchor);
    let (proven, broken, unknown) = (Continuity::Proven, Continuity::Broken, Continuity::Unknown);
    let sink = |position| Claim::Sink(Some(position));
    let cases = [
        (sink(held.clone()), Some(facts(0, 10, proven)), Decision::From(held.clone())),
        (Claim::Committed, Some(facts(0, 20, proven)), Decision::From(held.clone())),
        // Read ahead of the proof: what lies between is read again.
        (sink(at(15, anchor)), Some(facts(0, 20, proven)), Decision::From(held.clone())),
        // The topic was made again, shorter, as long, and longer.
        (sink(held.clone()), Some(facts(0, 3, broken)), Decision::Rebuild(REPLACED)),
        (sink(held.clone()), Some(facts(0, 10, broken)), Decision::Rebuild(REPLACED)),
        (sink(held.clone()), Some(facts(0, 500, broken)), Decision::Rebuild(REPLACED)),
        (sink(held.clone()), Some(facts(11, 20, unknown)), Decision::Rebuild(FELL_BEHIND)),
        (sink(held.clone()), Some(facts(10, 10, unknown)), Decision::Rebuild(UNPROVEN)),
        (sink(at(0, None)), Some(facts(0, 10, unknown)), Decision::From(at(0, None))),
        (Claim::Sink(None), Some(facts(0, 10, unknown)), Decision::Rebuild(NO_STATE)),
        (Claim::Rebuilt(at(5, None)), Some(facts(5, 5, unknown)), Decision::From(at(5, None))),
        (Claim::Rebuilt(held), Some(facts(0, 10, broken)), Decision::Rebuild(REPLACED)),
        (Claim::Committed, None, Decision::Wait),
    ];
    for (claim, facts, decision) in cases {
        assert_eq!(decide(&claim, facts.as_ref()), decision, "{claim:?} {facts:?}");
    }
    let lost = PartitionFacts { committed: None, ..facts(0, 10, unknown) };
    assert_eq!(decide(&Claim::Committed, Some(&lost)), Decision::Rebuild(NO_COMMIT));
}
