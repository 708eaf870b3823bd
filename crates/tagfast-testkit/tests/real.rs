//! The stack itself: roles, faults, and that it leaves nothing behind.

use std::time::Duration;

use tagfast_testkit::stack::{
    Fault, IndexFault, NodeInfo, PostgresFault, RedisFault, Stack, StackOptions, StateFault,
    TopicFault, host,
};
use tagfast_testkit::wait_for_condition;

#[test]
fn a_cluster_comes_up_fails_over_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut stack =
        Stack::up(&StackOptions::clusters_only(1, dir.path()), &|_| ()).expect("it comes up");
    assert_eq!(stack.problems(), Vec::<String>::new());
    let base = stack.info().base.clone();
    let first = stack.primary("c0").expect("a primary").name;

    stack.fault(Fault::Kill, "c0").expect("killed");
    let second = wait_for_condition("another node is promoted", Duration::from_secs(30), || {
        let primary = stack.primary("c0")?.name;
        if primary == first {
            Err(anyhow::anyhow!("{primary} is still the primary"))
        } else {
            Ok(primary)
        }
    });
    stack
        .wait_until_healthy("c0", Duration::from_secs(60))
        .expect("the killed node returns as a replica");

    stack.fault(Fault::Switchover, "c0").expect("switched over");
    assert_ne!(stack.primary("c0").expect("a primary").name, second);

    let node = stack.info().clusters[0].nodes[0].clone();
    stack.fault(Fault::Refuse, &node.name).expect("refused");
    wait_for_condition("its port is closed", Duration::from_secs(5), || {
        match std::net::TcpStream::connect(node.postgres) {
            Err(_) => Ok(()),
            Ok(_) => Err("something listens"),
        }
    });
    stack.fault(Fault::Heal, &node.name).expect("healed");

    stack.fault(Fault::KillNode, &node.name).expect("killed");
    stack.fault(Fault::Restart, &node.name).expect("started again");
    stack.wait_until_healthy("c0", Duration::from_secs(60)).expect("healthy again");

    assert!(stack.fault(Fault::Kill, "unknown").is_err());
    stack.down().expect("it ends");
    assert_eq!(host::processes_of(&base), Vec::new());
    assert!(!base.exists());
}

/// Lets the last checkpoint of a primary begin in one segment of the log and end in a later one,
/// and writes more log behind it than a new primary keeps.
fn checkpoint_over_segments(stack: &Stack, primary: &NodeInfo) {
    let sql = |query: &str| stack.sql(primary, query).expect("an answer");
    sql("CREATE TABLE filler AS SELECT repeat('x', 4000) FROM generate_series(1, 60)");
    std::thread::scope(|scope| {
        // A backup that is not to be fast begins with a checkpoint that waits after each page.
        let checkpoint = scope.spawn(|| sql("SELECT pg_backup_start('slow', false)"));
        let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity \
                     WHERE backend_type = 'checkpointer' AND wait_event = 'CheckpointWriteDelay')";
        shows(stack, primary, waits, "t");
        // An empty segment is not left.
        sql("SELECT pg_logical_emit_message(false, 'filler', 'x')");
        sql("SELECT pg_switch_wal()");
        checkpoint.join().expect("it ends");
    });
    let positions = "SELECT pg_walfile_name(redo_lsn) < pg_walfile_name(checkpoint_lsn) \
                     FROM pg_control_checkpoint()";
    assert_eq!(sql(positions), "t");
    sql("SELECT count(pg_logical_emit_message(false, 'filler', repeat('x', 1000000))) \
         FROM generate_series(1, 110)");
    let end = sql("SELECT pg_current_wal_flush_lsn()");
    for replica in stack.replicas("c0").expect("replicas") {
        shows(stack, &replica, &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), "t");
    }
}

#[test]
fn a_node_whose_log_the_new_primary_has_removed_returns() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut stack =
        Stack::up(&StackOptions::clusters_only(1, dir.path()), &|_| ()).expect("it comes up");
    let first = stack.primary("c0").expect("a primary");
    checkpoint_over_segments(&stack, &first);
    // Its log must go on beyond what the replicas have: otherwise it need not be rewound.
    stack.fault(Fault::Refuse, &first.name).expect("refused");
    stack.sql(&first, "INSERT INTO filler VALUES ('lost')").expect("a row");
    stack.fault(Fault::Kill, &first.name).expect("killed");
    let log = first.data_dir.parent().expect("its folder").join("patroni.log");
    wait_for_condition("another node is promoted", Duration::from_secs(30), || {
        let primary = stack.primary("c0")?.name;
        if primary == first.name { Err(anyhow::anyhow!("{primary} leads")) } else { Ok(()) }
    });
    stack.fault(Fault::Heal, &first.name).expect("healed");
    let early = stack.wait_until_healthy("c0", Duration::ZERO).expect_err("it does not stream yet");
    let early = format!("{early:#}");
    assert!(early.contains(&format!("{} does not stream", first.name)), "{early}");
    assert!(early.contains(&format!("--- {}:\n", log.display())), "{early}");
    stack.wait_until_healthy("c0", Duration::from_secs(120)).expect("copied, it streams");
    let log = std::fs::read_to_string(&log).expect("its log");
    assert!(log.contains("has already been removed"), "it asked for what is gone");
    assert!(log.contains("replica has been created"), "it was copied");
}

#[test]
fn kafka_opensearch_and_redis_come_up_behind_the_proxy() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = StackOptions::complete(0, dir.path());
    let stack = Stack::up(&options, &|_| ()).expect("it comes up");
    assert_eq!(stack.problems(), Vec::<String>::new());
    let url = stack.info().opensearch.as_ref().expect("it is part of the stack").url.clone();
    let address = url.trim_start_matches("http://").parse().expect("an address");
    let health = tagfast_testkit::Client::new(address).get("/_cluster/health").expect(200).json();
    assert_eq!(health["number_of_nodes"], 1);
    let redis = stack.info().redis.as_ref().expect("it is part of the stack").url.clone();
    let mut stream =
        std::net::TcpStream::connect(redis.trim_start_matches("redis://")).expect("connects");
    std::io::Write::write_all(&mut stream, b"PING\r\n").expect("sent");
    let mut answer = [0; 7];
    std::io::Read::read_exact(&mut stream, &mut answer).expect("an answer");
    assert_eq!(&answer, b"+PONG\r\n");
    let base = stack.info().base.clone();
    stack.down().expect("it ends");
    assert_eq!(
        host::processes_of(&base),
        Vec::new(),
        "OpenSearch changes its working directory and is ended all the same"
    );
}

const SHOWS_WITHIN: Duration = Duration::from_secs(20);

/// Waits until a query of a node has this answer.
#[track_caller]
fn shows(stack: &Stack, node: &NodeInfo, query: &str, wanted: &str) {
    let what = format!("{query} of {}: {wanted}", node.name);
    wait_for_condition(&what, SHOWS_WITHIN, || match stack.sql(node, query) {
        Ok(found) if found == wanted => Ok(()),
        Ok(found) => Err(found),
        Err(error) => Err(format!("{error:#}")),
    });
}

#[test]
fn faults_inside_postgres_show_and_end() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut stack =
        Stack::up(&StackOptions::clusters_only(1, dir.path()), &|_| ()).expect("it comes up");
    let primary = stack.primary("c0").expect("a primary");
    let replicas = stack.replicas("c0").expect("replicas");
    stack.sql(&primary, "CREATE TABLE t (n int); ALTER TABLE t OWNER TO tagfast").expect("a table");
    let count = "SELECT count(*) FROM t";
    // A replica that is stopped before it has the table shows no count at all.
    replicas.iter().for_each(|node| shows(&stack, node, count, "0"));
    let mut rows = 0;
    for fault in
        [PostgresFault::StopWalReceiver, PostgresFault::PauseReplay, PostgresFault::DelayReplay]
    {
        for target in ["c0", replicas[0].name.as_str()] {
            let fault = Fault::State(StateFault::Postgres(fault));
            stack.fault(fault, target).expect("it begins");
            stack.sql(&primary, "INSERT INTO t VALUES (1)").expect("a row");
            rows += 1;
            // The other replica has the row when the fault is of one node.
            let (old, new) = (rows - 1, rows);
            let of_second = if target == "c0" { old } else { new };
            shows(&stack, &replicas[1], count, &of_second.to_string());
            shows(&stack, &replicas[0], count, &old.to_string());
            stack.fault(fault.end(), target).expect("it ends");
            replicas.iter().for_each(|node| shows(&stack, node, count, &new.to_string()));
        }
    }
    stack.wait_until_healthy("c0", Duration::from_secs(30)).expect("Patroni sees both stream");

    let read_only = Fault::State(StateFault::Postgres(PostgresFault::ReadOnly));
    let write = |stack: &Stack| {
        let psql = service_psql(stack, &primary, "INSERT INTO t VALUES (1)");
        String::from_utf8_lossy(&psql.stderr).into_owned()
    };
    assert_eq!(write(&stack), "");
    stack.fault(read_only, "c0").expect("it begins");
    assert!(write(&stack).contains("read-only transaction"), "{}", write(&stack));
    stack.fault(read_only.end(), "c0").expect("it ends");
    assert_eq!(write(&stack), "");

    let locked = Fault::State(StateFault::Postgres(PostgresFault::LockTables));
    stack.fault(locked, "c0").expect("it begins");
    assert!(write(&stack).contains("lock timeout"), "{}", write(&stack));
    stack.fault(locked.end(), "c0").expect("it ends");
    assert_eq!(write(&stack), "");

    let rotated = Fault::State(StateFault::Postgres(PostgresFault::RotatePassword));
    stack.fault(rotated, "postgres").expect("it begins");
    assert!(write(&stack).contains("password authentication failed"), "{}", write(&stack));
    stack.fault(rotated.end(), "postgres").expect("it ends");
    assert_eq!(write(&stack), "");

    stack.fault(Fault::State(StateFault::EtcdAuth), "etcd").expect("it begins");
    let etcd = stack.info().etcd[0].direct;
    let range = r#"{"key": "L3NlcnZpY2Uv", "range_end": "L3NlcnZpY2Uw"}"#;
    let ask = || {
        let mut client = tagfast_testkit::Client::new(etcd);
        client.request("POST", "/v3/kv/range", &[], Some(range)).expect("an answer").status
    };
    assert_ne!(ask(), 200, "etcd asks for a password");
    stack.fault(Fault::EndState(StateFault::EtcdAuth), "etcd").expect("it ends");
    assert_eq!(ask(), 200);
    stack.wait_until_healthy("c0", Duration::from_secs(60)).expect("healthy again");
    assert!(stack.fault(read_only, "redis").is_err());
}

/// A statement as the service sends it: with its role, and the password of its file.
fn service_psql(stack: &Stack, node: &NodeInfo, query: &str) -> std::process::Output {
    let database = &stack.info().database;
    let password = std::fs::read_to_string(&database.password_file).expect("the password");
    std::process::Command::new("psql")
        .env("PGPASSWORD", password)
        .env("PGOPTIONS", "-c lock_timeout=200")
        .args(["-XAtq", "-U", &database.user, "-d", &database.name, "-c", query])
        .args(["-h", &node.direct_postgres.ip().to_string()])
        .args(["-p", &node.direct_postgres.port().to_string()])
        .output()
        .expect("psql runs")
}

#[test]
fn faults_of_index_topic_and_redis_show_and_end() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut stack =
        Stack::up(&StackOptions::complete(0, dir.path()), &|_| ()).expect("it comes up");
    let opensearch = stack.info().opensearch.as_ref().expect("opensearch").direct;
    let call = |method: &str, path: &str, body: Option<&str>| {
        let mut client = tagfast_testkit::Client::new(opensearch);
        let answer = client.request(method, path, &[], body).expect("an answer");
        (answer.status, answer.json())
    };
    let alias = r#"{"settings": {"number_of_replicas": 0}, "aliases": {"tagfast-content": {}}}"#;
    let make = || {
        assert_eq!(call("PUT", "/tagfast-content-v1", Some(alias)).0, 200);
        let put = "/tagfast-content-v1/_doc/1?refresh=true";
        assert_eq!(call("PUT", put, Some(r#"{"n": 1}"#)).0, 201);
    };
    make();
    let search = || {
        let (status, answer) = call("GET", "/tagfast-content/_search", None);
        (status, answer["hits"]["total"]["value"].as_u64())
    };
    let write = || call("PUT", "/tagfast-content/_doc/2?refresh=true", Some(r#"{"n": 2}"#)).0;
    for (fault, found, written) in [
        (IndexFault::AliasTwice, (200, Some(1)), 400),
        (IndexFault::AliasForeign, (200, Some(0)), 201),
        (IndexFault::Close, (400, None), 400),
        (IndexFault::Block, (200, Some(1)), 403),
    ] {
        let fault = Fault::State(StateFault::Index(fault));
        stack.fault(fault, "opensearch").expect("it begins");
        assert_eq!((search(), write()), (found, written), "{fault:?}");
        stack.fault(fault.end(), "opensearch").expect("it ends");
        wait_for_condition("the document is found", SHOWS_WITHIN, || {
            let found = search();
            if found == (200, Some(1)) { Ok(()) } else { Err(format!("{found:?}")) }
        });
    }
    for (fault, found) in [
        (IndexFault::Recreate, (200, Some(0))),
        (IndexFault::Empty, (200, Some(0))),
        (IndexFault::Delete, (404, None)),
    ] {
        let fault = Fault::State(StateFault::Index(fault));
        stack.fault(fault, "opensearch").expect("it begins");
        assert_eq!(search(), found, "{fault:?}");
        stack.fault(fault.end(), "opensearch").expect("it ends");
        call("DELETE", "/tagfast-content-v1", None);
        make();
    }

    // The topic: as the broker describes it to a client of its own.
    let topic = |fault| Fault::State(StateFault::Topic(fault));
    let recreate = topic(TopicFault::Recreate);
    stack.fault(recreate, "kafka").expect("a topic that is not there is only created");
    for fault in [TopicFault::Delete, TopicFault::RaisePartitions, TopicFault::DeleteRecords] {
        stack.fault(topic(fault), "kafka").expect("it begins");
        stack.fault(topic(fault).end(), "kafka").expect("it ends");
    }
    stack.fault(recreate, "kafka").expect("it begins");
    stack.fault(recreate.end(), "kafka").expect("it ends");

    for target in ["redis", "state-redis"] {
        let fault = |fault| Fault::State(StateFault::Redis(fault));
        let ask = |stack: &Stack, command: &str| {
            let info = stack.info();
            let server = if target == "redis" { &info.redis } else { &info.state_redis };
            let server = server.as_ref().expect("a Redis").direct;
            redis_answers(server, command).unwrap_or_else(|error| error.to_string())
        };
        assert_eq!(ask(&stack, "SET a old"), "+OK");
        stack.fault(fault(RedisFault::Save), target).expect("kept");
        assert_eq!(ask(&stack, "SET a new"), "+OK");
        stack.fault(fault(RedisFault::Rewind), target).expect("rewound");
        assert_eq!(ask(&stack, "GETRANGE a 0 -1"), "$3 old");
        stack.fault(fault(RedisFault::Flush), target).expect("emptied");
        assert_eq!(ask(&stack, "EXISTS a"), ":0");
        stack.fault(fault(RedisFault::RequirePassword), target).expect("closed");
        let refused = ask(&stack, "EXISTS a");
        assert!(refused.starts_with("-NOAUTH"), "{refused}");
        stack.fault(fault(RedisFault::RequirePassword).end(), target).expect("opened");
        assert_eq!(ask(&stack, "EXISTS a"), ":0");
        // Its copy is not what it comes back with after an ordinary fault.
        stack.fault(Fault::Kill, target).expect("killed");
        stack.fault(Fault::Restart, target).expect("started");
        wait_for_condition("it is empty", SHOWS_WITHIN, || {
            let answer = ask(&stack, "EXISTS a");
            if answer == ":0" { Ok(()) } else { Err(answer) }
        });
    }
    assert_eq!(stack.problems(), Vec::<String>::new());
}

/// The first line that a Redis answers; for a text also the second one.
fn redis_answers(server: std::net::SocketAddr, command: &str) -> std::io::Result<String> {
    use std::io::BufRead;
    let mut stream = std::net::TcpStream::connect(server)?;
    std::io::Write::write_all(&mut stream, format!("{command}\r\n").as_bytes())?;
    let mut lines = std::io::BufReader::new(stream).lines();
    let mut line = || lines.next().unwrap_or_else(|| Ok(String::new()));
    let first = line()?;
    if first.starts_with('$') { Ok(format!("{first} {}", line()?)) } else { Ok(first) }
}
