//! The stack itself: roles, faults, and that it leaves nothing behind.

use std::time::Duration;

use tagfast_testkit::stack::{Fault, Stack, StackOptions, host};
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
