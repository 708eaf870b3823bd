//! Secrets of a stack: random words, and files that only their owner can read.

use std::path::Path;

use anyhow::{Context, Result};

/// 32 hexadecimal digits from the kernel.
pub(super) fn random_word() -> Result<String> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(hex::encode(bytes))
}

/// Writes a file that only its owner can read, from its creation on.
pub(super) fn write_secret(path: &Path, text: &str) -> Result<()> {
    let mut options = std::fs::File::options();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create(true).truncate(true), 0o600);
    let mut file =
        options.open(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(std::io::Write::write_all(&mut file, text.as_bytes())?)
}
