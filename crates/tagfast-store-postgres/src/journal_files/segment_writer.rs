//! Writes the copy of a cluster's journal. Blocks on the disk.
//!
//! How it fails: a batch is saved as a whole or not at all, and can be tried again. After a failure
//! the segment is cut to what was saved, and the next batch begins a new one; where it cannot be
//! cut, it has a torn tail. Files that cannot be removed are removed after the next start.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use tagfast_failover::{
    AcknowledgedGroup, FileHeader, JournalRecord, JournalSegments, UnsavedBatch, encode_group,
    encode_header, encode_record,
};
use tagfast_resilience::{ErrorChain, private_files};

use super::folder::JournalFolder;
use super::read_back::{aside, segment_path};

/// Appends to the last segment of a cluster.
#[derive(Debug)]
pub(crate) struct SegmentWriter {
    /// Locked for as long as anything is written.
    folder: Arc<JournalFolder>,
    dir: PathBuf,
    scope: String,
    segments: JournalSegments,
    /// The last segment and its length; `None`: the next batch begins one.
    file: Option<(File, u64)>,
}

impl SegmentWriter {
    /// Goes on after the segments that were read back.
    pub(crate) fn new(folder: Arc<JournalFolder>, scope: &str, segments: JournalSegments) -> Self {
        let dir = folder.of_cluster(scope);
        Self { folder, dir, scope: scope.to_owned(), segments, file: None }
    }

    /// What all segments take, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.bytes()
    }

    /// Whether a batch says anything that the segments do not.
    pub(crate) fn is_news(&self, batch: &UnsavedBatch) -> bool {
        !batch.groups.is_empty()
            || !batch.forgotten.is_empty()
            || !batch.refused.is_empty()
            || !self.segments.to_be_covered(batch.covered, batch.has_older).is_empty()
    }

    /// Saves a batch, then removes what is not needed any more. Returns how many writes had to be
    /// given up for the size of all.
    pub(crate) fn save(&mut self, batch: &UnsavedBatch) -> io::Result<u64> {
        self.keep_refused(batch);
        let forgotten = batch.forgotten.iter().copied().map(JournalRecord::Forgotten);
        let covered = self.segments.to_be_covered(batch.covered, batch.has_older);
        let records: Vec<JournalRecord> = forgotten.chain(covered).collect();
        self.append_records(&records, &batch.groups)?;
        for number in self.segments.take_unneeded() {
            self.remove(number);
        }
        let mut given_up_writes = 0;
        while let Some(given_up) = self.segments.give_up_oldest() {
            let records = given_up.missing.iter().copied().map(JournalRecord::Forgotten);
            let records: Vec<JournalRecord> = records.collect();
            self.append_records(&records, &[])?;
            self.remove(given_up.number);
            given_up_writes += given_up.writes;
        }
        Ok(given_up_writes)
    }

    /// Appends records, then groups, and notes that the last segment has them.
    fn append_records(
        &mut self,
        records: &[JournalRecord],
        groups: &[AcknowledgedGroup],
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| encode_record(&mut bytes, record));
        groups.iter().for_each(|group| encode_group(&mut bytes, group));
        self.append(&bytes)?;
        records.iter().for_each(|record| self.segments.add(record));
        groups.iter().for_each(|group| self.segments.add_group(group));
        Ok(())
    }

    /// Appends bytes to the last segment, or begins one with them, and flushes them to the disk.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let last = self.file.take().filter(|_| !self.segments.is_last_full());
        let Some((mut file, length)) = last else { return self.begin(bytes) };
        match file.write_all(bytes).and_then(|()| file.sync_data()) {
            Ok(()) => {
                self.segments.grow(bytes.len() as u64);
                self.file = Some((file, length + bytes.len() as u64));
                Ok(())
            }
            Err(error) => {
                // Best effort: otherwise it has a torn tail.
                let _ = file.set_len(length);
                Err(error)
            }
        }
    }

    fn begin(&mut self, bytes: &[u8]) -> io::Result<()> {
        private_files::create_dir(&self.dir)?;
        let number = self.segments.next_number();
        let path = segment_path(&self.dir, number);
        let header =
            FileHeader { number, scope: self.scope.clone(), process: self.folder.process.clone() };
        let mut all = encode_header(&header);
        all.extend_from_slice(bytes);
        let write = || {
            let mut file = private_files::create_file(&path)?;
            file.write_all(&all)?;
            file.sync_all()?;
            File::open(&self.dir)?.sync_all()?;
            Ok(file)
        };
        match write() {
            Ok(file) => {
                let length = all.len() as u64;
                self.segments.begin(number, length);
                self.file = Some((file, length));
                Ok(())
            }
            Err(error) => {
                // Best effort: otherwise it is read at the next start, as far as it goes.
                let _ = std::fs::remove_file(&path);
                self.segments.skip_number();
                Err(error)
            }
        }
    }

    /// Keeps the files of a different cluster beside those that are removed.
    fn keep_refused(&self, batch: &UnsavedBatch) {
        for number in batch.refused.iter().flat_map(|epoch| self.segments.numbers_of(*epoch)) {
            let path = segment_path(&self.dir, number);
            if let Err(error) = std::fs::hard_link(&path, aside(&path)) {
                let (file, error) = (path.display(), ErrorChain(&error));
                tracing::warn!(%file, %error, "it cannot be set aside");
            }
        }
    }

    fn remove(&self, number: u64) {
        let path = segment_path(&self.dir, number);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let (file, error) = (path.display(), ErrorChain(&error));
                tracing::warn!(%file, %error, "it is not needed and stays");
            }
            Ok(()) | Err(_) => {}
        }
    }
}
