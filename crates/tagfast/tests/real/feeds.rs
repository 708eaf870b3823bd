//! Feeds that break silently: a topic that is deleted, made again or widened under running
//! processes, and one that is made again, longer than what was read, while its readers are away.
//! Search and popular tags get everything, what breaks is named, and no age is younger than what is
//! proven.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use tagfast_testkit::stack::{Stack, StackOptions};
use tagfast_testkit::{Client, ServerOptions, ServerProcess, wait_for_condition};

use crate::events::bus_lock;
use crate::{TEST_TIMEOUT, serve, wait_until_ready};

const TOPIC: &str = "tagfast.taggings.v1";
/// How soon a cause must be named, and a little for the way there.
const NAMED_WITHIN: Duration = Duration::from_secs(6);
/// Records in each partition beyond any position of these tests.
const FILLERS: usize = 600;

/// Kafka as an operator uses it.
struct Operator {
    client: AdminClient<DefaultClientContext>,
    producer: BaseProducer,
    runtime: tokio::runtime::Runtime,
}

impl Operator {
    fn of(stack: &Stack) -> Self {
        let brokers = stack.info().kafka.as_ref().expect("Kafka").bootstrap.to_string();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("topic.metadata.refresh.interval.ms", "1000");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self {
            client: config.create().expect("a client"),
            producer: config.create().expect("a producer"),
            runtime: runtime.expect("a runtime"),
        }
    }

    fn exists(&self) -> bool {
        let listed = self.producer.client().fetch_metadata(None, Duration::from_secs(5));
        listed.expect("metadata").topics().iter().any(|topic| topic.name() == TOPIC)
    }

    fn delete_topic(&self) {
        let deleted = self.client.delete_topics(&[TOPIC], &AdminOptions::new());
        self.runtime.block_on(deleted).expect("a reply")[0].as_ref().expect("deleted");
        wait_for_condition("the topic is gone", TEST_TIMEOUT, || {
            if self.exists() { Err("it is listed") } else { Ok(()) }
        });
    }

    fn make_topic(&self) {
        let topic = NewTopic::new(TOPIC, 8, TopicReplication::Fixed(1));
        wait_for_condition("the topic is made", TEST_TIMEOUT, || {
            let made = self.client.create_topics([&topic], &AdminOptions::new());
            let made = self.runtime.block_on(made).map_err(|e| e.to_string())?;
            made[0].as_ref().map(drop).map_err(|(_, code)| code.to_string())
        });
    }

    fn widen_topic(&self) {
        let widened = NewPartitions::new(TOPIC, 9);
        let widened = self.client.create_partitions([&widened], &AdminOptions::new());
        self.runtime.block_on(widened).expect("a reply")[0].as_ref().expect("widened");
    }

    /// Fills every partition with heartbeats of no cluster, which change nothing.
    fn fill(&self) {
        let headers = || {
            let all = rdkafka::message::OwnedHeaders::new();
            [("ce_type", "tagfast.heartbeat.v1"), ("ce_source", "/tagfast/none")].iter().fold(
                all,
                |all, (key, value)| {
                    all.insert(rdkafka::message::Header { key, value: Some(*value) })
                },
            )
        };
        for n in 0..8 * FILLERS {
            let record = BaseRecord::to(TOPIC).partition((n % 8) as i32).key("filler").payload("");
            self.producer
                .send(record.headers(headers()))
                .map_err(|(error, _)| error)
                .expect("it is taken");
        }
        self.producer.flush(TEST_TIMEOUT).expect("it is written");
    }
}

/// Tags contents with one tag.
fn tag(client: &mut Client, tag: &str, count: usize) {
    for n in 0..count {
        client.put(&format!("/v1/content/page/{tag}-{n}/tags/{tag}")).expect(200);
    }
}

fn popular(client: &mut Client) -> Result<Value, String> {
    let answer = client.get("/v1/tags/popular?window=all&limit=100");
    if answer.status == 200 { Ok(answer.json()) } else { Err(answer.text()) }
}

fn count_of(ranking: &Value, tag: &str) -> u64 {
    let tags = ranking["tags"].as_array().expect("tags");
    tags.iter().find(|t| t["tag"] == tag).map_or(0, |t| t["count"].as_u64().expect("a count"))
}

/// Waits until popular tags and search have the tag on so many contents, and say that they are
/// young.
fn arrives(client: &mut Client, tag: &str, count: u64) {
    wait_for_condition(&format!("{tag} is counted"), TEST_TIMEOUT, || {
        let ranking = popular(client)?;
        let young = ranking["meta"]["age_ms"].as_u64().is_some_and(|age| age < 10_000);
        let counted = count_of(&ranking, tag);
        if counted == count && young { Ok(()) } else { Err(format!("{counted}: {ranking}")) }
    });
    wait_for_condition(&format!("{tag} is found"), TEST_TIMEOUT, || {
        let answer = client.get(&format!("/v1/search?q={tag}&limit=100&total=exact"));
        if answer.status != 200 {
            return Err(answer.text());
        }
        let found = answer.json();
        if found["total"]["value"] == count { Ok(()) } else { Err(found.to_string()) }
    });
}

/// What `/v1/status` names as degraded of a feature.
fn degraded(client: &mut Client, feature: &str) -> Vec<String> {
    let status = client.get("/v1/status").expect(200).json();
    let named = status["degraded"].as_array().expect("a list").iter();
    let of_feature = named.filter(|part| part["feature"] == feature);
    of_feature.map(|part| part["reason"].as_str().expect("a reason").to_owned()).collect()
}

/// Waits until both features are degraded for this reason, in the status and in the readiness.
fn named(client: &mut Client, reason: &str) {
    for feature in ["popular", "search"] {
        wait_for_condition(&format!("{feature}: {reason}"), NAMED_WITHIN, || {
            let reasons = degraded(client, feature);
            let found = reasons.iter().any(|named| named.contains(reason));
            if found { Ok(()) } else { Err(format!("{reasons:?}")) }
        });
    }
    let ready = client.get("/readyz").text();
    assert!(ready.contains(reason), "{ready}");
}

fn well(client: &mut Client) {
    wait_for_condition("nothing is degraded", TEST_TIMEOUT, || {
        let reasons = [degraded(client, "popular"), degraded(client, "search")].concat();
        if reasons.is_empty() { Ok(()) } else { Err(format!("{reasons:?}")) }
    });
}

/// No answer of popular tags is younger than the time since the feed broke, as long as it is
/// broken. `since`: when the last heartbeat may have been published.
fn is_as_old_as(client: &mut Client, since: Instant) {
    let ranking = popular(client).expect("an answer");
    let age = Duration::from_millis(ranking["meta"]["age_ms"].as_u64().expect("an age"));
    assert!(age + Duration::from_millis(500) >= since.elapsed(), "{age:?}: {ranking}");
}

fn stack_of_one_cluster(dir: &tempfile::TempDir) -> Stack {
    let options = StackOptions { replicas: 0, ..StackOptions::complete(1, dir.path()) };
    Stack::up(&options, &|_| ()).expect("the stack comes up")
}

#[test]
fn a_topic_that_is_deleted_made_again_and_widened_under_a_running_process() {
    let _lock = bus_lock();
    let dir = tempfile::tempdir().expect("a folder");
    let stack = stack_of_one_cluster(&dir);
    let operator = Operator::of(&stack);
    let server = serve(&stack);
    let mut client = server.client().with_timeout(TEST_TIMEOUT);
    wait_until_ready(&mut client);
    tag(&mut client, "before", 40);
    arrives(&mut client, "before", 40);
    well(&mut client);

    operator.delete_topic();
    let gone = Instant::now();
    tag(&mut client, "meanwhile", 40);
    named(&mut client, "does not exist any more");
    is_as_old_as(&mut client, gone);
    operator.make_topic();
    arrives(&mut client, "meanwhile", 40);
    tag(&mut client, "after", 40);
    arrives(&mut client, "after", 40);
    well(&mut client);

    operator.widen_topic();
    named(&mut client, "set kafka.partitions to 9");
    arrives(&mut client, "before", 40);
    let drift = client.post("/v1/admin/recount", &serde_json::json!({})).expect(200).json();
    assert_eq!(drift["drifted_contents"], 0, "{drift}");
}

fn roles(stack: &Stack, roles: &str) -> ServerProcess {
    ServerOptions::other(env!("CARGO_BIN_EXE_tagfast"))
        .arg("--config")
        .arg(&stack.info().config)
        .arg("--role")
        .arg(roles)
        .arg("--data-dir")
        .arg(stack.info().config.with_file_name(roles.replace(',', "-")))
        .serve()
        .start()
}

/// The readers are away: events are published that they have not read, and then the topic is made
/// again, longer than what they have read.
#[test]
fn a_topic_that_is_made_again_while_its_readers_are_away_is_not_skipped() {
    let _lock = bus_lock();
    let dir = tempfile::tempdir().expect("a folder");
    let stack = stack_of_one_cluster(&dir);
    let operator = Operator::of(&stack);
    let writes = roles(&stack, "api,relay");
    let mut readers = roles(&stack, "analytics,indexer");
    let mut client = writes.client().with_timeout(TEST_TIMEOUT);
    for server in [&writes, &readers] {
        wait_until_ready(&mut server.client().with_timeout(TEST_TIMEOUT));
    }
    tag(&mut client, "read", 40);
    arrives(&mut client, "read", 40);
    readers.kill();
    tag(&mut client, "unread", 40);
    // The relay has published them once its outbox is empty.
    wait_for_condition("they are published", TEST_TIMEOUT, || {
        let metrics = client.get("/metrics").expect(200).text();
        let line = metrics.lines().find(|l| l.starts_with("tagfast_relay_published_total"));
        let count = line.and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0);
        if count >= 80.0 { Ok(()) } else { Err(format!("{line:?}")) }
    });
    operator.delete_topic();
    operator.make_topic();
    operator.fill();
    let readers = roles(&stack, "analytics,indexer");
    wait_until_ready(&mut readers.client().with_timeout(TEST_TIMEOUT));
    arrives(&mut client, "unread", 40);
    arrives(&mut client, "read", 40);
    tag(&mut client, "later", 40);
    arrives(&mut client, "later", 40);
    well(&mut readers.client().with_timeout(TEST_TIMEOUT));
}
