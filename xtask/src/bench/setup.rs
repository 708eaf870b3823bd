//! What every figure needs to know.

use std::path::PathBuf;

/// What the figures need to know.
pub(crate) struct Setup {
    pub(crate) quick: bool,
    /// The program, built for release.
    pub(crate) program: PathBuf,
    /// Where the baselines are.
    pub(crate) examples: PathBuf,
    /// A fresh directory for data.
    pub(crate) scratch: PathBuf,
    /// The demo data.
    pub(crate) sample: PathBuf,
}
