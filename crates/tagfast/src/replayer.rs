//! The secondary consumer: it looks after dead letters so that people need not, and calls them when
//! they must.
//!
//! One process leads at a time; nothing depends on it being the only one. It brings letters from
//! the bus into the book (in a cluster), lets those that are due be replayed, counts them, forgets
//! old ones, and tells a webhook when letters stay that nobody will replay. How it fails: while the
//! book cannot be reached it waits; a webhook that does not answer is tried again and holds nothing
//! up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tagfast_domain::UnixMillis;
use tagfast_domain::time::rfc3339;
use tagfast_events::letters::{PAGE_LETTERS, RATE};
use tagfast_events::{
    Act, BookError, Cooldown, Due, GroupLetters, LetterBook, LetterFilter, LetterState, NewJob,
};
use tagfast_resilience::{Background, Clock, Stopped};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::webhook::{Webhook, WebhookOptions};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Between two rounds of forgetting.
const FORGET_EVERY: Duration = Duration::from_secs(3600);
/// How long closed letters, finished replays and acts are remembered: as long as Kafka keeps
/// letters.
const REMEMBER_MS: i64 = 14 * 86_400_000;
/// Letters that a message to people names.
const EXAMPLES: usize = 5;

/// How letters are looked after.
#[derive(Debug, Clone, Default)]
pub struct ReplayerOptions {
    /// When they are replayed by themselves.
    pub cooldown: Cooldown,
    /// Who is told of letters that stay.
    pub webhook: Option<WebhookOptions>,
}

/// What has been told to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Told {
    letters: u64,
    at: Option<Instant>,
}

struct Desk {
    book: Arc<dyn LetterBook>,
    options: ReplayerOptions,
    webhook: Option<Webhook>,
    clock: Arc<dyn Clock>,
    /// Told to whoever brings letters in.
    leads: watch::Sender<bool>,
    told: Told,
    forgot_at: Option<Instant>,
    failing: bool,
}

/// A running replayer.
pub struct Replayer(Background);

impl Replayer {
    /// Starts to look after the letters of a book. `leads` is told whether this process is the one.
    pub fn spawn(
        book: Arc<dyn LetterBook>,
        options: ReplayerOptions,
        clock: Arc<dyn Clock>,
        leads: watch::Sender<bool>,
    ) -> Self {
        let webhook = options.webhook.clone().map(Webhook::spawn);
        let mut desk = Desk {
            book,
            options,
            webhook,
            clock,
            leads,
            told: Told::default(),
            forgot_at: None,
            failing: false,
        };
        Self(Background::spawn(async move |mut stopped: Stopped| {
            loop {
                tokio::select! {
                    biased;
                    _ = stopped.wait_for(|stop| *stop) => return,
                    () = desk.round() => {}
                }
                tokio::select! {
                    _ = stopped.wait_for(|stop| *stop) => return,
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        }))
    }

    /// Ends.
    pub async fn stop(&self) {
        if let Err(error) = self.0.stop().await {
            tracing::error!(%error, "the replayer ended badly");
        }
    }
}

impl Desk {
    async fn round(&mut self) {
        match self.look().await {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("dead letters are looked after again");
                }
            }
            Err(error) => {
                self.leads.send_if_modified(std::mem::take);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "dead letters are not looked after for now");
                }
            }
        }
    }

    async fn look(&mut self) -> Result<(), BookError> {
        let leads = self.book.leads().await?;
        self.leads.send_if_modified(|known| std::mem::replace(known, leads) != leads);
        if !leads {
            return Ok(());
        }
        let now = self.clock.now_ms();
        self.replay_due(now).await?;
        let open = self.book.open_letters(self.options.cooldown).await?;
        for GroupLetters { group, open, need_a_person, oldest } in &open {
            let age = oldest.map_or(0, |at| (now - at).max(0)) as f64 / 1000.0;
            metrics::gauge!("tagfast_dead_letters_open", "group" => group.0).set(*open as f64);
            metrics::gauge!("tagfast_dead_letters_need_a_person", "group" => group.0)
                .set(*need_a_person as f64);
            metrics::gauge!("tagfast_dead_letter_oldest_seconds", "group" => group.0).set(age);
        }
        if self.webhook.is_some() {
            self.tell(&open, now).await?;
        }
        if self.forgot_at.is_none_or(|at| at.elapsed() >= FORGET_EVERY) {
            self.book.forget(now - REMEMBER_MS).await?;
            self.forgot_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Gives what is due to a job; the clerks of the consumers do the rest.
    async fn replay_due(&self, now: UnixMillis) -> Result<(), BookError> {
        let due = Due { at: now, cooldown: self.options.cooldown };
        let filter = LetterFilter {
            state: Some(LetterState::Open),
            due: Some(due),
            ..LetterFilter::default()
        };
        // Those of a job that is under way may be due, too: they are in it already.
        let found = self.book.list(&filter, None, 1).await?;
        if found.letters.is_empty() {
            return Ok(());
        }
        let job =
            NewJob { id: uuid::Uuid::now_v7().to_string(), dry_run: false, rate: RATE, at: now };
        let begun = self.book.begin(&job, &filter).await?;
        if begun.letters == 0 {
            return Ok(());
        }
        tracing::info!(
            job = job.id,
            letters = begun.letters,
            "dead letters are replayed after their cool-down"
        );
        let detail = format!("job={} {filter}", job.id);
        let (by, action) = ("service".to_owned(), "replay".to_owned());
        self.book.note(&Act { at: now, by, action, detail, letters: begun.letters }).await
    }

    /// Tells people of letters that stay: when there are more than were told of, and when there are
    /// none any more.
    async fn tell(&mut self, open: &[GroupLetters], now: UnixMillis) -> Result<(), BookError> {
        let Some(webhook) = &self.webhook else { return Ok(()) };
        let staying: u64 = open.iter().map(|of| of.need_a_person).sum();
        let every = webhook.every();
        let early = self.told.at.is_some_and(|at| at.elapsed() < every);
        let news = if staying == 0 {
            self.told.letters > 0
        } else {
            staying > self.told.letters && !early
        };
        if !news {
            // Fewer than were told of: what comes on top of them is news again.
            self.told.letters = self.told.letters.min(staying);
            return Ok(());
        }
        let message = if staying == 0 {
            json!({"type": "tagfast.dead_letters.resolved", "at": rfc3339(now), "letters": 0, "groups": []})
        } else {
            self.summary(open, staying, now).await?
        };
        if webhook.send(message) {
            self.told = Told { letters: staying, at: Some(Instant::now()) };
        }
        Ok(())
    }

    async fn summary(
        &self,
        open: &[GroupLetters],
        staying: u64,
        now: UnixMillis,
    ) -> Result<Value, BookError> {
        let mut groups = Vec::new();
        for of in open.iter().filter(|of| of.need_a_person > 0) {
            let filter = LetterFilter {
                group: Some(of.group),
                state: Some(LetterState::Open),
                ..LetterFilter::default()
            };
            let page = self.book.list(&filter, None, PAGE_LETTERS).await?;
            let stays =
                |class, replays, at| self.options.cooldown.next(class, replays, at).is_none();
            let mut codes: BTreeMap<String, u64> = BTreeMap::new();
            let mut examples = Vec::new();
            for stored in &page.letters {
                let letter = &stored.letter;
                if stays(letter.class, stored.replays, letter.last_failed_at) {
                    *codes.entry(letter.code.clone()).or_default() += 1;
                    if examples.len() < EXAMPLES {
                        examples.push(letter.id());
                    }
                }
            }
            groups.push(json!({
                "group": of.group.0,
                "letters": of.need_a_person,
                "oldest": of.oldest.map(rfc3339),
                // Of the newest letters: a storm is told by its size, not counted to the end.
                "codes": codes,
                "examples": examples,
            }));
        }
        Ok(
            json!({"type": "tagfast.dead_letters.stay", "at": rfc3339(now), "letters": staying, "groups": groups}),
        )
    }
}
