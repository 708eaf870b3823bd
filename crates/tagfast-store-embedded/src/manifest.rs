//! The manifest of a backup: its epoch, and name, size, SHA-256 and position of each file.
//!
//! It is written last and in one step, so a backup without it was interrupted. It holds a checksum
//! of itself and must be the exact text that a backup writes, so that no byte of it can change
//! unnoticed. Manifests of format 1 list no files and no checksums: whether the content of such a
//! backup is what was saved cannot be known.
//!
//! How it fails: a missing, newer or damaged manifest is refused with an [`OpenError`].

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tagfast_domain::Epoch;
use tagfast_resilience::private_files;

use crate::backup_fault::{BackupFault, BackupFaults};
use crate::directory::{FILES_MAX, OpenError, io, store_file_name};
use crate::schema;

/// File name of the manifest.
pub(crate) const NAME: &str = "manifest.json";
/// Name of the manifest before it is complete.
pub(crate) const PART_NAME: &str = "manifest.json.part";
/// File name of the signing key, in a data directory and in a backup.
pub(crate) const KEY_NAME: &str = "token.key";
/// Version of the manifest's format.
const FORMAT: u32 = 2;
/// Longest manifest that is read, in bytes; one of 64 files has 15,000.
const BYTES_MAX: u64 = 1 << 20;

/// What a backup consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Start time of the backup, Unix ms.
    pub(crate) created_at: i64,
    /// The store files in their order, then the signing key if the backup has one.
    pub(crate) files: Vec<BackupFile>,
}

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackupFile {
    pub(crate) name: String,
    /// `None`: the manifest is of format 1.
    pub(crate) sum: Option<ContentSum>,
    /// Newest event position: where the restored history diverges from the original. `None`: it is
    /// the signing key.
    pub(crate) position: Option<u64>,
}

/// Length and checksum of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContentSum {
    pub(crate) bytes: u64,
    pub(crate) sha256: [u8; 32],
}

/// A manifest as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredManifest {
    format: u32,
    /// The schema version of the program that wrote it.
    schema: i64,
    created_at: i64,
    /// Id of the data directory's epoch, hexadecimal.
    epoch: String,
    epoch_ordinal: u64,
    files: Vec<StoredFile>,
    /// SHA-256 of the text in which this is empty, hexadecimal.
    manifest_sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredFile {
    name: String,
    bytes: u64,
    sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
}

/// A manifest of format 1.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OldManifest {
    #[serde(rename = "format")]
    _format: u32,
    schema: i64,
    created_at: i64,
    #[serde(rename = "epoch")]
    _epoch: String,
    #[serde(rename = "epoch_ordinal")]
    _epoch_ordinal: u64,
    positions: Vec<u64>,
}

impl StoredManifest {
    fn text(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| format!("{text}\n"))
    }

    /// The text with its own checksum.
    fn sealed(mut self) -> serde_json::Result<String> {
        self.manifest_sha256 = String::new();
        self.manifest_sha256 = hex::encode(Sha256::digest(self.text()?));
        self.text()
    }
}

/// Writes the manifest of a backup durably and in one step.
pub(crate) fn write(dir: &Path, manifest: &Manifest, epoch: Epoch) -> Result<(), OpenError> {
    let stored = |file: &BackupFile| {
        file.sum.map(|sum| StoredFile {
            name: file.name.clone(),
            bytes: sum.bytes,
            sha256: hex::encode(sum.sha256),
            position: file.position,
        })
    };
    let stored = StoredManifest {
        format: FORMAT,
        schema: schema::VERSION,
        created_at: manifest.created_at,
        epoch: epoch.id.to_string(),
        epoch_ordinal: epoch.ordinal.0,
        files: manifest.files.iter().filter_map(stored).collect(),
        manifest_sha256: String::new(),
    };
    let (part, path) = (dir.join(PART_NAME), dir.join(NAME));
    let write = || {
        let mut file = private_files::create_file(&part)?;
        file.write_all(stored.sealed()?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, &path)
    };
    write().map_err(io("write", &path))
}

impl Manifest {
    /// Reads the manifest of a backup.
    pub(crate) fn read(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(NAME);
        if !path.is_file() {
            return Err(OpenError::NotABackup { dir: dir.to_owned() });
        }
        let mut bytes = Vec::new();
        let read =
            File::open(&path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes));
        read.map_err(io("read", &path))?;
        Self::parse(&bytes).map_err(|fault| {
            let faults = BackupFaults(vec![(NAME.to_owned(), fault)]);
            OpenError::BadBackup { dir: dir.to_owned(), faults }
        })
    }

    fn parse(bytes: &[u8]) -> Result<Self, BackupFault> {
        let malformed = |_| BackupFault::Manifest("it is no manifest in JSON");
        if bytes.len() as u64 > BYTES_MAX {
            return Err(BackupFault::Manifest("it is too long"));
        }
        let value: Value = tagfast_json::from_slice(bytes).map_err(malformed)?;
        if !value.is_object() {
            return Err(BackupFault::Manifest("it is no object"));
        }
        let manifest = match value["format"].as_u64() {
            Some(1) => Self::of_format_1(tagfast_json::from_value(value).map_err(malformed)?)?,
            Some(2) => {
                // From the text: a value would hide that a name occurs twice.
                Self::of_format_2(tagfast_json::from_slice(bytes).map_err(malformed)?, bytes)?
            }
            Some(found) if found > u64::from(FORMAT) => {
                return Err(BackupFault::Format { found, known: FORMAT });
            }
            Some(_) | None => return Err(BackupFault::Manifest("its format is unknown")),
        };
        match manifest.store_files().count() {
            1..=FILES_MAX => Ok(manifest),
            _ => Err(BackupFault::Manifest("its number of store files is impossible")),
        }
    }

    fn of_format_1(old: OldManifest) -> Result<Self, BackupFault> {
        refuse_newer_schema(old.schema)?;
        let file = |(n, position)| BackupFile {
            name: store_file_name(n),
            sum: None,
            position: Some(position),
        };
        let files = old.positions.into_iter().enumerate().map(file).collect();
        Ok(Self { created_at: old.created_at, files })
    }

    fn of_format_2(stored: StoredManifest, bytes: &[u8]) -> Result<Self, BackupFault> {
        let changed = BackupFault::Manifest("its own checksum is wrong: it was changed");
        let file = |file: &StoredFile| {
            let mut sha256 = [0; 32];
            hex::decode_to_slice(&file.sha256, &mut sha256).ok()?;
            let sum = Some(ContentSum { bytes: file.bytes, sha256 });
            Some(BackupFile { name: file.name.clone(), sum, position: file.position })
        };
        let files: Option<Vec<_>> = stored.files.iter().map(file).collect();
        let (created_at, schema) = (stored.created_at, stored.schema);
        if !stored.sealed().is_ok_and(|text| text.as_bytes() == bytes) {
            return Err(changed);
        }
        refuse_newer_schema(schema)?;
        let manifest = Self { created_at, files: files.ok_or(changed)? };
        // No other name is ever opened.
        let expected = |(n, file): (usize, &BackupFile)| match file.position {
            Some(_) => file.name == store_file_name(n),
            None => file.name == KEY_NAME && n + 1 == manifest.files.len(),
        };
        if !manifest.files.iter().enumerate().all(expected) {
            return Err(BackupFault::Manifest("it lists files that no backup has"));
        }
        Ok(manifest)
    }

    /// The store files with their positions.
    pub(crate) fn store_files(&self) -> impl Iterator<Item = (&BackupFile, u64)> {
        self.files.iter().filter_map(|file| Some((file, file.position?)))
    }

    /// Whether the content of every file can be compared with what was saved.
    pub(crate) fn has_checksums(&self) -> bool {
        self.files.iter().all(|file| file.sum.is_some())
    }
}

fn refuse_newer_schema(schema: i64) -> Result<(), BackupFault> {
    if schema > schema::VERSION {
        return Err(BackupFault::Schema { found: schema, known: schema::VERSION });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tagfast_domain::{EpochId, EpochOrdinal};

    use super::*;

    fn written() -> (Manifest, Vec<u8>) {
        let dir = tempfile::tempdir().expect("a directory");
        let sum = Some(ContentSum { bytes: 7, sha256: [0xab; 32] });
        let mut files: Vec<_> = (0..3)
            .map(|n| BackupFile { name: store_file_name(n), sum, position: Some(n as u64) })
            .collect();
        files.push(BackupFile { name: KEY_NAME.to_owned(), sum, position: None });
        let manifest = Manifest { created_at: 1, files };
        let epoch = Epoch { id: EpochId([1; 16]), ordinal: EpochOrdinal(9) };
        write(dir.path(), &manifest, epoch).expect("written");
        (manifest, std::fs::read(dir.path().join(NAME)).expect("read"))
    }

    #[test]
    fn every_changed_removed_or_added_byte_is_noticed() {
        let (manifest, text) = written();
        assert_eq!(Manifest::parse(&text), Ok(manifest));
        for at in 0..text.len() {
            for change in [1, 0x20, 0x80, 0xff] {
                let mut changed = text.clone();
                changed[at] ^= change;
                Manifest::parse(&changed).expect_err("a changed byte");
            }
            let mut shorter = text.clone();
            shorter.remove(at);
            Manifest::parse(&shorter).expect_err("a byte less");
            for byte in [b' ', b'0', b'\n'] {
                let mut longer = text.clone();
                longer.insert(at, byte);
                // The same byte beside itself is the same text as one place further.
                Manifest::parse(&longer).expect_err("a byte more");
            }
            Manifest::parse(&text[..at]).expect_err("a truncated manifest");
        }
    }

    #[test]
    fn arrays_and_other_formats_are_no_manifests() {
        let old = r#"{"format":1,"schema":1,"created_at":5,"epoch":"x","epoch_ordinal":1,"positions":[4]}"#;
        let manifest = Manifest::parse(old.as_bytes()).expect("format 1");
        assert!(!manifest.has_checksums() && manifest.store_files().count() == 1);
        for text in [
            r#"[1,1,5,"x",1,[4]]"#.to_owned(),
            old.replace("[4]", "[]"),
            old.replace(":1,\"schema", ":3,\"schema"),
            old.replace(":1,\"schema", ":0,\"schema"),
            old.replace("\"schema\":1", "\"schema\":99"),
            old.replace("\"epoch\"", "\"files\":[],\"epoch\""),
        ] {
            Manifest::parse(text.as_bytes()).expect_err(&text);
        }
    }
}
