//! What each client command does; the arguments are in [`crate::args`].

mod answer_notes;
mod breakers;
mod clusters;
mod content;
mod csv;
mod dead_letters;
mod dispatch;
mod failovers;
mod operations;
mod receipts;
mod search;
mod status;
mod watch;

pub use dispatch::run;
