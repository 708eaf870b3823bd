//! The manifest of a backup: its epoch and the position of each file.
//!
//! It is written last, so a backup without it was interrupted. A restore checks each file against
//! it, so files of two backups cannot be mixed.
//!
//! How it fails: a missing, newer or damaged manifest is refused with an [`OpenError`].

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::directory::{FILES_MAX, OpenError, io};
use crate::schema;

/// File name of the manifest.
pub(crate) const NAME: &str = "manifest.json";
/// Version of the manifest's format.
const FORMAT: u32 = 1;

/// The content of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Version of the manifest's format.
    format: u32,
    /// The schema version of the program that wrote it.
    pub(crate) schema: i64,
    /// Start time of the backup, Unix ms.
    pub(crate) created_at: i64,
    /// Id of the data directory's epoch, hexadecimal.
    pub(crate) epoch: String,
    /// Ordinal of that epoch.
    pub(crate) epoch_ordinal: u64,
    /// Newest event position per file: where the restored history diverges from the original.
    pub(crate) positions: Vec<u64>,
}

impl Manifest {
    pub(crate) fn new(created_at: i64, epoch: tagfast_domain::Epoch, positions: Vec<u64>) -> Self {
        Self {
            format: FORMAT,
            schema: schema::VERSION,
            created_at,
            epoch: epoch.id.to_string(),
            epoch_ordinal: epoch.ordinal.0,
            positions,
        }
    }

    /// Writes it durably.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), OpenError> {
        let path = dir.join(NAME);
        let write = || {
            let mut file = File::create(&path)?;
            let text = serde_json::to_string_pretty(self)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()
        };
        write().map_err(io("write", &path))
    }

    /// Reads it; refuses a newer format or schema.
    pub(crate) fn read(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(NAME);
        if !path.is_file() {
            return Err(OpenError::NotABackup { dir: dir.to_owned() });
        }
        let text = std::fs::read_to_string(&path).map_err(io("read", &path))?;
        let damaged = |detail: String| OpenError::Damaged { file: path.clone(), detail };
        let manifest: Self = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        if manifest.format > FORMAT || manifest.schema > schema::VERSION {
            let newer =
                OpenError::Newer { file: path, found: manifest.schema, known: schema::VERSION };
            return Err(newer);
        }
        if manifest.positions.is_empty() || manifest.positions.len() > FILES_MAX {
            return Err(damaged(format!("it lists {} files", manifest.positions.len())));
        }
        Ok(manifest)
    }
}
