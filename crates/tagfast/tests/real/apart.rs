//! Every role in a process of its own, and two of each role that shares work: one process serves
//! writes, others publish, index, count and handle dead letters, while some of them die.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use tagfast_testkit::stack::{Fault, Stack, StackOptions};
use tagfast_testkit::{Client, ServerOptions, ServerProcess, wait_for_condition};

use crate::events::{Writer, agree, bus_lock, no_drift};
use crate::{TEST_TIMEOUT, full, wait_until_ready};

fn role(stack: &Stack, role: &str, place: &str) -> ServerProcess {
    ServerOptions::other(env!("CARGO_BIN_EXE_tagfast"))
        .arg("--config")
        .arg(&stack.info().config)
        .arg("--role")
        .arg(role)
        .arg("--data-dir")
        .arg(stack.info().config.with_file_name(place))
        .env("TAGFAST__DEAD_LETTERS__AUTO_REPLAY_DELAY_MS", "60000")
        .serve()
        .start()
}

/// Writes records that no consumer can decode into a partition that is in use.
fn poison(stack: &Stack, payloads: &[&[u8]]) {
    let brokers = stack.info().kafka.as_ref().expect("Kafka").bootstrap.to_string();
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a producer");
    for (n, payload) in payloads.iter().enumerate() {
        let key = format!("default/page/poison-{n}");
        let record = BaseRecord::to("tagfast.taggings.v1").partition(0).key(&key).payload(*payload);
        producer.send(record).map_err(|(error, _)| error).expect("it is taken");
    }
    producer.flush(TEST_TIMEOUT).expect("it is written");
}

fn dead_letters(client: &mut Client, query: &str) -> Vec<Value> {
    let page = client.get(&format!("/v1/dead-letters?{query}")).expect(200).json();
    page["items"].as_array().expect("dead letters").clone()
}

/// Waits until a new tag is found; returns how long that took.
fn found_after(client: &mut Client, tag: &str) -> Duration {
    let started = Instant::now();
    client.put(&format!("/v1/content/page/1/tags/{tag}")).expect(200);
    wait_for_condition("it is found", TEST_TIMEOUT, || {
        let answer = client.get(&format!("/v1/search?q={tag}"));
        if answer.status == 200 && answer.json()["hits"][0]["id"] == "1" {
            Ok(())
        } else {
            Err(answer.text())
        }
    });
    client.delete(&format!("/v1/content/page/1/tags/{tag}")).expect(200);
    started.elapsed()
}

#[test]
fn each_role_in_a_process_of_its_own() {
    let _lock = bus_lock();
    let dir = tempfile::tempdir().expect("a folder");
    let options = StackOptions {
        kafka: true,
        opensearch: true,
        redis: true,
        ..StackOptions::clusters_only(1, dir.path())
    };
    let mut stack = Stack::up(&options, &|_| ()).expect("the stack comes up");
    let api = role(&stack, "api", "api");
    let mut relay = role(&stack, "relay", "relay-1");
    let mut indexers = [role(&stack, "indexer", "indexer-1"), role(&stack, "indexer", "indexer-2")];
    let mut analytics = role(&stack, "analytics", "analytics-1");
    let replayer = role(&stack, "replayer", "replayer");
    let mut client = api.client().with_timeout(TEST_TIMEOUT);
    for server in [&api, &relay, &indexers[0], &indexers[1], &analytics, &replayer] {
        wait_until_ready(&mut server.client().with_timeout(TEST_TIMEOUT));
    }
    found_after(&mut client, "first");

    // Each reports its role, and does nothing else.
    let status = relay.client().get("/v1/status").expect(200).json();
    assert_eq!((&status["roles"], &status["consumers"]), (&json!("relay"), &json!([])), "{status}");
    assert_eq!(
        indexers[0].client().get("/v1/status").expect(200).json()["consumers"][0]["group"],
        "indexer"
    );
    assert_eq!(relay.client().get("/v1/content/page/1/tags").status, 404);
    assert!(
        replayer.client().get("/metrics").expect(200).text().contains("tagfast_dead_letters_open")
    );

    // A process that only serves the API knows the age of the index, although two others feed it.
    wait_for_condition("the age of the index is known", Duration::from_secs(15), || {
        let page = client.get("/v1/search?type=page").expect(200).json();
        let young = page["meta"]["age_ms"].as_u64().is_some_and(|age| age < 10_000);
        if young { Ok(()) } else { Err(page["meta"].to_string()) }
    });

    let writer = Writer::start(&api);
    writer.goes_on();
    // A second relay stands by and takes over when the first one dies.
    let standby = role(&stack, "relay", "relay-2");
    wait_until_ready(&mut standby.client().with_timeout(TEST_TIMEOUT));
    relay.kill();
    let took_over = found_after(&mut client, "taken-over");
    assert!(took_over < Duration::from_secs(5), "{took_over:?}");
    writer.goes_on();

    // An indexer dies again and again, somewhere between applying and committing; the other one and
    // the next one go on.
    for _ in 0..if full() { 20 } else { 4 } {
        indexers[1].kill();
        indexers[1] = role(&stack, "indexer", "indexer-2");
        writer.goes_on();
    }

    // A second counter joins, then the first one dies: partitions move with their counts.
    let other = role(&stack, "analytics", "analytics-2");
    wait_until_ready(&mut other.client().with_timeout(TEST_TIMEOUT));
    writer.goes_on();
    analytics.kill();
    // The state Redis dies and comes back empty: the last good leaderboard is served, marked so.
    let popular = "/v1/tags/popular?window=all&limit=100";
    client.get(popular).expect(200);
    stack.fault(Fault::Freeze, "state-redis").expect("frozen");
    stack.fault(Fault::Kill, "state-redis").expect("killed");
    writer.goes_on();
    wait_for_condition("the leaderboard is stale", TEST_TIMEOUT, || {
        let meta = client.get(popular).expect(200).json()["meta"].clone();
        let marked = meta["stale"] == true && meta["degraded"][0]["feature"] == "popular";
        if marked { Ok(()) } else { Err(meta.to_string()) }
    });
    stack.fault(Fault::Restart, "state-redis").expect("started again");
    writer.end();
    agree(&mut client);
    no_drift(&mut other.client().with_timeout(TEST_TIMEOUT));

    // Poison of every kind in the middle of it, found through the API.
    let unknown = br#"{"specversion":"1.0","type":"tagfast.taggings.v9"}"#;
    let large = vec![b'x'; 900_000];
    poison(&stack, &[b"\xff\xfe", b"{}", unknown, &large]);
    let open = wait_for_condition("both groups park all", TEST_TIMEOUT, || {
        let open = dead_letters(&mut client, "limit=100");
        if open.len() == 8 { Ok(open) } else { Err(format!("{} dead letters", open.len())) }
    });
    assert!(
        open.iter()
            .all(|dead_letter| dead_letter["class"] == "poison"
                && dead_letter["tenant"] == "default"),
        "{open:?}"
    );
    let id = open[0]["id"].as_str().expect("an id").replace('/', "%2F");
    client.get(&format!("/v1/dead-letters/{id}")).expect(200);
    let job = client
        .post("/v1/dead-letters:replay", &json!({"filter": {"group": "indexer"}}))
        .expect(200)
        .json();
    assert_eq!(job["dead_letters"], 4, "{job}");
    let path = format!("/v1/jobs/{}", job["id"].as_str().expect("an id"));
    let ended = wait_for_condition("the replay", TEST_TIMEOUT, || {
        let job = client.get(&path).expect(200).json();
        if job["left"] == 0 { Ok(job) } else { Err(job.to_string()) }
    });
    assert_eq!(ended["failed"], 4, "no consumer can decode them: {ended}");
    let gone = json!({"all": true, "reason": "a test wrote them"});
    assert_eq!(
        client.post("/v1/dead-letters:discard", &gone).expect(200).json(),
        json!({"discarded": 8})
    );
    assert_eq!(dead_letters(&mut client, "state=open"), Vec::<Value>::new());
    agree(&mut client);
    no_drift(&mut other.client().with_timeout(TEST_TIMEOUT));

    for mut server in [api, standby, other, replayer].into_iter().chain(indexers) {
        server.stop();
    }
}
