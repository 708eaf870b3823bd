//! What each client command does; the arguments are in [`crate::args`].

mod answer_notes;
mod breakers;
mod content;
mod dead_letters;
mod dispatch;
mod operations;
mod receipts;
mod search;
mod status;

pub use dispatch::run;
