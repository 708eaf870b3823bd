//! The reads of one node: collected into batches, limited, refused when there are too many.
//!
//! A dispatcher collects what waits, up to 16 keys, at most for a millisecond while other queries
//! run, and begins a query when the node's limiter has a place. Each query is a task of its own,
//! which holds the place until the query has ended on the connection: callers come and go, the
//! database never works on more than the limit. Connections are opened when they are needed and
//! closed when they are not. Only critical reads wait for a place, fair between tenants, and not
//! for long; all others are refused at once.
//!
//! A node that failed, or that let a caller wait too long, is not asked first for two seconds;
//! after that one read tries it. This chooses among the nodes of a role. Whether the role is asked
//! at all is its breaker's to say: the permit of a read travels with it and is told what became of
//! its query, whether its caller still waits or not. While another node of the role is well a
//! failure is not the role's, and tells the breaker nothing.
//!
//! How it fails: every caller of a failed query is told, and asks another node or gives up; the
//! connection is thrown away.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tagfast_domain::TenantId;
use tagfast_resilience::{
    Criticality, InFlight, Limiter, LimiterLook, LimiterOptions, Permit, comes_back,
};
use tagfast_store::queue::{FairQueue, Queued, TenantWeights};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::connect::{Opener, PgError};
use crate::options::limit;
use crate::query::{Group, ReadFacts, Reading};

/// How a node is read.
#[derive(Clone)]
pub(crate) struct ReaderOptions {
    /// In PostgreSQL's list of sessions.
    pub(crate) name: &'static str,
    /// Queries at once at most.
    pub(crate) concurrency: usize,
    /// Queries a second at most; 0: no such bound.
    pub(crate) per_second: u32,
    /// How long a critical read waits for a place.
    pub(crate) wait: Duration,
    pub(crate) weights: TenantWeights,
}

/// Why a read did not come to an answer.
#[derive(Debug)]
pub(crate) enum NotRead {
    /// Too much is under way or waits.
    Overloaded(Duration),
    /// The node failed, or was too slow; the error is in the log.
    Failed,
    /// Its caller had too little time.
    Late,
}

/// A document's bytes, if there is one, and the facts of its query.
pub(crate) type Found = (Option<Vec<u8>>, ReadFacts);

/// A read that is asked of a node.
pub(crate) struct Ask<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) key: &'a [u8],
    pub(crate) criticality: Criticality,
    /// Of the breaker of the node's role.
    pub(crate) permit: Permit,
    /// No other node of the role is well: if this one fails, the role does.
    pub(crate) alone: bool,
    /// When nobody waits for it any more.
    pub(crate) until: Instant,
    /// A node that takes longer is not asked first for a while.
    pub(crate) patience: Duration,
}

struct Job {
    tenant: TenantId,
    key: Vec<u8>,
    criticality: Criticality,
    permit: Permit,
    alone: bool,
    came: Instant,
    until: Instant,
    reply: oneshot::Sender<Result<Found, NotRead>>,
}

impl Queued for Job {
    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn units(&self) -> usize {
        1
    }
}

/// The median of the last queries.
#[derive(Default)]
struct Latency {
    last: [Duration; 15],
    next: usize,
    median: Duration,
    at: Option<Instant>,
}

impl Latency {
    fn note(&mut self, took: Duration) {
        self.last[self.next % self.last.len()] = took;
        self.next += 1;
        let known = self.next.min(self.last.len());
        let mut sorted = self.last;
        sorted[..known].sort_unstable();
        self.median = sorted[known / 2];
        self.at = Some(Instant::now());
    }

    /// What a query takes, as of the last second: what is older would keep a node from ever being
    /// asked again.
    fn expected(&self) -> Duration {
        if self.at.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            self.median
        } else {
            Duration::ZERO
        }
    }
}

struct Inbox {
    queue: FairQueue<Job>,
    /// How many of each criticality wait.
    waiting: [usize; 3],
    /// Since when the oldest one waits, or earlier.
    oldest: Option<Instant>,
    idle: Vec<(Instant, Reading)>,
    latency: Latency,
    shed: [u64; 3],
    /// Not asked first before.
    avoided_until: Option<Instant>,
    /// The end of the time in which a node that has not answered yet may still be connecting;
    /// `None`: it has answered, or nobody has asked.
    connects_until: Option<Instant>,
    answered: bool,
    closed: bool,
}

struct Shared {
    label: String,
    opener: Opener,
    address: String,
    options: ReaderOptions,
    limiter: Arc<Limiter>,
    inbox: Mutex<Inbox>,
    /// Something came, or a query has ended.
    news: Notify,
}

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.inbox().closed = true;
        self.0.news.notify_one();
    }
}

/// A node's reader. With its last copy its tasks end.
#[derive(Clone)]
pub(crate) struct NodeReader(Arc<Handle>);

impl NodeReader {
    pub(crate) fn start(
        label: String,
        opener: Opener,
        address: String,
        options: ReaderOptions,
    ) -> Self {
        let limits = LimiterOptions {
            start: LimiterOptions::default().start.min(options.concurrency),
            least: LimiterOptions::default().least.min(options.concurrency),
            most: options.concurrency,
            per_second: (options.per_second > 0).then(|| f64::from(options.per_second)),
            ..LimiterOptions::default()
        };
        let began = std::time::Instant::now();
        let inbox = Inbox {
            queue: FairQueue::weighted(options.concurrency * limit::READS, options.weights.clone()),
            waiting: [0; 3],
            oldest: None,
            idle: Vec::new(),
            latency: Latency::default(),
            shed: [0; 3],
            avoided_until: None,
            connects_until: None,
            answered: false,
            closed: false,
        };
        let shared = Arc::new(Shared {
            label,
            opener,
            address,
            options,
            limiter: Limiter::new(limits, Arc::new(move || began.elapsed())),
            inbox: Mutex::new(inbox),
            news: Notify::new(),
        });
        tokio::spawn(Arc::clone(&shared).dispatch());
        Self(Arc::new(Handle(shared)))
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    /// Whether it has not failed lately.
    pub(crate) fn is_well(&self) -> bool {
        self.shared().inbox().avoided_until.is_none()
    }

    /// When it may be asked again; `None`: it is well.
    pub(crate) fn avoided_until(&self) -> Option<Instant> {
        self.shared().inbox().avoided_until
    }

    /// Whether this read may ask it: it is well, or its time is over and this is the one that
    /// tries.
    pub(crate) fn may_ask(&self) -> bool {
        let mut inbox = self.shared().inbox();
        let now = Instant::now();
        match inbox.avoided_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                inbox.avoided_until = Some(now + limit::AVOID);
                true
            }
        }
    }

    /// What it is called, and how its limit stands.
    pub(crate) fn look(&self) -> (String, LimiterLook) {
        let shared = self.shared();
        let mut look = shared.limiter.look();
        // The limiter sees queries; who was refused is a caller.
        [look.shed.sheddable, look.shed.degradable, look.shed.critical] = shared.inbox().shed;
        (shared.label.clone(), look)
    }

    pub(crate) async fn read(&self, ask: Ask<'_>) -> Result<Found, NotRead> {
        let shared = self.shared();
        let now = Instant::now();
        let patient = now + ask.patience;
        let until = ask.until.min(patient);
        let (reply, answer) = oneshot::channel();
        shared.push(Job {
            tenant: ask.tenant.clone(),
            key: ask.key.to_vec(),
            criticality: ask.criticality,
            permit: ask.permit,
            alone: ask.alone,
            came: now,
            until: ask.until,
            reply,
        })?;
        match timeout_at(until, answer).await {
            Ok(Ok(found)) => found,
            // A caller in a hurry says nothing about the node.
            Ok(Err(_)) => Err(NotRead::Late),
            Err(_) if until < patient => Err(NotRead::Late),
            Err(_) => {
                shared.too_late();
                Err(NotRead::Failed)
            }
        }
    }
}

fn place(criticality: Criticality) -> usize {
    match criticality {
        Criticality::Sheddable => 0,
        Criticality::Degradable => 1,
        Criticality::Critical => 2,
    }
}

impl Inbox {
    /// Keeps count of what has left the queue.
    fn left(&mut self, jobs: &[Job]) {
        jobs.iter().for_each(|job| self.waiting[place(job.criticality)] -= 1);
        if self.queue.is_empty() {
            self.oldest = None;
        }
    }

    /// The most important of what waits.
    fn most_important(&self) -> Criticality {
        let order = [Criticality::Critical, Criticality::Degradable];
        order.into_iter().find(|of| self.waiting[place(*of)] > 0).unwrap_or(Criticality::Sheddable)
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn avoid(&self) {
        self.inbox().avoided_until = Some(Instant::now() + limit::AVOID);
    }

    /// A caller has lost its patience. The first connections of a process take their time; that is
    /// no fault of the node.
    fn too_late(&self) {
        let mut inbox = self.inbox();
        let now = Instant::now();
        if inbox.connects_until.is_none_or(|until| now >= until) {
            inbox.avoided_until = Some(now + limit::AVOID);
        }
    }

    fn refuse(&self, job: Job) {
        self.inbox().shed[place(job.criticality)] += 1;
        metrics::counter!("tagfast_reads_shed_total", "criticality" => job.criticality.as_str())
            .increment(1);
        drop(job.reply.send(Err(NotRead::Overloaded(comes_back()))));
    }

    /// Takes a read in, or refuses it.
    fn push(&self, job: Job) -> Result<(), NotRead> {
        let look = self.limiter.look();
        let criticality = job.criticality;
        let mut inbox = self.inbox();
        // What waits will be queries, too.
        let planned = look.in_flight + (inbox.queue.len() + 1).div_ceil(limit::READS);
        let room = match criticality {
            Criticality::Critical => true,
            Criticality::Degradable | Criticality::Sheddable => {
                planned <= criticality.most_of(look.limit)
            }
        };
        // As much as the limit lets run may wait; what finds a place at once does not wait.
        let free = look.limit.saturating_sub(look.in_flight);
        inbox.queue.set_bound((look.limit + free) * limit::READS);
        let came = job.came;
        if !room || inbox.queue.push(job).is_err() {
            inbox.shed[place(criticality)] += 1;
            metrics::counter!("tagfast_reads_shed_total", "criticality" => criticality.as_str())
                .increment(1);
            return Err(NotRead::Overloaded(comes_back()));
        }
        inbox.waiting[place(criticality)] += 1;
        inbox.oldest.get_or_insert(came);
        if !inbox.answered {
            inbox.connects_until.get_or_insert(came + limit::READ);
        }
        drop(inbox);
        self.news.notify_one();
        Ok(())
    }

    /// Closes connections that are not used. When the next one grows too old.
    fn close_idle(&self, now: Instant) -> Option<Instant> {
        let mut inbox = self.inbox();
        inbox.idle.retain(|(since, server)| now - *since < limit::IDLE && !server.is_closed());
        inbox.idle.first().map(|(since, _)| *since + limit::IDLE)
    }

    /// Refuses those that have waited too long and forgets those that nobody waits for. Asked only
    /// while there is no place: who was late to be looked at is not refused for it.
    fn expire(&self, now: Instant) {
        let mut inbox = self.inbox();
        if inbox.oldest.is_none_or(|oldest| now < oldest + self.options.wait) {
            return;
        }
        let gone =
            inbox.queue.take_if(|job| job.reply.is_closed() || now >= job.came + self.options.wait);
        inbox.left(&gone);
        self.look_again(&mut inbox, now);
        drop(inbox);
        gone.into_iter().for_each(|job| self.refuse(job));
    }

    /// The queue does not know who is the oldest of those that are left: it is looked through after
    /// a quarter of the wait.
    fn look_again(&self, inbox: &mut Inbox, now: Instant) {
        if inbox.oldest.is_some() {
            inbox.oldest = now.checked_sub(self.options.wait * 3 / 4);
        }
    }

    /// Refuses what does not wait for a place.
    fn refuse_all_but_critical(&self) {
        let mut inbox = self.inbox();
        if inbox.waiting[..2] == [0, 0] {
            return;
        }
        let gone = inbox.queue.take_if(|job| job.criticality != Criticality::Critical);
        inbox.left(&gone);
        drop(inbox);
        gone.into_iter().for_each(|job| self.refuse(job));
    }

    /// Until when more is collected; `None`: what waits goes at once.
    fn lingers(&self) -> Option<Instant> {
        let in_flight = self.limiter.look().in_flight;
        let inbox = self.inbox();
        if in_flight == 0 || inbox.queue.len() >= limit::READS {
            return None;
        }
        inbox.oldest.map(|oldest| oldest + limit::LINGER).filter(|until| *until > Instant::now())
    }

    /// The next batch. What would be late is not asked any more.
    fn take(&self) -> Vec<Job> {
        let mut inbox = self.inbox();
        let jobs = inbox.queue.take(limit::READS, limit::READS);
        inbox.left(&jobs);
        let now = Instant::now();
        self.look_again(&mut inbox, now);
        let needs = inbox.latency.expected();
        drop(inbox);
        jobs.into_iter().filter(|job| !job.reply.is_closed() && job.until > now + needs).collect()
    }

    async fn dispatch(self: Arc<Self>) {
        loop {
            let now = Instant::now();
            let idle = self.close_idle(now);
            let (waits, closed) = {
                let inbox = self.inbox();
                (inbox.oldest, inbox.closed)
            };
            if waits.is_none() {
                if closed {
                    return;
                }
                match idle {
                    None => self.news.notified().await,
                    Some(at) => drop(timeout_at(at, self.news.notified()).await),
                }
                continue;
            }
            if let Some(until) = self.lingers() {
                drop(timeout_at(until, self.news.notified()).await);
                continue;
            }
            let most_important = self.inbox().most_important();
            match self.limiter.try_begin(most_important) {
                Ok(place) => {
                    let jobs = self.take();
                    if !jobs.is_empty() {
                        tokio::spawn(Arc::clone(&self).query(place, jobs));
                    }
                }
                Err(_) => {
                    self.refuse_all_but_critical();
                    self.expire(now);
                    let Some(oldest) = self.inbox().oldest else { continue };
                    // The bound of a second makes room without any query's end.
                    let soon = if self.options.per_second > 0 {
                        now + limit::LINGER
                    } else {
                        oldest + self.options.wait
                    };
                    tokio::select! {
                        () = self.news.notified() => {}
                        () = sleep_until(soon) => {}
                    }
                }
            }
        }
    }

    /// A connection that is open, or a new one. Whether it is new comes with it.
    async fn server(&self) -> Result<(Reading, bool), PgError> {
        loop {
            // The one that was used last: those that are not needed grow old.
            let Some((_, server)) = self.inbox().idle.pop() else { break };
            if !server.is_closed() {
                return Ok((server, false));
            }
        }
        Ok((Reading::open(&self.opener, &self.address, self.options.name).await?, true))
    }

    /// One query, to its end, whoever still waits for it.
    async fn query(self: Arc<Self>, held: InFlight, mut jobs: Vec<Job>) {
        let asked = Instant::now();
        let opened = self.server().await;
        let (result, server, fresh) = match opened {
            Err(error) => (Err(error), None, true),
            // Whoever asked has given up, and the node is why. The connection is there for the next
            // ones.
            Ok((server, _)) if asked.elapsed() >= limit::READ => {
                self.inbox().idle.push((Instant::now(), server));
                (Err(PgError::Late("connecting for a query", limit::READ)), None, true)
            }
            Ok((server, fresh)) => {
                jobs.retain(|job| !job.reply.is_closed());
                if jobs.is_empty() {
                    self.inbox().idle.push((Instant::now(), server));
                    drop(held);
                    self.news.notify_one();
                    return;
                }
                let mut keys: Vec<&[u8]> = jobs.iter().map(|job| job.key.as_slice()).collect();
                keys.sort_unstable();
                keys.dedup();
                let began = Instant::now();
                let result = server.group(&keys).await;
                let took = began.elapsed();
                metrics::histogram!("tagfast_read_batch_keys").record(keys.len() as f64);
                let mut inbox = self.inbox();
                if result.is_ok() {
                    inbox.latency.note(took);
                    (inbox.answered, inbox.connects_until) = (true, None);
                    // Late answers keep it avoided.
                    if took < limit::REPLICA_FIRST {
                        inbox.avoided_until = None;
                    }
                }
                drop(inbox);
                (result, Some(server), fresh)
            }
        };
        match &result {
            // Connecting is no measure of load.
            Ok(_) if fresh => drop(held),
            Ok(_) => held.ended(jobs.len(), true),
            Err(_) => held.ended(jobs.len(), false),
        }
        // The statement has ended on the server; the connection is as good as before.
        let keeps = result.as_ref().map_or_else(|error| error.code() == Some("57014"), |_| true);
        if let Some(server) = server.filter(|_| keeps) {
            self.inbox().idle.push((Instant::now(), server));
        }
        self.news.notify_one();
        self.answer(jobs, result, fresh);
    }

    fn answer(&self, jobs: Vec<Job>, result: Result<Group, PgError>, fresh: bool) {
        match result {
            Ok((mut documents, facts)) => {
                // A key that is asked for once need not be copied.
                let mut seen = HashSet::with_capacity(jobs.len());
                let unique = jobs.iter().all(|job| seen.insert(&job.key));
                for job in jobs {
                    let document = if unique {
                        documents.remove(&job.key)
                    } else {
                        documents.get(&job.key).cloned()
                    };
                    // Slow is not the role's while another node is well, and not when it was the
                    // connecting.
                    if (job.alone && !fresh) || job.came.elapsed() < limit::SLOW {
                        job.permit.ok();
                    }
                    drop(job.reply.send(Ok((document, facts))));
                }
            }
            Err(error) => {
                tracing::warn!(reads = self.label, %error, "a query failed");
                self.avoid();
                let of_role = !error.is_role_change();
                for job in jobs {
                    if job.alone && of_role {
                        job.permit.failed();
                    }
                    drop(job.reply.send(Err(NotRead::Failed)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_query_takes_is_the_median_of_the_last_ones_and_is_forgotten() {
        let ms = Duration::from_millis;
        let mut latency = Latency::default();
        assert_eq!(latency.expected(), Duration::ZERO, "nothing is known");
        latency.note(ms(7));
        assert_eq!(latency.expected(), ms(7));
        [3, 900, 4, 800].into_iter().for_each(|took| latency.note(ms(took)));
        assert_eq!(latency.expected(), ms(7), "two slow ones of five do not count");
        (0..15).for_each(|_| latency.note(ms(2)));
        assert_eq!(latency.expected(), ms(2), "only the last ones count");
        tokio::time::advance(ms(1000)).await;
        assert_eq!(latency.expected(), Duration::ZERO, "a node that was slow once is asked again");
    }

    #[test]
    fn those_who_are_refused_together_do_not_come_back_together() {
        let times: HashSet<Duration> = (0..100).map(|_| comes_back()).collect();
        let bounds = Duration::from_secs(1)..Duration::from_secs(3);
        assert!(times.len() > 50 && times.iter().all(|time| bounds.contains(time)), "{times:?}");
    }
}
