//! The one table of configuration keys: names, types, defaults and what each does.
//!
//! The structs of the first stage ([`super::raw`]), the check for unknown keys, the environment's
//! types, `config print` and `docs/configuration.md` are all made from this table, so that none can
//! forget a key.

use serde::Deserialize;

/// The type of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A whole number, not negative.
    Number,
    /// A number with a fraction.
    Fraction,
    /// `true` or `false`.
    Flag,
    /// A list of strings; in the environment separated by commas.
    List,
}

impl Kind {
    /// The word in the documentation and in errors.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Number => "whole number",
            Self::Fraction => "number",
            Self::Flag => "true or false",
            Self::List => "list of texts",
        }
    }
}

/// Where a key has an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// In both ways to run.
    Both,
    /// Only with `store.kind = "embedded"`.
    Embedded,
    /// Only with `store.kind = "postgres"`.
    Cluster,
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The table it is in.
    pub section: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The default as TOML; empty = unset.
    pub default: &'static str,
    /// Where it has an effect.
    pub scope: Scope,
    /// What it does.
    pub doc: &'static str,
    /// What goes wrong with a wrong value; for numbers in both directions.
    pub wrong: &'static str,
}

impl Key {
    /// `section.name`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The name in the environment.
    pub fn env_name(&self) -> String {
        format!("TAGFAST__{}__{}", self.section.to_uppercase(), self.name.to_uppercase())
    }

    /// Whether its value may hold a password (connection URLs).
    pub fn may_hold_secret(&self) -> bool {
        self.name.ends_with("_url")
    }
}

macro_rules! rust_type {
    (Text) => { String };
    (Number) => { u64 };
    (Fraction) => { f64 };
    (Flag) => { bool };
    (List) => { Vec<String> };
}

macro_rules! config_keys {
    ($( $section:ident $type:ident $section_doc:literal {
        $( $key:ident $kind:ident $scope:ident = $default:literal
            $doc:literal
            $wrong:literal; )+
    } )+) => {
        /// Every key.
        pub const KEYS: &[Key] = &[ $( $( Key {
            section: stringify!($section), name: stringify!($key), kind: Kind::$kind, default: $default,
            scope: Scope::$scope, doc: $doc, wrong: $wrong,
        }, )+ )+ ];

        /// Every section with what it is about.
        pub const SECTIONS: &[(&str, &str)] = &[ $( (stringify!($section), $section_doc), )+ ];

        /// The first stage: what somebody wrote, typed but not judged. `None` = not set.
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct RawConfig { $( #[doc = $section_doc] pub $section: $type, )+ }

        $(
            #[doc = $section_doc]
            #[derive(Debug, Clone, Default, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $type { $( #[doc = $doc] #[doc = $wrong] pub $key: Option<rust_type!($kind)>, )+ }
        )+
    };
}

config_keys! {
    server RawServer "Where the server listens and how much it takes on." {
        listen Text Both = "\"127.0.0.1:7070\""
            "Address and port of the HTTP server. Port 0 takes a free one, which the log names."
            "An address that other machines reach needs `auth.mode = \"jwt\"`; without it the server does not start.";
        signing_key_file List Both = ""
            "Files with the keys of consistency tokens, receipts and cursors: 64 hexadecimal digits each. The first signs, all are accepted. Embedded default: `token.key` in the data directory, made at the first start."
            "Removing a key makes the tokens, receipts and cursors it signed worthless; another file per node makes the nodes refuse each other's tokens.";
        worker_threads Number Both = "0"
            "Threads that serve requests; 0 = one per processor."
            "Too high: threads compete and the tail of latencies grows. Too low: processors idle while requests wait.";
        max_connections Number Both = "10000"
            "Connections at a time; more wait to be accepted."
            "Too high: memory and file descriptors run out under a flood. Too low: clients wait although the server is idle.";
        max_body_bytes Number Both = "1048576"
            "Largest request body in bytes."
            "Too high: few clients can fill the memory. Too low: batches of long tags are refused with 413.";
        max_url_bytes Number Both = "8192"
            "Longest URL in bytes."
            "Too high: long search queries cost parsing time. Too low: long queries and encoded ids are refused with 414.";
        max_batch_items Number Both = "500"
            "Items in one batch request."
            "Too high: one request holds the queues for long. Too low: imports need many requests; below 1 nothing works.";
        request_timeout_ms Number Both = "10000"
            "How long a request may take in all, in milliseconds."
            "Too high: callers wait for answers nobody needs any more. Too low: slow but healthy requests fail.";
        header_timeout_ms Number Both = "10000"
            "How long a client may take to send a request's head, in milliseconds."
            "Too high: slow clients hold connections. Too low: clients behind slow links are cut off.";
        drain_timeout_ms Number Both = "10000"
            "How long requests in flight may take to finish after a stop was asked for, in milliseconds."
            "Too high: a stop takes long. Too low: requests are cut off and their outcome is unknown to the client.";
    }
    auth RawAuth "Who may call." {
        mode Text Both = "\"none\""
            "`none`: everybody is user `anonymous` of tenant `default` with every scope, accepted on loopback addresses only. `jwt`: bearer tokens with the claims `tenant`, `sub` and `scope`."
            "`none` lets every local user read and write everything.";
        hs256_secret_file Text Both = ""
            "File with the secret of HS256 tokens, at least 32 bytes; surrounding blanks are cut off."
            "Whoever reads the file can make tokens of any tenant: mode 0600.";
        jwks Text Both = ""
            "Keys of RS256, ES256 and EdDSA tokens: a file (read again when it changes) or an `https://` URL (fetched again for an unknown key id)."
            "A URL that somebody else controls lets them make tokens of any tenant.";
        audience Text Both = ""
            "Required `aud` claim."
            "Unset: tokens made for other services of the same issuer are accepted.";
        issuer Text Both = ""
            "Required `iss` claim."
            "Unset: every issuer whose key is in `auth.jwks` is accepted.";
        leeway_seconds Number Both = "60"
            "Clock skew allowed on `exp` and `nbf`, in seconds."
            "Too high: expired tokens work for long. Too low: tokens fail when clocks differ a little.";
    }
    limits RawLimits "What one user and one content may hold." {
        tags_per_content Number Both = "100"
            "Most tags on one content."
            "Too high: documents of many kilobytes, slow views and writes. Too low: users cannot tag. Lowering it keeps what is there and refuses additions.";
        requests_per_second Number Both = "0"
            "Requests per second of one user of one tenant; 0 = unlimited."
            "Too high: one client can use up the server. Too low: ordinary clients get 429.";
        burst Number Both = "0"
            "Requests of one user at once above the rate; 0 = one second's worth."
            "Too high: the rate means little over short times. Too low: pages that load many items at once get 429.";
        tenant_weights List Both = ""
            "Shares of tenants when not everything can be answered, each `TENANT=WEIGHT` with a weight of 1 to 100; every other tenant has 1. A tenant of weight 3 is let in three times as often as one of weight 1 while both wait; an idle one takes nothing."
            "A tenant with far more than the others can make them wait for as long as it asks; a tenant that is not in the list is never refused for that alone.";
    }
    store RawStore "Where tags are kept." {
        kind Text Both = "\"embedded\""
            "`embedded`: files in `store.data_dir`, no other server. `postgres`: PostgreSQL clusters under Patroni."
            "Another value does not start.";
        clusters List Cluster = ""
            "The clusters, each `SCOPE=SHARDS`: Patroni's scope and the logical shards it holds, for example `c0=0-31`, `c1=32-63`."
            "A map with gaps or overlaps is refused; a wrong one sends contents to a cluster that does not have them.";
        etcd List Cluster = ""
            "etcd's client URLs. Needs to read `/service/` and to write `/tagfast/`."
            "Without write access no epoch can be made and the clusters take no writes.";
        patroni List Cluster = ""
            "Patroni's REST addresses, each `SCOPE=URL`; they find replicas when etcd is silent at the start."
            "Without them a start while etcd is down serves no reads.";
        database Text Cluster = "\"tagfast\""
            "The database on every cluster; the role owns it."
            "A database with tables of another application is refused.";
        user Text Cluster = "\"tagfast\""
            "The role; needs `pg_monitor` and `EXECUTE` on `pg_read_file(text)`."
            "Without them replicas cannot be proven new enough and forks cannot be read.";
        password_file Text Cluster = ""
            "File with the role's password."
            "A file that others can read gives them the database.";
        tls Text Cluster = "\"off\""
            "TLS to PostgreSQL: `off`, `verify-ca` (a certificate of our authority) or `verify-full` (that also names the node's address)."
            "Off, whoever can listen between the service and its databases reads every document; `verify-full` refuses certificates without the addresses that Patroni tells.";
        tls_ca_file Text Cluster = ""
            "File with the certificates (PEM) of the authorities that signed the servers' certificates."
            "With another authority's no server is believed and no cluster is reached.";
        epochs_above List Cluster = ""
            "Clusters that took over shards from another one, each `SCOPE=ORDINAL`: the ordinal of the other cluster's last epoch (`tagfast status`)."
            "Without it contents that moved may be given versions that they had before, and readers keep the older state.";
        lanes Number Cluster = "2"
            "Connections of this process that write to each cluster."
            "Too high: small batches. Too low: one connection limits all writes.";
        read_concurrency Number Cluster = "16"
            "Most read statements at once at one database node from this process. The service finds out by itself how many a node carries; this is where it stops."
            "Too high: a node that is slow gets slower before the service notices. Too low: reads are refused that the database could answer.";
        reads_per_second Number Cluster = "0"
            "Most read statements a second to one database node from this process; 0 = no fixed cap, only what the service finds out by itself."
            "Too high: without effect when a cache is lost. Too low: reads are refused, or answered stale, although the database is idle.";
        outbox_max_bytes Number Cluster = "4294967296"
            "How much disk of each cluster events may take that wait for the bus, in bytes; beyond it its writes are refused with 503 `overloaded`."
            "Too high: a long outage of the bus fills the databases' disks. Too low: a short one stops writes.";
        hold_ms Number Cluster = "10000"
            "How long a write waits for a primary, in milliseconds."
            "Too high: requests pile up while a cluster is down. Too low: users see every failover.";
        map_version Number Cluster = "1"
            "Orders shard maps; raise it with every change of `store.clusters`."
            "Too low: not raised with a change, nodes disagree about where a content is and nobody can tell which is right. Too high: harmless, the next change needs a higher one still.";
        data_dir Text Both = "\"./tagfast-data\""
            "Directory of the store, the search index and the counts, in a cluster of the counts alone; made at the first start, held by one process at a time."
            "On a network file system durability and locks are not what they promise.";
        cache_bytes Number Embedded = "33554432"
            "Memory for pages of the store's files, in bytes, over all files."
            "Too high: memory that the system's file cache would use better. Too low: reads of a large store go to the disk more often.";
        max_loss_ms Number Cluster = "1000"
            "Age of the oldest acknowledged write that no replica has, at which writes are held back, in milliseconds."
            "Too high: a dying primary takes more acknowledged writes with it. Too low: a slow replica slows all writes.";
    }
    cache RawCache "The cache shield." {
        redis_url Text Cluster = ""
            "The Redis of views: `redis://[user:password@]host:port`, or `redis+sentinel://[user:password@]host:port,host:port/name` for the primary that Sentinels name. Empty: every process keeps views for itself."
            "Without `maxmemory` it fills the machine; with `allkeys-*` as `maxmemory-policy` it is not used; with `noeviction` it keeps no views when full. Right is `volatile-lru`.";
        l1_max_bytes Number Cluster = "67108864"
            "Memory of this process for views, in bytes; 0 = none are kept in the process."
            "Too high: memory that the process needs for requests. Too low: more reads go to Redis and the database.";
        soft_ttl_seconds Number Cluster = "60"
            "How long a view in a cache answers before it is asked for anew, in seconds. It is asked for anew before that when something says that it changed."
            "Too high: a change of which a node was not told is shown late. Too low: contents that are read often are read from the database often.";
        stale_if_error_seconds Number Both = "3600"
            "The oldest answer that is given, marked as stale, when a newer one cannot be had, in seconds; 0 = never a stale one. Of views in a cluster's caches, and everywhere of popular tags, suggestions, counts, related tags and facets."
            "Too high: people see a state of long ago. Too low: more of them see an error, or an answer without a part.";
    }
    state RawState "Positions and boards of a cluster." {
        redis_url Text Cluster = ""
            "The Redis of last writes and of boards, written as `cache.redis_url`."
            "With another `maxmemory-policy` than `noeviction` it would forget silently and is not used. Behind Sentinel without `min-replicas-to-write 1`, a server that is cut off takes positions that are lost.";
    }
    kafka RawKafka "The bus of a cluster." {
        brokers List Cluster = ""
            "Bootstrap servers, `host:port`."
            "With only one of several, a start fails while that one is down.";
        partitions Number Cluster = "64"
            "Partitions of the topics."
            "Too high: more memory and open files per broker. Too low: fewer consumers can share the work; a content must never move, so it cannot change later.";
        tls Flag Cluster = "false"
            "TLS to the brokers."
            "Off, whoever can listen on the way reads every event.";
        tls_ca_file Text Cluster = ""
            "File with the certificates (PEM) of the authorities that signed the brokers' certificates; unset = the system's."
            "With another authority's no broker is believed.";
        sasl_mechanism Text Cluster = ""
            "How the password is shown: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`; unset = nobody asks."
            "`PLAIN` without TLS shows the password to whoever listens.";
        sasl_user Text Cluster = ""
            "Who we are to the brokers."
            "Without the rights to the topics and groups of tagfast the start is refused.";
        sasl_password_file Text Cluster = ""
            "File with the password."
            "A file that others can read gives them the events.";
    }
    search RawSearch "The search index." {
        opensearch_url Text Cluster = ""
            "The OpenSearch server, `http://host:port`."
            "Another cluster's index answers with another cluster's contents.";
        opensearch_shards Number Cluster = "8"
            "Shards of an index that is made; an index that is there keeps its own until `tagfast reindex`."
            "Too high: every search asks all of them. Too low: one server holds and answers too much.";
    }
    drills RawDrills "Rehearsed failures." {
        enabled Flag Cluster = "false"
            "Allows drills to inject failures into this process."
            "Where users work, a drill is a failure.";
    }
    dead_letters RawDeadLetters "Events that a consumer could not apply." {
        replay_after_ms Number Both = "300000"
            "How long after its failure a letter whose retries were used up is replayed by itself; each next time five times as long."
            "Too high: what is served of its content stays old for longer. Too low: a replay meets the same trouble.";
        replay_times Number Both = "3"
            "How often at most. After that, and for records that can never be applied, a person is called."
            "Too high: people learn late of letters that stay. Too low: they are called for what would have passed.";
        webhook_url Text Both = ""
            "Where people are told of letters that stay: `https://`, or `http://` of this machine. One message for all of them, signed, tried again."
            "Without it only metrics and alert rules tell.";
        webhook_secret_file Text Both = ""
            "File whose text signs the messages (`Tagfast-Signature`)."
            "Without it the receiver cannot tell who sent a message.";
        webhook_every_ms Number Both = "900000"
            "Between two messages of growing trouble at least."
            "Too high: growing trouble is told late. Too low: a storm of letters is a storm of messages.";
    }
    log RawLog "Logs, on stderr." {
        level Text Both = "\"info\""
            "`error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,tagfast_api=debug`."
            "`debug` and below cost time per request; `error` hides what announces a failure.";
        format Text Both = "\"auto\""
            "`text`, `json`, or `auto`: text on a terminal, JSON otherwise."
            "Text cannot be read reliably by log collectors.";
    }
    telemetry RawTelemetry "Traces." {
        otlp_endpoint Text Both = ""
            "OTLP endpoint over HTTP for traces, for example `http://127.0.0.1:4318`; unset = no traces."
            "An endpoint that does not answer costs memory for the spans that wait; they are dropped when the queue is full.";
        trace_ratio Fraction Both = "0.01"
            "Share of requests without a sampled `traceparent` that are traced, 0 to 1."
            "Too high: traces cost more than the requests. Too low: a rare failure is in no trace.";
        service_name Text Both = "\"tagfast\""
            "The `service.name` of traces."
            "Two services of one name cannot be told apart.";
    }
}

/// The key with this path.
pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.section == section && k.name == name)
}

/// The word of `known` that is nearest to `given`, if it is near enough to be a slip.
pub fn suggest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|k| (strsim::jaro_winkler(given, k), k))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_says_what_goes_wrong_in_both_directions() {
        for key in KEYS.iter().filter(|k| k.kind == Kind::Number || k.kind == Kind::Fraction) {
            assert!(
                key.wrong.contains("Too high:") && key.wrong.contains("Too low:"),
                "{}",
                key.path()
            );
        }
    }

    #[test]
    fn defaults_are_toml_of_the_key_s_type() {
        for key in KEYS.iter().filter(|k| !k.default.is_empty()) {
            let text = format!("[{}]\n{} = {}\n", key.section, key.name, key.default);
            toml::from_str::<RawConfig>(&text).unwrap_or_else(|e| panic!("{}: {e}", key.path()));
        }
    }

    #[test]
    fn the_fixed_keys_exist() {
        for (section, name) in [
            ("server", "listen"),
            ("server", "signing_key_file"),
            ("auth", "mode"),
            ("auth", "hs256_secret_file"),
            ("auth", "jwks"),
            ("store", "kind"),
            ("store", "data_dir"),
            ("store", "max_loss_ms"),
            ("cache", "redis_url"),
            ("state", "redis_url"),
            ("kafka", "brokers"),
            ("kafka", "partitions"),
            ("search", "opensearch_url"),
            ("drills", "enabled"),
        ] {
            assert!(find(section, name).is_some(), "{section}.{name}");
        }
    }

    #[test]
    fn slips_get_a_suggestion_and_other_words_do_not() {
        let names = || KEYS.iter().filter(|k| k.section == "server").map(|k| k.name);
        assert_eq!(suggest("lisen", names()), Some("listen"));
        assert_eq!(suggest("max_conections", names()), Some("max_connections"));
        assert_eq!(suggest("zebra", names()), None);
    }
}
