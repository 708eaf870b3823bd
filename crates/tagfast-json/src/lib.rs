//! The one way to read JSON that comes from outside the process.
//!
//! A structure that derives `Deserialize` also accepts an array of its values, in the order of its
//! fields: `["ui", "critical"]` would be read as the tag `ui` of the user `critical`. And of a key
//! that an object gives twice, a map keeps the last. Both are refused here, at every depth.
//!
//! How it fails: with the [`Error`] of the JSON reader, which has the place; an array for an object
//! is `invalid type: sequence, expected an object`, a repeated key is named.
//!
//! Invariant: a structure inside an untagged, internally tagged or flattened one is a
//! [`Strict`] of its own, because serde reads those from a buffer that this crate does not see.

mod strict;
#[cfg(feature = "testing")]
pub mod testing;

use serde::{Deserialize, Deserializer, Serialize};
pub use serde_json::Error;

/// A value that is read strictly: every structure in it from an object, every key once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Strict<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Strict<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(strict::StrictDeserializer(deserializer)).map(Self)
    }
}

/// Reads a document from bytes.
///
/// # Errors
///
/// The bytes are not one JSON document, or it does not have the form of `T`.
pub fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Error> {
    serde_json::from_slice::<Strict<T>>(bytes).map(|strict| strict.0)
}

/// Reads a document from text.
///
/// # Errors
///
/// As [`from_slice`].
pub fn from_str<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, Error> {
    serde_json::from_str::<Strict<T>>(text).map(|strict| strict.0)
}

/// Where a document that was refused is wrong: a path like `items[3].add`, `.` for the document
/// itself. `None`: nothing in it is wrong, and text follows it. Slower than reading.
pub fn place_of_error<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Option<String> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize::<_, Strict<T>>(&mut deserializer);
    read.err().map(|error| error.path().to_string())
}

/// Reads a value out of a document that was read before.
///
/// # Errors
///
/// The value does not have the form of `T`.
pub fn from_value<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T, Error> {
    serde_json::from_value::<Strict<T>>(value).map(|strict| strict.0)
}
