//! How the copy of a journal on disk fares.
//!
//! How it fails: it does not. A disk that hangs is told by the time since which it does.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A disk that takes longer to save is named.
const SLOW_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct State {
    /// Since when the disk has been saving; `None`: it is not.
    saving_since: Option<Instant>,
    /// Since when it has failed, and its last error; `None`: it does not.
    failing: Option<(Instant, String)>,
    /// Files that could not be read back, each with why.
    set_aside: Vec<String>,
    /// Writes that the copy does not have, because the disk did not take them.
    forgotten_writes: u64,
}

/// How the copy of one cluster's journal fares; without a copy, well.
#[derive(Debug, Default)]
pub(crate) struct CopyHealth(Mutex<State>);

impl CopyHealth {
    pub(crate) fn note_set_aside(&self, files: &[String]) {
        self.0.lock().set_aside.extend_from_slice(files);
    }

    pub(crate) fn note_begin(&self) {
        self.0.lock().saving_since = Some(Instant::now());
    }

    /// It was saved, without so many writes.
    pub(crate) fn note_saved(&self, forgotten_writes: u64) {
        let mut state = self.0.lock();
        (state.saving_since, state.failing) = (None, None);
        state.forgotten_writes += forgotten_writes;
    }

    pub(crate) fn note_failure(&self, error: String) {
        let mut state = self.0.lock();
        state.saving_since = None;
        let since = state.failing.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        state.failing = Some((since, error));
    }

    /// What is wrong and what to do, one text each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let state = self.0.lock();
        let mut warnings = Vec::new();
        let hangs = state.saving_since.map(|since| since.elapsed()).filter(|t| *t >= SLOW_AFTER);
        if let Some((since, error)) = &state.failing {
            warnings.push(format!(
                "the journal is not copied to disk ({} s: {error}); if this process dies with the \
                 primary, the writes that it acknowledged last are lost unlisted: look at the disk \
                 of store.journal_dir",
                since.elapsed().as_secs()
            ));
        } else if let Some(hangs) = hangs {
            warnings.push(format!(
                "the disk of store.journal_dir has not answered for {} s; if this process dies \
                 with the primary, the writes that it acknowledged last are lost unlisted",
                hangs.as_secs()
            ));
        }
        if state.forgotten_writes > 0 {
            warnings.push(format!(
                "the copy of the journal on disk lacks {} acknowledged writes, because it was full \
                 or the disk did not take them: bring the replicas back, or raise \
                 store.journal_max_bytes",
                state.forgotten_writes
            ));
        }
        warnings.extend(state.set_aside.iter().map(|file| {
            format!(
                "a file of the journal could not be read back and was set aside ({file}); what it \
                 held is neither repaired nor listed: keep it for the analysis, then remove it"
            )
        }));
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failing_and_a_hanging_disk_are_named_until_they_work() {
        let health = CopyHealth::default();
        health.note_begin();
        assert_eq!(health.warnings(), Vec::<String>::new());
        tokio::time::advance(SLOW_AFTER).await;
        assert!(health.warnings()[0].contains("has not answered for 2 s"));
        health.note_failure("no space".to_owned());
        tokio::time::advance(SLOW_AFTER).await;
        health.note_begin();
        health.note_failure("no space left".to_owned());
        assert!(health.warnings()[0].contains("(2 s: no space left)"), "{:?}", health.warnings());
        health.note_saved(0);
        assert_eq!(health.warnings(), Vec::<String>::new());
        health.note_saved(3);
        assert!(health.warnings()[0].contains("lacks 3 acknowledged writes"));
    }
}
