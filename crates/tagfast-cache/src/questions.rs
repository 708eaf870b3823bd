//! What users wrote last, asked together: whoever asks while enough round trips are under way goes
//! with the next one.
//!
//! A plain view asks before it may be answered from a cache. Redis finds the answer in a
//! microsecond; what costs is the round trip, so those who ask at the same time share it. Nobody is
//! answered by a round trip that began before they asked.
//!
//! How it fails: who went together shares the error, except for one about a single user's key. A
//! caller waits for at most two round trips. Each counts at the breaker, so that many who wait are
//! seen there as many.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{RedisResult, Value, from_redis_value};
use tagfast_domain::Version;
use tagfast_redis::{Redis, RedisError};
use tagfast_sharding::{ContentHash, LogicalShard};
use tokio::sync::oneshot;

use crate::need::Need;
use crate::positions::{BUDGET, content_field, floor_field, position};

/// Round trips at a time. One would make everybody wait for the whole of the one before; with many
/// there is little to share.
const UNDER_WAY: usize = 2;
/// Questions of one round trip.
const TOGETHER: usize = 256;

/// What a caller must be shown of each content; `None`: nobody knows.
pub(crate) type Answer = Result<Option<Vec<Need>>, RedisError>;

struct Question {
    user: String,
    contents: Vec<ContentHash>,
    tell: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Question>,
    under_way: usize,
}

/// The questions of all callers.
pub(crate) struct Questions {
    redis: Arc<Redis>,
    /// How long Redis remembers a write; what it began to remember less than this ago is not all
    /// there is.
    pub(crate) kept_for: Duration,
    state: Mutex<State>,
    renewing: AtomicBool,
}

impl Questions {
    pub(crate) fn new(redis: Arc<Redis>, kept_for: Duration) -> Arc<Self> {
        Arc::new(Self {
            redis,
            kept_for,
            state: Mutex::default(),
            renewing: AtomicBool::new(false),
        })
    }

    /// Where they go.
    pub(crate) fn redis(&self) -> &Arc<Redis> {
        &self.redis
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks what a user, named by the key of their positions, must be shown.
    pub(crate) async fn ask(self: &Arc<Self>, user: String, contents: &[ContentHash]) -> Answer {
        let permit = self.redis.admit()?;
        let (tell, told) = oneshot::channel();
        let begins = {
            let mut state = self.state();
            state.waiting.push(Question { user, contents: contents.to_vec(), tell });
            let begins = state.under_way < UNDER_WAY;
            state.under_way += usize::from(begins);
            begins
        };
        if begins {
            // A task of its own: the caller who began it may be cancelled, and others rely on it.
            tokio::spawn(Traveller { questions: Arc::clone(self), rests: false }.travel());
        }
        let lost = || RedisError::Unavailable {
            used_as: "state",
            reason: "the question was lost".to_owned(),
        };
        let answer = told.await.unwrap_or_else(|_| Err(lost()));
        self.redis.ended(permit, &answer);
        answer
    }

    /// One round trip for all of them.
    async fn together(self: &Arc<Self>, questions: Vec<Question>) {
        let mut pipe = redis::pipe();
        pipe.ignore_errors().cmd("GET").arg("tf:gen").cmd("TIME");
        for Question { user, contents, .. } in &questions {
            let read = pipe.cmd("HMGET").arg(user).arg("full");
            for content in contents {
                read.arg(content_field(*content)).arg(floor_field(LogicalShard::of_hash(*content)));
            }
        }
        let asked = self.redis.attempt(BUDGET, async move |mut connection| {
            let values: Vec<Value> = pipe.query_async(&mut connection).await?;
            let mut values = values.into_iter();
            // What is wrong with these two is wrong with the server, or with the way to it.
            let generation: Option<String> = value(values.next())?;
            let now: (u64, u64) = value(values.next())?;
            Ok((generation, now.0, values))
        });
        let (generation, now, mut values) = match asked.await {
            Ok(asked) => asked,
            Err(error) => {
                questions.into_iter().for_each(|question| question.tell(Err(error.clone())));
                return;
            }
        };
        if generation.is_none() {
            self.renew();
        }
        let began = generation.and_then(|text| text.split(' ').nth(2)?.parse::<u64>().ok());
        let known = began.is_some_and(|began| now.saturating_sub(began) >= self.kept_for.as_secs());
        for question in questions {
            let answer = match value::<Vec<Option<String>>>(values.next()) {
                Ok(fields) if known => Ok(needs(&fields)),
                Ok(_) => Ok(None),
                Err(error) => Err(RedisError::Refused {
                    used_as: "state",
                    code: error.code().unwrap_or_default().to_owned(),
                    detail: error.detail().unwrap_or_default().to_owned(),
                }),
            };
            question.tell(answer);
        }
    }

    /// Gives a Redis without `tf:gen` one.
    pub(crate) fn renew(self: &Arc<Self>) {
        if self.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let me = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = me.redis.generation().await {
                tracing::debug!(%error, "tf:gen was not renewed");
            }
            me.renewing.store(false, Ordering::Release);
        });
    }
}

impl Question {
    fn tell(self, answer: Answer) {
        // Whoever asked may have gone.
        let _ = self.tell.send(answer);
    }
}

/// Makes one round trip after the other until nobody waits.
struct Traveller {
    questions: Arc<Questions>,
    rests: bool,
}

impl Traveller {
    /// Those who wait. None: this one is not under way any more, which nobody can miss who comes
    /// later.
    fn next(&mut self) -> Option<Vec<Question>> {
        let mut state = self.questions.state();
        if state.waiting.is_empty() {
            state.under_way -= 1;
            self.rests = true;
            return None;
        }
        let first = state.waiting.len().min(TOGETHER);
        let rest = state.waiting.split_off(first);
        Some(std::mem::replace(&mut state.waiting, rest))
    }

    async fn travel(mut self) {
        while let Some(questions) = self.next() {
            self.questions.together(questions).await;
        }
    }
}

impl Drop for Traveller {
    fn drop(&mut self) {
        // It ended by a bug: whoever asks next makes another one.
        if !self.rests {
            self.questions.state().under_way -= 1;
        }
    }
}

fn value<T: redis::FromRedisValue>(value: Option<Value>) -> RedisResult<T> {
    Ok(from_redis_value(value.unwrap_or(Value::Nil).extract_error()?)?)
}

/// What the fields of a user say: whether contents were pushed out, then version and floor of each
/// content.
fn needs(fields: &[Option<String>]) -> Option<Vec<Need>> {
    let full = fields.first()?.is_some();
    let need = |pair: &[Option<String>]| {
        let version = pair.first().and_then(Option::as_ref);
        let version = version.and_then(|v| Version::from_packed(v.parse().ok()?).ok());
        let floor = pair.get(1).and_then(Option::as_ref).and_then(|text| position(text));
        // As in a token: without pushed-out contents, one that is not among them was not written.
        Need { version, floor: floor.filter(|_| full && version.is_none()) }
    };
    Some(fields.get(1..)?.chunks(2).map(need).collect())
}
