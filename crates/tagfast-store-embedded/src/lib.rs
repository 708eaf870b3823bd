//! The embedded store: SQLite files in one directory, group commit, the outbox as the durable bus.
//!
//! Why several files: their fsyncs overlap, while each of them still covers many writes. A content
//! lives in file `shard % files`; the number of files is stored in the data directory and never
//! changes.
//!
//! How it fails: a write is acknowledged after COMMIT with `synchronous=FULL`, so it survives
//! `kill -9` and a power cut. A full disk refuses writes and damages nothing. A damaged file is
//! refused at open, by name. A second process in the same directory is refused with the pid of the
//! first.

pub mod backup;
mod backup_check;
mod backup_fault;
mod bus;
mod dead_letters;
mod directory;
mod error;
mod file;
mod inspect;
mod manifest;
mod metric;
mod queue;
mod reader;
mod retention;
mod rows;
mod schema;
mod store;
mod writer;

pub use backup_fault::{BackupFault, BackupFaults};
pub use bus::EmbeddedBus;
pub use dead_letters::EmbeddedDeadLetters;
pub use directory::{DEFAULT_FILES, OpenError, OpenOptions, check_private, make_private};
pub use inspect::debug_dump;
pub use metric::METRICS;
pub use store::EmbeddedStore;
