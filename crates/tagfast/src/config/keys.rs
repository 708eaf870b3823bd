//! The one table of configuration keys: name, type, range, default, and what each does.
//!
//! A key is one row. The check for unknown keys, the environment's types, the typed reading in the
//! modules beside this one, `config print` and `docs/reference/configuration.md` all come from the
//! row, so that none of them can forget a key or state a different default. A row that no module
//! reads is reported by the compiler as a field that is never read; a row whose setting no code
//! outside of `config/` uses fails a test.

use super::key::{ChoiceKey, FlagKey, FractionKey, Key, Kind, ListKey, NumberKey, Scope, TextKey};

macro_rules! kind {
    (Text) => { Kind::Text };
    (Flag) => { Kind::Flag };
    (List) => { Kind::List };
    (Address) => { Kind::Address };
    (Addresses) => { Kind::Addresses };
    (Webhook) => { Kind::Webhook };
    (Choice $first:literal $(| $word:literal)*) => { Kind::Choice(&[$first $(, $word)*]) };
    (Number $min:literal ..= $max:literal) => { Kind::Number($min, $max) };
    (Fraction $min:literal ..= $max:literal) => { Kind::Fraction($min, $max) };
}

macro_rules! typed_key {
    (Text) => {
        TextKey
    };
    (Flag) => {
        FlagKey
    };
    (List) => {
        ListKey
    };
    (Address) => {
        TextKey
    };
    (Addresses) => {
        ListKey
    };
    (Webhook) => {
        TextKey
    };
    (Choice) => {
        ChoiceKey
    };
    (Number) => {
        NumberKey
    };
    (Fraction) => {
        FractionKey
    };
}

macro_rules! key {
    ($section:ident $key:ident $kind:ident ($($range:tt)*) $scope:ident $default:literal
        $read_as:literal $doc:literal $wrong:literal) => {
        Key {
            section: stringify!($section),
            name: stringify!($key),
            kind: kind!($kind $($range)*),
            default: $default,
            scope: Scope::$scope,
            read_as: $read_as,
            doc: $doc,
            wrong: $wrong,
        }
    };
}

macro_rules! config_keys {
    ($( $section:ident $const:ident $type:ident $section_doc:literal {
        $( $key:ident $kind:ident $(($($range:tt)*))? $scope:ident = $default:literal,
            $read_as:literal, $doc:literal, $wrong:literal; )+
    } )+) => {
        /// Every key, in the order of the documentation.
        pub const KEYS: &[Key] = &[ $( $(
            key!($section $key $kind ($($($range)*)?) $scope $default $read_as $doc $wrong),
        )+ )+ ];

        /// Every section with its subject.
        pub const SECTIONS: &[(&str, &str)] = &[ $( (stringify!($section), $section_doc), )+ ];

        $(
            #[doc = $section_doc]
            pub(super) struct $type { $( pub(super) $key: typed_key!($kind), )+ }

            #[doc = $section_doc]
            pub(super) const $const: $type = $type { $( $key: typed_key!($kind)(
                key!($section $key $kind ($($($range)*)?) $scope $default $read_as $doc $wrong)
            ), )+ };
        )+
    };
}

config_keys! {
    server SERVER ServerKeys "Where the server listens and how much it takes on." {
        listen Text Both = "\"127.0.0.1:7070\"", "config.listen",
            "Address and port of the HTTP server. Port 0 takes a free one, which the log names.",
            "An address that other machines can reach needs `auth.mode = \"jwt\"`; without it the \
             server does not start.";
        allowed_hosts List Both = "", "config.allowed_hosts",
            "Names by which clients call the server, each `HOST` (any port) or `HOST:PORT`. \
             Loopback addresses, `localhost` and the address in `server.listen` always count. A \
             request that names a different host is refused with 421 `host_not_allowed`; with \
             `auth.mode = \"jwt\"` only if this is set. A web page of these names may change tags.",
            "A name that other people control lets their web pages read and write everything while \
             `auth.mode` is `none`. A missing one: clients that use it are refused.";
        signing_key_file List Both = "", "config.signing_keys()",
            "Files with the keys of consistency tokens, receipts and cursors: 64 hexadecimal \
             digits each. The first key signs, all are accepted; the files are read again when \
             they change. Embedded default: `token.key` in the data directory, made at the first \
             start.",
            "Removing a key makes the tokens, receipts and cursors that it signed worthless; with \
             a different file per node, each node refuses the tokens of the others.";
        worker_threads Number(0..=1024) Both = "0", "config.worker_threads",
            "Threads that serve requests; 0 = one per processor.",
            "Too high: threads compete and the tail of latencies grows. Too low: processors idle \
             while requests wait.";
        max_connections Number(1..=1_000_000) Both = "10000", "limits.connections",
            "Open connections; further clients wait to be accepted.",
            "Too high: memory and file descriptors run out under a flood. Too low: clients wait \
             although the server is idle.";
        max_body_bytes Number(1024..=1_073_741_824) Both = "1048576", "limits.body_bytes",
            "Largest request body, in bytes.",
            "Too high: few clients can fill the memory. Too low: batches of long tags are refused \
             with 413.";
        max_url_bytes Number(256..=65_000) Both = "8192", "limits.url_bytes",
            "Longest URL, in bytes.",
            "Too high: long search queries cost parsing time. Too low: long queries and encoded \
             ids are refused with 414.";
        max_batch_items Number(1..=10_000) Both = "500", "limits.batch_items",
            "Items in one batch request.",
            "Too high: one request occupies the write queues. Too low: imports need many requests.";
        request_timeout_ms Number(1..=3_600_000) Both = "10000", "limits.request_timeout",
            "How long a request may take in all, in milliseconds.",
            "Too high: the server works on answers that no caller waits for. Too low: slow but \
             healthy requests fail.";
        header_timeout_ms Number(1..=3_600_000) Both = "10000", "limits.header_timeout",
            "How long a client may take to send the head of a request, in milliseconds.",
            "Too high: slow clients occupy connections. Too low: clients behind slow links are cut \
             off.";
        write_timeout_ms Number(100..=3_600_000) Both = "20000", "limits.write_timeout",
            "How long an answer may wait for its client to accept 16 KiB of it or what is left, in \
             milliseconds; then the connection is closed. It is 2 s while more than half of \
             `server.max_in_flight_bytes` is in use.",
            "Too high: clients that do not read their answers keep them in memory. Too low: \
             clients behind slow links are cut off.";
        max_in_flight_bytes Number(4096..=1_099_511_627_776) Both = "134217728",
            "limits.in_flight_bytes",
            "Bytes that request bodies and answers may hold in memory over all connections. Beyond \
             it requests are refused with 503 `overloaded`; a quarter is reserved for those of at \
             most 256 KiB. At least four times `server.max_body_bytes`.",
            "Too high: clients that send and do not read can fill the memory. Too low: large \
             batches and exports are refused although there is memory for them.";
        drain_timeout_ms Number(1..=3_600_000) Both = "10000", "limits.drain_timeout",
            "How long requests in flight may take to finish after a stop signal, in milliseconds.",
            "Too high: a stop takes long. Too low: requests are cut off, and their clients do not \
             know the outcome.";
    }
    auth AUTH AuthKeys "Who may call." {
        mode Choice("none" | "jwt") Both = "\"none\"", "config.auth",
            "`none`: every caller is user `anonymous` of tenant `default` with every scope, \
             accepted on loopback addresses only. `jwt`: bearer tokens with the claims `tenant`, \
             `sub` and `scope`.",
            "`none` lets every local user read and write everything.";
        hs256_secret_file Text Both = "", "config.token_secret()",
            "File with the secret of HS256 tokens, at least 32 bytes; whitespace around it is cut \
             off. It is read again when it changes; tokens of the former secret are refused then.",
            "Anyone who reads the file can make tokens of any tenant: mode 0600.";
        jwks Address Both = "", "config.auth",
            "Keys of RS256, ES256 and EdDSA tokens, as a JSON Web Key Set of at most 1 MiB: a file \
             or an `https://` URL (`http://` on loopback addresses alone). A key that a file no \
             longer has is refused after a second, one that a URL no longer has after ten \
             minutes; for an unknown key id a URL is fetched again, at most every 30 s. A set that \
             cannot be loaded within 5 s, or that has no usable key, replaces nothing: the known \
             keys stay in force, and `/readyz` and `tagfast status` name `auth` as degraded.",
            "Anyone who controls the URL can make tokens of any tenant. To withdraw the only key, \
             put a new one into its place.";
        audience Text Both = "", "config.auth",
            "Required `aud` claim.",
            "Unset: tokens made for other services of the same issuer are accepted.";
        issuer Text Both = "", "config.auth",
            "Required `iss` claim.",
            "Unset: every issuer whose key is in `auth.jwks` is accepted.";
        leeway_seconds Number(0..=86_400) Both = "60", "config.auth",
            "Clock skew allowed on `exp` and `nbf`, in seconds.",
            "Too high: expired tokens stay valid. Too low: tokens fail when clocks differ a \
             little.";
    }
    limits LIMITS LimitKeys "What one user and one content may hold." {
        tags_per_content Number(1..=10_000) Both = "100", "limits.tags_per_content",
            "Tags on one content.",
            "Too high: documents of many kilobytes, slow views and writes. Too low: users cannot \
             tag. After lowering it, existing tags stay and additions are refused.";
        requests_per_second Number(0..=10_000_000) Both = "0", "limits.requests_per_second",
            "Requests per second of one user of one tenant; 0 = unlimited.",
            "Too high: one client can use up the server. Too low: ordinary clients get 429.";
        burst Number(0..=10_000_000) Both = "0", "limits.burst",
            "Requests that one user may send at once above the rate; 0 = one second's worth.",
            "Too high: the rate has no effect over short times. Too low: pages that load many \
             items at once get 429.";
        tenant_weights List Both = "", "config.tenant_weights",
            "Shares of tenants while the server cannot answer everything, each `TENANT=WEIGHT` \
             with a weight of 1 to 100; every other tenant has weight 1. While both wait, a tenant \
             of weight 3 is served three times as often as one of weight 1; an idle tenant takes \
             nothing.",
            "A tenant with a far larger weight than the others can make them wait for as long as \
             it sends requests; a tenant that is not in the list is never refused for that alone.";
    }
    store STORE StoreKeys "Where tags are kept." {
        kind Choice("embedded" | "postgres") Both = "\"embedded\"", "config.postgres",
            "`embedded`: files in `store.data_dir`, no other server. `postgres`: PostgreSQL \
             clusters under Patroni.",
            "A different value does not start.";
        clusters List Cluster = "", "postgres.clusters",
            "The clusters, each `SCOPE=SHARDS`: Patroni's scope and the logical shards it holds, \
             for example `c0=0-31`, `c1=32-63`.",
            "A map with gaps or overlaps is refused; a wrong one sends contents to a cluster that \
             does not have them.";
        etcd Addresses Cluster = "", "postgres.etcd",
            "etcd's client URLs. The service must be able to read `/service/` and to write \
             `/tagfast/`.",
            "Without write access no epoch can be made and the clusters take no writes.";
        etcd_user Text Cluster = "", "postgres.etcd_login",
            "The user in an etcd that asks for one (`etcdctl auth enable`); needs \
             `store.etcd_password_file`. Its role needs `read` on the prefix `/service/` and \
             `readwrite` on the prefix `/tagfast/v1/`.",
            "Without it an etcd that asks for a user answers nothing: no leader is known, and the \
             clusters take no writes.";
        etcd_password_file Text Cluster = "", "postgres.etcd_login",
            "File with the password of `store.etcd_user`; read again when it changes.",
            "A file that other users can read lets them mint epochs, which stops writes.";
        patroni Addresses Cluster = "", "c.patroni",
            "Patroni's REST addresses, each `SCOPE=URL`; they find replicas when etcd does not \
             answer at the start.",
            "Without them a start while etcd is down serves no reads.";
        database Text Cluster = "\"tagfast\"", "postgres.database",
            "The database on every cluster; the role owns it.",
            "A database with tables of a different application is refused.";
        user Text Cluster = "\"tagfast\"", "postgres.user",
            "The role; it needs `pg_monitor` and `EXECUTE` on `pg_read_file(text)`.",
            "Without these rights replicas cannot be proven fresh enough and forked timelines \
             cannot be read.";
        password_file Text Cluster = "", "postgres.password()",
            "File with the role's password; read again when it changes.",
            "A file that other users can read gives them the database.";
        tls Choice("off" | "verify-ca" | "verify-full") Cluster = "\"off\"", "postgres.tls_names()",
            "TLS to PostgreSQL: `off`, `verify-ca` (a certificate of a known authority) or \
             `verify-full` (that also names the node's address).",
            "Off, anyone on the network path between the service and its databases can read every \
             document; `verify-full` refuses certificates without the addresses that Patroni \
             reports.";
        tls_ca_file Text Cluster = "", "postgres.tls_authorities()",
            "File with the certificates (PEM) of the authorities that signed the servers' \
             certificates; read again when it changes.",
            "With a wrong authority every server is refused and no cluster is reached.";
        epoch_floors List Cluster = "", "c.epoch_floor",
            "Clusters that took over shards from a different one, each `SCOPE=ORDINAL`: the \
             ordinal of the other cluster's last epoch (`tagfast status`).",
            "Without it moved contents may get versions that they had before, and readers keep the \
             older state.";
        writer_connections Number(1..=16) Cluster = "2", "postgres.writer_connections",
            "Connections of this process that write to each cluster.",
            "Too high: small batches. Too low: one connection limits all writes.";
        read_concurrency Number(1..=1024) Cluster = "16", "postgres.read_concurrency",
            "Upper bound of concurrent read statements at one database node from this process. \
             The service measures how many a node can serve; this is where it stops.",
            "Too high: a slow node gets slower before the service notices. Too low: reads are \
             refused that the database could answer.";
        reads_per_second Number(0..=10_000_000) Cluster = "0", "postgres.reads_per_second",
            "Upper bound of read statements per second to one database node from this process; \
             0 = no fixed bound, only the measured one.",
            "Too high: without effect when a cache is lost. Too low: reads are refused, or \
             answered stale, although the database is idle.";
        replica_max_age_ms Number(1000..=3_600_000) Cluster = "3000", "postgres.replica_age_max",
            "How old a replica may be, in milliseconds: one that is not proven to show everything \
             acknowledged before this time is not read while the primary answers, and what it \
             answers is marked as stale.",
            "Too high: `eventual` views are that old without a mark. Too low: a replica that \
             replays a burst sends its reads to the primary.";
        outbox_max_bytes Number(1_048_576..=1_125_899_906_842_624) Cluster = "4294967296",
            "postgres.outbox_max_bytes",
            "Disk space on each cluster for events that wait for the bus, in bytes; a cluster \
             beyond it refuses writes with 503 `overloaded`.",
            "Too high: a long outage of the bus fills the databases' disks. Too low: a short one \
             stops writes.";
        synchronous_commit Choice("local" | "on") Cluster = "\"local\"",
            "postgres.synchronous_commit",
            "What a write waits for before it is acknowledged, as PostgreSQL's setting: `local`, \
             the primary's disk; `on`, also the disks of the synchronous standbys that Patroni's \
             `synchronous_mode` names.",
            "With `local`, a failover can lose acknowledged writes, also in a cluster with \
             synchronous standbys. With `on`, a write takes the way to the standby and back \
             longer, and none is acknowledged while Patroni names a standby that does not answer.";
        max_loss_ms Number(200..=60_000) Cluster = "1000", "postgres.max_loss",
            "The span of acknowledged writes that one failover may lose, in milliseconds. Near it \
             writes are throttled; beyond it they wait for a replica, then they are refused with \
             503 `replication_lag`.",
            "Too high: a failover loses as much, and has more to repair. Too low: a short stall of \
             both replicas holds writes; below 200 their ordinary lag would.";
        on_lag Choice("hold" | "availability") Cluster = "\"hold\"", "postgres.on_lag",
            "What happens to writes beyond `store.max_loss_ms`: `hold`, they wait for a replica, \
             then they are refused; `availability`, they are acknowledged, and the answer says \
             that no replica has them.",
            "With `hold`, a cluster whose replicas are all away takes no writes. With \
             `availability`, the loss of a failover has no bound.";
        replicated_means Choice("all" | "one") Cluster = "\"all\"", "postgres.replicated_means",
            "What `Durability: replicated` waits for: `all` replicas that stream, or `one`.",
            "With `one`, a write can be lost when a different replica is promoted. With `all`, \
             the slowest replica sets the time that such a write takes.";
        journal_dir Text Cluster = "", "postgres.journal_dir",
            "Directory for a copy of the journals on disk, of one process alone; unset = no copy. A \
             process that dies and is started again with it repairs what a failover lost of its \
             acknowledged writes, but for those of the last 100 ms.",
            "Without it, what a process acknowledged is lost if it dies with the primary, unless a \
             replica has it. With it, the repair after a failover stays open for up to a minute \
             while a process that died does not come back. On a slow disk the copy is older.";
        journal_max_bytes Number(1_048_576..=1_099_511_627_776) Cluster = "268435456",
            "postgres.journal_max_bytes",
            "Memory for each cluster's journal of acknowledged writes that not every replica has, \
             in bytes; its copy in `store.journal_dir` takes as much on disk.",
            "Too high: a replica that is away for long takes as much memory. Too low: the journal \
             forgets writes, and what a failover loses of them is neither repaired nor listed one \
             by one.";
        primary_wait_ms Number(0..=600_000) Cluster = "10000", "postgres.primary_wait",
            "How long a write waits for a primary, in milliseconds.",
            "Too high: requests pile up while a cluster is down. Too low: users see every \
             failover.";
        shard_map_version Number(0..=9_223_372_036_854_775_807) Cluster = "1",
            "postgres.shard_map_version",
            "Orders shard maps; raise it with every change of `store.clusters`.",
            "Too low: not raised with a change, nodes disagree about the place of a content and \
             cannot tell which map is right. Too high: harmless; the next change needs an even \
             higher one.";
        data_dir Text Both = "\"./tagfast-data\"", "config.data_dir",
            "Directory of the store, the search index and the counts, in a cluster of the counts \
             alone; made at the first start, used by one process at a time.",
            "On a network file system, durability and locks do not hold.";
        page_cache_bytes Number(1_048_576..=1_099_511_627_776) Embedded = "33554432",
            "config.page_cache_bytes",
            "Memory for pages of the store's files, in bytes, over all files.",
            "Too high: memory that the system's file cache would use better. Too low: reads of a \
             large store go to the disk more often.";
    }
    cache CACHE CacheKeys "The caches in front of the databases." {
        redis_url Address Cluster = "", "config.cache.redis",
            "The Redis of cached views: `redis://[user:password@]host:port`, or \
             `redis+sentinel://[user:password@]host:port,host:port/name` for the primary that \
             Sentinels name. Unset: every process caches views for itself.",
            "Without `maxmemory` it fills the machine; with `allkeys-*` as `maxmemory-policy` it \
             is not used; with `noeviction` it keeps no views when full. Right is `volatile-lru`.";
        redis_password_file Text Cluster = "", "redis.password",
            "File with the password of `cache.redis_url`, in place of the URL's; read again when it \
             changes. The user stays in the URL: `redis://user@host:port`.",
            "A password in the URL cannot be changed without a restart; a file that other users \
             can read gives them the cached views.";
        sentinel_user Text Cluster = "", "redis.sentinel_user",
            "The user of the Sentinels in `cache.redis_url`; unset = the default user.",
            "A user that may not ask Sentinel for the address of the primary finds none.";
        sentinel_password_file Text Cluster = "", "redis.sentinel_password",
            "File with the Sentinels' password; read again when it changes. Unset: they ask for \
             none.",
            "Without it Sentinels that ask for a password name no primary, and this Redis is not \
             used.";
        local_max_bytes Number(0..=1_099_511_627_776) Cluster = "67108864",
            "config.cache.local_max_bytes",
            "Memory of this process for its local cache (L1) of views, in bytes; 0 = no local \
             cache.",
            "Too high: memory that the process needs for requests. Too low: more reads go to Redis \
             and the database.";
        soft_ttl_seconds Number(1..=2_592_000) Cluster = "60", "config.cache.soft_ttl",
            "How long a cached view is served before it is refreshed, in seconds. A cache \
             invalidation refreshes it earlier.",
            "Too high: a change whose invalidation was lost is shown late. Too low: contents that \
             are read often are read from the database often.";
        stale_if_error_seconds Number(0..=2_592_000) Both = "3600", "limits.max_stale",
            "Age of the oldest answer that is served, marked as stale, when a newer one cannot be \
             had, in seconds; 0 = never serve a stale one. Holds for views in a cluster's caches, \
             and in both modes for popular tags, suggestions, counts, related tags and facets.",
            "Too high: users see a state of long ago. Too low: more of them see an error, or an \
             answer without a part.";
    }
    state STATE StateKeys "Session positions and leaderboards of a cluster." {
        redis_url Address Cluster = "", "postgres.state_redis",
            "The Redis of session positions and leaderboards, written as `cache.redis_url`.",
            "With a `maxmemory-policy` other than `noeviction` it would forget silently and is not \
             used. Behind Sentinel without `min-replicas-to-write 1`, a server that is cut off \
             takes positions that are lost.";
        redis_password_file Text Cluster = "", "redis.password",
            "File with the password of `state.redis_url`, in place of the URL's; read again when it \
             changes. The user stays in the URL: `redis://user@host:port`.",
            "A password in the URL cannot be changed without a restart; a file that other users \
             can read gives them positions and leaderboards.";
        sentinel_user Text Cluster = "", "redis.sentinel_user",
            "The user of the Sentinels in `state.redis_url`; unset = the default user.",
            "A user that may not ask Sentinel for the address of the primary finds none.";
        sentinel_password_file Text Cluster = "", "redis.sentinel_password",
            "File with the Sentinels' password; read again when it changes. Unset: they ask for \
             none.",
            "Without it Sentinels that ask for a password name no primary, and this Redis is not \
             used.";
    }
    kafka KAFKA KafkaKeys
        "The event bus of a cluster. Needs a build with `--features kafka`." {
        brokers Addresses Cluster = "", "kafka.brokers",
            "Bootstrap servers, `host:port`.",
            "With only one of several, a start fails while that one is down.";
        partitions Number(1..=64) Cluster = "64", "kafka.partitions",
            "Partitions of the topics.",
            "Too high: more memory and open files per broker. Too low: fewer consumers can share \
             the work; a content must never move, so the number cannot change later.";
        tls Flag Cluster = "false", "kafka.tls",
            "TLS to the brokers.",
            "Off, anyone on the network path can read every event.";
        tls_ca_file Text Cluster = "", "kafka.tls_authorities()",
            "File with the certificates (PEM) of the authorities that signed the brokers' \
             certificates; read again when it changes; unset = the system's.",
            "With a wrong authority every broker is refused.";
        sasl_mechanism Choice("PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512") Cluster = "",
            "sasl.mechanism",
            "SASL mechanism; unset = no authentication.",
            "`PLAIN` without TLS shows the password to anyone on the network path.";
        sasl_user Text Cluster = "", "sasl.user",
            "SASL user name.",
            "Without the rights to the topics and groups of tagfast the start is refused.";
        sasl_password_file Text Cluster = "", "sasl.password()",
            "File with the SASL password; read again when it changes.",
            "A file that other users can read gives them the events.";
    }
    search SEARCH SearchKeys "The search index of a cluster." {
        opensearch_url Address Cluster = "", "search.url",
            "The OpenSearch server, `http://host:port`.",
            "The index of a different installation answers with its contents.";
        opensearch_user Text Cluster = "", "search.login",
            "The user in an OpenSearch that asks for one; needs `search.opensearch_password_file`. \
             User and password in the URL are not used then.",
            "Without the rights to the indices of tagfast nothing is indexed or found.";
        opensearch_password_file Text Cluster = "", "search.login",
            "File with the password of `search.opensearch_user`; read again when it changes.",
            "A password in the URL cannot be changed without a restart; a file that other users \
             can read gives them the index.";
        opensearch_shards Number(1..=1024) Cluster = "8", "search.shards",
            "Shards of a new index; an existing index keeps its own number until `tagfast \
             reindex`.",
            "Too high: every search asks all of them. Too low: one server holds and answers too \
             much.";
    }
    dead_letters DEAD_LETTERS DeadLetterKeys "Events that a consumer could not apply." {
        auto_replay_delay_ms Number(100..=86_400_000) Both = "300000", "dead_letters.auto_replay",
            "How long after its failure a dead letter whose retries were used up is replayed \
             automatically, in milliseconds; each further replay waits five times as long.",
            "Too high: the consumer's answers about its content stay old for longer. Too low: a \
             replay meets the same fault.";
        auto_replay_max Number(0..=10) Both = "3", "dead_letters.auto_replay",
            "Automatic replays of one dead letter. After them, and for records that can never be \
             applied, it needs attention.",
            "Too high: operators learn late of dead letters that stay. Too low: operators are \
             called for faults that would have passed.";
        webhook_url Webhook Both = "", "webhook.url",
            "URL that receives notices of dead letters that need attention, one signed message for \
             all of them, and of failovers that lost acknowledged writes, one for each: \
             `https://`, or `http://` of this machine. Retried.",
            "Unset: only metrics and alert rules report them.";
        webhook_secret_file Text Both = "", "webhook.secret()",
            "File whose text signs the messages (`Tagfast-Signature`); read again when it changes.",
            "Unset: the receiver cannot verify the sender of a message.";
        webhook_interval_min_ms Number(1000..=86_400_000) Both = "900000",
            "webhook.interval_min",
            "Shortest time between two messages about growing trouble, in milliseconds.",
            "Too high: growing trouble is reported late. Too low: a storm of dead letters is a \
             storm of messages.";
    }
    log LOG LogKeys "Logs, on stderr." {
        level Text Both = "\"info\"", "log.level",
            "`off`, `error`, `warn`, `info`, `debug` or `trace`; or one of them and other levels \
             for parts of the program, such as `info,tagfast_api=debug`. A list without a level \
             of its own leaves everything else at `info`.",
            "`debug` and below cost time per request; `error` hides the warnings before a failure.";
        format Choice("auto" | "text" | "json") Both = "\"auto\"", "log.format",
            "`text`, `json`, or `auto`: text on a terminal, JSON otherwise.",
            "Log collectors cannot parse text reliably.";
    }
    telemetry TELEMETRY TelemetryKeys "Traces." {
        otlp_endpoint Address Both = "", "telemetry.otlp_endpoint",
            "OTLP endpoint over HTTP for traces, for example `http://127.0.0.1:4318`; unset = no \
             traces.",
            "An endpoint that does not answer costs memory for the spans that wait; they are \
             dropped when the queue is full.";
        trace_ratio Fraction(0.0..=1.0) Both = "0.01", "config.trace_ratio",
            "Share of requests without a sampled `traceparent` that are traced.",
            "Too high: traces cost more than the requests. Too low: a rare failure is in no trace.";
        service_name Text Both = "\"tagfast\"", "config.service_name",
            "The `service.name` of traces.",
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
mod tests;
