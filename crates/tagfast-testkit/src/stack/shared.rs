//! One stack for a test binary.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::{Stack, StackOptions};

/// A stack that whoever comes first starts. Kept for the life of the process; a watcher removes
/// what it leaves when the process has ended.
#[derive(Debug, Default)]
pub struct SharedStack {
    stack: OnceLock<(Mutex<Stack>, tempfile::TempDir)>,
}

impl SharedStack {
    /// Not started yet.
    pub const fn new() -> Self {
        Self { stack: OnceLock::new() }
    }

    /// The stack; started as `options` says, in a folder of its own, if it is not. Blocks
    /// meanwhile.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn get(&self, options: impl FnOnce(StackOptions) -> StackOptions) -> MutexGuard<'_, Stack> {
        let (stack, _) = self.stack.get_or_init(|| {
            let dir = tempfile::tempdir().expect("a folder");
            let options = options(StackOptions::clusters_only(0, dir.path()));
            (Mutex::new(Stack::up(&options, &|_| ()).expect("the stack comes up")), dir)
        });
        stack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
