//! Hears which contents changed, so that L1 does not show what is no longer true.
//!
//! Messages are numbered per stripe: a missing number empties that stripe and no other. An answered
//! PING on the very connection of the messages proves that everything published before it was
//! heard; without one for a second L1 does not answer. After a new connection the numbers of all
//! stripes are read: where nothing was missed, L1 keeps what it has.
//!
//! When Redis comes back, perhaps empty, what was read meanwhile is put into it again: it need not
//! be read from the store a second time, by every node.
//!
//! How it fails: a connection that is cut, frozen or garbled, or that leads to another server than
//! views come from, is given up after a second at the latest and made again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream;
use futures_util::{FutureExt, StreamExt};
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Client, Msg};
use tagfast_domain::Version;
use tagfast_redis::Redis;
use tagfast_resilience::Clock;
use tagfast_sharding::{ContentHash, LogicalShard, SHARDS};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::entry::Entry;
use crate::level1::Level1;
use crate::views::{Origin, Views, channel, numbers};

/// Between two PINGs.
const PING: Duration = Duration::from_millis(250);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_millis(400);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// Entries on their way to a Redis that came back, and how long is tried.
const REFILLS: (usize, Duration) = (32, Duration::from_secs(10));
/// Why messages do not count.
const ELSEWHERE: &str = "views come from another server";

/// What is known of the numbers of a stripe: of which Redis they are, and the last one.
type Number = Option<(String, u64)>;

/// What was heard so far.
struct Heard {
    run_id: String,
    of: Vec<Number>,
}

/// A message: whose number it is, the number, what has which version.
#[derive(Debug, PartialEq, Eq)]
struct Message<'a> {
    generation: &'a str,
    seq: u64,
    version: Version,
    key: &'a [u8],
}

impl<'a> Message<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut parts = bytes.splitn(4, |byte| *byte == b' ');
        let mut text = || std::str::from_utf8(parts.next()?).ok();
        let (generation, seq, version) = (text()?, text()?.parse().ok()?, text()?.parse().ok()?);
        Some(Self {
            generation,
            seq,
            version: Version::from_packed(version).ok()?,
            key: parts.next()?,
        })
    }
}

/// Hears until L1 is dropped.
pub(crate) async fn listen(views: Arc<Views>, level1: Weak<Level1>, clock: Arc<dyn Clock>) {
    let redis = Arc::clone(&views.redis);
    let mut heard = Heard { run_id: String::new(), of: vec![None; usize::from(SHARDS)] };
    let mut problem = String::new();
    let mut deaf_since = clock.now_ms();
    while level1.strong_count() > 0 {
        let why = match connect(&redis).await {
            Err(why) => why,
            Ok((sink, stream, now)) => {
                match level1.upgrade() {
                    Some(level1) => {
                        // Another process has nothing of what was there; the same one lacks what
                        // was read while it was away.
                        let since = if heard.run_id == now.run_id { deaf_since } else { 0 };
                        heard.compare(now, &level1);
                        let known = level1.read_since(since, clock.now_ms());
                        tokio::spawn(refill(Arc::clone(&views), known));
                    }
                    None => return,
                }
                tracing::info!("changes are heard");
                problem.clear();
                let why = heard.follow(sink, stream, &level1, &redis).await;
                // It was heard a second ago at the latest.
                deaf_since = clock.now_ms() - i64::try_from(ANSWER.as_millis()).unwrap_or(0);
                why
            }
        };
        if let Some(level1) = level1.upgrade() {
            level1.deaf();
        }
        if why != problem {
            tracing::warn!(why, "changes are not heard; L1 does not answer");
            problem = why;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Puts entries into a Redis that has come back. Only over older ones, as every fill.
async fn refill(views: Arc<Views>, known: Vec<(Box<[u8]>, Arc<Entry>)>) {
    let (count, until) = (known.len(), Instant::now() + REFILLS.1);
    let fills = stream::iter(known).map(|(key, entry)| {
        let views = &views;
        async move {
            let shard = LogicalShard::of_hash(ContentHash::of_bytes(&key));
            loop {
                match views.fill(&key, shard, &entry, Origin::Read).await {
                    // The connection of data may not be there yet, and its breaker lets few calls
                    // through at first.
                    Err(_) if Instant::now() < until => tokio::time::sleep(PAUSE).await,
                    done => return done.is_ok(),
                }
            }
        }
    });
    let filled =
        fills.buffer_unordered(REFILLS.0).filter(|done| std::future::ready(*done)).count().await;
    if count > 0 {
        tracing::info!(count, filled, "views that are known were put into Redis again");
    }
}

async fn timed<T>(
    what: &str,
    within: Duration,
    work: impl Future<Output = redis::RedisResult<T>>,
) -> Result<T, String> {
    match tokio::time::timeout(within, work).await {
        Ok(done) => done.map_err(|error| format!("{what}: {error}")),
        Err(_) => Err(format!("{what}: no answer")),
    }
}

/// Whether views come from another server process than these messages: one of the two was replaced
/// while it was frozen, still answers, and is told of nothing.
fn is_elsewhere(redis: &Redis, run_id: &str) -> bool {
    redis.run_id().is_some_and(|used| *used != *run_id)
}

/// Subscribes to all stripes and then, on another connection to the same server, reads where they
/// stand.
async fn connect(redis: &Redis) -> Result<(PubSubSink, PubSubStream, Heard), String> {
    let info = redis.find().await.map_err(|error| error.to_string())?;
    let client = Client::open(info).map_err(|error| error.to_string())?;
    let (mut sink, stream) = timed("connecting", CONNECT, client.get_async_pubsub()).await?.split();
    let channels: Vec<String> = LogicalShard::all().map(channel).collect();
    timed("subscribing", CONNECT, sink.subscribe(channels)).await?;
    // The other way round, a message between the two would be missed and the numbers would look
    // right.
    let mut plain = timed("connecting", CONNECT, client.get_multiplexed_async_connection()).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("INFO").arg("server");
    for shard in LogicalShard::all() {
        pipe.cmd("HMGET").arg(numbers(shard)).arg("gen").arg("seq");
    }
    let answers: Vec<redis::Value> =
        timed("reading the numbers", CONNECT, pipe.query_async(&mut plain)).await?;
    let mut answers = answers.into_iter();
    let text: String =
        answers.next().map(redis::from_redis_value).transpose().ok().flatten().unwrap_or_default();
    let run_id = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("run_id:"))
        .unwrap_or_default()
        .to_owned();
    if is_elsewhere(redis, &run_id) {
        return Err(ELSEWHERE.to_owned());
    }
    let number = |value| -> Number {
        let (generation, seq): (Option<String>, Option<u64>) =
            redis::from_redis_value(value).ok()?;
        Some((generation?, seq?))
    };
    Ok((sink, stream, Heard { run_id, of: answers.map(number).collect() }))
}

impl Heard {
    /// Takes in where the stripes stand after a new connection; empties those of which something
    /// was missed.
    fn compare(&mut self, now: Self, level1: &Level1) {
        // Another process, perhaps with an old copy: its numbers may have gone back.
        let another = self.run_id != now.run_id;
        for (shard, number) in LogicalShard::all().zip(&now.of) {
            if another || self.of.get(usize::from(shard.number())) != Some(number) {
                level1.empty(shard);
            }
        }
        *self = now;
    }

    /// Applies messages until the connection fails; why it did.
    async fn follow(
        &mut self,
        sink: PubSubSink,
        mut stream: PubSubStream,
        level1: &Weak<Level1>,
        redis: &Redis,
    ) -> String {
        let (pongs, mut ponged) = mpsc::channel(4);
        let pinging = tokio::spawn(ping(sink, pongs));
        let why = loop {
            tokio::select! {
                biased;
                message = stream.next() => match (message, level1.upgrade()) {
                    (Some(message), Some(level1)) => self.apply(&message, &level1),
                    (None, _) => break "the connection ended".to_owned(),
                    (_, None) => break "nobody listens".to_owned(),
                },
                pong = ponged.recv() => {
                    let Some(level1) = level1.upgrade() else { break "nobody listens".to_owned() };
                    match pong {
                        Some(Ok(_)) if is_elsewhere(redis, &self.run_id) => break ELSEWHERE.to_owned(),
                        Some(Ok(sent)) => {
                            // What arrived before the answer is applied before the answer counts.
                            while let Some(Some(message)) = stream.next().now_or_never() {
                                self.apply(&message, &level1);
                            }
                            level1.heard(sent);
                        }
                        Some(Err(why)) => break why,
                        None => break "the connection ended".to_owned(),
                    }
                }
            }
        };
        pinging.abort();
        why
    }

    fn apply(&mut self, message: &Msg, level1: &Level1) {
        let shard = message.get_channel_name().strip_prefix("tf:i:").and_then(|n| n.parse().ok());
        let Some(shard) = shard.and_then(LogicalShard::from_number) else { return };
        let known = &mut self.of[usize::from(shard.number())];
        let Some(message) = Message::parse(message.get_payload_bytes()) else {
            // Not ours, or damaged: nobody knows what changed.
            level1.empty(shard);
            *known = None;
            return;
        };
        level1.is_changed(message.key, message.version);
        let missed = match known {
            Some((generation, seq)) if generation == message.generation => {
                // Known from the numbers that were read after subscribing.
                if message.seq <= *seq {
                    return;
                }
                message.seq != *seq + 1
            }
            // The first message of a stripe that had none.
            None => message.seq != 1,
            Some(_) => true,
        };
        if missed {
            metrics::counter!("tagfast_cache_gaps_total").increment(1);
            level1.empty(shard);
        }
        *known = Some((message.generation.to_owned(), message.seq));
    }
}

/// Asks for signs of life; tells when what was answered had been asked.
async fn ping(mut sink: PubSubSink, pongs: mpsc::Sender<Result<Instant, String>>) {
    loop {
        let sent = Instant::now();
        let answered = timed("PING", ANSWER, sink.ping::<redis::Value>()).await;
        let failed = answered.is_err();
        if pongs.send(answered.map(|_| sent)).await.is_err() || failed {
            return;
        }
        tokio::time::sleep_until(sent + PING).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_or_refused() {
        let version = Version::from_packed(42).unwrap();
        let parsed = Message { generation: "ab", seq: 7, version, key: b"t\0ty\0id with blanks" };
        assert_eq!(
            Message::parse(b"ab 7 00000000000000000042 t\0ty\0id with blanks"),
            Some(parsed)
        );
        for bad in
            [&b"ab 7 42"[..], b"", b"ab x 42 k", b"ab 7 99999999999999999999 k", b"\xff 7 42 k"]
        {
            assert_eq!(Message::parse(bad), None);
        }
    }
}
