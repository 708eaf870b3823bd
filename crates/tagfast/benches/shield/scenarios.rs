//! The faults of the servers, and the load meanwhile.

use tagfast_testkit::stack::Fault;

use crate::harness::Harness;

/// A fault that begins and ends while the load goes on.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// The server that fails and comes back: its name, `primary`, `replica`, or `nodes` for the
    /// whole cluster.
    pub(crate) faults: &'static [(&'static str, Fault)],
    /// Further actions at the beginning, repeatedly while it lasts, and at the end.
    pub(crate) begin: fn(&mut Harness),
    pub(crate) repeat: Option<fn(&mut Harness)>,
    pub(crate) end: fn(&mut Harness),
    /// Whether half of all views are of one content while it lasts.
    pub(crate) hot: bool,
    /// Immediate retries of clients that give up after half a second.
    pub(crate) retries: u32,
}

const CALM: Scenario = Scenario {
    name: "",
    what: "",
    faults: &[],
    begin: |_| (),
    repeat: None,
    end: |_| (),
    hot: false,
    retries: 0,
};

/// Links to Redis are those of the first node; the second one has a way of its own. The order of
/// the table in docs/concepts/degradation.md.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "killed",
        what: "the cache Redis is killed, and comes back empty",
        faults: &[("redis", Fault::Kill)],
        ..CALM
    },
    Scenario {
        name: "frozen",
        what: "the cache Redis is frozen: connections stay, nothing answers",
        faults: &[("redis", Fault::Freeze)],
        ..CALM
    },
    Scenario {
        name: "restarted",
        what: "the cache Redis is killed and started again at once, empty",
        begin: |w| {
            w.fault(Fault::Kill, "redis");
            w.fault(Fault::Restart, "redis");
        },
        ..CALM
    },
    Scenario {
        name: "flushed",
        what: "the cache Redis is emptied every two seconds",
        begin: |w| w.cache_redis(&["FLUSHALL"]),
        repeat: Some(|w| w.cache_redis(&["FLUSHALL"])),
        ..CALM
    },
    Scenario {
        name: "evicting",
        what: "the cache Redis has room for a tenth of the views",
        begin: |w| w.cache_redis(&["CONFIG", "SET", "maxmemory", "3mb"]),
        end: |w| w.cache_redis(&["CONFIG", "SET", "maxmemory", "256mb"]),
        ..CALM
    },
    Scenario {
        name: "full",
        what: "the state Redis is full: no position can be stored",
        begin: |w| w.state_redis(&["CONFIG", "SET", "maxmemory", "1"]),
        end: |w| w.state_redis(&["CONFIG", "SET", "maxmemory", "256mb"]),
        ..CALM
    },
    Scenario {
        name: "state-frozen",
        what: "the state Redis is frozen: positions are unknown, plain views go to the primary",
        faults: &[("state-redis", Fault::Freeze)],
        ..CALM
    },
    Scenario {
        name: "slow-50ms",
        what: "the cache Redis answers one node 50 ms later",
        faults: &[("redis", Fault::Slow { ms: 50 })],
        ..CALM
    },
    Scenario {
        name: "slow-2s",
        what: "the cache Redis answers one node 2 s later",
        faults: &[("redis", Fault::Slow { ms: 2000 })],
        ..CALM
    },
    Scenario {
        name: "half-open",
        what: "the cache Redis takes one node's calls and does not answer them",
        faults: &[("redis", Fault::Hang)],
        ..CALM
    },
    Scenario {
        name: "reset",
        what: "the cache Redis resets one node's connections",
        faults: &[("redis", Fault::Reset)],
        ..CALM
    },
    Scenario {
        name: "garbage",
        what: "the cache Redis answers one node with garbage",
        faults: &[("redis", Fault::Garbage)],
        ..CALM
    },
    Scenario {
        name: "one-node-cut",
        what: "the cache Redis can be reached from one of two nodes only",
        faults: &[("redis", Fault::Cut)],
        ..CALM
    },
    Scenario {
        name: "invalidations-cut",
        what: "connections of messages are cut every two seconds, those of data live",
        begin: |w| w.cache_redis(&["CLIENT", "KILL", "TYPE", "PUBSUB"]),
        repeat: Some(|w| w.cache_redis(&["CLIENT", "KILL", "TYPE", "PUBSUB"])),
        ..CALM
    },
    Scenario {
        name: "slow",
        what: "every statement of one replica takes half a second longer",
        faults: &[("replica", Fault::Slow { ms: 500 })],
        ..CALM
    },
    Scenario {
        name: "primary-slow",
        what: "every statement of the primary takes half a second longer",
        faults: &[("primary", Fault::Slow { ms: 500 })],
        ..CALM
    },
    Scenario {
        name: "node-hangs",
        what: "one replica hangs",
        faults: &[("replica", Fault::Hang)],
        ..CALM
    },
    Scenario {
        name: "all-slow",
        what: "every statement of all three database nodes takes half a second longer",
        faults: &[("nodes", Fault::Slow { ms: 500 })],
        ..CALM
    },
    Scenario {
        name: "both-and-replica",
        what: "both Redis are frozen and one replica hangs",
        faults: &[
            ("redis", Fault::Freeze),
            ("state-redis", Fault::Freeze),
            ("replica", Fault::Hang),
        ],
        ..CALM
    },
    Scenario {
        name: "hot-key",
        what: "half of all views are of one content, and the cache Redis is frozen",
        faults: &[("redis", Fault::Freeze)],
        hot: true,
        ..CALM
    },
    Scenario {
        name: "fleet",
        what: "clients give up after half a second and ask again three times; no cache, and all database nodes 500 ms slower",
        faults: &[("redis", Fault::Kill), ("nodes", Fault::Slow { ms: 500 })],
        retries: 3,
        ..CALM
    },
    Scenario {
        name: "stampede",
        what: "10,000 clients ask at once for one content that no cache has",
        begin: |w| w.stampede(""),
        ..CALM
    },
];
