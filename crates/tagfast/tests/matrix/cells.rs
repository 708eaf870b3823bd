//! The table of cells: what breaks, which sources it touches, who must name it and how soon.
//!
//! A new cell is a row. Cells of one wave are broken at the same time; they share no source and no
//! word.

use tagfast_testkit::stack::{
    Fault, IndexFault, PostgresFault, RedisFault, StateFault, TopicFault,
};

/// Where answers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// `eventual` views of a process without caches.
    Replica,
    /// Views of the user who wrote, through a different process.
    Session,
    /// `eventual` views of a process with both caches.
    Cache,
    /// `/v1/tags/popular`.
    Leaderboard,
    /// `/v1/search`.
    Search,
    /// `/v1/tags/{tag}`.
    Count,
    /// `lag_seconds` of the consumers in `/v1/status`.
    Lag,
}

impl Source {
    /// Every source that answers with contents or counts.
    pub(crate) const ALL: [Self; 7] = [
        Self::Replica,
        Self::Session,
        Self::Cache,
        Self::Leaderboard,
        Self::Search,
        Self::Count,
        Self::Lag,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Replica => "replica",
            Self::Session => "session",
            Self::Cache => "cache",
            Self::Leaderboard => "leaderboard",
            Self::Search => "index",
            Self::Count => "count",
            Self::Lag => "lag",
        }
    }

    /// What is asked.
    pub(crate) const fn call(self) -> &'static str {
        match self {
            Self::Replica => "a view, `Consistency: eventual`, of a process without caches",
            Self::Session => {
                "a view without a token, by the user who wrote through another process"
            }
            Self::Cache => "a view, `Consistency: eventual`, of a process with L1 and Redis",
            Self::Leaderboard => "`/v1/tags/popular?window=all`",
            Self::Search => "`/v1/search?total=exact`",
            Self::Count => "`/v1/tags/{tag}`",
            Self::Lag => "`consumers[].lag_seconds` of `/v1/status`",
        }
    }

    /// The age of the oldest write that an unmarked answer may lack, in milliseconds.
    pub(crate) const fn bound_ms(self) -> u64 {
        match self {
            Self::Replica => 10_000,
            Self::Session => 0,
            // A view is kept for 60 s and a fifth, filled from a replica.
            Self::Cache => 82_000,
            // Derived answers are stale after 30 s, by what was proven once a second.
            Self::Leaderboard | Self::Search | Self::Count => 33_000,
            // Leaderboards are pushed once a second, and merged.
            Self::Lag => 3_000,
        }
    }
}

/// A process of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Takes the writes.
    Writer,
    /// Answers, with both caches.
    Cached,
    /// Answers, without a cache of views.
    Plain,
    Relay,
    Indexer,
    Analytics,
}

impl Place {
    pub(crate) const ALL: [Self; 6] =
        [Self::Writer, Self::Cached, Self::Plain, Self::Relay, Self::Indexer, Self::Analytics];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Writer => "writer",
            Self::Cached => "cached",
            Self::Plain => "plain",
            Self::Relay => "relay",
            Self::Indexer => "indexer",
            Self::Analytics => "analytics",
        }
    }
}

/// One step of breaking something. The steps are ended in the opposite order.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// A fault of a server; the target may also be `c0:replica`, the first replica of a cluster, or
    /// `c0:primary`.
    Server(Fault, &'static str),
    /// SIGSTOP to a process of the service.
    Freeze(Place),
    /// SIGCONT before the end of the fault.
    Thaw(Place),
    /// Waits until this number of further writes was acknowledged.
    Writes(usize),
}

/// A way to break a feed silently.
pub(crate) struct Cell {
    /// Its sentence in the documentation.
    pub(crate) what: &'static str,
    /// The kind of break.
    pub(crate) way: &'static str,
    /// The sources that it touches.
    pub(crate) sources: &'static [Source],
    /// Before the fault, while all is well.
    pub(crate) before: &'static [Step],
    pub(crate) steps: &'static [Step],
    /// What readiness or status must say: all words of one group in one entry. Empty: nothing has
    /// to be said, because no answer may be older for it.
    pub(crate) named: &'static [&'static [&'static str]],
    /// How soon, in seconds.
    pub(crate) named_within_s: u64,
    /// How soon after the end everything is as before, in seconds.
    pub(crate) healed_within_s: u64,
    /// The wave in which the quick half breaks it; `None`: only with `--full`.
    pub(crate) quick: Option<u8>,
}

/// The bound of issue and documentation for naming a cause, in seconds.
const SOON_S: u64 = 5;
/// A cause that only the age of what arrives can prove: the bound of the replicas, and [`SOON_S`].
const BY_AGE_S: u64 = 15;
const HEALED_S: u64 = 20;
/// A rebuild of index or counts from the shards.
const REBUILT_S: u64 = 45;

const fn postgres(fault: PostgresFault, target: &'static str) -> Step {
    Step::Server(Fault::State(StateFault::Postgres(fault)), target)
}

const fn index(fault: IndexFault) -> Step {
    Step::Server(Fault::State(StateFault::Index(fault)), "opensearch")
}

const fn topic(fault: TopicFault) -> Step {
    Step::Server(Fault::State(StateFault::Topic(fault)), "kafka")
}

const fn redis(fault: RedisFault, target: &'static str) -> Step {
    Step::Server(Fault::State(StateFault::Redis(fault)), target)
}

const POPULAR: &[Source] = &[Source::Leaderboard, Source::Count, Source::Lag];
const DERIVED: &[Source] = &[Source::Leaderboard, Source::Count, Source::Search, Source::Lag];
const INDEX: &[&[&str]] = &[&["search"], &["index"], &["opensearch"]];
const COUNTS: &[&[&str]] = &[&["popular"], &["leaderboard"], &["analytics"], &["count"]];
const BUS: &[&[&str]] = &[&["kafka"], &["topic"], &["bus"], &["popular"], &["search"]];
const CACHE: &[&[&str]] = &[&["cache"]];
const STATE: &[&[&str]] = &[&["popular"], &["session"], &["state"]];

/// What most cells have.
const CELL: Cell = Cell {
    what: "",
    way: "",
    sources: &[],
    before: &[],
    steps: &[],
    named: &[],
    named_within_s: SOON_S,
    healed_within_s: HEALED_S,
    quick: None,
};

pub(crate) const CELLS: &[Cell] = &[
    Cell {
        what: "the walreceiver of every replica of a cluster stands still",
        way: "stopped",
        sources: &[Source::Replica],
        steps: &[postgres(PostgresFault::StopWalReceiver, "c0")],
        named: &[&["c0", "replica"], &["c0-n"]],
        named_within_s: BY_AGE_S,
        quick: Some(1),
        ..CELL
    },
    Cell {
        what: "the walreceiver of one replica stands still, the other one streams",
        way: "stopped",
        sources: &[Source::Replica],
        steps: &[postgres(PostgresFault::StopWalReceiver, "c1:replica")],
        named: &[&["c1", "replica"], &["c1-n"]],
        named_within_s: BY_AGE_S,
        ..CELL
    },
    Cell {
        what: "replay is paused on every replica of a cluster, the stream goes on",
        way: "slow by minutes",
        sources: &[Source::Replica],
        steps: &[postgres(PostgresFault::PauseReplay, "c1")],
        named: &[&["c1", "replica"], &["c1-n"]],
        named_within_s: BY_AGE_S,
        quick: Some(2),
        ..CELL
    },
    Cell {
        what: "replay on every replica of a cluster waits three minutes behind each commit",
        way: "slow by minutes",
        sources: &[Source::Replica],
        steps: &[postgres(PostgresFault::DelayReplay, "c1")],
        named: &[&["c1", "replica"], &["c1-n"]],
        named_within_s: BY_AGE_S,
        ..CELL
    },
    Cell {
        what: "the walreceivers of a cluster stand still, then its primary hangs",
        way: "stopped",
        sources: &[Source::Replica, Source::Session],
        steps: &[
            postgres(PostgresFault::StopWalReceiver, "c0"),
            Step::Writes(20),
            Step::Server(Fault::Hang, "c0:primary"),
        ],
        named: &[&["c0"]],
        named_within_s: BY_AGE_S,
        ..CELL
    },
    Cell {
        what: "`default_transaction_read_only` is set on a primary",
        way: "read-only",
        sources: &[],
        steps: &[postgres(PostgresFault::ReadOnly, "c0")],
        named: &[&["c0", "read"]],
        quick: Some(4),
        ..CELL
    },
    Cell {
        what: "the tables of a cluster are locked by a session",
        way: "stopped",
        sources: &[],
        steps: &[postgres(PostgresFault::LockTables, "c0")],
        named: &[&["c0"]],
        ..CELL
    },
    Cell {
        what: "the password of the database role was changed, the file follows later",
        way: "wrong credentials",
        sources: &[Source::Replica],
        steps: &[postgres(PostgresFault::RotatePassword, "postgres")],
        named: &[&["c0", "password"], &["c0", "authenticat"], &["c0", "28P01"]],
        quick: Some(5),
        ..CELL
    },
    Cell {
        what: "etcd asks for a user and a password",
        way: "wrong credentials",
        sources: &[],
        steps: &[Step::Server(Fault::State(StateFault::EtcdAuth), "etcd")],
        named: &[&["etcd"]],
        quick: Some(4),
        ..CELL
    },
    Cell {
        what: "the cache Redis is restored from an older dump",
        way: "rewound",
        sources: &[Source::Cache, Source::Session],
        before: &[redis(RedisFault::Save, "redis"), Step::Writes(60)],
        steps: &[redis(RedisFault::Rewind, "redis")],
        quick: Some(1),
        ..CELL
    },
    Cell {
        what: "the cache Redis is emptied",
        way: "emptied",
        sources: &[Source::Cache, Source::Session],
        steps: &[redis(RedisFault::Flush, "redis")],
        ..CELL
    },
    Cell {
        what: "the cache Redis is frozen",
        way: "stopped",
        sources: &[Source::Cache, Source::Session],
        steps: &[Step::Server(Fault::Freeze, "redis")],
        named: CACHE,
        ..CELL
    },
    Cell {
        what: "the cache Redis asks for a password",
        way: "wrong credentials",
        sources: &[Source::Cache, Source::Session],
        steps: &[redis(RedisFault::RequirePassword, "redis")],
        named: CACHE,
        quick: Some(2),
        ..CELL
    },
    Cell {
        what: "the process that counts is frozen",
        way: "stopped",
        sources: POPULAR,
        steps: &[Step::Freeze(Place::Analytics)],
        named: COUNTS,
        named_within_s: BY_AGE_S,
        ..CELL
    },
    Cell {
        what: "the process that indexes is frozen",
        way: "stopped",
        sources: &[Source::Search, Source::Lag],
        steps: &[Step::Freeze(Place::Indexer)],
        named: INDEX,
        named_within_s: BY_AGE_S,
        ..CELL
    },
    Cell {
        what: "the process that publishes is frozen",
        way: "stopped",
        sources: DERIVED,
        steps: &[Step::Freeze(Place::Relay)],
        named: &[&["relay"], &["outbox"], &["heartbeat"], &["popular"], &["search"]],
        named_within_s: BY_AGE_S,
        quick: Some(3),
        ..CELL
    },
    Cell {
        what: "the state Redis is emptied",
        way: "emptied",
        sources: &[Source::Leaderboard, Source::Count, Source::Session],
        steps: &[redis(RedisFault::Flush, "state-redis")],
        quick: Some(2),
        ..CELL
    },
    Cell {
        what: "the state Redis is restored from an older dump",
        way: "rewound",
        sources: &[Source::Leaderboard, Source::Count, Source::Session],
        before: &[redis(RedisFault::Save, "state-redis"), Step::Writes(60)],
        steps: &[redis(RedisFault::Rewind, "state-redis")],
        ..CELL
    },
    Cell {
        what: "the state Redis asks for a password",
        way: "wrong credentials",
        sources: &[Source::Leaderboard, Source::Count, Source::Session],
        steps: &[redis(RedisFault::RequirePassword, "state-redis")],
        named: STATE,
        ..CELL
    },
    Cell {
        what: "the topic of events is deleted and created again",
        way: "recreated",
        sources: DERIVED,
        steps: &[topic(TopicFault::Recreate)],
        healed_within_s: REBUILT_S,
        ..CELL
    },
    Cell {
        what: "the topic of events is deleted",
        way: "cut",
        sources: DERIVED,
        steps: &[topic(TopicFault::Delete)],
        named: BUS,
        healed_within_s: REBUILT_S,
        ..CELL
    },
    Cell {
        what: "the topic of events has one partition more",
        way: "aliased",
        sources: DERIVED,
        steps: &[topic(TopicFault::RaisePartitions)],
        named: BUS,
        healed_within_s: REBUILT_S,
        ..CELL
    },
    Cell {
        what: "records are deleted from the topic before they were read",
        way: "emptied",
        sources: DERIVED,
        steps: &[
            Step::Freeze(Place::Analytics),
            Step::Freeze(Place::Indexer),
            Step::Writes(60),
            topic(TopicFault::DeleteRecords),
            Step::Thaw(Place::Analytics),
            Step::Thaw(Place::Indexer),
        ],
        healed_within_s: REBUILT_S,
        ..CELL
    },
    Cell {
        what: "Kafka takes requests and does not answer",
        way: "cut",
        sources: DERIVED,
        steps: &[Step::Server(Fault::Hang, "kafka")],
        named: BUS,
        named_within_s: BY_AGE_S,
        ..CELL
    },
    Cell {
        what: "the alias of the index is on a second index too",
        way: "aliased",
        sources: &[Source::Search],
        steps: &[index(IndexFault::AliasTwice)],
        named: INDEX,
        quick: Some(1),
        ..CELL
    },
    Cell {
        what: "the alias of the index is on a different, empty index",
        way: "aliased",
        sources: &[Source::Search],
        steps: &[index(IndexFault::AliasForeign)],
        named: INDEX,
        ..CELL
    },
    Cell {
        what: "the index is closed",
        way: "stopped",
        sources: &[Source::Search],
        steps: &[index(IndexFault::Close)],
        named: INDEX,
        ..CELL
    },
    Cell {
        what: "the index has a write block",
        way: "read-only",
        sources: &[Source::Search],
        steps: &[index(IndexFault::Block)],
        named: INDEX,
        ..CELL
    },
    Cell {
        what: "every document of the index is deleted",
        way: "emptied",
        sources: &[Source::Search],
        steps: &[index(IndexFault::Empty)],
        named: INDEX,
        healed_within_s: REBUILT_S,
        ..CELL
    },
    Cell {
        what: "the index is deleted",
        way: "emptied",
        sources: &[Source::Search],
        steps: &[index(IndexFault::Delete)],
        named: INDEX,
        healed_within_s: REBUILT_S,
        quick: Some(4),
        ..CELL
    },
    Cell {
        what: "the index is deleted and made again, empty",
        way: "recreated",
        sources: &[Source::Search],
        steps: &[index(IndexFault::Recreate)],
        named: INDEX,
        healed_within_s: REBUILT_S,
        ..CELL
    },
    Cell {
        what: "OpenSearch takes requests and does not answer",
        way: "cut",
        sources: &[Source::Search],
        steps: &[Step::Server(Fault::Hang, "opensearch")],
        named: INDEX,
        ..CELL
    },
];

/// The waves of a run: those of the quick half, and with `full` every other cell alone.
pub(crate) fn waves(full: bool) -> Vec<Vec<&'static Cell>> {
    let last = CELLS.iter().filter_map(|cell| cell.quick).max().unwrap_or(0);
    let of_wave = |wave| CELLS.iter().filter(move |cell| cell.quick == Some(wave)).collect();
    let alone = CELLS.iter().filter(|cell| full && cell.quick.is_none()).map(|cell| vec![cell]);
    (1..=last).map(of_wave).chain(alone).collect()
}

/// The cells whose sentence has this text, each alone.
pub(crate) fn only(text: &str) -> Vec<Vec<&'static Cell>> {
    CELLS.iter().filter(|cell| cell.what.contains(text)).map(|cell| vec![cell]).collect()
}

#[test]
fn cells_of_one_wave_do_not_disturb_each_other() {
    for wave in waves(true) {
        assert!(!wave.is_empty(), "waves are numbered without a gap");
        for (n, one) in wave.iter().enumerate() {
            for other in &wave[n + 1..] {
                let shared = one.sources.iter().find(|source| {
                    // A user's own write is shown or the answer says that it may not be,
                    // whatever else is broken.
                    **source != Source::Session && other.sources.contains(source)
                });
                assert!(shared.is_none(), "{} and {}: {shared:?}", one.what, other.what);
                let words = |cell: &Cell| cell.named.concat();
                let word = words(one).into_iter().find(|word| words(other).contains(word));
                assert!(word.is_none(), "{} and {}: {word:?}", one.what, other.what);
            }
        }
    }
    let quick: usize = waves(false).iter().map(Vec::len).sum();
    assert!((10..=14).contains(&quick), "the quick half has {quick} cells");
}
