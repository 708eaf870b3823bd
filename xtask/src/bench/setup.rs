//! What every figure needs to know.

use std::path::PathBuf;

/// What the figures need to know.
pub(crate) struct Setup {
    pub(crate) quick: bool,
    /// The program, built for release.
    pub(crate) program: PathBuf,
    /// A fresh directory for data.
    pub(crate) scratch: PathBuf,
    /// The demo data.
    pub(crate) sample: PathBuf,
}

impl Setup {
    /// A baseline: an example that is built beside the program.
    pub(crate) fn example(&self, name: &str) -> PathBuf {
        self.program.with_file_name("examples").join(name)
    }
}
