//! The limits of the domain, in one place. `docs/limits.md` lists them with the limits of the API.

/// Most characters (Unicode scalar values) of a tag, in its canonical and in its display form.
pub const TAG_CHARACTERS: usize = 64;
/// Most bytes of UTF-8 of a tag, in its canonical and in its display form.
pub const TAG_BYTES: usize = 256;
/// Most characters of a tenant.
pub const TENANT_CHARACTERS: usize = 64;
/// Most characters of a content type.
pub const CONTENT_TYPE_CHARACTERS: usize = 64;
/// Most bytes of a content id.
pub const CONTENT_ID_BYTES: usize = 256;
/// Most bytes of a user.
pub const USER_BYTES: usize = 128;
/// Write ids kept in the document itself; younger ones that are pushed out go to the store's
/// `applied` table.
pub const RECENT_WRITES: usize = 8;
/// How long a write id is remembered at least, in milliseconds (10 minutes).
pub const WRITE_ID_MEMORY_MS: i64 = 600_000;
/// How long a tombstone is kept at least, in milliseconds (10 minutes), unless [`TOMBSTONES`] is
/// exceeded.
pub const TOMBSTONE_AGE_MS: i64 = 600_000;
/// Most tombstones in one document.
pub const TOMBSTONES: usize = 64;

/// The limits an operator may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most tags on one content. Too high: documents of many kilobytes, slow views; too low: users
    /// cannot tag.
    pub tags_per_content: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tags_per_content: 100 }
    }
}
