//! Batches lookups of session positions: a lookup that arrives while enough batches are in flight
//! joins the next one.
//!
//! A read without a token looks up its user's positions before a cache may answer it. Redis answers
//! in a microsecond; the round trip is what costs, so concurrent lookups share it. A lookup is
//! never answered by a batch that was sent before the lookup arrived.
//!
//! How it fails: the lookups of a batch share its error, except for an error of a single user's
//! key. A caller waits for at most two round trips. Each caller counts at the breaker, so that a
//! failed batch of many counts as many.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{RedisResult, Value, from_redis_value};
use tagfast_domain::Version;
use tagfast_redis::{Redis, RedisError, keys};
use tagfast_resilience::ErrorChain;
use tagfast_resilience::task::TaskTracker;
use tagfast_sharding::{ContentHash, LogicalShard};
use tokio::sync::oneshot;

use crate::freshness::FreshnessRequirement;
use crate::position_fields::{FULL_FIELD, content_field, decode_floor, floor_field};

/// Timeout of a call.
pub(crate) const REDIS_TIMEOUT: Duration = Duration::from_millis(50);
/// Batches in flight. With one, every caller would wait for the whole previous round trip; with
/// many, there would be little to share.
const BATCHES_IN_FLIGHT_MAX: usize = 2;
/// Lookups of one batch.
const BATCH_LOOKUPS_MAX: usize = 256;

/// What each content must show to the user; `None` while positions are unknown.
pub(crate) type LookupResult = Result<Option<Vec<FreshnessRequirement>>, RedisError>;

struct PositionLookup {
    /// Redis key of the user's positions.
    key: String,
    contents: Vec<ContentHash>,
    reply: oneshot::Sender<LookupResult>,
}

#[derive(Default)]
struct State {
    waiting: Vec<PositionLookup>,
    in_flight: usize,
}

/// Collects the lookups of all callers.
pub(crate) struct PositionBatcher {
    redis: Arc<Redis>,
    /// How long Redis keeps a position. A Redis that has held positions for less does not hold
    /// all.
    pub(crate) ttl: Duration,
    state: Mutex<State>,
    renewing: AtomicBool,
    tasks: TaskTracker,
}

impl PositionBatcher {
    pub(crate) fn new(redis: Arc<Redis>, ttl: Duration) -> Arc<Self> {
        let (state, tasks) = (Mutex::default(), TaskTracker::new());
        Arc::new(Self { redis, ttl, state, renewing: AtomicBool::new(false), tasks })
    }

    /// Waits until no batch is in flight. Later lookups still work.
    pub(crate) async fn stop(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The state Redis.
    pub(crate) fn redis(&self) -> &Arc<Redis> {
        &self.redis
    }

    /// Looks up what these contents must show to the user with this key of positions.
    ///
    /// # Errors
    /// Any [`RedisError`].
    pub(crate) async fn lookup(
        self: &Arc<Self>,
        key: String,
        contents: &[ContentHash],
    ) -> LookupResult {
        let permit = self.redis.acquire()?;
        let (reply, result) = oneshot::channel();
        let starts_batch = {
            let mut state = self.state.lock();
            state.waiting.push(PositionLookup { key, contents: contents.to_vec(), reply });
            let starts_batch = state.in_flight < BATCHES_IN_FLIGHT_MAX;
            state.in_flight += usize::from(starts_batch);
            starts_batch
        };
        if starts_batch {
            // A separate task: this caller may be cancelled, and others depend on the batch.
            let worker = BatchWorker { batcher: Arc::clone(self), finished: false };
            self.tasks.spawn(worker.run());
        }
        let result = result.await.unwrap_or_else(|_| {
            Err(RedisError::Unavailable {
                role: self.redis.role(),
                reason: "the batch of position lookups was lost".to_owned(),
                source: None,
            })
        });
        self.redis.record(permit, &result);
        result
    }

    /// Answers these lookups by one round trip.
    async fn send_batch(self: &Arc<Self>, lookups: Vec<PositionLookup>) {
        let mut pipe = redis::pipe();
        pipe.ignore_errors().cmd("GET").arg(keys::GENERATION).cmd("TIME");
        for PositionLookup { key, contents, .. } in &lookups {
            let read = pipe.cmd("HMGET").arg(key).arg(FULL_FIELD);
            for content in contents {
                read.arg(content_field(*content)).arg(floor_field(LogicalShard::of_hash(*content)));
            }
        }
        let call = self.redis.call_unguarded(REDIS_TIMEOUT, async move |mut connection| {
            let values: Vec<Value> = pipe.query_async(&mut connection).await?;
            let mut values = values.into_iter();
            // An error of these two is an error of the server or the connection.
            let generation: Option<String> = parse_value(values.next())?;
            let now: (u64, u64) = parse_value(values.next())?;
            Ok((generation, now.0, values))
        });
        let (generation, now, mut values) = match call.await {
            Ok(answers) => answers,
            Err(error) => {
                lookups.into_iter().for_each(|lookup| lookup.reply(Err(error.clone())));
                return;
            }
        };
        if generation.is_none() {
            self.renew_generation();
        }
        let since = generation.and_then(|text| text.split(' ').nth(2)?.parse::<u64>().ok());
        let complete = since.is_some_and(|since| now.saturating_sub(since) >= self.ttl.as_secs());
        for lookup in lookups {
            let result = match parse_value::<Vec<Option<String>>>(values.next()) {
                Ok(fields) if complete => Ok(parse_requirements(&fields)),
                Ok(_) => Ok(None),
                Err(error) => Err(RedisError::refused(self.redis.role(), &error)),
            };
            lookup.reply(result);
        }
    }

    /// Gives a Redis without a generation a new one, in the background.
    pub(crate) fn renew_generation(self: &Arc<Self>) {
        if self.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            if let Err(error) = this.redis.generation().await {
                let error = ErrorChain(&error);
                tracing::debug!(error = %error, "the generation of Redis was not renewed");
            }
            this.renewing.store(false, Ordering::Release);
        });
    }
}

impl PositionLookup {
    fn reply(self, result: LookupResult) {
        // The caller may have been cancelled.
        let _ = self.reply.send(result);
    }
}

/// Sends batches until no lookup waits.
struct BatchWorker {
    batcher: Arc<PositionBatcher>,
    finished: bool,
}

impl BatchWorker {
    /// The next batch. `None` ends the worker; under the same lock it stops counting as in flight,
    /// so a later lookup starts a new one.
    fn next(&mut self) -> Option<Vec<PositionLookup>> {
        let mut state = self.batcher.state.lock();
        if state.waiting.is_empty() {
            state.in_flight -= 1;
            self.finished = true;
            return None;
        }
        let count = state.waiting.len().min(BATCH_LOOKUPS_MAX);
        let rest = state.waiting.split_off(count);
        Some(std::mem::replace(&mut state.waiting, rest))
    }

    async fn run(mut self) {
        while let Some(lookups) = self.next() {
            self.batcher.send_batch(lookups).await;
        }
    }
}

impl Drop for BatchWorker {
    fn drop(&mut self) {
        // A panic or the runtime's end stopped it: the next lookup must start another one.
        if !self.finished {
            self.batcher.state.lock().in_flight -= 1;
        }
    }
}

fn parse_value<T: redis::FromRedisValue>(value: Option<Value>) -> RedisResult<T> {
    Ok(from_redis_value(value.unwrap_or(Value::Nil).extract_error()?)?)
}

/// Parses the fields of a user: whether contents were dropped, then version and floor of each
/// content.
fn parse_requirements(fields: &[Option<String>]) -> Option<Vec<FreshnessRequirement>> {
    let full = fields.first()?.is_some();
    let requirement = |pair: &[Option<String>]| {
        let version = pair.first().and_then(Option::as_ref);
        let version = version.and_then(|v| Version::from_packed(v.parse().ok()?).ok());
        let floor = pair.get(1).and_then(Option::as_ref).and_then(|text| decode_floor(text));
        // As in a token: unless contents were dropped, a content without a version was not written.
        FreshnessRequirement { version, floor: floor.filter(|_| full && version.is_none()) }
    };
    Some(fields.get(1..)?.chunks(2).map(requirement).collect())
}
