//! The keys of asymmetric tokens: a JSON Web Key Set that is kept fresh while serving.
//!
//! | file | content |
//! |---|---|
//! | `keys.rs` | which members of a set are keys that verify tokens here |
//! | `source.rs` | reading a set from a file or a URL |
//! | `key_set.rs` | the set in force and its refreshes |

mod key_set;
mod keys;
mod source;

pub(crate) use key_set::KeySet;

/// How many keys of a JSON Web Key Set can verify tokens here.
///
/// # Errors
///
/// The bytes are not a JSON Web Key Set.
pub fn usable_keys(set: &[u8]) -> Result<usize, serde_json::Error> {
    keys::Keys::parse(set).map(|keys| keys.len())
}
