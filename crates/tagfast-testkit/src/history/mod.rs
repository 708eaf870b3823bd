//! History checkers: compare what clients were answered with what is stored in the end.
//!
//! A test records a [`History`] while it breaks servers: every write and read with the times of
//! its call and its answer, the epochs, what the service said about each write afterwards, the
//! final states, the topic and the index. [`History::check`] judges it by the thirteen invariants
//! of [`Invariant`], each a function of its own, and names the calls that show a violation.
//!
//! | invariants | module | idea |
//! |---|---|---|
//! | I1, I2 | `epochs` | given once, looked up; a watcher's time is the promotion's |
//! | I3, I12, I13 | `serial_order` | versions give the order (Elle); no search (Knossos) |
//! | I4, I5, I6 | `verdicts` | each acknowledged element is accounted for (Jepsen: set-full) |
//! | I7, I8, I9 | `feed` | largest value so far; sets of versions |
//! | I10, I11 | `sessions` | a read must not be behind what its client, or its process, had seen |
//!
//! Every check is linear in the history but for sorting it, and for reads, which cost the number of
//! tags of their content.
//!
//! Not checked: the commits themselves, as no client sees them, so a commit that no answer, read or
//! event shows is invisible here; two faults that cancel each other out before any reader looks;
//! writes with an unknown outcome, which may explain any later state; display names, users and
//! times of taggings; whether a read without a token is recent.
//!
//! [`set`] is the smaller checker of a set whose elements are added once. Each checker is tested on
//! histories that are wrong in exactly one way, made by hand and at random, so that a checker which
//! accepts everything fails its own tests.

mod check;
mod epochs;
mod feed;
mod outcome;
mod record;
mod registers;
mod serial_order;
mod sessions;
pub mod set;
mod verdicts;
mod violation;

pub use check::{Counts, Findings};
pub use outcome::Outcome;
pub use record::{
    EpochSeen, FeedEvent, FinalContent, History, LogRange, ReadCall, Replicas, VerdictAnswer,
    WriteCall, WriteVerdict,
};
pub use verdicts::LostSpan;
pub use violation::{Invariant, Violation};

#[cfg(test)]
mod tests;
