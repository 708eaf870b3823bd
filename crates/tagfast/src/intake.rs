//! Letters from their topics into the book, by the process that leads.
//!
//! The topics are the truth: where the book has read to is kept in the book itself, in the
//! transaction that takes letters in. How it fails: a broker or a book that is away is tried again
//! every second; nothing is skipped.

use std::sync::Arc;
use std::time::Duration;

use tagfast_events::Group;
use tagfast_events_kafka::KafkaBus;
use tagfast_store_postgres::PostgresLetters;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Letters taken in at once.
const TAKE: usize = 500;
/// How long letters are waited for.
const WAIT: Duration = Duration::from_millis(500);
/// Before it is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The running intakes of all groups; they end with their owner.
pub struct Intake(Vec<JoinHandle<()>>);

impl Drop for Intake {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Intake {
    /// Brings letters in while this process leads.
    pub fn spawn(
        bus: &Arc<KafkaBus>,
        book: &Arc<PostgresLetters>,
        leads: &watch::Receiver<bool>,
    ) -> Self {
        let of_group = |group| {
            let (bus, book, leads) = (Arc::clone(bus), Arc::clone(book), leads.clone());
            tokio::spawn(run(bus, book, group, leads))
        };
        Self(Group::ALL.map(of_group).into())
    }
}

async fn run(
    bus: Arc<KafkaBus>,
    book: Arc<PostgresLetters>,
    group: Group,
    mut leads: watch::Receiver<bool>,
) {
    let mut failing = false;
    while leads.wait_for(|leads| *leads).await.is_ok() {
        if let Err(error) = bring(&bus, &book, group, &leads, &mut failing).await {
            if !std::mem::replace(&mut failing, true) {
                tracing::warn!(
                    group = group.0,
                    error,
                    "letters are not brought into the book for now"
                );
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn bring(
    bus: &KafkaBus,
    book: &PostgresLetters,
    group: Group,
    leads: &watch::Receiver<bool>,
    failing: &mut bool,
) -> Result<(), String> {
    let read_to = book.read_to(group).await.map_err(|e| e.to_string())?;
    let mut reader = bus.letters(group, read_to).map_err(|e| e.to_string())?;
    while *leads.borrow() {
        let letters = reader.read(TAKE, WAIT).await.map_err(|e| e.to_string())?;
        if !letters.is_empty() {
            book.take_in(group, &letters, reader.read_to()).await.map_err(|e| e.to_string())?;
        }
        *failing = false;
    }
    Ok(())
}
