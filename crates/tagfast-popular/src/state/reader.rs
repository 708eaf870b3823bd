//! Answers questions from the boards of the state Redis.
//!
//! A tenant's boards are read when somebody asks about the tenant, and read again at most once a
//! second when they changed. How it fails: while Redis cannot be reached, what was read last
//! answers, marked stale, with its age; a tenant nobody asked about before is answered that popular
//! tags are unavailable.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::AsyncTypedCommands;
use tagfast_domain::{TagName, TenantId, UnixMillis};
use tagfast_redis::Redis;

use super::{StateError, WINDOWS, merging};
use crate::boards::{Snapshot, TYPEAHEAD_TAGS};
use crate::counts::prefixes;
use crate::{Board, PopularError, PopularTags, RecountReport, Suggestions, TagCount, Window};

/// Boards are not looked at more often.
const REFRESH: Duration = Duration::from_secs(1);
/// After a failure Redis is not asked for this long: nobody waits for it.
const AVOID: Duration = Duration::from_secs(1);
/// Tenants that keep their boards.
const TENANTS: usize = 1000;

/// What was read of a tenant.
#[derive(Clone)]
struct Read {
    snapshot: Arc<Snapshot>,
    version: Option<String>,
    as_of: UnixMillis,
    at: Instant,
}

#[derive(Default)]
struct Slot {
    read: Option<Read>,
    used: u64,
    /// One reader at a time; the others answer from what is there.
    reading: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Slots {
    tenants: HashMap<TenantId, Slot>,
    uses: u64,
    failed_at: Option<Instant>,
}

/// The boards as everybody who answers questions has them.
pub struct StateBoards {
    redis: Arc<Redis>,
    partitions: u16,
    slots: Mutex<Slots>,
}

fn unavailable(error: &StateError) -> PopularError {
    PopularError::Unavailable(error.to_string())
}

impl StateBoards {
    /// Nothing is read yet.
    pub fn new(redis: Arc<Redis>, partitions: u16) -> Arc<Self> {
        Arc::new(Self { redis, partitions, slots: Mutex::default() })
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a tenant, whether Redis is avoided now, and who reads.
    fn known(&self, tenant: &TenantId) -> (Option<Read>, bool, Arc<tokio::sync::Mutex<()>>) {
        let mut slots = self.slots();
        slots.uses += 1;
        let uses = slots.uses;
        if !slots.tenants.contains_key(tenant)
            && slots.tenants.len() >= TENANTS
            && let Some(oldest) =
                slots.tenants.iter().min_by_key(|(_, s)| s.used).map(|(t, _)| t.clone())
        {
            slots.tenants.remove(&oldest);
        }
        let avoided = slots.failed_at.is_some_and(|at| at.elapsed() < AVOID);
        let slot = slots.tenants.entry(tenant.clone()).or_default();
        slot.used = uses;
        (slot.read.clone(), avoided, Arc::clone(&slot.reading))
    }

    /// The tenant's snapshot, and whether it is not known to be the newest.
    async fn get(&self, tenant: &TenantId) -> Result<(Read, bool), PopularError> {
        let (known, avoided, reading) = self.known(tenant);
        let fresh = |read: &Read| read.at.elapsed() < REFRESH;
        match &known {
            Some(read) if fresh(read) => return Ok((read.clone(), false)),
            Some(read) if avoided => return Ok((read.clone(), true)),
            None if avoided => {
                return Err(PopularError::Unavailable(
                    "the state Redis does not answer".to_owned(),
                ));
            }
            Some(_) | None => {}
        }
        let _turn = match (reading.try_lock(), &known) {
            (Ok(turn), _) => turn,
            // Somebody reads: what is there is hardly older.
            (Err(_), Some(read)) => return Ok((read.clone(), false)),
            (Err(_), None) => reading.lock().await,
        };
        // It may have been read while we waited.
        let (known, ..) = self.known(tenant);
        if let Some(read) = known.as_ref().filter(|read| fresh(read)) {
            return Ok((read.clone(), false));
        }
        match self.read(tenant, known.as_ref()).await {
            Ok(read) => {
                if let Some(slot) = self.slots().tenants.get_mut(tenant) {
                    slot.read = Some(read.clone());
                }
                Ok((read, false))
            }
            Err(error) => {
                self.redis.failed();
                self.slots().failed_at = Some(Instant::now());
                match known {
                    Some(read) => Ok((read, true)),
                    None => Err(unavailable(&error)),
                }
            }
        }
    }

    async fn read(&self, tenant: &TenantId, known: Option<&Read>) -> Result<Read, StateError> {
        let at = Instant::now();
        let mut connection = self.redis.connection()?;
        // The moment first: what is added up after it may be on the boards that are read, not the
        // other way round.
        let merged = merging(tenant, self.partitions).0.to_string();
        let through = AsyncTypedCommands::hget(&mut connection, "tf:pw", merged).await?;
        let version = AsyncTypedCommands::get(&mut connection, format!("tf:pv:{tenant}")).await?;
        // A Redis that was just emptied says nothing of any moment: the age only grows.
        let known_as_of = known.map_or(0, |read| read.as_of);
        let as_of = through.and_then(|at| at.parse().ok()).unwrap_or(0).max(known_as_of);
        if let Some(known) = known
            && (known.version == version || version.is_none())
        {
            return Ok(Read { as_of, at, ..known.clone() });
        }
        let mut pipe = redis::pipe();
        for window in WINDOWS {
            let most =
                if window == Window::All { TYPEAHEAD_TAGS } else { crate::boards::BOARD_TAGS };
            let key = format!("tf:pl:{tenant}:{}", window.as_str());
            pipe.cmd("ZREVRANGE").arg(key).arg(0).arg(most).arg("WITHSCORES");
        }
        pipe.cmd("HGETALL").arg(format!("tf:pn:{tenant}"));
        type Scores = Vec<(String, f64)>;
        let (all, hour, day, week, displays): (
            Scores,
            Scores,
            Scores,
            Scores,
            HashMap<String, String>,
        ) = pipe.query_async(&mut connection).await?;
        let made = tokio::task::spawn_blocking(move || {
            let mut counts: HashMap<String, [u64; 4]> = HashMap::new();
            for (n, scores) in [all, hour, day, week].into_iter().enumerate() {
                for (tag, score) in scores {
                    counts.entry(tag).or_default()[n] = score as u64;
                }
            }
            Snapshot::of(counts.into_iter().map(|(tag, counts)| {
                let display = displays.get(&tag).cloned();
                (tag, display, counts)
            }))
        });
        let snapshot = made.await.map_err(|error| StateError::Unavailable(error.to_string()))?;
        Ok(Read { snapshot: Arc::new(snapshot), version, as_of, at })
    }
}

#[async_trait]
impl PopularTags for StateBoards {
    async fn popular(
        &self,
        tenant: &TenantId,
        window: Window,
        limit: usize,
    ) -> Result<Board, PopularError> {
        let (read, stale) = self.get(tenant).await?;
        Ok(Board { tags: read.snapshot.board(window, limit), as_of: read.as_of, stale })
    }

    async fn suggest(
        &self,
        tenant: &TenantId,
        prefix: &str,
        limit: usize,
    ) -> Result<Suggestions, PopularError> {
        let (read, stale) = self.get(tenant).await?;
        let tags = read.snapshot.suggest(&prefixes(prefix), limit);
        Ok(Suggestions { tags, approximate: read.snapshot.approximate, as_of: read.as_of, stale })
    }

    async fn count(
        &self,
        tenant: &TenantId,
        tag: &TagName,
    ) -> Result<Option<TagCount>, PopularError> {
        Ok(self.get(tenant).await?.0.snapshot.count(tag).cloned())
    }

    async fn displays(
        &self,
        tenant: &TenantId,
        tags: &[TagName],
    ) -> Result<Vec<Arc<str>>, PopularError> {
        let (read, _) = self.get(tenant).await?;
        let display = |tag: &TagName| {
            let known = read.snapshot.count(tag);
            known.map_or_else(|| tag.shared(), |count| Arc::clone(&count.display))
        };
        Ok(tags.iter().map(display).collect())
    }

    async fn recount(
        &self,
        _: bool,
        _: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<RecountReport, PopularError> {
        Err(PopularError::Unavailable(
            "this process counts nothing; ask one with the role analytics".to_owned(),
        ))
    }
}
