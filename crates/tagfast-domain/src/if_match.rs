//! The condition of a write: the versions of which the content must have one.
//!
//! A condition is decided where the write is applied and nowhere else: what a caller compared
//! beforehand could change before the write.

use std::sync::Arc;

use crate::Version;

/// The versions of which a content must have one for a write to be applied. With none of them the
/// condition never holds. [`Version::NONE`] stands for a content that was never written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IfMatch(Arc<[Version]>);

impl IfMatch {
    /// A condition that holds for each of these versions; their order and repetitions mean nothing.
    pub fn any_of(mut versions: Vec<Version>) -> Self {
        versions.sort_unstable();
        versions.dedup();
        Self(versions.into())
    }

    /// Whether the condition holds for a content of this version.
    pub fn holds(&self, current: Version) -> bool {
        self.0.binary_search(&current).is_ok()
    }

    /// The versions, in ascending order.
    pub fn versions(&self) -> &[Version] {
        &self.0
    }
}

impl From<Version> for IfMatch {
    fn from(version: Version) -> Self {
        Self(Arc::new([version]))
    }
}
