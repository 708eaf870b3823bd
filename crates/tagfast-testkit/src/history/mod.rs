//! Checking what clients were told against what is there.
//!
//! - [`set`]: every element is added once; what must and what may be there in the end.
//! - [`clients`]: writers and readers of tags that race, with tokens, through failovers.
//! - [`feed`]: events on their way to an index.
//!
//! Each checker is tested on histories made by hand that are wrong in one way: a checker that
//! passes everything would be found out.

pub mod clients;
pub mod feed;
pub mod set;

/// What the writer of an element was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The service said that it is stored.
    Acknowledged,
    /// The connection broke, or the service said that it does not know.
    Unknown,
    /// The service said that nothing happened.
    Refused,
}
