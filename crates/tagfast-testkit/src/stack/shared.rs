//! One stack for all tests of a binary.

use std::sync::OnceLock;

use parking_lot::{Mutex, MutexGuard};

use super::options::StackOptions;
use super::running::Stack;

/// A stack that the first test starts. It lives as long as the process; the watcher process ends it
/// afterwards.
#[derive(Debug, Default)]
pub struct SharedStack {
    stack: OnceLock<(Mutex<Stack>, tempfile::TempDir)>,
}

impl SharedStack {
    /// A stack that is not started yet.
    pub const fn new() -> Self {
        Self { stack: OnceLock::new() }
    }

    /// Returns the stack; the first call starts it with `options`. Blocks meanwhile.
    ///
    /// # Panics
    /// The stack does not come up.
    pub fn get(&self, options: impl FnOnce(StackOptions) -> StackOptions) -> MutexGuard<'_, Stack> {
        let (stack, _) = self.stack.get_or_init(|| {
            let dir = tempfile::tempdir().expect("a folder");
            let options = options(StackOptions::clusters_only(0, dir.path()));
            (Mutex::new(Stack::up(&options, &|_| ()).expect("the stack comes up")), dir)
        });
        stack.lock()
    }
}
