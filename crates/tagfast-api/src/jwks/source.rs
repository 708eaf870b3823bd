//! Reads a key set from its file or URL.
//!
//! How it fails: within [`LOAD_TIMEOUT`], also when the key server or the file system hangs.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use tagfast_resilience::task::blocking;

use crate::services::JwksSource;

/// Largest key set in bytes.
const JWKS_BYTES_MAX: usize = 1 << 20;
/// Longest time for one load.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a key set could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("the file cannot be read")]
    Read(#[source] std::io::Error),
    #[error("it is not a regular file")]
    NotAFile,
    #[error("reading the file was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
    #[error("it took longer than {} s", LOAD_TIMEOUT.as_secs())]
    Timeout,
    #[error("the key server cannot be reached")]
    Fetch(#[source] reqwest::Error),
    #[error("the key server answered {0}")]
    Status(http::StatusCode),
    #[error("the key set has more than {JWKS_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the key set is not a JSON Web Key Set")]
    Parse(#[source] serde_json::Error),
    #[error("none of the {0} members of the key set is a key that verifies tokens here")]
    NoUsableKey(usize),
}

impl From<reqwest::Error> for LoadError {
    fn from(error: reqwest::Error) -> Self {
        // The URL may hold a password.
        Self::Fetch(error.without_url())
    }
}

/// The key set as it is now.
pub(super) async fn load(source: &JwksSource) -> Result<Vec<u8>, LoadError> {
    let loaded = async {
        match source {
            JwksSource::File(path) => read(path.clone()).await,
            JwksSource::Url(url) => fetch(url).await,
        }
    };
    tokio::time::timeout(LOAD_TIMEOUT, loaded).await.unwrap_or(Err(LoadError::Timeout))
}

async fn read(path: PathBuf) -> Result<Vec<u8>, LoadError> {
    let read = move || {
        // A pipe would block until someone writes into it.
        if !std::fs::metadata(&path).map_err(LoadError::Read)?.is_file() {
            return Err(LoadError::NotAFile);
        }
        let file = std::fs::File::open(&path).map_err(LoadError::Read)?;
        let mut bytes = Vec::new();
        let most = JWKS_BYTES_MAX as u64 + 1;
        file.take(most).read_to_end(&mut bytes).map_err(LoadError::Read)?;
        if bytes.len() > JWKS_BYTES_MAX { Err(LoadError::TooLarge) } else { Ok(bytes) }
    };
    blocking(read).await.map_err(LoadError::Interrupted)?
}

async fn fetch(url: &str) -> Result<Vec<u8>, LoadError> {
    let client = reqwest::Client::builder()
        .timeout(LOAD_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let mut response = client.get(url).send().await?;
    if !response.status().is_success() {
        return Err(LoadError::Status(response.status()));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > JWKS_BYTES_MAX {
            return Err(LoadError::TooLarge);
        }
    }
    Ok(bytes)
}
