//! The manifest of a backup: what was copied, and where each file stood.
//!
//! It is written last, so a backup without it was interrupted. A restore checks each file against
//! it: files of two backups cannot be mixed.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::directory::{OpenError, io};
use crate::schema;

/// Its name in the backup.
pub(crate) const NAME: &str = "manifest.json";
/// The version of this format.
const FORMAT: u32 = 1;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The version of the manifest itself.
    format: u32,
    /// The schema version of the program that made it.
    pub(crate) schema: i64,
    /// When it was begun, Unix milliseconds.
    pub(crate) created_at: i64,
    /// The epoch of the data directory, in hexadecimal digits.
    pub(crate) epoch: String,
    /// Its ordinal.
    pub(crate) epoch_ordinal: u64,
    /// Newest event position per file: where the history of the restored directory leaves that of
    /// the original.
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

    /// Reads it; refuses what this program does not know.
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
        if manifest.positions.is_empty() || manifest.positions.len() > 64 {
            return Err(damaged(format!("it lists {} files", manifest.positions.len())));
        }
        Ok(manifest)
    }
}
