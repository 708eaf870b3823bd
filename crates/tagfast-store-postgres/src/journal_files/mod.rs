//! The optional copy of the journals on disk (`store.journal_dir`): what a process acknowledged and
//! a failover could lose survives the process.
//!
//! | path below the folder | it is |
//! |---|---|
//! | `lock` | held by the process that uses the folder, which wrote its number into it |
//! | `process` | the name under which the process registers and reports, also when started again |
//! | `clusters/<scope>/<number>.journal` | a segment: see `tagfast_failover::journal_record` |
//! | `clusters/<scope>/<number>.journal.aside` | one that could not be read; no program reads it again |
//!
//! | module | it does |
//! |---|---|
//! | [`folder`] | the lock and the name of the process |
//! | [`read_back`] | reads the segments of a cluster at the start |
//! | [`segment_writer`] | appends, begins and removes segments |
//! | [`keeper`] | the task that saves what was acknowledged, ten times a second |
//! | [`copy_health`] | how the copy fares, for warnings and metrics |
//!
//! How it fails. No acknowledgement waits for the disk, so what was acknowledged in the last 100 ms
//! before a process dies may not be in the copy. A full or failing disk: writes go on, the copy is
//! written again when the disk takes it, and status says so meanwhile. A file that cannot be read:
//! it is named in the log and set aside, the start goes on, and the report of the next failover
//! says that it is incomplete.

pub(crate) mod copy_health;
pub(crate) mod folder;
pub(crate) mod keeper;
pub(crate) mod read_back;
pub(crate) mod segment_writer;
#[cfg(test)]
mod tests;

pub use folder::{JournalFolderError, check_journal_dir};
