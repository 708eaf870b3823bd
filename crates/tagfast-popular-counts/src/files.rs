//! The files of one generation of counts, one per partition.

use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use tagfast_domain::{ContentKey, Document, Tagging, UnixMillis};
use tagfast_events::{BusPosition, Partition};
use tagfast_resilience::{ErrorChain, generation};
use tagfast_sharding::LogicalShard;

use crate::partition_file::{PartitionFile, Replace, State};

/// The current generation; a rebuild replaces it.
pub(crate) type CurrentFiles = Arc<RwLock<Arc<Files>>>;

/// The files of one generation.
pub(crate) struct Files {
    files: Vec<PartitionFile>,
}

impl Files {
    /// No files: the counts are being built.
    pub(crate) fn none() -> Self {
        Self { files: Vec::new() }
    }

    /// Opens or creates the files of a generation; `now` is in Unix ms.
    pub(crate) fn open(dir: &Path, partitions: usize, now: UnixMillis) -> rusqlite::Result<Self> {
        let files = (0..partitions)
            .map(|n| PartitionFile::open(&dir.join(format!("popular-{n}.sqlite")), now));
        Ok(Self { files: files.collect::<Result<_, _>>()? })
    }

    /// Opens the current generation; `None` if there is none or it cannot be used.
    pub(crate) fn open_usable(dir: &Path, now: UnixMillis) -> Option<Self> {
        open_current(dir, now).unwrap_or_else(|error| {
            let error = ErrorChain(&error);
            tracing::error!(%error, "the files of the counts cannot be read; they are rebuilt");
            None
        })
    }

    pub(crate) fn all(&self) -> &[PartitionFile] {
        &self.files
    }

    pub(crate) fn of_partition(&self, partition: Partition) -> Option<&PartitionFile> {
        self.files.get(usize::from(partition.0))
    }

    /// The bus's partition of a shard.
    pub(crate) fn partition_of(&self, shard: LogicalShard) -> Partition {
        Partition((usize::from(shard.number()) % self.files.len().max(1)) as u16)
    }

    /// The file of a shard's partition.
    pub(crate) fn of_shard(&self, shard: LogicalShard) -> Option<&PartitionFile> {
        self.of_partition(self.partition_of(shard))
    }

    /// Makes positions durable, each in the file of its partition. `epoch` is `None` if it is
    /// stored already.
    pub(crate) fn set_positions<'a>(
        &self,
        epoch: Option<&str>,
        positions: impl IntoIterator<Item = (&'a Partition, &'a BusPosition)>,
    ) -> rusqlite::Result<()> {
        positions.into_iter().try_for_each(|(partition, position)| {
            match self.of_partition(*partition) {
                Some(file) => file.set_position(epoch, position),
                None => Ok(()),
            }
        })
    }

    /// Counts a page of contents of a shard.
    pub(crate) fn copy_page(
        &self,
        shard: LogicalShard,
        items: &[(ContentKey, Document)],
    ) -> rusqlite::Result<()> {
        let Some(file) = self.of_shard(shard) else { return Ok(()) };
        let live: Vec<(Vec<u8>, Vec<Tagging>)> = items
            .iter()
            .map(|(key, doc)| (stored_key(key), doc.live().cloned().collect()))
            .collect();
        let states: Vec<State<'_>> = items
            .iter()
            .zip(&live)
            .map(|((key, doc), (k, tags))| State {
                k,
                tenant: &key.tenant,
                version: doc.version,
                at: written_at(doc),
                tags,
            })
            .collect();
        file.apply(&states, Replace::IfNewer).map(|_| ())
    }
}

fn open_current(dir: &Path, now: UnixMillis) -> rusqlite::Result<Option<Files>> {
    let Some(dir) = generation::current(dir) else { return Ok(None) };
    let partitions =
        (0..).take_while(|n| dir.join(format!("popular-{n}.sqlite")).is_file()).count();
    if partitions == 0 {
        return Ok(None);
    }
    let files = Files::open(&dir, partitions, now)?;
    for file in files.all() {
        if !file.is_current()? {
            return Ok(None);
        }
        file.read(|conn| {
            let result: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            if result == "ok" { Ok(()) } else { Err(rusqlite::Error::InvalidParameterName(result)) }
        })?;
    }
    Ok(Some(files))
}

/// Key of a content in the files: shard byte, then the content key.
pub(crate) fn stored_key(key: &ContentKey) -> Vec<u8> {
    tagfast_store::stored_key(LogicalShard::of(key), &key.to_bytes())
}

/// Commit time of a scanned document, Unix ms: that of its newest remembered write, or of its
/// newest tagging if no write is remembered.
pub(crate) fn written_at(document: &Document) -> UnixMillis {
    tagfast_domain::time::commit_time(document)
}
