//! Reads a data directory without serving it, also while a server runs.

use std::path::Path;

use rusqlite::OptionalExtension;
use tagfast_domain::{ContentKey, Document, Version, codec};
use tagfast_sharding::LogicalShard;
use tagfast_store::stored_key;

use crate::directory::{OpenError, file_path, sqlite};
use crate::schema;

/// The stored version, bytes and document of a content; `None`: it was never tagged.
///
/// # Errors
///
/// [`OpenError::Damaged`] when the document cannot be decoded, [`OpenError::Sqlite`] when a file
/// cannot be read.
pub fn debug_dump(
    data_dir: &Path,
    key: &ContentKey,
) -> Result<Option<(Version, Vec<u8>, Document)>, OpenError> {
    let first = file_path(data_dir, 0);
    let conn = schema::open_reader(&first, 1 << 20).map_err(sqlite("open", &first))?;
    let files = schema::meta(&conn, "files").map_err(sqlite("read", &first))?;
    let files: usize = files.and_then(|n| n.parse().ok()).unwrap_or(1);
    let shard = LogicalShard::of(key);
    let file = file_path(data_dir, usize::from(shard.number()) % files);
    let conn = schema::open_reader(&file, 1 << 20).map_err(sqlite("open", &file))?;
    let row: Option<(i64, Vec<u8>)> = conn
        .query_row(
            "SELECT ver, doc FROM content WHERE k = ?1",
            [stored_key(shard, &key.to_bytes())],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()
        .map_err(sqlite("read", &file))?;
    let damaged = |detail: String| OpenError::Damaged { file: file.clone(), detail };
    row.map(|(version, bytes)| {
        let version =
            Version::from_packed(version.unsigned_abs()).map_err(|e| damaged(e.to_string()))?;
        let document = codec::decode(&bytes).map_err(|e| damaged(e.to_string()))?;
        Ok((version, bytes, document))
    })
    .transpose()
}
