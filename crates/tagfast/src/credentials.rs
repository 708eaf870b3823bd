//! Reads the files of credentials again and again, so that a password, key or certificate is
//! rotated without a restart.
//!
//! Every file is read each [`READ_INTERVAL`]. The content decides, never a time of modification: a
//! changed content is taken once two reads in a row have found it, because a file may be read while
//! it is written. Who connects next uses it; open connections go on.
//!
//! How it fails: a file that is missing, empty or malformed changes nothing. What it held before
//! stays in force, `degraded` names the file while that lasts, and the log says so when it begins
//! and when it is over. What a server refuses is named too.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_client::error::CliError;
use tagfast_resilience::task::{BackgroundTask, StopSignal, blocking};
use tagfast_resilience::{Credential, OutageLog, gauge};

use crate::config::{CredentialFile, readable_by_others};
use crate::telemetry::metrics::CREDENTIALS_WITH_PROBLEM;

/// Between two reads of each file.
const READ_INTERVAL: Duration = Duration::from_millis(250);

/// Why the content of a file is not used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct FileError(String);

/// The files of a process's credentials, and the task that reads them.
pub(crate) struct CredentialFiles {
    files: WatchedFiles,
    task: BackgroundTask,
}

type WatchedFiles = Arc<Mutex<Vec<Arc<dyn Watched>>>>;

/// A credential with its files.
trait Watched: Send + Sync {
    fn key(&self) -> &str;
    /// Reads the files; called from a thread that may block.
    fn read_again(&self);
    /// What is wrong with the file, or with its content at a server; `None`: nothing.
    fn problem(&self) -> Option<String>;
}

struct File<T> {
    file: CredentialFile<T>,
    credential: Credential<T>,
    state: Mutex<FileState<T>>,
    outage: OutageLog,
}

struct FileState<T> {
    /// A content that was read once and is not in force.
    unconfirmed: Option<T>,
    /// Why the last content could not be used; `None`: it could.
    unusable: Option<String>,
}

impl<T: Clone + PartialEq + Send + Sync> Watched for File<T> {
    fn key(&self) -> &str {
        &self.file.key
    }

    fn read_again(&self) {
        let read = self.file.read();
        let mut state = self.state.lock();
        let content = match read {
            Ok(content) => content,
            Err(why) => {
                state.unconfirmed = None;
                state.unusable = Some(format!("{why}; what it held before stays in force"));
                drop(state);
                self.outage.failed(&FileError(why));
                return;
            }
        };
        state.unusable = None;
        self.outage.recovered();
        if self.credential.newest().value == content {
            state.unconfirmed = None;
        } else if state.unconfirmed.as_ref() == Some(&content) {
            state.unconfirmed = None;
            self.credential.replace(content);
            tracing::info!(key = self.file.key, "a credential has changed; new connections use it");
            for file in &self.file.secrets {
                if let Some(note) = readable_by_others(&self.file.key, file) {
                    tracing::warn!("{note}");
                }
            }
        } else {
            state.unconfirmed = Some(content);
        }
    }

    fn problem(&self) -> Option<String> {
        let unusable = self.state.lock().unusable.clone();
        unusable.or_else(|| self.credential.problem())
    }
}

impl CredentialFiles {
    /// Starts the task. Needs a tokio runtime.
    pub(crate) fn start() -> Self {
        let files = WatchedFiles::default();
        let read = Arc::clone(&files);
        let task = BackgroundTask::spawn("credential files", async move |stop: StopSignal| {
            let read_again = async {
                loop {
                    tokio::time::sleep(READ_INTERVAL).await;
                    let files = read.lock().clone();
                    if !files.is_empty() {
                        // A panic was logged; the next turn reads again.
                        let _ = blocking(move || read_all(&files)).await;
                    }
                }
            };
            stop.run_until_cancelled(read_again).await;
        });
        Self { files, task }
    }

    /// Reads a credential for the first time, and again and again from now on.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(crate) fn open<T>(&self, file: CredentialFile<T>) -> Result<Credential<T>, CliError>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        let content = file.read().map_err(CliError::new)?;
        let credential = Credential::new(file.key.clone(), content);
        self.files.lock().push(Arc::new(File {
            credential: credential.clone(),
            state: Mutex::new(FileState { unconfirmed: None, unusable: None }),
            outage: OutageLog::of("reading a credential's file", file.key.clone()),
            file,
        }));
        Ok(credential)
    }

    /// As [`CredentialFiles::open`] of a file that may not be configured.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(crate) fn open_some<T>(
        &self,
        file: Option<CredentialFile<T>>,
    ) -> Result<Option<Credential<T>>, CliError>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        file.map(|file| self.open(file)).transpose()
    }

    /// The credentials that are not as they should be: (key, what is wrong).
    pub(crate) fn degraded(&self) -> Vec<(String, String)> {
        let files = self.files.lock().clone();
        files.iter().filter_map(|file| Some((file.key().to_owned(), file.problem()?))).collect()
    }

    /// Ends the task.
    pub(crate) async fn stop(&self) {
        // A panic was logged when the task was joined.
        let _ = self.task.stop().await;
    }
}

fn read_all(files: &[Arc<dyn Watched>]) {
    files.iter().for_each(|file| file.read_again());
    let wrong = files.iter().filter(|file| file.problem().is_some()).count();
    gauge!(CREDENTIALS_WITH_PROBLEM).set(wrong as f64);
}
