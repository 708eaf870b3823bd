//! The limits of the domain. `docs/reference/limits.md` lists them with the limits of the API.

/// Maximum characters (Unicode scalar values) of a tag, in its canonical and in its display form.
pub const TAG_CHARACTERS: usize = 64;
/// Maximum bytes of UTF-8 of a tag, in its canonical and in its display form.
pub const TAG_BYTES: usize = 256;
/// Maximum characters of a tenant.
pub const TENANT_CHARACTERS: usize = 64;
/// Maximum characters of a content type.
pub const CONTENT_TYPE_CHARACTERS: usize = 64;
/// Maximum bytes of a content id.
pub const CONTENT_ID_BYTES: usize = 256;
/// Maximum bytes of a user.
pub const USER_BYTES: usize = 128;
/// Write ids kept in the document itself; ids that are evicted before they expire go to the store's
/// `applied` table.
pub const RECENT_WRITES: usize = 8;
/// Minimum time a write id is remembered, in ms (10 minutes).
pub const WRITE_ID_MEMORY_MS: i64 = 600_000;
/// Minimum time a tombstone is kept, in ms (10 minutes), unless [`TOMBSTONES`] is exceeded.
pub const TOMBSTONE_AGE_MS: i64 = 600_000;
/// Maximum tombstones in one document.
pub const TOMBSTONES: usize = 64;

/// Limits that an operator may configure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum tags on one content. Too high: documents of many kilobytes, slow views; too low:
    /// users cannot tag.
    pub tags_per_content: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tags_per_content: 100 }
    }
}
