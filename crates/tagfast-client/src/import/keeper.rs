//! Keeps the checkpoint of an import. An import whose checkpoint cannot be stored goes on without
//! one: it can be repeated from its beginning, which is harmless, and the user is told at once.

use std::time::{Duration, Instant};

use super::checkpoint::{self, Checkpoint, CheckpointFile};
use super::ledger::Done;
use crate::error::CliError;
use crate::terminal::Terminal;

/// Shortest time between two stored checkpoints.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// The checkpoint of an import and where it is stored.
pub(super) struct Keeper {
    /// `None` = nowhere.
    file: Option<CheckpointFile>,
    checkpoint: Checkpoint,
    stored: Stored,
    tried_at: Instant,
}

/// What is in the checkpoint's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// The newest checkpoint.
    Newest,
    /// An older one, or none: the last attempt to store it failed.
    Older,
}

impl Keeper {
    /// Begins with the checkpoint that the import goes on from. Says so if an interrupted import
    /// cannot go on where it stopped.
    ///
    /// # Errors
    /// The file that the user named cannot be written.
    pub(super) fn start(
        file: Option<CheckpointFile>,
        checkpoint: Checkpoint,
        terminal: &Terminal,
    ) -> Result<Self, CliError> {
        let mut stored = Stored::Newest;
        match &file {
            None => terminal.note(
                "note: the input is no file of its own (it is a pipe, a device or stdin): if the \
                 import is interrupted, it starts over (--state FILE keeps a checkpoint)",
            ),
            Some(file) => match checkpoint::save(&file.path, &checkpoint) {
                Err(error) if file.named => return Err(error),
                Err(error) => {
                    stored = Stored::Older;
                    terminal.note(format_args!(
                        "note: no checkpoint can be kept: {}; if the import is interrupted, it \
                         starts over (--state FILE keeps the checkpoint elsewhere)",
                        error.full_message()
                    ));
                }
                Ok(()) => {}
            },
        }
        Ok(Self { file, checkpoint, stored, tried_at: Instant::now() })
    }

    /// Id of the import.
    pub(super) fn run(&self) -> &str {
        &self.checkpoint.run
    }

    /// Stores what is done, if the last attempt was long enough ago.
    pub(super) fn save_if_due(&mut self, done: &Done, terminal: &Terminal) {
        if self.tried_at.elapsed() >= CHECKPOINT_INTERVAL {
            self.save(done, terminal);
        }
    }

    /// Stores what is done. A failure is said once, until it is over.
    fn save(&mut self, done: &Done, terminal: &Terminal) {
        self.tried_at = Instant::now();
        let Some(file) = &self.file else { return };
        self.checkpoint.done.clone_from(done);
        match (checkpoint::save(&file.path, &self.checkpoint), self.stored) {
            (Ok(()), Stored::Newest) | (Err(_), Stored::Older) => {}
            (Ok(()), Stored::Older) => {
                self.stored = Stored::Newest;
                terminal.note("note: checkpoints are kept again");
            }
            (Err(error), Stored::Newest) => {
                self.stored = Stored::Older;
                terminal.note(format_args!(
                    "note: the checkpoint cannot be kept: {}; the import goes on without",
                    error.full_message()
                ));
            }
        }
    }

    /// Stores what is done before a failure, and says how to go on.
    pub(super) fn hint_after_failure(&mut self, done: &Done, terminal: &Terminal) -> String {
        self.save(done, terminal);
        let line = done.line;
        if self.file.is_some() && self.stored == Stored::Newest {
            format!(
                "everything up to line {line} is done; start the same command again to go on there"
            )
        } else {
            format!("everything up to line {line} is done; importing lines twice is harmless")
        }
    }

    /// The input does not begin with the lines that are done.
    pub(super) fn changed(&self, line: u64) -> CliError {
        match &self.file {
            Some(file) => checkpoint::changed(&file.path, line),
            None => CliError::new("the input has changed"),
        }
    }

    /// Removes the checkpoint of a complete import.
    pub(super) fn remove(&self, terminal: &Terminal) {
        let Some(file) = &self.file else { return };
        if let Err(error) = checkpoint::remove(&file.path) {
            terminal.note(format_args!(
                "note: everything is imported, but {}; until it is gone, the same import skips \
                 what it says is done",
                error.full_message()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let run = "r".to_owned();
        Checkpoint { run, url: "u".to_owned(), tenant: None, done: Done::default() }
    }

    fn line(line: u64) -> Done {
        Done { line, ..Done::default() }
    }

    #[test]
    fn a_folder_that_goes_away_stops_checkpoints_and_not_the_import() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, moved) = (dir.path().join("folder"), dir.path().join("moved"));
        std::fs::create_dir(&folder).unwrap();
        let file = CheckpointFile { path: folder.join("state"), named: true };
        let (terminal, captured) = Terminal::memory(true);
        let mut keeper = Keeper::start(Some(file), checkpoint(), &terminal).unwrap();
        std::fs::rename(&folder, &moved).unwrap();
        keeper.save(&line(7), &terminal);
        keeper.save(&line(8), &terminal);
        assert_eq!(captured.err().matches("cannot be kept").count(), 1, "{}", captured.err());
        assert!(!keeper.hint_after_failure(&line(8), &terminal).contains("go on there"));
        std::fs::rename(&moved, &folder).unwrap();
        assert!(keeper.hint_after_failure(&line(9), &terminal).contains("go on there"));
        assert!(captured.err().contains("kept again"), "{}", captured.err());
        let stored = checkpoint::load(&folder.join("state"), false, checkpoint()).unwrap();
        assert_eq!(stored.done.line, 9);
    }

    #[test]
    fn a_place_that_nothing_can_be_written_to_is_said_at_the_start() {
        let path = std::path::PathBuf::from("/proc/no such folder/state");
        let (terminal, captured) = Terminal::memory(true);
        let file = |named| Some(CheckpointFile { path: path.clone(), named });
        Keeper::start(file(false), checkpoint(), &terminal).unwrap();
        assert!(captured.err().contains("no checkpoint can be kept"), "{}", captured.err());
        assert!(Keeper::start(file(true), checkpoint(), &terminal).is_err());
        Keeper::start(None, checkpoint(), &terminal).unwrap();
        assert!(captured.err().contains("no file of its own"), "{}", captured.err());
    }
}
