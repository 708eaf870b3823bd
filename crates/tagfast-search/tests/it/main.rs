//! The query language against its grammar, and a guarded index against faults.

mod guarded;
mod hints;
mod language;
