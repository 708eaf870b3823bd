//! One store file as its users see it: the writer's queue, the readers and the shared positions.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tagfast_store::KeyMemory;

use crate::queue::Queue;
use crate::reader::ReaderPool;

/// The state that a file's writer shares with readers, retention and the bus.
pub(crate) struct FileState {
    pub(crate) index: usize,
    pub(crate) queue: Queue,
    /// The newest committed event position.
    pub(crate) newest: AtomicU64,
    /// The oldest position that retention has not deleted.
    pub(crate) retained_from: AtomicU64,
    /// What idempotency keys were used for in any file, as far as this process remembers.
    pub(crate) keys: Arc<KeyMemory>,
}

/// One file: its shared state and its readers.
pub(crate) struct StoreFile {
    pub(crate) state: Arc<FileState>,
    pub(crate) readers: ReaderPool,
}
