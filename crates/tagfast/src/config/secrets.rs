//! Secrets in files: passwords, signing keys and the secrets of tokens.
//!
//! How it fails: a secret that is too short or malformed is refused with how to make a good one. A
//! crash while a key is made leaves no half key, because it is written beside and renamed.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tagfast_resilience::{ErrorChain, Secret, private_files};
use tagfast_store_postgres::check_authorities;

/// Shortest secret of HS256 tokens, in bytes.
const SECRET_BYTES_MIN: usize = 32;

/// Files whose content is a credential, and how they are read.
#[derive(Clone)]
pub struct CredentialFile<T> {
    /// The configuration key that names the files.
    pub key: String,
    /// The files; a secret in them must not be readable by others.
    pub secrets: Vec<PathBuf>,
    read: Arc<dyn Fn() -> Result<T, String> + Send + Sync>,
}

impl<T> CredentialFile<T> {
    fn new(
        key: String,
        secrets: Vec<PathBuf>,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Self {
        Self { key, secrets, read: Arc::new(read) }
    }

    /// Reads the content.
    ///
    /// # Errors
    /// A file cannot be read, or holds no such credential; the text names key and file.
    pub fn read(&self) -> Result<T, String> {
        (self.read)()
    }
}

impl CredentialFile<Secret> {
    /// A file with a password or a secret.
    pub(super) fn password(key: impl Into<String>, file: &Path) -> Self {
        let (key, path) = (key.into(), file.to_owned());
        let name = key.clone();
        Self::new(key, vec![file.to_owned()], move || read_line(&name, &path))
    }
}

impl CredentialFile<Secret<Vec<u8>>> {
    /// A file with the secret of HS256 tokens.
    pub(super) fn token_secret(key: &str, file: &Path) -> Self {
        let path = file.to_owned();
        Self::new(key.to_owned(), vec![file.to_owned()], move || {
            read_secret(&path).map(Secret::new)
        })
    }
}

impl CredentialFile<Vec<[u8; 32]>> {
    /// Files with a signing key each.
    pub(super) fn signing_keys(key: &str, files: Vec<PathBuf>) -> Self {
        let paths = files.clone();
        Self::new(key.to_owned(), files, move || paths.iter().map(|path| read_key(path)).collect())
    }
}

impl CredentialFile<Vec<u8>> {
    /// A file with the certificates of authorities; they are no secret.
    pub(super) fn authorities(key: &str, file: &Path) -> Self {
        let (name, path) = (key.to_owned(), file.to_owned());
        Self::new(key.to_owned(), Vec::new(), move || read_authorities(&name, &path))
    }
}

/// Reads the secret of HS256 tokens.
///
/// # Errors
/// The file cannot be read, or the secret is short enough to be guessed.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("secret file {}: {e}", path.display()))?;
    let secret = bytes.trim_ascii().to_vec();
    if secret.len() < SECRET_BYTES_MIN {
        return Err(format!(
            "secret file {} holds {} bytes; at least {SECRET_BYTES_MIN} are needed \
             (make one: head -c 32 /dev/urandom | base64 > F)",
            path.display(),
            secret.len()
        ));
    }
    Ok(secret)
}

/// Reads a password or secret: a text in one file, without the end of its line. `key` names the
/// file in errors.
///
/// # Errors
/// The file cannot be read, or is empty.
fn read_line(key: &str, path: &Path) -> Result<Secret, String> {
    let place = format!("{key} {}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| format!("{place}: {e}"))?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(format!("{place} is empty"));
    }
    Ok(Secret::new(secret.to_owned()))
}

/// The certificates of a file, if they can be used; of the errors, `key` names the file.
fn read_authorities(key: &str, file: &Path) -> Result<Vec<u8>, String> {
    let place = || format!("{key} {}", file.display());
    let authorities = std::fs::read(file).map_err(|e| format!("{}: {e}", place()))?;
    check_authorities(&authorities).map_err(|e| format!("{}: {}", place(), ErrorChain(&e)))?;
    Ok(authorities)
}

/// Reads a signing key.
pub(super) fn read_key(path: &Path) -> Result<[u8; 32], String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("signing key file {}: {e}", path.display()))?;
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key).map_err(|_| {
        format!("signing key file {} must hold 64 hexadecimal digits", path.display())
    })?;
    Ok(key)
}

/// Makes a signing key that only its owner can read.
pub(super) fn make_key(path: &Path) -> Result<(), String> {
    let fail = |e: std::io::Error| format!("cannot make the signing key {}: {e}", path.display());
    let mut key = [0u8; 32];
    getrandom::fill(&mut key).map_err(|e| format!("cannot make a signing key: {e}"))?;
    if let Some(dir) = path.parent() {
        private_files::create_dir(dir).map_err(fail)?;
    }
    let part = path.with_extension("key.part");
    let _ = std::fs::remove_file(&part);
    let mut file = private_files::create_file(&part).map_err(fail)?;
    writeln!(file, "{}", hex::encode(key)).and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&part, path).map_err(fail)
}
