//! Secrets in files: signing keys and the secrets of tokens.
//!
//! How it fails: a secret that is too short or malformed is refused with how to make a good one. A
//! crash while a key is made leaves no half key, because it is written beside and renamed.

use std::io::Write as _;
use std::path::Path;

use tagfast_resilience::{Secret, private_files};

/// Shortest secret of HS256 tokens, in bytes.
const SECRET_BYTES_MIN: usize = 32;

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
pub(super) fn read_line(key: &str, path: &Path) -> Result<Secret, String> {
    let place = format!("{key} {}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| format!("{place}: {e}"))?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(format!("{place} is empty"));
    }
    Ok(Secret::new(secret.to_owned()))
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
