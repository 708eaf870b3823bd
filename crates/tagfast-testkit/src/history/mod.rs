//! History checkers: compare what clients were answered with what is stored in the end.
//!
//! - [`set`]: every element is added once; which elements must and may exist in the end.
//! - [`clients`]: concurrent writers and readers of tags, with tokens, through failovers.
//! - [`feed`]: events on their way to an index.
//!
//! Each checker is tested on hand-made histories that are wrong in exactly one way, so that a
//! checker which accepts everything fails its own tests.

pub mod clients;
pub mod feed;
mod outcome;
pub mod set;

pub use outcome::Outcome;
