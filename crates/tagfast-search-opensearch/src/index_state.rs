//! In which state the index is, decided from facts alone.
//!
//! Every state but [`IndexState::Usable`] stops the indexer: no record is to blame for any of them.
//! Each has a sentence, says what ends it, and what it means for searches.
//!
//! An index proves what it is: a rebuild that has filled it to the end notes in its mapping the
//! identity that the server gave the index and the history of each of its shards. An index that
//! was created again, cloned or restored has a different identity, a shard that was restored or
//! forced a different history. What is lost without a trace of that kind is found by what this
//! process remembers ([`Remembered`]).

use std::collections::BTreeMap;

use reqwest::StatusCode;
use serde_json::Value;
use tagfast_search::{IndexProblem, SearchEffect};

use crate::error::RequestError;
use crate::facts::{Facts, IndexFacts, generation};

/// The index that is served, or the one that a rebuild fills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownIndex {
    /// Its name.
    pub(crate) name: String,
    /// Its identity.
    pub(crate) uuid: String,
    /// Number of its primary shards.
    pub(crate) shards: u64,
}

/// What a process remembers of the index that it last saw.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Remembered {
    /// Identity of that index.
    pub(crate) uuid: String,
    /// Per shard the operation up to which every copy had everything: none of them may be lost.
    pub(crate) in_every_copy: BTreeMap<u64, i64>,
    /// Why that index must be rebuilt, even if the trace of it is gone.
    pub(crate) condemned: Option<Loss>,
}

/// What happened to an index that must be rebuilt though it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It is not the index that a rebuild filled: created again, cloned or restored.
    Recreated,
    /// A shard was restored from a snapshot, or an empty or stale copy was made its primary.
    History,
    /// Operations are gone that every copy had.
    Rewound,
    /// Every document is gone.
    Emptied,
    /// Mapping or pipelines are not those that a rebuild sets.
    Altered,
    /// It was written by an older version of this service.
    OlderFormat,
}

/// Why the server gives no facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServerTrouble {
    /// No answer in time.
    Silent,
    /// No connection, or a broken one.
    Unreachable,
    /// 401: it wants a user and password, or different ones.
    Unauthorized,
    /// 403: the user may not do this, or a block forbids it; with OpenSearch's reason.
    Forbidden(String),
    /// 429.
    Overloaded,
    /// A different status; with OpenSearch's reason.
    Failing(StatusCode, String),
    /// An answer that is not OpenSearch's.
    Garbage,
}

/// State of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IndexState {
    /// It can be written and asked.
    Usable {
        /// The served index.
        served: KnownIndex,
        /// The index that a rebuild fills, and that must be written as well.
        next: Option<KnownIndex>,
    },
    /// There is no index.
    Missing,
    /// There is an index of ours, but the alias does not lead to it.
    AliasMissing(Vec<String>),
    /// The alias leads to several indices.
    AliasAmbiguous(Vec<String>),
    /// The alias leads to an index that this service did not make.
    Foreign(String),
    /// An index has the alias's name.
    NameTaken,
    /// The index is closed.
    Closed(String),
    /// Blocks forbid to write the index, or to read it.
    Blocked {
        /// The index.
        index: KnownIndex,
        /// The blocks.
        blocks: Vec<String>,
    },
    /// Primary shards are missing.
    Red {
        /// The index.
        name: String,
        /// Number of primary shards that are missing.
        missing: u64,
    },
    /// A newer version of this service wrote it.
    NewerFormat(u64),
    /// It does not hold what it should.
    Lost {
        /// The index.
        name: String,
        /// Its identity.
        uuid: String,
        /// What happened.
        loss: Loss,
    },
    /// The server gives no facts.
    Server(ServerTrouble),
}

/// What ends a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Healing {
    /// Nothing is wrong.
    None,
    /// The indexer rebuilds the index without help.
    Rebuild,
    /// An operator puts it right, or asks for a rebuild.
    Reindex,
    /// It must be put right first: a rebuild would fail.
    Outside,
}

/// What the mapping and the format of an index must be.
#[derive(Debug, Clone)]
pub(crate) struct Expected<'a> {
    /// Alias of the served index.
    pub(crate) alias: &'a str,
    /// Alias of the index that a rebuild fills.
    pub(crate) next_alias: String,
    /// Version of the documents.
    pub(crate) format: u64,
    /// The mapping without `_meta`.
    pub(crate) mapping: &'a Value,
}

/// Decides the state of the index.
pub(crate) fn judge(
    facts: &Result<Facts, ServerTrouble>,
    remembered: &Remembered,
    expected: &Expected<'_>,
) -> IndexState {
    let facts = match facts {
        Ok(facts) => facts,
        Err(trouble) => return IndexState::Server(trouble.clone()),
    };
    let alias = expected.alias;
    if facts.indices.contains_key(alias) {
        return IndexState::NameTaken;
    }
    let mut served = facts.behind(alias);
    let Some((name, index)) = served.next() else {
        let own = facts.indices.iter().filter(|(name, index)| {
            index.is_ours(name, alias) && !index.aliases.contains(&expected.next_alias)
        });
        let own: Vec<String> = own.map(|(name, _)| name.clone()).collect();
        return if own.is_empty() { IndexState::Missing } else { IndexState::AliasMissing(own) };
    };
    let others: Vec<String> = served.map(|(name, _)| name.to_owned()).collect();
    if !others.is_empty() {
        return IndexState::AliasAmbiguous(
            std::iter::once(name.to_owned()).chain(others).collect(),
        );
    }
    if !index.meta["format"].is_u64() && generation(name, alias).is_none() {
        return IndexState::Foreign(name.to_owned());
    }
    let format = index.meta["format"].as_u64();
    if let Some(format) = format.filter(|format| *format > expected.format) {
        return IndexState::NewerFormat(format);
    }
    if index.closed {
        return IndexState::Closed(name.to_owned());
    }
    if let Some(loss) = loss_of_identity(index, expected) {
        return IndexState::Lost { name: name.to_owned(), uuid: index.uuid.clone(), loss };
    }
    let present = index.primaries.as_ref().map_or(0, |primaries| primaries.shards.len() as u64);
    if present < index.shards {
        return IndexState::Red { name: name.to_owned(), missing: index.shards - present };
    }
    if let Some(loss) = loss_of_documents(index, remembered) {
        return IndexState::Lost { name: name.to_owned(), uuid: index.uuid.clone(), loss };
    }
    if !index.blocks.is_empty() {
        let blocks = index.blocks.iter().cloned().collect();
        return IndexState::Blocked { index: known(name, index), blocks };
    }
    IndexState::Usable { served: known(name, index), next: next(facts, expected) }
}

fn known(name: &str, index: &IndexFacts) -> KnownIndex {
    KnownIndex { name: name.to_owned(), uuid: index.uuid.clone(), shards: index.shards }
}

/// The index that a rebuild fills, if it is one that can be filled: nothing else behind the alias
/// may stop those who write the served index.
pub(crate) fn next(facts: &Facts, expected: &Expected<'_>) -> Option<KnownIndex> {
    let mut behind = facts.behind(&expected.next_alias);
    let (name, index) = behind.next()?;
    let fits = index.is_ours(name, expected.alias)
        && index.meta["format"].as_u64() == Some(expected.format)
        && is_unaltered(index, expected)
        && !index.closed
        && index.blocks.is_empty();
    (fits && behind.next().is_none()).then(|| known(name, index))
}

fn is_unaltered(index: &IndexFacts, expected: &Expected<'_>) -> bool {
    index.mapping == *expected.mapping && index.pipelines.is_empty()
}

fn loss_of_identity(index: &IndexFacts, expected: &Expected<'_>) -> Option<Loss> {
    match index.meta["format"].as_u64() {
        Some(format) if format < expected.format => return Some(Loss::OlderFormat),
        Some(_) => {}
        None => return Some(Loss::Recreated),
    }
    if index.meta["filled"]["uuid"] != index.uuid.as_str() {
        return Some(Loss::Recreated);
    }
    (!is_unaltered(index, expected)).then_some(Loss::Altered)
}

fn loss_of_documents(index: &IndexFacts, remembered: &Remembered) -> Option<Loss> {
    if index.proof_of_filling().as_ref() != Some(&index.meta["filled"]) {
        return Some(Loss::History);
    }
    let primaries = index.primaries.as_ref()?;
    if remembered.uuid == index.uuid {
        if remembered.condemned.is_some() {
            return remembered.condemned;
        }
        let lacks = |(shard, all): (&u64, &i64)| {
            primaries.shards.get(shard).is_some_and(|known| known.newest_operation < *all)
        };
        if remembered.in_every_copy.iter().any(lacks) {
            return Some(Loss::Rewound);
        }
    }
    // A filled index holds a mark even when no content has tags.
    (primaries.documents == 0).then_some(Loss::Emptied)
}

/// What to remember after a state was decided from these facts.
pub(crate) fn remember(
    remembered: &mut Remembered,
    facts: &Result<Facts, ServerTrouble>,
    state: &IndexState,
) {
    match state {
        IndexState::Usable { served, .. } => {
            let Some(index) = facts.as_ref().ok().and_then(|facts| facts.indices.get(&served.name))
            else {
                return;
            };
            if remembered.uuid != served.uuid {
                *remembered = Remembered { uuid: served.uuid.clone(), ..Remembered::default() };
            }
            for (shard, now) in index.primaries.iter().flat_map(|primaries| &primaries.shards) {
                let known = remembered.in_every_copy.entry(*shard).or_insert(-1);
                *known = now.in_every_copy.max(*known);
            }
        }
        IndexState::Lost { uuid, loss, .. } => {
            if remembered.uuid != *uuid {
                *remembered = Remembered { uuid: uuid.clone(), ..Remembered::default() };
            }
            remembered.condemned.get_or_insert(*loss);
        }
        IndexState::Missing
        | IndexState::AliasMissing(_)
        | IndexState::AliasAmbiguous(_)
        | IndexState::Foreign(_)
        | IndexState::NameTaken
        | IndexState::Closed(_)
        | IndexState::Blocked { .. }
        | IndexState::Red { .. }
        | IndexState::NewerFormat(_)
        | IndexState::Server(_) => {}
    }
}

impl From<&RequestError> for ServerTrouble {
    fn from(error: &RequestError) -> Self {
        match error {
            RequestError::Timeout => Self::Silent,
            RequestError::Transport(_) => Self::Unreachable,
            RequestError::BadResponse(_) => Self::Garbage,
            RequestError::Rejected { status, reason, .. } => match status.as_u16() {
                401 => Self::Unauthorized,
                403 => Self::Forbidden(reason.clone()),
                429 => Self::Overloaded,
                _ => Self::Failing(*status, reason.clone()),
            },
        }
    }
}

impl IndexState {
    /// What ends the state.
    pub(crate) fn healing(&self) -> Healing {
        match self {
            Self::Usable { .. } => Healing::None,
            Self::Missing | Self::AliasMissing(_) | Self::Lost { .. } => Healing::Rebuild,
            Self::AliasAmbiguous(_)
            | Self::Foreign(_)
            | Self::Closed(_)
            | Self::Blocked { .. }
            | Self::Red { .. } => Healing::Reindex,
            Self::NameTaken | Self::NewerFormat(_) | Self::Server(_) => Healing::Outside,
        }
    }

    /// Whether it says something about the index, not about the way to its server.
    pub(crate) fn is_of_index(&self) -> bool {
        !matches!(self, Self::Server(_))
    }

    /// The index whose answers are right, though they may be old.
    pub(crate) fn searched(&self) -> Option<&KnownIndex> {
        match self {
            Self::Usable { served, .. } => Some(served),
            Self::Blocked { index, .. } if self.effect() == SearchEffect::Answered => Some(index),
            Self::Blocked { .. }
            | Self::Missing
            | Self::AliasMissing(_)
            | Self::AliasAmbiguous(_)
            | Self::Foreign(_)
            | Self::NameTaken
            | Self::Closed(_)
            | Self::Red { .. }
            | Self::NewerFormat(_)
            | Self::Lost { .. }
            | Self::Server(_) => None,
        }
    }

    /// The problem as people read it; `None` if there is none. `alias` leads to the index.
    pub(crate) fn problem(&self, alias: &str) -> Option<IndexProblem> {
        let (code, cause, remedy) = self.texts(alias)?;
        Some(IndexProblem { code, cause, remedy, searches: self.effect() })
    }

    fn effect(&self) -> SearchEffect {
        match self {
            Self::Usable { .. } => SearchEffect::Answered,
            // A block on reading makes them fail.
            Self::Blocked { blocks, .. } if blocks.iter().any(|block| block == "read") => {
                SearchEffect::Failing
            }
            Self::Blocked { .. } => SearchEffect::Answered,
            Self::Server(_) => SearchEffect::Failing,
            Self::Missing
            | Self::AliasMissing(_)
            | Self::AliasAmbiguous(_)
            | Self::Foreign(_)
            | Self::NameTaken
            | Self::Closed(_)
            | Self::Red { .. }
            | Self::NewerFormat(_)
            | Self::Lost { .. } => SearchEffect::Refused,
        }
    }

    fn texts(&self, alias: &str) -> Option<(&'static str, String, String)> {
        let rebuilt = || "the indexer rebuilds it without help".to_owned();
        let or_reindex = |what: String| format!("{what}, or run `tagfast reindex`");
        Some(match self {
            Self::Usable { .. } => return None,
            Self::Missing => ("missing", format!("there is no search index {alias}"), rebuilt()),
            Self::AliasMissing(own) => (
                "alias_missing",
                format!("the alias {alias} is gone; {} may be out of date", own.join(", ")),
                rebuilt(),
            ),
            Self::AliasAmbiguous(all) => (
                "alias_ambiguous",
                format!("the alias {alias} leads to several indices: {}", all.join(", ")),
                or_reindex(format!("remove {alias} from all but the right one")),
            ),
            Self::Foreign(name) => (
                "foreign",
                format!("the alias {alias} leads to {name}, which is not an index of this service"),
                or_reindex(format!("remove the alias {alias} from {name}")),
            ),
            Self::NameTaken => (
                "name_taken",
                format!("{alias} is an index, not the alias of one"),
                format!("delete the index {alias} or rename it"),
            ),
            Self::Closed(name) => (
                "closed",
                format!("the index {name} is closed"),
                or_reindex(format!("open {name}")),
            ),
            Self::Blocked { index: KnownIndex { name, .. }, blocks } => (
                "blocked",
                format!("the index {name} is blocked: index.blocks.{}", blocks.join(", ")),
                if blocks.iter().any(|block| block == "read_only_allow_delete") {
                    "free space on the disk of OpenSearch, which then removes the block".to_owned()
                } else {
                    format!("set index.blocks.{} of {name} to null", blocks.join(", index.blocks."))
                },
            ),
            Self::Red { name, missing } => (
                "red",
                format!("{missing} primary shards of the index {name} are missing"),
                or_reindex("bring the nodes of OpenSearch back that hold them".to_owned()),
            ),
            Self::NewerFormat(format) => (
                "newer_format",
                format!("the index behind {alias} is of format {format}, which is too new"),
                "run the newer program, or delete the index".to_owned(),
            ),
            Self::Lost { name, loss, .. } => {
                let (code, what) = loss.texts();
                (code, format!("the index {name} {what}"), rebuilt())
            }
            Self::Server(trouble) => trouble.texts(),
        })
    }
}

impl Loss {
    /// Word and rest of the sentence.
    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::Recreated => (
                "recreated",
                "is not the one that was filled: it was created again, cloned or restored",
            ),
            Self::History => (
                "history",
                "has lost a shard's history: it was restored, or an old copy was made the primary",
            ),
            Self::Rewound => ("rewound", "has lost changes that it had acknowledged"),
            Self::Emptied => ("emptied", "was emptied"),
            Self::Altered => ("altered", "has a different mapping or pipeline than it was given"),
            Self::OlderFormat => ("older_format", "is of an older format"),
        }
    }
}

impl ServerTrouble {
    fn texts(&self) -> (&'static str, String, String) {
        let waits = || "nothing is lost: the indexer goes on when OpenSearch works".to_owned();
        match self {
            Self::Silent => ("silent", "OpenSearch does not answer in time".to_owned(), waits()),
            Self::Unreachable => (
                "unreachable",
                "OpenSearch cannot be reached".to_owned(),
                "start it, or correct search.opensearch_url".to_owned(),
            ),
            Self::Unauthorized => (
                "unauthorized",
                "OpenSearch refuses user and password (401)".to_owned(),
                "correct the user and password of search.opensearch_url".to_owned(),
            ),
            Self::Forbidden(reason) => (
                "forbidden",
                format!("OpenSearch forbids to look at the index (403): {reason}"),
                "give the user all rights on the indices tagfast-content*, and remove blocks"
                    .to_owned(),
            ),
            Self::Overloaded => {
                ("overloaded", "OpenSearch is overloaded (429)".to_owned(), waits())
            }
            Self::Failing(status, reason) => {
                ("failing", format!("OpenSearch answers {status}: {reason}"), waits())
            }
            Self::Garbage => (
                "garbage",
                "what answers is not OpenSearch".to_owned(),
                "correct search.opensearch_url".to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests;
