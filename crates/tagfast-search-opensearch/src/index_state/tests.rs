//! Generated facts: whatever is changed, the state is never usable, has words, and lets nothing be
//! answered that is not the right index's.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::facts::{Primaries, ShardFacts};

const ALIAS: &str = "tagfast-content";
const NEXT: &str = "tagfast-content-next";
const FORMAT: u64 = 2;

fn mapping() -> Value {
    json!({"dynamic": "strict", "properties": {"tags": {"type": "keyword"}}})
}

fn history(shard: u64) -> String {
    format!("history-{shard}")
}

/// An index that a rebuild has filled.
fn filled(uuid: &str, shards: u64, alias: &str) -> IndexFacts {
    let shard =
        |n| (n, ShardFacts { history: history(n), newest_operation: 40, in_every_copy: 40 });
    let mut index = IndexFacts {
        uuid: uuid.to_owned(),
        aliases: BTreeSet::from([alias.to_owned()]),
        closed: false,
        blocks: BTreeSet::new(),
        pipelines: BTreeSet::new(),
        shards,
        mapping: mapping(),
        meta: Value::Null,
        primaries: Some(Primaries { documents: 7, shards: (0..shards).map(shard).collect() }),
    };
    index.meta = json!({"format": FORMAT, "filled": index.proof_of_filling()});
    index
}

fn foreign(alias: Option<&str>) -> IndexFacts {
    IndexFacts {
        aliases: alias.map(str::to_owned).into_iter().collect(),
        mapping: json!({}),
        meta: Value::Null,
        ..filled("theirs", 1, ALIAS)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Delete,
    RemoveAlias,
    AliasOnForeign,
    TakeName,
    Close,
    Block(&'static str),
    LoseShard,
    LoseHistory,
    Rewind,
    Empty,
    AlterMapping,
    SetPipeline,
    Recreate,
    RecreateWithoutMapping,
    OlderFormat,
    NewerFormat,
}

const CHANGES: [Change; 18] = [
    Change::Delete,
    Change::RemoveAlias,
    Change::AliasOnForeign,
    Change::TakeName,
    Change::Close,
    Change::Block("write"),
    Change::Block("read"),
    Change::Block("read_only_allow_delete"),
    Change::LoseShard,
    Change::LoseHistory,
    Change::Rewind,
    Change::Empty,
    Change::AlterMapping,
    Change::SetPipeline,
    Change::Recreate,
    Change::RecreateWithoutMapping,
    Change::OlderFormat,
    Change::NewerFormat,
];

impl Change {
    /// The word for it when nothing else is wrong.
    fn code(self) -> &'static str {
        match self {
            Self::Delete => "missing",
            Self::RemoveAlias => "alias_missing",
            Self::AliasOnForeign => "alias_ambiguous",
            Self::TakeName => "name_taken",
            Self::Close => "closed",
            Self::Block(_) => "blocked",
            Self::LoseShard => "red",
            Self::LoseHistory => "history",
            Self::Rewind => "rewound",
            Self::Empty => "emptied",
            Self::AlterMapping | Self::SetPipeline => "altered",
            Self::Recreate | Self::RecreateWithoutMapping => "recreated",
            Self::OlderFormat => "older_format",
            Self::NewerFormat => "newer_format",
        }
    }

    fn make(self, facts: &mut Facts, name: &str) {
        match self {
            Self::Delete => drop(facts.indices.remove(name)),
            Self::AliasOnForeign => {
                facts.indices.insert("theirs".to_owned(), foreign(Some(ALIAS)));
            }
            Self::TakeName => drop(facts.indices.insert(ALIAS.to_owned(), foreign(None))),
            Self::RemoveAlias
            | Self::Close
            | Self::Block(_)
            | Self::LoseShard
            | Self::LoseHistory
            | Self::Rewind
            | Self::Empty
            | Self::AlterMapping
            | Self::SetPipeline
            | Self::Recreate
            | Self::RecreateWithoutMapping
            | Self::OlderFormat
            | Self::NewerFormat => {
                if let Some(index) = facts.indices.get_mut(name) {
                    self.change(index);
                }
            }
        }
    }

    fn change(self, index: &mut IndexFacts) {
        let shards = |index: &mut IndexFacts, change: &dyn Fn(&mut ShardFacts)| {
            let known = index.primaries.iter_mut().flat_map(|all| all.shards.values_mut());
            known.for_each(change);
        };
        match self {
            Self::Delete | Self::AliasOnForeign | Self::TakeName => {}
            Self::RemoveAlias => drop(index.aliases.remove(ALIAS)),
            Self::Close => index.closed = true,
            Self::Block(block) => drop(index.blocks.insert(block.to_owned())),
            Self::LoseShard => drop(index.primaries.as_mut().and_then(|p| p.shards.pop_first())),
            Self::LoseHistory => shards(index, &|shard| shard.history.push('x')),
            Self::Rewind => shards(index, &|shard| shard.newest_operation = 12),
            Self::Empty => index.primaries.iter_mut().for_each(|p| p.documents = 0),
            Self::AlterMapping => index.mapping["dynamic"] = json!("true"),
            Self::SetPipeline => drop(index.pipelines.insert("theirs".to_owned())),
            Self::Recreate => index.uuid.push('x'),
            Self::RecreateWithoutMapping => {
                (index.mapping, index.meta) = (json!({}), Value::Null);
                index.uuid.push('x');
            }
            Self::OlderFormat => index.meta["format"] = json!(FORMAT - 1),
            Self::NewerFormat => {
                if !index.meta.is_null() {
                    index.meta["format"] = json!(FORMAT + 1);
                }
            }
        }
    }
}

fn judged(facts: &Facts, remembered: &Remembered) -> IndexState {
    let mapping = mapping();
    let expected =
        Expected { alias: ALIAS, next_alias: NEXT.to_owned(), format: FORMAT, mapping: &mapping };
    judge(&Ok(facts.clone()), remembered, &expected)
}

/// A served index, what was remembered of it, and what else may be there.
fn world(shards: u64, generation: u32, extras: &[bool; 3]) -> (Facts, String, Remembered) {
    let name = format!("{ALIAS}-v{generation}");
    let mut indices = BTreeMap::from([(name.clone(), filled("ours", shards, ALIAS))]);
    let [theirs, next, older] = extras;
    if *theirs {
        indices.insert(format!("{ALIAS}-v{}x", generation), foreign(None));
    }
    if *next {
        let mut index = filled("next", shards, NEXT);
        index.meta = json!({"format": FORMAT});
        indices.insert(format!("{ALIAS}-v{}", generation + 1), index);
    }
    if *older {
        let mut index = filled("older", shards, ALIAS);
        index.aliases.clear();
        indices.insert(format!("{ALIAS}-v{}", generation + 2), index);
    }
    let facts = Facts { indices };
    let mut remembered = Remembered::default();
    let state = judged(&facts, &remembered);
    remember(&mut remembered, &Ok(facts.clone()), &state);
    (facts, name, remembered)
}

/// Whether an answer of what the alias leads to is one of the index that was filled.
fn is_right(facts: &Facts, shards: u64) -> bool {
    let served: Vec<&IndexFacts> =
        facts.indices.values().filter(|index| index.aliases.contains(ALIAS)).collect();
    let good = filled("ours", shards, ALIAS);
    matches!(served[..], [one] if {
        let open = IndexFacts { blocks: BTreeSet::new(), ..one.clone() };
        open == good
    })
}

fn extras() -> impl Strategy<Value = [bool; 3]> {
    proptest::array::uniform3(any::<bool>())
}

proptest! {
    #[test]
    fn a_good_index_is_usable_whatever_else_is_there(
        shards in 1u64..5, generation in 1u32..9, extras in extras(),
    ) {
        let (facts, name, remembered) = world(shards, generation, &extras);
        let state = judged(&facts, &remembered);
        let is_expected = matches!(&state, IndexState::Usable { served, next }
            if served.name == name && next.is_some() == extras[1]);
        prop_assert!(is_expected, "{:?}", state);
        prop_assert_eq!(state.problem(ALIAS), None);
    }

    #[test]
    fn one_change_is_called_by_its_name(
        shards in 1u64..5, generation in 1u32..9, next in any::<bool>(),
        change in proptest::sample::select(&CHANGES[..]),
    ) {
        let (mut facts, name, remembered) = world(shards, generation, &[false, next, false]);
        change.make(&mut facts, &name);
        let problem = judged(&facts, &remembered).problem(ALIAS).expect("a problem");
        prop_assert_eq!(problem.code, change.code());
    }

    #[test]
    fn whatever_is_changed_nothing_wrong_is_written_or_answered(
        shards in 1u64..5, generation in 1u32..9, extras in extras(),
        changes in proptest::sample::subsequence(&CHANGES[..], 1..6).prop_shuffle(),
    ) {
        let (mut facts, name, mut remembered) = world(shards, generation, &extras);
        for change in &changes {
            change.make(&mut facts, &name);
        }
        let state = judged(&facts, &remembered);
        prop_assert!(!matches!(state, IndexState::Usable { .. }), "{:?}", state);
        prop_assert_ne!(state.healing(), Healing::None);
        let problem = state.problem(ALIAS).expect("a problem");
        for text in [&problem.cause, &problem.remedy] {
            prop_assert!(!text.is_empty() && !text.ends_with('.'), "{}", text);
        }
        if problem.searches == SearchEffect::Answered {
            prop_assert!(is_right(&facts, shards), "{:?} {:?}", state, facts);
        }
        // A loss stays known when its trace is gone.
        remember(&mut remembered, &Ok(facts.clone()), &state);
        let (good, _, _) = world(shards, generation, &extras);
        let after = judged(&good, &remembered);
        let is_ours = matches!(&state, IndexState::Lost { uuid, .. } if uuid == "ours");
        let stays = matches!(&after, IndexState::Lost { .. });
        prop_assert_eq!(stays, is_ours, "{:?} then {:?}", state, after);
    }
}

#[test]
fn a_server_without_an_answer_is_a_state_with_words() {
    let mapping = mapping();
    let (alias, next_alias) = (ALIAS, NEXT.to_owned());
    let expected = Expected { alias, next_alias, format: FORMAT, mapping: &mapping };
    let rejected = |status: u16| RequestError::Rejected {
        status: StatusCode::from_u16(status).unwrap(),
        kind: "made_up".to_owned(),
        reason: "made_up: by a test".to_owned(),
    };
    let errors = [
        (RequestError::Timeout, "silent"),
        (RequestError::BadResponse("half".to_owned()), "garbage"),
        (rejected(401), "unauthorized"),
        (rejected(403), "forbidden"),
        (rejected(429), "overloaded"),
        (rejected(500), "failing"),
        (rejected(503), "failing"),
    ];
    for (error, code) in errors {
        let state = judge(&Err(ServerTrouble::from(&error)), &Remembered::default(), &expected);
        let problem = state.problem(ALIAS).unwrap();
        assert_eq!((problem.code, state.healing()), (code, Healing::Outside));
        assert_eq!(problem.searches, SearchEffect::Failing);
    }
}
