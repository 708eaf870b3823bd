//! Cache invalidation: tells the local cache which contents changed, through Redis pub/sub.
//!
//! # Protocol
//! A fill of the cache Redis that raises a content's version publishes one message, in the same
//! script, on the channel `tf:i:SS` of the content's logical shard `SS`:
//!
//! ```text
//! GENERATION SEQUENCE VERSION KEY
//! ```
//!
//! `SEQUENCE` is one more than in the previous message of the shard. `GENERATION` names the
//! counter: an emptied Redis counts from 1 again, under a new name. The hash `tf:q:SS` stores the
//! last pair.
//!
//! Redis delivers pub/sub messages at most once, so the subscriber must notice every loss:
//!
//! - **Gap.** After any sequence number but the expected one, all local entries of that shard (one
//!   *stripe* of the local cache) expire. Other shards keep theirs.
//! - **Silence.** The subscriber sends PING on the pub/sub connection every 250 ms. Redis answers
//!   in order, so a pong proves that everything published before that PING has arrived. The local
//!   cache then counts as *in sync* until 1 s after the PING was sent; out of sync it does not
//!   answer.
//! - **Reconnect.** The subscriber subscribes first and then reads all `tf:q:SS`. A shard whose
//!   sequence has not moved lost nothing and keeps its entries; the others expire. All expire when
//!   the `run_id` shows a different server process, which may hold an older copy of the sequences.
//!
//! After a reconnect the subscriber also writes the entries that this node read meanwhile back to
//! Redis, which may be empty: other nodes then need not read them from the store again.
//!
//! # How it fails
//! A connection that is closed, frozen or garbled, or that leads to a different server than cached
//! views come from, is dropped after at most 1 s and replaced. Until then the local cache is out of
//! sync: reads go to Redis or the store, and local entries may answer only as stale.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use futures_util::{FutureExt, StreamExt};
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Client, Msg};
use tagfast_domain::{UnixMillis, Version};
use tagfast_redis::{Redis, RedisError, keys};
use tagfast_resilience::task::{BackgroundTask, StopSignal, TaskTracker};
use tagfast_resilience::{Clock, OutageLog, counter};
use tagfast_sharding::{ContentHash, LogicalShard, SHARDS};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::entry::Entry;
use crate::local_cache::LocalCache;
use crate::metric::INVALIDATION_GAPS;
use crate::redis_cache::{FillOrigin, RedisCache};

/// Time between two PINGs.
const PING_INTERVAL: Duration = Duration::from_millis(250);
/// Timeout of a PING; the connection is dropped after it.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout of each step of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(400);
/// Delay between two attempts to connect.
const RECONNECT_DELAY: Duration = Duration::from_millis(50);
/// Entries that are written back to Redis at the same time.
const REFILLS_IN_FLIGHT_MAX: usize = 32;
/// How long a refill is retried.
const REFILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a subscription ended or could not be made.
#[derive(Debug, thiserror::Error)]
enum SubscriptionError {
    /// The server's address is unknown.
    #[error("discovery failed")]
    Discovery(#[source] RedisError),
    /// Redis refused a step or the connection broke.
    #[error("{step} failed")]
    Failed {
        step: &'static str,
        #[source]
        source: redis::RedisError,
    },
    /// Redis did not answer a step in time.
    #[error("{0}: no answer in time")]
    Timeout(&'static str),
    /// The connection was closed.
    #[error("the connection was closed")]
    Closed,
    /// Cached views come from a different server process than the messages. One of the two was
    /// replaced; the old one may still answer but receives no more invalidations.
    #[error("cached views come from another server")]
    OtherServer,
}

/// The last message of a stripe.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StripeSequence {
    generation: String,
    sequence: u64,
}

/// How far the messages of each stripe have been applied.
struct StripeSequences {
    /// The server process that the sequences belong to; empty before the first connection.
    run_id: String,
    /// By shard number; `None` for a stripe without any message, or after a damaged one.
    last: Vec<Option<StripeSequence>>,
}

/// One message.
#[derive(Debug, PartialEq, Eq)]
struct Invalidation<'a> {
    generation: &'a str,
    sequence: u64,
    version: Version,
    key: &'a [u8],
}

impl<'a> Invalidation<'a> {
    /// `None` for anything that is not a message of this format.
    fn parse(message: &'a [u8]) -> Option<Self> {
        let mut parts = message.splitn(4, |byte| *byte == b' ');
        let mut text = || std::str::from_utf8(parts.next()?).ok();
        let (generation, sequence) = (text()?, text()?.parse().ok()?);
        let version = Version::from_packed(text()?.parse().ok()?).ok()?;
        Some(Self { generation, sequence, version, key: parts.next()? })
    }
}

/// A connection that is subscribed to all stripes, and their sequences after subscribing.
struct Subscription {
    sink: PubSubSink,
    messages: PubSubStream,
    sequences: StripeSequences,
}

/// Applies invalidations to the local cache until `stop`; reconnects whenever the subscription
/// ends.
pub(crate) async fn subscribe_invalidations(
    redis_cache: Arc<RedisCache>,
    local_cache: Arc<LocalCache>,
    clock: Arc<dyn Clock>,
    stop: StopSignal,
) {
    let refills = TaskTracker::new();
    let subscriber = Subscriber {
        out_of_sync_since: clock.now_ms(),
        redis_cache,
        local_cache,
        clock,
        sequences: StripeSequences { run_id: String::new(), last: vec![None; usize::from(SHARDS)] },
    };
    stop.run_until_cancelled(subscriber.run(&refills, &stop)).await;
    refills.close();
    refills.wait().await;
}

struct Subscriber {
    redis_cache: Arc<RedisCache>,
    local_cache: Arc<LocalCache>,
    clock: Arc<dyn Clock>,
    sequences: StripeSequences,
    /// Since when fills of this node may not have reached Redis.
    out_of_sync_since: UnixMillis,
}

impl Subscriber {
    async fn run(mut self, refills: &TaskTracker, stop: &StopSignal) {
        let outages = OutageLog::new("subscribing to cache invalidations");
        loop {
            let error = match connect(&self.redis_cache.redis).await {
                Err(error) => error,
                Ok(subscription) => {
                    outages.recovered();
                    self.refill(&subscription.sequences, refills, stop);
                    self.apply_messages(subscription).await
                }
            };
            outages.failed(&error);
            tokio::time::sleep(RECONNECT_DELAY).await;
        }
    }

    /// Starts to write entries back to a Redis that was away. A different server process may have
    /// none of them; the same one lacks what was read since the subscription ended.
    fn refill(&self, now: &StripeSequences, refills: &TaskTracker, stop: &StopSignal) {
        let same_process = self.sequences.run_id == now.run_id;
        let since = if same_process { self.out_of_sync_since } else { 0 };
        let entries = self.local_cache.read_since(since, self.clock.now_ms());
        let (redis_cache, stop) = (Arc::clone(&self.redis_cache), stop.clone());
        refills.spawn(async move {
            stop.run_until_cancelled(refill(&redis_cache, entries)).await;
        });
    }

    /// Applies messages until the subscription fails; returns why it did.
    async fn apply_messages(&mut self, subscription: Subscription) -> SubscriptionError {
        let Subscription { sink, mut messages, sequences } = subscription;
        self.sequences.resume_at(sequences, &self.local_cache);
        let (pong_sender, mut pongs) = mpsc::channel(4);
        let pings = BackgroundTask::spawn("cache-invalidation-ping", async move |stop| {
            stop.run_until_cancelled(send_pings(sink, pong_sender)).await;
        });
        let error = loop {
            tokio::select! {
                biased;
                message = messages.next() => match message {
                    Some(message) => self.sequences.apply(&message, &self.local_cache),
                    None => break SubscriptionError::Closed,
                },
                pong = pongs.recv() => match pong {
                    Some(Ok(sent_at)) => {
                        if is_other_server(&self.redis_cache.redis, &self.sequences.run_id) {
                            break SubscriptionError::OtherServer;
                        }
                        // Messages that arrived before the pong must be applied before it counts.
                        while let Some(Some(message)) = messages.next().now_or_never() {
                            self.sequences.apply(&message, &self.local_cache);
                        }
                        self.local_cache.mark_in_sync(sent_at);
                    }
                    Some(Err(error)) => break error,
                    None => break SubscriptionError::Closed,
                }
            }
        };
        self.local_cache.mark_out_of_sync();
        // The last successful PING was sent at most one timeout ago.
        let timeout_ms = i64::try_from(PING_TIMEOUT.as_millis()).unwrap_or(0);
        self.out_of_sync_since = self.clock.now_ms() - timeout_ms;
        // A panic was logged when the task was joined.
        let _ = pings.stop().await;
        error
    }
}

impl StripeSequences {
    /// Continues at the sequences that Redis had after subscribing. Expires the stripes whose
    /// messages were lost meanwhile.
    fn resume_at(&mut self, now: Self, local_cache: &LocalCache) {
        let other_process = self.run_id != now.run_id;
        for (shard, sequence) in LogicalShard::all().zip(&now.last) {
            let applied = self.last.get(usize::from(shard.number()));
            if other_process || applied != Some(sequence) {
                local_cache.invalidate_stripe(shard);
            }
        }
        *self = now;
    }

    /// Applies one message; expires its stripe when messages before it were lost.
    fn apply(&mut self, message: &Msg, local_cache: &LocalCache) {
        let shard = keys::shard_of_channel(message.get_channel_name());
        let Some(shard) = shard.and_then(LogicalShard::from_number) else { return };
        let last = &mut self.last[usize::from(shard.number())];
        let Some(message) = Invalidation::parse(message.get_payload_bytes()) else {
            // Foreign or damaged: any content of the stripe may have changed.
            local_cache.invalidate_stripe(shard);
            *last = None;
            return;
        };
        local_cache.invalidate(message.key, message.version);
        let gap = match last {
            Some(last) if last.generation == message.generation => {
                // Already covered by the sequence that was read after subscribing.
                if message.sequence <= last.sequence {
                    return;
                }
                message.sequence != last.sequence + 1
            }
            // The counter was restarted; messages of the old one may be lost.
            Some(_) => true,
            // The first message of a stripe must be number 1.
            None => message.sequence != 1,
        };
        if gap {
            counter!(INVALIDATION_GAPS).increment(1);
            local_cache.invalidate_stripe(shard);
        }
        let generation = message.generation.to_owned();
        *last = Some(StripeSequence { generation, sequence: message.sequence });
    }
}

/// Subscribes to all stripes and then reads their sequences over a second connection to the same
/// server.
async fn connect(redis: &Redis) -> Result<Subscription, SubscriptionError> {
    let info = redis.discover().await.map_err(SubscriptionError::Discovery)?;
    let step = "connecting";
    let client = Client::open(info).map_err(|source| SubscriptionError::Failed { step, source })?;
    let pubsub = with_timeout(step, CONNECT_TIMEOUT, client.get_async_pubsub()).await?;
    let (mut sink, messages) = pubsub.split();
    let channels: Vec<String> =
        LogicalShard::all().map(|shard| keys::invalidation_channel(shard.number())).collect();
    with_timeout("subscribing", CONNECT_TIMEOUT, sink.subscribe(channels)).await?;
    // Only now: a message between reading the sequences and subscribing would be lost unnoticed.
    let sequences = read_sequences(&client).await?;
    if is_other_server(redis, &sequences.run_id) {
        return Err(SubscriptionError::OtherServer);
    }
    Ok(Subscription { sink, messages, sequences })
}

async fn read_sequences(client: &Client) -> Result<StripeSequences, SubscriptionError> {
    let connection = client.get_multiplexed_async_connection();
    let mut connection = with_timeout("connecting", CONNECT_TIMEOUT, connection).await?;
    let mut pipe = redis::pipe();
    pipe.cmd("INFO").arg("server");
    for shard in LogicalShard::all() {
        pipe.cmd("HMGET").arg(keys::sequence(shard.number())).arg("gen").arg("seq");
    }
    let answers = pipe.query_async(&mut connection);
    let answers: Vec<redis::Value> =
        with_timeout("reading the sequences", CONNECT_TIMEOUT, answers).await?;
    let mut answers = answers.into_iter();
    let info = answers.next().and_then(|value| redis::from_redis_value::<String>(value).ok());
    let info = info.unwrap_or_default();
    let run_id = info.lines().find_map(|line| line.trim().strip_prefix("run_id:"));
    let sequence = |value| {
        let (generation, sequence) =
            redis::from_redis_value::<(Option<String>, Option<u64>)>(value).ok()?;
        Some(StripeSequence { generation: generation?, sequence: sequence? })
    };
    Ok(StripeSequences {
        run_id: run_id.unwrap_or_default().to_owned(),
        last: answers.map(sequence).collect(),
    })
}

/// Whether cached views come from a different server process than the one with this `run_id`.
fn is_other_server(redis: &Redis, run_id: &str) -> bool {
    redis.run_id().is_some_and(|used| *used != *run_id)
}

/// Sends PINGs until one fails. Each pong is reported with the time at which its PING was sent.
async fn send_pings(mut sink: PubSubSink, pongs: mpsc::Sender<Result<Instant, SubscriptionError>>) {
    loop {
        let sent_at = Instant::now();
        let pong = with_timeout("PING", PING_TIMEOUT, sink.ping::<redis::Value>()).await;
        let failed = pong.is_err();
        if pongs.send(pong.map(|_| sent_at)).await.is_err() || failed {
            return;
        }
        tokio::time::sleep_until(sent_at + PING_INTERVAL).await;
    }
}

/// Writes entries back to Redis; like every fill, only over older ones.
async fn refill(redis_cache: &RedisCache, entries: Vec<(Box<[u8]>, Arc<Entry>)>) {
    let (count, give_up_at) = (entries.len(), Instant::now() + REFILL_TIMEOUT);
    let fills = stream::iter(entries).map(|(key, entry)| async move {
        let shard = LogicalShard::of_hash(ContentHash::of_bytes(&key));
        loop {
            match redis_cache.fill(&key, shard, &entry, FillOrigin::Read).await {
                // The data connection may not be back yet, and its breaker closes in steps.
                Err(_) if Instant::now() < give_up_at => tokio::time::sleep(RECONNECT_DELAY).await,
                result => return result.is_ok(),
            }
        }
    });
    let filled = fills
        .buffer_unordered(REFILLS_IN_FLIGHT_MAX)
        .filter(|filled| std::future::ready(*filled))
        .count()
        .await;
    if count > 0 {
        tracing::info!(count, filled, "refilled the cache Redis with entries of this node");
    }
}

async fn with_timeout<T>(
    step: &'static str,
    timeout: Duration,
    work: impl Future<Output = redis::RedisResult<T>>,
) -> Result<T, SubscriptionError> {
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result.map_err(|source| SubscriptionError::Failed { step, source }),
        Err(_) => Err(SubscriptionError::Timeout(step)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_parsed_or_refused() {
        let version = Version::from_packed(42).unwrap();
        let parsed =
            Invalidation { generation: "ab", sequence: 7, version, key: b"t\0ty\0id with blanks" };
        assert_eq!(
            Invalidation::parse(b"ab 7 00000000000000000042 t\0ty\0id with blanks"),
            Some(parsed)
        );
        for bad in
            [&b"ab 7 42"[..], b"", b"ab x 42 k", b"ab 7 99999999999999999999 k", b"\xff 7 42 k"]
        {
            assert_eq!(Invalidation::parse(bad), None);
        }
    }
}
